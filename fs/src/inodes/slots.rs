//! Room for values under numbers that are never used twice. It is made and given back in chunks, so
//! that growing copies nothing and what is left of many values takes little. What the values are is
//! not known here.

use std::collections::BTreeSet;

/// How many slots a chunk has: as many as there are bits in [`Chunk::vacant`].
const CHUNK_SLOTS: usize = u64::BITS as usize;

/// How many chunks are remembered at least, those included that hold nothing.
const CHUNKS_MIN: usize = 1024;

/// Values under numbers. A number is that of a slot in its lower half, and in the upper half how
/// often the slot was used, counted from 1.
#[derive(Debug)]
pub(super) struct Slots<T> {
    chunks: Vec<Chunk<T>>,
    /// The chunks that have vacant slots.
    with_room: BTreeSet<u32>,
    len: usize,
    /// What the generations of new chunks start with.
    generation: u32,
}

#[derive(Debug)]
struct Chunk<T> {
    /// `None` while all of them are vacant.
    slots: Option<Box<[Slot<T>; CHUNK_SLOTS]>>,
    /// A bit for each slot that can be used.
    vacant: u64,
    /// What the slots' generations start with when there are slots again.
    generation: u32,
}

#[derive(Debug)]
struct Slot<T> {
    /// That of the value, or of the next one.
    generation: u32,
    value: Option<T>,
}

fn id(generation: u32, slot: u32) -> u64 {
    u64::from(generation) << 32 | u64::from(slot)
}

/// The generation, the chunk and the place in the chunk that make a number.
fn parts(id: u64) -> (u32, u32, usize) {
    let slot = id as u32;
    let (chunk, at) = (slot / CHUNK_SLOTS as u32, slot as usize % CHUNK_SLOTS);
    ((id >> 32) as u32, chunk, at)
}

impl<T> Slots<T> {
    pub(super) fn new() -> Self {
        Self { chunks: Vec::new(), with_room: BTreeSet::new(), len: 0, generation: 1 }
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Keeps a value; its number.
    pub(super) fn insert(&mut self, value: T) -> u64 {
        let number = self.with_room.first().copied().unwrap_or_else(|| {
            let number = u32::try_from(self.chunks.len()).expect("memory ends before numbers do");
            let generation = self.generation;
            self.chunks.push(Chunk { slots: None, vacant: u64::MAX, generation });
            self.with_room.insert(number);
            number
        });
        let chunk = &mut self.chunks[number as usize];
        let at = chunk.vacant.trailing_zeros();
        chunk.vacant &= !(1 << at);
        if chunk.vacant == 0 {
            self.with_room.remove(&number);
        }
        let generation = chunk.generation;
        let vacant = |_| Slot { generation, value: None };
        let slots = chunk.slots.get_or_insert_with(|| Box::new(std::array::from_fn(vacant)));
        let slot = &mut slots[at as usize];
        slot.value = Some(value);
        self.len += 1;
        id(slot.generation, number * CHUNK_SLOTS as u32 + at)
    }

    pub(super) fn get(&self, id: u64) -> Option<&T> {
        let (generation, chunk, at) = parts(id);
        let slot = &self.chunks.get(chunk as usize)?.slots.as_ref()?[at];
        slot.value.as_ref().filter(|_| slot.generation == generation)
    }

    pub(super) fn get_mut(&mut self, id: u64) -> Option<&mut T> {
        let (generation, chunk, at) = parts(id);
        let slot = &mut self.chunks.get_mut(chunk as usize)?.slots.as_mut()?[at];
        slot.value.as_mut().filter(|_| slot.generation == generation)
    }

    /// The value in a slot that is known to have one, by the lower half of its number; the number.
    pub(super) fn in_slot(&self, slot: u32) -> (u64, &T) {
        let (_, chunk, at) = parts(slot.into());
        let slots = self.chunks[chunk as usize].slots.as_ref();
        let Slot { generation, value } = &slots.expect("a chunk with a value has slots")[at];
        (id(*generation, slot), value.as_ref().expect("the caller knows that there is one"))
    }

    /// Gives up a number.
    pub(super) fn remove(&mut self, id: u64) -> Option<T> {
        let (generation, number, at) = parts(id);
        let chunk = self.chunks.get_mut(number as usize)?;
        let slots = chunk.slots.as_mut()?;
        let slot = &mut slots[at];
        if slot.generation != generation {
            return None;
        }
        let value = slot.value.take()?;
        self.len -= 1;
        // A slot whose numbers are used up stays out of use.
        if let Some(next) = generation.checked_add(1) {
            slot.generation = next;
            chunk.vacant |= 1 << at;
            self.with_room.insert(number);
            if chunk.vacant == u64::MAX {
                let generations = slots.iter().map(|slot| slot.generation);
                chunk.generation = generations.max().unwrap_or(next);
                chunk.slots = None;
            }
        }
        Some(value)
    }

    /// Gives up all numbers.
    pub(super) fn clear(&mut self) {
        let mut all = Vec::with_capacity(self.len);
        for (number, chunk) in (0_u32..).zip(&self.chunks) {
            let slots = (0_u32..).zip(chunk.slots.iter().flat_map(|slots| slots.iter()));
            let used = slots.filter(|(_, slot)| slot.value.is_some());
            all.extend(
                used.map(|(at, slot)| id(slot.generation, number * CHUNK_SLOTS as u32 + at)),
            );
        }
        for id in all {
            self.remove(id);
        }
    }

    /// Forgets chunks that hold nothing, once most do not.
    pub(super) fn shrink(&mut self) {
        if self.len >= self.chunks.len() * CHUNK_SLOTS / 4 {
            return;
        }
        while self.chunks.len() > CHUNKS_MIN
            && let Some(chunk) = self.chunks.pop_if(|chunk| chunk.slots.is_none())
        {
            self.generation = self.generation.max(chunk.generation);
            self.with_room.remove(&(self.chunks.len() as u32));
        }
        if self.chunks.len() < self.chunks.capacity() / 4 {
            self.chunks.shrink_to(self.chunks.len() * 2);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{HashMap, HashSet};

    use proptest::prelude::*;

    use super::*;

    impl<T> Slots<T> {
        /// What a value takes.
        pub(crate) const SLOT_BYTES: usize = size_of::<Slot<T>>();

        /// How many chunks take memory.
        pub(crate) fn chunk_count(&self) -> usize {
            self.chunks.iter().filter(|chunk| chunk.slots.is_some()).count()
        }
    }

    proptest! {
        #[test]
        fn what_is_kept_is_found_and_no_number_comes_twice(
            steps in proptest::collection::vec((any::<bool>(), any::<prop::sample::Index>()), 0..600),
        ) {
            let mut slots = Slots::new();
            let (mut kept, mut ever) = (HashMap::new(), HashSet::new());
            for (step, (inserts, which)) in steps.into_iter().enumerate() {
                if inserts || kept.is_empty() {
                    let id = slots.insert(step);
                    prop_assert!(id >= 1 << 32, "no number of ours is 0 or 1");
                    prop_assert!(ever.insert(id));
                    kept.insert(id, step);
                } else {
                    let id = *which.get(&kept.keys().copied().collect::<Vec<_>>());
                    prop_assert_eq!(slots.remove(id), kept.remove(&id));
                    prop_assert_eq!(slots.remove(id), None);
                }
                prop_assert_eq!(slots.len(), kept.len());
                for &id in &ever {
                    prop_assert_eq!(slots.get(id), kept.get(&id));
                }
                for (&id, value) in &kept {
                    prop_assert_eq!(slots.in_slot(id as u32), (id, value));
                }
            }
        }
    }

    #[test]
    fn chunks_go_back_and_their_numbers_do_not_return() {
        let mut slots = Slots::new();
        let first: Vec<_> = (0..1000).map(|value| slots.insert(value)).collect();
        assert_eq!(slots.chunk_count(), 1000_usize.div_ceil(CHUNK_SLOTS));
        for &id in &first {
            slots.remove(id);
        }
        assert_eq!((slots.len(), slots.chunk_count()), (0, 0));
        assert!((0..1000).all(|value| !first.contains(&slots.insert(value))));
    }

    #[test]
    fn what_is_forgotten_of_chunks_brings_no_number_back() {
        const COUNT: usize = 4 * CHUNKS_MIN * CHUNK_SLOTS;
        let mut slots = Slots::new();
        let first: Vec<_> = (0..COUNT).map(|value| slots.insert(value)).collect();
        for &id in &first {
            slots.remove(id);
            slots.shrink();
        }
        assert_eq!(slots.chunks.len(), CHUNKS_MIN);
        assert!(slots.chunks.capacity() <= 4 * CHUNKS_MIN && slots.with_room.len() <= CHUNKS_MIN);
        let first: HashSet<_> = first.into_iter().collect();
        assert!((0..COUNT).all(|value| !first.contains(&slots.insert(value))));
    }

    #[test]
    fn what_was_cleared_is_gone_and_its_numbers_do_not_return() {
        let mut slots = Slots::new();
        let first: Vec<_> = (0..1000).map(|value| slots.insert(value)).collect();
        slots.remove(first[500]);
        slots.clear();
        assert_eq!((slots.len(), slots.chunk_count()), (0, 0));
        assert!(first.iter().all(|&id| slots.get(id).is_none()));
        assert!((0..1000).all(|value| !first.contains(&slots.insert(value))));
    }

    #[test]
    fn a_slot_ends_with_its_numbers() {
        let mut slots = Slots::new();
        let id = slots.insert(());
        let (_, chunk, at) = parts(id);
        slots.chunks[chunk as usize].slots.as_mut().unwrap()[at].generation = u32::MAX;
        let last = slots.in_slot(id as u32).0;
        assert_eq!(slots.remove(last), Some(()));
        let next: HashSet<_> = (0..1000).map(|_| slots.insert(()) as u32).collect();
        assert!(!next.contains(&(id as u32)));
    }
}
