//! Which records of a cache were read since they were written: a bit for each stretch of a pack, in
//! memory, and in a file to outlive the process. What is made of it is in `eviction`.

use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
};

use parking_lot::RwLock;

use super::{
    pack::{Place, record_len},
    record::Key,
};

/// The bytes of a pack that share a bit: records that start within them count as read together.
/// The records of a tree of source files have twice as many on average, and all bits of a cache
/// take a sixteen-thousandth of its bytes.
const STRETCH: u64 = 2048;

/// The bits in a word.
const WORD: u64 = 64;

/// The bits of all packs.
#[derive(Debug)]
pub(super) struct ReadMarks {
    /// The words of a pack. Records behind the last bit share those of the first ones.
    words: usize,
    packs: RwLock<BTreeMap<u32, Marks>>,
    /// Whether there are bits that were not there when they were encoded last.
    changed: AtomicBool,
}

/// The bits of a pack.
#[derive(Debug)]
struct Marks {
    words: Box<[AtomicU64]>,
    /// The bytes of the records that set them.
    bytes: AtomicU64,
}

impl ReadMarks {
    /// No marks, for packs of about so many bytes.
    pub(super) fn new(pack_bytes: u64) -> Self {
        let words = pack_bytes.div_ceil(STRETCH * WORD).max(1) as usize;
        Self { words, packs: RwLock::default(), changed: AtomicBool::new(false) }
    }

    /// The word and the bit of a place.
    fn bit(&self, offset: u64) -> (usize, u64) {
        let bit = (offset / STRETCH) % (self.words as u64 * WORD);
        ((bit / WORD) as usize, 1 << (bit % WORD))
    }

    /// The record of a key at a place was read.
    pub(super) fn note(&self, key: &Key, place: &Place) {
        let packs = self.packs.read();
        if let Some(marks) = packs.get(&place.pack) {
            return self.note_in(marks, key, place);
        }
        drop(packs);
        let words = || (0..self.words).map(|_| AtomicU64::new(0)).collect();
        let empty = || Marks { words: words(), bytes: AtomicU64::new(0) };
        let mut packs = self.packs.write();
        self.note_in(packs.entry(place.pack).or_insert_with(empty), key, place);
    }

    fn note_in(&self, marks: &Marks, key: &Key, place: &Place) {
        let (word, bit) = self.bit(place.offset);
        // Most are read more than once: the line stays shared between the readers.
        let is_noted = || marks.words[word].load(Ordering::Relaxed) & bit != 0;
        if is_noted() || marks.words[word].fetch_or(bit, Ordering::Relaxed) & bit != 0 {
            return;
        }
        marks.bytes.fetch_add(record_len(key, place) as u64, Ordering::Relaxed);
        self.changed.store(true, Ordering::Relaxed);
    }

    /// About how many bytes of a pack were read: those of the records that made its marks.
    pub(super) fn bytes(&self, pack: u32) -> u64 {
        self.packs.read().get(&pack).map_or(0, |marks| marks.bytes.load(Ordering::Relaxed))
    }

    /// Whether the record at a place was read, or one beside it.
    pub(super) fn has(&self, place: &Place) -> bool {
        let (word, bit) = self.bit(place.offset);
        let packs = self.packs.read();
        let is_noted = |marks: &Marks| marks.words[word].load(Ordering::Relaxed) & bit != 0;
        packs.get(&place.pack).is_some_and(is_noted)
    }

    /// Forgets what was read of a pack.
    pub(super) fn forget(&self, pack: u32) {
        if self.packs.write().remove(&pack).is_some() {
            self.changed.store(true, Ordering::Relaxed);
        }
    }

    /// All marks as bytes, if there are new ones since the last time.
    pub(super) fn encode_changed(&self) -> Option<Vec<u8>> {
        if !self.changed.swap(false, Ordering::Relaxed) {
            return None;
        }
        let packs = self.packs.read();
        let mut bytes = Vec::with_capacity(4 + packs.len() * self.encoded_len());
        bytes.extend_from_slice(&(self.words as u32).to_le_bytes());
        for (pack, marks) in &*packs {
            bytes.extend_from_slice(&pack.to_le_bytes());
            bytes.extend_from_slice(&marks.bytes.load(Ordering::Relaxed).to_le_bytes());
            for word in &marks.words {
                bytes.extend_from_slice(&word.load(Ordering::Relaxed).to_le_bytes());
            }
        }
        Some(bytes)
    }

    /// Takes the marks of packs that `exists` knows, as they were encoded. Bytes of another form,
    /// or of packs of another size, say nothing.
    pub(super) fn decode(&self, bytes: &[u8], exists: impl Fn(u32) -> bool) {
        let Some((words, rest)) = bytes.split_first_chunk() else { return };
        if u32::from_le_bytes(*words) as usize != self.words {
            return;
        }
        let mut packs = self.packs.write();
        for entry in rest.chunks_exact(self.encoded_len()) {
            let Some((pack, numbers)) = entry.split_first_chunk() else { return };
            let pack = u32::from_le_bytes(*pack);
            let (numbers, _) = numbers.as_chunks::<8>();
            let mut numbers = numbers.iter().map(|number| u64::from_le_bytes(*number).into());
            if exists(pack)
                && let Some(bytes) = numbers.next()
            {
                packs.insert(pack, Marks { words: numbers.collect(), bytes });
            }
        }
    }

    /// The bytes of an encoded pack: its number, the bytes read, and the words.
    fn encoded_len(&self) -> usize {
        4 + 8 + self.words * 8
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use crate::local::Kind;

    fn place(pack: u32, offset: u64) -> Place {
        Place { pack, offset, stored: 44, raw: 44, suspect: false }
    }

    #[test]
    fn marks_are_where_they_were_made_and_come_back() {
        let marks = ReadMarks::new(1 << 20);
        assert_eq!(marks.encode_changed(), None);
        let read = [place(1, 24), place(1, 700_000), place(3, (1 << 20) + 500)];
        let key = Key::new(Kind::Chunk, &[1; 32]).unwrap();
        for _ in 0..2 {
            read.iter().for_each(|place| marks.note(&key, place));
        }
        let check = |marks: &ReadMarks, packs: &[u32]| {
            for place in &read {
                assert_eq!(marks.has(place), packs.contains(&place.pack));
            }
            for (pack, records) in [(1, 2), (2, 0), (3, 1)] {
                let bytes = if packs.contains(&pack) { records * 100 } else { 0 };
                assert_eq!(marks.bytes(pack), bytes);
            }
            for other in [place(1, 10_000), place(1, 900_000), place(2, 24), place(3, 700_000)] {
                assert!(!marks.has(&other), "{other:?}");
            }
        };
        check(&marks, &[1, 3]);
        let encoded = marks.encode_changed().unwrap();
        assert_eq!(marks.encode_changed(), None, "nothing was read since");

        let again = ReadMarks::new(1 << 20);
        again.decode(&encoded, |pack| pack != 3);
        check(&again, &[1]);
        again.forget(1);
        check(&again, &[]);
        let other = ReadMarks::new(2 << 20);
        other.decode(&encoded, |_| true);
        check(&other, &[]);
        for end in 0..encoded.len() {
            ReadMarks::new(1 << 20).decode(&encoded[..end], |_| true);
        }
    }
}
