//! The service that keeps files' contents: its contract, its errors, and the conveniences that
//! every implementation gets. The implementations are in the modules below.

pub mod cache;
pub mod fresh;
pub mod grpc;
pub mod grpc_server;
pub mod memory;
pub mod object_store;
mod pieces;
mod proof;
mod status;
pub mod traced;
pub mod upstreams;
pub mod whole_files;

use std::{fmt, fs::File, io};

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use futures::{StreamExt as _, TryStreamExt as _, stream::BoxStream};

use crate::{BoxError, Digest, Packed, Packing, chunking::CHUNK_MIN, outboard::Outboard};

pub mod local;

/// The most bytes that a small blob has: one of at most this size is a single chunk, and goes
/// through [`BlobService::put_many`] and [`BlobService::read_many`].
pub const SMALL_BLOB_MAX: usize = CHUNK_MIN;

/// The most bytes that a caller gives to one [`BlobService::put_many`].
pub const PUT_MANY_BYTES: usize = 8 * 1024 * 1024;

/// The most blobs that one [`BlobService::read_many`] may be asked for.
pub const READ_MANY_BLOBS: usize = 4096;

/// The most digests that one `has_many` may be asked for.
pub const HAS_MANY_DIGESTS: usize = 65_536;

/// Verified bytes of a blob, in order, in pieces of at most some MiB. Ends after an error.
pub type BlobStream = BoxStream<'static, Result<Bytes, BlobError>>;

/// Bytes to be stored, in order, in pieces of any size.
pub type BlobSource = BoxStream<'static, io::Result<Bytes>>;

/// Keeps blobs by their digests.
///
/// The empty blob is always there. What [`put`](Self::put) has answered is durable. What is read
/// has been verified. Every wrapper implements every method: there are no defaults that could
/// bypass what an inner service does better.
#[async_trait]
pub trait BlobService: fmt::Debug + fmt::Display + Send + Sync + 'static {
    /// The size of a blob and the chunks that it is made of. `None` if it is not there.
    ///
    /// A chunk of a blob is a blob, too.
    async fn stat(&self, digest: &Digest) -> Result<Option<BlobStat>, BlobError>;

    /// Which of at most [`HAS_MANY_DIGESTS`] blobs are there, in the order asked.
    async fn has_many(&self, digests: &[Digest]) -> Result<Vec<bool>, BlobError>;

    /// The bytes of a range of a blob; the part of the range behind the blob's end is empty.
    /// [`BlobError::NotFound`] if the blob is not there.
    async fn read(&self, digest: &Digest, range: ByteRange) -> Result<BlobStream, BlobError>;

    /// Whole blobs, in the order asked; `None` for those that are not there.
    ///
    /// At most [`READ_MANY_BLOBS`], each at most [`SMALL_BLOB_MAX`] bytes: a larger one is
    /// [`BlobError::TooLarge`].
    async fn read_many(&self, digests: &[Digest]) -> Result<Vec<Option<Bytes>>, BlobError>;

    /// Like [`read_many`](Self::read_many), for whoever sends or keeps them: what a service has in zstd
    /// frames comes in them. Nothing need have been compared with its digest: that is left to whoever
    /// unpacks it.
    async fn read_many_packed(
        &self,
        digests: &[Digest],
        packing: Packing,
    ) -> Result<Vec<Option<Packed>>, BlobError>;

    /// Stores the bytes of a stream as one blob. An error of the stream stores nothing, and is
    /// [`BlobError::Source`].
    async fn put(&self, source: BlobSource) -> Result<BlobStat, BlobError>;

    /// Stores small blobs of together at most [`PUT_MANY_BYTES`].
    async fn put_many(&self, blobs: Vec<Blob>) -> Result<(), BlobError>;

    /// The bytes of a range, like [`read`](Self::read), if that needs no waiting: what is in
    /// memory or on local disk is answered on the calling thread, without the async runtime.
    ///
    /// `None`: ask [`read`](Self::read). A range may be answered in part, never with no byte where
    /// there are some.
    fn read_local(&self, digest: &Digest, range: ByteRange) -> Option<Result<Bytes, BlobError>>;

    /// The blob as an open file that holds just its bytes, uncompressed, from offset 0, where the
    /// service has such a file.
    fn lend(&self, digest: &Digest) -> Option<File>;

    /// Wishes that [`lend`](Self::lend) had the blob. A service that makes such files begins to, in
    /// the background; another does nothing. Never waits.
    fn keep_whole(&self, digest: &Digest);
}

/// A range of a blob's bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ByteRange {
    /// The first byte.
    pub offset: u64,
    /// The number of bytes; [`u64::MAX`] for all that follow.
    pub length: u64,
}

impl ByteRange {
    /// The whole blob.
    pub const ALL: Self = Self { offset: 0, length: u64::MAX };

    /// The range's start and end within a blob of this size: both at most `size`.
    pub fn within(&self, size: u64) -> std::ops::Range<u64> {
        let start = self.offset.min(size);
        start..self.offset.saturating_add(self.length).min(size).max(start)
    }
}

/// What is known of a blob without its bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlobStat {
    /// The blob.
    pub digest: Digest,
    /// Its length in bytes.
    pub size: u64,
    /// Its chunks in order: at least two, or none for a blob of a single chunk.
    pub chunks: Vec<ChunkMeta>,
    /// What proves its ranges, where the service has it and the blob has several chunks or groups.
    pub outboard: Option<Outboard>,
}

/// A part of a blob, and itself a blob.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChunkMeta {
    /// The digest of the chunk's bytes.
    pub digest: Digest,
    /// Their number.
    pub size: u64,
}

/// A small blob with its digest, which is true by construction.
#[derive(Clone, PartialEq, Eq)]
pub struct Blob {
    digest: Digest,
    bytes: Bytes,
}

impl Blob {
    /// Hashes the bytes.
    pub fn new(bytes: Bytes) -> Self {
        Self { digest: Digest::of(&bytes), bytes }
    }

    /// The bytes, if they are those of the digest.
    pub fn verified(digest: Digest, bytes: Bytes) -> Option<Self> {
        let blob = Self::new(bytes);
        (blob.digest == digest).then_some(blob)
    }

    /// The digest of the bytes.
    pub fn digest(&self) -> &Digest {
        &self.digest
    }

    /// The bytes.
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// The bytes, without the digest.
    pub fn into_bytes(self) -> Bytes {
        self.bytes
    }
}

impl fmt::Debug for Blob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Blob({}, {} bytes)", self.digest, self.bytes.len())
    }
}

/// Why a blob service could not do as asked.
#[derive(Debug, thiserror::Error)]
pub enum BlobError {
    /// The blob is not there.
    #[error("blob {0} is not in the store")]
    NotFound(Digest),
    /// The blob is there but damaged: what is stored for it is not what its digest says.
    #[error("blob {digest} is damaged: {reason}")]
    Corrupt {
        /// The blob, or the chunk of it.
        digest: Digest,
        /// What was found, and where.
        reason: String,
    },
    /// More than the method takes.
    #[error("blob {digest} of {size} bytes is too large for this request, which takes {max}")]
    TooLarge {
        /// The blob.
        digest: Digest,
        /// Its size in bytes.
        size: u64,
        /// The most that is taken.
        max: u64,
    },
    /// The bytes to be stored could not be read.
    #[error("the bytes to be stored could not be read")]
    Source(#[source] io::Error),
    /// The request is not one.
    #[error("invalid request: {0}")]
    Invalid(String),
    /// The service does not do this.
    #[error("{service} can't {what}")]
    Unsupported {
        /// The service, as it displays.
        service: String,
        /// What was asked.
        what: &'static str,
    },
    /// There is no room left.
    #[error("{service} has no room left")]
    NoSpace {
        /// The service, as it displays.
        service: String,
        /// What said so.
        #[source]
        source: BoxError,
    },
    /// The service can't be reached, or did not answer in time. Trying again may help.
    #[error("{service} can't be reached")]
    Unavailable {
        /// The service, as it displays.
        service: String,
        /// What happened.
        #[source]
        source: BoxError,
    },
    /// The service refuses this caller.
    #[error("{service} denies access")]
    PermissionDenied {
        /// The service, as it displays.
        service: String,
        /// What said so.
        #[source]
        source: BoxError,
    },
    /// Anything else.
    #[error("{service} failed")]
    Other {
        /// The service, as it displays.
        service: String,
        /// What happened.
        #[source]
        source: BoxError,
    },
}

impl BlobError {
    /// An error that says the same, for another waiter on the same work.
    pub fn duplicate(&self) -> Self {
        let again = crate::duplicate_source;
        match self {
            Self::NotFound(digest) => Self::NotFound(*digest),
            Self::Corrupt { digest, reason } => {
                Self::Corrupt { digest: *digest, reason: reason.clone() }
            }
            Self::TooLarge { digest, size, max } => {
                Self::TooLarge { digest: *digest, size: *size, max: *max }
            }
            Self::Source(error) => Self::Source(io::Error::new(error.kind(), error.to_string())),
            Self::Invalid(what) => Self::Invalid(what.clone()),
            Self::Unsupported { service, what } => {
                Self::Unsupported { service: service.clone(), what }
            }
            Self::NoSpace { service, source } => {
                Self::NoSpace { service: service.clone(), source: again(source) }
            }
            Self::Unavailable { service, source } => {
                Self::Unavailable { service: service.clone(), source: again(source) }
            }
            Self::PermissionDenied { service, source } => {
                Self::PermissionDenied { service: service.clone(), source: again(source) }
            }
            Self::Other { service, source } => {
                Self::Other { service: service.clone(), source: again(source) }
            }
        }
    }
}

/// What every blob service can do by its contract.
#[async_trait]
pub trait BlobServiceExt: BlobService {
    /// Whether a blob is there.
    async fn has(&self, digest: &Digest) -> Result<bool, BlobError> {
        Ok(self.has_many(std::slice::from_ref(digest)).await? == [true])
    }

    /// All bytes of a range in one buffer. The caller bounds the range, or knows the blob to be
    /// small.
    async fn read_to_bytes(&self, digest: &Digest, range: ByteRange) -> Result<Bytes, BlobError> {
        let mut stream = self.read(digest, range).await?;
        let Some(first) = stream.try_next().await? else { return Ok(Bytes::new()) };
        let Some(second) = stream.try_next().await? else { return Ok(first) };
        let mut all = BytesMut::from(first);
        all.extend_from_slice(&second);
        while let Some(piece) = stream.try_next().await? {
            all.extend_from_slice(&piece);
        }
        Ok(all.freeze())
    }

    /// What [`BlobService::read_many_packed`] is where nothing is kept in frames.
    async fn read_many_and_pack(
        &self,
        digests: &[Digest],
        packing: Packing,
    ) -> Result<Vec<Option<Packed>>, BlobError> {
        let blobs = self.read_many(digests).await?;
        if packing == Packing::Stored {
            return Ok(blobs.into_iter().map(|blob| blob.map(Packed::Plain)).collect());
        }
        Packed::pack_many(blobs)
            .await
            .map_err(|error| BlobError::Other { service: self.to_string(), source: error.into() })
    }

    /// Stores bytes that are in memory, of any length.
    async fn put_bytes(&self, bytes: Bytes) -> Result<Digest, BlobError> {
        let source = futures::stream::once(async move { Ok(bytes) }).boxed();
        Ok(self.put(source).await?.digest)
    }
}

impl<S: BlobService + ?Sized> BlobServiceExt for S {}

/// Refuses a request for more than a method takes.
pub(crate) fn check_count(asked: usize, max: usize) -> Result<(), BlobError> {
    if asked <= max {
        return Ok(());
    }
    Err(BlobError::Invalid(format!("{asked} blobs in one request, which takes {max}")))
}

/// Refuses a blob that is no small one.
pub(crate) fn check_small(digest: &Digest, size: u64) -> Result<(), BlobError> {
    if size <= SMALL_BLOB_MAX as u64 {
        return Ok(());
    }
    Err(BlobError::TooLarge { digest: *digest, size, max: SMALL_BLOB_MAX as u64 })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_end_with_the_blob() {
        let within = |offset, length| ByteRange { offset, length }.within(10);
        assert_eq!(within(0, u64::MAX), 0..10);
        assert_eq!(within(3, 4), 3..7);
        assert_eq!(within(8, 4), 8..10);
        assert_eq!(within(10, 4), 10..10);
        assert_eq!(within(u64::MAX, u64::MAX), 10..10);
        assert_eq!(within(5, 0), 5..5);
    }
}
