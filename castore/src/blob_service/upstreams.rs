//! Blobs of several services, of which one after the other is asked. Whose turn it is, is the affair
//! of [`crate::upstreams`].

use std::{fmt, fs::File, sync::Arc, vec};

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt as _;

use super::{HAS_MANY_DIGESTS, READ_MANY_BLOBS, check_count};
use crate::{
    Blob, BlobError, BlobService, BlobStat, ByteRange, Digest, Packed, Packing,
    blob_service::{BlobServiceExt as _, BlobSource, BlobStream},
    upstreams::{Found, Upstream, Upstreams},
};

/// The blobs of upstreams. Clones share everything.
///
/// A blob is what the first that has it says. Where that one fails in the middle of a blob, the next
/// one goes on: both have verified what they gave.
#[derive(Debug, Clone)]
pub struct UpstreamsBlobService(Upstreams<dyn BlobService>);

/// Those that have not been asked yet.
type Turns = vec::IntoIter<Upstream<dyn BlobService>>;

impl UpstreamsBlobService {
    /// The blobs of these services.
    pub fn new(upstreams: Upstreams<dyn BlobService>) -> Self {
        Self(upstreams)
    }

    /// The blob of the next one that gives it.
    async fn open(
        &self,
        turns: &mut Turns,
        digest: &Digest,
        range: ByteRange,
    ) -> Result<(Upstream<dyn BlobService>, BlobStream), BlobError> {
        let mut failure = None;
        for upstream in turns {
            match upstream.service.read(digest, range).await {
                Ok(stream) => return Ok((upstream, stream)),
                Err(BlobError::NotFound(_)) => {}
                Err(error) => self.0.note(&upstream, error, &mut failure)?,
            }
        }
        Err(failure.unwrap_or(BlobError::NotFound(*digest)))
    }

    /// What one has.
    async fn has_of(upstream: Arc<dyn BlobService>, digests: Vec<Digest>) -> Found<(), BlobError> {
        Found::of(upstream.has_many(&digests).await)
    }

    /// What one has of small blobs. One that is damaged there keeps no other from being found.
    async fn read_of(
        upstream: Arc<dyn BlobService>,
        digests: Vec<Digest>,
    ) -> Found<Bytes, BlobError> {
        match upstream.read_many(&digests).await {
            Err(BlobError::Corrupt { .. }) if digests.len() > 1 => {}
            answer => return answer.into(),
        }
        let mut all = Found { found: Vec::with_capacity(digests.len()), failure: None };
        for digest in digests {
            let answer = upstream.read_many(&[digest]).await;
            let found = answer.unwrap_or_else(|error| {
                all.failure.get_or_insert(error);
                Vec::new()
            });
            all.found.push(found.into_iter().next().flatten());
        }
        all
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl BlobService for UpstreamsBlobService {
    async fn stat(&self, digest: &Digest) -> Result<Option<BlobStat>, BlobError> {
        let digest = *digest;
        self.0.first(|upstream| async move { upstream.stat(&digest).await }).await
    }

    async fn has_many(&self, digests: &[Digest]) -> Result<Vec<bool>, BlobError> {
        check_count(digests.len(), HAS_MANY_DIGESTS)?;
        let found = self.0.many(digests, Self::has_of).await?;
        Ok(found.iter().map(Option::is_some).collect())
    }

    async fn read(&self, digest: &Digest, range: ByteRange) -> Result<BlobStream, BlobError> {
        let mut turns = self.0.in_turn();
        let (mut upstream, mut stream) = self.open(&mut turns, digest, range).await?;
        let (service, digest) = (self.clone(), *digest);
        let stream = async_stream::stream! {
            let (mut rest, mut failure) = (range, None);
            loop {
                match stream.next().await {
                    None => return,
                    Some(Ok(bytes)) => {
                        let length = bytes.len() as u64;
                        rest.offset = rest.offset.saturating_add(length);
                        if rest.length != u64::MAX {
                            rest.length = rest.length.saturating_sub(length);
                        }
                        yield Ok(bytes);
                    }
                    Some(Err(error)) => {
                        let next = match service.0.note(&upstream, error, &mut failure) {
                            Ok(()) => service.open(&mut turns, &digest, rest).await,
                            Err(refused) => Err(refused),
                        };
                        match next {
                            Ok(next) => (upstream, stream) = next,
                            // The others may just not have it: what broke it off first is what
                            // matters.
                            Err(error) => {
                                yield Err(failure.unwrap_or(error));
                                return;
                            }
                        }
                    }
                }
            }
        };
        Ok(stream.boxed())
    }

    async fn read_many(&self, digests: &[Digest]) -> Result<Vec<Option<Bytes>>, BlobError> {
        check_count(digests.len(), READ_MANY_BLOBS)?;
        self.0.many(digests, Self::read_of).await
    }

    async fn read_many_packed(
        &self,
        digests: &[Digest],
        packing: Packing,
    ) -> Result<Vec<Option<Packed>>, BlobError> {
        self.read_many_and_pack(digests, packing).await
    }

    async fn put(&self, source: BlobSource) -> Result<BlobStat, BlobError> {
        self.0.writable().put(source).await
    }

    async fn put_many(&self, blobs: Vec<Blob>) -> Result<(), BlobError> {
        self.0.writable().put_many(blobs).await
    }

    /// What any of them has, since all that have it have the same.
    fn read_local(&self, digest: &Digest, range: ByteRange) -> Option<Result<Bytes, BlobError>> {
        let answers = self.0.all().iter().map(|upstream| upstream.read_local(digest, range));
        answers.flatten().find(Result::is_ok)
    }

    fn lend(&self, digest: &Digest) -> Option<File> {
        self.0.all().iter().find_map(|upstream| upstream.lend(digest))
    }

    fn keep_whole(&self, digest: &Digest) {
        for upstream in self.0.all() {
            upstream.keep_whole(digest);
        }
    }
}

impl fmt::Display for UpstreamsBlobService {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests;
