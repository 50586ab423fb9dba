//! Directories in the local store, each a record of its canonical encoding. How the store keeps
//! records is in `local`.

use std::{
    collections::{HashSet, VecDeque},
    fmt,
    sync::Arc,
};

use async_stream::try_stream;
use async_trait::async_trait;
use bytes::Bytes;
use futures::{StreamExt as _, TryStreamExt as _};

use crate::{
    Digest, Directory, DirectoryError, DirectoryService,
    blob_service::HAS_MANY_DIGESTS,
    closure::{CLOSURE_MAX, InvalidClosure, check_leaves_first},
    directory_service::DirectoryStream,
    local::{Kind, LocalError, LocalStore, Record},
};

/// The directories that are stored together: at most so many, and no more once they have so many
/// bytes.
const PUT_BATCH: usize = 4096;
const PUT_BATCH_BYTES: usize = 4 * 1024 * 1024;

/// The directories of a closure that are read together: at most so many, and no more once they
/// have so many bytes.
const READ_BATCH: usize = 256;
const READ_BATCH_BYTES: usize = 1024 * 1024;

/// The directories of a local store.
#[derive(Debug, Clone)]
pub struct LocalDirectoryService {
    store: Arc<LocalStore>,
}

impl LocalDirectoryService {
    /// The directories of this store.
    pub fn new(store: Arc<LocalStore>) -> Self {
        Self { store }
    }

    /// Runs what waits for the disk on a thread that may.
    async fn blocking<T: Send + 'static>(
        &self,
        run: impl FnOnce(&LocalStore) -> Result<T, DirectoryError> + Send + 'static,
    ) -> Result<T, DirectoryError> {
        let store = Arc::clone(&self.store);
        match tokio::task::spawn_blocking(move || run(&store)).await {
            Ok(outcome) => outcome,
            // The runtime is shutting down, or the closure has panicked.
            Err(error) => Err(DirectoryError::Other {
                service: self.store.to_string(),
                source: Box::new(error),
            }),
        }
    }

    async fn store(&self, batch: Vec<Record>) -> Result<(), DirectoryError> {
        self.store.put_async(batch).await.map_err(|error| convert(&self.store, error))
    }
}

impl fmt::Display for LocalDirectoryService {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.store.fmt(f)
    }
}

fn convert(store: &LocalStore, error: LocalError) -> DirectoryError {
    let service = store.to_string();
    match error {
        LocalError::Damaged { ref key, pack, offset, ref reason, .. } => {
            match Digest::try_from(&**key) {
                Ok(digest) => DirectoryError::Corrupt {
                    digest,
                    reason: format!("{reason}, in pack {pack:08} at byte {offset}"),
                },
                Err(_) => DirectoryError::Other { service, source: Box::new(error) },
            }
        }
        LocalError::NoSpace { .. } => DirectoryError::NoSpace { service, source: Box::new(error) },
        LocalError::TooLarge { .. } => DirectoryError::Invalid(error.to_string()),
        error => DirectoryError::Other { service, source: Box::new(error) },
    }
}

/// An encoded directory; the store has verified it.
fn read(store: &LocalStore, digest: &Digest) -> Result<Option<Bytes>, DirectoryError> {
    if *digest == Digest::EMPTY {
        return Ok(Some(Bytes::new()));
    }
    let value = store.get(Kind::Directory, digest.as_bytes());
    value.map_err(|error| convert(store, error))
}

fn decode(digest: &Digest, bytes: Bytes) -> Result<Directory, DirectoryError> {
    Directory::decode(bytes)
        .map_err(|error| DirectoryError::Corrupt { digest: *digest, reason: error.to_string() })
}

fn get(store: &LocalStore, digest: &Digest) -> Result<Option<Directory>, DirectoryError> {
    read(store, digest)?.map(|bytes| decode(digest, bytes)).transpose()
}

/// The directories at the front of a queue, as many as make a batch, each with what named it.
/// `None` for the last if it is not there.
fn get_batch(
    store: &LocalStore,
    wanted: &[Digest],
) -> Result<Vec<Option<Directory>>, DirectoryError> {
    let mut directories = Vec::new();
    let mut bytes = 0;
    for digest in wanted {
        if bytes >= READ_BATCH_BYTES {
            break;
        }
        let Some(encoded) = read(store, digest)? else {
            directories.push(None);
            break;
        };
        bytes += encoded.len();
        directories.push(Some(decode(digest, encoded)?));
    }
    Ok(directories)
}

#[async_trait]
impl DirectoryService for LocalDirectoryService {
    async fn get(&self, digest: &Digest) -> Result<Option<Directory>, DirectoryError> {
        let digest = *digest;
        self.blocking(move |store| get(store, &digest)).await
    }

    async fn get_closure(&self, root: &Digest) -> Result<DirectoryStream, DirectoryError> {
        let (service, root) = (self.clone(), *root);
        let stream = try_stream! {
            let mut named = HashSet::from([root]);
            // Each with the directory that names it.
            let mut queue = VecDeque::from([(root, root)]);
            while !queue.is_empty() {
                let wanted: Vec<Digest> =
                    queue.iter().take(READ_BATCH).map(|(_, digest)| *digest).collect();
                let batch = service.blocking(move |store| get_batch(store, &wanted)).await?;
                for directory in batch {
                    let Some((parent, digest)) = queue.pop_front() else { break };
                    let directory = directory.ok_or_else(|| match digest == root {
                        true => DirectoryError::NotFound(root),
                        false => InvalidClosure::MissingChild { parent, child: digest }.into(),
                    })?;
                    for (child, _) in directory.children() {
                        if named.insert(child) {
                            if named.len() > CLOSURE_MAX {
                                Err(InvalidClosure::TooLarge(CLOSURE_MAX))?;
                            }
                            queue.push_back((digest, child));
                        }
                    }
                    yield directory;
                }
            }
        };
        Ok(stream.boxed())
    }

    async fn has_many(&self, digests: &[Digest]) -> Result<Vec<bool>, DirectoryError> {
        if digests.len() > HAS_MANY_DIGESTS {
            return Err(DirectoryError::Invalid(format!("more than {HAS_MANY_DIGESTS} digests")));
        }
        let digests = digests.to_vec();
        self.blocking(move |store| {
            let has = |digest: &Digest| {
                let contained = store.contains(Kind::Directory, digest.as_bytes());
                Ok(*digest == Digest::EMPTY || contained.map_err(|error| convert(store, error))?)
            };
            digests.iter().map(has).collect()
        })
        .await
    }

    async fn put_closure(&self, directories: DirectoryStream) -> Result<Digest, DirectoryError> {
        let checked = check_leaves_first(self, directories);
        futures::pin_mut!(checked);
        let mut batch = Vec::new();
        let mut bytes = 0;
        // The one that may be the root, which is stored when all others are durable.
        let mut last: Option<(Digest, Record)> = None;
        while let Some((digest, directory)) = checked.try_next().await? {
            let record = Record::new(Kind::Directory, digest.into(), directory.encode());
            let Some((_, before)) = last.replace((digest, record)) else { continue };
            bytes += before.value.len();
            batch.push(before);
            if batch.len() >= PUT_BATCH || bytes >= PUT_BATCH_BYTES {
                bytes = 0;
                self.store(std::mem::take(&mut batch)).await?;
            }
        }
        let (root, record) = last.ok_or(InvalidClosure::Empty)?;
        self.store(batch).await?;
        if root != Digest::EMPTY {
            self.store(vec![record]).await?;
        }
        Ok(root)
    }

    fn get_local(&self, digest: &Digest) -> Option<Result<Option<Directory>, DirectoryError>> {
        Some(get(&self.store, digest))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Name, Node, conformance, directory::SizeRule};

    #[tokio::test(flavor = "multi_thread")]
    async fn conforms() {
        let folder = tempfile::tempdir().unwrap();
        let store = LocalStore::open(folder.path()).unwrap();
        conformance::directory_service(Arc::new(LocalDirectoryService::new(store))).await;
    }

    /// More directories than are stored or read together, in a chain and side by side.
    #[tokio::test]
    async fn large_closures_come_back_in_order_after_a_reopen() {
        let folder = tempfile::tempdir().unwrap();
        let entry = |name: String, child: &Directory| {
            let size = child.size(SizeRule::Doubled);
            let node = Node::Directory { digest: child.digest(), size };
            (Name::try_from(name.as_str()).unwrap(), node)
        };
        let mut all = vec![Directory::default()];
        for depth in 0..600 {
            let child = all.last().unwrap();
            all.push(Directory::new(vec![entry(format!("d{depth}"), child)]).unwrap());
        }
        let children = all.iter().enumerate();
        let children = children.map(|(index, child)| entry(index.to_string(), child)).collect();
        all.push(Directory::new(children).unwrap());
        let root = all.last().unwrap().digest();
        let expected = all.len();
        {
            let service = LocalDirectoryService::new(LocalStore::open(folder.path()).unwrap());
            let stream = futures::stream::iter(all.into_iter().map(Ok)).boxed();
            assert_eq!(service.put_closure(stream).await.unwrap(), root);
        }
        let service = LocalDirectoryService::new(LocalStore::open(folder.path()).unwrap());
        let closure = service.get_closure(&root).await.unwrap();
        let closure = crate::closure::check_root_first(root, closure);
        let closure: Vec<Directory> = closure.try_collect().await.unwrap();
        assert_eq!(closure.len(), expected);
    }
}
