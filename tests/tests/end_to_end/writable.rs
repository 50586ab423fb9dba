//! Views that can be written to: what is changed is kept in a folder, and the store stays as it is.

use std::{
    fs::{self, File, Permissions},
    io::Write as _,
    os::unix::{
        fs::{MetadataExt as _, PermissionsExt as _},
        process::CommandExt as _,
    },
    path::Path,
    process::Command,
};

use cairn_tests::{
    cairn::Scene,
    compare::{Face, assert_same},
    process::{eventually, run},
};
use rustix::process::Signal;

fn is_mounted(mountpoint: &Path) -> bool {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    mounts.lines().any(|line| line.split(' ').nth(1) == mountpoint.to_str())
}

/// A tree with two equal files, which are one inode in a mount.
fn tree(scene: &Scene) -> std::path::PathBuf {
    let tree = scene.new_folder("source");
    fs::create_dir_all(tree.join("folder/inner")).unwrap();
    fs::write(tree.join("folder/inner/file"), "from the store\n").unwrap();
    fs::write(tree.join("folder/twin"), "from the store\n").unwrap();
    fs::write(tree.join("script"), "#!/bin/sh\necho \"$1\"\n").unwrap();
    fs::set_permissions(tree.join("script"), Permissions::from_mode(0o755)).unwrap();
    tree
}

#[test]
fn what_is_written_is_kept_and_the_store_stays_as_it_is() {
    let scene = Scene::new();
    let tree = tree(&scene);
    let cairn = scene.cairn();
    let path = cairn.import(&tree);
    // A comma and a colon mean something to the kernel.
    let upper = scene.path("up,per:");
    let mountpoint = scene.new_folder("mnt");
    let options = ["--writable", upper.to_str().unwrap()];

    let mount = cairn.mount_with(&mountpoint, options);
    let top = mount.at(&path);
    let mut file = File::options().append(true).open(top.join("folder/inner/file")).unwrap();
    file.write_all(b"and more\n").unwrap();
    drop(file);
    assert_eq!(fs::read_to_string(top.join("folder/twin")).unwrap(), "from the store\n");
    fs::write(top.join("new"), "new").unwrap();
    fs::remove_file(top.join("script")).unwrap();
    fs::rename(top.join("folder"), top.join("renamed")).unwrap();
    // An attribute of a file that was changed would tell of what it was.
    let attributes = run(Command::new("ls").arg("-l").arg(top.join("renamed/inner")));
    assert!(attributes.succeeded().text().contains("file"));
    mount.stop(Signal::TERM).succeeded();
    assert!(!is_mounted(&mountpoint));

    let check = |top: &Path| {
        let text = fs::read_to_string(top.join("renamed/inner/file")).unwrap();
        assert_eq!(text, "from the store\nand more\n");
        assert_eq!(fs::read_to_string(top.join("renamed/twin")).unwrap(), "from the store\n");
        assert_eq!(fs::read_to_string(top.join("new")).unwrap(), "new");
        assert!(!top.join("script").exists() && !top.join("folder").exists());
    };
    let again = cairn.mount_with(&mountpoint, options);
    check(&again.at(&path));
    run(cairn.command(["umount"]).arg(&mountpoint)).succeeded();
    again.finish().succeeded();
    assert!(!is_mounted(&mountpoint));

    let plain = scene.mount(&cairn, "plain");
    assert_same(&tree, &plain.at(&path), Face::Mount);
}

#[test]
fn an_ephemeral_view_leaves_nothing() {
    let scene = Scene::new();
    let tree = tree(&scene);
    let cairn = scene.cairn();
    let path = cairn.import(&tree);
    let temporary = scene.new_folder("temporary");
    let mountpoint = scene.new_folder("mnt");
    let mut command = cairn.command(["mount", "--ephemeral", "--uid-gid", "65534:65534"]);
    command.arg(&mountpoint).env("TMPDIR", &temporary);
    let mut mount = cairn_tests::process::Running::start(&mut command);
    mount.wait_for("mounted on ");
    let top = mountpoint.join(path.strip_prefix("/nix/store/").unwrap());
    assert_eq!(top.join("script").metadata().unwrap().mode(), 0o100_755);
    // Its owner can write, who is not root.
    let mut write = Command::new("sh");
    write.args(["-c", "echo more >> twin && ./../script more > new && cat twin new"]);
    write.current_dir(top.join("folder")).uid(65534).gid(65534);
    assert_eq!(run(&mut write).succeeded().text(), "from the store\nmore\nmore\n");
    assert_eq!(fs::read_dir(&temporary).unwrap().count(), 1, "only what was written is there");
    mount.signal(Signal::INT);
    mount.finish().succeeded();
    assert!(!is_mounted(&mountpoint));
    assert_eq!(fs::read_dir(&temporary).unwrap().count(), 0);
}

#[test]
fn an_unmount_by_others_ends_the_process() {
    let scene = Scene::new();
    let cairn = scene.cairn();
    cairn.import(&tree(&scene));
    let mountpoint = scene.new_folder("mnt");
    let mount = cairn.mount_with(&mountpoint, ["--ephemeral"]);
    run(Command::new("umount").arg(&mountpoint)).succeeded();
    mount.finish().succeeded();
}

#[test]
fn files_that_are_open_can_be_used_for_the_time_of_grace() {
    let scene = Scene::new();
    let cairn = scene.cairn();
    let path = cairn.import(&tree(&scene));
    let mountpoint = scene.new_folder("mnt");
    let mut mount = cairn.mount_with(&mountpoint, ["--ephemeral", "--grace", "100000"]);
    let mut file = File::create(mount.at(&path).join("open")).unwrap();
    mount.process().signal(Signal::TERM);
    eventually("leaving the tree", || !is_mounted(&mountpoint));
    file.write_all(b"still there").unwrap();
    drop(file);
    mount.finish().succeeded();
}

#[test]
fn what_a_killed_process_leaves_is_cleaned_up() {
    let scene = Scene::new();
    let cairn = scene.cairn();
    let path = cairn.import(&tree(&scene));
    let (upper, mountpoint) = (scene.path("upper"), scene.new_folder("mnt"));
    let options = ["--writable", upper.to_str().unwrap()];
    let mount = cairn.mount_with(&mountpoint, options);
    fs::write(mount.at(&path).join("new"), "new").unwrap();
    let dead = mount.kill();
    assert!(is_mounted(&mountpoint));
    let again = cairn.mount_with(&mountpoint, options);
    assert_eq!(fs::read_to_string(again.at(&path).join("new")).unwrap(), "new");
    let dead_again = again.kill();
    run(cairn.command(["umount"]).arg(&mountpoint)).succeeded();
    assert!(!is_mounted(&mountpoint));
    drop((dead, dead_again));
}

#[test]
fn folders_that_can_not_be_used_are_told() {
    let scene = Scene::new();
    let cairn = scene.cairn();
    let mountpoint = scene.new_folder("mnt");
    let upper = scene.path("upper");
    let mount = |options: &[&str]| run(cairn.command(["mount"]).args(options).arg(&mountpoint));
    let file = scene.path("file");
    fs::write(&file, "").unwrap();
    mount(&["--writable", file.to_str().unwrap()]).failed(1, &["file", "can't be made"]);
    let work = upper.join("work");
    let options = ["--writable", upper.to_str().unwrap(), "--work", work.to_str().unwrap()];
    mount(&options).failed(1, &["upper", "work", "one file system"]);
    let mut unmade = cairn.command(["mount", "--writable", upper.to_str().unwrap()]);
    let unmade = run(unmade.arg(&mountpoint).env("TMPDIR", scene.path("none")));
    unmade.failed(1, &[scene.path("none").to_str().unwrap(), "can't be made"]);
    mount(&["--work", "/x"]).failed(2, &["--writable"]);
    mount(&["--writable", "/x", "--ephemeral"]).failed(2, &["--ephemeral"]);
    assert!(!is_mounted(&mountpoint));
    assert_eq!(fs::read_dir(&mountpoint).unwrap().count(), 0);
}
