//! Entries that are made to cost as much as they can, among honest ones, in the memory that the container has.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use gateway_tests::fixtures;

use super::*;

/// The memory of the shipped container.
const MEMORY_BYTES: u64 = 768 << 20;

/// Entries of a batch, half of them hostile.
const BATCH: usize = 20;

/// Hostile entries, and as many honest ones: `CHAOS_HOSTILE=10000` sends more than every run can afford.
fn wanted() -> usize {
    std::env::var("CHAOS_HOSTILE").ok().map_or(200, |count| count.parse().expect("CHAOS_HOSTILE is a number"))
}

/// 16 MiB of the letter a in brotli: one literal and one copy of all the rest.
const BROTLI_BOMB: [u8; 13] = [0xF2, 0xFF, 0xFF, 0x1F, 0x00, 0x44, 0x58, 0x3C, 0x16, 0x50, 0xEE, 0xFD, 0x3F];

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::read::GzEncoder::new(bytes, flate2::Compression::default());
    read_all(&mut encoder)
}

fn zlib(bytes: &[u8]) -> Vec<u8> {
    read_all(&mut flate2::read::ZlibEncoder::new(bytes, flate2::Compression::default()))
}

fn bare(bytes: &[u8]) -> Vec<u8> {
    read_all(&mut flate2::read::DeflateEncoder::new(bytes, flate2::Compression::default()))
}

fn read_all(reader: &mut impl std::io::Read) -> Vec<u8> {
    let mut bytes = Vec::new();
    reader.read_to_end(&mut bytes).unwrap();
    bytes
}

/// Bodies with the content encoding that they claim.
fn hostile_bodies() -> Vec<(&'static str, Vec<u8>)> {
    let letters = vec![b'a'; 64 << 20];
    let zstd = zstd::encode_all(letters.as_slice(), 3).unwrap();
    let bomb = gzip(&letters);
    let many = |part: &str, bytes: usize| format!("[{}0]", part.repeat(bytes / part.len())).into_bytes();
    let names: String = (0..110_000).map(|n| format!("\"{n}\":1,")).collect();
    let prose: String = (0..400_000_u64).map(|n| format!("{:x} ", n.wrapping_mul(0x9E37_79B9_7F4A_7C15))).collect();
    vec![
        ("gzip", bomb.clone()),
        ("deflate", zlib(&letters)),
        ("deflate", bare(&letters)),
        ("zstd", zstd.clone()),
        ("br", BROTLI_BOMB.to_vec()),
        ("br", [0x11, 0x1E, 0x0B, 0x03, 0x80, b'{', b'}', 0x03].to_vec()),
        ("gzip, gzip", gzip(&bomb)),
        ("zstd, gzip", gzip(&zstd)),
        ("br, deflate", zlib(&BROTLI_BOMB)),
        ("gzip,gzip,gzip,gzip,gzip,gzip,gzip,gzip", bomb),
        // A window of 2 GiB.
        ("zstd", vec![0x28, 0xB5, 0x2F, 0xFD, 0x00, 0xA8, 0x09, 0x00, 0x00, b'x']),
        // No bombs: as large as may be inflated, and costly afterwards.
        ("gzip", gzip(prose.as_bytes())),
        ("gzip", gzip(&many("[0],", 2 << 20))),
        ("identity", many("{},", 1 << 20)),
        ("identity", many("[[[0]]],", 1 << 20)),
        ("identity", [vec![b'['; 100_000], vec![b']'; 100_000]].concat()),
        ("identity", format!("{{{names}\"x\":1}}").into_bytes()),
        (
            "identity",
            format!("data: {{{names}\"choices\":[{{{names}\"delta\":{{{names}\"content\":\"x\"}}}}]}}\n\n").into_bytes(),
        ),
        ("identity", vec![1; 1 << 20]),
        ("identity", format!("{{\"text\":\"{}\"}}", "\\u0001".repeat(200_000)).into_bytes()),
    ]
}

fn hostile_entry(id: &str, (encoding, body): &(&str, String)) -> String {
    let side = format!(r#""headers":{{"content-type":"application/json","content-encoding":"{encoding}"}},"body":"{body}""#);
    format!(
        r#"{{"request":{{"id":"{id}","uri":"/v1/chat/completions","method":"POST",{side}}},"response":{{"status":400,{side}}},"consumer":{{"username":"z1"}},"started_at":1795400000000}}"#
    )
}

/// Batches of hostile and honest entries in turn, with the names of the honest ones.
fn batches(count: usize) -> (Vec<String>, Vec<String>) {
    let bodies: Vec<(&str, String)> =
        hostile_bodies().into_iter().map(|(encoding, body)| (encoding, STANDARD.encode(body))).collect();
    let honest: Vec<String> = (0..count).map(|n| format!("honest-{n}")).collect();
    let batches = (0..count).step_by(BATCH / 2).map(|first| {
        let entries: Vec<String> = (first..count.min(first + BATCH / 2))
            .flat_map(|n| {
                let hostile = hostile_entry(&format!("hostile-{n}"), &bodies[n % bodies.len()]);
                [hostile, fixtures::small_entry(&honest[n], 1_795_400_000_000)]
            })
            .collect();
        format!("[{}]", entries.join(","))
    });
    (batches.collect(), honest)
}

/// Holds a running process to the memory of the container. Address space, because a control group needs rights that not everyone has;
/// it is the harder bound, for what is only reserved counts, too.
fn hold_to_memory(collector: &Process) {
    let limit = format!("--as={MEMORY_BYTES}");
    let status = std::process::Command::new("prlimit").args(["--pid", &collector.pid().to_string(), &limit]).status();
    assert!(status.is_ok_and(|status| status.success()), "prlimit");
}

/// How often each request id is in the table.
async fn rows_by_id(database: &Database) -> BTreeMap<String, i64> {
    let query = "SELECT request_id, count(*) FROM llm_logs GROUP BY 1";
    database.connect().await.query(query, &[]).await.unwrap().iter().map(|row| (row.get(0), row.get(1))).collect()
}

async fn assert_all_are_there(site: &Site, honest: &[String]) {
    let count = i64::try_from(2 * honest.len()).unwrap();
    let safe = "SELECT (SELECT count(*) FROM llm_logs) + (SELECT count(*) FROM llm_rejected)";
    wait_until("every entry is a row or on record", PATIENCE * 5, || async {
        spool_files(&site.spool()) == 0 && site.database.number(safe).await == count
    })
    .await;
    let rows = rows_by_id(&site.database).await;
    assert!(honest.iter().all(|id| rows.get(id) == Some(&1)), "an honest entry is missing or doubled");
}

#[tokio::test]
async fn hostile_bodies_among_honest_ones_kill_nobody() {
    let site = Site::new().await;
    let collector = site.collector().await;
    hold_to_memory(&collector);
    let (batches, honest) = batches(wanted());
    let batches = std::sync::Arc::new(std::sync::Mutex::new(batches));
    let send_all = || async {
        loop {
            let Some(batch) = batches.lock().unwrap().pop() else { break };
            // As Kong does: until it is taken.
            while send(&collector, batch.clone()).await.expect("the collector lives").status != 200 {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    };
    tokio::join!(send_all(), send_all(), send_all(), send_all());
    assert_all_are_there(&site, &honest).await;
    let (status, log) = {
        collector.signal("TERM");
        collector.finished().await
    };
    assert!(status.success(), "{log}");
}

#[tokio::test]
async fn hostile_bodies_that_waited_in_the_spool_kill_nobody() {
    let site = Site::new().await;
    let mut collector = site.collector().await;
    site.cluster.stop_server("fast").unwrap();
    let (batches, honest) = batches(40);
    for batch in &batches {
        while send(&collector, batch.clone()).await.expect("an answer").status != 200 {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
    collector.kill().await;
    let collector = site.collector().await;
    hold_to_memory(&collector);
    site.cluster.start_server().unwrap();
    assert_all_are_there(&site, &honest).await;
    collector.signal("TERM");
    let (status, log) = collector.finished().await;
    assert!(status.success(), "{log}");
    assert!(!site.data_dir().join("at-work").exists());
}

/// Three entries in a spool file, the collector dead, and what it left in its note.
async fn dead_over_three_entries(note: &str) -> Site {
    let site = Site::new().await;
    let mut collector = site.collector().await;
    site.cluster.stop_server("fast").unwrap();
    assert_eq!(counts(&collector, fixtures::small_batch("spooled", 3)).await, [0, 0, 3, 0]);
    collector.kill().await;
    let file = std::fs::read_dir(site.spool()).unwrap().next().unwrap().unwrap().file_name().into_string().unwrap();
    let number: u64 = file.split('.').next().unwrap().parse().unwrap();
    std::fs::write(site.data_dir().join("at-work"), note.replace("NUMBER", &number.to_string())).unwrap();
    site.cluster.start_server().unwrap();
    site
}

#[tokio::test]
async fn an_entry_over_which_the_collector_died_again_and_again_is_put_on_record() {
    let site = dead_over_three_entries("NUMBER 1 1\n").await;
    let collector = site.collector().await;
    site.wait_for_rows(1).await;
    wait_until("the spool is empty", PATIENCE, || async { spool_files(&site.spool()) == 0 }).await;
    // The one before it was stored before the collector died over it.
    assert_eq!(rows_by_id(&site.database).await.into_keys().collect::<Vec<_>>(), ["spooled-2"]);
    let on_record = "SELECT count(*) FROM llm_rejected WHERE reason LIKE '%died 2 times%'
        AND position('spooled-1' IN convert_from(raw, 'UTF8')) > 0";
    assert_eq!(site.database.number(on_record).await, 1);
    assert_eq!(counts(&collector, fixtures::small_batch("after", 1)).await, [1, 0, 0, 0]);
}

#[tokio::test]
async fn one_death_over_a_file_or_an_entry_proves_nothing() {
    for (note, rows) in [("NUMBER - 0\n", 3), ("NUMBER 1 0\n", 2), ("damaged", 3)] {
        let site = dead_over_three_entries(note).await;
        let _collector = site.collector().await;
        site.wait_for_rows(rows).await;
        assert_eq!(site.database.number("SELECT count(*) FROM llm_rejected").await, 0, "{note}");
    }
}

#[tokio::test]
async fn every_answer_comes_in_time_however_slow_postgresql_is() {
    let site = Site::new().await;
    let collector = site.collector().await;
    let slow = "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_sleep(3); RETURN NULL; END $$;
        CREATE TRIGGER slow BEFORE INSERT ON llm_logs FOR EACH STATEMENT EXECUTE FUNCTION slow();";
    let client = site.database.connect().await;
    client.batch_execute(slow).await.unwrap();
    // Each is as many rows as a statement may have, so that they queue up.
    let began = std::time::Instant::now();
    let batches = (0..12).map(|n| send(&collector, fixtures::small_batch(&format!("slow-{n}"), 1_000)));
    let answers = futures_util::future::join_all(batches).await;
    // Kong's time-out: beyond it Kong would send again into the overload.
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
    let taken = answers.iter().flatten().filter(|answer| answer.status == 200).count();
    assert!(taken > 4 && answers.iter().all(Option::is_some), "{answers:?}");
    client.batch_execute("DROP TRIGGER slow ON llm_logs").await.unwrap();
    let expected: Vec<String> = answers
        .iter()
        .enumerate()
        .filter(|(_, answer)| answer.as_ref().is_some_and(|answer| answer.status == 200))
        .flat_map(|(n, _)| (0..1_000).map(move |k| format!("slow-{n}-{k}")))
        .collect();
    wait_until("the spool is empty", PATIENCE * 2, || async { spool_files(&site.spool()) == 0 }).await;
    let rows = rows_by_id(&site.database).await;
    assert!(expected.iter().all(|id| rows.get(id) == Some(&1)), "an acknowledged entry is missing or doubled");
}
