//! Trees in: a file, directory or symlink of the local file system becomes blobs and directories.
//! What else is computed of a tree on the way is told to an observer, so that no byte is read
//! twice.

use crate::{Name, SymlinkTarget};

/// A step through a tree, depth first, entries in ascending order of their names' bytes.
///
/// A node is a directory (`DirectoryStart`, then for each entry `EntryStart`, the entry's node and
/// `EntryEnd`, then `DirectoryEnd`), a file (`FileStart`, its bytes in pieces of any size,
/// `FileEnd`) or a symlink.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TreeEvent<'a> {
    /// A directory begins.
    DirectoryStart,
    /// An entry of the directory begins; its node follows.
    EntryStart(&'a Name),
    /// The entry ends.
    EntryEnd,
    /// The directory ends.
    DirectoryEnd,
    /// A file begins.
    FileStart {
        /// Its length in bytes; just as many follow.
        size: u64,
        /// Whether its owner may execute it.
        executable: bool,
    },
    /// The file's next bytes.
    FileBytes(&'a [u8]),
    /// The file ends.
    FileEnd,
    /// A symlink, whole.
    Symlink(&'a SymlinkTarget),
}

/// Whoever is told of a tree while it is imported.
pub trait TreeObserver: Send {
    /// Takes the next step.
    fn observe(&mut self, event: TreeEvent<'_>);
}
