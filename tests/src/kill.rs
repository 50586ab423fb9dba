//! Imports that are killed at random moments, and what must be true of the store afterwards: all
//! that was acknowledged is there, and all that is there is right.

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::{OsStr, OsString},
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use crate::{
    cairn::{Cairn, Scene},
    compare::{Face, assert_same},
    random::Random,
    trees,
};

/// How many trees one import is given.
const TREES: u64 = 12;

/// An import is killed within this time of its start, in microseconds.
const KILLED_WITHIN: u64 = 400_000;

/// What a series of kills has shown.
#[derive(Debug, Default)]
pub struct Tally {
    /// The imports that were killed before they had ended.
    pub killed: u32,
    /// The store paths that were acknowledged.
    pub acknowledged: usize,
    /// The store paths that were there in the end, acknowledged or not.
    pub present: usize,
}

/// Starts this many imports of new trees into one local store and kills each at a random moment.
/// After each kill the store must have all that was acknowledged so far; what it lists must
/// export as it was imported.
#[track_caller]
pub fn rounds(seed: &str, count: u32) -> Tally {
    let scene = Scene::new();
    let cairn = scene.cairn();
    let mut random = Random::new(seed);
    let mut sources = BTreeMap::new();
    let mut acknowledged = BTreeSet::new();
    let mut checked = BTreeSet::new();
    let mut tally = Tally::default();
    for round in 0..count {
        let folder = scene.new_folder(&format!("round-{round}"));
        let trees: Vec<PathBuf> =
            (0..TREES).map(|index| trees::small(&folder, &format!("t{round}-{index}"))).collect();
        for tree in &trees {
            sources.insert(tree.file_name().unwrap().to_owned(), tree.clone());
        }
        let words = [OsString::from("import")].into_iter();
        let import = cairn.start(words.chain(trees.into_iter().map(OsString::from)));
        thread::sleep(Duration::from_micros(random.below(KILLED_WITHIN)));
        let ended = import.kill();
        tally.killed += u32::from(!ended.status.success());
        // A line that was cut short acknowledges nothing.
        acknowledged.extend(ended.lines());

        let listed: BTreeSet<String> = cairn.list().into_iter().collect();
        let lost: Vec<_> = acknowledged.difference(&listed).collect();
        assert!(lost.is_empty(), "seed {seed}, round {round}: lost {lost:?}");
        // Each is read whole once, and all of them again at the end.
        for path in listed.difference(&checked).collect::<Vec<_>>() {
            check(&cairn, path, &sources, &scene.path("exported"));
        }
        checked.extend(listed);
    }
    for path in &checked {
        check(&cairn, path, &sources, &scene.path("exported"));
    }
    tally.acknowledged = acknowledged.len();
    tally.present = checked.len();
    tally
}

#[track_caller]
fn check(cairn: &Cairn, path: &str, sources: &BTreeMap<OsString, PathBuf>, export: &Path) {
    let (_, name) = trees::base_name(path).split_once('-').expect("a store path has a name");
    let source = sources.get(OsStr::new(name)).unwrap_or_else(|| panic!("{path} is of no source"));
    cairn.export(path, export).succeeded();
    assert_same(source, export, Face::Plain);
    std::fs::remove_dir_all(export).unwrap();
}
