//! Configuration, rules and alerts as promtool sees them.

use std::collections::BTreeSet;

use crate::prometheus::{configuration, promtool};

fn files(folder: &str) -> Vec<String> {
    let files = std::fs::read_dir(configuration().join(folder)).expect("a folder");
    let mut files: Vec<String> = files.map(|file| file.expect("a file").path().display().to_string()).collect();
    files.sort();
    files
}

fn read(file: &str) -> String {
    std::fs::read_to_string(file).unwrap_or_else(|error| panic!("{file}: {error}"))
}

#[test]
fn prometheus_takes_the_configuration_with_its_rules() {
    let printed = promtool(&["check", "config", &configuration().join("prometheus.yml").display().to_string()]);
    assert!(printed.contains("2 rule files found"), "{printed}");
}

#[test]
fn alerts_fire_and_keep_silent_as_their_tests_say() {
    let tests = files("tests");
    assert!(!tests.is_empty());
    let arguments: Vec<&str> = ["test", "rules"].into_iter().chain(tests.iter().map(String::as_str)).collect();
    promtool(&arguments);
}

#[test]
fn every_alert_is_tested_firing_and_silent_and_says_what_to_do() {
    let tests: String = files("tests").iter().map(|file| read(file)).collect();
    let alerts = read(&configuration().join("rules/alerts.yml").display().to_string());
    let mut seen = BTreeSet::new();
    for alert in alerts.split("- alert: ").skip(1) {
        let name = alert.lines().next().expect("a name");
        assert!(seen.insert(name), "{name} is there twice");
        assert!(tests.contains(&format!("alertname: {name}, exp_alerts: []")), "{name} has no test in which it is silent");
        assert!(tests.contains(&format!("alertname: {name}\n        exp_alerts:\n")), "{name} has no test in which it fires");
        let severity = alert.lines().find_map(|line| line.trim().strip_prefix("labels: {severity: ")?.strip_suffix('}'));
        assert!(severity.is_some_and(|severity| ["critical", "warning", "info"].contains(&severity)), "{name}: {severity:?}");
        for annotation in ["summary: ", "description: ", "action: "] {
            let text = alert.lines().find_map(|line| line.trim().strip_prefix(annotation)).unwrap_or_default();
            assert!(text.len() > 20, "{name}: {annotation}{text}");
        }
    }
    for wanted in [
        "GatewayDown",
        "GatewayErrorShare",
        "FirstTokenSlow",
        "AnswersSlow",
        "VllmQueueing",
        "VllmCacheFull",
        "VllmDown",
        "CollectorDown",
        "PostgresqlAway",
        "SpoolGrowing",
        "SpoolOld",
        "EntriesLost",
        "EntriesRejected",
        "UsageMissing",
        "DiskFullSoon",
        "PartitionsMissing",
        "OneUserHoldsThePlaces",
        "UserRateLimited",
        "KeyUsedFromManyAddresses",
    ] {
        assert!(seen.contains(wanted), "there is no alert {wanted}");
    }
}
