//! What can be done with a cache beside reading through it: telling what it holds, throwing away and
//! fetching ahead. It is done by the process that holds the cache, whichever that is.

use std::{
    fmt,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use cairn_castore::{
    Node,
    blob_service::cache::CacheBlobService,
    cache::{
        CacheStats, Near,
        warm::{WarmError, WarmProgress, Warmed, forget, warm, warm_profile},
    },
    directory_service::cache::CacheDirectoryService,
    local::{
        LocalError,
        cache::{CACHE_MIN, LocalCache},
    },
    profile::{Profile, Touch},
};
use cairn_store::{
    PathInfoError, PathInfoService as _, StorePath,
    path_info_service::cache::{CachePathInfoService, forget_path},
    store_path::OutputHash,
};
use futures::{StreamExt as _, TryStreamExt as _, stream, stream::BoxStream};
use tokio::time::timeout;

pub(crate) mod client;
pub(crate) mod server;

/// The most bytes that a cache takes unless told.
const DEFAULT_MAX: u64 = 20 * 1024 * 1024 * 1024;

/// A cache takes at most one part in so many of its disk unless told.
const DEFAULT_SHARE: u64 = 10;

/// How often it is told how far the warming of a tree is.
const TELL_INTERVAL: Duration = Duration::from_millis(250);

/// The things of a profile that are fetched with one request: a line of at most 1 KiB each, mostly
/// of less than 100 bytes.
const PART_TOUCHES: usize = 16 * 1024;

/// The store paths that are asked for at a time.
const ROOTS_AT_ONCE: usize = 16;

/// Packs of which less than this share is left when something was thrown away are rewritten.
const MIN_LIVE_SHARE: f64 = 0.5;

/// The process that holds a cache, this one or another.
#[async_trait]
pub(crate) trait CacheControl: fmt::Debug + Send + Sync {
    /// What it holds, and what it has done.
    async fn stats(&self) -> Result<CacheReport, ControlError>;

    /// Throws away what is kept of these store paths; which of them were there.
    async fn evict(&self, paths: &[OutputHash]) -> Result<Vec<bool>, ControlError>;

    /// Throws everything away.
    async fn clear(&self) -> Result<(), ControlError>;

    /// Fetches ahead. How far it is, now and then, and at the end; ends after an error. It goes on
    /// only while it is asked for more.
    fn warm(&self, what: &Warming) -> BoxStream<'static, Result<Warmed, ControlError>>;
}

/// What is to be fetched ahead.
#[derive(Debug, Clone)]
pub(crate) enum Warming {
    /// All of a tree.
    Tree(Node),
    /// What a workload touched.
    Profile(Arc<Profile>),
}

/// Fetches what a profile names, in parts that a request has room for. How far it is, as with
/// [`CacheControl::warm`].
pub(crate) fn warm_in_parts(
    cache: Arc<dyn CacheControl>,
    profile: Profile,
) -> BoxStream<'static, Result<Warmed, ControlError>> {
    async_stream::try_stream! {
        let mut before = Warmed::default();
        for touches in profile.touches().chunks(PART_TOUCHES) {
            let part = Arc::new(Profile::from(touches.to_vec()));
            let (mut told, mut last) = (cache.warm(&Warming::Profile(part)), before);
            while let Some(warmed) = told.try_next().await? {
                last = before + warmed;
                yield last;
            }
            before = last;
        }
    }
    .boxed()
}

/// What is known of a cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct CacheReport {
    /// The most bytes that it may take.
    pub(crate) budget: u64,
    pub(crate) stats: CacheStats,
}

/// Why something could not be done with a cache.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ControlError {
    /// The cache itself failed.
    #[error(transparent)]
    Local(#[from] LocalError),
    /// What was to be fetched could not be.
    #[error(transparent)]
    Warm(#[from] WarmError),
    /// Nor what is known of a store path.
    #[error(transparent)]
    PathInfo(PathInfoError),
    /// The process that holds the cache says so.
    #[error("the process that holds the cache failed")]
    Peer(#[source] tonic::Status),
    /// There is no cache.
    #[error("there is no cache in {}", .0.display())]
    NoCache(PathBuf),
    /// A thread of this process has ended before its time.
    #[error("the work was broken off")]
    BrokenOff(#[source] tokio::task::JoinError),
}

/// A cache that this process holds.
#[derive(Debug, Clone)]
pub(crate) struct HeldCache {
    pub(crate) near: Near,
    pub(crate) budget: u64,
    /// What warming needs; a cache that is only looked at has none.
    pub(crate) contents: Option<HeldContents>,
}

/// The services of a cache that is read through.
#[derive(Debug, Clone)]
pub(crate) struct HeldContents {
    pub(crate) blobs: CacheBlobService,
    pub(crate) directories: CacheDirectoryService,
    pub(crate) path_infos: CachePathInfoService,
}

impl HeldCache {
    async fn blocking<T: Send + 'static>(
        &self,
        run: impl FnOnce(&Near) -> Result<T, LocalError> + Send + 'static,
    ) -> Result<T, ControlError> {
        let near = self.near.clone();
        let ran = tokio::task::spawn_blocking(move || run(&near)).await;
        Ok(ran.map_err(ControlError::BrokenOff)??)
    }
}

#[async_trait]
impl CacheControl for HeldCache {
    async fn stats(&self) -> Result<CacheReport, ControlError> {
        let stats = self.blocking(Near::stats).await?;
        Ok(CacheReport { budget: self.budget, stats })
    }

    async fn evict(&self, paths: &[OutputHash]) -> Result<Vec<bool>, ControlError> {
        let paths = paths.to_vec();
        self.near.settle().await;
        let present = self.blocking(move |near| {
            let evict = |path: &OutputHash| {
                let roots = forget_path(near, path)?;
                for root in &roots {
                    forget(near, root);
                }
                Ok(!roots.is_empty())
            };
            paths.iter().map(evict).collect::<Result<Vec<bool>, LocalError>>()
        });
        let present = present.await?;
        self.near.settle().await;
        self.blocking(|near| near.give_room_back(MIN_LIVE_SHARE)).await?;
        Ok(present)
    }

    async fn clear(&self) -> Result<(), ControlError> {
        self.near.settle().await;
        self.blocking(Near::clear).await
    }

    fn warm(&self, what: &Warming) -> BoxStream<'static, Result<Warmed, ControlError>> {
        let (held, what) = (self.clone(), what.clone());
        async_stream::try_stream! {
            let progress = WarmProgress::default();
            if let Some(contents) = &held.contents {
                let mut warming = std::pin::pin!(contents.warm(&held.near, &what, &progress));
                loop {
                    match timeout(TELL_INTERVAL, &mut warming).await {
                        Ok(warmed) => break warmed?,
                        Err(_) => yield progress.now(),
                    }
                }
            }
            yield progress.now();
        }
        .boxed()
    }
}

impl HeldContents {
    async fn warm(
        &self,
        near: &Near,
        what: &Warming,
        progress: &WarmProgress,
    ) -> Result<(), ControlError> {
        let (blobs, directories) = (&self.blobs, &self.directories);
        match what {
            Warming::Tree(root) => warm(near, blobs, directories, root, progress).await?,
            Warming::Profile(profile) => {
                self.warm_roots(profile).await?;
                warm_profile(near, blobs, directories, profile, progress).await?;
            }
        }
        Ok(())
    }

    /// Has what is known of the store paths that a profile names. Those that are not there may be of
    /// another version.
    async fn warm_roots(&self, profile: &Profile) -> Result<(), ControlError> {
        let mut hashes = Vec::new();
        for touch in profile.touches() {
            if let Touch::Root(name) = touch
                && let Ok(path) = name.to_string().parse::<StorePath>()
            {
                hashes.push(*path.hash());
            }
        }
        stream::iter(hashes)
            .map(|hash| async move { self.path_infos.get(&hash).await })
            .buffer_unordered(ROOTS_AT_ONCE)
            .try_for_each(async |_| Ok(()))
            .await
            .map_err(ControlError::PathInfo)
    }
}

/// The most bytes that a cache in a folder takes unless told: a share of its disk, within bounds.
pub(crate) fn default_budget(folder: &Path) -> u64 {
    // The folder itself may have to be made.
    let disk = folder.ancestors().find_map(|folder| rustix::fs::statvfs(folder).ok());
    let disk = disk.map_or(DEFAULT_MAX, |disk| disk.f_blocks.saturating_mul(disk.f_frsize));
    (disk / DEFAULT_SHARE).clamp(CACHE_MIN, DEFAULT_MAX)
}

/// A cache that is not read through: held by this process as long as this is, or by another one.
#[derive(Debug)]
pub(crate) enum Opened {
    Held(HeldCache),
    InUse(client::PeerCache),
}

impl Opened {
    /// What can be done with it.
    pub(crate) fn control(&self) -> &dyn CacheControl {
        match self {
            Self::Held(cache) => cache,
            Self::InUse(cache) => cache,
        }
    }

    /// Whether another process has it open.
    pub(crate) fn is_in_use(&self) -> bool {
        matches!(self, Self::InUse(_))
    }
}

/// The cache in a folder, to be looked at or thrown away from.
pub(crate) async fn open(folder: &Path, budget: u64) -> Result<Opened, ControlError> {
    let path = folder.to_owned();
    let opened = tokio::task::spawn_blocking(move || {
        if !path.join("format").exists() {
            return Err(ControlError::NoCache(path));
        }
        Ok(LocalCache::open(&path, budget)?)
    });
    match opened.await.map_err(ControlError::BrokenOff)? {
        Ok(cache) => {
            Ok(Opened::Held(HeldCache { near: Near::local(cache), budget, contents: None }))
        }
        Err(ControlError::Local(LocalError::Locked(_))) => {
            client::find(folder).await.map(Opened::InUse)
        }
        Err(error) => Err(error),
    }
}
