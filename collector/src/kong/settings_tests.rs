use super::*;

/// Settings of which one was given.
fn given(name: &str, value: &str) -> KongSettings {
    let mut settings = KongSettings::default();
    let value = Some(value.to_owned());
    match name {
        "VLLM_URL" => settings.vllm_url = value,
        "VLLM_API_KEY" => settings.vllm_api_key = value,
        "VLLM_EXTRA_PATHS" => settings.vllm_extra_paths = value,
        "RATE_LIMIT_PER_HOUR" => settings.rate_limit_per_hour = value,
        "COLLECTOR_URL" => settings.collector_url = value,
        "AUDIT_BATCH_SECONDS" => settings.audit_batch_seconds = value,
        "AUDIT_CAPTURE" => settings.audit_capture = value,
        "KONG_SHARED" => settings.kong_shared = value,
        other => panic!("{other}"),
    }
    settings
}

fn read(name: &str, value: &str) -> Outcome<Settings> {
    Settings::read(&given(name, value))
}

#[test]
fn what_is_empty_is_not_given() {
    for name in ["VLLM_URL", "VLLM_API_KEY", "VLLM_EXTRA_PATHS", "RATE_LIMIT_PER_HOUR", "COLLECTOR_URL", "AUDIT_CAPTURE"] {
        let settings = read(name, "").unwrap();
        assert_eq!(settings.vllm.target(), "127.0.0.1:8000");
        assert_eq!(settings.rate_limit_per_hour, 100);
        assert_eq!(settings.collector_endpoint, "http://127.0.0.1:5000/log");
        assert_eq!(settings.vllm_key, None);
    }
}

#[test]
fn numbers_are_read_as_they_are_written() {
    for good in ["0", "1", "1000000000"] {
        assert_eq!(read("RATE_LIMIT_PER_HOUR", good).unwrap().rate_limit_per_hour.to_string(), good);
    }
    for bad in ["-1", "1e3", "+1", "01", " 1", "1.0", "99999999999999999999", "1000000001", "x"] {
        let failure = read("RATE_LIMIT_PER_HOUR", bad).unwrap_err();
        assert!(failure.what.contains("RATE_LIMIT_PER_HOUR") && failure.what.contains(bad), "{failure}");
    }
    assert_eq!(read("AUDIT_BATCH_SECONDS", "0.125").unwrap().batch_seconds, 0.125);
    assert_eq!(read("AUDIT_BATCH_SECONDS", "30").unwrap().batch_seconds, 30.0);
    for bad in ["fast", "1e1", ".5", "5.", "1000", "0.0001", "inf", "-1", "1.2.3"] {
        assert!(read("AUDIT_BATCH_SECONDS", bad).is_err(), "{bad}");
    }
}

#[test]
fn a_secret_is_never_repeated() {
    assert_eq!(read("VLLM_API_KEY", "sk-abc").unwrap().vllm_key.as_deref(), Some("sk-abc"));
    for bad in ["sk secret", "sk-schlüssel", "$(secret)", "{vault://env/secret}", "secret\n"] {
        let failure = read("VLLM_API_KEY", bad).unwrap_err();
        assert!(!format!("{failure} {:?}", failure.advice).contains("secret"), "{failure}");
    }
}

#[test]
fn paths_are_plain_ones() {
    assert_eq!(read("VLLM_EXTRA_PATHS", " /a  /v1/x.y ").unwrap().extra_paths, ["/a", r"/v1/x\.y"]);
    for bad in ["metrics", "/a/../b", "/a?b", "/a//b", "/(x)", "/.well", "/", "/a/"] {
        assert!(read("VLLM_EXTRA_PATHS", bad).is_err(), "{bad}");
    }
}

#[test]
fn the_collector_is_named_with_or_without_its_path() {
    for url in ["http://h:1", "http://h:1/", "http://h:1/log", "http://h:1/log/"] {
        assert_eq!(read("COLLECTOR_URL", url).unwrap().collector_endpoint, "http://h:1/log");
    }
    assert!(read("COLLECTOR_URL", "collector").is_err());
    assert!(read("VLLM_URL", "http://h:1/v1").unwrap_err().advice.join(" ").contains("Leave /v1 out"));
}
