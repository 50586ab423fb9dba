//! Trees from one store to another: what the other does not have is sent, blobs first, directories
//! when all blobs are there. What names the trees is copied elsewhere.

mod closure;

use std::{
    collections::HashSet,
    io, mem,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use bytes::Bytes;
use futures::{StreamExt as _, TryStreamExt as _};
use tokio::task::{JoinError, JoinSet};

pub(crate) use self::closure::SpooledClosure;
use crate::{
    Blob, BlobError, BlobService, ByteRange, Digest, DirectoryError, DirectoryService, Node,
    blob_service::{HAS_MANY_DIGESTS, READ_MANY_BLOBS, SMALL_BLOB_MAX},
};

/// The small blobs that are read and stored together, in bytes.
const BATCH_BYTES: u64 = 4 * 1024 * 1024;

/// How many batches, or large blobs, are on their way at the same time.
const TRANSFERS_MAX: usize = 8;

/// How many blobs the other store is asked for at a time.
const ASKED_MAX: usize = 16 * 1024;

const _: () = assert!(ASKED_MAX <= HAS_MANY_DIGESTS);

/// Where contents are.
#[derive(Debug, Clone)]
pub struct Contents {
    /// The blobs.
    pub blobs: Arc<dyn BlobService>,
    /// The directories.
    pub directories: Arc<dyn DirectoryService>,
}

/// How far a copy is. Counts what is done, from any number of copies.
#[derive(Debug, Default)]
pub struct CopyProgress {
    blobs_sent: AtomicU64,
    blobs_known: AtomicU64,
    bytes_sent: AtomicU64,
    directories_sent: AtomicU64,
}

impl CopyProgress {
    /// The blobs that were sent.
    pub fn blobs_sent(&self) -> u64 {
        self.blobs_sent.load(Ordering::Relaxed)
    }

    /// The blobs that the other store had.
    pub fn blobs_known(&self) -> u64 {
        self.blobs_known.load(Ordering::Relaxed)
    }

    /// The bytes of blobs that were sent, those of blobs that are under way included.
    pub fn bytes_sent(&self) -> u64 {
        self.bytes_sent.load(Ordering::Relaxed)
    }

    /// The directories that were sent.
    pub fn directories_sent(&self) -> u64 {
        self.directories_sent.load(Ordering::Relaxed)
    }
}

/// Why a tree was not copied. What had arrived stays, and is not sent again the next time.
#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    /// A blob can't be read.
    #[error("{store} does not give a blob")]
    ReadBlob {
        /// The store that is copied from, as it displays.
        store: String,
        /// What it said.
        #[source]
        source: BlobError,
    },
    /// A directory can't be read.
    #[error("{store} does not give a directory")]
    ReadDirectory {
        /// The store that is copied from, as it displays.
        store: String,
        /// What it said.
        #[source]
        source: DirectoryError,
    },
    /// A blob can't be stored.
    #[error("{store} does not take a blob")]
    WriteBlob {
        /// The store that is copied to, as it displays.
        store: String,
        /// What it said.
        #[source]
        source: BlobError,
    },
    /// A directory can't be stored.
    #[error("{store} does not take a directory")]
    WriteDirectory {
        /// The store that is copied to, as it displays.
        store: String,
        /// What it said.
        #[source]
        source: DirectoryError,
    },
    /// Directories are kept in a temporary file where they are many, and that failed.
    #[error("the temporary file for directories failed")]
    Spool(#[source] io::Error),
    /// A part of the work was given up, as when the process ends.
    #[error("the copy was given up")]
    GivenUp(#[source] JoinError),
}

/// Copies a tree. When this returns, all of it is durable where it was copied to.
///
/// What is there already is not sent. Everything is verified: by the service that it is read from,
/// and by its digest where it is stored.
pub async fn copy_tree(
    root: &Node,
    from: &Contents,
    to: &Contents,
    progress: &Arc<CopyProgress>,
) -> Result<(), CopyError> {
    let mut blobs = BlobCopy::new(from, to, progress);
    let (digest, closure) = match root {
        Node::Symlink { .. } => return Ok(()),
        Node::File { digest, size, .. } => {
            blobs.add(*digest, *size).await?;
            return blobs.finish().await;
        }
        Node::Directory { digest, .. } => {
            let unread = |source| from.directory_unread(source);
            let stream = from.directories.get_closure(digest).await.map_err(unread)?;
            let mut directories = stream.map_err(unread);
            let mut closure = SpooledClosure::new();
            while let Some(directory) = directories.try_next().await? {
                for (_, node) in directory.entries() {
                    if let Node::File { digest, size, .. } = node {
                        blobs.add(*digest, *size).await?;
                    }
                }
                closure.push(&directory).map_err(CopyError::Spool)?;
            }
            (digest, closure)
        }
    };
    blobs.finish().await?;
    let refused = |source| to.directory_refused(source);
    if to.directories.has_many(std::slice::from_ref(digest)).await.map_err(refused)? == [true] {
        return Ok(());
    }
    let count = closure.len() as u64;
    let stream = closure.leaves_first(*digest);
    match to.directories.put_closure(stream).await {
        Ok(_) => {
            progress.directories_sent.fetch_add(count, Ordering::Relaxed);
            Ok(())
        }
        // What the stream failed with is no fault of the store that takes it.
        Err(DirectoryError::Other { source, .. }) if source.is::<io::Error>() => {
            Err(CopyError::Spool(io::Error::other(source)))
        }
        Err(error) => Err(refused(error)),
    }
}

impl Contents {
    fn blob_unread(&self, source: BlobError) -> CopyError {
        CopyError::ReadBlob { store: self.blobs.to_string(), source }
    }

    fn blob_refused(&self, source: BlobError) -> CopyError {
        CopyError::WriteBlob { store: self.blobs.to_string(), source }
    }

    fn directory_unread(&self, source: DirectoryError) -> CopyError {
        CopyError::ReadDirectory { store: self.directories.to_string(), source }
    }

    fn directory_refused(&self, source: DirectoryError) -> CopyError {
        CopyError::WriteDirectory { store: self.directories.to_string(), source }
    }
}

/// The blobs of a tree on their way.
struct BlobCopy<'a> {
    from: &'a Contents,
    to: &'a Contents,
    progress: &'a Arc<CopyProgress>,
    seen: HashSet<Digest>,
    /// Those that the other store has not been asked for, with their sizes.
    unasked: Vec<(Digest, u64)>,
    /// Small ones that it does not have.
    batch: Vec<Digest>,
    batch_bytes: u64,
    transfers: JoinSet<Result<(), CopyError>>,
}

impl<'a> BlobCopy<'a> {
    fn new(from: &'a Contents, to: &'a Contents, progress: &'a Arc<CopyProgress>) -> Self {
        Self {
            from,
            to,
            progress,
            seen: HashSet::new(),
            unasked: Vec::new(),
            batch: Vec::new(),
            batch_bytes: 0,
            transfers: JoinSet::new(),
        }
    }

    async fn add(&mut self, digest: Digest, size: u64) -> Result<(), CopyError> {
        if digest == Digest::EMPTY || !self.seen.insert(digest) {
            return Ok(());
        }
        self.unasked.push((digest, size));
        if self.unasked.len() >= ASKED_MAX { self.ask().await } else { Ok(()) }
    }

    /// Asks which blobs are to be sent, and begins to.
    async fn ask(&mut self) -> Result<(), CopyError> {
        let asked = mem::take(&mut self.unasked);
        let digests: Vec<_> = asked.iter().map(|(digest, _)| *digest).collect();
        let there = self.to.blobs.has_many(&digests).await;
        let there = there.map_err(|error| self.to.blob_refused(error))?;
        for ((digest, size), is_there) in asked.into_iter().zip(there) {
            if is_there {
                self.progress.blobs_known.fetch_add(1, Ordering::Relaxed);
            } else if size > SMALL_BLOB_MAX as u64 {
                let (from, to, progress) =
                    (self.from.clone(), self.to.clone(), self.progress.clone());
                self.start(async move { send_large(digest, &from, &to, &progress).await }).await?;
            } else {
                if self.batch_bytes + size > BATCH_BYTES || self.batch.len() >= READ_MANY_BLOBS {
                    self.send_batch().await?;
                }
                self.batch.push(digest);
                self.batch_bytes += size;
            }
        }
        Ok(())
    }

    async fn send_batch(&mut self) -> Result<(), CopyError> {
        let digests = mem::take(&mut self.batch);
        self.batch_bytes = 0;
        if digests.is_empty() {
            return Ok(());
        }
        let (from, to, progress) = (self.from.clone(), self.to.clone(), self.progress.clone());
        self.start(async move { send_small(&digests, &from, &to, &progress).await }).await
    }

    async fn start(
        &mut self,
        transfer: impl Future<Output = Result<(), CopyError>> + Send + 'static,
    ) -> Result<(), CopyError> {
        while self.transfers.len() >= TRANSFERS_MAX {
            self.one_done().await?;
        }
        self.transfers.spawn(transfer);
        Ok(())
    }

    async fn one_done(&mut self) -> Result<(), CopyError> {
        match self.transfers.join_next().await {
            Some(done) => done.map_err(CopyError::GivenUp)?,
            None => Ok(()),
        }
    }

    async fn finish(mut self) -> Result<(), CopyError> {
        self.ask().await?;
        self.send_batch().await?;
        while !self.transfers.is_empty() {
            self.one_done().await?;
        }
        Ok(())
    }
}

async fn send_small(
    digests: &[Digest],
    from: &Contents,
    to: &Contents,
    progress: &Arc<CopyProgress>,
) -> Result<(), CopyError> {
    let found = match from.blobs.read_many(digests).await {
        Ok(found) => found,
        // One is larger than its directory says: each goes by itself.
        Err(BlobError::TooLarge { .. }) => {
            for digest in digests {
                send_large(*digest, from, to, progress).await?;
            }
            return Ok(());
        }
        Err(error) => return Err(from.blob_unread(error)),
    };
    let (mut blobs, mut bytes) = (Vec::with_capacity(found.len()), 0);
    for (digest, found) in digests.iter().zip(found) {
        let found = found.ok_or_else(|| from.blob_unread(BlobError::NotFound(*digest)))?;
        bytes += found.len() as u64;
        blobs.push(verified(*digest, found).map_err(|error| from.blob_unread(error))?);
    }
    let count = blobs.len() as u64;
    to.blobs.put_many(blobs).await.map_err(|error| to.blob_refused(error))?;
    progress.blobs_sent.fetch_add(count, Ordering::Relaxed);
    progress.bytes_sent.fetch_add(bytes, Ordering::Relaxed);
    Ok(())
}

fn verified(digest: Digest, bytes: Bytes) -> Result<Blob, BlobError> {
    let reason = || "what was read is not what its digest says".to_owned();
    Blob::verified(digest, bytes).ok_or_else(|| BlobError::Corrupt { digest, reason: reason() })
}

async fn send_large(
    digest: Digest,
    from: &Contents,
    to: &Contents,
    progress: &Arc<CopyProgress>,
) -> Result<(), CopyError> {
    let unread = |error| from.blob_unread(error);
    let bytes = from.blobs.read(&digest, ByteRange::ALL).await.map_err(unread)?;
    let counted = progress.clone();
    let source = bytes.map(move |piece| match piece {
        Ok(piece) => {
            counted.bytes_sent.fetch_add(piece.len() as u64, Ordering::Relaxed);
            Ok(piece)
        }
        Err(error) => Err(io::Error::other(error)),
    });
    let stat = to.blobs.put(source.boxed()).await.map_err(|error| match error {
        BlobError::Source(error) => match error.downcast::<BlobError>() {
            Ok(error) => unread(error),
            Err(error) => unread(BlobError::Source(error)),
        },
        error => to.blob_refused(error),
    })?;
    if stat.digest != digest {
        let reason = format!("what was read of it is {}", stat.digest);
        return Err(unread(BlobError::Corrupt { digest, reason }));
    }
    progress.blobs_sent.fetch_add(1, Ordering::Relaxed);
    Ok(())
}

#[cfg(test)]
mod tests;
