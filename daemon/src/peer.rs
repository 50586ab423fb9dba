//! What a gRPC server tells of itself: its version, what it offers, and whether that is healthy. A
//! server need not tell anything; what it does not is unknown.

use std::time::{Duration, Instant};

use cairn_castore::grpc::GrpcPeer;
use cairn_proto::cairn::v1::{InfoRequest, server_service_client::ServerServiceClient};
use futures::{StreamExt as _, stream};
use tonic::{Code, Response, Status};
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};
use tonic_reflection::pb::{v1, v1alpha};

/// The most services that are asked about.
const SERVICES_MAX: usize = 256;

/// The services whose health is asked for at a time.
const HEALTH_AT_ONCE: usize = 16;

/// What a server tells.
#[derive(Debug, Clone)]
pub(crate) struct PeerReport {
    /// The version of cairn. `None` if it is not cairn, or one that does not tell.
    pub(crate) version: Option<String>,
    /// How long it takes to answer.
    pub(crate) latency: Duration,
    /// What it offers, by reflection. `None` if it has none.
    pub(crate) offers: Option<Vec<Offer>>,
}

/// A gRPC service.
#[derive(Debug, Clone)]
pub(crate) struct Offer {
    /// Its name.
    pub(crate) name: String,
    /// What the server says of its health. `None` if it says nothing.
    pub(crate) health: Option<&'static str>,
}

/// Asks a server about itself. Fails if it can't be reached, not if it does not know.
pub(crate) async fn ask(peer: &GrpcPeer) -> Result<PeerReport, Status> {
    // The first call connects.
    version(peer).await?;
    let start = Instant::now();
    let version = version(peer).await?;
    let latency = start.elapsed();
    let offers = match names(peer).await? {
        None => None,
        Some(names) => {
            let offers = stream::iter(names).map(|name| async move {
                let health = health(peer, &name).await;
                Offer { name, health }
            });
            Some(offers.buffered(HEALTH_AT_ONCE).collect().await)
        }
    };
    Ok(PeerReport { version, latency, offers })
}

/// `None` if the server does not know the method.
fn known<T>(answer: Result<T, Status>) -> Result<Option<T>, Status> {
    match answer {
        Ok(answer) => Ok(Some(answer)),
        Err(status) if status.code() == Code::Unimplemented => Ok(None),
        Err(status) => Err(status),
    }
}

async fn version(peer: &GrpcPeer) -> Result<Option<String>, Status> {
    let answer =
        peer.call(|| async { ServerServiceClient::new(peer.channel()).info(InfoRequest {}).await });
    Ok(known(answer.await)?.map(|info| info.version))
}

/// The names of the services, in ascending order, by either version of reflection.
async fn names(peer: &GrpcPeer) -> Result<Option<Vec<String>>, Status> {
    macro_rules! list {
        ($version:ident) => {
            peer.call(|| async {
                use $version::{
                    ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
                    server_reflection_request::MessageRequest,
                    server_reflection_response::MessageResponse,
                };
                let message_request = Some(MessageRequest::ListServices(String::new()));
                let request = ServerReflectionRequest { host: String::new(), message_request };
                let requests = stream::iter([request]);
                let mut client = ServerReflectionClient::new(peer.channel());
                let mut answers = client.server_reflection_info(requests).await?.into_inner();
                let answer = answers.message().await?.and_then(|answer| answer.message_response);
                let names = match answer {
                    Some(MessageResponse::ListServicesResponse(list)) => {
                        list.service.into_iter().map(|service| service.name).collect()
                    }
                    _ => Vec::new(),
                };
                Ok(Response::new(names))
            })
        };
    }
    let mut names = known(list!(v1).await)?;
    if names.is_none() {
        names = known(list!(v1alpha).await)?;
    }
    Ok(names.map(|mut names: Vec<String>| {
        names.sort_unstable();
        names.truncate(SERVICES_MAX);
        names
    }))
}

async fn health(peer: &GrpcPeer, name: &str) -> Option<&'static str> {
    let answer = peer.call(|| async {
        let request = HealthCheckRequest { service: name.to_owned() };
        HealthClient::new(peer.channel()).check(request).await
    });
    match answer.await.ok()?.status() {
        ServingStatus::Serving => Some("serving"),
        ServingStatus::NotServing => Some("not serving"),
        ServingStatus::Unknown | ServingStatus::ServiceUnknown => None,
    }
}
