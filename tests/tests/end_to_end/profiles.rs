//! How the kernel reads a mount's files: by itself where it may, and through the mount otherwise.

use std::{fs, path::Path};

use cairn_tests::{
    cairn::{Cairn, Mount, Scene},
    process::{bytes_read_by, eventually},
    random::Random,
};
use rustix::process::Signal;

/// As few bytes as make a file a large one, and some.
const LARGE: usize = 3 << 20;

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

fn tree(scene: &Scene) -> (Cairn, String, Vec<u8>) {
    let tree = scene.new_folder("source");
    let bytes = Random::new("a large file").bytes(LARGE);
    fs::write(tree.join("large"), &bytes).unwrap();
    fs::write(tree.join("small"), "small").unwrap();
    let cairn = scene.cairn();
    let path = cairn.import(&tree);
    (cairn, path, bytes)
}

fn whole_files(folder: &Path) -> usize {
    fs::read_dir(folder).map_or(0, Iterator::count)
}

/// Reads the file as it is opened now, not from the kernel's page cache; whether that took nothing
/// from the process behind the mount.
#[track_caller]
fn is_read_by_the_kernel(mount: &mut Mount, path: &Path, expected: &[u8]) -> bool {
    fs::write("/proc/sys/vm/drop_caches", "1").unwrap();
    let before = bytes_read_by(mount.process().pid());
    let read = fs::read(path).unwrap();
    assert!(read == expected, "the bytes differ");
    bytes_read_by(mount.process().pid()) - before < expected.len() as u64 / 2
}

#[test]
fn a_large_file_that_is_read_becomes_one_that_the_kernel_reads() {
    if !is_root() {
        return;
    }
    let scene = Scene::new();
    let (cairn, path, bytes) = tree(&scene);
    let folder = scene.path("whole");
    let mountpoint = scene.new_folder("mnt");
    let options = ["--profile", "passthrough", "--whole-files", folder.to_str().unwrap()];

    let mut mount = cairn.mount_with(&mountpoint, options);
    let large = mount.at(&path).join("large");
    assert!(!is_read_by_the_kernel(&mut mount, &large, &bytes));
    assert_eq!(fs::read(mount.at(&path).join("small")).unwrap(), b"small");
    eventually("a whole file is made", || whole_files(&folder) == 1);
    eventually("the kernel reads it", || is_read_by_the_kernel(&mut mount, &large, &bytes));
    drop(mount);

    // A later process verifies what is there, and then lends it.
    let mut mount = cairn.mount_with(&mountpoint, options);
    eventually("the kernel reads it", || is_read_by_the_kernel(&mut mount, &large, &bytes));
    assert_eq!(whole_files(&folder), 1);
    mount.stop(Signal::TERM).succeeded();

    // Named alone, the folder says what is wanted.
    let mut mount = cairn.mount_with(&mountpoint, &options[2..]);
    eventually("the kernel reads it", || is_read_by_the_kernel(&mut mount, &large, &bytes));
}

#[test]
fn whole_files_keep_to_their_room() {
    if !is_root() {
        return;
    }
    let scene = Scene::new();
    let (cairn, path, bytes) = tree(&scene);
    let folder = scene.path("whole");
    let mountpoint = scene.new_folder("mnt");
    let folder_name = folder.to_str().unwrap();
    let options =
        ["--profile", "passthrough", "--whole-files", folder_name, "--whole-files-size", "2MiB"];
    let mount = cairn.mount_with(&mountpoint, options);
    for _ in 0..3 {
        fs::write("/proc/sys/vm/drop_caches", "1").unwrap();
        assert!(fs::read(mount.at(&path).join("large")).unwrap() == bytes);
    }
    assert_eq!(whole_files(&folder), 0);
}

#[test]
fn a_profile_that_can_not_be_says_why() {
    let scene = Scene::new();
    let (cairn, path, bytes) = tree(&scene);
    let mountpoint = scene.new_folder("mnt");
    let mount = |options: &[&str]| {
        let words = options.iter().copied().chain([mountpoint.to_str().unwrap()]);
        cairn.run(["mount"].into_iter().chain(words))
    };
    let here = ["--profile", "passthrough", "--whole-files", "/proc/whole"];
    mount(&here).failed(1, &["/proc/whole", "--whole-files", "--profile cache"]);
    mount(&["--whole-files-size", "much"]).failed(2, &["much", "20GiB"]);
    // Left to itself it does without.
    let mount = cairn.mount_with(&mountpoint, ["--whole-files", "/proc/whole"]);
    assert!(fs::read(mount.at(&path).join("large")).unwrap() == bytes);
}
