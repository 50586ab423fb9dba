//! Content: blobs and directories by their BLAKE3 digests, the two services that keep them, the
//! backends of those services, and how trees get in and out. Nothing here knows of Nix.

pub mod address;
pub mod blob_service;
pub mod chunking;
pub mod closure;
#[cfg(any(test, feature = "conformance"))]
pub mod conformance;
pub mod copy;
pub mod digest;
pub mod directory;
pub mod directory_service;
pub mod export;
pub mod grpc;
pub mod grpc_server;
pub mod import;
pub mod local;
pub mod name;
pub mod node;
pub mod object_base;
pub mod outboard;
mod place;
pub mod roots;

pub use address::Address;
pub use blob_service::{Blob, BlobError, BlobService, BlobStat, ByteRange, ChunkMeta};
pub use digest::Digest;
pub use directory::Directory;
pub use directory_service::{DirectoryError, DirectoryService};
pub use name::{Name, SymlinkTarget};
pub use node::Node;

/// An error kept as the source of another.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;
