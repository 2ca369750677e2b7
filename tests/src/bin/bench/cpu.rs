//! What processes used, from /proc.

use std::fs::read_to_string;

/// Clock ticks a second in /proc: the same on every Linux that PostgreSQL runs on.
const TICKS: f64 = 100.0;

/// CPU seconds of a process: its own, and those of its children that ended and were waited for.
#[derive(Debug, Clone, Copy, Default)]
struct Times {
    own: f64,
    ended_children: f64,
}

fn times(pid: u32) -> Times {
    let stat = read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The name may hold blanks and brackets; what follows the last bracket begins with the third field.
    let fields: Vec<&str> = stat.rsplit_once(')').map(|(_, rest)| rest.split_whitespace().collect()).unwrap_or_default();
    let field = |number: usize| fields.get(number - 3).and_then(|field| field.parse::<f64>().ok()).unwrap_or(0.0) / TICKS;
    Times { own: field(14) + field(15), ended_children: field(16) + field(17) }
}

/// CPU seconds that a process has used.
pub(crate) fn of_process(pid: u32) -> f64 {
    times(pid).own
}

/// CPU seconds that the threads of a process have used which it has now, to the nanosecond: clock ticks are too coarse for a
/// thousand calls.
pub(crate) fn of_threads(pid: u32) -> f64 {
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let nanoseconds = threads.filter_map(|thread| {
        let stat = read_to_string(thread.path().join("schedstat")).ok()?;
        stat.split_whitespace().next()?.parse::<f64>().ok()
    });
    nanoseconds.sum::<f64>() / 1e9
}

/// Most memory that a process ever held, in bytes.
pub(crate) fn peak_memory(pid: u32) -> u64 {
    status_bytes(pid, "VmHWM:")
}

/// Memory that a process holds now, in bytes.
pub(crate) fn memory(pid: u32) -> u64 {
    status_bytes(pid, "VmRSS:")
}

fn status_bytes(pid: u32, name: &str) -> u64 {
    let status = read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let value = status.lines().find_map(|line| line.strip_prefix(name)?.trim().strip_suffix("kB")?.trim().parse::<u64>().ok());
    value.unwrap_or(0) * 1024
}

/// The processes of this host that listen on the port of a URL: the workers of the gateway, and their master.
pub(crate) fn listeners(url: &str) -> Vec<u32> {
    let port: u16 = url.rsplit_once(':').and_then(|(_, port)| port.parse().ok()).unwrap_or(0);
    let table = read_to_string("/proc/net/tcp").unwrap_or_default();
    // sl local_address rem_address st … inode: the state 0A is LISTEN.
    let inodes: Vec<String> = table
        .lines()
        .map(|line| line.split_whitespace().collect::<Vec<_>>())
        .filter(|fields| fields.get(3) == Some(&"0A") && fields[1].ends_with(&format!(":{port:04X}")))
        .filter_map(|fields| fields.get(9).map(|inode| format!("socket:[{inode}]")))
        .collect();
    let processes = std::fs::read_dir("/proc").expect("/proc").flatten();
    processes
        .filter_map(|process| process.file_name().to_str()?.parse().ok())
        .filter(|pid: &u32| {
            let files = std::fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
            files
                .filter_map(|file| std::fs::read_link(file.path()).ok())
                .any(|link| link.to_str().is_some_and(|link| inodes.iter().any(|inode| inode == link)))
        })
        .collect()
}

/// CPU seconds of a PostgreSQL server.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Server {
    /// Of its sessions, those that ended included.
    pub(crate) sessions: f64,
    /// Of its checkpointer, WAL writer and their like.
    pub(crate) background: f64,
}

impl Server {
    /// Of the server whose process ids are these, its postmaster first.
    pub(crate) fn now(pids: &[u32]) -> Self {
        let Some((postmaster, children)) = pids.split_first() else { return Self::default() };
        let Times { own, ended_children } = times(*postmaster);
        let mut server = Self { sessions: ended_children, background: own };
        for child in children {
            let title = read_to_string(format!("/proc/{child}/cmdline")).unwrap_or_default();
            let is_background =
                ["checkpointer", "background writer", "walwriter", "launcher"].iter().any(|name| title.contains(name));
            *(if is_background { &mut server.background } else { &mut server.sessions }) += times(*child).own;
        }
        server
    }

    /// What was used since `earlier`.
    pub(crate) fn since(self, earlier: Self) -> Self {
        Self { sessions: self.sessions - earlier.sessions, background: self.background - earlier.background }
    }
}

/// The processor and its cores, for the report.
pub(crate) fn machine() -> (String, usize) {
    let info = read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = info.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": ").map(|(_, name)| name.to_owned()));
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    (model.unwrap_or_else(|| "unknown processor".to_owned()), cores)
}

/// Processes that wanted to run in the last minute, on average: far more than cores, and the numbers are of a busy machine.
pub(crate) fn load_average() -> f64 {
    let load = read_to_string("/proc/loadavg").unwrap_or_default();
    load.split_whitespace().next().and_then(|load| load.parse().ok()).unwrap_or(0.0)
}

/// CPU seconds of the children of this process that ended.
pub(crate) fn of_ended_children() -> f64 {
    times(std::process::id()).ended_children
}
