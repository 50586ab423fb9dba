//! Trees in: a file, directory or symlink of the local file system becomes blobs and directories.
//! What else is computed of a tree on the way is told to an observer, so that no byte is read
//! twice.
//!
//! One thread walks the tree and cuts it into jobs; some threads read and hash the files of the
//! jobs; one thread puts their results back into the order of the tree, tells the observer and
//! makes the directories. What is to be stored leaves it for the async runtime, where a bounded
//! number of bytes is on its way to the services at any time.

mod error;
mod fingerprint;
mod pipeline;
mod pool;
mod progress;
mod read;
mod recent;
#[cfg(test)]
mod tests;
mod upload;
mod walk;

use std::{path::Path, sync::Arc, thread};

use tokio::sync::mpsc;

use crate::{BlobService, Digest, DirectoryService, Name, Node, SymlinkTarget};

pub use self::{
    error::{Change, ImportError, SpecialFile},
    fingerprint::{SETTLED_AFTER, TreeFingerprint, fingerprint},
    pipeline::{READERS_MAX, READERS_MIN},
    progress::ImportProgress,
    upload::{UPLOAD_BYTES, UploadBudget},
    walk::DEPTH_MAX,
};
use self::{
    pipeline::{Message, Outcome, Stop},
    upload::Uploads,
};

/// A step through a tree, depth first, entries in ascending order of their names' bytes.
///
/// A node is a directory (`DirectoryStart`, then for each entry `EntryStart`, the entry's node and
/// `EntryEnd`, then `DirectoryEnd`), a file (`FileStart`, its bytes in pieces of any size,
/// `FileEnd`) or a symlink.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TreeEvent<'a> {
    /// A directory begins.
    DirectoryStart,
    /// An entry of the directory begins; its node follows.
    EntryStart(&'a Name),
    /// The entry ends.
    EntryEnd,
    /// The directory ends.
    DirectoryEnd,
    /// A file begins.
    FileStart {
        /// Its length in bytes; just as many follow.
        size: u64,
        /// Whether its owner may execute it.
        executable: bool,
    },
    /// The file's next bytes.
    FileBytes(&'a [u8]),
    /// The file ends, whose bytes have this digest.
    FileEnd(&'a Digest),
    /// A symlink, whole.
    Symlink(&'a SymlinkTarget),
}

/// Whoever is told of a tree while it is imported.
///
/// It is called on a thread of the import's own, and may compute; the import waits for it.
pub trait TreeObserver: Send {
    /// Takes the next step.
    fn observe(&mut self, event: TreeEvent<'_>);
}

/// Observes nothing.
impl TreeObserver for () {
    fn observe(&mut self, _: TreeEvent<'_>) {}
}

impl<T: TreeObserver + ?Sized> TreeObserver for Box<T> {
    fn observe(&mut self, event: TreeEvent<'_>) {
        (**self).observe(event);
    }
}

impl<T: TreeObserver> TreeObserver for Option<T> {
    fn observe(&mut self, event: TreeEvent<'_>) {
        if let Some(observer) = self {
            observer.observe(event);
        }
    }
}

/// Both are told, one after the other.
impl<A: TreeObserver, B: TreeObserver> TreeObserver for (A, B) {
    fn observe(&mut self, event: TreeEvent<'_>) {
        self.0.observe(event);
        self.1.observe(event);
    }
}

/// How a tree is imported.
#[derive(Debug, Clone)]
pub struct ImportOptions {
    /// How many threads read files: from [`READERS_MIN`] to [`READERS_MAX`], or what is nearest.
    pub readers: usize,
    /// Where the import tells how far it is. May be shared by several imports.
    pub progress: Arc<ImportProgress>,
    /// The bytes that may be on their way to the blob service. To be shared by imports that run at
    /// the same time.
    pub uploads: UploadBudget,
}

impl Default for ImportOptions {
    /// As many readers as there are processors, but at least four, since a reader waits for the
    /// disk when the files are not cached.
    fn default() -> Self {
        let processors = thread::available_parallelism().map_or(1, usize::from);
        Self {
            readers: processors.max(4),
            progress: Arc::default(),
            uploads: UploadBudget::default(),
        }
    }
}

/// Imports what is at `path` and answers with its node, and with the observer, which has seen all
/// of it.
///
/// A symlink is imported as such, not followed; as everywhere, a slash behind its name means what
/// it points at. When this returns, all of the tree is durable. The root directory is stored
/// after everything else was acknowledged: whoever finds it finds all of the tree.
///
/// Each file is read once. Memory is bounded whatever the tree: what grows with it are the
/// listings of the directories from the root to the one being read. If the future is dropped, the
/// import stops, and what was stored of the tree so far stays without a root.
///
/// Fails if something in the tree is no file, directory or symlink, can't be read, or changes
/// while it is read, and if a service fails. The first fault in the order of the tree is told.
pub async fn import<O: TreeObserver + 'static>(
    path: &Path,
    blobs: Arc<dyn BlobService>,
    directories: Arc<dyn DirectoryService>,
    options: ImportOptions,
    observer: O,
) -> Result<(Node, O), ImportError> {
    let mut uploads = Uploads::new(blobs, directories, &options);
    let stop = Stop::default();
    let (mut queue, thread) = pipeline::spawn(path, &options, observer, stop.flag())?;

    let outcome = run(&mut queue, &mut uploads).await;
    drop(stop);
    if outcome.is_err() {
        uploads.abort();
    }
    // Nothing takes what the threads send any more, and nothing lets them wait, so they end.
    queue.close();
    while queue.recv().await.is_some() {}
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }

    let Outcome { node, root, observer } = outcome?;
    if let Some(root) = root {
        uploads.finish(root).await?;
    }
    Ok((node, observer))
}

/// Stores what the threads send until they are done, and every blob is acknowledged.
async fn run<O>(
    queue: &mut mpsc::Receiver<Message<O>>,
    uploads: &mut Uploads,
) -> Result<Outcome<O>, ImportError> {
    loop {
        tokio::select! {
            message = queue.recv() => match message {
                Some(Message::Upload(upload)) => uploads.start(upload).await,
                Some(Message::Finished(Ok(outcome))) => {
                    uploads.acknowledged().await?;
                    return Ok(outcome);
                }
                Some(Message::Finished(Err(Some(error)))) => return Err(error),
                // The threads stop unasked only when a service no longer takes what they send.
                Some(Message::Finished(Err(None))) | None => return Err(uploads.failure().await),
            },
            result = uploads.next(), if uploads.any() => result?,
        }
    }
}
