//! The daemon on the wire: the contracts of the three services through its sockets, the methods
//! of both families of names, its checks, and its end.

use std::{
    ffi::OsStr, fs, net::TcpListener, os::fd::OwnedFd, process::Command, sync::Arc, time::Duration,
};

use bytes::Bytes;
use cairn_castore::{Digest, Directory, Node, directory::SizeRule};
use cairn_proto::snix::{
    castore::v1::{
        self as castore, blob_service_client::BlobServiceClient,
        directory_service_client::DirectoryServiceClient,
    },
    store::v1::{self as store, path_info_service_client::PathInfoServiceClient},
};
use cairn_tests::{
    cairn::{Cairn, Daemon, Scene, binary},
    compare::{Face, assert_same},
    measure::{measure_tree, walk},
    process::Running,
    proxy::{Line, Proxy},
    random::Random,
    trees,
};
use futures::{StreamExt as _, TryStreamExt as _, stream};
use rustix::process::Signal;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{
    Code, Status,
    client::Grpc,
    codegen::http::uri::PathAndQuery,
    transport::{Channel, Endpoint},
};
use tonic_prost::ProstCodec;

/// The services that the daemon has, by the names of their packages.
const SERVICES: [&str; 6] = [
    "snix.castore.v1.BlobService",
    "snix.castore.v1.DirectoryService",
    "snix.store.v1.PathInfoService",
    "tvix.castore.v1.BlobService",
    "tvix.castore.v1.DirectoryService",
    "tvix.store.v1.PathInfoService",
];

/// A connection of plain gRPC, without anything of cairn's client.
async fn connect(daemon: &Daemon) -> Channel {
    let address = daemon.url().strip_prefix("grpc+").expect("a gRPC URL").to_owned();
    Endpoint::new(address).unwrap().connect().await.unwrap()
}

fn code<T: std::fmt::Debug>(result: Result<T, Status>) -> Code {
    result.expect_err("the request has to be refused").code()
}

fn bytes(digest: impl Into<Bytes>) -> Bytes {
    digest.into()
}

async fn put_blob(channel: &Channel, content: &'static [u8]) -> Bytes {
    let chunk = castore::BlobChunk { data: Bytes::from_static(content) };
    let put = BlobServiceClient::new(channel.clone()).put(stream::iter([chunk])).await.unwrap();
    put.into_inner().digest
}

async fn put_directories(
    channel: &Channel,
    directories: Vec<castore::Directory>,
) -> Result<Digest, Status> {
    let mut client = DirectoryServiceClient::new(channel.clone());
    let put = client.put(stream::iter(directories)).await?.into_inner();
    Ok(Digest::try_from(&put.root_digest[..]).unwrap())
}

fn by_digest(digest: impl Into<Bytes>, recursive: bool) -> castore::GetDirectoryRequest {
    let by_what = castore::get_directory_request::ByWhat::Digest(digest.into());
    castore::GetDirectoryRequest { by_what: Some(by_what), recursive }
}

async fn get_directories(
    channel: &Channel,
    request: castore::GetDirectoryRequest,
) -> Result<Vec<castore::Directory>, Status> {
    let mut client = DirectoryServiceClient::new(channel.clone());
    client.get(request).await?.into_inner().try_collect().await
}

fn by_hash(path: &str) -> store::GetPathInfoRequest {
    let path: cairn_store::StorePath = path.parse().unwrap();
    let hash = Bytes::copy_from_slice(path.hash());
    let by_what = store::get_path_info_request::ByWhat::ByOutputHash(hash);
    store::GetPathInfoRequest { by_what: Some(by_what) }
}

/// Holds each service of a daemon to its contract, through cairn's own client.
async fn conforms(url: &str) {
    use cairn_castore::{
        address::Address, blob_service::grpc::GrpcBlobService,
        directory_service::grpc::GrpcDirectoryService, grpc::GrpcPeer,
    };
    use cairn_store::path_info_service::grpc::GrpcPathInfoService;

    let address: Address = url.parse().unwrap();
    let Address::Grpc(address) = address else { panic!("{url} is of another kind") };
    let peer = GrpcPeer::new(&address).unwrap();
    let blobs = Arc::new(GrpcBlobService::new(peer.clone()));
    let directories = Arc::new(GrpcDirectoryService::new(peer.clone()));
    let path_infos = Arc::new(GrpcPathInfoService::new(peer));
    cairn_castore::conformance::blob_service(blobs.clone()).await;
    cairn_castore::conformance::directory_service(directories.clone()).await;
    cairn_store::conformance::path_info_service(path_infos, blobs, directories).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_contracts_hold_over_tcp() {
    let scene = Scene::new();
    let daemon = scene.serve_tcp();
    conforms(daemon.url()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_contracts_hold_over_a_unix_socket() {
    let scene = Scene::new();
    let daemon = scene.serve_unix();
    conforms(daemon.url()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_contracts_hold_beside_the_owner_of_a_store() {
    let scene = Scene::new();
    let owner = scene.serve_unix();
    // The second daemon finds the store taken, and goes through its owner.
    let second = scene.serve_tcp();
    conforms(second.url()).await;
    drop(owner);
}

#[tokio::test(flavor = "multi_thread")]
async fn both_families_of_names_are_answered() {
    let scene = Scene::new();
    let path = scene.cairn().import(&trees::vector(scene.folder()));
    let daemon = scene.serve_tcp();
    let channel = connect(&daemon).await;
    for family in ["snix", "tvix"] {
        let method = |name: &str| PathAndQuery::try_from(format!("/{family}.{name}")).unwrap();
        let mut grpc = Grpc::new(channel.clone());

        let content = format!("told to {family}");
        let chunk = castore::BlobChunk { data: content.clone().into() };
        grpc.ready().await.unwrap();
        let put = grpc.client_streaming::<_, _, castore::PutBlobResponse, _>(
            tonic::Request::new(stream::iter([chunk])),
            method("castore.v1.BlobService/Put"),
            ProstCodec::default(),
        );
        let digest = put.await.unwrap().into_inner().digest;
        assert_eq!(digest, Digest::of(content.as_bytes()).as_bytes()[..]);

        grpc.ready().await.unwrap();
        let read = grpc.server_streaming::<_, castore::BlobChunk, _>(
            tonic::Request::new(castore::ReadBlobRequest { digest }),
            method("castore.v1.BlobService/Read"),
            ProstCodec::default(),
        );
        let chunks: Vec<_> = read.await.unwrap().into_inner().try_collect().await.unwrap();
        let read: Vec<u8> = chunks.iter().flat_map(|chunk| chunk.data.to_vec()).collect();
        assert_eq!(read, content.as_bytes());

        grpc.ready().await.unwrap();
        let info = grpc.unary::<_, store::PathInfo, _>(
            tonic::Request::new(by_hash(&path)),
            method("store.v1.PathInfoService/Get"),
            ProstCodec::default(),
        );
        let info = info.await.unwrap().into_inner();
        assert_eq!(info.narinfo.unwrap().nar_size, trees::VECTOR_NAR_SIZE);

        grpc.ready().await.unwrap();
        let root: Digest = trees::VECTOR_ROOT.parse().unwrap();
        let get = grpc.server_streaming::<_, castore::Directory, _>(
            tonic::Request::new(by_digest(root, true)),
            method("castore.v1.DirectoryService/Get"),
            ProstCodec::default(),
        );
        let closure: Vec<_> = get.await.unwrap().into_inner().try_collect().await.unwrap();
        assert_eq!(closure.len(), 3);
        assert_eq!(Directory::from_proto(closure[0].clone()).unwrap().digest(), root);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn health_and_reflection_answer() {
    use tonic_health::pb::{
        HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
    };

    let scene = Scene::new();
    let daemon = scene.serve_tcp();
    let channel = connect(&daemon).await;
    let mut health = HealthClient::new(channel.clone());
    for service in [""].into_iter().chain(SERVICES) {
        let request = HealthCheckRequest { service: service.to_owned() };
        let status = health.check(request).await.unwrap().into_inner().status();
        assert_eq!(status, ServingStatus::Serving, "{service:?}");
    }
    let unknown = HealthCheckRequest { service: "unknown".to_owned() };
    assert_eq!(code(health.check(unknown).await), Code::NotFound);

    macro_rules! listed {
        ($version:ident) => {{
            use tonic_reflection::pb::$version::{
                ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
                server_reflection_request::MessageRequest,
                server_reflection_response::MessageResponse,
            };
            let request = ServerReflectionRequest {
                host: String::new(),
                message_request: Some(MessageRequest::ListServices(String::new())),
            };
            let mut client = ServerReflectionClient::new(channel.clone());
            let answers = client.server_reflection_info(stream::iter([request])).await.unwrap();
            let answer = answers.into_inner().next().await.unwrap().unwrap();
            let Some(MessageResponse::ListServicesResponse(list)) = answer.message_response else {
                panic!("no list: {answer:?}");
            };
            list.service.into_iter().map(|service| service.name).collect::<Vec<_>>()
        }};
    }
    for listed in [listed!(v1), listed!(v1alpha)] {
        for service in SERVICES.iter().filter(|name| name.starts_with("snix")) {
            assert!(listed.iter().any(|name| name == service), "{service} is not in {listed:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_that_are_none_and_things_that_are_not_there_are_told_apart() {
    let scene = Scene::new();
    let daemon = scene.serve_tcp();
    let channel = connect(&daemon).await;
    let mut blobs = BlobServiceClient::new(channel.clone());
    let unknown = || bytes(Digest::of(b"unknown"));
    let stat = |digest| castore::StatBlobRequest { digest, ..Default::default() };
    assert_eq!(code(blobs.stat(stat(Bytes::from_static(b"short"))).await), Code::InvalidArgument);
    assert_eq!(code(blobs.stat(stat(unknown())).await), Code::NotFound);
    let read = |digest| castore::ReadBlobRequest { digest };
    assert_eq!(code(blobs.read(read(Bytes::new())).await), Code::InvalidArgument);
    assert_eq!(code(blobs.read(read(unknown())).await), Code::NotFound);

    let short = by_digest(Bytes::from_static(b"short"), false);
    assert_eq!(code(get_directories(&channel, short).await), Code::InvalidArgument);
    let nothing = castore::GetDirectoryRequest::default();
    assert_eq!(code(get_directories(&channel, nothing).await), Code::InvalidArgument);
    for recursive in [false, true] {
        let request = by_digest(unknown(), recursive);
        assert_eq!(code(get_directories(&channel, request).await), Code::NotFound);
    }

    let mut paths = PathInfoServiceClient::new(channel.clone());
    let nothing = store::GetPathInfoRequest { by_what: None };
    assert_eq!(code(paths.get(nothing).await), Code::InvalidArgument);
    let by_what = store::get_path_info_request::ByWhat::ByOutputHash(Bytes::from_static(b"short"));
    let short = store::GetPathInfoRequest { by_what: Some(by_what) };
    assert_eq!(code(paths.get(short).await), Code::InvalidArgument);
    assert_eq!(code(paths.get(by_hash(trees::VECTOR_STORE_PATH)).await), Code::NotFound);
    assert_eq!(code(paths.put(store::PathInfo::default()).await), Code::InvalidArgument);

    // The empty blob and the empty directory are always there.
    let empty = blobs.read(read(bytes(Digest::EMPTY))).await.unwrap().into_inner();
    assert_eq!(empty.try_collect::<Vec<_>>().await.unwrap().len(), 0);
    let empty = get_directories(&channel, by_digest(Digest::EMPTY, true)).await.unwrap();
    assert_eq!(empty, [castore::Directory::default()]);
}

#[tokio::test(flavor = "multi_thread")]
async fn closures_of_both_size_rules_are_taken_and_of_none_are_not() {
    let scene = Scene::new();
    let daemon = scene.serve_tcp();
    let channel = connect(&daemon).await;
    let file = castore::FileEntry {
        name: "f".into(),
        digest: put_blob(&channel, b"hi\n").await,
        size: 3,
        executable: false,
    };
    let leaf = castore::Directory { files: vec![file], ..Default::default() };
    let leaf_digest = Directory::from_proto(leaf.clone()).unwrap().digest();
    let above = |size| castore::Directory {
        directories: vec![castore::DirectoryEntry {
            name: "d".into(),
            digest: leaf_digest.into(),
            size,
        }],
        ..Default::default()
    };
    for (size, root) in [
        (2, "3d2cdd203b22daa6abdc55a620d3cbbb1ba93e9ca440affe39a1ac19b2e0d986"),
        (1, "e8a5d7e5f57a32b0ec5d499d7c8ee1a58256d3330f28cba32186ac052d3f6cc5"),
    ] {
        let put = put_directories(&channel, vec![leaf.clone(), above(size)]).await.unwrap();
        assert_eq!(put.to_hex(), root);
        let read = get_directories(&channel, by_digest(put, true)).await.unwrap();
        assert_eq!(read, [above(size), leaf.clone()]);
    }
    for wrong in [
        vec![leaf.clone(), above(3)],
        vec![above(0)],
        vec![],
        vec![leaf.clone(), castore::Directory::default()],
    ] {
        let name = format!("{wrong:?}");
        assert_eq!(code(put_directories(&channel, wrong).await), Code::InvalidArgument, "{name}");
    }
    let unknown = castore::Directory {
        directories: vec![castore::DirectoryEntry {
            name: "d".into(),
            digest: Digest::of(b"unknown").into(),
            size: 2,
        }],
        ..Default::default()
    };
    assert_eq!(code(put_directories(&channel, vec![unknown]).await), Code::InvalidArgument);
    let mut twice = leaf.clone();
    twice.files.push(leaf.files[0].clone());
    assert_eq!(code(put_directories(&channel, vec![twice]).await), Code::InvalidArgument);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_path_info_is_believed_only_if_it_is_true() {
    let scene = Scene::new();
    let path = scene.cairn().import(&trees::vector(scene.folder()));
    let daemon = scene.serve_tcp();
    let channel = connect(&daemon).await;
    let mut paths = PathInfoServiceClient::new(channel.clone());
    let stored = paths.get(by_hash(&path)).await.unwrap().into_inner();

    // The same again is no change.
    assert_eq!(paths.put(stored.clone()).await.unwrap().into_inner(), stored);

    // The same root under another name: refused with a false NAR, taken with the true one.
    let other = "00000000000000000000000000000000-other";
    let Some(castore::entry::Entry::Directory(root)) = stored.entry.clone().unwrap().entry else {
        panic!("the root is a directory");
    };
    let named = |digest: Bytes| {
        let entry = castore::DirectoryEntry { name: other.into(), digest, size: root.size };
        let entry = castore::Entry { entry: Some(castore::entry::Entry::Directory(entry)) };
        store::PathInfo { entry: Some(entry), ..stored.clone() }
    };
    let mut lie = named(root.digest.clone());
    lie.narinfo.as_mut().unwrap().nar_size += 8;
    assert_eq!(code(paths.put(lie).await), Code::InvalidArgument);
    let mut lie = named(root.digest.clone());
    lie.narinfo.as_mut().unwrap().nar_sha256 = Bytes::from(vec![7; 32]);
    assert_eq!(code(paths.put(lie).await), Code::InvalidArgument);
    let missing = named(Digest::of(b"not there").into());
    assert_eq!(code(paths.put(missing).await), Code::FailedPrecondition);
    assert_eq!(code(paths.get(by_hash(other)).await), Code::NotFound);
    let truth = named(root.digest.clone());
    assert_eq!(paths.put(truth.clone()).await.unwrap().into_inner(), truth);

    // Another record for a path that is there is a conflict, unless it adds signatures.
    let mut conflict = truth.clone();
    conflict.narinfo.as_mut().unwrap().deriver =
        Some(store::StorePath { name: "deriver".to_owned(), digest: vec![1; 20].into() });
    assert_eq!(code(paths.put(conflict).await), Code::AlreadyExists);
    let mut signed = truth.clone();
    signed.narinfo.as_mut().unwrap().signatures =
        vec![store::nar_info::Signature { name: "key-1".to_owned(), data: vec![3; 64].into() }];
    assert_eq!(paths.put(signed.clone()).await.unwrap().into_inner(), signed);
    assert_eq!(paths.get(by_hash(other)).await.unwrap().into_inner(), signed);
    assert_eq!(paths.put(truth).await.unwrap().into_inner(), signed);

    let listed = paths.list(store::ListPathInfoRequest {}).await.unwrap().into_inner();
    assert_eq!(listed.try_collect::<Vec<_>>().await.unwrap().len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_nar_of_a_tree_is_calculated() {
    let scene = Scene::new();
    scene.cairn().import(&trees::vector(scene.folder()));
    let daemon = scene.serve_tcp();
    let channel = connect(&daemon).await;
    let mut paths = PathInfoServiceClient::new(channel);
    let root: Digest = trees::VECTOR_ROOT.parse().unwrap();
    let size = 2 * 6 + 2;
    let entry = Node::Directory { digest: root, size }.to_entry(None);
    let nar = paths.calculate_nar(entry.clone()).await.unwrap().into_inner();
    assert_eq!(nar.nar_size, trees::VECTOR_NAR_SIZE);
    let wanted = blake3::Hash::from_hex(trees::VECTOR_NAR_SHA256).unwrap();
    assert_eq!(nar.nar_sha256, wanted.as_bytes()[..]);

    let name: cairn_castore::Name = "named".try_into().unwrap();
    let named = Node::Directory { digest: root, size }.to_entry(Some(&name));
    assert_eq!(code(paths.calculate_nar(named).await), Code::InvalidArgument);
    let missing = Node::Directory { digest: Digest::of(b"missing"), size: 0 }.to_entry(None);
    assert_eq!(code(paths.calculate_nar(missing).await), Code::FailedPrecondition);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_of_many_entries_crosses() {
    let scene = Scene::new();
    let daemon = scene.serve_tcp();
    let channel = connect(&daemon).await;
    let digest = put_blob(&channel, b"hi\n").await;
    let entries = (0..100_000u32).map(|index| {
        let name = format!("an-entry-with-a-name-of-middling-length-{index:06}").into();
        castore::FileEntry { name, digest: digest.clone(), size: 3, executable: false }
    });
    let wide = castore::Directory { files: entries.collect(), ..Default::default() };
    let wanted = Directory::from_proto(wide.clone()).unwrap();
    assert!(wanted.encode().len() > 8 << 20 && wanted.size(SizeRule::Doubled) == 200_000);

    let mut client = DirectoryServiceClient::new(channel.clone())
        .max_encoding_message_size(usize::MAX)
        .max_decoding_message_size(usize::MAX);
    let put = client.put(stream::iter([wide.clone()])).await.unwrap().into_inner();
    assert_eq!(put.root_digest, wanted.digest().as_bytes()[..]);
    let get = client.get(by_digest(put.root_digest, true)).await.unwrap().into_inner();
    assert_eq!(get.try_collect::<Vec<_>>().await.unwrap(), [wide]);
}

#[tokio::test(flavor = "multi_thread")]
async fn blobs_come_in_messages_that_any_client_reads() {
    let scene = Scene::new();
    let content = Random::new("messages").bytes(9_000_000);
    let file = scene.path("file");
    std::fs::write(&file, &content).unwrap();
    scene.cairn().import(&file);
    let daemon = scene.serve_tcp();
    // A client of tonic's own limit, 4 MiB.
    let mut client = BlobServiceClient::new(connect(&daemon).await);
    let digest = bytes(Digest::of(&content));
    let read = client.read(castore::ReadBlobRequest { digest: digest.clone() }).await.unwrap();
    let chunks: Vec<_> = read.into_inner().try_collect().await.unwrap();
    let read: Vec<u8> = chunks.iter().flat_map(|chunk| chunk.data.to_vec()).collect();
    assert!(read == content);

    let request = castore::StatBlobRequest { digest, send_chunks: true, send_bao: false };
    let stat = client.stat(request).await.unwrap().into_inner();
    assert_eq!(stat.chunks.iter().map(|chunk| chunk.size).sum::<u64>(), content.len() as u64);
    // Each chunk is a blob.
    let mut offset = 0;
    for chunk in stat.chunks {
        let end = offset + chunk.size as usize;
        assert_eq!(chunk.digest, Digest::of(&content[offset..end]).as_bytes()[..]);
        let read = client.read(castore::ReadBlobRequest { digest: chunk.digest }).await.unwrap();
        let pieces: Vec<_> = read.into_inner().try_collect().await.unwrap();
        let read: Vec<u8> = pieces.iter().flat_map(|piece| piece.data.to_vec()).collect();
        assert!(read == content[offset..end]);
        offset = end;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stopped_daemon_finishes_what_it_has_begun() {
    let scene = Scene::new();
    let daemon = scene.serve_tcp();
    let channel = connect(&daemon).await;
    let (sender, receiver) = mpsc::channel(1);
    let put = tokio::spawn(async move {
        BlobServiceClient::new(channel).put(ReceiverStream::new(receiver)).await
    });
    let chunk = || castore::BlobChunk { data: vec![b'a'; 100_000].into() };
    for _ in 0..10 {
        sender.send(chunk()).await.unwrap();
    }
    let stopped = tokio::task::spawn_blocking(move || daemon.stop(Signal::TERM));
    tokio::time::sleep(Duration::from_millis(300)).await;
    sender.send(chunk()).await.unwrap();
    drop(sender);
    let digest = put.await.unwrap().unwrap().into_inner().digest;
    assert_eq!(digest, Digest::of(&vec![b'a'; 1_100_000]).as_bytes()[..]);
    stopped.await.unwrap().succeeded();
    // And it is in the store.
    let digest = Digest::of(&vec![b'a'; 1_100_000]).to_string();
    assert_eq!(scene.cairn().run(["cat", &digest]).succeeded().stdout.len(), 1_100_000);
}

#[test]
fn a_daemon_serves_what_it_is_told_and_where() {
    let scene = Scene::new();
    let socket = scene.path("socket");
    let unix = format!("unix:{}", socket.display());
    let words = ["daemon", "--listen", "127.0.0.1:0", "--listen", &unix, "--serve", "blob"];
    let mut daemon = scene.cairn().start(words);
    let urls = [daemon.wait_for("listening on ").0, daemon.wait_for("listening on ").0];
    assert!(urls[0].starts_with("grpc+http://127.0.0.1:"), "{urls:?}");
    assert_eq!(urls[1], format!("grpc+unix:{}", socket.display()));
    let tree = trees::vector(scene.folder());
    for url in &urls {
        let digest = Digest::of(b"unknown").to_string();
        // A digest may be a directory's, so those have to be somewhere.
        let words = ["--directory-service-addr", "memory:", "cat", &digest];
        Cairn::new(url).run(words).failed(3, &[&digest]);
        let finished = Cairn::new(url).run(["import".as_ref(), tree.as_os_str()]);
        assert_eq!(finished.status.code(), Some(1), "{finished:?}");
    }
    daemon.signal(Signal::INT);
    daemon.finish().succeeded();
    assert!(!socket.exists(), "the socket is left behind");
}

#[test]
fn the_services_of_one_command_can_be_in_different_places() {
    let scene = Scene::new();
    let daemon = scene.serve_tcp();
    let tree = trees::vector(scene.folder());
    let nowhere = Cairn::new("memory:");
    let flags = ["--blob-service-addr", "--directory-service-addr", "--path-info-service-addr"];
    let words = flags.iter().flat_map(|flag| [OsStr::new(flag), daemon.url().as_ref()]);
    let words = words.chain(["import".as_ref(), tree.as_os_str()]);
    let path = nowhere.run(words).succeeded().lines().remove(0);
    assert_eq!(scene.cairn().list(), [path]);
    assert_eq!(nowhere.list(), Vec::<String>::new());
}

#[test]
fn an_address_in_use_is_told() {
    let scene = Scene::new();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    scene.cairn().run(["daemon", "--listen", &address]).failed(1, &[&address]);

    let daemon = scene.serve_unix();
    let socket = scene.path("socket");
    let address = format!("unix:{}", socket.display());
    scene.cairn().run(["daemon", "--listen", &address]).failed(1, &[socket.to_str().unwrap()]);
    // The one that was there goes on, and what a killed one leaves behind is in nobody's way.
    assert_eq!(daemon.client().list(), Vec::<String>::new());
    daemon.kill();
    assert!(socket.exists());
    assert_eq!(scene.serve_unix().client().list(), Vec::<String>::new());
}

#[test]
fn sockets_are_taken_from_systemd() {
    let scene = Scene::new();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    // What systemd does: the socket is descriptor 3, and the variables say so to this process.
    let script = r#"exec 3<&0 </dev/null; LISTEN_FDS=1 LISTEN_PID=$$ exec "$0" daemon"#;
    let mut shell = Command::new("sh");
    shell.args(["-c", script]).arg(binary());
    shell.env("CAIRN_STORE", format!("sled:{}", scene.store().display()));
    let mut daemon = Running::start_with(&mut shell, OwnedFd::from(listener));
    let (url, _) = daemon.wait_for("listening on ");
    assert_eq!(url, format!("grpc+http://{address}"));
    assert_eq!(Cairn::new(url).list(), Vec::<String>::new());
    daemon.signal(Signal::TERM);
    daemon.finish().succeeded();
}

#[test]
fn what_comes_from_and_goes_far_away_is_compressed() {
    let scene = Scene::new();
    let tree = scene.new_folder("tree");
    for number in 0..50 {
        fs::write(tree.join(number.to_string()), format!("line {number}\n").repeat(10_000))
            .unwrap();
    }
    let path = scene.cairn().import(&tree);
    let daemon = scene.serve_tcp();
    let proxy = Proxy::before(daemon.url());
    proxy.set(Line { delay: Duration::from_millis(5), ..Line::default() });
    Cairn::new(proxy.url()).export(&path, &scene.path("exported")).succeeded();
    assert_same(&tree, &scene.path("exported"), Face::Plain);
    assert!(proxy.received() < 50 * 80_000 / 5, "{} bytes came", proxy.received());

    let other = scene.new_folder("other");
    let lines = |n: usize| (0..n).map(|number| format!("line {number}\n")).collect::<String>();
    for number in 0..50 {
        fs::write(other.join(number.to_string()), lines(5000 + number)).unwrap();
    }
    fs::write(other.join("large"), lines(200_000)).unwrap();
    let size = measure_tree(&other).1;
    let before = proxy.asked();
    let path = Cairn::new(proxy.url()).import(&other);
    let asked = proxy.asked() - before;
    assert!(asked < size / 2, "{asked} bytes were sent for {size}");
    scene.cairn().export(&path, &scene.path("exported again")).succeeded();
    assert_same(&other, &scene.path("exported again"), Face::Plain);
}

#[test]
fn a_walk_of_a_mount_that_is_far_asks_for_what_lies_below_at_once() {
    const DIRECTORIES: usize = 400;
    let scene = Scene::new();
    let tree = scene.new_folder("tree");
    for number in 0..DIRECTORIES {
        let folder = tree.join(format!("{}/{}/{number}", number % 4, number % 20));
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join("file"), number.to_string()).unwrap();
    }
    let path = scene.cairn().import(&tree);
    let daemon = scene.serve_tcp();
    let proxy = Proxy::before(daemon.url());
    let mount = scene.mount(&Cairn::new(proxy.url()), "mnt");
    let before = proxy.asked();
    let mut seen = 0;
    walk(&mount.at(&path), &mut |_, metadata| seen += usize::from(metadata.is_dir()));
    assert!(seen >= DIRECTORIES);
    // Each request has a digest of 32 bytes at least.
    let asked = proxy.asked() - before;
    assert!(asked < DIRECTORIES as u64 * 32, "{asked} bytes were asked with");
    mount.stop(Signal::TERM).succeeded();
}
