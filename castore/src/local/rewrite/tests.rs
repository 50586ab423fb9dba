//! What counts is there before a rewrite, during it and behind it, whatever happens; what does not
//! gives its room back, and does not return.

use std::{
    fs::{self, OpenOptions},
    os::unix::fs::FileExt as _,
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
};

use bytes::Bytes;

use super::{Rewritten, Step};
use crate::{
    Digest,
    local::{Kind, LocalError, LocalStore, Record},
};

fn noise(seed: u64, len: usize) -> Bytes {
    let mut bytes = vec![0; len];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut bytes);
    bytes.into()
}

/// Takes 1056 bytes in a pack.
fn chunk(seed: u64) -> Record {
    let value = noise(seed, 1000);
    Record::new(Kind::Chunk, Digest::of(&value).into(), value)
}

fn path_info(value: &'static str) -> Record {
    Record::new(Kind::PathInfo, vec![1; 20].into(), Bytes::from(value))
}

fn get(store: &LocalStore, record: &Record) -> Option<Bytes> {
    store.get(record.kind, &record.key).unwrap()
}

fn seal(store: &LocalStore, pack: u32) {
    store.push(Vec::new(), Some(pack), Vec::new()).unwrap().wait().unwrap();
}

fn packs(path: &Path) -> Vec<String> {
    let names = fs::read_dir(path.join("packs")).unwrap();
    let mut names: Vec<_> =
        names.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn reopened_without_index(store: std::sync::Arc<LocalStore>) -> std::sync::Arc<LocalStore> {
    let path = store.path().to_owned();
    drop(store);
    fs::remove_dir_all(path.join("index")).unwrap();
    LocalStore::open(&path).unwrap()
}

#[test]
fn room_of_what_does_not_count_comes_back() {
    let folder = tempfile::tempdir().unwrap();
    let store = LocalStore::open(folder.path()).unwrap();
    let records: Vec<Record> = (0..10).map(chunk).collect();
    store.put(records.clone()).unwrap();
    store.put(vec![path_info("old")]).unwrap();
    store.put(vec![path_info("new")]).unwrap();
    for record in &records[..8] {
        store.delete(record.kind, &record.key).unwrap();
    }
    assert_eq!(store.rewrite(0.1).unwrap(), Rewritten::default(), "a fifth of it counts");
    assert_eq!(packs(folder.path()), ["00000001.pack"]);

    let rewritten = store.rewrite(0.5).unwrap();
    let length = 10 * 1056 + 2 * (24 + 20 + 3) + 8 * 56;
    let moved = 2 * 1056 + 24 + 20 + 3;
    let expected =
        Rewritten { packs: 1, removed_bytes: 24 + length, moved_bytes: moved, damaged: 0 };
    assert_eq!(rewritten, expected);
    assert_eq!(packs(folder.path()), ["00000002.pack"]);
    assert_eq!(store.rewrite(0.5).unwrap(), Rewritten::default());

    let check = |store: &LocalStore| {
        for (index, record) in records.iter().enumerate() {
            assert_eq!(get(store, record), (index >= 8).then(|| record.value.clone()));
        }
        assert_eq!(get(store, &path_info("")), Some("new".into()));
        assert_eq!(store.list(Kind::PathInfo, None, 9).unwrap().len(), 1);
    };
    check(&store);
    let store = reopened_without_index(store);
    check(&store);
    // Nothing counts any more.
    store.delete(Kind::PathInfo, &path_info("").key).unwrap();
    for record in &records[8..] {
        store.delete(record.kind, &record.key).unwrap();
    }
    assert_eq!(store.rewrite(0.5).unwrap().moved_bytes, 0);
    assert_eq!(store.rewrite(1.0).unwrap(), Rewritten::default(), "an unused pack stays");
    drop(store);
    let store = LocalStore::open(folder.path()).unwrap();
    assert_eq!(get(&store, &records[9]), None);
    store.put(records.clone()).unwrap();
    assert_eq!(get(&store, &records[9]), Some(records[9].value.clone()));
}

#[test]
fn a_deletion_is_kept_while_an_earlier_pack_has_what_it_deletes() {
    let folder = tempfile::tempdir().unwrap();
    let store = LocalStore::open(folder.path()).unwrap();
    let (gone, back) = (chunk(100), chunk(101));
    let kept: Vec<Record> = (0..10).map(chunk).collect();
    store.put([vec![gone.clone(), back.clone(), path_info("old")], kept.clone()].concat()).unwrap();
    seal(&store, 1);
    for record in [&gone, &back, &path_info("")] {
        store.delete(record.kind, &record.key).unwrap();
    }
    store.put(vec![back.clone(), chunk(102)]).unwrap();
    store.delete(Kind::Chunk, &chunk(102).key).unwrap();
    let rewritten = store.rewrite(0.6).unwrap();
    let deletions = 2 * 56 + 44;
    assert_eq!((rewritten.packs, rewritten.moved_bytes), (1, 1056 + deletions), "{rewritten:?}");
    assert_eq!(packs(folder.path()), ["00000001.pack", "00000003.pack"]);

    let check = |store: &LocalStore| {
        for record in kept.iter().chain([&back]) {
            assert_eq!(get(store, record), Some(record.value.clone()));
        }
        for record in [&gone, &chunk(102), &path_info("")] {
            assert_eq!(get(store, record), None, "it came back");
        }
    };
    check(&store);
    let store = reopened_without_index(store);
    check(&store);

    // With the first pack all reasons for deletions go.
    for record in &kept[1..] {
        store.delete(record.kind, &record.key).unwrap();
    }
    seal(&store, 3);
    let rewritten = store.rewrite(1.0).unwrap();
    assert_eq!((rewritten.packs, rewritten.moved_bytes), (2, 2 * 1056), "{rewritten:?}");
    let store = reopened_without_index(store);
    assert_eq!(get(&store, &back), Some(back.value.clone()));
    for record in kept[1..].iter().chain([&gone, &path_info("")]) {
        assert_eq!(get(&store, record), None, "it came back");
    }
}

/// Deletions that have to stay make no pack worth rewriting.
#[test]
fn a_pack_of_needed_deletions_stays() {
    let folder = tempfile::tempdir().unwrap();
    let store = LocalStore::open(folder.path()).unwrap();
    store.put((0..10).map(chunk).collect()).unwrap();
    seal(&store, 1);
    store.delete(Kind::Chunk, &chunk(3).key).unwrap();
    assert_eq!(store.rewrite(0.5).unwrap(), Rewritten::default());
    assert_eq!(packs(folder.path()), ["00000001.pack", "00000002.pack"]);
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        match entry.file_type().unwrap().is_dir() {
            true => copy(&entry.path(), &to.join(entry.file_name())),
            false => drop(fs::copy(entry.path(), to.join(entry.file_name())).unwrap()),
        }
    }
}

/// The process ends between any two steps, with the index as it was and without one.
#[test]
fn an_end_at_any_step_loses_nothing_and_brings_nothing_back() {
    for step in [Step::Sealed, Step::Moved, Step::Settled, Step::Removed] {
        let folder = tempfile::tempdir().unwrap();
        let (kept, gone) = (chunk(1), chunk(2));
        let (alive, dead) = (folder.path().join("alive"), folder.path().join("dead"));
        let store = LocalStore::open(&alive).unwrap();
        let first: Vec<Record> = (10..14).map(chunk).collect();
        store.put([first.clone(), vec![gone.clone()]].concat()).unwrap();
        seal(&store, 1);
        store.put(vec![kept.clone(), path_info("old")]).unwrap();
        store.delete(gone.kind, &gone.key).unwrap();
        store.put(vec![chunk(3), chunk(4), path_info("new")]).unwrap();
        store.delete(Kind::Chunk, &chunk(3).key).unwrap();
        store.delete(Kind::Chunk, &chunk(4).key).unwrap();
        *store.faults.rewrite.lock() = Some(step);
        assert!(matches!(store.rewrite(0.6), Err(LocalError::Closed(_))), "{step:?}");
        // Behind a step, things go on changing until the process ends.
        store.put(vec![path_info("newest")]).unwrap();
        for has_index in [true, false] {
            let dead = dead.join(has_index.to_string());
            copy(&alive, &dead);
            if !has_index {
                fs::remove_dir_all(dead.join("index")).unwrap();
            }
            let store = LocalStore::open(&dead).unwrap();
            let check = |store: &LocalStore| {
                for record in first.iter().chain([&kept]) {
                    assert_eq!(get(store, record), Some(record.value.clone()), "{step:?}");
                }
                for record in [&gone, &chunk(3), &chunk(4)] {
                    assert_eq!(get(store, record), None, "{step:?}");
                }
                assert_eq!(get(store, &path_info("")), Some("newest".into()), "{step:?}");
            };
            check(&store);
            store.rewrite(0.6).unwrap();
            assert!(!packs(&dead).contains(&"00000002.pack".to_owned()), "{step:?}");
            check(&store);
            check(&reopened_without_index(store));
        }
    }
}

#[test]
fn a_damaged_record_is_absent_for_good_and_can_come_again() {
    let folder = tempfile::tempdir().unwrap();
    let store = LocalStore::open(folder.path()).unwrap();
    store.put(vec![chunk(1), chunk(2), chunk(3)]).unwrap();
    store.delete(Kind::Chunk, &chunk(3).key).unwrap();
    let pack = folder.path().join("packs/00000001.pack");
    let file = OpenOptions::new().write(true).open(pack).unwrap();
    file.write_all_at(b"damage", 24 + 1056 + 500).unwrap();
    let rewritten = store.rewrite(0.9).unwrap();
    assert_eq!((rewritten.packs, rewritten.damaged), (1, 1));
    let store = reopened_without_index(store);
    assert_eq!(get(&store, &chunk(1)), Some(chunk(1).value));
    assert_eq!(get(&store, &chunk(2)), None);
    store.put(vec![chunk(2)]).unwrap();
    assert_eq!(get(&store, &chunk(2)), Some(chunk(2).value));
}

#[test]
fn what_is_distrusted_stays_so() {
    let folder = tempfile::tempdir().unwrap();
    let store = LocalStore::open(folder.path()).unwrap();
    store.put(vec![chunk(1), chunk(2)]).unwrap();
    store.delete(Kind::Chunk, &chunk(2).key).unwrap();
    store.distrust(Kind::Chunk, &chunk(1).key).unwrap();
    assert_eq!(store.rewrite(0.9).unwrap().packs, 1);
    assert_eq!(get(&store, &chunk(1)), Some(chunk(1).value));
    assert!(!store.contains(Kind::Chunk, &chunk(1).key).unwrap());
}

#[test]
fn readers_and_writers_notice_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let store = LocalStore::open(folder.path()).unwrap();
    let records: Vec<Record> = (0..40).map(chunk).collect();
    store.put(records.clone()).unwrap();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    for record in &records {
                        assert_eq!(get(&store, record), Some(record.value.clone()));
                        assert!(store.contains(record.kind, &record.key).unwrap());
                    }
                }
            });
        }
        let writer = scope.spawn(|| {
            for seed in 1000..1040 {
                store.put(vec![chunk(seed)]).unwrap();
                assert!(store.delete(Kind::Chunk, &chunk(seed).key).unwrap());
            }
        });
        for _ in 0..20 {
            // More than all of it: every pack, each time.
            store.rewrite(1.1).unwrap();
        }
        writer.join().unwrap();
        done.store(true, Ordering::Relaxed);
    });
    let store = reopened_without_index(store);
    for record in &records {
        assert_eq!(get(&store, record), Some(record.value.clone()));
    }
    assert_eq!(get(&store, &chunk(1000)), None);
}

#[test]
fn without_room_the_pack_stays() {
    let folder = tempfile::tempdir().unwrap();
    let store = LocalStore::open(folder.path()).unwrap();
    store.put(vec![chunk(1), chunk(2)]).unwrap();
    store.delete(Kind::Chunk, &chunk(2).key).unwrap();
    store.faults.full.store(true, Ordering::SeqCst);
    assert!(matches!(store.rewrite(0.9), Err(LocalError::NoSpace { .. })));
    assert_eq!(get(&store, &chunk(1)), Some(chunk(1).value));
    assert_eq!(store.rewrite(0.9).unwrap().packs, 1);
    assert_eq!(get(&store, &chunk(1)), Some(chunk(1).value));
}
