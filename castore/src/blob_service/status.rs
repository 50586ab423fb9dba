//! Blob errors as gRPC statuses and back: the one place where either becomes the other. What a
//! status can't say by its code and message travels in its metadata.

use bytes::Bytes;
use tonic::{
    Code, Status,
    metadata::{BinaryMetadataValue, MetadataMap},
};

use crate::{BlobError, Digest, grpc::is_transient};

/// The digest that an error names.
const DIGEST: &str = "cairn-digest-bin";
/// The size of a blob that is too large, and the most that is taken: two big-endian numbers.
const TOO_LARGE: &str = "cairn-too-large-bin";

/// What a server answers for an error.
pub(crate) fn to_status(error: &BlobError) -> Status {
    let mut metadata = MetadataMap::new();
    let mut insert = |key, value: &[u8]| {
        metadata.insert_bin(key, BinaryMetadataValue::from_bytes(value));
    };
    let code = match error {
        BlobError::NotFound(digest) => {
            insert(DIGEST, digest.as_bytes());
            Code::NotFound
        }
        BlobError::Corrupt { digest, .. } => {
            insert(DIGEST, digest.as_bytes());
            Code::DataLoss
        }
        BlobError::TooLarge { digest, size, max } => {
            insert(DIGEST, digest.as_bytes());
            insert(TOO_LARGE, &[size.to_be_bytes(), max.to_be_bytes()].concat());
            Code::InvalidArgument
        }
        BlobError::Source(_) => Code::Aborted,
        BlobError::Invalid(_) => Code::InvalidArgument,
        BlobError::Unsupported { .. } => Code::Unimplemented,
        BlobError::NoSpace { .. } => Code::ResourceExhausted,
        BlobError::Unavailable { .. } => Code::Unavailable,
        BlobError::PermissionDenied { .. } => Code::PermissionDenied,
        BlobError::Other { .. } => Code::Internal,
    };
    Status::with_metadata(code, crate::errors::message(error), metadata)
}

/// What a peer's status means to its client. `asked` is the blob of the call, where it is about
/// one, and `what` the call, as in "the peer can't …".
pub(crate) fn from_status(
    status: Status,
    service: &str,
    asked: Option<&Digest>,
    what: &'static str,
) -> BlobError {
    let service = service.to_owned();
    let bytes = |key| status.metadata().get_bin(key).and_then(|value| value.to_bytes().ok());
    let named = bytes(DIGEST).and_then(|bytes: Bytes| Digest::try_from(&*bytes).ok());
    let digest = named.or(asked.copied());
    if is_transient(&status) {
        return BlobError::Unavailable { service, source: status.into() };
    }
    match (status.code(), digest) {
        (Code::NotFound, Some(digest)) => BlobError::NotFound(digest),
        (Code::DataLoss, Some(digest)) => {
            BlobError::Corrupt { digest, reason: format!("{service}: {}", status.message()) }
        }
        (Code::InvalidArgument, digest) => {
            let sizes = bytes(TOO_LARGE).and_then(|bytes| {
                let (sizes, _) = bytes.as_chunks::<8>();
                let &[size, max] = sizes else { return None };
                Some((u64::from_be_bytes(size), u64::from_be_bytes(max)))
            });
            match (digest, sizes) {
                (Some(digest), Some((size, max))) => BlobError::TooLarge { digest, size, max },
                _ => BlobError::Invalid(status.message().to_owned()),
            }
        }
        (Code::Unimplemented, _) => BlobError::Unsupported { service, what },
        (Code::ResourceExhausted, _) => BlobError::NoSpace { service, source: status.into() },
        (Code::DeadlineExceeded, _) => BlobError::Unavailable { service, source: status.into() },
        (Code::PermissionDenied | Code::Unauthenticated, _) => {
            BlobError::PermissionDenied { service, source: status.into() }
        }
        _ => BlobError::Other { service, source: status.into() },
    }
}
