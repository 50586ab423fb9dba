//! From addresses to services: which store a command works on, and how each kind of store is
//! opened. What the stores are is in the crates below.

use std::{
    collections::HashMap,
    env,
    path::{Path, PathBuf},
    sync::Arc,
};

use cairn_castore::{
    BlobService, BoxError, ByteSize, DirectoryService,
    address::{Address, CacheAddress, GrpcAddress, ObjectAddress},
    blob_service::{
        cache::CacheBlobService, grpc::GrpcBlobService, memory::MemoryBlobService,
        object_store::ObjectStoreBlobService, traced::TracedBlobService,
    },
    byte_size::InvalidByteSize,
    cache::Near,
    directory_service::{
        cache::CacheDirectoryService, grpc::GrpcDirectoryService, memory::MemoryDirectoryService,
        object_store::ObjectStoreDirectoryService, traced::TracedDirectoryService,
    },
    grpc::GrpcPeer,
    local::cache::CACHE_MIN,
    object_base::ObjectBase,
};
use cairn_store::{
    PathInfoService, Services,
    path_info_service::{
        cache::CachePathInfoService, grpc::GrpcPathInfoService, memory::MemoryPathInfoService,
        object_store::ObjectStorePathInfoService, traced::TracedPathInfoService,
    },
};
use cairn_telemetry::{inventory::Service, trace};
use futures::{FutureExt as _, future::BoxFuture};

use crate::{
    cache::{CacheControl, default_budget},
    exit::{Code, Failure},
    holdings::{PeerStore, StoreControl},
    local_owner::{
        Cached, Contents, Purpose, SharedBlobService, SharedDirectoryService,
        SharedPathInfoService, SharedStore,
    },
};

/// What the services are called where people and programs read it.
pub(crate) const BLOBS: &str = "blobs";
pub(crate) const DIRECTORIES: &str = "directories";
pub(crate) const PATH_INFOS: &str = "path infos";

/// What a service is called there.
pub(crate) fn name(service: Service) -> &'static str {
    match service {
        Service::Blobs => BLOBS,
        Service::Directories => DIRECTORIES,
        Service::PathInfos => PATH_INFOS,
    }
}

/// What a cache in memory may keep unless told, in bytes.
const MEMORY_CACHE: u64 = 256 * 1024 * 1024;

/// Which store to work on.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Store")]
pub(crate) struct ServiceArgs {
    /// The store to work on: sled:/path, grpc+http://host:port, grpc+https://host,
    /// grpc+unix:/path, objectstore+file:///path, objectstore+s3://bucket/prefix, memory:,
    /// cache:?near=sled:/path&far=URL, upstreams:?store=URL&store=URL, or the name of a store in a
    /// configuration file
    ///
    /// Without it, the local store of the user: /var/lib/cairn for root, otherwise
    /// $XDG_DATA_HOME/cairn or ~/.local/share/cairn. Any number of commands may use a local store
    /// at a time.
    #[arg(long, global = true, value_name = "URL", env = "CAIRN_STORE", hide_env_values = true)]
    store: Option<Address>,
    /// Where blobs are, if elsewhere than the rest of the store
    #[arg(
        long,
        global = true,
        value_name = "URL",
        env = "BLOB_SERVICE_ADDR",
        hide_env_values = true
    )]
    blob_service_addr: Option<Address>,
    /// Where directories are, if elsewhere than the rest of the store
    #[arg(
        long,
        global = true,
        value_name = "URL",
        env = "DIRECTORY_SERVICE_ADDR",
        hide_env_values = true
    )]
    directory_service_addr: Option<Address>,
    /// Where path infos are, if elsewhere than the rest of the store
    #[arg(
        long,
        global = true,
        value_name = "URL",
        env = "PATH_INFO_SERVICE_ADDR",
        hide_env_values = true
    )]
    path_info_service_addr: Option<Address>,
    /// Keep what is read of the store in this folder, and read it from there the next time
    ///
    /// The folder is made if need be. Any number of commands may use it at a time, for one store.
    /// What is in it is verified when it is read, and goes when room is needed for something else.
    #[arg(long, global = true, value_name = "DIR", env = "CAIRN_CACHE", hide_env_values = true)]
    cache: Option<PathBuf>,
    /// How much may be kept there, as in 20GiB; at least 64MiB
    ///
    /// 20GiB or a tenth of the file system, whichever is less, unless told. What the command that
    /// opened the folder first was told counts.
    #[arg(
        long,
        global = true,
        value_name = "SIZE",
        env = "CAIRN_CACHE_SIZE",
        hide_env_values = true,
        value_parser = parse_cache_size
    )]
    cache_size: Option<ByteSize>,
}

/// Reads the size of a cache.
fn parse_cache_size(text: &str) -> Result<ByteSize, String> {
    let size: ByteSize = text.parse().map_err(|error: InvalidByteSize| error.to_string())?;
    match size.0 < CACHE_MIN {
        true => Err(format!("a cache has at least {}", ByteSize(CACHE_MIN))),
        false => Ok(size),
    }
}

/// Where the services of a store are, and what is kept near of them.
struct Addresses {
    blobs: Address,
    directories: Address,
    path_infos: Address,
    cache: Option<CacheOf>,
}

/// A cache, and which services it is for.
struct CacheOf {
    near: Address,
    size: Option<ByteSize>,
    blobs: bool,
    directories: bool,
    path_infos: bool,
}

impl ServiceArgs {
    /// All services of one store.
    pub(crate) fn of(address: Address) -> Self {
        Self {
            store: Some(address),
            blob_service_addr: None,
            directory_service_addr: None,
            path_info_service_addr: None,
            cache: None,
            cache_size: None,
        }
    }

    fn store(&self) -> Result<Address, Failure> {
        match &self.store {
            Some(address) => Ok(address.clone()),
            None => Ok(Address::Local(default_folder()?)),
        }
    }

    /// Where everything is, with the caches taken apart from what they are of.
    fn addresses(&self) -> Result<Addresses, Failure> {
        let store = self.store()?;
        let address = |other: &Option<Address>| other.clone().unwrap_or_else(|| store.clone());
        let (blobs, blob_cache) = taken_apart(address(&self.blob_service_addr));
        let (directories, directory_cache) = taken_apart(address(&self.directory_service_addr));
        let (path_infos, path_info_cache) = taken_apart(address(&self.path_info_service_addr));
        let caches = [&blob_cache, &directory_cache, &path_info_cache];
        let mut named = caches.into_iter().flatten();
        let first = named.next().cloned();
        if named.any(|other| Some(other) != first.as_ref()) {
            let what = "the services have different caches";
            return Err(Failure::plain(Code::Usage, what).help("name one cache for all of them"));
        }
        let cache = match (first, self.cache_folder()?) {
            (None, None) => None,
            (Some(_), Some(_)) => {
                let what = "a cache is given by --cache, and another one by the store's address";
                return Err(Failure::plain(Code::Usage, what).help("leave one of them out"));
            }
            (Some((near, size)), None) => Some(CacheOf {
                near,
                size: size.or(self.cache_size),
                blobs: blob_cache.is_some(),
                directories: directory_cache.is_some(),
                path_infos: path_info_cache.is_some(),
            }),
            (None, Some(folder)) => Some(CacheOf {
                near: Address::Local(folder),
                size: self.cache_size,
                blobs: true,
                directories: true,
                path_infos: true,
            }),
        };
        Ok(Addresses { blobs, directories, path_infos, cache })
    }

    /// The stores that the services are in, and which services those are. What is kept near of them is
    /// left out.
    pub(crate) fn stores(&self) -> Result<Vec<(Address, Vec<&'static str>)>, Failure> {
        let Addresses { blobs, directories, path_infos, .. } = self.addresses()?;
        let mut stores: Vec<(Address, Vec<_>)> = Vec::new();
        let named = [(blobs, BLOBS), (directories, DIRECTORIES), (path_infos, PATH_INFOS)];
        for (address, service) in named {
            match stores.iter_mut().find(|(known, _)| *known == address) {
                Some((_, services)) => services.push(service),
                None => stores.push((address, vec![service])),
            }
        }
        Ok(stores)
    }

    /// Whether both are of one store, whatever is kept near of it.
    pub(crate) fn is_same_store(&self, other: &Self) -> Result<bool, Failure> {
        let (one, other) = (self.addresses()?, other.addresses()?);
        let far = |at: Addresses| [at.blobs, at.directories, at.path_infos];
        Ok(far(one) == far(other))
    }

    /// The folder of `--cache`.
    fn cache_folder(&self) -> Result<Option<PathBuf>, Failure> {
        let absolute = self.cache.as_ref().map(std::path::absolute).transpose();
        absolute.map_err(|error| Failure::new("the folder of --cache is no path", error))
    }

    /// The folder of the cache that is named, and how much it may keep. An error if none is, or if it
    /// is in memory.
    pub(crate) fn cache(&self) -> Result<(PathBuf, u64), Failure> {
        match self.addresses()?.cache {
            Some(CacheOf { near: Address::Local(folder), size, .. }) => {
                let budget = size.map_or_else(|| default_budget(&folder), |size| size.0);
                Ok((folder, budget))
            }
            _ => Err(Failure::plain(Code::Usage, "no cache is named")
                .help("name its folder with --cache DIR")),
        }
    }

    /// Whether each directory that is asked for costs the way to a store that is far.
    pub(crate) fn has_far_directories(&self) -> Result<bool, Failure> {
        let Addresses { directories, cache, .. } = self.addresses()?;
        Ok(is_far(&directories) && !cache.is_some_and(|cache| cache.directories))
    }

    /// The folder of the local store that blobs are in. `None` if they are elsewhere.
    pub(crate) fn blob_folder(&self) -> Result<Option<PathBuf>, Failure> {
        let mut blobs = &self.addresses()?.blobs;
        while let Address::Upstreams(all) = blobs {
            blobs = all.written();
        }
        Ok(match blobs {
            Address::Local(folder) => Some(folder.clone()),
            _ => None,
        })
    }
}

/// Whether some of the store is on another machine, with nothing of it kept on this one.
fn is_far(address: &Address) -> bool {
    match address {
        Address::Grpc(_) | Address::ObjectStore(_) => true,
        Address::Upstreams(all) => all.stores.iter().any(is_far),
        Address::Memory | Address::Local(_) | Address::Cache(_) => false,
    }
}

/// What is far at an address, and the cache that it has, if it has one.
fn taken_apart(address: Address) -> (Address, Option<(Address, Option<ByteSize>)>) {
    match address {
        Address::Cache(cache) => {
            let CacheAddress { near, far, size } = *cache;
            (far, Some((near, size)))
        }
        address => (address, None),
    }
}

/// The services that a command works with, and what has to be closed behind them.
#[derive(Debug)]
pub(crate) struct OpenServices {
    /// The services.
    pub(crate) services: Services,
    /// What else can be done with the cache, if there is one that can be used.
    pub(crate) cache: Option<Arc<dyn CacheControl>>,
    /// Who can tell how much the store holds in which blobs are, if that can be told.
    pub(crate) control: Option<Arc<dyn StoreControl>>,
    /// In the order in which they are to be closed: a cache before what it is of.
    local: Vec<Arc<SharedStore>>,
}

impl OpenServices {
    /// Opens the services that the arguments name.
    pub(crate) async fn open(args: &ServiceArgs) -> Result<Self, Failure> {
        let Addresses {
            blobs: blobs_at,
            directories: directories_at,
            path_infos: path_infos_at,
            cache,
        } = args.addresses()?;

        let mut opener = Opener::default();
        // What path infos rely on and their own store does not have comes first.
        let mut contents = Contents::default();
        if blobs_at != path_infos_at {
            contents.blobs = Some(opener.blobs(&blobs_at).await?);
        }
        if directories_at != path_infos_at {
            contents.directories = Some(opener.directories(&directories_at).await?);
        }
        if let Address::Local(path) = &path_infos_at {
            opener.local(path, contents.clone()).await?;
        }
        let blobs = match contents.blobs {
            Some(blobs) => blobs,
            None => opener.blobs(&blobs_at).await?,
        };
        let directories = match contents.directories {
            Some(directories) => directories,
            None => opener.directories(&directories_at).await?,
        };
        let path_infos =
            opener.path_infos(&path_infos_at, blobs.clone(), directories.clone()).await?;
        let layers = [&blobs_at, &directories_at, &path_infos_at].map(layer);
        let mut services = traced(Services { blobs, directories, path_infos }, layers);
        let store = opener.control(&blobs_at)?;
        let mut control = None;
        if let Some(cache) = cache {
            let (near, shared) = opener.cached(&cache.near, cache.size, &services).await?;
            let near = traced(near, ["cache"; 3]);
            control = shared.and_then(|shared| shared.control());
            if cache.blobs {
                services.blobs = near.blobs;
            }
            if cache.directories {
                services.directories = near.directories;
            }
            if cache.path_infos {
                services.path_infos = near.path_infos;
            }
        }
        tracing::info!(
            blobs = %services.blobs,
            directories = %services.directories,
            path_infos = %services.path_infos,
            "opened the store",
        );
        // A cache that is of another one was opened behind it.
        let caches = opener.caches.into_iter().rev().map(|(_, cache)| cache);
        let local = caches.chain(opener.local.into_values()).collect();
        Ok(Self { services, cache: control, control: store, local })
    }

    /// Lets go of the store. Local stores are closed, or left to the processes that share them.
    pub(crate) async fn close(self) {
        drop(self.services);
        for store in self.local {
            store.close().await;
        }
    }
}

/// What traces call what is at an address.
fn layer(address: &Address) -> &'static str {
    match address {
        Address::Memory => "memory",
        Address::Local(_) => "local",
        Address::ObjectStore(_) => "bucket",
        Address::Grpc(_) => "peer",
        Address::Cache(_) => "cache",
        Address::Upstreams(_) => "upstreams",
    }
}

/// The services with their calls as spans, if there are traces.
fn traced(services: Services, layers: [&'static str; 3]) -> Services {
    if !trace::is_on() {
        return services;
    }
    let [blobs, directories, path_infos] = layers;
    Services {
        blobs: Arc::new(TracedBlobService::new(services.blobs, blobs)),
        directories: Arc::new(TracedDirectoryService::new(services.directories, directories)),
        path_infos: Arc::new(TracedPathInfoService::new(services.path_infos, path_infos)),
    }
}

/// Opens each store once, however many services are in it.
#[derive(Default)]
struct Opener {
    local: HashMap<PathBuf, Arc<SharedStore>>,
    peers: HashMap<String, GrpcPeer>,
    bases: HashMap<String, ObjectBase>,
    /// The folders of caches, in the order in which they were opened.
    caches: Vec<(PathBuf, Arc<SharedStore>)>,
    /// Stores with all their services.
    whole: Vec<(Address, Services)>,
}

impl Opener {
    /// All services of a store, each with the others beside it.
    fn services<'a>(
        &'a mut self,
        address: &'a Address,
    ) -> BoxFuture<'a, Result<Services, Failure>> {
        async move {
            if let Some((_, services)) = self.whole.iter().find(|(known, _)| known == address) {
                return Ok(services.clone());
            }
            let services = match address {
                Address::Upstreams(all) => {
                    let mut upstreams = Vec::with_capacity(all.stores.len());
                    for store in &all.stores {
                        upstreams.push(self.services(store).await?);
                    }
                    Services::of_upstreams(upstreams, all.write)
                }
                Address::Cache(cache) => {
                    let far = self.services(&cache.far).await?;
                    self.cached(&cache.near, cache.size, &far).await?.0
                }
                _ => {
                    let blobs = self.blobs(address).await?;
                    let directories = self.directories(address).await?;
                    let path_infos =
                        self.path_infos(address, blobs.clone(), directories.clone()).await?;
                    Services { blobs, directories, path_infos }
                }
            };
            self.whole.push((address.clone(), services.clone()));
            Ok(services)
        }
        .boxed()
    }

    /// The services of a store through its cache, which is shared if it is in a folder.
    async fn cached(
        &mut self,
        near: &Address,
        size: Option<ByteSize>,
        far: &Services,
    ) -> Result<(Services, Option<Arc<SharedStore>>), Failure> {
        let Address::Local(folder) = near else {
            let near = Near::memory(size.map_or(MEMORY_CACHE, |size| size.0));
            let services = Services {
                blobs: Arc::new(CacheBlobService::new(near.clone(), far.blobs.clone())),
                directories: Arc::new(CacheDirectoryService::new(
                    near.clone(),
                    far.directories.clone(),
                )),
                path_infos: Arc::new(CachePathInfoService::new(near, far.path_infos.clone())),
            };
            return Ok((services, None));
        };
        if self.caches.iter().any(|(known, _)| known == folder) {
            let what = format!("the folder {} is the cache of two stores", folder.display());
            return Err(Failure::plain(Code::Usage, what).help("give each a folder of its own"));
        }
        let budget = size.map_or_else(|| default_budget(folder), |size| size.0);
        let purpose = Purpose::Cache(Cached { far: far.clone(), budget });
        let shared = SharedStore::open(folder, purpose).await;
        let shared = shared.map_err(|error| Failure::new("the cache can't be used", error))?;
        self.caches.push((folder.clone(), shared.clone()));
        let services = Services {
            blobs: Arc::new(SharedBlobService(shared.clone())),
            directories: Arc::new(SharedDirectoryService(shared.clone())),
            path_infos: Arc::new(SharedPathInfoService(shared.clone())),
        };
        Ok((services, Some(shared)))
    }

    async fn blobs(&mut self, address: &Address) -> Result<Arc<dyn BlobService>, Failure> {
        Ok(match address {
            Address::Memory => Arc::new(MemoryBlobService::new()),
            Address::Local(path) => {
                Arc::new(SharedBlobService(self.local(path, Contents::default()).await?))
            }
            Address::ObjectStore(objects) => {
                Arc::new(ObjectStoreBlobService::new(self.base(objects).await?))
            }
            Address::Grpc(peer) => Arc::new(GrpcBlobService::new(self.peer(peer)?)),
            Address::Cache(_) | Address::Upstreams(_) => self.services(address).await?.blobs,
        })
    }

    async fn directories(
        &mut self,
        address: &Address,
    ) -> Result<Arc<dyn DirectoryService>, Failure> {
        Ok(match address {
            Address::Memory => Arc::new(MemoryDirectoryService::new()),
            Address::Local(path) => {
                Arc::new(SharedDirectoryService(self.local(path, Contents::default()).await?))
            }
            Address::ObjectStore(objects) => {
                Arc::new(ObjectStoreDirectoryService::new(self.base(objects).await?))
            }
            Address::Grpc(peer) => Arc::new(GrpcDirectoryService::new(self.peer(peer)?)),
            Address::Cache(_) | Address::Upstreams(_) => self.services(address).await?.directories,
        })
    }

    async fn path_infos(
        &mut self,
        address: &Address,
        blobs: Arc<dyn BlobService>,
        directories: Arc<dyn DirectoryService>,
    ) -> Result<Arc<dyn PathInfoService>, Failure> {
        Ok(match address {
            Address::Memory => Arc::new(MemoryPathInfoService::new(blobs, directories)),
            Address::Local(path) => {
                Arc::new(SharedPathInfoService(self.local(path, Contents::default()).await?))
            }
            Address::ObjectStore(objects) => {
                let base = self.base(objects).await?;
                Arc::new(ObjectStorePathInfoService::new(base, blobs, directories))
            }
            Address::Grpc(peer) => Arc::new(GrpcPathInfoService::new(self.peer(peer)?)),
            Address::Cache(_) | Address::Upstreams(_) => self.services(address).await?.path_infos,
        })
    }

    /// Who can tell how much the store at an address holds, which has been opened.
    fn control(&mut self, address: &Address) -> Result<Option<Arc<dyn StoreControl>>, Failure> {
        Ok(match address {
            Address::Local(path) => self.local.get(path).and_then(|store| store.store_control()),
            Address::Grpc(peer) => Some(Arc::new(PeerStore(self.peer(peer)?))),
            Address::Memory
            | Address::ObjectStore(_)
            | Address::Cache(_)
            | Address::Upstreams(_) => None,
        })
    }

    /// The local store in a folder. The contents count when it is opened first.
    async fn local(
        &mut self,
        path: &Path,
        contents: Contents,
    ) -> Result<Arc<SharedStore>, Failure> {
        if let Some(store) = self.local.get(path) {
            return Ok(store.clone());
        }
        let store = SharedStore::open(path, Purpose::Store(contents))
            .await
            .map_err(|error| Failure::new("the store can't be used", error))?;
        self.local.insert(path.to_owned(), store.clone());
        Ok(store)
    }

    fn peer(&mut self, address: &GrpcAddress) -> Result<GrpcPeer, Failure> {
        let key = address.to_string();
        if let Some(peer) = self.peers.get(&key) {
            return Ok(peer.clone());
        }
        let peer = GrpcPeer::new(address).map_err(|error| unusable(&key, error))?;
        self.peers.insert(key, peer.clone());
        Ok(peer)
    }

    async fn base(&mut self, address: &ObjectAddress) -> Result<ObjectBase, Failure> {
        // With the options, by which one bucket can be on two servers.
        let key = address.url().to_string();
        if let Some(base) = self.bases.get(&key) {
            return Ok(base.clone());
        }
        let unusable = |error: BoxError| unusable(&address.to_string(), error);
        let base = ObjectBase::open(address).map_err(|error| unusable(error.into()))?;
        base.check().await.map_err(|error| unusable(error.into()))?;
        self.bases.insert(key, base.clone());
        Ok(base)
    }
}

fn unusable(address: &str, error: impl Into<BoxError>) -> Failure {
    Failure::new(format!("the store {address} can't be used"), error)
}

/// Where the local store is if no other is named.
fn default_folder() -> Result<PathBuf, Failure> {
    if rustix::process::geteuid().is_root() {
        return Ok(PathBuf::from("/var/lib/cairn"));
    }
    user_folder("XDG_DATA_HOME", ".local/share").ok_or_else(|| {
        Failure::plain(Code::Usage, "no store to work on: neither XDG_DATA_HOME nor HOME is set")
            .help("name a store with --store sled:/path")
    })
}

/// The folder of cairn in the one that the variable names, or else in that place below the user's
/// home. `None` if neither is known.
pub(crate) fn user_folder(variable: &str, below_home: &str) -> Option<PathBuf> {
    let absolute = |name| env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let folder = absolute(variable).or_else(|| Some(absolute("HOME")?.join(below_home)))?;
    Some(folder.join("cairn"))
}
