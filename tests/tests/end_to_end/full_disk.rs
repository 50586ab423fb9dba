//! A disk that fills up under an import: a clear error, nothing lost, and once there is room the
//! store takes more.

use std::{env, fs, thread, time::Duration};

use cairn_tests::{
    cairn::{Cairn, Scene},
    compare::{Face, assert_same},
    history::History,
    random::Random,
    tiny_disk::TinyDisk,
    trees,
};

/// The rounds of the quick run; `CAIRN_FULL_ROUNDS` asks for more.
const ROUNDS: u32 = 8;

/// The imports into one disk, which are some 25 MB each.
const DISK_ROUNDS: u32 = 8;
const DISK_BYTES: u64 = 512 << 20;

/// The disk is filled within this time of an import's start, in microseconds.
const FILLED_WITHIN: u64 = 400_000;

/// Less than this is left of it, in bytes: more than packs leave free, or nothing, or in between.
const LEFT_BELOW: u64 = 80 << 20;

#[test]
fn a_full_disk_is_an_error_and_no_loss() {
    let scene = Scene::new();
    let disk = TinyDisk::mount(scene.new_folder("disk"), 24 << 20);
    let cairn = Cairn::local(&disk.path().join("store"));
    let kept = trees::small(scene.folder(), "kept");
    let path = cairn.import(&kept);

    let large = scene.new_folder("large-tree");
    for index in 0..48 {
        let bytes = Random::new(&format!("large {index}")).bytes(1 << 20);
        fs::write(large.join(format!("file-{index}")), bytes).unwrap();
    }
    for _ in 0..2 {
        cairn.run(["import".as_ref(), large.as_os_str()]).failed(1, &["no room left"]);
        assert_eq!(cairn.list(), std::slice::from_ref(&path));
        cairn.export(&path, &scene.path("exported")).succeeded();
        assert_same(&kept, &scene.path("exported"), Face::Plain);
        fs::remove_dir_all(scene.path("exported")).unwrap();
    }

    disk.resize(256 << 20);
    let second = cairn.import(&large);
    for (tree, path) in [(&kept, &path), (&large, &second)] {
        cairn.export(path, &scene.path("exported")).succeeded();
        assert_same(tree, &scene.path("exported"), Face::Plain);
        fs::remove_dir_all(scene.path("exported")).unwrap();
    }
}

#[test]
fn a_disk_that_fills_up_at_any_moment_loses_nothing_acknowledged() {
    let rounds = env::var("CAIRN_FULL_ROUNDS").map_or(ROUNDS, |rounds| rounds.parse().unwrap());
    let seed = env::var("CAIRN_FULL_SEED").unwrap_or_else(|_| "full".to_owned());
    let mut random = Random::new(&seed);
    let (mut failed, mut acknowledged) = (0, 0);
    for first in (0..rounds).step_by(DISK_ROUNDS as usize) {
        let scene = Scene::new();
        let disk = TinyDisk::mount_ext4(scene.new_folder("disk"), DISK_BYTES);
        let store = disk.path().join("store");
        let filler = disk.path().join("filler");
        let cairn = Cairn::local(&store);
        let mut history = History::default();
        for round in first..rounds.min(first + DISK_ROUNDS) {
            let left = random.below(LEFT_BELOW).saturating_sub(LEFT_BELOW / 4);
            let moment = Duration::from_micros(random.below(FILLED_WITHIN));
            println!("seed {seed}, round {round}: {left} bytes are left after {moment:?}");
            let import = history.start_import(&scene, &cairn);
            thread::sleep(moment);
            disk.fill(&filler, left);
            let ended = import.finish();
            history.acknowledge(&ended);
            if !ended.status.success() {
                failed += 1;
                let store = store.to_str().unwrap();
                ended.failed(1, &[store, "no room left", "help: make room on the disk"]);
            }
            // Even this may need some room, but then it says so.
            let list = cairn.run(["list"]);
            if !list.status.success() {
                list.failed(1, &["no room left", "help: make room on the disk"]);
            }
            fs::remove_file(&filler).unwrap();
            history.check(&scene, &cairn);
        }
        // The same store takes more, and has all that it had.
        let import = history.start_import(&scene, &cairn).finish().succeeded();
        history.acknowledge(&import);
        history.check(&scene, &cairn);
        history.check_all(&scene, &cairn);
        acknowledged += history.acknowledged();
    }
    println!("seed {seed}: {failed} of {rounds} imports failed, {acknowledged} acknowledged");
    assert!(failed > 0, "every import ended before the disk was full");
    assert!(acknowledged > 0);
}
