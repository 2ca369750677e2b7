//! Full disks, damaged files, too many clients.

use gateway_tests::collector::{get, run};
use gateway_tests::fixtures;

use super::*;

#[tokio::test]
async fn a_full_spool_refuses_entries_and_keeps_what_it_has() {
    let site = Site::new().await;
    let collector = site.collector_with(&["--max-spool-bytes", "4000"]).await;
    site.cluster.stop_server("fast").unwrap();
    let mut accepted = 0;
    let refused = loop {
        let answer = send(&collector, fixtures::small_batch(&format!("b{accepted}"), 2)).await.unwrap();
        if answer.status != 200 {
            break answer;
        }
        accepted += 1;
        assert!(accepted < 10, "the limit is not kept");
    };
    assert_eq!((refused.status, refused.headers["retry-after"].to_str().unwrap()), (503, "1"));
    assert!(refused.json()["error"].as_str().unwrap().contains("--max-spool-bytes"), "{}", refused.text);
    assert!(accepted > 0);
    let ready = get(&format!("{}/readyz", collector.url)).await.unwrap();
    assert_eq!(ready.status, 503, "{}", ready.text);
    // Said once, however often it happens.
    for _ in 0..3 {
        assert_eq!(send(&collector, fixtures::small_batch("more", 2)).await.unwrap().status, 503);
    }
    site.cluster.start_server().unwrap();
    site.wait_for_rows(accepted * 2).await;
    assert_eq!(counts(&collector, fixtures::small_batch("after", 2)).await, [2, 0, 0, 0]);
    collector.signal("TERM");
    let (_, log) = collector.finished().await;
    assert_eq!(log.matches("neither PostgreSQL").count(), 1, "{log}");
}

/// A file system of one megabyte; root only, as in CI.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    fn mount() -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        let mut mount = std::process::Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", "size=1m", "tmpfs"]).arg(folder.path()).stderr(std::process::Stdio::null());
        mount.status().is_ok_and(|status| status.success()).then_some(Self(folder))
    }

    fn remount(&self, option: &str) {
        let status = std::process::Command::new("mount").args(["-o", &format!("remount,{option}")]).arg(self.0.path()).status();
        assert!(status.unwrap().success());
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").arg("-l").arg(self.0.path()).status();
    }
}

#[tokio::test]
async fn a_full_or_read_only_disk_refuses_entries_and_loses_nothing() {
    let Some(disk) = SmallDisk::mount() else {
        // Needs root. The same path is taken above, where the limit is ours.
        println!("not root: no small disk to fill");
        return;
    };
    let site = Site::new().await;
    let collector = serve(&site.database, disk.0.path(), &[]).await;
    site.cluster.stop_server("fast").unwrap();
    let mut accepted = 0;
    while send(&collector, fixtures::small_batch(&format!("b{accepted}"), 100)).await.unwrap().status == 200 {
        accepted += 1;
        assert!(accepted < 100, "the disk never fills");
    }
    let spool = disk.0.path().join("spool");
    let files = std::fs::read_dir(&spool).unwrap().count();
    assert_eq!(files, accepted as usize, "a file that did not fit is left behind");

    disk.remount("size=2m,ro");
    let refused = send(&collector, fixtures::small_batch("read-only", 1)).await.unwrap();
    assert_eq!(refused.status, 503, "{}", refused.text);
    disk.remount("rw");
    assert_eq!(counts(&collector, fixtures::small_batch("writable", 1)).await, [0, 0, 1, 0]);

    site.cluster.start_server().unwrap();
    wait_until("everything accepted is stored", PATIENCE, || async {
        spool_files(&spool) == 0 && site.database.number("SELECT count(*) FROM llm_logs").await == accepted * 100 + 1
    })
    .await;
}

#[tokio::test]
async fn a_damaged_file_costs_only_itself_and_is_reported() {
    let site = Site::new().await;
    let mut collector = site.collector().await;
    site.cluster.stop_server("fast").unwrap();
    for name in ["one", "two", "three"] {
        assert_eq!(counts(&collector, fixtures::small_batch(name, 2)).await, [0, 0, 2, 0]);
    }
    collector.kill().await;
    let mut files: Vec<PathBuf> = std::fs::read_dir(site.spool()).unwrap().map(|file| file.unwrap().path()).collect();
    files.sort();
    let mut content = std::fs::read(&files[1]).unwrap();
    content.truncate(content.len() - 40);
    std::fs::write(&files[1], content).unwrap();

    site.cluster.start_server().unwrap();
    let collector = site.collector().await;
    site.wait_for_rows(4).await;
    collector.signal("TERM");
    let (_, log) = collector.finished().await;
    assert!(log.contains("is damaged") && log.contains("damaged"), "{log}");
    // What is whole in it can be sent by hand.
    let aside = site.spool().join("damaged").join(files[1].file_name().unwrap());
    let finished = run(&["replay", aside.to_str().unwrap()], &[("DATABASE_URL", &site.database.url)]).await;
    assert!(finished.stdout.starts_with("1 stored"), "{finished:?}");
}

#[tokio::test]
async fn a_second_collector_on_the_same_folder_is_refused() {
    let site = Site::new().await;
    let _collector = site.collector().await;
    let data = site.data_dir().to_str().unwrap();
    let finished = run(&["serve", "--listen", "127.0.0.1:0", "--data-dir", data], &[("DATABASE_URL", &site.database.url)]).await;
    assert_eq!(finished.status.code(), Some(1));
    assert!(
        finished.stderr.contains("in use by another collector") && finished.stderr.contains("--data-dir"),
        "{}",
        finished.stderr
    );
}

/// Largest resident size that a process ever had, in KiB.
fn peak_kib(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[tokio::test]
async fn a_hundred_clients_with_64_megabytes_each_do_not_exhaust_memory() {
    let site = Site::new().await;
    let collector = site.collector().await;
    // One entry each, whose answer is all of it: every byte is decoded, and as much as may be kept of it becomes a row.
    let text = "d29yZHMg".repeat((64 << 20) / 8 - 100);
    let body = bytes::Bytes::from(format!(
        r#"{{"started_at":1795400000000,"consumer":{{"username":"z1"}},"request":{{"id":"large","uri":"/v1/x","headers":{{}}}},"response":{{"status":200,"headers":{{"content-type":"text/plain"}},"body":"{text}"}}}}"#
    ));
    assert!((63 << 20..=64 << 20).contains(&body.len()));
    let answers = futures_util::future::join_all((0..100).map(|_| send(&collector, body.clone()))).await;
    let taken = answers.iter().flatten().filter(|answer| answer.status == 200).count();
    let refused = answers.iter().flatten().filter(|answer| answer.status == 503).count();
    assert!(taken >= 1, "nobody was served");
    // Whoever is refused before all of the body was sent may see a broken connection instead of the answer.
    assert!(taken + refused + answers.iter().filter(|answer| answer.is_none()).count() == 100);
    let peak = peak_kib(collector.pid());
    assert!(peak < 640 << 10, "{peak} KiB");
    let kept = "SELECT count(*) FROM llm_logs WHERE request_id = 'large' AND truncated";
    wait_until("the row is there", PATIENCE * 2, || async { site.database.number(kept).await == 1 }).await;
    assert_eq!(counts(&collector, fixtures::small_batch("after", 1)).await, [1, 0, 0, 0]);
}

/// Calls of a process that make bytes safe, as strace writes them down.
#[tokio::test]
async fn nothing_is_acknowledged_from_the_spool_before_it_is_on_the_disk() {
    if !std::process::Command::new("strace")
        .arg("-V")
        .stdout(std::process::Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
    {
        // A tool of Debian's; what it looks at is the same on every machine.
        println!("no strace here: calls of fsync are not looked at");
        return;
    }
    let site = Site::new().await;
    let collector = site.collector().await;
    site.cluster.stop_server("fast").unwrap();
    assert_eq!(counts(&collector, fixtures::small_batch("away", 1)).await, [0, 0, 1, 0]);
    let trace = tempfile::NamedTempFile::new().unwrap();
    let mut strace = std::process::Command::new("strace")
        .args(["-f", "-y", "-qq", "-e", "trace=fsync,fdatasync,rename,renameat,renameat2,sendto,writev,write", "-o"])
        .arg(trace.path())
        .args(["-p", &collector.pid().to_string()])
        .spawn()
        .unwrap();
    let traced = || {
        std::fs::read_to_string(format!("/proc/{}/status", collector.pid()))
            .is_ok_and(|status| status.lines().any(|line| line.starts_with("TracerPid:") && !line.ends_with("\t0")))
    };
    wait_until("it is traced", PATIENCE, || async { traced() }).await;
    assert_eq!(counts(&collector, fixtures::small_batch("traced", 3)).await, [0, 0, 3, 0]);
    let status = std::process::Command::new("kill").args(["-s", "INT", &strace.id().to_string()]).status();
    assert!(status.is_ok_and(|status| status.success()));
    strace.wait().unwrap();

    let calls = std::fs::read_to_string(trace.path()).unwrap();
    let position = |what: &str, found: &dyn Fn(&str) -> bool| {
        calls.lines().position(found).unwrap_or_else(|| panic!("{what} is not among\n{calls}"))
    };
    let is_sync = |line: &str| line.contains("fsync(") || line.contains("fdatasync(");
    let spool = site.spool().display().to_string();
    let of_file = position("fsync of the file", &|line| is_sync(line) && line.contains(&spool) && line.contains(".tmp>"));
    let renamed = position("the rename", &|line| line.contains("rename") && line.contains(".jsonl\""));
    let of_folder = position("fsync of the folder", &|line| is_sync(line) && line.contains(&format!("{spool}>")));
    let answered = position("the answer", &|line| line.contains("HTTP/1.1 200"));
    assert!(of_file < renamed && renamed < of_folder && of_folder < answered, "{calls}");
}
