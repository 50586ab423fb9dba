//! Several processes on one local store: all of them simply work, whoever came first and whoever
//! is gone.

use std::{
    fs,
    path::{Path, PathBuf},
};

use cairn_tests::{
    cairn::{Cairn, Mount, Scene},
    compare::{Face, assert_same},
    measure::walk,
    nix,
    process::LONG_PATIENCE,
    random::Random,
    trees,
};
use rustix::process::Signal;

#[test]
fn commands_run_beside_a_mount() {
    let scene = Scene::new();
    let cairn = scene.cairn();
    let first = trees::small(scene.folder(), "first");
    let words = ["--import".as_ref(), first.as_os_str()];
    let mount = cairn.mount_with(&scene.new_folder("mnt"), words);
    let path = mount.imported[0].clone();

    assert_eq!(cairn.list(), std::slice::from_ref(&path));
    let second = trees::small(scene.folder(), "second");
    let later = cairn.import(&second);
    assert_same(&second, &mount.at(&later), Face::Mount);
    cairn.export(&path, &scene.path("exported")).succeeded();
    assert_same(&first, &scene.path("exported"), Face::Plain);

    let daemon = scene.serve_tcp();
    let other = scene.mount(&daemon.client(), "other");
    assert_same(&second, &other.at(&later), Face::Mount);
}

#[test]
fn imports_at_the_same_time_are_all_kept() {
    let scene = Scene::new();
    let cairn = scene.cairn();
    let sources: Vec<_> =
        (0..6).map(|index| trees::small(scene.folder(), &format!("source-{index}"))).collect();
    let imports: Vec<_> =
        sources.iter().map(|tree| cairn.start(["import".as_ref(), tree.as_os_str()])).collect();
    let paths: Vec<_> = imports
        .into_iter()
        .map(|import| import.finish().succeeded().text().trim().to_owned())
        .collect();
    let mut wanted = paths.clone();
    wanted.sort_unstable();
    assert_eq!(cairn.list(), wanted);
    let mount = scene.mount(&cairn, "mnt");
    for (tree, path) in sources.iter().zip(&paths) {
        assert_same(tree, &mount.at(path), Face::Mount);
    }
}

#[test]
fn clients_that_import_into_one_daemon_at_once_store_what_is_equal_once() {
    let scene = Scene::new();
    let same = trees::small(scene.folder(), "same");
    fs::write(same.join("larger"), Random::new("larger").bytes(8 << 20)).unwrap();
    let mut sources = vec![same];
    sources.extend((0..2).map(|index| trees::small(scene.folder(), &format!("other-{index}"))));
    // What it takes when each comes once, and nothing at the same time.
    let alone = Cairn::local(&scene.path("alone"));
    let paths: Vec<_> = sources.iter().map(|tree| alone.import(tree)).collect();

    let daemon = scene.serve_tcp();
    let client = daemon.client();
    let start = |tree: &PathBuf| client.start(["import".as_ref(), tree.as_os_str()]);
    // First all three have the same, and then each its own.
    for round in [vec![&sources[0]; 3], sources.iter().collect()] {
        let imports: Vec<_> = round.iter().map(|tree| start(tree)).collect();
        for (tree, import) in round.into_iter().zip(imports) {
            let index = sources.iter().position(|source| source == tree).unwrap();
            let path = import.finish_within(LONG_PATIENCE).succeeded().text().trim().to_owned();
            assert_eq!(path, paths[index]);
        }
    }
    for (index, (tree, path)) in sources.iter().zip(&paths).enumerate() {
        assert_eq!(*path, nix::store_path(tree));
        let exported = scene.path(&format!("exported-{index}"));
        client.export(path, &exported).succeeded();
        assert_same(tree, &exported, Face::Plain);
    }
    daemon.stop(Signal::TERM).succeeded();
    let (together, alone) = (packs(&scene.store()), packs(&scene.path("alone")));
    assert!(together < alone + alone / 50, "{together} bytes of packs, not {alone}");
}

/// The bytes of a store's packs.
fn packs(store: &Path) -> u64 {
    let mut bytes = 0;
    walk(store, &mut |path, metadata| {
        if path.extension().is_some_and(|extension| extension == "pack") {
            bytes += metadata.len();
        }
    });
    bytes
}

#[test]
fn readers_go_on_when_the_owner_is_killed() {
    owner_goes(Mount::kill);
}

#[test]
fn readers_go_on_when_the_owner_ends() {
    owner_goes(|mount| {
        mount.stop(rustix::process::Signal::TERM).succeeded();
    });
}

fn owner_goes<R>(end: impl FnOnce(Mount) -> R) {
    let scene = Scene::new();
    let cairn = scene.cairn();
    let tree = trees::small(scene.folder(), "source");
    let path = cairn.import(&tree);
    let owner = scene.mount(&cairn, "owner");
    let readers = [scene.mount(&cairn, "reader-1"), scene.mount(&cairn, "reader-2")];
    // One file is open and half read when the owner goes.
    let wanted = fs::read(tree.join("large")).unwrap();
    let half = fs::File::open(readers[0].at(&path).join("large")).unwrap();
    let mut buffer = vec![0; 4096];
    std::os::unix::fs::FileExt::read_exact_at(&half, &mut buffer, 0).unwrap();
    assert_eq!(buffer, wanted[..4096]);

    let gone = end(owner);
    let mut rest = vec![0; wanted.len()];
    std::os::unix::fs::FileExt::read_exact_at(&half, &mut rest, 0).unwrap();
    assert!(rest == wanted);
    for reader in &readers {
        assert_same(&tree, &reader.at(&path), Face::Mount);
    }
    // The store takes new trees, and the readers see them.
    let later = trees::small(scene.folder(), "later");
    let later_path = cairn.import(&later);
    for reader in &readers {
        assert_same(&later, &reader.at(&later_path), Face::Mount);
    }
    drop(gone);
}
