//! A source of bytes that can be had again from its start as long as it has given little: what
//! lets a blob be stored although the first process that took it went away.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::Bytes;
use cairn_castore::blob_service::BlobSource;
use futures::{Stream, StreamExt as _, stream};
use parking_lot::Mutex;

/// The most bytes of one blob that are kept to be given again.
pub(super) const REPLAY_BYTES: usize = 8 * 1024 * 1024;

/// A source, and what it has given so far.
#[derive(Clone)]
pub(super) struct Replay(Arc<Mutex<State>>);

struct State {
    source: BlobSource,
    /// What the source has given, from its start; `None` if that was too much or it has failed.
    given: Option<Vec<Bytes>>,
    given_bytes: usize,
    /// The reader that may go on with the source: the latest one.
    reader: u64,
}

impl Replay {
    pub(super) fn new(source: BlobSource) -> Self {
        let given = Some(Vec::new());
        Self(Arc::new(Mutex::new(State { source, given, given_bytes: 0, reader: 0 })))
    }

    /// The source from its start, or an error as its only item if it can't be had again. Whoever
    /// reads an earlier one of these gets nothing more.
    pub(super) fn restart(&self) -> BlobSource {
        let mut state = self.0.lock();
        state.reader += 1;
        let reader = Reader { replay: self.clone(), reader: state.reader, position: 0 };
        match state.given {
            Some(_) => reader.boxed(),
            None => {
                let error = io::Error::other("what the source gave is not kept");
                stream::iter([Err(error)]).boxed()
            }
        }
    }

    /// Whether the source can be had from its start once more.
    pub(super) fn can_start_again(&self) -> bool {
        self.0.lock().given.is_some()
    }
}

struct Reader {
    replay: Replay,
    reader: u64,
    /// How many pieces of what was given this reader has given again.
    position: usize,
}

impl Stream for Reader {
    type Item = io::Result<Bytes>;

    fn poll_next(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<io::Result<Bytes>>> {
        let this = &mut *self;
        let mut guard = this.replay.0.lock();
        let state = &mut *guard;
        if state.reader != this.reader {
            return Poll::Ready(Some(Err(io::Error::other("the source is read from elsewhere"))));
        }
        if let Some(piece) = state.given.as_ref().and_then(|given| given.get(this.position)) {
            this.position += 1;
            return Poll::Ready(Some(Ok(piece.clone())));
        }
        let polled = state.source.poll_next_unpin(context);
        match &polled {
            Poll::Ready(Some(Ok(piece))) => {
                state.given_bytes += piece.len();
                if state.given_bytes > REPLAY_BYTES {
                    state.given = None;
                } else if let Some(given) = &mut state.given {
                    given.push(piece.clone());
                    this.position += 1;
                }
            }
            Poll::Ready(Some(Err(_))) => state.given = None,
            Poll::Ready(None) | Poll::Pending => {}
        }
        polled
    }
}

#[cfg(test)]
mod tests {
    use futures::TryStreamExt as _;

    use super::*;

    fn source(pieces: Vec<Bytes>) -> BlobSource {
        stream::iter(pieces.into_iter().map(Ok)).boxed()
    }

    #[tokio::test]
    async fn what_was_given_is_given_again_and_the_rest_follows() {
        let pieces: Vec<_> = (0..10u8).map(|byte| Bytes::from(vec![byte; 3])).collect();
        let replay = Replay::new(source(pieces.clone()));
        let mut first = replay.restart();
        for piece in &pieces[..4] {
            assert_eq!(first.next().await.unwrap().unwrap(), piece);
        }
        let second: Vec<_> = replay.restart().try_collect().await.unwrap();
        assert_eq!(second, pieces);
        assert!(first.next().await.unwrap().is_err(), "the first reader must not take pieces");
        // The end can be had again as well.
        let third: Vec<_> = replay.restart().try_collect().await.unwrap();
        assert_eq!(third, pieces);
    }

    #[tokio::test]
    async fn a_source_that_gave_much_or_failed_is_not_to_be_had_again() {
        let piece = Bytes::from(vec![0; REPLAY_BYTES / 2]);
        let replay = Replay::new(source(vec![piece.clone(); 3]));
        let mut stream = replay.restart();
        for _ in 0..2 {
            assert_eq!(stream.next().await.unwrap().unwrap(), piece);
        }
        assert!(replay.can_start_again());
        assert_eq!(stream.next().await.unwrap().unwrap(), piece);
        assert!(!replay.can_start_again());
        assert!(stream.next().await.is_none());
        assert!(replay.restart().next().await.unwrap().is_err());

        let failing = Replay::new(stream::iter([Err(io::Error::other("gone"))]).boxed());
        assert!(failing.restart().next().await.unwrap().is_err());
        assert!(!failing.can_start_again());
    }
}
