//! How the collector reaches PostgreSQL: TLS, passwords, and what is said when it does not.

use std::time::Duration;

use gateway_tests::collector::{Finished, run};
use gateway_tests::postgres::{Certificates, Cluster, Database, connect};
use llm_collector::store::connect::{Target, TlsDefaults};
use llm_collector::store::pool::{self, DatabaseSettings, PooledConnection};
use tokio_postgres::types::Type;

/// What a password may hold.
const PASSWORD: &str = "p@ss/w:rd%?#1";

/// Everybody only by TLS, by password, and with the name of the host by which the certificate was made out.
const RULES: &str = "hostssl all all all scram-sha-256\nlocal all all trust\n";

async fn migrate(url: &str, variables: &[(&str, &str)]) -> Finished {
    let mut all = vec![("DATABASE_URL", url)];
    all.extend_from_slice(variables);
    let finished = run(&["migrate"], &all).await;
    assert!(!(finished.stdout.clone() + &finished.stderr).contains("p@ss"), "{finished:?}");
    finished
}

async fn protected(digest: &str, is_self_signed: bool) -> (Cluster, Certificates) {
    let cluster = Cluster::start(&[]).unwrap_or_else(|error| panic!("{error}"));
    connect(&cluster.url()).await.batch_execute(&format!("ALTER ROLE postgres PASSWORD '{PASSWORD}'")).await.unwrap();
    let certificates = Certificates::make(digest, is_self_signed).unwrap();
    cluster.protect(&certificates, RULES).unwrap();
    (cluster, certificates)
}

#[tokio::test]
async fn sslmode_means_what_it_means_to_libpq() {
    let (cluster, certificates) = protected("sha384", false).await;
    let user = format!("postgres:{PASSWORD}");
    let (root, other) = (certificates.root.display().to_string(), certificates.other_root.display().to_string());
    for (host, mode, roots, problem) in [
        ("127.0.0.1", "disable", None, Some("no encryption")),
        ("127.0.0.1", "allow", None, None),
        ("127.0.0.1", "prefer", None, None),
        ("127.0.0.1", "require", None, None),
        ("127.0.0.1", "require", Some(&root), None),
        ("127.0.0.1", "require", Some(&other), Some("certificate")),
        ("127.0.0.1", "prefer", Some(&other), None),
        ("127.0.0.1", "verify-ca", Some(&root), None),
        ("127.0.0.1", "verify-ca", Some(&other), Some("certificate")),
        ("127.0.0.1", "verify-ca", None, Some("sslrootcert")),
        ("localhost", "verify-full", Some(&root), None),
        ("localhost", "verify-full", Some(&other), Some("certificate")),
        ("127.0.0.1", "verify-full", Some(&root), Some("certificate")),
        ("127.0.0.1", "verify", None, Some("verify-full")),
        ("127.0.0.1", "require", Some(&"/nowhere/root.crt".to_owned()), Some("/nowhere/root.crt")),
    ] {
        let parameters = format!("sslmode={mode}{}", roots.map(|file| format!("&sslrootcert={file}")).unwrap_or_default());
        let finished = migrate(&cluster.url_of(&user, host, &parameters), &[]).await;
        match problem {
            None => assert!(finished.status.success(), "{host} {parameters}: {finished:?}"),
            Some(words) => {
                assert!(!finished.status.success() && finished.stderr.contains(words), "{host} {parameters}: {finished:?}");
            }
        }
    }
    // The same from the environment, as psql has it.
    let url = cluster.url_of(&user, "localhost", "");
    let good = migrate(&url, &[("PGSSLMODE", "verify-full"), ("PGSSLROOTCERT", &root)]).await;
    assert!(good.status.success(), "{good:?}");
    let bad = migrate(&url, &[("PGSSLMODE", "verify-full"), ("PGSSLROOTCERT", &other)]).await;
    assert!(bad.stderr.contains("certificate") && bad.stderr.contains("sslrootcert"), "{bad:?}");
    // What else connects.
    let url = cluster.url_of(&user, "localhost", &format!("sslmode=verify-full&sslrootcert={root}&channel_binding=require"));
    for command in [&["rejected", "list"][..], &["report"], &["retention", "--keep-rows-days", "1"], &["prices", "list"]] {
        let finished = run(command, &[("DATABASE_URL", &url)]).await;
        assert!(finished.status.success(), "{command:?}: {finished:?}");
    }
}

#[tokio::test]
async fn a_certificate_that_signed_itself_is_its_own_root() {
    let (cluster, certificates) = protected("sha256", true).await;
    let user = format!("postgres:{PASSWORD}");
    let (root, other) = (certificates.root.display().to_string(), certificates.other_root.display().to_string());
    for (host, mode, file, is_good) in [
        ("localhost", "verify-full", &root, true),
        ("127.0.0.1", "verify-full", &root, false),
        ("127.0.0.1", "verify-ca", &root, true),
        ("localhost", "verify-ca", &other, false),
    ] {
        let finished = migrate(&cluster.url_of(&user, host, &format!("sslmode={mode}&sslrootcert={file}")), &[]).await;
        assert_eq!(finished.status.success(), is_good, "{host} {mode} {file}: {finished:?}");
    }
}

#[tokio::test]
async fn advice_fits_the_error() {
    let (cluster, _certificates) = protected("sha256", false).await;
    for (url, words) in [
        (cluster.url_of("postgres:p@ss-wrong", "127.0.0.1", ""), vec!["28P01", "user and password", "ALTER ROLE"]),
        (cluster.url_of(&format!("postgres:{PASSWORD}"), "127.0.0.1", "sslmode=disable"), vec!["28000", "pg_hba.conf"]),
        (cluster.url_of(&format!("nobody:{PASSWORD}"), "127.0.0.1", ""), vec!["28P01"]),
    ] {
        let finished = migrate(&url, &[]).await;
        for word in words {
            assert!(finished.stderr.contains(word), "{word} is not in {}", finished.stderr);
        }
        assert!(!finished.stderr.contains("check that PostgreSQL runs"), "{}", finished.stderr);
    }
    // Commands that take a connection from the pool tell the reason, too, and what to do.
    for command in [&["report"][..], &["prices", "list"], &["rejected", "list"], &["quota", "list"]] {
        let wrong = cluster.url_of("postgres:p@ss-wrong", "127.0.0.1", "");
        let finished = run(command, &[("DATABASE_URL", &wrong)]).await;
        assert!(!finished.status.success() && !finished.stderr.contains("p@ss"), "{finished:?}");
        assert!(finished.stderr.contains("28P01") && finished.stderr.contains("ALTER ROLE"), "{finished:?}");
    }
    // A right that is missing.
    let database = Database::create().await;
    let owner = database.connect().await;
    owner.batch_execute("CREATE ROLE without_rights LOGIN").await.unwrap();
    let url = database.url.replace("postgres@", "without_rights@");
    let finished = migrate(&url, &[]).await;
    assert!(finished.stderr.contains("this role may not change it"), "{finished:?}");
    owner.batch_execute("DROP ROLE without_rights").await.unwrap();
}

#[tokio::test]
async fn a_table_made_by_hand_is_recognised_before_anything_is_changed() {
    let database = Database::create().await;
    let client = database.connect().await;
    let by_hand = "CREATE TABLE llm_logs (id serial PRIMARY KEY, request_id varchar(50), consumer_username varchar(100),
            started_at timestamp, latency_ms int, status int, prompt text, response text, raw_log jsonb);
        CREATE INDEX llm_logs_started_at ON llm_logs (started_at);
        INSERT INTO llm_logs (request_id) VALUES ('of old')";
    client.batch_execute(by_hand).await.unwrap();
    let objects = "SELECT count(*) FROM pg_class WHERE relnamespace = 'public'::regnamespace";
    let before = database.number(objects).await;
    let data = tempfile::tempdir().unwrap();
    for command in [&["migrate"][..], &["serve", "--listen", "127.0.0.1:0", "--data-dir", data.path().to_str().unwrap()]] {
        let finished = run(command, &[("DATABASE_URL", &database.url)]).await;
        assert_eq!(finished.status.code(), Some(1), "{finished:?}");
        for words in ["request_id character varying(50)", "ALTER TABLE llm_logs RENAME TO llm_logs_old;", "nothing was changed"] {
            assert!(finished.stderr.contains(words), "{words} is not in {}", finished.stderr);
        }
        assert!(!finished.stderr.contains("check that PostgreSQL runs"), "{}", finished.stderr);
        assert_eq!(database.number(objects).await, before);
    }
    // The way out works as it is told.
    let told = run(&["migrate"], &[("DATABASE_URL", &database.url)]).await.stderr;
    let statements: Vec<&str> = told.split_inclusive(';').filter_map(|part| part.find("ALTER ").map(|at| &part[at..])).collect();
    assert_eq!(statements.len(), 2, "{statements:?}");
    client.batch_execute(&statements.join(" ")).await.unwrap();
    let finished = run(&["migrate"], &[("DATABASE_URL", &database.url)]).await;
    assert!(finished.status.success(), "{finished:?}");
    assert_eq!(database.number("SELECT count(*) FROM llm_logs_old WHERE request_id = 'of old'").await, 1);
    assert_eq!(database.number("SELECT count(*) FROM llm_logs").await, 0);
}

/// How often a session carried out the statement that it has prepared.
const CARRIED_OUT: &str = "SELECT coalesce(sum(generic_plans + custom_plans), 0)::bigint FROM pg_prepared_statements
    WHERE statement = 'SELECT x + $1 FROM t'";

#[tokio::test]
async fn a_statement_is_parsed_once_and_sent_whole_where_the_session_knows_it_no_more() {
    let database = Database::create().await;
    let target = Target::parse(&database.url, &TlsDefaults::default()).unwrap();
    let pool =
        || pool::Database::new(DatabaseSettings { target: target.clone(), connections: 2, timeout: Duration::from_secs(10) });
    let three = async |connection: &PooledConnection<'_>| {
        let sent = connection.query_again("SELECT x + $1 FROM t", &[(&2_i32, Type::INT4)]);
        connection.bounded(sent).await.unwrap()
    };
    let one = pool();
    let connection = one.connection().await.unwrap();
    let client = connection.client();
    client.batch_execute("CREATE TABLE t AS SELECT 1 AS x").await.unwrap();
    for times in 1..=2 {
        assert_eq!(three(&connection).await[0].get::<_, i32>(0), 3);
        assert_eq!(client.query_one(CARRIED_OUT, &[]).await.unwrap().get::<_, i64>(0), times);
    }
    client.batch_execute("ALTER TABLE t ALTER x TYPE bigint").await.unwrap();
    assert_eq!(three(&connection).await[0].get::<_, i64>(0), 3);
    // As behind a pooler that gives each transaction another session: of this one, or of somebody who uses the same names.
    client.batch_execute("DEALLOCATE ALL").await.unwrap();
    assert_eq!(three(&connection).await[0].get::<_, i64>(0), 3);
    let another = pool();
    let connection = another.connection().await.unwrap();
    let names = "DO $$ BEGIN FOR n IN 0..2000 LOOP EXECUTE format('PREPARE s%s AS SELECT 1', n); END LOOP; END $$";
    connection.client().batch_execute(names).await.unwrap();
    assert_eq!(three(&connection).await[0].get::<_, i64>(0), 3);
}
