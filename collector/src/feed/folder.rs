//! A folder of Parquet files: `day=2026-11-26/llm_logs-2026-11-26.parquet`, with its manifest in `_manifests/`. DuckDB, pyarrow and Spark take
//! `day=…` for a column and pass over what begins with an underscore.
//!
//! A file is written in `_writing/` and takes its place by a rename, so a reader finds the old one or the new one. Whatever is there has
//! reached the disk (`fsync`) before the next step begins: file, manifest, and then PostgreSQL's note.

use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use chrono::TimeDelta;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tokio_postgres::Row;

use super::manifest::Manifest;
use super::parquet::Encoder;
use super::{Sink, Writing, Written};
use crate::decode::digest::hex;
use crate::store::feed::{Computed, PricePeriod, Slice};

const IDENTITY: &str = "_feed.json";
const MANIFESTS: &str = "_manifests";
const WRITING: &str = "_writing";

/// A folder that a feed fills.
#[derive(Debug)]
pub struct Folder {
    root: PathBuf,
}

/// What tells the folder of one feed from others.
#[derive(Debug, Serialize, Deserialize)]
struct Identity {
    feed: String,
    id: String,
}

impl Folder {
    /// Opens the folder of a feed that is known by `id` already, and removes what a worker left that died. To be called with the feed's lock
    /// held.
    pub fn open(root: &Path, feed: &str, id: &str) -> Result<Self> {
        let Some(identity) = identity(root)? else {
            bail!(
                "{} is not the folder that the feed {feed} fills: it has no {IDENTITY}. Is the disk mounted? A feed that is to begin anew \
                 there needs another --name, or `feed forget`",
                root.display()
            );
        };
        ensure!(
            identity.id == id,
            "{} belongs to another feed ({}): the feed {feed} fills another folder",
            root.display(),
            identity.feed
        );
        let folder = Self { root: root.to_owned() };
        folder.remove_leftovers()?;
        Ok(folder)
    }

    /// Makes a folder that of a new feed; returns its identity. A folder with files of another one is refused.
    pub fn begin(root: &Path, feed: &str) -> Result<String> {
        fs::create_dir_all(root).with_context(|| format!("cannot make {}", root.display()))?;
        if let Some(identity) = identity(root)? {
            ensure!(
                !root.join(MANIFESTS).exists(),
                "{} holds files of a feed ({}) that this database does not know: give an empty folder",
                root.display(),
                identity.feed
            );
            // A worker died before it could make the feed known.
            return Ok(identity.id);
        }
        let mut random = [0; 16];
        getrandom::fill(&mut random).map_err(|error| anyhow::anyhow!("there are no random numbers: {error}"))?;
        let identity = Identity { feed: feed.to_owned(), id: hex(&random) };
        replace(root, &root.join(IDENTITY), &serde_json::to_vec_pretty(&identity)?)?;
        Ok(identity.id)
    }

    fn remove_leftovers(&self) -> Result<()> {
        let writing = self.root.join(WRITING);
        match fs::remove_dir_all(&writing) {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
            _ => fs::create_dir_all(&writing),
        }
        .with_context(|| format!("cannot empty {}", writing.display()))
    }

    fn being_written(&self, slice: &Slice) -> PathBuf {
        self.root.join(WRITING).join(format!("{}.parquet", stem(slice)))
    }
}

fn identity(root: &Path) -> Result<Option<Identity>> {
    let path = root.join(IDENTITY);
    match fs::read(&path) {
        Ok(text) => Ok(Some(serde_json::from_slice(&text).with_context(|| format!("{} is no JSON of a feed", path.display()))?)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
    }
}

/// `llm_logs-2026-11-26`; of an hour `llm_logs-2026-11-26T13`, of a further part `llm_logs-2026-11-26.2`.
fn stem(slice: &Slice) -> String {
    let is_day = slice.until - slice.since >= TimeDelta::days(1);
    let time = slice.since.format(if is_day { "%Y-%m-%d" } else { "%Y-%m-%dT%H" });
    match slice.part {
        1 => format!("llm_logs-{time}"),
        part => format!("llm_logs-{time}.{part}"),
    }
}

impl Sink for Folder {
    fn begin(&self, slice: &Slice, computed: Computed, prices: &[PricePeriod]) -> Result<Box<dyn Writing>> {
        let path = self.being_written(slice);
        let file = File::create(&path).with_context(|| format!("cannot make {}", path.display()))?;
        let file = Hashed { file, sha256: Sha256::new(), bytes: 0 };
        Ok(Box::new(Encoder::new(file, computed, prices)?))
    }

    fn publish(&self, slice: &Slice, manifest: &Manifest) -> Result<()> {
        let file = self.root.join(&manifest.file);
        let day = file.parent().context("a file stands in a folder")?;
        fs::create_dir_all(day).with_context(|| format!("cannot make {}", day.display()))?;
        sync_folder(&self.root)?;
        fs::rename(self.being_written(slice), &file).with_context(|| format!("cannot put {} in its place", file.display()))?;
        sync_folder(day)?;
        let manifests = self.root.join(MANIFESTS);
        fs::create_dir_all(&manifests).with_context(|| format!("cannot make {}", manifests.display()))?;
        sync_folder(&self.root)?;
        let text = serde_json::to_vec_pretty(manifest)?;
        replace(&self.root.join(WRITING), &manifests.join(format!("{}.json", stem(slice))), &text)
    }

    fn file_name(&self, slice: &Slice) -> String {
        format!("day={}/{}.parquet", slice.since.format("%Y-%m-%d"), stem(slice))
    }
}

impl Writing for Encoder<Hashed> {
    fn row(&mut self, row: &Row) -> Result<()> {
        Encoder::row(self, row)
    }

    fn finish(self: Box<Self>) -> Result<Written> {
        let (Hashed { file, sha256, bytes }, rows) = Encoder::finish(*self)?;
        file.sync_all().context("cannot bring the file to the disk")?;
        Ok(Written { rows, bytes, sha256: hex(&sha256.finalize()) })
    }
}

/// A file, and the hash of what was written to it.
struct Hashed {
    file: File,
    sha256: Sha256,
    bytes: u64,
}

impl Write for Hashed {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let written = self.file.write(bytes)?;
        self.sha256.update(bytes.get(..written).unwrap_or_default());
        self.bytes += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.file.flush()
    }
}

/// Puts a small file in its place, whole.
fn replace(beside: &Path, place: &Path, text: &[u8]) -> Result<()> {
    let written = || -> std::io::Result<()> {
        let name = place.file_name().unwrap_or_default();
        let path = beside.join(Path::new(name).with_extension("part"));
        let mut file = File::create(&path)?;
        file.write_all(text)?;
        file.sync_all()?;
        fs::rename(&path, place)
    };
    written().with_context(|| format!("cannot write {}", place.display()))?;
    sync_folder(place.parent().context("a file stands in a folder")?)
}

fn sync_folder(folder: &Path) -> Result<()> {
    let synced = File::open(folder).and_then(|folder| folder.sync_all());
    synced.with_context(|| format!("cannot bring {} to the disk", folder.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slice(since: &str, until: &str, part: i32) -> Slice {
        Slice { since: since.parse().unwrap(), until: until.parse().unwrap(), part, hint: String::new(), before: None }
    }

    #[test]
    fn a_slice_has_a_place_that_tells_when_it_was() {
        let folder = Folder { root: PathBuf::new() };
        let name = |since: &str, until: &str, part| folder.file_name(&slice(since, until, part));
        assert_eq!(name("2026-11-26T00:00:00Z", "2026-11-27T00:00:00Z", 1), "day=2026-11-26/llm_logs-2026-11-26.parquet");
        assert_eq!(name("2026-11-26T00:00:00Z", "2026-11-27T00:00:00Z", 2), "day=2026-11-26/llm_logs-2026-11-26.2.parquet");
        assert_eq!(name("2026-11-26T23:00:00Z", "2026-11-27T00:00:00Z", 1), "day=2026-11-26/llm_logs-2026-11-26T23.parquet");
    }

    #[test]
    fn a_folder_belongs_to_one_feed() {
        let folder = tempfile::tempdir().unwrap();
        let (mine, other) = (folder.path().join("a/b"), folder.path().join("other"));
        assert!(Folder::open(&mine, "parquet", "1").unwrap_err().to_string().contains("Is the disk mounted?"));
        let id = Folder::begin(&mine, "parquet").unwrap();
        assert_eq!(Folder::begin(&mine, "parquet").unwrap(), id, "a worker died in between");
        fs::write(mine.join("left"), "").unwrap();
        Folder::open(&mine, "parquet", &id).unwrap();
        fs::write(mine.join(WRITING).join("llm_logs-2026-11-26.parquet"), "half of it").unwrap();
        Folder::open(&mine, "parquet", &id).unwrap();
        assert_eq!(fs::read_dir(mine.join(WRITING)).unwrap().count(), 0);
        let other_id = Folder::begin(&other, "second").unwrap();
        assert!(Folder::open(&mine, "parquet", &other_id).unwrap_err().to_string().contains("belongs to another feed"));
        fs::create_dir(mine.join(MANIFESTS)).unwrap();
        assert!(Folder::begin(&mine, "parquet").unwrap_err().to_string().contains("does not know"));
    }
}
