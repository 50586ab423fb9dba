//! What an import stores, on its way to the services: several uploads at a time, within one budget
//! of bytes. What is to be stored, and in which order, is decided elsewhere.

use std::{
    io, iter,
    panic::resume_unwind,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use bytes::Bytes;
use futures::{
    StreamExt as _,
    stream::{self, BoxStream},
};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot},
    task::JoinSet,
};

use super::{
    ImportOptions,
    error::ImportError,
    pipeline::{BATCH_BYTES, HELD_MAX, HeldRoot, STREAM_PIECES},
    progress::ImportProgress,
    read::PIECE_BYTES,
};
use crate::{
    Blob, BlobError, BlobService, Digest, Directory, DirectoryError, DirectoryService,
    blob_service::{BlobSource, SMALL_BLOB_MAX},
    place::Location,
};

/// The most bytes of an import, or of imports that share an [`UploadBudget`], that are on their way
/// to the blob service at a time.
pub const UPLOAD_BYTES: usize = 32 * 1024 * 1024;

/// What an upload counts for at least, in bytes: so there are at most 64 at a time.
const UPLOAD_BYTES_MIN: usize = 512 * 1024;

/// What a file that is streamed to the store counts for: what waits of it, and what is with the
/// store.
const STREAM_BYTES: usize = (STREAM_PIECES + 2) * PIECE_BYTES;

// Whatever comes fits into the budget, or it would wait for ever.
const _: () = assert!(
    BATCH_BYTES + SMALL_BLOB_MAX <= UPLOAD_BYTES
        && HELD_MAX as usize <= UPLOAD_BYTES
        && STREAM_BYTES <= UPLOAD_BYTES
);

/// The bytes that may be on their way to the blob service. Clones share it, as imports at the same
/// time should.
#[derive(Debug, Clone)]
pub struct UploadBudget(Arc<Semaphore>);

impl Default for UploadBudget {
    /// [`UPLOAD_BYTES`].
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(UPLOAD_BYTES)))
    }
}

/// The next of a stream of things, or its end. A stream that just stops was abandoned.
#[derive(Debug)]
pub(super) enum Part<T> {
    Next(T),
    End,
}

/// Something to be stored.
#[derive(Debug)]
pub(super) enum Upload {
    /// Small blobs, of `bytes` bytes in all.
    Batch { location: Location, blobs: Vec<Blob>, bytes: usize },
    /// A large blob that is in memory.
    Held { location: Location, digest: Digest, size: u64, pieces: Vec<Bytes> },
    /// A large blob that is still being read, and its digest, which is known at its end.
    Stream {
        location: Location,
        parts: mpsc::Receiver<Part<Bytes>>,
        expected: oneshot::Receiver<Digest>,
    },
    /// The directories of the import, of which there is one stream.
    Directories(mpsc::Receiver<Part<Directory>>),
}

/// How an upload ended well.
enum Done {
    Blobs,
    /// The directories are stored under this root.
    Directories(Digest),
    /// The stream stopped before its end, for a reason that is told elsewhere.
    Abandoned,
}

/// The uploads of an import. Those that run are given up when this is dropped.
pub(super) struct Uploads {
    blobs: Arc<dyn BlobService>,
    directories: Arc<dyn DirectoryService>,
    progress: Arc<ImportProgress>,
    budget: UploadBudget,
    running: JoinSet<Result<Done, ImportError>>,
    /// How many of those that run store blobs.
    blobs_running: usize,
    stored_root: Option<Digest>,
}

impl Uploads {
    pub(super) fn new(
        blobs: Arc<dyn BlobService>,
        directories: Arc<dyn DirectoryService>,
        options: &ImportOptions,
    ) -> Self {
        Self {
            blobs,
            directories,
            progress: Arc::clone(&options.progress),
            budget: options.uploads.clone(),
            running: JoinSet::new(),
            blobs_running: 0,
            stored_root: None,
        }
    }

    /// Starts an upload as soon as the budget allows.
    pub(super) async fn start(&mut self, upload: Upload) {
        let blobs = Arc::clone(&self.blobs);
        let progress = Arc::clone(&self.progress);
        match upload {
            Upload::Batch { location, blobs: batch, bytes } => {
                let permit = self.permit(bytes).await;
                self.blobs_running += 1;
                self.running.spawn(async move {
                    let result = put_batch(&*blobs, batch, &progress).await;
                    drop(permit);
                    result.map(|()| Done::Blobs).map_err(|source| blob_error(&location, source))
                });
            }
            Upload::Held { location, digest, size, pieces } => {
                let permit = self.permit(size as usize).await;
                self.blobs_running += 1;
                self.running.spawn(async move {
                    put_held(&*blobs, &location, digest, size, pieces, &progress).await?;
                    drop(permit);
                    Ok(Done::Blobs)
                });
            }
            Upload::Stream { location, parts, expected } => {
                let permit = self.permit(STREAM_BYTES).await;
                self.blobs_running += 1;
                self.running.spawn(async move {
                    let done = put_stream(&*blobs, &location, parts, expected, &progress).await;
                    drop(permit);
                    done
                });
            }
            Upload::Directories(parts) => {
                let directories = Arc::clone(&self.directories);
                self.running.spawn(put_directories(directories, parts));
            }
        }
    }

    async fn permit(&self, bytes: usize) -> OwnedSemaphorePermit {
        let permits = u32::try_from(bytes.max(UPLOAD_BYTES_MIN)).expect("far below 4 GiB");
        let permit = Arc::clone(&self.budget.0).acquire_many_owned(permits).await;
        permit.expect("the budget is never closed")
    }

    /// Whether any upload runs.
    pub(super) fn any(&self) -> bool {
        !self.running.is_empty()
    }

    /// Waits until one of the uploads has ended, and tells whether it failed. There must be one.
    pub(super) async fn next(&mut self) -> Result<(), ImportError> {
        match self.running.join_next().await {
            None => Ok(()),
            Some(Err(error)) => match error.try_into_panic() {
                Ok(panic) => resume_unwind(panic),
                Err(_) => Err(ImportError::GivenUp),
            },
            Some(Ok(Err(error))) => Err(error),
            Some(Ok(Ok(Done::Directories(root)))) => {
                self.stored_root = Some(root);
                Ok(())
            }
            Some(Ok(Ok(Done::Blobs))) => {
                self.blobs_running -= 1;
                Ok(())
            }
            Some(Ok(Ok(Done::Abandoned))) => Ok(()),
        }
    }

    /// Waits until all blobs that were given to [`start`](Self::start) are stored.
    pub(super) async fn acknowledged(&mut self) -> Result<(), ImportError> {
        while self.blobs_running > 0 {
            self.next().await?;
        }
        Ok(())
    }

    /// Why no more was taken.
    pub(super) async fn failure(&mut self) -> ImportError {
        while self.any() {
            if let Err(error) = self.next().await {
                return error;
            }
        }
        ImportError::GivenUp
    }

    /// Gives up all that runs.
    pub(super) fn abort(&mut self) {
        self.running.abort_all();
    }

    /// Stores the root, and with it the directories.
    pub(super) async fn finish(&mut self, root: HeldRoot) -> Result<(), ImportError> {
        let HeldRoot { digest: expected, directory, stream } = root;
        for part in [Part::Next(directory), Part::End] {
            if stream.send(part).await.is_err() {
                return Err(self.failure().await);
            }
        }
        while self.any() {
            self.next().await?;
        }
        match self.stored_root {
            Some(answered) if answered == expected => Ok(()),
            Some(answered) => Err(ImportError::StoredRoot { expected, answered }),
            None => Err(ImportError::GivenUp),
        }
    }
}

fn blob_error(location: &Location, source: BlobError) -> ImportError {
    ImportError::Blob { path: location.path(), source }
}

async fn put_batch(
    blobs: &dyn BlobService,
    batch: Vec<Blob>,
    progress: &ImportProgress,
) -> Result<(), BlobError> {
    let digests: Vec<Digest> = batch.iter().map(|blob| *blob.digest()).collect();
    let has = blobs.has_many(&digests).await?;
    let count = batch.len();
    let new: Vec<Blob> = iter::zip(batch, has.into_iter().chain(iter::repeat(false)))
        .filter_map(|(blob, has)| (!has).then_some(blob))
        .collect();
    progress.blobs_known.add((count - new.len()) as u64);
    if new.is_empty() {
        return Ok(());
    }
    let (count, bytes) = (new.len(), new.iter().map(|blob| blob.bytes().len() as u64).sum());
    blobs.put_many(new).await?;
    progress.blobs_new.add(count as u64);
    progress.bytes_new.add(bytes);
    Ok(())
}

async fn put_held(
    blobs: &dyn BlobService,
    location: &Location,
    digest: Digest,
    size: u64,
    pieces: Vec<Bytes>,
    progress: &ImportProgress,
) -> Result<(), ImportError> {
    let failed = |source| blob_error(location, source);
    if blobs.has_many(&[digest]).await.map_err(failed)? == [true] {
        progress.blobs_known.add(1);
        return Ok(());
    }
    let source = stream::iter(pieces.into_iter().map(Ok)).boxed();
    let stored = blobs.put(source).await.map_err(failed)?;
    check(location, digest, stored.digest)?;
    progress.blobs_new.add(1);
    progress.bytes_new.add(size);
    Ok(())
}

async fn put_stream(
    blobs: &dyn BlobService,
    location: &Location,
    parts: mpsc::Receiver<Part<Bytes>>,
    expected: oneshot::Receiver<Digest>,
    progress: &ImportProgress,
) -> Result<Done, ImportError> {
    let abandoned = Arc::new(AtomicBool::new(false));
    let error = || io::Error::other("the import was given up");
    let source: BlobSource = stream_of(parts, Arc::clone(&abandoned), error);
    let stored = match blobs.put(source).await {
        Ok(stored) => stored,
        Err(_) if abandoned.load(Ordering::Relaxed) => return Ok(Done::Abandoned),
        Err(error) => return Err(blob_error(location, error)),
    };
    let Ok(expected) = expected.await else { return Ok(Done::Abandoned) };
    check(location, expected, stored.digest)?;
    progress.blobs_new.add(1);
    progress.bytes_new.add(stored.size);
    Ok(Done::Blobs)
}

fn check(location: &Location, expected: Digest, answered: Digest) -> Result<(), ImportError> {
    if answered == expected {
        return Ok(());
    }
    Err(ImportError::Stored { path: location.path(), expected, answered })
}

async fn put_directories(
    directories: Arc<dyn DirectoryService>,
    parts: mpsc::Receiver<Part<Directory>>,
) -> Result<Done, ImportError> {
    let abandoned = Arc::new(AtomicBool::new(false));
    let error = || DirectoryError::Invalid("the import was given up".to_owned());
    let stream = stream_of(parts, Arc::clone(&abandoned), error);
    match directories.put_closure(stream).await {
        Ok(root) => Ok(Done::Directories(root)),
        Err(_) if abandoned.load(Ordering::Relaxed) => Ok(Done::Abandoned),
        Err(error) => Err(ImportError::Directories(error)),
    }
}

/// The stream that comes in parts. Where it stops before its end it has an error, so that no
/// service takes what it got for the whole.
fn stream_of<T: Send + 'static, E: Send + 'static>(
    parts: mpsc::Receiver<Part<T>>,
    abandoned: Arc<AtomicBool>,
    error: fn() -> E,
) -> BoxStream<'static, Result<T, E>> {
    let next = move |parts: Option<mpsc::Receiver<Part<T>>>| {
        let abandoned = Arc::clone(&abandoned);
        async move {
            let mut parts = parts?;
            match parts.recv().await {
                Some(Part::Next(next)) => Some((Ok(next), Some(parts))),
                Some(Part::End) => None,
                None => {
                    abandoned.store(true, Ordering::Relaxed);
                    Some((Err(error()), None))
                }
            }
        }
    };
    stream::unfold(Some(parts), next).boxed()
}
