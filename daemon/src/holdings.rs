//! How much a store holds, as far as it can tell: one that this process holds, or one behind a server.

use std::{fmt, sync::Arc};

use async_trait::async_trait;
use bytes::Bytes;
use cairn_castore::{
    BoxError, Digest,
    blob_service::local::LocalBlobService,
    errors::message,
    grpc::GrpcPeer,
    local::{Kind, LocalError, LocalStore, RecordTotals, StoreHoldings, StoreSize},
    usage::{STORED_SIZES_MAX, StoredSizes},
};
use cairn_proto::cairn::v1::{
    self as proto, store_service_client::StoreServiceClient, store_service_server::StoreService,
};
use tokio::sync::Semaphore;
use tonic::{Code, Request, Response, Status};

/// What a store tells of itself.
#[derive(Debug, Clone)]
pub(crate) struct StoreReport {
    pub(crate) size: StoreSize,
    /// `None` unless they were asked for.
    pub(crate) holdings: Option<StoreHoldings>,
}

/// A store that can tell how much it holds.
#[async_trait]
pub(crate) trait StoreControl: StoredSizes + fmt::Debug {
    /// What it holds, if with the counts of all records: then its index is read. `None` if it can't
    /// tell after all.
    async fn report(&self, with_counts: bool) -> Result<Option<StoreReport>, BoxError>;
}

/// A local store that this process holds.
#[derive(Debug, Clone)]
pub(crate) struct HeldStore {
    store: Arc<LocalStore>,
    blobs: LocalBlobService,
}

impl HeldStore {
    pub(crate) fn new(store: Arc<LocalStore>) -> Self {
        Self { blobs: LocalBlobService::new(store.clone()), store }
    }
}

#[async_trait]
impl StoreControl for HeldStore {
    async fn report(&self, with_counts: bool) -> Result<Option<StoreReport>, BoxError> {
        let report = move |store: &LocalStore| -> Result<StoreReport, LocalError> {
            let holdings = if with_counts { Some(store.holdings()?) } else { None };
            Ok(StoreReport { size: store.size()?, holdings })
        };
        Ok(Some(self.store.blocking(report).await?))
    }
}

#[async_trait]
impl StoredSizes for HeldStore {
    async fn stored_sizes(&self, digests: &[Digest]) -> Result<Option<Vec<u64>>, BoxError> {
        Ok(Some(self.blobs.stored_sizes(digests).await?))
    }
}

/// The store behind a server.
#[derive(Debug, Clone)]
pub(crate) struct PeerStore(pub(crate) GrpcPeer);

impl PeerStore {
    /// `None` if the server does not know the method, or has no store that can tell.
    fn known<T>(answer: Result<T, Status>) -> Result<Option<T>, Status> {
        match answer {
            Ok(answer) => Ok(Some(answer)),
            Err(status) if status.code() == Code::Unimplemented => Ok(None),
            Err(status) => Err(status),
        }
    }
}

#[async_trait]
impl StoreControl for PeerStore {
    async fn report(&self, with_counts: bool) -> Result<Option<StoreReport>, BoxError> {
        let answer = self.0.call(|| {
            let mut client = StoreServiceClient::new(self.0.channel());
            async move { client.stats(proto::StoreStatsRequest { with_counts }).await }
        });
        Ok(Self::known(answer.await)?.map(from_proto))
    }
}

#[async_trait]
impl StoredSizes for PeerStore {
    async fn stored_sizes(&self, digests: &[Digest]) -> Result<Option<Vec<u64>>, BoxError> {
        let digests: Vec<Bytes> = digests.iter().map(|digest| (*digest).into()).collect();
        let asked = digests.len();
        let answer = self.0.call(|| {
            let mut client = StoreServiceClient::new(self.0.channel());
            let request = proto::StoredSizesRequest { digests: digests.clone() };
            async move { client.stored_sizes(request).await }
        });
        let Some(answer) = Self::known(answer.await)? else { return Ok(None) };
        if answer.sizes.len() != asked {
            return Err(
                "the peer answered for another number of blobs than it was asked for".into()
            );
        }
        Ok(Some(answer.sizes))
    }
}

/// Tells others how much the store holds.
#[derive(Debug)]
pub(crate) struct StoreServer {
    store: Arc<dyn StoreControl>,
    /// Whoever reads the index; others wait for their turn.
    counting: Semaphore,
}

impl StoreServer {
    pub(crate) fn new(store: Arc<dyn StoreControl>) -> Self {
        Self { store, counting: Semaphore::new(1) }
    }
}

#[async_trait]
impl StoreService for StoreServer {
    async fn stats(
        &self,
        request: Request<proto::StoreStatsRequest>,
    ) -> Result<Response<proto::StoreStatsResponse>, Status> {
        let proto::StoreStatsRequest { with_counts } = request.into_inner();
        let _turn = match with_counts {
            true => Some(self.counting.acquire().await.expect("the semaphore is never closed")),
            false => None,
        };
        let report = self.store.report(with_counts).await.map_err(failed)?;
        Ok(Response::new(to_proto(&report.ok_or_else(cannot_tell)?)))
    }

    async fn stored_sizes(
        &self,
        request: Request<proto::StoredSizesRequest>,
    ) -> Result<Response<proto::StoredSizesResponse>, Status> {
        let digests = request.into_inner().digests;
        if digests.len() > STORED_SIZES_MAX {
            let what = format!("more than {STORED_SIZES_MAX} digests in one request");
            return Err(Status::invalid_argument(what));
        }
        let digests: Result<Vec<_>, _> =
            digests.iter().map(|bytes| Digest::try_from(&**bytes)).collect();
        let digests = digests.map_err(|error| Status::invalid_argument(error.to_string()))?;
        let sizes = self.store.stored_sizes(&digests).await.map_err(failed)?;
        let sizes = sizes.ok_or_else(cannot_tell)?;
        Ok(Response::new(proto::StoredSizesResponse { sizes }))
    }
}

fn cannot_tell() -> Status {
    Status::unimplemented("the store behind the server can't tell")
}

fn failed(error: BoxError) -> Status {
    tracing::warn!(error = &*error as &(dyn std::error::Error + 'static), "the store can't tell");
    Status::internal(message(error.as_ref()))
}

fn to_proto(report: &StoreReport) -> proto::StoreStatsResponse {
    let StoreSize { packs, pack_bytes, index_bytes } = report.size;
    let totals = |kind| {
        let RecordTotals { count, bytes, stored } = report.holdings.as_ref()?.of(kind);
        Some(proto::RecordTotals { count, bytes, stored })
    };
    proto::StoreStatsResponse {
        packs,
        pack_bytes,
        index_bytes,
        chunks: totals(Kind::Chunk),
        chunk_lists: totals(Kind::Blob),
        directories: totals(Kind::Directory),
        path_infos: totals(Kind::PathInfo),
        nar_hashes: totals(Kind::Nar),
    }
}

fn from_proto(answer: proto::StoreStatsResponse) -> StoreReport {
    let proto::StoreStatsResponse { packs, pack_bytes, index_bytes, .. } = answer;
    let named = [
        (Kind::Chunk, answer.chunks),
        (Kind::Blob, answer.chunk_lists),
        (Kind::Directory, answer.directories),
        (Kind::PathInfo, answer.path_infos),
        (Kind::Nar, answer.nar_hashes),
    ];
    let records: Option<Vec<_>> = named
        .into_iter()
        .map(|(kind, totals)| {
            let proto::RecordTotals { count, bytes, stored } = totals?;
            Some((kind, RecordTotals { count, bytes, stored }))
        })
        .collect();
    StoreReport {
        size: StoreSize { packs, pack_bytes, index_bytes },
        holdings: records.map(|records| StoreHoldings { records }),
    }
}
