//! A path-info service offered by gRPC: the wire of Snix, and cairn's own. Nothing is checked here
//! but the form of requests; listening is the affair of the daemon.

use std::{fmt, sync::Arc};

use async_stream::try_stream;
use async_trait::async_trait;
use cairn_castore::{Node, grpc::MESSAGE_MAX};
use cairn_proto::{
    cairn::v1::{
        self as cairn,
        path_info_service_server::{
            PathInfoService as CairnPathInfoService,
            PathInfoServiceServer as CairnPathInfoServiceServer,
        },
    },
    snix::{
        castore::v1::Entry,
        store::v1::{
            self as snix,
            get_path_info_request::ByWhat,
            path_info_service_server::{
                PathInfoService as SnixPathInfoService,
                PathInfoServiceServer as SnixPathInfoServiceServer,
            },
        },
    },
};
use futures::{StreamExt as _, stream::BoxStream};
use prost::Message as _;
use tonic::{Request, Response, Status, Streaming};

use super::{PAGE_MAX, PathInfoService, checked::RECORD_MAX, status::to_status, told::ToldTrees};
use crate::{path_info::PathInfo, store_path::OutputHash};

/// The longest message that is read, in bytes: a record and its envelope.
const REQUEST_MAX: usize = 2 * RECORD_MAX;
/// The longest message of `cairn.v1` that is read, in bytes: some steps through a tree.
pub const CAIRN_REQUEST_MAX: usize = 256 * 1024;
/// The bytes from which on a page is not made longer: with one more record it is still below the
/// 4 MiB that any client reads.
const PAGE_BYTES: usize = 2 * 1024 * 1024;
/// The records in a page that the client leaves to the server.
const PAGE_DEFAULT: usize = 256;

/// Answers for a path-info service, in both wires.
#[derive(Clone)]
pub struct PathInfoServer {
    service: Arc<dyn PathInfoService>,
    told: Option<Arc<ToldTrees>>,
}

impl PathInfoServer {
    /// Offers this service.
    pub fn new(service: Arc<dyn PathInfoService>) -> Self {
        Self { service, told: None }
    }

    /// The same, and it can be told of trees while they are stored.
    pub fn with_told(self, told: Arc<ToldTrees>) -> Self {
        // What itself passes on what is put does not believe a witness.
        let told = self.service.tree_teller().is_none().then_some(told);
        Self { told, ..self }
    }

    /// The tower service of `snix.store.v1`, with the limits of its messages.
    pub fn into_snix_service(self) -> SnixPathInfoServiceServer<Self> {
        SnixPathInfoServiceServer::new(self)
            .max_decoding_message_size(REQUEST_MAX)
            .max_encoding_message_size(MESSAGE_MAX)
    }

    /// The tower service of `cairn.v1`, with the limits of its messages.
    pub fn into_cairn_service(self) -> CairnPathInfoServiceServer<Self> {
        CairnPathInfoServiceServer::new(self)
            .max_decoding_message_size(CAIRN_REQUEST_MAX)
            .max_encoding_message_size(MESSAGE_MAX)
    }
}

impl fmt::Debug for PathInfoServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PathInfoServer({})", self.service)
    }
}

#[allow(clippy::result_large_err)]
fn output_hash(bytes: &[u8]) -> Result<OutputHash, Status> {
    bytes.try_into().map_err(|_| {
        let found = bytes.len();
        Status::invalid_argument(format!("an output hash has 20 bytes, not {found}"))
    })
}

#[async_trait]
impl SnixPathInfoService for PathInfoServer {
    async fn get(
        &self,
        request: Request<snix::GetPathInfoRequest>,
    ) -> Result<Response<snix::PathInfo>, Status> {
        let Some(ByWhat::ByOutputHash(hash)) = request.into_inner().by_what else {
            return Err(Status::invalid_argument("a request without by_what"));
        };
        let hash = output_hash(&hash)?;
        let info = self.service.get(&hash).await.map_err(|error| to_status(&error))?;
        let info = info.ok_or_else(|| {
            let hash = crate::nixbase32::encode(&hash);
            Status::not_found(format!("no path with the hash {hash} is in the store"))
        })?;
        Ok(Response::new(info.to_proto()))
    }

    async fn put(
        &self,
        request: Request<snix::PathInfo>,
    ) -> Result<Response<snix::PathInfo>, Status> {
        let info = PathInfo::from_proto(request.into_inner());
        let info = info.map_err(|error| to_status(&error.into()))?;
        let put = async {
            let witness = match &self.told {
                Some(told) => told.witness(&info).await?,
                None => None,
            };
            self.service.put(info, witness).await
        };
        let info = put.await.map_err(|error| to_status(&error))?;
        Ok(Response::new(info.to_proto()))
    }

    async fn calculate_nar(
        &self,
        request: Request<Entry>,
    ) -> Result<Response<snix::CalculateNarResponse>, Status> {
        let node = Node::from_nameless_entry(request.into_inner());
        let node = node.map_err(|error| Status::invalid_argument(error.to_string()))?;
        let nar = self.service.calculate_nar(&node).await.map_err(|error| to_status(&error))?;
        Ok(Response::new(nar.to_proto()))
    }

    type ListStream = BoxStream<'static, Result<snix::PathInfo, Status>>;

    async fn list(
        &self,
        _: Request<snix::ListPathInfoRequest>,
    ) -> Result<Response<Self::ListStream>, Status> {
        let service = Arc::clone(&self.service);
        let infos = try_stream! {
            let mut after = None;
            loop {
                let page = service.list(after, PAGE_DEFAULT).await;
                let page = page.map_err(|error| to_status(&error))?;
                let is_last = page.len() < PAGE_DEFAULT;
                for info in page {
                    after = Some(*info.store_path.hash());
                    yield info.to_proto();
                }
                if is_last {
                    break;
                }
            }
        };
        Ok(Response::new(infos.boxed()))
    }
}

#[async_trait]
impl CairnPathInfoService for PathInfoServer {
    async fn list_page(
        &self,
        request: Request<cairn::ListPageRequest>,
    ) -> Result<Response<cairn::ListPageResponse>, Status> {
        let cairn::ListPageRequest { after, limit } = request.into_inner();
        let after = match &*after {
            [] => None,
            after => Some(output_hash(after)?),
        };
        let limit = match limit as usize {
            0 => PAGE_DEFAULT,
            limit => limit.min(PAGE_MAX),
        };
        let page = self.service.list(after, limit).await.map_err(|error| to_status(&error))?;
        let mut answer =
            cairn::ListPageResponse { path_infos: Vec::new(), more: page.len() == limit };
        let mut bytes = 0;
        for info in page {
            if bytes >= PAGE_BYTES {
                answer.more = true;
                break;
            }
            let message = info.to_proto();
            bytes += message.encoded_len();
            answer.path_infos.push(message);
        }
        Ok(Response::new(answer))
    }

    async fn delete(
        &self,
        request: Request<cairn::DeleteRequest>,
    ) -> Result<Response<cairn::DeleteResponse>, Status> {
        let hash = output_hash(&request.into_inner().output_hash)?;
        let deleted = self.service.delete(&hash).await.map_err(|error| to_status(&error))?;
        Ok(Response::new(cairn::DeleteResponse { deleted }))
    }

    async fn tell_tree(
        &self,
        request: Request<Streaming<cairn::TellTreeRequest>>,
    ) -> Result<Response<cairn::TellTreeResponse>, Status> {
        let Some(told) = &self.told else {
            return Err(Status::failed_precondition("trees are hashed elsewhere"));
        };
        let root = told.hear(request.into_inner()).await?;
        Ok(Response::new(cairn::TellTreeResponse { root: Some(root.to_entry(None)) }))
    }
}
