//! Every PromQL expression of panels, variables and rules gives data, and names only what there is.

use std::collections::{BTreeMap, BTreeSet};

use gateway_tests::grafana::{self, Language, Moment};
use serde_json::Value;

use crate::prometheus::Prometheus;

/// Queries that may give nothing, and why.
const MAY_BE_EMPTY: [(&str, &str); 5] = [
    ("gateway-overview: Alerts: A", "nothing is wrong in the recordings"),
    ("audit-pipeline: Masked: A", "begins with the first match"),
    ("audit-pipeline: Addresses of a user: A", "the recorded calls are not of the last hour"),
    ("quotas: Nearest to their limit: A", "nobody set a limit in the recordings"),
    ("capacity: Disk full in: A", "only a disk that fills up has a day when it is full"),
];

/// Metrics that the recordings do not have, and why.
const NOT_RECORDED: [(&str, &str); 7] = [
    ("ALERTS", "made by Prometheus while an alert is pending or firing"),
    ("llm_collector_upkeep_age_seconds", "told where another process does the upkeep"),
    ("llm_collector_retention_held", "begins when retention is held"),
    ("llm_feed_lag_seconds", "has feeds that somebody began"),
    ("llm_masked_total", "begins with the first match"),
    ("llm_consumer_addresses", "has consumers of the last hour alone"),
    ("llm_quota_used_ratio", "has limits that somebody set"),
];

#[tokio::test]
async fn every_expression_gives_data_and_names_only_what_there_is() {
    let prometheus = Prometheus::start().await;
    let dashboards = grafana::dashboards();
    let mut complaints = Vec::new();
    let mut expressions: Vec<(String, String)> = prometheus.rules().await;
    assert!(expressions.len() > 20, "{expressions:?}");
    for (name, expression) in &expressions {
        if let Err(error) = prometheus.query(expression, true, Moment::before(prometheus.end_ms, 3_600), 0).await {
            complaints.push(format!("rule {name}: {error}"));
        }
    }

    let mut queries = 0;
    let mut places = BTreeSet::new();
    for dashboard in &dashboards {
        for query in dashboard.queries().iter().filter(|query| query.language == Language::PromQl) {
            queries += 1;
            places.insert(query.place.clone());
            if query.text.starts_with("label_values(") {
                continue;
            }
            for seconds in [3_600, 30 * 86_400] {
                let moment = Moment::before(prometheus.end_ms, seconds);
                let expression = moment.expand(query, &dashboard.defaults());
                let range = moment.of(query);
                let found = prometheus.query(&expression, query.instant, range, range.interval_seconds(query)).await;
                match found {
                    Err(error) => complaints.push(format!("{}: {error}\n  {expression}", query.place)),
                    Ok(series) if series.iter().all(|one| one.values.is_empty()) => {
                        if !MAY_BE_EMPTY.iter().any(|(place, _)| *place == query.place) {
                            complaints.push(format!("{}: no data over {seconds} s\n  {expression}", query.place));
                        }
                    }
                    Ok(series) => {
                        for label in labels_of_legend(&query.legend) {
                            if series.iter().any(|one| one.labels[label].is_null()) {
                                complaints.push(format!("{}: a series without the label {label}", query.place));
                            }
                        }
                    }
                }
                expressions.push((query.place.clone(), expression));
            }
        }
    }
    assert!(queries > 80, "only {queries} queries");

    complaints.extend(unknown_names(&prometheus, &expressions).await);
    for (place, _) in MAY_BE_EMPTY.iter().filter(|(place, _)| !places.contains(*place)) {
        complaints.push(format!("{place} may be empty, but is not there"));
    }
    assert!(complaints.is_empty(), "{}", complaints.join("\n"));
}

#[tokio::test]
async fn variables_find_models_and_vllm_under_old_and_new_names() {
    let prometheus = Prometheus::start().await;
    let dashboards = grafana::dashboards();
    let queries = dashboards.iter().flat_map(grafana::Dashboard::queries);
    let variables: Vec<grafana::Query> = queries.filter(|query| query.text.starts_with("label_values(")).collect();
    assert!(!variables.is_empty());
    for variable in &variables {
        let inner = variable.text.trim_start_matches("label_values(").trim_end_matches(')');
        let (metric, label) = inner.split_once(", ").expect("a metric and a label");
        let series = prometheus.series(metric).await;
        let values: BTreeSet<&str> = series.iter().filter_map(|one| one[label].as_str()).collect();
        // The queue's models are those that the node of the history tells of.
        let expected: &[&str] = if metric.starts_with("vllm:") { &["old-model", "qwen-tiny"] } else { &["Qwen"] };
        assert_eq!(values, expected.iter().copied().collect(), "{}", variable.place);
    }
    for (model, metric) in [
        ("qwen-tiny", "vllm:kv_cache_usage_perc"),
        ("old-model", "vllm:gpu_cache_usage_perc"),
        ("qwen-tiny", "vllm:inter_token_latency_seconds_bucket"),
        ("old-model", "vllm:time_per_output_token_seconds_bucket"),
    ] {
        let models: BTreeSet<String> =
            prometheus.series(metric).await.iter().filter_map(|one| one["model_name"].as_str().map(str::to_owned)).collect();
        assert_eq!(models, BTreeSet::from([model.to_owned()]), "{metric}");
    }
    let cache = dashboards
        .iter()
        .find(|dashboard| dashboard.file == "capacity")
        .and_then(|dashboard| dashboard.queries().into_iter().find(|query| query.place == "capacity: KV cache over time: A"))
        .expect("the panel");
    let mut chosen = grafana::Variables::default();
    for model in ["qwen-tiny", "old-model"] {
        chosen.set("model", &[model]);
        let moment = Moment::before(prometheus.end_ms, 3_600);
        let series = prometheus.query(&moment.expand(&cache, &chosen), false, moment, 15).await.unwrap();
        let names: Vec<&Value> = series.iter().map(|one| &one.labels["model_name"]).collect();
        assert_eq!(names, [model]);
    }
}

/// What is named in expressions and is nowhere in the history.
async fn unknown_names(prometheus: &Prometheus, expressions: &[(String, String)]) -> Vec<String> {
    let mut complaints = Vec::new();
    let mut known: BTreeMap<String, Vec<Value>> = BTreeMap::new();
    for (place, expression) in expressions {
        let names = Names::read(expression);
        assert!(!names.metrics.is_empty(), "{place}: no metric in {expression}");
        let mut labels_there = BTreeSet::new();
        for (metric, labels) in &names.metrics {
            if NOT_RECORDED.iter().any(|(name, _)| name == metric) {
                labels_there.extend(labels.iter().cloned());
                continue;
            }
            if !known.contains_key(metric) {
                known.insert(metric.clone(), prometheus.series(metric).await);
            }
            let series = &known[metric];
            if series.is_empty() {
                complaints.push(format!("{place}: there is no metric {metric}"));
            }
            for one in series.iter().filter_map(Value::as_object) {
                labels_there.extend(one.keys().cloned());
            }
            for label in labels.iter().filter(|label| series.iter().all(|one| one[label.as_str()].is_null())) {
                complaints.push(format!("{place}: {metric} has no label {label}"));
            }
        }
        let recorded = names.metrics.iter().all(|(metric, _)| !NOT_RECORDED.iter().any(|(name, _)| name == metric));
        for label in names.grouped.iter().filter(|label| recorded && !labels_there.contains(*label)) {
            complaints.push(format!("{place}: nothing has the label {label} by which it groups"));
        }
    }
    complaints.sort();
    complaints.dedup();
    complaints
}

fn labels_of_legend(legend: &str) -> Vec<&str> {
    legend.split("{{").skip(1).filter_map(|rest| rest.split("}}").next()).collect()
}

/// The names in an expression.
#[derive(Debug, Default, PartialEq, Eq)]
struct Names {
    /// Metrics with the labels that they are selected by.
    metrics: Vec<(String, Vec<String>)>,
    /// Labels of `by (…)`, `on (…)` and the like.
    grouped: Vec<String>,
}

impl Names {
    fn read(expression: &str) -> Self {
        const GROUPING: [&str; 6] = ["by", "without", "on", "ignoring", "group_left", "group_right"];
        const WORDS: [&str; 5] = ["and", "or", "unless", "offset", "bool"];
        let mut names = Self::default();
        let mut rest = expression;
        let (mut in_braces, mut in_grouping) = (false, false);
        while let Some(first) = rest.chars().next() {
            let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == ':';
            let length = rest.find(|c| !is_name(c)).unwrap_or(rest.len());
            if length == 0 {
                match first {
                    '"' => {
                        let end = rest[1..].find('"').expect("the end of a string");
                        rest = &rest[end + 2..];
                        continue;
                    }
                    // A time range.
                    '[' => {
                        let end = rest.find(']').expect("the end of a range");
                        rest = &rest[end + 1..];
                        continue;
                    }
                    '{' => in_braces = true,
                    '}' => in_braces = false,
                    ')' => in_grouping = false,
                    _ => {}
                }
                rest = &rest[first.len_utf8()..];
                continue;
            }
            let (word, after) = rest.split_at(length);
            rest = after;
            if in_braces {
                names.metrics.last_mut().expect("a metric").1.push(word.to_owned());
            } else if GROUPING.contains(&word) {
                in_grouping = true;
            } else if in_grouping {
                names.grouped.push(word.to_owned());
            } else if !first.is_ascii_digit()
                && !WORDS.contains(&word)
                && !after.trim_start().starts_with('(')
                && !is_aggregation(word, after)
            {
                names.metrics.push((word.to_owned(), Vec::new()));
            }
        }
        names
    }
}

/// `sum by (…)`: no parenthesis follows at once.
fn is_aggregation(word: &str, after: &str) -> bool {
    matches!(word, "sum" | "min" | "max" | "avg" | "count" | "topk") && after.trim_start().starts_with("by")
}

#[test]
fn names_are_read_out_of_an_expression() {
    let names = Names::read(r#"sum by (le) (rate(a:b_total{code=~"[45]..",x!="y"}[5m])) / scalar(up unless c offset 1h) * 60"#);
    let metric = |name: &str, labels: &[&str]| (name.to_owned(), labels.iter().map(|label| (*label).to_owned()).collect());
    let metrics = vec![metric("a:b_total", &["code", "x"]), metric("up", &[]), metric("c", &[])];
    assert_eq!(names, Names { metrics, grouped: vec!["le".to_owned()] });
}
