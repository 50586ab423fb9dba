//! The engine's promises, held against whatever may happen to its files.

use std::{
    collections::BTreeMap,
    fs::{self, OpenOptions},
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    sync::{Arc, atomic::Ordering},
};

use bytes::Bytes;
use proptest::prelude::*;

use super::{Kind, LocalError, LocalStore, Record, VALUE_MAX};
use crate::Digest;

fn chunk(text: impl AsRef<[u8]>) -> Record {
    let value = Bytes::copy_from_slice(text.as_ref());
    Record::new(Kind::Chunk, Digest::of(&value).into(), value)
}

fn path_info(key: u8, value: &str) -> Record {
    let value = Bytes::copy_from_slice(value.as_bytes());
    Record::new(Kind::PathInfo, Bytes::from(vec![key; 20]), value)
}

fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut bytes);
    bytes
}

fn get(store: &LocalStore, record: &Record) -> Result<Option<Bytes>, LocalError> {
    store.get(record.kind, &record.key)
}

fn packs(path: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(path.join("packs")).unwrap();
    let mut packs: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    packs.sort();
    packs
}

fn flip(path: &Path, offset: u64) {
    let file = OpenOptions::new().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, offset).unwrap();
    file.write_all_at(&[byte[0] ^ 0x40], offset).unwrap();
}

fn cut(path: &Path, length: u64) {
    OpenOptions::new().write(true).open(path).unwrap().set_len(length).unwrap();
}

fn length(path: &Path) -> u64 {
    fs::metadata(path).unwrap().len()
}

#[test]
fn records_outlive_the_process() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a/b/store");
    let records = [chunk("one"), chunk(vec![b'x'; 300_000]), path_info(1, "info")];
    {
        let store = LocalStore::open(&path).unwrap();
        assert_eq!(store.to_string(), format!("sled:{}", path.display()));
        store.put(records.to_vec()).unwrap();
        for record in &records {
            assert_eq!(get(&store, record).unwrap(), Some(record.value.clone()));
        }
    }
    let store = LocalStore::open(&path).unwrap();
    for record in &records {
        assert!(store.contains(record.kind, &record.key).unwrap());
        assert_eq!(get(&store, record).unwrap(), Some(record.value.clone()));
    }
    assert_eq!(store.value_len(Kind::Chunk, &records[1].key).unwrap(), Some(300_000));
    assert_eq!(get(&store, &chunk("two")).unwrap(), None);
    assert!(!store.contains(Kind::Blob, &records[0].key).unwrap(), "kinds are apart");
}

#[test]
fn content_is_stored_once_and_path_infos_are_replaced() {
    let folder = tempfile::tempdir().unwrap();
    let store = LocalStore::open(folder.path()).unwrap();
    let record = chunk(noise(1, 50_000));
    store.put(vec![record.clone(), record.clone()]).unwrap();
    let pack = packs(folder.path()).remove(0);
    let before = length(&pack);
    assert!(before < 60_000);
    store.put(vec![record.clone(), record]).unwrap();
    assert_eq!(length(&pack), before);

    store.put(vec![path_info(1, "old"), path_info(1, "new")]).unwrap();
    assert_eq!(get(&store, &path_info(1, "")).unwrap(), Some(Bytes::from("new")));
    store.put(vec![path_info(1, "newer")]).unwrap();
    assert_eq!(get(&store, &path_info(1, "")).unwrap(), Some(Bytes::from("newer")));
}

#[test]
fn deletions_are_durable() {
    let folder = tempfile::tempdir().unwrap();
    let records = [chunk("one"), path_info(1, "info")];
    let store = LocalStore::open(folder.path()).unwrap();
    store.put(records.to_vec()).unwrap();
    for record in &records {
        assert!(store.delete(record.kind, &record.key).unwrap());
        assert!(!store.delete(record.kind, &record.key).unwrap());
        assert_eq!(get(&store, record).unwrap(), None);
    }
    store.put(vec![records[0].clone()]).unwrap();
    drop(store);
    fs::remove_dir_all(folder.path().join("index")).unwrap();
    let store = LocalStore::open(folder.path()).unwrap();
    assert_eq!(get(&store, &records[0]).unwrap(), Some(records[0].value.clone()));
    assert_eq!(get(&store, &records[1]).unwrap(), None);
}

#[test]
fn listings_have_pages() {
    let folder = tempfile::tempdir().unwrap();
    let store = LocalStore::open(folder.path()).unwrap();
    for key in [5, 1, 3, 4, 2, 255] {
        store.put(vec![path_info(key, &key.to_string())]).unwrap();
    }
    store.delete(Kind::PathInfo, &[4; 20]).unwrap();
    let mut listed = Vec::new();
    let mut after: Option<Bytes> = None;
    loop {
        let page = store.list(Kind::PathInfo, after.as_deref(), 2).unwrap();
        listed.extend(page.iter().map(|(_, value)| value.clone()));
        after = page.last().map(|(key, _)| key.clone());
        if page.len() < 2 {
            break;
        }
    }
    assert_eq!(listed, ["1", "2", "3", "5", "255"]);
    assert!(store.list(Kind::Nar, None, 10).unwrap().is_empty());
}

#[test]
fn what_is_no_store_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("something"), "else").unwrap();
    let error = LocalStore::open(folder.path()).unwrap_err();
    assert!(matches!(error, LocalError::NotAStore(_)));
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "nothing was made there");

    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("socket"), "").unwrap();
    fs::write(folder.path().join("lock"), "").unwrap();
    drop(LocalStore::open(folder.path()).unwrap());

    fs::write(folder.path().join("format"), "cairn local store 2\n").unwrap();
    let error = LocalStore::open(folder.path()).unwrap_err();
    assert!(error.to_string().contains("the format 2"), "{error}");
    assert!(matches!(error, LocalError::Version { supported: 1, .. }));
    fs::write(folder.path().join("format"), "what").unwrap();
    assert!(matches!(LocalStore::open(folder.path()), Err(LocalError::NotAStore(_))));
}

#[test]
fn a_store_is_open_once() {
    let folder = tempfile::tempdir().unwrap();
    let store = LocalStore::open(folder.path()).unwrap();
    assert!(matches!(LocalStore::open(folder.path()), Err(LocalError::Locked(_))));
    drop(store);
    LocalStore::open(folder.path()).unwrap();
}

#[test]
fn impossible_keys_and_values_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let store = LocalStore::open(folder.path()).unwrap();
    for len in [0, 33] {
        assert!(matches!(store.get(Kind::Nar, &vec![0; len]), Err(LocalError::Key(_))));
        let record = Record::new(Kind::Nar, vec![0; len].into(), Bytes::new());
        assert!(matches!(store.put(vec![record]), Err(LocalError::Key(_))));
    }
    let value = Bytes::from(vec![0; VALUE_MAX + 1]);
    let record = Record::new(Kind::Nar, Bytes::from("key"), value);
    assert!(matches!(store.put(vec![record]), Err(LocalError::TooLarge { .. })));
}

#[test]
fn a_full_disk_fails_the_put_and_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    let store = LocalStore::open(folder.path()).unwrap();
    store.put(vec![chunk("one")]).unwrap();
    let pack = packs(folder.path()).remove(0);
    let before = length(&pack);
    store.faults.full.store(true, Ordering::SeqCst);
    let error = store.put(vec![chunk("two"), chunk(noise(2, 3_000_000))]).unwrap_err();
    assert!(matches!(error, LocalError::NoSpace { .. }), "{error}");
    assert_eq!(length(&pack), before);
    assert_eq!(get(&store, &chunk("two")).unwrap(), None);
    store.put(vec![chunk("two")]).unwrap();
    assert_eq!(packs(folder.path()).len(), 1);
    drop(store);
    fs::remove_dir_all(folder.path().join("index")).unwrap();
    let store = LocalStore::open(folder.path()).unwrap();
    assert!(get(&store, &chunk("one")).unwrap().is_some());
    assert!(get(&store, &chunk("two")).unwrap().is_some());
}

#[test]
fn no_record_follows_a_failed_sync() {
    let folder = tempfile::tempdir().unwrap();
    let store = LocalStore::open(folder.path()).unwrap();
    store.put(vec![chunk("one")]).unwrap();
    store.faults.sync.store(true, Ordering::SeqCst);
    assert!(matches!(store.put(vec![chunk("two")]), Err(LocalError::Io { .. })));
    assert_eq!(get(&store, &chunk("two")).unwrap(), None);
    store.put(vec![chunk("three")]).unwrap();
    assert_eq!(packs(folder.path()).len(), 2);
    drop(store);
    let store = LocalStore::open(folder.path()).unwrap();
    for text in ["one", "three"] {
        assert!(get(&store, &chunk(text)).unwrap().is_some());
    }
}

#[test]
fn damage_is_told_and_healed_by_the_next_put() {
    let folder = tempfile::tempdir().unwrap();
    let store = LocalStore::open(folder.path()).unwrap();
    let records = [chunk(noise(1, 1000)), chunk(noise(2, 1000)), chunk(noise(3, 1000))];
    store.put(records.to_vec()).unwrap();
    let pack = packs(folder.path()).remove(0);
    flip(&pack, 24 + 1056 + 500);
    assert!(store.contains(Kind::Chunk, &records[1].key).unwrap(), "nobody has looked yet");
    let error = get(&store, &records[1]).unwrap_err();
    assert!(matches!(error, LocalError::Damaged { pack: 1, offset: 1080, .. }), "{error:?}");
    let text = "in pack 00000001 at byte 1080";
    assert!(error.to_string().ends_with(text), "{error}");
    assert!(!store.contains(Kind::Chunk, &records[1].key).unwrap());
    assert!(get(&store, &records[1]).is_err());
    for record in [&records[0], &records[2]] {
        assert_eq!(get(&store, record).unwrap(), Some(record.value.clone()));
    }
    drop(store);

    let store = LocalStore::open(folder.path()).unwrap();
    assert!(!store.contains(Kind::Chunk, &records[1].key).unwrap());
    store.put(records.to_vec()).unwrap();
    assert_eq!(get(&store, &records[1]).unwrap(), Some(records[1].value.clone()));
    drop(store);
    fs::remove_dir_all(folder.path().join("index")).unwrap();
    let store = LocalStore::open(folder.path()).unwrap();
    for record in &records {
        assert_eq!(get(&store, record).unwrap(), Some(record.value.clone()));
    }
}

#[test]
fn a_rebuilt_index_knows_what_is_damaged() {
    let folder = tempfile::tempdir().unwrap();
    let records = [chunk(noise(1, 1000)), chunk(noise(2, 1000)), chunk(noise(3, 1000))];
    LocalStore::open(folder.path()).unwrap().put(records.to_vec()).unwrap();
    let pack = packs(folder.path()).remove(0);
    flip(&pack, 24 + 1056 + 500);
    fs::remove_dir_all(folder.path().join("index")).unwrap();
    let store = LocalStore::open(folder.path()).unwrap();
    assert!(!store.contains(Kind::Chunk, &records[1].key).unwrap());
    assert!(matches!(get(&store, &records[1]), Err(LocalError::Damaged { .. })));
    assert!(get(&store, &records[2]).unwrap().is_some());
    store.put(vec![records[1].clone()]).unwrap();
    assert!(get(&store, &records[1]).unwrap().is_some());
    let names = packs(folder.path());
    assert_eq!(names.len(), 2, "nothing is added to a damaged pack");
}

#[test]
fn a_pack_cut_short_or_missing_is_damage() {
    let folder = tempfile::tempdir().unwrap();
    let records = [chunk(noise(1, 1000)), chunk(noise(2, 1000))];
    LocalStore::open(folder.path()).unwrap().put(records.to_vec()).unwrap();
    let pack = packs(folder.path()).remove(0);
    cut(&pack, length(&pack) - 100);
    {
        let store = LocalStore::open(folder.path()).unwrap();
        assert!(get(&store, &records[0]).unwrap().is_some());
        assert!(!store.contains(Kind::Chunk, &records[1].key).unwrap());
        assert!(matches!(get(&store, &records[1]), Err(LocalError::Damaged { .. })));
        store.put(records.to_vec()).unwrap();
        assert!(get(&store, &records[1]).unwrap().is_some());
        assert_eq!(packs(folder.path()).len(), 2);
    }
    fs::remove_file(&pack).unwrap();
    let store = LocalStore::open(folder.path()).unwrap();
    assert!(!store.contains(Kind::Chunk, &records[0].key).unwrap());
    let error = get(&store, &records[0]).unwrap_err();
    assert!(error.to_string().contains("the pack is missing"), "{error}");
    assert!(get(&store, &records[1]).unwrap().is_some());
    store.put(records.to_vec()).unwrap();
    assert!(get(&store, &records[0]).unwrap().is_some());
}

#[test]
fn a_torn_tail_is_cut_off() {
    let folder = tempfile::tempdir().unwrap();
    let records = [chunk(noise(1, 1000)), chunk(noise(2, 1000))];
    LocalStore::open(folder.path()).unwrap().put(vec![records[0].clone()]).unwrap();
    let pack = packs(folder.path()).remove(0);
    let end = length(&pack);
    {
        let file = OpenOptions::new().append(true).open(&pack).unwrap();
        file.write_all_at(&noise(3, 700), end).unwrap();
    }
    let store = LocalStore::open(folder.path()).unwrap();
    assert_eq!(length(&pack), end);
    store.put(records.to_vec()).unwrap();
    assert_eq!(packs(folder.path()).len(), 1);
    assert!(get(&store, &records[0]).unwrap().is_some());
    assert!(get(&store, &records[1]).unwrap().is_some());
}

#[test]
fn a_broken_index_is_rebuilt() {
    let folder = tempfile::tempdir().unwrap();
    let record = chunk("one");
    LocalStore::open(folder.path()).unwrap().put(vec![record.clone()]).unwrap();
    let db = folder.path().join("index/db");
    let size = length(&db) as usize;
    let damages: [Box<dyn Fn() + '_>; 5] = [
        Box::new(|| fs::write(&db, noise(1, size)).unwrap()),
        Box::new(|| cut(&db, 100)),
        Box::new(|| fs::write(folder.path().join("index/conf"), "nonsense").unwrap()),
        Box::new(|| fs::write(folder.path().join("index-state"), "used another-boot\n").unwrap()),
        Box::new(|| fs::remove_file(folder.path().join("index-state")).unwrap()),
    ];
    for (number, damage) in damages.iter().enumerate() {
        damage();
        let store = LocalStore::open(folder.path()).unwrap();
        assert_eq!(get(&store, &record).unwrap(), Some(record.value.clone()), "damage {number}");
    }
}

#[test]
fn a_pack_of_a_later_version_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    LocalStore::open(folder.path()).unwrap().put(vec![chunk("one")]).unwrap();
    let pack = packs(folder.path()).remove(0);
    let mut bytes = fs::read(&pack).unwrap();
    bytes[8] = 9;
    let checksum = crc32c::crc32c(&bytes[..20]);
    bytes[20..24].copy_from_slice(&checksum.to_le_bytes());
    fs::write(&pack, bytes).unwrap();
    let error = LocalStore::open(folder.path()).unwrap_err();
    let expected = format!("{} has the format 9, and this program knows format 1", pack.display());
    assert_eq!(error.to_string(), expected);
}

#[test]
fn many_putters_share_their_syncs_and_lose_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let store = LocalStore::open(folder.path()).unwrap();
    std::thread::scope(|scope| {
        for thread in 0..8u64 {
            let store = &store;
            scope.spawn(move || {
                for index in 0..20 {
                    // Half of them are those of another thread.
                    let seed = (thread / 2) * 100 + index;
                    let record = chunk(noise(seed, 2000));
                    store.put(vec![record.clone()]).unwrap();
                    assert_eq!(get(store, &record).unwrap(), Some(record.value));
                }
            });
        }
    });
    let pack = packs(folder.path()).remove(0);
    assert_eq!(length(&pack), 24 + 80 * (24 + 32 + 2000), "each is stored once");
}

#[tokio::test]
async fn tasks_put_without_blocking() {
    let folder = tempfile::tempdir().unwrap();
    let store = LocalStore::open(folder.path()).unwrap();
    let record = chunk("one");
    store.put_async(vec![record.clone()]).await.unwrap();
    let key = record.key.clone();
    let value = store.blocking(move |store| store.get(Kind::Chunk, &key)).await.unwrap();
    assert_eq!(value, Some(record.value));
    assert!(store.delete_async(Kind::Chunk, &record.key).await.unwrap());
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

/// A flipped bit anywhere in a pack, with the index and without, never gives wrong bytes.
#[test]
fn no_flipped_bit_gives_wrong_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let whole = folder.path().join("whole");
    let records =
        [chunk(noise(1, 60)), path_info(1, "info"), chunk([7; 400]), path_info(2, "other")];
    LocalStore::open(&whole).unwrap().put(records.to_vec()).unwrap();
    for offset in (0..length(&packs(&whole)[0])).step_by(7) {
        for has_index in [true, false] {
            let damaged = folder.path().join(format!("{offset}-{has_index}"));
            copy(&whole, &damaged);
            flip(&packs(&damaged)[0], offset);
            if !has_index {
                fs::remove_dir_all(damaged.join("index")).unwrap();
            }
            let store = LocalStore::open(&damaged).unwrap();
            let mut lost = 0;
            for record in &records {
                match get(&store, record) {
                    Ok(Some(value)) => assert_eq!(value, record.value, "byte {offset}"),
                    Ok(None) | Err(LocalError::Damaged { .. }) => lost += 1,
                    Err(error) => panic!("byte {offset}: {error}"),
                }
            }
            assert!(lost <= 1, "byte {offset}: {lost} records are lost");
            drop(store);
            fs::remove_dir_all(&damaged).unwrap();
        }
    }
}

/// What is done to a store.
#[derive(Debug, Clone)]
enum Step {
    PutChunks(Vec<(u8, u16)>),
    PutPathInfo(u8, u8),
    Delete(bool, u8),
    Reopen,
    /// Reopen with something behind the last record that was not written whole.
    TornTail(u16),
    LoseIndex,
    /// Rewrite the packs of which less than so many hundredths count.
    Rewrite(u8),
}

fn steps() -> impl Strategy<Value = Step> {
    let chunks = proptest::collection::vec((0..12u8, 0..3000u16), 1..6);
    prop_oneof![
        6 => chunks.prop_map(Step::PutChunks),
        3 => (0..6u8, any::<u8>()).prop_map(|(key, value)| Step::PutPathInfo(key, value)),
        2 => (any::<bool>(), 0..12u8).prop_map(|(is_chunk, key)| Step::Delete(is_chunk, key)),
        1 => Just(Step::Reopen),
        1 => (1..200u16).prop_map(Step::TornTail),
        1 => Just(Step::LoseIndex),
        2 => (0..110u8).prop_map(Step::Rewrite),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Whatever is done, the store says what a map says.
    #[test]
    fn the_store_is_a_map(steps in proptest::collection::vec(steps(), 1..24)) {
        let folder = tempfile::tempdir().unwrap();
        let mut store = Some(LocalStore::open(folder.path()).unwrap());
        let mut model: BTreeMap<(Kind, Bytes), Bytes> = BTreeMap::new();
        let mut chunks: Vec<Record> = Vec::new();
        for step in steps {
            let open = store.as_ref().expect("it is opened at the end of each step");
            match step {
                Step::PutChunks(put) => {
                    let records: Vec<Record> = put
                        .into_iter()
                        .map(|(seed, len)| chunk(noise(seed.into(), len.into())))
                        .collect();
                    open.put(records.clone()).unwrap();
                    for record in records {
                        model.insert((record.kind, record.key.clone()), record.value.clone());
                        chunks.push(record);
                    }
                }
                Step::PutPathInfo(key, value) => {
                    let record = path_info(key, &value.to_string());
                    open.put(vec![record.clone()]).unwrap();
                    model.insert((record.kind, record.key), record.value);
                }
                Step::Delete(is_chunk, key) => {
                    let record = match chunks.get(usize::from(key)) {
                        Some(chunk) if is_chunk => chunk.clone(),
                        _ => path_info(key, ""),
                    };
                    let was_there = open.delete(record.kind, &record.key).unwrap();
                    prop_assert_eq!(was_there, model.remove(&(record.kind, record.key)).is_some());
                }
                Step::Reopen => store = None,
                Step::TornTail(len) => {
                    store = None;
                    if let Some(pack) = packs(folder.path()).last() {
                        let file = OpenOptions::new().write(true).open(pack).unwrap();
                        file.write_all_at(&noise(len.into(), len.into()), length(pack)).unwrap();
                    }
                }
                Step::Rewrite(share) => {
                    open.rewrite(f64::from(share) / 100.0).unwrap();
                }
                Step::LoseIndex => {
                    store = None;
                    fs::remove_dir_all(folder.path().join("index")).unwrap();
                }
            }
            let open = match store.take() {
                Some(open) => open,
                None => LocalStore::open(folder.path()).unwrap(),
            };
            for ((kind, key), value) in &model {
                let found = open.get(*kind, key).unwrap();
                prop_assert_eq!(found.as_ref(), Some(value));
            }
            for chunk in &chunks {
                let expected = model.contains_key(&(chunk.kind, chunk.key.clone()));
                prop_assert_eq!(open.contains(chunk.kind, &chunk.key).unwrap(), expected);
            }
            let listed = open.list(Kind::PathInfo, None, 100).unwrap();
            let expected: Vec<(Bytes, Bytes)> = model
                .iter()
                .filter(|((kind, _), _)| *kind == Kind::PathInfo)
                .map(|((_, key), value)| (key.clone(), value.clone()))
                .collect();
            prop_assert_eq!(listed, expected);
            store = Some(open);
        }
    }
}

/// A store whose process ended without a word: what it had acknowledged is there.
#[test]
fn what_was_acknowledged_is_there_without_a_close() {
    let folder = tempfile::tempdir().unwrap();
    let store = LocalStore::open(folder.path()).unwrap();
    let records: Vec<Record> = (0..50).map(|seed| chunk(noise(seed, 500))).collect();
    for record in &records {
        store.put(vec![record.clone()]).unwrap();
    }
    // The packs as they are at this moment, with an index from before.
    let copy = tempfile::tempdir().unwrap();
    let crashed = copy.path().join("store");
    fs::create_dir_all(crashed.join("packs")).unwrap();
    fs::copy(folder.path().join("format"), crashed.join("format")).unwrap();
    for pack in packs(folder.path()) {
        fs::copy(&pack, crashed.join("packs").join(pack.file_name().unwrap())).unwrap();
    }
    let reopened: Arc<LocalStore> = LocalStore::open(&crashed).unwrap();
    for record in &records {
        assert_eq!(get(&reopened, record).unwrap(), Some(record.value.clone()));
    }
}
