//! The size and SHA-256 of NARs, of trees on their way into a store and of those in one. Where
//! they are kept is the affair of the path-info service.

use std::{fmt, sync::Arc};

use bytes::Bytes;
use cairn_castore::{
    BlobService, DirectoryService, Node,
    import::{TreeEvent, TreeObserver},
};
use futures::TryStreamExt as _;
use sha2::{Digest as _, Sha256};
use tokio::sync::mpsc;

use super::{
    NarError,
    writer::{self, Encoder},
};
use crate::path_info::NarInfo;

/// The pieces of a NAR that wait to be hashed.
const PIECES_AHEAD: usize = 8;

/// Computes the NAR's size and hash of a tree that is told step by step.
#[derive(Default)]
pub struct NarHasher {
    encoder: Encoder,
    hash: ByteHasher,
}

impl NarHasher {
    /// A hasher at the start of a tree.
    pub fn new() -> Self {
        Self::default()
    }

    /// The NAR of the tree that has been told.
    pub fn finish(self) -> NarInfo {
        self.hash.finish()
    }
}

impl TreeObserver for NarHasher {
    fn observe(&mut self, event: TreeEvent<'_>) {
        self.encoder.encode(event, &mut |bytes| self.hash.update(bytes));
    }
}

impl fmt::Debug for NarHasher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NarHasher({} bytes)", self.hash.size)
    }
}

/// Counts and hashes the bytes of a NAR.
#[derive(Default)]
pub(super) struct ByteHasher {
    hash: Sha256,
    size: u64,
}

impl ByteHasher {
    pub(super) fn update(&mut self, bytes: &[u8]) {
        self.size += bytes.len() as u64;
        self.hash.update(bytes);
    }

    /// The bytes so far.
    pub(super) fn size(&self) -> u64 {
        self.size
    }

    pub(super) fn finish(self) -> NarInfo {
        NarInfo { size: self.size, sha256: self.hash.finalize().into() }
    }
}

/// Computes the NAR's size and hash of a tree in a store, which has to be there whole.
pub async fn calculate(
    node: &Node,
    blobs: Arc<dyn BlobService>,
    directories: Arc<dyn DirectoryService>,
) -> Result<NarInfo, NarError> {
    let (sender, mut receiver) = mpsc::channel::<Bytes>(PIECES_AHEAD);
    let hashing = tokio::task::spawn_blocking(move || {
        let mut hash = ByteHasher::default();
        while let Some(piece) = receiver.blocking_recv() {
            hash.update(&piece);
        }
        hash.finish()
    });
    let mut nar = writer::stream(node.clone(), blobs, directories);
    while let Some(piece) = nar.try_next().await? {
        sender.send(piece).await.expect("the hasher receives until the sender is gone");
    }
    drop(sender);
    Ok(hashing.await.expect("hashing does not panic"))
}

#[cfg(test)]
mod tests {
    use cairn_castore::{
        BlobError, Digest, Name, SymlinkTarget, blob_service::memory::MemoryBlobService,
        directory_service::memory::MemoryDirectoryService,
    };
    use proptest::prelude::*;

    use super::*;
    use crate::nar::model::{Tree, trees};

    fn tell(tree: &Tree, observer: &mut impl TreeObserver) {
        match tree {
            Tree::File { bytes, executable } => {
                let (size, executable) = (bytes.len() as u64, *executable);
                observer.observe(TreeEvent::FileStart { size, executable });
                bytes.chunks(7).for_each(|piece| observer.observe(TreeEvent::FileBytes(piece)));
                observer.observe(TreeEvent::FileEnd);
            }
            Tree::Symlink(target) => {
                let target = SymlinkTarget::try_from(Bytes::copy_from_slice(target)).unwrap();
                observer.observe(TreeEvent::Symlink(&target));
            }
            Tree::Directory(entries) => {
                observer.observe(TreeEvent::DirectoryStart);
                for (name, tree) in entries {
                    let name = Name::try_from(Bytes::copy_from_slice(name)).unwrap();
                    observer.observe(TreeEvent::EntryStart(&name));
                    tell(tree, observer);
                    observer.observe(TreeEvent::EntryEnd);
                }
                observer.observe(TreeEvent::DirectoryEnd);
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn what_is_told_is_hashed_as_its_nar(tree in trees()) {
            let mut hasher = NarHasher::new();
            tell(&tree, &mut hasher);
            let nar = tree.nar();
            let expected = NarInfo { size: nar.len() as u64, sha256: Sha256::digest(&nar).into() };
            prop_assert_eq!(hasher.finish(), expected);
        }
    }

    #[tokio::test]
    async fn what_is_missing_or_of_another_size_is_told() {
        let blobs = Arc::new(MemoryBlobService::new());
        let directories = Arc::new(MemoryDirectoryService::new());
        let digest = Digest::of(b"hi\n");
        for size in [2, 3, 1 << 20] {
            let file = Node::File { digest, size, executable: false };
            let error = calculate(&file, blobs.clone(), directories.clone()).await.unwrap_err();
            assert!(matches!(error, NarError::Blob(BlobError::NotFound(_))), "{size}: {error}");
        }
        blobs.put_many(vec![cairn_castore::Blob::new(Bytes::from_static(b"hi\n"))]).await.unwrap();
        for size in [0, 2, 4, 1 << 20] {
            let file = Node::File { digest, size, executable: false };
            let error = calculate(&file, blobs.clone(), directories.clone()).await.unwrap_err();
            assert!(matches!(error, NarError::Size { found: 3, .. }), "{size}: {error}");
        }
    }
}
