//! A directory service offered by gRPC: the wire of Snix, and cairn's own. Nothing of a closure is
//! held but the directory that is being sent or received; listening is the affair of the daemon.

use std::{fmt, sync::Arc};

use async_trait::async_trait;
use cairn_proto::{
    cairn::v1::{
        self as cairn,
        directory_service_server::{
            DirectoryService as CairnDirectoryService,
            DirectoryServiceServer as CairnDirectoryServiceServer,
        },
    },
    snix::castore::v1::{
        self as snix,
        directory_service_server::{
            DirectoryService as SnixDirectoryService,
            DirectoryServiceServer as SnixDirectoryServiceServer,
        },
        get_directory_request::ByWhat,
    },
};
use futures::{
    StreamExt as _, TryStreamExt as _,
    stream::{self, BoxStream},
};
use tonic::{Request, Response, Status, Streaming};

use super::status::to_status;
use crate::{
    Directory, DirectoryError, DirectoryService,
    blob_service::HAS_MANY_DIGESTS,
    grpc::MESSAGE_MAX,
    grpc_server::{digest, digests, receive},
};

/// Answers for a directory service, in both wires.
#[derive(Clone)]
pub struct DirectoryServer {
    service: Arc<dyn DirectoryService>,
}

impl DirectoryServer {
    /// Offers this service.
    pub fn new(service: Arc<dyn DirectoryService>) -> Self {
        Self { service }
    }

    /// The tower service of `snix.castore.v1`, with the limits of its messages.
    pub fn into_snix_service(self) -> SnixDirectoryServiceServer<Self> {
        SnixDirectoryServiceServer::new(self)
            .max_decoding_message_size(MESSAGE_MAX)
            .max_encoding_message_size(MESSAGE_MAX)
    }

    /// The tower service of `cairn.v1`, with the limits of its messages.
    pub fn into_cairn_service(self) -> CairnDirectoryServiceServer<Self> {
        CairnDirectoryServiceServer::new(self)
            .max_decoding_message_size(MESSAGE_MAX)
            .max_encoding_message_size(MESSAGE_MAX)
    }
}

impl fmt::Debug for DirectoryServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DirectoryServer({})", self.service)
    }
}

#[async_trait]
impl SnixDirectoryService for DirectoryServer {
    type GetStream = BoxStream<'static, Result<snix::Directory, Status>>;

    async fn get(
        &self,
        request: Request<snix::GetDirectoryRequest>,
    ) -> Result<Response<Self::GetStream>, Status> {
        let snix::GetDirectoryRequest { by_what, recursive } = request.into_inner();
        let Some(ByWhat::Digest(bytes)) = by_what else {
            return Err(Status::invalid_argument("a request for no directory"));
        };
        let digest = digest(&bytes)?;
        if recursive {
            let closure = self.service.get_closure(&digest).await;
            let closure = closure.map_err(|error| to_status(&error))?;
            let messages = closure.map_ok(|directory| directory.to_proto());
            return Ok(Response::new(messages.map_err(|error| to_status(&error)).boxed()));
        }
        let found = match self.service.get_local(&digest) {
            Some(answer) => answer,
            None => self.service.get(&digest).await,
        };
        let found = found.and_then(|found| found.ok_or(DirectoryError::NotFound(digest)));
        let directory = found.map_err(|error| to_status(&error))?;
        Ok(Response::new(stream::iter([Ok(directory.to_proto())]).boxed()))
    }

    async fn put(
        &self,
        request: Request<Streaming<snix::Directory>>,
    ) -> Result<Response<snix::PutDirectoryResponse>, Status> {
        let root = receive(request.into_inner(), |messages| {
            let directories = messages.map(|message| {
                let message = message.map_err(|status| DirectoryError::Other {
                    service: "the client's stream".to_owned(),
                    source: status.into(),
                })?;
                Directory::from_proto(message)
                    .map_err(|error| DirectoryError::Invalid(error.to_string()))
            });
            self.service.put_closure(directories.boxed())
        });
        let root = root.await;
        let root = root.map_err(|error| to_status(&error))?;
        Ok(Response::new(snix::PutDirectoryResponse { root_digest: root.into() }))
    }
}

#[async_trait]
impl CairnDirectoryService for DirectoryServer {
    async fn has_many(
        &self,
        request: Request<cairn::HasManyRequest>,
    ) -> Result<Response<cairn::HasManyResponse>, Status> {
        let digests = digests(&request.into_inner().digests, HAS_MANY_DIGESTS)?;
        let present = self.service.has_many(&digests).await;
        let present = present.map_err(|error| to_status(&error))?;
        Ok(Response::new(cairn::HasManyResponse { present, takes_zstd: false }))
    }
}
