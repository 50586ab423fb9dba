//! Large numbers: a directory of very many entries and a root of very many store paths, on mounts of
//! a local store and over gRPC. Millions of inodes are the affair of the tests of the mount alone.

use std::{
    collections::BTreeSet,
    fs,
    io::ErrorKind,
    path::{Path, PathBuf},
    process::Command,
};

use cairn_tests::{
    cairn::{Cairn, Mount, Scene},
    generated::Generated,
    measure::{drop_caches, memory},
    process::{LONG_PATIENCE, Running, eventually},
    trees,
};

/// The memory that a mount may have when the kernel has forgotten everything, in bytes. Less in a
/// release build.
const AT_REST_MAX: u64 = 80 << 20;

/// How many contents the entries have.
const CONTENTS: usize = 100;

/// The names in a folder as they come.
fn list(folder: &Path) -> Vec<String> {
    let mut names = lines(Command::new("ls").arg("-f").arg(folder));
    names.retain(|name| name != "." && name != "..");
    names
}

/// The names in a folder, each of which was looked at.
fn look_at_all(folder: &Path) -> Vec<String> {
    let words = ["-mindepth", "1", "-maxdepth", "1", "-printf", "%s %f\n"];
    let lines = lines(Command::new("find").arg(folder).args(words));
    lines.iter().map(|line| line.split_once(' ').unwrap().1.to_owned()).collect()
}

fn lines(command: &mut Command) -> Vec<String> {
    Running::start(command).finish_within(LONG_PATIENCE).succeeded().lines()
}

#[track_caller]
fn assert_whole(listed: &[String], expected: &BTreeSet<&str>) {
    assert_eq!(listed.len(), expected.len());
    assert!(listed.iter().map(String::as_str).collect::<BTreeSet<_>>() == *expected);
}

/// Memory goes back once nothing is used, whatever was shown.
#[track_caller]
fn rests(mount: &mut Mount, name: &str) {
    eprintln!("{name}: {} MB", memory(mount.process()) >> 20);
    drop_caches();
    eventually("giving memory back", || memory(mount.process()) < AT_REST_MAX);
    eprintln!("{name} at rest: {} MB", memory(mount.process()) >> 20);
}

fn wide_directory(entries: usize) {
    let scene = Scene::new();
    let names: Vec<_> = (0..entries).map(|number| format!("entry-{number:07}")).collect();
    let path = {
        let generated = Generated::open(&scene.store());
        let files: Vec<_> =
            (0..CONTENTS).map(|number| generated.file(&format!("content {number}"))).collect();
        let of =
            |(number, name): (usize, &String)| (name.clone(), files[number % CONTENTS].clone());
        let inner = generated.directory(names.iter().enumerate().map(of));
        let top = generated.directory([("wide".to_owned(), inner)]);
        generated.add([("wide".to_owned(), top)]).remove(0)
    };
    let expected = names.iter().map(String::as_str).collect();
    let compare = |cairn: &Cairn, name: &str| {
        let mut mount = scene.mount(cairn, name);
        let folder = mount.at(&path).join("wide");
        // Looked up before anything is listed.
        for number in (0..entries).step_by(entries / 50) {
            let content = fs::read_to_string(folder.join(&names[number])).unwrap();
            assert_eq!(content, format!("content {}", number % CONTENTS));
            let missing = fs::symlink_metadata(folder.join(format!("none-{number}")));
            assert_eq!(missing.unwrap_err().kind(), ErrorKind::NotFound);
        }
        assert_whole(&list(&folder), &expected);
        assert_whole(&look_at_all(&folder), &expected);
        rests(&mut mount, name);
    };
    compare(&scene.cairn(), "local");
    let daemon = scene.serve_tcp();
    compare(&daemon.client(), "tcp");
}

#[test]
fn a_wide_directory_is_whole() {
    wide_directory(30_000);
}

#[test]
#[ignore = "a million entries: part of tests/run"]
fn a_directory_of_a_million_entries_is_whole() {
    wide_directory(1_000_000);
}

fn many_paths(count: usize) {
    let scene = Scene::new();
    let paths = {
        let generated = Generated::open(&scene.store());
        let trees: Vec<_> = (0..CONTENTS)
            .map(|number| {
                let file = generated.file(&format!("content {number}"));
                generated.directory([("file".to_owned(), file)])
            })
            .collect();
        let of = |number: usize| (format!("path-{number}"), trees[number % CONTENTS].clone());
        generated.add((0..count).map(of))
    };
    let expected: BTreeSet<_> = paths.iter().map(|path| trees::base_name(path)).collect();
    assert_eq!(expected.len(), count);
    let look_up = |mount: &Mount| {
        for number in (0..count).step_by(count / 50) {
            let file = mount.at(&paths[number]).join("file");
            assert_eq!(fs::read_to_string(file).unwrap(), format!("content {}", number % CONTENTS));
        }
        let wrong = PathBuf::from(format!("{}-not", mount.at(&paths[0]).display()));
        assert_eq!(fs::symlink_metadata(wrong).unwrap_err().kind(), ErrorKind::NotFound);
    };
    let compare = |cairn: &Cairn, name: &str| {
        let mut mount = scene.mount(cairn, name);
        look_up(&mount);
        assert_whole(&list(mount.mountpoint()), &expected);
        assert_whole(&look_at_all(mount.mountpoint()), &expected);
        rests(&mut mount, name);
        let unlisted = scene.new_folder(&format!("{name}-unlisted"));
        let unlisted = cairn.mount_with(&unlisted, ["--no-list-root"]);
        let listed = fs::read_dir(unlisted.mountpoint())
            .and_then(|entries| entries.collect::<Result<Vec<_>, _>>());
        assert_eq!(listed.unwrap_err().kind(), ErrorKind::PermissionDenied);
        look_up(&unlisted);
    };
    compare(&scene.cairn(), "local");
    let daemon = scene.serve_tcp();
    compare(&daemon.client(), "tcp");
}

#[test]
fn a_root_of_many_store_paths_is_whole() {
    many_paths(3_000);
}

#[test]
#[ignore = "100,000 store paths: part of tests/run"]
fn a_root_of_100_000_store_paths_is_whole() {
    many_paths(100_000);
}
