//! A local store whose files are not what was written: damage is found and named, nothing wrong is
//! served, the rest goes on, and storing the same contents again repairs it.

use std::{
    fs::{self, OpenOptions},
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use cairn_tests::{
    cairn::{Cairn, Scene},
    compare::{Face, assert_same},
    process::run,
    random::Random,
    trees,
};

/// The random flips and cuts that are tried, each on a copy of one store.
const ROUNDS: u64 = 12;

/// A store with two trees.
struct Two {
    scene: Scene,
    trees: [PathBuf; 2],
    paths: [String; 2],
}

impl Two {
    fn new() -> Self {
        let scene = Scene::new();
        let trees = ["first", "second"].map(|name| trees::small(scene.folder(), name));
        let paths = trees.each_ref().map(|tree| scene.cairn().import(tree));
        Self { scene, trees, paths }
    }

    /// A copy of the store, which nobody has open.
    fn copy(&self, name: &str) -> Copy<'_> {
        let folder = self.scene.path(name);
        run(Command::new("cp").arg("-a").arg(self.scene.store()).arg(&folder)).succeeded();
        Copy { two: self, folder }
    }
}

struct Copy<'a> {
    two: &'a Two,
    folder: PathBuf,
}

impl Copy<'_> {
    fn cairn(&self) -> Cairn {
        Cairn::local(&self.folder)
    }

    fn packs(&self) -> Vec<PathBuf> {
        let packs = fs::read_dir(self.folder.join("packs")).unwrap();
        let packs: Vec<_> = packs.map(|entry| entry.unwrap().path()).collect();
        assert!(!packs.is_empty());
        packs
    }

    /// Exports a tree. What comes is the tree, or nothing and an error, which is answered.
    #[track_caller]
    fn export(&self, index: usize) -> Result<(), String> {
        let destination = self.two.scene.path("exported");
        let finished = self.cairn().export(&self.two.paths[index], &destination);
        assert!(!finished.stderr.contains("panicked"), "{finished:?}");
        if finished.status.success() {
            assert_same(&self.two.trees[index], &destination, Face::Plain);
            fs::remove_dir_all(destination).unwrap();
            return Ok(());
        }
        assert!(matches!(finished.status.code(), Some(1 | 3 | 4)), "{finished:?}");
        assert!(!destination.exists(), "half an export is left behind: {finished:?}");
        Err(finished.stderr)
    }

    /// Panics unless both trees can be exported.
    #[track_caller]
    fn is_whole(&self) {
        assert_eq!([self.export(0), self.export(1)], [Ok(()), Ok(())]);
    }

    /// Imports both trees again until they are whole. An import repairs what reads have found, and
    /// an export ends at the first damage that it finds: each repeats for each place that is
    /// damaged.
    #[track_caller]
    fn heals(&self, places: u64) {
        for repeat in 0..=places {
            for (tree, path) in self.two.trees.iter().zip(&self.two.paths) {
                assert_eq!(&self.cairn().import(tree), path);
            }
            if repeat == places || (self.export(0).is_ok() && self.export(1).is_ok()) {
                break;
            }
        }
        self.is_whole();
        let mut wanted = self.two.paths.to_vec();
        wanted.sort_unstable();
        assert_eq!(self.cairn().list(), wanted);
    }
}

fn flip(file: &Path, offset: u64) {
    let file = OpenOptions::new().read(true).write(true).open(file).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, offset).unwrap();
    file.write_all_at(&[byte[0] ^ 0x10], offset).unwrap();
}

fn length(file: &Path) -> u64 {
    fs::metadata(file).unwrap().len()
}

#[test]
fn a_flipped_bit_of_a_file_is_found_and_the_rest_goes_on() {
    let two = Two::new();
    let copy = two.copy("copy");
    // Random bytes can't be compressed, so they are found as they are.
    let content = fs::read(two.trees[0].join("large")).unwrap();
    let part = &content[content.len() / 2..][..64];
    let place = copy.packs().into_iter().find_map(|pack| {
        let bytes = fs::read(&pack).unwrap();
        let offset = bytes.windows(part.len()).position(|window| window == part)?;
        Some((pack, offset as u64))
    });
    let (pack, offset) = place.expect("the bytes are in a pack");
    flip(&pack, offset + 7);

    let file = format!("{}/large", two.paths[0]);
    let finished = copy.cairn().run(["cat", &file]).failed(4, &["blake3-", "damaged"]);
    assert!(content.starts_with(&finished.stdout), "wrong bytes were printed");
    assert!(finished.stdout.len() < content.len());
    copy.export(0).unwrap_err();
    copy.export(1).unwrap();

    let mount = two.scene.mount(&copy.cairn(), "mnt");
    let error = fs::read(mount.at(&two.paths[0]).join("large")).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EIO));
    for index in 0..8 {
        let name = format!("a/file-{index}");
        let read = fs::read(mount.at(&two.paths[0]).join(&name)).unwrap();
        assert!(read == fs::read(two.trees[0].join(&name)).unwrap());
    }
    assert_same(&two.trees[1], &mount.at(&two.paths[1]), Face::Mount);
    drop(mount);

    copy.heals(1);
}

#[test]
fn flipped_bits_anywhere_serve_nothing_wrong() {
    let two = Two::new();
    let mut random = Random::new("flips");
    for round in 0..ROUNDS {
        let copy = two.copy(&format!("copy-{round}"));
        let flips = 1 + random.below(4);
        for _ in 0..flips {
            let packs = copy.packs();
            let pack = &packs[random.below(packs.len() as u64) as usize];
            flip(pack, random.below(length(pack)));
        }
        // With the index, which knows where things were, and without.
        if round % 2 == 1 {
            fs::remove_dir_all(copy.folder.join("index")).unwrap();
        }
        // Either comes or not; what comes is compared.
        let _ = (copy.export(0), copy.export(1));
        copy.heals(flips);
    }
}

#[test]
fn cut_packs_serve_nothing_wrong() {
    let two = Two::new();
    let mut random = Random::new("cuts");
    for round in 0..ROUNDS {
        let copy = two.copy(&format!("copy-{round}"));
        let packs = copy.packs();
        let pack = &packs[random.below(packs.len() as u64) as usize];
        // A few bytes, as after a torn write; or anywhere; or all.
        let cut = match round % 3 {
            0 => length(pack) - 1 - random.below(40),
            1 => random.below(length(pack)),
            _ => 0,
        };
        OpenOptions::new().write(true).open(pack).unwrap().set_len(cut).unwrap();
        if round % 2 == 1 {
            fs::remove_dir_all(copy.folder.join("index")).unwrap();
        }
        // Either comes or not; what comes is compared.
        let _ = (copy.export(0), copy.export(1));
        copy.heals(1);
    }
}

#[test]
fn a_missing_pack_serves_nothing_wrong() {
    let two = Two::new();
    let copy = two.copy("copy");
    for pack in copy.packs() {
        fs::remove_file(pack).unwrap();
    }
    copy.export(0).unwrap_err();
    copy.export(1).unwrap_err();
    copy.heals(1);
}

#[test]
fn an_index_that_is_lost_or_broken_is_made_again() {
    let two = Two::new();
    let lost = two.copy("lost");
    fs::remove_dir_all(lost.folder.join("index")).unwrap();
    lost.is_whole();

    let broken = two.copy("broken");
    let mut random = Random::new("index");
    let mut broke = 0;
    let mut folders = vec![broken.folder.join("index")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let length = length(&path) as usize;
            fs::write(&path, random.bytes(length)).unwrap();
            broke += 1;
        }
    }
    assert!(broke > 0);
    broken.is_whole();
    broken.heals(1);
}

#[test]
fn an_index_of_another_time_is_not_believed() {
    let two = Two::new();
    let old = two.copy("old");
    let third = trees::small(two.scene.folder(), "third");
    let path = two.scene.cairn().import(&third);
    let mixed = two.copy("mixed");
    fs::remove_dir_all(mixed.folder.join("index")).unwrap();
    fs::rename(old.folder.join("index"), mixed.folder.join("index")).unwrap();
    assert!(mixed.cairn().list().contains(&path));
    mixed.cairn().export(&path, &two.scene.path("exported-third")).succeeded();
    assert_same(&third, &two.scene.path("exported-third"), Face::Plain);
    mixed.is_whole();
}

#[test]
fn a_store_of_a_newer_format_is_refused_and_left_alone() {
    let two = Two::new();
    let copy = two.copy("copy");
    let format = copy.folder.join("format");
    let known = fs::read_to_string(&format).unwrap();
    let newer = known.replace('1', "2");
    assert_ne!(known, newer);
    fs::write(&format, &newer).unwrap();
    let packs = || copy.packs().iter().map(|pack| fs::read(pack).unwrap()).collect::<Vec<_>>();
    let before = packs();
    let tree = trees::vector(two.scene.folder());
    copy.cairn().run(["list"]).failed(1, &[format.to_str().unwrap(), "format 2"]);
    copy.cairn().run(["import".as_ref(), tree.as_os_str()]).failed(1, &["format 2"]);
    assert!(packs() == before);
    fs::write(&format, known).unwrap();
    copy.is_whole();
}

#[test]
fn a_folder_with_something_else_in_it_is_no_store() {
    let scene = Scene::new();
    let folder = scene.new_folder("documents");
    fs::write(folder.join("letter"), "Dear").unwrap();
    let tree = trees::vector(scene.folder());
    let cairn = Cairn::local(&folder);
    let words = ["import".as_ref(), tree.as_os_str()];
    cairn.run(words).failed(1, &[folder.to_str().unwrap(), "not a cairn store"]);
    assert_eq!(fs::read_dir(&folder).unwrap().count(), 1);

    let file = scene.path("letter");
    fs::write(&file, "Dear").unwrap();
    Cairn::local(&file).run(["list"]).failed(1, &[file.to_str().unwrap()]);
}
