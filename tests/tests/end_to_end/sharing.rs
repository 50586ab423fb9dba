//! Several processes on one local store: all of them simply work, whoever came first and whoever
//! is gone.

use std::fs;

use cairn_tests::{
    cairn::{Mount, Scene},
    compare::{Face, assert_same},
    trees,
};

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
