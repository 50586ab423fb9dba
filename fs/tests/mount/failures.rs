//! Stores that lack what they should have, break off, or break down.

use std::{
    fmt,
    fs::{self, File},
    sync::Arc,
};

use async_trait::async_trait;
use bytes::Bytes;
use cairn_castore::{
    Blob, BlobError, BlobService, BlobStat, ByteRange, Digest, Node, Packed, Packing,
    blob_service::{BlobServiceExt as _, BlobSource, BlobStream, memory::MemoryBlobService},
};
use cairn_fs::file_system::{FileSystemOptions, Services};
use rustix::io::Errno;

use crate::fixture::*;

/// What a store does with the bytes that are at hand.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Manner {
    /// Answers with few of them at a time.
    Piecemeal,
    /// Says that they are damaged.
    Damaged,
    /// Panics.
    Panics,
}

#[derive(Debug)]
struct Odd {
    blobs: Arc<MemoryBlobService>,
    manner: Manner,
}

impl fmt::Display for Odd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("odd:")
    }
}

#[async_trait]
impl BlobService for Odd {
    async fn stat(&self, digest: &Digest) -> Result<Option<BlobStat>, BlobError> {
        self.blobs.stat(digest).await
    }

    async fn has_many(&self, digests: &[Digest]) -> Result<Vec<bool>, BlobError> {
        self.blobs.has_many(digests).await
    }

    async fn read(&self, digest: &Digest, range: ByteRange) -> Result<BlobStream, BlobError> {
        self.blobs.read(digest, range).await
    }

    async fn read_many(&self, digests: &[Digest]) -> Result<Vec<Option<Bytes>>, BlobError> {
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
        match self.manner {
            Manner::Piecemeal => {
                let length = range.length.min(1_000);
                self.blobs.read_local(digest, ByteRange { length, ..range })
            }
            Manner::Damaged => {
                Some(Err(BlobError::Corrupt { digest: *digest, reason: "rust".to_owned() }))
            }
            Manner::Panics => panic!("the store breaks down"),
        }
    }

    fn lend(&self, _: &Digest) -> Option<File> {
        None
    }

    fn keep_whole(&self, _: &Digest) {}
}

fn mount(store: &Store, root: Node, manner: Manner) -> Mounted {
    let services = Services {
        blobs: Arc::new(Odd { blobs: store.blobs.clone(), manner }),
        ..store.services(&Names::new([("root", root)]))
    };
    Mounted::with(store, services, FileSystemOptions::default())
}

fn errno_of(result: std::io::Result<impl fmt::Debug>) -> Option<Errno> {
    result.unwrap_err().raw_os_error().map(Errno::from_raw_os_error)
}

#[test]
fn answers_in_part_make_a_whole() {
    if !can_mount() {
        return;
    }
    let store = Store::new();
    let expected = bytes(300_001);
    let root = store.directory([("f", store.file(expected.clone()))]);
    let mounted = mount(&store, root, Manner::Piecemeal);
    assert!(fs::read(mounted.path("f")).unwrap() == expected);
}

#[test]
fn damage_is_an_io_error() {
    if !can_mount() {
        return;
    }
    let store = Store::new();
    let root = store.directory([("f", store.file("x"))]);
    let mounted = mount(&store, root, Manner::Damaged);
    assert_eq!(errno_of(fs::read(mounted.path("f"))), Some(Errno::IO));
}

#[test]
fn a_panic_is_an_io_error_and_the_mount_goes_on() {
    if !can_mount() {
        return;
    }
    let store = Store::new();
    let root = store.directory([("f", store.file("x"))]);
    let mounted = mount(&store, root, Manner::Panics);
    for _ in 0..3 {
        assert_eq!(errno_of(fs::read(mounted.path("f"))), Some(Errno::IO));
        assert_eq!(fs::metadata(mounted.path("f")).unwrap().len(), 1);
    }
}

#[test]
fn what_is_missing_or_too_short_is_an_io_error() {
    if !can_mount() {
        return;
    }
    let store = Store::new();
    let gone = Digest::of(b"gone");
    let short = digest_of(&store.file("short"));
    let root = store.directory([
        ("gone", Node::File { digest: gone, size: 4, executable: false }),
        ("short", Node::File { digest: short, size: 100_000, executable: false }),
        ("huge", Node::File { digest: short, size: u64::MAX, executable: false }),
        ("fine", store.file("fine")),
    ]);
    let names =
        Names::new([("root", root), ("nowhere", Node::Directory { digest: gone, size: 0 })]);
    let options = FileSystemOptions::default();
    let mounted = Mounted::with(&store, store.services(&names), options);
    assert_eq!(names_in(&mounted.path("")), ["fine", "gone", "huge", "short"]);
    assert_eq!(names_in(mounted.top()), ["nowhere", "root"]);
    assert_eq!(errno_of(fs::read(mounted.path("gone"))), Some(Errno::IO));
    assert_eq!(errno_of(fs::read(mounted.path("short"))), Some(Errno::IO));
    assert_eq!(errno_of(fs::metadata(mounted.path("huge"))), Some(Errno::IO));
    assert_eq!(errno_of(fs::metadata(mounted.top().join("nowhere"))), Some(Errno::IO));
    assert_eq!(fs::read(mounted.path("fine")).unwrap(), b"fine");
}
