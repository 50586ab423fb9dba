//! Why the mount could not answer, and what a program that uses it is told: the one place where
//! failures become error numbers and log lines. What the protocol itself answers (a name that is
//! not there, a write refused) is no failure and is not here.

use std::{
    error::Error,
    io,
    time::{Duration, Instant},
};

use cairn_castore::{BlobError, Digest, DirectoryError, roots::RootsError};
use cairn_telemetry::inventory::{FUSE_ERRORS, FuseErrno};
use quick_cache::sync::Cache;
use rustix::io::Errno;

/// How many different failures are remembered as logged.
const LOGGED_MAX: usize = 1024;

/// How long a failure that repeats stays silent in the log.
const LOG_AGAIN_AFTER: Duration = Duration::from_secs(60);

/// Why the mount could not answer.
#[derive(Debug, thiserror::Error)]
pub enum FsError {
    /// The blob service failed.
    #[error(transparent)]
    Blob(#[from] BlobError),
    /// The directory service failed.
    #[error(transparent)]
    Directory(#[from] DirectoryError),
    /// The source of the root's names failed.
    #[error(transparent)]
    Roots(#[from] RootsError),
    /// A directory names another that the store does not have.
    #[error("directory {0} is not in the store")]
    MissingDirectory(Digest),
    /// A blob ends before the size that its directory gives it.
    #[error("blob {digest} ends at byte {end} of the {size} that its directory entry says")]
    ShortBlob {
        /// The blob.
        digest: Digest,
        /// Where it ends.
        end: u64,
        /// What the entry says.
        size: u64,
    },
    /// A directory's entry claims a size that no file can have.
    #[error("blob {digest} can't have {size} bytes")]
    ImpossibleSize {
        /// The blob.
        digest: Digest,
        /// What the entry says.
        size: u64,
    },
    /// The store did not answer in time.
    #[error("no answer from the store within {0:?}")]
    Deadline(Duration),
    /// As many requests wait for the store as may.
    #[error("too many requests wait for the store")]
    Busy,
    /// As many inodes are held as may be.
    #[error("too many inodes are held")]
    TooManyInodes,
    /// The program that made the request is ending.
    #[error("the program that asked is ending")]
    Interrupted,
    /// The mount ended while the request waited.
    #[error("the mount is ending")]
    Stopped,
}

/// The error number of a failure.
pub fn errno(error: &FsError) -> Errno {
    match error {
        FsError::Blob(BlobError::PermissionDenied { .. })
        | FsError::Directory(DirectoryError::PermissionDenied { .. }) => Errno::ACCESS,
        FsError::Interrupted => Errno::INTR,
        FsError::TooManyInodes => Errno::NOMEM,
        // What is missing, damaged or out of reach behind a name that exists is an input/output
        // error to whoever reads it, never "no such file".
        FsError::Blob(_)
        | FsError::Directory(_)
        | FsError::Roots(_)
        | FsError::MissingDirectory(_)
        | FsError::ShortBlob { .. }
        | FsError::ImpossibleSize { .. }
        | FsError::Deadline(_)
        | FsError::Busy
        | FsError::Stopped => Errno::IO,
    }
}

fn count(errno: Errno) {
    let counted = match errno {
        Errno::IO => FuseErrno::Io,
        Errno::ACCESS => FuseErrno::Access,
        Errno::INTR => FuseErrno::Interrupted,
        Errno::NOMEM => FuseErrno::Memory,
        _ => FuseErrno::Other,
    };
    FUSE_ERRORS.add_at(counted as usize, 1);
}

/// Turns failures into answers, and logs each once in a while.
#[derive(Debug)]
pub(crate) struct Failures {
    logged: Cache<String, Instant>,
}

impl Failures {
    pub(crate) fn new() -> Self {
        Self { logged: Cache::new(LOGGED_MAX) }
    }

    /// The answer to a request that failed.
    pub(crate) fn answer(&self, error: FsError) -> io::Error {
        let errno = errno(&error);
        count(errno);
        if !matches!(error, FsError::Stopped | FsError::Interrupted) {
            self.log(&error);
        }
        errno.into()
    }

    fn log(&self, error: &FsError) {
        let mut text = error.to_string();
        let mut source = error.source();
        while let Some(cause) = source {
            text = format!("{text}: {cause}");
            source = cause.source();
        }
        let now = Instant::now();
        let recent = |at: Instant| now.duration_since(at) < LOG_AGAIN_AFTER;
        if self.logged.get(&text).is_some_and(recent) {
            return;
        }
        tracing::error!(error = text, "a request of the mount failed");
        self.logged.insert(text, now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_behind_a_name_is_an_io_error() {
        let digest = Digest::of(b"gone");
        let failures = Failures::new();
        for error in [
            FsError::Blob(BlobError::NotFound(digest)),
            FsError::Blob(BlobError::Corrupt { digest, reason: "flipped bit".to_owned() }),
            FsError::Directory(DirectoryError::NotFound(digest)),
            FsError::MissingDirectory(digest),
            FsError::Deadline(Duration::from_secs(1)),
            FsError::Busy,
            FsError::Stopped,
        ] {
            assert_eq!(failures.answer(error).raw_os_error(), Some(Errno::IO.raw_os_error()));
        }
    }

    #[test]
    fn a_refused_caller_is_told_so() {
        let denied = BlobError::PermissionDenied {
            service: "memory:".to_owned(),
            source: "no token".into(),
        };
        assert_eq!(errno(&denied.into()), Errno::ACCESS);
    }

    #[test]
    fn a_failure_that_repeats_is_remembered_as_logged() {
        let failures = Failures::new();
        for _ in 0..3 {
            failures.answer(FsError::MissingDirectory(Digest::of(b"gone")));
        }
        assert_eq!(failures.logged.len(), 1);
    }
}
