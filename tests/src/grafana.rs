//! The dashboards under `grafana/dashboards` as Grafana would use them: their queries, with variables and macros expanded.
//!
//! Expansion follows Grafana's documentation ("Global variables", "Variable syntax", "Macros" of the PostgreSQL data source)
//! for what the dashboards use; whatever else they may use one day makes [`Moment::expand`] panic.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use chrono::{DateTime, SecondsFormat, Utc};
use serde_json::Value;

/// Seconds between two scrapes, `timeInterval` of the data source.
pub const SCRAPE_SECONDS: i64 = 15;
/// What Grafana takes for the width of a panel when nothing says how many points it may have.
const POINTS: i64 = 1_000;

/// A dashboard.
#[derive(Debug)]
pub struct Dashboard {
    /// The file's name.
    pub file: String,
    /// All of it.
    pub json: Value,
}

/// The language of a query.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Language {
    /// For Prometheus.
    PromQl,
    /// For PostgreSQL.
    Sql,
}

/// A query of a panel or a variable.
#[derive(Debug, Clone)]
pub struct Query {
    /// `file: panel: letter`, or `file: $variable`.
    pub place: String,
    /// What it is written in.
    pub language: Language,
    /// As it stands in the dashboard.
    pub text: String,
    /// One value, at the end of the time range.
    pub instant: bool,
    /// The first column has to be a time.
    pub time_series: bool,
    /// `{{label}}`s that the legend shows.
    pub legend: String,
    /// Since midnight, whatever the dashboard's time range.
    pub today: bool,
    min_interval_seconds: i64,
    points: i64,
}

/// The folder `grafana`.
pub fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../grafana")
}

/// All dashboards, by name.
pub fn dashboards() -> Vec<Dashboard> {
    let files = std::fs::read_dir(folder().join("dashboards")).expect("dashboards");
    let mut all: Vec<Dashboard> = files
        .map(|file| {
            let path = file.expect("a file").path();
            let text = std::fs::read_to_string(&path).expect("text");
            let json = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
            Dashboard { file: path.file_stem().expect("a name").to_string_lossy().into_owned(), json }
        })
        .collect();
    all.sort_by(|a, b| a.file.cmp(&b.file));
    all
}

/// The list at `path`, empty when there is none.
pub fn list<'json>(json: &'json Value, path: &str) -> &'json [Value] {
    json.pointer(path).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

/// The text at `path`, empty when there is none.
pub fn text<'json>(json: &'json Value, path: &str) -> &'json str {
    json.pointer(path).and_then(Value::as_str).unwrap_or_default()
}

impl Dashboard {
    /// Its panels.
    pub fn panels(&self) -> &[Value] {
        list(&self.json, "/panels")
    }

    /// Its variables.
    pub fn variables(&self) -> &[Value] {
        list(&self.json, "/templating/list")
    }

    /// Every query of every panel and variable.
    pub fn queries(&self) -> Vec<Query> {
        let of_panels = self.panels().iter().flat_map(|panel| {
            list(panel, "/targets").iter().map(move |target| {
                let language = language(text(target, "/datasource/type"));
                let number = |path| panel.pointer(path).and_then(Value::as_i64);
                Query {
                    place: format!("{}: {}: {}", self.file, text(panel, "/title"), text(target, "/refId")),
                    language,
                    text: text(target, if language == Language::Sql { "/rawSql" } else { "/expr" }).to_owned(),
                    instant: target["instant"] == true,
                    time_series: text(target, "/format") == "time_series",
                    legend: text(target, "/legendFormat").to_owned(),
                    today: text(panel, "/timeFrom") == "now/d",
                    min_interval_seconds: match text(panel, "/interval") {
                        "" => SCRAPE_SECONDS,
                        "1h" => 3_600,
                        other => panic!("the interval {other} is not known to the tests"),
                    },
                    points: number("/maxDataPoints").unwrap_or(POINTS),
                }
            })
        });
        let of_variables = self.variables().iter().filter(|variable| variable["type"] == "query").map(|variable| {
            let language = language(text(variable, "/datasource/type"));
            let path = if language == Language::Sql { "/query" } else { "/query/query" };
            Query {
                place: format!("{}: ${}", self.file, text(variable, "/name")),
                language,
                text: text(variable, path).to_owned(),
                instant: true,
                time_series: false,
                legend: String::new(),
                today: false,
                min_interval_seconds: SCRAPE_SECONDS,
                points: POINTS,
            }
        });
        of_panels.chain(of_variables).collect()
    }

    /// What its variables are when somebody opens it: the value as it is put in, and whether it is put in without quoting.
    pub fn defaults(&self) -> Variables {
        let mut values = Variables::default();
        for variable in self.variables() {
            let name = text(variable, "/name");
            if let Some(all) = variable["allValue"].as_str() {
                values.raw(name, all);
            } else if variable["type"] != "datasource" {
                values.set(name, &[text(variable, "/current/value")]);
            }
        }
        values
    }
}

fn language(source: &str) -> Language {
    match source {
        "prometheus" => Language::PromQl,
        "grafana-postgresql-datasource" => Language::Sql,
        other => panic!("a query for the data source {other:?}"),
    }
}

/// Values of variables.
#[derive(Debug, Clone, Default)]
pub struct Variables(BTreeMap<String, Chosen>);

#[derive(Debug, Clone)]
enum Chosen {
    Values(Vec<String>),
    /// The dashboard's own text for "All", which Grafana puts in as it stands.
    Raw(String),
}

impl Variables {
    /// Somebody chose `values`.
    pub fn set(&mut self, name: &str, values: &[&str]) {
        let values = values.iter().map(|value| (*value).to_owned()).collect();
        self.0.insert(name.to_owned(), Chosen::Values(values));
    }

    /// "All", which stands for `text`.
    pub fn raw(&mut self, name: &str, text: &str) {
        self.0.insert(name.to_owned(), Chosen::Raw(text.to_owned()));
    }

    /// The value under a format, `None` for a variable that is not there.
    fn formatted(&self, name: &str, format: &str) -> Option<String> {
        Some(match (self.0.get(name)?, format) {
            (Chosen::Raw(text), _) => text.clone(),
            (Chosen::Values(values), "sqlstring") => {
                let quoted: Vec<String> = values.iter().map(|value| format!("'{}'", value.replace('\'', "''"))).collect();
                quoted.join(",")
            }
            (Chosen::Values(values), "") => match values.as_slice() {
                [value] => value.clone(),
                values => format!("({})", values.join("|")),
            },
            (_, other) => panic!("the format {other} is not known to the tests"),
        })
    }
}

/// The time range that a dashboard shows, in milliseconds since 1970.
#[derive(Debug, Clone, Copy)]
pub struct Moment {
    /// Its begin.
    pub from_ms: i64,
    /// Its end.
    pub to_ms: i64,
}

impl Moment {
    /// The range of `seconds` before `to_ms`.
    pub fn before(to_ms: i64, seconds: i64) -> Self {
        Self { from_ms: to_ms - seconds * 1_000, to_ms }
    }

    /// The range that a query is asked for.
    pub fn of(self, query: &Query) -> Self {
        const DAY_MS: i64 = 86_400_000;
        if query.today { Self { from_ms: self.to_ms - self.to_ms % DAY_MS, to_ms: self.to_ms } } else { self }
    }

    /// Its length in seconds.
    pub fn seconds(self) -> i64 {
        (self.to_ms - self.from_ms) / 1_000
    }

    /// Seconds between two points of a query: the range by the number of points, rounded to a time that people use.
    pub fn interval_seconds(self, query: &Query) -> i64 {
        const ROUND: [(i64, i64); 16] = [
            (1_500, 1),
            (3_500, 2),
            (7_500, 5),
            (12_500, 10),
            (17_500, 15),
            (25_000, 20),
            (45_000, 30),
            (90_000, 60),
            (210_000, 120),
            (450_000, 300),
            (750_000, 600),
            (1_050_000, 900),
            (1_500_000, 1_200),
            (2_700_000, 1_800),
            (5_400_000, 3_600),
            (9_000_000, 7_200),
        ];
        let exact = (self.to_ms - self.from_ms) / query.points;
        let round = ROUND.iter().find(|(below, _)| exact < *below).map_or(exact / 3_600_000 * 3_600, |(_, seconds)| *seconds);
        round.max(query.min_interval_seconds)
    }

    /// The query with all variables and macros replaced.
    pub fn expand(self, query: &Query, variables: &Variables) -> String {
        let range = self.of(query);
        let interval = range.interval_seconds(query);
        let rate = (interval + SCRAPE_SECONDS).max(4 * SCRAPE_SECONDS);
        let mut done = String::new();
        let mut rest = query.text.as_str();
        while let Some(at) = rest.find('$') {
            done.push_str(&rest[..at]);
            let reference = Reference::read(&rest[at + 1..]);
            let value = match reference.name {
                "__rate_interval" => Some(format!("{rate}s")),
                "__interval" => Some(format!("{interval}s")),
                "__range" => Some(format!("{}s", range.seconds())),
                name => variables.formatted(name, reference.format),
            };
            match value {
                Some(value) => done.push_str(&value),
                // Macros are for PostgreSQL's data source, which sees the query after the variables were put in.
                None if query.language == Language::Sql => done.push_str(&rest[at..=at + reference.bytes]),
                None => panic!("{}: unknown variable {}", query.place, reference.name),
            }
            rest = &rest[at + 1 + reference.bytes..];
        }
        done.push_str(rest);
        if query.language == Language::Sql { range.macros(query, &done) } else { done }
    }

    fn macros(self, query: &Query, sql: &str) -> String {
        let time = |ms| DateTime::<Utc>::from_timestamp_millis(ms).expect("a time").to_rfc3339_opts(SecondsFormat::Millis, true);
        let (from, to) = (time(self.from_ms), time(self.to_ms));
        let mut done = String::new();
        let mut rest = sql;
        while let Some(at) = rest.find("$__") {
            done.push_str(&rest[..at]);
            let call = &rest[at + 1..];
            let open = call.find('(').unwrap_or_else(|| panic!("{}: no argument list in {call}", query.place));
            let close = call.find(')').unwrap_or_else(|| panic!("{}: no end of arguments in {call}", query.place));
            let arguments: Vec<&str> = call[open + 1..close].split(',').map(str::trim).collect();
            match (&call[..open], arguments.as_slice()) {
                ("__timeFilter", [column]) => done.push_str(&format!("{column} BETWEEN '{from}' AND '{to}'")),
                ("__timeFrom", [""]) => done.push_str(&format!("'{from}'")),
                ("__timeTo", [""]) => done.push_str(&format!("'{to}'")),
                ("__timeGroupAlias", [column, interval]) => {
                    let seconds: i64 = interval.strip_suffix('s').and_then(|number| number.parse().ok()).expect("seconds");
                    done.push_str(&format!("floor(extract(epoch from {column})/{seconds})*{seconds} AS \"time\""));
                }
                (name, arguments) => panic!("{}: unknown macro {name} with {arguments:?}", query.place),
            }
            rest = &call[close + 1..];
        }
        done.push_str(rest);
        done
    }
}

/// `$name`, `${name}` or `${name:format}`, without the dollar.
struct Reference<'text> {
    name: &'text str,
    format: &'text str,
    bytes: usize,
}

impl<'text> Reference<'text> {
    fn read(text: &'text str) -> Self {
        if let Some(inner) = text.strip_prefix('{') {
            let end = inner.find('}').expect("the end of a variable");
            let (name, format) = inner[..end].split_once(':').unwrap_or((&inner[..end], ""));
            return Self { name, format, bytes: end + 2 };
        }
        let end = text.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(text.len());
        Self { name: &text[..end], format: "", bytes: end }
    }
}
