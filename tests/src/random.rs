//! Random bytes and numbers that are the same in every run with one seed. Not for secrets.

use std::io::Read as _;

/// An endless row of random bytes: the extended output of BLAKE3 over a seed.
#[derive(Debug)]
pub struct Random(blake3::OutputReader);

impl Random {
    /// The row that belongs to a seed.
    pub fn new(seed: &str) -> Self {
        Self(blake3::Hasher::new().update(seed.as_bytes()).finalize_xof())
    }

    /// The next bytes.
    pub fn bytes(&mut self, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        self.0.read_exact(&mut bytes).expect("the row is endless");
        bytes
    }

    /// Goes on at a place of the row, counted from its start.
    pub fn skip_to(&mut self, place: u64) {
        self.0.set_position(place);
    }

    /// A number from 0 to `end`, without `end` itself, which is not 0.
    pub fn below(&mut self, end: u64) -> u64 {
        let mut bytes = [0; 8];
        self.0.read_exact(&mut bytes).expect("the row is endless");
        u64::from_le_bytes(bytes) % end
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_has_one_row() {
        assert_eq!(Random::new("a").bytes(100), Random::new("a").bytes(100));
        assert_ne!(Random::new("a").bytes(100), Random::new("b").bytes(100));
        let mut random = Random::new("a");
        random.skip_to(40);
        assert_eq!(random.bytes(60), Random::new("a").bytes(100)[40..]);
        assert!((0..1000).map(|_| random.below(7)).all(|number| number < 7));
    }
}
