//! Where every record is: what was committed recently, in memory, before the index. A thread of
//! its own brings the one into the other, so that no commit waits for the index, and an index that
//! fails or has no room takes nothing away that was acknowledged.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    path::PathBuf,
    sync::{Arc, OnceLock},
    time::{Duration, Instant},
};

use parking_lot::{Condvar, Mutex, RwLock};

use super::{
    error::LocalError,
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

/// The places of all records.
pub(super) struct Places {
    index: Index,
    room: Room,
    path: PathBuf,
    /// What is not in the index yet.
    recent: RwLock<HashMap<Key, Change>>,
    queue: Mutex<Queue>,
    changed: Condvar,
    failure: OnceLock<LocalError>,
}

#[derive(Default)]
struct Queue {
    groups: VecDeque<Group>,
    changes: usize,
    /// How many groups came, and how many of them are in the index.
    published: u64,
    applied: u64,
    is_closing: bool,
    is_done: bool,
}

struct Group {
    changes: Vec<(Key, Change)>,
    mark: Option<Mark>,
}

impl Places {
    pub(super) fn new(index: Index, room: Room, path: PathBuf) -> Arc<Self> {
        Arc::new(Self {
            index,
            room,
            path,
            recent: RwLock::default(),
            queue: Mutex::default(),
            changed: Condvar::new(),
            failure: OnceLock::new(),
        })
    }

    /// Where a record is, damaged or not.
    pub(super) fn get(&self, key: &Key) -> Result<Option<Place>, LocalError> {
        if let Some(change) = self.recent.read().get(key) {
            return Ok(change.place());
        }
        self.index.get(key)
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
            let listed = recent.iter().filter(|(key, _)| is_listed(key));
            listed.map(|(key, change)| (*key, *change)).collect()
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
    pub(super) fn publish(&self, changes: Vec<(Key, Change)>, mark: Mark) {
        let mut recent = self.recent.write();
        recent.extend(changes.iter().copied());
        self.enqueue(&recent, Group { changes, mark: Some(mark) });
    }

    /// Takes note that the record at a place is damaged, unless there is another by now.
    pub(super) fn mark_suspect(&self, key: &Key, place: &Place) {
        let suspect = Change::Set(Place { suspect: true, ..*place });
        let mut recent = self.recent.write();
        let current = match recent.get(key) {
            Some(change) => change.place(),
            None => self.index.get(key).ok().flatten(),
        };
        // One that is known to be damaged is marked already.
        if current != Some(*place) || place.suspect || recent.len() >= RECENT_MAX {
            return;
        }
        recent.insert(*key, suspect);
        self.enqueue(&recent, Group { changes: vec![(*key, suspect)], mark: None });
    }

    /// Called while `recent` is locked, so that both have the changes in the same order.
    fn enqueue(&self, _recent: &HashMap<Key, Change>, group: Group) {
        let mut queue = self.queue.lock();
        queue.changes += group.changes.len();
        queue.published += 1;
        queue.groups.push_back(group);
        drop(queue);
        self.changed.notify_all();
    }

    /// Brings changes into the index until the store is closed: what the index's thread does.
    pub(super) fn run(&self) {
        while let Some(group) = self.next_group() {
            let changes = group.changes.iter().map(|(key, change)| (key, change));
            if let Err(error) = self.index.apply(changes, group.mark) {
                tracing::error!(
                    store = %self.path.display(),
                    error = &error as &dyn std::error::Error,
                    "the index failed; it is rebuilt when the store is opened again",
                );
                let _ = self.failure.set(error);
                break;
            }
            let mut recent = self.recent.write();
            for (key, change) in &group.changes {
                if recent.get(key) == Some(change) {
                    recent.remove(key);
                }
            }
            drop(recent);
            let mut queue = self.queue.lock();
            queue.changes -= group.changes.len();
            queue.applied += 1;
            drop(queue);
            self.changed.notify_all();
        }
        self.queue.lock().is_done = true;
        self.changed.notify_all();
    }

    /// `None` when the store is closed and all is done, or there is no room to do it.
    fn next_group(&self) -> Option<Group> {
        let mut queue = self.queue.lock();
        loop {
            if queue.groups.is_empty() {
                if queue.is_closing {
                    return None;
                }
                self.changed.wait(&mut queue);
            } else if self.room.has_room_for_index() {
                return queue.groups.pop_front();
            } else if queue.is_closing {
                return None;
            } else {
                self.changed.wait_for(&mut queue, ROOM_INTERVAL);
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
