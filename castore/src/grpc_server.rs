//! What the gRPC servers of both services share: how requests are read and errors are told. The
//! services themselves are in their adapters.

use std::error::Error;

use bytes::Bytes;
use tonic::Status;

use crate::Digest;

/// The digest in a request.
#[allow(clippy::result_large_err)]
pub fn digest(bytes: &[u8]) -> Result<Digest, Status> {
    Digest::try_from(bytes).map_err(|error| Status::invalid_argument(error.to_string()))
}

/// At most `max` digests in a request.
#[allow(clippy::result_large_err)]
pub fn digests(bytes: &[Bytes], max: usize) -> Result<Vec<Digest>, Status> {
    if bytes.len() > max {
        let asked = bytes.len();
        let message = format!("{asked} digests in one request, which takes {max}");
        return Err(Status::invalid_argument(message));
    }
    bytes.iter().map(|bytes| digest(bytes)).collect()
}

/// An error and its sources in one line, for a status: the chain does not cross the wire.
pub fn message(error: &dyn Error) -> String {
    let mut message = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        message.push_str(": ");
        message.push_str(&error.to_string());
        source = error.source();
    }
    message
}
