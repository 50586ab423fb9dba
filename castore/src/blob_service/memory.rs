//! Blobs in this process's memory, gone with it. For tests, and for content that need not last;
//! nothing here bounds what is kept.

use std::{collections::HashMap, fmt, fs::File, sync::Arc};

use async_trait::async_trait;
use bytes::Bytes;
use futures::{StreamExt as _, TryStreamExt as _, stream};
use parking_lot::RwLock;

use super::{HAS_MANY_DIGESTS, READ_MANY_BLOBS, check_count, check_small};
use crate::{
    Blob, BlobError, BlobService, BlobStat, ByteRange, ChunkMeta, Digest, Packed, Packing,
    blob_service::{BlobServiceExt as _, BlobSource, BlobStream},
    chunking::Chunker,
    outboard::{Outboard, OutboardHasher},
};

/// A blob service in memory.
#[derive(Default)]
pub struct MemoryBlobService {
    blobs: RwLock<HashMap<Digest, Stored>>,
}

#[derive(Clone)]
enum Stored {
    /// A chunk, or a blob of a single one.
    Chunk(Bytes),
    /// A blob of two or more chunks, each of them stored as well.
    Chunks(Arc<Chunked>),
}

struct Chunked {
    /// Each chunk's place in the blob.
    chunks: Vec<(u64, Blob)>,
    outboard: Outboard,
}

impl MemoryBlobService {
    /// An empty store.
    pub fn new() -> Self {
        Self::default()
    }

    fn find(&self, digest: &Digest) -> Option<Stored> {
        if *digest == Digest::EMPTY {
            return Some(Stored::Chunk(Bytes::new()));
        }
        self.blobs.read().get(digest).cloned()
    }
}

impl Stored {
    fn size(&self) -> u64 {
        match self {
            Self::Chunk(bytes) => bytes.len() as u64,
            Self::Chunks(blob) => blob.outboard.size(),
        }
    }

    fn stat(&self, digest: &Digest) -> BlobStat {
        let (chunks, outboard) = match self {
            Self::Chunk(_) => (Vec::new(), None),
            Self::Chunks(blob) => {
                let meta = |(_, chunk): &(u64, Blob)| ChunkMeta {
                    digest: *chunk.digest(),
                    size: chunk.bytes().len() as u64,
                };
                (blob.chunks.iter().map(meta).collect(), Some(blob.outboard.clone()))
            }
        };
        BlobStat { digest: *digest, size: self.size(), chunks, outboard }
    }

    /// The first bytes of a range that lie together; none only if the range is empty.
    fn part(&self, range: ByteRange) -> Bytes {
        let range = range.within(self.size());
        if range.is_empty() {
            return Bytes::new();
        }
        let (start, bytes) = match self {
            Self::Chunk(bytes) => (0, bytes),
            Self::Chunks(blob) => {
                let behind = blob.chunks.partition_point(|(start, _)| *start <= range.start);
                let (start, chunk) = &blob.chunks[behind - 1];
                (*start, chunk.bytes())
            }
        };
        let from = (range.start - start) as usize;
        let to = bytes.len().min((range.end - start) as usize);
        bytes.slice(from..to)
    }
}

#[async_trait]
impl BlobService for MemoryBlobService {
    async fn stat(&self, digest: &Digest) -> Result<Option<BlobStat>, BlobError> {
        Ok(self.find(digest).map(|stored| stored.stat(digest)))
    }

    async fn has_many(&self, digests: &[Digest]) -> Result<Vec<bool>, BlobError> {
        check_count(digests.len(), HAS_MANY_DIGESTS)?;
        Ok(digests.iter().map(|digest| self.find(digest).is_some()).collect())
    }

    async fn read(&self, digest: &Digest, range: ByteRange) -> Result<BlobStream, BlobError> {
        let stored = self.find(digest).ok_or(BlobError::NotFound(*digest))?;
        let end = range.within(stored.size()).end;
        let parts = stream::iter(std::iter::successors(Some((range.offset, Bytes::new())), {
            move |(offset, before)| {
                let offset = offset + before.len() as u64;
                let length = end.saturating_sub(offset);
                let part = stored.part(ByteRange { offset, length });
                (!part.is_empty()).then_some((offset, part))
            }
        }));
        Ok(parts.skip(1).map(|(_, part)| Ok(part)).boxed())
    }

    async fn read_many(&self, digests: &[Digest]) -> Result<Vec<Option<Bytes>>, BlobError> {
        check_count(digests.len(), READ_MANY_BLOBS)?;
        let read = |digest: &Digest| {
            let Some(stored) = self.find(digest) else { return Ok(None) };
            check_small(digest, stored.size())?;
            Ok(Some(stored.part(ByteRange::ALL)))
        };
        digests.iter().map(read).collect()
    }

    async fn read_many_packed(
        &self,
        digests: &[Digest],
        packing: Packing,
    ) -> Result<Vec<Option<Packed>>, BlobError> {
        self.read_many_and_pack(digests, packing).await
    }

    async fn put(&self, mut source: BlobSource) -> Result<BlobStat, BlobError> {
        let mut hasher = OutboardHasher::new();
        let mut chunker = Chunker::new();
        let mut chunks = Vec::new();
        while let Some(piece) = source.try_next().await.map_err(BlobError::Source)? {
            hasher.update(&piece);
            chunker.push(piece, |chunk| chunks.push(Blob::new(chunk)));
        }
        chunker.finish(|chunk| chunks.push(Blob::new(chunk)));
        let outboard = hasher.finish();
        let digest = *outboard.digest();

        let mut blobs = self.blobs.write();
        for chunk in &chunks {
            blobs.entry(*chunk.digest()).or_insert_with(|| Stored::Chunk(chunk.bytes().clone()));
        }
        let stored = match chunks.as_slice() {
            [] => return Ok(Stored::Chunk(Bytes::new()).stat(&digest)),
            [_] => blobs[&digest].clone(),
            _ => {
                let mut start = 0;
                let place = |chunk: Blob| {
                    let here = start;
                    start += chunk.bytes().len() as u64;
                    (here, chunk)
                };
                let chunks = chunks.into_iter().map(place).collect();
                let chunked = Stored::Chunks(Arc::new(Chunked { chunks, outboard }));
                blobs.entry(digest).or_insert(chunked).clone()
            }
        };
        Ok(stored.stat(&digest))
    }

    async fn put_many(&self, blobs: Vec<Blob>) -> Result<(), BlobError> {
        for blob in &blobs {
            check_small(blob.digest(), blob.bytes().len() as u64)?;
        }
        let mut stored = self.blobs.write();
        for blob in blobs {
            let digest = *blob.digest();
            stored.entry(digest).or_insert_with(|| Stored::Chunk(blob.into_bytes()));
        }
        Ok(())
    }

    fn read_local(&self, digest: &Digest, range: ByteRange) -> Option<Result<Bytes, BlobError>> {
        let stored = self.find(digest).ok_or(BlobError::NotFound(*digest));
        Some(stored.map(|stored| stored.part(range)))
    }

    fn lend(&self, _: &Digest) -> Option<File> {
        None
    }

    fn keep_whole(&self, _: &Digest) {}
}

impl fmt::Display for MemoryBlobService {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("memory:")
    }
}

impl fmt::Debug for MemoryBlobService {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MemoryBlobService({} blobs and chunks)", self.blobs.read().len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conformance;

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn conforms() {
        conformance::blob_service(Arc::new(MemoryBlobService::new())).await;
    }
}
