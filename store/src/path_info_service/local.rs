//! Path infos in the local store, which they share with blobs and directories. How records get to
//! the disk and back is the affair of the store's engine.

use std::{fmt, sync::Arc};

use async_trait::async_trait;
use bytes::Bytes;
use cairn_castore::{
    BlobService, Digest, DirectoryService,
    local::{Kind, LocalError, LocalStore, Record},
};

use super::{
    PathInfoError,
    checked::{CheckedPathInfoService, PathInfoStorage},
};
use crate::store_path::OutputHash;

/// The path infos of a local store.
pub type LocalPathInfoService = CheckedPathInfoService<LocalPathInfoStorage>;

impl LocalPathInfoService {
    /// The path infos of this store, for what these two keep. There must be one for a store.
    pub fn new(
        store: Arc<LocalStore>,
        blobs: Arc<dyn BlobService>,
        directories: Arc<dyn DirectoryService>,
    ) -> Self {
        Self::over(LocalPathInfoStorage { store }, blobs, directories)
    }
}

/// Records in a local store.
pub struct LocalPathInfoStorage {
    store: Arc<LocalStore>,
}

impl LocalPathInfoStorage {
    fn error(&self, error: LocalError) -> PathInfoError {
        let service = self.to_string();
        match error {
            LocalError::Damaged { .. } => PathInfoError::Corrupt { reason: error.to_string() },
            LocalError::NoSpace { .. } => PathInfoError::NoSpace { service, source: error.into() },
            LocalError::Locked(_) | LocalError::Closed(_) => {
                PathInfoError::Unavailable { service, source: error.into() }
            }
            error => PathInfoError::Other { service, source: error.into() },
        }
    }

    async fn get_record(&self, kind: Kind, key: &[u8]) -> Result<Option<Bytes>, LocalError> {
        let key = Bytes::copy_from_slice(key);
        self.store.blocking(move |store| store.get(kind, &key)).await
    }

    async fn put_record(&self, kind: Kind, key: &[u8], value: Bytes) -> Result<(), PathInfoError> {
        let record = Record::new(kind, Bytes::copy_from_slice(key), value);
        self.store.put_async(vec![record]).await.map_err(|error| self.error(error))
    }
}

#[async_trait]
impl PathInfoStorage for LocalPathInfoStorage {
    /// One process has the store, and in it one service.
    type Revision = ();

    async fn get(&self, hash: &OutputHash) -> Result<Option<(Bytes, ())>, PathInfoError> {
        let record = self.get_record(Kind::PathInfo, hash).await;
        Ok(record.map_err(|error| self.error(error))?.map(|record| (record, ())))
    }

    async fn replace(
        &self,
        hash: &OutputHash,
        record: Bytes,
        _: Option<()>,
    ) -> Result<bool, PathInfoError> {
        self.put_record(Kind::PathInfo, hash, record).await?;
        Ok(true)
    }

    async fn list(
        &self,
        after: Option<OutputHash>,
        limit: usize,
    ) -> Result<Vec<(OutputHash, Bytes)>, PathInfoError> {
        let list = move |store: &LocalStore| {
            store.list(Kind::PathInfo, after.as_ref().map(|after| &after[..]), limit)
        };
        let records = self.store.blocking(list).await.map_err(|error| self.error(error))?;
        let record = |(key, value): (Bytes, Bytes)| match OutputHash::try_from(&*key) {
            Ok(hash) => Ok((hash, value)),
            Err(_) => Err(PathInfoError::Corrupt {
                reason: format!("{self} has one under a key of {} bytes", key.len()),
            }),
        };
        records.into_iter().map(record).collect()
    }

    async fn delete(&self, hash: &OutputHash) -> Result<bool, PathInfoError> {
        let hash = *hash;
        let deleted = self.store.blocking(move |store| store.delete(Kind::PathInfo, &hash)).await;
        deleted.map_err(|error| self.error(error))
    }

    async fn nar(&self, root: &Digest) -> Result<Option<Bytes>, PathInfoError> {
        match self.get_record(Kind::Nar, root.as_bytes()).await {
            Err(error @ LocalError::Damaged { .. }) => {
                tracing::warn!(%error, "a kept NAR hash is damaged: computing it");
                Ok(None)
            }
            found => found.map_err(|error| self.error(error)),
        }
    }

    async fn keep_nar(&self, root: &Digest, nar: Bytes) -> Result<(), PathInfoError> {
        self.put_record(Kind::Nar, root.as_bytes(), nar).await
    }

    fn get_local(&self, hash: &OutputHash) -> Option<Result<Option<Bytes>, PathInfoError>> {
        Some(self.store.get(Kind::PathInfo, hash).map_err(|error| self.error(error)))
    }
}

impl fmt::Display for LocalPathInfoStorage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sled:{}", self.store.path().display())
    }
}

impl fmt::Debug for LocalPathInfoStorage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "LocalPathInfoStorage({self})")
    }
}

#[cfg(test)]
mod tests {
    use cairn_castore::{
        blob_service::local::LocalBlobService, directory_service::local::LocalDirectoryService,
    };

    use super::*;
    use crate::{
        PathInfo, PathInfoService as _,
        nar::{model::Tree, reader},
    };

    type Parts = (LocalPathInfoService, Arc<dyn BlobService>, Arc<dyn DirectoryService>);

    fn open(path: &std::path::Path) -> Parts {
        let store = LocalStore::open(path).unwrap();
        let blobs: Arc<dyn BlobService> = Arc::new(LocalBlobService::new(Arc::clone(&store)));
        let directories: Arc<dyn DirectoryService> =
            Arc::new(LocalDirectoryService::new(Arc::clone(&store)));
        let path_infos =
            LocalPathInfoService::new(store, Arc::clone(&blobs), Arc::clone(&directories));
        (path_infos, blobs, directories)
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn keeps_the_contract() {
        let folder = tempfile::tempdir().unwrap();
        let (service, blobs, directories) = open(&folder.path().join("store"));
        crate::conformance::path_info_service(Arc::new(service), blobs, directories).await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn what_was_put_is_there_when_the_store_is_opened_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("store");
        let (service, blobs, directories) = open(&path);
        let witness = reader::read(&Tree::vector().nar()[..], blobs, directories).await.unwrap();
        let info = PathInfo::of_imported("tree", &witness).unwrap();
        let hash = *info.store_path.hash();
        service.put(info.clone(), Some(witness.clone())).await.unwrap();
        drop(service);

        let (service, ..) = open(&path);
        assert_eq!(service.get_local(&hash).unwrap().unwrap(), Some(info.clone()));
        assert_eq!(service.list(None, 10).await.unwrap(), [info]);
        assert_eq!(service.calculate_nar(witness.node()).await.unwrap(), witness.nar());
        assert!(service.delete(&hash).await.unwrap());
        drop(service);

        let (service, ..) = open(&path);
        assert_eq!(service.get(&hash).await.unwrap(), None);
    }
}
