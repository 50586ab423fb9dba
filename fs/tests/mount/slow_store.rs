//! A store that answers only through the async services, late, or not at all.

use std::{
    collections::{HashMap, HashSet},
    fmt,
    fs::{self, File},
    os::unix::{fs::FileExt as _, process::ExitStatusExt as _},
    process::{Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use async_trait::async_trait;
use bytes::Bytes;
use cairn_castore::{
    Blob, BlobError, BlobService, BlobStat, ByteRange, Digest, Directory, DirectoryError,
    DirectoryService, Name, Node, Packed, Packing,
    blob_service::{BlobServiceExt as _, BlobSource, BlobStream, memory::MemoryBlobService},
    directory_service::{DirectoryStream, memory::MemoryDirectoryService},
    roots::{Roots, RootsError},
};
use cairn_fs::{
    file_system::{CairnFs, FileSystemOptions, Services},
    fuse::MountOptions,
};
use parking_lot::Mutex;
use rustix::{
    io::Errno,
    process::{Pid, Signal},
};
use tokio::sync::watch;

use crate::fixture::*;

/// A store on another machine: nothing is at hand, and some of it never comes.
#[derive(Debug, Clone)]
pub(crate) struct Remote {
    blobs: Arc<MemoryBlobService>,
    directories: MemoryDirectoryService,
    stuck: Arc<HashSet<Digest>>,
    /// How many requests are stuck.
    waiting: watch::Sender<usize>,
    /// How often each blob was asked for from an offset.
    pub(crate) reads: Arc<Mutex<HashMap<(Digest, u64), usize>>>,
    /// How many bytes each request for a range was for.
    lengths: Arc<Mutex<Vec<u64>>>,
    /// How many blobs each request for many was for.
    pub(crate) batches: Arc<Mutex<Vec<usize>>>,
    gets: Arc<Mutex<HashMap<Digest, usize>>>,
    /// How often contents were asked for that are at hand; `None` if nothing is.
    local_reads: Option<Arc<AtomicUsize>>,
}

impl Remote {
    pub(crate) fn new(store: &Store, stuck: impl IntoIterator<Item = Digest>) -> Self {
        Self {
            blobs: store.blobs.clone(),
            directories: store.directories.clone(),
            stuck: Arc::new(stuck.into_iter().collect()),
            waiting: watch::Sender::new(0),
            reads: Arc::default(),
            lengths: Arc::default(),
            batches: Arc::default(),
            gets: Arc::default(),
            local_reads: None,
        }
    }

    /// The same with contents at hand after all.
    pub(crate) fn at_hand(self) -> Self {
        Self { local_reads: Some(Arc::default()), ..self }
    }

    /// How often contents were asked for that are at hand.
    pub(crate) fn local_reads(&self) -> usize {
        self.local_reads.as_ref().map_or(0, |reads| reads.load(Ordering::Relaxed))
    }

    /// This store, with one tree as `root`.
    pub(crate) fn services(&self, root: Node) -> Services {
        let names = Names::new([("root", root)]);
        Services {
            blobs: Arc::new(self.clone()),
            directories: Arc::new(self.clone()),
            roots: Arc::new(names),
        }
    }

    pub(crate) fn mount(&self, store: &Store, root: Node, deadline: Duration) -> Mounted {
        let services = self.services(root);
        let options = FileSystemOptions { deadline, ..FileSystemOptions::default() };
        Mounted::with(store, services, options)
    }

    async fn answer(&self, digest: &Digest) {
        if self.stuck.contains(digest) {
            self.waiting.send_modify(|waiting| *waiting += 1);
            std::future::pending::<()>().await;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }

    /// Returns when so many requests are stuck.
    pub(crate) fn wait_for_stuck(&self, store: &Store, count: usize) {
        let mut waiting = self.waiting.subscribe();
        store
            .runtime
            .block_on(async { waiting.wait_for(|n| *n >= count).await.map(drop) })
            .unwrap();
    }
}

impl fmt::Display for Remote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("remote:")
    }
}

#[async_trait]
impl BlobService for Remote {
    async fn stat(&self, digest: &Digest) -> Result<Option<BlobStat>, BlobError> {
        self.blobs.stat(digest).await
    }

    async fn has_many(&self, digests: &[Digest]) -> Result<Vec<bool>, BlobError> {
        self.blobs.has_many(digests).await
    }

    async fn read(&self, digest: &Digest, range: ByteRange) -> Result<BlobStream, BlobError> {
        *self.reads.lock().entry((*digest, range.offset)).or_default() += 1;
        self.lengths.lock().push(range.length);
        self.answer(digest).await;
        self.blobs.read(digest, range).await
    }

    async fn read_many(&self, digests: &[Digest]) -> Result<Vec<Option<Bytes>>, BlobError> {
        self.batches.lock().push(digests.len());
        for digest in digests {
            *self.reads.lock().entry((*digest, 0)).or_default() += 1;
        }
        futures::future::join_all(digests.iter().map(|digest| self.answer(digest))).await;
        self.blobs.read_many(digests).await
    }

    async fn read_many_packed(
        &self,
        digests: &[Digest],
        packing: Packing,
    ) -> Result<Vec<Option<Packed>>, BlobError> {
        self.read_many_and_pack(digests, packing).await
    }

    async fn put(&self, source: BlobSource) -> Result<BlobStat, BlobError> {
        self.blobs.put(source).await
    }

    async fn put_many(&self, blobs: Vec<Blob>) -> Result<(), BlobError> {
        self.blobs.put_many(blobs).await
    }

    fn read_local(&self, digest: &Digest, range: ByteRange) -> Option<Result<Bytes, BlobError>> {
        self.local_reads.as_ref()?.fetch_add(1, Ordering::Relaxed);
        self.blobs.read_local(digest, range)
    }

    fn lend(&self, _: &Digest) -> Option<File> {
        None
    }

    fn keep_whole(&self, _: &Digest) {}
}

#[async_trait]
impl DirectoryService for Remote {
    async fn get(&self, digest: &Digest) -> Result<Option<Directory>, DirectoryError> {
        *self.gets.lock().entry(*digest).or_default() += 1;
        self.answer(digest).await;
        self.directories.get(digest).await
    }

    async fn get_closure(&self, root: &Digest) -> Result<DirectoryStream, DirectoryError> {
        self.directories.get_closure(root).await
    }

    async fn has_many(&self, digests: &[Digest]) -> Result<Vec<bool>, DirectoryError> {
        self.directories.has_many(digests).await
    }

    async fn put_closure(&self, directories: DirectoryStream) -> Result<Digest, DirectoryError> {
        self.directories.put_closure(directories).await
    }

    fn get_local(&self, _: &Digest) -> Option<Result<Option<Directory>, DirectoryError>> {
        None
    }
}

pub(crate) const NEVER: Duration = Duration::from_secs(3600);

#[test]
fn a_remote_blob_is_read_whole_and_each_window_fetched_once() {
    if !can_mount() {
        return;
    }
    let store = Store::new();
    let expected = bytes(5 * 1024 * 1024 + 4321);
    let file = store.file(expected.clone());
    let remote = Remote::new(&store, []);
    let small = store.file("small");
    let root = store.directory([("f", file.clone()), ("small", small), ("zero", store.file(""))]);
    let mounted = remote.mount(&store, root, NEVER);
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| assert!(fs::read(mounted.path("f")).unwrap() == expected));
        }
    });
    assert_eq!(fs::read(mounted.path("small")).unwrap(), b"small");
    assert_eq!(fs::read(mounted.path("zero")).unwrap(), b"");
    let reads = remote.reads.lock();
    let fetches = |window: u64| reads.get(&(digest_of(&file), window * 1024 * 1024)).copied();
    for window in 0..6 {
        assert_eq!(fetches(window), Some(1), "window {window}");
    }
    assert_eq!(reads.len(), 7);
}

#[test]
fn who_reads_here_and_there_causes_little_to_be_fetched() {
    if !can_mount() {
        return;
    }
    let store = Store::new();
    let expected = bytes(20 * 1024 * 1024);
    let file = store.file(expected.clone());
    let remote = Remote::new(&store, []);
    let mounted = remote.mount(&store, store.directory([("f", file)]), NEVER);
    let file = File::open(mounted.path("f")).unwrap();
    for offset in [17_000_000, 3_000_000, 12_000_000, 8_000_000] {
        let mut read = [0; 4096];
        file.read_exact_at(&mut read, offset).unwrap();
        assert_eq!(read, expected[offset as usize..][..4096]);
    }
    assert_eq!(*remote.lengths.lock(), [256 * 1024; 4]);
}

#[test]
fn a_remote_tree_is_walked_with_each_directory_fetched_once() {
    if !can_mount() {
        return;
    }
    let store = Store::new();
    let children = (0..50).map(|i| {
        let inner = store.directory([("f", store.file(i.to_string()))]);
        (format!("d{i}"), inner)
    });
    let root = store.directory(children.collect::<Vec<_>>());
    let remote = Remote::new(&store, []);
    let mounted = remote.mount(&store, root, NEVER);
    for directory in names_in(&mounted.path("")) {
        assert_eq!(names_in(&mounted.path(&directory)), ["f"]);
    }
    let gets = remote.gets.lock();
    assert_eq!(gets.len(), 51);
    assert!(gets.values().all(|count| *count == 1), "{gets:?}");
}

#[test]
fn what_is_stuck_blocks_nobody_else_and_ends_as_an_error() {
    if !can_mount() {
        return;
    }
    let store = Store::new();
    let stuck: Vec<_> = (0..10).map(|i| store.file(format!("stuck {i}"))).collect();
    let remote = Remote::new(&store, stuck.iter().map(digest_of));
    let mut entries: Vec<_> =
        stuck.into_iter().enumerate().map(|(i, node)| (format!("stuck{i}"), node)).collect();
    entries.push(("fine".to_owned(), store.file("fine")));
    let mounted = remote.mount(&store, store.directory(entries), Duration::from_secs(2));
    thread::scope(|scope| {
        let readers: Vec<_> = (0..10)
            .map(|i| {
                let path = mounted.path(&format!("stuck{i}"));
                scope.spawn(move || fs::read(path))
            })
            .collect();
        remote.wait_for_stuck(&store, 10);
        assert_eq!(fs::read(mounted.path("fine")).unwrap(), b"fine");
        for reader in readers {
            let error = reader.join().unwrap().unwrap_err();
            assert_eq!(error.raw_os_error(), Some(Errno::IO.raw_os_error()));
        }
    });
    // Those that were started for the stuck ones go to rest, a moment after they have answered.
    fs::metadata(mounted.path("none")).unwrap_err();
    let limit = Instant::now() + Duration::from_secs(10);
    while mounted.mount().thread_count() > 3 && Instant::now() < limit {
        thread::sleep(Duration::from_millis(1));
    }
    assert!(mounted.mount().thread_count() <= 3);
}

#[test]
fn a_mount_with_stuck_readers_can_be_unmounted() {
    if !can_mount() {
        return;
    }
    let store = Store::new();
    let file = store.file("stuck");
    let remote = Remote::new(&store, [digest_of(&file)]);
    let mut mounted = remote.mount(&store, store.directory([("f", file)]), NEVER);
    let path = mounted.path("f");
    let reader = thread::spawn(move || fs::read(path));
    remote.wait_for_stuck(&store, 1);
    mounted.mount.take().unwrap().unmount().unwrap();
    reader.join().unwrap().unwrap_err();
    assert_eq!(names_in(mounted.top()), [""; 0]);
}

#[test]
fn a_stuck_directory_is_listed_by_name() {
    if !can_mount() {
        return;
    }
    let store = Store::new();
    let inner = store.directory([("f", store.file("x"))]);
    let remote = Remote::new(&store, [digest_of(&inner)]);
    let root = store.directory([("d", inner), ("e", store.file("y"))]);
    let mounted = remote.mount(&store, root, Duration::from_millis(300));
    assert_eq!(names_in(&mounted.path("")), ["d", "e"]);
    let error = fs::read_dir(mounted.path("d")).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(Errno::IO.raw_os_error()));
    assert_eq!(fs::read(mounted.path("e")).unwrap(), b"y");
}

#[test]
fn a_program_that_is_killed_while_it_waits_is_free_at_once() {
    if !can_mount() {
        return;
    }
    let store = Store::new();
    let directory = store.directory([("f", store.file("x"))]);
    let remote = Remote::new(&store, [digest_of(&directory)]);
    let root = store.directory([("stuck", directory)]);
    let mounted = remote.mount(&store, root, NEVER);
    for signal in [Signal::INT, Signal::KILL] {
        let before = *remote.waiting.borrow();
        // Who starts the tests in the background of a shell has them ignore SIGINT.
        let mut command = Command::new("env");
        command.args(["--default-signal=INT", "stat"]).arg(mounted.path("stuck"));
        let mut child = command.stdout(Stdio::null()).spawn().unwrap();
        remote.wait_for_stuck(&store, before + 1);
        rustix::process::kill_process(Pid::from_child(&child), signal).unwrap();
        assert_eq!(child.wait().unwrap().signal(), Some(signal.as_raw()));
    }
}

#[test]
fn what_waits_never_takes_the_last_thread() {
    const THREADS: usize = 8;
    if !can_mount() {
        return;
    }
    let store = Store::new();
    let stuck: Vec<_> = (0..3 * THREADS).map(|i| store.file(format!("stuck {i}"))).collect();
    let remote = Remote::new(&store, stuck.iter().map(digest_of));
    let entries = stuck.into_iter().enumerate().map(|(i, node)| (format!("stuck{i}"), node));
    let root = store.directory(entries.collect::<Vec<_>>());
    let services = Services {
        blobs: Arc::new(remote.clone()),
        ..store.services(&Names::new([("root", root)]))
    };
    let options = FileSystemOptions { deadline: NEVER, ..FileSystemOptions::default() };
    let fs = CairnFs::new(services, options, store.runtime.handle().clone());
    let folder = tempfile::tempdir().unwrap();
    let options = MountOptions { threads: 1, max_threads: THREADS, ..MountOptions::default() };
    let mount = cairn_fs::fuse::mount(fs, folder.path(), options).unwrap();
    let (ended, ends) = std::sync::mpsc::channel();
    thread::scope(|scope| {
        for i in 0..3 * THREADS {
            let (ended, path) = (ended.clone(), folder.path().join(format!("root/stuck{i}")));
            scope.spawn(move || ended.send(fs::read(path).is_err()).unwrap());
        }
        // Those for whom there is no thread left fail at once, and the mount goes on.
        for _ in 0..2 * THREADS + 1 {
            assert!(ends.recv().unwrap());
        }
        assert_eq!(names_in(&folder.path().join("root")).len(), 3 * THREADS);
        assert!(mount.thread_count() <= THREADS);
        mount.unmount().unwrap();
    });
}

/// Names that can come out of reach.
#[derive(Debug)]
struct Fickle {
    names: Names,
    is_reachable: AtomicBool,
}

impl fmt::Display for Fickle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("fickle names")
    }
}

#[async_trait]
impl Roots for Fickle {
    async fn lookup(&self, name: &Name) -> Result<Option<Node>, RootsError> {
        match self.is_reachable.load(Ordering::SeqCst) {
            true => self.names.lookup(name).await,
            false => Err(RootsError::Unavailable {
                roots: self.to_string(),
                source: "nobody is there".into(),
            }),
        }
    }

    async fn list(
        &self,
        after: Option<&Name>,
        limit: usize,
    ) -> Result<Vec<(Name, Node)>, RootsError> {
        self.names.list(after, limit).await
    }

    fn lookup_local(&self, _: &Name) -> Option<Result<Option<Node>, RootsError>> {
        None
    }
}

#[test]
fn names_that_are_known_outlive_the_reach_of_their_source() {
    if !can_mount() {
        return;
    }
    let store = Store::new();
    let root = store.directory([("f", store.file("x"))]);
    let names = Names::new([("root", root.clone()), ("other", root)]);
    let fickle = Arc::new(Fickle { names: names.clone(), is_reachable: AtomicBool::new(true) });
    let services = Services { roots: fickle.clone(), ..store.services(&names) };
    let mounted = Mounted::with(&store, services, uncached_root());
    assert_eq!(fs::read(mounted.path("f")).unwrap(), b"x");
    fickle.is_reachable.store(false, Ordering::SeqCst);
    for _ in 0..3 {
        assert_eq!(fs::read(mounted.path("f")).unwrap(), b"x");
    }
    let unknown = fs::metadata(mounted.top().join("other")).unwrap_err();
    assert_eq!(unknown.raw_os_error(), Some(Errno::IO.raw_os_error()));
}
