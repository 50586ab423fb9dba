//! Content: blobs and directories by their BLAKE3 digests, the two services that keep them, the
//! backends of those services, and how trees get in and out. Nothing here knows of Nix.

pub mod address;
pub mod blob_service;
pub mod byte_size;
pub mod cache;
pub mod chunking;
pub mod closure;
#[cfg(any(test, feature = "conformance"))]
pub mod conformance;
pub mod copy;
pub mod diff;
pub mod digest;
pub mod directory;
pub mod directory_service;
pub mod errors;
pub mod export;
mod frames;
pub mod grpc;
pub mod grpc_server;
pub mod import;
pub mod local;
pub mod name;
pub mod node;
pub mod object_base;
pub mod outboard;
mod place;
pub mod profile;
pub mod roots;
#[cfg(test)]
mod test_trees;
pub mod tree_directories;
pub mod tree_walk;
pub mod upstreams;
pub mod usage;
mod verification;

pub use address::Address;
pub use blob_service::{Blob, BlobError, BlobService, BlobStat, ByteRange, ChunkMeta};
pub use byte_size::ByteSize;
pub use digest::Digest;
pub use directory::Directory;
pub use directory_service::{DirectoryError, DirectoryService};
pub use frames::{Packed, Packing};
pub use name::{Name, SymlinkTarget};
pub use node::Node;

/// An error kept as the source of another.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// What an error and its sources say, as one error, for another waiter on the same work.
pub(crate) fn duplicate_source(source: &BoxError) -> BoxError {
    let (mut said, mut cause) = (source.to_string(), source.source());
    while let Some(error) = cause {
        said = format!("{said}: {error}");
        cause = error.source();
    }
    said.into()
}
