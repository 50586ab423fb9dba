//! What every backend must pass: one suite per trait, and the random content that they and other
//! tests use. Ordinary code behind a feature, so that a backend elsewhere can be held to it.

// A suite fails by a panic that shows the error.
#[allow(clippy::unwrap_used)]
mod blobs;
#[allow(clippy::unwrap_used)]
mod directories;

use bytes::Bytes;
use proptest::prelude::*;

use crate::{Digest, Directory, Name, Node, SymlinkTarget};

pub use blobs::blob_service;
pub use directories::directory_service;

/// Bytes that nothing compresses and no other purpose or size has, the same each time.
pub fn content(purpose: &str, size: usize) -> Bytes {
    let mut bytes = vec![0; size];
    let mut hasher = blake3::Hasher::new();
    hasher.update(&(size as u64).to_le_bytes()).update(purpose.as_bytes());
    hasher.finalize_xof().fill(&mut bytes);
    bytes.into()
}

/// Names of any bytes and length.
pub fn names() -> impl Strategy<Value = Name> {
    let byte = any::<u8>().prop_filter("no part of a name", |byte| !matches!(byte, 0 | b'/'));
    let bytes = prop_oneof![
        4 => proptest::collection::vec(byte.clone(), 1..12),
        1 => proptest::collection::vec(byte, 255..=255),
    ];
    bytes.prop_filter_map("neither . nor ..", |bytes| Name::try_from(Bytes::from(bytes)).ok())
}

/// Directories of any entries, whose children exist nowhere.
pub fn directories() -> impl Strategy<Value = Directory> {
    let digest = any::<[u8; 32]>().prop_map(Digest::from);
    let size = any::<u32>().prop_map(u64::from);
    let node = prop_oneof![
        (digest.clone(), size.clone()).prop_map(|(digest, size)| Node::Directory { digest, size }),
        (digest, size, any::<bool>()).prop_map(|(digest, size, executable)| Node::File {
            digest,
            size,
            executable
        }),
        names().prop_map(|name| Node::Symlink {
            target: SymlinkTarget::try_from(name.as_bytes().clone())
                .expect("a name is a valid target")
        }),
    ];
    proptest::collection::btree_map(names(), node, 0..40).prop_map(|entries| {
        Directory::new(entries.into_iter().collect()).expect("the map's keys are unique")
    })
}
