//! What is to be written to a cache, within a bound of memory: there as soon as it is given, and
//! written when a writer comes to it. How it is written is not known here.

use std::{
    collections::{HashMap, VecDeque},
    fmt,
    sync::atomic::{AtomicUsize, Ordering},
    time::{Duration, Instant},
};

use bytes::Bytes;
use parking_lot::{Condvar, Mutex};
use tokio::sync::Notify;

use crate::local::{Record, parse_key, record::Key};

/// The bytes that may wait to be written. What comes beyond them is not kept.
pub(super) const PENDING_BYTES: usize = 32 * 1024 * 1024;

/// What a record that waits counts for beside its bytes.
const OVERHEAD: usize = 128;

/// The bytes that are written together: no more once there are so many.
const BATCH_BYTES: usize = 1024 * 1024;

/// The records that are written together, at most.
const BATCH_RECORDS: usize = 1024;

/// What waits to be written.
#[derive(Default)]
pub(super) struct Pending {
    state: Mutex<State>,
    /// As many as there are entries, for those who want none.
    count: AtomicUsize,
    filled: Condvar,
    /// Told whenever something was written.
    written: Notify,
}

#[derive(Default)]
struct State {
    entries: HashMap<Key, Entry>,
    /// Those that no writer has taken.
    queue: VecDeque<Key>,
    bytes: usize,
    paused_until: Option<Instant>,
    is_closed: bool,
}

/// The value of a record, and the frame that it is in where it came in one.
#[derive(Clone)]
pub(super) struct Value {
    pub(super) bytes: Bytes,
    pub(super) frame: Option<Bytes>,
}

struct Entry {
    /// `None` if the key is to be forgotten.
    value: Option<Value>,
    /// A writer has it.
    is_taken: bool,
    /// It is another value than the one that the writer has.
    is_changed: bool,
}

impl Entry {
    fn size(&self) -> usize {
        size(self.value.as_ref())
    }
}

fn size(value: Option<&Value>) -> usize {
    let size = |value: &Value| value.bytes.len() + value.frame.as_ref().map_or(0, Bytes::len);
    value.map_or(0, size) + OVERHEAD
}

/// What a writer is to do.
pub(super) enum Work {
    /// Write these, and forget those without a value.
    Write(Vec<(Key, Option<Value>)>),
    /// Nothing came for a while.
    Nothing,
    /// End: nothing is left.
    End,
}

impl Pending {
    /// The value that is to be written for a key, or that it is to be forgotten. `None` if nothing
    /// is to be done with it.
    pub(super) fn get(&self, key: &Key) -> Option<Option<Bytes>> {
        if self.count.load(Ordering::Acquire) == 0 {
            return None;
        }
        let state = self.state.lock();
        let entry = state.entries.get(key)?;
        Some(entry.value.as_ref().map(|value| value.bytes.clone()))
    }

    /// Takes records; how many of them there was no room for.
    pub(super) fn keep(&self, records: Vec<Record>) -> u64 {
        let mut state = self.state.lock();
        let is_paused = state.paused_until.is_some_and(|until| Instant::now() < until);
        let mut dropped = 0;
        for Record { kind, key, value: bytes, frame } in records {
            let Ok(key) = parse_key(kind, &key) else { continue };
            let is_coming = |entry: &Entry| entry.value.is_some() && !kind.is_replaced();
            if state.entries.get(&key).is_some_and(is_coming) {
                continue;
            }
            let value = Value { bytes, frame };
            let is_full = state.bytes + size(Some(&value)) > PENDING_BYTES;
            if is_paused || state.is_closed || is_full {
                dropped += 1;
                continue;
            }
            state.set(key, Some(value));
        }
        self.told(&state);
        dropped
    }

    /// Takes note that a key is to be forgotten.
    pub(super) fn forget(&self, key: Key) {
        let mut state = self.state.lock();
        state.set(key, None);
        self.told(&state);
    }

    fn told(&self, state: &State) {
        self.count.store(state.entries.len(), Ordering::Release);
        if !state.queue.is_empty() {
            self.filled.notify_one();
        }
    }

    /// The next to be written; waits for it, but not longer than `patience`.
    pub(super) fn next(&self, patience: Duration) -> Work {
        let mut state = self.state.lock();
        while state.queue.is_empty() {
            if state.is_closed {
                return Work::End;
            }
            if self.filled.wait_for(&mut state, patience).timed_out() && state.queue.is_empty() {
                return Work::Nothing;
            }
        }
        let (mut batch, mut bytes) = (Vec::new(), 0);
        while bytes < BATCH_BYTES
            && batch.len() < BATCH_RECORDS
            && let Some(key) = state.queue.pop_front()
        {
            let Some(entry) = state.entries.get_mut(&key) else { continue };
            entry.is_taken = true;
            bytes += entry.size();
            batch.push((key, entry.value.clone()));
        }
        if !state.queue.is_empty() {
            self.filled.notify_one();
        }
        Work::Write(batch)
    }

    /// These were written, or could not be: nothing more is taken for a while then.
    pub(super) fn done(&self, keys: impl Iterator<Item = Key>, pause: Option<Duration>) {
        let mut state = self.state.lock();
        for key in keys {
            let Some(entry) = state.entries.get_mut(&key) else { continue };
            if entry.is_changed {
                (entry.is_taken, entry.is_changed) = (false, false);
                state.queue.push_back(key);
            } else if let Some(entry) = state.entries.remove(&key) {
                state.bytes -= entry.size();
            }
        }
        if let Some(pause) = pause {
            state.paused_until = Some(Instant::now() + pause);
        }
        self.told(&state);
        drop(state);
        self.written.notify_waiters();
    }

    /// Takes nothing more. What is there is still written.
    pub(super) fn close(&self) {
        self.state.lock().is_closed = true;
        self.filled.notify_all();
    }

    /// Waits until half of the room is free.
    pub(super) async fn room(&self) {
        self.wait_until(|state| state.bytes <= PENDING_BYTES / 2).await;
    }

    /// Waits until nothing is left.
    pub(super) async fn settle(&self) {
        self.wait_until(|state| state.entries.is_empty()).await;
    }

    async fn wait_until(&self, is_so: impl Fn(&State) -> bool) {
        loop {
            let written = self.written.notified();
            if is_so(&self.state.lock()) {
                break;
            }
            written.await;
        }
    }
}

impl fmt::Debug for Pending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Pending({} records)", self.count.load(Ordering::Relaxed))
    }
}

impl State {
    fn set(&mut self, key: Key, value: Option<Value>) {
        self.bytes += size(value.as_ref());
        match self.entries.get_mut(&key) {
            Some(entry) => {
                self.bytes -= entry.size();
                entry.value = value;
                entry.is_changed = entry.is_taken;
            }
            None => {
                self.entries.insert(key, Entry { value, is_taken: false, is_changed: false });
                self.queue.push_back(key);
            }
        }
    }
}
