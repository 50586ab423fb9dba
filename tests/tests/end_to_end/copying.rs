//! Store paths from one store to another, by `cairn copy`.

use std::{fs, path::Path};

use cairn_tests::{
    cairn::{Cairn, Scene},
    compare::{Face, assert_same},
    process::eventually,
    random::Random,
    trees,
};

fn url(folder: &Path) -> String {
    format!("sled:{}", folder.display())
}

/// Panics unless the store gives the tree of this path as it was.
#[track_caller]
fn assert_there(cairn: &Cairn, scene: &Scene, path: &str, tree: &Path) {
    let exported = scene.path("exported");
    cairn.export(path, &exported).succeeded();
    assert_same(tree, &exported, Face::Plain);
    fs::remove_dir_all(exported).unwrap();
}

#[test]
fn paths_come_into_any_store_and_are_not_sent_twice() {
    let scene = Scene::new();
    let (one, two) = (trees::small(scene.folder(), "one"), trees::small(scene.folder(), "two"));
    fs::write(two.join("more"), "more").unwrap();
    let cairn = scene.cairn();
    let paths = [cairn.import(&one), cairn.import(&two)];
    let daemon = Cairn::local(&scene.path("served")).serve("127.0.0.1:0");
    let objects = format!("objectstore+file://{}", scene.path("objects").display());
    let there = url(&scene.path("there"));
    for to in [daemon.url(), &objects, &there] {
        let copied = cairn.run(["copy", "--to", to, &paths[0]]).succeeded();
        assert_eq!(copied.lines(), [paths[0].clone()], "{to}");
        let there = Cairn::new(to);
        assert_there(&there, &scene, &paths[0], &one);

        let copied = cairn.run(["copy", "--to", to, "--all", "--json"]).succeeded();
        let record = |path: &str, copied| format!(r#"{{"path":"{path}","copied":{copied}}}"#);
        let mut lines = copied.lines();
        let mut expected = vec![record(&paths[0], false), record(&paths[1], true)];
        lines.sort();
        expected.sort();
        assert_eq!(lines, expected, "{to}");
        assert_there(&there, &scene, &paths[1], &two);

        assert_eq!(cairn.run(["copy", "--to", to, "--all"]).succeeded().text(), "");
    }
    // And back.
    let back = Cairn::local(&scene.path("back"));
    back.run(["copy", "--from", daemon.url(), "--all"]).succeeded();
    assert_there(&back, &scene, &paths[1], &two);
}

#[test]
fn a_copy_that_was_killed_goes_on_where_it_was() {
    let scene = Scene::new();
    let tree = scene.new_folder("tree");
    let mut random = Random::new("a tree to copy");
    for number in 0..40 {
        fs::write(tree.join(format!("large-{number}")), random.bytes(2 << 20)).unwrap();
    }
    let cairn = scene.cairn();
    let path = cairn.import(&tree);
    let to = scene.path("there");
    let copying = cairn.start(["copy", "--to", &url(&to), &path]);
    let stored = || -> u64 {
        let packs = fs::read_dir(to.join("packs")).into_iter().flatten();
        packs.map(|pack| pack.unwrap().metadata().map_or(0, |pack| pack.len())).sum()
    };
    eventually("something has arrived", || stored() > 10 << 20);
    copying.kill();
    let there = Cairn::local(&to);
    assert_eq!(there.list(), [""; 0], "a path whose contents are not there");

    let copied = cairn.run(["-v", "copy", "--to", &url(&to), &path]).succeeded();
    assert_eq!(copied.lines(), std::slice::from_ref(&path));
    assert_there(&there, &scene, &path, &tree);
}

#[test]
fn what_can_not_be_copied_is_told() {
    let scene = Scene::new();
    let cairn = scene.cairn();
    let tree = trees::small(scene.folder(), "tree");
    let path = cairn.import(&tree);
    let to = url(&scene.path("there"));
    let nowhere = "/nix/store/y0lrmcm4zaj0qd44rp7mg83dgyl87lkp-nowhere";
    cairn.run(["copy", "--to", &to, nowhere]).failed(3, &[nowhere]);
    cairn.run(["copy", &path]).failed(2, &["--from"]);
    cairn.run(["copy", "--to", &to]).failed(2, &["PATH"]);
    cairn.run(["copy", "--from", &to, "--to", &to, "--all"]).failed(2, &["same store"]);
    cairn.run(["copy", "--to", &url(&scene.store()), "--all"]).failed(2, &["same store"]);
    cairn.run(["copy", "--to", "grpc+http://127.0.0.1:1", &path]).failed(1, &["127.0.0.1:1"]);
}
