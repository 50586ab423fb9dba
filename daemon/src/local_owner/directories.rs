//! The directories of a shared store: each call goes to whoever holds the store, and goes on with
//! the next one where that process has gone.

use std::{collections::HashSet, fmt, sync::Arc};

use async_trait::async_trait;
use cairn_castore::{
    Digest, Directory, DirectoryError, DirectoryService, directory_service::DirectoryStream,
};
use futures::{StreamExt as _, stream};

use super::{Backend, FOLLOW_MAX, SharedStore, spool::Spool};

/// The directories of a [`SharedStore`].
#[derive(Debug)]
pub(crate) struct SharedDirectoryService(pub(crate) Arc<SharedStore>);

impl fmt::Display for SharedDirectoryService {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl DirectoryService for SharedDirectoryService {
    async fn get(&self, digest: &Digest) -> Result<Option<Directory>, DirectoryError> {
        self.0.call(|store| async move { store.directories.get(digest).await }).await
    }

    async fn get_closure(&self, root: &Digest) -> Result<DirectoryStream, DirectoryError> {
        let (store, stream) = start(&self.0, root).await?;
        if !store.is_client() {
            return Ok(stream);
        }
        let given = HashSet::new();
        let reading = Reading { shared: self.0.clone(), store, stream, root: *root, given };
        Ok(stream::try_unfold(reading, Reading::next).boxed())
    }

    async fn has_many(&self, digests: &[Digest]) -> Result<Vec<bool>, DirectoryError> {
        self.0.call(|store| async move { store.directories.has_many(digests).await }).await
    }

    async fn put_closure(&self, directories: DirectoryStream) -> Result<Digest, DirectoryError> {
        let store = self.0.current().map_err(|error| unavailable(&self.0, error))?;
        if !store.is_client() {
            return store.directories.put_closure(directories).await;
        }
        drop(store);
        let spool = &Spool::fill(self.to_string(), directories).await?;
        self.0
            .call(|store| async move { store.directories.put_closure(spool.read().await?).await })
            .await
    }

    fn get_local(&self, digest: &Digest) -> Option<Result<Option<Directory>, DirectoryError>> {
        self.0.current().ok()?.directories.get_local(digest)
    }
}

fn unavailable(
    shared: &SharedStore,
    error: impl std::error::Error + Send + Sync + 'static,
) -> DirectoryError {
    DirectoryError::Unavailable { service: shared.to_string(), source: Box::new(error) }
}

/// Begins to read a closure, at whoever holds the store.
async fn start(
    shared: &SharedStore,
    root: &Digest,
) -> Result<(Arc<Backend>, DirectoryStream), DirectoryError> {
    shared
        .call(|store| async move {
            let stream = store.directories.get_closure(root).await?;
            Ok((store, stream))
        })
        .await
}

/// A closure that is being read from another process.
struct Reading {
    shared: Arc<SharedStore>,
    store: Arc<Backend>,
    stream: DirectoryStream,
    root: Digest,
    /// What need not come again. A closure is bounded by [`cairn_castore::closure::CLOSURE_MAX`].
    given: HashSet<Digest>,
}

impl Reading {
    /// The next directory that was not given yet; from the next owner if the process that was
    /// read from has gone. Whatever the order in which that one gives them, each still comes
    /// behind one that names it.
    async fn next(mut self) -> Result<Option<(Directory, Self)>, DirectoryError> {
        let mut follows = 0;
        loop {
            match self.stream.next().await {
                Some(Ok(directory)) => {
                    if self.given.insert(directory.digest()) {
                        return Ok(Some((directory, self)));
                    }
                }
                Some(Err(error))
                    if follows < FOLLOW_MAX && self.shared.has_ended(&self.store, &error).await =>
                {
                    follows += 1;
                    let next = self.shared.follow(self.store.term).await;
                    next.map_err(|error| unavailable(&self.shared, error))?;
                    (self.store, self.stream) = start(&self.shared, &self.root).await?;
                }
                Some(Err(error)) => return Err(error),
                None => return Ok(None),
            }
        }
    }
}
