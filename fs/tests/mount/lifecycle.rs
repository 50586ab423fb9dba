//! How mounts begin and end.

use std::{
    fs::{self, File},
    io::Read as _,
    os::fd::AsRawFd as _,
    path::Path,
    time::Duration,
};

use cairn_fs::{file_system::FileSystemOptions, fuse::MountError};
use rustix::{
    io::Errno,
    mount::{MountFlags, UnmountFlags},
};

use crate::fixture::*;

fn try_on(folder: &Path, store: &Store) -> Result<cairn_fs::fuse::Mount, MountError> {
    let names = Names::new([("root", store.directory([("f", store.file("x"))]))]);
    Mounted::try_on(folder, store, store.services(&names), FileSystemOptions::default())
}

#[test]
fn a_mount_ends_with_its_handle() {
    if !can_mount() {
        return;
    }
    let store = Store::new();
    let folder = tempfile::tempdir().unwrap();
    for _ in 0..3 {
        let mount = try_on(folder.path(), &store).unwrap();
        assert_eq!(fs::read(folder.path().join("root/f")).unwrap(), b"x");
        drop(mount);
        assert_eq!(names_in(folder.path()), [""; 0]);
    }
    let mount = try_on(folder.path(), &store).unwrap();
    mount.unmount().unwrap();
    assert_eq!(names_in(folder.path()), [""; 0]);
}

#[test]
fn a_mount_covers_what_is_in_the_folder() {
    if !can_mount() {
        return;
    }
    let store = Store::new();
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("below"), "").unwrap();
    let mount = try_on(folder.path(), &store).unwrap();
    assert_eq!(names_in(folder.path()), ["root"]);
    mount.unmount().unwrap();
    assert_eq!(names_in(folder.path()), ["below"]);
}

#[test]
fn an_unmount_from_outside_is_noticed() {
    if !can_mount() || !is_root() {
        return;
    }
    let store = Store::new();
    let folder = tempfile::tempdir().unwrap();
    let mount = try_on(folder.path(), &store).unwrap();
    rustix::mount::unmount(folder.path(), UnmountFlags::empty()).unwrap();
    store.runtime.block_on(mount.wait());
    mount.unmount().unwrap();
}

#[test]
fn ending_one_mount_spares_another_that_took_its_place() {
    if !can_mount() || !is_root() {
        return;
    }
    let store = Store::new();
    let folder = tempfile::tempdir().unwrap();
    let first = try_on(folder.path(), &store).unwrap();
    rustix::mount::unmount(folder.path(), UnmountFlags::empty()).unwrap();
    let second = try_on(folder.path(), &store).unwrap();
    drop(first);
    assert_eq!(fs::read(folder.path().join("root/f")).unwrap(), b"x");
    second.unmount().unwrap();
}

#[test]
fn a_mount_with_open_files_can_be_unmounted() {
    if !can_mount() {
        return;
    }
    let store = Store::new();
    let folder = tempfile::tempdir().unwrap();
    let mount = try_on(folder.path(), &store).unwrap();
    let mut file = File::open(folder.path().join("root/f")).unwrap();
    mount.unmount().unwrap();
    assert_eq!(names_in(folder.path()), [""; 0]);
    // Others may lack what it takes to cut the file off.
    if is_root() {
        file.read_to_end(&mut Vec::new()).unwrap_err();
    }
}

#[test]
fn a_folder_takes_one_mount() {
    if !can_mount() {
        return;
    }
    let store = Store::new();
    let folder = tempfile::tempdir().unwrap();
    let mount = try_on(folder.path(), &store).unwrap();
    let refused = try_on(folder.path(), &store).unwrap_err();
    assert!(matches!(&refused, MountError::InUse { fs_type, .. } if fs_type == "fuse.cairn"));
    assert!(refused.to_string().contains(folder.path().to_str().unwrap()), "{refused}");
    mount.unmount().unwrap();
    try_on(folder.path(), &store).unwrap();
}

#[test]
fn what_is_no_folder_is_refused() {
    if !can_mount() {
        return;
    }
    let store = Store::new();
    let folder = tempfile::tempdir().unwrap();
    let missing = try_on(&folder.path().join("missing"), &store);
    assert!(matches!(missing, Err(MountError::MountPoint { .. })));
    let file = folder.path().join("file");
    fs::write(&file, "").unwrap();
    assert!(matches!(try_on(&file, &store), Err(MountError::NotADirectory(_))));
}

/// A FUSE mount whose server is gone.
fn mount_and_die(folder: &Path, fs_type: &str) {
    let device = File::options().read(true).write(true).open("/dev/fuse").unwrap();
    let data = format!("fd={},rootmode=40000,user_id=0,group_id=0\0", device.as_raw_fd());
    let data = std::ffi::CStr::from_bytes_with_nul(data.as_bytes()).unwrap();
    rustix::mount::mount("dead", folder, fs_type, MountFlags::empty(), data).unwrap();
    drop(device);
    let error = fs::metadata(folder).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(Errno::NOTCONN.raw_os_error()));
}

#[test]
fn what_a_killed_server_left_is_cleaned_up_if_it_is_ours() {
    if !can_mount() || !is_root() {
        return;
    }
    let store = Store::new();
    let folder = tempfile::tempdir().unwrap();
    mount_and_die(folder.path(), "fuse.cairn");
    let mount = try_on(folder.path(), &store).unwrap();
    assert_eq!(fs::read(folder.path().join("root/f")).unwrap(), b"x");
    mount.unmount().unwrap();

    mount_and_die(folder.path(), "fuse.other");
    let refused = try_on(folder.path(), &store);
    rustix::mount::unmount(folder.path(), UnmountFlags::DETACH).unwrap();
    let refused = refused.unwrap_err();
    assert!(matches!(refused, MountError::Stale { .. }));
    assert!(refused.to_string().contains("umount "), "{refused}");
}

#[test]
fn waiting_for_the_end_can_be_given_up() {
    if !can_mount() {
        return;
    }
    let store = Store::new();
    let folder = tempfile::tempdir().unwrap();
    let mount = try_on(folder.path(), &store).unwrap();
    let given_up = store.runtime.block_on(async {
        tokio::time::timeout(Duration::from_millis(20), mount.wait()).await.is_err()
    });
    assert!(given_up);
    assert_eq!(fs::read(folder.path().join("root/f")).unwrap(), b"x");
}
