//! The wire: messages, clients, servers and descriptors generated from the .proto files.
//! No logic lives here, and nothing here is checked: what comes off the wire is parsed into the
//! types of `castore` and `store` at their gRPC adapters.

/// The packages of Snix. Tvix's have the same messages under other names.
pub mod snix {
    /// Blobs and directories.
    pub mod castore {
        /// Package `snix.castore.v1`.
        #[allow(missing_docs, unreachable_pub, clippy::all)]
        pub mod v1 {
            tonic::include_proto!("snix.castore.v1");
        }
    }
    /// Store paths.
    pub mod store {
        /// Package `snix.store.v1`.
        #[allow(missing_docs, unreachable_pub, clippy::all)]
        pub mod v1 {
            tonic::include_proto!("snix.store.v1");
        }
    }
}

/// What cairn's peers say to each other beyond the shared wire.
pub mod cairn {
    /// Package `cairn.v1`.
    #[allow(missing_docs, unreachable_pub, clippy::all)]
    pub mod v1 {
        tonic::include_proto!("cairn.v1");
    }
}

/// An encoded `FileDescriptorSet` of every package, for gRPC reflection.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
