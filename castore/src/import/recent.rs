//! Digests seen lately, as many as fit. What has been forgotten is taken for new, which costs work
//! and harms nothing.

use std::{collections::HashSet, mem};

use crate::Digest;

/// A bounded set that forgets the older half of what it holds when it is full.
#[derive(Debug)]
pub(super) struct Recent {
    half: usize,
    new: HashSet<Digest>,
    old: HashSet<Digest>,
}

impl Recent {
    /// A set that remembers at least half of the last `max` digests, and at most `max`.
    pub(super) fn new(max: usize) -> Self {
        Self { half: max / 2, new: HashSet::new(), old: HashSet::new() }
    }

    /// Adds a digest; whether it was not there.
    pub(super) fn insert(&mut self, digest: Digest) -> bool {
        if self.new.contains(&digest) || self.old.contains(&digest) {
            return false;
        }
        if self.new.len() >= self.half {
            self.old = mem::take(&mut self.new);
        }
        self.new.insert(digest);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_are_forgotten_first_and_the_bound_holds() {
        let digest = |number: u32| Digest::of(&number.to_le_bytes());
        let mut recent = Recent::new(8);
        for number in 0..100 {
            assert!(recent.insert(digest(number)));
            assert!(!recent.insert(digest(number)));
            assert!(!recent.insert(digest(number.saturating_sub(3))));
            assert!(recent.new.len() + recent.old.len() <= 8);
        }
        assert!(recent.insert(digest(0)));
    }
}
