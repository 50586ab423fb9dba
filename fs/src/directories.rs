//! The directories that were needed lately, decoded, within a bound of memory. Where they lie in
//! the tree is not known here: one content is held once.

use std::{collections::VecDeque, fmt, mem, sync::Arc};

use cairn_castore::{Digest, Directory, DirectoryService, Node, profile::Recorder};
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

/// How many directories are held that are too large for the cache, as long as they are used. One
/// that is listed, or whose entries are looked up one after the other, must not be decoded again for
/// each of them.
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
    /// What was used last comes first.
    large: Mutex<VecDeque<Large>>,
    /// Who wants to know which directories are used.
    recorder: Option<Arc<Recorder>>,
}

/// A directory that is too large for the cache.
struct Large {
    digest: Digest,
    loaded: Arc<Loaded>,
    /// Whether it was used since the last [`Directories::tidy`].
    is_used: bool,
}

impl Directories {
    pub(crate) fn new(service: Arc<dyn DirectoryService>, recorder: Option<Arc<Recorder>>) -> Self {
        let options = OptionsBuilder::new()
            .shards(CACHE_SHARDS)
            .weight_capacity(CACHE_BYTES)
            .estimated_items_capacity((CACHE_BYTES / (8 * ENTRY_BYTES)) as usize)
            .build()
            .expect("all that is needed is given");
        let (hasher, lifecycle) = (DefaultHashBuilder::default(), DefaultLifecycle::default());
        let cache = Cache::with_options(options, ByWeight, hasher, lifecycle);
        Self { service, cache, large: Mutex::new(VecDeque::new()), recorder }
    }

    /// The directory, if that needs no waiting.
    pub(crate) fn local(&self, digest: &Digest) -> Option<Result<Arc<Loaded>, FsError>> {
        self.note(digest);
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
        self.note(digest);
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

    /// Lets go of directories that are too large for the cache and were not used since the last time
    /// this was called, or of all directories.
    pub(crate) fn tidy(&self, all: bool) {
        self.large.lock().retain_mut(|large| mem::take(&mut large.is_used) && !all);
        if all {
            self.cache.clear();
        }
    }

    fn note(&self, digest: &Digest) {
        if let Some(recorder) = &self.recorder {
            recorder.directory(digest);
        }
    }

    fn held(&self, digest: &Digest) -> Option<Arc<Loaded>> {
        self.cache.get(digest).or_else(|| {
            let mut large = self.large.lock();
            let at = large.iter().position(|large| large.digest == *digest)?;
            let held = large.remove(at)?;
            let loaded = held.loaded.clone();
            large.push_front(Large { is_used: true, ..held });
            Some(loaded)
        })
    }

    fn hold_large(&self, digest: &Digest, loaded: &Arc<Loaded>) {
        if loaded.weight <= self.cache.shard_capacity() {
            return;
        }
        let mut large = self.large.lock();
        large.retain(|large| large.digest != *digest);
        large.push_front(Large { digest: *digest, loaded: loaded.clone(), is_used: true });
        large.truncate(LARGE_MAX);
    }
}

impl fmt::Debug for Directories {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Directories").field("service", &self.service).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use cairn_castore::{Name, directory_service::memory::MemoryDirectoryService};
    use futures::{StreamExt as _, stream};

    use super::*;

    /// More entries than fit in the cache, and the name of one of them.
    async fn put_large(service: &MemoryDirectoryService, name: &str) -> Digest {
        let count = CACHE_BYTES / CACHE_SHARDS as u64 / ENTRY_BYTES;
        let file = Node::File { digest: Digest::EMPTY, size: 0, executable: false };
        let names = (0..count).map(|number| format!("{name}{number}"));
        let entry = |name: String| (Name::try_from(name.as_str()).unwrap(), file.clone());
        let directory = Directory::new(names.map(entry).collect()).unwrap();
        service.put_closure(stream::iter([Ok(directory)]).boxed()).await.unwrap()
    }

    #[tokio::test]
    async fn large_directories_are_held_while_they_are_used() {
        let service = MemoryDirectoryService::new();
        let mut digests = Vec::new();
        for name in ["a", "b", "c"] {
            digests.push(put_large(&service, name).await);
        }
        let [a, b, c] = digests[..] else { unreachable!() };
        let directories = Directories::new(Arc::new(service), None);
        let held = |digest| directories.large.lock().iter().any(|large| large.digest == digest);
        for digest in [a, b, a, c] {
            directories.fetch(&digest).await.unwrap();
        }
        assert_eq!([a, b, c].map(held), [true, false, true]);
        directories.tidy(false);
        let again = directories.local(&a).unwrap().unwrap();
        assert!(again.counts().0 > 10_000);
        directories.tidy(false);
        assert_eq!([a, b, c].map(held), [true, false, false]);
        directories.fetch(&Digest::EMPTY).await.unwrap();
        assert!(directories.held(&Digest::EMPTY).is_some());
        directories.tidy(true);
        assert!(directories.large.lock().is_empty());
        assert!(directories.held(&Digest::EMPTY).is_none());
    }
}
