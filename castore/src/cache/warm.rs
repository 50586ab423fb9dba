//! Whole trees on their way into a cache, ahead of those who read them, and out of it again. Which
//! trees there are is not known here.

use std::{
    collections::HashSet,
    ops::{Add, Range},
    sync::atomic::{AtomicU64, Ordering},
};

use futures::{StreamExt as _, TryStreamExt as _, stream};

use super::Near;
use crate::{
    BlobError, BlobService as _, ByteRange, Digest, Directory, DirectoryError,
    DirectoryService as _, Node,
    blob_service::{
        SMALL_BLOB_MAX,
        cache::{CacheBlobService, groups_of},
    },
    directory_service::cache::CacheDirectoryService,
    local::Kind,
    profile::{Profile, Touch},
};

/// The files that are fetched with one request: at most so many, and no more once they have so many
/// bytes.
const BATCH_FILES: usize = 256;
const BATCH_BYTES: u64 = 2 * 1024 * 1024;

/// How many such requests, and large files, are fetched at a time.
const AT_ONCE: usize = 8;

/// The things of a profile that may be fetched in another order than they are in.
const UNORDERED: usize = 128;

/// The directories of them that are asked for at a time.
const DIRECTORIES_AT_ONCE: usize = 16;

/// How far the warming of a tree is. Can be read at any time.
#[derive(Debug, Default)]
pub struct WarmProgress {
    directories: AtomicU64,
    files: AtomicU64,
    bytes: AtomicU64,
    files_fetched: AtomicU64,
    bytes_fetched: AtomicU64,
    missing: AtomicU64,
}

/// The numbers of a [`WarmProgress`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Warmed {
    /// The directories that are near.
    pub directories: u64,
    /// The files that are near. One that is in several places counts as often.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
    /// How many of the files had to be fetched.
    pub files_fetched: u64,
    /// And their bytes.
    pub bytes_fetched: u64,
    /// What a profile names and the store does not have.
    pub missing: u64,
}

impl Add for Warmed {
    type Output = Self;

    fn add(self, more: Self) -> Self {
        Self {
            directories: self.directories + more.directories,
            files: self.files + more.files,
            bytes: self.bytes + more.bytes,
            files_fetched: self.files_fetched + more.files_fetched,
            bytes_fetched: self.bytes_fetched + more.bytes_fetched,
            missing: self.missing + more.missing,
        }
    }
}

impl WarmProgress {
    /// The numbers as they are now.
    pub fn now(&self) -> Warmed {
        let number = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Warmed {
            directories: number(&self.directories),
            files: number(&self.files),
            bytes: number(&self.bytes),
            files_fetched: number(&self.files_fetched),
            bytes_fetched: number(&self.bytes_fetched),
            missing: number(&self.missing),
        }
    }

    fn done(&self, Batch { near, fetched, missing }: &Batch) {
        let add = |counter: &AtomicU64, number: u64| counter.fetch_add(number, Ordering::Relaxed);
        let bytes = |files: &[File]| -> u64 { files.iter().map(|file| file.bytes()).sum() };
        add(&self.files, (near.len() + fetched.len()) as u64);
        add(&self.bytes, bytes(near) + bytes(fetched));
        add(&self.files_fetched, fetched.len() as u64);
        add(&self.bytes_fetched, bytes(fetched));
        add(&self.missing, missing.len() as u64);
    }
}

/// Why a tree is not in a cache.
#[derive(Debug, thiserror::Error)]
pub enum WarmError {
    /// A blob could not be fetched.
    #[error(transparent)]
    Blob(#[from] BlobError),
    /// A directory could not be fetched.
    #[error(transparent)]
    Directory(#[from] DirectoryError),
    /// It was fetched, but not all of it was kept.
    #[error("{near} has not kept all of it: {missing} of {files} files are not there")]
    NotKept {
        /// The near side, as it displays.
        near: String,
        /// The files that are not there.
        missing: u64,
        /// All files.
        files: u64,
    },
}

/// A file, or a part of one.
#[derive(Debug, Clone, Copy)]
struct File {
    digest: Digest,
    /// Of all of it.
    size: u64,
    range: ByteRange,
}

impl File {
    fn whole(digest: Digest, size: u64) -> Self {
        Self { digest, size, range: ByteRange::ALL }
    }

    fn bytes(&self) -> u64 {
        let range = self.range.within(self.size);
        range.end - range.start
    }
}

/// Files that were asked for together.
#[derive(Debug, Default)]
struct Batch {
    /// Those that were near.
    near: Vec<File>,
    fetched: Vec<File>,
    /// Those that the store does not have.
    missing: Vec<File>,
}

/// Fetches all that a root leads to and that is not near, and returns when it is kept. One that is
/// cut short has kept what it fetched, and is quicker the next time.
pub async fn warm(
    near: &Near,
    blobs: &CacheBlobService,
    directories: &CacheDirectoryService,
    root: &Node,
    progress: &WarmProgress,
) -> Result<(), WarmError> {
    let files = files(near, directories, root, progress).map_err(WarmError::from);
    let batches = batches(files);
    batches
        .map(|batch| async {
            let batch = batch?;
            // What comes faster than it is written would not be kept.
            near.room().await;
            let batch = fetch(near, blobs, &batch).await?;
            if let Some(missing) = batch.missing.first() {
                return Err(BlobError::NotFound(missing.digest).into());
            }
            progress.done(&batch);
            Ok::<(), WarmError>(())
        })
        .buffer_unordered(AT_ONCE)
        .try_collect::<()>()
        .await?;
    near.settle().await;
    let (missing, files) = missing(near, blobs, directories, root).await?;
    match missing {
        0 => Ok(()),
        missing => Err(WarmError::NotKept { near: near.to_string(), missing, files }),
    }
}

/// The files of a tree, none of them empty.
fn files<'a>(
    near: &'a Near,
    directories: &'a CacheDirectoryService,
    root: &'a Node,
    progress: &'a WarmProgress,
) -> stream::BoxStream<'a, Result<File, DirectoryError>> {
    async_stream::try_stream! {
        match root {
            Node::Symlink { .. } => {}
            Node::File { digest, size, .. } => yield File::whole(*digest, *size),
            Node::Directory { digest, .. } => {
                let mut closure = directories.get_closure(digest).await?;
                while let Some(directory) = closure.try_next().await? {
                    near.room().await;
                    progress.directories.fetch_add(1, Ordering::Relaxed);
                    for file in files_of(&directory) {
                        yield file;
                    }
                }
            }
        }
    }
    .try_filter(|file: &File| std::future::ready(file.size > 0))
    .boxed()
}

fn files_of(directory: &Directory) -> Vec<File> {
    let file = |node: &Node| match *node {
        Node::File { digest, size, .. } => Some(File::whole(digest, size)),
        Node::Directory { .. } | Node::Symlink { .. } => None,
    };
    directory.entries().iter().filter_map(|(_, node)| file(node)).collect()
}

/// Small files in batches, and each large one alone.
fn batches<'a>(
    mut files: impl stream::Stream<Item = Result<File, WarmError>> + Send + Unpin + 'a,
) -> stream::BoxStream<'a, Result<Vec<File>, WarmError>> {
    async_stream::try_stream! {
        let (mut batch, mut bytes) = (Vec::new(), 0);
        while let Some(file) = files.try_next().await? {
            if file.size > SMALL_BLOB_MAX as u64 {
                yield vec![file];
                continue;
            }
            batch.push(file);
            bytes += file.size;
            if batch.len() == BATCH_FILES || bytes >= BATCH_BYTES {
                bytes = 0;
                yield std::mem::take(&mut batch);
            }
        }
        if !batch.is_empty() {
            yield batch;
        }
    }
    .boxed()
}

/// Fetches those of some files that are not near.
async fn fetch(near: &Near, blobs: &CacheBlobService, files: &[File]) -> Result<Batch, BlobError> {
    let ranges = files.iter().map(|file| (file.digest, file.range)).collect();
    let mut batch = Batch::default();
    let (mut small, mut large) = (Vec::new(), Vec::new());
    for (file, is_near) in files.iter().zip(blobs.are_near(ranges).await?) {
        match is_near {
            true => batch.near.push(*file),
            false if file.size <= SMALL_BLOB_MAX as u64 => small.push(*file),
            false => large.push(*file),
        }
    }
    if !small.is_empty() {
        let digests: Vec<_> = small.iter().map(|file| file.digest).collect();
        for (file, found) in small.into_iter().zip(blobs.read_many(&digests).await?) {
            match found {
                Some(_) => batch.fetched.push(file),
                None => batch.missing.push(file),
            }
        }
    }
    for file in large {
        match read(near, blobs, &file).await {
            Ok(()) => batch.fetched.push(file),
            Err(BlobError::NotFound(_)) => batch.missing.push(file),
            Err(error) => return Err(error),
        }
    }
    Ok(batch)
}

/// Reads a file, so that it is kept.
async fn read(near: &Near, blobs: &CacheBlobService, file: &File) -> Result<(), BlobError> {
    let mut bytes = blobs.read(&file.digest, file.range).await?;
    while bytes.try_next().await?.is_some() {
        near.room().await;
    }
    Ok(())
}

/// Fetches what a profile names and that is not near, about in its order, and returns when it is
/// kept. What the store does not have is counted and left out: a profile may be of another version
/// of a tree. The names in the root are the affair of whoever knows them.
pub async fn warm_profile(
    near: &Near,
    blobs: &CacheBlobService,
    directories: &CacheDirectoryService,
    profile: &Profile,
    progress: &WarmProgress,
) -> Result<(), WarmError> {
    let touches = profile.touches();
    let files: Vec<File> = stream::iter(profile_batches(touches))
        .map(|batch| async move {
            let touches = &touches[batch];
            near.room().await;
            warm_directories(directories, touches, progress).await?;
            let batch = fetch(near, blobs, &files_touched(touches)).await?;
            progress.done(&batch);
            Ok::<_, WarmError>(batch.fetched)
        })
        .buffered(AT_ONCE)
        .try_concat()
        .await?;
    near.settle().await;
    let ranges = files.iter().map(|file| (file.digest, file.range)).collect();
    let there = blobs.are_near(ranges).await?;
    match there.iter().filter(|there| !**there).count() as u64 {
        0 => Ok(()),
        missing => {
            let files = files.len() as u64;
            Err(WarmError::NotKept { near: near.to_string(), missing, files })
        }
    }
}

/// What is fetched together, in order.
fn profile_batches(touches: &[Touch]) -> Vec<Range<usize>> {
    let (mut batches, mut start, mut bytes) = (Vec::new(), 0, 0);
    for (at, touch) in touches.iter().enumerate() {
        let file = files_touched(std::slice::from_ref(touch));
        bytes += file.first().map_or(0, File::bytes);
        let end = at + 1;
        if end - start == UNORDERED || bytes >= BATCH_BYTES || end == touches.len() {
            batches.push(start..end);
            (start, bytes) = (end, 0);
        }
    }
    batches
}

async fn warm_directories(
    directories: &CacheDirectoryService,
    touches: &[Touch],
    progress: &WarmProgress,
) -> Result<(), DirectoryError> {
    let mut touched = Vec::new();
    for touch in touches {
        if let Touch::Directory(digest) = touch {
            touched.push(*digest);
        }
    }
    stream::iter(touched)
        .map(|digest| async move {
            let counter = match directories.get_alone(&digest).await? {
                Some(_) => &progress.directories,
                None => &progress.missing,
            };
            counter.fetch_add(1, Ordering::Relaxed);
            Ok(())
        })
        .buffer_unordered(DIRECTORIES_AT_ONCE)
        .try_collect()
        .await
}

fn files_touched(touches: &[Touch]) -> Vec<File> {
    let file = |touch: &Touch| match touch {
        Touch::File { digest, size, range } if !range.is_empty() => {
            let range = ByteRange { offset: range.start, length: range.end - range.start };
            Some(File { digest: *digest, size: *size, range })
        }
        Touch::Root(_) | Touch::Directory(_) | Touch::File { .. } => None,
    };
    touches.iter().filter_map(file).collect()
}

/// How many files of a tree are not near, and how many there are.
async fn missing(
    near: &Near,
    blobs: &CacheBlobService,
    directories: &CacheDirectoryService,
    root: &Node,
) -> Result<(u64, u64), WarmError> {
    let progress = WarmProgress::default();
    let files = files(near, directories, root, &progress).map_err(WarmError::from);
    let (mut missing, mut all) = (0, 0);
    let mut batches = batches(files);
    while let Some(batch) = batches.try_next().await? {
        let ranges = batch.iter().map(|file| (file.digest, file.range)).collect();
        let there = blobs.are_near(ranges).await?;
        missing += there.iter().filter(|there| !**there).count() as u64;
        all += batch.len() as u64;
    }
    Ok((missing, all))
}

/// Forgets all that a root leads to, as far as it is near; how many records that were. What other
/// trees share with it goes as well. May wait for the disk.
pub fn forget(near: &Near, root: &Node) -> u64 {
    let mut forgetting = Forgetting { near, records: 0 };
    let (mut named, mut stack) = (HashSet::new(), Vec::new());
    match root {
        Node::Symlink { .. } => {}
        Node::File { digest, .. } => forgetting.file(digest),
        Node::Directory { digest, .. } => stack.push(*digest),
    }
    while let Some(digest) = stack.pop() {
        let encoded = near.get(Kind::Directory, digest.as_bytes());
        let Some(Ok(directory)) = encoded.map(Directory::decode) else { continue };
        forgetting.record(Kind::Directory, digest.as_bytes());
        for (_, node) in directory.entries() {
            match node {
                Node::Directory { digest, .. } if named.insert(*digest) => stack.push(*digest),
                Node::File { digest, .. } => forgetting.file(digest),
                Node::Directory { .. } | Node::Symlink { .. } => {}
            }
        }
    }
    forgetting.records
}

struct Forgetting<'a> {
    near: &'a Near,
    records: u64,
}

impl Forgetting<'_> {
    fn file(&mut self, digest: &Digest) {
        for group in groups_of(self.near, digest) {
            self.record(Kind::Group, &group);
        }
        self.record(Kind::Blob, digest.as_bytes());
        self.record(Kind::Chunk, digest.as_bytes());
    }

    fn record(&mut self, kind: Kind, key: &[u8]) {
        if self.near.value_len(kind, key).is_some() {
            self.near.forget(kind, key);
            self.records += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, atomic::Ordering::SeqCst};

    use super::*;
    use crate::{
        Name,
        blob_service::BlobServiceExt as _,
        cache::test_far::{Control, FarBlobs, FarDirectories},
        conformance::content,
        directory::SizeRule,
        local::cache::{CACHE_MIN, LocalCache},
        outboard::GROUP_LEN,
    };

    struct Scene {
        near: Near,
        blobs: CacheBlobService,
        directories: CacheDirectoryService,
        blob_control: Arc<Control>,
        directory_control: Arc<Control>,
        root: Node,
        other: Node,
        _folder: tempfile::TempDir,
    }

    impl Scene {
        /// A far side with two trees that have a file in common.
        async fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            let near = Near::local(LocalCache::open(folder.path(), CACHE_MIN).unwrap());
            let (blobs, directories) = (FarBlobs::default(), FarDirectories::default());
            let mut roots = Vec::new();
            for tree in ["one", "other"] {
                let mut below = Vec::new();
                for index in 0..5 {
                    let sizes = [0, 100, 70_000, 300_000, 1_500_000];
                    let mut entries = Vec::new();
                    for (at, size) in sizes.into_iter().enumerate() {
                        let bytes = content(&format!("{tree} {index}"), size);
                        let digest = blobs.blobs.put_bytes(bytes).await.unwrap();
                        let name = Name::try_from(at.to_string().as_str()).unwrap();
                        let node = Node::File { digest, size: size as u64, executable: false };
                        entries.push((name, node));
                    }
                    let digest = blobs.blobs.put_bytes(content("common", 5000)).await.unwrap();
                    let node = Node::File { digest, size: 5000, executable: false };
                    entries.push((Name::try_from("common").unwrap(), node));
                    below.push(Directory::new(entries).unwrap());
                }
                let entry = |(index, child): (usize, &Directory)| {
                    let size = child.size(SizeRule::Doubled);
                    let node = Node::Directory { digest: child.digest(), size };
                    (Name::try_from(index.to_string().as_str()).unwrap(), node)
                };
                let root = Directory::new(below.iter().enumerate().map(entry).collect()).unwrap();
                let node =
                    Node::Directory { digest: root.digest(), size: root.size(SizeRule::Doubled) };
                roots.push(node);
                let closure = stream::iter(below.into_iter().chain([root]).map(Ok)).boxed();
                directories.directories.put_closure(closure).await.unwrap();
            }
            let [root, other] = <[Node; 2]>::try_from(roots).unwrap();
            let (blob_control, directory_control) =
                (blobs.control.clone(), directories.control.clone());
            Self {
                blobs: CacheBlobService::new(near.clone(), Arc::new(blobs)),
                directories: CacheDirectoryService::new(near.clone(), Arc::new(directories)),
                near,
                blob_control,
                directory_control,
                root,
                other,
                _folder: folder,
            }
        }

        async fn warm(&self, root: &Node) -> Result<Warmed, WarmError> {
            let progress = WarmProgress::default();
            warm(&self.near, &self.blobs, &self.directories, root, &progress).await?;
            Ok(progress.now())
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_tree_is_near_once_it_is_warm_and_is_fetched_once() {
        let scene = Scene::new().await;
        let bytes = 5 * (100 + 70_000 + 300_000 + 1_500_000 + 5000);
        let warmed = scene.warm(&scene.root).await.unwrap();
        assert_eq!((warmed.directories, warmed.files, warmed.bytes), (6, 25, bytes));
        scene.blob_control.is_gone.store(true, SeqCst);
        scene.directory_control.is_gone.store(true, SeqCst);
        let again = scene.warm(&scene.root).await.unwrap();
        let expected = Warmed { files_fetched: 0, bytes_fetched: 0, ..warmed };
        assert_eq!(again, expected, "nothing is missing");
        let error = scene.warm(&scene.other).await.unwrap_err();
        assert!(matches!(error, WarmError::Directory(DirectoryError::Unavailable { .. })));
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn what_is_cut_short_goes_on_and_what_is_forgotten_is_fetched_again() {
        let scene = Scene::new().await;
        let whole = scene.warm(&scene.root).await.unwrap();
        let Node::Directory { digest, .. } = scene.root else { panic!("a directory") };
        let root = scene.directories.get(&digest).await.unwrap().unwrap();
        let (_, first) = &root.entries()[0];
        // A directory, a small file that all have, three others, and a large one in 6 groups.
        // One of the others may be in two chunks.
        let forgotten = forget(&scene.near, first);
        assert!((12..=13).contains(&forgotten), "{forgotten} records");
        scene.near.settle().await;
        let rest = scene.warm(&scene.root).await.unwrap();
        assert_eq!(rest.bytes, whole.bytes);
        let missing = 100 + 70_000 + 300_000 + 1_500_000;
        assert!((missing + 5000..=missing + 25_000).contains(&rest.bytes_fetched), "{rest:?}");

        forget(&scene.near, &scene.root);
        scene.near.settle().await;
        let records = scene.near.stats().unwrap().usage.records;
        assert!(records.iter().all(|(_, count)| *count == 0), "{records:?}");
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn just_what_a_profile_names_is_fetched() {
        let scene = Scene::new().await;
        let Node::Directory { digest: root, .. } = scene.root else { panic!("a directory") };
        let (small, large) = (content("one 1", 70_000), content("one 1", 1_500_000));
        let absent = Digest::of(b"absent");
        let group = GROUP_LEN as u64;
        let lines = [
            "cairn-profile 1".to_owned(),
            "root some-name".to_owned(),
            format!("directory {root}"),
            format!("file {} 70000", Digest::of(&small)),
            format!("directory {absent}"),
            format!("file {absent} 17"),
            format!("file {absent} 1700000 {group} {group}"),
            format!("file {} 1500000 {group} {}", Digest::of(&large), 2 * group),
        ];
        let profile = Profile::read((lines.join("\n") + "\n").as_bytes()).unwrap();
        let warm = async || {
            let progress = WarmProgress::default();
            let (near, blobs, directories) = (&scene.near, &scene.blobs, &scene.directories);
            warm_profile(near, blobs, directories, &profile, &progress).await.unwrap();
            progress.now()
        };
        let bytes = 70_000 + 2 * group;
        let expected = Warmed {
            directories: 1,
            files: 2,
            bytes,
            files_fetched: 2,
            bytes_fetched: bytes,
            missing: 3,
        };
        assert_eq!(warm().await, expected);
        assert_eq!(scene.blob_control.sent() as u64, bytes);
        assert_eq!(warm().await, Warmed { files_fetched: 0, bytes_fetched: 0, ..expected });
        assert_eq!(scene.blob_control.sent(), 0);
        let records = scene.near.stats().unwrap().usage.records;
        let directories = records.iter().find(|(kind, _)| *kind == Kind::Directory).unwrap();
        assert_eq!(directories.1, 1, "nothing of what is below was fetched");
    }

    #[test]
    fn batches_of_a_profile_are_bounded_and_leave_nothing_out() {
        let file = |size| Touch::File { digest: Digest::EMPTY, size, range: 0..size };
        let sizes = [vec![1; 3 * UNORDERED], vec![BATCH_BYTES; 3], vec![BATCH_BYTES / 4; 10]];
        let touches: Vec<_> = sizes.concat().into_iter().map(file).collect();
        let batches = profile_batches(&touches);
        let all: Vec<usize> = batches.iter().cloned().flatten().collect();
        assert!(all.into_iter().eq(0..touches.len()));
        let lengths: Vec<_> = batches.iter().map(|batch| batch.len()).collect();
        assert_eq!(lengths, [UNORDERED, UNORDERED, UNORDERED, 1, 1, 1, 4, 4, 2]);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn what_is_not_kept_is_told() {
        let scene = Scene::new().await;
        scene.near.close();
        let error = scene.warm(&scene.root).await.unwrap_err();
        assert!(error.to_string().contains("25 of 25 files"), "{error}");
    }
}
