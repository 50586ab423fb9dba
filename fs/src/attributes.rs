//! What `stat`, `statfs` and the extended attributes say of an inode. All of it but the
//! owner follows from the inode alone, so that it is the same in every mount and at every time.

use std::ffi::CStr;

use cairn_castore::Digest;
use fuse_backend_rs::{
    abi::fuse_abi::{Attr, stat64},
    api::filesystem::ROOT_ID,
};

use crate::{errno::FsError, inodes::Inode};

/// Whom everything on a mount belongs to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Owner {
    /// The user. 0, root, unless told otherwise.
    pub uid: u32,
    /// The group. 0 unless told otherwise.
    pub gid: u32,
}

/// What the attributes of everything on a mount have in common.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Face {
    pub(crate) owner: Owner,
    /// Whether the modes let the owner write.
    pub(crate) is_writable: bool,
}

/// The unit in which programs are advised to read, and that of `statfs`, in bytes.
pub(crate) const BLOCK_BYTES: u32 = 4096;

/// The unit of `st_blocks`, in bytes.
const SECTOR_BYTES: u64 = 512;

/// Every time on a mount: one second after the epoch, as in a Nix store.
const TIME_SECONDS: u64 = 1;

/// What `st_size` says of the root, whose entries nobody counts.
const ROOT_BYTES: u64 = 4096;

/// The link count of a directory whose subdirectories nobody counts: programs that would derive
/// their number from it, such as `find`, take 1 to mean just that.
const LINKS_UNCOUNTED: u32 = 1;

/// Keeps the inode numbers of executable files and of symlinks apart from those of plain files.
const EXECUTABLE_INO: u64 = 0x5c1e_8a11_d0c5_7a6f;
const SYMLINK_INO: u64 = 0x2b7e_1516_28ae_d2a6;

/// The extended attribute with the digest of a file or directory.
const XATTR_DIGEST: &CStr = c"user.cairn.digest";
/// The extended attribute with the digest of a file, as Snix calls it.
const XATTR_BLOB: &CStr = c"user.snix.castore.blob.digest";
/// The extended attribute with the digest of a directory, as Snix calls it.
const XATTR_DIRECTORY: &CStr = c"user.snix.castore.directory.digest";

/// The attributes of an inode. Fails for a file whose directory claims an impossible size.
pub(crate) fn attributes(inode: &Inode, face: Face) -> Result<stat64, FsError> {
    let Face { owner, is_writable } = face;
    let (mode, nlink, size) = match inode {
        Inode::Root => (libc::S_IFDIR | 0o555, LINKS_UNCOUNTED, ROOT_BYTES),
        Inode::Directory(place) => {
            let links = place.subdirectories.saturating_add(2);
            (libc::S_IFDIR | 0o555, links, place.entries.into())
        }
        Inode::File { digest, size, executable, .. } => {
            if i64::try_from(*size).is_err() {
                return Err(FsError::ImpossibleSize { digest: *digest, size: *size });
            }
            (libc::S_IFREG | if *executable { 0o555 } else { 0o444 }, 1, *size)
        }
        Inode::Symlink { target, .. } => (libc::S_IFLNK | 0o777, 1, target.as_ref().len() as u64),
    };
    let is_symlink = matches!(inode, Inode::Symlink { .. });
    let mode = if is_writable && !is_symlink { mode | libc::S_IWUSR } else { mode };
    Ok(stat64::from(Attr {
        ino: ino(inode),
        size,
        blocks: size.div_ceil(SECTOR_BYTES),
        atime: TIME_SECONDS,
        mtime: TIME_SECONDS,
        ctime: TIME_SECONDS,
        mode,
        nlink,
        uid: owner.uid,
        gid: owner.gid,
        blksize: BLOCK_BYTES,
        ..Attr::default()
    }))
}

/// The inode number that programs see. Unlike the kernel's number for the inode it stays the same
/// when the kernel forgets and asks again, and in every mount.
pub(crate) fn ino(inode: &Inode) -> u64 {
    match inode {
        Inode::Root => ROOT_ID,
        Inode::Directory(place) => place.ino,
        Inode::File { place: Some(place), .. } | Inode::Symlink { place: Some(place), .. } => {
            place.get()
        }
        Inode::File { digest, executable, .. } => file_ino(digest, *executable),
        Inode::Symlink { target, .. } => symlink_ino(target.as_ref()),
    }
}

/// The inode number of a file.
pub(crate) fn file_ino(digest: &Digest, executable: bool) -> u64 {
    allowed_ino(first_bytes(digest) ^ if executable { EXECUTABLE_INO } else { 0 })
}

/// The inode number of a symlink.
pub(crate) fn symlink_ino(target: &[u8]) -> u64 {
    allowed_ino(first_bytes(&Digest::of(target)) ^ SYMLINK_INO)
}

/// The inode number of a directory, or of a file or symlink that is one by its place: made of that of
/// the directory it is in, and its name.
pub(crate) fn place_ino(parent_ino: u64, name: &[u8]) -> u64 {
    let place = [&parent_ino.to_le_bytes(), name].concat();
    allowed_ino(first_bytes(&Digest::of(&place)))
}

fn first_bytes(digest: &Digest) -> u64 {
    let (first, _) = digest.as_bytes().split_first_chunk().expect("a digest has 32 bytes");
    u64::from_le_bytes(*first)
}

/// 0 is no inode number, 1 is the root's, and the highest bit makes some programs see a negative
/// one.
fn allowed_ino(ino: u64) -> u64 {
    (ino & (u64::MAX >> 1)).max(ROOT_ID + 1)
}

/// The names of an inode's extended attributes.
pub(crate) fn xattr_names(inode: &Inode) -> &'static [&'static CStr] {
    match inode {
        Inode::Root | Inode::Symlink { .. } => &[],
        Inode::Directory(_) => &[XATTR_DIGEST, XATTR_DIRECTORY],
        Inode::File { .. } => &[XATTR_DIGEST, XATTR_BLOB],
    }
}

/// The value of an extended attribute. `None` if the inode has none of this name.
pub(crate) fn xattr(inode: &Inode, name: &CStr) -> Option<String> {
    if !xattr_names(inode).contains(&name) {
        return None;
    }
    match inode {
        Inode::Root | Inode::Symlink { .. } => None,
        Inode::Directory(place) => Some(place.digest.to_string()),
        Inode::File { digest, .. } => Some(digest.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use cairn_castore::SymlinkTarget;

    use super::*;

    fn file(size: u64, executable: bool) -> Inode {
        Inode::File { digest: Digest::of(b"x"), size, executable, place: None }
    }

    #[test]
    fn a_file_has_the_mode_and_size_of_its_entry() {
        let plain = attributes(&file(513, false), Face::default()).unwrap();
        assert_eq!(
            (plain.st_mode, plain.st_size, plain.st_blocks),
            (libc::S_IFREG | 0o444, 513, 2)
        );
        assert_eq!((plain.st_nlink, plain.st_uid, plain.st_gid), (1, 0, 0));
        assert_eq!((plain.st_atime, plain.st_mtime, plain.st_ctime), (1, 1, 1));
        let executable = attributes(
            &file(513, true),
            Face { owner: Owner { uid: 1, gid: 2 }, is_writable: false },
        )
        .unwrap();
        assert_eq!((executable.st_uid, executable.st_gid), (1, 2));
        assert_eq!(executable.st_mode, libc::S_IFREG | 0o555);
        assert_ne!(executable.st_ino, plain.st_ino);
    }

    #[test]
    fn what_can_be_written_says_so() {
        let face = Face { owner: Owner::default(), is_writable: true };
        let mode = |inode| attributes(&inode, face).unwrap().st_mode;
        assert_eq!(mode(file(1, false)), libc::S_IFREG | 0o644);
        assert_eq!(mode(file(1, true)), libc::S_IFREG | 0o755);
        assert_eq!(mode(Inode::Root), libc::S_IFDIR | 0o755);
    }

    #[test]
    fn a_size_that_no_file_can_have_is_refused() {
        let attributes = |size| attributes(&file(size, false), Face::default());
        assert!(attributes(i64::MAX as u64).is_ok());
        assert!(matches!(attributes(u64::MAX), Err(FsError::ImpossibleSize { .. })));
    }

    #[test]
    fn a_file_that_contains_a_target_is_not_the_symlink() {
        let target = SymlinkTarget::try_from(std::ffi::OsStr::new("x")).unwrap();
        assert_ne!(ino(&Inode::Symlink { target, place: None }), ino(&file(1, false)));
    }

    #[test]
    fn the_numbers_of_places_differ() {
        assert_ne!(place_ino(1, b"a"), place_ino(1, b"b"));
        assert_ne!(place_ino(1, b"a"), place_ino(2, b"a"));
    }
}
