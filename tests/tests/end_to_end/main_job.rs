//! The main job: a tree is imported, mounted from the store itself and from a daemon, and is the
//! same again.

use std::{ffi::OsStr, fs, os::unix::fs::symlink};

use cairn_tests::{
    cairn::{Cairn, Scene},
    compare::{Face, assert_same},
    nix,
    trees::{self, Hardness},
};

#[test]
fn the_specified_tree_has_its_store_path_and_comes_back() {
    let scene = Scene::new();
    let tree = trees::vector(scene.folder());
    let cairn = scene.cairn();
    let path = cairn.import(&tree);
    assert_eq!(path, trees::VECTOR_STORE_PATH);
    // Again: nothing new, the same answer.
    assert_eq!(cairn.import(&tree), path);
    assert_eq!(cairn.list(), std::slice::from_ref(&path));
    let mount = scene.mount(&cairn, "mnt");
    assert_same(&tree, &mount.at(&path), Face::Mount);
}

#[test]
fn one_command_imports_and_mounts() {
    let scene = Scene::new();
    let trees = ["one", "two"].map(|name| trees::small(scene.folder(), name));
    let mountpoint = scene.new_folder("mnt");
    let words = trees.iter().flat_map(|tree| [OsStr::new("--import"), tree.as_os_str()]);
    let mount = scene.cairn().mount_with(&mountpoint, words);
    assert_eq!(mount.imported.len(), trees.len());
    for (tree, path) in trees.iter().zip(&mount.imported) {
        assert_same(tree, &mount.at(path), Face::Mount);
    }
}

#[test]
fn imports_answer_in_the_order_asked() {
    let scene = Scene::new();
    let trees: Vec<_> =
        ["zz", "a", "m", "b"].iter().map(|name| trees::small(scene.folder(), name)).collect();
    let words = [OsStr::new("import")].into_iter();
    let words = words.chain(trees.iter().map(|tree| tree.as_os_str()));
    let lines = scene.cairn().run(words).succeeded().lines();
    let names: Vec<_> = lines.iter().map(|line| line.rsplit('-').next().unwrap()).collect();
    assert_eq!(names, ["zz", "a", "m", "b"]);
}

#[test]
fn files_and_symlinks_are_trees_too() {
    let scene = Scene::new();
    fs::write(scene.path("plain"), "just a file").unwrap();
    trees::executable(&scene.path("run"), "#!/bin/sh\necho ok\n");
    fs::write(scene.path("zero"), "").unwrap();
    symlink("nowhere", scene.path("dangling")).unwrap();
    fs::create_dir(scene.path("nothing")).unwrap();
    let cairn = scene.cairn();
    let mount = scene.mount(&cairn, "mnt");
    for name in ["plain", "run", "zero", "dangling", "nothing"] {
        let source = scene.path(name);
        let path = cairn.import(&source);
        if name != "dangling" {
            // The command line of Nix follows a symlink that it is given.
            assert_eq!(path, nix::store_path(&source), "{name}");
        }
        assert_same(&source, &mount.at(&path), Face::Mount);
        cairn.export(&path, &scene.path("exported")).succeeded();
        assert_same(&source, &scene.path("exported"), Face::Plain);
        match source.is_dir() {
            true => fs::remove_dir(scene.path("exported")).unwrap(),
            false => fs::remove_file(scene.path("exported")).unwrap(),
        }
    }
}

#[test]
fn a_name_can_be_given() {
    let scene = Scene::new();
    let tree = trees::vector(scene.folder());
    fs::rename(&tree, scene.path("called otherwise")).unwrap();
    let words = ["import", "--name", "tree", scene.path("called otherwise").to_str().unwrap()]
        .map(str::to_owned);
    assert_eq!(scene.cairn().run(words).succeeded().text().trim(), trees::VECTOR_STORE_PATH);
}

#[test]
fn what_is_hard_comes_back_in_every_way() {
    everywhere(Hardness::QUICK);
}

#[test]
#[ignore = "100,000 files and 5 GiB: part of tests/run"]
fn what_is_hard_comes_back_in_every_way_at_its_full_size() {
    everywhere(Hardness::FULL);
}

/// Imports the hard tree once, and compares it through a local mount, mounts of both kinds of
/// daemon, and an export.
fn everywhere(hardness: Hardness) {
    let scene = Scene::new();
    let tree = trees::hard(scene.folder(), hardness);
    let cairn = scene.cairn();
    let path = cairn.import(&tree);
    let info = cairn.run(["path-info", "--json", &path]).succeeded();
    let nar = nar_sha256(info.text());
    assert_eq!(nar, nix::nar_sha256(&tree));

    let nodes = u64::from(hardness.wide + hardness.deep);
    let compare = |cairn: &Cairn, name: &str| {
        let mount = scene.mount(cairn, name);
        let comparison = assert_same(&tree, &mount.at(&path), Face::Mount);
        assert!(comparison.nodes > nodes && comparison.bytes > hardness.sparse, "{comparison}");
    };
    compare(&cairn, "local");
    let daemon = scene.serve_tcp();
    compare(&daemon.client(), "tcp");
    drop(daemon);
    let daemon = scene.serve_unix();
    compare(&daemon.client(), "unix");
    drop(daemon);
    cairn.export(&path, &scene.path("exported")).succeeded();
    assert_same(&tree, &scene.path("exported"), Face::Plain);
}

/// The SHA-256 of the NAR in what `path-info --json` prints, in hexadecimal.
fn nar_sha256(json: &str) -> String {
    let info: serde_json::Value = serde_json::from_str(json).unwrap();
    let hash = info["narHash"].as_str().and_then(|hash| hash.strip_prefix("sha256:"));
    let hash = cairn_store::nixbase32::decode::<32>(hash.unwrap().as_bytes()).unwrap();
    blake3::Hash::from_bytes(hash).to_hex().to_string()
}

#[test]
fn trees_cross_daemons_of_both_kinds() {
    let scene = Scene::new();
    for (name, daemon) in [("tcp", scene.serve_tcp()), ("unix", scene.serve_unix())] {
        let tree = trees::small(scene.folder(), name);
        let client = daemon.client();
        // In through the daemon, out through a mount of it.
        let path = client.import(&tree);
        assert_eq!(path, nix::store_path(&tree));
        let mount = scene.mount(&client, &format!("mnt-{name}"));
        assert_same(&tree, &mount.at(&path), Face::Mount);
        client.export(&path, &scene.path(&format!("exported-{name}"))).succeeded();
        assert_same(&tree, &scene.path(&format!("exported-{name}")), Face::Plain);
    }
    assert_eq!(scene.cairn().list().len(), 2);
}

#[test]
fn trees_cross_a_bucket() {
    let scene = Scene::new();
    let tree = trees::small(scene.folder(), "bucket-tree");
    let bucket = scene.new_folder("bucket");
    let cairn = Cairn::new(format!("objectstore+file://{}", bucket.display()));
    let path = cairn.import(&tree);
    assert_eq!(path, nix::store_path(&tree));
    let mount = scene.mount(&cairn, "mnt");
    assert_same(&tree, &mount.at(&path), Face::Mount);
}
