//! What a folder is used for: to keep what was stored, or as a cache of what is elsewhere. The two
//! have the same files, and neither is ever taken for the other.

use std::path::Path;

use super::error::LocalError;

/// A store's pack that has reached this many bytes gets no more records.
const STORE_PACK: u64 = 256 * 1024 * 1024;

/// A cache has at least about so many packs: one is the least that makes room.
const CACHE_PACKS: u64 = 64;

/// The same limit for a cache's packs, at least and at most.
const CACHE_PACK_MIN: u64 = 1024 * 1024;
const CACHE_PACK_MAX: u64 = 64 * 1024 * 1024;

const STORE_FORMAT: &str = "cairn local store";
const CACHE_FORMAT: &str = "cairn cache";

/// What a folder is used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    /// What was acknowledged is durable, and stays until it is deleted.
    Store,
    /// What is there may go at any time, and nothing waits for the disk. It takes at most so many
    /// bytes.
    Cache { budget: u64 },
}

impl Purpose {
    /// A pack that has reached this many bytes gets no more records.
    pub(super) fn pack_limit(self) -> u64 {
        match self {
            Self::Store => STORE_PACK,
            Self::Cache { budget } => (budget / CACHE_PACKS).clamp(CACHE_PACK_MIN, CACHE_PACK_MAX),
        }
    }

    /// Whether a record is acknowledged only when it is durable.
    pub(super) fn is_durable(self) -> bool {
        self == Self::Store
    }

    /// What the folder's format starts with.
    pub(super) fn format(self) -> &'static str {
        match self {
            Self::Store => STORE_FORMAT,
            Self::Cache { .. } => CACHE_FORMAT,
        }
    }

    /// What is wrong with a folder of another format.
    pub(super) fn misused(self, path: &Path, format: &str) -> LocalError {
        let path = path.to_owned();
        match self {
            Self::Store if format.starts_with(CACHE_FORMAT) => LocalError::IsCache(path),
            Self::Cache { .. } if format.starts_with(STORE_FORMAT) => LocalError::IsStore(path),
            Self::Store | Self::Cache { .. } => LocalError::NotAStore(path),
        }
    }
}
