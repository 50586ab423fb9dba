//! Store paths as the root of a mount: their base names, and the trees behind them. What is below
//! is the affair of the mount.

use std::{fmt, sync::Arc};

use async_trait::async_trait;
use cairn_castore::{
    Name, Node,
    roots::{Roots, RootsError},
};

use crate::{PathInfo, PathInfoError, PathInfoService, StorePath, path_info_service::PAGE_MAX};

/// The store paths of a path-info service. Listed in ascending order of their 20 bytes, which is
/// not the order of their names.
#[derive(Debug)]
pub struct StoreRoots {
    path_infos: Arc<dyn PathInfoService>,
}

impl StoreRoots {
    /// The paths that this service knows.
    pub fn new(path_infos: Arc<dyn PathInfoService>) -> Self {
        Self { path_infos }
    }

    fn error(&self, error: PathInfoError) -> RootsError {
        let roots = self.to_string();
        match error {
            PathInfoError::Unavailable { .. } => {
                RootsError::Unavailable { roots, source: error.into() }
            }
            error => RootsError::Other { roots, source: error.into() },
        }
    }
}

/// The tree of a record, if it is that of just this path: the 20 bytes alone do not make a name.
fn tree(path: &StorePath, info: Option<PathInfo>) -> Option<Node> {
    info.filter(|info| info.store_path == *path).map(|info| info.node)
}

#[async_trait]
impl Roots for StoreRoots {
    async fn lookup(&self, name: &Name) -> Result<Option<Node>, RootsError> {
        let Ok(path) = StorePath::from_base_name(name.as_ref()) else { return Ok(None) };
        let info = self.path_infos.get(path.hash()).await;
        Ok(tree(&path, info.map_err(|error| self.error(error))?))
    }

    async fn list(
        &self,
        after: Option<&Name>,
        limit: usize,
    ) -> Result<Vec<(Name, Node)>, RootsError> {
        let mut after = match after.map(|name| StorePath::from_base_name(name.as_ref())) {
            None => None,
            Some(Ok(path)) => Some(*path.hash()),
            Some(Err(error)) => {
                return Err(RootsError::Other { roots: self.to_string(), source: error.into() });
            }
        };
        let mut listed = Vec::new();
        while listed.len() < limit {
            let page_len = PAGE_MAX.min(limit - listed.len());
            let page = self.path_infos.list(after, page_len).await;
            let page = page.map_err(|error| self.error(error))?;
            let is_last = page.len() < page_len;
            after = page.last().map(|info| *info.store_path.hash());
            listed.extend(page.into_iter().map(|info| (info.store_path.to_name(), info.node)));
            if is_last {
                break;
            }
        }
        Ok(listed)
    }

    fn lookup_local(&self, name: &Name) -> Option<Result<Option<Node>, RootsError>> {
        let Ok(path) = StorePath::from_base_name(name.as_ref()) else { return Some(Ok(None)) };
        let answer = self.path_infos.get_local(path.hash())?;
        Some(answer.map(|info| tree(&path, info)).map_err(|error| self.error(error)))
    }
}

impl fmt::Display for StoreRoots {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the store paths of {}", self.path_infos)
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use cairn_castore::{
        Blob, BlobService as _, Digest, blob_service::memory::MemoryBlobService,
        directory_service::memory::MemoryDirectoryService,
    };

    use super::*;
    use crate::{NarInfo, path_info_service::memory::MemoryPathInfoService};

    const COUNT: usize = 7;

    async fn filled() -> (StoreRoots, Vec<(Name, Node)>) {
        let blobs = Arc::new(MemoryBlobService::new());
        let directories = Arc::new(MemoryDirectoryService::new());
        let path_infos = MemoryPathInfoService::new(blobs.clone(), directories);
        blobs.put_many(vec![Blob::new(Bytes::from_static(b"hi\n"))]).await.unwrap();
        let node = Node::File { digest: Digest::of(b"hi\n"), size: 3, executable: false };
        let nar: NarInfo = path_infos.calculate_nar(&node).await.unwrap();
        let mut expected = Vec::new();
        for index in 0..COUNT {
            let store_path = StorePath::of_nar(&format!("path-{index}"), &nar.sha256).unwrap();
            expected.push((store_path.to_name(), node.clone()));
            let node = node.clone();
            let (references, signatures) = (Vec::new(), Vec::new());
            let info =
                PathInfo { store_path, node, references, nar, signatures, deriver: None, ca: None };
            path_infos.put(info, None).await.unwrap();
        }
        (StoreRoots::new(Arc::new(path_infos)), expected)
    }

    #[tokio::test]
    async fn names_resolve_in_full_only() {
        let (roots, expected) = filled().await;
        let lookup = async |name: &Name| {
            let found = roots.lookup(name).await.unwrap();
            assert_eq!(roots.lookup_local(name).unwrap().unwrap(), found);
            found
        };
        for (name, node) in &expected {
            assert_eq!(lookup(name).await.as_ref(), Some(node));
            let hash = &name.to_string()[..32];
            for wrong in [format!("{hash}-WRONGNAME"), hash.to_owned(), format!("{name}x")] {
                assert_eq!(lookup(&Name::try_from(wrong.as_str()).unwrap()).await, None, "{wrong}");
            }
        }
        assert_eq!(lookup(&Name::try_from("lost+found").unwrap()).await, None);
    }

    #[tokio::test]
    async fn pages_hold_every_name_once() {
        let (roots, mut expected) = filled().await;
        expected.sort_by_key(|(name, _)| *StorePath::from_base_name(name.as_ref()).unwrap().hash());
        for limit in [1, 2, 3, COUNT, COUNT + 1, 5_000] {
            let mut listed: Vec<(Name, Node)> = Vec::new();
            loop {
                let page = roots.list(listed.last().map(|(name, _)| name), limit).await.unwrap();
                let is_last = page.len() < limit;
                listed.extend(page);
                if is_last {
                    break;
                }
            }
            assert_eq!(listed, expected, "in pages of {limit}");
        }
    }
}
