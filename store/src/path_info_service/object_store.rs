//! Path infos as objects: `pathinfos/<32 characters>` and, for kept NAR hashes,
//! `nars/b3/<4 digits>/<64 digits>`. What a bucket is and how it is reached is not known here.

use std::{fmt, sync::Arc};

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use cairn_castore::{
    BlobService, Digest, DirectoryService,
    object_base::{ObjectBase, ObjectFault},
};
use futures::{StreamExt as _, TryStreamExt as _, stream};
use object_store::{
    Error, ObjectStore as _, ObjectStoreExt as _, PutMode, PutOptions, UpdateVersion, path::Path,
};

use super::{
    PathInfoError,
    checked::{CheckedPathInfoService, PathInfoStorage, RECORD_MAX},
    window::{LastWindow, Window},
};
use crate::{nixbase32, store_path::OutputHash};

/// The names that are held in memory to page through them: a bucket lists in another order than
/// that of the contract.
const WINDOW: usize = 65_536;

/// The objects of a page that are read at the same time.
const READS_AT_ONCE: usize = 16;

/// The path infos in object storage.
pub type ObjectStorePathInfoService = CheckedPathInfoService<ObjectStorePathInfoStorage>;

impl ObjectStorePathInfoService {
    /// The path infos below this base, for what these two keep.
    ///
    /// Several processes may write at once, as far as the storage has conditional writes. Where it
    /// has none, as in a folder, signatures that two processes add to one path in the same moment
    /// may be lost.
    pub fn new(
        base: ObjectBase,
        blobs: Arc<dyn BlobService>,
        directories: Arc<dyn DirectoryService>,
    ) -> Self {
        let storage = ObjectStorePathInfoStorage { base, window: LastWindow::default() };
        Self::over(storage, blobs, directories)
    }
}

/// Records as objects.
pub struct ObjectStorePathInfoStorage {
    base: ObjectBase,
    window: LastWindow<()>,
}

impl ObjectStorePathInfoStorage {
    fn record_path(&self, hash: &OutputHash) -> Path {
        self.base.path().clone().join("pathinfos").join(nixbase32::encode(hash))
    }

    fn nar_path(&self, root: &Digest) -> Path {
        let hex = root.to_hex();
        self.base.path().clone().join("nars").join("b3").join(&hex[..4]).join(hex.as_str())
    }

    fn error(&self, error: Error) -> PathInfoError {
        let service = self.to_string();
        let fault = ObjectFault::of(&error);
        let source = error.into();
        match fault {
            ObjectFault::Denied => PathInfoError::PermissionDenied { service, source },
            ObjectFault::Full => PathInfoError::NoSpace { service, source },
            ObjectFault::Unavailable => PathInfoError::Unavailable { service, source },
            ObjectFault::Other => PathInfoError::Other { service, source },
        }
    }

    /// An object and its version. Of one that is too long for a record, its start.
    async fn read(&self, path: &Path) -> Result<Option<(Bytes, UpdateVersion)>, PathInfoError> {
        let read = async {
            let object = self.base.objects().get(path).await?;
            let (e_tag, version) = (object.meta.e_tag.clone(), object.meta.version.clone());
            let mut bytes = BytesMut::new();
            let mut pieces = object.into_stream();
            while bytes.len() <= RECORD_MAX
                && let Some(piece) = pieces.try_next().await?
            {
                bytes.extend_from_slice(&piece);
            }
            Ok((bytes.freeze(), UpdateVersion { e_tag, version }))
        };
        match read.await {
            Ok(read) => Ok(Some(read)),
            Err(Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(self.error(error)),
        }
    }

    async fn write(&self, path: &Path, bytes: Bytes, mode: PutMode) -> Result<(), Error> {
        let options = PutOptions { mode, ..PutOptions::default() };
        self.base.objects().put_opts(path, bytes.into(), options).await?;
        Ok(())
    }

    /// The next names behind `after`, in order.
    async fn names(
        &self,
        after: Option<OutputHash>,
        limit: usize,
    ) -> Result<Vec<OutputHash>, PathInfoError> {
        let page = match after.and_then(|after| self.window.page(after, limit)) {
            Some(page) => page,
            None => {
                let folder = self.base.path().clone().join("pathinfos");
                let mut objects = self.base.objects().list(Some(&folder));
                let mut window = Window::new(after, WINDOW);
                while let Some(object) =
                    objects.try_next().await.map_err(|error| self.error(error))?
                {
                    let name = object.location.filename().unwrap_or_default();
                    if let Some(hash) = nixbase32::decode(name.as_bytes()) {
                        window.push(hash, ());
                    }
                }
                self.window.keep(window, limit)
            }
        };
        Ok(page.into_iter().map(|(hash, ())| hash).collect())
    }
}

#[async_trait]
impl PathInfoStorage for ObjectStorePathInfoStorage {
    type Revision = UpdateVersion;

    async fn get(
        &self,
        hash: &OutputHash,
    ) -> Result<Option<(Bytes, UpdateVersion)>, PathInfoError> {
        self.read(&self.record_path(hash)).await
    }

    async fn replace(
        &self,
        hash: &OutputHash,
        record: Bytes,
        over: Option<UpdateVersion>,
    ) -> Result<bool, PathInfoError> {
        let path = self.record_path(hash);
        let is_new = over.is_none();
        let mode = match over {
            None => PutMode::Create,
            Some(UpdateVersion { e_tag: None, version: None }) => PutMode::Overwrite,
            Some(version) => PutMode::Update(version),
        };
        match self.write(&path, record.clone(), mode).await {
            Ok(()) => Ok(true),
            Err(
                Error::AlreadyExists { .. } | Error::Precondition { .. } | Error::NotFound { .. },
            ) => Ok(false),
            // Without conditional writes, looking first is what can be done.
            Err(Error::NotImplemented { .. } | Error::NotSupported { .. }) => {
                if is_new && self.read(&path).await?.is_some() {
                    return Ok(false);
                }
                let written = self.write(&path, record, PutMode::Overwrite).await;
                written.map_err(|error| self.error(error)).map(|()| true)
            }
            Err(error) => Err(self.error(error)),
        }
    }

    async fn list(
        &self,
        after: Option<OutputHash>,
        limit: usize,
    ) -> Result<Vec<(OutputHash, Bytes)>, PathInfoError> {
        let mut after = after;
        let mut listed = Vec::new();
        // What was deleted since the names were listed makes room for more.
        while listed.len() < limit {
            let wanted = limit - listed.len();
            let names = self.names(after, wanted).await?;
            let is_last = names.len() < wanted;
            after = names.last().copied().or(after);
            let records: Vec<_> = stream::iter(names)
                .map(|hash| async move { Ok::<_, PathInfoError>((hash, self.get(&hash).await?)) })
                .buffered(READS_AT_ONCE)
                .try_collect()
                .await?;
            listed.extend(records.into_iter().filter_map(|(hash, record)| Some((hash, record?.0))));
            if is_last {
                break;
            }
        }
        Ok(listed)
    }

    async fn delete(&self, hash: &OutputHash) -> Result<bool, PathInfoError> {
        let path = self.record_path(hash);
        let answer = async {
            // Most storages do not say whether what they delete was there.
            self.base.objects().head(&path).await?;
            self.base.objects().delete(&path).await
        };
        match answer.await {
            Ok(()) => Ok(true),
            Err(Error::NotFound { .. }) => Ok(false),
            Err(error) => Err(self.error(error)),
        }
    }

    async fn nar(&self, root: &Digest) -> Result<Option<Bytes>, PathInfoError> {
        Ok(self.read(&self.nar_path(root)).await?.map(|(bytes, _)| bytes))
    }

    async fn keep_nar(&self, root: &Digest, nar: Bytes) -> Result<(), PathInfoError> {
        let written = self.write(&self.nar_path(root), nar, PutMode::Overwrite).await;
        written.map_err(|error| self.error(error))
    }

    fn get_local(&self, _: &OutputHash) -> Option<Result<Option<Bytes>, PathInfoError>> {
        None
    }
}

impl fmt::Display for ObjectStorePathInfoStorage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.base.fmt(f)
    }
}

impl fmt::Debug for ObjectStorePathInfoStorage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ObjectStorePathInfoStorage({self})")
    }
}

#[cfg(test)]
mod tests {
    use cairn_castore::{
        Address, Blob, Node, blob_service::memory::MemoryBlobService,
        directory_service::memory::MemoryDirectoryService,
    };
    use futures::future::join_all;

    use super::*;
    use crate::{NarWitness, PathInfo, PathInfoService as _, Signature};

    type Contents = (Arc<dyn BlobService>, Arc<dyn DirectoryService>);

    fn open(url: &str) -> ObjectBase {
        match url.parse().unwrap() {
            Address::ObjectStore(address) => ObjectBase::open(&address).unwrap(),
            other => panic!("{other} is no address of objects"),
        }
    }

    fn contents() -> Contents {
        (Arc::new(MemoryBlobService::new()), Arc::new(MemoryDirectoryService::new()))
    }

    fn service(base: &ObjectBase, (blobs, directories): &Contents) -> ObjectStorePathInfoService {
        ObjectStorePathInfoService::new(base.clone(), Arc::clone(blobs), Arc::clone(directories))
    }

    async fn keeps_the_contract(url: &str) {
        let contents = contents();
        let service = Arc::new(service(&open(url), &contents));
        crate::conformance::path_info_service(service, contents.0, contents.1).await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn keeps_the_contract_in_memory() {
        keeps_the_contract("objectstore+memory:/base").await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn keeps_the_contract_in_a_folder() {
        let folder = tempfile::tempdir().unwrap();
        keeps_the_contract(&format!("objectstore+file://{}", folder.path().display())).await;
    }

    async fn witness(service: &ObjectStorePathInfoService, contents: &Contents) -> NarWitness {
        let blob = Blob::new(Bytes::from_static(b"hi\n"));
        let node = Node::File { digest: *blob.digest(), size: 3, executable: false };
        contents.0.put_many(vec![blob]).await.unwrap();
        let nar = service.calculate_nar(&node).await.unwrap();
        NarWitness::new(node, nar)
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn two_processes_lose_no_signature() {
        let (base, contents) = (open("objectstore+memory:/"), contents());
        let services = [service(&base, &contents), service(&base, &contents)];
        let witness = witness(&services[0], &contents).await;
        let unsigned = PathInfo::of_imported("signed", &witness).unwrap();
        let puts = (0..10).map(|byte| {
            let signature = Signature { name: "key".to_owned(), data: [byte; 64] };
            let info = PathInfo { signatures: vec![signature], ..unsigned.clone() };
            services[usize::from(byte % 2)].put(info, Some(witness.clone()))
        });
        for put in join_all(puts).await {
            put.unwrap();
        }
        let stored = services[0].get(unsigned.store_path.hash()).await.unwrap().unwrap();
        assert_eq!(stored.signatures.len(), 10);
    }

    #[tokio::test]
    async fn objects_lie_where_the_layout_says_and_a_damaged_one_is_replaced() {
        let (base, contents) = (open("objectstore+memory:/base"), contents());
        let service = service(&base, &contents);
        let witness = witness(&service, &contents).await;
        let info = PathInfo::of_imported("file", &witness).unwrap();
        service.put(info.clone(), None).await.unwrap();
        let objects = base.objects().list(None).map_ok(|object| object.location.to_string());
        let mut paths: Vec<_> = objects.try_collect().await.unwrap();
        paths.sort();
        let hash = nixbase32::encode(info.store_path.hash());
        assert_eq!(paths[1..], [format!("base/pathinfos/{hash}")]);
        assert!(paths[0].starts_with("base/nars/b3/"), "{}", paths[0]);

        for damaged in [Bytes::from_static(b"\xff"), Bytes::from(vec![0; RECORD_MAX + 1])] {
            let path = Path::from(paths[1].as_str());
            base.objects().put(&path, damaged.into()).await.unwrap();
            let error = service.get(info.store_path.hash()).await.unwrap_err();
            assert!(matches!(error, PathInfoError::Corrupt { .. }), "{error:?}");
            service.put(info.clone(), None).await.unwrap();
            assert_eq!(service.get(info.store_path.hash()).await.unwrap(), Some(info.clone()));
        }
    }
}
