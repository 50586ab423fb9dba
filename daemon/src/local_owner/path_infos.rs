//! The path infos of a shared store: each call goes to whoever holds the store, and is made again
//! with the next one where that process has gone.

use std::{fmt, sync::Arc};

use async_trait::async_trait;
use cairn_castore::Node;
use cairn_store::{
    NarInfo, NarWitness, OutputHash, PathInfo, PathInfoError, PathInfoService,
    path_info_service::TreeTeller,
};

use super::SharedStore;

/// The path infos of a [`SharedStore`].
#[derive(Debug)]
pub(crate) struct SharedPathInfoService(pub(crate) Arc<SharedStore>);

impl fmt::Display for SharedPathInfoService {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl PathInfoService for SharedPathInfoService {
    async fn get(&self, hash: &OutputHash) -> Result<Option<PathInfo>, PathInfoError> {
        self.0.call(|store| async move { store.path_infos.get(hash).await }).await
    }

    async fn put(
        &self,
        info: PathInfo,
        witness: Option<NarWitness>,
    ) -> Result<PathInfo, PathInfoError> {
        let (info, witness) = (&info, &witness);
        self.0
            .call(|store| async move { store.path_infos.put(info.clone(), witness.clone()).await })
            .await
    }

    async fn list(
        &self,
        after: Option<OutputHash>,
        limit: usize,
    ) -> Result<Vec<PathInfo>, PathInfoError> {
        self.0.call(|store| async move { store.path_infos.list(after, limit).await }).await
    }

    /// Where the owner goes after it has deleted and before it has said so, the answer is that
    /// of the second call: the path was not there.
    async fn delete(&self, hash: &OutputHash) -> Result<bool, PathInfoError> {
        self.0.call(|store| async move { store.path_infos.delete(hash).await }).await
    }

    async fn calculate_nar(&self, node: &Node) -> Result<NarInfo, PathInfoError> {
        self.0.call(|store| async move { store.path_infos.calculate_nar(node).await }).await
    }

    fn get_local(&self, hash: &OutputHash) -> Option<Result<Option<PathInfo>, PathInfoError>> {
        self.0.current().ok()?.path_infos.get_local(hash)
    }

    fn tree_teller(&self) -> Option<TreeTeller> {
        self.0.current().ok()?.path_infos.tree_teller()
    }
}
