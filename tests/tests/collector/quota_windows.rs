//! The windows of limits: which they are, and what is added up in them.

use gateway_tests::collector::TestApp;

use crate::quotas::{execute, limit};
use crate::usage::texts;

#[tokio::test]
async fn windows_are_those_of_the_sites_clock_also_when_it_changes() {
    let app = TestApp::start().await;
    let client = app.database.connect().await;
    let next = async |per: &str, at: &str, zone: &str| {
        let query = format!(
            "SELECT string_agg((llm_window_start('{per}', '{at}', later, '{zone}') AT TIME ZONE 'UTC')::text, ' ' ORDER BY later)
            FROM generate_series(-1, 2) later"
        );
        texts(&client, &query).await.remove(0)
    };
    // 25 hours, 23 hours, an hour that comes twice, a midnight that is not there, one that comes twice, a Monday, a month.
    assert_eq!(
        next("day", "2026-10-25 12:00+00", "Europe/Berlin").await,
        "2026-10-23 22:00:00 2026-10-24 22:00:00 2026-10-25 23:00:00 2026-10-26 23:00:00"
    );
    assert_eq!(
        next("day", "2026-03-29 12:00+00", "Europe/Berlin").await,
        "2026-03-27 23:00:00 2026-03-28 23:00:00 2026-03-29 22:00:00 2026-03-30 22:00:00"
    );
    assert_eq!(
        next("hour", "2026-10-25 00:30+00", "Europe/Berlin").await,
        "2026-10-24 23:00:00 2026-10-25 00:00:00 2026-10-25 01:00:00 2026-10-25 02:00:00"
    );
    assert_eq!(
        next("day", "2026-09-06 12:00+00", "America/Santiago").await,
        "2026-09-05 04:00:00 2026-09-06 04:00:00 2026-09-07 03:00:00 2026-09-08 03:00:00"
    );
    assert_eq!(
        next("day", "2026-11-01 04:30+00", "America/Havana").await,
        "2026-10-30 04:00:00 2026-10-31 04:00:00 2026-11-01 05:00:00 2026-11-02 05:00:00"
    );
    assert_eq!(
        next("week", "2026-11-26 20:00+00", "Asia/Shanghai").await,
        "2026-11-15 16:00:00 2026-11-22 16:00:00 2026-11-29 16:00:00 2026-12-06 16:00:00"
    );
    assert_eq!(
        next("month", "2026-11-30 18:00+00", "Asia/Shanghai").await,
        "2026-10-31 16:00:00 2026-11-30 16:00:00 2026-12-31 16:00:00 2027-01-31 16:00:00"
    );
    let told = app.post("/sync", r#"{"node":"n","quota":{}}"#, &[]).await.json();
    let lengths = ["hour", "day", "week", "month"].map(|per| told["quota"]["windows"][per].as_array().unwrap().len());
    assert_eq!(lengths, [50, 9, 4, 4]);
    app.stop().await;
}

#[tokio::test]
async fn all_of_a_window_is_added_up_whatever_is_compacted_and_wherever_days_begin() {
    let app = TestApp::start().await;
    let client = app.database.connect().await;
    for per in ["hour", "day", "week", "month"] {
        execute(&client, &(limit("each_user", "", "tokens", per) + &limit("everybody", "", "cost", per))).await;
    }
    execute(&client, "INSERT INTO llm_model_prices VALUES ('%', '2020-01-01', 2, 1, 8, 'CNY'), ('m1', '2026-11-05 07:00+00', 20, 1, 80, 'CNY')").await;
    for zone in ["UTC", "Asia/Kolkata", "America/New_York", "Pacific/Kiritimati"] {
        execute(
            &client,
            &format!("UPDATE llm_site SET time_zone = '{zone}'; TRUNCATE llm_logs, llm_usage, llm_usage_days, llm_usage_deltas;
                INSERT INTO llm_logs (request_id, consumer_username, started_at, model, prompt_tokens, completion_tokens)
                SELECT '{zone}' || n, 'u' || n % 2, '2026-09-28 00:10+00'::timestamptz + n * interval '47 minutes', 'm' || n % 3, n, 1
                FROM generate_series(1, 2000) n"),
        )
        .await;
        let expected = format!(
            "SELECT format('%s %s %s %s', q.id, CASE q.subject_kind WHEN 'each_user' THEN l.consumer_username ELSE '' END,
                extract(epoch FROM date_trunc(q.per, l.started_at, '{zone}'))::bigint,
                trim_scale(sum(CASE q.unit WHEN 'tokens' THEN l.prompt_tokens + l.completion_tokens ELSE
                    (l.prompt_tokens * 2 + l.completion_tokens * 8) / 1000000.0
                    * CASE WHEN l.model = 'm1' AND date_trunc('hour', l.started_at, '{zone}') >= '2026-11-05 07:00+00' THEN 10 ELSE 1 END END)))
            FROM llm_logs l, llm_quotas q
            WHERE l.started_at >= (date_trunc(q.per, '2026-11-18 09:20+00'::timestamptz, '{zone}') AT TIME ZONE '{zone}' - ('1 ' || q.per)::interval)
                AT TIME ZONE '{zone}'
            GROUP BY q.id, 1 - 1, CASE q.subject_kind WHEN 'each_user' THEN l.consumer_username ELSE '' END, date_trunc(q.per, l.started_at, '{zone}')
            ORDER BY 1"
        )
        .replace("q.id, 1 - 1,", "q.id,");
        let used = "SELECT format('%s %s %s %s', quota_id, subject, extract(epoch FROM window_start)::bigint, trim_scale(amount))
            FROM llm_quota_used('2026-11-18 09:20+00', NULL) ORDER BY 1";
        let expected = texts(&client, &expected).await;
        assert!(expected.len() > 20, "{expected:?}");
        for _ in 0..3 {
            assert_eq!(texts(&client, used).await, expected, "{zone}");
            execute(&client, "SELECT llm_compact_usage_piece(1, false)").await;
            execute(
                &client,
                "INSERT INTO llm_logs (request_id, consumer_username, started_at) SELECT gen_random_uuid(), 'u0', now()",
            )
            .await;
            assert_eq!(texts(&client, used).await, expected, "{zone}");
            execute(&client, "SELECT llm_compact_usage()").await;
        }
    }
    app.stop().await;
}
