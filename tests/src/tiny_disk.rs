//! A disk that is soon full: a file system in memory of a few megabytes, mounted for one test.
//! Needs root.

use std::{
    ffi::CString,
    path::{Path, PathBuf},
};

use rustix::mount::{MountFlags, UnmountFlags, mount, mount_remount, unmount};

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

    /// Gives the file system another size; what is on it stays.
    pub fn resize(&self, bytes: u64) {
        mount_remount(&self.path, MountFlags::empty(), &*size(bytes)).unwrap();
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
}
