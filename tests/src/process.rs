//! Processes that do not outlive the test that started them.

use std::collections::BTreeSet;
use std::hash::{BuildHasher, RandomState};
use std::net::{Ipv4Addr, TcpListener};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Ends something when this process ends, however it ends: a shell waits for the other end of a pipe that only we hold.
#[derive(Debug)]
pub struct Reaper {
    _pipe: ChildStdin,
    _shell: Child,
}

impl Reaper {
    /// Runs `script` (POSIX shell) when this value is dropped or this process is gone.
    pub fn new(script: &str) -> Self {
        let mut shell = Command::new("setsid")
            .args(["sh", "-c", &format!("read _; {script}")])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("a shell");
        let pipe = shell.stdin.take().expect("a pipe");
        Self { _pipe: pipe, _shell: shell }
    }
}

/// A port that is free, and that nobody gets who asks the system for any free one, nor a second test of this process: a server that is
/// stopped for a while has to find it free again.
pub fn free_port() -> u16 {
    // Below the range from which the system chooses.
    const FIRST: u16 = 12_000;
    const COUNT: u16 = 20_000;
    static TAKEN: Mutex<BTreeSet<u16>> = Mutex::new(BTreeSet::new());
    let begin = RandomState::new().hash_one(std::process::id()) % u64::from(COUNT);
    let begin = u16::try_from(begin).expect("below the count");
    let mut taken = TAKEN.lock().unwrap_or_else(PoisonError::into_inner);
    let mut ports = (0..COUNT).map(|step| FIRST + (begin + step) % COUNT);
    ports.find(|port| TcpListener::bind((Ipv4Addr::LOCALHOST, *port)).is_ok() && taken.insert(*port)).expect("a free port")
}

/// Waits until `condition` holds; panics with `what` when it does not within `limit`.
pub async fn wait_until<F: Future<Output = bool>>(what: &str, limit: Duration, mut condition: impl FnMut() -> F) {
    let started = Instant::now();
    while !condition().await {
        assert!(started.elapsed() < limit, "waited {limit:?} in vain: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
