//! The thread of an export that makes directories and symlinks, and says which files are to be
//! written. It also has the last word: it moves the tree to its place, or removes it.

use std::{
    hash::{BuildHasher as _, Hasher as _, RandomState},
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    thread,
};

use bytes::Bytes;
use rustix::{
    fs::{
        AtFlags, CWD, Mode, OFlags, RenameFlags, fstat, mkdirat, openat, renameat, renameat_with,
        statat, symlinkat, unlinkat,
    },
    io::{Errno, retry_on_intr},
};
use tokio::{runtime::Handle, sync::mpsc};
use tokio_util::sync::CancellationToken;

use super::{
    ExportError, ExportSummary,
    removal::remove,
    write::{FileToWrite, WRITERS_MAX, WRITERS_MIN, Write, write_files},
};
use crate::{
    Digest, Directory, DirectoryError, DirectoryService, Node,
    blob_service::SMALL_BLOB_MAX,
    import::DEPTH_MAX,
    place::{Location, Place},
    tree_directories::TreeDirectories,
};

/// Small files are fetched together when they are this many bytes, at most one file more.
pub(super) const BATCH_BYTES: usize = 4 * 1024 * 1024;

/// The most small files that are fetched together.
const BATCH_FILES: usize = 1024;

/// The most directories that one batch holds open.
const BATCH_DIRECTORIES: usize = 16;

/// The most directories that are held open on the way to where the export is.
const OPEN_LEVELS_MAX: usize = 64;

/// How often another name for the folder beside the destination is tried.
const NAMES_TRIED: usize = 16;

/// What the tree is called in the folder beside the destination.
const TREE: &[u8] = b"tree";

/// Files whose contents are to be fetched.
pub(super) enum Task {
    Small { files: Vec<FileToWrite>, bytes: usize },
    Large(FileToWrite),
}

impl Task {
    /// How many bytes it may hold in memory.
    pub(super) fn bytes(&self) -> usize {
        match self {
            Self::Small { bytes, .. } => *bytes,
            Self::Large(_) => BATCH_BYTES,
        }
    }
}

/// What the thread is to do.
pub(super) struct Job {
    pub(super) node: Node,
    pub(super) destination: PathBuf,
    pub(super) directories: Arc<dyn DirectoryService>,
    pub(super) runtime: Handle,
    pub(super) writers: usize,
    pub(super) stop: CancellationToken,
}

impl Job {
    /// Exports the tree, or leaves nothing of it.
    pub(super) fn run(
        self,
        tasks: mpsc::Sender<Task>,
        writes: mpsc::Receiver<Write>,
    ) -> Result<ExportSummary, ExportError> {
        let result = self.export(tasks, writes);
        if result.is_err() {
            // The async side may wait for more to be sent or taken.
            self.stop.cancel();
        }
        result
    }

    fn export(
        &self,
        tasks: mpsc::Sender<Task>,
        writes: mpsc::Receiver<Write>,
    ) -> Result<ExportSummary, ExportError> {
        let path = &self.destination;
        let failed = |errno| ExportError::of_write(path.clone(), errno);
        match statat(CWD, path, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(_) => return Err(ExportError::Exists { path: path.clone() }),
            Err(Errno::NOENT) => {}
            Err(errno) => return Err(failed(errno)),
        }
        let name = path.file_name().ok_or(failed(Errno::NOENT))?;
        let parent = match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let parent = openat(CWD, parent, flags, Mode::empty()).map_err(failed)?;
        let folder = make_folder(&parent).map_err(failed)?;
        let result =
            open_directory(parent.as_fd(), folder.as_bytes()).map_err(failed).and_then(|folder| {
                let summary = self.write(&folder, tasks, writes)?;
                match move_new(folder.as_fd(), parent.as_fd(), name.as_encoded_bytes()) {
                    Ok(()) => Ok(summary),
                    Err(Errno::EXIST) => Err(ExportError::Exists { path: path.clone() }),
                    Err(errno) => Err(failed(errno)),
                }
            });
        let removed = match &result {
            Ok(_) => unlinkat(&parent, &folder, AtFlags::REMOVEDIR),
            Err(_) => remove(parent.as_fd(), folder.as_bytes()),
        };
        if let Err(errno) = removed {
            let error = io::Error::from(errno);
            tracing::warn!(folder, %error, "the folder of an export can't be removed");
        }
        result
    }

    /// Writes the tree into its folder: whole, or this fails.
    fn write(
        &self,
        folder: &OwnedFd,
        tasks: mpsc::Sender<Task>,
        writes: mpsc::Receiver<Write>,
    ) -> Result<ExportSummary, ExportError> {
        let folder = Arc::new(
            folder
                .try_clone()
                .map_err(|source| ExportError::Write { path: self.destination.clone(), source })?,
        );
        let queue = Mutex::new(writes);
        thread::scope(|scope| {
            let mut writers = Vec::new();
            let mut result = Ok(ExportSummary::default());
            for _ in 0..self.writers.clamp(WRITERS_MIN, WRITERS_MAX) {
                let write = || {
                    let result = write_files(&queue, &self.stop);
                    if result.is_err() {
                        self.stop.cancel();
                    }
                    result
                };
                let builder = thread::Builder::new().name("cairn-write".to_owned());
                match builder.spawn_scoped(scope, write) {
                    Ok(writer) => writers.push(writer),
                    Err(error) => {
                        result = Err(ExportError::Threads(error));
                        break;
                    }
                }
            }
            let result = result.and_then(|summary| {
                let mut builder = Builder::new(self, tasks, summary);
                builder.build(folder)?;
                Ok(builder.summary)
            });
            if result.is_err() {
                self.stop.cancel();
            }
            let mut written = 0;
            let mut failed = None;
            for writer in writers {
                match writer.join() {
                    Ok(Ok(files)) => written += files,
                    Ok(Err(error)) => failed = failed.or(Some(error)),
                    Err(panic) => std::panic::resume_unwind(panic),
                }
            }
            match (result, failed) {
                // The tree's maker only stops when others have failed.
                (Err(ExportError::GivenUp) | Ok(_), Some(error)) => Err(error),
                (Ok(summary), None) if summary.files != written || self.stop.is_cancelled() => {
                    Err(ExportError::GivenUp)
                }
                (result, _) => result,
            }
        })
    }
}

/// Makes a folder of a name that nothing else has, for this user only.
fn make_folder(parent: &OwnedFd) -> Result<String, Errno> {
    let mut result = Err(Errno::EXIST);
    for _ in 0..NAMES_TRIED {
        let random = RandomState::new().build_hasher().finish();
        let name = format!(".cairn-export-{random:016x}");
        match mkdirat(parent, &name, Mode::RWXU) {
            Ok(()) => return Ok(name),
            Err(Errno::EXIST) => {}
            Err(errno) => {
                result = Err(errno);
                break;
            }
        }
    }
    result
}

/// Moves the tree from its folder to its place, where nothing may be.
fn move_new(folder: BorrowedFd<'_>, parent: BorrowedFd<'_>, name: &[u8]) -> Result<(), Errno> {
    match renameat_with(folder, TREE, parent, name, RenameFlags::NOREPLACE) {
        // Not every file system can tell in one step that it replaces nothing.
        Err(Errno::INVAL | Errno::NOSYS) => {}
        result => return result,
    }
    match statat(parent, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(_) => Err(Errno::EXIST),
        Err(Errno::NOENT) => renameat(folder, TREE, parent, name),
        Err(errno) => Err(errno),
    }
}

fn open_directory(at: BorrowedFd<'_>, name: &[u8]) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    retry_on_intr(|| openat(at, name, flags, Mode::empty()))
}

/// A directory on the way from the root to where the export is.
struct Level {
    place: Arc<Place>,
    identity: (u64, u64),
    /// `None` if it had to be closed. The last level is always open.
    fd: Option<Arc<OwnedFd>>,
    digest: Digest,
    directory: Arc<Directory>,
    next: usize,
}

/// Makes the tree.
struct Builder<'a> {
    job: &'a Job,
    tasks: mpsc::Sender<Task>,
    directories: TreeDirectories,
    files: Vec<FileToWrite>,
    bytes: usize,
    /// How many directories the files hold open.
    held_open: usize,
    summary: ExportSummary,
}

impl<'a> Builder<'a> {
    fn new(job: &'a Job, tasks: mpsc::Sender<Task>, summary: ExportSummary) -> Self {
        Self {
            job,
            tasks,
            directories: TreeDirectories::new(Arc::clone(&job.directories)),
            files: Vec::new(),
            bytes: 0,
            held_open: 0,
            summary,
        }
    }

    fn build(&mut self, folder: Arc<OwnedFd>) -> Result<(), ExportError> {
        let top = Place::root(&self.job.destination);
        let root = Location { place: Arc::clone(&top), name: None };
        let name = Bytes::from_static(TREE);
        if let Node::Directory { digest, .. } = &self.job.node {
            let mut levels = vec![self.enter(&folder, &name, top, digest, None)?];
            while let Some(level) = levels.last_mut() {
                if self.job.stop.is_cancelled() {
                    return Err(ExportError::GivenUp);
                }
                let directory = Arc::clone(&level.directory);
                let Some((name, node)) = directory.entries().get(level.next) else {
                    leave(&mut levels)?;
                    continue;
                };
                level.next += 1;
                let fd = level.fd();
                let Node::Directory { digest, .. } = node else {
                    let location =
                        Location { place: level.place.clone(), name: Some(name.clone()) };
                    self.make(&fd, name.as_bytes(), location, node)?;
                    continue;
                };
                let (place, within) = (Place::child(&level.place, name), level.digest);
                if levels.len() >= DEPTH_MAX {
                    return Err(ExportError::TooDeep { path: place.path(), max: DEPTH_MAX });
                }
                levels.push(self.enter(&fd, name.as_bytes(), place, digest, Some(&within))?);
                if let Some(far) = levels.len().checked_sub(1 + OPEN_LEVELS_MAX) {
                    levels[far].fd = None;
                }
            }
        } else {
            self.make(&folder, &name, root, &self.job.node)?;
        }
        self.flush()
    }

    /// Makes what is no directory.
    fn make(
        &mut self,
        directory: &Arc<OwnedFd>,
        name: &Bytes,
        location: Location,
        node: &Node,
    ) -> Result<(), ExportError> {
        match node {
            Node::Directory { .. } => {}
            Node::Symlink { target } => {
                symlinkat(&target.as_bytes()[..], &**directory, &name[..])
                    .map_err(|errno| ExportError::of_write(location.path(), errno))?;
                self.summary.symlinks += 1;
            }
            &Node::File { digest, size, executable } => {
                let (directory, name) = (Arc::clone(directory), name.clone());
                let file = FileToWrite { directory, name, location, digest, size, executable };
                self.summary.files += 1;
                self.summary.bytes = self.summary.bytes.saturating_add(size);
                if size > SMALL_BLOB_MAX as u64 {
                    return self.send(Task::Large(file));
                }
                let last = self.files.last().map(|last| &last.directory);
                if !last.is_some_and(|last| Arc::ptr_eq(last, &file.directory)) {
                    self.held_open += 1;
                }
                self.bytes += size as usize;
                self.files.push(file);
                if self.bytes >= BATCH_BYTES
                    || self.files.len() >= BATCH_FILES
                    || self.held_open >= BATCH_DIRECTORIES
                {
                    return self.flush();
                }
            }
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<(), ExportError> {
        if self.files.is_empty() {
            return Ok(());
        }
        let (files, bytes) = (std::mem::take(&mut self.files), std::mem::take(&mut self.bytes));
        self.held_open = 0;
        self.send(Task::Small { files, bytes })
    }

    fn send(&self, task: Task) -> Result<(), ExportError> {
        self.tasks.blocking_send(task).map_err(|_| ExportError::GivenUp)
    }

    /// Makes a directory and opens it.
    fn enter(
        &mut self,
        parent: &OwnedFd,
        name: &Bytes,
        place: Arc<Place>,
        digest: &Digest,
        within: Option<&Digest>,
    ) -> Result<Level, ExportError> {
        let directory =
            self.directory(digest, within).map_err(|source| self.unread(&place, source))?;
        let make = || {
            mkdirat(parent, &name[..], Mode::from_raw_mode(0o755))?;
            let fd = open_directory(parent.as_fd(), name)?;
            let identity = identity(&fd)?;
            Ok((fd, identity))
        };
        let (fd, identity) = make().map_err(|errno| ExportError::of_write(place.path(), errno))?;
        self.summary.directories += 1;
        let fd = Some(Arc::new(fd));
        Ok(Level { place, identity, fd, digest: *digest, directory, next: 0 })
    }

    /// What is told of a directory whose entries could not be had.
    fn unread(&self, place: &Place, source: DirectoryError) -> ExportError {
        if self.job.stop.is_cancelled() {
            return ExportError::GivenUp;
        }
        ExportError::Directory { path: place.path(), source }
    }

    /// A directory, and the one in which it is, if that is not the destination.
    fn directory(
        &mut self,
        digest: &Digest,
        within: Option<&Digest>,
    ) -> Result<Arc<Directory>, DirectoryError> {
        if let Some(directory) = self.directories.get_local(digest) {
            return directory;
        }
        let get = self.directories.get(digest, within);
        let get = self.job.stop.run_until_cancelled(get);
        self.job.runtime.block_on(get).unwrap_or(Err(DirectoryError::NotFound(*digest)))
    }
}

impl Level {
    fn fd(&self) -> Arc<OwnedFd> {
        Arc::clone(self.fd.as_ref().expect("the last level is open"))
    }
}

/// Goes back to the parent, which is opened again if it was closed.
fn leave(levels: &mut Vec<Level>) -> Result<(), ExportError> {
    let Some(left) = levels.pop() else { return Ok(()) };
    let Some(parent) = levels.last_mut() else { return Ok(()) };
    if parent.fd.is_none() {
        let failed = |errno| ExportError::of_write(parent.place.path(), errno);
        let fd = open_directory(left.fd().as_fd(), b"..").map_err(failed)?;
        if identity(&fd).map_err(failed)? != parent.identity {
            return Err(ExportError::Moved { path: parent.place.path() });
        }
        parent.fd = Some(Arc::new(fd));
    }
    Ok(())
}

/// What tells one directory from every other: its device and inode.
fn identity(fd: &OwnedFd) -> Result<(u64, u64), Errno> {
    fstat(fd).map(|stat| (stat.st_dev, stat.st_ino))
}
