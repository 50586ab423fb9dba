//! What servers have acknowledged, as all clients of a load know it: any of them can ask for any of it,
//! and tell whether the answer is right.

use std::{
    ops::Range,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use bytes::Bytes;
use cairn_castore::{Digest, Node};
use cairn_store::{NarInfo, PathInfo};

use crate::random::Random;

/// A blob whose bytes are known by its number, and need not be kept. They can't be compressed.
#[derive(Debug, Clone, Copy)]
pub(super) struct Content {
    pub(super) digest: Digest,
    pub(super) length: u64,
    number: u64,
}

impl Content {
    /// The blob of a number, and its bytes.
    pub(super) fn new(number: u64, length: u64) -> (Self, Bytes) {
        let unhashed = Self { digest: Digest::EMPTY, length, number };
        let bytes = unhashed.bytes(0..length);
        (Self { digest: Digest::of(&bytes), ..unhashed }, bytes)
    }

    /// The bytes of a range that lies within the blob.
    pub(super) fn bytes(&self, range: Range<u64>) -> Bytes {
        let mut random = Random::new(&format!("content {}", self.number));
        random.skip_to(range.start);
        random.bytes((range.end - range.start) as usize).into()
    }

    /// The file with this content.
    pub(super) fn node(&self) -> Node {
        Node::File { digest: self.digest, size: self.length, executable: false }
    }
}

/// A tree of directories.
#[derive(Debug, Clone, Copy)]
pub(super) struct Closure {
    pub(super) root: Digest,
    /// What an entry that names the root has as its size.
    pub(super) size: u64,
    /// How many directories there are, the root being one.
    pub(super) directories: usize,
}

/// Things of one kind that were acknowledged.
#[derive(Debug)]
pub(super) struct Shelf<T>(Mutex<Vec<T>>);

impl<T> Default for Shelf<T> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<T: Clone> Shelf<T> {
    pub(super) fn add(&self, things: impl IntoIterator<Item = T>) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).extend(things);
    }

    /// One of them by chance. There has to be one.
    pub(super) fn any(&self, random: &mut Random) -> T {
        let things = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        things[random.below(things.len() as u64) as usize].clone()
    }

    pub(super) fn all(&self) -> Vec<T> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// All that was acknowledged.
#[derive(Debug, Default)]
pub(super) struct Stored {
    pub(super) small: Shelf<Content>,
    pub(super) large: Shelf<Content>,
    pub(super) closures: Shelf<Closure>,
    pub(super) nars: Shelf<(Node, NarInfo)>,
    pub(super) path_infos: Shelf<PathInfo>,
    numbers: AtomicU64,
}

/// How much that is.
#[derive(Debug, Clone, Copy)]
pub(super) struct Kept {
    pub(super) blobs: usize,
    pub(super) bytes: u64,
    pub(super) directories: usize,
    pub(super) path_infos: usize,
}

impl Stored {
    /// A number that nobody else gets.
    pub(super) fn number(&self) -> u64 {
        self.numbers.fetch_add(1, Ordering::Relaxed)
    }

    pub(super) fn kept(&self) -> Kept {
        let blobs = [self.small.all(), self.large.all()].concat();
        Kept {
            blobs: blobs.len(),
            bytes: blobs.iter().map(|blob| blob.length).sum(),
            directories: self.closures.all().iter().map(|closure| closure.directories).sum(),
            path_infos: self.path_infos.all().len(),
        }
    }
}
