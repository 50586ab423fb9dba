//! One local store, or one cache, and several processes: whoever holds it serves it to the others
//! through a socket in its folder, and when it goes one of them takes it over. The engine that admits
//! one process only is in `castore`.

use std::{
    fmt,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use cairn_castore::{
    BlobError, BlobService, BoxError, DirectoryError, DirectoryService,
    blob_service::{cache::CacheBlobService, grpc::GrpcBlobService, local::LocalBlobService},
    cache::Near,
    directory_service::{
        cache::CacheDirectoryService, grpc::GrpcDirectoryService, local::LocalDirectoryService,
    },
    local::{LocalError, LocalStore, cache::LocalCache},
};
use cairn_store::{
    PathInfoError, PathInfoService, Services,
    path_info_service::{
        cache::CachePathInfoService, grpc::GrpcPathInfoService, local::LocalPathInfoService,
    },
};
use parking_lot::RwLock;
use tokio::sync::Mutex;

mod blobs;
mod directories;
mod path_infos;
mod replay;
mod socket;
mod spool;

pub(crate) use blobs::SharedBlobService;
pub(crate) use directories::SharedDirectoryService;
pub(crate) use path_infos::SharedPathInfoService;
use socket::OwnerSocket;
pub(crate) use socket::{Reachable, SocketPlace};

use crate::{
    cache::{CacheControl, HeldCache, HeldContents, client::PeerCache},
    holdings::{HeldStore, PeerStore, StoreControl},
    server::Served,
};

/// How long a process waits for a store that another one holds without answering on its socket:
/// longer than that one takes to finish what it has under way when it ends, or to rebuild the
/// index of a store that was not closed.
const ELECTION_TIME: Duration = Duration::from_secs(60);

/// How long to wait before the store is tried again; doubled up to [`ELECTION_PAUSE_MAX`].
const ELECTION_PAUSE: Duration = Duration::from_millis(5);

/// The longest wait between two tries.
const ELECTION_PAUSE_MAX: Duration = Duration::from_millis(200);

/// How often one call follows the store to another process before it gives up.
const FOLLOW_MAX: usize = 5;

/// A local store that this process either holds, and serves to others, or reaches through the
/// process that does. Which of the two may change at any time.
pub(crate) struct SharedStore {
    path: PathBuf,
    socket: SocketPlace,
    purpose: Purpose,
    current: RwLock<Current>,
    /// Held by whoever looks for the store's present owner.
    election: Mutex<()>,
}

/// The services that a local store's path infos rely on where they are not the store's own.
#[derive(Debug, Clone, Default)]
pub(crate) struct Contents {
    /// Blobs.
    pub(crate) blobs: Option<Arc<dyn BlobService>>,
    /// Directories.
    pub(crate) directories: Option<Arc<dyn DirectoryService>>,
}

/// What the folder is used as.
#[derive(Debug, Clone)]
pub(crate) enum Purpose {
    /// A store. Its path infos may rely on other services than its own.
    Store(Contents),
    /// What is near of a store that is far.
    Cache(Cached),
}

/// A store that is far, and how much of it may be near.
#[derive(Debug, Clone)]
pub(crate) struct Cached {
    /// The store.
    pub(crate) far: Services,
    /// The most bytes that are kept.
    pub(crate) budget: u64,
}

impl Cached {
    /// What tells the store from others.
    fn name(&self) -> String {
        let Services { blobs, directories, path_infos } = &self.far;
        format!("{blobs}\n{directories}\n{path_infos}")
    }
}

enum Current {
    Open(Arc<Backend>),
    Closed,
}

/// The store as it is reached during one term of its owner.
struct Backend {
    /// Told apart by this number, which only grows.
    term: u64,
    blobs: Arc<dyn BlobService>,
    directories: Arc<dyn DirectoryService>,
    path_infos: Arc<dyn PathInfoService>,
    /// What else can be done with it, if it is a cache.
    control: Option<Arc<dyn CacheControl>>,
    /// Who can tell how much it holds, if it is none.
    store: Option<Arc<dyn StoreControl>>,
    role: Role,
}

enum Role {
    /// The store is held by this process. Without a socket if there can't be one.
    Owner { held: Held, socket: parking_lot::Mutex<Option<OwnerSocket>> },
    /// The store is held by another process, on the socket at this path.
    Client(#[expect(dead_code, reason = "keeps the path alive")] Arc<Reachable>),
    /// It is a cache that can't be used: all goes to the store that is far.
    Without,
}

/// What this process holds, and what it is used with.
enum Held {
    Store(Arc<LocalStore>, Contents),
    Cache(Near, Cached),
}

impl Held {
    fn open(path: &Path, purpose: &Purpose) -> Result<Self, LocalError> {
        Ok(match purpose {
            Purpose::Store(contents) => Self::Store(LocalStore::open(path)?, contents.clone()),
            Purpose::Cache(cached) => {
                let near = Near::local(LocalCache::open(path, cached.budget)?);
                Self::Cache(near, cached.clone())
            }
        })
    }

    /// The services, and the cache that is behind them if it is one.
    fn services(&self) -> (Services, Option<HeldCache>) {
        match self {
            Self::Store(store, contents) => (local_services(store, contents), None),
            Self::Cache(near, Cached { far, budget }) => {
                let blobs = CacheBlobService::new(near.clone(), far.blobs.clone());
                let directories = CacheDirectoryService::new(near.clone(), far.directories.clone());
                let path_infos = CachePathInfoService::new(near.clone(), far.path_infos.clone());
                let services = Services {
                    blobs: Arc::new(blobs.clone()),
                    directories: Arc::new(directories.clone()),
                    path_infos: Arc::new(path_infos.clone()),
                };
                let contents = Some(HeldContents { blobs, directories, path_infos });
                (services, Some(HeldCache { near: near.clone(), budget: *budget, contents }))
            }
        }
    }

    /// Who can tell how much it holds, if it is a store.
    fn control(&self) -> Option<Arc<dyn StoreControl>> {
        match self {
            Self::Store(store, _) => Some(Arc::new(HeldStore::new(store.clone()))),
            Self::Cache(..) => None,
        }
    }

    /// Whether the path infos are those of trees in the same store.
    fn is_one_store(&self) -> bool {
        match self {
            Self::Store(_, contents) => contents.blobs.is_none() && contents.directories.is_none(),
            Self::Cache(..) => true,
        }
    }

    /// Writes out what is to be written, which takes its time.
    fn close(&self) {
        match self {
            Self::Store(store, _) => store.close(),
            Self::Cache(near, _) => near.close(),
        }
    }
}

/// Why a shared store can't be reached.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SharedStoreError {
    /// It can't be opened.
    #[error("{} can't be opened", path.display())]
    Open {
        /// Its folder.
        path: PathBuf,
        /// Why.
        #[source]
        source: LocalError,
    },
    /// Another process uses the cache, for another store.
    #[error("the cache in {} is in use for another store, by another process", path.display())]
    OtherStore {
        /// Its folder.
        path: PathBuf,
    },
    /// Another process holds it and does not answer.
    #[error(
        "{} is held by another process, which does not answer on its socket",
        path.display()
    )]
    Silent {
        /// Its folder.
        path: PathBuf,
    },
    /// The socket's address can't be used.
    #[error("the socket in {} can't be used", path.display())]
    Socket {
        /// Its folder.
        path: PathBuf,
        /// Why.
        #[source]
        source: BoxError,
    },
    /// This process is done with it.
    #[error("{} is being closed", path.display())]
    Closed {
        /// Its folder.
        path: PathBuf,
    },
}

impl SharedStore {
    /// Opens the store in a folder, or finds the process that has it open. A cache on a disk without
    /// room is done without.
    pub(crate) async fn open(path: &Path, purpose: Purpose) -> Result<Arc<Self>, SharedStoreError> {
        let socket = match &purpose {
            Purpose::Store(_) => SocketPlace::new(path),
            Purpose::Cache(cached) => SocketPlace::of_cache(path, &cached.name()),
        };
        let store = Arc::new(Self {
            path: path.to_owned(),
            socket,
            purpose,
            current: RwLock::new(Current::Closed),
            election: Mutex::new(()),
        });
        let backend = match store.find_owner(1).await {
            Err(SharedStoreError::Open { source: source @ LocalError::NoSpace { .. }, path }) => {
                store.without(1, SharedStoreError::Open { source, path })?
            }
            backend => backend?,
        };
        *store.current.write() = Current::Open(Arc::new(backend));
        Ok(store)
    }

    /// Lets go of the store: finishes what others have under way, refuses what is new, and closes
    /// it, so that one of the others may take it over. Calls from here on fail.
    pub(crate) async fn close(&self) {
        let _election = self.election.lock().await;
        let current = std::mem::replace(&mut *self.current.write(), Current::Closed);
        let Current::Open(backend) = current else { return };
        let Role::Owner { socket, .. } = &backend.role else { return };
        let socket = socket.lock().take();
        if let Some(socket) = socket {
            socket.close().await;
        }
        // Writes out the index, which takes its time. Not left to the last who lets go of the
        // store: that may be a thread of an import that was cut off, and come too late.
        let closed = tokio::task::spawn_blocking(move || {
            if let Role::Owner { held, .. } = &backend.role {
                held.close();
            }
            drop(backend);
        });
        if let Err(error) = closed.await {
            tracing::error!(%error, path = %self.path.display(), "closing the store failed");
        }
    }

    /// The store as it is reached now.
    fn current(&self) -> Result<Arc<Backend>, SharedStoreError> {
        match &*self.current.read() {
            Current::Open(backend) => Ok(backend.clone()),
            Current::Closed => Err(SharedStoreError::Closed { path: self.path.clone() }),
        }
    }

    /// The store after the term that has ended.
    async fn follow(&self, ended: u64) -> Result<Arc<Backend>, SharedStoreError> {
        let _election = self.election.lock().await;
        let current = self.current()?;
        if current.term != ended {
            return Ok(current);
        }
        tracing::info!(path = %self.path.display(), "the process that holds the store is gone");
        let next = match self.find_owner(ended + 1).await {
            Err(error) => self.without(ended + 1, error)?,
            Ok(next) => next,
        };
        let next = Arc::new(next);
        *self.current.write() = Current::Open(next.clone());
        Ok(next)
    }

    /// Takes the store, or finds who has it.
    async fn find_owner(&self, term: u64) -> Result<Backend, SharedStoreError> {
        let started = Instant::now();
        let mut pause = ELECTION_PAUSE;
        loop {
            let (path, purpose) = (self.path.clone(), self.purpose.clone());
            let opened = tokio::task::spawn_blocking(move || Held::open(&path, &purpose)).await;
            match opened {
                Ok(Ok(held)) => return Ok(self.own(term, held).await),
                Ok(Err(LocalError::Locked(_))) => {}
                Ok(Err(source)) => {
                    return Err(SharedStoreError::Open { path: self.path.clone(), source });
                }
                Err(error) => match error.try_into_panic() {
                    Ok(panic) => std::panic::resume_unwind(panic),
                    // The runtime is coming to its end.
                    Err(_) => return Err(SharedStoreError::Closed { path: self.path.clone() }),
                },
            }
            if self.socket.answers().await {
                tracing::debug!(path = %self.path.display(), "another process holds the store");
                return self.join(term);
            }
            if self.is_used_for_another().await {
                return Err(SharedStoreError::OtherStore { path: self.path.clone() });
            }
            if started.elapsed() > ELECTION_TIME {
                return Err(SharedStoreError::Silent { path: self.path.clone() });
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(ELECTION_PAUSE_MAX);
        }
    }

    /// Whether a process answers that holds the cache for another store.
    async fn is_used_for_another(&self) -> bool {
        if matches!(self.purpose, Purpose::Store(_)) {
            return false;
        }
        for place in SocketPlace::of_caches(&self.path) {
            if place.answers().await {
                return true;
            }
        }
        false
    }

    /// The store, held by this process.
    async fn own(&self, term: u64, held: Held) -> Backend {
        let (services, cache) = held.services();
        let store = held.control();
        if cache.is_some() {
            for place in SocketPlace::of_caches(&self.path) {
                place.remove();
            }
        }
        let served = Served {
            blobs: Some(services.blobs.clone()),
            directories: Some(services.directories.clone()),
            path_infos: Some(services.path_infos.clone()),
            is_one_store: held.is_one_store(),
            cache: cache.clone(),
            store: store.clone(),
        };
        let socket = match OwnerSocket::open(&self.socket, served).await {
            Ok(socket) => Some(socket),
            // The store works all the same, if only for this process.
            Err(error) => {
                tracing::warn!(
                    error = &*error as &(dyn std::error::Error + 'static),
                    path = %self.path.display(),
                    "other processes can't use the store as long as this one does",
                );
                None
            }
        };
        let control = cache.map(|cache| Arc::new(cache) as Arc<dyn CacheControl>);
        let role = Role::Owner { held, socket: parking_lot::Mutex::new(socket) };
        Backend::new(term, services, control, store, role)
    }

    /// The store, held by another process.
    fn join(&self, term: u64) -> Result<Backend, SharedStoreError> {
        let (peer, reachable) = self
            .socket
            .peer()
            .map_err(|source| SharedStoreError::Socket { path: self.path.clone(), source })?;
        let reachable = Arc::new(reachable);
        let control: Option<Arc<dyn CacheControl>> = match &self.purpose {
            Purpose::Store(_) => None,
            Purpose::Cache(_) => Some(Arc::new(PeerCache::new(peer.clone(), reachable.clone()))),
        };
        let store: Option<Arc<dyn StoreControl>> = match &self.purpose {
            Purpose::Store(_) => Some(Arc::new(PeerStore(peer.clone()))),
            Purpose::Cache(_) => None,
        };
        let services = Services {
            blobs: Arc::new(GrpcBlobService::new(peer.clone())),
            directories: Arc::new(GrpcDirectoryService::new(peer.clone())),
            path_infos: Arc::new(GrpcPathInfoService::new(peer)),
        };
        Ok(Backend::new(term, services, control, store, Role::Client(reachable)))
    }

    /// What is far, for want of a cache that can be used.
    fn without(&self, term: u64, error: SharedStoreError) -> Result<Backend, SharedStoreError> {
        let Purpose::Cache(cached) = &self.purpose else { return Err(error) };
        tracing::warn!(
            error = &error as &(dyn std::error::Error + 'static),
            "nothing is kept near: the cache can't be used",
        );
        Ok(Backend::new(term, cached.far.clone(), None, None, Role::Without))
    }

    /// What else can be done with a cache. `None` if it is none, or can't be used.
    pub(crate) fn control(&self) -> Option<Arc<dyn CacheControl>> {
        self.current().ok()?.control.clone()
    }

    /// Who can tell how much the store holds. `None` if it is a cache.
    pub(crate) fn store_control(&self) -> Option<Arc<dyn StoreControl>> {
        self.current().ok()?.store.clone()
    }

    /// Makes a call, and makes it again with the next owner if the present one went away before
    /// it answered. For calls that may be made twice.
    async fn call<T, E, F>(&self, mut call: impl FnMut(Arc<Backend>) -> F) -> Result<T, E>
    where
        E: ServiceError,
        F: Future<Output = Result<T, E>>,
    {
        let unreachable = |error| E::unavailable(self.to_string(), Box::new(error));
        let mut backend = self.current().map_err(unreachable)?;
        for _ in 0..FOLLOW_MAX {
            let term = backend.term;
            match call(backend.clone()).await {
                Err(error) if self.has_ended(&backend, &error).await => {
                    drop(backend);
                    backend = self.follow(term).await.map_err(unreachable)?;
                }
                answer => return answer,
            }
        }
        call(backend).await
    }

    /// Whether a call failed because the process that holds the store has gone.
    async fn has_ended<E: ServiceError>(&self, backend: &Backend, error: &E) -> bool {
        match backend.role {
            // What is here can't go away.
            Role::Owner { .. } | Role::Without => false,
            // A connection that breaks in the middle of a message is told in many ways.
            Role::Client(_) => match (error.kind(), &self.purpose) {
                (ErrorKind::Unavailable, Purpose::Store(_)) => true,
                // It may be the store that is far which can't be reached.
                (ErrorKind::Unavailable, Purpose::Cache(_)) | (ErrorKind::Other, _) => {
                    !self.socket.answers().await
                }
                (ErrorKind::Answer, _) => false,
            },
        }
    }
}

impl Backend {
    fn new(
        term: u64,
        services: Services,
        control: Option<Arc<dyn CacheControl>>,
        store: Option<Arc<dyn StoreControl>>,
        role: Role,
    ) -> Self {
        let Services { blobs, directories, path_infos } = services;
        Self { term, blobs, directories, path_infos, control, store, role }
    }

    fn is_client(&self) -> bool {
        matches!(self.role, Role::Client(_))
    }
}

fn local_services(store: &Arc<LocalStore>, contents: &Contents) -> Services {
    let blobs: Arc<dyn BlobService> = Arc::new(LocalBlobService::new(store.clone()));
    let directories: Arc<dyn DirectoryService> =
        Arc::new(LocalDirectoryService::new(store.clone()));
    let path_infos = Arc::new(LocalPathInfoService::new(
        store.clone(),
        contents.blobs.clone().unwrap_or_else(|| blobs.clone()),
        contents.directories.clone().unwrap_or_else(|| directories.clone()),
    ));
    Services { blobs, directories, path_infos }
}

impl fmt::Display for SharedStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.purpose {
            Purpose::Store(_) => write!(f, "sled:{}", self.path.display()),
            Purpose::Cache(Cached { far, .. }) => {
                write!(f, "cache(near: sled:{}, far: {})", self.path.display(), far.path_infos)
            }
        }
    }
}

impl fmt::Debug for SharedStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let role = match self.current() {
            Ok(backend) if backend.is_client() => "client",
            Ok(_) => "owner",
            Err(_) => "closed",
        };
        f.debug_struct("SharedStore").field("path", &self.path).field("role", &role).finish()
    }
}

/// What an error says of the service that gave it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ErrorKind {
    /// It can't be reached.
    Unavailable,
    /// It is not known what happened.
    Other,
    /// It has answered.
    Answer,
}

/// The errors of the three services, as far as a change of the owner is concerned.
trait ServiceError: Send {
    fn kind(&self) -> ErrorKind;
    fn unavailable(service: String, source: BoxError) -> Self;
}

macro_rules! service_error {
    ($error:ident) => {
        impl ServiceError for $error {
            fn kind(&self) -> ErrorKind {
                match self {
                    Self::Unavailable { .. } => ErrorKind::Unavailable,
                    Self::Other { .. } => ErrorKind::Other,
                    _ => ErrorKind::Answer,
                }
            }

            fn unavailable(service: String, source: BoxError) -> Self {
                Self::Unavailable { service, source }
            }
        }
    };
}

service_error!(BlobError);
service_error!(DirectoryError);
service_error!(PathInfoError);

/// The owner went away in the middle of a call that can't be made again.
#[derive(Debug, thiserror::Error)]
#[error(
    "the process that held the store ended while more than {} MiB were on their way to it; \
     what was being stored has to be stored again",
    replay::REPLAY_BYTES / (1024 * 1024)
)]
struct Interrupted(#[source] BoxError);
