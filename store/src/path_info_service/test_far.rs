//! Path-info services for tests: empty ones with their contents, and a far one that can be gone.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use async_trait::async_trait;
use bytes::Bytes;
use cairn_castore::{
    Blob, BlobService, Digest, DirectoryService, Node, blob_service::memory::MemoryBlobService,
    directory_service::memory::MemoryDirectoryService,
};

use super::{
    NarWitness, PAGE_MAX, PathInfoError, PathInfoService, TreeTeller, memory::MemoryPathInfoService,
};
use crate::{
    path_info::{NarInfo, PathInfo},
    store_path::OutputHash,
};

pub(super) type Parts = (Arc<dyn PathInfoService>, Arc<dyn BlobService>, Arc<dyn DirectoryService>);

/// An empty service, and what it looks trees up in.
pub(super) fn far() -> Parts {
    let blobs: Arc<dyn BlobService> = Arc::new(MemoryBlobService::new());
    let directories: Arc<dyn DirectoryService> = Arc::new(MemoryDirectoryService::new());
    let service = MemoryPathInfoService::new(Arc::clone(&blobs), Arc::clone(&directories));
    (Arc::new(service), blobs, directories)
}

/// A far service of some name, which can be gone.
#[derive(Debug)]
pub(super) struct Far {
    pub(super) name: &'static str,
    pub(super) service: Arc<dyn PathInfoService>,
    pub(super) is_gone: AtomicBool,
}

impl Far {
    fn ask(&self) -> Result<(), PathInfoError> {
        match self.is_gone.load(Ordering::SeqCst) {
            false => Ok(()),
            true => Err(PathInfoError::Unavailable {
                service: self.name.to_owned(),
                source: "no route to it".into(),
            }),
        }
    }
}

impl fmt::Display for Far {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

#[async_trait]
impl PathInfoService for Far {
    async fn get(&self, hash: &OutputHash) -> Result<Option<PathInfo>, PathInfoError> {
        self.ask()?;
        self.service.get(hash).await
    }

    async fn put(
        &self,
        info: PathInfo,
        witness: Option<NarWitness>,
    ) -> Result<PathInfo, PathInfoError> {
        self.ask()?;
        self.service.put(info, witness).await
    }

    async fn list(
        &self,
        after: Option<OutputHash>,
        limit: usize,
    ) -> Result<Vec<PathInfo>, PathInfoError> {
        self.ask()?;
        self.service.list(after, limit).await
    }

    async fn delete(&self, hash: &OutputHash) -> Result<bool, PathInfoError> {
        self.ask()?;
        self.service.delete(hash).await
    }

    async fn calculate_nar(&self, node: &Node) -> Result<NarInfo, PathInfoError> {
        self.ask()?;
        self.service.calculate_nar(node).await
    }

    fn get_local(&self, _: &OutputHash) -> Option<Result<Option<PathInfo>, PathInfoError>> {
        None
    }

    fn tree_teller(&self) -> Option<TreeTeller> {
        None
    }
}

/// A far service with so many paths, in ascending order.
pub(super) async fn filled(name: &'static str, count: usize) -> (Arc<Far>, Vec<PathInfo>) {
    let (service, blobs, _) = far();
    blobs.put_many(vec![Blob::new(Bytes::from_static(b"hi\n"))]).await.unwrap();
    let node = Node::File { digest: Digest::of(b"hi\n"), size: 3, executable: false };
    let witness = NarWitness::new(node.clone(), service.calculate_nar(&node).await.unwrap());
    for index in 0..count {
        let info = PathInfo::of_imported(&format!("{name}-{index}"), &witness).unwrap();
        service.put(info, Some(witness.clone())).await.unwrap();
    }
    let infos = service.list(None, PAGE_MAX).await.unwrap();
    (Arc::new(Far { name, service, is_gone: AtomicBool::new(false) }), infos)
}
