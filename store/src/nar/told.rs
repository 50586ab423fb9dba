//! The NAR of a directory that someone tells of step by step while its files are on their way into
//! a store. What comes of it is true of the root that it is told with, whatever was told: blobs
//! are known by their digests, and the root is computed. Whether a store has the tree is not known
//! here.

use std::{
    mem,
    sync::{Arc, OnceLock},
    time::Duration,
};

use async_stream::try_stream;
use async_trait::async_trait;
use bytes::Bytes;
use cairn_castore::{
    BlobError, BlobService, ByteRange, Digest, Directory, Name, Node,
    blob_service::{BlobStream, fresh::FreshListener},
    directory::SizeRule,
};
use cairn_proto::cairn::v1::{TreeStep, tree_step::Step as ToldStep};
use futures::{Stream, StreamExt as _, TryStreamExt as _};
use tokio::time::{Instant, timeout};

use super::{
    CONTENTS_MAX, DEPTH_MAX, ENTRIES_MAX, NarError, hash,
    writer::{Batch, Contents, FileNode, Step},
};
use crate::path_info::NarInfo;

/// How long the bytes of a file may be on their way when it is their turn.
const PATIENCE: Duration = Duration::from_secs(120);

/// How long nothing at all may come meanwhile.
const QUIET_PATIENCE: Duration = Duration::from_secs(20);

/// How often the store is asked for what has not come.
const ASK_INTERVAL: Duration = Duration::from_secs(1);

/// The most entries that are held of the directories from the root to the one being told.
const HELD_ENTRIES_MAX: usize = 512 * 1024;

/// The root and the NAR of the directory that these steps tell of.
pub(crate) async fn hash(
    steps: impl Stream<Item = Result<Vec<TreeStep>, NarError>> + Send + 'static,
    contents: ToldContents,
) -> Result<(Node, NarInfo), NarError> {
    let root = Arc::new(OnceLock::new());
    let nar = hash::of_batches(batches(steps, Arc::clone(&root)), &contents).await?;
    let root = root.get().cloned().ok_or_else(|| invalid("the end is missing"))?;
    Ok((root, nar))
}

/// The bytes of files, as soon as they have come.
pub(crate) struct ToldContents {
    /// Where they are on their way to.
    pub(crate) blobs: Arc<dyn BlobService>,
    /// Where they can be had before.
    pub(crate) fresh: FreshListener,
}

#[async_trait]
impl Contents for ToldContents {
    async fn read_many(&self, digests: &[Digest]) -> Result<Vec<Option<Bytes>>, BlobError> {
        let mut found = vec![None; digests.len()];
        let mut awaited = Awaited::new();
        loop {
            let arrival = self.fresh.arrival();
            self.fresh.fill(digests, &mut found);
            let missing = |found: &[Option<Bytes>]| -> Vec<usize> {
                (0..found.len()).filter(|&index| found[index].is_none()).collect()
            };
            let mut left = missing(&found);
            if !left.is_empty() && awaited.asks_store(self.fresh.stored()) {
                let wanted: Vec<_> = left.iter().map(|&index| digests[index]).collect();
                for (index, bytes) in left.into_iter().zip((*self.blobs).read_many(&wanted).await?)
                {
                    found[index] = bytes;
                }
                left = missing(&found);
            }
            if left.is_empty() || !awaited.wait(arrival).await {
                return Ok(found);
            }
        }
    }

    async fn read(&self, digest: &Digest) -> Result<BlobStream, BlobError> {
        let mut awaited = Awaited::new();
        loop {
            let arrival = self.fresh.arrival();
            if let Some(pieces) = self.fresh.get(digest) {
                return Ok(futures::stream::iter(pieces.into_iter().map(Ok)).boxed());
            }
            if awaited.asks_store(self.fresh.stored()) {
                // A stream may be given for a blob that is not there, and tell only then.
                let mut bytes = (*self.blobs).read(digest, ByteRange::ALL).await;
                if let Ok(stream) = &mut bytes {
                    match stream.try_next().await {
                        Ok(first) => {
                            let first = futures::stream::iter(first.map(Ok));
                            return Ok(first.chain(bytes?).boxed());
                        }
                        Err(error) => bytes = Err(error),
                    }
                }
                match bytes {
                    Err(BlobError::NotFound(_)) => {}
                    other => return other,
                }
            }
            if !awaited.wait(arrival).await {
                return Err(BlobError::NotFound(*digest));
            }
        }
    }
}

/// What is waited for, and when the store is asked for it.
struct Awaited {
    since: Instant,
    last_arrival: Instant,
    /// The number of what was stored when the store was asked last.
    asked_at: Option<u64>,
}

impl Awaited {
    fn new() -> Self {
        let now = Instant::now();
        Self { since: now, last_arrival: now, asked_at: None }
    }

    fn asks_store(&mut self, stored: u64) -> bool {
        self.asked_at.replace(stored) != Some(stored)
    }

    /// Waits until it is worth while to look again; `false` if it no longer is.
    async fn wait(&mut self, arrival: impl Future<Output = ()>) -> bool {
        match timeout(ASK_INTERVAL, arrival).await {
            Ok(()) => self.last_arrival = Instant::now(),
            Err(_) => self.asked_at = None,
        }
        self.since.elapsed() < PATIENCE && self.last_arrival.elapsed() < QUIET_PATIENCE
    }
}

/// The batches of the steps. The root is set when it is left.
fn batches(
    steps: impl Stream<Item = Result<Vec<TreeStep>, NarError>> + Send + 'static,
    root: Arc<OnceLock<Node>>,
) -> impl Stream<Item = Result<Batch, NarError>> + Send {
    try_stream! {
        let mut steps = std::pin::pin!(steps);
        let mut told = Told::new();
        let mut batch = Batch::default();
        batch.steps.push(Step::DirectoryStart);
        while let Some(steps) = steps.try_next().await? {
            for step in steps {
                let ends_batch = told.step(step, &root, &mut batch)?;
                if ends_batch || batch.is_full() {
                    yield mem::take(&mut batch);
                }
            }
            // Who knows how long it is until the next.
            if !batch.steps.is_empty() {
                yield mem::take(&mut batch);
            }
        }
    }
}

/// The directories that are being told of.
struct Told {
    levels: Vec<Level>,
    held: usize,
    entries: u64,
    contents: u64,
}

struct Level {
    /// The root has none.
    name: Option<Name>,
    entries: Vec<(Name, Node)>,
}

impl Told {
    fn new() -> Self {
        let root = Level { name: None, entries: Vec::new() };
        Self { levels: vec![root], held: 0, entries: 0, contents: 0 }
    }

    /// Takes a step; whether it ends the batch.
    fn step(
        &mut self,
        step: TreeStep,
        root: &OnceLock<Node>,
        batch: &mut Batch,
    ) -> Result<bool, NarError> {
        let Some(level) = self.levels.last_mut() else {
            return Err(invalid("something comes behind the end"));
        };
        match step.step.ok_or_else(|| invalid("a step says nothing"))? {
            ToldStep::Enter(name) => {
                let name = Name::try_from(name).map_err(invalid)?;
                if self.levels.len() >= DEPTH_MAX {
                    let max = DEPTH_MAX as u64;
                    return Err(NarError::TooLarge { what: "directories in each other", max });
                }
                self.count()?;
                batch.steps.extend([Step::EntryStart(name.clone()), Step::DirectoryStart]);
                self.levels.push(Level { name: Some(name), entries: Vec::new() });
                Ok(false)
            }
            ToldStep::Leave(_) => {
                let Level { name, entries } =
                    Level { name: level.name.take(), entries: mem::take(&mut level.entries) };
                self.levels.pop();
                self.held -= entries.len();
                // As it is in the NAR: another order would be another tree.
                if !entries.is_sorted_by(|(a, _), (b, _)| a < b) {
                    return Err(invalid("the entries of a directory are not in order"));
                }
                let directory = Directory::new(entries).map_err(invalid)?;
                let size = directory.size(SizeRule::Doubled);
                let node = Node::Directory { digest: directory.digest(), size };
                batch.steps.push(Step::DirectoryEnd);
                match (name, self.levels.last_mut()) {
                    (Some(name), Some(level)) => {
                        batch.steps.push(Step::EntryEnd);
                        level.entries.push((name, node));
                        self.held += 1;
                    }
                    _ => root.set(node).map_err(|_| invalid("there are two roots"))?,
                }
                Ok(false)
            }
            ToldStep::Entry(entry) => {
                let (name, node) = Node::from_named_entry(entry).map_err(invalid)?;
                level.entries.push((name.clone(), node.clone()));
                self.held += 1;
                self.count()?;
                batch.steps.push(Step::EntryStart(name));
                let ends_batch = match node {
                    Node::Directory { .. } => {
                        return Err(invalid("a directory is told of as an entry"));
                    }
                    Node::File { digest, size, executable } => {
                        self.contents = self.contents.saturating_add(size);
                        if self.contents > CONTENTS_MAX {
                            let max = CONTENTS_MAX;
                            return Err(NarError::TooLarge { what: "bytes in files", max });
                        }
                        batch.add_file(FileNode { digest, size, executable })
                    }
                    Node::Symlink { target } => {
                        batch.steps.push(Step::Symlink(target));
                        false
                    }
                };
                batch.steps.push(Step::EntryEnd);
                Ok(ends_batch)
            }
        }
    }

    fn count(&mut self) -> Result<(), NarError> {
        self.entries += 1;
        if self.entries > ENTRIES_MAX {
            return Err(NarError::TooLarge { what: "entries", max: ENTRIES_MAX });
        }
        if self.held > HELD_ENTRIES_MAX {
            let max = HELD_ENTRIES_MAX as u64;
            return Err(NarError::TooLarge { what: "entries in open directories", max });
        }
        Ok(())
    }
}

/// What was told is no tree.
fn invalid(what: impl ToString) -> NarError {
    NarError::Source(std::io::Error::new(std::io::ErrorKind::InvalidData, what.to_string()))
}
