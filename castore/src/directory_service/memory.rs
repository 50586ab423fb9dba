//! Directories in this process's memory, gone with it. For tests, and for content that need not
//! last; nothing here bounds what is kept.

use std::{collections::HashMap, fmt, sync::Arc};

use async_trait::async_trait;
use futures::TryStreamExt as _;
use parking_lot::RwLock;

use super::check_count;
use crate::{
    Digest, Directory, DirectoryError, DirectoryService,
    closure::{check_leaves_first, walk},
    directory_service::DirectoryStream,
};

/// A directory service in memory. Clones share what is in it.
#[derive(Clone, Default)]
pub struct MemoryDirectoryService {
    directories: Arc<RwLock<HashMap<Digest, Directory>>>,
}

impl MemoryDirectoryService {
    /// An empty store.
    pub fn new() -> Self {
        Self::default()
    }

    fn find(&self, digest: &Digest) -> Option<Directory> {
        if *digest == Digest::EMPTY {
            return Some(Directory::default());
        }
        self.directories.read().get(digest).cloned()
    }

    fn has(&self, digest: &Digest) -> bool {
        *digest == Digest::EMPTY || self.directories.read().contains_key(digest)
    }
}

#[async_trait]
impl DirectoryService for MemoryDirectoryService {
    async fn get(&self, digest: &Digest) -> Result<Option<Directory>, DirectoryError> {
        Ok(self.find(digest))
    }

    async fn get_closure(&self, root: &Digest) -> Result<DirectoryStream, DirectoryError> {
        if !self.has(root) {
            return Err(DirectoryError::NotFound(*root));
        }
        Ok(walk(Arc::new(self.clone()), *root))
    }

    async fn has_many(&self, digests: &[Digest]) -> Result<Vec<bool>, DirectoryError> {
        check_count(digests.len())?;
        Ok(digests.iter().map(|digest| self.has(digest)).collect())
    }

    async fn put_closure(&self, directories: DirectoryStream) -> Result<Digest, DirectoryError> {
        let checked = check_leaves_first(self, directories);
        let mut checked = std::pin::pin!(checked);
        let mut root = None;
        while let Some((digest, directory)) = checked.try_next().await? {
            self.directories.write().insert(digest, directory);
            root = Some(digest);
        }
        Ok(root.expect("a checked closure has a directory"))
    }

    fn get_local(&self, digest: &Digest) -> Option<Result<Option<Directory>, DirectoryError>> {
        Some(Ok(self.find(digest)))
    }
}

impl fmt::Display for MemoryDirectoryService {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("memory:")
    }
}

impl fmt::Debug for MemoryDirectoryService {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MemoryDirectoryService({} directories)", self.directories.read().len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conformance;

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn conforms() {
        conformance::directory_service(Arc::new(MemoryDirectoryService::new())).await;
    }
}
