//! Numbers with what they count, for whoever reads logs and what commands print.

use std::fmt::Display;

/// `1 row`, `2 rows`: a number and what follows it, which is another text where there is one only.
pub fn counted(count: impl Display, one: &str, more: &str) -> String {
    let count = count.to_string();
    let what = if count == "1" { one } else { more };
    format!("{count} {what}")
}

#[cfg(test)]
mod tests {
    use super::counted;

    #[test]
    fn one_is_not_many() {
        let rows = |count: i64| counted(count, "row is", "rows are");
        assert_eq!([rows(0), rows(1), rows(2), rows(11)], ["0 rows are", "1 row is", "2 rows are", "11 rows are"]);
        assert_eq!(counted(1.0, "call", "calls"), "1 call");
    }
}
