//! Directories of several services, of which one after the other is asked. Whose turn it is, is the
//! affair of [`crate::upstreams`].

use std::{collections::HashSet, fmt, sync::Arc, vec};

use async_trait::async_trait;
use futures::{StreamExt as _, TryStreamExt as _};

use super::check_count;
use crate::{
    Digest, Directory, DirectoryError, DirectoryService,
    blob_service::HAS_MANY_DIGESTS,
    copy::SpooledClosure,
    directory_service::DirectoryStream,
    upstreams::{Found, Upstream, Upstreams},
};

/// The directories of upstreams. Clones share everything.
///
/// A closure comes from one of them. Where that one fails in the middle, the next one goes on, less
/// what has come already. A closure that is stored is whole where it is stored: what only others have
/// of it is brought over.
#[derive(Debug, Clone)]
pub struct UpstreamsDirectoryService(Upstreams<dyn DirectoryService>);

/// Those that have not been asked yet.
type Turns = vec::IntoIter<Upstream<dyn DirectoryService>>;

/// A closure that has begun to come.
struct Begun {
    upstream: Upstream<dyn DirectoryService>,
    root: Directory,
    rest: DirectoryStream,
}

impl UpstreamsDirectoryService {
    /// The directories of these services.
    pub fn new(upstreams: Upstreams<dyn DirectoryService>) -> Self {
        Self(upstreams)
    }

    /// The closure of the next one that gives it.
    async fn begin(&self, turns: &mut Turns, root: &Digest) -> Result<Begun, DirectoryError> {
        let mut failure = None;
        for upstream in turns {
            let begun = async {
                let mut closure = upstream.service.get_closure(root).await?;
                let first = closure.try_next().await?;
                Ok((first.ok_or(DirectoryError::NotFound(*root))?, closure))
            };
            match begun.await {
                Ok((root, rest)) => return Ok(Begun { upstream, root, rest }),
                Err(DirectoryError::NotFound(digest)) if digest == *root => {}
                Err(error) => self.0.note(&upstream, error, &mut failure)?,
            }
        }
        Err(failure.unwrap_or(DirectoryError::NotFound(*root)))
    }

    /// What one has.
    async fn has_of(
        upstream: Arc<dyn DirectoryService>,
        digests: Vec<Digest>,
    ) -> Found<(), DirectoryError> {
        Found::of(upstream.has_many(&digests).await)
    }

    /// Sees to it that these directories are where others are stored, if any upstream has them.
    async fn bring_over(&self, digests: &[Digest]) -> Result<(), DirectoryError> {
        let writable = self.0.writable();
        let mut missing = Vec::new();
        for digests in digests.chunks(HAS_MANY_DIGESTS) {
            let present = writable.has_many(digests).await?;
            let absent = digests.iter().zip(present).filter(|(_, is_there)| !is_there);
            missing.extend(absent.map(|(digest, _)| digest));
        }
        for digest in missing {
            let mut closure = match self.get_closure(digest).await {
                Ok(closure) => closure,
                // It is refused for that by whoever stores what names it.
                Err(DirectoryError::NotFound(_)) => continue,
                Err(error) => return Err(error),
            };
            let mut spooled = SpooledClosure::new();
            while let Some(directory) = closure.try_next().await? {
                spooled.push(&directory).map_err(|error| DirectoryError::Other {
                    service: self.to_string(),
                    source: error.into(),
                })?;
            }
            writable.put_closure(spooled.leaves_first(*digest)).await?;
        }
        Ok(())
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl DirectoryService for UpstreamsDirectoryService {
    async fn get(&self, digest: &Digest) -> Result<Option<Directory>, DirectoryError> {
        let digest = *digest;
        self.0.first(|upstream| async move { upstream.get(&digest).await }).await
    }

    async fn get_closure(&self, root: &Digest) -> Result<DirectoryStream, DirectoryError> {
        let mut turns = self.0.in_turn();
        let mut begun = self.begin(&mut turns, root).await?;
        let (service, digest) = (self.clone(), *root);
        let stream = async_stream::stream! {
            let (mut given, mut failure) = (HashSet::from([digest]), None);
            yield Ok(begun.root);
            loop {
                let error = match begun.rest.next().await {
                    None => return,
                    Some(Ok(directory)) => {
                        // Nobody is left who could go on without them.
                        let is_last = turns.as_slice().is_empty() && given.len() == 1;
                        if is_last || given.insert(directory.digest()) {
                            yield Ok(directory);
                        }
                        continue;
                    }
                    Some(Err(error)) => error,
                };
                let next = match service.0.note(&begun.upstream, error, &mut failure) {
                    Ok(()) => service.begin(&mut turns, &digest).await,
                    Err(refused) => Err(refused),
                };
                match next {
                    Ok(next) => begun = next,
                    // The others may just not have it: what broke it off first is what matters.
                    Err(error) => {
                        yield Err(failure.unwrap_or(error));
                        return;
                    }
                }
            }
        };
        Ok(stream.boxed())
    }

    async fn has_many(&self, digests: &[Digest]) -> Result<Vec<bool>, DirectoryError> {
        check_count(digests.len())?;
        let found = self.0.many(digests, Self::has_of).await?;
        Ok(found.iter().map(Option::is_some).collect())
    }

    async fn put_closure(&self, directories: DirectoryStream) -> Result<Digest, DirectoryError> {
        let service = self.clone();
        let whole = async_stream::try_stream! {
            let mut directories = directories;
            let mut seen = HashSet::from([Digest::EMPTY]);
            while let Some(directory) = directories.try_next().await? {
                let children = directory.children().map(|(child, _)| child);
                let unseen: Vec<_> = children.filter(|child| !seen.contains(child)).collect();
                if !unseen.is_empty() {
                    service.bring_over(&unseen).await?;
                    seen.extend(unseen);
                }
                seen.insert(directory.digest());
                yield directory;
            }
        };
        self.0.writable().put_closure(whole.boxed()).await
    }

    /// What any of them has, since all that have it have the same.
    fn get_local(&self, digest: &Digest) -> Option<Result<Option<Directory>, DirectoryError>> {
        let mut is_nowhere = true;
        for upstream in self.0.all() {
            match upstream.get_local(digest) {
                Some(Ok(Some(directory))) => return Some(Ok(Some(directory))),
                Some(Ok(None)) => {}
                Some(Err(_)) | None => is_nowhere = false,
            }
        }
        is_nowhere.then_some(Ok(None))
    }
}

impl fmt::Display for UpstreamsDirectoryService {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests;
