//! A directory service whose calls are spans of the requests that they are part of. Wrapped around each
//! layer when traces are on; what it says and does is the inner service's.

use std::{fmt, sync::Arc};

use async_trait::async_trait;
use cairn_telemetry::trace;
use tracing::{Instrument as _, Span};

use super::{DirectoryError, DirectoryService, DirectoryStream};
use crate::{Digest, Directory};

/// See the module.
#[derive(Debug)]
pub struct TracedDirectoryService {
    inner: Arc<dyn DirectoryService>,
    layer: &'static str,
}

impl TracedDirectoryService {
    /// The calls of this service are those of a layer of this name.
    pub fn new(inner: Arc<dyn DirectoryService>, layer: &'static str) -> Self {
        Self { inner, layer }
    }

    fn span(&self, what: &str) -> Span {
        trace::call(self.layer, what)
    }
}

impl fmt::Display for TracedDirectoryService {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.fmt(f)
    }
}

#[async_trait]
impl DirectoryService for TracedDirectoryService {
    async fn get(&self, digest: &Digest) -> Result<Option<Directory>, DirectoryError> {
        self.inner.get(digest).instrument(self.span("directory get")).await
    }

    async fn get_closure(&self, root: &Digest) -> Result<DirectoryStream, DirectoryError> {
        let span = self.span("directory get_closure");
        let closure = self.inner.get_closure(root).instrument(span.clone()).await?;
        Ok(trace::within(span, closure))
    }

    async fn has_many(&self, digests: &[Digest]) -> Result<Vec<bool>, DirectoryError> {
        self.inner.has_many(digests).instrument(self.span("directories has_many")).await
    }

    async fn put_closure(&self, directories: DirectoryStream) -> Result<Digest, DirectoryError> {
        self.inner.put_closure(directories).instrument(self.span("directory put_closure")).await
    }

    fn get_local(&self, digest: &Digest) -> Option<Result<Option<Directory>, DirectoryError>> {
        self.span("directory get_local").in_scope(|| self.inner.get_local(digest))
    }
}
