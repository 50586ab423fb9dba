//! The service that keeps directories: its contract and its errors. The implementations are in
//! the modules below; what makes a closure whole is in `closure`.

pub mod cache;
pub mod grpc;
pub mod grpc_server;
pub mod memory;
pub mod object_store;
mod status;
pub mod traced;
pub mod upstreams;

use std::fmt;

use async_trait::async_trait;
use futures::stream::BoxStream;

use crate::{BoxError, Digest, Directory, blob_service::HAS_MANY_DIGESTS, closure::InvalidClosure};

pub mod local;

/// Directories in the order that the method says. Ends after an error.
pub type DirectoryStream = BoxStream<'static, Result<Directory, DirectoryError>>;

/// Keeps directories by their digests.
///
/// A directory is there only if all that it leads to is: a service that holds one holds its
/// closure. The empty directory is always there. What [`put_closure`](Self::put_closure) has
/// answered is durable. Every wrapper implements every method.
#[async_trait]
pub trait DirectoryService: fmt::Debug + fmt::Display + Send + Sync + 'static {
    /// One directory. `None` if it is not there.
    async fn get(&self, digest: &Digest) -> Result<Option<Directory>, DirectoryError>;

    /// A directory and all that it leads to: root first, each once, every other behind one that
    /// names it. The stream ends without an error only if nothing is missing.
    /// [`DirectoryError::NotFound`], at once or from the stream, if the root is not there.
    async fn get_closure(&self, root: &Digest) -> Result<DirectoryStream, DirectoryError>;

    /// Which of at most [`crate::blob_service::HAS_MANY_DIGESTS`] directories are there, in the
    /// order asked.
    async fn has_many(&self, digests: &[Digest]) -> Result<Vec<bool>, DirectoryError>;

    /// Stores the directories of a stream, leaves first, and answers with the digest of the last,
    /// its root. A directory's children come before it, or are there already. Every directory but
    /// the last is named by another. If the stream ends with an error, or what it carries is no
    /// closure ([`DirectoryError::Closure`]), the root is not stored.
    async fn put_closure(&self, directories: DirectoryStream) -> Result<Digest, DirectoryError>;

    /// Like [`get`](Self::get), if that needs no waiting: what is in memory or on local disk is
    /// answered on the calling thread. `None`: ask [`get`](Self::get).
    fn get_local(&self, digest: &Digest) -> Option<Result<Option<Directory>, DirectoryError>>;
}

/// Why a directory service could not do as asked.
#[derive(Debug, thiserror::Error)]
pub enum DirectoryError {
    /// The directory is not there.
    #[error("directory {0} is not in the store")]
    NotFound(Digest),
    /// The directory is there but damaged: what is stored for it is not what its digest says.
    #[error("directory {digest} is damaged: {reason}")]
    Corrupt {
        /// The directory.
        digest: Digest,
        /// What was found, and where.
        reason: String,
    },
    /// What came is no closure.
    #[error(transparent)]
    Closure(#[from] InvalidClosure),
    /// The request is not one.
    #[error("invalid request: {0}")]
    Invalid(String),
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

impl DirectoryError {
    /// An error that says the same, for another waiter on the same work.
    pub(crate) fn duplicate(&self) -> Self {
        let again = crate::duplicate_source;
        match self {
            Self::NotFound(digest) => Self::NotFound(*digest),
            Self::Corrupt { digest, reason } => {
                Self::Corrupt { digest: *digest, reason: reason.clone() }
            }
            Self::Closure(error) => Self::Closure(error.clone()),
            Self::Invalid(what) => Self::Invalid(what.clone()),
            Self::Unsupported { service, what } => {
                Self::Unsupported { service: service.clone(), what }
            }
            Self::NoSpace { service, source } => {
                Self::NoSpace { service: service.clone(), source: again(source) }
            }
            Self::Unavailable { service, source } => {
                Self::Unavailable { service: service.clone(), source: again(source) }
            }
            Self::PermissionDenied { service, source } => {
                Self::PermissionDenied { service: service.clone(), source: again(source) }
            }
            Self::Other { service, source } => {
                Self::Other { service: service.clone(), source: again(source) }
            }
        }
    }
}

/// Refuses a request for more than a method takes.
pub(crate) fn check_count(asked: usize) -> Result<(), DirectoryError> {
    if asked <= HAS_MANY_DIGESTS {
        return Ok(());
    }
    let what = format!("{asked} directories in one request, which takes {HAS_MANY_DIGESTS}");
    Err(DirectoryError::Invalid(what))
}
