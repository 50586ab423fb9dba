//! A path-info service whose calls are spans of the requests that they are part of. Wrapped around each
//! layer when traces are on; what it says and does is the inner service's.

use std::{fmt, sync::Arc};

use async_trait::async_trait;
use cairn_castore::Node;
use cairn_telemetry::trace;
use tracing::{Instrument as _, Span};

use super::{NarWitness, PathInfoError, PathInfoService, TreeTeller};
use crate::{
    path_info::{NarInfo, PathInfo},
    store_path::OutputHash,
};

/// See the module.
#[derive(Debug)]
pub struct TracedPathInfoService {
    inner: Arc<dyn PathInfoService>,
    layer: &'static str,
}

impl TracedPathInfoService {
    /// The calls of this service are those of a layer of this name.
    pub fn new(inner: Arc<dyn PathInfoService>, layer: &'static str) -> Self {
        Self { inner, layer }
    }

    fn span(&self, what: &str) -> Span {
        trace::call(self.layer, what)
    }
}

impl fmt::Display for TracedPathInfoService {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.fmt(f)
    }
}

#[async_trait]
impl PathInfoService for TracedPathInfoService {
    async fn get(&self, hash: &OutputHash) -> Result<Option<PathInfo>, PathInfoError> {
        self.inner.get(hash).instrument(self.span("path info get")).await
    }

    async fn put(
        &self,
        info: PathInfo,
        witness: Option<NarWitness>,
    ) -> Result<PathInfo, PathInfoError> {
        self.inner.put(info, witness).instrument(self.span("path info put")).await
    }

    async fn list(
        &self,
        after: Option<OutputHash>,
        limit: usize,
    ) -> Result<Vec<PathInfo>, PathInfoError> {
        self.inner.list(after, limit).instrument(self.span("path infos list")).await
    }

    async fn delete(&self, hash: &OutputHash) -> Result<bool, PathInfoError> {
        self.inner.delete(hash).instrument(self.span("path info delete")).await
    }

    async fn calculate_nar(&self, node: &Node) -> Result<NarInfo, PathInfoError> {
        self.inner.calculate_nar(node).instrument(self.span("path info calculate_nar")).await
    }

    fn get_local(&self, hash: &OutputHash) -> Option<Result<Option<PathInfo>, PathInfoError>> {
        self.span("path info get_local").in_scope(|| self.inner.get_local(hash))
    }

    fn tree_teller(&self) -> Option<TreeTeller> {
        self.inner.tree_teller()
    }
}
