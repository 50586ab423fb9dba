//! The room that a mount tells of with `statfs`: what a store takes, and what is left on its disk.

use std::{io, path::PathBuf};

use cairn_castore::local::stored_bytes;
use cairn_fs::space::{Space, SpaceSource};

/// The room of the local store in a folder, whichever process has it open.
#[derive(Debug)]
pub(crate) struct LocalSpace(pub(crate) PathBuf);

impl SpaceSource for LocalSpace {
    fn space(&self) -> io::Result<Space> {
        let disk = rustix::fs::statvfs(&self.0)?;
        let bytes = |blocks: u64| blocks.saturating_mul(disk.f_frsize);
        Ok(Space {
            used: stored_bytes(&self.0)?,
            free: bytes(disk.f_bfree),
            available: bytes(disk.f_bavail),
        })
    }
}
