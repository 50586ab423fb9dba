//! A cache keeps what it can, within its budget, gives what it has as it came, and never fails.

use std::{
    fs::{self, OpenOptions},
    os::unix::fs::FileExt as _,
    path::Path,
    sync::atomic::Ordering,
};

use proptest::prelude::*;

use super::{pending::PENDING_BYTES, *};
use crate::Digest;

fn noise(seed: u64, len: usize) -> Bytes {
    let mut bytes = vec![0; len];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut bytes);
    bytes.into()
}

fn chunk(seed: u64, len: usize) -> Record {
    let value = noise(seed, len);
    Record::new(Kind::Chunk, Digest::of(&value).into(), value)
}

fn path_info(value: &str) -> Record {
    let value = Bytes::copy_from_slice(value.as_bytes());
    Record::new(Kind::PathInfo, vec![1; 20].into(), value)
}

fn get(cache: &LocalCache, record: &Record) -> Option<Bytes> {
    cache.get(record.kind, &record.key)
}

fn settle(cache: &LocalCache) {
    futures::executor::block_on(cache.settle());
}

/// The bytes of all files in a folder.
fn on_disk(folder: &Path) -> u64 {
    let size = |entry: fs::DirEntry| match entry.metadata().unwrap() {
        metadata if metadata.is_dir() => on_disk(&entry.path()),
        metadata => metadata.len(),
    };
    fs::read_dir(folder).unwrap().map(|entry| size(entry.unwrap())).sum()
}

#[test]
fn what_is_kept_is_there_at_once_and_later() {
    let folder = tempfile::tempdir().unwrap();
    let records: Vec<Record> = (0..100).map(|seed| chunk(seed, 5000)).collect();
    {
        let cache = LocalCache::open(folder.path(), CACHE_MIN).unwrap();
        assert_eq!(get(&cache, &records[0]), None);
        cache.keep(records.clone());
        for record in &records {
            assert_eq!(cache.value_len(record.kind, &record.key), Some(5000));
            assert_eq!(get(&cache, record).as_ref(), Some(&record.value));
        }
        settle(&cache);
        for record in &records {
            assert_eq!(get(&cache, record).as_ref(), Some(&record.value));
        }
        let usage = cache.usage().unwrap();
        assert_eq!(usage.records[0], (Kind::Chunk, 100));
        assert_eq!((usage.dropped, usage.evicted), (0, 0));
        cache.keep(vec![path_info("kept when it ends")]);
    }
    let cache = LocalCache::open(folder.path(), CACHE_MIN).unwrap();
    assert_eq!(get(&cache, &path_info("")), Some("kept when it ends".into()));
    for record in &records {
        assert_eq!(get(&cache, record).as_ref(), Some(&record.value));
    }
    assert!(matches!(LocalCache::open(folder.path(), CACHE_MIN), Err(LocalError::Locked(_))));
}

#[test]
fn what_comes_in_a_frame_is_written_in_it() {
    let folder = tempfile::tempdir().unwrap();
    let cache = LocalCache::open(folder.path(), CACHE_MIN).unwrap();
    // Another one than would be made here.
    let value = Bytes::from((0..10_000).map(|n| format!("line {n}\n")).collect::<String>());
    let frame = Bytes::from(zstd::bulk::compress(&value, 19).unwrap());
    let own = Record::new(Kind::Chunk, Digest::of(&value).into(), value.clone());
    let came = Record { frame: Some(frame.clone()), ..own.clone() };
    cache.keep(vec![came]);
    assert_eq!(get(&cache, &own).as_ref(), Some(&value), "at once");
    settle(&cache);
    assert_eq!(get(&cache, &own).as_ref(), Some(&value), "when it is written");
    let stored = cache.inner.store.stored_len(Kind::Chunk, &own.key).unwrap().unwrap();
    assert!((frame.len() as u64..frame.len() as u64 + 100).contains(&stored), "{stored}");
    // One that spares nothing.
    let value = noise(1, 5000);
    let longer = Bytes::from(zstd::bulk::compress(&value, 1).unwrap());
    assert!(longer.len() >= value.len());
    let own = Record::new(Kind::Chunk, Digest::of(&value).into(), value.clone());
    cache.keep(vec![Record { frame: Some(longer), ..own.clone() }]);
    settle(&cache);
    assert_eq!(get(&cache, &own), Some(value));
}

#[test]
fn the_last_value_counts_however_they_come() {
    let folder = tempfile::tempdir().unwrap();
    let cache = LocalCache::open(folder.path(), CACHE_MIN).unwrap();
    for round in 0..300 {
        for step in 0..round % 7 {
            cache.keep(vec![path_info(&format!("{round} {step}"))]);
        }
        match round % 3 {
            0 => cache.forget(Kind::PathInfo, &[1; 20]),
            _ => cache.keep(vec![path_info(&round.to_string())]),
        }
        let expected = (round % 3 > 0).then(|| Bytes::from(round.to_string()));
        assert_eq!(get(&cache, &path_info("")), expected, "at once");
        if round % 5 == 0 {
            settle(&cache);
            assert_eq!(get(&cache, &path_info("")), expected, "when it is written");
        }
    }
    settle(&cache);
    assert_eq!(get(&cache, &path_info("")), Some("299".into()));
    assert_eq!(cache.list(Kind::PathInfo, None, 9).unwrap().len(), 1);
    cache.forget(Kind::PathInfo, &[1; 20]);
    drop(cache);
    let cache = LocalCache::open(folder.path(), CACHE_MIN).unwrap();
    assert_eq!(get(&cache, &path_info("")), None);
}

/// Bytes that a cache with the least budget gets: three times as many as it may keep.
const FLOOD: u64 = 3 * CACHE_MIN;

/// Keeps records that are read once, of these bytes each, until so many bytes came, and reads the
/// hot ones meanwhile, again and again. What is on the disk stays within the budget.
fn flood(cache: &LocalCache, seed: u64, len: usize, bytes: u64, hot: &[Record]) -> Vec<Record> {
    let count = bytes / len as u64;
    let step = (4 << 20) / len as u64;
    let mut came = Vec::new();
    for first in (0..count).step_by(step as usize) {
        let records: Vec<Record> =
            (first..first + step).map(|index| chunk(seed + index, len)).collect();
        cache.keep(records.clone());
        settle(cache);
        for record in hot {
            let _ = get(cache, record);
        }
        let used = on_disk(cache.path());
        assert!(used <= CACHE_MIN + CACHE_MIN / 20, "{used} bytes are more than the budget");
        came.extend(records.into_iter().map(|record| Record { value: Bytes::new(), ..record }));
    }
    came
}

fn present<'a>(cache: &LocalCache, records: impl IntoIterator<Item = &'a Record>) -> usize {
    let there = |record: &&Record| cache.value_len(record.kind, &record.key).is_some();
    records.into_iter().filter(there).count()
}

#[test]
fn what_is_read_often_stays_within_the_budget_and_the_rest_goes() {
    let folder = tempfile::tempdir().unwrap();
    let cache = LocalCache::open(folder.path(), CACHE_MIN).unwrap();
    // A third of the budget, in records of several sizes.
    let sizes = [700, 4000, 30_000, 250_000];
    let hot: Vec<Record> =
        (0..300).map(|index| chunk(1 << 40 | index, sizes[index as usize % 4])).collect();
    cache.keep(hot.clone());
    settle(&cache);
    assert_eq!(present(&cache, &hot), hot.len());
    let came = flood(&cache, 0, 20_000, FLOOD, &hot);
    let used = on_disk(folder.path());
    assert!(used >= CACHE_MIN - CACHE_MIN / 10, "{used} bytes are little of the budget");
    assert_eq!(present(&cache, &hot), hot.len(), "what is read stays");
    for record in &hot {
        assert_eq!(get(&cache, record).as_ref(), Some(&record.value));
    }
    let (old, new) = came.split_at(came.len() - 500);
    assert_eq!(present(&cache, new), new.len(), "the newest stay");
    let kept = present(&cache, old);
    assert!(kept < old.len() / 3, "{kept} of {} stay that nobody reads", old.len());

    // The index has no more than the packs.
    let usage = cache.usage().unwrap();
    assert_eq!(usage.records[0].1 as usize, present(&cache, hot.iter().chain(&came)));
    assert!(usage.evicted > CACHE_MIN);
    let bytes = usage.bytes.abs_diff(used);
    assert!(bytes < 1 << 20, "{} bytes are told of {used}", usage.bytes);
    let there: Vec<bool> = came.iter().map(|record| get(&cache, record).is_some()).collect();
    drop(cache);

    // Nor does a new index bring anything back.
    fs::remove_dir_all(folder.path().join("index")).unwrap();
    let cache = LocalCache::open(folder.path(), CACHE_MIN).unwrap();
    for (record, there) in came.iter().zip(there) {
        assert_eq!(get(&cache, record).is_some(), there);
    }
    assert_eq!(present(&cache, &hot), hot.len());
}

#[test]
fn what_was_read_is_known_after_the_cache_was_closed() {
    let folder = tempfile::tempdir().unwrap();
    let records: Vec<Record> = (0..800).map(|index| chunk(1 << 40 | index, 50_000)).collect();
    // Scattered, so that what lies between would come along if marks were coarse.
    let (hot, cold): (Vec<_>, Vec<_>) =
        records.iter().enumerate().partition(|(index, _)| index % 4 == 0);
    {
        let cache = LocalCache::open(folder.path(), CACHE_MIN).unwrap();
        for some in records.chunks(100) {
            cache.keep(some.to_vec());
            settle(&cache);
        }
        for (_, record) in &hot {
            get(&cache, record).unwrap();
        }
    }
    let cache = LocalCache::open(folder.path(), CACHE_MIN).unwrap();
    flood(&cache, 0, 40_000, CACHE_MIN, &[]);
    assert_eq!(present(&cache, hot.iter().map(|(_, record)| *record)), hot.len());
    let cold = present(&cache, cold.iter().map(|(_, record)| *record));
    assert_eq!(cold, 0, "what was not read went");
    // Once carried, it has to be read again.
    flood(&cache, 1 << 20, 40_000, CACHE_MIN, &[]);
    assert_eq!(present(&cache, hot.iter().map(|(_, record)| *record)), 0);
}

#[test]
fn a_cache_of_which_all_is_read_still_takes_what_is_new() {
    let folder = tempfile::tempdir().unwrap();
    let cache = LocalCache::open(folder.path(), CACHE_MIN).unwrap();
    let mut all: Vec<Record> = Vec::new();
    for index in 0..2 * CACHE_MIN / 100_000 {
        let record = chunk(index, 100_000);
        cache.keep(vec![record.clone()]);
        all.push(record);
        if index % 20 == 0 {
            settle(&cache);
            all.iter().for_each(|record| drop(get(&cache, record)));
        }
    }
    settle(&cache);
    let new = &all[all.len() - 100..];
    assert_eq!(present(&cache, new), new.len());
    assert!(on_disk(folder.path()) <= CACHE_MIN + CACHE_MIN / 20);
}

#[test]
fn a_cache_is_no_store_and_a_store_no_cache() {
    let folder = tempfile::tempdir().unwrap();
    let open = |path: &Path| LocalCache::open(path, CACHE_MIN);
    let store = folder.path().join("store");
    LocalStore::open(&store).unwrap().put(vec![chunk(1, 10)]).unwrap();
    assert!(matches!(open(&store), Err(LocalError::IsStore(_))));
    let store = LocalStore::open(&store).unwrap();
    assert!(store.contains(Kind::Chunk, &chunk(1, 10).key).unwrap(), "nothing was thrown away");

    let cache = folder.path().join("cache");
    drop(open(&cache).unwrap());
    assert!(matches!(LocalStore::open(&cache), Err(LocalError::IsCache(_))));

    let other = folder.path().join("other");
    fs::create_dir(&other).unwrap();
    fs::write(other.join("letter"), "dear").unwrap();
    assert!(matches!(open(&other), Err(LocalError::NotAStore(_))));
    fs::write(other.join("format"), "of another program").unwrap();
    assert!(matches!(open(&other), Err(LocalError::NotAStore(_))));
    assert_eq!(fs::read_to_string(other.join("letter")).unwrap(), "dear");
}

#[test]
fn a_cache_that_is_beyond_use_is_begun_anew() {
    for spoil in [
        |path: &Path| fs::write(path.join("format"), "cairn cache 99\n").unwrap(),
        |path: &Path| fs::write(path.join("format"), "\0\0").unwrap(),
        |path: &Path| {
            fs::remove_dir_all(path.join("packs")).unwrap();
            fs::write(path.join("packs"), "").unwrap();
        },
    ] {
        let folder = tempfile::tempdir().unwrap();
        let cache = LocalCache::open(folder.path(), CACHE_MIN).unwrap();
        cache.keep(vec![chunk(1, 1000)]);
        drop(cache);
        spoil(folder.path());
        let cache = LocalCache::open(folder.path(), CACHE_MIN).unwrap();
        assert_eq!(get(&cache, &chunk(1, 1000)), None);
        cache.keep(vec![chunk(2, 1000)]);
        settle(&cache);
        assert!(get(&cache, &chunk(2, 1000)).is_some());
    }
}

#[test]
fn what_is_damaged_is_not_there_and_comes_again() {
    let folder = tempfile::tempdir().unwrap();
    let records: Vec<Record> = (0..3).map(|seed| chunk(seed, 5000)).collect();
    let cache = LocalCache::open(folder.path(), CACHE_MIN).unwrap();
    cache.keep(records.clone());
    settle(&cache);
    let pack = folder.path().join("packs/00000001.pack");
    let file = OpenOptions::new().write(true).open(&pack).unwrap();
    // In the payload of the record in the middle, whichever that is.
    file.write_all_at(b"damage", 24 + 5056 + 2000).unwrap();
    let lost: Vec<&Record> =
        records.iter().filter(|record| get(&cache, record).is_none()).collect();
    let [lost] = lost[..] else { panic!("{} are damaged", lost.len()) };
    assert_eq!(cache.value_len(lost.kind, &lost.key), None);
    cache.keep(vec![lost.clone()]);
    settle(&cache);
    assert_eq!(get(&cache, lost).as_ref(), Some(&lost.value));
}

#[test]
fn a_disk_without_room_is_used_as_far_as_it_goes() {
    let folder = tempfile::tempdir().unwrap();
    let cache = LocalCache::open(folder.path(), CACHE_MIN).unwrap();
    let faults = &cache.inner.store.faults;
    let old: Vec<Record> = (0..200).map(|seed| chunk(seed, 50_000)).collect();
    for some in old.chunks(50) {
        cache.keep(some.to_vec());
        settle(&cache);
    }
    faults.full.store(true, Ordering::SeqCst);
    let new = chunk(1 << 40, 1000);
    cache.keep(vec![new.clone()]);
    settle(&cache);
    assert!(get(&cache, &new).is_some(), "the oldest pack made room");
    let left = present(&cache, &old);
    assert!((100..200).contains(&left), "{left} of 200 are left");
    assert_eq!(cache.usage().unwrap().dropped, 0);
}

#[test]
fn what_can_not_be_written_is_not_kept_and_no_error() {
    let folder = tempfile::tempdir().unwrap();
    let cache = LocalCache::open(folder.path(), CACHE_MIN).unwrap();
    // More than may wait at once, with nobody to write it.
    let large: Vec<Record> = (0..80).map(|seed| chunk(seed, 500_000)).collect();
    assert!(large.iter().map(|record| record.value.len()).sum::<usize>() > PENDING_BYTES);
    cache.keep(large.clone());
    let dropped = cache.inner.dropped.load(Ordering::Relaxed);
    assert!((1..40).contains(&dropped), "{dropped} of 80 are not kept");
    settle(&cache);
    assert_eq!(present(&cache, &large) as u64, 80 - dropped);

    cache.inner.store.close();
    cache.keep(vec![chunk(1 << 40, 10)]);
    settle(&cache);
    assert_eq!(get(&cache, &chunk(1 << 40, 10)), None);
    cache.keep(vec![chunk(2 << 40, 10)]);
    settle(&cache);
    let usage = cache.usage().unwrap();
    assert_eq!(usage.dropped, dropped + 2, "nothing is taken for a while");
}

#[test]
fn nothing_waits_for_the_disk_to_have_it() {
    let folder = tempfile::tempdir().unwrap();
    let cache = LocalCache::open(folder.path(), CACHE_MIN).unwrap();
    // A sync would fail.
    cache.inner.store.faults.sync.store(true, Ordering::SeqCst);
    cache.keep(vec![chunk(1, 1000)]);
    settle(&cache);
    assert!(get(&cache, &chunk(1, 1000)).is_some());
    assert!(cache.inner.store.faults.sync.load(Ordering::SeqCst), "nobody has tried");
}

#[test]
fn all_of_it_can_be_thrown_away() {
    let folder = tempfile::tempdir().unwrap();
    let cache = LocalCache::open(folder.path(), CACHE_MIN).unwrap();
    let records: Vec<Record> = (0..100).map(|seed| chunk(seed, 50_000)).collect();
    cache.keep(records.clone());
    settle(&cache);
    for record in &records {
        get(&cache, record).unwrap();
    }
    cache.clear().unwrap();
    assert_eq!(present(&cache, &records), 0);
    let usage = cache.usage().unwrap();
    assert!(usage.records.iter().all(|(_, count)| *count == 0));
    assert!(usage.bytes < 3 << 20, "{} bytes are left", usage.bytes);
    cache.keep(records.clone());
    settle(&cache);
    assert_eq!(present(&cache, &records), 100);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    /// Whatever is done, what is read is what was kept last, or nothing.
    #[test]
    fn values_are_right_or_absent(
        steps in prop::collection::vec((0..5u8, 0..40u64, 1..60_000usize), 1..120),
    ) {
        let folder = tempfile::tempdir().unwrap();
        let mut cache = LocalCache::open(folder.path(), CACHE_MIN).unwrap();
        let mut info: Option<Bytes> = None;
        let mut kept = std::collections::HashMap::new();
        for (step, seed, len) in steps {
            let record = chunk(seed * 7 + len as u64 % 3, 1 + (seed as usize * 997) % 50_000);
            match step {
                0 => {
                    cache.keep(vec![record.clone()]);
                    kept.insert(record.key.clone(), record);
                }
                1 => {
                    let value = format!("{seed} {len}");
                    cache.keep(vec![path_info(&value)]);
                    info = Some(value.into());
                }
                2 => {
                    cache.forget(record.kind, &record.key);
                    kept.remove(&record.key);
                    prop_assert_eq!(get(&cache, &record), None);
                }
                3 if len % 4 == 0 => {
                    drop(cache);
                    cache = LocalCache::open(folder.path(), CACHE_MIN).unwrap();
                }
                4 if len % 8 == 0 => {
                    settle(&cache);
                    cache.clear().unwrap();
                    kept.clear();
                    info = None;
                }
                _ => settle(&cache),
            }
            prop_assert_eq!(get(&cache, &path_info("")), info.clone());
            for record in kept.values() {
                prop_assert_eq!(get(&cache, record), Some(record.value.clone()));
            }
        }
    }
}
