//! What is kept near of what is far: the near side of a cache, which all of its services share, and
//! what they know of it. What a service makes of it is in a module of the service's own.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use bytes::Bytes;
use cairn_telemetry::inventory::{self, CacheLayer};
use quick_cache::{
    DefaultHashBuilder, OptionsBuilder, Weighter,
    sync::{Cache, DefaultLifecycle},
};

use crate::{
    BoxError,
    local::{
        Kind, LIST_MAX, LocalError, Record,
        cache::{LocalCache, LocalCacheUsage},
    },
};

pub(crate) mod flights;
#[cfg(test)]
pub(crate) mod test_far;
pub mod warm;

/// About what a record in memory takes beside its bytes.
const RECORD_BYTES: u64 = 128;

/// What a record in memory is expected to take.
const MEMORY_RECORD: u64 = 16 * 1024;

/// The share of the memory for records that are used again: what is fetched ahead of need has to stay
/// until then, and much is used once.
const REUSED_SHARE: f64 = 0.25;

/// The near side of a cache: records that can be had again, within a budget of bytes. Whatever
/// fails here is no more than a record that is not there. Clones share it.
#[derive(Clone)]
pub struct Near(Arc<Inner>);

struct Inner {
    kept: Kept,
    hits: AtomicU64,
    misses: AtomicU64,
    fetched: AtomicU64,
}

enum Kept {
    Memory(Cache<(Kind, Bytes), Bytes, RecordWeight>),
    Local(LocalCache),
}

#[derive(Clone)]
struct RecordWeight;

impl Weighter<(Kind, Bytes), Bytes> for RecordWeight {
    fn weight(&self, _: &(Kind, Bytes), value: &Bytes) -> u64 {
        value.len() as u64 + RECORD_BYTES
    }
}

/// What a cache has done since it was opened, and what is in it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CacheStats {
    /// How often something was found in it.
    pub hits: u64,
    /// How often something had to be fetched.
    pub misses: u64,
    /// The bytes of contents that were fetched for it.
    pub fetched: u64,
    /// What it holds.
    pub usage: LocalCacheUsage,
}

/// Why the far side was asked, which could not be reached.
#[derive(Debug, thiserror::Error)]
#[error("{what} is not in {near}")]
pub struct NotNear {
    /// What was asked for.
    pub what: String,
    /// The near side, as it displays.
    pub near: String,
    /// What came of asking the far side.
    #[source]
    pub source: BoxError,
}

impl Near {
    /// A near side in the memory of this process, for at most so many bytes.
    pub fn memory(budget: u64) -> Self {
        let options = OptionsBuilder::new()
            .weight_capacity(budget)
            .estimated_items_capacity((budget / MEMORY_RECORD).max(1) as usize)
            .hot_allocation(REUSED_SHARE)
            .build()
            .expect("all that is needed is given");
        let (hasher, lifecycle) = (DefaultHashBuilder::default(), DefaultLifecycle::default());
        Self::new(Kept::Memory(Cache::with_options(options, RecordWeight, hasher, lifecycle)))
    }

    /// A near side on the disk of this machine.
    pub fn local(cache: LocalCache) -> Self {
        Self::new(Kept::Local(cache))
    }

    fn new(kept: Kept) -> Self {
        let (hits, misses, fetched) = (AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0));
        Self(Arc::new(Inner { kept, hits, misses, fetched }))
    }

    /// The value of a key. May wait for the disk.
    pub fn get(&self, kind: Kind, key: &[u8]) -> Option<Bytes> {
        match &self.0.kept {
            Kept::Memory(records) => records.get(&(kind, Bytes::copy_from_slice(key))),
            Kept::Local(cache) => cache.get(kind, key),
        }
    }

    /// The number of bytes of a key's value, if it is there as far as is known. May wait for the
    /// disk, though not for the value.
    pub fn value_len(&self, kind: Kind, key: &[u8]) -> Option<u64> {
        match &self.0.kept {
            Kept::Memory(records) => {
                let value = records.peek(&(kind, Bytes::copy_from_slice(key)));
                value.map(|value| value.len() as u64)
            }
            Kept::Local(cache) => cache.value_len(kind, key),
        }
    }

    /// Takes note that a key is in use, as if its value had been read.
    pub(crate) fn touch(&self, kind: Kind, key: &[u8]) {
        if let Kept::Local(cache) = &self.0.kept {
            cache.touch(kind, key);
        }
    }

    /// Keeps records, which have been verified, if there is room for them. Does not wait.
    pub fn keep(&self, records: Vec<Record>) {
        match &self.0.kept {
            Kept::Memory(kept) => {
                for Record { kind, key, value, .. } in records {
                    // A copy, since the bytes may be a part of a larger message.
                    kept.insert((kind, key), Bytes::copy_from_slice(&value));
                }
                let layer = CacheLayer::Memory as usize;
                inventory::CACHE_BYTES.set_at(layer, kept.weight() as f64);
                inventory::CACHE_BUDGET.set_at(layer, kept.capacity() as f64);
            }
            Kept::Local(cache) => cache.keep(records),
        }
    }

    /// Forgets a key. Does not wait; from here on it is not there.
    pub fn forget(&self, kind: Kind, key: &[u8]) {
        match &self.0.kept {
            Kept::Memory(records) => {
                records.remove(&(kind, Bytes::copy_from_slice(key)));
            }
            Kept::Local(cache) => cache.forget(kind, key),
        }
    }

    /// A value is of no use, though it is what was kept: it is to be kept anew when it comes again.
    pub(crate) fn distrust(&self, kind: Kind, key: &[u8]) {
        match &self.0.kept {
            Kept::Memory(_) => self.forget(kind, key),
            Kept::Local(cache) => cache.distrust(kind, key),
        }
    }

    /// The next at most `limit` (at most [`LIST_MAX`]) records of a kind behind `after`, in the
    /// order of their keys. Fewer come only from the end. May wait for the disk.
    pub fn list(
        &self,
        kind: Kind,
        after: Option<&[u8]>,
        limit: usize,
    ) -> Result<Vec<(Bytes, Bytes)>, LocalError> {
        match &self.0.kept {
            Kept::Memory(records) => {
                let is_listed = |key: &Bytes| after.is_none_or(|after| &**key > after);
                let mut listed: Vec<_> = records
                    .iter()
                    .filter(|((kept, key), _)| *kept == kind && is_listed(key))
                    .map(|((_, key), value)| (key, value))
                    .collect();
                listed.sort();
                listed.truncate(limit.min(LIST_MAX));
                Ok(listed)
            }
            Kept::Local(cache) => cache.list(kind, after, limit),
        }
    }

    /// Waits until much can be kept again: for those who can bring more than is kept in the time.
    pub async fn room(&self) {
        if let Kept::Local(cache) = &self.0.kept {
            cache.room().await;
        }
    }

    /// Waits until all that was to be kept is written, or could not be.
    pub async fn settle(&self) {
        if let Kept::Local(cache) = &self.0.kept {
            cache.settle().await;
        }
    }

    /// What it holds, and what came of it. May wait for the disk.
    pub fn stats(&self) -> Result<CacheStats, LocalError> {
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let usage = match &self.0.kept {
            Kept::Memory(records) => memory_usage(records),
            Kept::Local(cache) => cache.usage()?,
        };
        let Inner { hits, misses, fetched, .. } = &*self.0;
        let (hits, misses, fetched) = (count(hits), count(misses), count(fetched));
        Ok(CacheStats { hits, misses, fetched, usage })
    }

    /// Throws everything away. May take long, and waits for the disk.
    pub fn clear(&self) -> Result<(), LocalError> {
        match &self.0.kept {
            Kept::Memory(records) => records.clear(),
            Kept::Local(cache) => cache.clear()?,
        }
        Ok(())
    }

    /// Gives back the room of what was forgotten, where less than such a share of a pack is left.
    /// May take long, and waits for the disk.
    pub fn give_room_back(&self, min_live_share: f64) -> Result<(), LocalError> {
        match &self.0.kept {
            Kept::Memory(_) => Ok(()),
            Kept::Local(cache) => cache.give_room_back(min_live_share),
        }
    }

    /// Writes what is to be kept and lets go of the disk: for one who ends while others still hold
    /// this. Waits for the disk.
    pub fn close(&self) {
        if let Kept::Local(cache) = &self.0.kept {
            cache.close();
        }
    }

    /// Which of the layers that are counted this is.
    fn layer(&self) -> usize {
        match self.0.kept {
            Kept::Memory(_) => CacheLayer::Memory as usize,
            Kept::Local(_) => CacheLayer::Node as usize,
        }
    }

    /// So many things were found.
    pub(crate) fn hit(&self, count: usize) {
        self.0.hits.fetch_add(count as u64, Ordering::Relaxed);
        inventory::CACHE_HITS.add_at(self.layer(), count as u64);
    }

    /// So many things have to be fetched.
    pub(crate) fn miss(&self, count: usize) {
        self.0.misses.fetch_add(count as u64, Ordering::Relaxed);
        inventory::CACHE_MISSES.add_at(self.layer(), count as u64);
    }

    /// So many bytes have come.
    pub(crate) fn fetched(&self, bytes: usize) {
        self.0.fetched.fetch_add(bytes as u64, Ordering::Relaxed);
        inventory::CACHE_FETCHED.add_at(self.layer(), bytes as u64);
    }
}

fn memory_usage(records: &Cache<(Kind, Bytes), Bytes, RecordWeight>) -> LocalCacheUsage {
    let mut counts = LocalCacheUsage { bytes: records.weight(), ..LocalCacheUsage::default() };
    for ((kind, _), _) in records.iter() {
        let counted = counts.records.iter_mut().find(|(counted, _)| *counted == kind);
        counted.expect("all kinds are counted").1 += 1;
    }
    counts
}

impl fmt::Display for Near {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0.kept {
            Kept::Memory(_) => f.write_str("memory:"),
            Kept::Local(cache) => write!(f, "sled:{}", cache.path().display()),
        }
    }
}

impl fmt::Debug for Near {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Near({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Digest;

    #[test]
    fn what_comes_ahead_of_need_stays_in_memory_beside_what_is_used_again() {
        const BUDGET: u64 = 24 << 20;
        let near = Near::memory(BUDGET);
        let record = |number: u32| {
            let key = Digest::of(&number.to_le_bytes()).into();
            Record::new(Kind::Directory, key, vec![0; 1000].into())
        };
        let is_there = |number: &u32| {
            let Record { kind, key, .. } = record(*number);
            near.get(kind, &key).is_some()
        };
        // Much more than there is room for, all of it used.
        for number in 0..60_000 {
            near.keep(vec![record(number)]);
            assert!(is_there(&number));
            is_there(&number);
        }
        let ahead = 100_000..110_000;
        ahead.clone().for_each(|number| near.keep(vec![record(number)]));
        let there = ahead.clone().filter(is_there).count();
        assert!(there > ahead.len() * 9 / 10, "{there} of {}", ahead.len());
        assert!(near.stats().unwrap().usage.bytes <= BUDGET);
    }
}
