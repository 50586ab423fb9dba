//! Writes NARs: one encoder for the steps through a tree, and the stream that it makes of a tree
//! in a store. What becomes of the bytes is the affair of those who ask for them.

use std::{pin::pin, sync::Arc};

use async_stream::try_stream;
use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use cairn_castore::{
    BlobError, BlobService, ByteRange, Digest, Directory, DirectoryService, Name, Node,
    SymlinkTarget,
    blob_service::{BlobStream, SMALL_BLOB_MAX},
    import::TreeEvent,
    tree_directories::TreeDirectories,
};
use futures::{Stream, StreamExt as _, TryStreamExt as _, stream::BoxStream};

use super::{CONTENTS_MAX, DEPTH_MAX, ENTRIES_MAX, NarError};

/// The bytes of a NAR in order, in pieces of up to some MiB. Ends after an error.
pub type NarStream = BoxStream<'static, Result<Bytes, NarError>>;

/// The length in bytes from which on a piece of the stream is handed on.
const PIECE_LEN: usize = 128 * 1024;
/// The bytes of small files that are fetched together.
const BATCH_BYTES: u64 = 4 * 1024 * 1024;
/// The small files that are fetched together.
const BATCH_BLOBS: usize = 1024;
/// The steps through the tree that are taken ahead while such files are looked for.
const BATCH_STEPS: usize = 16_384;
/// The batches that are fetched at the same time.
const BATCHES_AHEAD: usize = 3;

pub(super) const MAGIC: [u8; 24] = strings(&["nix-archive-1"]);
pub(super) const OPEN: [u8; 32] = strings(&["(", "type"]);
pub(super) const CLOSE: [u8; 16] = strings(&[")"]);
pub(super) const NAME: [u8; 32] = strings(&["(", "name"]);
pub(super) const NODE: [u8; 16] = strings(&["node"]);
pub(super) const TARGET: [u8; 16] = strings(&["target"]);
const ENTRY: [u8; 48] = strings(&["entry", "(", "name"]);
const DIRECTORY: [u8; 56] = strings(&["(", "type", "directory"]);
const SYMLINK: [u8; 64] = strings(&["(", "type", "symlink", "target"]);
const REGULAR: [u8; 64] = strings(&["(", "type", "regular", "contents"]);
const EXECUTABLE: [u8; 96] = strings(&["(", "type", "regular", "executable", "", "contents"]);

/// Short strings as they are in a NAR, one behind the other.
const fn strings<const N: usize>(strings: &[&str]) -> [u8; N] {
    let mut encoded = [0; N];
    let mut at = 0;
    let mut index = 0;
    while index < strings.len() {
        let bytes = strings[index].as_bytes();
        assert!(bytes.len() < 256);
        encoded[at] = bytes.len() as u8;
        at += 8;
        let mut byte = 0;
        while byte < bytes.len() {
            encoded[at + byte] = bytes[byte];
            byte += 1;
        }
        at += bytes.len().next_multiple_of(8);
        index += 1;
    }
    assert!(at == N);
    encoded
}

/// The number of zeros behind a string of this length.
pub(super) fn padding(length: u64) -> usize {
    (length.wrapping_neg() % 8) as usize
}

/// Turns the steps through a tree into its NAR. Allocates nothing.
#[derive(Debug, Default)]
pub struct Encoder {
    begun: bool,
    /// The zeros behind the file that has begun.
    padding: usize,
}

impl Encoder {
    /// An encoder at the start of a NAR.
    pub fn new() -> Self {
        Self::default()
    }

    /// Gives the bytes of the next step to `sink`.
    pub fn encode(&mut self, event: TreeEvent<'_>, sink: &mut impl FnMut(&[u8])) {
        if !self.begun {
            self.begun = true;
            sink(&MAGIC);
        }
        match event {
            TreeEvent::DirectoryStart => sink(&DIRECTORY),
            TreeEvent::EntryStart(name) => {
                sink(&ENTRY);
                string(name.as_ref(), sink);
                sink(&NODE);
            }
            TreeEvent::EntryEnd | TreeEvent::DirectoryEnd => sink(&CLOSE),
            TreeEvent::FileStart { size, executable } => {
                sink(if executable { &EXECUTABLE } else { &REGULAR });
                sink(&size.to_le_bytes());
                self.padding = padding(size);
            }
            TreeEvent::FileBytes(bytes) => sink(bytes),
            TreeEvent::FileEnd(_) => {
                sink(&[0; 8][..self.padding]);
                sink(&CLOSE);
            }
            TreeEvent::Symlink(target) => {
                sink(&SYMLINK);
                string(target.as_ref(), sink);
                sink(&CLOSE);
            }
        }
    }
}

fn string(bytes: &[u8], sink: &mut impl FnMut(&[u8])) {
    let length = bytes.len() as u64;
    sink(&length.to_le_bytes());
    sink(bytes);
    sink(&[0; 8][..padding(length)]);
}

/// The NAR of a tree in a store. Memory is bounded whatever the tree: small files are fetched
/// ahead in batches, large ones are passed through in pieces.
pub fn stream(
    node: Node,
    blobs: Arc<dyn BlobService>,
    directories: Arc<dyn DirectoryService>,
) -> NarStream {
    try_stream! {
        let mut batches = pin!(fetched(batches(node, directories), &blobs));
        let mut encoder = Encoder::new();
        let mut piece = BytesMut::with_capacity(2 * PIECE_LEN);
        while let Some((steps, contents)) = batches.try_next().await? {
            let mut contents = contents.into_iter();
            for step in &steps {
                let mut sink = |bytes: &[u8]| piece.extend_from_slice(bytes);
                match step {
                    Step::DirectoryStart => encoder.encode(TreeEvent::DirectoryStart, &mut sink),
                    Step::EntryStart(name) => encoder.encode(TreeEvent::EntryStart(name), &mut sink),
                    Step::EntryEnd => encoder.encode(TreeEvent::EntryEnd, &mut sink),
                    Step::DirectoryEnd => encoder.encode(TreeEvent::DirectoryEnd, &mut sink),
                    Step::Symlink(target) => encoder.encode(TreeEvent::Symlink(target), &mut sink),
                    Step::File(file) => {
                        let (size, executable) = (file.size, file.executable);
                        encoder.encode(TreeEvent::FileStart { size, executable }, &mut sink);
                        if file.is_small() {
                            let bytes = contents.next().expect("a batch has its small files");
                            sink(&bytes);
                        } else {
                            yield piece.split().freeze();
                            let mut bytes = pin!(file.read(&blobs));
                            while let Some(bytes) = bytes.try_next().await? {
                                yield bytes;
                            }
                        }
                        encoder.encode(TreeEvent::FileEnd(&file.digest), &mut |bytes| {
                            piece.extend_from_slice(bytes);
                        });
                    }
                }
                if piece.len() >= PIECE_LEN {
                    yield piece.split().freeze();
                }
            }
        }
        if !piece.is_empty() {
            yield piece.freeze();
        }
    }
    .boxed()
}

/// Where the bytes of a tree's files come from.
#[async_trait]
pub(super) trait Contents: Send + Sync + 'static {
    /// Small files, in the order asked; `None` for one that is not there.
    async fn read_many(&self, digests: &[Digest]) -> Result<Vec<Option<Bytes>>, BlobError>;

    /// A file of any size.
    async fn read(&self, digest: &Digest) -> Result<BlobStream, BlobError>;
}

#[async_trait]
impl Contents for Arc<dyn BlobService> {
    async fn read_many(&self, digests: &[Digest]) -> Result<Vec<Option<Bytes>>, BlobError> {
        (**self).read_many(digests).await
    }

    async fn read(&self, digest: &Digest) -> Result<BlobStream, BlobError> {
        (**self).read(digest, ByteRange::ALL).await
    }
}

/// The batches, each with the bytes of the small files in it. They are fetched ahead.
pub(super) fn fetched<C: Contents>(
    batches: impl Stream<Item = Result<Batch, NarError>> + Send,
    contents: &C,
) -> impl Stream<Item = Result<(Vec<Step>, Vec<Bytes>), NarError>> + Send {
    batches.map_ok(|batch| batch.fetch(contents)).try_buffered(BATCHES_AHEAD)
}

/// A step through a tree whose files' bytes are elsewhere.
pub(super) enum Step {
    DirectoryStart,
    EntryStart(Name),
    EntryEnd,
    DirectoryEnd,
    File(FileNode),
    Symlink(SymlinkTarget),
}

#[derive(Clone)]
pub(super) struct FileNode {
    pub(super) digest: Digest,
    pub(super) size: u64,
    pub(super) executable: bool,
}

impl FileNode {
    pub(super) fn is_small(&self) -> bool {
        self.size <= SMALL_BLOB_MAX as u64
    }

    fn check_size(&self, found: u64) -> Result<(), NarError> {
        if found == self.size {
            return Ok(());
        }
        Err(NarError::Size { digest: self.digest, found, claimed: self.size })
    }

    /// The file's bytes; an error as soon as there are more than there should be.
    pub(super) fn read(
        &self,
        from: &impl Contents,
    ) -> impl Stream<Item = Result<Bytes, NarError>> + Send {
        try_stream! {
            let mut pieces = from.read(&self.digest).await?;
            let mut found = 0u64;
            while let Some(piece) = pieces.try_next().await? {
                found = found.saturating_add(piece.len() as u64);
                if found > self.size {
                    self.check_size(found)?;
                }
                yield piece;
            }
            self.check_size(found)?;
        }
    }
}

/// Some consecutive steps. A large file ends a batch.
#[derive(Default)]
pub(super) struct Batch {
    pub(super) steps: Vec<Step>,
    /// The small files among the steps, in order.
    small: Vec<Digest>,
    small_bytes: u64,
}

impl Batch {
    pub(super) fn is_full(&self) -> bool {
        self.steps.len() >= BATCH_STEPS
            || self.small.len() >= BATCH_BLOBS
            || self.small_bytes >= BATCH_BYTES
    }

    /// Adds a file; whether that ends the batch.
    pub(super) fn add_file(&mut self, file: FileNode) -> bool {
        let is_small = file.is_small();
        if is_small {
            self.small.push(file.digest);
            self.small_bytes += file.size;
        }
        self.steps.push(Step::File(file));
        !is_small
    }

    /// The steps, and the bytes of the small files among them.
    async fn fetch(self, from: &impl Contents) -> Result<(Vec<Step>, Vec<Bytes>), NarError> {
        if self.small.is_empty() {
            return Ok((self.steps, Vec::new()));
        }
        let answers = from.read_many(&self.small).await?;
        let files = self.steps.iter().filter_map(|step| match step {
            Step::File(file) if file.is_small() => Some(file),
            _ => None,
        });
        let mut contents = Vec::with_capacity(answers.len());
        let mut answers = answers.into_iter();
        for file in files {
            let bytes = answers.next().flatten().ok_or(BlobError::NotFound(file.digest))?;
            file.check_size(bytes.len() as u64)?;
            contents.push(bytes);
        }
        Ok((self.steps, contents))
    }
}

/// Walks a tree depth first.
pub(super) fn batches(
    root: Node,
    service: Arc<dyn DirectoryService>,
) -> impl Stream<Item = Result<Batch, NarError>> + Send {
    try_stream! {
        let directories = TreeDirectories::new(service);
        let mut walk = Walk { directories, stack: Vec::new(), entries: 0, contents: 0 };
        let mut batch = Batch::default();
        let mut ends_batch = walk.enter(root, &mut batch).await?;
        while !walk.stack.is_empty() {
            if ends_batch || batch.is_full() {
                yield std::mem::take(&mut batch);
            }
            ends_batch = walk.step(&mut batch).await?;
        }
        yield batch;
    }
}

struct Walk {
    directories: TreeDirectories,
    /// The directories that have begun, and the index of the next entry in each.
    stack: Vec<(Digest, Arc<Directory>, usize)>,
    entries: u64,
    contents: u64,
}

impl Walk {
    /// Goes to the next entry, or out of the directory; whether that ends the batch.
    async fn step(&mut self, batch: &mut Batch) -> Result<bool, NarError> {
        let Some((_, directory, next)) = self.stack.last_mut() else { return Ok(true) };
        let Some((name, node)) = directory.entries().get(*next).cloned() else {
            self.stack.pop();
            batch.steps.push(Step::DirectoryEnd);
            self.leave(batch);
            return Ok(false);
        };
        *next += 1;
        self.entries += 1;
        if self.entries > ENTRIES_MAX {
            return Err(NarError::TooLarge { what: "entries", max: ENTRIES_MAX });
        }
        batch.steps.push(Step::EntryStart(name));
        self.enter(node, batch).await
    }

    /// Takes a node that has begun; whether that ends the batch.
    async fn enter(&mut self, node: Node, batch: &mut Batch) -> Result<bool, NarError> {
        match node {
            Node::Directory { digest, .. } => {
                if self.stack.len() >= DEPTH_MAX {
                    let max = DEPTH_MAX as u64;
                    return Err(NarError::TooLarge { what: "directories in each other", max });
                }
                let within = self.stack.last().map(|(within, _, _)| *within);
                let directory = self.directories.get(&digest, within.as_ref()).await?;
                self.stack.push((digest, directory, 0));
                batch.steps.push(Step::DirectoryStart);
                Ok(false)
            }
            Node::File { digest, size, executable } => {
                self.contents = self.contents.saturating_add(size);
                if self.contents > CONTENTS_MAX {
                    return Err(NarError::TooLarge { what: "bytes in files", max: CONTENTS_MAX });
                }
                let ends_batch = batch.add_file(FileNode { digest, size, executable });
                self.leave(batch);
                Ok(ends_batch)
            }
            Node::Symlink { target } => {
                batch.steps.push(Step::Symlink(target));
                self.leave(batch);
                Ok(false)
            }
        }
    }

    fn leave(&self, batch: &mut Batch) {
        if !self.stack.is_empty() {
            batch.steps.push(Step::EntryEnd);
        }
    }
}
