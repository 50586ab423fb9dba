//! A stream on its way into the store: hashed, cut into chunks and compressed on a thread of its
//! own, with a bounded part of it in memory.

use std::{collections::VecDeque, io};

use bytes::Bytes;
use tokio::sync::mpsc;

use super::{Blobs, chunk_list::encode_stat};
use crate::{
    BlobError, BlobStat, ChunkMeta, Digest,
    chunking::Chunker,
    local::{Kind, LocalError, Record, Submitted},
    outboard::{Outboard, OutboardHasher},
};

/// The chunks of a stream that are stored together, in bytes.
const PUT_BATCH_BYTES: usize = 2 * 1024 * 1024;

/// The batches of a stream that wait to be durable before the stream is read on.
const PUT_BATCHES: usize = 8;

/// A part of a blob on its way to the thread that cuts and hashes it.
pub(super) enum Piece {
    Bytes(Bytes),
    End,
}

/// The chunks of a stream on their way into the store.
struct StreamPut<'a> {
    blobs: &'a Blobs,
    chunks: Vec<ChunkMeta>,
    batch: Vec<Record>,
    batch_bytes: usize,
    submitted: VecDeque<Submitted>,
}

impl<'a> StreamPut<'a> {
    fn new(blobs: &'a Blobs) -> Self {
        let submitted = VecDeque::new();
        Self { blobs, chunks: Vec::new(), batch: Vec::new(), batch_bytes: 0, submitted }
    }

    fn add(&mut self, chunk: Bytes) -> Result<(), BlobError> {
        let digest = Digest::of(&chunk);
        self.chunks.push(ChunkMeta { digest, size: chunk.len() as u64 });
        self.batch_bytes += chunk.len();
        self.batch.push(Record { kind: Kind::Chunk, key: digest.into(), value: chunk });
        if self.batch_bytes >= PUT_BATCH_BYTES { self.submit() } else { Ok(()) }
    }

    fn submit(&mut self) -> Result<(), BlobError> {
        self.batch_bytes = 0;
        let batch = std::mem::take(&mut self.batch);
        self.submitted.push_back(self.checked(self.blobs.store.submit(batch))?);
        match self.submitted.len() > PUT_BATCHES {
            true => self.wait_for_one(),
            false => Ok(()),
        }
    }

    fn wait_for_one(&mut self) -> Result<(), BlobError> {
        match self.submitted.pop_front() {
            Some(submitted) => self.checked(submitted.wait()),
            None => Ok(()),
        }
    }

    fn checked<T>(&self, outcome: Result<T, LocalError>) -> Result<T, BlobError> {
        outcome.map_err(|error| self.blobs.error(error))
    }

    /// The list comes only when all chunks are durable, so that no blob is there in part.
    fn finish(mut self, outboard: Outboard) -> Result<BlobStat, BlobError> {
        self.submit()?;
        while !self.submitted.is_empty() {
            self.wait_for_one()?;
        }
        let (digest, size) = (*outboard.digest(), outboard.size());
        if self.chunks.len() <= 1 {
            return Ok(BlobStat { digest, size, chunks: Vec::new(), outboard: None });
        }
        let chunks = std::mem::take(&mut self.chunks);
        let stat = BlobStat { digest, size, chunks, outboard: Some(outboard) };
        let value = encode_stat(&stat);
        let record = Record { kind: Kind::Blob, key: digest.into(), value };
        self.checked(self.blobs.store.put(vec![record]))?;
        Ok(stat)
    }
}

/// Takes the pieces of a blob as they come; what is left is to store what makes them a blob.
pub(super) fn put_pieces(
    blobs: &Blobs,
    mut pieces: mpsc::Receiver<Piece>,
) -> Result<BlobStat, BlobError> {
    let mut put = StreamPut::new(blobs);
    let mut chunker = Chunker::new();
    let mut hasher = OutboardHasher::new();
    loop {
        match pieces.blocking_recv() {
            Some(Piece::Bytes(bytes)) => {
                hasher.update(&bytes);
                let mut ready = Vec::new();
                chunker.push(&bytes, |chunk| ready.push(chunk));
                ready.into_iter().try_for_each(|chunk| put.add(chunk))?;
            }
            Some(Piece::End) => break,
            // Whoever puts has gone, or has told its own error.
            None => {
                let error = io::Error::from(io::ErrorKind::UnexpectedEof);
                return Err(BlobError::Source(error));
            }
        }
    }
    let mut ready = Vec::new();
    chunker.finish(|chunk| ready.push(chunk));
    ready.into_iter().try_for_each(|chunk| put.add(chunk))?;
    put.finish(hasher.finish())
}
