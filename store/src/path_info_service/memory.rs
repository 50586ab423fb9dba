//! Path infos in this process's memory, gone with it. For tests, and for content that need not
//! last; nothing here bounds what is kept.

use std::{
    collections::{BTreeMap, HashMap, btree_map::Entry},
    fmt,
    ops::Bound,
    sync::Arc,
};

use async_trait::async_trait;
use bytes::Bytes;
use cairn_castore::{BlobService, Digest, DirectoryService};
use parking_lot::RwLock;

use super::{
    PathInfoError,
    checked::{CheckedPathInfoService, PathInfoStorage},
};
use crate::store_path::OutputHash;

/// A path-info service in memory.
pub type MemoryPathInfoService = CheckedPathInfoService<MemoryPathInfoStorage>;

impl MemoryPathInfoService {
    /// An empty service for what these two keep.
    pub fn new(blobs: Arc<dyn BlobService>, directories: Arc<dyn DirectoryService>) -> Self {
        Self::over(MemoryPathInfoStorage::default(), blobs, directories)
    }
}

/// Records in memory.
#[derive(Default)]
pub struct MemoryPathInfoStorage {
    records: RwLock<BTreeMap<OutputHash, Bytes>>,
    nars: RwLock<HashMap<Digest, Bytes>>,
}

#[async_trait]
impl PathInfoStorage for MemoryPathInfoStorage {
    type Revision = Bytes;

    async fn get(&self, hash: &OutputHash) -> Result<Option<(Bytes, Bytes)>, PathInfoError> {
        Ok(self.records.read().get(hash).map(|record| (record.clone(), record.clone())))
    }

    async fn replace(
        &self,
        hash: &OutputHash,
        record: Bytes,
        over: Option<Bytes>,
    ) -> Result<bool, PathInfoError> {
        match (self.records.write().entry(*hash), over) {
            (Entry::Vacant(entry), None) => {
                entry.insert(record);
                Ok(true)
            }
            (Entry::Occupied(mut entry), Some(over)) if *entry.get() == over => {
                entry.insert(record);
                Ok(true)
            }
            _ => Ok(false),
        }
    }

    async fn list(
        &self,
        after: Option<OutputHash>,
        limit: usize,
    ) -> Result<Vec<(OutputHash, Bytes)>, PathInfoError> {
        let start = after.map_or(Bound::Unbounded, Bound::Excluded);
        let records = self.records.read();
        let page = records.range((start, Bound::Unbounded)).take(limit);
        Ok(page.map(|(hash, record)| (*hash, record.clone())).collect())
    }

    async fn delete(&self, hash: &OutputHash) -> Result<bool, PathInfoError> {
        Ok(self.records.write().remove(hash).is_some())
    }

    async fn nar(&self, root: &Digest) -> Result<Option<Bytes>, PathInfoError> {
        Ok(self.nars.read().get(root).cloned())
    }

    async fn keep_nar(&self, root: &Digest, nar: Bytes) -> Result<(), PathInfoError> {
        self.nars.write().insert(*root, nar);
        Ok(())
    }

    fn get_local(&self, hash: &OutputHash) -> Option<Result<Option<Bytes>, PathInfoError>> {
        Some(Ok(self.records.read().get(hash).cloned()))
    }
}

impl fmt::Display for MemoryPathInfoStorage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("memory:")
    }
}

impl fmt::Debug for MemoryPathInfoStorage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MemoryPathInfoStorage({} records)", self.records.read().len())
    }
}

#[cfg(test)]
mod tests {
    use cairn_castore::{
        blob_service::memory::MemoryBlobService, directory_service::memory::MemoryDirectoryService,
    };

    use super::*;

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn keeps_the_contract() {
        let blobs = Arc::new(MemoryBlobService::new());
        let directories = Arc::new(MemoryDirectoryService::new());
        let service = MemoryPathInfoService::new(blobs.clone(), directories.clone());
        crate::conformance::path_info_service(Arc::new(service), blobs, directories).await;
    }
}
