//! Path infos of another process, over gRPC. What the peer sends has to be what was asked for;
//! whether it is cairn or speaks the wire of Snix alone is found out at the first call.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use cairn_castore::{
    Node,
    grpc::{GrpcPeer, MESSAGE_MAX, PeerChannel},
};
use cairn_proto::{
    cairn::v1::{self as cairn, path_info_service_client::PathInfoServiceClient as CairnClient},
    snix::store::v1::{
        self as snix, get_path_info_request::ByWhat,
        path_info_service_client::PathInfoServiceClient as SnixClient,
    },
};
use futures::TryStreamExt as _;
use tonic::{Code, Status};

use super::{
    NarWitness, PAGE_MAX, PathInfoError, PathInfoService, TreeTeller,
    status::from_status,
    window::{LastWindow, Window},
};
use crate::{
    nixbase32,
    path_info::{NarInfo, PathInfo},
    store_path::OutputHash,
};

/// How long a peer may take for a call that computes a NAR: it has to read all of the tree.
pub const NAR_DEADLINE: Duration = Duration::from_secs(3600);

/// The records of a peer without paging that are held in memory to page through them.
const WINDOW: usize = 4 * PAGE_MAX;

/// A peer's path infos. Clones share the connection.
#[derive(Clone)]
pub struct GrpcPathInfoService {
    peer: GrpcPeer,
    /// The peer has nothing of `cairn.v1`.
    plain: Arc<AtomicBool>,
    window: Arc<LastWindow<PathInfo>>,
}

impl GrpcPathInfoService {
    /// The path infos of this peer. Nothing is sent yet.
    pub fn new(peer: GrpcPeer) -> Self {
        Self { peer, plain: Arc::default(), window: Arc::default() }
    }

    fn snix(&self) -> SnixClient<PeerChannel> {
        let client = SnixClient::new(self.peer.channel()).max_decoding_message_size(MESSAGE_MAX);
        cairn_castore::compressed!(self.peer, client)
    }

    fn cairn(&self) -> CairnClient<PeerChannel> {
        let client = CairnClient::new(self.peer.channel()).max_decoding_message_size(MESSAGE_MAX);
        cairn_castore::compressed!(self.peer, client)
    }

    /// What `cairn.v1` answers; `None` if the peer does not have it, which is remembered.
    async fn extended<T>(
        &self,
        answer: impl Future<Output = Result<T, Status>>,
    ) -> Result<Option<T>, Status> {
        if self.plain.load(Ordering::Relaxed) {
            return Ok(None);
        }
        match answer.await {
            Err(status) if status.code() == Code::Unimplemented => {
                self.plain.store(true, Ordering::Relaxed);
                Ok(None)
            }
            answer => answer.map(Some),
        }
    }

    fn error(&self, status: Status, put: Option<&PathInfo>, what: &'static str) -> PathInfoError {
        from_status(status, self.peer.url(), put, what)
    }

    fn corrupt(&self, what: impl fmt::Display) -> PathInfoError {
        PathInfoError::Corrupt { reason: format!("{} sent {what}", self.peer) }
    }

    fn parse(&self, message: snix::PathInfo) -> Result<PathInfo, PathInfoError> {
        PathInfo::from_proto(message).map_err(|error| self.corrupt(error))
    }

    /// The next records behind `after`, which may be fewer than there are, and whether there are
    /// more. `None` if the peer has no pages.
    async fn page(
        &self,
        after: Option<OutputHash>,
        limit: usize,
    ) -> Result<Option<(Vec<PathInfo>, bool)>, PathInfoError> {
        let request = cairn::ListPageRequest {
            after: after.map(|after| Bytes::copy_from_slice(&after)).unwrap_or_default(),
            limit: limit as u32,
        };
        let answer = self.extended(self.peer.call(|| {
            let (mut client, request) = (self.cairn(), request.clone());
            async move { client.list_page(request).await }
        }));
        let answer = answer.await.map_err(|status| self.error(status, None, "list path infos"))?;
        let Some(answer) = answer else { return Ok(None) };
        let infos = answer.path_infos.into_iter().map(|message| self.parse(message));
        let infos = infos.collect::<Result<Vec<_>, _>>()?;
        // Else a listing that never ends, or that shows a path twice, would be theirs to make.
        let hashes = || infos.iter().map(|info| *info.store_path.hash());
        let is_ascending = after.into_iter().chain(hashes()).is_sorted_by(|a, b| a < b);
        if infos.len() > limit || !is_ascending || (answer.more && infos.is_empty()) {
            return Err(self.corrupt("a page of path infos that is none"));
        }
        Ok(Some((infos, answer.more)))
    }

    /// The same from a peer without pages: each window is a listing of all that it has.
    async fn list_plain(
        &self,
        after: Option<OutputHash>,
        limit: usize,
    ) -> Result<Vec<PathInfo>, PathInfoError> {
        let infos = |page: Vec<(_, PathInfo)>| page.into_iter().map(|(_, info)| info).collect();
        if let Some(page) = after.and_then(|after| self.window.page(after, limit)) {
            return Ok(infos(page));
        }
        let error = |status| self.error(status, None, "list path infos");
        let messages = self.peer.call(|| {
            let mut client = self.snix();
            async move { client.list(snix::ListPathInfoRequest {}).await }
        });
        let mut messages = self.peer.receive(messages.await.map_err(error)?, Some);
        let mut window = Window::new(after, WINDOW);
        while let Some(message) = messages.try_next().await.map_err(error)? {
            let info = self.parse(message)?;
            window.push(*info.store_path.hash(), info);
        }
        Ok(infos(self.window.keep(window, limit)))
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl PathInfoService for GrpcPathInfoService {
    async fn get(&self, hash: &OutputHash) -> Result<Option<PathInfo>, PathInfoError> {
        let by_what = Some(ByWhat::ByOutputHash(Bytes::copy_from_slice(hash)));
        let request = snix::GetPathInfoRequest { by_what };
        let answer = self.peer.call(|| {
            let (mut client, request) = (self.snix(), request.clone());
            async move { client.get(request).await }
        });
        let info = match answer.await {
            Ok(message) => self.parse(message)?,
            Err(status) if status.code() == Code::NotFound => return Ok(None),
            Err(status) => return Err(self.error(status, None, "get path infos")),
        };
        if info.store_path.hash() != hash {
            let asked = nixbase32::encode(hash);
            return Err(self.corrupt(format!("{} for {asked}", info.store_path)));
        }
        Ok(Some(info))
    }

    /// Whatever was witnessed here, the peer has to see for itself.
    async fn put(&self, info: PathInfo, _: Option<NarWitness>) -> Result<PathInfo, PathInfoError> {
        let request = info.to_proto();
        let peer = self.peer.clone().with_deadline(NAR_DEADLINE);
        let answer = peer.call(|| {
            let (mut client, request) = (self.snix(), request.clone());
            async move { client.put(request).await }
        });
        let answer = answer.await;
        let answer = answer.map_err(|status| self.error(status, Some(&info), "put path infos"))?;
        let stored = self.parse(answer)?;
        if !stored.is_same_but_signatures(&info) {
            return Err(
                self.corrupt(format!("another record than it was to store of {}", info.store_path))
            );
        }
        Ok(stored)
    }

    async fn list(
        &self,
        after: Option<OutputHash>,
        limit: usize,
    ) -> Result<Vec<PathInfo>, PathInfoError> {
        let limit = limit.min(PAGE_MAX);
        let mut listed: Vec<PathInfo> = Vec::new();
        while listed.len() < limit {
            let behind = listed.last().map(|info| *info.store_path.hash()).or(after);
            let Some((page, more)) = self.page(behind, limit - listed.len()).await? else {
                return self.list_plain(after, limit).await;
            };
            listed.extend(page);
            if !more {
                break;
            }
        }
        Ok(listed)
    }

    /// Where the connection breaks after the peer has deleted and before it has said so, the answer
    /// is that of the next attempt: the path was not there.
    async fn delete(&self, hash: &OutputHash) -> Result<bool, PathInfoError> {
        let request = cairn::DeleteRequest { output_hash: Bytes::copy_from_slice(hash) };
        let what = "delete path infos";
        let answer = self.extended(self.peer.call(|| {
            let (mut client, request) = (self.cairn(), request.clone());
            async move { client.delete(request).await }
        }));
        match answer.await.map_err(|status| self.error(status, None, what))? {
            Some(answer) => Ok(answer.deleted),
            None => Err(PathInfoError::Unsupported { service: self.to_string(), what }),
        }
    }

    async fn calculate_nar(&self, node: &Node) -> Result<NarInfo, PathInfoError> {
        let request = node.to_entry(None);
        let peer = self.peer.clone().with_deadline(NAR_DEADLINE);
        let answer = peer.call(|| {
            let (mut client, request) = (self.snix(), request.clone());
            async move { client.calculate_nar(request).await }
        });
        let answer = answer.await;
        let answer = answer.map_err(|status| self.error(status, None, "compute NAR hashes"))?;
        NarInfo::from_proto(&answer).map_err(|error| self.corrupt(error))
    }

    fn get_local(&self, _: &OutputHash) -> Option<Result<Option<PathInfo>, PathInfoError>> {
        None
    }

    fn tree_teller(&self) -> Option<TreeTeller> {
        let peer = self.peer.clone().with_deadline(NAR_DEADLINE);
        (!self.plain.load(Ordering::Relaxed)).then(|| TreeTeller::new(peer))
    }
}

impl fmt::Display for GrpcPathInfoService {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.peer.fmt(f)
    }
}

impl fmt::Debug for GrpcPathInfoService {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "GrpcPathInfoService({})", self.peer)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::collections::BTreeMap;

    use cairn_castore::{
        Blob, BlobService, Digest, DirectoryService, address::Address,
        blob_service::memory::MemoryBlobService, directory_service::memory::MemoryDirectoryService,
    };
    use cairn_proto::snix::store::v1::path_info_service_server as snix_server;
    use futures::{StreamExt as _, stream::BoxStream};
    use tokio::{net::TcpListener, task::JoinHandle};
    use tokio_stream::wrappers::TcpListenerStream;
    use tonic::{
        Request, Response,
        transport::{Server, server::Router},
    };

    use super::*;
    use crate::path_info_service::{grpc_server::PathInfoServer, memory::MemoryPathInfoService};

    /// A server on a port of its own, which ends with the test.
    pub(crate) struct Served {
        pub(crate) peer: GrpcPeer,
        task: JoinHandle<()>,
    }

    impl Drop for Served {
        fn drop(&mut self) {
            self.task.abort();
        }
    }

    pub(crate) async fn serve(router: Router) -> Served {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("grpc+http://{}", listener.local_addr().unwrap());
        let incoming = TcpListenerStream::new(listener);
        let task = tokio::spawn(async move { router.serve_with_incoming(incoming).await.unwrap() });
        let Ok(Address::Grpc(address)) = url.parse() else { panic!("{url} is a peer's address") };
        Served { peer: GrpcPeer::new(&address).unwrap(), task }
    }

    type Parts = (Arc<dyn PathInfoService>, Arc<dyn BlobService>, Arc<dyn DirectoryService>);

    fn parts() -> Parts {
        let blobs: Arc<dyn BlobService> = Arc::new(MemoryBlobService::new());
        let directories: Arc<dyn DirectoryService> = Arc::new(MemoryDirectoryService::new());
        let service = MemoryPathInfoService::new(Arc::clone(&blobs), Arc::clone(&directories));
        (Arc::new(service), blobs, directories)
    }

    /// A record for each of these names.
    async fn fill((service, blobs, _): &Parts, count: usize) -> BTreeMap<OutputHash, PathInfo> {
        blobs.put_many(vec![Blob::new(Bytes::from_static(b"hi\n"))]).await.unwrap();
        let node = Node::File { digest: Digest::of(b"hi\n"), size: 3, executable: false };
        let witness = NarWitness::new(node.clone(), service.calculate_nar(&node).await.unwrap());
        let mut infos = BTreeMap::new();
        for index in 0..count {
            let info = PathInfo::of_imported(&format!("path-{index}"), &witness).unwrap();
            service.put(info.clone(), Some(witness.clone())).await.unwrap();
            infos.insert(*info.store_path.hash(), info);
        }
        infos
    }

    async fn list_all(service: &impl PathInfoService, limit: usize) -> Vec<PathInfo> {
        let mut listed: Vec<PathInfo> = Vec::new();
        loop {
            let after = listed.last().map(|info| *info.store_path.hash());
            let page = service.list(after, limit).await.unwrap();
            let is_last = page.len() < limit;
            listed.extend(page);
            if is_last {
                return listed;
            }
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn keeps_the_contract() {
        let (service, blobs, directories) = parts();
        let server = PathInfoServer::new(service);
        let router = Server::builder()
            .add_service(server.clone().into_snix_service())
            .add_service(server.into_cairn_service());
        let served = serve(router).await;
        let service = Arc::new(GrpcPathInfoService::new(served.peer.clone()));
        crate::conformance::path_info_service(service, blobs, directories).await;
    }

    #[tokio::test]
    async fn a_peer_with_the_shared_wire_alone_is_listed_and_can_not_delete() {
        let parts = parts();
        let infos = fill(&parts, 40).await;
        let server = PathInfoServer::new(parts.0);
        let served = serve(Server::builder().add_service(server.into_snix_service())).await;
        let service = GrpcPathInfoService::new(served.peer.clone());
        for limit in [1, 7, 40, 41, PAGE_MAX] {
            assert_eq!(
                list_all(&service, limit).await,
                infos.values().cloned().collect::<Vec<_>>()
            );
        }
        let hash = *infos.keys().next().unwrap();
        let error = service.delete(&hash).await.unwrap_err();
        assert!(matches!(error, PathInfoError::Unsupported { .. }), "{error:?}");
        assert_eq!(service.get(&hash).await.unwrap().as_ref(), infos.get(&hash));
    }

    #[tokio::test]
    async fn requests_of_no_form_are_refused() {
        let server = PathInfoServer::new(parts().0);
        let router = Server::builder()
            .add_service(server.clone().into_snix_service())
            .add_service(server.into_cairn_service());
        let served = serve(router).await;
        let mut snix = SnixClient::new(served.peer.channel());
        let mut cairn = CairnClient::new(served.peer.channel());
        let short = || Some(ByWhat::ByOutputHash(Bytes::from_static(&[1; 19])));
        for by_what in [None, short()] {
            let status = snix.get(snix::GetPathInfoRequest { by_what }).await.unwrap_err();
            assert_eq!(status.code(), Code::InvalidArgument, "{status}");
        }
        let by_what = Some(ByWhat::ByOutputHash(Bytes::from_static(&[1; 20])));
        let status = snix.get(snix::GetPathInfoRequest { by_what }).await.unwrap_err();
        assert_eq!(status.code(), Code::NotFound, "{status}");
        let status = snix.put(snix::PathInfo::default()).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument, "{status}");
        let node = Node::File { digest: Digest::EMPTY, size: 0, executable: false };
        let named = node.to_entry(Some(&"name".try_into().unwrap()));
        let status = snix.calculate_nar(named).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument, "{status}");
        let after = Bytes::from_static(&[1; 21]);
        let status = cairn.list_page(cairn::ListPageRequest { after, limit: 1 }).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument, "{status}");
        let status = cairn.delete(cairn::DeleteRequest::default()).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument, "{status}");
    }

    /// A peer that answers every request with the same record.
    struct Liar(snix::PathInfo);

    #[async_trait]
    impl snix_server::PathInfoService for Liar {
        async fn get(
            &self,
            _: Request<snix::GetPathInfoRequest>,
        ) -> Result<Response<snix::PathInfo>, Status> {
            Ok(Response::new(self.0.clone()))
        }

        async fn put(
            &self,
            _: Request<snix::PathInfo>,
        ) -> Result<Response<snix::PathInfo>, Status> {
            Ok(Response::new(self.0.clone()))
        }

        async fn calculate_nar(
            &self,
            _: Request<cairn_proto::snix::castore::v1::Entry>,
        ) -> Result<Response<snix::CalculateNarResponse>, Status> {
            Ok(Response::new(snix::CalculateNarResponse::default()))
        }

        type ListStream = BoxStream<'static, Result<snix::PathInfo, Status>>;

        async fn list(
            &self,
            _: Request<snix::ListPathInfoRequest>,
        ) -> Result<Response<Self::ListStream>, Status> {
            let broken = [Ok(self.0.clone()), Ok(snix::PathInfo::default())];
            Ok(Response::new(futures::stream::iter(broken).boxed()))
        }
    }

    #[tokio::test]
    async fn a_peer_that_answers_something_else_is_not_believed() {
        let parts = parts();
        let infos = fill(&parts, 2).await;
        let [one, other] = infos.values().collect::<Vec<_>>()[..] else { panic!("there are two") };
        let liar = snix_server::PathInfoServiceServer::new(Liar(one.to_proto()));
        let served = serve(Server::builder().add_service(liar)).await;
        let service = GrpcPathInfoService::new(served.peer.clone());
        assert_eq!(service.get(one.store_path.hash()).await.unwrap().as_ref(), Some(one));
        for error in [
            service.get(other.store_path.hash()).await.unwrap_err(),
            service.put(other.clone(), None).await.unwrap_err(),
            service.calculate_nar(&one.node).await.unwrap_err(),
            service.list(None, 10).await.unwrap_err(),
        ] {
            assert!(matches!(error, PathInfoError::Corrupt { .. }), "{error:?}");
        }
    }

    #[tokio::test]
    async fn a_peer_that_is_not_there_is_unavailable() {
        let server = PathInfoServer::new(parts().0).into_snix_service();
        let mut served = serve(Server::builder().add_service(server)).await;
        served.task.abort();
        let _ = (&mut served.task).await;
        let service = GrpcPathInfoService::new(served.peer.clone());
        let error = service.get(&[1; 20]).await.unwrap_err();
        assert!(matches!(error, PathInfoError::Unavailable { .. }), "{error:?}");
    }
}
