//! Blobs of another process, over gRPC. A peer is never believed: what it sends is verified
//! before it is handed on. Whether it is cairn or speaks the wire of Snix alone is found out at the
//! first call.

use std::{
    fmt,
    fs::File,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use async_trait::async_trait;
use bytes::Bytes;
use cairn_proto::{
    cairn::v1::{self as cairn, blob_service_client::BlobServiceClient as CairnClient},
    snix::castore::v1::{self as snix, blob_service_client::BlobServiceClient as SnixClient},
};
use futures::{StreamExt as _, TryStreamExt as _, stream};
use tonic::{Code, Status};

use super::{
    HAS_MANY_DIGESTS, READ_MANY_BLOBS, check_count, check_small,
    proof::{Proof, ProofCache, Prover},
    status::from_status,
};
use crate::{
    Blob, BlobError, BlobService, BlobStat, ByteRange, ChunkMeta, Digest, Packed, Packing,
    blob_service::{BlobServiceExt as _, BlobSource, BlobStream},
    chunking::CHUNK_MIN,
    grpc::{FAN_OUT, GrpcPeer, MESSAGE_MAX, PIECE_LEN, PeerChannel, RETRIES, back_off},
    outboard::{Outboard, OutboardHasher, verify::covering},
};

mod reading;
mod storing;

/// A peer's blobs. Clones share the connection and what is known of the blobs.
#[derive(Clone)]
pub struct GrpcBlobService {
    peer: GrpcPeer,
    /// The peer has nothing of `cairn.v1`.
    plain: Arc<AtomicBool>,
    /// The peer has said that it takes pieces in zstd frames.
    takes_zstd: Arc<AtomicBool>,
    proofs: Arc<ProofCache>,
}

/// What a peer says of a blob.
struct Description {
    chunks: Vec<ChunkMeta>,
    /// The blob's size and encoded proof, from a peer that tells them.
    sized: Option<(u64, Bytes)>,
}

impl GrpcBlobService {
    /// The blobs of this peer. Nothing is sent yet.
    pub fn new(peer: GrpcPeer) -> Self {
        Self { peer, plain: Arc::default(), takes_zstd: Arc::default(), proofs: Arc::default() }
    }

    fn snix(&self) -> SnixClient<PeerChannel> {
        let client = SnixClient::new(self.peer.channel()).max_decoding_message_size(MESSAGE_MAX);
        crate::compressed!(self.peer, client)
    }

    fn cairn(&self) -> CairnClient<PeerChannel> {
        crate::compressed!(self.peer, self.cairn_by_pieces())
    }

    /// For what comes in pieces, each of which says whether it is compressed.
    fn cairn_by_pieces(&self) -> CairnClient<PeerChannel> {
        CairnClient::new(self.peer.channel()).max_decoding_message_size(MESSAGE_MAX)
    }

    /// Whether pieces are to be sent in zstd frames.
    fn sends_zstd(&self) -> bool {
        self.peer.is_far() && self.takes_zstd.load(Ordering::Relaxed)
    }

    /// What `cairn.v1` answers; `None` if the peer does not have it, which is remembered.
    async fn extended<T>(
        &self,
        answer: impl Future<Output = Result<T, Status>>,
    ) -> Result<Option<T>, Status> {
        if self.plain.load(Ordering::Relaxed) {
            return Ok(None);
        }
        match answer.await {
            Err(status) if status.code() == Code::Unimplemented => {
                self.plain.store(true, Ordering::Relaxed);
                Ok(None)
            }
            answer => answer.map(Some),
        }
    }

    fn error(&self, status: Status, asked: Option<&Digest>, what: &'static str) -> BlobError {
        from_status(status, self.peer.url(), asked, what)
    }

    fn corrupt(&self, digest: &Digest, reason: &str) -> BlobError {
        crate::verification::failed_far(self.peer.url());
        BlobError::Corrupt { digest: *digest, reason: format!("{}: {reason}", self.peer) }
    }

    /// Asks the peer about a blob. Nothing of the answer is verified but that it is one.
    async fn ask(&self, digest: &Digest) -> Result<Option<Description>, BlobError> {
        let what = "tell a blob's size and chunks";
        let request = cairn::StatRequest { digest: (*digest).into() };
        let answer = self.extended(self.peer.call(|| {
            let (mut client, request) = (self.cairn(), request.clone());
            async move { client.stat(request).await }
        }));
        match answer.await {
            Ok(Some(answer)) => {
                let chunks = answer.chunks.iter().map(|chunk| (&chunk.digest, chunk.size));
                let chunks = self.chunks(digest, chunks)?;
                let sized = Some((answer.size, answer.outboard));
                return Ok(Some(Description { chunks, sized }));
            }
            Ok(None) => {}
            Err(status) if status.code() == Code::NotFound => return Ok(None),
            Err(status) => return Err(self.error(status, Some(digest), what)),
        }
        let request =
            snix::StatBlobRequest { digest: (*digest).into(), send_chunks: true, send_bao: false };
        let answer = self.peer.call(|| {
            let (mut client, request) = (self.snix(), request.clone());
            async move { client.stat(request).await }
        });
        match answer.await {
            Ok(answer) => {
                let chunks = answer.chunks.iter().map(|chunk| (&chunk.digest, chunk.size));
                let chunks = self.chunks(digest, chunks)?;
                Ok(Some(Description { chunks, sized: None }))
            }
            Err(status) if status.code() == Code::NotFound => Ok(None),
            Err(status) => Err(self.error(status, Some(digest), what)),
        }
    }

    /// Asks the peer for a blob's size, chunks and proof. Where it has no proof, the blob is read
    /// once to make one.
    async fn describe(&self, digest: &Digest) -> Result<Option<Proof>, BlobError> {
        if *digest == Digest::EMPTY {
            return Ok(Some(Proof::empty()));
        }
        let Some(Description { chunks, sized }) = self.ask(digest).await? else {
            return Ok(None);
        };
        let Some((size, outboard)) = sized else {
            return match self.proofs.get(digest) {
                Some(known) => Ok(Some((*known).clone())),
                None => self.prove(digest, chunks).await.map(Some),
            };
        };
        self.check_chunks(digest, size, &chunks)?;
        match Outboard::parse(*digest, size, &outboard) {
            Ok(outboard) => Ok(Some(Proof::new(outboard, chunks))),
            Err(_) if outboard.is_empty() => self.prove(digest, chunks).await.map(Some),
            Err(error) => Err(self.corrupt(digest, &error.to_string())),
        }
    }

    fn check_chunks(
        &self,
        digest: &Digest,
        size: u64,
        chunks: &[ChunkMeta],
    ) -> Result<(), BlobError> {
        let whole = chunks.iter().try_fold(0u64, |sum, chunk| sum.checked_add(chunk.size));
        if chunks.is_empty() || whole == Some(size) {
            return Ok(());
        }
        Err(self.corrupt(digest, "its chunks are not of its size"))
    }

    /// The chunks in an answer. That they make up the blob is not known yet.
    fn chunks<'a>(
        &self,
        blob: &Digest,
        chunks: impl Iterator<Item = (&'a Bytes, u64)>,
    ) -> Result<Vec<ChunkMeta>, BlobError> {
        let chunk = |(digest, size): (&Bytes, u64)| match Digest::try_from(&**digest) {
            Ok(digest) if size > 0 => Ok(ChunkMeta { digest, size }),
            _ => Err(self.corrupt(blob, "its chunk list has something that is no chunk")),
        };
        let chunks: Vec<_> = chunks.map(chunk).collect::<Result<_, _>>()?;
        // A list of one says no more than none.
        Ok(if chunks.len() > 1 { chunks } else { Vec::new() })
    }

    /// Reads a blob once, to learn what proves its ranges.
    async fn prove(&self, digest: &Digest, chunks: Vec<ChunkMeta>) -> Result<Proof, BlobError> {
        let mut prover = Prover::new(*digest, chunks.clone(), self.peer.url().clone());
        let mut bytes = self.resumed(*digest, Arc::new(chunks), 0..u64::MAX, None);
        while let Some(piece) = bytes.try_next().await? {
            prover.update(&piece)?;
        }
        prover.finish()
    }

    /// What is known of a blob, or is now asked for. Those who ask at once wait for one answer.
    async fn proof(&self, digest: &Digest) -> Result<Arc<Proof>, BlobError> {
        let proof = async {
            let proof = self.describe(digest).await?;
            proof.map(Arc::new).ok_or(BlobError::NotFound(*digest))
        };
        self.proofs.get_or_make(digest, proof).await
    }
}

#[async_trait]
impl BlobService for GrpcBlobService {
    async fn stat(&self, digest: &Digest) -> Result<Option<BlobStat>, BlobError> {
        match self.proof(digest).await {
            Ok(proof) => Ok(Some(proof.stat())),
            Err(BlobError::NotFound(_)) => Ok(None),
            Err(error) => Err(error),
        }
    }

    async fn has_many(&self, digests: &[Digest]) -> Result<Vec<bool>, BlobError> {
        check_count(digests.len(), HAS_MANY_DIGESTS)?;
        if digests.is_empty() {
            return Ok(Vec::new());
        }
        let what = "tell which blobs it has";
        let request = cairn::HasManyRequest {
            digests: digests.iter().map(|&digest| digest.into()).collect(),
        };
        let answer = self.extended(self.peer.call(|| {
            let (mut client, request) = (self.cairn(), request.clone());
            async move { client.has_many(request).await }
        }));
        match answer.await.map_err(|status| self.error(status, None, what))? {
            Some(answer) if answer.present.len() == digests.len() => {
                self.takes_zstd.store(answer.takes_zstd, Ordering::Relaxed);
                let present = digests.iter().zip(answer.present);
                Ok(present.map(|(digest, has)| has || *digest == Digest::EMPTY).collect())
            }
            Some(_) => {
                let message = "the peer answered for another number of blobs than it was asked for";
                Err(self.error(Status::internal(message), None, what))
            }
            None => {
                let has = |digest: Digest| async move {
                    if digest == Digest::EMPTY {
                        return Ok(true);
                    }
                    let request = snix::StatBlobRequest {
                        digest: digest.into(),
                        send_chunks: false,
                        send_bao: false,
                    };
                    let answer = self.peer.call(|| {
                        let (mut client, request) = (self.snix(), request.clone());
                        async move { client.stat(request).await }
                    });
                    match answer.await {
                        Ok(_) => Ok(true),
                        Err(status) if status.code() == Code::NotFound => Ok(false),
                        Err(status) => Err(self.error(status, Some(&digest), what)),
                    }
                };
                let asked: Vec<_> = digests.iter().map(|&digest| has(digest)).collect();
                stream::iter(asked).buffered(FAN_OUT).try_collect().await
            }
        }
    }

    async fn read(&self, digest: &Digest, range: ByteRange) -> Result<BlobStream, BlobError> {
        if *digest == Digest::EMPTY {
            return Ok(stream::empty().boxed());
        }
        let known = self.proofs.get(digest);
        if known.is_none() && !self.plain.load(Ordering::Relaxed) && range.length > 0 {
            // The bytes are asked for at once with what proves them: one round trip, not two.
            let end = range.offset.saturating_add(range.length);
            let groups = covering(&(range.offset..end));
            let (proof, first) =
                tokio::join!(self.proof(digest), self.open_extended(*digest, groups));
            let proof = proof?;
            return Ok(self.verified(&proof, range.within(proof.size()), first.ok().flatten()));
        }
        let proof = match known {
            Some(proof) => proof,
            None => self.proof(digest).await?,
        };
        Ok(self.verified(&proof, range.within(proof.size()), None))
    }

    async fn read_many(&self, digests: &[Digest]) -> Result<Vec<Option<Bytes>>, BlobError> {
        check_count(digests.len(), READ_MANY_BLOBS)?;
        let one = |digest: &Digest, packed| self.unpacked(digest, packed);
        match self.read_many_extended(digests, self.peer.is_far(), one).await? {
            Some(blobs) => Ok(blobs),
            None => self.read_many_small(digests).await,
        }
    }

    async fn read_many_packed(
        &self,
        digests: &[Digest],
        packing: Packing,
    ) -> Result<Vec<Option<Packed>>, BlobError> {
        check_count(digests.len(), READ_MANY_BLOBS)?;
        let takes_zstd = packing == Packing::All || self.peer.is_far();
        match self.read_many_extended(digests, takes_zstd, |_, packed| Ok(packed)).await? {
            Some(blobs) => Ok(blobs),
            None => self.read_many_and_pack(digests, packing).await,
        }
    }

    async fn put(&self, source: BlobSource) -> Result<BlobStat, BlobError> {
        let hasher = Arc::new(parking_lot::Mutex::new(OutboardHasher::new()));
        let hashed = hasher.clone();
        let pieces = source.map_ok(move |mut bytes| {
            hashed.lock().update(&bytes);
            stream::iter(std::iter::from_fn(move || {
                let piece = bytes.split_to(bytes.len().min(PIECE_LEN));
                (!piece.is_empty()).then_some(Ok(piece))
            }))
        });
        let stored = self.send(pieces.try_flatten().boxed(), None).await?;
        let outboard = std::mem::take(&mut *hasher.lock()).finish();
        let (digest, size) = (*outboard.digest(), outboard.size());
        self.check_stored(&digest, &stored)?;
        if size <= CHUNK_MIN as u64 {
            return Ok(Proof::new(outboard, Vec::new()).stat());
        }
        let description = self.ask(&digest).await?;
        let description =
            description.ok_or_else(|| self.corrupt(&digest, "it was stored, and is not there"))?;
        self.check_chunks(&digest, size, &description.chunks)?;
        let proof = Proof::new(outboard, description.chunks);
        let stat = proof.stat();
        self.proofs.insert(digest, Arc::new(proof));
        Ok(stat)
    }

    async fn put_many(&self, blobs: Vec<Blob>) -> Result<(), BlobError> {
        for blob in &blobs {
            check_small(blob.digest(), blob.bytes().len() as u64)?;
        }
        if blobs.is_empty() || self.put_many_extended(&blobs).await?.is_some() {
            return Ok(());
        }
        let put = |blob: Blob| async move {
            let mut attempt = 0;
            let (digest, bytes) = (*blob.digest(), blob.into_bytes());
            loop {
                let pieces = stream::iter([Ok(bytes.clone())]).boxed();
                match self.send(pieces, Some(&digest)).await {
                    Ok(stored) => return self.check_stored(&digest, &stored),
                    Err(BlobError::Unavailable { .. }) if attempt < RETRIES => {
                        back_off(attempt).await;
                        attempt += 1;
                    }
                    Err(error) => return Err(error),
                }
            }
        };
        let puts: Vec<_> = blobs.into_iter().map(put).collect();
        stream::iter(puts).buffer_unordered(FAN_OUT).try_collect().await
    }

    fn read_local(&self, _: &Digest, _: ByteRange) -> Option<Result<Bytes, BlobError>> {
        None
    }

    fn lend(&self, _: &Digest) -> Option<File> {
        None
    }

    fn keep_whole(&self, _: &Digest) {}
}

impl fmt::Display for GrpcBlobService {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.peer.fmt(f)
    }
}

impl fmt::Debug for GrpcBlobService {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "GrpcBlobService({})", self.peer)
    }
}

#[cfg(test)]
mod tests;
