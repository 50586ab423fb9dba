//! Contents ahead of need: whoever reads a directory's files in order, as `tar`, `cp -r` and
//! `grep -r` do, finds the small files that come next in the kernel's memory, and the server has
//! fetched them together. When that is worth while is in `ahead/walks`, and which directories come
//! next in `ahead/courses`.

mod courses;
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
use cairn_castore::{Digest, Directory};
use parking_lot::Mutex;
use tokio::{sync::Semaphore, time::timeout};
use tracing::{Instrument as _, Span};

use self::{
    courses::{Courses, Extension, Way},
    walks::{BATCH_BYTES, Batch, File, Step, Walks, first_files},
};
use crate::{
    directories::Directories,
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

/// How many bytes of files are fetched together ahead of one who reads directories in order, about.
const COURSE_BYTES: u64 = 8 * 1024 * 1024;

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
    courses: Mutex<Courses>,
    inodes: Arc<Inodes>,
    directories: Arc<Directories>,
    reads: Arc<Reads>,
    waiter: Arc<Waiter>,
    store: OnceLock<Store>,
    fetches: Arc<Semaphore>,
}

enum Job {
    /// Files to be read, where to send what takes time, and the request that it is done for.
    Read(Batch, SyncSender<Job>, Span),
    /// Files that have been fetched.
    Store(Batch, Vec<Option<Bytes>>),
}

impl Ahead {
    pub(crate) fn new(
        inodes: Arc<Inodes>,
        directories: Arc<Directories>,
        reads: Arc<Reads>,
        waiter: Arc<Waiter>,
    ) -> Self {
        let shared = Shared {
            courses: Mutex::default(),
            inodes,
            directories,
            reads,
            waiter,
            store: OnceLock::new(),
            fetches: Arc::new(Semaphore::new(FETCHES_MAX)),
        };
        Self { walks: Mutex::default(), shared: Arc::new(shared), jobs: OnceLock::new() }
    }

    /// How the transport gives the kernel what it has not asked for, if it can. Called on a thread
    /// that answers nothing: the kernel may let it wait for an answer. The first that is set stays.
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

/// Whether this is a file that others may come behind.
pub(crate) fn is_file(inode: &Inode) -> bool {
    matches!(inode, Inode::File { size: 1.., .. })
}

/// Files with their sizes, and the directories that they are in.
type Files = (Vec<(Digest, u64)>, Vec<Digest>);

/// Files of several directories, in order, in as few parts as they may be fetched in.
fn batches(directories: Vec<(Digest, Vec<(Digest, u64)>)>) -> Vec<Files> {
    let mut batches: Vec<Files> = Vec::new();
    let mut bytes = 0;
    for (directory, files) in directories {
        let more: u64 = files.iter().map(|(_, size)| size).sum();
        if batches.is_empty() || bytes + more > BATCH_BYTES {
            bytes = 0;
            batches.push((Vec::new(), Vec::new()));
        }
        bytes += more;
        let (all, places) = batches.last_mut().expect("there is one by now");
        places.extend(files.iter().map(|_| directory));
        all.extend(files);
    }
    batches
}

impl CairnFs {
    /// A file is being read from its start: sees to those that come behind it in its directory.
    pub(crate) fn read_ahead_of(&self, seen: Seen) {
        let ahead = &self.ahead;
        let (parent, index) = (seen.parent, seen.index as usize);
        if ahead.shared.store.get().is_none() && !self.reads.are_slow() {
            // The kernel can't be given anything, and what is asked for is at hand.
            return;
        }
        if !ahead.walks.lock().may_be_in_order(parent, index) {
            return;
        }
        let Ok(inode) = self.inode(parent) else { return };
        let Inode::Directory(place) = &inode else { return };
        let loaded = match self.directories.local(&place.digest) {
            Some(Ok(loaded)) => loaded,
            // Was forgotten in the meantime, or fails: not worth waiting for.
            Some(Err(_)) | None => return,
        };
        let step = ahead.walks.lock().step(parent, index, loaded.directory.entries());
        let Step { begins, batch } = step;
        if let Some((mut batch, jobs)) = batch.zip(ahead.jobs()) {
            for file in &mut batch.files {
                let (name, _) = &loaded.directory.entries()[file.index];
                file.place = self.content_place(place.ino, name);
            }
            // A thread that is far behind would only repeat what readers have done themselves.
            let _ = jobs.try_send(Job::Read(batch, jobs.clone(), Span::current()));
        }
        if begins && self.reads.are_slow() {
            let extension = ahead.shared.courses.lock().begin(&place.digest);
            if let Some(extension) = extension {
                ahead.shared.extend(Way::to(place, &self.inodes), extension);
            }
        }
    }
}

impl Shared {
    fn serve(self: &Arc<Self>, jobs: &Receiver<Job>) {
        for job in jobs {
            match job {
                Job::Read(batch, jobs, span) => span.in_scope(|| self.read(batch, jobs)),
                Job::Store(batch, contents) => {
                    for (file, bytes) in batch.files.iter().zip(contents) {
                        match (self.taker(&batch, file), bytes) {
                            (Some(id), Some(bytes)) => self.store(id, file, &bytes),
                            // The kernel has all of it, if it has asked for it.
                            _ if walks::is_small(file.size) && batch.is_passed(file) => {
                                self.reads.release(&file.digest);
                            }
                            _ => {}
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
        for file in batch.files.iter().skip(1).filter(|file| walks::is_small(file.size)) {
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
        let fetch = async move {
            let wanted: Vec<_> = batch.files.iter().map(|file| (file.digest, file.size)).collect();
            let is_wanted = |at: usize| batch.wants(&batch.files[at]);
            let fetched = shared.reads.fetch_many(&wanted, is_wanted, &shared.waiter);
            match timeout(shared.waiter.deadline() / PATIENCE, fetched).await {
                Ok(Ok(contents)) => {
                    let _ = jobs.try_send(Job::Store(batch, contents));
                }
                Ok(Err(error)) => tracing::debug!(%error, "reading ahead failed"),
                Err(_) => tracing::debug!("reading ahead took too long"),
            }
            drop(permit);
        };
        self.waiter.runtime().spawn(fetch.in_current_span());
    }

    /// Finds out which directories come next, and fetches their first files.
    fn extend(self: &Arc<Self>, way: Way, extension: Extension) {
        let shared = self.clone();
        let extend = async move {
            let has_files = |directory: &Directory| !first_files(directory.entries(), 0).is_empty();
            let next = way.next(&shared.directories, extension.wanted(), has_files);
            let next = match timeout(shared.waiter.deadline() / PATIENCE, next).await {
                Ok(Ok(next)) => next,
                Ok(Err(error)) => {
                    tracing::debug!(%error, "looking for the next directories failed");
                    Vec::new()
                }
                Err(_) => Vec::new(),
            };
            let digests = next.iter().map(|(digest, _)| *digest).collect();
            let due = shared.courses.lock().extended(&extension, digests);
            let bytes_max = COURSE_BYTES / due.len().max(1) as u64;
            let due = next.into_iter().filter(|(digest, _)| due.contains(digest));
            let wanted = due.map(|(digest, loaded)| {
                (digest, first_files(loaded.directory.entries(), bytes_max))
            });
            let fetches = batches(wanted.collect()).into_iter().map(|(files, places)| {
                let shared = shared.clone();
                async move {
                    let Ok(_permit) = shared.fetches.acquire().await else { return };
                    // A reader who is there by now sees to the directory itself.
                    let is_wanted = |at: usize| shared.courses.lock().expect(&places[at]);
                    let fetched = shared.reads.fetch_many(&files, is_wanted, &shared.waiter);
                    match timeout(shared.waiter.deadline() / PATIENCE, fetched).await {
                        Ok(Ok(_)) => {}
                        Ok(Err(error)) => tracing::debug!(%error, "reading ahead failed"),
                        Err(_) => tracing::debug!("reading ahead took too long"),
                    }
                }
            });
            futures::future::join_all(fetches).await;
        };
        self.waiter.runtime().spawn(extend.in_current_span());
    }

    /// The inode of a file that the kernel is to have: one that it knows, and is not to ask for.
    fn taker(&self, batch: &Batch, file: &File) -> Option<NodeId> {
        if file.is_marker || !walks::is_small(file.size) || !batch.wants(file) {
            return None;
        }
        let File { digest, size, executable, place, .. } = *file;
        self.inodes.id_of(&Inode::File { digest, size, executable, place })
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
