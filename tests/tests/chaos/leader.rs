//! Several servers, of which one takes writes, and then another one.

use gateway_tests::collector::run;
use gateway_tests::fixtures;
use gateway_tests::process::wait_until;

use super::*;

/// A database as those have it who do not know which server takes writes.
fn url(database: &Database, hosts: &[&str], parameters: &str) -> String {
    let name = database.url.rsplit('/').next().unwrap();
    format!("postgres://postgres@{}/{name}{parameters}", hosts.join(","))
}

#[tokio::test]
async fn the_server_that_takes_writes_is_found_and_so_is_the_next_one() {
    let site = Site::new().await;
    let standby = site.cluster.standby().unwrap();
    // What is acknowledged is on both.
    let client = site.database.connect().await;
    client.execute("ALTER SYSTEM SET synchronous_standby_names = '*'", &[]).await.unwrap();
    client.execute("SELECT pg_reload_conf()", &[]).await.unwrap();

    // One that accepts connections and never says a word stands first.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let (silent, second, first) = (silent.local_addr().unwrap().to_string(), standby.address(), site.cluster.address());
    let all = url(&site.database, &[&silent, &second, &first], "");
    let data = site.data_dir().to_str().unwrap();
    let collector = Process::serve(&["--database-url", &all, "--data-dir", data]).await;
    wait_until("the server is found", PATIENCE, || async { metric(&collector, "llm_collector_database_up").await == 1.0 }).await;
    assert_eq!(counts(&collector, fixtures::small_batch("before", 3)).await, [3, 0, 0, 0]);

    site.cluster.stop_server("immediate").unwrap();
    assert_eq!(counts(&collector, fixtures::small_batch("between", 4)).await, [0, 0, 4, 0]);
    standby.promote().unwrap();
    let moved = Database { url: url(&site.database, &[&second], "") };
    wait_until("what waited is in the other server", PATIENCE, || async {
        spool_files(&site.spool()) == 0 && moved.number("SELECT count(*) FROM llm_logs").await == 7
    })
    .await;
    assert_eq!(counts(&collector, fixtures::small_batch("before", 3)).await, [0, 3, 0, 0], "a batch that Kong sends again");
    assert_eq!(counts(&collector, fixtures::small_batch("after", 2)).await, [2, 0, 0, 0]);
    let names = ["before", "between", "after"];
    let sent: Vec<String> = rows_by_name(&moved).await.into_keys().collect();
    assert!(sent.iter().all(|name| names.iter().any(|begin| name.starts_with(begin))), "{sent:?}");
    assert_exactly_once(&moved, &sent, 9).await;
    assert_eq!(sent.len(), 9);
}

#[tokio::test]
async fn without_a_server_that_takes_writes_it_is_said_and_a_report_reads_all_the_same() {
    let site = Site::new().await;
    let migrated = run(&["migrate"], &[("DATABASE_URL", &site.database.url)]).await;
    assert!(migrated.status.success(), "{migrated:?}");
    let standby = site.cluster.standby().unwrap();
    site.cluster.stop_server("fast").unwrap();
    let hosts = [&*site.cluster.address(), &standby.address()];

    let refused = run(&["report"], &[("DATABASE_URL", &url(&site.database, &hosts, ""))]).await;
    assert!(!refused.status.success());
    for words in [hosts[0], hosts[1], "no server there takes writes"] {
        assert!(refused.stderr.contains(words), "{words}: {}", refused.stderr);
    }
    for hosts in [&hosts[1..], &hosts[..]] {
        let parameters = if hosts.len() > 1 { "?target_session_attrs=any" } else { "" };
        let report = run(&["report"], &[("DATABASE_URL", &url(&site.database, hosts, parameters))]).await;
        assert!(report.status.success(), "{report:?}");
    }
}
