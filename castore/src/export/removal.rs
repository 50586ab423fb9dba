//! Removes what an export has begun and does not complete. Nothing but an export's own folder is
//! ever removed.

use std::{
    ffi::CString,
    mem::MaybeUninit,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use rustix::{
    fs::{AtFlags, FileType, Mode, OFlags, RawDir, openat, unlinkat},
    io::Errno,
};

/// The buffer for the system's listing of a directory, in bytes.
const LISTING_BUFFER: usize = 32 * 1024;

/// Removes a directory and all below it, however deep, with three open files at most.
pub(super) fn remove(parent: BorrowedFd<'_>, name: &[u8]) -> Result<(), Errno> {
    let mut buffer = Vec::with_capacity(LISTING_BUFFER);
    let mut current = open(parent, name)?;
    // For each directory from the top to the current one, the directories that are left in it.
    let mut levels = vec![empty(&current, buffer.spare_capacity_mut())?];
    while let Some(level) = levels.last_mut() {
        if let Some(below) = level.last() {
            current = open(current.as_fd(), below.as_bytes())?;
            levels.push(empty(&current, buffer.spare_capacity_mut())?);
            continue;
        }
        levels.pop();
        if let Some(emptied) = levels.last_mut().and_then(Vec::pop) {
            current = open(current.as_fd(), b"..")?;
            unlinkat(&current, emptied, AtFlags::REMOVEDIR)?;
        }
    }
    unlinkat(parent, name, AtFlags::REMOVEDIR)
}

fn open(at: BorrowedFd<'_>, name: &[u8]) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    openat(at, name, flags, Mode::empty())
}

/// Removes all but the directories from a directory, and answers with those.
fn empty(directory: &OwnedFd, buffer: &mut [MaybeUninit<u8>]) -> Result<Vec<CString>, Errno> {
    let (mut directories, mut others) = (Vec::new(), Vec::new());
    let mut listing = RawDir::new(directory, buffer);
    while let Some(entry) = listing.next() {
        let entry = entry?;
        let name = entry.file_name();
        match entry.file_type() {
            _ if name == c"." || name == c".." => {}
            FileType::Directory => directories.push(name.to_owned()),
            _ => others.push(name.to_owned()),
        }
    }
    for name in others {
        match unlinkat(directory, &name, AtFlags::empty()) {
            Ok(()) => {}
            // Not every listing tells the kinds of what it lists.
            Err(Errno::ISDIR) => directories.push(name),
            Err(errno) => return Err(errno),
        }
    }
    Ok(directories)
}
