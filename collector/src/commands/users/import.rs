//! `users import`: many at once.

use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use crate::commands::say;
use crate::config::{Limit, duration, limit};
use crate::counted::counted;
use crate::kong::failure::{Failure, Outcome};
use crate::kong::people::{Imported, People, read_lines};

/// Largest file that is read.
const MOST_BYTES: u64 = 64 << 20;

pub(super) fn run(people: &mut People, file: &Path, keys: Option<&Path>) -> Outcome<()> {
    let cannot_read = |error: std::io::Error| Failure::new(format!("cannot read {}: {error}", file.display()));
    let input: Box<dyn Read> =
        if file == Path::new("-") { Box::new(std::io::stdin().lock()) } else { Box::new(File::open(file).map_err(cannot_read)?) };
    let calls = |text: &str| {
        limit(text).map(|limit| match limit {
            Limit::Calls(calls) => Some(calls),
            Limit::Default => None,
        })
    };
    let lines = read_lines(input.take(MOST_BYTES), duration, calls)?;
    let mut keys = Keys::open(keys)?;
    let there = people.everybody(&[])?;
    let (mut made, mut changed, mut unchanged) = (0, 0, 0);
    for line in &lines {
        let imported =
            people.import(line, &there).map_err(|failure| Failure { what: format!("{}: {failure}", line.name), ..failure })?;
        match imported {
            // Each at once: what is made must not be lost with what fails later.
            Imported::Made(key) => {
                keys.add(&line.name, &key)?;
                made += 1;
            }
            Imported::Changed => changed += 1,
            Imported::Unchanged => unchanged += 1,
        }
    }
    say::note(format!("{} made, {changed} changed, {unchanged} unchanged", counted(made, "user", "users")));
    Ok(())
}

/// Where new keys go, as CSV.
enum Keys {
    Print { is_begun: bool },
    Write(File, String),
}

impl Keys {
    fn open(path: Option<&Path>) -> Outcome<Self> {
        let Some(path) = path else { return Ok(Self::Print { is_begun: false }) };
        let cannot_write = |error: std::io::Error| Failure::new(format!("cannot write {}: {error}", path.display()));
        let mut file = File::options().append(true).create(true).mode(0o600).open(path).map_err(cannot_write)?;
        if file.metadata().map_err(cannot_write)?.len() == 0 {
            file.write_all(b"name,key\n").map_err(cannot_write)?;
        }
        Ok(Self::Write(file, path.display().to_string()))
    }

    fn add(&mut self, name: &str, key: &str) -> Outcome<()> {
        let mut line = csv::Writer::from_writer(Vec::new());
        let line = line
            .write_record([name, key])
            .map_err(|error| error.to_string())
            .and_then(|()| line.into_inner().map_err(|error| error.to_string()));
        let line = line.map_err(Failure::new)?;
        match self {
            Self::Print { is_begun } => {
                if !std::mem::replace(is_begun, true) {
                    say::line("name,key")?;
                }
                say::line(String::from_utf8_lossy(&line).trim_end())
            }
            Self::Write(file, path) => {
                let written = file.write_all(&line).and_then(|()| file.sync_data());
                written.map_err(|error| Failure::new(format!("cannot write {path}: {error}")))
            }
        }
    }
}
