//! Rewriting of packs: what still counts in a pack that has little of it is copied behind all other
//! records, and the pack is removed. Which records count is what the index says; nothing decides
//! here what may be deleted.
//!
//! The last record of a key decides, in the order of the packs' numbers, and a rebuilt index sees no
//! more than that. So a record is moved only while it is its key's last, and a deletion is kept as
//! long as an earlier pack may have what it deletes.

use std::{collections::BTreeMap, fs::File};

use super::{
    LocalError, LocalStore, damaged,
    pack::{PACK_HEADER_LEN, Place, ReadError, record_len},
    record::{Codec, Encoded, Header, Kind},
    scan::{Payloads, ScanError, scan},
};

#[cfg(test)]
mod tests;

/// The bytes of records that are copied at a time, at most one record more.
const MOVE_BYTES: usize = 8 * 1024 * 1024;

/// What a [`LocalStore::rewrite`] has done.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Rewritten {
    /// The packs that were removed.
    pub packs: u64,
    /// Their bytes.
    pub removed_bytes: u64,
    /// The bytes of the records that were copied from them. The difference is the room that came
    /// back.
    pub moved_bytes: u64,
    /// The records that were found damaged in them, and that are absent now.
    pub damaged: u64,
}

/// What a record in a pack is worth.
pub(super) enum Worth {
    /// It is its key's last.
    Counts(Place),
    /// Nothing, but without it an earlier record of its key would come back.
    Hides,
    Nothing,
}

impl LocalStore {
    /// Rewrites the packs of whose bytes less than this share, of 1, counts: those not of records
    /// that were replaced, deleted, or stored again elsewhere.
    ///
    /// What is there before is there after it, and at any moment between, for readers too. A damaged
    /// record in such a pack, which had counted as absent, is absent for good. Needs room for what
    /// is copied; if there is none, or if the system fails, the pack at hand stays, and what was
    /// done before it is done. May take long, and waits for the disk. One rewrite runs at a time,
    /// others wait for it.
    pub fn rewrite(&self, min_live_share: f64) -> Result<Rewritten, LocalError> {
        let _alone = self.rewriting.lock();
        let mut rewritten = Rewritten::default();
        // The packs that are gone must be gone for good: what hides their records goes next.
        self.packs.sync_folder()?;
        let lengths = self.packs.lengths();
        let last = lengths.keys().last().copied();
        for (id, live) in self.live_bytes()? {
            let length = lengths.get(&id).copied().unwrap_or(0);
            let is_unused = Some(id) == last && length <= PACK_HEADER_LEN;
            if !is_unused && share(live, length) < min_live_share {
                self.rewrite_pack(id, min_live_share, &mut rewritten)?;
            }
        }
        Ok(rewritten)
    }

    /// The bytes of the records that count, for each pack.
    fn live_bytes(&self) -> Result<BTreeMap<u32, u64>, LocalError> {
        let mut live: BTreeMap<u32, u64> =
            self.packs.lengths().into_keys().map(|id| (id, 0)).collect();
        for kind in Kind::ALL {
            self.each_place(kind, |key, place| {
                if let Some(bytes) = live.get_mut(&place.pack) {
                    *bytes += record_len(key, place) as u64;
                }
            })?;
        }
        Ok(live)
    }

    fn rewrite_pack(
        &self,
        id: u32,
        min_live_share: f64,
        rewritten: &mut Rewritten,
    ) -> Result<(), LocalError> {
        let file = self.packs.open(id)?;
        // The index knows nothing of deletions, and a pack of deletions that must be kept would be
        // rewritten for ever.
        let mut needed = 0;
        let length = self.visit(&file, id, |header, worth| {
            if !matches!(worth, Worth::Nothing) {
                needed += header.record_len();
            }
            Ok(())
        })?;
        if share(needed, length) >= min_live_share {
            return Ok(());
        }
        self.push(Vec::new(), Some(id), Vec::new())?.wait()?;
        self.stop_here(Step::Sealed)?;

        let mut batch = Batch::new(self);
        let mut lost = 0;
        let length = self.visit(&file, id, |header, worth| {
            let record = match worth {
                Worth::Nothing => return Ok(()),
                Worth::Hides => Encoded::kept_deletion(header.key),
                Worth::Counts(place) => match self.copy_of(header, place)? {
                    Some(copy) => copy,
                    None => {
                        lost += 1;
                        Encoded::loss(header.key, place)
                    }
                },
            };
            rewritten.moved_bytes += record.len() as u64;
            batch.add(record)
        })?;
        batch.store()?;
        self.stop_here(Step::Moved)?;
        // An index that lags behind, after the end of this process, would look for records in the
        // pack, and for deletions.
        self.places.settle()?;
        self.stop_here(Step::Settled)?;

        let mut left = 0;
        self.visit(&file, id, |_, worth| {
            left += u64::from(matches!(worth, Worth::Counts(_)));
            Ok(())
        })?;
        if left > 0 {
            tracing::warn!(store = %self, pack = id, left, "a pack could not be emptied and stays");
            return Ok(());
        }
        drop(file);
        self.packs.remove(id)?;
        rewritten.packs += 1;
        rewritten.removed_bytes += length;
        rewritten.damaged += lost;
        self.stop_here(Step::Removed)
    }

    /// Hands on the records of a pack with what they are worth. The pack's length.
    pub(super) fn visit(
        &self,
        file: &File,
        id: u32,
        mut visit: impl FnMut(&Header, Worth) -> Result<(), LocalError>,
    ) -> Result<u64, LocalError> {
        let lengths = self.packs.lengths();
        let length = lengths.get(&id).copied().unwrap_or(0);
        let is_first = lengths.range(..id).next().is_none();
        let scanned = scan(file, id, PACK_HEADER_LEN, length, Payloads::Skipped, |found| {
            let now = self.places.get(&found.header.key)?;
            let worth = match (found.header.codec, now) {
                (Codec::Deletion, None) if !is_first => Worth::Hides,
                (Codec::Raw | Codec::Zstd, Some(now)) if now.is_at(&found.place) => {
                    Worth::Counts(now)
                }
                _ => Worth::Nothing,
            };
            Ok(visit(&found.header, worth)?)
        });
        scanned.map_err(|error: ScanError| error.of_pack(self.packs.folder(), id))?;
        Ok(length)
    }

    /// A copy of a record. `None` if it is damaged.
    pub(super) fn copy_of(
        &self,
        header: &Header,
        place: Place,
    ) -> Result<Option<Encoded>, LocalError> {
        let read = self.packs.read_record(&header.key, &place).and_then(|(_, record)| {
            let payload = header.payload(&record);
            payload.map_err(|flaw| ReadError::Damaged(flaw.to_owned()))
        });
        match read {
            Ok(payload) => Ok(Some(Encoded::moved(header, payload, place))),
            Err(ReadError::Io(error)) => Err(error),
            Err(ReadError::Damaged(reason)) => {
                tracing::error!(
                    store = %self,
                    error = &damaged(&header.key, &place, reason) as &dyn std::error::Error,
                    "a damaged record is left behind with its pack",
                );
                Ok(None)
            }
        }
    }

    /// Where a test lets the process end.
    #[cfg(test)]
    fn stop_here(&self, step: Step) -> Result<(), LocalError> {
        match *self.faults.rewrite.lock() == Some(step) {
            true => Err(LocalError::Closed(self.path.clone())),
            false => Ok(()),
        }
    }

    #[cfg(not(test))]
    #[expect(clippy::unused_self, clippy::unnecessary_wraps, reason = "tests have another one")]
    fn stop_here(&self, _: Step) -> Result<(), LocalError> {
        Ok(())
    }
}

/// What has been done of the rewriting of a pack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    Sealed,
    Moved,
    Settled,
    Removed,
}

fn share(live: u64, length: u64) -> f64 {
    match length.saturating_sub(PACK_HEADER_LEN) {
        0 => 0.0,
        records => live as f64 / records as f64,
    }
}

/// Records on their way into another pack.
pub(super) struct Batch<'a> {
    store: &'a LocalStore,
    records: Vec<Encoded>,
    bytes: usize,
}

impl<'a> Batch<'a> {
    pub(super) fn new(store: &'a LocalStore) -> Self {
        Self { store, records: Vec::new(), bytes: 0 }
    }

    pub(super) fn add(&mut self, record: Encoded) -> Result<(), LocalError> {
        self.bytes += record.len();
        self.records.push(record);
        if self.bytes >= MOVE_BYTES { self.store() } else { Ok(()) }
    }

    /// Stores what is left.
    pub(super) fn store(&mut self) -> Result<(), LocalError> {
        self.bytes = 0;
        self.store.enqueue(std::mem::take(&mut self.records))?.wait()
    }
}
