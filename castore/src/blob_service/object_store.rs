//! Blobs in a bucket or folder, in the layout that Snix uses as well: compressed chunks, and a list
//! of them for each blob. Beside each list of ours lies what proves ranges of its blob.

use std::{fmt, fs::File, mem, ops::Range, sync::Arc};

use async_trait::async_trait;
use bytes::Bytes;
use cairn_proto::snix::castore::v1 as proto;
use futures::{StreamExt as _, TryStreamExt as _, stream};
use object_store::Error;
use prost::Message as _;
use tokio::task::{JoinError, JoinSet};

use super::{
    HAS_MANY_DIGESTS, READ_MANY_BLOBS, check_count, check_small,
    proof::{Proof, ProofCache, Prover},
};
use crate::{
    Blob, BlobError, BlobService, BlobStat, ByteRange, ChunkMeta, Digest, Packed, Packing,
    blob_service::{BlobSource, BlobStream},
    chunking::{CHUNK_MAX, Chunker},
    object_base::{
        NewObject, ObjectBase, ObjectFault, ObjectKind, REQUESTS_AT_ONCE, compress_many,
        compressed_max, decompress,
    },
    outboard::{
        Outboard, OutboardHasher,
        verify::{covering, verified_in_pieces},
    },
};

/// The largest chunk list that is read, in bytes: that of a blob of a tebibyte.
const CHUNK_LIST_MAX: usize = 256 * 1024 * 1024;

/// The largest proof that is read, in bytes: that of a blob of a tebibyte.
const OUTBOARD_MAX: usize = 128 * 1024 * 1024;

/// The chunks that a reader has fetched ahead.
const CHUNKS_AHEAD: usize = 4;

/// The chunks of a large blob that are stored together, in bytes, and how many such batches one put
/// has under way. In a folder a batch costs about what a chunk does.
const BATCH_BYTES: usize = 1024 * 1024;
const BATCHES_AT_ONCE: usize = 4;

/// Blobs in objects. Clones share the connection and what is known of the blobs.
#[derive(Clone)]
pub struct ObjectStoreBlobService {
    base: ObjectBase,
    proofs: Arc<ProofCache>,
}

impl ObjectStoreBlobService {
    /// The blobs at this place.
    pub fn new(base: ObjectBase) -> Self {
        Self { base, proofs: Arc::default() }
    }

    /// What a fault of the objects means.
    fn error(&self, error: Error) -> BlobError {
        let service = self.base.to_string();
        match ObjectFault::of(&error) {
            ObjectFault::Denied => BlobError::PermissionDenied { service, source: error.into() },
            ObjectFault::Full => BlobError::NoSpace { service, source: error.into() },
            ObjectFault::Unavailable => BlobError::Unavailable { service, source: error.into() },
            ObjectFault::Other => BlobError::Other { service, source: error.into() },
        }
    }

    fn corrupt(&self, digest: &Digest, reason: &str) -> BlobError {
        crate::verification::failed_far(self.base.url());
        BlobError::Corrupt { digest: *digest, reason: format!("{}: {reason}", self.base) }
    }

    /// The verified bytes of a chunk. `None` if it is not there.
    async fn chunk(&self, digest: &Digest) -> Result<Option<Bytes>, BlobError> {
        Ok(self.chunk_in_frame(digest).await?.map(|(_, bytes)| bytes))
    }

    /// A chunk's object, and the verified bytes in it.
    async fn chunk_in_frame(&self, digest: &Digest) -> Result<Option<(Bytes, Bytes)>, BlobError> {
        let max = compressed_max(CHUNK_MAX);
        let found = self.base.get(ObjectKind::Chunk, digest, max).await;
        let Some(compressed) = found.map_err(|error| self.error(error))? else { return Ok(None) };
        let bytes = decompress(&compressed, CHUNK_MAX).map_err(|error| {
            self.corrupt(digest, &format!("its object is no compressed chunk: {error}"))
        })?;
        match Blob::verified(*digest, bytes) {
            Some(blob) => Ok(Some((compressed, blob.into_bytes()))),
            None => Err(self.corrupt(digest, "its object holds other bytes")),
        }
    }

    /// The chunk list of a blob: empty for a single chunk. `None` if there is none.
    async fn chunk_list(&self, digest: &Digest) -> Result<Option<Vec<ChunkMeta>>, BlobError> {
        let found = self.base.get(ObjectKind::Blob, digest, CHUNK_LIST_MAX).await;
        let Some(encoded) = found.map_err(|error| self.error(error))? else { return Ok(None) };
        let list = proto::StatBlobResponse::decode(encoded);
        let list =
            list.map_err(|error| self.corrupt(digest, &format!("its object is no list: {error}")))?;
        let chunk =
            |chunk: proto::stat_blob_response::ChunkMeta| match Digest::try_from(&*chunk.digest) {
                Ok(digest) if (1..=CHUNK_MAX as u64).contains(&chunk.size) => {
                    Ok(ChunkMeta { digest, size: chunk.size })
                }
                _ => Err(self.corrupt(digest, "its chunk list has something that is no chunk")),
            };
        list.chunks.into_iter().map(chunk).collect::<Result<Vec<_>, _>>().map(Some)
    }

    async fn describe(&self, digest: &Digest) -> Result<Option<Proof>, BlobError> {
        if *digest == Digest::EMPTY {
            return Ok(Some(Proof::empty()));
        }
        // At once, since it is not known whether it is a chunk, of its own or of another blob, or a blob
        // of several: a request too many costs less than waiting for one after the other.
        let (list, whole) = tokio::join!(self.chunk_list(digest), self.chunk(digest));
        let list = list?;
        let several = list.as_ref().filter(|chunks| chunks.len() > 1);
        let Some(chunks) = several else {
            let Some(whole) = whole? else {
                return match list {
                    None => Ok(None),
                    Some(_) => Err(self.corrupt(digest, "its only chunk is missing")),
                };
            };
            let mut hasher = OutboardHasher::new();
            hasher.update(&whole);
            let proof = Proof::new(hasher.finish(), Vec::new());
            return Ok(Some(Proof { whole: Some(whole), ..proof }));
        };
        let chunks = chunks.clone();
        let size = chunks.iter().try_fold(0u64, |sum, chunk| sum.checked_add(chunk.size));
        let size = size.ok_or_else(|| self.corrupt(digest, "its chunk list overflows"))?;
        let proof = self.base.get(ObjectKind::Outboard, digest, OUTBOARD_MAX).await;
        let proof = proof.map_err(|error| self.error(error))?;
        // A proof of no use is none: the blob itself may be sound.
        match proof.and_then(|proof| Outboard::parse(*digest, size, &proof).ok()) {
            Some(outboard) => Ok(Some(Proof::new(outboard, chunks))),
            None => self.prove(digest, chunks).await.map(Some),
        }
    }

    /// Reads a blob once, to learn what proves its ranges.
    async fn prove(&self, digest: &Digest, chunks: Vec<ChunkMeta>) -> Result<Proof, BlobError> {
        let mut bytes = self.chunk_bytes(*digest, &chunks, 0..u64::MAX);
        let mut prover = Prover::new(*digest, chunks, self.base.url().clone());
        while let Some(piece) = bytes.try_next().await? {
            prover.update(&piece)?;
        }
        prover.finish()
    }

    async fn proof(&self, digest: &Digest) -> Result<Arc<Proof>, BlobError> {
        let proof = async {
            let proof = self.describe(digest).await?;
            proof.map(Arc::new).ok_or(BlobError::NotFound(*digest))
        };
        self.proofs.get_or_make(digest, proof).await
    }

    /// A range of a blob out of its chunks: each is what its digest says, but whether the list is
    /// the blob's is not known here.
    fn chunk_bytes(&self, blob: Digest, chunks: &[ChunkMeta], range: Range<u64>) -> BlobStream {
        let mut start = 0u64;
        let mut wanted = Vec::new();
        for chunk in chunks {
            let end = start.saturating_add(chunk.size);
            if end > range.start && start < range.end {
                wanted.push((*chunk, range.start.saturating_sub(start)));
            }
            start = end;
        }
        let service = self.clone();
        let fetch = move |(chunk, skipped): (ChunkMeta, u64)| {
            let service = service.clone();
            async move {
                match service.chunk(&chunk.digest).await? {
                    Some(bytes) if bytes.len() as u64 == chunk.size => {
                        Ok(bytes.slice(skipped as usize..))
                    }
                    Some(_) => {
                        let reason = format!("the size of chunk {} is wrong", chunk.digest);
                        Err(service.corrupt(&blob, &reason))
                    }
                    None => {
                        let reason = format!("chunk {} is missing", chunk.digest);
                        Err(service.corrupt(&blob, &reason))
                    }
                }
            }
        };
        stream::iter(wanted).map(fetch).buffered(CHUNKS_AHEAD).boxed()
    }

    /// Objects that hold these chunks.
    async fn chunk_objects(
        &self,
        chunks: Vec<(Digest, Bytes)>,
    ) -> Result<Vec<NewObject>, BlobError> {
        let (digests, bytes): (Vec<Digest>, Vec<Bytes>) = chunks.into_iter().unzip();
        let compressed = compress_many(bytes).await.map_err(|error| BlobError::Other {
            service: self.base.to_string(),
            source: error.into(),
        })?;
        let object = |(digest, bytes)| NewObject { kind: ObjectKind::Chunk, digest, bytes };
        Ok(digests.into_iter().zip(compressed).map(object).collect())
    }

    async fn create(&self, stages: Vec<Vec<NewObject>>) -> Result<(), BlobError> {
        self.base.create_many(stages).await.map_err(|error| self.error(error))
    }

    /// What came of an upload that has ended.
    fn uploaded(
        &self,
        upload: Option<Result<Result<(), BlobError>, JoinError>>,
    ) -> Result<(), BlobError> {
        match upload {
            None => Ok(()),
            Some(Ok(result)) => result,
            Some(Err(error)) => {
                Err(BlobError::Other { service: self.base.to_string(), source: error.into() })
            }
        }
    }

    /// A small blob's bytes, and the object that they came in.
    async fn read_small(
        &self,
        digest: Digest,
    ) -> Result<Option<(Option<Bytes>, Bytes)>, BlobError> {
        if digest == Digest::EMPTY {
            return Ok(Some((None, Bytes::new())));
        }
        // A small blob is a chunk: its list says nothing more.
        if let Some((frame, bytes)) = self.chunk_in_frame(&digest).await? {
            check_small(&digest, bytes.len() as u64)?;
            return Ok(Some((Some(frame), bytes)));
        }
        match self.chunk_list(&digest).await? {
            None => Ok(None),
            Some(chunks) if chunks.len() > 1 => {
                let size = chunks.iter().fold(0u64, |sum, chunk| sum.saturating_add(chunk.size));
                check_small(&digest, size)?;
                let proof = self.proof(&digest).await?;
                let pieces: Vec<Bytes> =
                    self.verified(&proof, 0..proof.size()).try_collect().await?;
                Ok(Some((None, pieces.concat().into())))
            }
            Some(_) => Err(self.corrupt(&digest, "its only chunk is missing")),
        }
    }

    async fn read_small_ones(
        &self,
        digests: &[Digest],
    ) -> Result<Vec<Option<(Option<Bytes>, Bytes)>>, BlobError> {
        check_count(digests.len(), READ_MANY_BLOBS)?;
        let asked: Vec<_> = digests.iter().map(|&digest| self.read_small(digest)).collect();
        stream::iter(asked).buffered(REQUESTS_AT_ONCE).try_collect().await
    }

    /// The verified bytes of a range that lies within the blob.
    fn verified(&self, proof: &Proof, range: Range<u64>) -> BlobStream {
        if range.is_empty() {
            return stream::empty().boxed();
        }
        if let Some(whole) = &proof.whole {
            let bytes = whole.slice(range.start as usize..range.end as usize);
            return stream::iter([Ok(bytes)]).boxed();
        }
        let digest = *proof.outboard.digest();
        let bytes = self.chunk_bytes(digest, &proof.chunks, covering(&range));
        verified_in_pieces(proof.outboard.clone(), range, bytes, self.base.url().clone())
    }
}

fn encode_chunk_list(chunks: &[ChunkMeta]) -> Bytes {
    let chunk = |chunk: &ChunkMeta| proto::stat_blob_response::ChunkMeta {
        digest: chunk.digest.into(),
        size: chunk.size,
    };
    let chunks = chunks.iter().map(chunk).collect();
    proto::StatBlobResponse { chunks, bao: Bytes::new() }.encode_to_vec().into()
}

#[async_trait]
impl BlobService for ObjectStoreBlobService {
    async fn stat(&self, digest: &Digest) -> Result<Option<BlobStat>, BlobError> {
        match self.proof(digest).await {
            Ok(proof) => Ok(Some(proof.stat())),
            Err(BlobError::NotFound(_)) => Ok(None),
            Err(error) => Err(error),
        }
    }

    async fn has_many(&self, digests: &[Digest]) -> Result<Vec<bool>, BlobError> {
        check_count(digests.len(), HAS_MANY_DIGESTS)?;
        let kinds = &[ObjectKind::Blob, ObjectKind::Chunk];
        let present = self.base.has_many(kinds, digests.to_vec()).await;
        let present = present.map_err(|error| self.error(error))?;
        let present = digests.iter().zip(present);
        Ok(present.map(|(digest, has)| has || *digest == Digest::EMPTY).collect())
    }

    async fn read(&self, digest: &Digest, range: ByteRange) -> Result<BlobStream, BlobError> {
        let proof = self.proof(digest).await?;
        Ok(self.verified(&proof, range.within(proof.size())))
    }

    async fn read_many(&self, digests: &[Digest]) -> Result<Vec<Option<Bytes>>, BlobError> {
        let blobs = self.read_small_ones(digests).await?;
        Ok(blobs.into_iter().map(|blob| blob.map(|(_, bytes)| bytes)).collect())
    }

    /// What is in the bucket is verified all the same, so that it is known where the damage is.
    async fn read_many_packed(
        &self,
        digests: &[Digest],
        _: Packing,
    ) -> Result<Vec<Option<Packed>>, BlobError> {
        let packed = |(frame, bytes): (Option<Bytes>, Bytes)| match frame {
            Some(frame) if frame.len() < bytes.len() => Packed::Frame { frame, size: bytes.len() },
            _ => Packed::Plain(bytes),
        };
        let blobs = self.read_small_ones(digests).await?;
        Ok(blobs.into_iter().map(|blob| blob.map(packed)).collect())
    }

    async fn put(&self, mut source: BlobSource) -> Result<BlobStat, BlobError> {
        let mut hasher = OutboardHasher::new();
        let mut chunker = Some(Chunker::new());
        let mut chunks = Vec::new();
        let (mut batch, mut batch_bytes) = (Vec::new(), 0);
        // Tasks, so that they go on while the source is waited for. They end with this call.
        let mut uploads = JoinSet::new();
        while let Some(cutting) = &mut chunker {
            let mut cut = Vec::new();
            match source.try_next().await.map_err(BlobError::Source)? {
                Some(piece) => {
                    hasher.update(&piece);
                    cutting.push(piece, |chunk| cut.push(chunk));
                }
                None => {
                    let last = chunker.take().expect("it is there until the end");
                    last.finish(|chunk| cut.push(chunk));
                }
            }
            for chunk in cut {
                let digest = Digest::of(&chunk);
                chunks.push(ChunkMeta { digest, size: chunk.len() as u64 });
                batch_bytes += chunk.len();
                batch.push((digest, chunk));
                if batch_bytes < BATCH_BYTES {
                    continue;
                }
                if uploads.len() >= BATCHES_AT_ONCE {
                    self.uploaded(uploads.join_next().await)?;
                }
                let (service, full) = (self.clone(), mem::take(&mut batch));
                batch_bytes = 0;
                uploads.spawn(async move {
                    let objects = service.chunk_objects(full).await?;
                    service.create(vec![objects]).await
                });
            }
        }
        while let Some(upload) = uploads.join_next().await {
            self.uploaded(Some(upload))?;
        }

        let outboard = hasher.finish();
        let digest = *outboard.digest();
        let object = |kind, bytes| NewObject { kind, digest, bytes };
        let mut stages = vec![self.chunk_objects(batch).await?];
        if chunks.len() < 2 {
            chunks.clear();
        } else {
            stages.push(vec![object(ObjectKind::Outboard, outboard.encode())]);
        }
        // What says that the blob is there: the last of its objects.
        stages.push(vec![object(ObjectKind::Blob, encode_chunk_list(&chunks))]);
        self.create(stages).await?;
        let proof = Proof::new(outboard, chunks);
        let stat = proof.stat();
        if !stat.chunks.is_empty() {
            self.proofs.insert(digest, Arc::new(proof));
        }
        Ok(stat)
    }

    async fn put_many(&self, blobs: Vec<Blob>) -> Result<(), BlobError> {
        for blob in &blobs {
            check_small(blob.digest(), blob.bytes().len() as u64)?;
        }
        let list = |blob: &Blob| NewObject {
            kind: ObjectKind::Blob,
            digest: *blob.digest(),
            bytes: Bytes::new(),
        };
        let lists = blobs.iter().map(list).collect();
        let chunks = blobs.into_iter().filter(|blob| !blob.bytes().is_empty());
        let chunks = chunks.map(|blob| (*blob.digest(), blob.into_bytes())).collect();
        let chunks = self.chunk_objects(chunks).await?;
        self.create(vec![chunks, lists]).await
    }

    fn read_local(&self, _: &Digest, _: ByteRange) -> Option<Result<Bytes, BlobError>> {
        None
    }

    fn lend(&self, _: &Digest) -> Option<File> {
        None
    }

    fn keep_whole(&self, _: &Digest) {}
}

impl fmt::Display for ObjectStoreBlobService {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.base.fmt(f)
    }
}

impl fmt::Debug for ObjectStoreBlobService {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ObjectStoreBlobService({})", self.base)
    }
}

#[cfg(test)]
mod tests;
