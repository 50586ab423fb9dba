//! A store that stops answering: what is at hand goes on, what has to be waited for ends as an
//! error, a mount ends at once, and all goes on when there are answers again.

use std::{
    fs::{self, File},
    io::{self, Read as _},
    path::{Path, PathBuf},
    sync::mpsc,
    thread,
    time::Duration,
};

use cairn_tests::{
    cairn::{Daemon, Mount, Scene},
    compare::{Face, assert_same},
    measure::drop_caches,
    process::{eventually, run},
    proxy::{Line, Passage, Proxy},
    trees,
};
use rustix::process::Signal;

/// A little longer than the kernel remembers names in the root.
const ROOT_TIMEOUT: Duration = Duration::from_millis(1100);

/// A deadline that no test waits for, in seconds.
const NEVER: &str = "100000";

/// A mount of a tree that a daemon has behind a line which can fail.
struct Remote {
    scene: Scene,
    tree: PathBuf,
    proxy: Proxy,
    mount: Mount,
    root: PathBuf,
    _daemon: Daemon,
}

fn remote(options: &[&str]) -> Remote {
    let scene = Scene::new();
    let tree = trees::small(scene.folder(), "source");
    remote_of(scene, tree, options)
}

fn remote_of(scene: Scene, tree: PathBuf, options: &[&str]) -> Remote {
    let path = scene.cairn().import(&tree);
    let daemon = scene.serve_tcp();
    let proxy = Proxy::before(daemon.url());
    let cairn = cairn_tests::cairn::Cairn::new(proxy.url());
    let mount = cairn.mount_with(&scene.new_folder("mnt"), options);
    let root = mount.at(&path);
    Remote { scene, tree, proxy, mount, root, _daemon: daemon }
}

/// Waits until the mount has asked the store for something since the line was `asked` for so much.
fn waits(proxy: &Proxy, asked: u64) {
    eventually("a request to wait", || proxy.asked() > asked);
}

/// How many threads serve a mount.
fn serving(mount: &mut Mount) -> usize {
    let tasks = format!("/proc/{}/task", mount.process().pid().as_raw_nonzero());
    let tasks = fs::read_dir(tasks).unwrap().map(|task| task.unwrap().path().join("comm"));
    tasks.filter(|comm| fs::read_to_string(comm).is_ok_and(|name| name == "cairn-fuse\n")).count()
}

#[track_caller]
fn assert_io_error<T>(result: io::Result<T>) {
    let error = result.err().expect("the store does not answer");
    assert_eq!(error.raw_os_error(), Some(libc::EIO), "{error}");
}

#[test]
fn what_is_at_hand_goes_on_while_a_peer_is_silent() {
    let remote = remote(&["--deadline", "3"]);
    let Remote { tree, proxy, mount, root, .. } = &remote;
    // Names and directories have been seen, and of the files one.
    assert!(run(std::process::Command::new("find").arg(root)).succeeded().lines().len() > 20);
    let seen = fs::read(tree.join("a/file-1")).unwrap();
    assert!(fs::read(root.join("a/file-1")).unwrap() == seen);
    proxy.pass(Passage::Stalled);
    let asked = proxy.asked();
    thread::scope(|scope| {
        let stuck = scope.spawn(|| fs::read(root.join("large")));
        waits(proxy, asked);
        // In the kernel's memory.
        assert!(fs::read(root.join("a/file-1")).unwrap() == seen);
        assert_eq!(fs::read_link(root.join("link")).unwrap(), Path::new("a/file-0"));
        // In the server's.
        fs::write("/proc/sys/vm/drop_caches", "2").unwrap();
        assert!(fs::metadata(root.join("a/x/deep/equal")).unwrap().len() > 0);
        assert_eq!(fs::read_dir(root.join("a")).unwrap().count(), 9);
        fs::symlink_metadata(root.join("a/none")).unwrap_err();
        assert_io_error(stuck.join().unwrap());
    });
    // What nobody has heard of is not taken for missing.
    assert_io_error(fs::symlink_metadata(mount.mountpoint().join(format!("{}-x", "0".repeat(32)))));
    proxy.pass(Passage::Open);
    assert_same(tree, root, Face::Mount);
}

#[test]
fn names_and_directories_from_elsewhere_outlive_the_silence_of_contents() {
    let scene = Scene::new();
    let tree = trees::small(scene.folder(), "source");
    let path = scene.cairn().import(&tree);
    let daemon = scene.serve_tcp();
    let proxy = Proxy::before(daemon.url());
    let options = ["--blob-service-addr", &proxy.url(), "--deadline", "1"];
    let mount = daemon.client().mount_with(&scene.new_folder("mnt"), options);
    let root = mount.at(&path);
    proxy.pass(Passage::Stalled);
    assert_io_error(fs::read(root.join("large")));
    // Nobody has asked for these before.
    assert_eq!(fs::read_dir(root.join("a")).unwrap().count(), 9);
    assert_eq!(fs::metadata(root.join("same-plain")).unwrap().len(), 10);
    assert_eq!(fs::read(root.join("zero")).unwrap(), b"");
    assert_io_error(fs::read(root.join("same-plain")));
    proxy.pass(Passage::Open);
    assert_same(&tree, &root, Face::Mount);
}

#[test]
fn a_mount_recovers_from_a_line_that_was_cut() {
    let remote = remote(&["--deadline", "5"]);
    let Remote { tree, proxy, root, .. } = &remote;
    assert!(fs::read(root.join("a/file-1")).unwrap() == fs::read(tree.join("a/file-1")).unwrap());
    let connections = proxy.connections();
    // What was read is at hand from then on, so each time another.
    for file in ["large", "same-executable"] {
        proxy.pass(Passage::Cut);
        assert_io_error(fs::read(root.join(file)));
        proxy.pass(Passage::Open);
        let expected = fs::read(tree.join(file)).unwrap();
        eventually("the mount to recover", || {
            fs::read(root.join(file)).is_ok_and(|read| read == expected)
        });
    }
    assert!(proxy.connections() > connections);
    assert_same(tree, root, Face::Mount);
}

#[test]
fn a_line_that_changes_bytes_shows_no_wrong_ones() {
    let remote = remote(&["--deadline", "5"]);
    let Remote { tree, proxy, root, .. } = &remote;
    let files =
        ["large", "same-plain", "same-executable", "a/file-0", "a/file-5", "b/x/deep/equal"];
    let (mut right, mut failed) = (0, 0);
    for every in [150, 20_000, 300_000, 2_000_000] {
        proxy.set(Line { corrupt_every: Some(every), ..Line::default() });
        drop_caches();
        for file in files {
            match fs::read(root.join(file)) {
                Ok(read) => {
                    assert!(read == fs::read(tree.join(file)).unwrap(), "{file} is wrong");
                    right += 1;
                }
                Err(_) => failed += 1,
            }
        }
    }
    assert!(right > 0 && failed > 0, "{right} {failed}");
    proxy.set(Line::default());
    eventually("the mount to recover", || fs::read(root.join("large")).is_ok());
    assert_same(tree, root, Face::Mount);
}

#[test]
fn a_mount_of_a_silent_peer_ends_at_once() {
    let remote = remote(&["--deadline", NEVER, "--grace", "0"]);
    let Remote { scene, proxy, mount, root, .. } = remote;
    fs::metadata(root.join("large")).unwrap();
    proxy.pass(Passage::Stalled);
    let asked = proxy.asked();
    let stuck = thread::spawn(move || fs::read(root.join("large")));
    waits(&proxy, asked);
    let mountpoint = mount.mountpoint().to_owned();
    let words = ["umount", mountpoint.to_str().unwrap()];
    scene.cairn().run(words).failed(1, &["in use"]);
    mount.stop(Signal::TERM).succeeded();
    stuck.join().unwrap().unwrap_err();
    assert_eq!(fs::read_dir(mountpoint).unwrap().count(), 0);
}

#[test]
fn a_mount_of_a_silent_peer_that_nobody_uses_can_be_unmounted() {
    let remote = remote(&["--deadline", NEVER]);
    let Remote { scene, proxy, mount, root, .. } = remote;
    assert!(fs::metadata(root.join("large")).is_ok());
    proxy.pass(Passage::Stalled);
    let words = ["umount", mount.mountpoint().to_str().unwrap()].map(str::to_owned);
    scene.cairn().run(words).succeeded();
    mount.finish().succeeded();
}

#[test]
fn many_may_wait_and_those_beyond_are_told_at_once() {
    /// How many requests may wait, as the documentation has it.
    const WAITING_MAX: usize = 511;
    const BEYOND: usize = 50;
    let scene = Scene::new();
    let tree = scene.new_folder("source");
    for number in 0..WAITING_MAX + BEYOND {
        fs::write(tree.join(format!("file-{number}")), number.to_string()).unwrap();
    }
    let remote = remote_of(scene, tree, &["--deadline", NEVER, "--grace", "0"]);
    let Remote { proxy, mut mount, root, .. } = remote;
    let files = (0..WAITING_MAX + BEYOND).map(|number| root.join(format!("file-{number}")));
    let files: Vec<_> = files.map(|file| File::open(file).unwrap()).collect();
    proxy.pass(Passage::Stalled);
    let (ended, ends) = mpsc::channel();
    thread::scope(|scope| {
        for mut file in files {
            let ended = ended.clone();
            scope.spawn(move || ended.send(file.read_to_end(&mut Vec::new())).unwrap());
        }
        for _ in 0..BEYOND {
            assert_io_error(ends.recv().unwrap());
        }
        eventually("the others to wait", || serving(&mut mount) == WAITING_MAX + 1);
        assert!(ends.try_recv().is_err(), "one that may wait was told");
        // What needs no waiting goes on, whatever waits, and when the kernel remembers no name in the
        // root any more.
        thread::sleep(ROOT_TIMEOUT);
        fs::write("/proc/sys/vm/drop_caches", "2").unwrap();
        assert_eq!(fs::read_dir(&root).unwrap().count(), WAITING_MAX + BEYOND);
        assert_eq!(fs::metadata(root.join("file-77")).unwrap().len(), 2);
        mount.stop(Signal::TERM).succeeded();
        for _ in 0..WAITING_MAX {
            ends.recv().unwrap().unwrap_err();
        }
    });
}
