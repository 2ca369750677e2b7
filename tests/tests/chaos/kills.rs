//! The collector dies, and so do answers.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use gateway_tests::dice::Dice;
use gateway_tests::fixtures;
use tokio::io::AsyncWriteExt;
use tokio::sync::Mutex;

use super::*;

/// Entries in a batch of these tests.
const BATCH: usize = 20;

pub(super) fn kills(default: usize) -> usize {
    std::env::var("CHAOS_KILLS").ok().and_then(|kills| kills.parse().ok()).unwrap_or(default)
}

/// Sends batches until told to stop, each again and again until it is acknowledged, as Kong does; to whichever of the collectors
/// is listed at the moment.
async fn load(name: String, urls: Arc<Mutex<Vec<String>>>, stop: Arc<AtomicBool>, sent: Arc<AtomicUsize>) -> Vec<String> {
    let mut acknowledged = Vec::new();
    let mut dice = Dice::new(name.len() as u64 + 7);
    for batch in 0.. {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let prefix = format!("{name}-{batch}");
        sent.fetch_add(BATCH, Ordering::Relaxed);
        loop {
            let url = {
                let urls = urls.lock().await;
                urls[dice.roll(urls.len() as u64) as usize].clone()
            };
            let answer = post(&format!("{url}/log"), fixtures::mixed_batch(&prefix, BATCH)).await;
            if answer.is_some_and(|answer| answer.status == 200) {
                acknowledged.extend((0..BATCH).map(|n| format!("{prefix}-{n}")));
                break;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
    acknowledged
}

struct Load {
    stop: Arc<AtomicBool>,
    sent: Arc<AtomicUsize>,
    senders: Vec<tokio::task::JoinHandle<Vec<String>>>,
}

impl Load {
    fn start(urls: &Arc<Mutex<Vec<String>>>, senders: usize) -> Self {
        let (stop, sent) = (Arc::<AtomicBool>::default(), Arc::<AtomicUsize>::default());
        let senders = (0..senders)
            .map(|n| tokio::spawn(load(format!("sender{n}"), Arc::clone(urls), Arc::clone(&stop), Arc::clone(&sent))))
            .collect();
        Self { stop, sent, senders }
    }

    /// Waits until at least `more` entries were sent from now on.
    async fn wait_for(&self, more: usize) {
        let before = self.sent.load(Ordering::Relaxed);
        wait_until("the load goes on", PATIENCE, || async { self.sent.load(Ordering::Relaxed) >= before + more }).await;
    }

    async fn finish(self) -> (Vec<String>, usize) {
        self.stop.store(true, Ordering::Relaxed);
        let mut acknowledged = Vec::new();
        for sender in self.senders {
            acknowledged.extend(sender.await.unwrap());
        }
        (acknowledged, self.sent.load(Ordering::Relaxed))
    }
}

#[tokio::test]
async fn a_killed_collector_loses_nothing_acknowledged_and_doubles_nothing() {
    let site = Site::new().await;
    let mut collector = site.collector().await;
    let urls = Arc::new(Mutex::new(vec![collector.url.clone()]));
    let load = Load::start(&urls, 4);
    let mut dice = Dice::new(42);
    let mut database_is_up = true;
    for _ in 0..kills(6) {
        load.wait_for(BATCH * (1 + dice.roll(5) as usize)).await;
        tokio::time::sleep(Duration::from_millis(dice.roll(60))).await;
        collector.kill().await;
        // Now and then PostgreSQL is away too, so that kills meet the spool as well.
        match (dice.roll(3), database_is_up) {
            (0, true) => site.cluster.stop_server("immediate").unwrap(),
            (_, false) => site.cluster.start_server().unwrap(),
            _ => {
                collector = site.collector().await;
                *urls.lock().await = vec![collector.url.clone()];
                continue;
            }
        }
        database_is_up = !database_is_up;
        collector = site.collector().await;
        *urls.lock().await = vec![collector.url.clone()];
    }
    if !database_is_up {
        site.cluster.start_server().unwrap();
    }
    let (acknowledged, sent) = load.finish().await;
    wait_until("the spool is empty", PATIENCE, || async { spool_files(&site.spool()) == 0 }).await;
    assert!(!acknowledged.is_empty());
    assert_exactly_once(&site.database, &acknowledged, sent).await;
}

#[tokio::test]
async fn three_collectors_share_a_database_and_die_in_turn() {
    let site = Site::new().await;
    let folders: Vec<tempfile::TempDir> = (0..3).map(|_| tempfile::tempdir().unwrap()).collect();
    let mut collectors = Vec::new();
    for folder in &folders {
        collectors.push(serve(&site.database, folder.path(), &[]).await);
    }
    let urls = Arc::new(Mutex::new(collectors.iter().map(|collector| collector.url.clone()).collect::<Vec<_>>()));
    let load = Load::start(&urls, 4);
    let mut dice = Dice::new(4711);
    for _ in 0..kills(6) {
        load.wait_for(BATCH * 3).await;
        let victim = dice.roll(3) as usize;
        collectors[victim].kill().await;
        let replacement = serve(&site.database, folders[victim].path(), &[]).await;
        urls.lock().await[victim] = replacement.url.clone();
        collectors[victim] = replacement;
    }
    let (acknowledged, sent) = load.finish().await;
    for folder in &folders {
        let spool = folder.path().join("spool");
        wait_until("the spools are empty", PATIENCE, || async { spool_files(&spool) == 0 }).await;
    }
    assert_exactly_once(&site.database, &acknowledged, sent).await;
}

#[tokio::test]
async fn a_lost_answer_makes_a_repeat_and_no_second_row() {
    let site = Site::new().await;
    let collector = site.collector().await;
    let address = collector.url.trim_start_matches("http://").to_owned();
    let body = fixtures::mixed_batch("lost", 10);
    let request = format!("POST /log HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n{body}", body.len());
    for _ in 0..3 {
        // Hangs up before the answer.
        let mut connection = tokio::net::TcpStream::connect(&address).await.unwrap();
        connection.write_all(request.as_bytes()).await.unwrap();
        drop(connection);
    }
    let [stored, duplicates, spooled, rejected] = counts(&collector, body).await;
    assert_eq!((stored + duplicates, spooled, rejected), (10, 0, 0));
    site.wait_for_rows(10).await;
}

#[tokio::test]
async fn repeats_at_the_same_time_are_one_row_each() {
    let site = Site::new().await;
    let other_folder = tempfile::tempdir().unwrap();
    let collectors = [site.collector().await, serve(&site.database, other_folder.path(), &[]).await];
    let body = fixtures::mixed_batch("same", 50);
    let requests = (0..16).map(|n| counts(&collectors[n % 2], body.clone()));
    let answers = futures_util::future::join_all(requests).await;
    let stored: u64 = answers.iter().map(|[stored, ..]| stored).sum();
    let duplicates: u64 = answers.iter().map(|[_, duplicates, ..]| duplicates).sum();
    assert_eq!((stored, duplicates), (50, 15 * 50));
}
