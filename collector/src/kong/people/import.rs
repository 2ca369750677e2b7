//! Many users at once, from a file.

use std::collections::{BTreeMap, HashSet};
use std::io::Read;

use super::{Everybody, People, Person, Start, check_name, check_team, new_key, weight};
use crate::kong::failure::{Failure, Outcome};

/// A line of the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    /// Whose.
    pub name: String,
    /// The team; empty cells mean that there is none.
    pub team: Option<String>,
    /// Calls an hour.
    pub limit: Option<u32>,
    /// Seconds until the key stops working.
    pub expires_in: Option<u64>,
    /// How large the share is.
    pub weight: Option<u32>,
}

/// The columns that there may be.
const COLUMNS: [&str; 5] = ["name", "team", "limit", "expires", "weight"];

/// Users of a file at most.
const MOST_LINES: usize = 100_000;

/// Reads a CSV file with a heading: `name`, and of the other [`COLUMNS`] those that there are. Nothing is done unless all of it can
/// be read; an error names the line. `duration` reads how long a key works, `limit` the calls an hour.
pub fn read_lines(
    file: impl Read,
    duration: impl Fn(&str) -> Result<u64, String>,
    limit: impl Fn(&str) -> Result<Option<u32>, String>,
) -> Outcome<Vec<Line>> {
    let mut reader = csv::ReaderBuilder::new().trim(csv::Trim::All).flexible(true).from_reader(file);
    let unreadable = |error: csv::Error| Failure::new(format!("the file is no CSV file: {error}"));
    let headings = reader.headers().map_err(unreadable)?.clone();
    let mut columns: BTreeMap<String, usize> = BTreeMap::new();
    for (at, heading) in headings.iter().enumerate() {
        let heading = heading.trim_start_matches('\u{feff}').to_ascii_lowercase();
        if !COLUMNS.contains(&heading.as_str()) {
            return Err(Failure::new(format!("there is no column '{heading}'; there are {}", COLUMNS.join(", "))));
        }
        columns.insert(heading, at);
    }
    if !columns.contains_key("name") {
        let what = format!("the first line must name the columns: {}; all but the first may be missing", COLUMNS.join(","));
        return Err(Failure::new(what));
    }
    let (mut lines, mut seen) = (Vec::new(), HashSet::new());
    for record in reader.records() {
        let record = record.map_err(unreadable)?;
        let number = record.position().map_or(0, csv::Position::line);
        let wrong = |what: String| Failure::new(format!("line {number}: {what}"));
        let cell = |name: &str| columns.get(name).and_then(|at| record.get(*at)).filter(|text| !text.is_empty());
        let name = cell("name").ok_or_else(|| wrong("a name is missing".to_owned()))?;
        check_name(name).map_err(|failure| wrong(failure.what))?;
        if !seen.insert(name.to_owned()) {
            return Err(wrong(format!("{name} stands there twice")));
        }
        let team = cell("team");
        team.map_or(Ok(()), check_team).map_err(|failure| wrong(failure.what))?;
        lines.push(Line {
            name: name.to_owned(),
            team: team.map(str::to_owned),
            limit: cell("limit").map(&limit).transpose().map_err(wrong)?.flatten(),
            expires_in: cell("expires").map(&duration).transpose().map_err(wrong)?,
            weight: cell("weight").map(weight).transpose().map_err(wrong)?,
        });
        if lines.len() > MOST_LINES {
            return Err(Failure::new(format!("a file may have {MOST_LINES} users at most")));
        }
    }
    Ok(lines)
}

/// What became of a line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Imported {
    /// A user with this new key.
    Made(String),
    /// A user that was there; team, limit and weight are as the line says, the key stays.
    Changed,
    /// A user that was there as the line says.
    Unchanged,
}

impl People {
    /// Makes the user of a line, or brings one that is there to what it says. `there`: who there was.
    pub fn import(&mut self, line: &Line, there: &Everybody) -> Outcome<Imported> {
        let user = there.users.binary_search_by(|user| user.name.cmp(&line.name)).ok().and_then(|at| there.users.get(at));
        let Some(user) = user.filter(|user| user.keys > 0) else {
            let key = new_key()?;
            let start = Start {
                key: &key,
                expires_in: line.expires_in,
                team: line.team.as_deref(),
                limit: line.limit,
                weight: line.weight,
                class: None,
            };
            self.make(&line.name, &start)?;
            return Ok(Imported::Made(key));
        };
        let is_other_team = line.team.is_some() && line.team != user.team;
        let is_other_limit = line.limit.is_some() && line.limit.map(u64::from) != user.limit;
        let is_other_weight = line.weight.is_some() && line.weight != user.weight;
        if is_other_team {
            self.team(&line.name, line.team.as_deref())?;
        }
        if is_other_limit {
            let person: Person = self.must_find(&line.name)?;
            self.set_limit(&person, line.limit)?;
        }
        if is_other_weight {
            self.weight(&line.name, line.weight)?;
        }
        Ok(if is_other_team || is_other_limit || is_other_weight { Imported::Changed } else { Imported::Unchanged })
    }
}
