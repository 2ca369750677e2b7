//! Others use the database, too: readers that stay for hours, locks, and a large table that is migrated.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use gateway_tests::collector::{get, run};
use gateway_tests::fixtures;

use super::*;

/// Kong's time-out for a batch, and room for a machine that is busy.
const SOON: Duration = Duration::from_secs(10);

/// Connections of collectors that the server knows of.
const BACKENDS: &str = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'llm-collector'";

/// Entries of a day that has no partition.
fn late_batch(prefix: &str, count: usize, days_ago: u64) -> String {
    // At noon: made again, a batch is the same.
    let at = (chrono::Utc::now() - chrono::Days::new(days_ago)).date_naive().and_hms_opt(12, 0, 0).unwrap().and_utc();
    let entries: Vec<String> =
        (0..count).map(|n| fixtures::small_entry(&format!("{prefix}-{n}"), at.timestamp_millis() + n as i64)).collect();
    format!("[{}]", entries.join(","))
}

fn partition(days_ago: u64) -> String {
    format!("llm_logs_{}", (chrono::Utc::now() - chrono::Days::new(days_ago)).format("%Y%m%d"))
}

async fn exists(database: &Database, table: &str) -> bool {
    database.number(&format!("SELECT count(*) FROM pg_class WHERE relname = '{table}'")).await == 1
}

#[tokio::test]
async fn a_reader_that_stays_for_hours_keeps_nobody_from_writing_or_reading() {
    let site = Site::new().await;
    let collector = site.collector_with(&["--database-connections", "4"]).await;
    counts(&collector, fixtures::small_batch("before", 1)).await;
    // As pg_dump: a lock on every partition, for as long as it takes.
    let reader = site.database.connect().await;
    reader.batch_execute("BEGIN; SELECT count(*) FROM llm_logs").await.unwrap();

    let mut most = 0;
    for round in 0..6 {
        let began = Instant::now();
        let late = late_batch(&format!("late-{round}"), 3, 30 + round);
        assert_eq!(counts(&collector, late.clone()).await, [3, 0, 0, 0]);
        assert_eq!(counts(&collector, late).await, [0, 3, 0, 0]);
        assert_eq!(counts(&collector, fixtures::small_batch(&format!("other-{round}"), 3)).await, [3, 0, 0, 0]);
        assert!(began.elapsed() < SOON, "{:?}", began.elapsed());
        // Who comes to read now is not held up by whoever waits for the first reader.
        let began = Instant::now();
        assert!(site.database.number("SELECT count(*) FROM llm_logs").await > 0);
        assert!(began.elapsed() < SOON, "{:?}", began.elapsed());
        most = most.max(site.database.number(BACKENDS).await);
    }
    assert!((1..=4).contains(&most), "{most} connections");
    assert!(!exists(&site.database, &partition(30)).await);
    assert_eq!(metric(&collector, "llm_collector_database_up").await, 1.0);

    reader.batch_execute("COMMIT").await.unwrap();
    for days_ago in 30..36 {
        wait_until("the partition is made", PATIENCE, || async { exists(&site.database, &partition(days_ago)).await }).await;
    }
    // The rows went there, once each, and a repeat still is one.
    assert_eq!(site.database.number("SELECT count(*) FROM llm_logs_default").await, 0);
    assert_eq!(site.database.number(&format!("SELECT count(*) FROM {}", partition(33))).await, 3);
    assert_eq!(counts(&collector, late_batch("late-3", 3, 33)).await, [0, 3, 0, 0]);
    assert_eq!(site.database.number("SELECT count(*) FROM llm_logs").await, 1 + 6 * 6);
    assert_eq!(site.database.number("SELECT coalesce(sum(calls), 0)::bigint FROM llm_usage_counts").await, 1 + 6 * 6);
}

/// Sessions that wait for a lock with a statement like this one.
async fn wait_for_waiting(database: &Database, statement: &str) {
    let waiting = format!(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock' AND query LIKE '{statement}'"
    );
    wait_until("the statement waits", PATIENCE, || async { database.number(&waiting).await == 1 }).await;
}

/// Rows of a day that has no partition, a second apart.
async fn rows_without_partition(database: &Database, days_ago: u32, rows: u32) {
    assert!(run(&["migrate"], &[("DATABASE_URL", &database.url)]).await.status.success());
    let rows = format!(
        "INSERT INTO llm_logs (request_id, consumer_username, started_at)
        SELECT 'old-' || n, 'c', date_trunc('day', now(), 'UTC') - interval '{days_ago} days' + make_interval(secs => n)
        FROM generate_series(1, {rows}) AS n"
    );
    database.connect().await.batch_execute(&rows).await.unwrap();
}

#[tokio::test]
async fn whoever_waits_while_rows_move_finds_each_of_them_once() {
    let site = Site::new().await;
    rows_without_partition(&site.database, 30, 50).await;
    let mover = site.database.connect().await;
    let mut steps = 0;
    loop {
        mover.batch_execute("BEGIN").await.unwrap();
        let fill = "SELECT llm_fill_partition((now() AT TIME ZONE 'UTC')::date - 30, 20)";
        let is_whole: bool = mover.query_one(fill, &[]).await.unwrap().get(0);
        // Both were planned before anybody knew of the new partition, or of its new bounds.
        let reading = async { site.database.number("SELECT count(*) FROM llm_logs /* reads */").await };
        let writing = async {
            let again = "INSERT INTO llm_logs (request_id, consumer_username, started_at)
                SELECT request_id, consumer_username, started_at FROM unnest(ARRAY['old-1', 'old-20', 'old-21', 'old-50'], ARRAY[1, 20, 21, 50])
                    AS known (request_id, second)
                CROSS JOIN LATERAL (SELECT 'c' AS consumer_username, date_trunc('day', now(), 'UTC') - interval '30 days' + make_interval(secs => second) AS started_at) AS old
                ON CONFLICT DO NOTHING /* writes */";
            site.database.connect().await.execute(again, &[]).await.unwrap()
        };
        let committing = async {
            wait_for_waiting(&site.database, "SELECT count(*) FROM llm\\_logs /* reads */").await;
            wait_for_waiting(&site.database, "INSERT INTO llm\\_logs%/* writes */").await;
            mover.batch_execute("COMMIT").await.unwrap();
        };
        let (found, written, ()) = tokio::join!(reading, writing, committing);
        assert_eq!((found, written), (50, 0), "after step {steps}");
        steps += 1;
        if is_whole {
            break;
        }
    }
    assert_eq!(steps, 3);
    assert_eq!(site.database.number(&format!("SELECT count(*) FROM {}", partition(30))).await, 50);
    assert_eq!(site.database.number("SELECT count(*) FROM llm_partition_moves").await, 0);
    assert_eq!(site.database.number("SELECT count(DISTINCT request_id) FROM llm_logs").await, 50);
}

#[tokio::test]
async fn rows_of_a_day_move_in_pieces_while_others_read_and_write() {
    let site = Site::new().await;
    // More than two pieces. All in the first hours of the day; what comes for its noon is new.
    rows_without_partition(&site.database, 30, 12_000).await;
    let collector = site.collector().await;
    let is_moved = AtomicBool::new(false);
    let moving = async {
        wait_until("all rows have moved", PATIENCE * 2, || async {
            site.database.number("SELECT count(*) FROM llm_logs_default").await == 0
                && site.database.number("SELECT count(*) FROM llm_partition_moves").await == 0
        })
        .await;
        is_moved.store(true, Ordering::Relaxed);
    };
    let reading = async {
        let old = "SELECT count(*) FROM llm_logs WHERE request_id LIKE 'old-%'";
        while !is_moved.load(Ordering::Relaxed) {
            assert_eq!(site.database.number(old).await, 12_000);
        }
    };
    let writing = async {
        let mut batches = 0;
        while !is_moved.load(Ordering::Relaxed) {
            batches += 1;
            assert_eq!(send(&collector, late_batch(&format!("new-{batches}"), 2, 30)).await.unwrap().status, 200);
        }
        batches
    };
    let ((), (), batches) = tokio::join!(moving, reading, writing);
    site.wait_for_rows(12_000 + 2 * batches).await;
    assert_eq!(site.database.number(&format!("SELECT count(*) FROM {}", partition(30))).await, 12_000 + 2 * batches);
    assert_eq!(site.database.number("SELECT count(*) FROM llm_rejected").await, 0);
}

#[tokio::test]
async fn a_row_on_its_way_while_its_partition_comes_into_being_is_stored_once() {
    let site = Site::new().await;
    let collector = site.collector().await;
    counts(&collector, fixtures::small_batch("before", 1)).await;
    let other = site.database.connect().await;
    // The collector's statement has chosen the default partition and waits for it; meanwhile the day gets its own.
    other.batch_execute("BEGIN; LOCK TABLE llm_logs_default IN ACCESS EXCLUSIVE MODE").await.unwrap();
    let body = late_batch("late", 5, 40);
    let sending = async {
        let answer = counts(&collector, body.clone()).await;
        (answer, counts(&collector, body.clone()).await)
    };
    let attaching = async {
        let waiting =
            "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'llm-collector' AND wait_event_type = 'Lock'
            AND query LIKE '%INSERT INTO llm_logs%'";
        wait_until("the statement waits", PATIENCE, || async { site.database.number(waiting).await == 1 }).await;
        let make = "SELECT llm_create_partition((now() AT TIME ZONE 'UTC')::date - 40)";
        other.batch_execute(&format!("{make}; COMMIT")).await.unwrap();
    };
    let ((first, second), ()) = tokio::join!(sending, attaching);
    assert_eq!((first, second), ([5, 0, 0, 0], [0, 5, 0, 0]));
    assert_eq!(site.database.number(&format!("SELECT count(*) FROM {}", partition(40))).await, 5);
    assert_eq!(site.database.number("SELECT count(*) FROM llm_rejected").await, 0);
    assert_eq!(site.database.number("SELECT sum(calls)::bigint FROM llm_usage_counts").await, 6);
}

#[tokio::test]
async fn a_table_that_is_locked_costs_neither_entries_nor_connections() {
    let site = Site::new().await;
    let collector = site.collector_with(&["--database-connections", "3"]).await;
    counts(&collector, fixtures::small_batch("before", 1)).await;
    let locker = site.database.connect().await;
    locker.batch_execute("BEGIN; LOCK TABLE llm_logs IN ACCESS EXCLUSIVE MODE").await.unwrap();
    let mut most = 0;
    for round in 0..8 {
        let began = Instant::now();
        assert_eq!(counts(&collector, fixtures::small_batch(&format!("during-{round}"), 2)).await, [0, 0, 2, 0]);
        assert!(began.elapsed() < SOON, "{:?}", began.elapsed());
        most = most.max(site.database.number(BACKENDS).await);
    }
    assert!(most <= 3, "{most} connections");
    locker.batch_execute("COMMIT").await.unwrap();
    site.wait_for_rows(17).await;
    assert_eq!(site.database.number("SELECT count(*) FROM llm_rejected").await, 0);
}

#[tokio::test]
async fn a_start_beside_a_reader_and_a_start_that_takes_long_are_served() {
    let site = Site::new().await;
    // A database as an older version left it, with a lock that the migration needs.
    apply_until(&site.database, 4).await;
    let reader = site.database.connect().await;
    reader.batch_execute("BEGIN; LOCK TABLE llm_sequence_gaps IN ACCESS EXCLUSIVE MODE").await.unwrap();
    let collector = site.collector().await;
    assert_eq!(get(&format!("{}/healthz", collector.url)).await.unwrap().status, 200);
    assert_eq!(counts(&collector, fixtures::small_batch("early", 3)).await, [0, 0, 3, 0]);
    reader.batch_execute("COMMIT").await.unwrap();
    site.wait_for_rows(3).await;

    // Nothing to migrate: a reader of all there is disturbs no start.
    collector.signal("TERM");
    collector.finished().await;
    reader.batch_execute("BEGIN; SELECT count(*) FROM llm_logs; SELECT count(*) FROM llm_sequence_gaps").await.unwrap();
    let collector = site.collector().await;
    assert_eq!(counts(&collector, fixtures::small_batch("beside", 3)).await, [3, 0, 0, 0]);
    assert_eq!(counts(&collector, late_batch("late", 3, 50)).await, [3, 0, 0, 0]);
}

/// Brings a database to an older version of the schema.
async fn apply_until(database: &Database, version: i32) {
    let mut client = database.connect().await;
    embedded::migrations::runner().set_target(refinery::Target::Version(version)).run_async(&mut client).await.unwrap();
}

mod embedded {
    refinery::embed_migrations!("../sql");
}

#[tokio::test]
async fn rows_that_are_older_than_the_counting_are_counted_in_pieces_while_new_ones_come() {
    let site = Site::new().await;
    apply_until(&site.database, 2).await;
    let client = site.database.connect().await;
    // In two days of which one has a partition; many at the very same time; an hour apart otherwise.
    let rows = "INSERT INTO llm_logs (request_id, consumer_username, started_at, status, latency_ms, prompt, model, prompt_tokens, completion_tokens)
        SELECT 'old-' || n, 'c' || n % 7, date_trunc('day', now(), 'UTC') - interval '9 days' + make_interval(secs => CASE WHEN n % 2 = 0 THEN 0 ELSE n * 11 END),
            200, 12, 'x', 'm', 3, 5
        FROM generate_series(1, 15000) AS n";
    client.batch_execute(&format!("SELECT llm_create_partition((now() AT TIME ZONE 'UTC')::date - 9); {rows}")).await.unwrap();

    let mut collector = site.collector().await;
    // It is killed in the middle, and more than once.
    let left = "SELECT count(*) FROM llm_usage_backlog";
    for round in 0..3 {
        let late = late_batch(&format!("late-{round}"), 10, 9);
        assert_eq!(counts(&collector, late).await, [10, 0, 0, 0]);
        collector.kill().await;
        collector = site.collector().await;
    }
    wait_until("all is counted", PATIENCE, || async { site.database.number(left).await == 0 }).await;
    let totals =
        "SELECT concat_ws(' ', sum(calls), sum(prompt_tokens), sum(completion_tokens), sum(timed_calls)) FROM llm_usage_counts";
    let totals: String = client.query_one(totals, &[]).await.unwrap().get(0);
    assert_eq!(totals, format!("{} {} {} {}", 15_030, 15_030 * 3, 15_030 * 5, 15_030));
    // By consumer too, so that nothing was counted for somebody else.
    let consumer = "SELECT sum(calls)::bigint FROM llm_usage_counts WHERE consumer_username = 'c3'";
    assert_eq!(site.database.number(consumer).await, (1..=15_000).filter(|n| n % 7 == 3).count() as i64);
}
