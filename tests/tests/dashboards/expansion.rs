//! Variables and macros are put in as Grafana's documentation says.

use gateway_tests::grafana::{Language, Moment, Query, Variables, dashboards};

const HOUR: i64 = 3_600;

/// A query of a dashboard with another text.
fn query(language: Language, text: &str) -> Query {
    let queries: Vec<Query> = dashboards().iter().flat_map(gateway_tests::grafana::Dashboard::queries).collect();
    let like = queries
        .into_iter()
        .find(|query| query.language == language && !query.today && query.instant == (language == Language::PromQl));
    let mut query = like.expect("a query");
    text.clone_into(&mut query.text);
    query
}

#[test]
fn the_range_of_a_rate_is_four_scrapes_at_one_hour_and_longer_than_a_step_at_thirty_days() {
    let query = query(Language::PromQl, "rate(x[$__rate_interval]) + increase(x[$__range])");
    let expand = |seconds| Moment::before(1_795_400_000_000, seconds).expand(&query, &Variables::default());
    assert_eq!(expand(HOUR), "rate(x[60s]) + increase(x[3600s])");
    // 30 days by 1,000 points are 43.2 minutes, rounded to 30.
    assert_eq!(expand(720 * HOUR), "rate(x[1815s]) + increase(x[2592000s])");
}

#[test]
fn text_that_somebody_typed_cannot_leave_its_quotes() {
    let mut typed = Variables::default();
    typed.set("text", &["it's"]);
    typed.set("users", &["a", "b'); DROP TABLE llm_logs; --"]);
    let query = query(Language::Sql, "SELECT ${text:sqlstring}, x IN (${users:sqlstring})");
    assert_eq!(Moment::before(0, HOUR).expand(&query, &typed), "SELECT 'it''s', x IN ('a','b''); DROP TABLE llm_logs; --')");
}

#[test]
fn macros_become_conditions_on_the_chosen_time() {
    let query =
        query(Language::Sql, "WHERE $__timeFilter(started_at) AND hour <= $__timeTo() GROUP BY $__timeGroupAlias(hour, 3600s)");
    assert_eq!(
        Moment::before(1_795_400_000_000, HOUR).expand(&query, &Variables::default()),
        "WHERE started_at BETWEEN '2026-11-23T01:13:20.000Z' AND '2026-11-23T02:13:20.000Z' AND hour <= '2026-11-23T02:13:20.000Z' \
         GROUP BY floor(extract(epoch from hour)/3600)*3600 AS \"time\""
    );
}
