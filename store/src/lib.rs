//! Nix store paths over content: what is known of each path, how its NAR is made and hashed, and
//! the service that keeps it. How content is stored is the affair of `castore`.

#[cfg(any(test, feature = "conformance"))]
pub mod conformance;
pub mod copy;
pub mod import;
pub mod nar;
pub mod nixbase32;
pub mod path_info;
pub mod path_info_service;
pub mod roots;
pub mod services;
pub mod store_path;
pub mod store_ref;

pub use path_info::{ContentAddress, NarInfo, PathInfo, Signature};
pub use path_info_service::{NarWitness, PathInfoError, PathInfoService};
pub use roots::StoreRoots;
pub use services::Services;
pub use store_path::{OutputHash, StorePath};
pub use store_ref::StoreRef;
