//! A blob service whose calls are spans of the requests that they are part of. Wrapped around each layer
//! when traces are on; what it says and does is the inner service's.

use std::{fmt, fs::File, sync::Arc};

use async_trait::async_trait;
use bytes::Bytes;
use cairn_telemetry::trace;
use tracing::{Instrument as _, Span};

use super::{Blob, BlobError, BlobService, BlobSource, BlobStat, BlobStream, ByteRange};
use crate::{Digest, Packed, Packing};

/// See the module.
#[derive(Debug)]
pub struct TracedBlobService {
    inner: Arc<dyn BlobService>,
    layer: &'static str,
}

impl TracedBlobService {
    /// The calls of this service are those of a layer of this name.
    pub fn new(inner: Arc<dyn BlobService>, layer: &'static str) -> Self {
        Self { inner, layer }
    }

    fn span(&self, what: &str) -> Span {
        trace::call(self.layer, what)
    }
}

impl fmt::Display for TracedBlobService {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.fmt(f)
    }
}

#[async_trait]
impl BlobService for TracedBlobService {
    async fn stat(&self, digest: &Digest) -> Result<Option<BlobStat>, BlobError> {
        self.inner.stat(digest).instrument(self.span("blob stat")).await
    }

    async fn has_many(&self, digests: &[Digest]) -> Result<Vec<bool>, BlobError> {
        self.inner.has_many(digests).instrument(self.span("blobs has_many")).await
    }

    async fn read(&self, digest: &Digest, range: ByteRange) -> Result<BlobStream, BlobError> {
        let span = self.span("blob read");
        let read = self.inner.read(digest, range).instrument(span.clone()).await?;
        Ok(trace::within(span, read))
    }

    async fn read_many(&self, digests: &[Digest]) -> Result<Vec<Option<Bytes>>, BlobError> {
        self.inner.read_many(digests).instrument(self.span("blobs read_many")).await
    }

    async fn read_many_packed(
        &self,
        digests: &[Digest],
        packing: Packing,
    ) -> Result<Vec<Option<Packed>>, BlobError> {
        let span = self.span("blobs read_many_packed");
        self.inner.read_many_packed(digests, packing).instrument(span).await
    }

    async fn put(&self, source: BlobSource) -> Result<BlobStat, BlobError> {
        self.inner.put(source).instrument(self.span("blob put")).await
    }

    async fn put_many(&self, blobs: Vec<Blob>) -> Result<(), BlobError> {
        self.inner.put_many(blobs).instrument(self.span("blobs put_many")).await
    }

    fn read_local(&self, digest: &Digest, range: ByteRange) -> Option<Result<Bytes, BlobError>> {
        self.span("blob read_local").in_scope(|| self.inner.read_local(digest, range))
    }

    fn lend(&self, digest: &Digest) -> Option<File> {
        self.inner.lend(digest)
    }

    fn keep_whole(&self, digest: &Digest) {
        self.inner.keep_whole(digest);
    }
}
