//! How blobs are sent to a peer to be stored: what it says that it has stored is what was sent.

use bytes::Bytes;
use cairn_proto::{cairn::v1 as cairn, snix::castore::v1 as snix};
use futures::{
    StreamExt as _, TryStreamExt as _,
    stream::{self, BoxStream},
};
use tonic::{Response, Status};

use super::GrpcBlobService;
use crate::{
    Blob, BlobError, Digest, Packed,
    blob_service::{
        SMALL_BLOB_MAX,
        pieces::{packed, packed_in_order, plain},
    },
    grpc::{PIECE_LEN, SendError},
};

/// The bytes in a message of blobs to be stored, at most but for a last one.
const PUT_MANY_MESSAGE: usize = PIECE_LEN - SMALL_BLOB_MAX;

const PUT: &str = "/snix.castore.v1.BlobService/Put";
const PUT_PACKED: &str = "/cairn.v1.BlobService/Put";
const PUT_MANY: &str = "/cairn.v1.BlobService/PutMany";

impl GrpcBlobService {
    /// Sends a stream to be stored as one blob, and gives the digest that the peer answers.
    pub(super) async fn send(
        &self,
        pieces: BoxStream<'static, std::io::Result<Bytes>>,
        asked: Option<&Digest>,
    ) -> Result<Bytes, BlobError> {
        let answer = if self.sends_zstd() {
            let answer = self.peer.send(PUT_PACKED, packed_in_order(pieces).boxed()).await;
            answer.map(|cairn::PutResponse { digest }| digest)
        } else {
            let messages = pieces.map_ok(|data| snix::BlobChunk { data }).boxed();
            let answer = self.peer.send(PUT, messages).await;
            answer.map(|snix::PutBlobResponse { digest }| digest)
        };
        match answer {
            Ok(digest) => Ok(digest),
            Err(SendError::Source(error)) => Err(BlobError::Source(error)),
            Err(SendError::Status(status)) => Err(self.error(status, asked, "store a blob")),
        }
    }

    pub(super) async fn put_many_extended(&self, blobs: &[Blob]) -> Result<Option<()>, BlobError> {
        let what = "store many blobs";
        let sends_zstd = self.sends_zstd();
        let bytes = blobs.iter().map(|blob| blob.bytes().clone());
        let pieces: Vec<_> = match sends_zstd {
            true => {
                let packing = Packed::pack_many(bytes.map(Some).collect()).await;
                let failed = |error| self.error(std::io::Error::from(error).into(), None, what);
                packing.map_err(failed)?.into_iter().flatten().map(packed).collect()
            }
            false => bytes.map(plain).collect(),
        };
        let mut messages = vec![cairn::PutManyRequest::default()];
        let mut message_bytes = 0;
        for piece in pieces {
            if message_bytes > PUT_MANY_MESSAGE {
                messages.push(cairn::PutManyRequest::default());
                message_bytes = 0;
            }
            message_bytes += piece.data.len();
            let last = messages.last_mut().expect("there is a message from the start");
            match sends_zstd {
                true => last.packed.push(piece),
                false => last.blobs.push(piece.data),
            }
        }
        let answer = self.extended(self.peer.call(|| {
            let (service, messages) = (self.clone(), messages.clone());
            async move {
                let messages = stream::iter(messages).map(Ok::<_, Status>).boxed();
                let answer: Result<cairn::PutManyResponse, _> =
                    service.peer.send(PUT_MANY, messages).await;
                match answer {
                    Ok(answer) => Ok(Response::new(answer)),
                    Err(SendError::Source(status) | SendError::Status(status)) => Err(status),
                }
            }
        }));
        let answer = answer.await.map_err(|status| self.error(status, None, what))?;
        let Some(answer) = answer else { return Ok(None) };
        if answer.digests.len() != blobs.len() {
            let message = "the peer answered for another number of blobs than were sent";
            return Err(self.error(Status::internal(message), None, what));
        }
        for (blob, stored) in blobs.iter().zip(&answer.digests) {
            self.check_stored(blob.digest(), stored)?;
        }
        Ok(Some(()))
    }

    pub(super) fn check_stored(&self, digest: &Digest, stored: &[u8]) -> Result<(), BlobError> {
        match Digest::try_from(stored) {
            Ok(stored) if stored == *digest => Ok(()),
            Ok(stored) => Err(self.corrupt(digest, &format!("it was stored as {stored}"))),
            Err(error) => Err(self.corrupt(digest, &format!("it was stored, but {error}"))),
        }
    }
}
