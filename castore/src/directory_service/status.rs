//! Directory errors as gRPC statuses and back: the one place where either becomes the other. What
//! a status can't say by its code and message travels in its metadata.

use bytes::Bytes;
use tonic::{
    Code, Status,
    metadata::{BinaryMetadataValue, MetadataMap},
};

use crate::{Digest, DirectoryError, grpc::is_transient};

/// The digest that an error names.
const DIGEST: &str = "cairn-digest-bin";

/// What a server answers for an error.
pub(crate) fn to_status(error: &DirectoryError) -> Status {
    let mut metadata = MetadataMap::new();
    let code = match error {
        DirectoryError::NotFound(digest) | DirectoryError::Corrupt { digest, .. } => {
            metadata.insert_bin(DIGEST, BinaryMetadataValue::from_bytes(digest.as_bytes()));
            match error {
                DirectoryError::NotFound(_) => Code::NotFound,
                _ => Code::DataLoss,
            }
        }
        DirectoryError::Closure(_) | DirectoryError::Invalid(_) => Code::InvalidArgument,
        DirectoryError::Unsupported { .. } => Code::Unimplemented,
        DirectoryError::NoSpace { .. } => Code::ResourceExhausted,
        DirectoryError::Unavailable { .. } => Code::Unavailable,
        DirectoryError::PermissionDenied { .. } => Code::PermissionDenied,
        DirectoryError::Other { .. } => Code::Internal,
    };
    Status::with_metadata(code, crate::errors::message(error), metadata)
}

/// What a peer's status means to its client. `asked` is the directory of the call, where it is
/// about one, and `what` the call, as in "the peer can't …".
pub(crate) fn from_status(
    status: Status,
    service: &str,
    asked: Option<&Digest>,
    what: &'static str,
) -> DirectoryError {
    let service = service.to_owned();
    let bytes = status.metadata().get_bin(DIGEST).and_then(|value| value.to_bytes().ok());
    let named = bytes.and_then(|bytes: Bytes| Digest::try_from(&*bytes).ok());
    let digest = named.or(asked.copied());
    if is_transient(&status) {
        return DirectoryError::Unavailable { service, source: status.into() };
    }
    match (status.code(), digest) {
        (Code::NotFound, Some(digest)) => DirectoryError::NotFound(digest),
        (Code::DataLoss, Some(digest)) => {
            DirectoryError::Corrupt { digest, reason: format!("{service}: {}", status.message()) }
        }
        (Code::InvalidArgument, _) => DirectoryError::Invalid(status.message().to_owned()),
        (Code::Unimplemented, _) => DirectoryError::Unsupported { service, what },
        (Code::ResourceExhausted, _) => DirectoryError::NoSpace { service, source: status.into() },
        (Code::DeadlineExceeded, _) => {
            DirectoryError::Unavailable { service, source: status.into() }
        }
        (Code::PermissionDenied | Code::Unauthenticated, _) => {
            DirectoryError::PermissionDenied { service, source: status.into() }
        }
        _ => DirectoryError::Other { service, source: status.into() },
    }
}
