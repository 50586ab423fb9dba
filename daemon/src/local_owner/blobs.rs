//! The blobs of a shared store: each call goes to whoever holds the store, and goes on with the
//! next one where that process has gone.

use std::{fmt, fs::File, sync::Arc};

use async_trait::async_trait;
use bytes::Bytes;
use cairn_castore::{
    Blob, BlobError, BlobService, BlobStat, ByteRange, Digest, Packed, Packing,
    blob_service::{BlobSource, BlobStream},
};
use futures::{StreamExt as _, stream};

use super::{Backend, FOLLOW_MAX, Interrupted, SharedStore, replay::Replay};

/// The blobs of a [`SharedStore`].
#[derive(Debug)]
pub(crate) struct SharedBlobService(pub(crate) Arc<SharedStore>);

impl fmt::Display for SharedBlobService {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl BlobService for SharedBlobService {
    async fn stat(&self, digest: &Digest) -> Result<Option<BlobStat>, BlobError> {
        self.0.call(|store| async move { store.blobs.stat(digest).await }).await
    }

    async fn has_many(&self, digests: &[Digest]) -> Result<Vec<bool>, BlobError> {
        self.0.call(|store| async move { store.blobs.has_many(digests).await }).await
    }

    async fn read(&self, digest: &Digest, range: ByteRange) -> Result<BlobStream, BlobError> {
        let (store, stream) = start(&self.0, digest, range).await?;
        if !store.is_client() {
            return Ok(stream);
        }
        let reading = Reading { shared: self.0.clone(), store, stream, digest: *digest, range };
        Ok(stream::try_unfold(reading, Reading::next).boxed())
    }

    async fn read_many(&self, digests: &[Digest]) -> Result<Vec<Option<Bytes>>, BlobError> {
        self.0.call(|store| async move { store.blobs.read_many(digests).await }).await
    }

    async fn read_many_packed(
        &self,
        digests: &[Digest],
        packing: Packing,
    ) -> Result<Vec<Option<Packed>>, BlobError> {
        self.0
            .call(|store| async move { store.blobs.read_many_packed(digests, packing).await })
            .await
    }

    async fn put(&self, source: BlobSource) -> Result<BlobStat, BlobError> {
        let unreachable = |error| unavailable(&self.0, error);
        let mut store = self.0.current().map_err(unreachable)?;
        if !store.is_client() {
            return store.blobs.put(source).await;
        }
        let replay = Replay::new(source);
        let mut follows = 0;
        loop {
            let term = store.term;
            match store.blobs.put(replay.restart()).await {
                Err(error) if follows < FOLLOW_MAX && self.0.has_ended(&store, &error).await => {
                    if !replay.can_start_again() {
                        return Err(unavailable(&self.0, Interrupted(Box::new(error))));
                    }
                    follows += 1;
                    drop(store);
                    store = self.0.follow(term).await.map_err(unreachable)?;
                }
                answer => return answer,
            }
        }
    }

    async fn put_many(&self, blobs: Vec<Blob>) -> Result<(), BlobError> {
        let blobs = &blobs;
        self.0.call(|store| async move { store.blobs.put_many(blobs.clone()).await }).await
    }

    fn read_local(&self, digest: &Digest, range: ByteRange) -> Option<Result<Bytes, BlobError>> {
        self.0.current().ok()?.blobs.read_local(digest, range)
    }

    fn lend(&self, digest: &Digest) -> Option<File> {
        self.0.current().ok()?.blobs.lend(digest)
    }

    fn keep_whole(&self, digest: &Digest) {
        if let Ok(store) = self.0.current() {
            store.blobs.keep_whole(digest);
        }
    }
}

fn unavailable(
    shared: &SharedStore,
    error: impl std::error::Error + Send + Sync + 'static,
) -> BlobError {
    BlobError::Unavailable { service: shared.to_string(), source: Box::new(error) }
}

/// Begins to read, at whoever holds the store.
async fn start(
    shared: &SharedStore,
    digest: &Digest,
    range: ByteRange,
) -> Result<(Arc<Backend>, BlobStream), BlobError> {
    shared
        .call(|store| async move {
            let stream = store.blobs.read(digest, range).await?;
            Ok((store, stream))
        })
        .await
}

/// A blob that is being read from another process.
struct Reading {
    shared: Arc<SharedStore>,
    store: Arc<Backend>,
    stream: BlobStream,
    digest: Digest,
    /// What has not been read yet.
    range: ByteRange,
}

impl Reading {
    /// The next bytes; from the next owner if the process that was read from has gone.
    async fn next(mut self) -> Result<Option<(Bytes, Self)>, BlobError> {
        let mut follows = 0;
        loop {
            match self.stream.next().await {
                Some(Ok(bytes)) => {
                    let length = bytes.len() as u64;
                    self.range.offset = self.range.offset.saturating_add(length);
                    if self.range.length != u64::MAX {
                        self.range.length = self.range.length.saturating_sub(length);
                    }
                    return Ok(Some((bytes, self)));
                }
                Some(Err(error))
                    if follows < FOLLOW_MAX && self.shared.has_ended(&self.store, &error).await =>
                {
                    follows += 1;
                    let next = self.shared.follow(self.store.term).await;
                    next.map_err(|error| unavailable(&self.shared, error))?;
                    (self.store, self.stream) =
                        start(&self.shared, &self.digest, self.range).await?;
                }
                Some(Err(error)) => return Err(error),
                None => return Ok(None),
            }
        }
    }
}
