//! The walk through a tree: what is where, in the order of names, with every directory held open
//! while something is read in it. Files are only named here, not opened.

use std::{
    mem::MaybeUninit,
    ops::Range,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
    sync::Arc,
};

use bytes::Bytes;
use rustix::{
    fs::{AtFlags, CWD, FileType, Mode, OFlags, RawDir, fstat, openat, statat},
    io::{Errno, retry_on_intr},
};

use super::{
    error::{Change, ImportError},
    fingerprint::Stamp,
};
use crate::{Name, place::Place};

/// The most directories in directories that an import follows.
pub const DEPTH_MAX: usize = 4096;

/// The most directories that the walk itself holds open. Farther from the end of a deeper path,
/// they are closed, and opened again as the parents of those below when the walk comes back.
const OPEN_LEVELS_MAX: usize = 64;

/// The buffer for the system's listing of a directory, in bytes.
const LISTING_BUFFER: usize = 64 * 1024;

/// What the walk finds, in the order of the tree.
#[derive(Debug)]
pub(super) enum Item {
    DirectoryStart {
        name: Option<Name>,
        place: Arc<Place>,
        stamp: Stamp,
    },
    DirectoryEnd,
    File(Source),
    Symlink(Source),
    /// The walk can't go on. Nothing follows.
    Failed(ImportError),
}

/// Why the walk ends early.
#[derive(Debug)]
pub(super) enum Halt {
    Failed(ImportError),
    /// Nobody wants its items any more.
    Stopped,
}

impl From<ImportError> for Halt {
    fn from(error: ImportError) -> Self {
        Self::Failed(error)
    }
}

/// A directory that is open as long as this is held.
#[derive(Debug)]
struct OpenDirectory {
    /// `None` stands for the directory that the root's path starts from.
    fd: Option<OwnedFd>,
    place: Arc<Place>,
}

impl AsFd for OpenDirectory {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_ref().map_or(CWD, AsFd::as_fd)
    }
}

/// Something in a directory, ready to be opened, however long its path.
#[derive(Debug)]
pub(super) struct Source {
    directory: Arc<OpenDirectory>,
    /// `None` for the root of the tree.
    name: Option<Name>,
}

impl Source {
    pub(super) fn directory(&self) -> BorrowedFd<'_> {
        self.directory.as_fd()
    }

    /// What it is called in its directory.
    pub(super) fn file_name(&self) -> &[u8] {
        self.name.as_ref().map_or(self.directory.place.name(), Name::as_ref)
    }

    pub(super) fn path(&self) -> PathBuf {
        self.directory.place.path_of(self.name.as_ref())
    }

    pub(super) fn name(&self) -> Option<&Name> {
        self.name.as_ref()
    }

    pub(super) fn into_name(self) -> Option<Name> {
        self.name
    }

    pub(super) fn failed(&self, errno: Errno) -> ImportError {
        ImportError::of_entry(self.path(), errno)
    }

    pub(super) fn changed(&self, change: Change) -> ImportError {
        ImportError::Changed { path: self.path(), change }
    }

    /// Whether both are in the same directory.
    pub(super) fn is_beside(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.directory, &other.directory)
    }
}

/// Walks through the tree at `path` and emits what it finds. An error of the walk is its last
/// item.
pub(super) fn walk(
    path: &Path,
    mut emit: impl FnMut(Item) -> Result<(), Halt>,
) -> Result<(), Halt> {
    match try_walk(path, &mut emit) {
        Err(Halt::Failed(error)) => emit(Item::Failed(error)),
        result => result,
    }
}

fn try_walk(path: &Path, emit: &mut impl FnMut(Item) -> Result<(), Halt>) -> Result<(), Halt> {
    let place = Place::root(path);
    let base = Arc::new(OpenDirectory { fd: None, place: Arc::clone(&place) });
    let root = Source { directory: base, name: None };
    let kind = match statat(CWD, path, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => FileType::from_raw_mode(stat.st_mode),
        Err(Errno::NOENT) => return Err(ImportError::Missing { path: path.to_owned() }.into()),
        Err(errno) => {
            let error = ImportError::Unreadable { path: path.to_owned(), source: errno.into() };
            return Err(error.into());
        }
    };
    let root = match kind {
        FileType::Directory => root,
        FileType::RegularFile => return emit(Item::File(root)),
        FileType::Symlink => return emit(Item::Symlink(root)),
        kind => return Err(ImportError::Special { path: root.path(), kind: kind.into() }.into()),
    };

    let mut buffer = Vec::with_capacity(LISTING_BUFFER);
    let mut levels = vec![Level::enter(&root, place, buffer.spare_capacity_mut())?];
    emit(levels[0].start(None))?;
    while let Some(level) = levels.last_mut() {
        let Some((name, kind)) = level.next()? else {
            emit(Item::DirectoryEnd)?;
            leave(&mut levels)?;
            continue;
        };
        let source = Source { directory: level.directory(), name: Some(name.clone()) };
        match source.kind(kind)? {
            FileType::RegularFile => emit(Item::File(source))?,
            FileType::Symlink => emit(Item::Symlink(source))?,
            FileType::Directory => {
                if levels.len() >= DEPTH_MAX {
                    let path = source.path();
                    return Err(ImportError::TooDeep { path, max: DEPTH_MAX }.into());
                }
                let place = Place::child(&source.directory.place, &name);
                let level = Level::enter(&source, place, buffer.spare_capacity_mut())?;
                emit(level.start(Some(name)))?;
                levels.push(level);
                if let Some(far) = levels.len().checked_sub(1 + OPEN_LEVELS_MAX) {
                    levels[far].directory = None;
                }
            }
            kind => {
                let path = source.path();
                return Err(ImportError::Special { path, kind: kind.into() }.into());
            }
        }
    }
    Ok(())
}

/// Goes back to the parent, which is opened again if it was closed.
fn leave(levels: &mut Vec<Level>) -> Result<(), ImportError> {
    let Some(left) = levels.pop() else { return Ok(()) };
    let Some(parent) = levels.last_mut() else { return Ok(()) };
    if parent.directory.is_none() {
        let place = Arc::clone(&parent.place);
        let failed = |errno| ImportError::of_entry(place.path(), errno);
        let fd = open_directory(left.directory().as_fd(), b"..").map_err(failed)?;
        if stamp(&fd).map_err(failed)?.identity() != parent.stamp.identity() {
            return Err(ImportError::Changed { path: place.path(), change: Change::Replaced });
        }
        parent.directory = Some(Arc::new(OpenDirectory { fd: Some(fd), place }));
    }
    Ok(())
}

fn open_directory(at: BorrowedFd<'_>, name: &[u8]) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    retry_on_intr(|| openat(at, name, flags, Mode::empty()))
}

fn stamp(fd: &OwnedFd) -> Result<Stamp, Errno> {
    fstat(fd).map(|stat| Stamp::of(&stat))
}

impl Source {
    /// The kind of file, which a listing need not tell.
    fn kind(&self, listed: FileType) -> Result<FileType, ImportError> {
        if listed != FileType::Unknown {
            return Ok(listed);
        }
        let stat = statat(self.directory(), self.file_name(), AtFlags::SYMLINK_NOFOLLOW);
        stat.map(|stat| FileType::from_raw_mode(stat.st_mode)).map_err(|errno| self.failed(errno))
    }
}

/// A directory on the way from the root to where the walk is.
#[derive(Debug)]
struct Level {
    place: Arc<Place>,
    /// As it was before its names were listed.
    stamp: Stamp,
    /// `None` if it had to be closed. The last level is always open.
    directory: Option<Arc<OpenDirectory>>,
    /// All its names, one behind the other.
    names: Bytes,
    /// Where in `names` each name is, in ascending order of the names.
    entries: std::vec::IntoIter<(Range<usize>, FileType)>,
}

impl Level {
    fn enter(
        source: &Source,
        place: Arc<Place>,
        buffer: &mut [MaybeUninit<u8>],
    ) -> Result<Self, ImportError> {
        let failed = |errno| source.failed(errno);
        let fd = open_directory(source.directory(), source.file_name()).map_err(failed)?;
        let stamp = stamp(&fd).map_err(failed)?;
        let mut names = Vec::new();
        let mut entries = Vec::new();
        let mut listing = RawDir::new(&fd, buffer);
        while let Some(entry) = listing.next() {
            let entry = entry.map_err(failed)?;
            let name = entry.file_name().to_bytes();
            if name != b"." && name != b".." {
                entries.push((names.len()..names.len() + name.len(), entry.file_type()));
                names.extend_from_slice(name);
            }
        }
        entries.sort_unstable_by(|(a, _), (b, _)| names[a.clone()].cmp(&names[b.clone()]));
        // A file that is renamed while its directory is listed may be listed under one name twice.
        entries.dedup_by(|(a, _), (b, _)| names[a.clone()] == names[b.clone()]);
        let directory = Arc::new(OpenDirectory { fd: Some(fd), place: Arc::clone(&place) });
        Ok(Self {
            place,
            stamp,
            directory: Some(directory),
            names: names.into(),
            entries: entries.into_iter(),
        })
    }

    fn start(&self, name: Option<Name>) -> Item {
        Item::DirectoryStart { name, place: Arc::clone(&self.place), stamp: self.stamp }
    }

    fn directory(&self) -> Arc<OpenDirectory> {
        Arc::clone(self.directory.as_ref().expect("the last level is open"))
    }

    fn next(&mut self) -> Result<Option<(Name, FileType)>, ImportError> {
        let Some((range, kind)) = self.entries.next() else { return Ok(None) };
        let name = Name::try_from(self.names.slice(range));
        name.map(|name| Some((name, kind)))
            .map_err(|source| ImportError::Name { path: self.place.path(), source })
    }
}
