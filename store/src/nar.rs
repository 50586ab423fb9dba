//! NARs, Nix's archives: a tree as one canonical stream of bytes. What can go wrong with one is
//! told here; they are written, hashed and read in the modules below.

pub mod hash;
#[cfg(test)]
pub(crate) mod model;
pub mod reader;
pub(crate) mod told;
pub mod writer;

use std::io;

use cairn_castore::{BlobError, Digest, DirectoryError};

/// The most directories that lie within each other in a NAR.
pub const DEPTH_MAX: usize = 65_536;

/// The most entries in a NAR. A few directories that name each other many times over can stand
/// for a tree without end; this is where it ends.
pub const ENTRIES_MAX: u64 = 1 << 28;

/// The most bytes of all files in a NAR, for the same reason.
pub const CONTENTS_MAX: u64 = 1 << 44;

/// Why a NAR could not be written, read or hashed.
#[derive(Debug, thiserror::Error)]
pub enum NarError {
    /// The bytes are no NAR.
    #[error("not a NAR: {what} at byte {offset}")]
    Format {
        /// What is wrong.
        what: String,
        /// Where, from the start of the NAR.
        offset: u64,
    },
    /// The NAR's bytes could not be had.
    #[error("the NAR could not be read")]
    Source(#[source] io::Error),
    /// The tree is beyond what is handled.
    #[error("a NAR with more than {max} {what}")]
    TooLarge {
        /// What there is too much of.
        what: &'static str,
        /// The most there may be.
        max: u64,
    },
    /// A file's blob is longer or shorter than the tree says.
    #[error("blob {digest} has {found} bytes, not {claimed} as the tree says")]
    Size {
        /// The blob.
        digest: Digest,
        /// Bytes seen.
        found: u64,
        /// Bytes by the entry that names it.
        claimed: u64,
    },
    /// A blob could not be read or stored.
    #[error(transparent)]
    Blob(#[from] BlobError),
    /// A directory could not be read or stored.
    #[error(transparent)]
    Directory(#[from] DirectoryError),
}
