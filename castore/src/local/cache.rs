//! A local store as a cache: records come without anyone waiting for the disk, go when their room
//! is wanted, and whatever fails is no more than a record that is not there. What is kept in it, and
//! where it comes from, is not known here.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use bytes::Bytes;
use cairn_telemetry::inventory::CACHE_DROPPED;
use parking_lot::Mutex;

use self::pending::{Pending, Value, Work};
use super::{
    Kind, LIST_MAX, LocalError, LocalStore, Record, parse_key,
    purpose::Purpose,
    record::{Encoded, Key},
    reopen,
};

mod pending;

/// The smallest budget, in bytes: the index takes some MiB whatever is in it.
pub const CACHE_MIN: u64 = 64 * 1024 * 1024;

/// The threads that write, at most: each compresses some 350 MB/s.
const WRITERS_MAX: usize = 4;

/// The least time between two warnings of the same kind.
const WARN_INTERVAL: Duration = Duration::from_secs(60);

/// Nothing is written for so long after the disk has failed.
const PAUSE: Duration = Duration::from_secs(10);

/// What was read is written down so often, if something was.
const MARKS_INTERVAL: Duration = Duration::from_secs(60);

/// The marks' file, in the folder of the cache.
const MARKS: &str = "read-marks";

/// The most bytes of it that are read: those of a cache of some TiB.
const MARKS_MAX: u64 = 256 * 1024 * 1024;

/// A cache in a folder of this machine, open in this process alone.
#[derive(Debug)]
pub struct LocalCache {
    inner: Arc<Inner>,
    writers: Mutex<Vec<JoinHandle<()>>>,
}

#[derive(Debug)]
struct Inner {
    store: Arc<LocalStore>,
    pending: Pending,
    /// What was given, and could not be kept.
    dropped: AtomicU64,
    write_warnings: Warnings,
    read_warnings: Warnings,
}

/// The records of a cache and what they take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LocalCacheUsage {
    /// The bytes of packs and index.
    pub bytes: u64,
    /// How many of each kind there are.
    pub records: [(Kind, u64); Kind::ALL.len()],
    /// The bytes that were given up for others since the cache was opened.
    pub evicted: u64,
    /// The records that came and could not be kept since then.
    pub dropped: u64,
}

impl Default for LocalCacheUsage {
    fn default() -> Self {
        Self { bytes: 0, records: Kind::ALL.map(|kind| (kind, 0)), evicted: 0, dropped: 0 }
    }
}

impl LocalCache {
    /// Opens the cache in a folder, or makes one, for at most so many bytes on the disk (at least
    /// [`CACHE_MIN`]).
    ///
    /// What is damaged beyond use is thrown away, with a warning. [`LocalError::Locked`] if it is
    /// open already; [`LocalError::IsStore`] or [`LocalError::NotAStore`] if the folder holds what
    /// must not be thrown away.
    pub fn open(path: &Path, budget: u64) -> Result<Self, LocalError> {
        let purpose = Purpose::Cache { budget: budget.max(CACHE_MIN) };
        let store = match LocalStore::open_for(path, purpose) {
            Err(error) if reopen::is_beyond_use(path, &error) => {
                tracing::warn!(
                    cache = %path.display(),
                    error = &error as &dyn std::error::Error,
                    "a cache is beyond use, and is begun anew",
                );
                reopen::clear(path)?;
                LocalStore::open_for(path, purpose)?
            }
            opened => opened?,
        };
        match read_marks(path) {
            Ok(marks) => store.set_read_marks(&marks),
            Err(error) => tracing::debug!(%error, "what was read before is not known"),
        }
        let inner = Arc::new(Inner {
            store,
            pending: Pending::default(),
            dropped: AtomicU64::new(0),
            write_warnings: Warnings::default(),
            read_warnings: Warnings::default(),
        });
        let writers = thread::available_parallelism().map_or(1, usize::from).min(WRITERS_MAX);
        let cache = Self { inner, writers: Mutex::default() };
        for _ in 0..writers {
            let inner = cache.inner.clone();
            let writer = thread::Builder::new().name("cairn-keep".to_owned());
            let writer = writer.spawn(move || inner.write_all());
            let failed = |error| LocalError::io("start a thread for", path, error);
            cache.writers.lock().push(writer.map_err(failed)?);
        }
        Ok(cache)
    }

    /// The value of a key, verified; `None` also if it is damaged or can't be read. May wait for
    /// the disk.
    pub(crate) fn get(&self, kind: Kind, key: &[u8]) -> Option<Bytes> {
        let parsed = parse_key(kind, key).ok()?;
        if let Some(pending) = self.inner.pending.get(&parsed) {
            return pending;
        }
        self.inner.unless_it_fails(self.inner.store.get(kind, key)).flatten()
    }

    /// The number of bytes of a key's value, if it is there as far as is known.
    pub(crate) fn value_len(&self, kind: Kind, key: &[u8]) -> Option<u64> {
        let parsed = parse_key(kind, key).ok()?;
        if let Some(pending) = self.inner.pending.get(&parsed) {
            return pending.map(|value| value.len() as u64);
        }
        self.inner.unless_it_fails(self.inner.store.value_len(kind, key)).flatten()
    }

    /// Takes note that a key is in use, as if its value had been read.
    pub(crate) fn touch(&self, kind: Kind, key: &[u8]) {
        self.inner.unless_it_fails(self.inner.store.touch(kind, key));
    }

    /// Takes records to be kept, if there is room for them to wait in. Does not wait.
    pub(crate) fn keep(&self, records: Vec<Record>) {
        let dropped = self.inner.pending.keep(records);
        self.inner.note_dropped(dropped);
    }

    /// Forgets a key. Does not wait; from here on it is not there.
    pub(crate) fn forget(&self, kind: Kind, key: &[u8]) {
        if let Ok(key) = parse_key(kind, key) {
            self.inner.pending.forget(key);
        }
    }

    /// A value is of no use, though it is what was written.
    pub(crate) fn distrust(&self, kind: Kind, key: &[u8]) {
        self.inner.unless_it_fails(self.inner.store.distrust(kind, key));
    }

    /// The next at most `limit` records of a kind that are written, as [`LocalStore::list`].
    pub(crate) fn list(
        &self,
        kind: Kind,
        after: Option<&[u8]>,
        limit: usize,
    ) -> Result<Vec<(Bytes, Bytes)>, LocalError> {
        self.inner.store.list(kind, after, limit)
    }

    /// Waits until much can be kept again.
    pub(crate) async fn room(&self) {
        self.inner.pending.room().await;
    }

    /// Waits until all that was to be kept is written, or could not be.
    pub(crate) async fn settle(&self) {
        self.inner.pending.settle().await;
    }

    /// What there is, and what it takes. Reads the index.
    pub(crate) fn usage(&self) -> Result<LocalCacheUsage, LocalError> {
        let store = &self.inner.store;
        let mut usage = LocalCacheUsage {
            bytes: store.used_bytes()?,
            evicted: store.evicted_bytes(),
            dropped: self.inner.dropped.load(Ordering::Relaxed),
            ..LocalCacheUsage::default()
        };
        for (kind, count) in &mut usage.records {
            *count = store.count(*kind)?;
        }
        Ok(usage)
    }

    /// Throws everything away.
    pub(crate) fn clear(&self) -> Result<(), LocalError> {
        self.inner.store.evict_all()
    }

    /// Gives back the room of what was forgotten, as far as that is worth its while.
    pub(crate) fn give_room_back(&self, min_live_share: f64) -> Result<(), LocalError> {
        self.inner.store.rewrite(min_live_share).map(drop)
    }

    /// The cache's folder.
    pub fn path(&self) -> &Path {
        self.inner.store.path()
    }

    /// Writes what is to be kept, and closes the store. Waits for the disk.
    pub fn close(&self) {
        self.inner.pending.close();
        for writer in self.writers.lock().drain(..) {
            // A panic there has been reported.
            let _ = writer.join();
        }
        self.inner.write_marks();
        self.inner.store.close();
    }
}

impl Drop for LocalCache {
    fn drop(&mut self) {
        self.close();
    }
}

impl Inner {
    fn note_dropped(&self, count: u64) {
        self.dropped.fetch_add(count, Ordering::Relaxed);
        CACHE_DROPPED.add(count);
    }

    /// What came of it, or nothing, with a warning if it is more than damage.
    fn unless_it_fails<T>(&self, outcome: Result<T, LocalError>) -> Option<T> {
        match outcome {
            Ok(value) => Some(value),
            Err(error @ LocalError::Damaged { .. }) => {
                tracing::warn!(%error, cache = %self.store, "it is to be fetched again");
                None
            }
            Err(error) => {
                self.read_warnings.warn(|| {
                    tracing::warn!(
                        cache = %self.store,
                        error = &error as &dyn std::error::Error,
                        "a cache can't be read: it is done without",
                    );
                });
                None
            }
        }
    }

    /// What a writer's thread does until the cache is closed.
    fn write_all(&self) {
        loop {
            match self.pending.next(MARKS_INTERVAL) {
                Work::Write(batch) => {
                    let written = self.write(&batch);
                    let pause = written.is_err().then_some(PAUSE);
                    if let Err(error) = written {
                        self.note_dropped(batch.len() as u64);
                        self.write_warnings.warn(|| {
                            tracing::warn!(
                                cache = %self.store,
                                error = &error as &dyn std::error::Error,
                                "a cache can't be written to: what comes is not kept",
                            );
                        });
                    }
                    self.pending.done(batch.into_iter().map(|(key, _)| key), pause);
                }
                Work::Nothing => self.write_marks(),
                Work::End => break,
            }
        }
    }

    fn write(&self, batch: &[(Key, Option<Value>)]) -> Result<(), LocalError> {
        let record = |(key, value): &(Key, Option<Value>)| {
            let Value { bytes: value, frame } = value.clone()?;
            let (kind, key) = (key.kind(), Bytes::copy_from_slice(key.key()));
            Some(Record { kind, key, value, frame })
        };
        self.store.keep(batch.iter().filter_map(record).collect())?;
        let forgotten = batch.iter().filter(|(_, value)| value.is_none());
        let deletions = forgotten.map(|(key, _)| Encoded::deletion(*key)).collect();
        self.store.enqueue(deletions)?.wait()
    }

    fn write_marks(&self) {
        let Some(mut marks) = self.store.read_marks() else { return };
        marks.extend_from_slice(&crc32c::crc32c(&marks).to_le_bytes());
        let path = marks_path(self.store.path());
        let new = path.with_added_extension("new");
        let written = fs::write(&new, marks).and_then(|()| fs::rename(&new, &path));
        if let Err(error) = written {
            tracing::debug!(%error, path = %path.display(), "what was read is not written down");
        }
    }
}

fn marks_path(cache: &Path) -> PathBuf {
    cache.join(MARKS)
}

fn read_marks(cache: &Path) -> io::Result<Vec<u8>> {
    let path = marks_path(cache);
    if fs::metadata(&path)?.len() > MARKS_MAX {
        return Err(io::ErrorKind::FileTooLarge.into());
    }
    let mut bytes = fs::read(&path)?;
    let marks = bytes.len().saturating_sub(4);
    if bytes[marks..] != crc32c::crc32c(&bytes[..marks]).to_le_bytes() {
        return Err(io::ErrorKind::InvalidData.into());
    }
    bytes.truncate(marks);
    Ok(bytes)
}

/// Warnings of one kind, of which there may be many.
#[derive(Debug, Default)]
struct Warnings(Mutex<Option<Instant>>);

impl Warnings {
    fn warn(&self, warn: impl FnOnce()) {
        let mut last = self.0.lock();
        if last.is_none_or(|last| last.elapsed() >= WARN_INTERVAL) {
            *last = Some(Instant::now());
            warn();
        }
    }
}

impl LocalStore {
    /// How many records of a kind there are.
    fn count(&self, kind: Kind) -> Result<u64, LocalError> {
        let (mut count, mut after) = (0, None);
        loop {
            let page = self.places.list(kind, after.as_ref(), LIST_MAX)?;
            count += page.len() as u64;
            match page.last() {
                Some((key, _)) if page.len() == LIST_MAX => after = Some(*key),
                _ => return Ok(count),
            }
        }
    }
}

#[cfg(test)]
mod tests;
