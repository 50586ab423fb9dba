//! Imports of real trees into services in memory.

use std::{
    ffi::OsStr,
    fs::{self, File, OpenOptions},
    io::Write as _,
    os::unix::{
        ffi::OsStrExt as _,
        fs::{FileExt as _, PermissionsExt as _, symlink},
    },
    path::PathBuf,
};

use tempfile::TempDir;

use super::*;
use crate::{
    BlobError, BlobStat, ByteRange, Digest, Directory, DirectoryError, Packed, Packing,
    blob_service::{
        Blob, BlobServiceExt as _, BlobSource, BlobStream, SMALL_BLOB_MAX,
        memory::MemoryBlobService,
    },
    directory_service::{DirectoryStream, memory::MemoryDirectoryService},
};

struct Services {
    blobs: Arc<dyn BlobService>,
    directories: Arc<dyn DirectoryService>,
}

impl Services {
    fn new() -> Self {
        Self {
            blobs: Arc::new(MemoryBlobService::new()),
            directories: Arc::new(MemoryDirectoryService::new()),
        }
    }

    async fn import(&self, path: &Path) -> Result<Node, ImportError> {
        let (node, ()) = self.observed(path, ()).await?;
        Ok(node)
    }

    async fn observed<O: TreeObserver + 'static>(
        &self,
        path: &Path,
        observer: O,
    ) -> Result<(Node, O), ImportError> {
        let (blobs, directories) = (Arc::clone(&self.blobs), Arc::clone(&self.directories));
        import(path, blobs, directories, ImportOptions::default(), observer).await
    }

    async fn directory(&self, node: &Node) -> Directory {
        let Node::Directory { digest, .. } = node else { panic!("{node:?} is no directory") };
        self.directories.get(digest).await.unwrap().expect("the directory is stored")
    }

    async fn contents(&self, node: &Node) -> bytes::Bytes {
        let Node::File { digest, .. } = node else { panic!("{node:?} is no file") };
        self.blobs.read_to_bytes(digest, ByteRange::ALL).await.unwrap()
    }
}

fn temp() -> TempDir {
    tempfile::tempdir().unwrap()
}

fn executable(path: &Path) {
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
}

/// The tree of the vectors.
fn vector_tree(parent: &Path) -> PathBuf {
    let tree = parent.join("tree");
    fs::create_dir_all(tree.join("d")).unwrap();
    fs::create_dir(tree.join("empty")).unwrap();
    fs::write(tree.join("big"), vec![b'a'; 700_000]).unwrap();
    fs::write(tree.join("d/f"), "hi\n").unwrap();
    symlink("d/f", tree.join("link")).unwrap();
    fs::write(tree.join("run"), "#!/bin/sh\necho ok\n").unwrap();
    executable(&tree.join("run"));
    fs::write(tree.join("zero"), "").unwrap();
    tree
}

const VECTOR: &str = "c196ece39d078098b72cde823e327cf000f81b23a6e60558b7189a6bad9c5a62";

fn vector() -> Node {
    Node::Directory { digest: VECTOR.parse().unwrap(), size: 14 }
}

/// Writes down what it is told, large files' bytes as their number only.
#[derive(Debug, Default)]
struct Transcript {
    steps: Vec<String>,
    bytes: usize,
}

impl TreeObserver for Transcript {
    fn observe(&mut self, event: TreeEvent<'_>) {
        let step = match event {
            TreeEvent::FileBytes(bytes) => {
                assert!(!bytes.is_empty());
                self.bytes += bytes.len();
                return;
            }
            TreeEvent::FileEnd(_) => format!("{} bytes", std::mem::take(&mut self.bytes)),
            TreeEvent::DirectoryStart => "(".to_owned(),
            TreeEvent::EntryStart(name) => format!("{name}"),
            TreeEvent::EntryEnd => return,
            TreeEvent::DirectoryEnd => ")".to_owned(),
            TreeEvent::FileStart { size, executable } => format!("{size} {executable}"),
            TreeEvent::Symlink(target) => format!("-> {target}"),
        };
        self.steps.push(step);
    }
}

#[tokio::test]
async fn the_vector_tree_has_its_digest_and_is_told_in_order() {
    let temp = temp();
    let tree = vector_tree(temp.path());
    let services = Services::new();
    let (node, told) = services.observed(&tree, Transcript::default()).await.unwrap();
    assert_eq!(node, vector());
    let steps = "( big|700000 false|700000 bytes|d|(|f|3 false|3 bytes|)|empty|(|)|link|-> d/f|\
                 run|18 true|18 bytes|zero|0 false|0 bytes|)";
    assert_eq!(told.steps.join("|").replacen("(|", "( ", 1), steps);

    let root = services.directory(&node).await;
    assert_eq!(root.entries().len(), 6);
    assert_eq!(services.contents(root.get(b"big").unwrap()).await, vec![b'a'; 700_000]);
    assert_eq!(services.contents(root.get(b"run").unwrap()).await, "#!/bin/sh\necho ok\n");
    assert_eq!(services.directory(root.get(b"empty").unwrap()).await, Directory::default());

    let slash = services.import(&tree.join("")).await.unwrap();
    assert_eq!(slash, node);
}

#[tokio::test]
async fn a_second_import_stores_nothing_and_answers_the_same() {
    let temp = temp();
    let tree = vector_tree(temp.path());
    fs::write(tree.join("d/g"), "hi\n").unwrap();
    let services = Services::new();
    let mut nodes = Vec::new();
    let progress = Arc::new(ImportProgress::default());
    for _ in 0..2 {
        let shared = Arc::clone(&progress);
        let options = ImportOptions { readers: 1, progress: shared, ..ImportOptions::default() };
        let (blobs, directories) = (services.blobs.clone(), services.directories.clone());
        let (node, ()) = import(&tree, blobs, directories, options, ()).await.unwrap();
        nodes.push(node);
        assert_eq!((progress.blobs_new(), progress.bytes_new()), (3, 700_021));
    }
    assert_eq!(nodes[0], nodes[1]);
    assert_eq!((progress.entries(), progress.blobs_known()), (18, 5));
    assert_eq!(progress.bytes_read(), 2 * 700_024);
}

#[tokio::test]
async fn a_root_may_be_a_file_or_a_symlink() {
    let temp = temp();
    let services = Services::new();
    let file = temp.path().join("file");
    fs::write(&file, "hi\n").unwrap();
    let digest = Digest::of(b"hi\n");
    let expected = Node::File { digest, size: 3, executable: false };
    assert_eq!(services.import(&file).await.unwrap(), expected);
    assert_eq!(services.contents(&expected).await, "hi\n");

    // Longer than what is held, so that it goes to the store while it is read.
    let long = vec![7; pipeline::HELD_MAX as usize + 1_234_567];
    fs::write(&file, &long).unwrap();
    executable(&file);
    let node = services.import(&file).await.unwrap();
    let (digest, size) = (Digest::of(&long), long.len() as u64);
    assert_eq!(node, Node::File { digest, size, executable: true });
    assert_eq!(services.contents(&node).await, long);

    let dangling = temp.path().join("dangling");
    symlink("nowhere", &dangling).unwrap();
    let target = SymlinkTarget::try_from(OsStr::new("nowhere")).unwrap();
    assert_eq!(services.import(&dangling).await.unwrap(), Node::Symlink { target });
    let empty = temp.path().join("empty");
    fs::create_dir(&empty).unwrap();
    let expected = Node::Directory { digest: Digest::EMPTY, size: 0 };
    assert_eq!(services.import(&empty).await.unwrap(), expected);
}

#[tokio::test]
async fn names_and_targets_may_be_any_bytes_and_as_long_as_allowed() {
    let temp = temp();
    let names = [&b"\xff\xfe"[..], b" ", b"a\nb", b"...", &[b'x'; 255], &[0xfe; 255], b"-"];
    for name in names {
        fs::write(temp.path().join(OsStr::from_bytes(name)), name).unwrap();
    }
    let target = "t/".repeat(2047) + "t";
    assert_eq!(target.len(), SymlinkTarget::MAX_LEN);
    symlink(&target, temp.path().join("long")).unwrap();
    let services = Services::new();
    let node = services.import(temp.path()).await.unwrap();
    let directory = services.directory(&node).await;
    assert_eq!(directory.entries().len(), names.len() + 1);
    for name in names {
        assert_eq!(services.contents(directory.get(name).unwrap()).await, name);
    }
    let Some(Node::Symlink { target: stored }) = directory.get(b"long") else { panic!() };
    assert_eq!(stored.as_bytes(), target.as_bytes());
}

#[tokio::test]
async fn equal_things_are_one_content_in_any_place() {
    let temp = temp();
    for parent in ["a", "b"] {
        fs::create_dir_all(temp.path().join(parent).join("same")).unwrap();
        fs::write(temp.path().join(parent).join("same/plain"), "equal").unwrap();
        fs::write(temp.path().join(parent).join("same/run"), "equal").unwrap();
        executable(&temp.path().join(parent).join("same/run"));
    }
    let services = Services::new();
    let node = services.import(temp.path()).await.unwrap();
    let root = services.directory(&node).await;
    assert_eq!(root.get(b"a"), root.get(b"b"));
    let same = services.directory(root.get(b"a").unwrap()).await;
    let same = services.directory(same.get(b"same").unwrap()).await;
    let (digest, size) = (Digest::of(b"equal"), 5);
    assert_eq!(same.get(b"plain"), Some(&Node::File { digest, size, executable: false }));
    assert_eq!(same.get(b"run"), Some(&Node::File { digest, size, executable: true }));
}

#[tokio::test]
async fn deep_trees_are_imported_far_beyond_the_longest_path() {
    const DEPTH: usize = 300;
    let temp = temp();
    let name = "d".repeat(200);
    let mut fds = vec![File::open(temp.path()).unwrap().into()];
    for depth in 0..DEPTH {
        let directory: &rustix::fd::OwnedFd = fds.last().unwrap();
        rustix::fs::mkdirat(directory, &name, 0o755.into()).unwrap();
        let flags = rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::CREATE;
        for file in ["a", "z"] {
            let file = rustix::fs::openat(
                directory,
                file,
                flags | rustix::fs::OFlags::WRONLY,
                0o644.into(),
            );
            File::from(file.unwrap()).write_all(&depth.to_le_bytes()).unwrap();
        }
        let below = rustix::fs::openat(directory, &name, rustix::fs::OFlags::RDONLY, 0.into());
        fds.push(below.unwrap());
    }
    drop(fds);
    let services = Services::new();
    let mut node = services.import(temp.path()).await.unwrap();
    for depth in 0..DEPTH {
        let directory = services.directory(&node).await;
        for file in [b"a", b"z"] {
            let contents = services.contents(directory.get(file).unwrap()).await;
            assert_eq!(contents, depth.to_le_bytes()[..]);
        }
        node = directory.get(name.as_bytes()).unwrap().clone();
    }
    assert_eq!(node, Node::Directory { digest: Digest::EMPTY, size: 0 });
}

#[tokio::test]
async fn a_directory_may_have_very_many_files() {
    let temp = temp();
    for number in 0..20_000 {
        fs::write(temp.path().join(format!("{number:05}")), number.to_string()).unwrap();
    }
    let services = Services::new();
    let node = services.import(temp.path()).await.unwrap();
    let directory = services.directory(&node).await;
    assert_eq!(directory.entries().len(), 20_000);
    for (number, (name, node)) in directory.entries().iter().enumerate() {
        assert_eq!(name.as_ref(), format!("{number:05}").as_bytes());
        let Node::File { digest, .. } = node else { panic!() };
        assert_eq!(*digest, Digest::of(number.to_string().as_bytes()));
    }
    let digests: Vec<_> = (0..20_000).map(|n: u32| Digest::of(n.to_string().as_bytes())).collect();
    assert_eq!(services.blobs.has_many(&digests).await.unwrap(), vec![true; 20_000]);
}

#[tokio::test]
async fn a_sparse_file_is_stored_with_its_holes_as_zeros() {
    let temp = temp();
    let path = temp.path().join("sparse");
    let file = File::create(&path).unwrap();
    file.set_len(64 << 20).unwrap();
    file.write_all_at(b"end", (64 << 20) - 3).unwrap();
    let services = Services::new();
    let (node, told) = services.observed(&path, Transcript::default()).await.unwrap();
    let stored = services.contents(&node).await;
    assert_eq!(stored.len(), 64 << 20);
    assert!(stored.ends_with(b"\0end"));
    assert!(stored[..(64 << 20) - 3].iter().all(|byte| *byte == 0));
    assert_eq!(told.steps, ["67108864 false", "67108864 bytes"]);
}

#[tokio::test]
async fn what_no_store_can_hold_is_named() {
    let temp = temp();
    let missing = temp.path().join("missing");
    let error = Services::new().import(&missing).await.unwrap_err();
    assert!(matches!(&error, ImportError::Missing { path } if *path == missing), "{error:?}");

    let below = temp.path().join("d");
    fs::create_dir(&below).unwrap();
    let fifo = below.join("fifo");
    rustix::fs::mkfifoat(rustix::fs::CWD, &fifo, 0o644.into()).unwrap();
    for path in [&fifo, &below, &temp.path().to_owned()] {
        let error = Services::new().import(path).await.unwrap_err();
        assert_eq!(
            error.to_string(),
            format!("{} is a FIFO, which can't be stored", fifo.display())
        );
    }
    fs::remove_file(&fifo).unwrap();
    let socket = below.join("socket");
    let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    let error = Services::new().import(temp.path()).await.unwrap_err();
    let kind = SpecialFile::Socket;
    assert!(matches!(error, ImportError::Special { path, kind: k } if path == socket && k == kind));
    let error = Services::new().import(Path::new("/dev/null")).await.unwrap_err();
    assert_eq!(error.to_string(), "/dev/null is a character device, which can't be stored");
}

#[tokio::test]
async fn more_directories_in_directories_than_allowed_are_refused() {
    let temp = temp();
    let mut directory: rustix::fd::OwnedFd = File::open(temp.path()).unwrap().into();
    for _ in 0..DEPTH_MAX {
        rustix::fs::mkdirat(&directory, "d", 0o755.into()).unwrap();
        let flags = rustix::fs::OFlags::RDONLY;
        directory = rustix::fs::openat(&directory, "d", flags, 0.into()).unwrap();
    }
    let error = Services::new().import(temp.path()).await.unwrap_err();
    assert!(matches!(error, ImportError::TooDeep { max: DEPTH_MAX, .. }), "{error:?}");
    remove_deep(temp.path());
}

/// Removes what the temporary folder's own removal would need too many open files for.
fn remove_deep(top: &Path) {
    while let Ok(()) = fs::rename(top.join("d/d"), top.join("below")) {
        fs::remove_dir(top.join("d")).unwrap();
        fs::rename(top.join("below"), top.join("d")).unwrap();
    }
}

/// Does something to the tree when the bytes of the first file come.
struct Meddler<F>(Option<F>);

impl<F: FnOnce() + Send> TreeObserver for Meddler<F> {
    fn observe(&mut self, event: TreeEvent<'_>) {
        if !matches!(event, TreeEvent::FileBytes(_)) {
            return;
        }
        if let Some(meddle) = self.0.take() {
            meddle();
        }
    }
}

/// What is told of a large file that is changed while it is read.
async fn meddled(meddle: impl FnOnce(&Path) + Send + 'static) -> (Change, Services, Digest) {
    let temp = temp();
    let path = temp.path().join("file");
    let contents = vec![b'x'; 32 << 20];
    fs::write(&path, &contents).unwrap();
    // The clock of the file system need not tell what follows from what was just done.
    File::open(&path).unwrap().set_modified(std::time::UNIX_EPOCH).unwrap();
    let services = Services::new();
    let meddled = path.clone();
    let meddler = Meddler(Some(move || meddle(&meddled)));
    let error = services.observed(temp.path(), meddler).await.err().expect("the change is seen");
    let ImportError::Changed { path: named, change } = error else { panic!("{error:?}") };
    assert_eq!(named, path);
    (change, services, Digest::of(&contents))
}

#[tokio::test]
async fn a_file_that_changes_while_it_is_read_is_an_error() {
    let truncate =
        |path: &Path| OpenOptions::new().write(true).open(path).unwrap().set_len(5).unwrap();
    let (change, services, digest) = meddled(truncate).await;
    assert_eq!(change, Change::Shrank);
    assert_eq!(services.blobs.has_many(&[digest]).await.unwrap(), [false]);

    let append = |path: &Path| {
        OpenOptions::new().append(true).open(path).unwrap().write_all(b"more").unwrap();
    };
    assert_eq!(meddled(append).await.0, Change::Grew);

    let overwrite = |path: &Path| {
        OpenOptions::new().write(true).open(path).unwrap().write_all_at(b"y", 99).unwrap();
    };
    assert_eq!(meddled(overwrite).await.0, Change::Modified);
}

#[tokio::test]
async fn a_tree_that_changes_under_the_walk_is_an_error() {
    // So large that neither the walk nor the readers can be at its end when the first file is told.
    let plant = |top: &Path| {
        let first = top.join("0");
        fs::write(first, vec![1; 32 << 20]).unwrap();
        for directory in 1..600 {
            let directory = top.join(format!("{directory:04}"));
            fs::create_dir(&directory).unwrap();
            fs::write(directory.join("f"), "f").unwrap();
        }
        top.join("0599")
    };
    for replaced in [false, true] {
        let temp = temp();
        let last = plant(temp.path());
        let victim = last.clone();
        let meddler = Meddler(Some(move || {
            fs::remove_dir_all(&victim).unwrap();
            if replaced {
                symlink("0001", &victim).unwrap();
            }
        }));
        let error = Services::new().observed(temp.path(), meddler).await.err().unwrap();
        let ImportError::Changed { path, change } = error else { panic!("{error:?}") };
        assert_eq!(path, last);
        assert_eq!(change, if replaced { Change::Replaced } else { Change::Vanished });
    }
}

/// A service in memory whose puts fail, or tell that they were called and wait for ever.
#[derive(Debug)]
struct Bad {
    inner: MemoryBlobService,
    called: Option<Arc<tokio::sync::Notify>>,
}

impl std::fmt::Display for Bad {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("bad:")
    }
}

impl Bad {
    async fn fail<T>(&self) -> Result<T, BlobError> {
        if let Some(called) = &self.called {
            called.notify_one();
            std::future::pending::<()>().await;
        }
        Err(BlobError::NoSpace { service: self.to_string(), source: "full".into() })
    }
}

#[async_trait::async_trait]
impl BlobService for Bad {
    async fn stat(&self, digest: &Digest) -> Result<Option<BlobStat>, BlobError> {
        self.inner.stat(digest).await
    }

    async fn has_many(&self, digests: &[Digest]) -> Result<Vec<bool>, BlobError> {
        self.inner.has_many(digests).await
    }

    async fn read(&self, digest: &Digest, range: ByteRange) -> Result<BlobStream, BlobError> {
        self.inner.read(digest, range).await
    }

    async fn read_many(&self, digests: &[Digest]) -> Result<Vec<Option<bytes::Bytes>>, BlobError> {
        self.inner.read_many(digests).await
    }

    async fn read_many_packed(
        &self,
        digests: &[Digest],
        packing: Packing,
    ) -> Result<Vec<Option<Packed>>, BlobError> {
        self.read_many_and_pack(digests, packing).await
    }

    async fn put(&self, _: BlobSource) -> Result<BlobStat, BlobError> {
        self.fail().await
    }

    async fn put_many(&self, _: Vec<Blob>) -> Result<(), BlobError> {
        self.fail().await
    }

    fn read_local(&self, _: &Digest, _: ByteRange) -> Option<Result<bytes::Bytes, BlobError>> {
        None
    }

    fn lend(&self, _: &Digest) -> Option<File> {
        None
    }

    fn keep_whole(&self, _: &Digest) {}
}

#[tokio::test]
async fn a_store_that_fails_ends_the_import_without_a_root() {
    for size in [1, SMALL_BLOB_MAX + 1, pipeline::HELD_MAX as usize * 3] {
        let temp = temp();
        fs::create_dir(temp.path().join("d")).unwrap();
        let path = temp.path().join("d/file");
        fs::write(&path, vec![3; size]).unwrap();
        let good = Services::new();
        let node = good.import(temp.path()).await.unwrap();

        let blobs = Arc::new(Bad { inner: MemoryBlobService::new(), called: None });
        let services = Services { blobs, ..Services::new() };
        let error = services.import(temp.path()).await.unwrap_err();
        let ImportError::Blob { path: named, source } = error else { panic!("{error:?}") };
        assert_eq!(named, path);
        assert!(matches!(source, BlobError::NoSpace { .. }), "{source:?}");
        let Node::Directory { digest, .. } = node else { panic!() };
        assert_eq!(services.directories.get(&digest).await.unwrap(), None);
    }
}

/// A directory service that takes nothing.
#[derive(Debug)]
struct Full;

impl std::fmt::Display for Full {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("full:")
    }
}

#[async_trait::async_trait]
impl DirectoryService for Full {
    async fn get(&self, _: &Digest) -> Result<Option<Directory>, DirectoryError> {
        Ok(None)
    }

    async fn get_closure(&self, root: &Digest) -> Result<DirectoryStream, DirectoryError> {
        Err(DirectoryError::NotFound(*root))
    }

    async fn has_many(&self, digests: &[Digest]) -> Result<Vec<bool>, DirectoryError> {
        Ok(vec![false; digests.len()])
    }

    async fn put_closure(&self, _: DirectoryStream) -> Result<Digest, DirectoryError> {
        Err(DirectoryError::NoSpace { service: self.to_string(), source: "full".into() })
    }

    fn get_local(&self, _: &Digest) -> Option<Result<Option<Directory>, DirectoryError>> {
        None
    }
}

#[tokio::test]
async fn a_directory_service_that_fails_is_told() {
    for directories in [0, 1000] {
        let temp = temp();
        for number in 0..directories {
            fs::create_dir_all(temp.path().join(format!("{number}/{number}"))).unwrap();
        }
        let services = Services { directories: Arc::new(Full), ..Services::new() };
        let error = services.import(temp.path()).await.unwrap_err();
        let ImportError::Directories(source) = error else { panic!("{error:?}") };
        assert!(matches!(source, DirectoryError::NoSpace { .. }), "{source:?}");
    }
}

/// Tells when it is dropped, which is when the threads of its import have ended.
struct Dropped(Option<tokio::sync::oneshot::Sender<()>>);

impl TreeObserver for Dropped {
    fn observe(&mut self, _: TreeEvent<'_>) {}
}

impl Drop for Dropped {
    fn drop(&mut self) {
        self.0.take().expect("nothing else takes it").send(()).expect("the test waits");
    }
}

#[tokio::test]
async fn an_import_that_is_dropped_ends_its_threads() {
    for size in [100, pipeline::HELD_MAX as usize * 3] {
        let temp = temp();
        for number in 0..4 {
            fs::write(temp.path().join(number.to_string()), vec![number; size]).unwrap();
        }
        let called = Arc::new(tokio::sync::Notify::new());
        let blobs = Bad { inner: MemoryBlobService::new(), called: Some(Arc::clone(&called)) };
        let services = Services { blobs: Arc::new(blobs), ..Services::new() };
        let (sender, ended) = tokio::sync::oneshot::channel();
        tokio::select! {
            _ = services.observed(temp.path(), Dropped(Some(sender))) => panic!("it waits"),
            () = called.notified() => {}
        }
        ended.await.unwrap();
    }
}
