//! A folder of files that each hold one blob and are named by its digest. It has no state of its
//! own but the files: when one was used last is its modification time, and several processes may
//! share a folder.

use std::{
    cmp::Reverse,
    fmt,
    fs::{self, DirBuilder, File},
    io::{self, Read as _, Write as _},
    os::{
        fd::AsRawFd as _,
        unix::fs::{DirBuilderExt as _, MetadataExt as _},
    },
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use rustix::{
    fs::{AtFlags, CWD, FallocateFlags, Mode, OFlags},
    io::Errno,
};

use crate::{BlobError, Digest};

/// A file that was used more recently than this is not marked again.
const USE_NOTED_EVERY: Duration = Duration::from_secs(60);

/// What is read of a file at a time to verify it, in bytes.
const VERIFY_BYTES: usize = 1024 * 1024;

/// Why there is no whole file.
#[derive(Debug, thiserror::Error)]
pub enum WholeFilesError {
    /// The folder can't be made or used.
    #[error("the folder {} can't be used for whole files", path.display())]
    Folder {
        /// The folder.
        path: PathBuf,
        /// What happened.
        #[source]
        source: io::Error,
    },
    /// The file system of the folder can't have files without a name.
    #[error(
        "the folder {} can't be used for whole files: its file system has no O_TMPFILE, which \
         ext4, xfs, btrfs and tmpfs have",
        .0.display()
    )]
    FileSystem(PathBuf),
    /// A file can't be written or read.
    #[error("the file of blob {digest} in {} failed", path.display())]
    File {
        /// The blob.
        digest: Digest,
        /// The folder.
        path: PathBuf,
        /// What happened.
        #[source]
        source: io::Error,
    },
    /// The blob can't be had.
    #[error("blob {digest} can't be read")]
    Blob {
        /// The blob.
        digest: Digest,
        /// What the service said.
        #[source]
        source: BlobError,
    },
    /// What came for a blob is something else.
    #[error("what was read as blob {digest} is not what its digest says")]
    Corrupt {
        /// The blob.
        digest: Digest,
    },
    /// The process is ending.
    #[error("the process is ending")]
    Interrupted,
}

/// The folder.
#[derive(Debug)]
pub(super) struct Folder {
    path: PathBuf,
    budget: u64,
}

impl fmt::Display for Folder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.path.display().fmt(f)
    }
}

/// Tells a file from another that came to have its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Identity {
    inode: u64,
    size: u64,
}

/// A file that is being written. It has no name, so that it is gone with the process.
#[derive(Debug)]
pub(super) struct Unfinished {
    digest: Digest,
    file: File,
    hasher: blake3::Hasher,
    path: PathBuf,
}

/// A file of the folder that may make room.
struct Kept {
    used: SystemTime,
    bytes: u64,
    digest: Digest,
}

impl Folder {
    pub(super) fn open(path: &Path, budget: u64) -> Result<Self, WholeFilesError> {
        let unusable = |source| WholeFilesError::Folder { path: path.to_owned(), source };
        // Its files are served without looking at them again: nobody else may write to them.
        DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(unusable)?;
        let folder = Self { path: path.canonicalize().map_err(unusable)?, budget };
        folder.sample()?;
        Ok(folder)
    }

    pub(super) fn budget(&self) -> u64 {
        self.budget
    }

    pub(super) fn sample(&self) -> Result<File, WholeFilesError> {
        let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
        match rustix::fs::open(&self.path, flags, Mode::RUSR) {
            Ok(file) => Ok(file.into()),
            Err(Errno::OPNOTSUPP | Errno::ISDIR) => {
                Err(WholeFilesError::FileSystem(self.path.clone()))
            }
            Err(error) => {
                Err(WholeFilesError::Folder { path: self.path.clone(), source: error.into() })
            }
        }
    }

    fn file_path(&self, digest: &Digest) -> PathBuf {
        self.path.join(data_encoding::HEXLOWER.encode(digest.as_bytes()))
    }

    fn failed(&self, digest: &Digest) -> impl Fn(io::Error) -> WholeFilesError {
        let (digest, path) = (*digest, self.path.clone());
        move |source| WholeFilesError::File { digest, path: path.clone(), source }
    }

    /// The file of a blob, as far as its name says.
    pub(super) fn find(&self, digest: &Digest) -> Option<(File, Identity)> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = rustix::fs::open(self.file_path(digest), flags, Mode::empty()).ok()?;
        let file = File::from(file);
        let identity = identity(&file).ok()??;
        Some((file, identity))
    }

    /// Takes note that a file was used now.
    pub(super) fn note_use(&self, file: &File) {
        let now = SystemTime::now();
        let noted = file.metadata().and_then(|metadata| metadata.modified());
        let is_recent = |noted| now.duration_since(noted).is_ok_and(|age| age < USE_NOTED_EVERY);
        if noted.is_ok_and(is_recent) {
            return;
        }
        // At worst it makes room too early.
        let _ = file.set_modified(now);
    }

    /// Whether a file holds the blob and nothing else.
    pub(super) fn holds(&self, file: &File, digest: &Digest) -> Result<bool, WholeFilesError> {
        let mut hasher = blake3::Hasher::new();
        let mut buffer = vec![0; VERIFY_BYTES];
        let mut file = file;
        loop {
            let length = match file.read(&mut buffer) {
                Ok(0) => break,
                Ok(length) => length,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(self.failed(digest)(error)),
            };
            hasher.update(&buffer[..length]);
        }
        Ok(hasher.finalize().as_bytes() == digest.as_bytes())
    }

    pub(super) fn remove(&self, digest: &Digest) -> Result<(), WholeFilesError> {
        match fs::remove_file(self.file_path(digest)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(self.failed(digest)(error))
            }
            _ => Ok(()),
        }
    }

    /// A file for a blob of this size, for which room is made.
    pub(super) fn begin(&self, digest: Digest, size: u64) -> Result<Unfinished, WholeFilesError> {
        let mut kept = self.kept()?;
        // The most recently used first: the others are taken from the end.
        kept.sort_by_key(|kept| Reverse(kept.used));
        let mut bytes = kept.iter().map(|kept| kept.bytes).sum::<u64>();
        let mut give_up_one = || -> Result<Option<u64>, WholeFilesError> {
            let Some(oldest) = kept.pop() else { return Ok(None) };
            self.remove(&oldest.digest)?;
            Ok(Some(oldest.bytes))
        };
        while bytes.saturating_add(size) > self.budget {
            match give_up_one()? {
                Some(freed) => bytes -= freed,
                None => break,
            }
        }
        let file = self.sample()?;
        loop {
            match rustix::fs::fallocate(&file, FallocateFlags::KEEP_SIZE, 0, size.max(1)) {
                Ok(()) | Err(Errno::OPNOTSUPP) => break,
                Err(Errno::INTR) => {}
                Err(error) if error == Errno::NOSPC && give_up_one()?.is_some() => {}
                Err(error) => return Err(self.failed(&digest)(error.into())),
            }
        }
        Ok(Unfinished { digest, file, hasher: blake3::Hasher::new(), path: self.path.clone() })
    }

    /// The files that are there.
    fn kept(&self) -> Result<Vec<Kept>, WholeFilesError> {
        let unusable = |source| WholeFilesError::Folder { path: self.path.clone(), source };
        let mut kept = Vec::new();
        for entry in fs::read_dir(&self.path).map_err(unusable)? {
            let entry = entry.map_err(unusable)?;
            let digest = data_encoding::HEXLOWER.decode(entry.file_name().as_encoded_bytes());
            let Some(digest) = digest.ok().and_then(|it| Digest::try_from(&*it).ok()) else {
                // Not one of ours.
                continue;
            };
            // Otherwise it is gone by now.
            if let Ok(metadata) = entry.metadata() {
                let used = metadata.modified().map_err(unusable)?;
                kept.push(Kept { used, bytes: metadata.len(), digest });
            }
        }
        Ok(kept)
    }

    /// Gives a file that is written and right its name. It is durable then.
    pub(super) fn finish(&self, unfinished: Unfinished) -> Result<Identity, WholeFilesError> {
        let Unfinished { digest, file, hasher, .. } = unfinished;
        if hasher.finalize().as_bytes() != digest.as_bytes() {
            return Err(WholeFilesError::Corrupt { digest });
        }
        let failed = self.failed(&digest);
        file.sync_data().map_err(&failed)?;
        let unnamed = format!("/proc/self/fd/{}", file.as_raw_fd());
        let path = self.file_path(&digest);
        match rustix::fs::linkat(CWD, unnamed, CWD, path, AtFlags::SYMLINK_FOLLOW) {
            // Another process was quicker; ours is gone when it is closed, and theirs is verified
            // before it is lent.
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => return Err(failed(error.into())),
        }
        let identity = identity(&file).map_err(&failed)?;
        identity.ok_or_else(|| failed(Errno::IO.into()))
    }
}

impl Unfinished {
    /// The file with more in it.
    pub(super) fn write(mut self, bytes: &Bytes) -> Result<Self, WholeFilesError> {
        self.hasher.update(bytes);
        match self.file.write_all(bytes) {
            Ok(()) => Ok(self),
            Err(source) => {
                Err(WholeFilesError::File { digest: self.digest, path: self.path, source })
            }
        }
    }
}

/// What tells a file from others; `None` if it is no regular file of this user.
fn identity(file: &File) -> io::Result<Option<Identity>> {
    let metadata = file.metadata()?;
    let ours = metadata.is_file() && metadata.uid() == rustix::process::geteuid().as_raw();
    Ok(ours.then(|| Identity { inode: metadata.ino(), size: metadata.len() }))
}
