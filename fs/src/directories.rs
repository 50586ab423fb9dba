//! The directories that were needed lately, decoded, within a bound of memory. Where they lie in
//! the tree is not known here: one content is held once.

use std::{collections::VecDeque, fmt, sync::Arc};

use cairn_castore::{Digest, Directory, DirectoryService, Node};
use parking_lot::Mutex;
use quick_cache::{
    DefaultHashBuilder, OptionsBuilder, Weighter,
    sync::{Cache, DefaultLifecycle},
};

use crate::errno::FsError;

/// The memory that decoded directories may take, in bytes.
const CACHE_BYTES: u64 = 4 * 1024 * 1024;

/// How many parts the cache has, each with its lock. Few, since a directory that outweighs a
/// part's share is too large for the cache.
const CACHE_SHARDS: usize = 2;

/// How many directories are held that are too large for the cache. One that is listed, or whose
/// entries are looked up one after the other, must not be decoded again for each of them.
const LARGE_MAX: usize = 2;

/// About what one entry takes in memory besides its name, in bytes.
const ENTRY_BYTES: u64 = 128;

/// A directory and what its entry in another says about it.
pub(crate) struct Loaded {
    /// Its entries.
    pub(crate) directory: Directory,
    /// The number of directories among them.
    subdirectories: u32,
    weight: u64,
}

impl Loaded {
    fn new(directory: Directory) -> Arc<Self> {
        let subdirectories = count(directory.children().count());
        let weight_of = |(name, node): &(cairn_castore::Name, Node)| {
            let target = match node {
                Node::Symlink { target } => target.as_ref().len(),
                Node::Directory { .. } | Node::File { .. } => 0,
            };
            ENTRY_BYTES + (name.as_ref().len() + target) as u64
        };
        let weight = ENTRY_BYTES + directory.entries().iter().map(weight_of).sum::<u64>();
        Arc::new(Self { directory, subdirectories, weight })
    }

    /// The number of entries, and that of the directories among them.
    pub(crate) fn counts(&self) -> (u32, u32) {
        (count(self.directory.entries().len()), self.subdirectories)
    }
}

/// What is read into memory has fewer entries than there are numbers here.
fn count(entries: usize) -> u32 {
    u32::try_from(entries).unwrap_or(u32::MAX)
}

#[derive(Clone)]
struct ByWeight;

impl Weighter<Digest, Arc<Loaded>> for ByWeight {
    fn weight(&self, _: &Digest, loaded: &Arc<Loaded>) -> u64 {
        loaded.weight
    }
}

/// A directory service with a memory.
pub(crate) struct Directories {
    service: Arc<dyn DirectoryService>,
    cache: Cache<Digest, Arc<Loaded>, ByWeight>,
    large: Mutex<VecDeque<(Digest, Arc<Loaded>)>>,
}

impl Directories {
    pub(crate) fn new(service: Arc<dyn DirectoryService>) -> Self {
        let options = OptionsBuilder::new()
            .shards(CACHE_SHARDS)
            .weight_capacity(CACHE_BYTES)
            .estimated_items_capacity((CACHE_BYTES / (8 * ENTRY_BYTES)) as usize)
            .build()
            .expect("all that is needed is given");
        let (hasher, lifecycle) = (DefaultHashBuilder::default(), DefaultLifecycle::default());
        let cache = Cache::with_options(options, ByWeight, hasher, lifecycle);
        Self { service, cache, large: Mutex::new(VecDeque::new()) }
    }

    /// The directory, if that needs no waiting.
    pub(crate) fn local(&self, digest: &Digest) -> Option<Result<Arc<Loaded>, FsError>> {
        if let Some(loaded) = self.held(digest) {
            return Some(Ok(loaded));
        }
        Some(match self.service.get_local(digest)? {
            Ok(Some(directory)) => {
                let loaded = Loaded::new(directory);
                self.cache.insert(*digest, loaded.clone());
                self.hold_large(digest, &loaded);
                Ok(loaded)
            }
            Ok(None) => Err(FsError::MissingDirectory(*digest)),
            Err(error) => Err(error.into()),
        })
    }

    /// The directory, asked of the service once for all who wait for it.
    pub(crate) async fn fetch(&self, digest: &Digest) -> Result<Arc<Loaded>, FsError> {
        if let Some(loaded) = self.held(digest) {
            return Ok(loaded);
        }
        let fetched = async {
            match self.service.get(digest).await? {
                Some(directory) => Ok(Loaded::new(directory)),
                None => Err(FsError::MissingDirectory(*digest)),
            }
        };
        let loaded = self.cache.get_or_insert_async(digest, fetched).await?;
        self.hold_large(digest, &loaded);
        Ok(loaded)
    }

    fn held(&self, digest: &Digest) -> Option<Arc<Loaded>> {
        self.cache.get(digest).or_else(|| {
            let large = self.large.lock();
            large.iter().find(|(held, _)| held == digest).map(|(_, loaded)| loaded.clone())
        })
    }

    fn hold_large(&self, digest: &Digest, loaded: &Arc<Loaded>) {
        if loaded.weight <= self.cache.shard_capacity() {
            return;
        }
        let mut large = self.large.lock();
        large.retain(|(held, _)| held != digest);
        large.push_front((*digest, loaded.clone()));
        large.truncate(LARGE_MAX);
    }
}

impl fmt::Debug for Directories {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Directories").field("service", &self.service).finish_non_exhaustive()
    }
}
