//! Files are written here, by several threads at a time. Where their contents come from is not
//! known here.

use std::{
    os::fd::OwnedFd,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
};

use bytes::Bytes;
use rustix::{
    fs::{Mode, OFlags, openat},
    io::{Errno, retry_on_intr},
};
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio_util::sync::CancellationToken;

use super::ExportError;
use crate::{Digest, place::Location};

/// The fewest threads that write files.
pub const WRITERS_MIN: usize = 1;

/// The most threads that write files.
pub const WRITERS_MAX: usize = 16;

/// A file that is not there yet.
#[derive(Debug)]
pub(super) struct FileToWrite {
    pub(super) directory: Arc<OwnedFd>,
    /// What it is called in the directory: a valid name.
    pub(super) name: Bytes,
    /// Where it will be when the export is complete.
    pub(super) location: Location,
    pub(super) digest: Digest,
    pub(super) size: u64,
    pub(super) executable: bool,
}

impl FileToWrite {
    pub(super) fn path(&self) -> PathBuf {
        self.location.path()
    }

    pub(super) fn check_size(&self, found: u64) -> Result<(), ExportError> {
        let expected = self.size;
        if found == expected {
            return Ok(());
        }
        Err(ExportError::Size { path: self.path(), expected, found })
    }

    fn failed(&self, errno: Errno) -> ExportError {
        ExportError::of_write(self.path(), errno)
    }

    fn create(&self) -> Result<OwnedFd, ExportError> {
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mode = Mode::from_raw_mode(if self.executable { 0o755 } else { 0o644 });
        let create = || openat(&*self.directory, &self.name[..], flags, mode);
        retry_on_intr(create).map_err(|errno| self.failed(errno))
    }

    fn write(&self, fd: &OwnedFd, mut bytes: &[u8]) -> Result<(), ExportError> {
        while !bytes.is_empty() {
            match rustix::io::write(fd, bytes) {
                Ok(0) => return Err(self.failed(Errno::IO)),
                Ok(written) => bytes = bytes.get(written..).unwrap_or_default(),
                Err(Errno::INTR) => {}
                Err(errno) => return Err(self.failed(errno)),
            }
        }
        Ok(())
    }
}

/// What is to be written. The permit is given back when it is.
#[derive(Debug)]
pub(super) enum Write {
    Small {
        files: Vec<(FileToWrite, Bytes)>,
        permit: OwnedSemaphorePermit,
    },
    /// Its pieces come as they are fetched; just as many bytes as it has, or the export has failed.
    Large {
        file: FileToWrite,
        pieces: mpsc::Receiver<Bytes>,
        permit: OwnedSemaphorePermit,
    },
}

/// Writes what comes, until nothing does. Answers how many files it has written.
pub(super) fn write_files(
    queue: &Mutex<mpsc::Receiver<Write>>,
    stop: &CancellationToken,
) -> Result<u64, ExportError> {
    let mut written = 0;
    loop {
        let next = queue.lock().unwrap_or_else(PoisonError::into_inner).blocking_recv();
        let Some(next) = next else { return Ok(written) };
        match next {
            Write::Small { files, permit } => {
                for (file, bytes) in files {
                    if stop.is_cancelled() {
                        return Ok(written);
                    }
                    let fd = file.create()?;
                    file.write(&fd, &bytes)?;
                    written += 1;
                }
                drop(permit);
            }
            Write::Large { file, mut pieces, permit } => {
                let fd = file.create()?;
                let mut left = file.size;
                while let Some(piece) = pieces.blocking_recv() {
                    file.write(&fd, &piece)?;
                    left = left.saturating_sub(piece.len() as u64);
                    if stop.is_cancelled() {
                        return Ok(written);
                    }
                }
                if left > 0 {
                    return Ok(written);
                }
                written += 1;
                drop(permit);
            }
        }
    }
}
