//! Large blobs as whole files beside another service, so that they can be lent: what is asked for
//! is made in the background, within a budget of bytes. Everything else is the other service's
//! affair, and how the files are kept that of `whole_files/folder`.

mod folder;

use std::{collections::HashSet, fmt, fs::File, path::Path, sync::Arc};

use async_trait::async_trait;
use bytes::Bytes;
use futures::TryStreamExt as _;
use parking_lot::Mutex;
use quick_cache::sync::Cache;
use tokio::{runtime::Handle, sync::Semaphore};

pub use self::folder::WholeFilesError;
use self::folder::{Folder, Identity, Unfinished};
use crate::{
    Blob, BlobError, BlobService, BlobStat, ByteRange, Digest, Packed, Packing,
    blob_service::{BlobSource, BlobStream},
};

/// How many files are made or verified at the same time.
const MAKING_MAX: usize = 2;

/// How many blobs may be wished for at the same time. More wishes are forgotten: whoever still
/// wants the blob wishes again.
const WISHES_MAX: usize = 64;

/// How many files are known to be verified. Others are verified again before they are lent.
const VERIFIED_MAX: usize = 65_536;

/// A blob service that can lend blobs as files.
///
/// A file is made when [`BlobService::keep_whole`] asks for it, and lent from then on, also by a
/// later process, which verifies it first. The files least recently lent make room for others. A
/// folder may be shared by several processes; one whose disk is full or broken makes no files, and
/// nothing else fails for it.
#[derive(Debug)]
pub struct WholeFileBlobService {
    inner: Arc<dyn BlobService>,
    maker: Arc<Maker>,
    runtime: Handle,
}

impl WholeFileBlobService {
    /// Keeps files of the blobs of `inner` in a folder, which is made if need be, of together at
    /// most `budget` bytes. Files that are in use when they make room for others take their disk
    /// space until they are closed. The work is done on this runtime. Blocks for a moment.
    pub fn open(
        inner: Arc<dyn BlobService>,
        folder: &Path,
        budget: u64,
        runtime: Handle,
    ) -> Result<Self, WholeFilesError> {
        let maker = Arc::new(Maker {
            blobs: inner.clone(),
            folder: Folder::open(folder, budget)?,
            verified: Cache::new(VERIFIED_MAX),
            wishes: Mutex::default(),
            turns: Semaphore::new(MAKING_MAX),
        });
        Ok(Self { inner, maker, runtime })
    }

    /// An empty file of the kind that is lent, in the same folder, without a name.
    pub fn sample(&self) -> Result<File, WholeFilesError> {
        self.maker.folder.sample()
    }
}

impl fmt::Display for WholeFileBlobService {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (whole files: {})", self.inner, self.maker.folder)
    }
}

/// Makes and verifies files.
#[derive(Debug)]
struct Maker {
    blobs: Arc<dyn BlobService>,
    folder: Folder,
    /// Which file has been found to hold the blob.
    verified: Cache<Digest, Identity>,
    wishes: Mutex<HashSet<Digest>>,
    turns: Semaphore,
}

impl Maker {
    /// The file of a blob, if there is one that was verified.
    fn lend(&self, digest: &Digest) -> Lent {
        let Some((file, identity)) = self.folder.find(digest) else { return Lent::Absent };
        if self.verified.get(digest) == Some(identity) {
            self.folder.note_use(&file);
            return Lent::File(file);
        }
        Lent::Unverified
    }

    /// Sees to a wish, and forgets it.
    async fn grant(self: Arc<Self>, digest: Digest) {
        let outcome = match self.turns.acquire().await {
            Ok(_turn) => self.clone().make(digest).await,
            Err(_) => Ok(()),
        };
        self.wishes.lock().remove(&digest);
        if let Err(error) = outcome {
            let error = &error as &dyn std::error::Error;
            tracing::warn!(folder = %self.folder, blob = %digest, error, "no whole file was made");
        }
    }

    async fn make(self: Arc<Self>, digest: Digest) -> Result<(), WholeFilesError> {
        let verify = move |maker: &Self| maker.verify(&digest);
        if self.clone().blocking(verify).await? {
            return Ok(());
        }
        let unread = |source| WholeFilesError::Blob { digest, source };
        let stat = self.blobs.stat(&digest).await.map_err(unread)?;
        let Some(BlobStat { size, .. }) = stat else {
            return Err(unread(BlobError::NotFound(digest)));
        };
        if size > self.folder.budget() {
            tracing::debug!(blob = %digest, size, "larger than all whole files may be");
            return Ok(());
        }
        let mut unfinished =
            self.clone().blocking(move |maker| maker.folder.begin(digest, size)).await?;
        let mut stream = self.blobs.read(&digest, ByteRange::ALL).await.map_err(unread)?;
        while let Some(piece) = stream.try_next().await.map_err(unread)? {
            let write = move |_: &Self| unfinished.write(&piece);
            unfinished = self.clone().blocking(write).await?;
        }
        self.blocking(move |maker| maker.finish(digest, unfinished)).await
    }

    /// Whether there is a file that holds the blob. One that holds anything else is removed.
    fn verify(&self, digest: &Digest) -> Result<bool, WholeFilesError> {
        let Some((file, identity)) = self.folder.find(digest) else { return Ok(false) };
        let holds = self.folder.holds(&file, digest)?;
        if holds {
            self.verified.insert(*digest, identity);
        } else {
            tracing::warn!(folder = %self.folder, blob = %digest, "removed a damaged file");
            self.folder.remove(digest)?;
        }
        Ok(holds)
    }

    fn finish(&self, digest: Digest, unfinished: Unfinished) -> Result<(), WholeFilesError> {
        let identity = self.folder.finish(unfinished)?;
        self.verified.insert(digest, identity);
        tracing::debug!(folder = %self.folder, blob = %digest, "made a whole file");
        Ok(())
    }

    async fn blocking<T: Send + 'static>(
        self: Arc<Self>,
        run: impl FnOnce(&Self) -> Result<T, WholeFilesError> + Send + 'static,
    ) -> Result<T, WholeFilesError> {
        // It fails where the runtime is shutting down.
        let outcome = tokio::task::spawn_blocking(move || run(&self)).await;
        outcome.map_err(|_| WholeFilesError::Interrupted)?
    }
}

/// What there is of a blob.
enum Lent {
    File(File),
    Unverified,
    Absent,
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl BlobService for WholeFileBlobService {
    async fn stat(&self, digest: &Digest) -> Result<Option<BlobStat>, BlobError> {
        self.inner.stat(digest).await
    }

    async fn has_many(&self, digests: &[Digest]) -> Result<Vec<bool>, BlobError> {
        self.inner.has_many(digests).await
    }

    async fn read(&self, digest: &Digest, range: ByteRange) -> Result<BlobStream, BlobError> {
        self.inner.read(digest, range).await
    }

    async fn read_many(&self, digests: &[Digest]) -> Result<Vec<Option<Bytes>>, BlobError> {
        self.inner.read_many(digests).await
    }

    async fn read_many_packed(
        &self,
        digests: &[Digest],
        packing: Packing,
    ) -> Result<Vec<Option<Packed>>, BlobError> {
        self.inner.read_many_packed(digests, packing).await
    }

    async fn put(&self, source: BlobSource) -> Result<BlobStat, BlobError> {
        self.inner.put(source).await
    }

    async fn put_many(&self, blobs: Vec<Blob>) -> Result<(), BlobError> {
        self.inner.put_many(blobs).await
    }

    fn read_local(&self, digest: &Digest, range: ByteRange) -> Option<Result<Bytes, BlobError>> {
        self.inner.read_local(digest, range)
    }

    fn lend(&self, digest: &Digest) -> Option<File> {
        match self.maker.lend(digest) {
            Lent::File(file) => Some(file),
            Lent::Absent => self.inner.lend(digest),
            Lent::Unverified => {
                self.keep_whole(digest);
                self.inner.lend(digest)
            }
        }
    }

    fn keep_whole(&self, digest: &Digest) {
        self.inner.keep_whole(digest);
        let mut wishes = self.maker.wishes.lock();
        if wishes.len() < WISHES_MAX && wishes.insert(*digest) {
            self.runtime.spawn(self.maker.clone().grant(*digest));
        }
    }
}

#[cfg(test)]
mod tests;
