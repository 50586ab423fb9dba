//! Trees out: blobs and directories become files, directories and symlinks of the local file
//! system. How a tree looks on a mount is not known here.
//!
//! One thread makes the directories and symlinks and says which files are to be written; the async
//! side fetches their contents, within a budget of bytes; some threads write them.

mod build;
mod removal;
#[cfg(test)]
mod tests;
mod write;

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
    thread,
};

use bytes::Bytes;
use futures::TryStreamExt as _;
use rustix::io::Errno;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot},
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;

pub use self::write::{WRITERS_MAX, WRITERS_MIN};
use self::{
    build::Task,
    write::{FileToWrite, Write},
};
use crate::{
    BlobError, BlobService, ByteRange, DirectoryError, DirectoryService, Node,
    blob_service::SMALL_BLOB_MAX,
};

/// The most bytes of files that are fetched, or wait to be written, at a time.
const EXPORT_BYTES: usize = 32 * 1024 * 1024;

/// What a fetch counts for at least, in bytes: so there are at most 16 at a time.
const FETCH_BYTES_MIN: usize = 2 * 1024 * 1024;

/// What waits for a writer.
const WRITES_QUEUED: usize = 2;

/// The pieces of a large file that wait for the one who writes it.
const LARGE_PIECES: usize = 2;

// Whatever comes fits into the budget, or it would wait for ever.
const _: () = assert!(build::BATCH_BYTES + SMALL_BLOB_MAX <= EXPORT_BYTES);

/// How a tree is exported.
#[derive(Debug, Clone)]
pub struct ExportOptions {
    /// How many threads write files: from [`WRITERS_MIN`] to [`WRITERS_MAX`], or what is nearest.
    pub writers: usize,
}

impl Default for ExportOptions {
    /// As many writers as there are processors.
    fn default() -> Self {
        Self { writers: thread::available_parallelism().map_or(1, usize::from) }
    }
}

/// What has been exported.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ExportSummary {
    /// Regular files.
    pub files: u64,
    /// Directories, the root included.
    pub directories: u64,
    /// Symlinks.
    pub symlinks: u64,
    /// The files' bytes.
    pub bytes: u64,
}

/// Why a tree could not be exported. Nothing is left of it then.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// There is something at the destination.
    #[error("{} exists already", .path.display())]
    Exists {
        /// The destination.
        path: PathBuf,
    },
    /// The file system is full, or the user's share of it.
    #[error("no room is left for {}", .path.display())]
    NoSpace {
        /// What was to be written.
        path: PathBuf,
        /// What the file system said.
        #[source]
        source: io::Error,
    },
    /// The file system refuses.
    #[error("{} can't be written", .path.display())]
    Write {
        /// What was to be written.
        path: PathBuf,
        /// What the file system said.
        #[source]
        source: io::Error,
    },
    /// A directory was moved away while the tree was written.
    #[error("{} was moved while the tree was written", .path.display())]
    Moved {
        /// Where it was.
        path: PathBuf,
    },
    /// Directories in directories, too many.
    #[error("{} is more than {max} directories deep", .path.display())]
    TooDeep {
        /// The directory that is too deep.
        path: PathBuf,
        /// The most that is allowed.
        max: usize,
    },
    /// The blob service failed with a file's contents.
    #[error("the contents of {} could not be read", .path.display())]
    Blob {
        /// The file, or the first of the small files that were to be read together.
        path: PathBuf,
        /// What the service said.
        #[source]
        source: BlobError,
    },
    /// A file's contents have another length than the tree says.
    #[error("the contents of {} have {found} bytes instead of {expected}", .path.display())]
    Size {
        /// The file.
        path: PathBuf,
        /// The length by the tree.
        expected: u64,
        /// The length of the blob, or of as much of it as was read.
        found: u64,
    },
    /// The directory service failed.
    #[error("the entries of {} could not be read", .path.display())]
    Directory {
        /// The directory.
        path: PathBuf,
        /// What the service said.
        #[source]
        source: DirectoryError,
    },
    /// The system gives no more threads.
    #[error("the threads of an export could not be started")]
    Threads(#[source] io::Error),
    /// The export was stopped from outside.
    #[error("the export was given up")]
    GivenUp,
}

impl ExportError {
    fn of_write(path: PathBuf, errno: Errno) -> Self {
        match errno {
            Errno::NOSPC | Errno::DQUOT => Self::NoSpace { path, source: errno.into() },
            errno => Self::Write { path, source: errno.into() },
        }
    }
}

/// Writes a tree to `destination`, where nothing may be yet.
///
/// Files get the mode 0644, or 0755 if they are executable, and directories 0755, less what the
/// process's mask takes away; they belong to the process's user, and their times are those of
/// their making. The tree is written beside the destination, in a folder of a name that starts
/// with `.cairn-export-`, and moved there when it is whole; if that fails, or if the future is
/// dropped, it is removed again. Nothing is synchronised: as after a copy, a loss of power soon
/// after may damage it.
///
/// Fails if something is missing in the services or has another size than the tree says, and if
/// the file system does not take it.
pub async fn export(
    node: &Node,
    destination: &Path,
    blobs: Arc<dyn BlobService>,
    directories: Arc<dyn DirectoryService>,
    options: ExportOptions,
) -> Result<ExportSummary, ExportError> {
    let (tasks, mut to_fetch) = mpsc::channel(1);
    let (writes, to_write) = mpsc::channel(WRITES_QUEUED);
    let (result, finished) = oneshot::channel();
    // Dropped before the channels, so that the threads don't take their end for that of the tree.
    let stop = CancellationToken::new();
    let guard = stop.clone().drop_guard();
    let job = build::Job {
        node: node.clone(),
        destination: destination.to_owned(),
        directories,
        runtime: tokio::runtime::Handle::current(),
        writers: options.writers,
        stop: stop.clone(),
    };
    let run = move || {
        // Nobody is there to take it if the export was dropped.
        let _ = result.send(job.run(tasks, to_write));
    };
    let thread = thread::Builder::new().name("cairn-export".to_owned()).spawn(run);
    let thread = thread.map_err(ExportError::Threads)?;

    let fetched = fetch(blobs, &mut to_fetch, &writes, &stop).await;
    if fetched.is_err() {
        stop.cancel();
    }
    drop((to_fetch, writes));
    let exported = finished.await;
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
    guard.disarm();
    match fetched {
        Ok(()) | Err(ExportError::GivenUp) => exported.unwrap_or(Err(ExportError::GivenUp)),
        Err(error) => Err(error),
    }
}

/// Fetches what files are to be written with. `Ok` as well if the export was stopped.
async fn fetch(
    blobs: Arc<dyn BlobService>,
    tasks: &mut mpsc::Receiver<Task>,
    writes: &mpsc::Sender<Write>,
    stop: &CancellationToken,
) -> Result<(), ExportError> {
    let budget = Arc::new(Semaphore::new(EXPORT_BYTES));
    let mut running = JoinSet::new();
    let mut more = true;
    while more || !running.is_empty() {
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            task = tasks.recv(), if more => {
                let Some(task) = task else {
                    more = false;
                    continue;
                };
                let bytes = task.bytes().clamp(FETCH_BYTES_MIN, EXPORT_BYTES);
                let permits = u32::try_from(bytes).expect("the budget is far below 4 GiB");
                let permit = tokio::select! {
                    () = stop.cancelled() => return Ok(()),
                    permit = Arc::clone(&budget).acquire_many_owned(permits) => permit,
                };
                let permit = permit.expect("the budget is never closed");
                let (blobs, writes) = (Arc::clone(&blobs), writes.clone());
                running.spawn(async move {
                    match task {
                        Task::Small { files, .. } => {
                            fetch_small(&*blobs, files, &writes, permit).await
                        }
                        Task::Large(file) => fetch_large(&*blobs, file, &writes, permit).await,
                    }
                });
            },
            Some(result) = running.join_next() => match result {
                Ok(result) => result?,
                Err(error) => match error.try_into_panic() {
                    Ok(panic) => std::panic::resume_unwind(panic),
                    Err(_) => return Err(ExportError::GivenUp),
                },
            },
        }
    }
    Ok(())
}

/// A writer that takes no more has failed, and tells why itself.
fn stopped<E>(_: E) -> ExportError {
    ExportError::GivenUp
}

async fn fetch_small(
    blobs: &dyn BlobService,
    files: Vec<FileToWrite>,
    writes: &mpsc::Sender<Write>,
    permit: OwnedSemaphorePermit,
) -> Result<(), ExportError> {
    let Some(first) = files.first() else { return Ok(()) };
    let digests: Vec<_> = files.iter().map(|file| file.digest).collect();
    let contents = blobs.read_many(&digests).await;
    let contents = contents.map_err(|source| ExportError::Blob { path: first.path(), source })?;
    let mut contents = contents.into_iter();
    let mut filled = Vec::with_capacity(files.len());
    for file in files {
        let Some(bytes) = contents.next().flatten() else {
            let source = BlobError::NotFound(file.digest);
            return Err(ExportError::Blob { path: file.path(), source });
        };
        file.check_size(bytes.len() as u64)?;
        filled.push((file, bytes));
    }
    writes.send(Write::Small { files: filled, permit }).await.map_err(stopped)
}

async fn fetch_large(
    blobs: &dyn BlobService,
    file: FileToWrite,
    writes: &mpsc::Sender<Write>,
    permit: OwnedSemaphorePermit,
) -> Result<(), ExportError> {
    let path = file.location.clone();
    let (expected, digest) = (file.size, file.digest);
    let failed = |source| ExportError::Blob { path: path.path(), source };
    let mut stream = blobs.read(&digest, ByteRange::ALL).await.map_err(failed)?;
    let (pieces, to_write) = mpsc::channel::<Bytes>(LARGE_PIECES);
    let write = Write::Large { file, pieces: to_write, permit };
    writes.send(write).await.map_err(stopped)?;
    let mut found = 0;
    while let Some(piece) = stream.try_next().await.map_err(failed)? {
        found += piece.len() as u64;
        if found > expected {
            break;
        }
        pieces.send(piece).await.map_err(stopped)?;
    }
    if found != expected {
        return Err(ExportError::Size { path: path.path(), expected, found });
    }
    Ok(())
}
