//! Entries on disk while PostgreSQL cannot take them.
//!
//! One file a group of requests, because a file can be made safe as a whole: written under a temporary name, `fsync`, renamed,
//! `fsync` of the folder. What is acknowledged is a file whose name is final; everything else is leftovers of a crash. A queue
//! crate with segments, cursors and compaction would save inodes and cost a format of its own: files here are lines of JSON that
//! `llm-collector replay` and a person can read, and at most a few hundred a minute.
//!
//! Name: `NUMBER.ENTRIES.STATE.HASH.jsonl`. NUMBER orders files and never repeats while any is left. STATE is `new`, or `maybe`
//! when the statement that carried the entries was given up and may have been carried out. HASH is the beginning of the content's
//! SHA-256: a file that does not match is set aside under `damaged/` and costs only itself.
//! A line is an entry as Kong sent it, credentials removed, or `{"llm_rejected":{"reason":…,"raw":…}}`.
//!
//! Invariants: a file is removed only after its entries are in PostgreSQL; nothing is ever dropped to make room. One process
//! holds a folder (`lock`). Every function here blocks: callers on a runtime use `spawn_blocking`.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use log::{error, info, warn};

use super::suspect::Suspects;
use crate::counted::counted;
use crate::decode::digest::sha256_hex;

/// Digits of the hash in a file's name: enough to notice damage, which is no attack.
const HASH_DIGITS: usize = 16;

/// Bounds of the spool.
#[derive(Debug, Clone, Copy)]
pub struct SpoolLimits {
    /// Bytes of all files together.
    pub bytes: u64,
    /// Age of the oldest file: a spool that has not drained for this long needs a person, and more entries would only hide it.
    pub age: Duration,
}

/// Why the spool does not take entries.
#[derive(Debug, thiserror::Error)]
pub enum SpoolError {
    /// The folder cannot be used.
    #[error("cannot use the data folder {}: {source}", path.display())]
    Folder {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// Another collector uses it.
    #[error("the data folder {} is in use by another collector; give each its own with --data-dir", .0.display())]
    Locked(PathBuf),
    /// Over the limit on bytes.
    #[error("the spool is full ({0} bytes); raise --max-spool-bytes or bring PostgreSQL back")]
    Full(u64),
    /// Over the limit on age.
    #[error("the oldest entry has been in the spool for {0} hours; bring PostgreSQL back or raise --max-spool-age-hours")]
    TooOld(u64),
}

/// Whether the entries of a file may be rows already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// No statement with them was sent, or the server refused it.
    New,
    /// A statement with them was sent, and its outcome is not known.
    Maybe,
}

/// A spool file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SpoolFile {
    /// Its place in the order.
    pub number: u64,
    /// Entries in it.
    pub entries: usize,
    /// Whether they may be rows already.
    pub state: State,
    bytes: u64,
    written: SystemTime,
    hash: String,
}

impl SpoolFile {
    fn name(&self) -> String {
        let state = match self.state {
            State::New => "new",
            State::Maybe => "maybe",
        };
        format!("{:020}.{}.{state}.{}.jsonl", self.number, self.entries, self.hash)
    }

    fn parse(name: &str, bytes: u64, written: SystemTime) -> Option<Self> {
        let mut parts = name.split('.');
        let number = parts.next()?.parse().ok()?;
        let entries = parts.next()?.parse().ok()?;
        let state = match parts.next()? {
            "new" => State::New,
            "maybe" => State::Maybe,
            _ => return None,
        };
        let hash = parts.next()?.to_owned();
        let is_whole = parts.next() == Some("jsonl") && parts.next().is_none() && hash.len() == HASH_DIGITS;
        is_whole.then_some(Self { number, entries, state, bytes, written, hash })
    }
}

/// The spool of one collector.
#[derive(Debug)]
pub struct Spool {
    folder: PathBuf,
    limits: SpoolLimits,
    index: Mutex<Index>,
    /// What the drain is at, and what an earlier process died over.
    pub suspects: Suspects,
    /// Held as long as the process lives; the system gives it back when it dies.
    _lock: File,
}

#[derive(Debug, Default)]
struct Index {
    files: BTreeMap<u64, SpoolFile>,
    next_number: u64,
    bytes: u64,
}

impl Index {
    fn add(&mut self, file: SpoolFile) {
        self.bytes += file.bytes;
        self.next_number = self.next_number.max(file.number + 1);
        self.files.insert(file.number, file);
    }

    fn forget(&mut self, number: u64) {
        if let Some(file) = self.files.remove(&number) {
            self.bytes -= file.bytes;
        }
    }
}

impl Spool {
    /// Opens the spool under `data_dir`, makes it when it is missing, and finds what an earlier process left.
    pub fn open(data_dir: &Path, limits: SpoolLimits) -> Result<Self, SpoolError> {
        let folder = data_dir.join("spool");
        let cannot = |path: &Path| {
            let path = path.to_owned();
            move |source| SpoolError::Folder { path, source }
        };
        // Conversations are nobody else's business.
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&folder).map_err(cannot(&folder))?;
        let lock_path = data_dir.join("lock");
        private().truncate(false).open(&lock_path).map_err(cannot(&lock_path))?;
        // Held for reading only, so that an operator may remount the disk read-only under a running collector.
        let lock = File::open(&lock_path).map_err(cannot(&lock_path))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(SpoolError::Locked(data_dir.to_owned())),
            Err(TryLockError::Error(source)) => return Err(cannot(&lock_path)(source)),
        }
        let mut index = Index::default();
        for item in fs::read_dir(&folder).map_err(cannot(&folder))? {
            let item = item.map_err(cannot(&folder))?;
            let name = item.file_name().to_string_lossy().into_owned();
            if name.ends_with(".tmp") {
                // Never acknowledged: Kong sends these entries again.
                fs::remove_file(item.path()).map_err(cannot(&item.path()))?;
                continue;
            }
            let metadata = item.metadata().map_err(cannot(&item.path()))?;
            let written = metadata.modified().unwrap_or_else(|_| SystemTime::now());
            match SpoolFile::parse(&name, metadata.len(), written) {
                Some(file) => index.add(file),
                None => warn!("{name} in the spool is none of ours and is left alone"),
            }
        }
        if !index.files.is_empty() {
            let entries: usize = index.files.values().map(|file| file.entries).sum();
            info!(entries = entries, bytes = index.bytes; "the spool holds {} of an earlier run", counted(entries, "entry", "entries"));
        }
        // A writable folder is found out now, not when PostgreSQL is away.
        sync_folder(&folder).map_err(cannot(&folder))?;
        let suspects = Suspects::open(data_dir);
        Ok(Self { folder, limits, index: Mutex::new(index), suspects, _lock: lock })
    }

    /// Makes `lines` safe on disk.
    pub fn write(&self, lines: &[u8], entries: usize, state: State) -> Result<(), SpoolError> {
        let number = {
            let mut index = self.index();
            self.check_limits(&index, lines.len() as u64)?;
            let number = index.next_number;
            index.next_number += 1;
            number
        };
        let mut hash = sha256_hex(lines);
        hash.truncate(HASH_DIGITS);
        let file = SpoolFile { number, entries, state, bytes: lines.len() as u64, written: SystemTime::now(), hash };
        let temporary = self.folder.join(format!("{number:020}.tmp"));
        let path = self.folder.join(file.name());
        let written = write_durably(&temporary, lines).and_then(|()| {
            fs::rename(&temporary, &path)?;
            sync_folder(&self.folder)
        });
        if let Err(source) = written {
            // Neither name may be taken for an acknowledged file later on.
            for leftover in [&temporary, &path] {
                if let Err(error) = fs::remove_file(leftover)
                    && error.kind() != ErrorKind::NotFound
                {
                    error!("cannot remove {}: {error}", leftover.display());
                }
            }
            return Err(SpoolError::Folder { path, source });
        }
        self.index().add(file);
        Ok(())
    }

    /// Whether more entries may come.
    pub fn check(&self) -> Result<(), SpoolError> {
        self.check_limits(&self.index(), 0)
    }

    fn check_limits(&self, index: &Index, more: u64) -> Result<(), SpoolError> {
        if index.bytes + more > self.limits.bytes {
            return Err(SpoolError::Full(index.bytes));
        }
        let age = index.files.values().next().map_or(Duration::ZERO, age_of);
        if age > self.limits.age { Err(SpoolError::TooOld(age.as_secs() / 3_600)) } else { Ok(()) }
    }

    /// The first file with a number of at least `number`.
    pub fn first_from(&self, number: u64) -> Option<SpoolFile> {
        self.index().files.range(number..).next().map(|(_, file)| file.clone())
    }

    /// The content of a file; `None` when it is damaged, which sets it aside.
    pub fn read(&self, file: &SpoolFile) -> Result<Option<Vec<u8>>, SpoolError> {
        let path = self.folder.join(file.name());
        let mut content = Vec::new();
        let damage = match File::open(&path).and_then(|mut opened| opened.read_to_end(&mut content)) {
            Ok(_) if sha256_hex(&content).starts_with(&file.hash) => return Ok(Some(content)),
            Ok(_) => "its content does not match its name".to_owned(),
            Err(error) if error.kind() == ErrorKind::NotFound => "it is gone".to_owned(),
            // A disk that does not answer may answer later: the file stays where it is.
            Err(source) => return Err(SpoolError::Folder { path, source }),
        };
        let aside = self.folder.join("damaged");
        let moved = fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&aside)
            .and_then(|()| if path.exists() { fs::rename(&path, aside.join(file.name())) } else { Ok(()) });
        if let Err(source) = moved {
            return Err(SpoolError::Folder { path: aside, source });
        }
        error!(
            entries = file.entries;
            "spool file {} is damaged: {damage}. {} entries are set aside in {}; look at them with a text editor and send what is whole \
             with llm-collector replay",
            file.name(), file.entries, aside.display()
        );
        self.index().forget(file.number);
        Ok(None)
    }

    /// Removes a file whose entries are in PostgreSQL.
    pub fn remove(&self, file: &SpoolFile) -> Result<(), SpoolError> {
        let path = self.folder.join(file.name());
        match fs::remove_file(&path) {
            Err(source) if source.kind() != ErrorKind::NotFound => return Err(SpoolError::Folder { path, source }),
            _ => {}
        }
        self.index().forget(file.number);
        Ok(())
    }

    /// Bytes of all files.
    pub fn bytes(&self) -> u64 {
        self.index().bytes
    }

    /// Age of the oldest file, zero when there is none.
    pub fn oldest_age(&self) -> Duration {
        self.index().files.values().next().map_or(Duration::ZERO, age_of)
    }

    fn index(&self) -> MutexGuard<'_, Index> {
        self.index.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn age_of(file: &SpoolFile) -> Duration {
    // A clock that was set back makes a file as old as new.
    file.written.elapsed().unwrap_or_default()
}

fn private() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.write(true).create(true).mode(0o600);
    options
}

fn write_durably(path: &Path, content: &[u8]) -> std::io::Result<()> {
    let mut file = private().truncate(true).open(path)?;
    file.write_all(content)?;
    file.sync_all()
}

fn sync_folder(folder: &Path) -> std::io::Result<()> {
    File::open(folder)?.sync_all()
}

/// Notes in the data folder that a fact was seen, so that the next process knows.
pub fn write_note(data_dir: &Path, name: &str, text: &str) -> Result<(), SpoolError> {
    let path = data_dir.join(name);
    write_durably(&path, text.as_bytes())
        .and_then(|()| sync_folder(data_dir))
        .map_err(|source| SpoolError::Folder { path, source })
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: SpoolLimits = SpoolLimits { bytes: 1_000, age: Duration::from_secs(3_600) };

    fn folder() -> tempfile::TempDir {
        tempfile::tempdir().unwrap()
    }

    fn contents(spool: &Spool) -> Vec<String> {
        let mut from = 0;
        let mut contents = Vec::new();
        while let Some(file) = spool.first_from(from) {
            from = file.number + 1;
            contents.extend(spool.read(&file).unwrap().map(|content| String::from_utf8(content).unwrap()));
        }
        contents
    }

    #[test]
    fn files_come_back_in_order_also_after_a_restart() {
        let folder = folder();
        let spool = Spool::open(folder.path(), LIMITS).unwrap();
        for n in 0..12 {
            spool.write(format!("{n}\n").as_bytes(), 1, if n == 3 { State::Maybe } else { State::New }).unwrap();
        }
        drop(spool);
        let spool = Spool::open(folder.path(), LIMITS).unwrap();
        assert_eq!(contents(&spool), (0..12).map(|n| format!("{n}\n")).collect::<Vec<_>>());
        assert_eq!(spool.first_from(3).unwrap().state, State::Maybe);
        spool.remove(&spool.first_from(0).unwrap()).unwrap();
        spool.write(b"new\n", 1, State::New).unwrap();
        assert_eq!(contents(&spool).last().unwrap(), "new\n");
        // Eleven of the twelve are left (nine of two bytes, two of three) and one of four.
        assert_eq!(spool.bytes(), 9 * 2 + 2 * 3 + 4);
    }

    #[test]
    fn a_second_collector_is_refused() {
        let folder = folder();
        let _first = Spool::open(folder.path(), LIMITS).unwrap();
        let refused = Spool::open(folder.path(), LIMITS).unwrap_err();
        assert!(matches!(refused, SpoolError::Locked(_)) && refused.to_string().contains("--data-dir"), "{refused}");
    }

    #[test]
    fn what_a_crash_left_half_written_is_not_taken_for_entries() {
        let folder = folder();
        drop(Spool::open(folder.path(), LIMITS).unwrap());
        fs::write(folder.path().join("spool/00000000000000000007.tmp"), "half").unwrap();
        fs::write(folder.path().join("spool/notes.txt"), "x").unwrap();
        let spool = Spool::open(folder.path(), LIMITS).unwrap();
        assert_eq!(contents(&spool), Vec::<String>::new());
        assert!(!folder.path().join("spool/00000000000000000007.tmp").exists());
        assert!(folder.path().join("spool/notes.txt").exists());
    }

    #[test]
    fn a_damaged_file_costs_only_itself() {
        let folder = folder();
        let spool = Spool::open(folder.path(), LIMITS).unwrap();
        for text in ["one\n", "two\n", "three\n"] {
            spool.write(text.as_bytes(), 1, State::New).unwrap();
        }
        let second = folder.path().join("spool").join(spool.first_from(1).unwrap().name());
        fs::write(&second, "twx\n").unwrap();
        assert_eq!(contents(&spool), ["one\n", "three\n"]);
        assert!(!second.exists() && folder.path().join("spool/damaged").read_dir().unwrap().count() == 1);
    }

    #[test]
    fn at_a_limit_nothing_is_taken_and_nothing_is_lost() {
        let folder = folder();
        let spool = Spool::open(folder.path(), LIMITS).unwrap();
        spool.write(&[b'x'; 900], 1, State::New).unwrap();
        assert!(matches!(spool.write(&[b'y'; 101], 1, State::New), Err(SpoolError::Full(900))));
        spool.write(&[b'z'; 100], 1, State::New).unwrap();
        drop(spool);
        let short = SpoolLimits { age: Duration::ZERO, bytes: 10_000 };
        let spool = Spool::open(folder.path(), short).unwrap();
        assert!(matches!(spool.write(b"more", 1, State::New), Err(SpoolError::TooOld(0))));
        assert_eq!(contents(&spool).len(), 2);
    }

    #[test]
    fn a_folder_that_cannot_be_written_is_named() {
        let folder = folder();
        let file = folder.path().join("file");
        fs::write(&file, "").unwrap();
        let error = Spool::open(&file, LIMITS).unwrap_err().to_string();
        assert!(error.contains(file.to_str().unwrap()), "{error}");
    }
}
