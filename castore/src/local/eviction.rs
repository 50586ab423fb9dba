//! Keeping a cache within its budget: room is made by whole packs, the oldest first. What was read
//! in such a pack since it was written is carried forward behind all other records; the rest is
//! forgotten. A pack of which most was read stays where it is for another round.
//!
//! So nothing is kept of a record but one bit, the disk sees only sequential writes, and what comes
//! once and is never read again goes first. At most two thirds of a pack are copied: where all is in
//! use, packs get their second round, and then the oldest goes.

use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicU64, Ordering},
};

use cairn_telemetry::inventory::{self, CacheLayer};
use parking_lot::Mutex;

use super::{
    Kind, LocalError, LocalStore, Record,
    pack::PACK_HEADER_LEN,
    parse_key,
    purpose::Purpose,
    read_marks::ReadMarks,
    record::Encoded,
    rewrite::{Batch, Worth},
};

/// A pack of which more than this share was read stays. The rest of it may be of no use to anybody,
/// and what is less is copied: a larger share spares room, a smaller one writes.
const STAYING_SHARE: (u64, u64) = (2, 3);

/// One part in so many of the packs, the youngest ones, never goes: what has just come is not less
/// worth than what was read long ago.
const YOUNG_SHARE: usize = 4;

/// The keys that are forgotten at a time.
const FORGOTTEN: usize = 4096;

/// What a cache knows for it.
pub(super) struct Eviction {
    budget: u64,
    /// The bytes that are kept free for those who write at the same time.
    spare: u64,
    pub(super) marks: ReadMarks,
    /// The packs that stayed when it was their turn, with the last pack at that time: they come
    /// behind that one.
    stayed: Mutex<BTreeMap<u32, u32>>,
    evicted: AtomicU64,
}

impl Eviction {
    /// `None` for a store, where nothing is thrown away.
    pub(super) fn of(purpose: Purpose) -> Option<Self> {
        let Purpose::Cache { budget } = purpose else { return None };
        let spare = purpose.pack_limit();
        let marks = ReadMarks::new(spare);
        let (stayed, evicted) = (Mutex::default(), AtomicU64::new(0));
        Some(Self { budget, spare, marks, stayed, evicted })
    }

    /// The pack that goes next, of those with these lengths: the oldest of which not most was read.
    /// `last` is the one that is written to.
    fn next(&self, lengths: &BTreeMap<u32, u64>, last: u32) -> Option<u32> {
        let mut stayed = self.stayed.lock();
        stayed.retain(|pack, _| lengths.contains_key(pack));
        let mut packs: Vec<u32> = lengths.keys().copied().collect();
        packs.sort_by_key(|pack| (stayed.get(pack).copied().unwrap_or(*pack), *pack));
        packs.truncate(packs.len() - packs.len() / YOUNG_SHARE);
        let (part, of) = STAYING_SHARE;
        for pack in &packs {
            if self.marks.bytes(*pack) * of <= lengths[pack] * part {
                return Some(*pack);
            }
            self.marks.forget(*pack);
            stayed.insert(*pack, last);
        }
        // All of them have stayed, and have no marks any more: the oldest of them goes.
        packs.first().copied()
    }
}

/// What becomes of records that were read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Carry {
    Read,
    Nothing,
}

impl LocalStore {
    /// Keeps records in a cache: makes room for them, and waits until they are written. Of a disk
    /// without room, as much is used as there is.
    pub(super) fn keep(&self, records: Vec<Record>) -> Result<(), LocalError> {
        let bytes = records.iter().map(|record| record.value.len() as u64).sum();
        let written = self.make_room(bytes).and_then(|()| self.submit(records.clone())?.wait());
        match written {
            Err(LocalError::NoSpace { .. }) => {
                let _alone = self.rewriting.lock();
                self.evict_one(Carry::Nothing)?;
                self.submit(records)?.wait()
            }
            written => written,
        }
    }

    /// Takes note that a key is in use, as if its value had been read.
    pub(super) fn touch(&self, kind: Kind, key: &[u8]) -> Result<(), LocalError> {
        let key = parse_key(kind, key)?;
        if let (Some(eviction), Some(place)) = (&self.eviction, self.places.get(&key)?) {
            eviction.marks.note(&key, &place);
        }
        Ok(())
    }

    /// The bytes that the packs and the index take.
    pub(super) fn used_bytes(&self) -> Result<u64, LocalError> {
        let packs: u64 = self.packs.lengths().values().sum();
        Ok(packs + self.places.index_bytes()?)
    }

    /// The bytes of the packs that were removed to make room since the cache was opened.
    pub(super) fn evicted_bytes(&self) -> u64 {
        self.eviction.as_ref().map_or(0, |eviction| eviction.evicted.load(Ordering::Relaxed))
    }

    /// Removes packs until so many more bytes are within the budget.
    fn make_room(&self, bytes: u64) -> Result<(), LocalError> {
        let Some(eviction) = &self.eviction else { return Ok(()) };
        let most = eviction.budget.saturating_sub(eviction.spare);
        let used = self.used_bytes()?;
        inventory::CACHE_BUDGET.set_at(CacheLayer::Node as usize, eviction.budget as f64);
        inventory::CACHE_BYTES.set_at(CacheLayer::Node as usize, used as f64);
        if used.saturating_add(bytes) <= most {
            return Ok(());
        }
        let _alone = self.rewriting.lock();
        while self.used_bytes()?.saturating_add(bytes) > most {
            if !self.evict_one(Carry::Read)? {
                break;
            }
        }
        Ok(())
    }

    /// Removes all packs of a cache.
    pub(super) fn evict_all(&self) -> Result<(), LocalError> {
        let _alone = self.rewriting.lock();
        while self.evict_one(Carry::Nothing)? {}
        Ok(())
    }

    /// Removes a pack; `false` if there is nothing in any.
    fn evict_one(&self, carry: Carry) -> Result<bool, LocalError> {
        let Some(eviction) = &self.eviction else { return Ok(false) };
        let mut lengths = self.packs.lengths();
        let Some(last) = lengths.pop_last() else { return Ok(false) };
        // Records are added to the last one.
        if lengths.is_empty() {
            let (id, length) = last;
            if length <= PACK_HEADER_LEN {
                return Ok(false);
            }
            self.push(Vec::new(), Some(id), Vec::new())?.wait()?;
            lengths.extend([last]);
        }
        let next = match carry {
            Carry::Read => eviction.next(&lengths, last.0),
            Carry::Nothing => lengths.first_key_value().map(|(id, _)| *id),
        };
        let Some(id) = next else { return Ok(false) };
        let is_oldest = lengths.first_key_value().is_some_and(|(first, _)| *first == id);

        let file = self.packs.open(id)?;
        let (mut batch, mut carried) = (Batch::new(self), 0);
        let mut forgotten = Vec::new();
        let length = self.visit(&file, id, |header, worth| {
            let copy = match worth {
                Worth::Nothing => return Ok(()),
                Worth::Hides => Some(Encoded::kept_deletion(header.key)),
                Worth::Counts(place) => {
                    let was_read = carry == Carry::Read && eviction.marks.has(&place);
                    // An earlier pack may have an earlier value, which would come back.
                    let hides = header.key.kind().is_replaced() && !is_oldest;
                    let is_carried = (was_read || hides) && !place.suspect;
                    let copy = is_carried.then(|| self.copy_of(header, place)).transpose()?;
                    if copy.as_ref().is_none_or(Option::is_none) {
                        forgotten.push((header.key, place));
                    }
                    copy.flatten()
                }
            };
            let Some(copy) = copy else { return Ok(()) };
            carried += copy.len() as u64;
            batch.add(copy)
        })?;
        batch.store()?;
        for some in forgotten.chunks(FORGOTTEN) {
            self.push(Vec::new(), None, some.to_vec())?.wait()?;
        }
        // On a disk without room for the index there is nothing to wait for: it gets room by this.
        // What it says of the pack until then is known to be wrong, since the pack is gone.
        if self.places.has_room() {
            self.places.settle()?;
        }
        drop(file);
        self.packs.remove(id)?;
        eviction.marks.forget(id);
        let evicted = length.saturating_sub(carried);
        eviction.evicted.fetch_add(evicted, Ordering::Relaxed);
        inventory::CACHE_EVICTED.add(evicted);
        tracing::debug!(cache = %self, pack = id, length, carried, "made room");
        Ok(true)
    }

    /// The marks of what was read, to be kept, if there are new ones.
    pub(super) fn read_marks(&self) -> Option<Vec<u8>> {
        self.eviction.as_ref()?.marks.encode_changed()
    }

    /// Takes marks that were kept.
    pub(super) fn set_read_marks(&self, bytes: &[u8]) {
        if let Some(eviction) = &self.eviction {
            let lengths = self.packs.lengths();
            eviction.marks.decode(bytes, |pack| lengths.contains_key(&pack));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::local::{cache::CACHE_MIN, pack::Place, record::Key};

    #[test]
    fn packs_go_in_their_order_and_those_in_use_stay_for_another_round() {
        let eviction = Eviction::of(Purpose::Cache { budget: CACHE_MIN }).unwrap();
        let read = |pack: u32, share: u32| {
            let key = Key::new(Kind::Chunk, &[1; 32]).unwrap();
            let place =
                Place { pack, offset: 24, stored: share - 56, raw: 1 << 20, suspect: false };
            eviction.marks.note(&key, &place);
        };
        let mut lengths: BTreeMap<u32, u64> = (1..=4).map(|pack| (pack, 1000)).collect();
        let gone = |lengths: &mut BTreeMap<u32, u64>, last: u32| {
            let next = eviction.next(lengths, last).unwrap();
            lengths.remove(&next);
            next
        };
        read(1, 900);
        read(3, 600);
        assert_eq!(gone(&mut lengths, 5), 2, "most of the first one was read");
        lengths.insert(5, 1000);
        lengths.insert(6, 1000);
        assert_eq!(gone(&mut lengths, 7), 3, "of this one not so much");
        assert_eq!(gone(&mut lengths, 7), 4);
        read(1, 900);
        // It comes behind all that were there when it stayed, and before what came later.
        assert_eq!(gone(&mut lengths, 7), 5, "it was read again");
        assert_eq!(gone(&mut lengths, 8), 6);
        assert_eq!(gone(&mut lengths, 8), 1);
        assert_eq!(eviction.next(&lengths, 8), None);

        let mut lengths: BTreeMap<u32, u64> = (10..=12).map(|pack| (pack, 1000)).collect();
        (10..=12).for_each(|pack| read(pack, 1000));
        assert_eq!(gone(&mut lengths, 13), 10, "where all are in use, the oldest goes");
        read(12, 1000);
        assert_eq!(gone(&mut lengths, 13), 11);
    }
}
