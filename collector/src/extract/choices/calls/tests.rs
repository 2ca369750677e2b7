use super::*;

/// What the deltas add up to: id, name and arguments of each call.
fn calls(deltas: &[&str]) -> Vec<(String, String, String)> {
    let mut calls = Calls::default();
    for delta in deltas {
        calls.add(&Json::parse(delta).unwrap(), &mut Pieces::default());
    }
    let calls = calls.finish().unwrap();
    let found = calls
        .elements()
        .iter()
        .map(read)
        .map(|call| (call.id.unwrap_or_default(), call.name.unwrap_or_default(), call.arguments));
    found.collect()
}

#[test]
fn pieces_find_their_call_whatever_the_server_says_about_it() {
    let two = [("a", "f", r#"{"x":1}"#), ("b", "g", "{}")];
    let one = [("a", "f", r#"{"x":1}"#)];
    type Calls<'t> = &'t [(&'t str, &'t str, &'t str)];
    let cases: [(&str, &[&str], Calls<'_>); 16] = [
        (
            "by index",
            &[
                r#"[{"index":0,"id":"a","function":{"name":"f","arguments":"{\"x\""}}]"#,
                r#"[{"index":1,"id":"b","function":{"name":"g","arguments":"{"}}]"#,
                r#"[{"index":0,"function":{"arguments":":1}"}},{"index":1,"function":{"arguments":"}"}}]"#,
            ],
            &two,
        ),
        (
            "no index",
            &[
                r#"[{"id":"a","function":{"name":"f","arguments":"{\"x\""}}]"#,
                r#"[{"function":{"arguments":":1}"}}]"#,
                r#"[{"id":"b","function":{"name":"g","arguments":"{}"}}]"#,
            ],
            &two,
        ),
        (
            "always index 0",
            &[
                r#"[{"index":0,"id":"a","function":{"name":"f","arguments":"{\"x\":1}"}}]"#,
                r#"[{"index":0,"id":"b","function":{"name":"g","arguments":"{"}}]"#,
                r#"[{"index":0,"function":{"arguments":"}"}}]"#,
            ],
            &two,
        ),
        (
            "index null, both in one delta",
            &[
                r#"[{"index":null,"id":"a","function":{"name":"f","arguments":"{\"x\":1}"}},{"index":null,"id":"b","function":{"name":"g","arguments":"{}"}}]"#,
            ],
            &two,
        ),
        (
            "no id and no index",
            &[r#"[{"function":{"name":"f","arguments":"{\"x\":1}"}},{"function":{"name":"f","arguments":"{}"}}]"#],
            &[("", "f", r#"{"x":1}"#), ("", "f", "{}")],
        ),
        (
            "no id, one index",
            &[
                r#"[{"index":0,"function":{"name":"f","arguments":"{\"x\":1}"}}]"#,
                r#"[{"index":0,"function":{"name":"f","arguments":"{}"}}]"#,
            ],
            &[("", "f", r#"{"x":1}"#), ("", "f", "{}")],
        ),
        (
            "ids interleaved, without index",
            &[
                r#"[{"id":"a","function":{"name":"f","arguments":"{\"x\""}}]"#,
                r#"[{"id":"b","function":{"name":"g","arguments":"{"}}]"#,
                r#"[{"id":"a","function":{"arguments":":1}"}}]"#,
                r#"[{"id":"b","function":{"arguments":"}"}}]"#,
            ],
            &two,
        ),
        (
            "id late",
            &[
                r#"[{"index":0,"id":"","function":{"name":"f","arguments":""}}]"#,
                r#"[{"index":0,"id":"a","function":{"arguments":"{\"x\":1}"}}]"#,
            ],
            &one,
        ),
        (
            "another id with each piece",
            &[
                r#"[{"index":0,"id":"a","function":{"name":"f","arguments":"{\"x\""}}]"#,
                r#"[{"index":0,"id":"z","function":{"arguments":":1}"}}]"#,
            ],
            &one,
        ),
        (
            "one id for all",
            &[
                r#"[{"index":0,"id":"a","function":{"name":"f","arguments":"{\"x\":1}"}}]"#,
                r#"[{"index":1,"id":"a","function":{"name":"g","arguments":"{}"}}]"#,
            ],
            &[one[0], ("a", "g", "{}")],
        ),
        (
            "name late, null and empty",
            &[
                r#"[{"index":0,"id":"a","function":{"name":null,"arguments":null}}]"#,
                r#"[{"index":0,"function":{"name":"","arguments":""}}]"#,
                r#"[{"index":0,"function":{"name":"f","arguments":"{\"x\":1}"}}]"#,
            ],
            &one,
        ),
        (
            "name in pieces",
            &[
                r#"[{"index":0,"id":"a","function":{"name":"look","arguments":""}}]"#,
                r#"[{"index":0,"function":{"name":"up","arguments":"{}"}}]"#,
            ],
            &[("a", "lookup", "{}")],
        ),
        (
            "name grows",
            &[
                r#"[{"index":0,"id":"a","function":{"name":"look"}}]"#,
                r#"[{"index":0,"function":{"name":"lookup","arguments":"{}"}}]"#,
            ],
            &[("a", "lookup", "{}")],
        ),
        (
            "name with each piece",
            &[
                r#"[{"index":0,"id":"a","function":{"name":"f","arguments":"{\"x\""}}]"#,
                r#"[{"index":0,"id":"a","function":{"name":"f","arguments":":1}"}}]"#,
            ],
            &one,
        ),
        (
            "object, flat, custom",
            &[
                r#"[{"id":"a","function":{"name":"f","arguments":{"x":1}}}]"#,
                r#"[{"id":"b","name":"g","arguments":"{}"}]"#,
                r#"[{"id":"c","type":"custom","custom":{"name":"h","input":"rm "}}]"#,
                r#"[{"custom":{"input":"-r x"}}]"#,
            ],
            &[two[0], two[1], ("c", "h", "rm -r x")],
        ),
        (
            "no list, whole arguments again at the end",
            &[
                r#"{"id":"a","function":{"name":"f","arguments":"{\"x\":1}"}}"#,
                r#"{"id":"a","function":{"name":"f","arguments":"{\"x\":1}"}}"#,
            ],
            &one,
        ),
    ];
    for (name, deltas, expected) in cases {
        let expected: Vec<_> =
            expected.iter().map(|(id, name, arguments)| (id.to_string(), name.to_string(), arguments.to_string())).collect();
        assert_eq!(calls(deltas), expected, "{name}");
    }
}

#[test]
fn brackets_inside_strings_do_not_end_arguments() {
    let mut nesting = Nesting::default();
    nesting.push(r#"{"a":"}\""#);
    assert!(!nesting.is_whole);
    nesting.push(r#"","b":[1]}"#);
    assert!(nesting.is_whole);
}

#[test]
fn what_has_no_place_is_handed_over() {
    let mut unread = Pieces::default();
    let delta =
        Json::parse(r#"[{"index":0,"id":"a","type":"function","extra_content":{"signature":"s"},"function":{"name":"f"}}]"#)
            .unwrap();
    Calls::default().add(&delta, &mut unread);
    assert_eq!(unread.kinds(), [crate::call::Unread::Member]);
}
