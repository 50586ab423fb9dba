//! The file system, over any transport: what it shows, how it behaves, and what the kernel's requests
//! come to, which are in `file_system/requests`. How requests arrive and who serves them is the
//! transport's affair; how a directory is listed is in `listing`, where bytes come from in `reads`.

mod requests;

use std::{
    fmt, fs, io,
    num::NonZeroU64,
    os::unix::fs::MetadataExt as _,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use cairn_castore::{
    BlobService, ByteRange, Digest, DirectoryService, Name, Node, SymlinkTarget, profile::Recorder,
    roots::Roots,
};
use cairn_telemetry::inventory::FUSE_READ;
use fuse_backend_rs::{
    abi::fuse_abi::stat64,
    api::filesystem::{Entry, ZeroCopyWriter},
};
use rustix::io::Errno;
use tokio::runtime::Handle;

pub use crate::attributes::Owner;
use crate::{
    ahead::Ahead,
    attributes::{self, Face},
    directories::{Directories, Loaded},
    errno::{Failures, FsError},
    inodes::{ContentPlace, Inode, Inodes, NodeId, Place, ROOT, Seen},
    listing::Cursors,
    passthrough::{Backing, Passthrough},
    reads::Reads,
    root_names::RootNames,
    space::{RecentSpace, SpaceSource},
    wait::Waiter,
};

/// For how long the kernel keeps what can't change.
pub(crate) const FOREVER: Duration = Duration::MAX;

/// How long the kernel believes that a name in the root exists, or doesn't, and what the root
/// lists, unless told otherwise.
pub const ROOT_TIMEOUT: Duration = Duration::from_secs(1);

/// How long a request waits for the store until it fails, unless told otherwise.
pub const DEADLINE: Duration = Duration::from_secs(30);

/// A symlink in the root that is found but not listed, and leads to the process that serves the
/// mount: the inode number of its PID namespace, a colon and its process ID. It is how one who
/// unmounts knows whom to wait for. Names that begin with it are not there, which is answered
/// without asking anybody.
pub const SERVER_NAME: &str = ".cairn-server";

/// Stands for the PID namespace that a process is in.
pub(crate) const PID_NAMESPACE: &str = "/proc/self/ns/pid";

const NANOSECONDS: u32 = 1_000_000_000;

/// What a mount shows.
#[derive(Debug, Clone)]
pub struct Services {
    /// The contents of files.
    pub blobs: Arc<dyn BlobService>,
    /// Directories.
    pub directories: Arc<dyn DirectoryService>,
    /// The names in the root.
    pub roots: Arc<dyn Roots>,
}

/// How a file system behaves.
#[derive(Debug, Clone)]
pub struct FileSystemOptions {
    /// Whether the root can be listed. If not, `ls` of it is told `EPERM`, while every name in it
    /// can be used by whoever knows it.
    pub list_root: bool,
    /// How long the kernel believes that a name in the root exists, or doesn't. What is below a
    /// name never changes and is believed for ever.
    pub root_timeout: Duration,
    /// How long one request waits for the store until the program that made it gets `EIO`.
    pub deadline: Duration,
    /// Whom everything belongs to.
    pub owner: Owner,
    /// Whether a layer above the mount takes what is written. The modes then let the owner write, and
    /// each file is an inode of its own, so that one can be changed without another of equal
    /// contents. The mount itself can't be written to all the same.
    pub layered: bool,
    /// Whether files and directories have extended attributes. If not, the kernel does not even
    /// ask.
    pub xattrs: bool,
    /// What `statfs` (`df`) asks about room. Without it, none is used and none is left.
    pub space: Option<Arc<dyn SpaceSource>>,
    /// Who wants to know what is used, and in which order. Small files are not read ahead then, so
    /// that only what somebody wanted is noted; what the kernel has in its cache can't be.
    pub recorder: Option<Arc<Recorder>>,
}

impl Default for FileSystemOptions {
    fn default() -> Self {
        Self {
            list_root: true,
            root_timeout: ROOT_TIMEOUT,
            deadline: DEADLINE,
            owner: Owner::default(),
            layered: false,
            xattrs: true,
            space: None,
            recorder: None,
        }
    }
}

/// Names, directories and blobs as a read-only file system.
///
/// What is in memory or on local disk is answered on the calling thread; for everything else that
/// thread waits, which must therefore not be one of the runtime's.
pub struct CairnFs {
    pub(crate) services: Services,
    pub(crate) options: FileSystemOptions,
    pub(crate) waiter: Arc<Waiter>,
    pub(crate) directories: Arc<Directories>,
    pub(crate) cursors: Cursors,
    pub(crate) ahead: Ahead,
    pub(crate) inodes: Arc<Inodes>,
    pub(crate) reads: Arc<Reads>,
    passthrough: OnceLock<Passthrough>,
    names: RootNames,
    space: RecentSpace,
    failures: Failures,
    /// Counts how often the root's attributes were asked for; see `root_attributes`.
    root_tick: AtomicU32,
    /// Whether the kernel takes `ENOSYS` to mean that it need not ask before opening.
    zero_message_open: AtomicBool,
    zero_message_opendir: AtomicBool,
}

impl CairnFs {
    /// A file system over these services, which are waited for on this runtime. It must have
    /// threads of its own (the multi-threaded kind), and outlive the file system's use.
    pub fn new(services: Services, options: FileSystemOptions, runtime: Handle) -> Self {
        let waiter = Arc::new(Waiter::new(runtime, options.deadline));
        let inodes = Arc::new(Inodes::new());
        let directories =
            Arc::new(Directories::new(services.directories.clone(), options.recorder.clone()));
        let reads = Arc::new(Reads::new(services.blobs.clone()));
        Self {
            ahead: Ahead::new(inodes.clone(), directories.clone(), reads.clone(), waiter.clone()),
            directories,
            cursors: Cursors::new(),
            waiter,
            inodes,
            reads,
            passthrough: OnceLock::new(),
            names: RootNames::new(services.roots.clone()),
            space: RecentSpace::new(options.space.clone()),
            failures: Failures::new(),
            root_tick: AtomicU32::new(0),
            zero_message_open: AtomicBool::new(false),
            zero_message_opendir: AtomicBool::new(false),
            services,
            options,
        }
    }

    /// How many inodes the kernel holds, the root included. Goes down when it forgets.
    pub fn inode_count(&self) -> usize {
        self.inodes.len()
    }

    /// Lets go of large directories that were not used since the last time this was called; when all
    /// is at rest, of them all, and of more that is only held in case it is wanted again soon.
    pub(crate) fn tidy(&self, at_rest: bool) {
        self.directories.tidy(at_rest);
        if at_rest {
            self.cursors.clear();
        }
    }

    /// What tells a file or symlink of this name from others with equal contents, if they are not to
    /// share an inode.
    pub(crate) fn content_place(&self, parent_ino: u64, name: &Name) -> ContentPlace {
        let place = || NonZeroU64::new(attributes::place_ino(parent_ino, name.as_ref()));
        self.options.layered.then(place).flatten()
    }

    /// Has the kernel read large files by itself, where the blob service lends them. To be called
    /// before the first request.
    pub(crate) fn pass_through_by(&self, backing: Box<dyn Backing>) {
        let passthrough = Passthrough::new(self.services.blobs.clone(), backing);
        let first = self.passthrough.set(passthrough);
        debug_assert!(first.is_ok(), "a file system has one transport");
    }

    /// The large files, if the kernel is to read them by itself.
    pub(crate) fn passthrough(&self) -> Option<&Passthrough> {
        self.passthrough.get().filter(|passthrough| passthrough.is_on())
    }

    fn face(&self) -> Face {
        Face { owner: self.options.owner, is_writable: self.options.layered }
    }

    pub(crate) fn fail(&self, error: FsError) -> io::Error {
        self.failures.answer(error)
    }

    /// The inode of a number. The kernel asks only for what it holds, so that a number that is
    /// unknown comes from a file handle that someone kept.
    pub(crate) fn inode(&self, id: NodeId) -> io::Result<Inode> {
        self.inodes.get(id).ok_or_else(|| Errno::STALE.into())
    }

    pub(crate) fn forget_one(&self, id: NodeId) {
        self.inodes.forget([(id, 1)]);
    }

    /// The directory's content, waiting for it if need be.
    pub(crate) fn directory(&self, digest: &Digest) -> Result<Arc<Loaded>, FsError> {
        match self.directories.local(digest) {
            Some(loaded) => loaded,
            None => self.waiter.wait(self.directories.fetch(digest)),
        }
    }

    /// What the kernel is told of an inode when it comes to know it, which counts as one lookup.
    pub(crate) fn entry(
        &self,
        inode: Inode,
        seen: Option<Seen>,
        entry_timeout: Duration,
    ) -> Result<Entry, FsError> {
        let attr = attributes::attributes(&inode, self.face())?;
        let inode = self.inodes.remember(inode, seen).ok_or(FsError::TooManyInodes)?;
        Ok(Entry {
            inode,
            generation: 0,
            attr,
            attr_flags: 0,
            attr_timeout: FOREVER,
            entry_timeout,
        })
    }

    fn resolve(
        &self,
        seen: Seen,
        parent_ino: u64,
        name: &Name,
        node: &Node,
    ) -> Result<Inode, FsError> {
        match node {
            Node::Directory { digest, .. } => {
                let loaded = self.directory(digest)?;
                Ok(directory_inode(seen, parent_ino, name, digest, &loaded))
            }
            Node::File { .. } | Node::Symlink { .. } => {
                let place = self.content_place(parent_ino, name);
                Ok(Inode::of_content(node, place).expect("only directories need more"))
            }
        }
    }

    fn lookup_in_root(&self, name: Name) -> Result<Entry, FsError> {
        if name.as_ref() == SERVER_NAME.as_bytes() {
            return self.entry(
                Inode::Symlink { target: process(), place: None },
                None,
                Duration::ZERO,
            );
        }
        if name.as_ref().starts_with(SERVER_NAME.as_bytes()) {
            return Ok(absent(Duration::ZERO));
        }
        let timeout = self.options.root_timeout;
        match self.names.find(&name, &self.waiter)? {
            Some(node) => {
                if let Some(recorder) = &self.options.recorder {
                    recorder.root(&name);
                }
                let inode = self.resolve(Seen::IN_ROOT, ROOT, &name, &node)?;
                self.entry(inode, None, timeout)
            }
            None => Ok(absent(timeout)),
        }
    }

    fn lookup_in_directory(
        &self,
        parent: NodeId,
        place: &Place,
        name: Name,
    ) -> Result<Entry, FsError> {
        let loaded = self.directory(&place.digest)?;
        let Some(index) = loaded.directory.position(name.as_ref()) else {
            return Ok(absent(FOREVER));
        };
        let (_, node) = &loaded.directory.entries()[index];
        let seen = Seen::new(parent, index);
        self.entry(self.resolve(seen, place.ino, &name, node)?, Some(seen), FOREVER)
    }

    /// The root's attributes. Its modification time moves by a nanosecond whenever it is asked
    /// for: that is how the kernel, which opens directories without asking us, comes to read the
    /// root's listing anew once its attributes have expired, while it keeps all others.
    fn root_attributes(&self) -> Result<stat64, FsError> {
        let mut attr = attributes::attributes(&Inode::Root, self.face())?;
        let tick = self.root_tick.fetch_add(1, Ordering::Relaxed);
        attr.st_mtime_nsec = i64::from(tick % NANOSECONDS);
        Ok(attr)
    }

    fn copy_bytes(
        &self,
        inode: &Inode,
        range: ByteRange,
        w: &mut dyn ZeroCopyWriter,
    ) -> io::Result<usize> {
        let Inode::File { digest, size, .. } = inode else {
            return Err(if matches!(inode, Inode::Symlink { .. }) {
                Errno::INVAL.into()
            } else {
                Errno::ISDIR.into()
            });
        };
        let wanted = range.within(*size);
        if let Some(recorder) = &self.options.recorder {
            recorder.file(digest, *size, wanted.clone());
        }
        let mut offset = wanted.start;
        while offset < wanted.end {
            let rest = ByteRange { offset, length: wanted.end - offset };
            let piece = self
                .reads
                .piece(digest, *size, rest, &self.waiter)
                .map_err(|error| self.fail(error))?;
            w.write_all(&piece)?;
            offset += piece.len() as u64;
        }
        FUSE_READ.add(wanted.end - wanted.start);
        Ok(usize::try_from(wanted.end - wanted.start).expect("no longer than the request's u32"))
    }
}

/// A directory that is called `name` in one with the inode number `parent_ino`.
pub(crate) fn directory_inode(
    seen: Seen,
    parent_ino: u64,
    name: &Name,
    digest: &Digest,
    loaded: &Loaded,
) -> Inode {
    Inode::directory(seen, parent_ino, name, *digest, loaded.counts())
}

/// This process as [`SERVER_NAME`] tells of it.
fn process() -> SymlinkTarget {
    // Without /proc a number that is no namespace's.
    let namespace = fs::metadata(PID_NAMESPACE).map_or(0, |namespace| namespace.ino());
    let text = format!("{namespace}:{}", std::process::id());
    SymlinkTarget::try_from(Bytes::from(text)).expect("short, and without a NUL")
}

/// The answer that a name is not there, which the kernel keeps for a while.
fn absent(entry_timeout: Duration) -> Entry {
    Entry { entry_timeout, ..Entry::default() }
}

impl fmt::Debug for CairnFs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CairnFs")
            .field("services", &self.services)
            .field("options", &self.options)
            .finish_non_exhaustive()
    }
}
