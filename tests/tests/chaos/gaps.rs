//! Entries that Kong numbered and that never arrive.

use gateway_tests::collector::get;
use gateway_tests::fixtures;

use super::*;

fn numbered(worker: &str, numbers: impl IntoIterator<Item = u32>) -> String {
    let entries: Vec<String> = numbers
        .into_iter()
        .map(|number| {
            let entry = fixtures::small_entry(&format!("{worker}-{number}"), 1_795_400_000_000);
            let llm = format!(r#","llm":{{"v":1,"worker":"{worker}","seq":{number}}}}}"#);
            entry.strip_suffix('}').unwrap().to_owned() + &llm
        })
        .collect();
    format!("[{}]", entries.join(","))
}

async fn lost(collectors: &[&Process]) -> BTreeMap<String, u64> {
    let mut lost = BTreeMap::new();
    for collector in collectors {
        let text = get(&format!("{}/metrics", collector.url)).await.unwrap().text;
        for line in text.lines().filter_map(|line| line.strip_prefix("llm_collector_entries_lost_total{worker=\"")) {
            let (worker, value) = line.split_once("\"} ").unwrap();
            *lost.entry(worker.to_owned()).or_default() += value.parse::<u64>().unwrap();
        }
    }
    lost
}

#[tokio::test]
async fn holes_that_stay_are_counted_once_by_one_of_the_collectors() {
    let site = Site::new().await;
    let other_folder = tempfile::tempdir().unwrap();
    let arguments = ["--gap-grace-seconds", "2"];
    let one = site.collector_with(&arguments).await;
    let two = serve(&site.database, other_folder.path(), &arguments).await;

    // Reordered, repeated, and spread over both: no hole.
    counts(&one, numbered("spread", [1, 2, 5, 6])).await;
    counts(&two, numbered("spread", [3, 4, 7])).await;
    counts(&two, numbered("spread", [5, 6])).await;
    // 4 to 6 and 9 never come; the first two of another worker neither.
    counts(&one, numbered("holes", [1, 2, 3, 7, 8])).await;
    counts(&two, numbered("holes", [10])).await;
    counts(&two, numbered("late-start", [3])).await;
    // A rejected entry has arrived.
    let rejected = r#"{"request":{},"llm":{"worker":"rejecting","seq":2}}"#;
    let around = numbered("rejecting", [1, 3]);
    counts(&one, format!("{},{rejected}]", around.strip_suffix(']').unwrap())).await;

    let expected = BTreeMap::from([("holes".to_owned(), 4), ("late-start".to_owned(), 2)]);
    wait_until("the holes are found", PATIENCE, || async { lost(&[&one, &two]).await == expected }).await;

    // A restart of a collector and of a worker is no hole, and what was counted is not counted again.
    one.signal("TERM");
    let (_, log_of_one) = one.finished().await;
    let one = site.collector_with(&arguments).await;
    counts(&one, numbered("holes", [11, 12])).await;
    counts(&one, numbered("spread", [8])).await;
    counts(&one, numbered("restarted", [1])).await;
    counts(&one, numbered("marker", [2])).await;
    wait_until("a later hole is found", PATIENCE, || async { lost(&[&one, &two]).await.contains_key("marker") }).await;
    let found = "SELECT count(*) FROM llm_sequence_gaps WHERE worker <> 'marker'";
    assert_eq!(site.database.number(found).await, 3);

    two.signal("TERM");
    let (_, log_of_two) = two.finished().await;
    let log = log_of_one + &log_of_two;
    assert_eq!(log.matches("worker holes numbers 4 to 6 never arrived").count(), 1, "{log}");
}

#[tokio::test]
async fn a_hole_that_closes_in_time_is_none() {
    let site = Site::new().await;
    let collector = site.collector_with(&["--gap-grace-seconds", "3"]).await;
    counts(&collector, numbered("w", [1, 3])).await;
    counts(&collector, numbered("marker", [2])).await;
    counts(&collector, numbered("w", [2])).await;
    wait_until("the marker's hole is found", PATIENCE, || async { lost(&[&collector]).await.contains_key("marker") }).await;
    assert_eq!(lost(&[&collector]).await.len(), 1);
}
