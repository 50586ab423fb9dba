//! Tells of most keys without a record that they have none, in a few nanoseconds and without the
//! index: a split block Bloom filter (F. Putze, P. Sanders, J. Singler, "Cache-, Hash- and
//! Space-Efficient Bloom Filters", 2007) that grows by layers. Which keys there are is told to it.

use super::record::Key;

/// The keys of the first layer. Each further layer is for twice as many.
const FIRST_KEYS: usize = 64 * 1024;

/// The layers at most: together for 16 million keys, in 24 MiB.
const LAYERS_MAX: u32 = 8;

/// The keys that a block is for. Of the keys that are not there it lets one in some 300 pass.
const BLOCK_KEYS: usize = 21;

/// The words of a block, in each of which a key sets one bit.
const WORDS: usize = 8;

/// Odd numbers that make of one hash a bit for each word.
const SALTS: [u32; WORDS] = [
    0x9e37_79b1,
    0x85eb_ca77,
    0xc2b2_ae3d,
    0x27d4_eb2f,
    0x1656_67b1,
    0xd3a2_646d,
    0xfd70_46c5,
    0xb55a_4f09,
];

type Block = [u32; WORDS];

/// Keys, of which any may also be taken for there that is not.
#[derive(Debug, Default)]
pub(super) struct Filter {
    layers: Vec<Layer>,
}

#[derive(Debug)]
struct Layer {
    blocks: Box<[Block]>,
    /// How many more keys it is for.
    room: usize,
}

impl Filter {
    /// `false` if there is no room for one more key: then the filter says nothing any more.
    #[must_use]
    pub(super) fn insert(&mut self, key: &Key) -> bool {
        if self.may_have(key) {
            return true;
        }
        if self.layers.last().is_none_or(|layer| layer.room == 0) {
            let count = self.layers.len() as u32;
            if count == LAYERS_MAX {
                return false;
            }
            let keys = FIRST_KEYS << count;
            let blocks = vec![Block::default(); keys.div_ceil(BLOCK_KEYS)].into();
            self.layers.push(Layer { blocks, room: keys });
        }
        let hash = Hash::of(key);
        if let Some(layer) = self.layers.last_mut() {
            layer.room -= 1;
            let block = hash.block(layer.blocks.len());
            for (word, bit) in layer.blocks[block].iter_mut().zip(hash.bits()) {
                *word |= bit;
            }
        }
        true
    }

    /// Whether a key may be among those that were inserted. `false` is certain.
    pub(super) fn may_have(&self, key: &Key) -> bool {
        let hash = Hash::of(key);
        self.layers.iter().any(|layer| {
            let block = &layer.blocks[hash.block(layer.blocks.len())];
            block.iter().zip(hash.bits()).all(|(word, bit)| word & bit != 0)
        })
    }
}

/// Keys are digests or parts of them, so that some of their bytes do for a hash.
struct Hash(u64);

impl Hash {
    fn of(key: &Key) -> Self {
        let bytes = key.key();
        let mut hash = [0; 8];
        let len = bytes.len().min(8);
        hash[..len].copy_from_slice(&bytes[..len]);
        // The same digest may be a key of several kinds.
        let kind = u64::from(key.kind() as u8).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        Self(u64::from_le_bytes(hash) ^ kind)
    }

    fn block(&self, blocks: usize) -> usize {
        // Maps the upper half evenly to the blocks, of which there are fewer than 2^32.
        (((self.0 >> 32) * blocks as u64) >> 32) as usize
    }

    fn bits(&self) -> [u32; WORDS] {
        let low = self.0 as u32;
        SALTS.map(|salt| 1 << (low.wrapping_mul(salt) >> 27))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::local::Kind;

    fn key(number: u64) -> Key {
        let digest = blake3::hash(&number.to_le_bytes());
        Key::new(Kind::Chunk, digest.as_bytes()).unwrap()
    }

    #[test]
    fn what_is_there_is_never_missed_and_what_is_not_mostly_is() {
        let mut filter = Filter::default();
        assert!(!filter.may_have(&key(0)));
        let there = 3 * FIRST_KEYS as u64;
        for number in 0..there {
            assert!(filter.insert(&key(number)));
        }
        assert_eq!(filter.layers.len(), 2, "64 and 128 thousand keys fit into two layers");
        assert!((0..there).all(|number| filter.may_have(&key(number))));
        let wrong = (there..there + 100_000).filter(|number| filter.may_have(&key(*number)));
        let wrong = wrong.count();
        assert!(wrong < 2000, "{wrong} of 100,000 keys that are not there pass");
        let digest = blake3::hash(&1_u64.to_le_bytes());
        let other = Key::new(Kind::Directory, digest.as_bytes()).unwrap();
        assert!(!filter.may_have(&other), "kinds are apart");
    }

    #[test]
    fn it_is_full_at_some_time() {
        let mut filter = Filter::default();
        // As if all layers had been made and filled.
        for _ in 0..LAYERS_MAX {
            filter.layers.push(Layer { blocks: vec![Block::default()].into(), room: 0 });
        }
        assert!(!filter.insert(&key(1)));
    }
}
