//! Whether the services of a store answer, and how long that takes.

use std::time::{Duration, Instant};

use cairn_castore::{BlobError, BoxError, Digest, DirectoryError};
use cairn_store::{PathInfoError, Services};
use futures::future::join3;

use crate::{
    exit::Failure,
    services::{BLOBS, DIRECTORIES, PATH_INFOS},
};

/// A content that nobody stores, and that therefore nothing near can know of.
const NOTHING: &[u8] = b"what cairn asks a store for to see whether it answers";

/// What came of asking a service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Answer {
    /// It answered after this time.
    After(Duration),
    /// The store does not offer it.
    NotOffered,
}

/// Asks each service for something that it does not have: blobs, directories and path infos. Fails if
/// one that is offered does not answer.
pub(crate) async fn probe(services: &Services) -> Result<[Answer; 3], Failure> {
    let nothing = [Digest::of(NOTHING)];
    let (blobs, directories, path_infos) = join3(
        timed(services.blobs.has_many(&nothing)),
        timed(services.directories.has_many(&nothing)),
        timed(services.path_infos.get(&[0; 20])),
    )
    .await;
    let failed =
        |service: &str, error: BoxError| Failure::new(format!("the {service} don't answer"), error);
    Ok([
        match blobs {
            Err(BlobError::Unsupported { .. }) => Answer::NotOffered,
            blobs => Answer::After(blobs.map_err(|error| failed(BLOBS, error.into()))?),
        },
        match directories {
            Err(DirectoryError::Unsupported { .. }) => Answer::NotOffered,
            directories => {
                Answer::After(directories.map_err(|error| failed(DIRECTORIES, error.into()))?)
            }
        },
        match path_infos {
            Err(PathInfoError::Unsupported { .. }) => Answer::NotOffered,
            path_infos => {
                Answer::After(path_infos.map_err(|error| failed(PATH_INFOS, error.into()))?)
            }
        },
    ])
}

/// How long it takes.
async fn timed<T, E>(answer: impl Future<Output = Result<T, E>>) -> Result<Duration, E> {
    let start = Instant::now();
    answer.await?;
    Ok(start.elapsed())
}

/// A time as people read it.
pub(crate) fn in_milliseconds(time: Duration) -> String {
    format!("{:.2} ms", milliseconds(time))
}

/// A time as programs read it: milliseconds, to the microsecond.
pub(crate) fn milliseconds(time: Duration) -> f64 {
    time.as_micros() as f64 / 1000.0
}
