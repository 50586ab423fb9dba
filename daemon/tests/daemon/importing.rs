//! Imports: several paths at once, ends that are asked for, and trees that have not changed.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    thread::sleep,
    time::Duration,
};

use rustix::process::Signal;

use crate::process::{Running, TREE_PATH, cairn_on, noise, run, tree};

#[test]
fn several_paths_are_printed_in_the_order_given() {
    let folder = tempfile::tempdir().unwrap();
    let source = folder.path().join("large");
    fs::write(&source, noise(1, 20 << 20)).unwrap();
    let small: Vec<_> = (0..6).map(|n| tree(folder.path(), &format!("tree{n}"))).collect();
    let one_by_one: String = [&source]
        .into_iter()
        .chain(&small)
        .map(|path| run(cairn_on(&folder.path().join("one")).arg("import").arg(path)).stdout())
        .collect();
    let mut together = cairn_on(&folder.path().join("all"));
    together.arg("import").arg(&source).args(&small);
    assert_eq!(run(&mut together).stdout(), one_by_one);
}

#[test]
fn a_path_that_fails_is_told_and_keeps_no_other_back() {
    let folder = tempfile::tempdir().unwrap();
    let store = folder.path().join("store");
    let source = tree(folder.path(), "tree");
    let missing = ["missing1", "missing2"].map(|name| folder.path().join(name));
    let mut import = cairn_on(&store);
    import.arg("import").arg(&missing[0]).arg(&source).arg(&missing[1]).arg(&source);
    let ended = run(&mut import);
    assert_eq!(ended.code, Some(1));
    assert_eq!(String::from_utf8(ended.stdout).unwrap(), format!("{TREE_PATH}\n{TREE_PATH}\n"));
    let first = ended.stderr.find("missing1 does not exist");
    let second = ended.stderr.find("missing2 does not exist");
    assert!(first.is_some() && first < second, "{}", ended.stderr);
}

/// A sparse file that takes long to import.
fn endless(folder: &Path) -> PathBuf {
    let path = folder.join("endless");
    fs::File::create(&path).unwrap().set_len(1 << 40).unwrap();
    path
}

/// Waits until a process has the file open.
fn reads(process: &Running, path: &Path) {
    let fds = format!("/proc/{}/fd", process.id());
    let is_open = || {
        let fds = fs::read_dir(&fds).into_iter().flatten().flatten();
        fds.filter_map(|fd| fs::read_link(fd.path()).ok()).any(|target| target == path)
    };
    while !is_open() {
        sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_signal_ends_an_import_and_leaves_the_store_as_it_was() {
    let folder = tempfile::tempdir().unwrap();
    let (store, mountpoint) = (folder.path().join("store"), folder.path().join("mountpoint"));
    fs::create_dir(&mountpoint).unwrap();
    let source = tree(folder.path(), "tree");
    let path = endless(&folder.path().canonicalize().unwrap());
    let import = |command: &mut Command| Running::start(command.arg("import").arg(&path));
    let mount = |command: &mut Command| {
        Running::start(command.arg("mount").arg("--import").arg(&path).arg(&mountpoint))
    };
    type Start<'a> = &'a dyn Fn(&mut Command) -> Running;
    let starts: [(Start<'_>, Signal, i32); 3] =
        [(&import, Signal::INT, 130), (&import, Signal::TERM, 143), (&mount, Signal::INT, 130)];
    for (start, signal, code) in starts {
        let process = start(&mut cairn_on(&store));
        reads(&process, &path);
        process.signal(signal);
        let (status, stderr) = process.wait();
        assert_eq!(status.code(), Some(code), "{stderr}");
    }
    let imported = run(cairn_on(&store).arg("import").arg(&source)).stdout();
    assert_eq!(imported, format!("{TREE_PATH}\n"));
    assert_eq!(run(cairn_on(&store).arg("list")).stdout(), imported);
}

#[test]
fn an_unchanged_tree_is_not_read_unless_asked_for() {
    let folder = tempfile::tempdir().unwrap();
    let store = folder.path().join("store");
    let source = tree(folder.path(), "tree");
    let import = |arguments: &[&str]| {
        let mut import = cairn_on(&store);
        import.env("XDG_CACHE_HOME", folder.path().join("cache"));
        let ended = run(import.args(["-v", "import"]).args(arguments).arg(&source));
        assert_eq!(ended.stdout, format!("{TREE_PATH}\n").as_bytes(), "{}", ended.stderr);
        !ended.stderr.contains("0 of them unchanged")
    };
    // Too young at first to be known again.
    sleep(cairn_castore::import::SETTLED_AFTER + Duration::from_millis(100));
    assert!(!import(&[]));
    assert!(import(&[]));
    assert!(!import(&["--no-stat-cache"]));
    fs::remove_dir_all(&store).unwrap();
    assert!(!import(&[]), "the store is another one");
    assert!(import(&[]));
}
