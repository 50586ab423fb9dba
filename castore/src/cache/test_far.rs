//! A far side for tests, which counts what it is asked, and fails, lies or lets wait when a test
//! says so.

use std::{
    collections::HashSet,
    fmt,
    fs::File,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use async_trait::async_trait;
use bytes::Bytes;
use futures::{StreamExt as _, TryStreamExt as _, stream};
use parking_lot::Mutex;
use tokio::sync::watch;

use crate::{
    Blob, BlobError, BlobService, BlobStat, ByteRange, Digest, Directory, DirectoryError,
    DirectoryService, Packed, Packing,
    blob_service::{BlobServiceExt as _, BlobSource, BlobStream, memory::MemoryBlobService},
    directory_service::{DirectoryStream, memory::MemoryDirectoryService},
};

/// What a test makes the far side do.
#[derive(Debug)]
pub(crate) struct Control {
    /// It can't be reached.
    pub(crate) is_gone: AtomicBool,
    /// Every byte that it sends is another.
    pub(crate) lies: AtomicBool,
    /// It sends no chunk lists.
    pub(crate) hides_chunks: AtomicBool,
    /// It sends no proofs.
    pub(crate) hides_proofs: AtomicBool,
    /// It says that these are damaged, as soon as it comes to them, or in the middle.
    pub(crate) damaged: Mutex<HashSet<Digest>>,
    /// What is asked waits until this is true.
    gate: watch::Sender<bool>,
    asked: AtomicUsize,
    sent: AtomicUsize,
}

impl Default for Control {
    fn default() -> Self {
        Self {
            is_gone: AtomicBool::new(false),
            lies: AtomicBool::new(false),
            hides_chunks: AtomicBool::new(false),
            hides_proofs: AtomicBool::new(false),
            damaged: Mutex::default(),
            gate: watch::Sender::new(true),
            asked: AtomicUsize::new(0),
            sent: AtomicUsize::new(0),
        }
    }
}

impl Control {
    /// How much was asked since the last time.
    pub(crate) fn asked(&self) -> usize {
        self.asked.swap(0, Ordering::SeqCst)
    }

    /// The bytes that were sent since the last time.
    pub(crate) fn sent(&self) -> usize {
        self.sent.swap(0, Ordering::SeqCst)
    }

    /// Lets all wait who ask, or go on.
    pub(crate) fn open(&self, is_open: bool) {
        self.gate.send_replace(is_open);
    }

    /// `false` if it can't be reached.
    async fn ask(&self) -> bool {
        self.asked.fetch_add(1, Ordering::SeqCst);
        let mut gate = self.gate.subscribe();
        gate.wait_for(|is_open| *is_open).await.expect("the control is there");
        !self.is_gone.load(Ordering::SeqCst)
    }

    fn send(&self, bytes: Bytes) -> Bytes {
        self.sent.fetch_add(bytes.len(), Ordering::SeqCst);
        match self.lies.load(Ordering::SeqCst) {
            true => bytes.iter().map(|byte| !byte).collect(),
            false => bytes,
        }
    }
}

/// Blobs in memory, far away.
#[derive(Debug, Default)]
pub(crate) struct FarBlobs {
    pub(crate) blobs: MemoryBlobService,
    pub(crate) control: Arc<Control>,
}

impl FarBlobs {
    async fn ask(&self) -> Result<(), BlobError> {
        let gone = || BlobError::Unavailable {
            service: self.to_string(),
            source: "no route to it".into(),
        };
        self.control.ask().await.then_some(()).ok_or_else(gone)
    }

    fn damage(&self, digests: &[Digest]) -> Result<(), BlobError> {
        let damaged = self.control.damaged.lock();
        let digest = digests.iter().find(|digest| damaged.contains(digest)).copied();
        let corrupt = |digest| BlobError::Corrupt { digest, reason: "torn".to_owned() };
        digest.map_or(Ok(()), |digest| Err(corrupt(digest)))
    }
}

impl fmt::Display for FarBlobs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("far-away:")
    }
}

#[async_trait]
impl BlobService for FarBlobs {
    async fn stat(&self, digest: &Digest) -> Result<Option<BlobStat>, BlobError> {
        self.ask().await?;
        let mut stat = self.blobs.stat(digest).await?;
        if let Some(stat) = &mut stat {
            if self.control.hides_chunks.load(Ordering::SeqCst) {
                stat.chunks.clear();
            }
            if self.control.hides_proofs.load(Ordering::SeqCst) {
                stat.outboard = None;
            }
        }
        Ok(stat)
    }

    async fn has_many(&self, digests: &[Digest]) -> Result<Vec<bool>, BlobError> {
        self.ask().await?;
        self.blobs.has_many(digests).await
    }

    async fn read(&self, digest: &Digest, range: ByteRange) -> Result<BlobStream, BlobError> {
        self.ask().await?;
        let control = self.control.clone();
        let blob = self.blobs.read(digest, range).await?;
        let blob = blob.map_ok(move |bytes| control.send(bytes));
        match self.damage(&[*digest]) {
            Ok(()) => Ok(blob.boxed()),
            Err(error) => Ok(blob.take(1).chain(stream::iter([Err(error)])).boxed()),
        }
    }

    async fn read_many(&self, digests: &[Digest]) -> Result<Vec<Option<Bytes>>, BlobError> {
        self.ask().await?;
        self.damage(digests)?;
        let blobs = self.blobs.read_many(digests).await?;
        Ok(blobs.into_iter().map(|blob| blob.map(|bytes| self.control.send(bytes))).collect())
    }

    async fn read_many_packed(
        &self,
        digests: &[Digest],
        _: Packing,
    ) -> Result<Vec<Option<Packed>>, BlobError> {
        // As if it kept them in frames.
        self.read_many_and_pack(digests, Packing::All).await
    }

    async fn put(&self, source: BlobSource) -> Result<BlobStat, BlobError> {
        self.ask().await?;
        self.blobs.put(source).await
    }

    async fn put_many(&self, blobs: Vec<Blob>) -> Result<(), BlobError> {
        self.ask().await?;
        self.blobs.put_many(blobs).await
    }

    fn read_local(&self, _: &Digest, _: ByteRange) -> Option<Result<Bytes, BlobError>> {
        None
    }

    fn lend(&self, _: &Digest) -> Option<File> {
        None
    }

    fn keep_whole(&self, _: &Digest) {}
}

/// Directories in memory, far away.
#[derive(Debug, Default)]
pub(crate) struct FarDirectories {
    pub(crate) directories: MemoryDirectoryService,
    pub(crate) control: Arc<Control>,
}

impl FarDirectories {
    async fn ask(&self) -> Result<(), DirectoryError> {
        let gone = || DirectoryError::Unavailable {
            service: self.to_string(),
            source: "no route to it".into(),
        };
        self.control.ask().await.then_some(()).ok_or_else(gone)
    }
}

impl Control {
    fn damage_of(&self, digest: Digest) -> Result<(), DirectoryError> {
        match self.damaged.lock().contains(&digest) {
            false => Ok(()),
            true => Err(DirectoryError::Corrupt { digest, reason: "torn".to_owned() }),
        }
    }
}

impl fmt::Display for FarDirectories {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("far-away:")
    }
}

#[async_trait]
impl DirectoryService for FarDirectories {
    async fn get(&self, digest: &Digest) -> Result<Option<Directory>, DirectoryError> {
        self.ask().await?;
        self.control.damage_of(*digest)?;
        self.directories.get(digest).await
    }

    async fn get_closure(&self, root: &Digest) -> Result<DirectoryStream, DirectoryError> {
        self.ask().await?;
        let control = self.control.clone();
        let checked = move |directory: Directory| {
            control.damage_of(directory.digest())?;
            Ok(directory)
        };
        let closure = self.directories.get_closure(root).await?;
        Ok(closure.map(move |directory| directory.and_then(&checked)).boxed())
    }

    async fn has_many(&self, digests: &[Digest]) -> Result<Vec<bool>, DirectoryError> {
        self.ask().await?;
        self.directories.has_many(digests).await
    }

    async fn put_closure(&self, directories: DirectoryStream) -> Result<Digest, DirectoryError> {
        self.ask().await?;
        self.directories.put_closure(directories).await
    }

    fn get_local(&self, _: &Digest) -> Option<Result<Option<Directory>, DirectoryError>> {
        None
    }
}
