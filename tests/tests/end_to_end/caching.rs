//! A cache between a mount and a store that is far: what was read once is read without the store, by
//! whichever process, and whatever becomes of the cache is no error.

use std::{
    ffi::{OsStr, OsString},
    fs::{self, OpenOptions},
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use cairn_tests::{
    cairn::{Cairn, Daemon, Scene},
    compare::{Face, assert_same},
    measure::walk,
    process::{eventually, run},
    random::Random,
    tiny_disk::TinyDisk,
    trees::{self, base_name},
};
use rustix::process::Signal;
use serde_json::Value;

/// A store with two trees, served on TCP, and a cache of it.
struct Far {
    scene: Scene,
    trees: [PathBuf; 2],
    paths: [String; 2],
    daemon: Option<Daemon>,
    cached: Cairn,
    cache: PathBuf,
}

impl Far {
    fn new() -> Self {
        let scene = Scene::new();
        let trees = ["first", "second"].map(|name| trees::small(scene.folder(), name));
        // Groups of which some are never read.
        fs::write(trees[0].join("larger"), Random::new("larger").bytes(5 << 20)).unwrap();
        let paths = trees.each_ref().map(|tree| scene.cairn().import(tree));
        let daemon = scene.serve_tcp();
        let cache = scene.path("cache");
        let cached = daemon.client().with_cache(&cache);
        Self { scene, trees, paths, daemon: Some(daemon), cached, cache }
    }

    /// From here on the store can't be reached.
    fn vanish(&mut self) {
        self.daemon.take().expect("it is there until now").kill();
    }

    #[track_caller]
    fn export_same(&self, cairn: &Cairn, index: usize) {
        let exported = self.scene.path("exported");
        cairn.export(&self.paths[index], &exported).succeeded();
        assert_same(&self.trees[index], &exported, Face::Plain);
        fs::remove_dir_all(exported).unwrap();
    }

    #[track_caller]
    fn stats(&self) -> Value {
        let stats = self.cached.run(["cache", "stats", "--json"]).succeeded();
        serde_json::from_str(stats.text()).unwrap()
    }
}

fn number(stats: &Value, name: &str) -> u64 {
    stats[name].as_u64().unwrap_or_else(|| panic!("no {name} in {stats}"))
}

#[test]
fn a_second_mount_needs_no_store() {
    let mut far = Far::new();
    let mount = far.scene.mount(&far.cached, "first-mount");
    assert_same(&far.trees[0], &mount.at(&far.paths[0]), Face::Mount);
    let in_use = far.stats();
    assert!(number(&in_use["use"], "fetchedBytes") > 5 << 20, "{in_use}");
    mount.stop(Signal::TERM).succeeded();
    let stats = far.stats();
    assert!(stats["use"].is_null(), "{stats}");
    assert!(number(&stats, "fileParts") >= 20 && number(&stats, "storePaths") == 1, "{stats}");

    far.vanish();
    let mount = far.scene.mount(&far.cached, "second-mount");
    assert_same(&far.trees[0], &mount.at(&far.paths[0]), Face::Mount);
    // What is near is listed, with a word about it.
    let listed: Vec<_> = fs::read_dir(mount.mountpoint()).unwrap().map(Result::unwrap).collect();
    assert_eq!(listed.len(), 1);
    // What is not near is an error, in time.
    fs::metadata(mount.at(&far.paths[1])).unwrap_err();
    let said = mount.stop(Signal::TERM).succeeded().stderr;
    let near = format!("sled:{}", far.cache.display());
    assert!(said.contains(&near) && said.contains("grpc+http://"), "{said}");
    let cat = far.cached.run(["cat", &format!("{}/large", far.paths[1])]);
    cat.failed(1, &[&near, "grpc+http://", "can't be reached"]);
}

#[test]
fn a_mounter_that_is_killed_leaves_a_cache_that_is_warm() {
    let mut far = Far::new();
    let mount = far.scene.mount(&far.cached, "killed");
    assert_same(&far.trees[0], &mount.at(&far.paths[0]), Face::Mount);
    // What is kept a moment after it was read.
    let (mut last, mut stats) = (Value::Null, far.stats());
    while last["bytes"] != stats["bytes"] {
        thread::sleep(Duration::from_millis(300));
        last = std::mem::replace(&mut stats, far.stats());
    }
    let dead = mount.kill();
    far.vanish();
    let mount = far.scene.mount(&far.cached, "again");
    assert_same(&far.trees[0], &mount.at(&far.paths[0]), Face::Mount);
    drop((mount, dead));
}

#[test]
fn processes_share_a_cache_and_take_it_over_from_each_other() {
    let mut far = Far::new();
    let owner = far.scene.mount(&far.cached, "owner");
    let reader = far.scene.mount(&far.cached, "reader");
    assert_same(&far.trees[0], &reader.at(&far.paths[0]), Face::Mount);
    far.export_same(&far.cached, 1);
    let stats = far.stats();
    assert_eq!(number(&stats, "storePaths"), 2, "{stats}");

    // Another store has no business in it as long as it is in use.
    let other = far.scene.path("other-store");
    let other = Cairn::local(&other).with_cache(&far.cache);
    let what = ["in use for another store", "help: choose another folder with --cache"];
    other.run(["list"]).failed(1, &what);

    let dead = owner.kill();
    assert_same(&far.trees[1], &reader.at(&far.paths[1]), Face::Mount);
    far.vanish();
    for (tree, path) in far.trees.iter().zip(&far.paths) {
        assert_same(tree, &reader.at(path), Face::Mount);
    }
    reader.stop(Signal::TERM).succeeded();
    drop(dead);
    // Now it may be used for the other one, which sees nothing of the first.
    assert_eq!(other.list(), Vec::<String>::new());
    other.run(["path-info", &far.paths[0]]).failed(3, &["is not in the store"]);
}

#[test]
fn a_tree_is_warmed_whoever_holds_the_cache_and_evicted_again() {
    let mut far = Far::new();
    let warm = |target: &str| -> Value {
        let warmed = far.cached.run(["cache", "warm", "--json", target]).succeeded();
        serde_json::from_str(warmed.text()).unwrap()
    };
    let first = warm(&far.paths[0]);
    let bytes = number(&first, "bytes");
    assert!(bytes > 6 << 20, "{first}");
    assert!(number(&first, "bytesFetched") > bytes / 2, "{first}");
    let again = warm(&far.paths[0]);
    assert_eq!((number(&again, "bytes"), number(&again, "bytesFetched")), (bytes, 0), "{again}");
    far.cached.run(["cache", "warm", "no-such-path"]).failed(2, &[]);

    let mount = far.scene.mount(&far.cached, "mount");
    let second = warm(&far.paths[1]);
    assert!(number(&second, "filesFetched") >= 10, "{second}");
    let evict = ["cache", "evict", &far.paths[0]];
    assert_eq!(far.cached.run(evict).succeeded().lines(), [far.paths[0].clone()]);
    far.cached.run(evict).failed(3, &["1 of 1 paths are not in the cache"]);
    assert!(number(&warm(&far.paths[0]), "bytesFetched") > bytes / 2);
    far.cached.run(["cache", "evict", "--all"]).succeeded();
    let stats = far.stats();
    assert_eq!((number(&stats, "files"), number(&stats, "directories")), (0, 0), "{stats}");
    warm(&format!("{}/a", far.paths[0]));
    warm(&far.paths[1]);
    mount.stop(Signal::TERM).succeeded();

    far.vanish();
    far.export_same(&far.cached, 1);
    far.cached.run(["cat", &format!("{}/a/file-0", far.paths[0])]).succeeded();
    far.cached.run(["cat", &format!("{}/larger", far.paths[0])]).failed(1, &["can't be reached"]);
    far.cached.run(["cache", "evict", "--all"]).succeeded();
    far.cached.run(["cat", &format!("{}/large", far.paths[1])]).failed(1, &["can't be reached"]);
}

#[test]
fn a_cache_on_a_disk_without_room_is_no_error() {
    let far = Far::new();
    for bytes in [1 << 20, 12 << 20] {
        let disk = TinyDisk::mount(far.scene.new_folder(&format!("disk-{bytes}")), bytes);
        let cached = far.daemon.as_ref().unwrap().client().with_cache(&disk.path().join("cache"));
        let mount = far.scene.mount(&cached, &format!("mount-{bytes}"));
        for (tree, path) in far.trees.iter().zip(&far.paths) {
            assert_same(tree, &mount.at(path), Face::Mount);
        }
        disk.fill(&disk.path().join("filler"), 0);
        far.export_same(&cached, 0);
        mount.stop(Signal::TERM).succeeded();
        far.export_same(&cached, 0);
    }
}

#[test]
fn a_cache_is_never_taken_for_a_store_nor_thrown_away_with_something_else() {
    let far = Far::new();
    let store = far.scene.store();
    // The daemon has it open: nobody may even look.
    let url = far.daemon.as_ref().unwrap().client();
    let lone = Scene::new();
    let kept = trees::small(lone.folder(), "kept");
    let path = lone.cairn().import(&kept);
    let misused = url.clone().with_cache(&lone.store());
    misused.run(["list"]).failed(1, &["is a store", "name an empty folder with --cache"]);
    misused.run(["cache", "evict", "--all"]).failed(1, &["is a store"]);
    assert_eq!(lone.cairn().list(), [path]);

    far.export_same(&far.cached, 0);
    Cairn::local(&far.cache).run(["list"]).failed(1, &["is a cache", "--cache"]);
    let folder = far.scene.new_folder("letters");
    fs::write(folder.join("letter"), "dear").unwrap();
    url.with_cache(&folder).run(["list"]).failed(1, &["is not a cairn store"]);
    assert_eq!(fs::read_to_string(folder.join("letter")).unwrap(), "dear");
    assert!(store.exists());

    let none = far.scene.path("none");
    let none = far.scene.cairn().with_cache(&none);
    none.run(["cache", "stats"]).failed(3, &["there is no cache in", "help:"]);
    far.scene.cairn().run(["cache", "stats"]).failed(2, &["no cache is named", "--cache DIR"]);
    let small = ["--cache-size", "1MiB", "list"];
    far.cached.run(small).failed(2, &["at least 64MiB"]);
}

#[test]
fn what_is_damaged_in_a_cache_is_fetched_again() {
    let far = Far::new();
    far.export_same(&far.cached, 0);
    let mut flipped = 0;
    walk(&far.cache, &mut |path, metadata| {
        if path.extension().is_none_or(|extension| extension != "pack") {
            return;
        }
        let pack = OpenOptions::new().read(true).write(true).open(path).unwrap();
        for offset in (5000..metadata.len()).step_by(40_000) {
            let mut byte = [0];
            pack.read_exact_at(&mut byte, offset).unwrap();
            pack.write_all_at(&[byte[0] ^ 0x10], offset).unwrap();
            flipped += 1;
        }
    });
    assert!(flipped > 50);
    far.export_same(&far.cached, 0);
    spoil(&far.cache);
    far.export_same(&far.cached, 0);
    far.export_same(&far.cached, 0);
}

/// Makes a cache one of which nothing can be made.
fn spoil(cache: &Path) {
    fs::write(cache.join("format"), "nothing of the kind").unwrap();
    fs::remove_dir_all(cache.join("packs")).unwrap();
    fs::write(cache.join("packs"), "").unwrap();
}

#[test]
fn a_daemon_with_a_cache_serves_what_is_near_while_the_store_is_gone() {
    let mut far = Far::new();
    let near = far.cached.serve("127.0.0.1:0");
    far.export_same(&near.client(), 0);
    let written = trees::small(far.scene.folder(), "written");
    let path = near.client().import(&written);
    assert!(far.scene.cairn().list().contains(&path), "what is written goes to the store");
    far.vanish();
    far.export_same(&near.client(), 0);
    near.client().run(["export", &far.paths[1], "nowhere"]).failed(1, &[]);
}

/// Reads a little of the first tree, and what that was.
fn work(top: &Path) -> Vec<u8> {
    let mut read = vec![0; 5000];
    let larger = fs::File::open(top.join("larger")).unwrap();
    larger.read_exact_at(&mut read, 3 << 20).unwrap();
    read.extend(fs::read(top.join("a/x/deep/equal")).unwrap());
    read
}

#[test]
fn what_a_workload_touched_is_fetched_ahead_of_the_next() {
    let mut far = Far::new();
    let profile = far.scene.path("work.profile");
    let recording = [OsStr::new("--record"), profile.as_os_str()];
    let mount = far.scene.cairn().mount_with(&far.scene.new_folder("recorded"), recording);
    let expected = work(&mount.at(&far.paths[0]));
    assert!(!profile.exists(), "it is written at the end");
    mount.stop(Signal::TERM).succeeded();
    let text = fs::read_to_string(&profile).unwrap();
    let lines: Vec<_> = text.lines().collect();
    assert_eq!(lines[..2], ["cairn-profile 1", &format!("root {}", base_name(&far.paths[0]))]);
    let files = lines.iter().filter(|line| line.starts_with("file ")).count();
    assert_eq!(files, 2, "{text}");

    let warm = ["cache", "warm", "--json", "--profile", profile.to_str().unwrap()];
    let warmed = far.cached.run(warm).succeeded();
    let warmed: Value = serde_json::from_str(warmed.text()).unwrap();
    assert_eq!(number(&warmed, "filesFetched"), 2);
    assert_eq!(number(&warmed, "missing"), 0);
    // The kernel reads on a little by itself.
    assert!(number(&warmed, "bytesFetched") < 2 << 20, "{warmed}");
    far.vanish();
    let mount = far.scene.mount(&far.cached, "warmed");
    assert_eq!(work(&mount.at(&far.paths[0])), expected);
    fs::read(mount.at(&far.paths[0]).join("larger")).unwrap_err();
}

#[test]
fn a_mount_fetches_by_profile_while_it_is_used() {
    let mut far = Far::new();
    let profile = far.scene.path("work.profile");
    let option = |name| [OsString::from(name), profile.clone().into()];
    let mount = far.scene.cairn().mount_with(&far.scene.new_folder("recorded"), option("--record"));
    let expected = work(&mount.at(&far.paths[0]));
    mount.stop(Signal::TERM).succeeded();
    let warming = option("--profile-from");
    let mount = far.cached.mount_with(&far.scene.new_folder("warming"), &warming);
    eventually("the profile is fetched", || {
        let stats = far.stats();
        number(&stats, "files") > 0 && number(&stats, "fileParts") > 0
    });
    far.vanish();
    assert_eq!(work(&mount.at(&far.paths[0])), expected);
    drop(mount);

    let mountpoint = far.scene.path("warming");
    let refused = |cairn: &Cairn, words: &[OsString], code, said: &str| {
        let mount = [OsString::from("mount"), mountpoint.clone().into()];
        cairn.run(mount.iter().chain(words)).failed(code, &[said]);
    };
    refused(&far.scene.cairn(), &warming, 2, "--cache");
    fs::write(&profile, "cairn-profile 1\nfile x\n").unwrap();
    refused(&far.cached, &warming, 2, "line 2");
    fs::remove_file(&profile).unwrap();
    refused(&far.cached, &warming, 3, "work.profile");
    let nowhere = ["--record", "/nowhere/work.profile"].map(OsString::from);
    refused(&far.cached, &nowhere, 1, "/nowhere/work.profile");
    let folder = far.scene.new_folder("a-folder");
    let folder = [OsString::from("--record"), folder.into()];
    refused(&far.cached, &folder, 1, "a-folder");
}

#[test]
fn a_mount_in_the_background_writes_its_profile_where_it_was_started() {
    let scene = Scene::new();
    let path = scene.cairn().import(&trees::small(scene.folder(), "tree"));
    let mountpoint = scene.new_folder("mnt");
    let words = ["mount", "--daemonize", "--record", "work.profile", mountpoint.to_str().unwrap()];
    run(scene.cairn().command(words).current_dir(scene.folder())).succeeded();
    fs::read(mountpoint.join(base_name(&path)).join("large")).unwrap();
    scene.cairn().run(["umount".as_ref(), mountpoint.as_os_str()]).succeeded();
    let profile = fs::read_to_string(scene.path("work.profile")).unwrap();
    assert!(profile.lines().any(|line| line.starts_with("file ")), "{profile}");
    let left = fs::read_dir(scene.folder()).unwrap().map(|entry| entry.unwrap().file_name());
    assert!(!left.into_iter().any(|name| name.to_str().unwrap().starts_with(".cairn")));
}

#[test]
fn the_size_of_a_cache_can_stand_in_its_address_or_beside() {
    let far = Far::new();
    let url = far.daemon.as_ref().unwrap().url();
    let budget = |address: &str, words: &[&str]| {
        let words = words.iter().chain(&["cache", "stats", "--json"]).copied();
        let stats = Cairn::new(address).run(words).succeeded();
        number(&serde_json::from_str(stats.text()).unwrap(), "budget")
    };
    far.export_same(&far.cached, 0);
    let address = format!("cache:?near=sled:{}&far={url}", far.cache.display());
    assert_eq!(budget(&address, &["--cache-size", "100MiB"]), 100 << 20);
    assert_eq!(budget(&format!("{address}&size=70MiB"), &["--cache-size", "100MiB"]), 70 << 20);
}
