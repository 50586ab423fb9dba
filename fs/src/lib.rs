//! A castore as a file system: inodes, attributes, listings and reads over blobs and directories,
//! and their transports: the kernel's FUSE device, and virtiofs for virtual machines. Names in the
//! root come from whoever implements [`roots::Roots`]; nothing here knows of Nix, or of how a store
//! is reached.

mod ahead;
mod attributes;
mod directories;
pub mod errno;
pub mod file_system;
pub mod fuse;
mod inodes;
mod listing;
mod measures;
mod memory;
mod passthrough;
mod reads;
mod root_names;
pub mod space;
pub mod virtiofs;
mod wait;

pub use cairn_castore::roots;

pub use passthrough::PASSTHROUGH_MIN_BYTES;
