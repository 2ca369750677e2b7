//! What the drain is at, on disk, so that the next process knows over what this one died.
//!
//! A crash alone proves nothing: a machine that lost power, or an operator with `kill -9`, ends the collector in the middle of any file. So
//! the file is only taken entry by entry, and an entry is only given up after [`MAX_DEATHS`] deaths over that very entry.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use log::warn;

use super::spool::{SpoolError, write_note};

/// Deaths over the same entry, one at a time, after which it is put on record instead of read.
pub const MAX_DEATHS: u32 = 2;

/// The file that holds the note.
const NOTE: &str = "at-work";

/// What is worked on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Suspect {
    /// Number of the spool file.
    pub file: u64,
    /// The entry in it, from 0, when they are taken one by one.
    pub entry: Option<usize>,
    /// How often a process died over that entry.
    pub deaths: u32,
}

/// The note, and what an earlier process left in it.
#[derive(Debug)]
pub struct Suspects {
    data_dir: PathBuf,
    found: Mutex<Option<Suspect>>,
}

impl Suspects {
    /// Reads what an earlier process left.
    pub fn open(data_dir: &Path) -> Self {
        let found = match std::fs::read_to_string(data_dir.join(NOTE)) {
            Ok(text) => parse(&text),
            Err(error) => {
                if error.kind() != ErrorKind::NotFound {
                    warn!("cannot read what an earlier process was at: {error}");
                }
                None
            }
        };
        Self { data_dir: data_dir.to_owned(), found: Mutex::new(found) }
    }

    /// What an earlier process died over, if it was this file.
    pub fn of_file(&self, file: u64) -> Option<Suspect> {
        self.found.lock().unwrap_or_else(PoisonError::into_inner).filter(|suspect| suspect.file == file)
    }

    /// The file is done with.
    pub fn forget(&self, file: u64) {
        self.found.lock().unwrap_or_else(PoisonError::into_inner).take_if(|suspect| suspect.file == file);
    }

    /// Notes what is worked on from now on, with `fsync`. Blocks.
    pub fn note(&self, suspect: Suspect) -> Result<(), SpoolError> {
        let entry = suspect.entry.map_or_else(|| "-".to_owned(), |entry| entry.to_string());
        write_note(&self.data_dir, NOTE, &format!("{} {entry} {}\n", suspect.file, suspect.deaths))
    }

    /// Nothing is worked on. Should the note come back after a crash, entries are taken one by one for nothing.
    pub fn clear(&self) {
        if let Err(error) = std::fs::remove_file(self.data_dir.join(NOTE))
            && error.kind() != ErrorKind::NotFound
        {
            warn!("cannot remove the note of what is worked on: {error}");
        }
    }
}

/// What was noted, with the death that is known by the note's being there. A damaged note is none.
fn parse(text: &str) -> Option<Suspect> {
    let mut words = text.split_whitespace();
    let file = words.next()?.parse().ok()?;
    let entry = match words.next()? {
        "-" => None,
        number => Some(number.parse().ok()?),
    };
    let deaths: u32 = words.next()?.parse().ok()?;
    Some(Suspect { file, entry, deaths: if entry.is_some() { deaths.saturating_add(1) } else { 0 } })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_note_that_is_left_counts_as_a_death_over_its_entry() {
        let folder = tempfile::tempdir().unwrap();
        let left = || Suspects::open(folder.path()).of_file(7);
        let suspects = Suspects::open(folder.path());
        assert_eq!(left(), None);
        suspects.note(Suspect { file: 7, entry: None, deaths: 0 }).unwrap();
        assert_eq!(left(), Some(Suspect { file: 7, entry: None, deaths: 0 }));
        suspects.note(Suspect { file: 7, entry: Some(3), deaths: 1 }).unwrap();
        assert_eq!(left(), Some(Suspect { file: 7, entry: Some(3), deaths: 2 }));
        assert_eq!(Suspects::open(folder.path()).of_file(8), None);
        suspects.clear();
        suspects.clear();
        assert_eq!(left(), None);
        for damaged in ["", "x", "7", "7 - ", "7 x 0", "7 1 -1", "\u{FFFD}"] {
            std::fs::write(folder.path().join(NOTE), damaged).unwrap();
            assert_eq!(left(), None, "{damaged}");
        }
    }
}
