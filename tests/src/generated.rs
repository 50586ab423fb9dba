//! Trees that would take long to make on disk, put into a local store by way of its services. What
//! is there to be seen is the affair of the tests.

use std::{path::Path, sync::Arc};

use cairn_castore::{
    Directory, DirectoryService as _, Name, Node,
    blob_service::{BlobServiceExt as _, local::LocalBlobService},
    directory::SizeRule,
    directory_service::local::LocalDirectoryService,
    local::LocalStore,
};
use cairn_store::{
    PathInfo, PathInfoService as _, StorePath, path_info_service::local::LocalPathInfoService,
};
use futures::{StreamExt as _, TryStreamExt as _, stream};
use tokio::runtime::Runtime;

/// How many store paths are put at the same time, which one sync of the disk makes durable.
const PUTS_MAX: usize = 512;

/// A local store that this process has open. Closed when dropped.
pub struct Generated {
    store: Arc<LocalStore>,
    blobs: Arc<LocalBlobService>,
    directories: Arc<LocalDirectoryService>,
    path_infos: LocalPathInfoService,
    runtime: Runtime,
}

impl Generated {
    /// Opens or makes the store in a folder.
    pub fn open(folder: &Path) -> Self {
        let store = LocalStore::open(folder).unwrap();
        let blobs = Arc::new(LocalBlobService::new(Arc::clone(&store)));
        let directories = Arc::new(LocalDirectoryService::new(Arc::clone(&store)));
        let path_infos =
            LocalPathInfoService::new(Arc::clone(&store), blobs.clone(), directories.clone());
        Self { store, blobs, directories, path_infos, runtime: Runtime::new().unwrap() }
    }

    /// A file with this content.
    pub fn file(&self, content: &str) -> Node {
        let bytes = bytes::Bytes::copy_from_slice(content.as_bytes());
        let size = bytes.len() as u64;
        let digest = self.runtime.block_on(self.blobs.put_bytes(bytes)).unwrap();
        Node::File { digest, size, executable: false }
    }

    /// A directory with these entries.
    pub fn directory(&self, entries: impl IntoIterator<Item = (String, Node)>) -> Node {
        let entries = entries.into_iter().map(|(name, node)| (name.as_str().try_into(), node));
        let entries: Vec<(Name, Node)> =
            entries.map(|(name, node)| (name.unwrap(), node)).collect();
        let directory = Directory::new(entries).unwrap();
        let size = directory.size(SizeRule::Doubled);
        let closure = stream::iter([Ok(directory)]).boxed();
        let digest = self.runtime.block_on(self.directories.put_closure(closure)).unwrap();
        Node::Directory { digest, size }
    }

    /// Trees under names, as if they had been imported; their store paths, in order.
    pub fn add(&self, trees: impl IntoIterator<Item = (String, Node)>) -> Vec<String> {
        let puts = trees.into_iter().map(|(name, node)| async move {
            let nar = self.path_infos.calculate_nar(&node).await?;
            let store_path = StorePath::of_nar(&name, &nar.sha256).unwrap();
            let absolute = store_path.to_absolute();
            let (references, signatures) = (Vec::new(), Vec::new());
            let info =
                PathInfo { store_path, node, references, nar, signatures, deriver: None, ca: None };
            self.path_infos.put(info, None).await.map(|_| absolute)
        });
        let puts = stream::iter(puts).buffered(PUTS_MAX);
        self.runtime.block_on(puts.try_collect()).unwrap()
    }
}

impl Drop for Generated {
    fn drop(&mut self) {
        self.store.close();
    }
}
