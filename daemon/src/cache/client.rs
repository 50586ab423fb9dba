//! A cache that another process of the same user holds, through the socket in its folder.

use std::{
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use async_trait::async_trait;
use bytes::Bytes;
use cairn_castore::{
    cache::{CacheStats, warm::Warmed},
    grpc::{GrpcPeer, MESSAGE_MAX, PeerChannel},
    local::{Kind, LocalError, cache::LocalCacheUsage},
    profile::Profile,
};
use cairn_proto::cairn::v1::{
    self as proto, cache_service_client::CacheServiceClient, warm_request,
};
use cairn_store::store_path::OutputHash;
use futures::{StreamExt as _, TryStreamExt as _, stream::BoxStream};
use tonic::Status;

use super::{CacheControl, CacheReport, ControlError, Warming};
use crate::local_owner::{Reachable, SocketPlace};

/// How long the process that holds a cache may take to throw something away: it may have to rewrite
/// all of it.
const EVICT_TIME: Duration = Duration::from_secs(600);

/// How long to look for the process that holds a cache: it may be just opening it.
const SEARCH_TIME: Duration = Duration::from_secs(10);

/// How long to wait before looking again.
const SEARCH_PAUSE: Duration = Duration::from_millis(50);

/// The process that holds a cache.
#[derive(Debug, Clone)]
pub(crate) struct PeerCache {
    peer: GrpcPeer,
    _reachable: Arc<Reachable>,
}

/// The process that holds the cache in a folder.
pub(super) async fn find(folder: &Path) -> Result<PeerCache, ControlError> {
    let started = Instant::now();
    loop {
        for place in SocketPlace::of_caches(folder) {
            if place.answers().await
                && let Ok((peer, reachable)) = place.peer()
            {
                return Ok(PeerCache::new(peer, Arc::new(reachable)));
            }
        }
        if started.elapsed() > SEARCH_TIME {
            return Err(LocalError::Locked(folder.to_owned()).into());
        }
        tokio::time::sleep(SEARCH_PAUSE).await;
    }
}

impl PeerCache {
    pub(crate) fn new(peer: GrpcPeer, reachable: Arc<Reachable>) -> Self {
        Self { peer, _reachable: reachable }
    }

    fn client(&self) -> CacheServiceClient<PeerChannel> {
        CacheServiceClient::new(self.peer.channel()).max_decoding_message_size(MESSAGE_MAX)
    }

    async fn ask_to_evict(
        &self,
        request: proto::EvictRequest,
    ) -> Result<proto::EvictResponse, ControlError> {
        let peer = self.peer.clone().with_deadline(EVICT_TIME);
        let answer = peer.call(|| {
            let (mut client, request) = (self.client(), request.clone());
            async move { client.evict(request).await }
        });
        answer.await.map_err(ControlError::Peer)
    }
}

#[async_trait]
impl CacheControl for PeerCache {
    async fn stats(&self) -> Result<CacheReport, ControlError> {
        let answer = self.peer.call(|| {
            let mut client = self.client();
            async move { client.stats(proto::CacheStatsRequest {}).await }
        });
        let answer = answer.await.map_err(ControlError::Peer)?;
        let mut usage = LocalCacheUsage {
            bytes: answer.bytes,
            evicted: answer.evicted,
            dropped: answer.dropped,
            ..LocalCacheUsage::default()
        };
        for (kind, count) in &mut usage.records {
            *count = match kind {
                Kind::Chunk => answer.chunks,
                Kind::Blob => answer.blobs,
                Kind::Group => answer.groups,
                Kind::Directory => answer.directories,
                Kind::PathInfo => answer.path_infos,
                Kind::Nar => 0,
            };
        }
        let proto::CacheStatsResponse { budget, hits, misses, fetched, .. } = answer;
        Ok(CacheReport { budget, stats: CacheStats { hits, misses, fetched, usage } })
    }

    async fn evict(&self, paths: &[OutputHash]) -> Result<Vec<bool>, ControlError> {
        let output_hashes = paths.iter().map(|path| Bytes::copy_from_slice(path)).collect();
        let answer = self.ask_to_evict(proto::EvictRequest { output_hashes, all: false }).await?;
        if answer.present.len() != paths.len() {
            let status = Status::internal("it answered for another number of paths");
            return Err(ControlError::Peer(status));
        }
        Ok(answer.present)
    }

    async fn clear(&self) -> Result<(), ControlError> {
        self.ask_to_evict(proto::EvictRequest { output_hashes: Vec::new(), all: true }).await?;
        Ok(())
    }

    fn warm(&self, what: &Warming) -> BoxStream<'static, Result<Warmed, ControlError>> {
        let cache = self.clone();
        let what = match what {
            Warming::Tree(root) => warm_request::What::Root(root.to_entry(None)),
            Warming::Profile(profile) => warm_request::What::Profile(text_of(profile)),
        };
        let request = proto::WarmRequest { what: Some(what) };
        async_stream::try_stream! {
            let messages = cache.client().warm(request).await.map_err(ControlError::Peer)?;
            let mut messages = cache.peer.receive(messages.into_inner(), Some);
            let mut is_done = false;
            while let Some(message) = messages.try_next().await.map_err(ControlError::Peer)? {
                is_done = message.done;
                yield Warmed {
                    directories: message.directories,
                    files: message.files,
                    bytes: message.bytes,
                    files_fetched: message.files_fetched,
                    bytes_fetched: message.bytes_fetched,
                    missing: message.missing,
                };
            }
            if !is_done {
                Err(ControlError::Peer(Status::unavailable("it ended before it was done")))?;
            }
        }
        .boxed()
    }
}

fn text_of(profile: &Profile) -> Bytes {
    let mut text = Vec::new();
    profile.write(&mut text).expect("writing to memory does not fail");
    text.into()
}
