//! What the end-to-end tests and the benchmark are made of: trees to import, a comparison of
//! trees, the binary as a running process, a disk that is soon full, a peer that lies, a line that
//! fails. The tests themselves are in `tests/end_to_end`, the benchmark in `benches`.
#![allow(clippy::unwrap_used, reason = "a test that can't go on panics")]

pub mod cairn;
pub mod compare;
pub mod docker;
pub mod generated;
pub mod history;
pub mod kill;
pub mod linux;
pub mod load;
pub mod manifests;
pub mod measure;
pub mod model;
pub mod nix;
pub mod object_stores;
pub mod peer;
pub mod picture;
pub mod pods;
pub mod process;
pub mod proxy;
pub mod random;
pub mod telling;
pub mod terminal;
pub mod tiny_disk;
pub mod trees;
pub mod usage;
pub mod virtual_machine;
pub mod waterfall;
