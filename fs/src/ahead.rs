//! Contents ahead of need: whoever reads a directory's files in order, as `tar`, `cp -r` and
//! `grep -r` do, finds the small files that come next in the kernel's memory, and the server has
//! fetched them together. When that is worth while is in `ahead/walks`.

mod walks;

use std::{
    fmt, io,
    sync::{
        Arc, OnceLock,
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    thread,
};

use bytes::Bytes;
use cairn_castore::blob_service::SMALL_BLOB_MAX;
use parking_lot::Mutex;
use tokio::{sync::Semaphore, time::timeout};

use self::walks::{Batch, File, Walks};
use crate::{
    file_system::CairnFs,
    inodes::{Inode, Inodes, NodeId, Seen},
    reads::Reads,
    wait::Waiter,
};

/// How many batches may wait for the thread that serves them. What comes beyond that is left to
/// those who read.
const QUEUE_MAX: usize = 16;

/// How many batches are fetched from a slow store at the same time.
const FETCHES_MAX: usize = 8;

/// The part of a request's deadline that a batch may take. Whoever waits for one of its files, while
/// another is stuck, then asks for it alone.
const PATIENCE: u32 = 4;

/// Gives the kernel the whole contents of a file that it knows.
type Store = Box<dyn Fn(NodeId, &[u8]) -> io::Result<()> + Send + Sync>;

/// What reads ahead of those who read directories in order.
pub(crate) struct Ahead {
    walks: Mutex<Walks>,
    shared: Arc<Shared>,
    /// Leads to the thread that serves batches, which starts with the first one. `None`: it could
    /// not be started.
    jobs: OnceLock<Option<SyncSender<Job>>>,
}

struct Shared {
    inodes: Arc<Inodes>,
    reads: Arc<Reads>,
    waiter: Arc<Waiter>,
    store: OnceLock<Store>,
    fetches: Arc<Semaphore>,
}

enum Job {
    /// Files to be read, and where to send what takes time.
    Read(Batch, SyncSender<Job>),
    /// Files that have been fetched.
    Store(Batch, Vec<Option<Bytes>>),
}

impl Ahead {
    pub(crate) fn new(inodes: Arc<Inodes>, reads: Arc<Reads>, waiter: Arc<Waiter>) -> Self {
        let fetches = Arc::new(Semaphore::new(FETCHES_MAX));
        let shared = Shared { inodes, reads, waiter, store: OnceLock::new(), fetches };
        Self { walks: Mutex::default(), shared: Arc::new(shared), jobs: OnceLock::new() }
    }

    /// How the transport gives the kernel what it has not asked for. Called on a thread that
    /// answers nothing: the kernel may let it wait for an answer. The first that is set stays.
    pub(crate) fn store_by(
        &self,
        store: impl Fn(NodeId, &[u8]) -> io::Result<()> + Send + Sync + 'static,
    ) {
        let first = self.shared.store.set(Box::new(store)).is_ok();
        debug_assert!(first, "a file system has one transport");
    }

    fn jobs(&self) -> Option<&SyncSender<Job>> {
        let start = || {
            let (sender, jobs) = sync_channel(QUEUE_MAX);
            let shared = self.shared.clone();
            let thread = thread::Builder::new().name("cairn-ahead".to_owned());
            match thread.spawn(move || shared.serve(&jobs)) {
                Ok(_) => Some(sender),
                Err(error) => {
                    tracing::warn!(%error, "no thread can be started to read ahead");
                    None
                }
            }
        };
        self.jobs.get_or_init(start).as_ref()
    }
}

/// Whether this is a file of which others may be read ahead.
pub(crate) fn is_small(inode: &Inode) -> bool {
    matches!(inode, Inode::File { size, .. } if (1..=SMALL_BLOB_MAX as u64).contains(size))
}

impl CairnFs {
    /// A small file is being read from its start: sees to those that come behind it in its
    /// directory.
    pub(crate) fn read_ahead_of(&self, seen: Seen) {
        let ahead = &self.ahead;
        let Seen { parent, index } = seen;
        if !ahead.walks.lock().may_be_in_order(parent, index) {
            return;
        }
        let Ok(inode) = self.inode(parent) else { return };
        let Inode::Directory(place) = &*inode else { return };
        let loaded = match self.directories.local(&place.digest) {
            Some(Ok(loaded)) => loaded,
            // Was forgotten in the meantime, or fails: not worth waiting for.
            Some(Err(_)) | None => return,
        };
        let batch = ahead.walks.lock().step(parent, index, loaded.directory.entries());
        let Some((batch, jobs)) = batch.zip(ahead.jobs()) else { return };
        // A thread that is far behind would only repeat what readers have done themselves.
        let _ = jobs.try_send(Job::Read(batch, jobs.clone()));
    }
}

impl Shared {
    fn serve(self: &Arc<Self>, jobs: &Receiver<Job>) {
        for job in jobs {
            match job {
                Job::Read(batch, jobs) => self.read(batch, jobs),
                Job::Store(batch, contents) => {
                    for (file, bytes) in batch.files.iter().zip(contents) {
                        if let (Some(id), Some(bytes)) = (self.taker(&batch, file), bytes) {
                            self.store(id, file, &bytes);
                        }
                    }
                }
            }
        }
    }

    /// Reads what is at hand, and has the rest fetched.
    fn read(self: &Arc<Self>, batch: Batch, jobs: SyncSender<Job>) {
        if self.reads.are_slow() {
            return self.fetch(batch, jobs);
        }
        // The first one is being asked for by now.
        for file in batch.files.iter().skip(1) {
            let Some(id) = self.taker(&batch, file) else { continue };
            match self.reads.local(&file.digest) {
                Some(Ok(bytes)) => self.store(id, file, &bytes),
                // Whoever reads the file is told what is wrong with it.
                Some(Err(_)) => {}
                None => return self.fetch(batch, jobs),
            }
        }
    }

    fn fetch(self: &Arc<Self>, batch: Batch, jobs: SyncSender<Job>) {
        let Ok(permit) = self.fetches.clone().try_acquire_owned() else { return };
        let shared = self.clone();
        self.waiter.runtime().spawn(async move {
            let wanted: Vec<_> = batch.files.iter().map(|file| (file.digest, file.size)).collect();
            let fetched = shared.reads.fetch_many(&wanted);
            match timeout(shared.waiter.deadline() / PATIENCE, fetched).await {
                Ok(Ok(contents)) => {
                    let _ = jobs.try_send(Job::Store(batch, contents));
                }
                Ok(Err(error)) => tracing::debug!(%error, "reading ahead failed"),
                Err(_) => tracing::debug!("reading ahead took too long"),
            }
            drop(permit);
        });
    }

    /// The inode of a file that the kernel is to have: one that it knows, and is not to ask for.
    fn taker(&self, batch: &Batch, file: &File) -> Option<NodeId> {
        if file.is_marker || !batch.wants(file) {
            return None;
        }
        let File { digest, size, executable, .. } = *file;
        self.inodes.id_of(&Inode::File { digest, size, executable })
    }

    /// Gives the kernel a file, which then needs no memory here.
    fn store(&self, id: NodeId, file: &File, bytes: &[u8]) {
        let Some(store) = self.store.get() else { return };
        if bytes.len() as u64 != file.size {
            return;
        }
        match store(id, bytes) {
            Ok(()) => self.reads.release(&file.digest),
            // It was forgotten in this moment, or the mount is gone.
            Err(error) => tracing::trace!(id, %error, "the kernel takes no contents"),
        }
    }
}

impl fmt::Debug for Ahead {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ahead").finish_non_exhaustive()
    }
}
