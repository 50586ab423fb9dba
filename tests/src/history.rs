//! What was imported into a store, and what must be true of the store whatever has happened to it:
//! all that was acknowledged is there, and all that is there is right.

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::{OsStr, OsString},
    fs,
    path::{Path, PathBuf},
};

use crate::{
    cairn::{Cairn, Scene},
    compare::{Face, assert_same},
    process::{Finished, Running},
    trees,
};

/// How many trees one import is given.
const TREES: u64 = 12;

/// The imports into one store.
#[derive(Debug, Default)]
pub struct History {
    rounds: u32,
    /// The trees by their names, which differ.
    sources: BTreeMap<OsString, PathBuf>,
    acknowledged: BTreeSet<String>,
    checked: BTreeSet<String>,
}

impl History {
    /// Starts an import of new trees, of some 25 MB.
    pub fn start_import(&mut self, scene: &Scene, cairn: &Cairn) -> Running {
        let round = self.rounds;
        self.rounds += 1;
        let folder = scene.new_folder(&format!("round-{round}"));
        let trees: Vec<PathBuf> =
            (0..TREES).map(|index| trees::small(&folder, &format!("t{round}-{index}"))).collect();
        for tree in &trees {
            self.sources.insert(tree.file_name().unwrap().to_owned(), tree.clone());
        }
        let words = [OsString::from("import")].into_iter();
        cairn.start(words.chain(trees.into_iter().map(OsString::from)))
    }

    /// Takes note of what an import that has ended, however it did, has acknowledged. A line that
    /// was cut short acknowledges nothing.
    pub fn acknowledge(&mut self, ended: &Finished) {
        self.acknowledged.extend(ended.lines());
    }

    /// Panics unless all that was acknowledged is listed. What is listed and was not checked before
    /// is exported and compared with its source.
    #[track_caller]
    pub fn check(&mut self, scene: &Scene, cairn: &Cairn) {
        let listed: BTreeSet<String> = cairn.list().into_iter().collect();
        let lost: Vec<_> = self.acknowledged.difference(&listed).collect();
        assert!(lost.is_empty(), "round {}: lost {lost:?}", self.rounds);
        for path in listed.difference(&self.checked) {
            self.check_one(cairn, path, &scene.path("exported"));
        }
        self.checked.extend(listed);
    }

    /// Exports all that was ever listed once more.
    #[track_caller]
    pub fn check_all(&self, scene: &Scene, cairn: &Cairn) {
        for path in &self.checked {
            self.check_one(cairn, path, &scene.path("exported"));
        }
    }

    #[track_caller]
    fn check_one(&self, cairn: &Cairn, path: &str, export: &Path) {
        let (_, name) = trees::base_name(path).split_once('-').expect("a store path has a name");
        let source = self.sources.get(OsStr::new(name));
        let source = source.unwrap_or_else(|| panic!("{path} is of no source"));
        cairn.export(path, export).succeeded();
        assert_same(source, export, Face::Plain);
        fs::remove_dir_all(export).unwrap();
    }

    /// The store paths that were acknowledged.
    pub fn acknowledged(&self) -> usize {
        self.acknowledged.len()
    }

    /// The store paths that were there, acknowledged or not.
    pub fn present(&self) -> usize {
        self.checked.len()
    }
}
