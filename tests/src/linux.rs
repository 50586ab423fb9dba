//! The large real tree of the heavy tests and of the benchmark: Debian's Linux 6.1 source. The
//! script `tests/linux-tree` installs and unpacks it where it is missing.

use std::{path::PathBuf, process::Command};

use crate::process::{LONG_PATIENCE, Running};

/// The unpacked tree, in the user's cache.
pub fn tree() -> PathBuf {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/linux-tree");
    let found = Running::start(&mut Command::new(script)).finish_within(LONG_PATIENCE).succeeded();
    PathBuf::from(found.text().trim_end())
}
