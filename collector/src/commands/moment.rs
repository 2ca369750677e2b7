//! Points in time as people write them on a command line.

use anyhow::{Context, Result, bail};
use chrono::{DateTime, DurationRound, NaiveDate, NaiveDateTime, TimeDelta, Utc};

use crate::store::usage::Moment;

const TOO_FAR: &str = "that is too far away";

/// The hour (UTC) that a moment lies in, which is a time of UTC unless it says otherwise.
pub(super) fn hour(text: &str, now: DateTime<Utc>) -> Result<DateTime<Utc>> {
    exact(text, now)?.duration_trunc(TimeDelta::hours(1)).context(TOO_FAR)
}

/// A moment, which is a time of UTC unless it says otherwise; see [`read`].
pub(super) fn exact(text: &str, now: DateTime<Utc>) -> Result<DateTime<Utc>> {
    Ok(match read(text, now)? {
        Moment::At(moment) => moment,
        Moment::Local(local) => local.and_utc(),
    })
}

/// The first moments of a month, `2026-11`, and of the one after it.
pub(super) fn month(text: &str) -> Result<(Moment, Moment)> {
    let wrong = || format!("\"{text}\" is no month; write it as 2026-11");
    let first = NaiveDate::parse_from_str(&format!("{text}-01"), "%Y-%m-%d").ok().with_context(wrong)?;
    let after = first.checked_add_months(chrono::Months::new(1)).with_context(wrong)?;
    Ok((Moment::Local(first.into()), Moment::Local(after.into())))
}

/// The hours that `+08:00`, `-03` or `+8` is ahead of UTC.
pub(super) fn offset(text: &str) -> Result<i64> {
    let (hours, minutes) = text.split_once(':').unwrap_or((text, "00"));
    match hours.parse::<i64>() {
        Ok(hours @ -14..=14) if minutes == "00" => Ok(hours),
        _ => bail!("\"{text}\" is no offset in whole hours, as +08:00; usage is kept by the hour"),
    }
}

/// Reads a moment: `30d` or `12h` before `now`; `2026-11-01` or `2026-11-01T08:00` on a clock that is not known here; or a time that says
/// so itself, as RFC 3339 has it: `2026-11-01T08:00:00Z`.
pub(super) fn read(text: &str, now: DateTime<Utc>) -> Result<Moment> {
    let ago = |number: &str, unit: fn(i64) -> Option<TimeDelta>| now.checked_sub_signed(unit(number.parse().ok()?)?);
    let moment = match (text.strip_suffix('d'), text.strip_suffix('h')) {
        (Some(days), _) => ago(days, TimeDelta::try_days).map(Moment::At),
        (_, Some(hours)) => ago(hours, TimeDelta::try_hours).map(Moment::At),
        _ => {
            let date = NaiveDate::parse_from_str(text, "%Y-%m-%d").map(NaiveDateTime::from);
            let time = date.or_else(|_| NaiveDateTime::parse_from_str(text, "%Y-%m-%dT%H:%M"));
            time.ok().map(Moment::Local).or_else(|| text.parse().ok().map(Moment::At))
        }
    };
    moment.with_context(|| format!("\"{text}\" is no time; write it as 30d, 12h, 2026-11-01 or 2026-11-01T08:00"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn now() -> DateTime<Utc> {
        "2026-11-24T10:20:30Z".parse().unwrap()
    }

    #[test]
    fn times_are_moments_or_wait_for_a_clock() {
        let at = |text: &str| Moment::At(text.parse().unwrap());
        let local = |text: &str| Moment::Local(text.parse().unwrap());
        for (text, expected) in [
            ("12h", at("2026-11-23T22:20:30Z")),
            ("30d", at("2026-10-25T10:20:30Z")),
            ("2026-11-01", local("2026-11-01T00:00:00")),
            ("2026-11-01T08:01", local("2026-11-01T08:01:00")),
            ("2026-11-01T08:01:00Z", at("2026-11-01T08:01:00Z")),
            ("2026-11-01T08:00:00-03:00", at("2026-11-01T11:00:00Z")),
            ("2026-11-01T08:01:30.5Z", at("2026-11-01T08:01:30.5Z")),
        ] {
            assert_eq!(read(text, now()).unwrap(), expected, "{text}");
        }
        assert_eq!(Moment::At(exact("2026-11-01T08:01", now()).unwrap()), at("2026-11-01T08:01:00Z"));
        assert_eq!(Moment::At(hour("2026-11-01T08:59", now()).unwrap()), at("2026-11-01T08:00:00Z"));
    }

    #[test]
    fn a_month_ends_where_the_next_begins() {
        let local = |text: &str| Moment::Local(text.parse().unwrap());
        assert_eq!(month("2026-12").unwrap(), (local("2026-12-01T00:00:00"), local("2027-01-01T00:00:00")));
        for wrong in ["2026-13", "2026", "2026-11-01", "november", ""] {
            assert!(month(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn what_is_no_time_is_refused() {
        for wrong in
            ["", "d", "-1x", "yesterday", "2026-02-30", "2026-11-01T25:00", "99999999999999999999d", "9223372036854775807h"]
        {
            assert!(read(wrong, now()).is_err(), "{wrong}");
        }
        for wrong in ["", "+05:30", "+15:00", "CST", "8:0"] {
            assert!(offset(wrong).is_err(), "{wrong}");
        }
        assert_eq!([offset("-03").unwrap(), offset("+8").unwrap()], [-3, 8]);
    }
}
