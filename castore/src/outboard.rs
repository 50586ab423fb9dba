//! What proves a part of a blob without the rest: the BLAKE3 chaining values of its groups of
//! 256 KiB. All of them together give the blob's digest, so a list from anywhere can be checked,
//! and then each group alone is checked against its own. The list has 32 bytes a group, an eight
//! thousandth of the blob.

pub mod verify;

use blake3::hazmat::{
    ChainingValue, HasherExt as _, Mode, merge_subtrees_non_root, merge_subtrees_root,
};
use bytes::{BufMut as _, Bytes, BytesMut};

use crate::Digest;

/// The bytes in a group. A subtree of the BLAKE3 tree, so a power of two.
pub const GROUP_LEN: usize = 256 * 1024;

/// The proof of a blob's parts. Made by hashing a blob ([`OutboardHasher`]) or by checking bytes
/// from elsewhere ([`Outboard::parse`]), so it is always true of its digest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outboard {
    digest: Digest,
    size: u64,
    /// One a group; empty for a blob of at most one group, which its digest proves alone.
    groups: Vec<ChainingValue>,
}

/// Bytes that prove nothing about the blob they came for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("what should prove the ranges of blob {digest} of {size} bytes does not")]
pub struct InvalidOutboard {
    /// The blob.
    pub digest: Digest,
    /// Its size in bytes, as claimed.
    pub size: u64,
}

impl Outboard {
    /// Checks the encoded proof of a blob of this digest and size.
    pub fn parse(digest: Digest, size: u64, bytes: &[u8]) -> Result<Self, InvalidOutboard> {
        let invalid = InvalidOutboard { digest, size };
        let expected = if size > GROUP_LEN as u64 { size.div_ceil(GROUP_LEN as u64) } else { 0 };
        let (values, rest) = bytes.as_chunks::<32>();
        if !rest.is_empty() || values.len() as u64 != expected {
            return Err(invalid);
        }
        // The size of a blob of one group is proven with its bytes.
        if !values.is_empty() && root(values) != digest {
            return Err(invalid);
        }
        Ok(Self { digest, size, groups: values.to_vec() })
    }

    /// The proof as bytes: the chaining values of the groups, or nothing for a single group.
    pub fn encode(&self) -> Bytes {
        let mut bytes = BytesMut::with_capacity(self.groups.len() * 32);
        self.groups.iter().for_each(|value| bytes.put_slice(value));
        bytes.freeze()
    }

    /// The blob that this proves.
    pub fn digest(&self) -> &Digest {
        &self.digest
    }

    /// The blob's size in bytes. True for a blob of several groups; for a single one it is as
    /// claimed, and checked with the bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The chaining value of a group: what its bytes are, and where in a blob. `None` if there is no
    /// such group, or only one.
    pub fn group(&self, index: u64) -> Option<&ChainingValue> {
        self.groups.get(usize::try_from(index).ok()?)
    }

    /// Whether these are the bytes of the group that starts at `index * GROUP_LEN`.
    pub fn verify_group(&self, index: u64, bytes: &[u8]) -> bool {
        self.verify_parts(index, &[bytes])
    }

    /// Whether these are, one behind the other.
    pub fn verify_parts<P: AsRef<[u8]>>(&self, index: u64, parts: &[P]) -> bool {
        let start = index.saturating_mul(GROUP_LEN as u64);
        let expected = self.size.saturating_sub(start).min(GROUP_LEN as u64);
        if parts.iter().map(|part| part.as_ref().len() as u64).sum::<u64>() != expected {
            return false;
        }
        let mut hasher = blake3::Hasher::new();
        hasher.set_input_offset(start);
        for part in parts {
            hasher.update(part.as_ref());
        }
        match self.group(index) {
            Some(value) => *value == hasher.finalize_non_root(),
            None => self.groups.is_empty() && index == 0 && self.digest == hasher.finalize().into(),
        }
    }
}

/// Hashes a blob, given in pieces of any size, into its digest and what proves its parts. No byte
/// is hashed twice.
#[derive(Debug)]
pub struct OutboardHasher {
    hasher: blake3::Hasher,
    in_group: usize,
    groups: Vec<ChainingValue>,
}

impl Default for OutboardHasher {
    fn default() -> Self {
        Self { hasher: blake3::Hasher::new(), in_group: 0, groups: Vec::new() }
    }
}

impl OutboardHasher {
    /// A hasher at the start of a blob.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes the blob's next bytes.
    pub fn update(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            if self.in_group == GROUP_LEN {
                self.end_group();
            }
            let taken = bytes.len().min(GROUP_LEN - self.in_group);
            let (now, later) = bytes.split_at(taken);
            self.hasher.update(now);
            self.in_group += taken;
            bytes = later;
        }
    }

    /// Groups end when the next one begins, so that the last is known to be the last.
    fn end_group(&mut self) {
        self.groups.push(self.hasher.finalize_non_root());
        self.hasher = blake3::Hasher::new();
        self.hasher.set_input_offset(self.groups.len() as u64 * GROUP_LEN as u64);
        self.in_group = 0;
    }

    /// The digest of all bytes, and the proof of their parts.
    pub fn finish(mut self) -> Outboard {
        let size = self.groups.len() as u64 * GROUP_LEN as u64 + self.in_group as u64;
        let digest = if self.groups.is_empty() {
            self.hasher.finalize().into()
        } else {
            self.end_group();
            root(&self.groups)
        };
        Outboard { digest, size, groups: self.groups }
    }
}

/// The digest of two or more groups.
fn root(groups: &[ChainingValue]) -> Digest {
    let (left, right) = groups.split_at(left_len(groups.len()));
    merge_subtrees_root(&subtree(left), &subtree(right), Mode::Hash).into()
}

/// The chaining value of one or more groups that are not the whole blob.
fn subtree(groups: &[ChainingValue]) -> ChainingValue {
    match groups {
        [group] => *group,
        _ => {
            let (left, right) = groups.split_at(left_len(groups.len()));
            merge_subtrees_non_root(&subtree(left), &subtree(right), Mode::Hash)
        }
    }
}

/// A left subtree is the largest power of two of groups that leaves something to the right.
fn left_len(groups: usize) -> usize {
    groups.next_power_of_two() / 2
}

#[cfg(test)]
mod tests {
    use super::*;

    fn blob(size: usize) -> Vec<u8> {
        let mut bytes = vec![0; size];
        blake3::Hasher::new().update(&size.to_le_bytes()).finalize_xof().fill(&mut bytes);
        bytes
    }

    #[test]
    fn digests_are_those_of_blake3_and_every_group_is_proven() {
        let group = GROUP_LEN;
        for size in
            [0, 1, group - 1, group, group + 1, 2 * group, 2 * group + 1, 5 * group, 1 << 21]
        {
            let bytes = blob(size);
            for piece in [70_001, group, usize::MAX] {
                let mut hasher = OutboardHasher::new();
                bytes.chunks(piece).for_each(|piece| hasher.update(piece));
                let outboard = hasher.finish();
                assert_eq!(*outboard.digest(), Digest::of(&bytes), "size {size}");
                let parsed = Outboard::parse(Digest::of(&bytes), size as u64, &outboard.encode());
                assert_eq!(parsed, Ok(outboard.clone()));
                for (index, part) in bytes.chunks(group).enumerate() {
                    assert!(outboard.verify_group(index as u64, part));
                    let mut wrong = part.to_vec();
                    wrong[part.len() / 2] ^= 1;
                    assert!(!outboard.verify_group(index as u64, &wrong));
                    assert!(!outboard.verify_group(index as u64 + 1, part));
                    assert!(!outboard.verify_group(index as u64, &part[..part.len() - 1]));
                }
            }
        }
    }

    #[test]
    fn what_proves_another_blob_is_refused() {
        let bytes = blob(3 * GROUP_LEN);
        let mut hasher = OutboardHasher::new();
        hasher.update(&bytes);
        let outboard = hasher.finish();
        let (digest, size) = (*outboard.digest(), outboard.size());
        let encoded = outboard.encode();
        assert!(Outboard::parse(Digest::of(b"another"), size, &encoded).is_err());
        assert!(Outboard::parse(digest, size + GROUP_LEN as u64, &encoded).is_err());
        assert!(Outboard::parse(digest, size, &encoded[..64]).is_err());
        assert!(Outboard::parse(digest, size, &encoded[..65]).is_err());
        assert!(Outboard::parse(digest, u64::MAX, &encoded).is_err());
        let mut wrong = encoded.to_vec();
        wrong[40] ^= 1;
        assert!(Outboard::parse(digest, size, &wrong).is_err());
    }

    #[test]
    fn a_wrong_size_within_the_last_group_shows_with_its_bytes() {
        let bytes = blob(GROUP_LEN + 10);
        let mut hasher = OutboardHasher::new();
        hasher.update(&bytes);
        let outboard = hasher.finish();
        let claimed = Outboard::parse(*outboard.digest(), outboard.size() - 1, &outboard.encode());
        let claimed = claimed.expect("the number of groups is the same");
        assert!(!claimed.verify_group(1, &bytes[GROUP_LEN..GROUP_LEN + 9]));
        assert!(!claimed.verify_group(1, &bytes[GROUP_LEN..]));
    }
}
