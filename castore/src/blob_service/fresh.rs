//! Blobs that have just come, for whoever wants their bytes again at once: small ones are at hand
//! here before they are durable. Nothing here says that a blob is in a store.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
};

use bytes::Bytes;
use futures::StreamExt as _;
use parking_lot::Mutex;
use tokio::sync::{Notify, futures::Notified};

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

/// The blobs that came last, as many as there is room for, as long as anyone listens.
#[derive(Debug, Default)]
pub struct FreshBlobs {
    state: Mutex<State>,
    arrived: Notify,
}

#[derive(Debug, Default)]
struct State {
    listeners: usize,
    blobs: HashMap<Digest, Vec<Bytes>>,
    /// From the oldest to the newest.
    order: VecDeque<Digest>,
    size: usize,
    /// The bytes of those that are still coming.
    coming: usize,
    /// How often something was stored that is not kept here.
    stored: u64,
}

impl FreshBlobs {
    /// Takes note of blobs that have come.
    pub fn insert(&self, blobs: &[Blob]) {
        let mut state = self.state.lock();
        if state.listeners == 0 {
            return;
        }
        for blob in blobs {
            state.insert(*blob.digest(), vec![blob.bytes().clone()], blob.bytes().len());
        }
        drop(state);
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
    fn insert(&mut self, digest: Digest, pieces: Vec<Bytes>, size: usize) {
        if self.blobs.insert(digest, pieces).is_some() {
            return;
        }
        self.order.push_back(digest);
        self.size += size + BLOB_OVERHEAD;
        while self.size > FRESH_BYTES {
            let Some(oldest) = self.order.pop_front() else { break };
            if let Some(pieces) = self.blobs.remove(&oldest) {
                self.size -= total(&pieces) + BLOB_OVERHEAD;
            }
        }
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
                let size = total(&pieces);
                state.coming -= size;
                if state.listeners > 0 {
                    state.insert(digest, pieces, size);
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
        let state = self.0.state.lock();
        for (digest, found) in digests.iter().zip(found).filter(|(_, found)| found.is_none()) {
            if let Some([bytes]) = state.blobs.get(digest).map(Vec::as_slice) {
                *found = Some(bytes.clone());
            }
        }
    }

    /// The pieces of a blob of any size.
    pub fn get(&self, digest: &Digest) -> Option<Vec<Bytes>> {
        self.0.state.lock().blobs.get(digest).cloned()
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
    fn the_newest_are_kept_while_someone_listens() {
        let fresh = Arc::new(FreshBlobs::default());
        let early = blob(0, 4);
        fresh.insert(std::slice::from_ref(&early));
        let listener = fresh.listen();
        assert_eq!(get(&listener, &early), None);

        let length = 1 << 20;
        let blobs: Vec<_> = (1..=100).map(|number| blob(number, length)).collect();
        for blob in &blobs {
            fresh.insert(&[blob.clone(), blob.clone()]);
            assert!(fresh.state.lock().size <= FRESH_BYTES);
        }
        let kept = FRESH_BYTES / (length + BLOB_OVERHEAD);
        for (index, blob) in blobs.iter().enumerate() {
            let expected = (index >= blobs.len() - kept).then(|| blob.bytes().clone());
            assert_eq!(get(&listener, blob), expected, "{index}");
        }
        drop(listener);
        assert_eq!(get(&fresh.listen(), &blobs[99]), None);
        assert_eq!(fresh.state.lock().size, 0);
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
