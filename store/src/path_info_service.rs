//! The service that keeps path infos: its contract and its errors. The implementations are in the
//! modules below; the checks that all of them make on a put are in one place, too.

pub mod cache;
pub mod checked;
pub(crate) mod contents;
pub mod grpc;
pub mod grpc_server;
pub mod local;
pub mod memory;
pub mod object_store;
mod status;
mod teller;
#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test that can not go on fails")]
mod test_far;
pub mod told;
pub mod traced;
pub mod upstreams;
mod window;

use std::fmt;

use async_trait::async_trait;
use cairn_castore::{BlobError, BoxError, DirectoryError, Node};

pub use self::teller::TreeTeller;
use crate::{
    nar::NarError,
    path_info::{InvalidPathInfo, NarInfo, PathInfo},
    store_path::{OutputHash, StorePath},
};

/// The most path infos in one page of a listing.
pub const PAGE_MAX: usize = 1024;

/// Keeps path infos by the 20 bytes of their paths. What [`put`](Self::put) has answered is
/// durable. Every wrapper implements every method.
#[async_trait]
pub trait PathInfoService: fmt::Debug + fmt::Display + Send + Sync + 'static {
    /// The record of a path. `None` if there is none.
    async fn get(&self, hash: &OutputHash) -> Result<Option<PathInfo>, PathInfoError>;

    /// Stores a record, and answers with what is stored.
    ///
    /// Refused if the root or anything below it is missing ([`PathInfoError::Missing`]), if the
    /// NAR's size or hash is not the tree's ([`PathInfoError::NarMismatch`]), or if there is
    /// another record for the path ([`PathInfoError::Conflict`]). A record that differs from the
    /// stored one in signatures alone adds them to it.
    ///
    /// Whoever has just stored the tree and computed its NAR passes the witness of that, which
    /// spares the service doing it again.
    async fn put(
        &self,
        info: PathInfo,
        witness: Option<NarWitness>,
    ) -> Result<PathInfo, PathInfoError>;

    /// The next at most `limit` (at most [`PAGE_MAX`]) records in ascending order of their 20
    /// bytes, behind `after`. Fewer than `limit` come only from the end of the listing.
    async fn list(
        &self,
        after: Option<OutputHash>,
        limit: usize,
    ) -> Result<Vec<PathInfo>, PathInfoError>;

    /// Forgets a path; whether it was there. Its contents are not touched.
    async fn delete(&self, hash: &OutputHash) -> Result<bool, PathInfoError>;

    /// The size and hash of the NAR of a tree that is stored, computed once and kept.
    async fn calculate_nar(&self, node: &Node) -> Result<NarInfo, PathInfoError>;

    /// Like [`get`](Self::get), if that needs no waiting. `None`: ask [`get`](Self::get).
    fn get_local(&self, hash: &OutputHash) -> Option<Result<Option<PathInfo>, PathInfoError>>;

    /// Who should be told of a tree while it is being stored, so that a [`put`](Self::put) of it
    /// need not read it again. `None` where the put believes the witness. Must be called within a
    /// tokio runtime.
    fn tree_teller(&self) -> Option<TreeTeller>;
}

/// The knowledge that a tree is stored whole and what its NAR is. Only what stored and hashed
/// the tree in this process makes one, or what found it whole in the store and had hashed it
/// before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NarWitness {
    node: Node,
    nar: NarInfo,
}

impl NarWitness {
    pub(crate) fn new(node: Node, nar: NarInfo) -> Self {
        Self { node, nar }
    }

    /// The root of the tree.
    pub fn node(&self) -> &Node {
        &self.node
    }

    /// Its NAR.
    pub fn nar(&self) -> NarInfo {
        self.nar
    }
}

/// Why a path-info service could not do as asked.
#[derive(Debug, thiserror::Error)]
pub enum PathInfoError {
    /// What came is no path info.
    #[error(transparent)]
    Invalid(#[from] InvalidPathInfo),
    /// The request is not one.
    #[error("invalid request: {0}")]
    InvalidRequest(String),
    /// There is another record for the path already.
    #[error("{store_path} is in the store already, with another {field}")]
    Conflict {
        /// The path.
        store_path: StorePath,
        /// What differs.
        field: &'static str,
    },
    /// A part of the tree is not in the store.
    #[error("the contents of {store_path} are not whole: {what} is missing")]
    Missing {
        /// The path, or the root of a tree without one.
        store_path: String,
        /// The blob or directory.
        what: String,
    },
    /// The NAR is another than claimed.
    #[error("the NAR of {store_path} has {found}, not {claimed}")]
    NarMismatch {
        /// The path.
        store_path: StorePath,
        /// Size and hash of the tree's NAR.
        found: Box<NarInfo>,
        /// Size and hash as claimed.
        claimed: Box<NarInfo>,
    },
    /// The stored record is damaged.
    #[error("the record of a path is damaged: {reason}")]
    Corrupt {
        /// What was found, and where.
        reason: String,
    },
    /// The blobs could not be read.
    #[error(transparent)]
    Blob(#[from] BlobError),
    /// The directories could not be read.
    #[error(transparent)]
    Directory(#[from] DirectoryError),
    /// The NAR could not be computed.
    #[error(transparent)]
    Nar(#[from] NarError),
    /// The service does not do this.
    #[error("{service} can't {what}")]
    Unsupported {
        /// The service, as it displays.
        service: String,
        /// What was asked.
        what: &'static str,
    },
    /// There is no room left.
    #[error("{service} has no room left")]
    NoSpace {
        /// The service, as it displays.
        service: String,
        /// What said so.
        #[source]
        source: BoxError,
    },
    /// The service can't be reached, or did not answer in time. Trying again may help.
    #[error("{service} can't be reached")]
    Unavailable {
        /// The service, as it displays.
        service: String,
        /// What happened.
        #[source]
        source: BoxError,
    },
    /// The service refuses this caller.
    #[error("{service} denies access")]
    PermissionDenied {
        /// The service, as it displays.
        service: String,
        /// What said so.
        #[source]
        source: BoxError,
    },
    /// Anything else.
    #[error("{service} failed")]
    Other {
        /// The service, as it displays.
        service: String,
        /// What happened.
        #[source]
        source: BoxError,
    },
}

impl fmt::Display for NarInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hash = crate::nixbase32::encode(&self.sha256);
        write!(f, "{} bytes and the hash sha256:{hash}", self.size)
    }
}
