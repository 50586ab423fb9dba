//! Path-info errors as gRPC statuses and back: the one place where either becomes the other. What
//! a status can't say by its code and message travels in its metadata.

use cairn_castore::{BlobError, DirectoryError, errors::message, grpc::is_transient};
use cairn_proto::snix::store::v1 as proto;
use prost::Message as _;
use tonic::{
    Code, Status,
    metadata::{BinaryMetadataValue, MetadataMap},
};

use super::PathInfoError;
use crate::{
    nar::NarError,
    path_info::{NarInfo, PathInfo},
};

/// The field in which two records differ.
const FIELD: &str = "cairn-field-bin";
/// What is missing of a tree, as it displays.
const MISSING: &str = "cairn-missing-bin";
/// The root that it is missing of, as it displays.
const ROOT: &str = "cairn-root-bin";
/// The NAR that a tree has: an encoded `CalculateNARResponse`.
const NAR: &str = "cairn-nar-bin";

/// What records can differ in.
const FIELDS: [&str; 6] =
    ["name", "root", "NAR", "list of references", "deriver", "content address"];

/// What a server answers for an error.
pub(super) fn to_status(error: &PathInfoError) -> Status {
    let mut metadata = MetadataMap::new();
    let mut insert = |key, value: &[u8]| {
        metadata.insert_bin(key, BinaryMetadataValue::from_bytes(value));
    };
    match error {
        PathInfoError::Conflict { field, .. } => insert(FIELD, field.as_bytes()),
        PathInfoError::Missing { store_path, what } => {
            insert(ROOT, store_path.as_bytes());
            insert(MISSING, what.as_bytes());
        }
        PathInfoError::NarMismatch { found, .. } => insert(NAR, &found.to_proto().encode_to_vec()),
        _ => {}
    }
    Status::with_metadata(code(error), message(error), metadata)
}

fn code(error: &PathInfoError) -> Code {
    match error {
        PathInfoError::Invalid(_)
        | PathInfoError::InvalidRequest(_)
        | PathInfoError::NarMismatch { .. } => Code::InvalidArgument,
        PathInfoError::Conflict { .. } => Code::AlreadyExists,
        PathInfoError::Missing { .. } => Code::FailedPrecondition,
        PathInfoError::Corrupt { .. } => Code::DataLoss,
        PathInfoError::Blob(error) => blob_code(error),
        PathInfoError::Directory(error) => directory_code(error),
        PathInfoError::Nar(error) => match error {
            NarError::Format { .. } | NarError::TooLarge { .. } | NarError::Size { .. } => {
                Code::InvalidArgument
            }
            NarError::Source(_) => Code::Internal,
            NarError::Blob(error) => blob_code(error),
            NarError::Directory(error) => directory_code(error),
        },
        PathInfoError::Unsupported { .. } => Code::Unimplemented,
        PathInfoError::NoSpace { .. } => Code::ResourceExhausted,
        PathInfoError::Unavailable { .. } => Code::Unavailable,
        PathInfoError::PermissionDenied { .. } => Code::PermissionDenied,
        PathInfoError::Other { .. } => Code::Internal,
    }
}

/// For the blobs behind a path-info service, of which its caller has not asked.
fn blob_code(error: &BlobError) -> Code {
    match error {
        BlobError::NotFound(_) => Code::FailedPrecondition,
        BlobError::Corrupt { .. } => Code::DataLoss,
        BlobError::NoSpace { .. } => Code::ResourceExhausted,
        BlobError::Unavailable { .. } => Code::Unavailable,
        BlobError::TooLarge { .. }
        | BlobError::Source(_)
        | BlobError::Invalid(_)
        | BlobError::Unsupported { .. }
        | BlobError::PermissionDenied { .. }
        | BlobError::Other { .. } => Code::Internal,
    }
}

/// For the directories behind a path-info service, of which its caller has not asked.
fn directory_code(error: &DirectoryError) -> Code {
    match error {
        DirectoryError::NotFound(_) => Code::FailedPrecondition,
        DirectoryError::Corrupt { .. } | DirectoryError::Closure(_) => Code::DataLoss,
        DirectoryError::NoSpace { .. } => Code::ResourceExhausted,
        DirectoryError::Unavailable { .. } => Code::Unavailable,
        DirectoryError::Invalid(_)
        | DirectoryError::Unsupported { .. }
        | DirectoryError::PermissionDenied { .. }
        | DirectoryError::Other { .. } => Code::Internal,
    }
}

/// What a peer's status means to its client. `put` is the record of the call, where it has one,
/// and `what` the call, as in "the peer can't …".
pub(super) fn from_status(
    status: Status,
    service: &str,
    put: Option<&PathInfo>,
    what: &'static str,
) -> PathInfoError {
    let service = service.to_owned();
    if is_transient(&status) {
        return PathInfoError::Unavailable { service, source: status.into() };
    }
    let bytes = |key| status.metadata().get_bin(key).and_then(|value| value.to_bytes().ok());
    let text = |key| bytes(key).and_then(|bytes| String::from_utf8(bytes.into()).ok());
    match (status.code(), put) {
        (Code::InvalidArgument, put) => {
            let nar = bytes(NAR).and_then(|nar| proto::CalculateNarResponse::decode(nar).ok());
            match (put, nar.and_then(|nar| NarInfo::from_proto(&nar).ok())) {
                (Some(info), Some(found)) => PathInfoError::NarMismatch {
                    store_path: info.store_path.clone(),
                    found: Box::new(found),
                    claimed: Box::new(info.nar),
                },
                _ => PathInfoError::InvalidRequest(status.message().to_owned()),
            }
        }
        (Code::AlreadyExists, Some(info)) => {
            let known =
                text(FIELD).and_then(|text| FIELDS.into_iter().find(|field| *field == text));
            let field = known.unwrap_or("record");
            PathInfoError::Conflict { store_path: info.store_path.clone(), field }
        }
        (Code::FailedPrecondition, put) => PathInfoError::Missing {
            store_path: put
                .map(|info| info.store_path.to_string())
                .or_else(|| text(ROOT))
                .unwrap_or_else(|| "a tree".to_owned()),
            what: text(MISSING).unwrap_or_else(|| status.message().to_owned()),
        },
        (Code::DataLoss, _) => {
            PathInfoError::Corrupt { reason: format!("{service}: {}", status.message()) }
        }
        (Code::Unimplemented, _) => PathInfoError::Unsupported { service, what },
        (Code::ResourceExhausted, _) => PathInfoError::NoSpace { service, source: status.into() },
        (Code::DeadlineExceeded, _) => {
            PathInfoError::Unavailable { service, source: status.into() }
        }
        (Code::PermissionDenied | Code::Unauthenticated, _) => {
            PathInfoError::PermissionDenied { service, source: status.into() }
        }
        _ => PathInfoError::Other { service, source: status.into() },
    }
}
