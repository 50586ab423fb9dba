//! The size and SHA-256 of NARs, of trees on their way into a store and of those in one. Where
//! they are kept is the affair of the path-info service.

use std::{fmt, pin::pin, sync::Arc};

use bytes::Bytes;
use cairn_castore::{
    BlobService, Digest, DirectoryService, Node,
    import::{TreeEvent, TreeObserver},
};
use futures::{Stream, TryStreamExt as _};
use sha2::{Digest as _, Sha256};
use tokio::sync::mpsc;

use super::{
    NarError,
    writer::{self, Batch, Contents, Encoder, Step},
};
use crate::path_info::NarInfo;

/// The parts of a tree that wait to be hashed: batches of some MiB, or pieces of large files.
const PARTS_AHEAD: usize = 4;

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
    of_batches(writer::batches(node.clone(), directories), &blobs).await
}

/// Computes the size and hash of the NAR of a tree whose steps come in batches.
pub(super) async fn of_batches<C: Contents>(
    batches: impl Stream<Item = Result<Batch, NarError>> + Send,
    contents: &C,
) -> Result<NarInfo, NarError> {
    let (sender, mut receiver) = mpsc::channel(PARTS_AHEAD);
    let hashing = tokio::task::spawn_blocking(move || {
        let mut hash = PartHasher::default();
        while let Some(part) = receiver.blocking_recv() {
            hash.update(part);
        }
        hash.finish()
    });
    let send = async |part| {
        sender.send(part).await.expect("the hasher receives until the sender is gone");
    };
    let mut batches = pin!(writer::fetched(batches, contents));
    while let Some((mut steps, small)) = batches.try_next().await? {
        let is_large = |step: &Step| matches!(step, Step::File(file) if !file.is_small());
        let mut small = small.into_iter();
        while let Some(index) = steps.iter().position(is_large) {
            let rest = steps.split_off(index + 1);
            let file = match steps.last() {
                Some(Step::File(file)) => file.clone(),
                _ => unreachable!("it is where the file was found"),
            };
            let count = steps.iter().filter(|step| matches!(step, Step::File(_))).count() - 1;
            send(Part::Steps(steps, small.by_ref().take(count).collect())).await;
            let mut bytes = pin!(file.read(contents));
            while let Some(bytes) = bytes.try_next().await? {
                send(Part::Bytes(bytes)).await;
            }
            steps = rest;
        }
        send(Part::Steps(steps, small.collect())).await;
    }
    drop(sender);
    Ok(hashing.await.expect("hashing does not panic"))
}

/// A part of a tree that is to be hashed.
enum Part {
    /// Steps, and the bytes of the small files among them, in order. A large file is the last one.
    Steps(Vec<Step>, Vec<Bytes>),
    /// The next bytes of the large file.
    Bytes(Bytes),
}

#[derive(Default)]
struct PartHasher {
    hasher: NarHasher,
    /// The large file that has begun.
    large: Option<Digest>,
}

impl PartHasher {
    fn update(&mut self, part: Part) {
        match part {
            Part::Bytes(bytes) => self.hasher.observe(TreeEvent::FileBytes(&bytes)),
            Part::Steps(steps, small) => {
                self.end_large();
                let mut small = small.into_iter();
                for step in steps {
                    self.step(step, &mut small);
                }
            }
        }
    }

    fn step(&mut self, step: Step, small: &mut impl Iterator<Item = Bytes>) {
        let hasher = &mut self.hasher;
        match step {
            Step::DirectoryStart => hasher.observe(TreeEvent::DirectoryStart),
            Step::EntryStart(name) => hasher.observe(TreeEvent::EntryStart(&name)),
            Step::EntryEnd => hasher.observe(TreeEvent::EntryEnd),
            Step::DirectoryEnd => hasher.observe(TreeEvent::DirectoryEnd),
            Step::Symlink(target) => hasher.observe(TreeEvent::Symlink(&target)),
            Step::File(file) => {
                let (size, executable) = (file.size, file.executable);
                hasher.observe(TreeEvent::FileStart { size, executable });
                if !file.is_small() {
                    self.large = Some(file.digest);
                    return;
                }
                let bytes = small.next().expect("a batch has its small files");
                hasher.observe(TreeEvent::FileBytes(&bytes));
                hasher.observe(TreeEvent::FileEnd(&file.digest));
            }
        }
    }

    fn end_large(&mut self) {
        if let Some(digest) = self.large.take() {
            self.hasher.observe(TreeEvent::FileEnd(&digest));
        }
    }

    fn finish(mut self) -> NarInfo {
        self.end_large();
        self.hasher.finish()
    }
}

#[cfg(test)]
mod tests {
    use cairn_castore::{
        BlobError, Name, SymlinkTarget, blob_service::memory::MemoryBlobService,
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
                observer.observe(TreeEvent::FileEnd(&Digest::of(bytes)));
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
