//! Why the local store could not do as asked. What the services make of it is in their own
//! modules.

use std::{error::Error, io, path::Path, path::PathBuf, sync::Arc};

use bytes::Bytes;
use data_encoding::HEXLOWER;

use super::record::{KEY_MAX, Kind};

/// An error of the local store. Cloned for each of those who wait for the same write.
#[derive(Debug, Clone, thiserror::Error)]
pub enum LocalError {
    /// Another process, or another part of this one, has the store open.
    #[error("the store in {0} is in use by another process")]
    Locked(PathBuf),
    /// A folder with something else in it.
    #[error("{0} is not a cairn store")]
    NotAStore(PathBuf),
    /// A store, where a cache was to be opened.
    #[error("{0} is a store, and what is in a cache may be thrown away")]
    IsStore(PathBuf),
    /// A cache, where a store was to be opened.
    #[error("{0} is a cache, and what is in it may be thrown away")]
    IsCache(PathBuf),
    /// A format that this program does not know.
    #[error("{path} has the format {found}, and this program knows format {supported}")]
    Version {
        /// The file that says so.
        path: PathBuf,
        /// What it says.
        found: String,
        /// What is supported.
        supported: u32,
    },
    /// There is no room left. What was to be written is not there, and the store stays usable.
    #[error("{path} has no room left")]
    NoSpace {
        /// The file or folder.
        path: PathBuf,
        /// What said so.
        #[source]
        source: Arc<io::Error>,
    },
    /// A record can't be read back as it was written.
    #[error("{kind} {} is damaged: {reason}, in pack {pack:08} at byte {offset}", HEXLOWER.encode(.key))]
    Damaged {
        /// What it is.
        kind: Kind,
        /// Its key.
        key: Bytes,
        /// The number of the pack that it lies in.
        pack: u32,
        /// Where its record starts, in bytes.
        offset: u64,
        /// What was found.
        reason: String,
    },
    /// More than a record holds.
    #[error("a {kind} of {size} bytes is too large for the store, which takes {max}")]
    TooLarge {
        /// What it is.
        kind: Kind,
        /// Bytes.
        size: usize,
        /// The most bytes that are taken.
        max: usize,
    },
    /// A key that no record can have.
    #[error("a key of {0} bytes, where 1 to {KEY_MAX} are possible")]
    Key(usize),
    /// The system refused.
    #[error("can't {action} {path}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// What it said.
        #[source]
        source: Arc<io::Error>,
    },
    /// The index failed. No stored data is touched by that: the index is rebuilt when the store is
    /// opened the next time.
    #[error("the index in {path} failed")]
    Index {
        /// The index.
        path: PathBuf,
        /// What it said.
        #[source]
        source: Arc<dyn Error + Send + Sync>,
    },
    /// The store is being closed, or the thread that writes has gone.
    #[error("the store in {0} is closed")]
    Closed(PathBuf),
}

impl LocalError {
    /// An error of the system, which may be that there is no room.
    pub(super) fn io(action: &'static str, path: &Path, source: io::Error) -> Self {
        let full = matches!(
            source.kind(),
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge
        );
        let (path, source) = (path.to_owned(), Arc::new(source));
        if full { Self::NoSpace { path, source } } else { Self::Io { action, path, source } }
    }
}
