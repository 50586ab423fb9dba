//! A disk that is soon full: a small file system, in memory or in a file, mounted for one test.
//! Needs root.

use std::{
    ffi::{CString, OsStr},
    fs::File,
    path::{Path, PathBuf},
};

use rustix::{
    fs::{FallocateFlags, fallocate},
    mount::{MountFlags, UnmountFlags, mount, mount_remount, unmount},
};

use crate::measure::command;

/// The room that is left is taken in pieces of at least so many bytes.
const FILLED_AT_LEAST: u64 = 64 * 1024;

/// A small file system. Unmounted when dropped.
#[derive(Debug)]
pub struct TinyDisk {
    path: PathBuf,
}

impl TinyDisk {
    /// Mounts a file system of so many bytes on an empty folder.
    pub fn mount(path: PathBuf, bytes: u64) -> Self {
        mount("tmpfs", &path, "tmpfs", MountFlags::empty(), &*size(bytes)).unwrap_or_else(
            |error| {
                panic!("a tmpfs can't be mounted on {}, which needs root: {error}", path.display())
            },
        );
        Self { path }
    }

    /// Mounts an ext4 of so many bytes on an empty folder. It lies in a file beside the folder.
    pub fn mount_ext4(path: PathBuf, bytes: u64) -> Self {
        let image = path.with_added_extension("ext4");
        File::create(&image).unwrap().set_len(bytes).unwrap();
        command("mkfs.ext4", [OsStr::new("-q"), OsStr::new("-F"), image.as_os_str()]);
        command("mount", [OsStr::new("-oloop"), image.as_os_str(), path.as_os_str()]);
        Self { path }
    }

    /// Gives a file system in memory another size; what is on it stays.
    pub fn resize(&self, bytes: u64) {
        mount_remount(&self.path, MountFlags::empty(), &*size(bytes)).unwrap();
    }

    /// Takes all room but for some bytes, also from those who write at the same time. It comes back
    /// when the file is removed.
    pub fn fill(&self, filler: &Path, leave: u64) {
        let filler = File::create(filler).unwrap();
        let free = || {
            let stat = rustix::fs::statvfs(&self.path).unwrap();
            (stat.f_bavail * stat.f_frsize).saturating_sub(leave)
        };
        let (mut length, mut piece) = (0, free());
        while piece >= FILLED_AT_LEAST {
            match fallocate(&filler, FallocateFlags::empty(), length, piece) {
                Ok(()) => {
                    length += piece;
                    piece = free();
                }
                Err(rustix::io::Errno::NOSPC) => piece = free().min(piece / 2),
                Err(error) => panic!("the disk can't be filled: {error}"),
            }
        }
    }

    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for TinyDisk {
    fn drop(&mut self) {
        let _ = unmount(&self.path, UnmountFlags::DETACH);
    }
}

fn size(bytes: u64) -> CString {
    CString::new(format!("size={bytes}")).expect("a number has no NUL")
}

#[cfg(test)]
mod tests {
    use std::{fs, io};

    use super::*;

    #[test]
    fn it_is_soon_full_and_then_has_room() {
        let folder = tempfile::tempdir().unwrap();
        let disk = TinyDisk::mount(folder.path().to_owned(), 1 << 20);
        let error = fs::write(disk.path().join("a"), vec![0; 2 << 20]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
        disk.resize(4 << 20);
        fs::write(disk.path().join("a"), vec![0; 2 << 20]).unwrap();
    }

    #[test]
    fn it_is_filled_and_emptied() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("disk");
        fs::create_dir(&path).unwrap();
        let disk = TinyDisk::mount_ext4(path, 16 << 20);
        let filler = disk.path().join("filler");
        disk.fill(&filler, 2 << 20);
        let error = fs::write(disk.path().join("a"), vec![0; 4 << 20]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
        fs::remove_file(filler).unwrap();
        fs::write(disk.path().join("a"), vec![0; 4 << 20]).unwrap();
    }
}
