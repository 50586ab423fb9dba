//! How bytes are read from a peer, by the means that it has: what is received is verified before it is
//! handed on.

use std::{ops::Range, sync::Arc};

use async_stream::try_stream;
use bytes::Bytes;
use cairn_proto::{cairn::v1 as cairn, snix::castore::v1 as snix};
use futures::{StreamExt as _, TryStreamExt as _, stream};
use tonic::{Status, Streaming};

use super::{GrpcBlobService, check_small};
use crate::{
    Blob, BlobError, ChunkMeta, Digest, Packed,
    blob_service::{
        BlobStream,
        pieces::{InvalidPiece, of_piece, unpacked},
        proof::Proof,
    },
    grpc::{FAN_OUT, RETRIES, back_off},
    outboard::verify::{covering, verified_in_pieces},
};

impl GrpcBlobService {
    /// The verified bytes of a range that lies within the blob. `first` is the connection to begin
    /// with, where there is one.
    pub(super) fn verified(
        &self,
        proof: &Proof,
        range: Range<u64>,
        first: Option<BlobStream>,
    ) -> BlobStream {
        if range.is_empty() {
            return stream::empty().boxed();
        }
        if let Some(whole) = &proof.whole {
            let bytes = whole.slice(range.start as usize..range.end as usize);
            return stream::iter([Ok(bytes)]).boxed();
        }
        let groups = covering(&range);
        let groups = groups.start..groups.end.min(proof.size());
        let digest = *proof.outboard.digest();
        let bytes = self.resumed(digest, proof.chunks.clone(), groups, first);
        verified_in_pieces(proof.outboard.clone(), range, bytes, self.peer.url().clone())
    }

    /// The peer's bytes of a range, not verified. A connection that breaks is made again, and
    /// goes on where it was.
    pub(super) fn resumed(
        &self,
        digest: Digest,
        chunks: Arc<Vec<ChunkMeta>>,
        range: Range<u64>,
        mut first: Option<BlobStream>,
    ) -> BlobStream {
        let service = self.clone();
        try_stream! {
            let mut at = range.start;
            let mut attempt = 0;
            'connection: while at < range.end {
                let mut bytes = match first.take() {
                    Some(bytes) => bytes,
                    None => service.open(digest, &chunks, at..range.end).await?,
                };
                loop {
                    match bytes.next().await {
                        Some(Ok(piece)) => {
                            at = at.saturating_add(piece.len() as u64);
                            attempt = 0;
                            yield piece;
                        }
                        Some(Err(BlobError::Unavailable { .. })) if attempt < RETRIES => {
                            back_off(attempt).await;
                            attempt += 1;
                            continue 'connection;
                        }
                        Some(Err(error)) => Err(error)?,
                        None => break 'connection,
                    }
                }
            }
        }
        .boxed()
    }

    /// Starts to read a range, by the means that the peer has.
    async fn open(
        &self,
        digest: Digest,
        chunks: &[ChunkMeta],
        range: Range<u64>,
    ) -> Result<BlobStream, BlobError> {
        match self.open_extended(digest, range.clone()).await? {
            Some(bytes) => Ok(bytes),
            None if chunks.is_empty() => self.open_plain(digest, range.start).await,
            None => Ok(self.open_chunks(digest, chunks, range)),
        }
    }

    /// A range by `cairn.v1`, or `None` if the peer does not have it.
    pub(super) async fn open_extended(
        &self,
        digest: Digest,
        range: Range<u64>,
    ) -> Result<Option<BlobStream>, BlobError> {
        let request = cairn::ReadRangeRequest {
            digest: digest.into(),
            offset: range.start,
            length: range.end - range.start,
            takes_zstd: self.peer.is_far(),
        };
        let answer = self.extended(self.peer.call(|| {
            let (mut client, request) = (self.cairn_by_pieces(), request.clone());
            async move { client.read_range(request).await }
        }));
        match answer.await {
            Ok(Some(messages)) => {
                let data =
                    |piece| unpacked(piece).map_err(|error| Status::data_loss(error.to_string()));
                Ok(Some(self.receive(digest, messages, data)))
            }
            Ok(None) => Ok(None),
            Err(status) => Err(self.error(status, Some(&digest), "read a range of a blob")),
        }
    }

    /// A blob or chunk from an offset on, by the plain wire: what is before it comes as well, and
    /// is left out.
    async fn open_plain(&self, digest: Digest, offset: u64) -> Result<BlobStream, BlobError> {
        let request = snix::ReadBlobRequest { digest: digest.into() };
        let messages = self.peer.call(|| {
            let (mut client, request) = (self.snix(), request.clone());
            async move { client.read(request).await }
        });
        let messages = messages.await;
        let messages =
            messages.map_err(|status| self.error(status, Some(&digest), "read a blob"))?;
        let mut skipped = offset;
        let bytes = self.receive(digest, messages, |message: snix::BlobChunk| Ok(message.data));
        let rest = bytes.try_filter_map(move |mut piece| {
            let now = skipped.min(piece.len() as u64);
            skipped -= now;
            let rest = piece.split_off(now as usize);
            std::future::ready(Ok((!rest.is_empty()).then_some(rest)))
        });
        Ok(rest.boxed())
    }

    /// A range of a blob by the plain wire, out of its chunks.
    fn open_chunks(&self, digest: Digest, chunks: &[ChunkMeta], range: Range<u64>) -> BlobStream {
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
        try_stream! {
            for (chunk, skipped) in wanted {
                let unlisted = |how| {
                    service.corrupt(&digest, &format!("chunk {} is {how} than listed", chunk.digest))
                };
                let mut bytes = service.open_plain(chunk.digest, skipped).await?;
                let mut left = chunk.size - skipped;
                while let Some(piece) = bytes.try_next().await? {
                    let rest = left.checked_sub(piece.len() as u64);
                    left = rest.ok_or_else(|| unlisted("longer"))?;
                    yield piece;
                }
                if left > 0 {
                    Err(unlisted("shorter"))?;
                }
            }
        }
        .boxed()
    }

    fn receive<M: Send + 'static>(
        &self,
        digest: Digest,
        messages: Streaming<M>,
        data: impl Fn(M) -> Result<Bytes, Status> + Send + 'static,
    ) -> BlobStream {
        let service = self.clone();
        let pieces = self.peer.receive(messages, move |message| {
            let data = data(message);
            (!data.as_ref().is_ok_and(Bytes::is_empty)).then_some(data)
        });
        let error = move |status| service.error(status, Some(&digest), "read a blob");
        pieces.map(|piece| piece.flatten()).map_err(error).boxed()
    }

    /// Small blobs by `cairn.v1`, each made by `one` of what came for it. `None` if the peer does not
    /// have it.
    pub(super) async fn read_many_extended<T>(
        &self,
        digests: &[Digest],
        takes_zstd: bool,
        one: impl Fn(&Digest, Packed) -> Result<T, BlobError>,
    ) -> Result<Option<Vec<Option<T>>>, BlobError> {
        let what = "read many blobs";
        let mut read = Vec::with_capacity(digests.len());
        let mut attempt = 0;
        while read.len() < digests.len() {
            let asked = &digests[read.len()..];
            let request = cairn::ReadManyRequest {
                digests: asked.iter().map(|&digest| digest.into()).collect(),
                takes_zstd,
                takes_stored_zstd: true,
            };
            let messages = self.extended(self.peer.call(|| {
                let (mut client, request) = (self.cairn_by_pieces(), request.clone());
                async move { client.read_many(request).await }
            }));
            let messages = messages.await.map_err(|status| self.error(status, None, what))?;
            let Some(messages) = messages else { return Ok(None) };
            let mut blobs = self.peer.receive(messages, |message: cairn::ReadManyResponse| {
                (!message.blobs.is_empty()).then_some(message.blobs)
            });
            let before = read.len();
            loop {
                let blobs = match blobs.next().await {
                    None => break,
                    Some(Ok(blobs)) => blobs,
                    Some(Err(status)) => match self.error(status, None, what) {
                        BlobError::Unavailable { .. } if attempt < RETRIES => break,
                        error => return Err(error),
                    },
                };
                for blob in blobs {
                    let Some(digest) = digests.get(read.len()) else {
                        let message = "the peer sent more blobs than it was asked for";
                        return Err(self.error(Status::internal(message), None, what));
                    };
                    let packed = self.one_of_many(digest, blob)?;
                    read.push(packed.map(|packed| one(digest, packed)).transpose()?);
                }
            }
            if read.len() > before {
                attempt = 0;
            } else if attempt < RETRIES {
                back_off(attempt).await;
                attempt += 1;
            } else {
                let message = "the peer sent none of the blobs that it was asked for";
                return Err(self.error(Status::unavailable(message), None, what));
            }
        }
        Ok(Some(read))
    }

    /// What came for a small blob: not more than one has.
    fn one_of_many(
        &self,
        digest: &Digest,
        blob: cairn::read_many_response::Blob,
    ) -> Result<Option<Packed>, BlobError> {
        let cairn::read_many_response::Blob { present, data, unpacked_size } = blob;
        if !present {
            return Ok((*digest == Digest::EMPTY).then(|| Packed::Plain(Bytes::new())));
        }
        let packed = of_piece(cairn::Piece { data, unpacked_size });
        let packed = packed.map_err(|error| self.corrupt(digest, &error.to_string()))?;
        check_small(digest, packed.size() as u64)?;
        Ok(Some(packed))
    }

    /// The bytes of what came for a blob.
    pub(super) fn unpacked(&self, digest: &Digest, packed: Packed) -> Result<Bytes, BlobError> {
        let bytes = packed.unpack();
        let bytes = bytes.ok_or_else(|| self.corrupt(digest, &InvalidPiece.to_string()))?;
        match Blob::verified(*digest, bytes) {
            Some(blob) => Ok(blob.into_bytes()),
            None => Err(self.corrupt(digest, "other bytes came for it")),
        }
    }

    /// Small blobs by the plain wire.
    pub(super) async fn read_many_small(
        &self,
        digests: &[Digest],
    ) -> Result<Vec<Option<Bytes>>, BlobError> {
        let asked: Vec<_> = digests.iter().map(|&digest| self.read_small(digest)).collect();
        stream::iter(asked).buffered(FAN_OUT).try_collect().await
    }

    /// A small blob by the plain wire.
    async fn read_small(&self, digest: Digest) -> Result<Option<Bytes>, BlobError> {
        if digest == Digest::EMPTY {
            return Ok(Some(Bytes::new()));
        }
        let mut pieces = self.resumed(digest, Arc::default(), 0..u64::MAX, None);
        let mut bytes = Vec::new();
        loop {
            match pieces.try_next().await {
                Ok(Some(piece)) => bytes.extend_from_slice(&piece),
                Ok(None) => break,
                Err(BlobError::NotFound(_)) => return Ok(None),
                Err(error) => return Err(error),
            }
            check_small(&digest, bytes.len() as u64)?;
        }
        match Blob::verified(digest, bytes.into()) {
            Some(blob) => Ok(Some(blob.into_bytes())),
            None => Err(self.corrupt(&digest, "other bytes came for it")),
        }
    }
}
