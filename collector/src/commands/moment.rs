//! Points in time as people write them on a command line; in whole hours where usage is asked for, which is kept by the hour.

use anyhow::{Context, Result, bail};
use chrono::{DateTime, DurationRound, NaiveDate, NaiveDateTime, TimeDelta, Utc};

/// The hour that a moment lies in; see [`exact`].
pub(super) fn hour(text: &str, offset: TimeDelta, now: DateTime<Utc>) -> Result<DateTime<Utc>> {
    floor(exact(text, offset, now)?)
}

/// The first full hour that does not begin before a moment.
pub(super) fn hour_after(text: &str, offset: TimeDelta, now: DateTime<Utc>) -> Result<DateTime<Utc>> {
    let moment = exact(text, offset, now)?;
    let hour = floor(moment)?;
    Ok(if hour == moment { hour } else { next(hour)? })
}

/// The end of the hour that `now` lies in.
pub(super) fn end_of_hour(now: DateTime<Utc>) -> Result<DateTime<Utc>> {
    next(floor(now)?)
}

/// The first hours of a month, `2026-11`, and of the one after it.
pub(super) fn month(text: &str, offset: TimeDelta) -> Result<(DateTime<Utc>, DateTime<Utc>)> {
    let wrong = || format!("\"{text}\" is no month; write it as 2026-11");
    let first = NaiveDate::parse_from_str(&format!("{text}-01"), "%Y-%m-%d").ok().with_context(wrong)?;
    let after = first.checked_add_months(chrono::Months::new(1)).with_context(wrong)?;
    Ok((at(first.into(), offset)?, at(after.into(), offset)?))
}

/// `+08:00`, `-03` or `+8` as a length of time.
pub(super) fn offset(text: &str) -> Result<TimeDelta> {
    let (hours, minutes) = text.split_once(':').unwrap_or((text, "00"));
    match hours.parse::<i64>() {
        Ok(hours @ -14..=14) if minutes == "00" => Ok(TimeDelta::hours(hours)),
        _ => bail!("\"{text}\" is no offset in whole hours, as +08:00; usage is kept by the hour"),
    }
}

/// A moment: `30d` or `12h` before `now`; `2026-11-01` or `2026-11-01T08:00` on a clock that is `offset` ahead of UTC; or a time that says
/// so itself, as RFC 3339 has it: `2026-11-01T08:00:00Z`.
pub(super) fn exact(text: &str, offset: TimeDelta, now: DateTime<Utc>) -> Result<DateTime<Utc>> {
    let ago = |number: &str, unit: fn(i64) -> Option<TimeDelta>| now.checked_sub_signed(unit(number.parse().ok()?)?);
    let moment = match (text.strip_suffix('d'), text.strip_suffix('h')) {
        (Some(days), _) => ago(days, TimeDelta::try_days),
        (_, Some(hours)) => ago(hours, TimeDelta::try_hours),
        _ => {
            let date = NaiveDate::parse_from_str(text, "%Y-%m-%d").map(NaiveDateTime::from);
            let time = date.or_else(|_| NaiveDateTime::parse_from_str(text, "%Y-%m-%dT%H:%M"));
            let local = time.ok().and_then(|time| at(time, offset).ok());
            local.or_else(|| text.parse().ok())
        }
    };
    moment.with_context(|| format!("\"{text}\" is no time; write it as 30d, 12h, 2026-11-01 or 2026-11-01T08:00"))
}

fn at(local: NaiveDateTime, offset: TimeDelta) -> Result<DateTime<Utc>> {
    Ok(local.checked_sub_signed(offset).context("that is too far away")?.and_utc())
}

fn floor(moment: DateTime<Utc>) -> Result<DateTime<Utc>> {
    moment.duration_trunc(TimeDelta::hours(1)).context("that is too far away")
}

fn next(hour: DateTime<Utc>) -> Result<DateTime<Utc>> {
    hour.checked_add_signed(TimeDelta::hours(1)).context("that is too far away")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn now() -> DateTime<Utc> {
        "2026-11-24T10:20:30Z".parse().unwrap()
    }

    fn utc(moment: Result<DateTime<Utc>>) -> Option<String> {
        moment.ok().map(|moment| moment.format("%Y-%m-%d %H:%M:%S").to_string())
    }

    #[test]
    fn times_are_read_on_the_clock_asked_for_and_rounded_to_hours() {
        let china = offset("+08:00").unwrap();
        let cases = [
            ("12h", "2026-11-23 22:00:00", "2026-11-23 23:00:00"),
            ("30d", "2026-10-25 10:00:00", "2026-10-25 11:00:00"),
            ("2026-11-01", "2026-10-31 16:00:00", "2026-10-31 16:00:00"),
            ("2026-11-01T08:01", "2026-11-01 00:00:00", "2026-11-01 01:00:00"),
            ("2026-11-01T08:01:00Z", "2026-11-01 08:00:00", "2026-11-01 09:00:00"),
            ("2026-11-01T08:00:00-03:00", "2026-11-01 11:00:00", "2026-11-01 11:00:00"),
        ];
        for (text, down, up) in cases {
            assert_eq!(utc(hour(text, china, now())).as_deref(), Some(down), "{text}");
            assert_eq!(utc(hour_after(text, china, now())).as_deref(), Some(up), "{text}");
        }
        assert_eq!(utc(exact("2026-11-01T08:01:30.5Z", china, now())).as_deref(), Some("2026-11-01 08:01:30"));
        assert_eq!(utc(exact("1h", china, now())).as_deref(), Some("2026-11-24 09:20:30"));
        assert_eq!(utc(end_of_hour(now())).as_deref(), Some("2026-11-24 11:00:00"));
    }

    #[test]
    fn a_month_ends_where_the_next_begins() {
        let month = |text, hours| month(text, TimeDelta::hours(hours)).map(|(first, after)| (utc(Ok(first)), utc(Ok(after))));
        let expected = (Some("2026-11-30 16:00:00".to_owned()), Some("2026-12-31 16:00:00".to_owned()));
        assert_eq!(month("2026-12", 8).unwrap(), expected);
        for wrong in ["2026-13", "2026", "2026-11-01", "november", ""] {
            assert!(month(wrong, 0).is_err(), "{wrong}");
        }
    }

    #[test]
    fn what_is_no_time_is_refused() {
        for wrong in
            ["", "d", "-1x", "yesterday", "2026-02-30", "2026-11-01T25:00", "99999999999999999999d", "9223372036854775807h"]
        {
            assert!(hour(wrong, TimeDelta::zero(), now()).is_err(), "{wrong}");
        }
        for wrong in ["", "+05:30", "+15:00", "CST", "8:0"] {
            assert!(offset(wrong).is_err(), "{wrong}");
        }
        assert_eq!([offset("-03").unwrap(), offset("+8").unwrap()], [TimeDelta::hours(-3), TimeDelta::hours(8)]);
    }
}
