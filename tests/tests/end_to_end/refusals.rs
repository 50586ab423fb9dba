//! Input that can't be taken: each is refused with a message that names it and an exit code that
//! is not 0, and the store is as it was.

use std::{
    fs,
    os::unix::{fs::PermissionsExt as _, net::UnixListener},
    path::Path,
};

use cairn_tests::{
    cairn::{Cairn, Scene},
    compare::{Face, assert_same},
    process::{bytes_read_by, eventually},
    trees,
};
use rustix::fs::{CWD, FileType, Mode, makedev, mknodat};

/// A store with one tree, and the means to see that nothing has become of it.
struct Kept {
    scene: Scene,
    path: String,
}

impl Kept {
    fn new() -> Self {
        let scene = Scene::new();
        let path = scene.cairn().import(&trees::small(scene.folder(), "kept"));
        Self { scene, path }
    }

    fn cairn(&self) -> Cairn {
        self.scene.cairn()
    }

    /// A tree with one good file, to which something bad can be added.
    fn tree(&self) -> std::path::PathBuf {
        let tree = self.scene.new_folder("bad");
        fs::write(tree.join("good"), "good").unwrap();
        tree
    }

    /// Imports what can't be, and checks all that is promised of it.
    #[track_caller]
    fn refuses(&self, tree: &Path, names: &[&str]) {
        let finished = self.cairn().run([Path::new("import"), tree]).failed(1, names);
        assert_eq!(finished.text(), "");
        self.is_as_it_was();
    }

    #[track_caller]
    fn is_as_it_was(&self) {
        assert_eq!(self.cairn().list(), std::slice::from_ref(&self.path));
        let exported = self.scene.path("exported");
        self.cairn().export(&self.path, &exported).succeeded();
        assert_same(&self.scene.path("kept"), &exported, Face::Plain);
        fs::remove_dir_all(exported).unwrap();
    }
}

#[test]
fn a_fifo_a_device_and_a_socket_are_refused() {
    let kept = Kept::new();
    let tree = kept.tree();
    let bad = tree.join("the-fifo");
    mknodat(CWD, &bad, FileType::Fifo, Mode::RUSR, 0).unwrap();
    kept.refuses(&tree, &[bad.to_str().unwrap()]);
    // Given by itself, too, without waiting for a writer.
    kept.refuses(&bad, &[bad.to_str().unwrap()]);
    fs::remove_file(bad).unwrap();

    let bad = tree.join("the-socket");
    let listener = UnixListener::bind(&bad).unwrap();
    kept.refuses(&tree, &[bad.to_str().unwrap()]);
    drop(listener);
    fs::remove_file(bad).unwrap();

    let bad = tree.join("the-device");
    mknodat(CWD, &bad, FileType::CharacterDevice, Mode::RUSR, makedev(1, 3))
        .expect("making a device needs root");
    kept.refuses(&tree, &[bad.to_str().unwrap()]);
}

#[test]
fn what_may_not_be_read_is_refused() {
    let scene = Scene::new();
    // As a user without rights, with a store of this user's.
    let open = |path: &Path| fs::set_permissions(path, fs::Permissions::from_mode(0o777)).unwrap();
    open(scene.folder());
    open(&scene.new_folder("home"));
    let cairn = Cairn::local(&scene.path("home/store")).as_nobody(&scene.new_folder("home"));
    let kept = trees::small(scene.folder(), "kept");
    let path = cairn.import(&kept);

    let tree = scene.new_folder("bad");
    let secret = tree.join("secret");
    fs::write(&secret, "secret").unwrap();
    fs::set_permissions(&secret, fs::Permissions::from_mode(0o000)).unwrap();
    let import = || cairn.run([Path::new("import"), &tree]);
    import().failed(1, &[secret.to_str().unwrap()]);

    fs::remove_file(&secret).unwrap();
    fs::create_dir(&secret).unwrap();
    fs::set_permissions(&secret, fs::Permissions::from_mode(0o000)).unwrap();
    import().failed(1, &[secret.to_str().unwrap()]);
    fs::set_permissions(&secret, fs::Permissions::from_mode(0o755)).unwrap();

    assert_eq!(cairn.list(), [path]);
    import().succeeded();
}

#[test]
fn a_file_that_shrinks_while_it_is_read_is_refused() {
    let kept = Kept::new();
    let tree = kept.tree();
    let shrinks = tree.join("shrinks");
    let file = fs::File::create(&shrinks).unwrap();
    file.set_len(64 << 30).unwrap();
    let import = kept.cairn().start([Path::new("import"), &tree]);
    // The file is long enough that the import is still at it.
    eventually("reading", || bytes_read_by(import.pid()) > 64 << 20);
    file.set_len(1 << 20).unwrap();
    import.finish().failed(1, &[shrinks.to_str().unwrap()]);
    kept.is_as_it_was();
}

#[test]
fn names_not_fit_for_a_store_path_are_refused() {
    let kept = Kept::new();
    let long = "x".repeat(212);
    for name in ["a b", "ä", "a/b", "", &long] {
        let tree = kept.tree();
        let words = ["import", "--name", name, tree.to_str().unwrap()];
        let finished = kept.cairn().run(words);
        assert!(matches!(finished.status.code(), Some(1 | 2)), "{name}: {finished:?}");
        assert!(finished.stderr.contains(name), "{name}: {finished:?}");
        if !name.contains('/') && !name.is_empty() {
            let tree = kept.scene.new_folder(name);
            let finished = kept.cairn().run([Path::new("import"), &tree]);
            assert!(matches!(finished.status.code(), Some(1 | 2)), "{name}: {finished:?}");
            assert!(finished.stderr.contains(name), "{name}: {finished:?}");
        }
    }
    kept.is_as_it_was();
}

#[test]
fn a_path_that_is_not_there_is_not_found() {
    let kept = Kept::new();
    let missing = kept.scene.path("missing");
    let finished = kept.cairn().run([Path::new("import"), &missing]);
    assert!(matches!(finished.status.code(), Some(1 | 3)), "{finished:?}");
    assert!(finished.stderr.contains(missing.to_str().unwrap()), "{finished:?}");

    let unknown = "/nix/store/00000000000000000000000000000000-unknown";
    let digest = cairn_castore::Digest::of(b"unknown").to_string();
    for command in ["ls", "cat", "stat", "path-info"] {
        kept.cairn().run([command, unknown]).failed(3, &[unknown]);
    }
    for command in ["ls", "cat", "stat"] {
        kept.cairn().run([command, &digest]).failed(3, &[&digest]);
        let below = format!("{}/a/missing", kept.path);
        kept.cairn().run([command, &below]).failed(3, &["missing"]);
    }
    kept.cairn().export(unknown, &kept.scene.path("exported")).failed(3, &[unknown]);
    assert!(!kept.scene.path("exported").exists());
    kept.is_as_it_was();
}

#[test]
fn a_wrong_name_behind_a_right_hash_is_not_found() {
    let kept = Kept::new();
    let wrong = kept.path.replace("-kept", "-WRONGNAME");
    for command in ["ls", "stat", "path-info"] {
        kept.cairn().run([command, &wrong]).failed(3, &["WRONGNAME"]);
    }
}

#[test]
fn what_is_no_reference_and_no_url_is_told() {
    let kept = Kept::new();
    for reference in ["nonsense", "/nix/store/short", "blake3-AAAA", "/etc/passwd"] {
        let finished = kept.cairn().run(["cat", reference]);
        assert!(matches!(finished.status.code(), Some(1..=3)), "{finished:?}");
        assert!(finished.stderr.contains(reference), "{finished:?}");
    }
    for url in ["nonsense", "ftp://somewhere", "sled:", "grpc+http://", "objectstore+"] {
        let finished = Cairn::new(url).run(["list"]);
        assert!(matches!(finished.status.code(), Some(1 | 2)), "{url}: {finished:?}");
        assert!(finished.stderr.contains(url), "{url}: {finished:?}");
        assert!(!finished.stderr.contains("panicked"), "{url}: {finished:?}");
    }
    for words in [&["bogus"][..], &["import"], &["mount"], &["list", "--bogus"]] {
        kept.cairn().run(words).failed(2, &[]);
    }
}

#[test]
fn export_overwrites_nothing() {
    let kept = Kept::new();
    let there = kept.scene.new_folder("there");
    fs::write(there.join("mine"), "mine").unwrap();
    kept.cairn().export(&kept.path, &there).failed(1, &[there.to_str().unwrap()]);
    assert_eq!(fs::read_to_string(there.join("mine")).unwrap(), "mine");
    assert_eq!(fs::read_dir(there).unwrap().count(), 1);
}

#[test]
fn one_bad_tree_among_good_ones_does_not_hide_them() {
    let kept = Kept::new();
    let good = trees::small(kept.scene.folder(), "good-one");
    let bad = kept.tree();
    let fifo = bad.join("the-fifo");
    mknodat(CWD, &fifo, FileType::Fifo, Mode::RUSR, 0).unwrap();
    let words = [Path::new("import"), &good, &bad];
    let finished = kept.cairn().run(words).failed(1, &[fifo.to_str().unwrap()]);
    // Whatever was printed is there, and nothing else is.
    let mut wanted = finished.lines();
    wanted.push(kept.path.clone());
    wanted.sort_unstable();
    assert_eq!(kept.cairn().list(), wanted);
}
