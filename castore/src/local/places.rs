//! Where every record is: what was committed recently, in memory, before the index. A thread of
//! its own brings the one into the other, so that no commit waits for the index, and an index that
//! fails or has no room takes nothing away that was acknowledged.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    path::PathBuf,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use parking_lot::{Condvar, Mutex, RwLock};

use super::{
    error::LocalError,
    filter::Filter,
    index::{Change, Index, Mark},
    pack::{Packs, Place},
    record::{Key, Kind},
    room::Room,
};

/// The most changes that the index may be behind: some 30 MB of memory.
const RECENT_MAX: usize = 256 * 1024;

/// How long a commit waits for an index that is so far behind, before it fails.
const PATIENCE: Duration = Duration::from_secs(30);

/// How long closing a store waits for the index to catch up. What is not in the index by then is
/// read from the packs at the next open.
const CLOSE_PATIENCE: Duration = Duration::from_secs(20);

/// How often it is looked whether there is room for the index again.
const ROOM_INTERVAL: Duration = Duration::from_millis(500);

/// After so many lookups that found nothing in the index, it is worth to read all of its keys for
/// the filter: half a second for a million.
const MISSES: usize = 16 * 1024;

/// The keys that are read for the filter at a time.
const FILTER_PAGE: usize = 4096;

/// The places of all records.
pub(super) struct Places {
    index: Index,
    room: Room,
    path: PathBuf,
    recent: RwLock<Recent>,
    /// The lookups that found nothing in the index.
    misses: AtomicUsize,
    queue: Mutex<Queue>,
    changed: Condvar,
    failure: OnceLock<LocalError>,
}

struct Recent {
    /// What is not in the index yet, each with the number of the group that it came in: an equal
    /// change of an earlier group is another.
    changes: HashMap<Key, (Change, u64)>,
    /// The keys that were added since the store was opened, and those before as soon as it is
    /// complete. `None` if there are too many.
    filter: Option<Filter>,
    is_complete: bool,
}

impl Recent {
    fn filter(&mut self, keys: impl IntoIterator<Item = Key>) {
        if let Some(filter) = &mut self.filter
            && !keys.into_iter().all(|key| filter.insert(&key))
        {
            self.filter = None;
        }
    }

    /// Whether it is certain that a key has no record.
    fn lacks(&self, key: &Key) -> bool {
        self.is_complete && self.filter.as_ref().is_some_and(|filter| !filter.may_have(key))
    }
}

#[derive(Default)]
struct Queue {
    groups: VecDeque<Group>,
    /// Up to where the index is in the filter, if the rest of it is wanted there.
    filtered: Option<Filtered>,
    changes: usize,
    /// How many groups came, and how many of them are in the index.
    published: u64,
    applied: u64,
    is_closing: bool,
    is_done: bool,
}

struct Group {
    number: u64,
    changes: Vec<(Key, Change)>,
    mark: Option<Mark>,
}

/// The keys up to this one are in the filter: those of all earlier kinds, and of this kind those
/// up to `after`.
#[derive(Clone, Copy)]
struct Filtered {
    kind: usize,
    after: Option<Key>,
}

enum Work {
    Apply(Group),
    Filter(Filtered),
}

impl Places {
    pub(super) fn new(index: Index, room: Room, path: PathBuf) -> Result<Arc<Self>, LocalError> {
        let recent = Recent {
            changes: HashMap::new(),
            filter: Some(Filter::default()),
            is_complete: index.is_empty()?,
        };
        Ok(Arc::new(Self {
            index,
            room,
            path,
            recent: RwLock::new(recent),
            misses: AtomicUsize::new(0),
            queue: Mutex::default(),
            changed: Condvar::new(),
            failure: OnceLock::new(),
        }))
    }

    /// Where a record is, damaged or not.
    pub(super) fn get(&self, key: &Key) -> Result<Option<Place>, LocalError> {
        {
            let recent = self.recent.read();
            if let Some((change, _)) = recent.changes.get(key) {
                return Ok(change.place());
            }
            if recent.lacks(key) {
                return Ok(None);
            }
        }
        let place = self.index.get(key)?;
        if place.is_none() && self.misses.fetch_add(1, Ordering::Relaxed) + 1 == MISSES {
            self.queue.lock().filtered = Some(Filtered { kind: 0, after: None });
            self.changed.notify_all();
        }
        Ok(place)
    }

    /// The next at most `limit` records of a kind, behind `after`, in the order of their keys.
    pub(super) fn list(
        &self,
        kind: Kind,
        after: Option<&Key>,
        limit: usize,
    ) -> Result<Vec<(Key, Place)>, LocalError> {
        // Taken first: a change that has left it by then is in the index.
        let is_listed = |key: &Key| key.kind() == kind && after.is_none_or(|after| key > after);
        let recent: BTreeMap<Key, Change> = {
            let recent = self.recent.read();
            let listed = recent.changes.iter().filter(|(key, _)| is_listed(key));
            listed.map(|(key, (change, _))| (*key, *change)).collect()
        };
        // Each recent change hides at most one entry.
        let indexed = self.index.list(kind, after, limit.saturating_add(recent.len()))?;
        let mut merged: BTreeMap<Key, Place> = indexed.into_iter().collect();
        for (key, change) in recent {
            match change {
                Change::Set(place) => merged.insert(key, place),
                Change::Remove => merged.remove(&key),
            };
        }
        Ok(merged.into_iter().take(limit).collect())
    }

    /// The bytes that the index takes on the disk.
    pub(super) fn index_bytes(&self) -> Result<u64, LocalError> {
        self.index.size_on_disk()
    }

    /// Waits until the index is not too far behind. An error if that takes too long, or if the
    /// index has failed and there is no room for more in memory.
    pub(super) fn wait_for_room(&self) -> Result<(), LocalError> {
        let deadline = Instant::now() + PATIENCE;
        let mut queue = self.queue.lock();
        while queue.changes >= RECENT_MAX {
            if let Some(failure) = self.failure.get() {
                return Err(failure.clone());
            }
            if self.changed.wait_until(&mut queue, deadline).timed_out() {
                return Err(self.too_far_behind());
            }
        }
        Ok(())
    }

    /// Waits until all that was made known so far is in the index, and outlives this process there.
    /// An error if the index has failed or takes too long.
    pub(super) fn settle(&self) -> Result<(), LocalError> {
        let deadline = Instant::now() + PATIENCE;
        let mut queue = self.queue.lock();
        let published = queue.published;
        while queue.applied < published {
            if let Some(failure) = self.failure.get() {
                return Err(failure.clone());
            }
            if self.changed.wait_until(&mut queue, deadline).timed_out() {
                return Err(self.too_far_behind());
            }
        }
        drop(queue);
        self.index.flush()
    }

    /// Whether there is room for the index to catch up.
    pub(super) fn has_room(&self) -> bool {
        self.room.has_room_for_index()
    }

    fn too_far_behind(&self) -> LocalError {
        let source = Arc::from(Box::from("it is too far behind"));
        LocalError::Index { path: self.path.clone(), source }
    }

    /// Where a record is, if it is there and was not found damaged. One that was moved on the way
    /// is found at its new place.
    pub(super) fn held(&self, packs: &Packs, key: &Key) -> Result<Option<Place>, LocalError> {
        let mut place = self.get(key)?;
        while let Some(last) = place.filter(|place| !packs.holds(key, place)) {
            place = self.get(key)?.filter(|now| !now.is_at(&last));
        }
        Ok(place)
    }

    /// Makes known what has become durable.
    pub(super) fn publish(&self, changes: Vec<(Key, Change)>, mark: Option<Mark>) {
        let mut recent = self.recent.write();
        recent.filter(changes.iter().map(|(key, _)| *key));
        self.enqueue(&mut recent, changes, mark);
    }

    /// Takes note that the record at a place is damaged, unless there is another by now.
    pub(super) fn mark_suspect(&self, key: &Key, place: &Place) {
        let suspect = Change::Set(Place { suspect: true, ..*place });
        let mut recent = self.recent.write();
        let current = match recent.changes.get(key) {
            Some((change, _)) => change.place(),
            None => self.index.get(key).ok().flatten(),
        };
        // One that is known to be damaged is marked already.
        if current != Some(*place) || place.suspect || recent.changes.len() >= RECENT_MAX {
            return;
        }
        self.enqueue(&mut recent, vec![(*key, suspect)], None);
    }

    /// Called while `recent` is locked, so that both have the changes in the same order.
    fn enqueue(&self, recent: &mut Recent, changes: Vec<(Key, Change)>, mark: Option<Mark>) {
        let mut queue = self.queue.lock();
        let number = queue.published;
        recent.changes.extend(changes.iter().map(|(key, change)| (*key, (*change, number))));
        queue.changes += changes.len();
        queue.published += 1;
        queue.groups.push_back(Group { number, changes, mark });
        drop(queue);
        self.changed.notify_all();
    }

    /// Brings changes into the index until the store is closed: what the index's thread does.
    pub(super) fn run(&self) {
        while let Some(work) = self.next_work() {
            match work {
                Work::Apply(group) => {
                    if let Err(error) = self.apply(group) {
                        tracing::error!(
                            store = %self.path.display(),
                            error = &error as &dyn std::error::Error,
                            "the index failed; it is rebuilt when the store is opened again",
                        );
                        let _ = self.failure.set(error);
                        break;
                    }
                }
                Work::Filter(filtered) => {
                    let next = self.filter(filtered);
                    self.queue.lock().filtered = next;
                }
            }
        }
        self.queue.lock().is_done = true;
        self.changed.notify_all();
    }

    /// `None` when the store is closed and all is done, or there is no room to do it.
    fn next_work(&self) -> Option<Work> {
        let mut queue = self.queue.lock();
        loop {
            if !queue.groups.is_empty() && self.room.has_room_for_index() {
                return queue.groups.pop_front().map(Work::Apply);
            }
            if queue.is_closing {
                return None;
            }
            if let Some(filtered) = queue.filtered {
                return Some(Work::Filter(filtered));
            }
            if queue.groups.is_empty() {
                self.changed.wait(&mut queue);
            } else {
                self.changed.wait_for(&mut queue, ROOM_INTERVAL);
            }
        }
    }

    fn apply(&self, mut group: Group) -> Result<(), LocalError> {
        // Those of one key stay in their order.
        group.changes.sort_by_key(|(key, _)| *key);
        self.index.apply(&group.changes, group.mark)?;
        let mut recent = self.recent.write();
        for (key, _) in &group.changes {
            if recent.changes.get(key).is_some_and(|(_, number)| *number == group.number) {
                recent.changes.remove(key);
            }
        }
        drop(recent);
        let mut queue = self.queue.lock();
        queue.changes -= group.changes.len();
        queue.applied += 1;
        drop(queue);
        self.changed.notify_all();
        Ok(())
    }

    /// Brings some more keys of the index into the filter; up to where it is then, or `None` if
    /// that is all.
    fn filter(&self, filtered: Filtered) -> Option<Filtered> {
        let kind = *Kind::ALL.get(filtered.kind)?;
        let page = match self.index.list(kind, filtered.after.as_ref(), FILTER_PAGE) {
            Ok(page) => page,
            Err(error) => {
                let error = &error as &dyn std::error::Error;
                tracing::warn!(store = %self.path.display(), error, "the index can't be listed");
                return None;
            }
        };
        let last = page.last().map(|(key, _)| *key);
        let mut recent = self.recent.write();
        recent.filter(page.into_iter().map(|(key, _)| key));
        match last {
            Some(last) => Some(Filtered { after: Some(last), ..filtered }),
            None if filtered.kind + 1 < Kind::ALL.len() => {
                Some(Filtered { kind: filtered.kind + 1, after: None })
            }
            None => {
                recent.is_complete = true;
                None
            }
        }
    }

    /// Lets the index catch up and makes it durable; whether that went well.
    pub(super) fn close(&self) -> bool {
        let deadline = Instant::now() + CLOSE_PATIENCE;
        let mut queue = self.queue.lock();
        queue.is_closing = true;
        self.changed.notify_all();
        while !queue.is_done {
            if self.changed.wait_until(&mut queue, deadline).timed_out() {
                return false;
            }
        }
        drop(queue);
        self.failure.get().is_none() && self.room.has_room_for_index() && self.index.close().is_ok()
    }
}

#[cfg(test)]
mod tests {
    use std::{path::Path, thread};

    use super::*;

    fn key(number: u32) -> Key {
        let digest = blake3::hash(&number.to_le_bytes());
        Key::new(Kind::ALL[number as usize % Kind::ALL.len()], digest.as_bytes()).unwrap()
    }

    fn with_places(path: &Path, run: impl FnOnce(&Places)) {
        let index = Index::open(&path.join("index")).unwrap();
        let places = Places::new(index, Room::new(path), path.to_owned()).unwrap();
        thread::scope(|scope| {
            scope.spawn(|| places.run());
            run(&places);
            assert!(places.close());
        });
    }

    /// The index catches up with one change at a time, of which the first and the last are alike.
    #[test]
    fn what_was_removed_stays_so_while_the_index_catches_up() {
        let folder = tempfile::tempdir().unwrap();
        let index = Index::open(&folder.path().join("index")).unwrap();
        let places = Places::new(index, Room::new(folder.path()), folder.path().into()).unwrap();
        let place = Place { pack: 0, offset: 24, stored: 1, raw: 1, suspect: false };
        for change in [Change::Remove, Change::Set(place), Change::Remove] {
            places.publish(vec![(key(1), change)], None);
        }
        assert_eq!(places.get(&key(1)).unwrap(), None);
        for _ in 0..3 {
            let Some(Work::Apply(group)) = places.next_work() else { panic!("three are left") };
            places.apply(group).unwrap();
            assert_eq!(places.get(&key(1)).unwrap(), None);
        }
        assert!(places.recent.read().changes.is_empty());
    }

    #[test]
    fn what_the_index_holds_is_found_with_the_filter_and_without() {
        const COUNT: u32 = 10_000;
        let folder = tempfile::tempdir().unwrap();
        let place = |number| Place {
            pack: 0,
            offset: u64::from(number),
            stored: 1,
            raw: 1,
            suspect: false,
        };
        let mark = Mark { pack: 0, offset: 0 };
        let check = |places: &Places, end: u32| {
            for number in 0..end {
                assert_eq!(places.get(&key(number)).unwrap(), Some(place(number)));
            }
            for number in end..end + 100 {
                assert_eq!(places.get(&key(number)).unwrap(), None);
            }
        };
        with_places(folder.path(), |places| {
            assert!(places.recent.read().is_complete, "nothing is there yet");
            for first in (0..COUNT).step_by(1000) {
                let set = |number| (key(number), Change::Set(place(number)));
                places.publish((first..first + 1000).map(set).collect(), Some(mark));
            }
            check(places, COUNT);
            assert!(places.recent.read().lacks(&key(COUNT)));
        });
        with_places(folder.path(), |places| {
            assert!(!places.recent.read().is_complete);
            check(places, COUNT);
            // Comes before the filter knows those from earlier.
            places.publish(vec![(key(COUNT), Change::Set(place(COUNT)))], Some(mark));
            for number in 0..MISSES as u32 {
                assert_eq!(places.get(&key(2 * COUNT + number)).unwrap(), None);
            }
            while !places.recent.read().is_complete {
                thread::sleep(Duration::from_millis(1));
            }
            check(places, COUNT + 1);
            assert!(places.recent.read().lacks(&key(2 * COUNT)));
            places.publish(vec![(key(1), Change::Remove)], Some(mark));
            assert_eq!(places.get(&key(1)).unwrap(), None);
        });
    }
}
