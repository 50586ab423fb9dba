//! Blobs that have just come, for whoever wants their bytes again at once: small ones are at hand
//! here before they are durable. Nothing here says that a blob is in a store.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures::StreamExt as _;
use parking_lot::Mutex;
use tokio::{
    sync::{Notify, futures::Notified},
    time::timeout,
};

use super::BlobSource;
use crate::{Blob, Digest};

/// The most bytes that are kept, with what it takes to find them.
pub const FRESH_BYTES: usize = 64 * 1024 * 1024;

/// The most bytes of a blob that is kept.
pub const FRESH_BLOB_MAX: usize = 4 * 1024 * 1024;

/// The most bytes that are kept of blobs that are still coming.
const COMING_BYTES: usize = 32 * 1024 * 1024;

/// What a blob counts for beside its bytes.
const BLOB_OVERHEAD: usize = 128;

/// When so many bytes wait to be taken, those who bring more are to wait a little.
const CROWDED_BYTES: usize = FRESH_BYTES / 2;

/// How long they wait at most. The blob that is wanted next may be what they bring after that.
const CROWDED_PATIENCE: Duration = Duration::from_millis(100);

/// How long a blob is kept for somebody who has not taken it yet.
const UNTAKEN_PATIENCE: Duration = Duration::from_secs(10);

/// Blobs that came lately, as long as anyone listens. If there is no room for all of them, those
/// that were taken go first, and then the newest are not kept: who is behind wants the oldest next.
#[derive(Debug, Default)]
pub struct FreshBlobs {
    state: Mutex<State>,
    arrived: Notify,
    taken: Notify,
}

#[derive(Debug, Default)]
struct State {
    listeners: usize,
    blobs: HashMap<Digest, Fresh>,
    /// In the order in which they came, for so long as they are not stale. Some of them were taken,
    /// and may be gone.
    untaken: VecDeque<(Digest, Instant)>,
    /// In the order in which they were taken.
    taken: VecDeque<Digest>,
    size: usize,
    /// How much of it was not taken yet.
    untaken_size: usize,
    /// The bytes of those that are still coming.
    coming: usize,
    /// How often something was stored that is not kept here.
    stored: u64,
}

#[derive(Debug)]
struct Fresh {
    pieces: Vec<Bytes>,
    was_taken: bool,
}

impl Fresh {
    fn size(&self) -> usize {
        total(&self.pieces) + BLOB_OVERHEAD
    }
}

impl FreshBlobs {
    /// Takes note of blobs that have come; whether all of them are kept. Of those that are not it
    /// is to be told when a store [has them](Self::stored).
    pub fn insert(&self, blobs: &[Blob]) -> bool {
        let mut state = self.state.lock();
        if state.listeners == 0 {
            return true;
        }
        let mut all = true;
        for blob in blobs {
            all &= state.insert(*blob.digest(), vec![blob.bytes().clone()]);
        }
        drop(state);
        self.arrived.notify_waiters();
        all
    }

    /// Waits while much is waiting to be taken, but not for long.
    pub async fn settle(&self) {
        let settled = async {
            loop {
                let taken = self.taken.notified();
                if self.state.lock().untaken_size <= CROWDED_BYTES {
                    break;
                }
                taken.await;
            }
        };
        let _ = timeout(CROWDED_PATIENCE, settled).await;
    }

    /// A store has something that is not kept here.
    pub fn stored(&self) {
        self.state.lock().stored += 1;
        self.arrived.notify_waiters();
    }

    /// Takes note of a blob that comes in pieces: it is the source's, and is to be told of as
    /// [`stored`](Coming::stored).
    pub fn coming(self: &Arc<Self>, source: BlobSource) -> (BlobSource, Coming) {
        let has_listeners = self.state.lock().listeners > 0;
        let pieces = Arc::new(Mutex::new(has_listeners.then(Vec::new)));
        let coming = Coming { fresh: Arc::clone(self), pieces: Arc::clone(&pieces) };
        let fresh = Arc::clone(self);
        let noted = source.inspect(move |piece| {
            if let Ok(piece) = piece {
                fresh.note(&mut pieces.lock(), piece);
            }
        });
        (noted.boxed(), coming)
    }

    /// Adds a piece to those of a blob, or gives them up if they are too many.
    fn note(&self, pieces: &mut Option<Vec<Bytes>>, piece: &Bytes) {
        let Some(before) = pieces else { return };
        let mut state = self.state.lock();
        let size = total(before) + piece.len();
        if size <= FRESH_BLOB_MAX && state.coming + piece.len() <= COMING_BYTES {
            state.coming += piece.len();
            before.push(piece.clone());
        } else {
            state.coming -= total(before);
            *pieces = None;
        }
    }

    /// Begins to listen.
    pub fn listen(self: &Arc<Self>) -> FreshListener {
        self.state.lock().listeners += 1;
        FreshListener(Arc::clone(self))
    }
}

impl State {
    /// Keeps a blob if there is room for it.
    fn insert(&mut self, digest: Digest, pieces: Vec<Bytes>) -> bool {
        if self.blobs.contains_key(&digest) {
            return true;
        }
        let size = total(&pieces) + BLOB_OVERHEAD;
        self.make_room(size);
        if self.size + size > FRESH_BYTES {
            return false;
        }
        self.size += size;
        self.untaken_size += size;
        self.blobs.insert(digest, Fresh { pieces, was_taken: false });
        self.untaken.push_back((digest, Instant::now()));
        true
    }

    /// Lets go of what has waited for too long, and then of what was taken.
    fn make_room(&mut self, size: usize) {
        let is_stale = |(_, since): &mut (_, Instant)| since.elapsed() > UNTAKEN_PATIENCE;
        while let Some((stale, _)) = self.untaken.pop_front_if(is_stale) {
            if self.blobs.get(&stale).is_some_and(|fresh| !fresh.was_taken) {
                self.remove(&stale);
            }
        }
        while self.size + size > FRESH_BYTES
            && let Some(taken) = self.taken.pop_front()
        {
            self.remove(&taken);
        }
    }

    fn remove(&mut self, digest: &Digest) {
        if let Some(fresh) = self.blobs.remove(digest) {
            self.size -= fresh.size();
            if !fresh.was_taken {
                self.untaken_size -= fresh.size();
            }
        }
    }

    fn take(&mut self, digest: &Digest) -> Option<&[Bytes]> {
        let fresh = self.blobs.get_mut(digest)?;
        if !fresh.was_taken {
            fresh.was_taken = true;
            self.untaken_size -= fresh.size();
            self.taken.push_back(*digest);
        }
        Some(&fresh.pieces)
    }
}

fn total(pieces: &[Bytes]) -> usize {
    pieces.iter().map(Bytes::len).sum()
}

/// A blob that is still coming. Dropped if it does not come after all.
#[derive(Debug)]
pub struct Coming {
    fresh: Arc<FreshBlobs>,
    /// `None` if they are not kept.
    pieces: Arc<Mutex<Option<Vec<Bytes>>>>,
}

impl Coming {
    /// All of it has come, and a store has it.
    pub fn stored(self, digest: Digest) {
        let pieces = self.pieces.lock().take();
        let mut state = self.fresh.state.lock();
        match pieces {
            Some(pieces) => {
                state.coming -= total(&pieces);
                if state.listeners > 0 && !state.insert(digest, pieces) {
                    state.stored += 1;
                }
            }
            None => state.stored += 1,
        }
        drop(state);
        self.fresh.arrived.notify_waiters();
    }
}

impl Drop for Coming {
    fn drop(&mut self) {
        if let Some(pieces) = self.pieces.lock().take() {
            self.fresh.state.lock().coming -= total(&pieces);
        }
    }
}

/// Someone who wants blobs as they come.
#[derive(Debug)]
pub struct FreshListener(Arc<FreshBlobs>);

impl FreshListener {
    /// Fills in what has come of these small blobs.
    pub fn fill(&self, digests: &[Digest], found: &mut [Option<Bytes>]) {
        let mut state = self.0.state.lock();
        for (digest, found) in digests.iter().zip(found).filter(|(_, found)| found.is_none()) {
            if let Some([bytes]) = state.take(digest) {
                *found = Some(bytes.clone());
            }
        }
        drop(state);
        self.0.taken.notify_waiters();
    }

    /// The pieces of a blob of any size.
    pub fn get(&self, digest: &Digest) -> Option<Vec<Bytes>> {
        let pieces = self.0.state.lock().take(digest).map(<[Bytes]>::to_vec);
        self.0.taken.notify_waiters();
        pieces
    }

    /// A number that is another when a store has got something that does not come here.
    pub fn stored(&self) -> u64 {
        self.0.state.lock().stored
    }

    /// Is ready when something has come since this was called.
    pub fn arrival(&self) -> Notified<'_> {
        self.0.arrived.notified()
    }
}

impl Drop for FreshListener {
    fn drop(&mut self) {
        let mut state = self.0.state.lock();
        state.listeners -= 1;
        if state.listeners == 0 {
            let (stored, coming) = (state.stored, state.coming);
            *state = State { stored, coming, ..State::default() };
            self.0.taken.notify_waiters();
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;

    use super::*;

    fn blob(number: u32, length: usize) -> Blob {
        let mut bytes = number.to_le_bytes().to_vec();
        bytes.resize(length, 0);
        Blob::new(bytes.into())
    }

    fn get(listener: &FreshListener, blob: &Blob) -> Option<Bytes> {
        let mut found = [None];
        listener.fill(&[*blob.digest()], &mut found);
        let [found] = found;
        found
    }

    #[test]
    fn what_was_taken_makes_room_and_else_the_oldest_stay() {
        let fresh = Arc::new(FreshBlobs::default());
        let early = blob(0, 4);
        assert!(fresh.insert(std::slice::from_ref(&early)));
        let listener = fresh.listen();
        assert_eq!(get(&listener, &early), None, "nobody listened");

        let length = 1 << 20;
        let room = FRESH_BYTES / (length + BLOB_OVERHEAD);
        let blobs: Vec<_> = (1..=room as u32 + 10).map(|number| blob(number, length)).collect();
        for (index, blob) in blobs.iter().enumerate() {
            assert_eq!(fresh.insert(&[blob.clone(), blob.clone()]), index < room, "{index}");
            assert!(fresh.state.lock().size <= FRESH_BYTES);
        }
        for (index, blob) in blobs.iter().enumerate().take(room).skip(1) {
            assert_eq!(get(&listener, blob).as_ref(), Some(blob.bytes()), "{index}");
        }
        assert_eq!(get(&listener, &blobs[5]).as_ref(), Some(blobs[5].bytes()), "taken twice");
        assert!(fresh.insert(&blobs[room..]));
        for (index, blob) in blobs.iter().enumerate() {
            let is_kept = get(&listener, blob).is_some();
            assert_eq!(is_kept, !(1..=10).contains(&index), "{index}");
        }
        drop(listener);
        assert_eq!(get(&fresh.listen(), &blobs[room]), None);
        assert_eq!(fresh.state.lock().size, 0);
    }

    #[test]
    fn what_nobody_takes_goes_after_a_while() {
        let fresh = Arc::new(FreshBlobs::default());
        let listener = fresh.listen();
        let (old, new) = (blob(1, 4), blob(2, 4));
        fresh.insert(std::slice::from_ref(&old));
        for (_, since) in &mut fresh.state.lock().untaken {
            *since = since.checked_sub(2 * UNTAKEN_PATIENCE).unwrap();
        }
        fresh.insert(std::slice::from_ref(&new));
        assert_eq!(get(&listener, &old), None);
        assert!(get(&listener, &new).is_some());
        assert_eq!(fresh.state.lock().size, 4 + BLOB_OVERHEAD);
        assert_eq!(fresh.state.lock().untaken.len(), 1);
    }

    #[test]
    fn what_was_taken_does_not_go_before_its_room_is_wanted() {
        let fresh = Arc::new(FreshBlobs::default());
        let listener = fresh.listen();
        let (old, new) = (blob(1, 4), blob(2, 4));
        for _ in 0..3 {
            fresh.insert(std::slice::from_ref(&old));
            assert!(get(&listener, &old).is_some());
            for (_, since) in &mut fresh.state.lock().untaken {
                *since = since.checked_sub(2 * UNTAKEN_PATIENCE).unwrap();
            }
            fresh.insert(std::slice::from_ref(&new));
            assert!(get(&listener, &old).is_some());
            let state = fresh.state.lock();
            assert_eq!((state.blobs.len(), state.taken.len()), (2, 1));
        }
    }

    #[tokio::test]
    async fn who_brings_too_much_waits_for_those_who_take_but_not_for_ever() {
        let fresh = Arc::new(FreshBlobs::default());
        let listener = fresh.listen();
        let blobs: Vec<_> = (0..50).map(|number| blob(number, 1 << 20)).collect();
        fresh.insert(&blobs[..10]);
        assert!(fresh.settle().now_or_never().is_some());
        fresh.insert(&blobs);
        fresh.settle().await;
        let mut settled = std::pin::pin!(fresh.settle());
        assert!(settled.as_mut().now_or_never().is_none());
        for blob in &blobs[..20] {
            assert!(get(&listener, blob).is_some());
        }
        assert!(settled.now_or_never().is_some());
        for blob in &blobs {
            get(&listener, blob);
        }
        assert_eq!(fresh.state.lock().untaken_size, 0);
    }

    #[test]
    fn what_comes_is_noticed() {
        let fresh = Arc::new(FreshBlobs::default());
        let listener = fresh.listen();
        let (first, second) = (listener.arrival(), listener.arrival());
        fresh.insert(&[blob(1, 4)]);
        assert!(first.now_or_never().is_some());
        assert!(second.now_or_never().is_some());
        assert!(listener.arrival().now_or_never().is_none());
    }

    #[tokio::test]
    async fn what_comes_in_pieces_is_kept_within_bounds() {
        let fresh = Arc::new(FreshBlobs::default());
        let listener = fresh.listen();
        let piece = Bytes::from(vec![7; 1 << 20]);
        let source = |pieces: usize| {
            let pieces = vec![piece.clone(); pieces];
            futures::stream::iter(pieces.into_iter().map(Ok)).boxed()
        };
        let all = |number: u32| Digest::of(&number.to_le_bytes());

        let mut comings = Vec::new();
        for number in 0..COMING_BYTES / FRESH_BLOB_MAX + 1 {
            let (noted, coming) = fresh.coming(source(FRESH_BLOB_MAX >> 20));
            assert_eq!(noted.count().await, FRESH_BLOB_MAX >> 20);
            assert!(fresh.state.lock().coming <= COMING_BYTES);
            comings.push((all(number as u32), coming));
        }
        let mut kept = 0;
        for (digest, coming) in comings {
            let before = listener.stored();
            coming.stored(digest);
            match listener.get(&digest) {
                Some(pieces) => kept += total(&pieces),
                None => assert_ne!(listener.stored(), before),
            }
        }
        assert_eq!(kept, COMING_BYTES);

        // One that is too large, one that never comes, and one for which nobody listens.
        let (noted, coming) = fresh.coming(source((FRESH_BLOB_MAX >> 20) + 1));
        noted.count().await;
        coming.stored(all(100));
        assert_eq!(listener.get(&all(100)), None);
        let (noted, coming) = fresh.coming(source(1));
        noted.count().await;
        assert_eq!(fresh.state.lock().coming, piece.len());
        drop(coming);
        assert_eq!(fresh.state.lock().coming, 0);
        drop(listener);
        let (noted, _coming) = fresh.coming(source(1));
        noted.count().await;
        assert_eq!(fresh.state.lock().coming, 0);
    }
}
