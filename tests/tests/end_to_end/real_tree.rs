//! A large real tree, Linux 6.1: imported once, mounted in three ways, each compared by the
//! system's own `diff`. Takes minutes, so it is part of the full run only.

use std::{path::Path, process::Command};

use cairn_tests::{
    cairn::{Cairn, Scene},
    compare::{Face, assert_same},
    linux, nix,
    process::{LONG_PATIENCE, Running},
};

#[test]
#[ignore = "a tree of 1.3 GB: part of tests/run"]
fn linux_comes_back_in_every_way() {
    let tree = linux::tree();
    let scene = Scene::new();
    let cairn = scene.cairn();
    let path = cairn.import(&tree);
    assert_eq!(path, nix::store_path(&tree));

    let compare = |cairn: &Cairn, name: &str| {
        let mount = scene.mount(cairn, name);
        same(&tree, &mount.at(&path));
        // What `diff` does not look at: executable bits, times, owners.
        assert_same(&tree, &mount.at(&path), Face::Mount);
    };
    compare(&cairn, "local");
    let daemon = scene.serve_tcp();
    compare(&daemon.client(), "tcp");
    drop(daemon);
    let daemon = scene.serve_unix();
    compare(&daemon.client(), "unix");
}

fn same(tree: &Path, found: &Path) {
    let mut diff = Command::new("diff");
    diff.args(["-r", "--no-dereference"]).arg(tree).arg(found);
    let diff = Running::start(&mut diff).finish_within(LONG_PATIENCE).succeeded();
    assert_eq!(diff.text(), "");
}
