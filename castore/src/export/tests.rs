//! Exports of real trees from services in memory.

use std::{
    fs::{self, File},
    os::unix::fs::{PermissionsExt as _, symlink},
};

use tempfile::TempDir;

use super::*;
use crate::{
    Digest, Directory, Name, SymlinkTarget,
    blob_service::{BlobServiceExt as _, memory::MemoryBlobService},
    directory::SizeRule,
    directory_service::memory::MemoryDirectoryService,
    import::{DEPTH_MAX, ImportOptions, import},
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

    async fn import(&self, path: &Path) -> Node {
        let (blobs, directories) = (Arc::clone(&self.blobs), Arc::clone(&self.directories));
        import(path, blobs, directories, ImportOptions::default(), ()).await.unwrap().0
    }

    async fn export(&self, node: &Node, to: &Path) -> Result<ExportSummary, ExportError> {
        let (blobs, directories) = (Arc::clone(&self.blobs), Arc::clone(&self.directories));
        export(node, to, blobs, directories, ExportOptions::default()).await
    }

    /// Stores a directory.
    async fn put(&self, entries: &[(&str, Node)]) -> Node {
        let entry = |(name, node): &(&str, Node)| (Name::try_from(*name).unwrap(), node.clone());
        let directory = Directory::new(entries.iter().map(entry).collect()).unwrap();
        let size = directory.size(SizeRule::Doubled);
        let stream = Box::pin(futures::stream::once(async move { Ok(directory) }));
        let digest = self.directories.put_closure(stream).await.unwrap();
        Node::Directory { digest, size }
    }
}

fn temp() -> TempDir {
    tempfile::tempdir().unwrap()
}

/// What is in a folder.
fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap();
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

fn mode(path: &Path) -> u32 {
    fs::symlink_metadata(path).unwrap().permissions().mode() & 0o7777
}

#[tokio::test]
async fn what_is_exported_is_what_was_imported() {
    let temp = temp();
    let tree = temp.path().join("tree");
    fs::create_dir_all(tree.join("a/b/c")).unwrap();
    fs::create_dir(tree.join("empty")).unwrap();
    fs::write(tree.join("zero"), "").unwrap();
    fs::write(tree.join("a/plain"), "equal").unwrap();
    fs::write(tree.join("a/run"), "equal").unwrap();
    fs::set_permissions(tree.join("a/run"), fs::Permissions::from_mode(0o700)).unwrap();
    fs::write(tree.join("a/b/large"), vec![5; 20 << 20]).unwrap();
    fs::write(tree.join("x".repeat(255)), "long").unwrap();
    let strange = <std::ffi::OsStr as std::os::unix::ffi::OsStrExt>::from_bytes(b"\xff\x01\n");
    fs::write(tree.join(strange), "strange").unwrap();
    symlink("/nowhere/../x", tree.join("a/b/dangling")).unwrap();
    symlink("l/".repeat(2047) + "l", tree.join("a/b/long")).unwrap();
    for number in 0..3000 {
        fs::write(tree.join(format!("a/b/c/{number}")), number.to_string()).unwrap();
    }
    let services = Services::new();
    let node = services.import(&tree).await;

    let copy = temp.path().join("copy");
    let summary = services.export(&node, &copy).await.unwrap();
    assert_eq!((summary.files, summary.directories, summary.symlinks), (3006, 5, 2));
    let numbers: usize = (0..3000).map(|number: u32| number.to_string().len()).sum();
    assert_eq!(summary.bytes, (20 << 20) + 5 + 5 + 4 + 7 + numbers as u64);
    assert_eq!(services.import(&copy).await, node);
    assert_eq!(fs::read(copy.join("a/b/c/2999")).unwrap(), b"2999");
    assert_eq!(fs::read(copy.join("a/b/large")).unwrap(), vec![5; 20 << 20]);
    // Whatever the process's mask is, these are not in it.
    assert_eq!(mode(&copy.join("a/run")) & 0o700, 0o700);
    assert_eq!(mode(&copy.join("a/plain")) & 0o711, 0o600);
    assert_eq!(mode(&copy.join("empty")) & 0o700, 0o700);
    assert_eq!(names(temp.path()).len(), 2);
}

#[tokio::test]
async fn a_root_may_be_a_file_or_a_symlink() {
    let temp = temp();
    let services = Services::new();
    let digest = services.blobs.put_bytes("hi\n".into()).await.unwrap();
    let file = Node::File { digest, size: 3, executable: true };
    let path = temp.path().join("file");
    let one_file = ExportSummary { files: 1, bytes: 3, ..Default::default() };
    assert_eq!(services.export(&file, &path).await.unwrap(), one_file);
    assert_eq!(services.import(&path).await, file);

    let target = SymlinkTarget::try_from(std::ffi::OsStr::new("file")).unwrap();
    let link = Node::Symlink { target };
    let path = temp.path().join("link");
    services.export(&link, &path).await.unwrap();
    assert_eq!(services.import(&path).await, link);

    let empty = Node::Directory { digest: Digest::EMPTY, size: 0 };
    let path = temp.path().join("empty");
    services.export(&empty, &path).await.unwrap();
    assert_eq!(services.import(&path).await, empty);
}

#[tokio::test]
async fn trees_may_be_deeper_than_any_path() {
    const DEPTH: usize = 300;
    let temp = temp();
    let services = Services::new();
    let name = "d".repeat(200);
    let mut directories = vec![Directory::default()];
    for _ in 0..DEPTH {
        let below = directories.last().unwrap();
        let below = Node::Directory { digest: below.digest(), size: below.size(SizeRule::Doubled) };
        let file = Node::File { digest: Digest::EMPTY, size: 0, executable: false };
        let entries = [("a", file.clone()), (&name, below), ("z", file)];
        let entry = |(name, node): (&str, Node)| (Name::try_from(name).unwrap(), node);
        directories.push(Directory::new(entries.map(entry).to_vec()).unwrap());
    }
    let size = directories.last().unwrap().size(SizeRule::Doubled);
    let stream = Box::pin(futures::stream::iter(directories.into_iter().map(Ok)));
    let digest = services.directories.put_closure(stream).await.unwrap();
    let node = Node::Directory { digest, size };
    let path = temp.path().join("deep");
    let summary = services.export(&node, &path).await.unwrap();
    assert_eq!((summary.directories, summary.files), (DEPTH as u64 + 1, 2 * DEPTH as u64));
    assert_eq!(services.import(&path).await, node);
    const { assert!(DEPTH < DEPTH_MAX) };
}

#[tokio::test]
async fn what_is_there_is_never_touched() {
    let temp = temp();
    let services = Services::new();
    let empty = Node::Directory { digest: Digest::EMPTY, size: 0 };
    let path = temp.path().join("there");
    fs::create_dir(&path).unwrap();
    let dangling = temp.path().join("dangling");
    symlink("elsewhere", &dangling).unwrap();
    for path in [path, dangling] {
        let error = services.export(&empty, &path).await.unwrap_err();
        assert!(matches!(&error, ExportError::Exists { path: named } if *named == path));
    }
    let error = services.export(&empty, &temp.path().join("no/where")).await.unwrap_err();
    assert!(matches!(error, ExportError::Write { .. }), "{error:?}");
    assert_eq!(names(temp.path()).len(), 2);
}

#[tokio::test]
async fn what_is_missing_or_wrong_leaves_nothing_behind() {
    let services = Services::new();
    let hi = services.blobs.put_bytes("hi\n".into()).await.unwrap();
    let large = services.blobs.put_bytes(vec![1; 10 << 20].into()).await.unwrap();
    let missing = Digest::of(b"missing");
    let file = |digest, size| Node::File { digest, size, executable: false };
    let good = file(hi, 3);
    for (bad, size) in [(missing, 3), (missing, 1 << 20), (hi, 4), (hi, 1 << 20), (large, 1 << 20)]
    {
        let temp = temp();
        let bad = file(bad, size);
        let node = services.put(&[("a", good.clone()), ("b", bad), ("c", good.clone())]).await;
        let error = services.export(&node, &temp.path().join("x")).await.unwrap_err();
        match error {
            ExportError::Blob { source: BlobError::NotFound(digest), .. } => {
                assert_eq!(digest, missing);
            }
            ExportError::Size { path, expected, .. } => {
                assert_eq!((path, expected), (temp.path().join("x/b"), size));
            }
            error => panic!("{error:?}"),
        }
        assert_eq!(names(temp.path()), [""; 0]);
    }
    let temp = temp();
    let nowhere = Node::Directory { digest: missing, size: 0 };
    let error = services.export(&nowhere, &temp.path().join("x")).await.unwrap_err();
    let ExportError::Directory { path, source } = error else { panic!("{error:?}") };
    assert_eq!(path, temp.path().join("x"));
    assert!(matches!(source, DirectoryError::NotFound(digest) if digest == missing));
    assert_eq!(names(temp.path()), [""; 0]);
}

#[test]
fn a_deep_tree_is_removed_with_few_open_files() {
    let temp = temp();
    let top = temp.path().join("top");
    fs::create_dir(&top).unwrap();
    let mut directory: rustix::fd::OwnedFd = File::open(&top).unwrap().into();
    for _ in 0..1500 {
        for name in ["a", "b"] {
            rustix::fs::mkdirat(&directory, name, 0o755.into()).unwrap();
        }
        rustix::fs::symlinkat("x", &directory, "link").unwrap();
        directory =
            rustix::fs::openat(&directory, "b", rustix::fs::OFlags::RDONLY, 0.into()).unwrap();
    }
    let parent = File::open(temp.path()).unwrap();
    removal::remove(std::os::fd::AsFd::as_fd(&parent), b"top").unwrap();
    assert_eq!(names(temp.path()), [""; 0]);
}

#[tokio::test]
async fn an_export_that_is_dropped_leaves_nothing_behind() {
    let temp = temp();
    let services = Services::new();
    let digest = services.blobs.put_bytes(vec![1; 10 << 20].into()).await.unwrap();
    let file = Node::File { digest, size: 10 << 20, executable: false };
    let names: Vec<String> = (0..500).map(|number| number.to_string()).collect();
    let entries: Vec<_> = names.iter().map(|name| (name.as_str(), file.clone())).collect();
    let node = services.put(&entries).await;
    let path = temp.path().join("x");
    let export = services.export(&node, &path);
    let begun = async {
        while self::names(temp.path()).is_empty() {
            tokio::task::yield_now().await;
        }
    };
    tokio::select! {
        biased;
        _ = export => panic!("five gigabytes are not written so fast"),
        () = begun => {}
    }
    while !self::names(temp.path()).is_empty() {
        tokio::task::yield_now().await;
    }
}
