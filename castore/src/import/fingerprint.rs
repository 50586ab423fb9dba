//! What tells a tree from the same tree after a change, from names and what the file system knows
//! of each file, without reading any. What a fingerprint stands for is remembered elsewhere.

use std::{
    path::Path,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use rustix::fs::{AtFlags, FileType, Mode, Stat, statat};
use tokio::sync::oneshot;

use super::{
    error::ImportError,
    pipeline::{self, Stop, StopFlag},
    walk::{self, Halt, Item, Source},
};
use crate::{Digest, Name};

/// How long before a fingerprint was taken the last change must have been for it to stand for the
/// contents: longer than a tick of the coarsest clock of a file system. A file that is written
/// twice within a tick shows the same times after both.
pub const SETTLED_AFTER: Duration = Duration::from_secs(2);

/// The fingerprint of a tree: as long as it is the same, so is the tree.
///
/// It covers all names and kinds, and of each file, symlink and directory the device, the inode,
/// the times of the last modification and of the last change of the inode to the nanosecond, of
/// files also the size and the executable bit. A program can set the first of these times, but not
/// the second.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TreeFingerprint {
    /// The hash over all of it.
    pub digest: Digest,
    /// Files, directories and symlinks, the root included.
    pub entries: u64,
    /// Whether nothing in the tree has changed shortly before or since the time that was given.
    /// Only then does the fingerprint stand for what was read of the tree since that time.
    pub is_settled: bool,
}

/// Takes the fingerprint of what is at `path`, which [`import`](super::import()) takes the same
/// way. Nothing is read but the directories' listings.
///
/// `since` is a time before anything of the tree was read whose contents the fingerprint is to
/// stand for. Fails where an import would that comes to the same place. If the future is dropped,
/// the walk stops.
pub async fn fingerprint(path: &Path, since: SystemTime) -> Result<TreeFingerprint, ImportError> {
    let stop = Stop::default();
    let (flag, path) = (stop.flag(), path.to_owned());
    let (sender, taken) = oneshot::channel();
    // Whoever waited may have gone.
    let run = move || drop(sender.send(take(&path, since, &flag)));
    pipeline::named("cairn-stat").spawn(run).map_err(ImportError::Threads)?;
    match taken.await {
        Ok(Ok(fingerprint)) => Ok(fingerprint),
        Ok(Err(Halt::Failed(error))) => Err(error),
        Ok(Err(Halt::Stopped)) | Err(_) => Err(ImportError::GivenUp),
    }
}

fn take(path: &Path, since: SystemTime, stop: &StopFlag) -> Result<TreeFingerprint, Halt> {
    let mut taker = Taker::new(since);
    walk::walk(path, |item| {
        if stop.is_set() {
            return Err(Halt::Stopped);
        }
        taker.add(item)
    })?;
    let Taker { hasher, entries, is_settled, .. } = taker;
    Ok(TreeFingerprint { digest: hasher.finalize().into(), entries, is_settled })
}

/// What the file system knows of something without reading it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, u64),
    changed: (i64, u64),
    executable: bool,
}

impl Stamp {
    pub(super) fn of(stat: &Stat) -> Self {
        Self {
            device: stat.st_dev,
            inode: stat.st_ino,
            size: u64::try_from(stat.st_size).unwrap_or(0),
            modified: (stat.st_mtime, stat.st_mtime_nsec),
            changed: (stat.st_ctime, stat.st_ctime_nsec),
            executable: Mode::from_raw_mode(stat.st_mode).contains(Mode::XUSR),
        }
    }

    /// What tells one file from every other.
    pub(super) fn identity(&self) -> (u64, u64) {
        (self.device, self.inode)
    }
}

/// What an item is, as it goes into the hash.
#[derive(Clone, Copy)]
enum Kind {
    DirectoryStart = 1,
    DirectoryEnd = 2,
    File = 3,
    Symlink = 4,
}

struct Taker {
    hasher: blake3::Hasher,
    /// A file's record, made here so that it is hashed in one go.
    record: Vec<u8>,
    entries: u64,
    /// Changes are to be older than this, in nanoseconds after the epoch.
    settled_before: i128,
    is_settled: bool,
}

impl Taker {
    fn new(since: SystemTime) -> Self {
        let since = since.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos());
        let since = i128::try_from(since).unwrap_or(0);
        Self {
            hasher: blake3::Hasher::new(),
            record: Vec::new(),
            entries: 0,
            settled_before: since - SETTLED_AFTER.as_nanos() as i128,
            is_settled: true,
        }
    }

    fn add(&mut self, item: Item) -> Result<(), Halt> {
        match item {
            Item::DirectoryStart { name, stamp, .. } => {
                // The size of a directory is the file system's own affair.
                let stamp = Stamp { size: 0, executable: false, ..stamp };
                self.entry(Kind::DirectoryStart, name.as_ref(), &stamp);
            }
            Item::DirectoryEnd => {
                self.hasher.update(&[Kind::DirectoryEnd as u8]);
            }
            Item::File(source) => self.look(Kind::File, &source)?,
            Item::Symlink(source) => self.look(Kind::Symlink, &source)?,
            Item::Failed(error) => return Err(error.into()),
        }
        Ok(())
    }

    fn look(&mut self, kind: Kind, source: &Source) -> Result<(), Halt> {
        let stat = statat(source.directory(), source.file_name(), AtFlags::SYMLINK_NOFOLLOW)
            .map_err(|errno| source.failed(errno))?;
        let found = match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => Kind::File,
            FileType::Symlink => Kind::Symlink,
            _ => return Err(source.changed(super::Change::Replaced).into()),
        };
        if found as u8 != kind as u8 {
            return Err(source.changed(super::Change::Replaced).into());
        }
        self.entry(kind, source.name(), &Stamp::of(&stat));
        Ok(())
    }

    fn entry(&mut self, kind: Kind, name: Option<&Name>, stamp: &Stamp) {
        let name = name.map_or(&[][..], Name::as_ref);
        self.record.clear();
        self.record.push(kind as u8);
        self.record.push(stamp.executable.into());
        self.record.extend_from_slice(&(name.len() as u64).to_le_bytes());
        self.record.extend_from_slice(name);
        for number in [
            stamp.device,
            stamp.inode,
            stamp.size,
            stamp.modified.0 as u64,
            stamp.modified.1,
            stamp.changed.0 as u64,
            stamp.changed.1,
        ] {
            self.record.extend_from_slice(&number.to_le_bytes());
        }
        self.hasher.update(&self.record);
        self.entries += 1;
        let nanoseconds =
            |(seconds, rest): (i64, u64)| i128::from(seconds) * 1_000_000_000 + i128::from(rest);
        // A time of modification far ahead was set on purpose, and setting it changed the inode.
        let margin = SETTLED_AFTER.as_nanos() as i128;
        let near = self.settled_before..=self.settled_before + 2 * margin;
        if nanoseconds(stamp.changed) >= self.settled_before
            || near.contains(&nanoseconds(stamp.modified))
        {
            self.is_settled = false;
        }
    }
}
