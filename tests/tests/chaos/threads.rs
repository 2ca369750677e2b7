//! Threads on a machine with hundreds of cores, of which a container allows far fewer than one for each.

use gateway_tests::collector::binary;
use gateway_tests::fixtures;

use super::*;

/// Cores of the machine that is pretended.
const CORES: usize = 384;

/// Far below the `pids_limit` of the shipped container, 200.
const MOST_THREADS: usize = 24;

/// A library that tells programs of cores that are not there, by the two ways in which they ask; with `NO_THREADS` it refuses to start
/// threads, as the kernel does at the limit of a container.
const SHIM: &str = r#"
#define _GNU_SOURCE
#include <sched.h>
#include <string.h>
#include <unistd.h>
#include <dlfcn.h>
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
int sched_getaffinity(pid_t pid, size_t size, cpu_set_t *set) {
    memset(set, 0, size);
    for (size_t n = 0; n < CORES && n < size * 8; n++) CPU_SET_S(n, size, set);
    return 0;
}
long sysconf(int name) {
    if (name == _SC_NPROCESSORS_ONLN || name == _SC_NPROCESSORS_CONF) return CORES;
    long (*real)(int) = (long (*)(int)) dlsym(RTLD_NEXT, "sysconf");
    return real(name);
}
int pthread_create(pthread_t *thread, const pthread_attr_t *attributes, void *(*start)(void *), void *argument) {
    if (getenv("NO_THREADS")) return EAGAIN;
    int (*real)(pthread_t *, const pthread_attr_t *, void *(*)(void *), void *) = dlsym(RTLD_NEXT, "pthread_create");
    return real(thread, attributes, start, argument);
}
"#;

fn shim(folder: &Path) -> PathBuf {
    let (source, library) = (folder.join("cores.c"), folder.join("cores.so"));
    std::fs::write(&source, SHIM).unwrap();
    let mut compiler = std::process::Command::new("cc");
    compiler.args(["-shared", "-fPIC", &format!("-DCORES={CORES}"), "-o"]).args([&library, &source]).arg("-ldl");
    assert!(compiler.status().is_ok_and(|status| status.success()), "cc, which linking this test needs, too");
    library
}

fn threads(pid: u32) -> usize {
    std::fs::read_dir(format!("/proc/{pid}/task")).unwrap().count()
}

#[tokio::test]
async fn threads_do_not_grow_with_the_cores_of_the_machine() {
    let site = Site::new().await;
    let folder = tempfile::tempdir().unwrap();
    let library = shim(folder.path());
    // It works: a program that counts cores finds so many.
    let nproc = std::process::Command::new("nproc").env("LD_PRELOAD", &library).env_remove("OMP_NUM_THREADS").output().unwrap();
    assert_eq!(String::from_utf8(nproc.stdout).unwrap().trim(), CORES.to_string());

    let port = gateway_tests::process::free_port();
    let listen = format!("127.0.0.1:{port}");
    let mut collector = tokio::process::Command::new(binary())
        .args(["serve", "--listen", &listen, "--database-url", &site.database.url, "--data-dir"])
        .arg(site.data_dir())
        .env("LD_PRELOAD", &library)
        .env_remove("DATABASE_URL")
        .stderr(std::process::Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let url = format!("http://{listen}/log");
    wait_until("it listens", PATIENCE, || async { post(&url, "[]").await.is_some() }).await;
    // Large enough that all of it is decoded by threads for what blocks.
    let text = "word ".repeat(60_000);
    let bodies = (0..16).map(|n| {
        let entries: Vec<String> =
            (0..4).map(|k| fixtures::small_entry(&format!("{n}-{k}"), 1_795_400_000_000).replace("hi ", &text)).collect();
        post(&url, format!("[{}]", entries.join(",")))
    });
    let answers = futures_util::future::join_all(bodies).await;
    assert!(answers.iter().flatten().all(|answer| answer.status == 200) && answers.iter().all(Option::is_some), "{answers:?}");
    // Threads for what blocks stay for ten seconds.
    let count = threads(collector.id().unwrap());
    assert!(count <= MOST_THREADS, "{count} threads");

    // Health can be asked for where no further thread may be started, and there is nothing else to do without.
    let mut check = tokio::process::Command::new(binary());
    check.args(["healthcheck", "--listen", &listen]).env("LD_PRELOAD", &library).env("NO_THREADS", "1");
    let output = check.output().await.unwrap();
    assert!(output.status.success(), "{output:?}");
    let mut serve = tokio::process::Command::new(binary());
    serve.args(["serve", "--listen", "127.0.0.1:0", "--database-url", &site.database.url, "--data-dir"]).arg(folder.path());
    let output = serve.env("LD_PRELOAD", &library).env("NO_THREADS", "1").env_remove("DATABASE_URL").output().await.unwrap();
    assert!(!output.status.success(), "threads can be refused: {output:?}");
    collector.kill().await.unwrap();
}
