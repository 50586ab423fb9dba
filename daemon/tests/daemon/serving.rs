//! What `cairn daemon` answers to gRPC clients: on TCP, on unix sockets and on sockets that it
//! was handed, under every name that its services have.

use std::{
    os::unix::net::{UnixDatagram, UnixListener},
    path::Path,
    process::{Command, Stdio},
};

use cairn_proto::snix::castore::v1::{self as castore, blob_service_client::BlobServiceClient};
use futures::{StreamExt as _, stream};
use hyper_util::rt::TokioIo;
use rustix::process::Signal;
use tonic::{
    Code, Request,
    codegen::http::uri::PathAndQuery,
    transport::{Channel, Endpoint},
};
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};
use tonic_reflection::pb::v1::{
    ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
    server_reflection_request::MessageRequest, server_reflection_response::MessageResponse,
};

use crate::process::{Running, TREE_PATH, cairn, cairn_on, run, tree};

/// A channel to what a line `listening on …` named.
async fn connect(url: &str) -> Channel {
    if let Some(path) = url.strip_prefix("grpc+unix:") {
        let path = path.to_owned();
        let connector = tower::service_fn(move |_| {
            let path = path.clone();
            async move { tokio::net::UnixStream::connect(path).await.map(TokioIo::new) }
        });
        return Endpoint::from_static("http://localhost")
            .connect_with_connector(connector)
            .await
            .unwrap();
    }
    let url = url.strip_prefix("grpc+").unwrap().to_owned();
    Endpoint::new(url).unwrap().connect().await.unwrap()
}

async fn is_serving(channel: Channel, service: &str) -> bool {
    let request = HealthCheckRequest { service: service.to_owned() };
    match HealthClient::new(channel).check(request).await {
        Ok(answer) => answer.into_inner().status == 1,
        Err(status) => {
            assert_eq!(status.code(), Code::NotFound);
            false
        }
    }
}

async fn services(channel: Channel) -> Vec<String> {
    let request = ServerReflectionRequest {
        host: String::new(),
        message_request: Some(MessageRequest::ListServices(String::new())),
    };
    let mut client = ServerReflectionClient::new(channel);
    let answers = client.server_reflection_info(stream::iter([request])).await.unwrap();
    let answer = answers.into_inner().next().await.unwrap().unwrap();
    let Some(MessageResponse::ListServicesResponse(list)) = answer.message_response else {
        panic!("{answer:?}");
    };
    list.service.into_iter().map(|service| service.name).collect()
}

/// Stats a blob under the name that a method has in another package.
async fn stat_as(channel: Channel, method: &'static str, digest: &[u8]) -> Result<(), Code> {
    let mut client = tonic::client::Grpc::new(channel);
    client.ready().await.unwrap();
    let request = castore::StatBlobRequest { digest: digest.to_vec().into(), ..Default::default() };
    let codec = tonic_prost::ProstCodec::<_, castore::StatBlobResponse>::default();
    let path = PathAndQuery::from_static(method);
    client.unary(Request::new(request), path, codec).await.map(drop).map_err(|s| s.code())
}

#[tokio::test]
async fn one_server_answers_on_every_address_under_every_name() {
    let folder = tempfile::tempdir().unwrap();
    let socket = format!("unix:{}", folder.path().join("socket").display());
    let mut daemon = Running::start(cairn_on(&folder.path().join("store")).args([
        "daemon",
        "--listen",
        "127.0.0.1:0",
        "--listen",
        &socket,
    ]));
    let urls = [daemon.line("listening on "), daemon.line("listening on ")];
    assert!(urls[0].starts_with("grpc+http://127.0.0.1:"), "{urls:?}");
    assert_eq!(urls[1], format!("grpc+{socket}"));

    let mut digest = Vec::new();
    for url in &urls {
        let channel = connect(url).await;
        for service in [
            "",
            "snix.castore.v1.BlobService",
            "snix.castore.v1.DirectoryService",
            "snix.store.v1.PathInfoService",
            "tvix.castore.v1.BlobService",
            "tvix.castore.v1.DirectoryService",
            "tvix.store.v1.PathInfoService",
            "cairn.v1.BlobService",
            "cairn.v1.DirectoryService",
            "cairn.v1.PathInfoService",
        ] {
            assert!(is_serving(channel.clone(), service).await, "{service:?} on {url}");
        }
        assert!(!is_serving(channel.clone(), "no.such.Service").await);
        let services = services(channel.clone()).await;
        for service in ["snix.store.v1.PathInfoService", "cairn.v1.BlobService"] {
            assert!(services.iter().any(|name| name == service), "{services:?}");
        }

        let mut blobs = BlobServiceClient::new(channel.clone());
        let pieces =
            ["on ", url].map(|piece| castore::BlobChunk { data: piece.as_bytes().to_vec().into() });
        digest = blobs.put(stream::iter(pieces)).await.unwrap().into_inner().digest.to_vec();
        for method in ["/snix.castore.v1.BlobService/Stat", "/tvix.castore.v1.BlobService/Stat"] {
            assert_eq!(stat_as(channel.clone(), method, &digest).await, Ok(()));
            assert_eq!(stat_as(channel.clone(), method, &[7; 32]).await, Err(Code::NotFound));
            let short = stat_as(channel.clone(), method, &[7; 31]).await;
            assert_eq!(short, Err(Code::InvalidArgument));
        }
        let unknown = stat_as(channel, "/tvix.castore.v2.BlobService/Stat", &digest).await;
        assert_eq!(unknown, Err(Code::Unimplemented));
    }
    // What came in on one address is there on the other.
    let stat = stat_as(connect(&urls[0]).await, "/snix.castore.v1.BlobService/Stat", &digest);
    assert_eq!(stat.await, Ok(()));
    daemon.end();
    assert!(!folder.path().join("socket").exists());
}

#[tokio::test]
async fn only_what_was_asked_for_is_served() {
    let mut daemon = Running::start(cairn().args([
        "--store",
        "memory:",
        "daemon",
        "--listen",
        "127.0.0.1:0",
        "--serve",
        "blob,directory",
    ]));
    let channel = connect(&daemon.line("listening on ")).await;
    assert!(is_serving(channel.clone(), "snix.castore.v1.BlobService").await);
    assert!(!is_serving(channel.clone(), "snix.store.v1.PathInfoService").await);
    assert!(!is_serving(channel.clone(), "tvix.store.v1.PathInfoService").await);
    let services = services(channel).await;
    assert!(services.iter().any(|name| name == "snix.castore.v1.DirectoryService"));
    assert!(!services.iter().any(|name| name.ends_with("PathInfoService")), "{services:?}");
    daemon.end();
}

#[tokio::test]
async fn an_open_stream_does_not_keep_the_daemon_from_ending() {
    let mut daemon =
        Running::start(cairn().args(["--store", "memory:", "daemon", "--listen", "127.0.0.1:0"]));
    let channel = connect(&daemon.line("listening on ")).await;
    let request = HealthCheckRequest { service: String::new() };
    let watched = HealthClient::new(channel).watch(request).await.unwrap();
    let mut watched = watched.into_inner();
    assert_eq!(watched.next().await.unwrap().unwrap().status, 1);
    daemon.signal(Signal::INT);
    // It is told that the service ends, and the daemon does.
    while let Some(Ok(answer)) = watched.next().await {
        assert_eq!(answer.status, 2);
    }
    let (status, stderr) = daemon.wait();
    assert!(status.success(), "{stderr}");
}

fn stores_through(url: &str, folder: &Path) {
    let source = tree(folder, "tree");
    let imported = run(cairn().args(["--store", url, "import"]).arg(source)).stdout();
    assert_eq!(imported, format!("{TREE_PATH}\n"));
    let cat = ["--store", url, "cat", &format!("{TREE_PATH}/run")].map(str::to_owned);
    assert_eq!(run(cairn().args(cat)).stdout(), "#!/bin/sh\necho ok\n");
    assert_eq!(run(cairn().args(["--store", url, "list"])).stdout(), imported);
}

#[test]
fn trees_go_through_a_daemon() {
    let folder = tempfile::tempdir().unwrap();
    let mut daemon = Running::start(cairn_on(&folder.path().join("store")).args([
        "daemon",
        "--listen",
        "127.0.0.1:0",
    ]));
    stores_through(&daemon.line("listening on "), folder.path());
    daemon.end();
}

#[test]
fn an_address_in_use_is_told() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let ended = run(cairn().args(["--store", "memory:", "daemon", "--listen", &address]));
    assert_eq!(ended.code, Some(1));
    assert!(ended.stderr.contains(&address) && ended.stderr.contains("in use"), "{}", ended.stderr);
    assert!(ended.stderr.contains("help:"), "{}", ended.stderr);
}

#[test]
fn sockets_of_systemd_are_used_and_it_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("socket");
    let listener = UnixListener::bind(&socket).unwrap();
    let notified_at = folder.path().join("notify");
    let notified = UnixDatagram::bind(&notified_at).unwrap();
    // The shell becomes the daemon, so that its process id is known beforehand.
    let script = r#"exec 3<&0 0</dev/null; LISTEN_PID=$$ LISTEN_FDS=1 exec "$0" "$@""#;
    let mut daemon = Running::start(
        Command::new("/bin/sh")
            .args(["-c", script, env!("CARGO_BIN_EXE_cairn")])
            .args(["--store", "memory:", "daemon"])
            .env("NOTIFY_SOCKET", &notified_at)
            .env_remove("CAIRN_STORE")
            .stdin(Stdio::from(std::os::fd::OwnedFd::from(listener))),
    );
    let url = daemon.line("listening on ");
    assert_eq!(url, format!("grpc+unix:{}", socket.display()));
    let state = || {
        let mut buffer = [0; 64];
        let length = notified.recv(&mut buffer).unwrap();
        String::from_utf8_lossy(&buffer[..length]).into_owned()
    };
    assert_eq!(state(), "READY=1");
    stores_through(&url, folder.path());
    daemon.end();
    assert_eq!(state(), "STOPPING=1");
    assert!(socket.exists(), "the socket's file is not the daemon's");
}
