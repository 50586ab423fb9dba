//! A cache that this process holds, for other processes of the same user. What can be done with it
//! is in `cache`.

use std::sync::Arc;

use cairn_castore::{
    BlobError, DirectoryError, Node,
    cache::warm::{WarmError, Warmed},
    local::Kind,
    profile::Profile,
};
use cairn_proto::cairn::v1::{self as proto, cache_service_server::CacheService, warm_request};
use cairn_store::store_path::OutputHash;
use futures::{StreamExt as _, TryStreamExt as _, stream::BoxStream};
use tonic::{Code, Request, Response, Status};

use super::{CacheControl as _, CacheReport, ControlError, HeldCache, Warming};

/// The server of a cache.
#[derive(Debug, Clone)]
pub(crate) struct CacheServer(pub(crate) HeldCache);

#[async_trait::async_trait]
impl CacheService for CacheServer {
    async fn stats(
        &self,
        _: Request<proto::CacheStatsRequest>,
    ) -> Result<Response<proto::CacheStatsResponse>, Status> {
        let report = self.0.stats().await.map_err(|error| status(&error))?;
        Ok(Response::new(to_proto(report)))
    }

    async fn evict(
        &self,
        request: Request<proto::EvictRequest>,
    ) -> Result<Response<proto::EvictResponse>, Status> {
        let proto::EvictRequest { output_hashes, all } = request.into_inner();
        let hash = |bytes: &bytes::Bytes| OutputHash::try_from(&**bytes);
        let paths: Result<Vec<_>, _> = output_hashes.iter().map(hash).collect();
        let paths = paths.map_err(|_| Status::invalid_argument("a path has 20 bytes"))?;
        let present = match all {
            true => self.0.clear().await.map(|()| Vec::new()),
            false => self.0.evict(&paths).await,
        };
        let present = present.map_err(|error| status(&error))?;
        Ok(Response::new(proto::EvictResponse { present }))
    }

    type WarmStream = BoxStream<'static, Result<proto::WarmResponse, Status>>;

    async fn warm(
        &self,
        request: Request<proto::WarmRequest>,
    ) -> Result<Response<Self::WarmStream>, Status> {
        let mut told = self.0.warm(&warming(request.into_inner())?);
        let messages = async_stream::try_stream! {
            let mut last = Warmed::default();
            while let Some(warmed) = told.try_next().await.map_err(|error| status(&error))? {
                last = warmed;
                yield response(warmed, false);
            }
            yield response(last, true);
        };
        Ok(Response::new(messages.boxed()))
    }
}

fn warming(request: proto::WarmRequest) -> Result<Warming, Status> {
    let invalid = |error: &dyn std::error::Error| Status::invalid_argument(error.to_string());
    match request.what {
        Some(warm_request::What::Root(root)) => {
            let root = Node::from_nameless_entry(root).map_err(|error| invalid(&error))?;
            Ok(Warming::Tree(root))
        }
        Some(warm_request::What::Profile(text)) => {
            let profile = Profile::read(&*text).map_err(|error| invalid(&error))?;
            Ok(Warming::Profile(Arc::new(profile)))
        }
        None => Err(Status::invalid_argument("neither a root nor a profile is named")),
    }
}

fn response(warmed: Warmed, done: bool) -> proto::WarmResponse {
    let Warmed { directories, files, bytes, files_fetched, bytes_fetched, missing } = warmed;
    proto::WarmResponse { directories, files, bytes, files_fetched, bytes_fetched, done, missing }
}

fn to_proto(report: CacheReport) -> proto::CacheStatsResponse {
    let CacheReport { budget, stats } = report;
    let usage = stats.usage;
    let count = |kind: Kind| {
        let counted = usage.records.iter().find(|(counted, _)| *counted == kind);
        counted.map_or(0, |(_, count)| *count)
    };
    proto::CacheStatsResponse {
        budget,
        bytes: usage.bytes,
        chunks: count(Kind::Chunk),
        blobs: count(Kind::Blob),
        groups: count(Kind::Group),
        directories: count(Kind::Directory),
        path_infos: count(Kind::PathInfo),
        hits: stats.hits,
        misses: stats.misses,
        fetched: stats.fetched,
        evicted: usage.evicted,
        dropped: usage.dropped,
    }
}

/// What the other process is told. Not that something can't be reached: that would be taken for
/// this process.
fn status(error: &ControlError) -> Status {
    let code = match error {
        ControlError::Warm(
            WarmError::Blob(BlobError::NotFound(_))
            | WarmError::Directory(DirectoryError::NotFound(_)),
        ) => Code::NotFound,
        ControlError::Warm(
            WarmError::Blob(BlobError::Corrupt { .. })
            | WarmError::Directory(DirectoryError::Corrupt { .. }),
        ) => Code::DataLoss,
        _ => Code::Internal,
    };
    let (mut said, mut cause) = (error.to_string(), std::error::Error::source(error));
    while let Some(error) = cause {
        let more = error.to_string();
        if !said.ends_with(&more) {
            said = format!("{said}: {more}");
        }
        cause = error.source();
    }
    Status::new(code, said)
}
