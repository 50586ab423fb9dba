//! The one implementation of the contract over whatever keeps bytes: all that is to be checked of
//! a path info is checked here. How bytes are kept is the affair of the storages beside.

use std::{array, fmt, sync::Arc};

use async_trait::async_trait;
use bytes::Bytes;
use cairn_castore::{BlobService, Digest, DirectoryService, Node};
use cairn_proto::snix::store::v1 as proto;
use prost::Message as _;
use tokio::sync::{Mutex, MutexGuard, Semaphore};

use super::{NarWitness, PAGE_MAX, PathInfoError, PathInfoService, TreeTeller, contents};
use crate::{
    nar::hash,
    nixbase32,
    path_info::{NarInfo, PathInfo},
    store_path::OutputHash,
};

/// The bytes of the longest encoded path info that is taken.
pub const RECORD_MAX: usize = 1024 * 1024;

/// The most signatures of one path.
pub const SIGNATURES_MAX: usize = 256;

/// The NARs that are computed at the same time.
const NARS_AT_ONCE: usize = 4;
/// The locks that writers of paths, and those who compute NARs, share.
const LOCKS: usize = 64;
/// How often a write is tried again when another process has written the same path in between.
const REPLACE_ATTEMPTS: usize = 16;

/// Keeps encoded path infos by the 20 bytes of their paths, and encoded NAR infos by the digest of
/// the root. Judges neither. What is answered is durable.
#[async_trait]
pub trait PathInfoStorage: fmt::Debug + fmt::Display + Send + Sync + 'static {
    /// What tells a stored record from one that has replaced it.
    type Revision: Send + Sync;

    /// A record and its revision. `None` if there is none.
    async fn get(
        &self,
        hash: &OutputHash,
    ) -> Result<Option<(Bytes, Self::Revision)>, PathInfoError>;

    /// Stores a record in the place of that revision, or of none; `false`, with nothing stored,
    /// if another process has stored something else. Two calls for one path are never under way
    /// at once in this process.
    async fn replace(
        &self,
        hash: &OutputHash,
        record: Bytes,
        over: Option<Self::Revision>,
    ) -> Result<bool, PathInfoError>;

    /// The next at most `limit` records in ascending order of their 20 bytes, behind `after`.
    /// Fewer come only from the end.
    async fn list(
        &self,
        after: Option<OutputHash>,
        limit: usize,
    ) -> Result<Vec<(OutputHash, Bytes)>, PathInfoError>;

    /// Removes a record; whether it was there.
    async fn delete(&self, hash: &OutputHash) -> Result<bool, PathInfoError>;

    /// The kept NAR info of a root, under the digest of its encoded entry without a name.
    async fn nar(&self, root: &Digest) -> Result<Option<Bytes>, PathInfoError>;

    /// Keeps the NAR info of a root.
    async fn keep_nar(&self, root: &Digest, nar: Bytes) -> Result<(), PathInfoError>;

    /// Like [`get`](Self::get), if that needs no waiting.
    fn get_local(&self, hash: &OutputHash) -> Option<Result<Option<Bytes>, PathInfoError>>;
}

/// A path-info service over a storage. There must be one in a process for each storage: it is
/// what keeps two writers of one path from each other.
pub struct CheckedPathInfoService<S> {
    storage: S,
    blobs: Arc<dyn BlobService>,
    directories: Arc<dyn DirectoryService>,
    writers: Locks,
    hashers: Locks,
    nars: Semaphore,
}

impl<S: PathInfoStorage> CheckedPathInfoService<S> {
    pub(super) fn over(
        storage: S,
        blobs: Arc<dyn BlobService>,
        directories: Arc<dyn DirectoryService>,
    ) -> Self {
        let nars = Semaphore::new(NARS_AT_ONCE);
        let (writers, hashers) = (Locks::default(), Locks::default());
        Self { storage, blobs, directories, writers, hashers, nars }
    }

    /// What a put finds: the record, and the revision that it would replace. What is damaged is
    /// not there, so that storing the path again repairs it.
    async fn replaceable(
        &self,
        hash: &OutputHash,
    ) -> Result<(Option<PathInfo>, Option<S::Revision>), PathInfoError> {
        let (decoded, revision) = match self.storage.get(hash).await {
            Ok(None) => return Ok((None, None)),
            Ok(Some((record, revision))) => (decode(hash, record), Some(revision)),
            Err(error) => (Err(error), None),
        };
        match decoded {
            Ok(info) => Ok((Some(info), revision)),
            Err(error @ PathInfoError::Corrupt { .. }) => {
                tracing::warn!(service = %self, %error, "a damaged record may be replaced");
                Ok((None, revision))
            }
            Err(error) => Err(error),
        }
    }

    /// Whether the tree is whole and its NAR what the record says.
    async fn check(
        &self,
        info: &PathInfo,
        witness: Option<NarWitness>,
    ) -> Result<(), PathInfoError> {
        let found = match witness {
            Some(witness) if *witness.node() == info.node => {
                let key = nar_key(&info.node);
                if self.kept_nar(&key).await?.is_none() {
                    self.keep_nar(&key, witness.nar()).await?;
                }
                witness.nar()
            }
            _ => {
                let name = info.store_path.to_string();
                contents::check(&name, &info.node, &*self.blobs, &*self.directories).await?;
                self.nar_of(&name, &info.node).await?
            }
        };
        if found != info.nar {
            return Err(PathInfoError::NarMismatch {
                store_path: info.store_path.clone(),
                found: Box::new(found),
                claimed: Box::new(info.nar),
            });
        }
        Ok(())
    }

    async fn nar_of(&self, name: &str, node: &Node) -> Result<NarInfo, PathInfoError> {
        let key = nar_key(node);
        if let Some(nar) = self.kept_nar(&key).await? {
            return Ok(nar);
        }
        let _only_hasher = self.hashers.lock(key.as_bytes()).await;
        if let Some(nar) = self.kept_nar(&key).await? {
            return Ok(nar);
        }
        let permit = self.nars.acquire().await.expect("the semaphore is never closed");
        let (blobs, directories) = (Arc::clone(&self.blobs), Arc::clone(&self.directories));
        let nar = hash::calculate(node, blobs, directories).await;
        let nar = nar.map_err(|error| contents::as_missing(name, error.into()))?;
        drop(permit);
        self.keep_nar(&key, nar).await?;
        Ok(nar)
    }

    async fn kept_nar(&self, key: &Digest) -> Result<Option<NarInfo>, PathInfoError> {
        let Some(kept) = self.storage.nar(key).await? else { return Ok(None) };
        let message = proto::CalculateNarResponse::decode(kept).ok();
        let nar = message.and_then(|message| NarInfo::from_proto(&message).ok());
        if nar.is_none() {
            tracing::warn!(root = %key, service = %self, "a kept NAR hash is damaged: computing it");
        }
        Ok(nar)
    }

    async fn keep_nar(&self, key: &Digest, nar: NarInfo) -> Result<(), PathInfoError> {
        self.storage.keep_nar(key, nar.to_proto().encode_to_vec().into()).await
    }
}

#[async_trait]
impl<S: PathInfoStorage> PathInfoService for CheckedPathInfoService<S> {
    async fn get(&self, hash: &OutputHash) -> Result<Option<PathInfo>, PathInfoError> {
        let stored = self.storage.get(hash).await?;
        stored.map(|(record, _)| decode(hash, record)).transpose()
    }

    async fn put(
        &self,
        info: PathInfo,
        witness: Option<NarWitness>,
    ) -> Result<PathInfo, PathInfoError> {
        let hash = *info.store_path.hash();
        check_length(&info)?;
        // Before what is dear, and once more below, since another writer may come between.
        if let (Some(stored), _) = self.replaceable(&hash).await? {
            merge(&stored, &info)?;
        }
        self.check(&info, witness).await?;

        let _only_writer = self.writers.lock(&hash).await;
        for _ in 0..REPLACE_ATTEMPTS {
            let (stored, over) = self.replaceable(&hash).await?;
            let merged = match &stored {
                None => info.clone(),
                Some(stored) => merge(stored, &info)?,
            };
            if stored.as_ref() == Some(&merged) {
                return Ok(merged);
            }
            check_length(&merged)?;
            let record = merged.to_proto().encode_to_vec().into();
            if self.storage.replace(&hash, record, over).await? {
                return Ok(merged);
            }
        }
        Err(PathInfoError::Unavailable {
            service: self.to_string(),
            source: format!("others keep writing {}", info.store_path).into(),
        })
    }

    async fn list(
        &self,
        after: Option<OutputHash>,
        limit: usize,
    ) -> Result<Vec<PathInfo>, PathInfoError> {
        let records = self.storage.list(after, limit.min(PAGE_MAX)).await?;
        records.into_iter().map(|(hash, record)| decode(&hash, record)).collect()
    }

    async fn delete(&self, hash: &OutputHash) -> Result<bool, PathInfoError> {
        let _only_writer = self.writers.lock(hash).await;
        self.storage.delete(hash).await
    }

    async fn calculate_nar(&self, node: &Node) -> Result<NarInfo, PathInfoError> {
        self.nar_of(&contents::name_of(node), node).await
    }

    fn get_local(&self, hash: &OutputHash) -> Option<Result<Option<PathInfo>, PathInfoError>> {
        let answer = self.storage.get_local(hash)?;
        Some(answer.and_then(|record| record.map(|record| decode(hash, record)).transpose()))
    }

    fn tree_teller(&self) -> Option<TreeTeller> {
        None
    }
}

impl<S: fmt::Display> fmt::Display for CheckedPathInfoService<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.storage.fmt(f)
    }
}

impl<S: fmt::Debug> fmt::Debug for CheckedPathInfoService<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("CheckedPathInfoService").field(&self.storage).finish()
    }
}

/// A stored record, which has to be that of the path.
pub(super) fn decode(hash: &OutputHash, record: Bytes) -> Result<PathInfo, PathInfoError> {
    let corrupt = |what: String| PathInfoError::Corrupt {
        reason: format!("{}: {what}", nixbase32::encode(hash)),
    };
    if record.len() > RECORD_MAX {
        return Err(corrupt(format!("it is longer than {RECORD_MAX} bytes")));
    }
    let message = proto::PathInfo::decode(record).map_err(|error| corrupt(error.to_string()))?;
    let info = PathInfo::from_proto(message).map_err(|error| corrupt(error.to_string()))?;
    if info.store_path.hash() != hash {
        return Err(corrupt(format!("it is the record of {}", info.store_path)));
    }
    Ok(info)
}

fn nar_key(node: &Node) -> Digest {
    Digest::of(&node.to_entry(None).encode_to_vec())
}

fn check_length(info: &PathInfo) -> Result<(), PathInfoError> {
    let too_long = |what: String| Err(PathInfoError::InvalidRequest(what));
    if info.signatures.len() > SIGNATURES_MAX {
        return too_long(format!("{} with more than {SIGNATURES_MAX} signatures", info.store_path));
    }
    if info.to_proto().encoded_len() > RECORD_MAX {
        return too_long(format!("{} with a record of over {RECORD_MAX} bytes", info.store_path));
    }
    Ok(())
}

/// The stored record with the signatures that the new one adds.
pub(super) fn merge(stored: &PathInfo, new: &PathInfo) -> Result<PathInfo, PathInfoError> {
    let differs = [
        ("name", stored.store_path != new.store_path),
        ("root", stored.node != new.node),
        ("NAR", stored.nar != new.nar),
        ("list of references", stored.references != new.references),
        ("deriver", stored.deriver != new.deriver),
        ("content address", stored.ca != new.ca),
    ];
    if let Some((field, _)) = differs.into_iter().find(|(_, differs)| *differs) {
        return Err(PathInfoError::Conflict { store_path: stored.store_path.clone(), field });
    }
    let mut merged = stored.clone();
    for signature in &new.signatures {
        if !merged.signatures.contains(signature) {
            merged.signatures.push(signature.clone());
        }
    }
    Ok(merged)
}

/// Some locks, each for many keys.
struct Locks([Mutex<()>; LOCKS]);

impl Locks {
    /// Locks a key, and with it the others that share its lock.
    async fn lock(&self, key: &[u8]) -> MutexGuard<'_, ()> {
        let sum =
            key.iter().fold(0usize, |sum, byte| sum.wrapping_mul(31).wrapping_add((*byte).into()));
        self.0[sum % LOCKS].lock().await
    }
}

impl Default for Locks {
    fn default() -> Self {
        Self(array::from_fn(|_| Mutex::new(())))
    }
}
