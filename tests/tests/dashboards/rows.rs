//! Every SQL query of panels and variables, on rows that a collector made of recorded entries, as the role that Grafana has.

use std::path::Path;
use std::process::Command;

use gateway_tests::collector::TestApp;
use gateway_tests::fixtures;
use gateway_tests::grafana::{self, Dashboard, Language, Moment, Query, Variables, list, text};
use gateway_tests::postgres::Database;
use tokio_postgres::{Client, SimpleQueryMessage};

/// A database with every recorded entry and a price, and a connection that may do what Grafana may.
struct Grafana {
    client: Client,
    owner: Client,
    end_ms: i64,
}

/// What a query gave.
#[derive(Debug)]
struct Table {
    columns: Vec<String>,
    rows: Vec<Vec<Option<String>>>,
}

impl Grafana {
    async fn with_recorded_entries() -> Self {
        let app = TestApp::start().await;
        for name in fixtures::entry_names() {
            app.log(fixtures::entry(&name)).await;
        }
        Self::on(app).await
    }

    async fn on(app: TestApp) -> Self {
        let database = app.database.clone();
        app.stop().await;
        let owner = database.connect().await;
        owner
            .batch_execute(
                "INSERT INTO llm_model_prices (model_pattern, prompt_per_million, completion_per_million, currency)
                 VALUES ('%', 2, 6, 'EUR');
                 INSERT INTO llm_quotas (subject_kind, subject_name, unit, per, amount)
                 VALUES ('team', 'ml', 'tokens', 'day', 500), ('everybody', '', 'calls', 'hour', 0)",
            )
            .await
            .expect("a price and limits");
        let newest = "SELECT (extract(epoch FROM max(started_at)) * 1000)::bigint FROM llm_logs WHERE started_at < '2027-01-01'";
        let end_ms = database.number(newest).await + 1_000;
        let refused = "UPDATE llm_logs SET refused_by = 'quota' WHERE id IN (
            SELECT id FROM llm_logs WHERE started_at < '2027-01-01' ORDER BY started_at DESC LIMIT 3)";
        owner.batch_execute(refused).await.expect("refused calls");
        let counted = "INSERT INTO llm_refused_users SELECT date_trunc('minute', to_timestamp($1::float8 / 1000)), 'alice', 'queue', 429, 'n', 40";
        owner.execute(counted, &[&(end_ms as f64)]).await.expect("counted calls");
        Self { client: as_grafana(&database).await, owner, end_ms }
    }

    async fn ask(&self, query: &Query, moment: Moment, variables: &Variables) -> Result<Table, String> {
        let sql = moment.expand(query, variables);
        let error = |error: tokio_postgres::Error| {
            let reason = error.as_db_error().map_or_else(|| error.to_string(), |error| error.message().to_owned());
            format!("{}: {reason}\n  {sql}", query.place)
        };
        let mut table = Table { columns: Vec::new(), rows: Vec::new() };
        for message in self.client.simple_query(&sql).await.map_err(error)? {
            match message {
                SimpleQueryMessage::RowDescription(columns) => {
                    table.columns = columns.iter().map(|column| column.name().to_owned()).collect();
                }
                SimpleQueryMessage::Row(row) => {
                    table.rows.push((0..row.len()).map(|column| row.get(column).map(str::to_owned)).collect());
                }
                _ => {}
            }
        }
        Ok(table)
    }
}

/// A connection with the rights of `llm_grafana`, and no others.
async fn as_grafana(database: &Database) -> Client {
    let client = database.connect().await;
    // Roles belong to the server, which tests share.
    let role = "DO $$ BEGIN CREATE ROLE llm_grafana; EXCEPTION WHEN duplicate_object OR unique_violation THEN NULL; END $$";
    client.batch_execute(role).await.expect("the role");
    let grants = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/postgresql/grants.sql");
    let psql = Command::new("psql").args(["-X", "-q", "-d", &database.url, "-f"]).arg(&grants).output().expect("psql");
    assert!(psql.status.success(), "{}", String::from_utf8_lossy(&psql.stderr));
    // The settings of the role.
    let settings = "SET ROLE llm_grafana; SET default_transaction_read_only = on; SET timezone = 'UTC'; SET jit = off";
    client.batch_execute(settings).await.expect("rights");
    client
}

/// What somebody may have chosen: the dashboard as it opens, and further choices.
async fn choices(grafana: &Grafana, dashboard: &Dashboard) -> Vec<Variables> {
    let mut all = vec![dashboard.defaults()];
    let mut choose = |choices: &[(&str, &[&str])]| {
        let mut variables = dashboard.defaults();
        for (name, values) in choices {
            variables.set(name, values);
        }
        all.push(variables);
    };
    match dashboard.file.as_str() {
        "conversations" => {
            for status in ["good", "failed", "4xx", "429", "5xx", "aborted"] {
                choose(&[("status", &[status])]);
            }
            choose(&[
                ("team", &["no team", "it's"]),
                ("consumer", &["z123456", "z200001"]),
                ("model", &["qwen-tiny", "unknown"]),
                ("text", &["it's 100%_\\"]),
            ]);
        }
        "conversation" => {
            for column in ["reasoning", "tool_calls", "error", "ttft_ms", "conversation"] {
                let sql = format!(
                    "SELECT request_id, (extract(epoch FROM started_at) * 1000)::bigint::text FROM llm_logs
                     WHERE {column} IS NOT NULL ORDER BY id LIMIT 1"
                );
                let row = grafana.owner.query_one(&sql, &[]).await.expect("such a call");
                choose(&[("request_id", &[row.get(0)]), ("started_ms", &[row.get(1)])]);
            }
        }
        _ => choose(&[("team", &["no team", "it's"]), ("consumer", &["z123456", "it's"]), ("model", &["qwen-tiny"])]),
    }
    all
}

#[tokio::test]
async fn every_query_gives_data_as_the_role_of_grafana() {
    let grafana = Grafana::with_recorded_entries().await;
    let mut complaints = Vec::new();
    let mut places = Vec::new();
    for dashboard in &grafana::dashboards() {
        let choices = choices(&grafana, dashboard).await;
        for query in dashboard.queries().iter().filter(|query| query.language == Language::Sql) {
            places.push(query.place.clone());
            for seconds in [3_600, 30 * 86_400] {
                let mut rows = 0;
                for variables in &choices {
                    match grafana.ask(query, Moment::before(grafana.end_ms, seconds), variables).await {
                        Ok(table) => {
                            rows += table.rows.iter().filter(|row| row.iter().any(Option::is_some)).count();
                            let first = table.columns.first().map(String::as_str);
                            if query.time_series && first != Some("time") {
                                complaints.push(format!("{}: the first column is {first:?}", query.place));
                            }
                        }
                        Err(error) => complaints.push(error),
                    }
                }
                if rows == 0 {
                    complaints.push(format!("{}: no data over {seconds} s", query.place));
                }
            }
        }
    }
    assert!(places.len() > 25, "only {} queries", places.len());
    assert!(complaints.is_empty(), "{}", complaints.join("\n"));
}

#[tokio::test]
async fn columns_that_a_panel_formats_or_links_are_there() {
    let grafana = Grafana::with_recorded_entries().await;
    for dashboard in &grafana::dashboards() {
        let choices = choices(&grafana, dashboard).await;
        let queries = dashboard.queries();
        for panel in dashboard.panels().iter().filter(|panel| !text(panel, "/targets/0/rawSql").is_empty()) {
            let place = format!("{}: {}: A", dashboard.file, text(panel, "/title"));
            let query = queries.iter().find(|query| query.place == place).expect("the query");
            let moment = Moment::before(grafana.end_ms, 30 * 86_400);
            let table = grafana.ask(query, moment, choices.last().expect("a choice")).await.unwrap();
            for one in list(panel, "/fieldConfig/overrides") {
                let name = text(one, "/matcher/options");
                assert!(table.columns.iter().any(|column| column == name), "{place}: no column {name} in {:?}", table.columns);
                for link in list(one, "/properties/0/value").iter().chain(list(one, "/properties/2/value")) {
                    for field in text(link, "/url").split("${__data.fields.").skip(1) {
                        let field = field.split(['}', ':']).next().unwrap_or_default();
                        assert!(table.columns.iter().any(|column| column == field), "{place}: no column {field} for the link");
                    }
                }
            }
        }
    }
}

/// The rows of the list of conversations.
async fn conversations(grafana: &Grafana, chosen: &[(&str, &[&str])]) -> Table {
    let dashboards = grafana::dashboards();
    let dashboard = dashboards.iter().find(|dashboard| dashboard.file == "conversations").expect("the dashboard");
    let mut variables = dashboard.defaults();
    for (name, values) in chosen {
        variables.set(name, values);
    }
    let query = dashboard.queries().into_iter().find(|query| query.text.contains("FROM llm_search(")).expect("the list");
    grafana.ask(&query, Moment::before(grafana.end_ms, 30 * 86_400), &variables).await.unwrap()
}

impl Table {
    fn column(&self, name: &str) -> Vec<&str> {
        let at =
            self.columns.iter().position(|column| column == name).unwrap_or_else(|| panic!("no {name} in {:?}", self.columns));
        self.rows.iter().map(|row| row[at].as_deref().unwrap_or_default()).collect()
    }
}

#[tokio::test]
async fn limits_are_listed_with_the_fullest_first() {
    let grafana = Grafana::with_recorded_entries().await;
    let dashboards = grafana::dashboards();
    let dashboard = dashboards.iter().find(|dashboard| dashboard.file == "quotas").expect("the dashboard");
    let queries = dashboard.queries();
    let ask = async |place: &str| {
        let query = queries.iter().find(|query| query.place == place).expect("the panel");
        grafana.ask(query, Moment::before(grafana.end_ms, 86_400), &dashboard.defaults()).await.unwrap()
    };
    let limits = ask("quotas: Limits: A").await;
    assert_eq!(limits.column("For"), ["everybody", "team ml"]);
    assert_eq!((limits.column("Limit"), limits.column("Used")), (vec!["0", "500"], vec!["0", "0"]));
    assert_eq!((limits.column("Left"), limits.column("Used part")), (vec!["0", "500"], vec!["1", "0"]));
    assert!(limits.column("All there again").iter().all(|when| when.ends_with(":00 UTC")), "{limits:?}");
    assert_eq!(ask("quotas: Limits from 95 %: A").await.rows, [[Some("1".to_owned())]]);
    let refused = ask("quotas: Refused most: A").await;
    let calls: i64 = refused.column("Calls").iter().map(|calls| calls.parse::<i64>().unwrap()).sum();
    assert_eq!(calls, 3 + 40);
    assert_eq!(refused.column("Refused by")[..2], ["queue", "quota"]);
    assert_eq!((refused.column("User")[0], refused.column("Calls")[0]), ("alice", "40"));
}

#[tokio::test]
async fn text_is_found_as_it_was_typed() {
    let app = TestApp::start().await;
    for (number, id) in (0..).zip(["50%_off", "50percent off", "Ends with a Backslash"]) {
        app.log(fixtures::small_entry(id, 1_795_400_000_000 + number)).await;
    }
    let grafana = Grafana::on(app).await;
    for (typed, found) in [
        ("50%_o", vec!["50%_off"]),
        ("hi 50", vec!["50percent off", "50%_off"]),
        ("HELLO", vec!["Ends with a Backslash", "50percent off", "50%_off"]),
        ("backslash", vec!["Ends with a Backslash"]),
        ("\\", vec![]),
        ("o' OR true --", vec![]),
    ] {
        let table = conversations(&grafana, &[("text", &[typed])]).await;
        assert_eq!(table.column("request_id"), found, "{typed}");
    }
    assert_eq!(conversations(&grafana, &[("limit", &["2"])]).await.rows.len(), 2);
    assert_eq!(conversations(&grafana, &[("consumer", &["nobody"])]).await.rows.len(), 0);
    assert_eq!(conversations(&grafana, &[("consumer", &["nobody", "z1"])]).await.rows.len(), 3);
    let change = "UPDATE llm_logs SET team = 'ml' WHERE request_id LIKE '50%'";
    grafana.owner.batch_execute(change).await.unwrap();
    let of_team = async |team: &str| conversations(&grafana, &[("team", &[team])]).await;
    assert_eq!(of_team("ml").await.column("request_id"), ["50percent off", "50%_off"]);
    assert_eq!(of_team("no team").await.column("request_id"), ["Ends with a Backslash"]);
    assert_eq!(of_team("web").await.rows.len(), 0);
}

#[tokio::test]
async fn a_line_of_the_list_opens_its_own_conversation() {
    let grafana = Grafana::with_recorded_entries().await;
    let listed = conversations(&grafana, &[("limit", &["500"])]).await;
    let (ids, times) = (listed.column("request_id"), listed.column("started_ms"));
    assert!(ids.len() > 150, "{} calls", ids.len());
    let dashboards = grafana::dashboards();
    let dashboard = dashboards.iter().find(|dashboard| dashboard.file == "conversation").expect("the dashboard");
    let queries = dashboard.queries();
    let call = queries.iter().find(|query| query.place == "conversation: The call: A").expect("the panel");
    for (id, started_ms) in ids.iter().zip(&times) {
        let mut variables = dashboard.defaults();
        variables.set("request_id", &[id]);
        variables.set("started_ms", &[started_ms]);
        let table = grafana.ask(call, Moment::before(0, 3_600), &variables).await.unwrap();
        assert_eq!(table.rows.len(), 1, "{id} at {started_ms}");
    }
}
