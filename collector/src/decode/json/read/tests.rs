use super::*;

/// Reads a document; whoever passes over it has to come to the same end.
fn document(text: &str) -> Result<Json<'_>, JsonError> {
    let document = super::document(text);
    assert_eq!(check(text).err(), document.as_ref().err().copied(), "{text:?}");
    document
}

fn read(text: &str) -> Json<'_> {
    document(text).unwrap()
}

#[test]
fn escapes_that_postgresql_cannot_hold_are_replaced_one_by_one() {
    for (text, expected) in [
        (r#""a\u0000b""#, "a\u{FFFD}b"),
        (r#""x\udc00y""#, "x\u{FFFD}y"),
        (r#""x\ud83dy""#, "x\u{FFFD}y"),
        (r#""\ud83d\ud83d\ude00""#, "\u{FFFD}😀"),
        (r#""\ud83d\n\ude00""#, "\u{FFFD}\n\u{FFFD}"),
        (r#""\uD83D\uDE00\u00e9\b\f\/""#, "😀é\u{8}\u{c}/"),
        (r#""\\u0000 \\\u0000""#, "\\u0000 \\\u{FFFD}"),
        (r#""\ud83d""#, "\u{FFFD}"),
    ] {
        assert_eq!(read(text), Json::text(expected), "{text}");
    }
}

#[test]
fn numbers_keep_their_digits_and_those_that_no_column_holds_become_strings() {
    let digits = "7".repeat(MAX_NUMBER_BYTES);
    for number in ["0", "-0", "-12.50", "1E+5", "18446744073709551616", "0.1e-300", &digits] {
        assert_eq!(read(number), Json::Number(Cow::Borrowed(number)));
    }
    let long = "7".repeat(MAX_NUMBER_BYTES + 1);
    for number in ["NaN", "Infinity", "-Infinity", "1e999", "1e-99999", "-1E99999999999999999999", &long] {
        assert_eq!(read(number), Json::text(number));
    }
}

#[test]
fn what_python_refuses_is_refused() {
    for text in [
        "",
        " ",
        "nul",
        "01",
        "-",
        "1.",
        ".5",
        "1e",
        "+1",
        "nan",
        "inf",
        "-NaN",
        "[1,]",
        "[1 2]",
        "[,1]",
        "{\"a\"}",
        "{\"a\":}",
        "{\"a\":1,}",
        "{a:1}",
        "{'a':1}",
        "[1",
        "{\"a\":1",
        "\"",
        "\"a",
        "\"\\x\"",
        "\"\\u12\"",
        "\"\\u12g4\"",
        "\"\\ud83d\\u\"",
        "\"a\nb\"",
        "\"\t\"",
        "1 2",
        "[]]",
        "[1}",
        "[[1}]",
        "{\"a\":1]",
        "{\"a\":{\"b\":1]}",
        "\u{a0}1",
        "// x\n1",
        "\"\0\"",
    ] {
        assert!(document(text).is_err(), "{text:?}");
    }
}

#[test]
fn an_error_tells_the_place_and_nothing_of_the_text() {
    assert_eq!(document("{\"secret\": oops}").unwrap_err().to_string(), "no value at byte 11");
}

#[test]
fn a_thousand_levels_are_read_and_a_million_cost_nothing() {
    let nested = |levels: usize| format!("{}1{}", "[".repeat(levels), "]".repeat(levels));
    assert!(document(&nested(1_000)).is_ok());
    assert!(document(&nested(MAX_DEPTH)).is_ok());
    assert!(document(&nested(MAX_DEPTH + 1)).is_err());
    assert!(document(&"[".repeat(1_000_000)).is_err());
    assert!(document(&"{\"a\":".repeat(1_000_000)).is_err());
    // Siblings are not nested.
    assert!(document(&format!("[{}[]]", "[],".repeat(5_000))).is_ok());
}
