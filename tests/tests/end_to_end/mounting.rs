//! The life of a mount: how it ends, what it leaves behind, and where it can't begin.

use std::{
    fs::{self, File},
    io::{ErrorKind, Read as _},
    os::unix::{fs::PermissionsExt as _, process::CommandExt as _},
    path::Path,
    process::Command,
};

use cairn_tests::{
    cairn::{Mount, Scene},
    compare::{Face, assert_same},
    process::{eventually, run},
    trees,
};
use rustix::process::Signal;

/// Whether anything is mounted there.
fn is_mounted(mountpoint: &Path) -> bool {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    mounts.lines().any(|line| line.split(' ').nth(1) == mountpoint.to_str())
}

fn mounted() -> (Scene, Mount, String) {
    let scene = Scene::new();
    let tree = trees::small(scene.folder(), "source");
    let cairn = scene.cairn();
    let path = cairn.import(&tree);
    let mount = scene.mount(&cairn, "mnt");
    (scene, mount, path)
}

#[test]
fn signals_unmount_and_succeed() {
    for signal in [Signal::INT, Signal::TERM] {
        let (scene, mount, path) = mounted();
        assert!(mount.at(&path).join("large").exists());
        assert!(is_mounted(&scene.path("mnt")));
        mount.stop(signal).succeeded();
        assert!(!is_mounted(&scene.path("mnt")));
        assert_eq!(fs::read_dir(scene.path("mnt")).unwrap().count(), 0);
    }
}

#[test]
fn an_open_file_does_not_keep_a_mount_from_ending() {
    let (scene, mount, path) = mounted();
    let mut file = File::open(mount.at(&path).join("large")).unwrap();
    file.read_exact(&mut [0; 1000]).unwrap();
    mount.stop(Signal::TERM).succeeded();
    assert!(!is_mounted(&scene.path("mnt")));
    drop(file);
}

#[test]
fn a_mountpoint_of_a_dead_mount_is_mounted_again() {
    let (scene, mount, path) = mounted();
    let dead = mount.kill();
    eventually("the end of the connection", || fs::read_dir(scene.path("mnt")).is_err());
    let mount = scene.cairn().mount(&scene.path("mnt"));
    assert_same(&scene.path("source"), &mount.at(&path), Face::Mount);
    mount.stop(Signal::INT).succeeded();
    assert!(!is_mounted(&scene.path("mnt")), "something is left below");
    drop(dead);
}

#[test]
fn a_mountpoint_in_use_is_refused() {
    let (scene, mount, path) = mounted();
    let mountpoint = scene.path("mnt");
    let words = ["mount", mountpoint.to_str().unwrap()];
    scene.cairn().run(words).failed(1, &[mountpoint.to_str().unwrap()]);
    // The one that was there goes on.
    assert_same(&scene.path("source"), &mount.at(&path), Face::Mount);
}

#[test]
fn what_is_no_empty_folder_is_no_mountpoint() {
    let scene = Scene::new();
    let missing = scene.path("missing");
    let file = scene.path("file");
    fs::write(&file, "").unwrap();
    for place in [&missing, &file] {
        let place = place.to_str().unwrap();
        let finished = scene.cairn().run(["mount", place]);
        assert!(matches!(finished.status.code(), Some(1 | 3)), "{finished:?}");
        assert!(finished.stderr.contains(place), "{finished:?}");
    }
}

#[test]
fn a_mount_shows_what_is_imported_later() {
    let (scene, mount, _) = mounted();
    let later = trees::small(scene.folder(), "later");
    // A name that was asked for before it was there.
    let early = mount.mountpoint().join("y0lrmcm4zaj0qd44rp7mg83dgyl87lkp-tree");
    assert!(!early.exists());
    let path = scene.cairn().import(&later);
    assert_same(&later, &mount.at(&path), Face::Mount);
    scene.cairn().import(&trees::vector(scene.folder()));
    eventually("the end of what is remembered of a miss", || early.exists());
}

#[test]
fn a_mount_can_be_told_not_to_list_its_root() {
    let scene = Scene::new();
    let tree = trees::small(scene.folder(), "source");
    let path = scene.cairn().import(&tree);
    let mount = scene.cairn().mount_with(&scene.new_folder("mnt"), ["--no-list-root"]);
    let listed =
        fs::read_dir(mount.mountpoint()).and_then(|entries| entries.collect::<Result<Vec<_>, _>>());
    assert_eq!(listed.unwrap_err().kind(), ErrorKind::PermissionDenied);
    assert_same(&tree, &mount.at(&path), Face::Mount);
}

#[test]
fn a_mount_is_for_others_only_if_told() {
    let scene = Scene::new();
    let tree = trees::vector(scene.folder());
    fs::set_permissions(scene.folder(), fs::Permissions::from_mode(0o755)).unwrap();
    let cairn = scene.cairn();
    let path = cairn.import(&tree);
    // A user that is neither root nor the one who mounts.
    let read = |mount: &Mount| {
        run(Command::new("cat").arg(mount.at(&path).join("d/f")).uid(65534).gid(65534))
    };
    let mine = scene.mount(&cairn, "mine");
    assert!(!read(&mine).status.success());
    let everyones = cairn.mount_with(&scene.new_folder("everyones"), ["--allow-other"]);
    assert_eq!(read(&everyones).succeeded().text(), "hi\n");
}
