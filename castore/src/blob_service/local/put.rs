//! A stream on its way into the store: awaited on the async runtime, and hashed, cut into chunks
//! and compressed in steps on threads that may block. A stream whose source has nothing to give
//! holds no thread, and little memory.

use std::{collections::VecDeque, sync::Arc};

use bytes::Bytes;
use futures::{FutureExt as _, TryStreamExt as _};

use super::{Blobs, chunk_list::encode_stat};
use crate::{
    BlobError, BlobStat, ChunkMeta, Digest,
    blob_service::BlobSource,
    chunking::Chunker,
    local::{Kind, LocalError, Record, Submitted},
    outboard::{Outboard, OutboardHasher},
};

/// The bytes of a stream that are worked on in one step, but for the last piece, and the most
/// pieces. One step is under way while the pieces for the next are awaited.
const STEP_BYTES: usize = 1024 * 1024;
const STEP_PIECES: usize = 1024;

/// The most bytes that are cut at once, whatever the source's pieces are.
const PIECE_BYTES: usize = 1024 * 1024;

/// The chunks of a stream that are stored together, in bytes.
const PUT_BATCH_BYTES: usize = 2 * 1024 * 1024;

/// The batches of a stream that wait to be durable before the stream is read on.
const PUT_BATCHES: usize = 8;

/// What a source had to give.
struct Gathered {
    pieces: Vec<Bytes>,
    after: After,
}

/// What is behind the pieces that were gathered.
#[derive(PartialEq, Eq)]
enum After {
    More,
    /// The source lets wait.
    Nothing,
    End,
}

/// Waits for the next piece, and takes what is ready with it.
async fn gather(source: &mut BlobSource) -> Result<Gathered, BlobError> {
    let mut pieces = Vec::new();
    let mut bytes = 0;
    while bytes < STEP_BYTES && pieces.len() < STEP_PIECES {
        let next = match pieces.is_empty() {
            true => source.try_next().await,
            false => match source.try_next().now_or_never() {
                Some(next) => next,
                None => return Ok(Gathered { pieces, after: After::Nothing }),
            },
        };
        match next.map_err(BlobError::Source)? {
            Some(piece) => {
                bytes += piece.len();
                pieces.push(piece);
            }
            None => return Ok(Gathered { pieces, after: After::End }),
        }
    }
    Ok(Gathered { pieces, after: After::More })
}

/// Stores the blob that comes from a source.
pub(super) async fn put(blobs: &Arc<Blobs>, mut source: BlobSource) -> Result<BlobStat, BlobError> {
    let _stream = blobs.streams.acquire().await.expect("the semaphore is never closed");
    let mut put = StreamPut::default();
    let mut gathered = gather(&mut source).await?;
    while gathered.after != After::End {
        let step = step(blobs, move |blobs| {
            put.take(blobs, gathered)?;
            Ok(put)
        });
        (put, gathered) = futures::try_join!(step, gather(&mut source))?;
        put.wait_for_all_but(blobs, PUT_BATCHES).await?;
    }
    drop(source);
    let (mut put, outboard) = step(blobs, move |blobs| {
        put.take(blobs, gathered)?;
        put.finish(blobs)
    })
    .await?;
    // The list comes only when all chunks are durable, so that no blob is there in part.
    put.wait_for_all_but(blobs, 0).await?;
    let (digest, size) = (*outboard.digest(), outboard.size());
    if put.chunks.len() <= 1 {
        return Ok(BlobStat { digest, size, chunks: Vec::new(), outboard: None });
    }
    let stat = BlobStat { digest, size, chunks: put.chunks, outboard: Some(outboard) };
    let (stat, submitted) = step(blobs, move |blobs| {
        let record = Record::new(Kind::Blob, digest.into(), encode_stat(&stat));
        Ok((stat, blobs.checked(blobs.store.submit(vec![record]))?))
    })
    .await?;
    blobs.checked(submitted.done().await)?;
    Ok(stat)
}

/// Runs a step of a stream on a thread that may block, when it is its turn.
async fn step<T: Send + 'static>(
    blobs: &Arc<Blobs>,
    run: impl FnOnce(&Blobs) -> Result<T, BlobError> + Send + 'static,
) -> Result<T, BlobError> {
    let _turn = blobs.steps.acquire().await.expect("the semaphore is never closed");
    blobs.blocking(run).await
}

/// What is known of a stream between two steps.
#[derive(Default)]
struct StreamPut {
    chunker: Chunker,
    hasher: OutboardHasher,
    chunks: Vec<ChunkMeta>,
    batch: Vec<Record>,
    batch_bytes: usize,
    submitted: VecDeque<Submitted>,
}

impl StreamPut {
    fn take(&mut self, blobs: &Blobs, gathered: Gathered) -> Result<(), BlobError> {
        let mut ready = Vec::new();
        for mut bytes in gathered.pieces {
            while !bytes.is_empty() {
                let piece = bytes.split_to(bytes.len().min(PIECE_BYTES));
                self.hasher.update(&piece);
                self.chunker.push(piece, |chunk| ready.push(chunk));
                ready.drain(..).try_for_each(|chunk| self.add(blobs, chunk))?;
            }
        }
        // Who knows how long it is until the next step.
        if gathered.after == After::Nothing { self.submit(blobs) } else { Ok(()) }
    }

    fn add(&mut self, blobs: &Blobs, chunk: Bytes) -> Result<(), BlobError> {
        let digest = Digest::of(&chunk);
        self.chunks.push(ChunkMeta { digest, size: chunk.len() as u64 });
        self.batch_bytes += chunk.len();
        self.batch.push(Record::new(Kind::Chunk, digest.into(), chunk));
        if self.batch_bytes >= PUT_BATCH_BYTES { self.submit(blobs) } else { Ok(()) }
    }

    fn submit(&mut self, blobs: &Blobs) -> Result<(), BlobError> {
        self.batch_bytes = 0;
        let batch = std::mem::take(&mut self.batch);
        if !batch.is_empty() {
            self.submitted.push_back(blobs.checked(blobs.store.submit(batch))?);
        }
        Ok(())
    }

    fn finish(mut self, blobs: &Blobs) -> Result<(Self, Outboard), BlobError> {
        let mut ready = Vec::new();
        std::mem::take(&mut self.chunker).finish(|chunk| ready.push(chunk));
        ready.into_iter().try_for_each(|chunk| self.add(blobs, chunk))?;
        self.submit(blobs)?;
        let outboard = std::mem::take(&mut self.hasher).finish();
        Ok((self, outboard))
    }

    /// Waits until the chunks are durable, but for the last so many batches.
    async fn wait_for_all_but(&mut self, blobs: &Blobs, batches: usize) -> Result<(), BlobError> {
        while self.submitted.len() > batches {
            let Some(submitted) = self.submitted.pop_front() else { break };
            blobs.checked(submitted.done().await)?;
        }
        Ok(())
    }
}

impl Blobs {
    fn checked<T>(&self, outcome: Result<T, LocalError>) -> Result<T, BlobError> {
        outcome.map_err(|error| self.error(error))
    }
}
