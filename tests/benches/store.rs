//! Prints how soon a local store that holds a large tree answers after a `kill -9`, and after its
//! index was lost: a Markdown table, medians of several runs, with and without the kernel's caches.
//!
//! `cargo bench -p cairn-tests --bench store -- [--runs N] [TREE]`; the tree is Linux 6.1 unless
//! told. Needs root, to drop the kernel's caches.
#![allow(clippy::unwrap_used, reason = "a benchmark that can't go on panics")]

use std::{env, ffi::OsStr, fs, path::PathBuf};

use cairn_tests::{
    cairn::{Cairn, Scene, binary},
    linux,
    measure::{allocated, drop_caches, median, time},
};

/// How often each thing is done unless told.
const RUNS: usize = 5;

/// What has happened to the store before it is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Before {
    /// Its process was killed: the index was not closed.
    Kill,
    /// The same, and the index is gone.
    Loss,
}

fn main() {
    let mut runs = RUNS;
    let mut tree = None;
    let mut words = env::args_os().skip(1);
    while let Some(word) = words.next() {
        match word.to_str() {
            // Cargo passes it to every benchmark.
            Some("--bench") => {}
            Some("--runs") => {
                runs = words.next().unwrap().to_str().unwrap().parse().unwrap();
            }
            _ => tree = Some(PathBuf::from(word)),
        }
    }
    assert!(runs > 0, "nothing is measured by no run");
    let tree = tree.unwrap_or_else(linux::tree);
    eprintln!("{}", binary().display());
    let scene = Scene::new();
    let cairn = scene.cairn();
    let daemon = scene.serve_tcp();
    let words = [OsStr::new("import"), OsStr::new("--no-stat-cache"), tree.as_os_str()];
    let path = daemon.client().run(words).succeeded().text().trim_end().to_owned();
    // At once: what the import has stored last is not in the index yet.
    daemon.kill();
    let megabytes = allocated(&scene.store().join("packs")) as f64 / 1e6;
    let first = answer(&cairn, &path);

    println!("\nPacks of {megabytes:.0} MB. Seconds until `cairn list` has printed its line.\n");
    println!("| | caches | seconds | MB of packs per second |\n|---|---|---:|---:|");
    println!("| killed right behind an import | warm | {first:.2} | |");
    for (before, title) in [(Before::Kill, "killed"), (Before::Loss, "killed, and the index lost")]
    {
        for is_cold in [false, true] {
            let seconds: Vec<f64> =
                (0..runs).map(|_| measure(&scene, &path, before, is_cold)).collect();
            let seconds = median(&seconds);
            let caches = if is_cold { "dropped" } else { "warm" };
            let rate = match before {
                Before::Kill => String::new(),
                Before::Loss => format!("{:.0}", megabytes / seconds),
            };
            println!("| {title} | {caches} | {seconds:.2} | {rate} |");
        }
    }
}

fn measure(scene: &Scene, path: &str, before: Before, is_cold: bool) -> f64 {
    scene.serve_tcp().kill();
    if before == Before::Loss {
        fs::remove_dir_all(scene.store().join("index")).unwrap();
    }
    if is_cold {
        drop_caches();
    }
    answer(&scene.cairn(), path)
}

/// The seconds until the store has told what it has: this path.
fn answer(cairn: &Cairn, path: &str) -> f64 {
    let mut listed = None;
    let elapsed = time(|| {
        let mut list = cairn.start(["list"]);
        listed = Some((list.next_line(), list));
    });
    let (line, list) = listed.expect("it was started");
    assert_eq!(line.as_deref(), Some(path));
    list.finish().succeeded();
    elapsed.as_secs_f64()
}
