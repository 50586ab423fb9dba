//! Group commit: one thread writes what all putters have queued, with one `fdatasync` a group.
//! Encoding is done before, on the putters' threads, and indexing behind, in `places`.

use std::{
    collections::{HashMap, VecDeque},
    fs::File,
    io,
    os::unix::fs::FileExt as _,
    path::PathBuf,
    sync::Arc,
};

use parking_lot::{Condvar, Mutex};
use tokio::sync::oneshot;

use super::{
    error::LocalError,
    index::{Change, Mark},
    pack::{ActivePack, Packs, Place},
    places::Places,
    purpose::Purpose,
    record::{Codec, Encoded, Key, Origin},
    room::Room,
};

/// The encoded bytes that may wait to be written. A single larger batch is taken when nothing else
/// waits.
const QUEUE_BYTES: usize = 32 * 1024 * 1024;

/// The batches that may wait to be written.
const QUEUE_BATCHES: usize = 4096;

/// A group is not made larger than this many bytes, nor than a pack, unless its first batch is.
const GROUP_BYTES: usize = 16 * 1024 * 1024;

/// The bytes of one write, at most but for those of a payload.
const WRITE_BYTES: usize = 1024 * 1024;

/// A payload of at least this many bytes is written from where it is; smaller ones are put together.
const WRITTEN_ALONE: usize = 64 * 1024;

/// Records that are written together, and whoever waits for them.
pub(super) struct Batch {
    pub(super) records: Vec<Encoded>,
    pub(super) bytes: usize,
    /// Nothing is added to the pack of this number once the batch is done, nor to any before it.
    pub(super) seal: Option<u32>,
    /// Keys that are forgotten if their records are still the ones at these places. Nothing is
    /// written of that: it is for records whose packs are removed, and no earlier pack has others.
    pub(super) forgotten: Vec<(Key, Place)>,
    /// Told whether a deletion in the batch has found its key.
    pub(super) done: oneshot::Sender<Result<bool, LocalError>>,
}

/// The batches that wait to be written.
#[derive(Default)]
pub(super) struct Queue {
    state: Mutex<State>,
    filled: Condvar,
    drained: Condvar,
}

#[derive(Default)]
struct State {
    batches: VecDeque<Batch>,
    bytes: usize,
    is_closed: bool,
}

impl Queue {
    /// Adds a batch, as soon as there is room. `false` if the queue is closed.
    pub(super) fn push(&self, batch: Batch) -> bool {
        let mut state = self.state.lock();
        loop {
            if state.is_closed {
                return false;
            }
            let fits = state.bytes + batch.bytes <= QUEUE_BYTES;
            if state.batches.is_empty() || (fits && state.batches.len() < QUEUE_BATCHES) {
                state.bytes += batch.bytes;
                state.batches.push_back(batch);
                self.filled.notify_one();
                return true;
            }
            self.drained.wait(&mut state);
        }
    }

    /// The next batches to be written. `None` when the queue is closed and empty.
    fn take_group(&self, group_bytes: usize) -> Option<Vec<Batch>> {
        let mut state = self.state.lock();
        while state.batches.is_empty() {
            if state.is_closed {
                return None;
            }
            self.filled.wait(&mut state);
        }
        let mut group = Vec::new();
        let mut bytes = 0;
        while let Some(batch) = state.batches.pop_front() {
            if !group.is_empty() && bytes + batch.bytes > group_bytes {
                state.batches.push_front(batch);
                break;
            }
            bytes += batch.bytes;
            state.bytes -= batch.bytes;
            group.push(batch);
        }
        self.drained.notify_all();
        Some(group)
    }

    /// Takes no more batches. Those that are queued are written.
    pub(super) fn close(&self) {
        self.state.lock().is_closed = true;
        self.filled.notify_all();
        self.drained.notify_all();
    }

    fn abandon(&self) {
        self.close();
        self.state.lock().batches.clear();
    }
}

/// What writes.
pub(super) struct Committer {
    pub(super) store: PathBuf,
    pub(super) purpose: Purpose,
    pub(super) packs: Arc<Packs>,
    pub(super) places: Arc<Places>,
    pub(super) queue: Arc<Queue>,
    pub(super) room: Room,
    pub(super) active: Option<ActivePack>,
    pub(super) next_pack: u32,
    #[cfg(test)]
    pub(super) faults: Arc<super::faults::Faults>,
}

/// Nobody waits for a thread that has gone.
impl Drop for Committer {
    fn drop(&mut self) {
        self.queue.abandon();
    }
}

impl Committer {
    /// Writes until the queue is closed: what the committer's thread does.
    pub(super) fn run(mut self) {
        let mut buffer = Vec::with_capacity(WRITE_BYTES);
        let group_bytes = GROUP_BYTES.min(self.purpose.pack_limit() as usize);
        while let Some(mut group) = self.queue.take_group(group_bytes) {
            let outcome = self.commit(&mut group, &mut buffer);
            // A cache says it in its own way, and goes on without.
            if let Err(error) = &outcome
                && self.purpose.is_durable()
            {
                tracing::error!(
                    store = %self.store.display(),
                    error = error as &dyn std::error::Error,
                    "a group of records could not be stored",
                );
            }
            for (index, batch) in group.into_iter().enumerate() {
                let answer = outcome.clone().map(|found| found.get(index) == Some(&true));
                // Whoever gave up waiting does not need to know.
                let _ = batch.done.send(answer);
            }
        }
        self.end_pack();
    }

    /// Writes what is new in a group; which of its batches have a deletion that found its key.
    fn commit(
        &mut self,
        group: &mut [Batch],
        buffer: &mut Vec<u8>,
    ) -> Result<Vec<bool>, LocalError> {
        self.places.wait_for_room()?;
        if let Some(id) = group.iter().filter_map(|batch| batch.seal).max() {
            self.seal(id)?;
        }
        let mut found = vec![false; group.len()];
        // What is written does not depend on its place, so the pack is chosen when it is known
        // that there is something to write.
        let mut changes: HashMap<Key, bool> = HashMap::new();
        let mut written = Vec::new();
        let mut bytes = 0;
        for (batch, found) in group.iter_mut().zip(&mut found) {
            for record in &mut batch.records {
                let is_deletion = record.codec == Codec::Deletion;
                let known = match changes.get(&record.key) {
                    Some(is_set) => Known { exists: *is_set, is_good: *is_set },
                    None => self.known(&record.key),
                };
                *found |= is_deletion && known.exists;
                let is_new = match record.origin {
                    Origin::Caller if is_deletion => known.exists,
                    Origin::Caller => !known.is_good || record.key.kind().is_replaced(),
                    Origin::Moved(from) => {
                        !changes.contains_key(&record.key)
                            && self.places.get(&record.key)?.is_some_and(|now| now.is_at(&from))
                    }
                    Origin::KeptDeletion => !known.exists,
                };
                if is_new {
                    changes.insert(record.key, !is_deletion);
                    bytes += record.len() as u64;
                    written.push(record);
                }
            }
        }
        if !written.is_empty() {
            self.room.for_records(bytes)?;
            self.write(written, buffer)?;
        }
        self.forget(group)?;
        Ok(found)
    }

    fn forget(&self, group: &mut [Batch]) -> Result<(), LocalError> {
        let mut changes = Vec::new();
        for (key, place) in group.iter_mut().flat_map(|batch| batch.forgotten.drain(..)) {
            if self.places.get(&key)?.is_some_and(|now| now.is_at(&place)) {
                changes.push((key, Change::Remove));
            }
        }
        if !changes.is_empty() {
            self.places.publish(changes, None);
        }
        Ok(())
    }

    /// What is known of a key before the group. If the index can't say, a record too many is
    /// written rather than one too few.
    fn known(&self, key: &Key) -> Known {
        match self.places.get(key) {
            Ok(Some(place)) => Known { exists: true, is_good: self.packs.holds(key, &place) },
            Ok(None) => Known { exists: false, is_good: false },
            Err(_) => Known { exists: true, is_good: false },
        }
    }

    fn write(
        &mut self,
        records: Vec<&mut Encoded>,
        buffer: &mut Vec<u8>,
    ) -> Result<(), LocalError> {
        let mut pack = match self.active.take() {
            Some(pack) if pack.end < self.purpose.pack_limit() => pack,
            full => {
                self.active = full;
                self.end_pack();
                self.begin_pack()?
            }
        };
        let id = pack.id;
        let mut changes = Vec::with_capacity(records.len());
        let mut end = pack.end;
        let write_all = || -> io::Result<()> {
            let mut flushed = end;
            buffer.clear();
            for record in records {
                let change = match record.codec {
                    Codec::Deletion => Change::Remove,
                    // What was distrusted stays so when it is moved.
                    Codec::Raw | Codec::Zstd => Change::Set(Place {
                        pack: id,
                        offset: end,
                        stored: record.stored,
                        raw: record.raw,
                        suspect: matches!(record.origin, Origin::Moved(from) if from.suspect),
                    }),
                };
                changes.push((record.key, change));
                end += record.len() as u64;
                let offset = end - record.len() as u64;
                for part in record.sealed(id, offset) {
                    let alone = part.len() >= WRITTEN_ALONE;
                    let is_full = buffer.len() + part.len() > WRITE_BYTES;
                    if !buffer.is_empty() && (alone || is_full) {
                        self.write_at(&pack.file, buffer, flushed)?;
                        flushed += buffer.len() as u64;
                        buffer.clear();
                    }
                    if alone {
                        self.write_at(&pack.file, part, flushed)?;
                        flushed += part.len() as u64;
                    } else {
                        buffer.extend_from_slice(part);
                    }
                }
            }
            self.write_at(&pack.file, buffer, flushed)
        };
        let written = write_all();
        if let Err(error) = written {
            let error = LocalError::io("write", &pack.path, error);
            // What is not cut off is harmless where no record is added behind it.
            if pack.file.set_len(pack.end).is_ok() {
                self.active = Some(pack);
            }
            return Err(error);
        }
        if let Err(error) = self.sync(&pack.file) {
            // What the system has dropped of this pack's dirty pages nobody knows: no more of it.
            let error = LocalError::io("write", &pack.path, error);
            let _ = pack.file.set_len(pack.end);
            return Err(error);
        }
        pack.end = end;
        self.packs.set_length(id, end);
        self.active = Some(pack);
        self.places.publish(changes, Some(Mark { pack: id, offset: end }));
        Ok(())
    }

    /// Begins a pack behind this one. The mark goes along, so that it never is in a pack that is
    /// removed.
    fn seal(&mut self, id: u32) -> Result<(), LocalError> {
        if self.active.as_ref().is_none_or(|active| active.id <= id) {
            let pack = self.begin_pack()?;
            self.packs.set_length(pack.id, pack.end);
            self.places.publish(Vec::new(), Some(Mark { pack: pack.id, offset: pack.end }));
            self.end_pack();
            self.active = Some(pack);
        }
        Ok(())
    }

    /// Nothing is added to the active pack any more. A cache's packs are synced once they are
    /// whole, so that a power loss costs the last of them at most: what is lost is fetched again.
    fn end_pack(&mut self) {
        let Some(pack) = self.active.take().filter(|_| !self.purpose.is_durable()) else { return };
        if let Err(error) = pack.file.sync_data() {
            tracing::debug!(pack = %pack.path.display(), %error, "a pack could not be synced");
        }
    }

    fn begin_pack(&mut self) -> Result<ActivePack, LocalError> {
        let id = self.next_pack;
        self.next_pack += 1;
        ActivePack::create(self.packs.folder(), id)
    }

    fn write_at(&self, file: &File, bytes: &[u8], offset: u64) -> io::Result<()> {
        #[cfg(test)]
        self.faults.before_write()?;
        file.write_all_at(bytes, offset)
    }

    /// Makes what was written durable, where that is promised.
    fn sync(&self, file: &File) -> io::Result<()> {
        if !self.purpose.is_durable() {
            return Ok(());
        }
        #[cfg(test)]
        self.faults.before_sync()?;
        file.sync_data()
    }
}

struct Known {
    exists: bool,
    is_good: bool,
}
