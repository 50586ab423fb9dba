//! Path infos of a far service, of which what was asked for is kept near. Which paths there are is
//! the far service's to say, as long as it can be reached.

use std::{fmt, sync::Arc};

use async_trait::async_trait;
use bytes::Bytes;
use cairn_castore::{
    Digest, Node,
    cache::{Near, NotNear},
    local::{Kind, LIST_MAX, LocalError, Record},
};
use prost::Message as _;
use tokio::task::JoinError;

use super::{NarWitness, PAGE_MAX, PathInfoError, PathInfoService, TreeTeller, checked};
use crate::{
    nixbase32,
    path_info::{NarInfo, PathInfo},
    store_path::OutputHash,
};

/// The records that are looked at together, of which most are of one path.
const PATHS_AT_ONCE: usize = 8;

/// The bytes of a key that tell one far service from another.
const FAR_LEN: usize = 12;

/// The path infos of a cache.
///
/// A record that is near is answered from there: it does not change, but for signatures that are
/// added, and a path that was deleted stays to be found as long as it is kept. One near side can
/// serve several far services: each sees its own paths.
#[derive(Debug, Clone)]
pub struct CachePathInfoService {
    near: Near,
    far: Arc<dyn PathInfoService>,
    /// What the keys of this far service's records end with.
    name: [u8; FAR_LEN],
}

/// Forgets what is kept of a path, of whatever far service; the roots of its trees. May wait for the
/// disk.
pub fn forget_path(near: &Near, hash: &OutputHash) -> Result<Vec<Node>, LocalError> {
    let mut roots = Vec::new();
    // The keys of a path's records start with it, and come right behind it.
    let (mut after, mut is_last) = (Bytes::copy_from_slice(hash), false);
    while !is_last {
        let page = near.list(Kind::PathInfo, Some(&after), PATHS_AT_ONCE)?;
        is_last = page.len() < PATHS_AT_ONCE;
        for (key, record) in page {
            if !key.starts_with(hash) {
                return Ok(roots);
            }
            near.forget(Kind::PathInfo, &key);
            roots.extend(checked::decode(hash, record).map(|info| info.node));
            after = key;
        }
    }
    Ok(roots)
}

impl CachePathInfoService {
    /// The path infos of the far service, kept near. It is known again by how it displays.
    pub fn new(near: Near, far: Arc<dyn PathInfoService>) -> Self {
        let name = Digest::of(far.to_string().as_bytes());
        let (name, _) = name.as_bytes().split_first_chunk().expect("a digest is longer");
        Self { near, name: *name, far }
    }

    fn key(&self, hash: &OutputHash) -> Bytes {
        [&hash[..], &self.name].concat().into()
    }

    /// A record that is near. May wait for the disk.
    fn look(near: &Near, key: &[u8], hash: &OutputHash) -> Option<PathInfo> {
        let record = near.get(Kind::PathInfo, key)?;
        match checked::decode(hash, record) {
            Ok(info) => Some(info),
            Err(error) => {
                tracing::warn!(%error, %near, "it is to be fetched again");
                None
            }
        }
    }

    fn keep(&self, info: &PathInfo) {
        let (key, value) = (self.key(info.store_path.hash()), info.to_proto().encode_to_vec());
        self.near.keep(vec![Record::new(Kind::PathInfo, key, value.into())]);
    }

    /// The records that are near, as the contract has it for all.
    fn list_near(
        near: &Near,
        name: &[u8],
        after: Option<OutputHash>,
        limit: usize,
    ) -> Result<Vec<PathInfo>, LocalError> {
        // Behind all keys of that path.
        let mut after = after.map(|hash| Bytes::from([&hash[..], &[u8::MAX; FAR_LEN]].concat()));
        let mut listed = Vec::new();
        loop {
            let page = near.list(Kind::PathInfo, after.as_deref(), LIST_MAX)?;
            let is_last = page.len() < LIST_MAX;
            after = page.last().map(|(key, _)| key.clone());
            for (key, record) in page {
                let Some((hash, of)) = key.split_first_chunk() else { continue };
                if of == name
                    && let Ok(info) = checked::decode(hash, record)
                {
                    listed.push(info);
                }
                if listed.len() >= limit {
                    return Ok(listed);
                }
            }
            if is_last {
                return Ok(listed);
            }
        }
    }

    /// Runs what may wait for the disk of the near side on a thread that may.
    async fn near<T: Send + 'static>(
        &self,
        run: impl FnOnce(&Near) -> T + Send + 'static,
    ) -> Result<T, PathInfoError> {
        let near = self.near.clone();
        let ran = tokio::task::spawn_blocking(move || run(&near)).await;
        ran.map_err(|error: JoinError| PathInfoError::Other {
            service: self.to_string(),
            source: error.into(),
        })
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl PathInfoService for CachePathInfoService {
    async fn get(&self, hash: &OutputHash) -> Result<Option<PathInfo>, PathInfoError> {
        let (key, asked) = (self.key(hash), *hash);
        if let Some(info) = self.near(move |near| Self::look(near, &key, &asked)).await? {
            return Ok(Some(info));
        }
        match self.far.get(hash).await {
            Ok(Some(info)) => {
                self.keep(&info);
                Ok(Some(info))
            }
            Err(error @ PathInfoError::Unavailable { .. }) => {
                let what = format!("what is known of {}", nixbase32::encode(hash));
                let source = NotNear { what, near: self.near.to_string(), source: error.into() };
                Err(PathInfoError::Unavailable { service: self.to_string(), source: source.into() })
            }
            answer => answer,
        }
    }

    /// Stored when the far service has it, and then kept.
    async fn put(
        &self,
        info: PathInfo,
        witness: Option<NarWitness>,
    ) -> Result<PathInfo, PathInfoError> {
        let stored = self.far.put(info, witness).await?;
        self.keep(&stored);
        Ok(stored)
    }

    /// Asks the far service; as long as that can't be reached, what is near is listed, with a
    /// warning.
    async fn list(
        &self,
        after: Option<OutputHash>,
        limit: usize,
    ) -> Result<Vec<PathInfo>, PathInfoError> {
        let error = match self.far.list(after, limit).await {
            Err(error @ PathInfoError::Unavailable { .. }) => error,
            answer => return answer,
        };
        tracing::warn!(
            service = %self,
            error = &error as &dyn std::error::Error,
            "only the paths that are near are listed",
        );
        let (name, limit) = (self.name, limit.min(PAGE_MAX));
        let listed = self.near(move |near| Self::list_near(near, &name, after, limit)).await?;
        listed.map_err(|_| error)
    }

    async fn delete(&self, hash: &OutputHash) -> Result<bool, PathInfoError> {
        let deleted = self.far.delete(hash).await?;
        self.near.forget(Kind::PathInfo, &self.key(hash));
        Ok(deleted)
    }

    async fn calculate_nar(&self, node: &Node) -> Result<NarInfo, PathInfoError> {
        self.far.calculate_nar(node).await
    }

    fn get_local(&self, hash: &OutputHash) -> Option<Result<Option<PathInfo>, PathInfoError>> {
        Self::look(&self.near, &self.key(hash), hash).map(|info| Ok(Some(info)))
    }

    fn tree_teller(&self) -> Option<TreeTeller> {
        self.far.tree_teller()
    }
}

impl fmt::Display for CachePathInfoService {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cache(near: {}, far: {})", self.near, self.far)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering;

    use cairn_castore::local::cache::{CACHE_MIN, LocalCache};
    use tonic::transport::Server;

    use super::*;
    use crate::path_info_service::{
        grpc::{GrpcPathInfoService, tests::serve},
        grpc_server::PathInfoServer,
        test_far::{far, filled},
    };

    fn local(folder: &std::path::Path) -> Near {
        Near::local(LocalCache::open(folder, CACHE_MIN).unwrap())
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn keeps_the_contract() {
        let (service, blobs, directories) = far();
        let service = CachePathInfoService::new(Near::memory(1 << 24), service);
        crate::conformance::path_info_service(Arc::new(service), blobs, directories).await;

        let folder = tempfile::tempdir().unwrap();
        let (service, blobs, directories) = far();
        let service = CachePathInfoService::new(local(folder.path()), service);
        crate::conformance::path_info_service(Arc::new(service), blobs, directories).await;

        let (service, blobs, directories) = far();
        let server = PathInfoServer::new(service);
        let router = Server::builder()
            .add_service(server.clone().into_snix_service())
            .add_service(server.into_cairn_service());
        let served = serve(router).await;
        let folder = tempfile::tempdir().unwrap();
        let peer = Arc::new(GrpcPathInfoService::new(served.peer.clone()));
        let service = CachePathInfoService::new(local(folder.path()), peer);
        crate::conformance::path_info_service(Arc::new(service), blobs, directories).await;
    }

    #[tokio::test]
    async fn what_was_asked_for_is_there_while_the_far_service_is_gone() {
        let folder = tempfile::tempdir().unwrap();
        let (far, infos) = filled("far", 9).await;
        let (asked, unknown) = infos.split_at(6);
        {
            let service = CachePathInfoService::new(local(folder.path()), far.clone());
            for info in asked {
                let hash = info.store_path.hash();
                assert!(service.get_local(hash).is_none());
                assert_eq!(service.get(hash).await.unwrap().as_ref(), Some(info));
                assert_eq!(service.get_local(hash).unwrap().unwrap().as_ref(), Some(info));
            }
            assert_eq!(service.list(None, 100).await.unwrap(), infos);
        }
        far.is_gone.store(true, Ordering::SeqCst);
        let service = CachePathInfoService::new(local(folder.path()), far.clone());
        for info in asked {
            let found = service.get(info.store_path.hash()).await.unwrap();
            assert_eq!(found.as_ref(), Some(info));
        }
        for limit in 1..8 {
            let mut listed: Vec<PathInfo> = Vec::new();
            loop {
                let after = listed.last().map(|info| *info.store_path.hash());
                let page = service.list(after, limit).await.unwrap();
                let is_last = page.len() < limit;
                listed.extend(page);
                if is_last {
                    break;
                }
            }
            assert_eq!(listed, asked, "in pages of {limit}");
        }
        let error = service.get(unknown[0].store_path.hash()).await.unwrap_err();
        let PathInfoError::Unavailable { service: both, source } = &error else {
            panic!("{error:?}")
        };
        let near = format!("sled:{}", folder.path().display());
        assert_eq!(*both, format!("cache(near: {near}, far: far)"));
        assert!(source.to_string().contains(&near), "{source}");
        service.delete(asked[0].store_path.hash()).await.unwrap_err();
        assert!(service.get(asked[0].store_path.hash()).await.unwrap().is_some());
    }

    #[tokio::test]
    async fn each_far_service_has_paths_of_its_own() {
        let near = Near::memory(1 << 24);
        let (one, one_infos) = filled("one", 3).await;
        let (other, other_infos) = filled("other", 3).await;
        let first = CachePathInfoService::new(near.clone(), one.clone());
        let second = CachePathInfoService::new(near.clone(), other.clone());
        for (service, infos) in [(&first, &one_infos), (&second, &other_infos)] {
            for info in infos {
                service.get(info.store_path.hash()).await.unwrap().unwrap();
            }
        }
        assert_eq!(first.get(other_infos[0].store_path.hash()).await.unwrap(), None);
        one.is_gone.store(true, Ordering::SeqCst);
        other.is_gone.store(true, Ordering::SeqCst);
        assert_eq!(first.list(None, 100).await.unwrap(), one_infos);
        assert_eq!(second.list(None, 100).await.unwrap(), other_infos);
    }
}
