//! Whether the services of a store answer, and how long that takes.

use std::time::{Duration, Instant};

use cairn_castore::{BlobError, BoxError, Digest, DirectoryError};
use cairn_store::{PathInfoError, Services};
use cairn_telemetry::inventory::Service;
use futures::future::join3;

use crate::{exit::Failure, services::name};

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

/// Asks a service for something that it does not have.
pub(crate) async fn ask(services: &Services, service: Service) -> Result<Answer, BoxError> {
    let nothing = [Digest::of(NOTHING)];
    let start = Instant::now();
    let is_offered = match service {
        Service::Blobs => match services.blobs.has_many(&nothing).await {
            Err(BlobError::Unsupported { .. }) => false,
            answer => answer.map(|_| true)?,
        },
        Service::Directories => match services.directories.has_many(&nothing).await {
            Err(DirectoryError::Unsupported { .. }) => false,
            answer => answer.map(|_| true)?,
        },
        Service::PathInfos => match services.path_infos.get(&[0; 20]).await {
            Err(PathInfoError::Unsupported { .. }) => false,
            answer => answer.map(|_| true)?,
        },
    };
    Ok(if is_offered { Answer::After(start.elapsed()) } else { Answer::NotOffered })
}

/// Asks each service: blobs, directories and path infos. Fails if one that is offered does not answer.
pub(crate) async fn probe(services: &Services) -> Result<[Answer; 3], Failure> {
    let (blobs, directories, path_infos) = join3(
        ask(services, Service::Blobs),
        ask(services, Service::Directories),
        ask(services, Service::PathInfos),
    )
    .await;
    let answered = |service, answer: Result<Answer, BoxError>| {
        let what = || format!("the {} don't answer", name(service));
        answer.map_err(|error| Failure::new(what(), error))
    };
    Ok([
        answered(Service::Blobs, blobs)?,
        answered(Service::Directories, directories)?,
        answered(Service::PathInfos, path_infos)?,
    ])
}

/// A time as people read it.
pub(crate) fn in_milliseconds(time: Duration) -> String {
    format!("{:.2} ms", milliseconds(time))
}

/// A time as programs read it: milliseconds, to the microsecond.
pub(crate) fn milliseconds(time: Duration) -> f64 {
    time.as_micros() as f64 / 1000.0
}

#[cfg(test)]
mod tests {
    use cairn_castore::Address;
    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::{
        server::{
            Served, Server,
            listener::{ListenAddress, Listener},
        },
        services::{OpenServices, ServiceArgs},
    };

    #[tokio::test]
    async fn a_server_that_offers_nothing_answers_all_the_same() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let listener = Listener::bind(&ListenAddress::Unix(path)).await.unwrap();
        let address: Address = listener.url().unwrap().parse().unwrap();
        let (server, stop) =
            (Server::new(Served::default()).await.unwrap(), CancellationToken::new());
        let serving = tokio::spawn(server.serve(listener, stop.clone()));
        let opened = OpenServices::open(&ServiceArgs::of(address)).await.unwrap();
        for service in Service::ALL {
            assert_eq!(ask(&opened.services, *service).await.unwrap(), Answer::NotOffered);
        }
        stop.cancel();
        serving.await.unwrap().unwrap();
        ask(&opened.services, Service::Blobs).await.unwrap_err();
        opened.close().await;
    }
}
