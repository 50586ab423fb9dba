//! Content in memory, names for it, and a mount of both that ends with its test.

use std::{
    collections::BTreeMap,
    fmt, fs,
    ops::Bound,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use cairn_castore::{
    Digest, Directory, DirectoryService, Name, Node, SymlinkTarget,
    blob_service::{BlobServiceExt as _, memory::MemoryBlobService},
    directory::SizeRule,
    directory_service::memory::MemoryDirectoryService,
    roots::{Roots, RootsError},
};
use cairn_fs::{
    file_system::{CairnFs, FileSystemOptions, Services},
    fuse::{Mount, MountError, MountOptions, mount},
};
use futures::StreamExt as _;
use parking_lot::Mutex;
use tempfile::TempDir;
use tokio::runtime::Runtime;

/// Whether mounts can be tested here; says so if not.
pub(crate) fn can_mount() -> bool {
    let there = Path::new("/dev/fuse").exists();
    if !there {
        eprintln!("skipped: there is no /dev/fuse here");
    }
    there
}

/// Whether the test runs as root; says so if not.
pub(crate) fn is_root() -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        eprintln!("skipped: only root can do this");
    }
    root
}

pub(crate) fn name(text: &str) -> Name {
    Name::try_from(text).unwrap()
}

/// Bytes that differ from place to place.
pub(crate) fn bytes(length: usize) -> Vec<u8> {
    (0..length).map(|i| (i / 251 * 7 + i) as u8).collect()
}

/// A store in memory.
pub(crate) struct Store {
    pub(crate) blobs: Arc<MemoryBlobService>,
    pub(crate) directories: MemoryDirectoryService,
    pub(crate) runtime: Runtime,
}

impl Store {
    pub(crate) fn new() -> Self {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
        Self {
            blobs: Arc::new(MemoryBlobService::new()),
            directories: MemoryDirectoryService::new(),
            runtime: runtime.unwrap(),
        }
    }

    pub(crate) fn file(&self, bytes: impl Into<Bytes>) -> Node {
        let bytes = bytes.into();
        let size = bytes.len() as u64;
        let digest = self.runtime.block_on(self.blobs.put_bytes(bytes)).unwrap();
        Node::File { digest, size, executable: false }
    }

    pub(crate) fn executable(&self, bytes: impl Into<Bytes>) -> Node {
        let Node::File { digest, size, .. } = self.file(bytes) else { unreachable!() };
        Node::File { digest, size, executable: true }
    }

    pub(crate) fn directory<N: AsRef<str>>(
        &self,
        entries: impl IntoIterator<Item = (N, Node)>,
    ) -> Node {
        let entries = entries.into_iter().map(|(text, node)| (name(text.as_ref()), node));
        let directory = Directory::new(entries.collect()).unwrap();
        let size = directory.size(SizeRule::Doubled);
        let closure = futures::stream::iter([Ok(directory)]).boxed();
        let digest = self.runtime.block_on(self.directories.put_closure(closure)).unwrap();
        Node::Directory { digest, size }
    }

    pub(crate) fn services(&self, roots: &Names) -> Services {
        Services {
            blobs: self.blobs.clone(),
            directories: Arc::new(self.directories.clone()),
            roots: Arc::new(roots.clone()),
        }
    }
}

pub(crate) fn symlink(target: &str) -> Node {
    Node::Symlink { target: SymlinkTarget::try_from(std::ffi::OsStr::new(target)).unwrap() }
}

pub(crate) fn digest_of(node: &Node) -> Digest {
    match node {
        Node::Directory { digest, .. } | Node::File { digest, .. } => *digest,
        Node::Symlink { .. } => panic!("a symlink has no digest"),
    }
}

/// Names that can be added while they are mounted.
#[derive(Debug, Clone, Default)]
pub(crate) struct Names {
    names: Arc<Mutex<BTreeMap<Name, Node>>>,
}

impl Names {
    pub(crate) fn new<N: AsRef<str>>(names: impl IntoIterator<Item = (N, Node)>) -> Self {
        let all = Self::default();
        for (text, node) in names {
            all.add(text.as_ref(), node);
        }
        all
    }

    pub(crate) fn add(&self, text: &str, node: Node) {
        self.names.lock().insert(name(text), node);
    }

    pub(crate) fn remove(&self, text: &str) {
        self.names.lock().remove(&name(text));
    }
}

impl fmt::Display for Names {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("names in memory")
    }
}

#[async_trait]
impl Roots for Names {
    async fn lookup(&self, name: &Name) -> Result<Option<Node>, RootsError> {
        Ok(self.names.lock().get(name).cloned())
    }

    async fn list(
        &self,
        after: Option<&Name>,
        limit: usize,
    ) -> Result<Vec<(Name, Node)>, RootsError> {
        let start = after.map_or(Bound::Unbounded, Bound::Excluded);
        let names = self.names.lock();
        let page = names.range::<Name, _>((start, Bound::Unbounded)).take(limit);
        Ok(page.map(|(name, node)| (name.clone(), node.clone())).collect())
    }

    fn lookup_local(&self, name: &Name) -> Option<Result<Option<Node>, RootsError>> {
        Some(Ok(self.names.lock().get(name).cloned()))
    }
}

/// A mount on a folder of its own, gone when this is dropped.
pub(crate) struct Mounted {
    pub(crate) mount: Option<Mount>,
    folder: TempDir,
}

impl Mounted {
    pub(crate) fn try_on(
        folder: &Path,
        store: &Store,
        services: Services,
        options: FileSystemOptions,
    ) -> Result<Mount, MountError> {
        let fs = CairnFs::new(services, options, store.runtime.handle().clone());
        // One thread at rest, so that what blocks one is seen to block.
        let options = MountOptions { threads: 1, ..MountOptions::default() };
        mount(fs, folder, options)
    }

    pub(crate) fn with(store: &Store, services: Services, options: FileSystemOptions) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mount = Self::try_on(folder.path(), store, services, options).unwrap();
        Self { mount: Some(mount), folder }
    }

    /// Mounts one tree as `root`.
    pub(crate) fn tree(store: &Store, root: Node) -> Self {
        let names = Names::new([("root", root)]);
        Self::with(store, store.services(&names), FileSystemOptions::default())
    }

    pub(crate) fn mount(&self) -> &Mount {
        self.mount.as_ref().unwrap()
    }

    /// The mount point.
    pub(crate) fn top(&self) -> &Path {
        self.folder.path()
    }

    /// A path below `root`.
    pub(crate) fn path(&self, below: &str) -> PathBuf {
        self.top().join("root").join(below)
    }
}

/// Options for a root that the kernel asks about each time.
pub(crate) fn uncached_root() -> FileSystemOptions {
    FileSystemOptions { root_timeout: Duration::ZERO, ..FileSystemOptions::default() }
}

/// The names in a folder as `std::fs` lists them, sorted.
pub(crate) fn names_in(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap();
    let mut names: Vec<_> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}
