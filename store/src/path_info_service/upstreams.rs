//! Path infos of several services, of which one after the other is asked. Whose turn it is, is the
//! affair of [`cairn_castore::upstreams`].

use std::{collections::BTreeMap, fmt, sync::Arc};

use async_trait::async_trait;
use cairn_castore::{
    Node,
    copy::{Contents, CopyError, CopyProgress, copy_tree},
    upstreams::{UpstreamError, Upstreams, Verdict},
};

use super::{
    NarWitness, PAGE_MAX, PathInfoError, PathInfoService, TreeTeller, checked::merge, contents,
};
use crate::{
    nar::hash,
    path_info::{NarInfo, PathInfo},
    store_path::OutputHash,
};

/// The path infos of upstreams. Clones share everything.
///
/// A record is what the first that has one says. What is stored goes to one of them, with what only
/// others have of its tree, so that each has the trees of its own paths. Nothing is forgotten that
/// another one would still have.
#[derive(Debug, Clone)]
pub struct UpstreamsPathInfoService {
    upstreams: Upstreams<dyn PathInfoService>,
    /// What all of them have.
    contents: Contents,
    /// What the one has that records are stored in.
    stored: Contents,
}

impl UpstreamsPathInfoService {
    /// The path infos of these services. Their trees are in `contents`, those of the one that records
    /// are stored in are in `stored`.
    pub fn new(
        upstreams: Upstreams<dyn PathInfoService>,
        contents: Contents,
        stored: Contents,
    ) -> Self {
        Self { upstreams, contents, stored }
    }

    /// Sees to it that a tree is whole where its record is to be stored.
    async fn bring_over(&self, name: &str, node: &Node) -> Result<(), PathInfoError> {
        let progress = Arc::new(CopyProgress::default());
        let copied = copy_tree(node, &self.contents, &self.stored, &progress).await;
        copied.map_err(|error| {
            let error = match error {
                CopyError::ReadBlob { source, .. } | CopyError::WriteBlob { source, .. } => {
                    source.into()
                }
                CopyError::ReadDirectory { source, .. }
                | CopyError::WriteDirectory { source, .. } => source.into(),
                error => PathInfoError::Other { service: self.to_string(), source: error.into() },
            };
            contents::as_missing(name, error)
        })
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl PathInfoService for UpstreamsPathInfoService {
    async fn get(&self, hash: &OutputHash) -> Result<Option<PathInfo>, PathInfoError> {
        let hash = *hash;
        self.upstreams.first(|upstream| async move { upstream.get(&hash).await }).await
    }

    async fn put(
        &self,
        info: PathInfo,
        witness: Option<NarWitness>,
    ) -> Result<PathInfo, PathInfoError> {
        match self.get(info.store_path.hash()).await {
            Ok(None) => {}
            Ok(Some(known)) => drop(merge(&known, &info)?),
            // Storing it again may repair it.
            Err(PathInfoError::Corrupt { .. }) => {}
            Err(error) => return Err(error),
        }
        self.bring_over(&info.store_path.to_string(), &info.node).await?;
        self.upstreams.writable().put(info, witness).await
    }

    /// The pages of all, merged. What comes in the same page of several is that of the first.
    async fn list(
        &self,
        after: Option<OutputHash>,
        limit: usize,
    ) -> Result<Vec<PathInfo>, PathInfoError> {
        let limit = limit.min(PAGE_MAX);
        let mut merged: BTreeMap<OutputHash, PathInfo> = BTreeMap::new();
        for upstream in self.upstreams.all() {
            for info in upstream.list(after, limit).await? {
                merged.entry(*info.store_path.hash()).or_insert(info);
            }
            // What lies behind is for the next page.
            while merged.len() > limit {
                merged.pop_last();
            }
        }
        Ok(merged.into_values().collect())
    }

    async fn delete(&self, hash: &OutputHash) -> Result<bool, PathInfoError> {
        for upstream in self.upstreams.others() {
            if upstream.get(hash).await?.is_some() {
                return Err(PathInfoError::Unsupported {
                    service: self.to_string(),
                    what: "forget a path that an upstream has which is only read",
                });
            }
        }
        self.upstreams.writable().delete(hash).await
    }

    /// Computed by one that has all of the tree, or else here.
    async fn calculate_nar(&self, node: &Node) -> Result<NarInfo, PathInfoError> {
        let ask = async |upstream: Arc<dyn PathInfoService>, node: Node| match upstream
            .calculate_nar(&node)
            .await
        {
            Ok(nar) => Ok(Some(nar)),
            Err(PathInfoError::Missing { .. }) => Ok(None),
            Err(error) => Err(error),
        };
        if let Some(nar) = self.upstreams.first(|upstream| ask(upstream, node.clone())).await? {
            return Ok(nar);
        }
        let Contents { blobs, directories } = self.contents.clone();
        let nar = hash::calculate(node, blobs, directories).await;
        nar.map_err(|error| contents::as_missing(&contents::name_of(node), error.into()))
    }

    fn get_local(&self, hash: &OutputHash) -> Option<Result<Option<PathInfo>, PathInfoError>> {
        for upstream in self.upstreams.all() {
            match upstream.get_local(hash)? {
                Ok(None) => {}
                Ok(found) => return Some(Ok(found)),
                Err(_) => return None,
            }
        }
        Some(Ok(None))
    }

    /// Nobody: what another upstream has is not stored before the record is, and who is told of a tree
    /// would wait for it in vain.
    fn tree_teller(&self) -> Option<TreeTeller> {
        None
    }
}

impl fmt::Display for UpstreamsPathInfoService {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.upstreams.fmt(f)
    }
}

impl UpstreamError for PathInfoError {
    fn verdict(&self) -> Verdict {
        match self {
            Self::Blob(error) => error.verdict(),
            Self::Directory(error) => error.verdict(),
            Self::Unavailable { .. } => Verdict::Unreachable,
            Self::Invalid(_) | Self::InvalidRequest(_) => Verdict::Refused,
            _ => Verdict::Failed,
        }
    }
}

#[cfg(test)]
mod tests;
