//! What remote backends know of a blob once it is proven: its size, its chunks and what verifies
//! its ranges. How bytes are fetched is not known here.

use std::{future::Future, sync::Arc};

use bytes::Bytes;
use quick_cache::{Weighter, sync::Cache};

use super::SMALL_BLOB_MAX;
use crate::{
    BlobError, BlobStat, ChunkMeta, Digest,
    outboard::{GROUP_LEN, Outboard, OutboardHasher},
};

/// The memory that one backend's proofs may take, in bytes.
const PROOFS_BYTES: u64 = 32 * 1024 * 1024;

/// What a proof is expected to take, in bytes: most are of small blobs.
const PROOF_BYTES: u64 = 256;

/// The largest blob without a chunk list that is read to prove it, in bytes: a sender that never
/// ends is told from a large blob.
const UNLISTED_MAX: u64 = 64 * 1024 * 1024 * 1024;

/// What verifies a blob's ranges, and the blob itself where it is small and was read to prove it.
#[derive(Debug, Clone)]
pub(crate) struct Proof {
    pub(crate) outboard: Arc<Outboard>,
    /// At least two, or none.
    pub(crate) chunks: Arc<Vec<ChunkMeta>>,
    pub(crate) whole: Option<Bytes>,
}

impl Proof {
    pub(crate) fn new(outboard: Outboard, chunks: Vec<ChunkMeta>) -> Self {
        Self { outboard: Arc::new(outboard), chunks: Arc::new(chunks), whole: None }
    }

    /// The proof of the empty blob.
    pub(crate) fn empty() -> Self {
        Self::new(OutboardHasher::new().finish(), Vec::new())
    }

    pub(crate) fn size(&self) -> u64 {
        self.outboard.size()
    }

    pub(crate) fn stat(&self) -> BlobStat {
        let several = !self.chunks.is_empty() || self.size() > GROUP_LEN as u64;
        BlobStat {
            digest: *self.outboard.digest(),
            size: self.size(),
            chunks: self.chunks.to_vec(),
            outboard: several.then(|| (*self.outboard).clone()),
        }
    }
}

/// The proofs used last.
#[derive(Debug)]
pub(crate) struct ProofCache(Cache<Digest, Arc<Proof>, ProofWeight>);

#[derive(Debug, Clone)]
struct ProofWeight;

impl Weighter<Digest, Arc<Proof>> for ProofWeight {
    fn weight(&self, _: &Digest, proof: &Arc<Proof>) -> u64 {
        let groups = proof.size().div_ceil(GROUP_LEN as u64) * 32;
        let chunks = (proof.chunks.len() * size_of::<ChunkMeta>()) as u64;
        let whole = proof.whole.as_ref().map_or(0, |bytes| bytes.len() as u64);
        PROOF_BYTES + groups + chunks + whole
    }
}

impl Default for ProofCache {
    fn default() -> Self {
        let items = (PROOFS_BYTES / PROOF_BYTES) as usize;
        Self(Cache::with_weighter(items, PROOFS_BYTES, ProofWeight))
    }
}

impl ProofCache {
    pub(crate) fn get(&self, digest: &Digest) -> Option<Arc<Proof>> {
        self.0.get(digest)
    }

    pub(crate) fn insert(&self, digest: Digest, proof: Arc<Proof>) {
        self.0.insert(digest, proof);
    }

    /// The proof of a blob, made by `make` if it is not known. Those who ask for one blob at once
    /// wait for one of them to make it.
    pub(crate) async fn get_or_make(
        &self,
        digest: &Digest,
        make: impl Future<Output = Result<Arc<Proof>, BlobError>>,
    ) -> Result<Arc<Proof>, BlobError> {
        self.0.get_or_insert_async(digest, make).await
    }
}

/// Reads a blob once, in order, for its proof: the bytes have to be those of its digest, and each
/// chunk in its list what the list says.
pub(crate) struct Prover {
    digest: Digest,
    chunks: Vec<ChunkMeta>,
    /// Who sends the bytes, as it displays.
    from: Arc<str>,
    hasher: OutboardHasher,
    /// The chunk that the next byte belongs to, and what it has so far.
    chunk: usize,
    chunk_hasher: blake3::Hasher,
    chunk_bytes: u64,
    size: u64,
    /// The blob so far, as long as it is a small one.
    whole: Option<Vec<u8>>,
}

impl Prover {
    pub(crate) fn new(digest: Digest, chunks: Vec<ChunkMeta>, from: Arc<str>) -> Self {
        let whole = chunks.is_empty().then(Vec::new);
        Self {
            digest,
            chunks,
            from,
            hasher: OutboardHasher::new(),
            chunk: 0,
            chunk_hasher: blake3::Hasher::new(),
            chunk_bytes: 0,
            size: 0,
            whole,
        }
    }

    fn corrupt(&self, reason: &str) -> BlobError {
        crate::verification::failed_far(&self.from);
        BlobError::Corrupt { digest: self.digest, reason: format!("{}: {reason}", self.from) }
    }

    /// Takes the blob's next bytes.
    pub(crate) fn update(&mut self, mut bytes: &[u8]) -> Result<(), BlobError> {
        self.hasher.update(bytes);
        self.size += bytes.len() as u64;
        if self.chunks.is_empty() {
            if self.size > UNLISTED_MAX {
                return Err(self.corrupt("it does not end"));
            }
            if self.size > SMALL_BLOB_MAX as u64 {
                self.whole = None;
            }
            if let Some(whole) = &mut self.whole {
                whole.extend_from_slice(bytes);
            }
            return Ok(());
        }
        while !bytes.is_empty() {
            let Some(chunk) = self.chunks.get(self.chunk) else {
                return Err(self.corrupt("it is longer than its chunk list says"));
            };
            let left = chunk.size - self.chunk_bytes;
            let (now, later) = bytes.split_at(left.min(bytes.len() as u64) as usize);
            self.chunk_hasher.update(now);
            self.chunk_bytes += now.len() as u64;
            if self.chunk_bytes == chunk.size {
                if Digest::from(self.chunk_hasher.finalize()) != chunk.digest {
                    let reason = format!("its chunk list is wrong at chunk {}", chunk.digest);
                    return Err(self.corrupt(&reason));
                }
                self.chunk_hasher.reset();
                self.chunk_bytes = 0;
                self.chunk += 1;
            }
            bytes = later;
        }
        Ok(())
    }

    /// Ends the blob.
    pub(crate) fn finish(mut self) -> Result<Proof, BlobError> {
        if self.chunk < self.chunks.len() {
            return Err(self.corrupt("it is shorter than its chunk list says"));
        }
        let outboard = std::mem::take(&mut self.hasher).finish();
        if *outboard.digest() != self.digest {
            return Err(self.corrupt(&format!("its bytes are those of {}", outboard.digest())));
        }
        let whole = self.whole.take().map(Bytes::from);
        Ok(Proof { whole, ..Proof::new(outboard, self.chunks) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conformance::content;

    #[test]
    fn a_blob_of_several_groups_is_told_with_its_proof() {
        for (size, is_proven) in [(1, false), (GROUP_LEN, false), (GROUP_LEN + 1, true)] {
            let mut hasher = OutboardHasher::new();
            hasher.update(&content("blob", size));
            let stat = Proof::new(hasher.finish(), Vec::new()).stat();
            assert_eq!((stat.size, stat.outboard.is_some()), (size as u64, is_proven));
        }
    }
}
