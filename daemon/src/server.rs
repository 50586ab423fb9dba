//! The gRPC server: which services it answers for and under which names, what it takes from a
//! connection, and how it comes to rest. How the services do their work is not known here.

use std::{convert::Infallible, sync::Arc, time::Duration};

use cairn_castore::{
    BlobService, DirectoryService,
    blob_service::grpc_server::BlobServer,
    directory_service::grpc_server::DirectoryServer,
    grpc::{BLOB_MESSAGE_MAX, CONNECTION_WINDOW, FRAME_MAX, MESSAGE_MAX, STREAM_WINDOW},
};
use cairn_proto::{cairn::v1 as cairn, snix::castore::v1 as castore, snix::store::v1 as store};
use cairn_store::{
    PathInfoService,
    path_info_service::{
        grpc_server::{CAIRN_REQUEST_MAX, PathInfoServer},
        told::ToldTrees,
    },
};
use cairn_telemetry::grpc::{Measure, Side};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::{
    body::Body,
    codec::CompressionEncoding,
    codegen::http,
    server::NamedService,
    service::{Routes, RoutesBuilder},
};
use tonic_health::{ServingStatus, server::HealthReporter};

mod info;
mod limits;
pub(crate) mod listener;
pub(crate) mod systemd;
mod tvix;
mod writes;

use limits::Limits;
use listener::Listener;

use crate::{
    cache::{HeldCache, server::CacheServer},
    holdings::{StoreControl, StoreServer},
};

/// The most requests that one connection has under way at a time; others wait for their turn.
const STREAMS_MAX: u32 = 256;

/// The longest list of headers that is read, in bytes.
const HEADERS_MAX: u32 = 16 * 1024;

/// How often a silent connection is asked whether its peer is still there.
const PING_INTERVAL: Duration = Duration::from_secs(60);

/// How long the answer to that may take before the connection is closed.
const PING_TIMEOUT: Duration = Duration::from_secs(20);

/// What a server answers for; `None` is not served.
#[derive(Debug, Clone, Default)]
pub(crate) struct Served {
    /// Blobs.
    pub(crate) blobs: Option<Arc<dyn BlobService>>,
    /// Directories.
    pub(crate) directories: Option<Arc<dyn DirectoryService>>,
    /// Path infos.
    pub(crate) path_infos: Option<Arc<dyn PathInfoService>>,
    /// Whether the path infos are those of trees in these blobs and directories.
    pub(crate) is_one_store: bool,
    /// The cache behind them, for processes of the same user.
    pub(crate) cache: Option<HeldCache>,
    /// Who can tell how much the store behind them holds.
    pub(crate) store: Option<Arc<dyn StoreControl>>,
}

/// Why a server could not be set up or ended before its time.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ServeError {
    /// The descriptors compiled into the program can't be read.
    #[error("the descriptions of the services can't be read")]
    Reflection(#[source] tonic_reflection::server::Error),
    /// The transport ended.
    #[error("the server ended")]
    Transport(#[source] tonic::transport::Error),
}

/// A generated server around a service, with the size of the largest message that it reads.
macro_rules! limited {
    ($($server:ident)::+, $service:expr, $decoded_max:expr) => {
        $($server)::+::from_arc($service)
            .max_decoding_message_size($decoded_max)
            .max_encoding_message_size(MESSAGE_MAX)
            // For clients that ask for it.
            .send_compressed(CompressionEncoding::Zstd)
    };
}

/// A gRPC server, not yet bound to a socket. One can serve any number of listeners.
#[derive(Clone)]
pub(crate) struct Server {
    routes: Routes,
    health: HealthReporter,
    /// The names that health is told of.
    names: Vec<String>,
    /// The requests under way that store something.
    writes: TaskTracker,
    /// What those who read may take, together.
    limits: Limits,
}

impl Server {
    /// A server of these services, of health and of reflection.
    pub(crate) async fn new(served: Served) -> Result<Self, ServeError> {
        let (health, health_service) = tonic_health::server::health_reporter();
        let mut offer = Offer { routes: Routes::builder(), names: Vec::new() };
        let blob_server = served.blobs.clone().map(BlobServer::new);
        let told = match (&blob_server, served.blobs, &served.directories) {
            (Some(server), Some(blobs), Some(directories)) if served.is_one_store => {
                let fresh = server.fresh().clone();
                Some(Arc::new(ToldTrees::new(blobs, directories.clone(), fresh)))
            }
            _ => None,
        };
        if let Some(blobs) = blob_server {
            let blobs = Arc::new(blobs);
            offer.add(limited!(
                castore::blob_service_server::BlobServiceServer,
                blobs.clone(),
                BLOB_MESSAGE_MAX
            ));
            offer.add(limited!(
                cairn::blob_service_server::BlobServiceServer,
                blobs,
                BLOB_MESSAGE_MAX
            ));
        }
        if let Some(directories) = served.directories {
            let directories = Arc::new(DirectoryServer::new(directories));
            offer.add(limited!(
                castore::directory_service_server::DirectoryServiceServer,
                directories.clone(),
                MESSAGE_MAX
            ));
            offer.add(limited!(
                cairn::directory_service_server::DirectoryServiceServer,
                directories,
                MESSAGE_MAX
            ));
        }
        if let Some(path_infos) = served.path_infos {
            let server = PathInfoServer::new(path_infos);
            let path_infos = Arc::new(match told {
                Some(told) => server.with_told(told),
                None => server,
            });
            offer.add(limited!(
                store::path_info_service_server::PathInfoServiceServer,
                path_infos.clone(),
                MESSAGE_MAX
            ));
            offer.add(limited!(
                cairn::path_info_service_server::PathInfoServiceServer,
                path_infos,
                CAIRN_REQUEST_MAX
            ));
        }
        if let Some(cache) = served.cache {
            offer.add(limited!(
                cairn::cache_service_server::CacheServiceServer,
                Arc::new(CacheServer(cache)),
                CAIRN_REQUEST_MAX
            ));
        }
        if let Some(store) = served.store {
            offer.add(limited!(
                cairn::store_service_server::StoreServiceServer,
                Arc::new(StoreServer::new(store)),
                CAIRN_REQUEST_MAX
            ));
        }
        offer.add(limited!(
            cairn::server_service_server::ServerServiceServer,
            Arc::new(info::InfoServer),
            CAIRN_REQUEST_MAX
        ));
        let Offer { mut routes, mut names } = offer;

        let reflection = || {
            let builder = tonic_reflection::server::Builder::configure()
                .register_encoded_file_descriptor_set(cairn_proto::FILE_DESCRIPTOR_SET)
                .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
                .with_service_name("grpc.health.v1.Health");
            names.iter().fold(builder, |builder, name| builder.with_service_name(name))
        };
        routes.add_service(reflection().build_v1().map_err(ServeError::Reflection)?);
        routes.add_service(reflection().build_v1alpha().map_err(ServeError::Reflection)?);
        routes.add_service(health_service);

        let in_tvix: Vec<_> = names.iter().filter_map(|name| tvix::service_name(name)).collect();
        names.extend(in_tvix);
        names.push(String::new());
        let (routes, writes) = (routes.routes().prepare(), TaskTracker::new());
        let server = Self { routes, health, names, writes, limits: Limits::new() };
        server.tell_health(ServingStatus::Serving).await;
        Ok(server)
    }

    /// Answers the connections of a listener until told to stop, and then until those requests
    /// that are under way are answered. Dropping the future ends the waiting, not the answers.
    pub(crate) async fn serve(
        self,
        listener: Listener,
        stop: CancellationToken,
    ) -> Result<(), ServeError> {
        let mut transport = tonic::transport::Server::builder()
            .layer(tvix::layer())
            .layer(Measure(Side::Server))
            .layer(writes::CountWrites(self.writes.clone()))
            .layer(self.limits.clone())
            .max_concurrent_streams(STREAMS_MAX)
            .http2_max_header_list_size(HEADERS_MAX)
            .max_frame_size(FRAME_MAX)
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .http2_keepalive_interval(Some(PING_INTERVAL))
            .http2_keepalive_timeout(Some(PING_TIMEOUT));
        let router = transport.add_routes(self.routes.clone());
        let stopped = async {
            stop.cancelled().await;
            self.tell_health(ServingStatus::NotServing).await;
            // Those who watch would otherwise keep their streams, and with them the server, open.
            let mut health = self.health.clone();
            for name in &self.names {
                health.clear_service_status(name).await;
            }
        };
        let served = match listener {
            Listener::Tcp(listener) => {
                let connections = listener::tcp_connections(listener);
                router.serve_with_incoming_shutdown(connections, stopped).await
            }
            Listener::Unix(listener, _file) => {
                let connections = listener::unix_connections(listener);
                router.serve_with_incoming_shutdown(connections, stopped).await
            }
        };
        served.map_err(ServeError::Transport)
    }

    /// Waits until no request is under way that stores something. To be called when the server has
    /// been told to stop, since others may come until then.
    pub(crate) async fn writes_done(&self) {
        self.writes.close();
        self.writes.wait().await;
    }

    async fn tell_health(&self, status: ServingStatus) {
        for name in &self.names {
            self.health.set_service_status(name, status).await;
        }
    }
}

/// Whether a request's path ends in one of these methods, of whatever service.
fn is_one_of(path: &str, methods: &[&str]) -> bool {
    path.rsplit_once('/').is_some_and(|(_, method)| methods.contains(&method))
}

/// Services as they are put together.
struct Offer {
    routes: RoutesBuilder,
    names: Vec<String>,
}

impl Offer {
    fn add<S>(&mut self, service: S)
    where
        S: tower::Service<
                http::Request<Body>,
                Response = http::Response<Body>,
                Error = Infallible,
                Future: Send + 'static,
            > + NamedService
            + Clone
            + Send
            + Sync
            + 'static,
    {
        self.names.push(S::NAME.to_owned());
        self.routes.add_service(service);
    }
}

#[cfg(test)]
mod tests {
    use cairn_telemetry::inventory::PATHS;
    use prost::Message as _;

    #[test]
    fn every_method_is_counted() {
        let described = cairn_proto::FILE_DESCRIPTOR_SET;
        let described = prost_types::FileDescriptorSet::decode(described).unwrap();
        let mut methods: Vec<String> = Vec::new();
        for file in &described.file {
            for service in &file.service {
                let method = |method: &prost_types::MethodDescriptorProto| {
                    format!("/{}.{}/{}", file.package(), service.name(), method.name())
                };
                methods.extend(service.method.iter().map(method));
            }
        }
        methods.sort();
        let mut counted = PATHS.to_vec();
        counted.sort_unstable();
        assert_eq!(methods, counted);
    }
}
