//! Processes that do not outlive the test that started them.

use std::net::{Ipv4Addr, TcpListener};
use std::process::{Child, ChildStdin, Command, Stdio};
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

/// A port that was free a moment ago.
pub fn free_port() -> u16 {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).and_then(|listener| listener.local_addr()).expect("a free port").port()
}

/// Waits until `condition` holds; panics with `what` when it does not within `limit`.
pub async fn wait_until<F: Future<Output = bool>>(what: &str, limit: Duration, mut condition: impl FnMut() -> F) {
    let started = Instant::now();
    while !condition().await {
        assert!(started.elapsed() < limit, "waited {limit:?} in vain: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
