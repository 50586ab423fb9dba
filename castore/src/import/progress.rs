//! How far an import is, as counters that anyone may read while it runs. How they are shown is
//! not known here.

use std::sync::atomic::{AtomicU64, Ordering};

/// How far an import is. The counters only ever grow; the total is not known beforehand.
#[derive(Debug, Default)]
pub struct ImportProgress {
    pub(super) entries: Counter,
    pub(super) bytes_read: Counter,
    pub(super) blobs_new: Counter,
    pub(super) bytes_new: Counter,
    pub(super) blobs_known: Counter,
    entries_unchanged: Counter,
}

impl ImportProgress {
    /// Files, directories and symlinks that are done, the root included.
    pub fn entries(&self) -> u64 {
        self.entries.get()
    }

    /// Bytes read from files.
    pub fn bytes_read(&self) -> u64 {
        self.bytes_read.get()
    }

    /// Blobs that were given to the store and acknowledged.
    pub fn blobs_new(&self) -> u64 {
        self.blobs_new.get()
    }

    /// The bytes of those blobs.
    pub fn bytes_new(&self) -> u64 {
        self.bytes_new.get()
    }

    /// Blobs that were not given to the store, since it had them, or since the same import had
    /// given them to it before. The empty blob is not counted.
    pub fn blobs_known(&self) -> u64 {
        self.blobs_known.get()
    }

    /// Entries of trees that were known to be unchanged since an earlier import, and not read.
    /// They are among [`entries`](Self::entries).
    pub fn entries_unchanged(&self) -> u64 {
        self.entries_unchanged.get()
    }

    /// Counts the entries of a tree that is known and stored, and need not be imported.
    pub fn add_unchanged(&self, entries: u64) {
        self.entries.add(entries);
        self.entries_unchanged.add(entries);
    }
}

/// A number that grows.
#[derive(Debug, Default)]
pub(super) struct Counter(AtomicU64);

impl Counter {
    pub(super) fn add(&self, count: u64) {
        self.0.fetch_add(count, Ordering::Relaxed);
    }

    fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}
