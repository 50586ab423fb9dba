//! What the walk found is opened, read and hashed here, by several threads at a time. Each file is
//! read once, and what could not be read consistently is an error.

use std::{
    cmp::Ordering,
    os::fd::OwnedFd,
    sync::{Arc, mpsc::SyncSender},
};

use bytes::Bytes;
use rustix::{
    buffer::spare_capacity,
    fs::{FileType, Mode, OFlags, fstat, openat, readlinkat},
    io::{Errno, retry_on_intr},
};

use super::{
    error::{Change, ImportError, SpecialFile},
    pipeline::StopFlag,
    pool::Pool,
    progress::ImportProgress,
    walk::{Halt, Item, Source},
};
use crate::{Blob, Digest, Name, SymlinkTarget, blob_service::SMALL_BLOB_MAX, place::Place};

/// A reader hands on what it has read when it is this many bytes: also the most that it reads from
/// a large file at once.
pub(super) const PIECE_BYTES: usize = 1024 * 1024;

/// What has been read, in the order of the tree.
#[derive(Debug)]
pub(super) enum Read {
    DirectoryStart {
        name: Option<Name>,
        place: Arc<Place>,
    },
    DirectoryEnd,
    Symlink {
        name: Option<Name>,
        target: SymlinkTarget,
    },
    Small {
        name: Option<Name>,
        blob: Blob,
        executable: bool,
    },
    /// A file of more than [`SMALL_BLOB_MAX`] bytes begins: just `size` bytes follow, and its end.
    LargeStart {
        name: Option<Name>,
        size: u64,
        executable: bool,
    },
    LargeBytes(Bytes),
    LargeEnd(Digest),
    /// Nothing follows.
    Failed(ImportError),
}

/// Some of what a job brings.
#[derive(Debug)]
pub(super) struct Piece {
    pub(super) reads: Vec<Read>,
    /// Whether this is all: a job whose pieces end without it was given up.
    pub(super) last: bool,
}

/// Reads one job, and sends what it brings in pieces of some [`PIECE_BYTES`].
pub(super) struct Reader<'a> {
    pieces: SyncSender<Piece>,
    reads: Vec<Read>,
    /// The files' bytes in `reads`.
    bytes: usize,
    pool: &'a Pool,
    progress: &'a ImportProgress,
    stop: &'a StopFlag,
}

impl<'a> Reader<'a> {
    pub(super) fn new(
        pieces: SyncSender<Piece>,
        pool: &'a Pool,
        progress: &'a ImportProgress,
        stop: &'a StopFlag,
    ) -> Self {
        Self { pieces, reads: Vec::new(), bytes: 0, pool, progress, stop }
    }

    /// Reads all items, or until one fails, which is then the last that is sent.
    pub(super) fn run(mut self, items: Vec<Item>) {
        self.reads.reserve(items.len());
        for item in items {
            match self.read(item) {
                Ok(()) => {}
                Err(Halt::Failed(error)) => {
                    self.reads.push(Read::Failed(error));
                    break;
                }
                Err(Halt::Stopped) => return,
            }
        }
        // An import that was stopped takes no more pieces.
        let _ = self.pieces.send(Piece { reads: self.reads, last: true });
    }

    fn read(&mut self, item: Item) -> Result<(), Halt> {
        if self.stop.is_set() {
            return Err(Halt::Stopped);
        }
        match item {
            Item::DirectoryStart { name, place, .. } => {
                self.reads.push(Read::DirectoryStart { name, place });
            }
            Item::DirectoryEnd => self.reads.push(Read::DirectoryEnd),
            Item::Symlink(source) => {
                let target = read_target(&source)?;
                self.reads.push(Read::Symlink { name: source.into_name(), target });
            }
            Item::File(source) => self.read_file(source)?,
            Item::Failed(error) => return Err(error.into()),
        }
        Ok(())
    }

    fn read_file(&mut self, source: Source) -> Result<(), Halt> {
        let file = OpenFile::open(&source)?;
        if file.before.size <= SMALL_BLOB_MAX as u64 {
            let blob = Blob::new(file.read_whole(&source)?);
            let (size, executable) = (blob.bytes().len(), file.executable);
            self.progress.bytes_read.add(size as u64);
            self.reads.push(Read::Small { name: source.into_name(), blob, executable });
            return self.read_more(size);
        }
        let (size, executable) = (file.before.size, file.executable);
        let name = source.name().cloned();
        self.reads.push(Read::LargeStart { name, size, executable });
        let mut hasher = blake3::Hasher::new();
        let mut left = size;
        while left > 0 {
            let length = left.min(PIECE_BYTES as u64) as usize;
            let piece = match length {
                PIECE_BYTES => self.pool.fill(|buffer| file.fill(&source, buffer))?,
                _ => {
                    let mut piece = vec![0; length];
                    let filled = file.fill(&source, &mut piece)?;
                    piece.truncate(filled);
                    piece.into()
                }
            };
            if piece.is_empty() {
                return Err(source.changed(Change::Shrank).into());
            }
            hasher.update(&piece);
            left -= piece.len() as u64;
            self.progress.bytes_read.add(piece.len() as u64);
            let read = piece.len();
            self.reads.push(Read::LargeBytes(piece));
            self.read_more(read)?;
        }
        file.check(&source)?;
        self.reads.push(Read::LargeEnd(hasher.finalize().into()));
        Ok(())
    }

    /// Counts bytes in `reads`, and sends it when it has enough.
    fn read_more(&mut self, bytes: usize) -> Result<(), Halt> {
        self.bytes += bytes;
        if self.bytes < PIECE_BYTES {
            return Ok(());
        }
        if self.stop.is_set() {
            return Err(Halt::Stopped);
        }
        self.bytes = 0;
        let reads = std::mem::take(&mut self.reads);
        self.pieces.send(Piece { reads, last: false }).map_err(|_| Halt::Stopped)
    }
}

fn read_target(source: &Source) -> Result<SymlinkTarget, ImportError> {
    let target = match readlinkat(source.directory(), source.file_name(), Vec::new()) {
        Ok(target) => Bytes::from(target.into_bytes()),
        // What is no symlink has no target.
        Err(Errno::INVAL) => return Err(source.changed(Change::Replaced)),
        Err(errno) => return Err(source.failed(errno)),
    };
    SymlinkTarget::try_from(target)
        .map_err(|error| ImportError::Target { path: source.path(), source: error })
}

/// A regular file that is being read.
struct OpenFile {
    fd: OwnedFd,
    before: Fingerprint,
    executable: bool,
}

/// What stays the same as long as nobody writes to a file, as far as the clock of the file system
/// can tell.
#[derive(PartialEq, Eq)]
struct Fingerprint {
    size: u64,
    modified: (i64, u64),
    changed: (i64, u64),
}

impl OpenFile {
    fn open(source: &Source) -> Result<Self, ImportError> {
        // It may have become a FIFO by now, and opening one must not wait.
        let flags =
            OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        let open = || openat(source.directory(), source.file_name(), flags, Mode::empty());
        let fd = retry_on_intr(open).map_err(|errno| source.failed(errno))?;
        let stat = fstat(&fd).map_err(|errno| source.failed(errno))?;
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => {}
            FileType::Directory => return Err(source.changed(Change::Replaced)),
            kind => {
                let kind = SpecialFile::from(kind);
                return Err(ImportError::Special { path: source.path(), kind });
            }
        }
        let executable = Mode::from_raw_mode(stat.st_mode).contains(Mode::XUSR);
        Ok(Self { before: Fingerprint::of(&stat), fd, executable })
    }

    /// Fills a buffer as far as the file goes, and gives the number of bytes.
    fn fill(&self, source: &Source, buffer: &mut [u8]) -> Result<usize, ImportError> {
        let mut filled = 0;
        while filled < buffer.len() {
            match rustix::io::read(&self.fd, &mut buffer[filled..]) {
                Ok(0) => break,
                Ok(count) => filled += count,
                Err(Errno::INTR) => {}
                Err(errno) => return Err(source.failed(errno)),
            }
        }
        Ok(filled)
    }

    /// Reads a small file.
    fn read_whole(&self, source: &Source) -> Result<Bytes, ImportError> {
        // Room for a byte more than there should be shows at once whether there is more, even of
        // files whose size the system does not tell.
        let mut bytes = Vec::with_capacity(self.before.size as usize + 1);
        while bytes.len() < bytes.capacity() {
            match rustix::io::read(&self.fd, spare_capacity(&mut bytes)) {
                Ok(0) => break,
                Ok(_) | Err(Errno::INTR) => {}
                Err(errno) => return Err(source.failed(errno)),
            }
        }
        match (bytes.len() as u64).cmp(&self.before.size) {
            Ordering::Less => Err(source.changed(Change::Shrank)),
            Ordering::Equal => {
                self.check(source)?;
                Ok(bytes.into())
            }
            Ordering::Greater => Err(source.changed(Change::Grew)),
        }
    }

    /// That nobody has written to the file since it was opened.
    fn check(&self, source: &Source) -> Result<(), ImportError> {
        let stat = fstat(&self.fd).map_err(|errno| source.failed(errno))?;
        let after = Fingerprint::of(&stat);
        if after == self.before {
            return Ok(());
        }
        Err(source.changed(match after.size.cmp(&self.before.size) {
            Ordering::Less => Change::Shrank,
            Ordering::Equal => Change::Modified,
            Ordering::Greater => Change::Grew,
        }))
    }
}

impl Fingerprint {
    fn of(stat: &rustix::fs::Stat) -> Self {
        Self {
            size: u64::try_from(stat.st_size).unwrap_or(0),
            modified: (stat.st_mtime, stat.st_mtime_nsec),
            changed: (stat.st_ctime, stat.st_ctime_nsec),
        }
    }
}
