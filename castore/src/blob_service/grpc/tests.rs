use std::{sync::atomic::AtomicUsize, time::Duration};

use tonic::{Response, service::Routes};

use super::*;
use crate::{
    blob_service::{
        SMALL_BLOB_MAX, grpc_server::BlobServer, local::LocalBlobService, memory::MemoryBlobService,
    },
    conformance::{self, content},
    grpc::test_server::{Listen, TestServer},
    local::LocalStore,
    outboard::GROUP_LEN,
};

async fn serve(listen: Listen, plain: bool, service: Arc<dyn BlobService>) -> TestServer {
    let server = BlobServer::new(service);
    let mut routes = Routes::new(server.clone().into_snix_service());
    if !plain {
        routes = routes.add_service(server.into_cairn_service());
    }
    TestServer::start(listen, routes).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn conforms_in_both_wires() {
    for (listen, plain) in
        [(Listen::Unix, false), (Listen::Tcp, false), (Listen::Unix, true), (Listen::Tcp, true)]
    {
        let server = serve(listen, plain, Arc::new(MemoryBlobService::new())).await;
        conformance::blob_service(Arc::new(GrpcBlobService::new(server.peer()))).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn conforms_over_a_long_line() {
    let server = serve(Listen::Tcp, false, Arc::new(MemoryBlobService::new())).await;
    conformance::blob_service(Arc::new(GrpcBlobService::new(server.peer().far()))).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn blobs_go_over_a_long_line_in_frames() {
    let truth = Arc::new(MemoryBlobService::new());
    let server = serve(Listen::Tcp, false, truth.clone()).await;
    let service = GrpcBlobService::new(server.peer().far());
    let text = |line: &str, size: usize| Bytes::from(line.repeat(size / line.len()));
    let small: Vec<_> = (0..300).map(|n| Blob::new(text(&format!("{n} "), 50_000))).collect();
    let digests: Vec<_> = small.iter().map(|blob| *blob.digest()).collect();
    let (large, other) = (text("one large blob ", 3_000_000), content("another one", 3_000_000));

    assert!(!service.sends_zstd(), "the peer has not been heard");
    assert_eq!(service.has_many(&digests).await.unwrap(), vec![false; 300]);
    assert!(service.sends_zstd());
    service.put_many(small.clone()).await.unwrap();
    for bytes in [&large, &other] {
        let digest = service.put_bytes(bytes.clone()).await.unwrap();
        assert_eq!(digest, Digest::of(bytes));
        assert!(truth.read_to_bytes(&digest, ByteRange::ALL).await.unwrap() == bytes);
        for range in [0..3_000_000, 5..6, 999_999..2_222_222] {
            let range = range.start..range.end.min(bytes.len());
            let (offset, length) = (range.start as u64, range.len() as u64);
            let read = service.read_to_bytes(&digest, ByteRange { offset, length }).await.unwrap();
            assert!(read == bytes[range]);
        }
    }
    let read = service.read_many(&digests).await.unwrap();
    let expected = small.into_iter().map(|blob| Some(blob.into_bytes()));
    assert!(read.into_iter().eq(expected));
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Lie {
    /// A byte in the middle of what is read is another one.
    WrongBytes,
    /// What is read ends one byte early.
    Truncated,
    /// A chunk in the list is another one.
    WrongChunk,
    /// The sizes in the chunk list are not the blob's.
    WrongSizes,
    /// What should prove the ranges is another blob's.
    WrongProof,
    /// There is no proof, and all else is true.
    NoProof,
    /// What is stored is answered for as something else.
    WrongStored,
    /// The first three streams that are read break off after a piece.
    Breaks,
    /// Nothing is answered.
    Silent,
    /// Nothing may be done.
    Denied,
    /// Nothing can be stored.
    Full,
}

/// A service that says what is not so. The server adapter passes it on.
#[derive(Debug)]
struct Liar {
    lie: Lie,
    truth: MemoryBlobService,
    reads: AtomicUsize,
}

impl fmt::Display for Liar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("liar")
    }
}

impl Liar {
    fn changed(&self, bytes: Bytes) -> Bytes {
        let mut bytes = bytes.to_vec();
        let middle = bytes.len() / 2;
        match self.lie {
            Lie::WrongBytes => bytes[middle] ^= 1,
            Lie::Truncated => bytes.truncate(bytes.len() - 1),
            _ => {}
        }
        bytes.into()
    }

    async fn refuse(&self) -> Result<(), BlobError> {
        match self.lie {
            Lie::Silent => std::future::pending().await,
            Lie::Denied => Err(BlobError::PermissionDenied {
                service: self.to_string(),
                source: "not you".into(),
            }),
            _ => Ok(()),
        }
    }
}

#[async_trait]
impl BlobService for Liar {
    async fn stat(&self, digest: &Digest) -> Result<Option<BlobStat>, BlobError> {
        self.refuse().await?;
        let Some(mut stat) = self.truth.stat(digest).await? else { return Ok(None) };
        match self.lie {
            Lie::WrongChunk if stat.chunks.len() > 1 => stat.chunks.swap(0, 1),
            Lie::WrongSizes if stat.chunks.len() > 1 => stat.chunks[0].size -= 1,
            Lie::NoProof => stat.outboard = None,
            Lie::WrongProof => {
                let mut other = OutboardHasher::new();
                other.update(&content("another blob", stat.size as usize));
                stat.outboard = Some(other.finish());
            }
            _ => {}
        }
        Ok(Some(stat))
    }

    async fn has_many(&self, digests: &[Digest]) -> Result<Vec<bool>, BlobError> {
        self.refuse().await?;
        self.truth.has_many(digests).await
    }

    async fn read(&self, digest: &Digest, range: ByteRange) -> Result<BlobStream, BlobError> {
        self.refuse().await?;
        let bytes = self.changed(self.truth.read_to_bytes(digest, range).await?);
        let pieces: Vec<_> =
            bytes.chunks(100_000).map(|piece| Ok(bytes.slice_ref(piece))).collect();
        if self.lie == Lie::Breaks && self.reads.fetch_add(1, Ordering::Relaxed) < 3 {
            let broken =
                BlobError::Unavailable { service: self.to_string(), source: "it broke off".into() };
            return Ok(stream::iter(pieces.into_iter().take(1).chain([Err(broken)])).boxed());
        }
        Ok(stream::iter(pieces).boxed())
    }

    async fn read_many(&self, digests: &[Digest]) -> Result<Vec<Option<Bytes>>, BlobError> {
        self.refuse().await?;
        let blobs = self.truth.read_many(digests).await?;
        Ok(blobs.into_iter().map(|blob| blob.map(|bytes| self.changed(bytes))).collect())
    }

    async fn read_many_packed(
        &self,
        digests: &[Digest],
        packing: Packing,
    ) -> Result<Vec<Option<Packed>>, BlobError> {
        self.read_many_and_pack(digests, packing).await
    }

    async fn put(&self, source: BlobSource) -> Result<BlobStat, BlobError> {
        self.refuse().await?;
        if self.lie == Lie::Full {
            return Err(BlobError::NoSpace { service: self.to_string(), source: "full".into() });
        }
        let mut stat = self.truth.put(source).await?;
        if self.lie == Lie::WrongStored {
            stat.digest = Digest::of(b"something else");
        }
        Ok(stat)
    }

    async fn put_many(&self, blobs: Vec<Blob>) -> Result<(), BlobError> {
        self.refuse().await?;
        self.truth.put_many(blobs).await
    }

    fn read_local(&self, _: &Digest, _: ByteRange) -> Option<Result<Bytes, BlobError>> {
        None
    }

    fn lend(&self, _: &Digest) -> Option<File> {
        None
    }

    fn keep_whole(&self, _: &Digest) {}
}

struct Lied {
    _server: TestServer,
    service: GrpcBlobService,
    large: (Digest, Bytes),
    small: (Digest, Bytes),
}

async fn lied(lie: Lie, plain: bool) -> Lied {
    let truth = MemoryBlobService::new();
    let (large, small) = (content("lies", 2_000_000), content("lies", 1000));
    let large = (truth.put_bytes(large.clone()).await.unwrap(), large);
    let small = (truth.put_bytes(small.clone()).await.unwrap(), small);
    let liar = Liar { lie, truth, reads: AtomicUsize::new(0) };
    let server = serve(Listen::Unix, plain, Arc::new(liar)).await;
    let deadline = match lie {
        Lie::Silent => Duration::from_millis(100),
        _ => Duration::from_secs(5),
    };
    let service = GrpcBlobService::new(server.peer().with_deadline(deadline));
    Lied { _server: server, service, large, small }
}

fn names(result: Result<Bytes, BlobError>, expected: &Digest) {
    match result {
        Err(BlobError::Corrupt { digest, reason }) => {
            assert_eq!(digest, *expected, "{reason}");
            assert!(reason.contains("grpc+unix:"), "the reason names the peer: {reason}");
        }
        other => panic!("a lie gave {:?}", other.map(|bytes| bytes.len())),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wrong_and_truncated_bytes_are_told() {
    for (lie, plain) in [
        (Lie::WrongBytes, false),
        (Lie::Truncated, false),
        (Lie::WrongBytes, true),
        (Lie::Truncated, true),
    ] {
        let Lied { service, large, small, _server } = lied(lie, plain).await;
        let range = ByteRange { offset: GROUP_LEN as u64 - 5, length: 20 };
        for range in [ByteRange::ALL, range] {
            names(service.read_to_bytes(&large.0, range).await, &large.0);
        }
        names(service.read_to_bytes(&small.0, ByteRange::ALL).await, &small.0);
        let read = service.read_many(&[small.0]).await.map(|_| Bytes::new());
        names(read, &small.0);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wrong_chunk_lists_and_proofs_are_told() {
    for (lie, plain) in [
        (Lie::WrongChunk, true),
        (Lie::WrongSizes, true),
        (Lie::WrongSizes, false),
        (Lie::WrongProof, false),
    ] {
        let Lied { service, large, _server, .. } = lied(lie, plain).await;
        names(service.stat(&large.0).await.map(|_| Bytes::new()), &large.0);
        names(service.read_to_bytes(&large.0, ByteRange::ALL).await, &large.0);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_blob_without_a_proof_is_read_to_make_one() {
    let Lied { service, large, _server, .. } = lied(Lie::NoProof, false).await;
    let range = ByteRange { offset: 1_000_000, length: 5000 };
    let read = service.read_to_bytes(&large.0, range).await.unwrap();
    assert!(read == large.1[1_000_000..1_005_000]);
    let stat = service.stat(&large.0).await.unwrap().expect("it is there");
    assert!(stat.outboard.is_some(), "the proof is kept");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_stored_as_something_else_is_told() {
    for plain in [false, true] {
        let Lied { service, _server, .. } = lied(Lie::WrongStored, plain).await;
        let bytes = content("to be stored", 10);
        let digest = Digest::of(&bytes);
        names(service.put_bytes(bytes).await.map(|_| Bytes::new()), &digest);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_that_break_go_on_where_they_were() {
    for plain in [false, true] {
        let Lied { service, large, _server, .. } = lied(Lie::Breaks, plain).await;
        let read = service.read_to_bytes(&large.0, ByteRange::ALL).await.unwrap();
        assert!(read == large.1);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn silence_ends_with_the_deadline() {
    for plain in [false, true] {
        let Lied { service, large, small, _server } = lied(Lie::Silent, plain).await;
        let unavailable = |result: Result<(), BlobError>| {
            assert!(matches!(result, Err(BlobError::Unavailable { .. })), "{result:?}");
        };
        unavailable(service.stat(&large.0).await.map(drop));
        unavailable(service.has_many(&[large.0]).await.map(drop));
        unavailable(service.read(&large.0, ByteRange::ALL).await.map(drop));
        unavailable(service.read_many(&[small.0]).await.map(drop));
        unavailable(service.put_bytes(content("silence", 10)).await.map(drop));
        // More than the windows hold, so that the peer stops taking.
        unavailable(service.put_bytes(content("silence", 3_000_000)).await.map(drop));
        unavailable(service.put_many(vec![Blob::new(small.1)]).await);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refusals_keep_their_meaning() {
    let Lied { service, large, .. } = &lied(Lie::Denied, false).await;
    let denied = service.stat(&large.0).await;
    assert!(matches!(denied, Err(BlobError::PermissionDenied { .. })), "{denied:?}");
    let Lied { service, .. } = &lied(Lie::Full, false).await;
    let full = service.put_bytes(content("full", 10)).await;
    assert!(matches!(full, Err(BlobError::NoSpace { .. })), "{full:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_is_not_there_is_unavailable() {
    let folder = tempfile::tempdir().unwrap();
    let address = crate::address::GrpcAddress::Unix(folder.path().join("nobody"));
    let service = GrpcBlobService::new(GrpcPeer::new(&address).unwrap());
    let error = service.stat(&Digest::of(b"x")).await.unwrap_err();
    assert_eq!(error.to_string(), format!("{address} can't be reached"));
    assert!(matches!(error, BlobError::Unavailable { .. }));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_are_answered_as_the_wire_says() {
    let truth = MemoryBlobService::new();
    let large = content("the wire", 1_500_000);
    let digest = truth.put_bytes(large.clone()).await.unwrap();
    let server = serve(Listen::Tcp, false, Arc::new(truth)).await;
    let client = GrpcBlobService::new(server.peer());
    let stat = |digest: Bytes, send_chunks| {
        let mut client = client.snix();
        async move { client.stat(snix::StatBlobRequest { digest, send_chunks, send_bao: false }).await }
    };
    let code =
        |result: Result<Response<snix::StatBlobResponse>, Status>| result.unwrap_err().code();
    assert_eq!(code(stat(Bytes::from_static(b"short"), true).await), Code::InvalidArgument);
    assert_eq!(code(stat(Digest::of(b"unknown").into(), true).await), Code::NotFound);
    let chunks = stat(digest.into(), true).await.unwrap().into_inner().chunks;
    assert!(chunks.len() > 1);
    assert!(stat(chunks[0].digest.clone(), true).await.unwrap().into_inner().chunks.is_empty());

    let read = |digest: Bytes| {
        let mut client = client.snix();
        async move {
            let answer = client.read(snix::ReadBlobRequest { digest }).await?;
            answer.into_inner().try_collect::<Vec<_>>().await
        }
    };
    let first = read(chunks[0].digest.clone()).await.unwrap();
    let first: Vec<u8> = first.iter().flat_map(|chunk| chunk.data.to_vec()).collect();
    assert!(first == large[..chunks[0].size as usize], "a chunk is read like a blob");
    let all = read(digest.into()).await.unwrap();
    assert!(all.iter().all(|chunk| (1..=PIECE_LEN).contains(&chunk.data.len())));
    assert!(read(Digest::EMPTY.into()).await.unwrap().is_empty());
    assert_eq!(read(Digest::of(b"unknown").into()).await.unwrap_err().code(), Code::NotFound);

    let mut snix = client.snix();
    let none = snix.put(stream::empty::<snix::BlobChunk>()).await.unwrap().into_inner();
    assert_eq!(none.digest, Digest::EMPTY.as_bytes().as_slice());
    let one = stream::iter([snix::BlobChunk { data: content("one message", 6_000_000) }]);
    let stored = snix.put(one).await.unwrap().into_inner();
    assert_eq!(stored.digest, Digest::of(&content("one message", 6_000_000)).as_bytes().as_slice());

    let mut cairn = client.cairn();
    let digests = vec![Bytes::from(digest); READ_MANY_BLOBS + 1];
    let refused = cairn
        .read_many(cairn::ReadManyRequest { digests, ..Default::default() })
        .await
        .unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    let blobs = vec![content("too large", SMALL_BLOB_MAX + 1)];
    let request = cairn::PutManyRequest { blobs, packed: Vec::new() };
    let refused = cairn.put_many(stream::iter([request])).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    let no_frame = cairn::Piece { data: content("no frame", 10), unpacked_size: 1000 };
    let request = cairn::PutManyRequest { blobs: Vec::new(), packed: vec![no_frame.clone()] };
    let refused = cairn.put_many(stream::iter([request])).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    let refused = cairn.put(stream::iter([no_frame])).await.unwrap_err();
    assert_eq!(refused.code(), Code::Aborted, "like any stream that can't be read");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_near_gets_frames_where_they_are_stored() {
    let folder = tempfile::tempdir().unwrap();
    let store = LocalBlobService::new(LocalStore::open(folder.path()).unwrap());
    let repetitive = Bytes::from(b"again ".repeat(1000));
    let digest = store.put_bytes(repetitive.clone()).await.unwrap();
    let server = BlobServer::new(Arc::new(store));
    let server = TestServer::start(Listen::Tcp, Routes::new(server.into_cairn_service())).await;
    let client = GrpcBlobService::new(server.peer());
    let packed = client.read_many_packed(&[digest], Packing::Stored).await.unwrap();
    assert!(matches!(&packed[..], [Some(Packed::Frame { size: 6000, .. })]), "{packed:?}");
    assert_eq!(client.read_many(&[digest]).await.unwrap(), [Some(repetitive)]);
}
