//! Entries that Kong numbered and that never arrive, arrive late, or wait on a disk.

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

#[tokio::test]
async fn a_hole_that_closes_later_is_taken_back() {
    let site = Site::new().await;
    let collector = site.collector_with(&["--gap-grace-seconds", "1"]).await;
    counts(&collector, numbered("w", [1, 2, 9])).await;
    let missing = || metric(&collector, "llm_collector_entries_missing");
    wait_until("the hole is found", PATIENCE, || async { missing().await == 6.0 }).await;

    // A part of it comes, and a repeat of what was there.
    counts(&collector, numbered("w", [5, 6, 2])).await;
    wait_until("a part is taken back", PATIENCE, || async { missing().await == 4.0 }).await;
    let gaps = "SELECT string_agg(first_seq || '-' || last_seq, ' ' ORDER BY first_seq) FROM llm_sequence_gaps";
    let listed = || async { site.database.connect().await.query_one(gaps, &[]).await.unwrap().get::<_, Option<String>>(0) };
    assert_eq!(listed().await.as_deref(), Some("3-4 7-8"));

    counts(&collector, numbered("w", [3, 4, 7, 8])).await;
    wait_until("all is taken back", PATIENCE, || async { missing().await == 0.0 }).await;
    assert_eq!(listed().await, None);
    // Found once, not once again for what was left of it.
    assert_eq!(lost(&[&collector]).await, BTreeMap::from([("w".to_owned(), 6)]));
    collector.signal("TERM");
    let (_, log) = collector.finished().await;
    assert!(log.contains("2 entries of worker w that were taken for lost have come"), "{log}");
}

#[tokio::test]
async fn what_waits_on_a_disk_is_not_lost_however_long_it_waits() {
    let site = Site::new().await;
    let other_folder = tempfile::tempdir().unwrap();
    let arguments = ["--gap-grace-seconds", "5"];
    let one = site.collector_with(&arguments).await;
    let two = serve(&site.database, other_folder.path(), &arguments).await;
    counts(&one, numbered("w", [1, 3, 5])).await;
    // Somebody holds a lock that one row needs, and no other.
    let locked = "CREATE FUNCTION locked() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
            IF NEW.prompt = 'hi w-2' THEN RAISE EXCEPTION 'locked' USING ERRCODE = '55P03'; END IF;
            RETURN NEW; END $$;
        CREATE TRIGGER locked BEFORE INSERT ON llm_logs FOR EACH ROW EXECUTE FUNCTION locked()";
    site.database.connect().await.batch_execute(locked).await.unwrap();
    site.cluster.stop_server("fast").unwrap();
    // One entry, and one that can never be a row; in two spools, one of which is read again by a new process.
    assert_eq!(counts(&two, numbered("w", [2])).await, [0, 0, 1, 0]);
    assert_eq!(counts(&one, r#"{"request":{},"llm":{"worker":"w","seq":4}}"#).await, [0, 0, 1, 0]);
    two.signal("TERM");
    two.finished().await;
    let two = serve(&site.database, other_folder.path(), &arguments).await;
    site.cluster.start_server().unwrap();
    wait_until("others are stored", PATIENCE, || async { counts(&one, numbered("marker", [2])).await[2] == 0 }).await;
    let expected = BTreeMap::from([("marker".to_owned(), 1)]);
    wait_until("holes are looked for", PATIENCE, || async { lost(&[&one, &two]).await == expected }).await;
    assert_eq!(spool_files(&other_folder.path().join("spool")), 1);
    site.database.connect().await.batch_execute("DROP TRIGGER locked ON llm_logs").await.unwrap();
    wait_until("all is stored", PATIENCE, || async {
        spool_files(&other_folder.path().join("spool")) == 0 && site.database.number("SELECT count(*) FROM llm_logs").await == 5
    })
    .await;
    assert_eq!(site.database.number("SELECT count(*) FROM llm_rejected").await, 1);
    assert_eq!(lost(&[&one, &two]).await, expected);
}
