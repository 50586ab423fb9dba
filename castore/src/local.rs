//! The local store's engine: records of any kind in append-only packs, and an index of where they
//! lie. What the records mean is the affair of the services that keep theirs in it.

use std::{
    fmt,
    fs::File,
    path::{Path, PathBuf},
    sync::Arc,
    thread::{self, JoinHandle},
};

use bytes::Bytes;
use cairn_telemetry::inventory::Source;
use parking_lot::Mutex;
use tokio::sync::oneshot;

use self::{
    commit::{Batch, Committer, Queue},
    eviction::Eviction,
    pack::{Packs, Place, ReadError},
    places::Places,
    purpose::Purpose,
    record::{Encoded, Key},
    reopen::IndexState,
    room::Room,
};
use crate::Packed;

pub mod cache;
mod commit;
mod error;
mod eviction;
#[cfg(test)]
mod faults;
mod filter;
mod index;
mod pack;
mod places;
mod purpose;
mod read_marks;
mod record;
mod reopen;
mod replay;
mod rewrite;
mod room;
mod scan;
mod statistics;
#[cfg(test)]
mod tests;

pub use self::{
    error::LocalError,
    record::{KEY_MAX, Kind, Record, VALUE_MAX},
    rewrite::Rewritten,
    room::stored_bytes,
    statistics::{RecordTotals, StoreHoldings, StoreSize},
};

/// The most records in one [`LocalStore::list`].
pub const LIST_MAX: usize = 4096;

/// A store in a folder of this machine, open in this process alone.
///
/// The methods that are not `async` may wait for the disk: they are for threads that may, not for
/// tasks. [`LocalStore::blocking`] runs them from a task. Dropping the store closes it.
pub struct LocalStore {
    path: PathBuf,
    packs: Arc<Packs>,
    places: Arc<Places>,
    queue: Arc<Queue>,
    /// `None` once the store is closed.
    committer: Mutex<Option<JoinHandle<()>>>,
    /// Held by whoever rewrites or removes packs.
    rewriting: Mutex<()>,
    /// How a cache is kept within its budget.
    eviction: Option<Eviction>,
    /// The last to be dropped.
    _lock: File,
    #[cfg(test)]
    faults: Arc<faults::Faults>,
}

impl fmt::Debug for LocalStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LocalStore").field("path", &self.path).finish_non_exhaustive()
    }
}

/// The URL of the store.
impl fmt::Display for LocalStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sled:{}", self.path.display())
    }
}

impl LocalStore {
    /// Opens the store in a folder, or makes one, with all parent folders that are missing.
    ///
    /// Takes time where the index has to catch up or to be rebuilt. [`LocalError::Locked`] if it is
    /// open already, [`LocalError::NotAStore`] and [`LocalError::Version`] if it is not for this
    /// program.
    pub fn open(path: &Path) -> Result<Arc<Self>, LocalError> {
        Self::open_for(path, Purpose::Store)
    }

    fn open_for(path: &Path, purpose: Purpose) -> Result<Arc<Self>, LocalError> {
        let opened = reopen::open(path, purpose)?;
        let packs = Arc::new(opened.packs);
        let room = Room::new(path);
        let places = Places::new(opened.index, room.clone(), path.to_owned())?;
        let queue = Arc::new(Queue::default());
        #[cfg(test)]
        let faults = Arc::new(faults::Faults::default());
        let committer = Committer {
            store: path.to_owned(),
            purpose,
            packs: Arc::clone(&packs),
            places: Arc::clone(&places),
            queue: Arc::clone(&queue),
            room,
            active: opened.active,
            next_pack: opened.next_pack,
            #[cfg(test)]
            faults: Arc::clone(&faults),
        };
        let failed = |error| LocalError::io("start a thread for", path, error);
        let committer = thread::Builder::new()
            .name("cairn-commit".to_owned())
            .spawn(move || committer.run())
            .map_err(failed)?;
        let store = Self {
            path: path.to_owned(),
            packs,
            places: Arc::clone(&places),
            queue,
            committer: Mutex::new(Some(committer)),
            rewriting: Mutex::new(()),
            eviction: Eviction::of(purpose),
            _lock: opened.lock,
            #[cfg(test)]
            faults,
        };
        // Not joined when the store is closed: a thread that hangs in sled must not hang the drop.
        let indexer = thread::Builder::new().name("cairn-index".to_owned());
        indexer.spawn(move || places.run()).map_err(failed)?;
        Ok(Arc::new(store))
    }

    /// The store's folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The value of a key, verified. `None` if there is none; [`LocalError::Damaged`] if it can't
    /// be read as it was written. May wait for the disk.
    pub fn get(&self, kind: Kind, key: &[u8]) -> Result<Option<Bytes>, LocalError> {
        let key = parse_key(kind, key)?;
        match self.places.get(&key)? {
            Some(place) => self.read(&key, place),
            None => Ok(None),
        }
    }

    /// The same, as it is stored: checked by the record's checksums alone.
    pub(crate) fn get_packed(&self, kind: Kind, key: &[u8]) -> Result<Option<Packed>, LocalError> {
        let key = parse_key(kind, key)?;
        match self.places.get(&key)? {
            Some(place) => self.read_by(&key, place, Packs::read_packed),
            None => Ok(None),
        }
    }

    /// Whether a key has a value, as far as is known: one that was found damaged is not there, so
    /// that it is stored again. May wait for the disk.
    pub fn contains(&self, kind: Kind, key: &[u8]) -> Result<bool, LocalError> {
        Ok(self.value_len(kind, key)?.is_some())
    }

    /// The number of bytes of a key's value, if [`contains`](Self::contains) says that it is there.
    /// No pack is read.
    pub fn value_len(&self, kind: Kind, key: &[u8]) -> Result<Option<u64>, LocalError> {
        let key = parse_key(kind, key)?;
        let place = self.places.held(&self.packs, &key)?;
        Ok(place.map(|place| u64::from(place.raw)))
    }

    /// Stores records. They are durable when this returns, and in their order: a crash before it
    /// returns may leave some of them. A key that has a value keeps it, but for
    /// [`Kind::PathInfo`], whose last value counts. Waits for the disk.
    pub fn put(&self, records: Vec<Record>) -> Result<(), LocalError> {
        self.submit(records)?.wait()
    }

    /// Like [`put`](Self::put), from a task.
    pub async fn put_async(self: &Arc<Self>, records: Vec<Record>) -> Result<(), LocalError> {
        self.blocking(move |store| store.submit(records)).await?.done().await?;
        Ok(())
    }

    /// Compresses records on the calling thread and queues them, without waiting for them to be
    /// durable. Waits while the queue is full.
    pub(crate) fn submit(&self, records: Vec<Record>) -> Result<Submitted, LocalError> {
        let mut encoded = Vec::with_capacity(records.len());
        for Record { kind, key, value, frame } in records {
            let key = parse_key(kind, &key)?;
            if !kind.is_replaced() && self.is_there(&key) {
                continue;
            }
            let size = value.len();
            let too_large = LocalError::TooLarge { kind, size, max: VALUE_MAX };
            encoded.push(Encoded::new(key, value, frame).ok_or(too_large)?);
        }
        self.enqueue(encoded)
    }

    /// Forgets a key; whether it was there. The room comes back with [`rewrite`](Self::rewrite).
    /// Waits for the disk.
    pub fn delete(&self, kind: Kind, key: &[u8]) -> Result<bool, LocalError> {
        let key = parse_key(kind, key)?;
        let submitted = self.enqueue(vec![Encoded::deletion(key)])?;
        futures::executor::block_on(submitted.done())
    }

    /// Like [`delete`](Self::delete), from a task.
    pub async fn delete_async(
        self: &Arc<Self>,
        kind: Kind,
        key: &[u8],
    ) -> Result<bool, LocalError> {
        let key = parse_key(kind, key)?;
        let submit = move |store: &Self| store.enqueue(vec![Encoded::deletion(key)]);
        self.blocking(submit).await?.done().await
    }

    /// The next at most `limit` (at most [`LIST_MAX`]) keys of a kind and their values, behind
    /// `after`, in the order of the keys' bytes. Fewer come only from the end. Damaged values are
    /// passed over, with a line in the log. May wait for the disk.
    pub fn list(
        &self,
        kind: Kind,
        after: Option<&[u8]>,
        limit: usize,
    ) -> Result<Vec<(Bytes, Bytes)>, LocalError> {
        let limit = limit.min(LIST_MAX);
        let mut after = after.map(|after| parse_key(kind, after)).transpose()?;
        let mut listed = Vec::new();
        while listed.len() < limit {
            let wanted = limit - listed.len();
            let page = self.places.list(kind, after.as_ref(), wanted)?;
            let is_last = page.len() < wanted;
            after = page.last().map(|(key, _)| *key).or(after);
            for (key, place) in page {
                match self.read(&key, place) {
                    Ok(Some(value)) => listed.push((Bytes::copy_from_slice(key.key()), value)),
                    // Deleted since the page was made.
                    Ok(None) => {}
                    Err(error @ LocalError::Damaged { .. }) => tracing::error!(
                        store = %self,
                        error = &error as &dyn std::error::Error,
                        "a damaged record is not listed",
                    ),
                    Err(error) => return Err(error),
                }
            }
            if is_last {
                break;
            }
        }
        Ok(listed)
    }

    /// Takes note that a value, though whole itself, is of no use, since what it leads to is
    /// damaged: it is stored again when it comes again.
    pub(crate) fn distrust(&self, kind: Kind, key: &[u8]) -> Result<(), LocalError> {
        let key = parse_key(kind, key)?;
        if let Some(place) = self.places.get(&key)? {
            self.places.mark_suspect(&key, &place);
        }
        Ok(())
    }

    /// Runs what waits for the disk on a thread that may.
    pub async fn blocking<T: Send + 'static>(
        self: &Arc<Self>,
        run: impl FnOnce(&Self) -> Result<T, LocalError> + Send + 'static,
    ) -> Result<T, LocalError> {
        let store = Arc::clone(self);
        match tokio::task::spawn_blocking(move || run(&store)).await {
            Ok(outcome) => outcome,
            // The runtime is shutting down, or the closure has panicked.
            Err(_) => Err(LocalError::Closed(self.path.clone())),
        }
    }

    fn is_there(&self, key: &Key) -> bool {
        // If the index can't say, the committer decides.
        matches!(self.places.held(&self.packs, key), Ok(Some(_)))
    }

    fn enqueue(&self, records: Vec<Encoded>) -> Result<Submitted, LocalError> {
        if records.is_empty() {
            return Ok(Submitted { store: self.path.clone(), done: None });
        }
        self.push(records, None, Vec::new())
    }

    /// Queues records, what follows them ([`Batch::seal`]) and what is forgotten behind them.
    fn push(
        &self,
        records: Vec<Encoded>,
        seal: Option<u32>,
        forgotten: Vec<(Key, Place)>,
    ) -> Result<Submitted, LocalError> {
        let store = self.path.clone();
        let bytes = records.iter().map(Encoded::len).sum();
        let (done, receiver) = oneshot::channel();
        if !self.queue.push(Batch { records, bytes, seal, forgotten, done }) {
            return Err(LocalError::Closed(store));
        }
        Ok(Submitted { store, done: Some(receiver) })
    }

    /// The value at a place, or where the record has been moved since it was found there. `None` if
    /// it has been deleted since.
    fn read(&self, key: &Key, place: Place) -> Result<Option<Bytes>, LocalError> {
        self.read_by(key, place, Packs::read)
    }

    fn read_by<T>(
        &self,
        key: &Key,
        mut place: Place,
        read: impl Fn(&Packs, &Key, &Place) -> Result<T, ReadError>,
    ) -> Result<Option<T>, LocalError> {
        loop {
            let error = match read(&self.packs, key, &place) {
                Ok(value) => {
                    if let Some(eviction) = &self.eviction {
                        eviction.marks.note(key, &place);
                    }
                    return Ok(Some(value));
                }
                Err(error) => error,
            };
            match self.places.get(key)? {
                Some(now) if now.is_at(&place) => {}
                Some(moved) => {
                    place = moved;
                    continue;
                }
                None => return Ok(None),
            }
            return Err(match error {
                ReadError::Io(error) => error,
                ReadError::Damaged(reason) => {
                    crate::verification::failed(match self.eviction {
                        Some(_) => Source::Node,
                        None => Source::Local,
                    });
                    self.places.mark_suspect(key, &place);
                    damaged(key, &place, reason)
                }
            });
        }
    }
}

impl LocalStore {
    /// Writes what is queued, and the index, and refuses what comes later: for one who ends while
    /// others still hold the store. What is in it can be read until they let go. Waits for the disk.
    pub fn close(&self) {
        let Some(committer) = self.committer.lock().take() else { return };
        self.queue.close();
        // A panic there has been reported, and has closed the queue.
        let _ = committer.join();
        let state = if self.places.close() { IndexState::Closed } else { IndexState::Broken };
        if let Err(error) = state.write(&self.path) {
            tracing::warn!(
                store = %self,
                error = &error as &dyn std::error::Error,
                "the state of the index could not be written; it may be rebuilt",
            );
        }
    }
}

impl Drop for LocalStore {
    fn drop(&mut self) {
        self.close();
    }
}

/// Records on their way to the disk.
#[must_use = "the records are durable only when this says so"]
pub(crate) struct Submitted {
    store: PathBuf,
    /// `None` if there was nothing to store.
    done: Option<oneshot::Receiver<Result<bool, LocalError>>>,
}

impl Submitted {
    /// Waits until the records are durable; whether a deletion among them found its key.
    pub(crate) async fn done(self) -> Result<bool, LocalError> {
        match self.done {
            Some(done) => done.await.unwrap_or(Err(LocalError::Closed(self.store))),
            None => Ok(false),
        }
    }

    /// Waits, on a thread that may, until the records are durable.
    pub(crate) fn wait(self) -> Result<(), LocalError> {
        futures::executor::block_on(self.done()).map(|_| ())
    }
}

fn damaged(key: &Key, place: &Place, reason: String) -> LocalError {
    LocalError::Damaged {
        kind: key.kind(),
        key: Bytes::copy_from_slice(key.key()),
        pack: place.pack,
        offset: place.offset,
        reason,
    }
}

fn parse_key(kind: Kind, key: &[u8]) -> Result<Key, LocalError> {
    Key::new(kind, key).ok_or(LocalError::Key(key.len()))
}
