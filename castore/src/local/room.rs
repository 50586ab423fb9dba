//! How much room the disk has. sled can hang and break on a full disk, so packs leave it a margin,
//! and the index is left alone when others have used that up.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{error::LocalError, reopen::PACKS};

/// The bytes that packs leave free for the index, on a disk that is large enough.
const MARGIN: u64 = 64 * 1024 * 1024;

/// The margin is at most one part in this many of the disk.
const MARGIN_SHARE: u64 = 8;

/// The bytes that the values in the local store in a folder take on disk, their index not counted:
/// open or not, in this process or another.
pub fn stored_bytes(folder: &Path) -> io::Result<u64> {
    let mut bytes = 0;
    for pack in fs::read_dir(folder.join(PACKS))? {
        match pack?.metadata() {
            Ok(pack) => bytes += pack.len(),
            // Its records have been moved since it was listed.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(bytes)
}

/// The disk of a store.
#[derive(Clone)]
pub(super) struct Room {
    folder: PathBuf,
}

impl Room {
    pub(super) fn new(folder: &Path) -> Self {
        Self { folder: folder.to_owned() }
    }

    /// An error if writing this many bytes would use up the margin.
    pub(super) fn for_records(&self, bytes: u64) -> Result<(), LocalError> {
        match self.free() {
            Some((free, margin)) if free < bytes.saturating_add(margin) => {
                let source = Arc::new(io::Error::from_raw_os_error(libc::ENOSPC));
                Err(LocalError::NoSpace { path: self.folder.clone(), source })
            }
            _ => Ok(()),
        }
    }

    /// Whether the index can be written to.
    pub(super) fn has_room_for_index(&self) -> bool {
        self.free().is_none_or(|(free, margin)| free >= margin / 2)
    }

    /// The bytes that are free and those that are to be left. `None` where the file system does
    /// not say.
    fn free(&self) -> Option<(u64, u64)> {
        let stat = rustix::fs::statvfs(&self.folder).ok()?;
        let total = stat.f_blocks.saturating_mul(stat.f_frsize);
        let free = stat.f_bavail.saturating_mul(stat.f_frsize);
        (total > 0).then(|| (free, MARGIN.min(total / MARGIN_SHARE)))
    }
}
