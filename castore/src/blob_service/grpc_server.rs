//! A blob service offered by gRPC: the wire of Snix, and cairn's own. Nothing of a blob is held
//! but the piece that is being sent or received; listening is the affair of the daemon.

use std::{fmt, io, sync::Arc};

use async_trait::async_trait;
use bytes::Bytes;
use cairn_proto::{
    cairn::v1::{
        self as cairn,
        blob_service_server::{
            BlobService as CairnBlobService, BlobServiceServer as CairnBlobServiceServer,
        },
    },
    snix::castore::v1::{
        self as snix,
        blob_service_server::{
            BlobService as SnixBlobService, BlobServiceServer as SnixBlobServiceServer,
        },
    },
};
use futures::{
    StreamExt as _, TryStreamExt as _,
    stream::{self, BoxStream},
};
use tokio::task::spawn_blocking;
use tonic::{Request, Response, Status, Streaming};

use super::{
    HAS_MANY_DIGESTS, PUT_MANY_BYTES, READ_MANY_BLOBS, SMALL_BLOB_MAX, check_small,
    pieces::{packed, packed_in_order, plain, unpacked},
    status::to_status,
};
use crate::{
    Blob, BlobError, BlobService, ByteRange, ChunkMeta, Digest, Packing,
    blob_service::{BlobServiceExt as _, BlobStream, fresh::FreshBlobs},
    chunking::CHUNK_MAX,
    grpc::{BLOB_MESSAGE_MAX, MESSAGE_MAX, PIECE_LEN},
    grpc_server::{digest, digests, receive},
    outboard::{GROUP_LEN, Outboard, OutboardHasher},
};

/// The blobs that a server reads from its service at once to answer a request for many: together
/// at most 8 MiB.
const READ_MANY_BATCH: usize = PUT_MANY_BYTES / SMALL_BLOB_MAX;

/// How many such batches are read at the same time.
const READ_MANY_AHEAD: usize = 2;

/// The most blobs that one `PutMany` stores: their digests are the answer.
const PUT_MANY_BLOBS: usize = 65_536;

/// Answers for a blob service, in both wires.
#[derive(Clone)]
pub struct BlobServer {
    service: Arc<dyn BlobService>,
    fresh: Arc<FreshBlobs>,
}

impl BlobServer {
    /// Offers this service.
    pub fn new(service: Arc<dyn BlobService>) -> Self {
        Self { service, fresh: Arc::default() }
    }

    /// What is put, as it comes.
    pub fn fresh(&self) -> &Arc<FreshBlobs> {
        &self.fresh
    }

    async fn store(&self, blobs: Vec<Blob>) -> Result<(), Status> {
        let all_kept = self.fresh.insert(&blobs);
        self.service.put_many(blobs).await.map_err(|error| to_status(&error))?;
        if !all_kept {
            self.fresh.stored();
        }
        self.fresh.settle().await;
        Ok(())
    }

    /// Stores a stream as one blob.
    async fn store_stream<M: Send + 'static>(
        &self,
        messages: Streaming<M>,
        data: impl Fn(M) -> Result<Bytes, Status> + Send + 'static,
    ) -> Result<Digest, Status> {
        let stored = receive(messages, async |messages| {
            let bytes = messages.map(move |message| message.and_then(&data));
            let (bytes, coming) = self.fresh.coming(bytes.map_err(io::Error::other).boxed());
            let stat = self.service.put(bytes).await?;
            coming.stored(stat.digest);
            Ok(stat.digest)
        });
        stored.await.map_err(|error: BlobError| to_status(&error))
    }

    /// The tower service of `snix.castore.v1`, with the limits of its messages.
    pub fn into_snix_service(self) -> SnixBlobServiceServer<Self> {
        SnixBlobServiceServer::new(self)
            .max_decoding_message_size(BLOB_MESSAGE_MAX)
            .max_encoding_message_size(MESSAGE_MAX)
    }

    /// The tower service of `cairn.v1`, with the limits of its messages.
    pub fn into_cairn_service(self) -> CairnBlobServiceServer<Self> {
        CairnBlobServiceServer::new(self)
            .max_decoding_message_size(BLOB_MESSAGE_MAX)
            .max_encoding_message_size(MESSAGE_MAX)
    }

    async fn stat_known(&self, digest: &Digest) -> Result<super::BlobStat, Status> {
        let stat = self.service.stat(digest).await.map_err(|error| to_status(&error))?;
        stat.ok_or_else(|| to_status(&BlobError::NotFound(*digest)))
    }
}

impl fmt::Debug for BlobServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BlobServer({})", self.service)
    }
}

/// A blob's bytes in pieces that fit into messages.
fn pieces(bytes: BlobStream) -> BoxStream<'static, Result<Bytes, Status>> {
    let pieces = bytes.map_ok(|mut bytes| {
        stream::iter(std::iter::from_fn(move || {
            let piece = bytes.split_to(bytes.len().min(PIECE_LEN));
            (!piece.is_empty()).then_some(Ok(piece))
        }))
    });
    pieces.try_flatten().map_err(|error: BlobError| to_status(&error)).boxed()
}

#[async_trait]
impl SnixBlobService for BlobServer {
    async fn stat(
        &self,
        request: Request<snix::StatBlobRequest>,
    ) -> Result<Response<snix::StatBlobResponse>, Status> {
        let request = request.into_inner();
        let stat = self.stat_known(&digest(&request.digest)?).await?;
        let chunk = |ChunkMeta { digest, size }: ChunkMeta| snix::stat_blob_response::ChunkMeta {
            digest: digest.into(),
            size,
        };
        let chunks = match request.send_chunks {
            true => stat.chunks.into_iter().map(chunk).collect(),
            false => Vec::new(),
        };
        Ok(Response::new(snix::StatBlobResponse { chunks, bao: Bytes::new() }))
    }

    type ReadStream = BoxStream<'static, Result<snix::BlobChunk, Status>>;

    async fn read(
        &self,
        request: Request<snix::ReadBlobRequest>,
    ) -> Result<Response<Self::ReadStream>, Status> {
        let digest = digest(&request.into_inner().digest)?;
        let bytes = self.service.read(&digest, ByteRange::ALL).await;
        let bytes = bytes.map_err(|error| to_status(&error))?;
        Ok(Response::new(pieces(bytes).map_ok(|data| snix::BlobChunk { data }).boxed()))
    }

    async fn put(
        &self,
        request: Request<Streaming<snix::BlobChunk>>,
    ) -> Result<Response<snix::PutBlobResponse>, Status> {
        let stored = receive(request.into_inner(), async |messages| {
            let bytes = messages.map_ok(|chunk| chunk.data).map_err(io::Error::other);
            let (bytes, coming) = self.fresh.coming(bytes.boxed());
            let stat = self.service.put(bytes).await?;
            coming.stored(stat.digest);
            Ok(stat)
        });
        let stat = stored.await.map_err(|error: BlobError| to_status(&error))?;
        Ok(Response::new(snix::PutBlobResponse { digest: stat.digest.into() }))
    }
}

impl BlobServer {
    /// What proves the ranges of a blob of one chunk, for which a service may keep nothing. A client
    /// that gets none has the whole blob sent to make it, and then what it wanted of it.
    async fn outboard(&self, digest: &Digest) -> Result<Outboard, Status> {
        let bytes = self.service.read_to_bytes(digest, ByteRange::ALL).await;
        let bytes = bytes.map_err(|error| to_status(&error))?;
        let hashing = spawn_blocking(move || {
            let mut hasher = OutboardHasher::new();
            hasher.update(&bytes);
            hasher.finish()
        });
        hashing.await.map_err(|error| io::Error::from(error).into())
    }
}

#[async_trait]
impl CairnBlobService for BlobServer {
    async fn has_many(
        &self,
        request: Request<cairn::HasManyRequest>,
    ) -> Result<Response<cairn::HasManyResponse>, Status> {
        let digests = digests(&request.into_inner().digests, HAS_MANY_DIGESTS)?;
        let present = self.service.has_many(&digests).await;
        let present = present.map_err(|error| to_status(&error))?;
        Ok(Response::new(cairn::HasManyResponse { present, takes_zstd: true }))
    }

    async fn stat(
        &self,
        request: Request<cairn::StatRequest>,
    ) -> Result<Response<cairn::StatResponse>, Status> {
        let stat = self.stat_known(&digest(&request.into_inner().digest)?).await?;
        let chunk = |ChunkMeta { digest, size }: ChunkMeta| cairn::stat_response::Chunk {
            digest: digest.into(),
            size,
        };
        let is_one_chunk = stat.chunks.is_empty() && stat.size <= CHUNK_MAX as u64;
        let outboard = match stat.outboard {
            None if is_one_chunk && stat.size > GROUP_LEN as u64 => {
                Some(self.outboard(&stat.digest).await?)
            }
            outboard => outboard,
        };
        Ok(Response::new(cairn::StatResponse {
            size: stat.size,
            chunks: stat.chunks.into_iter().map(chunk).collect(),
            outboard: outboard.map(|outboard| outboard.encode()).unwrap_or_default(),
        }))
    }

    type ReadRangeStream = BoxStream<'static, Result<cairn::Piece, Status>>;

    async fn read_range(
        &self,
        request: Request<cairn::ReadRangeRequest>,
    ) -> Result<Response<Self::ReadRangeStream>, Status> {
        let request = request.into_inner();
        let digest = digest(&request.digest)?;
        let range = ByteRange { offset: request.offset, length: request.length };
        let bytes = self.service.read(&digest, range).await;
        let bytes = pieces(bytes.map_err(|error| to_status(&error))?);
        Ok(Response::new(match request.takes_zstd {
            true => packed_in_order(bytes).boxed(),
            false => bytes.map_ok(plain).boxed(),
        }))
    }

    type ReadManyStream = BoxStream<'static, Result<cairn::ReadManyResponse, Status>>;

    async fn read_many(
        &self,
        request: Request<cairn::ReadManyRequest>,
    ) -> Result<Response<Self::ReadManyStream>, Status> {
        let request = request.into_inner();
        let digests = digests(&request.digests, READ_MANY_BLOBS)?;
        let packing = match request {
            cairn::ReadManyRequest { takes_zstd: true, .. } => Some(Packing::All),
            cairn::ReadManyRequest { takes_stored_zstd: true, .. } => Some(Packing::Stored),
            _ => None,
        };
        let batches: Vec<_> = digests.chunks(READ_MANY_BATCH).map(<[Digest]>::to_vec).collect();
        let service = self.service.clone();
        let answers = stream::iter(batches).map(move |batch| {
            let service = service.clone();
            async move {
                let blobs = match packing {
                    Some(packing) => {
                        let blobs = service.read_many_packed(&batch, packing).await;
                        blobs.map(|blobs| pieces_of(blobs, packed))
                    }
                    None => service.read_many(&batch).await.map(|blobs| pieces_of(blobs, plain)),
                };
                let blobs = blobs.map_err(|error| to_status(&error))?;
                Ok::<_, Status>(stream::iter(read_many_responses(blobs)).map(Ok))
            }
        });
        Ok(Response::new(answers.buffered(READ_MANY_AHEAD).try_flatten().boxed()))
    }

    async fn put_many(
        &self,
        request: Request<Streaming<cairn::PutManyRequest>>,
    ) -> Result<Response<cairn::PutManyResponse>, Status> {
        let mut messages = request.into_inner();
        let mut digests = Vec::new();
        let mut batch = Vec::new();
        let mut batch_bytes = 0;
        while let Some(message) = messages.message().await? {
            let plain = message.blobs.into_iter().map(Ok);
            for bytes in plain.chain(message.packed.into_iter().map(piece)) {
                let bytes = bytes?;
                if digests.len() >= PUT_MANY_BLOBS {
                    let message = format!("a request stores at most {PUT_MANY_BLOBS} blobs");
                    return Err(Status::invalid_argument(message));
                }
                let size = bytes.len();
                let blob = Blob::new(bytes);
                check_small(blob.digest(), size as u64).map_err(|error| to_status(&error))?;
                digests.push(Bytes::from(*blob.digest()));
                if batch_bytes + size > PUT_MANY_BYTES {
                    let full = std::mem::take(&mut batch);
                    self.store(full).await?;
                    batch_bytes = 0;
                }
                batch_bytes += size;
                batch.push(blob);
            }
        }
        self.store(batch).await?;
        Ok(Response::new(cairn::PutManyResponse { digests }))
    }

    async fn put(
        &self,
        request: Request<Streaming<cairn::Piece>>,
    ) -> Result<Response<cairn::PutResponse>, Status> {
        let digest = self.store_stream(request.into_inner(), piece).await?.into();
        Ok(Response::new(cairn::PutResponse { digest }))
    }
}

/// The bytes of a piece that a client sent.
#[allow(clippy::result_large_err)]
fn piece(piece: cairn::Piece) -> Result<Bytes, Status> {
    unpacked(piece).map_err(|error| Status::invalid_argument(error.to_string()))
}

/// Those of many blobs that are there.
fn pieces_of<T>(blobs: Vec<Option<T>>, piece: fn(T) -> cairn::Piece) -> Vec<Option<cairn::Piece>> {
    blobs.into_iter().map(|blob| blob.map(piece)).collect()
}

/// Blobs in messages of at most [`PIECE_LEN`] bytes of theirs.
fn read_many_responses(blobs: Vec<Option<cairn::Piece>>) -> Vec<cairn::ReadManyResponse> {
    let mut responses = vec![cairn::ReadManyResponse::default()];
    let mut bytes = 0;
    for blob in blobs {
        let present = blob.is_some();
        let cairn::Piece { data, unpacked_size } = blob.unwrap_or_default();
        if bytes + data.len() > PIECE_LEN {
            responses.push(cairn::ReadManyResponse::default());
            bytes = 0;
        }
        bytes += data.len();
        let last = responses.last_mut().expect("there is a response from the start");
        last.blobs.push(cairn::read_many_response::Blob { present, data, unpacked_size });
    }
    responses
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{blob_service::memory::MemoryBlobService, conformance::content};

    #[tokio::test]
    async fn what_proves_a_blob_of_one_chunk_is_told() {
        let blobs = Arc::new(MemoryBlobService::new());
        let server = BlobServer::new(blobs.clone());
        let mut proven = 0;
        for number in 0..10 {
            let bytes = content(&format!("blob {number}"), GROUP_LEN + 1000);
            let digest = blobs.put_bytes(bytes).await.unwrap();
            let request = Request::new(cairn::StatRequest { digest: digest.into() });
            let stat = CairnBlobService::stat(&server, request).await.unwrap().into_inner();
            Outboard::parse(digest, stat.size, &stat.outboard).unwrap();
            proven += usize::from(stat.chunks.is_empty());
        }
        assert!(proven > 0, "none of them is one chunk");
    }
}
