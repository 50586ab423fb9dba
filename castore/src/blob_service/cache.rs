//! Blobs of a far service, of which what was read is kept near: small ones whole, large ones by the
//! groups that can be proven alone. Where records are kept, and for how long, is the affair of the
//! near side.

use std::{fmt, fs::File, ops::Range, sync::Arc};

use async_trait::async_trait;
use bytes::Bytes;
use futures::{StreamExt as _, TryStreamExt as _, stream};

use self::{fetches::Fetches, near::NearBlobs};
use super::{HAS_MANY_DIGESTS, READ_MANY_BLOBS, check_count};
use crate::{
    Blob, BlobError, BlobService, BlobStat, ByteRange, Digest, Packed, Packing,
    blob_service::{BlobServiceExt as _, BlobSource, BlobStream},
    cache::Near,
    chunking::CHUNK_MAX,
    outboard::{GROUP_LEN, Outboard},
};

mod fetches;
mod near;

pub(crate) use near::groups_of;

#[cfg(test)]
mod tests;

/// The largest blob that is kept whole, in bytes.
const WHOLE_MAX: u64 = CHUNK_MAX as u64;

/// The groups of a large blob that are read together, at offsets that are multiples of it: a MiB,
/// as a mount asks for it.
const WINDOW_GROUPS: u64 = 4;

/// The windows that a stream reads ahead of its reader.
const WINDOWS_AHEAD: usize = 4;

/// The blobs of a cache. Clones share everything.
///
/// A blob of at most [`CHUNK_MAX`] bytes is fetched and kept whole. Of a larger one the size, the
/// chunk list and the proof are kept, and those of its groups of [`GROUP_LEN`] bytes that were read,
/// each under its chaining value, by which it is proven again whenever it is read. A large blob of
/// which the far service has no proof is read through.
///
/// What is there is what the far service has. What is near is answered from there, though, so that
/// it can be read while the far service can't be reached.
#[derive(Debug, Clone)]
pub struct CacheBlobService {
    near: NearBlobs,
    fetches: Fetches,
}

/// How a blob is kept.
#[derive(Debug, Clone)]
enum Shape {
    Whole,
    Groups(Arc<Outboard>),
    /// It is not.
    Unproven,
}

impl Shape {
    fn of(stat: &BlobStat) -> Self {
        match &stat.outboard {
            _ if stat.size <= WHOLE_MAX => Self::Whole,
            Some(outboard) => Self::Groups(Arc::new(outboard.clone())),
            None => Self::Unproven,
        }
    }
}

impl CacheBlobService {
    /// The blobs of the far service, kept near.
    pub fn new(near: Near, far: Arc<dyn BlobService>) -> Self {
        let near = NearBlobs::new(near);
        Self { fetches: Fetches::new(near.clone(), far), near }
    }

    fn far(&self) -> &dyn BlobService {
        self.fetches.far()
    }

    /// Runs what may wait for the disk of the near side on a thread that may.
    async fn near<T: Send + 'static>(
        &self,
        run: impl FnOnce(&NearBlobs) -> T + Send + 'static,
    ) -> Result<T, BlobError> {
        self.near.blocking(run).await.map_err(|error| self.fetches.broken_off(error))
    }

    /// Which of these ranges of blobs are near, all of them, as far as is known.
    pub(crate) async fn are_near(
        &self,
        ranges: Vec<(Digest, ByteRange)>,
    ) -> Result<Vec<bool>, BlobError> {
        self.near(move |near| {
            ranges.iter().map(|(digest, range)| near.has(digest, *range)).collect()
        })
        .await
    }

    /// A blob that is kept whole.
    async fn whole(&self, digest: &Digest) -> Result<Bytes, BlobError> {
        let digest = *digest;
        let near = self.near(move |near| near.whole(&digest)).await?;
        match near {
            Some(bytes) => {
                self.near.store().hit(1);
                Ok(bytes)
            }
            None => self.fetches.whole(&digest).await?.ok_or(BlobError::NotFound(digest)),
        }
    }

    /// A range of a blob that is kept like this.
    async fn read_kept(
        &self,
        shape: Shape,
        digest: &Digest,
        range: ByteRange,
    ) -> Result<BlobStream, BlobError> {
        match shape {
            Shape::Whole => {
                let whole = self.whole(digest).await?;
                let range = range.within(whole.len() as u64);
                let part = whole.slice(range.start as usize..range.end as usize);
                Ok(stream::iter((!part.is_empty()).then_some(Ok(part))).boxed())
            }
            Shape::Groups(outboard) => {
                let range = range.within(outboard.size());
                Ok(self.read_groups(outboard, range))
            }
            Shape::Unproven => {
                tracing::debug!(blob = %digest, service = %self, "read through for want of a proof");
                self.far().read(digest, range).await
            }
        }
    }

    /// The parts of a range that lie in these groups, in order.
    async fn groups(
        &self,
        outboard: Arc<Outboard>,
        indices: Range<u64>,
        range: Range<u64>,
    ) -> Result<Vec<Bytes>, BlobError> {
        let (proof, wanted) = (outboard.clone(), indices.clone());
        let found = self.near(move |near| near.groups(&proof, wanted)).await?;
        self.near.store().hit(found.iter().flatten().count());
        let groups = self.fetches.groups(&outboard, indices.start, found).await?;
        let part = |(index, group): (u64, Bytes)| {
            let start = index * GROUP_LEN as u64;
            let from = range.start.saturating_sub(start) as usize;
            let to = (range.end - start).min(group.len() as u64) as usize;
            group.slice(from..to)
        };
        Ok(indices.zip(groups).map(part).collect())
    }

    /// A range of a large blob, which lies within it.
    fn read_groups(&self, outboard: Arc<Outboard>, range: Range<u64>) -> BlobStream {
        if range.is_empty() {
            return stream::empty().boxed();
        }
        let group = GROUP_LEN as u64;
        let indices = range.start / group..range.end.div_ceil(group);
        let windows = indices.start / WINDOW_GROUPS..indices.end.div_ceil(WINDOW_GROUPS);
        let service = self.clone();
        let window = move |window: u64| {
            let start = (window * WINDOW_GROUPS).max(indices.start);
            let end = ((window + 1) * WINDOW_GROUPS).min(indices.end);
            let (service, outboard) = (service.clone(), outboard.clone());
            let range = range.clone();
            async move { service.groups(outboard, start..end, range).await }
        };
        let windows = stream::iter(windows).map(window).buffered(WINDOWS_AHEAD);
        // Ends with the first error, as streams of blobs do.
        async_stream::try_stream! {
            futures::pin_mut!(windows);
            while let Some(groups) = windows.try_next().await? {
                for group in groups {
                    yield group;
                }
            }
        }
        .boxed()
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl BlobService for CacheBlobService {
    async fn stat(&self, digest: &Digest) -> Result<Option<BlobStat>, BlobError> {
        let asked = *digest;
        match self.near(move |near| near.stat(&asked)).await? {
            Some(stat) => {
                self.near.store().hit(1);
                Ok(Some(stat))
            }
            None => self.fetches.stat(digest).await,
        }
    }

    /// Asks the far service, since who wants to know is mostly about to store what is not there. As
    /// long as that can't be reached, what is near is there.
    async fn has_many(&self, digests: &[Digest]) -> Result<Vec<bool>, BlobError> {
        check_count(digests.len(), HAS_MANY_DIGESTS)?;
        match self.far().has_many(digests).await {
            Err(error @ BlobError::Unavailable { .. }) => {
                let asked = digests.to_vec();
                let is_near = |near: &NearBlobs, digest: &Digest| near.has(digest, ByteRange::ALL);
                let all = self.near(move |near| asked.iter().all(|digest| is_near(near, digest)));
                match all.await? {
                    true => Ok(vec![true; digests.len()]),
                    false => Err(self.fetches.error(error, None)),
                }
            }
            answer => answer,
        }
    }

    async fn read(&self, digest: &Digest, range: ByteRange) -> Result<BlobStream, BlobError> {
        let asked = *digest;
        if let Some(shape) = self.near(move |near| near.shape(&asked)).await? {
            return self.read_kept(shape, digest, range).await;
        }
        let opened = self.fetches.open(digest, range).await?.ok_or(BlobError::NotFound(asked))?;
        let range = range.within(opened.stat.size);
        let first = opened.first(&range);
        let start = range.start + first.len() as u64;
        let rest = ByteRange { offset: start, length: range.end - start };
        let first = stream::iter((!first.is_empty()).then_some(Ok(first)));
        if rest.length == 0 {
            return Ok(first.boxed());
        }
        let rest = self.read_kept(opened.shape.clone(), digest, rest).await?;
        Ok(first.chain(rest).boxed())
    }

    async fn read_many(&self, digests: &[Digest]) -> Result<Vec<Option<Bytes>>, BlobError> {
        check_count(digests.len(), READ_MANY_BLOBS)?;
        let asked = digests.to_vec();
        let found = self.near(move |near| near.small(&asked)).await??;
        self.near.store().hit(found.iter().flatten().count());
        self.fetches.many(digests, found).await
    }

    async fn read_many_packed(
        &self,
        digests: &[Digest],
        packing: Packing,
    ) -> Result<Vec<Option<Packed>>, BlobError> {
        self.read_many_and_pack(digests, packing).await
    }

    /// Stored when the far service has it. It is kept when it is read.
    async fn put(&self, source: BlobSource) -> Result<BlobStat, BlobError> {
        self.far().put(source).await
    }

    async fn put_many(&self, blobs: Vec<Blob>) -> Result<(), BlobError> {
        self.far().put_many(blobs).await
    }

    fn read_local(&self, digest: &Digest, range: ByteRange) -> Option<Result<Bytes, BlobError>> {
        let part = self.near.part(digest, range)?;
        self.near.store().hit(1);
        Some(Ok(part))
    }

    fn lend(&self, digest: &Digest) -> Option<File> {
        self.far().lend(digest)
    }

    fn keep_whole(&self, digest: &Digest) {
        self.far().keep_whole(digest);
    }
}

impl fmt::Display for CacheBlobService {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.fetches.fmt(f)
    }
}
