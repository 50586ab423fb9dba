//! How much a local store holds: what its files take, which is known at once, and what is in them, for
//! which the index is read.

use super::{
    LIST_MAX, LocalError, LocalStore,
    pack::{PACK_HEADER_LEN, Place, record_len},
    record::{Key, Kind},
};

/// What the files of a store take.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct StoreSize {
    /// The packs.
    pub packs: u64,
    /// Their bytes.
    pub pack_bytes: u64,
    /// The bytes of the index.
    pub index_bytes: u64,
}

/// The records of a kind that count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RecordTotals {
    /// How many there are.
    pub count: u64,
    /// The bytes of their values.
    pub bytes: u64,
    /// The bytes that they take in packs, all that belongs to them included.
    pub stored: u64,
}

/// What is in a store.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct StoreHoldings {
    /// The records of each kind.
    pub records: Vec<(Kind, RecordTotals)>,
}

impl StoreHoldings {
    /// The records of one kind.
    pub fn of(&self, kind: Kind) -> RecordTotals {
        let found = self.records.iter().find(|(known, _)| *known == kind);
        found.map(|(_, totals)| *totals).unwrap_or_default()
    }

    /// The bytes in packs that count. What another process says may be any number.
    pub fn live_bytes(&self) -> u64 {
        self.records.iter().fold(0, |sum, (_, totals)| sum.saturating_add(totals.stored))
    }
}

impl StoreSize {
    /// The bytes in packs that would come back if all packs were rewritten.
    pub fn dead_bytes(&self, holdings: &StoreHoldings) -> u64 {
        let headers = self.packs.saturating_mul(PACK_HEADER_LEN);
        self.pack_bytes.saturating_sub(headers).saturating_sub(holdings.live_bytes())
    }
}

impl LocalStore {
    /// What the store's files take. Costs nothing.
    pub fn size(&self) -> Result<StoreSize, LocalError> {
        let lengths = self.packs.lengths();
        Ok(StoreSize {
            packs: lengths.len() as u64,
            pack_bytes: lengths.values().sum(),
            index_bytes: self.places.index_bytes()?,
        })
    }

    /// What is in the store. Reads all of the index, which takes half a second for a million records;
    /// what changes meanwhile may be counted or not.
    pub fn holdings(&self) -> Result<StoreHoldings, LocalError> {
        let mut holdings = StoreHoldings::default();
        for kind in Kind::ALL {
            let mut totals = RecordTotals::default();
            self.each_place(kind, |key, place| {
                totals.count += 1;
                totals.bytes += u64::from(place.raw);
                totals.stored += record_len(key, place) as u64;
            })?;
            holdings.records.push((kind, totals));
        }
        Ok(holdings)
    }

    /// The bytes that a key's value takes in its pack, if [`contains`](Self::contains) says that it is
    /// there. No pack is read.
    pub fn stored_len(&self, kind: Kind, key: &[u8]) -> Result<Option<u64>, LocalError> {
        let key = super::parse_key(kind, key)?;
        let place = self.places.held(&self.packs, &key)?;
        Ok(place.map(|place| record_len(&key, &place) as u64))
    }

    /// Does something for each record of a kind, in the order of the keys.
    pub(super) fn each_place(
        &self,
        kind: Kind,
        mut work: impl FnMut(&Key, &Place),
    ) -> Result<(), LocalError> {
        let mut after = None;
        loop {
            let page = self.places.list(kind, after.as_ref(), LIST_MAX)?;
            for (key, place) in &page {
                work(key, place);
            }
            match page.last() {
                Some((key, _)) if page.len() == LIST_MAX => after = Some(*key),
                _ => return Ok(()),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::{Digest, local::Record};

    fn chunk(text: &str) -> Record {
        let value = Bytes::from(text.repeat(1000));
        Record::new(Kind::Chunk, Digest::of(&value).into(), value)
    }

    #[test]
    fn numbers_of_others_may_be_any() {
        let totals = RecordTotals { count: u64::MAX, bytes: u64::MAX, stored: u64::MAX };
        let holdings =
            StoreHoldings { records: Kind::ALL.into_iter().map(|kind| (kind, totals)).collect() };
        let size = StoreSize { packs: u64::MAX, pack_bytes: 1, index_bytes: 0 };
        assert_eq!((holdings.live_bytes(), size.dead_bytes(&holdings)), (u64::MAX, 0));
    }

    #[test]
    fn what_counts_and_what_does_not_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let store = LocalStore::open(folder.path()).unwrap();
        let (kept, deleted) = (chunk("kept"), chunk("deleted"));
        let deleted_key = deleted.key.clone();
        let kept_key = kept.key.clone();
        store.put(vec![kept, deleted]).unwrap();
        let (size, holdings) = (store.size().unwrap(), store.holdings().unwrap());
        let chunks = holdings.of(Kind::Chunk);
        assert_eq!((chunks.count, chunks.bytes), (2, 11_000));
        assert!(chunks.stored < 1000, "they compress");
        assert_eq!(size.pack_bytes, size.packs * PACK_HEADER_LEN + holdings.live_bytes());
        assert_eq!(size.dead_bytes(&holdings), 0);
        let kept = store.stored_len(Kind::Chunk, &kept_key).unwrap().unwrap();
        let gone = store.stored_len(Kind::Chunk, &deleted_key).unwrap().unwrap();
        assert_eq!(kept + gone, chunks.stored);

        assert!(store.delete(Kind::Chunk, &deleted_key).unwrap());
        let (size, holdings) = (store.size().unwrap(), store.holdings().unwrap());
        assert_eq!(holdings.of(Kind::Chunk).count, 1);
        assert_eq!(holdings.live_bytes(), kept);
        assert!(size.dead_bytes(&holdings) > gone, "the deletion is a record, too");
        assert_eq!(store.stored_len(Kind::Chunk, &deleted_key).unwrap(), None);
    }
}
