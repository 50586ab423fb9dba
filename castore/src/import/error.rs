//! Why a tree could not be imported. Each fault of the tree names the path where it is.

use std::{fmt, io, path::PathBuf};

use rustix::{fs::FileType, io::Errno};

use crate::{
    BlobError, Digest, DirectoryError,
    directory::InvalidDirectory,
    name::{InvalidName, InvalidSymlinkTarget},
};

/// Why a tree could not be imported.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// There is nothing at the path.
    #[error("{} does not exist", .path.display())]
    Missing {
        /// What was to be imported.
        path: PathBuf,
    },
    /// Something that no tree can hold.
    #[error("{} is a {kind}, which can't be stored", .path.display())]
    Special {
        /// Where it is.
        path: PathBuf,
        /// What it is.
        kind: SpecialFile,
    },
    /// The file system refuses to let it be read.
    #[error("{} can't be read", .path.display())]
    Unreadable {
        /// What can't be read.
        path: PathBuf,
        /// What the file system said.
        #[source]
        source: io::Error,
    },
    /// Something changed between the time it was found and the time it was read to its end.
    #[error("{} {change} while it was read", .path.display())]
    Changed {
        /// What changed.
        path: PathBuf,
        /// How it shows.
        change: Change,
    },
    /// A file has a name that can't be one in a store.
    #[error("a name in {} can't be stored", .path.display())]
    Name {
        /// The directory that has it.
        path: PathBuf,
        /// The name.
        #[source]
        source: InvalidName,
    },
    /// A symlink has a target that can't be one in a store.
    #[error("the symlink {} can't be stored", .path.display())]
    Target {
        /// The symlink.
        path: PathBuf,
        /// Its target.
        #[source]
        source: InvalidSymlinkTarget,
    },
    /// Directories in directories, too many.
    #[error("{} is more than {max} directories deep", .path.display())]
    TooDeep {
        /// The directory that is too deep.
        path: PathBuf,
        /// The most that is allowed.
        max: usize,
    },
    /// A directory is too large for its sizes to be told.
    #[error("the directory {} can't be stored", .path.display())]
    Directory {
        /// The directory.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: InvalidDirectory,
    },
    /// The blob service failed with a file's contents.
    #[error("the contents of {} could not be stored", .path.display())]
    Blob {
        /// The file, or the first of the small files that were to be stored together.
        path: PathBuf,
        /// What the service said.
        #[source]
        source: BlobError,
    },
    /// The blob service stored something else than it was given.
    #[error("the contents of {} were stored as {answered} instead of {expected}", .path.display())]
    Stored {
        /// The file.
        path: PathBuf,
        /// The digest of the file's bytes.
        expected: Digest,
        /// What the service answered.
        answered: Digest,
    },
    /// The directory service failed.
    #[error("the directories could not be stored")]
    Directories(#[source] DirectoryError),
    /// The directory service stored another root than it was given.
    #[error("the root directory was stored as {answered} instead of {expected}")]
    StoredRoot {
        /// The digest of the root directory.
        expected: Digest,
        /// What the service answered.
        answered: Digest,
    },
    /// The system gives no more threads.
    #[error("the threads of an import could not be started")]
    Threads(#[source] io::Error),
    /// A service stopped to take what it was sent, and did not say why.
    #[error("a store gave up before the import was complete")]
    GivenUp,
}

impl ImportError {
    /// Tells of a system call's failure on something that was there a moment ago.
    pub(super) fn of_entry(path: PathBuf, errno: Errno) -> Self {
        match errno {
            Errno::NOENT => Self::Changed { path, change: Change::Vanished },
            Errno::NOTDIR | Errno::LOOP => Self::Changed { path, change: Change::Replaced },
            errno => Self::Unreadable { path, source: errno.into() },
        }
    }
}

/// A file that is neither regular nor a directory nor a symlink.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SpecialFile {
    /// A named pipe.
    Fifo,
    /// A socket.
    Socket,
    /// A character device.
    CharacterDevice,
    /// A block device.
    BlockDevice,
    /// Something this program does not know.
    Unknown,
}

impl From<FileType> for SpecialFile {
    fn from(kind: FileType) -> Self {
        match kind {
            FileType::Fifo => Self::Fifo,
            FileType::Socket => Self::Socket,
            FileType::CharacterDevice => Self::CharacterDevice,
            FileType::BlockDevice => Self::BlockDevice,
            _ => Self::Unknown,
        }
    }
}

impl fmt::Display for SpecialFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Fifo => "FIFO",
            Self::Socket => "socket",
            Self::CharacterDevice => "character device",
            Self::BlockDevice => "block device",
            Self::Unknown => "file of an unknown kind",
        })
    }
}

/// How it shows that something changed while it was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// It is no longer there.
    Vanished,
    /// Something of another kind is in its place, or it is somewhere else.
    Replaced,
    /// It became shorter.
    Shrank,
    /// It became longer.
    Grew,
    /// Its times say that it was written to, or its mode or links were changed.
    Modified,
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Vanished => "vanished",
            Self::Replaced => "was replaced",
            Self::Shrank => "shrank",
            Self::Grew => "grew",
            Self::Modified => "was modified",
        })
    }
}
