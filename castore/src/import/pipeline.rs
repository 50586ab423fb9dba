//! The threads of an import: one walks, some read, and one takes what they read in the order of
//! the tree, tells the observer, and makes blobs to be stored and directories of it. How those
//! get to the services is not known here.

use std::{
    io, mem,
    path::Path,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    thread::{self, JoinHandle},
};

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot};

use super::{
    ImportOptions, TreeEvent, TreeObserver,
    error::ImportError,
    pool::Pool,
    progress::ImportProgress,
    read::{PIECE_BYTES, Piece, Read, Reader},
    recent::Recent,
    upload::{Part, Upload},
    walk::{self, Halt, Item, Source},
};
use crate::{
    Blob, Digest, Directory, Name, Node,
    directory::SizeRule,
    place::{Location, Place},
};

/// The fewest threads that read files.
pub const READERS_MIN: usize = 1;

/// The most threads that read files.
pub const READERS_MAX: usize = 16;

/// The jobs that are read, or wait to be, for each reader. Each can hold as many bytes as
/// [`JOB_PIECES`] and one more piece have.
const JOBS_PER_READER: usize = 2;

/// The most items in a job. Threads wait for each other once a job, not once a file.
const JOB_ITEMS: usize = 64;

/// The most directories that a job holds open.
const JOB_DIRECTORIES: usize = 8;

/// The pieces of a job that wait for their turn. A reader that is ahead of it waits.
const JOB_PIECES: usize = 1;

/// The most small blobs that are stored at once.
const BATCH_BLOBS: usize = 1024;

/// Small blobs are stored at once when they are this many bytes, at most one blob more.
pub(super) const BATCH_BYTES: usize = 4 * 1024 * 1024;

/// A large file of at most this many bytes is held in memory until all of it is read, so that it
/// need not be stored if it is known. One that is larger goes to the store while it is read.
pub(super) const HELD_MAX: u64 = 4 * 1024 * 1024;

/// The pieces of a larger file that wait for the store.
pub(super) const STREAM_PIECES: usize = 3;

/// The most digests of blobs that are remembered as being on their way to the store already.
const RECENT_BLOBS: usize = 128 * 1024;

/// The most digests of directories that are remembered as being on their way to the store already.
const RECENT_DIRECTORIES: usize = 64 * 1024;

/// What waits to be taken by the async runtime, whose budget bounds the bytes.
const UPLOADS_QUEUED: usize = 2;

/// Directories that wait for the directory service.
const DIRECTORIES_QUEUED: usize = 64;

/// What the threads tell the async side.
#[derive(Debug)]
pub(super) enum Message<O> {
    Upload(Upload),
    /// The threads are done; `Err(None)` if they stopped since nobody took what they sent.
    Finished(Result<Outcome<O>, Option<ImportError>>),
}

/// What an import comes to.
#[derive(Debug)]
pub(super) struct Outcome<O> {
    pub(super) node: Node,
    /// The root, if it is a directory: held back until all else is stored.
    pub(super) root: Option<HeldRoot>,
    pub(super) observer: O,
}

/// A root directory, and the stream of directories that it ends.
#[derive(Debug)]
pub(super) struct HeldRoot {
    pub(super) digest: Digest,
    pub(super) directory: Directory,
    pub(super) stream: mpsc::Sender<Part<Directory>>,
}

/// Tells the threads that they may end.
#[derive(Debug, Clone, Default)]
pub(super) struct StopFlag(Arc<AtomicBool>);

impl StopFlag {
    pub(super) fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// Sets the flag when it is dropped.
#[derive(Debug, Default)]
pub(super) struct Stop(StopFlag);

impl Stop {
    pub(super) fn flag(&self) -> StopFlag {
        self.0.clone()
    }
}

impl Drop for Stop {
    fn drop(&mut self) {
        self.0.0.store(true, Ordering::Relaxed);
    }
}

/// Starts the threads. They end when the tree does, when something fails, when the flag is set,
/// or when nobody takes their messages.
pub(super) fn spawn<O: TreeObserver + 'static>(
    path: &Path,
    options: &ImportOptions,
    observer: O,
    stop: StopFlag,
) -> Result<(mpsc::Receiver<Message<O>>, JoinHandle<()>), ImportError> {
    let (messages, queue) = mpsc::channel(UPLOADS_QUEUED);
    let path = path.to_owned();
    let readers = options.readers.clamp(READERS_MIN, READERS_MAX);
    let progress = Arc::clone(&options.progress);
    let run = move || {
        let assembler = Assembler::new(&path, observer, messages.clone(), &progress);
        let outcome = match run(&path, readers, assembler, &progress, &stop) {
            Ok(outcome) => Ok(outcome),
            Err(Halt::Failed(error)) => Err(Some(error)),
            Err(Halt::Stopped) => Err(None),
        };
        // Nobody is there to take it if the import was dropped.
        let _ = messages.blocking_send(Message::Finished(outcome));
    };
    let thread = named("cairn-import").spawn(run).map_err(ImportError::Threads)?;
    Ok((queue, thread))
}

pub(super) fn named(name: &str) -> thread::Builder {
    thread::Builder::new().name(name.to_owned())
}

/// Some items that one reader reads.
struct Job {
    items: Vec<Item>,
    pieces: SyncSender<Piece>,
}

fn run<O: TreeObserver>(
    path: &Path,
    readers: usize,
    assembler: Assembler<'_, O>,
    progress: &ImportProgress,
    stop: &StopFlag,
) -> Result<Outcome<O>, Halt> {
    let (jobs, waiting) = sync_channel(readers * JOBS_PER_READER);
    let (order, results) = sync_channel(readers * JOBS_PER_READER);
    // Each reader has a share in it, so that the walk ends when the last reader does.
    let waiting = Arc::new(Mutex::new(waiting));
    let pool = &Pool::new(PIECE_BYTES);
    let threads = |error: io::Error| Halt::Failed(ImportError::Threads(error));
    thread::scope(|scope| {
        for _ in 0..readers {
            let waiting = Arc::clone(&waiting);
            let read = move || read_jobs(&waiting, pool, progress, stop);
            named("cairn-read").spawn_scoped(scope, read).map_err(threads)?;
        }
        drop(waiting);
        let walk = move || {
            let mut planner = Planner { jobs, order, items: Vec::new(), directories: 0, stop };
            // Whoever waits for more sees by what is missing that the walk was stopped.
            let _ = walk::walk(path, |item| planner.add(item)).and_then(|()| planner.flush());
        };
        named("cairn-walk").spawn_scoped(scope, walk).map_err(threads)?;
        // Takes `results` with it: when it fails, readers and walk find nobody to send to.
        assembler.run(results, stop)
    })
}

fn read_jobs(
    waiting: &Mutex<Receiver<Job>>,
    pool: &Pool,
    progress: &ImportProgress,
    stop: &StopFlag,
) {
    loop {
        let job = waiting.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(Job { items, pieces }) = job else { return };
        Reader::new(pieces, pool, progress, stop).run(items);
    }
}

/// Makes jobs of what the walk finds.
struct Planner<'a> {
    jobs: SyncSender<Job>,
    /// The results of the jobs, in the jobs' order.
    order: SyncSender<Receiver<Piece>>,
    items: Vec<Item>,
    /// How many directories the items hold open.
    directories: usize,
    stop: &'a StopFlag,
}

impl Planner<'_> {
    fn add(&mut self, item: Item) -> Result<(), Halt> {
        if self.stop.is_set() {
            return Err(Halt::Stopped);
        }
        if let Item::File(source) | Item::Symlink(source) = &item {
            let before = self.items.iter().rev().find_map(|item| match item {
                Item::File(source) | Item::Symlink(source) => Some(source),
                _ => None,
            });
            if !before.is_some_and(|before: &Source| before.is_beside(source)) {
                self.directories += 1;
            }
        }
        let last = matches!(item, Item::Failed(_));
        self.items.push(item);
        if last || self.items.len() >= JOB_ITEMS || self.directories >= JOB_DIRECTORIES {
            return self.flush();
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<(), Halt> {
        if self.items.is_empty() {
            return Ok(());
        }
        self.directories = 0;
        let (pieces, result) = sync_channel(JOB_PIECES);
        let items = mem::take(&mut self.items);
        self.order.send(result).map_err(|_| Halt::Stopped)?;
        self.jobs.send(Job { items, pieces }).map_err(|_| Halt::Stopped)
    }
}

/// Puts together what the readers bring.
struct Assembler<'a, O> {
    observer: O,
    messages: mpsc::Sender<Message<O>>,
    progress: &'a ImportProgress,
    top: Arc<Place>,
    /// The directories from the root to where the import is.
    levels: Vec<Level>,
    large: Option<Large>,
    batch: Batch,
    known_blobs: Recent,
    known_directories: Recent,
    directories: Option<mpsc::Sender<Part<Directory>>>,
    root: Option<Node>,
    held_root: Option<HeldRoot>,
}

/// A directory whose entries are being gathered.
struct Level {
    name: Option<Name>,
    place: Arc<Place>,
    entries: Vec<(Name, Node)>,
}

/// Small blobs to be stored together.
#[derive(Default)]
struct Batch {
    blobs: Vec<Blob>,
    bytes: usize,
    /// Where the first of them is.
    first: Option<Location>,
}

/// A large file of which bytes are awaited.
struct Large {
    name: Option<Name>,
    size: u64,
    executable: bool,
    to: LargeTo,
}

enum LargeTo {
    /// It is held until its end.
    Held(Vec<Bytes>),
    /// It is being stored.
    Stream { parts: mpsc::Sender<Part<Bytes>>, digest: oneshot::Sender<Digest> },
}

impl<'a, O: TreeObserver> Assembler<'a, O> {
    fn new(
        path: &Path,
        observer: O,
        messages: mpsc::Sender<Message<O>>,
        progress: &'a ImportProgress,
    ) -> Self {
        Self {
            observer,
            messages,
            progress,
            top: Place::root(path),
            levels: Vec::new(),
            large: None,
            batch: Batch::default(),
            known_blobs: Recent::new(RECENT_BLOBS),
            known_directories: Recent::new(RECENT_DIRECTORIES),
            directories: None,
            root: None,
            held_root: None,
        }
    }

    fn run(
        mut self,
        results: Receiver<Receiver<Piece>>,
        stop: &StopFlag,
    ) -> Result<Outcome<O>, Halt> {
        for pieces in results {
            let mut complete = false;
            for piece in pieces {
                complete = piece.last;
                for read in piece.reads {
                    self.take(read)?;
                }
                if stop.is_set() {
                    return Err(Halt::Stopped);
                }
            }
            if !complete {
                return Err(Halt::Stopped);
            }
        }
        self.store_batch()?;
        match self.root {
            Some(node) => Ok(Outcome { node, root: self.held_root, observer: self.observer }),
            None => Err(Halt::Stopped),
        }
    }

    fn take(&mut self, read: Read) -> Result<(), Halt> {
        match read {
            Read::DirectoryStart { name, place } => {
                self.start_entry(name.as_ref());
                self.observer.observe(TreeEvent::DirectoryStart);
                self.levels.push(Level { name, place, entries: Vec::new() });
            }
            Read::DirectoryEnd => self.end_directory()?,
            Read::Symlink { name, target } => {
                self.start_entry(name.as_ref());
                self.observer.observe(TreeEvent::Symlink(&target));
                self.end_entry(name, Node::Symlink { target });
            }
            Read::Small { name, blob, executable } => self.take_small(name, blob, executable)?,
            Read::LargeStart { name, size, executable } => {
                self.start_entry(name.as_ref());
                self.observer.observe(TreeEvent::FileStart { size, executable });
                let to = match size <= HELD_MAX {
                    true => LargeTo::Held(Vec::new()),
                    false => self.stream_large(name.clone())?,
                };
                self.large = Some(Large { name, size, executable, to });
            }
            Read::LargeBytes(bytes) => {
                self.observer.observe(TreeEvent::FileBytes(&bytes));
                match &mut self.large_mut().to {
                    LargeTo::Held(pieces) => pieces.push(bytes),
                    LargeTo::Stream { parts, .. } => send(parts, Part::Next(bytes))?,
                }
            }
            Read::LargeEnd(digest) => self.end_large(digest)?,
            Read::Failed(error) => return Err(error.into()),
        }
        Ok(())
    }

    fn large_mut(&mut self) -> &mut Large {
        self.large.as_mut().expect("a reader starts a large file before it brings its bytes")
    }

    fn start_entry(&mut self, name: Option<&Name>) {
        if let Some(name) = name {
            self.observer.observe(TreeEvent::EntryStart(name));
        }
    }

    fn end_entry(&mut self, name: Option<Name>, node: Node) {
        self.progress.entries.add(1);
        match (name, self.levels.last_mut()) {
            (Some(name), Some(level)) => {
                level.entries.push((name, node));
                self.observer.observe(TreeEvent::EntryEnd);
            }
            _ => self.root = Some(node),
        }
    }

    fn location(&self, name: Option<Name>) -> Location {
        let place = self.levels.last().map_or(&self.top, |level| &level.place);
        Location { place: Arc::clone(place), name }
    }

    fn take_small(&mut self, name: Option<Name>, blob: Blob, executable: bool) -> Result<(), Halt> {
        let (digest, size) = (*blob.digest(), blob.bytes().len());
        self.start_entry(name.as_ref());
        self.observer.observe(TreeEvent::FileStart { size: size as u64, executable });
        if size > 0 {
            self.observer.observe(TreeEvent::FileBytes(blob.bytes()));
        }
        self.observer.observe(TreeEvent::FileEnd(&digest));
        if size > 0 {
            if self.known_blobs.insert(digest) {
                if self.batch.first.is_none() {
                    self.batch.first = Some(self.location(name.clone()));
                }
                self.batch.bytes += size;
                self.batch.blobs.push(blob);
            } else {
                self.progress.blobs_known.add(1);
            }
        }
        self.end_entry(name, Node::File { digest, size: size as u64, executable });
        if self.batch.bytes >= BATCH_BYTES || self.batch.blobs.len() >= BATCH_BLOBS {
            self.store_batch()?;
        }
        Ok(())
    }

    fn store_batch(&mut self) -> Result<(), Halt> {
        let Batch { blobs, bytes, first } = mem::take(&mut self.batch);
        let Some(location) = first else { return Ok(()) };
        self.upload(Upload::Batch { location, blobs, bytes })
    }

    fn stream_large(&mut self, name: Option<Name>) -> Result<LargeTo, Halt> {
        // What comes before it need not wait until all of it is read.
        self.store_batch()?;
        let location = self.location(name);
        let (parts, received) = mpsc::channel(STREAM_PIECES);
        let (digest, expected) = oneshot::channel();
        self.upload(Upload::Stream { location, parts: received, expected })?;
        Ok(LargeTo::Stream { parts, digest })
    }

    fn end_large(&mut self, digest: Digest) -> Result<(), Halt> {
        let large = self.large.take();
        let Large { name, size, executable, to } =
            large.expect("a reader starts a large file before it ends it");
        self.observer.observe(TreeEvent::FileEnd(&digest));
        let is_new = self.known_blobs.insert(digest);
        match to {
            LargeTo::Held(pieces) if is_new => {
                let location = self.location(name.clone());
                self.upload(Upload::Held { location, digest, size, pieces })?;
            }
            LargeTo::Held(_) => self.progress.blobs_known.add(1),
            LargeTo::Stream { parts, digest: expected } => {
                // Who waits for it also waits for the end of the parts, and sees the same.
                let _ = expected.send(digest);
                send(&parts, Part::End)?;
            }
        }
        self.end_entry(name, Node::File { digest, size, executable });
        Ok(())
    }

    fn end_directory(&mut self) -> Result<(), Halt> {
        let level = self.levels.pop();
        let Level { name, place, entries } = level.expect("the walk leaves what it has entered");
        self.observer.observe(TreeEvent::DirectoryEnd);
        let directory = Directory::new(entries).map_err(|source| {
            let location = Location { place, name: None };
            ImportError::Directory { path: location.path(), source }
        })?;
        let digest = directory.digest();
        let size = directory.size(SizeRule::Doubled);
        let stream = match &self.directories {
            Some(stream) => stream,
            None => {
                let (stream, received) = mpsc::channel(DIRECTORIES_QUEUED);
                self.upload(Upload::Directories(received))?;
                self.directories.insert(stream)
            }
        };
        if self.levels.is_empty() {
            self.held_root = Some(HeldRoot { digest, directory, stream: stream.clone() });
        } else if self.known_directories.insert(digest) {
            send(stream, Part::Next(directory))?;
        }
        self.end_entry(name, Node::Directory { digest, size });
        Ok(())
    }

    fn upload(&self, upload: Upload) -> Result<(), Halt> {
        send(&self.messages, Message::Upload(upload))
    }
}

/// Sends to the async side. It fails if that has given up.
fn send<T>(to: &mpsc::Sender<T>, message: T) -> Result<(), Halt> {
    to.blocking_send(message).map_err(|_| Halt::Stopped)
}
