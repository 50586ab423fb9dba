//! The life of a mount: how it ends, what it leaves behind, and where it can't begin.

use std::{
    fs::{self, File},
    io::{ErrorKind, Read as _, Seek as _},
    os::unix::{
        fs::{MetadataExt as _, PermissionsExt as _},
        process::CommandExt as _,
    },
    path::Path,
    process::Command,
};

use cairn_tests::{
    cairn::{Cairn, Mount, Scene},
    compare::{Face, assert_same},
    process::{Finished, Running, eventually, run},
    trees,
};
use rustix::process::Signal;

/// Whether anything is mounted there.
fn is_mounted(mountpoint: &Path) -> bool {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    mounts.lines().any(|line| line.split(' ').nth(1) == mountpoint.to_str())
}

/// The options of what is mounted there, as the mount table has them.
fn options(mountpoint: &Path) -> Vec<String> {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    let mut lines = mounts.lines().map(|line| line.split(' '));
    let mut line = lines.find(|line| line.clone().nth(1) == mountpoint.to_str()).unwrap();
    line.nth(3).unwrap().split(',').map(str::to_owned).collect()
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

/// Whether the store in the scene was closed in order by its last user.
fn is_closed(scene: &Scene) -> bool {
    fs::read_to_string(scene.store().join("index-state")).unwrap() == "closed\n"
}

#[test]
fn an_open_file_does_not_keep_a_mount_from_ending() {
    let scene = Scene::new();
    let tree = trees::small(scene.folder(), "source");
    let path = scene.cairn().import(&tree);
    let mount = scene.cairn().mount_with(&scene.new_folder("mnt"), ["--grace", "0"]);
    let mut file = File::open(mount.at(&path).join("large")).unwrap();
    file.read_exact(&mut [0; 1000]).unwrap();
    mount.stop(Signal::TERM).succeeded();
    assert!(!is_mounted(&scene.path("mnt")));
    assert!(is_closed(&scene));
    drop(file);
}

#[test]
fn what_is_open_can_be_read_after_a_signal_until_it_is_closed() {
    let scene = Scene::new();
    let tree = trees::small(scene.folder(), "source");
    let path = scene.cairn().import(&tree);
    let mut mount = scene.cairn().mount_with(&scene.new_folder("mnt"), ["--grace", "100000"]);
    let mut file = File::open(mount.at(&path).join("large")).unwrap();
    file.seek(std::io::SeekFrom::End(-1000)).unwrap();
    mount.process().signal(Signal::TERM);
    eventually("leaving the tree", || !is_mounted(&scene.path("mnt")));
    let mut rest = Vec::new();
    file.read_to_end(&mut rest).unwrap();
    assert!(fs::read(tree.join("large")).unwrap().ends_with(&rest) && rest.len() == 1000);
    assert!(!mount.process().has_ended());
    drop(file);
    eventually("the end", || mount.process().has_ended());
    assert!(is_closed(&scene));
}

#[test]
fn a_second_signal_cuts_off_what_is_open() {
    let scene = Scene::new();
    let tree = trees::small(scene.folder(), "source");
    let path = scene.cairn().import(&tree);
    let mut mount = scene.cairn().mount_with(&scene.new_folder("mnt"), ["--grace", "100000"]);
    let file = File::open(mount.at(&path).join("large")).unwrap();
    mount.process().signal(Signal::TERM);
    eventually("leaving the tree", || !is_mounted(&scene.path("mnt")));
    mount.stop(Signal::INT).succeeded();
    assert!(is_closed(&scene));
    drop(file);
}

#[test]
fn a_signal_during_the_import_leaves_a_store_that_is_closed_in_order() {
    let scene = Scene::new();
    let tree = scene.new_folder("tree");
    for folder in 0..20 {
        let folder = tree.join(folder.to_string());
        fs::create_dir(&folder).unwrap();
        for file in 0..200 {
            fs::write(folder.join(file.to_string()), format!("{folder:?} {file}")).unwrap();
        }
    }
    let mountpoint = scene.new_folder("mnt");
    let mut words = vec!["mount"];
    for _ in 0..50 {
        // Each of them is read again.
        words.extend(["--import", tree.to_str().unwrap()]);
    }
    words.extend(["--no-stat-cache", mountpoint.to_str().unwrap()]);
    let mut mount = scene.cairn().start(words);
    assert!(mount.next_line().is_some());
    mount.signal(Signal::TERM);
    mount.finish().failed(143, &["SIGTERM"]);
    assert!(!is_mounted(&mountpoint));
    assert!(is_closed(&scene));
}

/// Unmounts what is mounted on `mnt`.
fn umount<const N: usize>(scene: &Scene, words: [&str; N]) -> Finished {
    let mut all = vec!["umount"];
    all.extend(words);
    let mountpoint = scene.path("mnt");
    all.push(mountpoint.to_str().unwrap());
    scene.cairn().run(all)
}

#[test]
fn umount_returns_when_the_store_is_closed() {
    let (scene, mut mount, path) = mounted();
    fs::read(mount.at(&path).join("large")).unwrap();
    umount(&scene, []).succeeded();
    assert!(!is_mounted(&scene.path("mnt")));
    assert!(is_closed(&scene));
    assert!(mount.process().has_ended());
    mount.finish().succeeded();
}

#[test]
fn umount_refuses_what_is_in_use_unless_it_may_be_lazy() {
    let (scene, mut mount, path) = mounted();
    let mut file = File::open(mount.at(&path).join("large")).unwrap();
    umount(&scene, []).failed(1, &["in use", "--lazy", scene.path("mnt").to_str().unwrap()]);
    assert!(is_mounted(&scene.path("mnt")));
    umount(&scene, ["--lazy"]).succeeded();
    assert!(!is_mounted(&scene.path("mnt")));
    file.seek(std::io::SeekFrom::End(-1000)).unwrap();
    assert_eq!(file.read_to_end(&mut Vec::new()).unwrap(), 1000);
    drop(file);
    eventually("the end", || mount.process().has_ended());
}

#[test]
fn umount_leaves_alone_what_is_no_mount_of_cairn() {
    let scene = Scene::new();
    let folder = scene.new_folder("mnt");
    umount(&scene, []).failed(3, &["nothing is mounted", folder.to_str().unwrap()]);
    rustix::mount::mount("x", &folder, "tmpfs", rustix::mount::MountFlags::empty(), None).unwrap();
    let refused = umount(&scene, []);
    let is_there = is_mounted(&folder);
    rustix::mount::unmount(&folder, rustix::mount::UnmountFlags::empty()).unwrap();
    refused.failed(1, &["no mount of cairn", "tmpfs"]);
    assert!(is_there);
}

#[test]
fn umount_removes_what_a_killed_mount_has_left() {
    let (scene, mount, _) = mounted();
    let dead = mount.kill();
    eventually("the end of the connection", || fs::read_dir(scene.path("mnt")).is_err());
    umount(&scene, []).succeeded();
    assert!(!is_mounted(&scene.path("mnt")));
    drop(dead);
}

#[test]
fn umount_does_not_wait_for_a_server_that_is_stuck() {
    let (scene, mut mount, _) = mounted();
    mount.process().signal(Signal::STOP);
    umount(&scene, ["--timeout", "1"]).failed(1, &["does not answer", "--lazy"]);
    umount(&scene, ["--lazy"]).succeeded();
    assert!(!is_mounted(&scene.path("mnt")));
    mount.process().signal(Signal::CONT);
    eventually("the end", || mount.process().has_ended());
}

#[test]
fn a_mount_goes_on_in_the_background() {
    let scene = Scene::new();
    let tree = trees::small(scene.folder(), "source");
    let mountpoint = scene.new_folder("mnt");
    let log = scene.path("log");
    let words = ["mount", "-d", "-v", "--import", "source", "--log-file", "log", "mnt"];
    // Relative paths are those of the caller.
    let mut command = scene.cairn().command(words);
    let lines = run(command.current_dir(scene.folder())).succeeded().lines();
    let [path, mounted] = &lines[..] else { panic!("{lines:?}") };
    assert_eq!(mounted, "mounted on mnt");
    assert_same(&tree, &mountpoint.join(trees::base_name(path)), Face::Mount);
    umount(&scene, []).succeeded();
    assert!(is_closed(&scene));
    assert!(fs::read_to_string(log).unwrap().contains("unmounted from elsewhere"));
}

#[test]
fn a_mount_that_fails_in_the_background_is_told_in_front() {
    let scene = Scene::new();
    scene.cairn().run(["mount", "-d", "/nowhere"]).failed(1, &["/nowhere", "mkdir -p"]);
    let (scene, _mount, _) = mounted();
    let words = ["mount", "-d", scene.path("mnt").to_str().unwrap()].map(str::to_owned);
    scene.cairn().run(words).failed(1, &["mounted", "already"]);
}

#[test]
fn everything_belongs_to_whom_it_is_told() {
    let scene = Scene::new();
    let tree = trees::vector(scene.folder());
    let path = scene.cairn().import(&tree);
    let mount = scene.cairn().mount_with(&scene.new_folder("mnt"), ["--uid-gid", "1234:567"]);
    for place in [mount.mountpoint().to_owned(), mount.at(&path), mount.at(&path).join("d/f")] {
        let metadata = fs::symlink_metadata(&place).unwrap();
        assert_eq!((metadata.uid(), metadata.gid()), (1234, 567), "{}", place.display());
    }
    for wrong in ["1234", "a:b", "1:-1", "4294967295:0"] {
        let words = ["mount", "--uid-gid", wrong, mount.mountpoint().to_str().unwrap()];
        scene.cairn().run(words).failed(2, &["1000:100"]);
    }
}

#[test]
fn the_mount_table_names_the_store() {
    let (scene, _mount, _) = mounted();
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    let mountpoint = scene.path("mnt");
    let line = mounts.lines().find(|line| line.split(' ').nth(1) == mountpoint.to_str()).unwrap();
    let mut fields = line.split(' ');
    assert_eq!(fields.next(), Some(&*format!("sled:{}", scene.store().display())));
    assert_eq!(fields.nth(1), Some("fuse.cairn"));
    for option in ["ro", "nosuid", "nodev", "noatime", "default_permissions"] {
        assert!(options(&mountpoint).contains(&option.to_owned()), "{line}");
    }
}

#[test]
fn statfs_tells_what_the_store_takes_and_what_its_disk_has_left() {
    const MIB: u64 = 1024 * 1024;
    let (scene, mount, _) = mounted();
    let large = scene.path("random");
    let mut bytes = vec![0; 8 * MIB as usize];
    File::open("/dev/urandom").unwrap().read_exact(&mut bytes).unwrap();
    fs::write(&large, bytes).unwrap();
    scene.cairn().import(&large);
    eventually("what statfs remembers to be forgotten", || {
        let seen = rustix::fs::statvfs(mount.mountpoint()).unwrap();
        let used = (seen.f_blocks - seen.f_bfree) * seen.f_frsize;
        (8 * MIB..64 * MIB).contains(&used)
    });
    let seen = rustix::fs::statvfs(mount.mountpoint()).unwrap();
    let disk = rustix::fs::statvfs(scene.store()).unwrap();
    assert!(seen.f_bavail > 0 && seen.f_bavail <= seen.f_bfree);
    // Others write to the disk meanwhile.
    let (seen, disk) = (seen.f_bfree * seen.f_frsize, disk.f_bfree * disk.f_frsize);
    assert!(seen.abs_diff(disk) < disk / 2, "{seen} {disk}");
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
fn a_mountpoint_is_made_if_that_is_asked_for() {
    let scene = Scene::new();
    let mountpoint = scene.path("not/there");
    let words = ["mount", mountpoint.to_str().unwrap()];
    scene.cairn().run(words).failed(1, &[words[1], "--mkdir"]);
    let dead = scene.cairn().mount_with(&mountpoint, ["--mkdir"]).kill();
    eventually("the end of the connection", || fs::read_dir(&mountpoint).is_err());
    // It is there now, though nobody can look at it.
    let mount = scene.cairn().mount_with(&mountpoint, ["--mkdir"]);
    assert_eq!(fs::read_dir(&mountpoint).unwrap().count(), 0);
    mount.stop(Signal::TERM).succeeded();
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
    let is_for_others = |mount: &Mount| options(mount.mountpoint()).contains(&"allow_other".into());
    assert!(is_for_others(&everyones) && !is_for_others(&mine));
}

/// Two users without rights, of whom `nobody` is the first.
const USERS: [u32; 2] = [65534, 65533];

#[test]
fn users_without_rights_mount_and_unmount_what_is_theirs() {
    // As it is everywhere but in some containers.
    fs::set_permissions("/dev/fuse", fs::Permissions::from_mode(0o666)).unwrap();
    let scene = Scene::new();
    let home = scene.new_folder("home");
    for folder in [scene.folder(), &home] {
        fs::set_permissions(folder, fs::Permissions::from_mode(0o777)).unwrap();
    }
    let tree = trees::small(scene.folder(), "source");
    let cairn = Cairn::local(&home.join("store")).as_nobody(&home);
    let path = cairn.import(&tree);
    let mountpoint = scene.new_folder("home/mnt");
    std::os::unix::fs::chown(&mountpoint, Some(USERS[0]), Some(USERS[0])).unwrap();
    let diff = |mount: &Mount, user: u32| {
        let mut diff = Command::new("diff");
        diff.args(["-r", "--no-dereference"]).arg(&tree).arg(mount.at(&path));
        run(diff.uid(user).gid(user))
    };

    let mount = cairn.mount(&mountpoint);
    for option in ["ro", "nosuid", "nodev", "noatime", "default_permissions", "user_id=65534"] {
        assert!(options(&mountpoint).contains(&option.to_owned()), "{option}");
    }
    diff(&mount, USERS[0]).succeeded();
    assert!(!diff(&mount, USERS[1]).status.success());
    // Nobody else may end it.
    let mut umount = cairn.command(["umount", mountpoint.to_str().unwrap()]);
    run(umount.uid(USERS[1]).gid(USERS[1])).failed(1, &[mountpoint.to_str().unwrap()]);
    assert!(is_mounted(&mountpoint));
    // What is in use stays, unless it may be lazy.
    let in_use = {
        let mut sh = Command::new("sh");
        let file = mount.at(&path).join("large");
        sh.args(["-c", "exec sleep 1000 <\"$0\""]).arg(file).uid(USERS[0]).gid(USERS[0]);
        Running::start(&mut sh)
    };
    eventually("the file to be open", || {
        let open = fs::read_link(format!("/proc/{}/fd/0", in_use.pid().as_raw_nonzero()));
        open.is_ok_and(|open| open.ends_with("large"))
    });
    let umount = |words: &[&str]| run(cairn.command(["umount"]).args(words).arg(&mountpoint));
    umount(&[]).failed(1, &["in use", "--lazy"]);
    drop(in_use);
    umount(&[]).succeeded();
    assert!(!is_mounted(&mountpoint));
    mount.finish().succeeded();

    // A signal does the same.
    let mount = cairn.mount(&mountpoint);
    diff(&mount, USERS[0]).succeeded();
    mount.stop(Signal::TERM).succeeded();
    assert!(!is_mounted(&mountpoint));

    // What was killed is cleaned up by whose it was.
    let dead = cairn.mount(&mountpoint).kill();
    umount(&[]).succeeded();
    assert!(!is_mounted(&mountpoint));
    drop(dead);
}
