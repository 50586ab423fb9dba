//! `kill -9` at random moments: nothing acknowledged is lost, nothing wrong is served.

use std::env;

use cairn_tests::{
    cairn::{Mount, Scene},
    compare::{Face, assert_same},
    kill, trees,
};

/// The rounds of the quick run; `CAIRN_KILL_ROUNDS` asks for more.
const ROUNDS: u32 = 15;

#[test]
fn killed_imports_lose_nothing_acknowledged() {
    let rounds = env::var("CAIRN_KILL_ROUNDS").map_or(ROUNDS, |rounds| rounds.parse().unwrap());
    let seed = env::var("CAIRN_KILL_SEED").unwrap_or_else(|_| "kill".to_owned());
    let tally = kill::rounds(&seed, rounds);
    println!("seed {seed}: {tally:?}");
    assert!(tally.killed > 0, "every import ended before it was killed: {tally:?}");
    assert!(tally.acknowledged > 0, "every import was killed at once: {tally:?}");
}

#[test]
fn a_killed_daemon_loses_nothing_that_it_acknowledged() {
    let mut acknowledged = 0;
    for round in 0..6 {
        let scene = Scene::new();
        let daemon = scene.serve_tcp();
        let client = daemon.client();
        let trees: Vec<_> = (0..4)
            .map(|index| trees::small(scene.folder(), &format!("tree-{round}-{index}")))
            .collect();
        let words =
            ["import".as_ref()].into_iter().chain(trees.iter().map(|tree| tree.as_os_str()));
        let mut import = client.start(words);
        // Killed right behind the first lines, while what follows is under way.
        let mut paths: Vec<_> = (0..round % 4).filter_map(|_| import.next_line()).collect();
        daemon.kill();
        paths.extend(import.finish().lines());
        let listed = scene.cairn().list();
        for (tree, path) in trees.iter().zip(&paths) {
            assert!(listed.contains(path), "{path} is lost");
            let export = scene.path(trees::base_name(path));
            scene.cairn().export(path, &export).succeeded();
            assert_same(tree, &export, Face::Plain);
        }
        acknowledged += paths.len();
    }
    assert!(acknowledged > 0);
}

#[test]
fn a_killed_mount_leaves_a_whole_store() {
    let scene = Scene::new();
    let source = trees::small(scene.folder(), "source");
    let words = ["--import".as_ref(), source.as_os_str()];
    let mount = scene.cairn().mount_with(&scene.new_folder("mnt"), words);
    let path = mount.imported[0].clone();
    assert_same(&source, &mount.at(&path), Face::Mount);
    let dead = Mount::kill(mount);
    scene.cairn().export(&path, &scene.path("exported")).succeeded();
    assert_same(&source, &scene.path("exported"), Face::Plain);
    drop(dead);
}
