//! From addresses to services: which store a command works on, and how each kind of store is
//! opened. What the stores are is in the crates below.

use std::{
    collections::HashMap,
    env,
    path::{Path, PathBuf},
    sync::Arc,
};

use cairn_castore::{
    BlobService, BoxError, DirectoryService,
    address::{Address, GrpcAddress, ObjectAddress},
    blob_service::{
        grpc::GrpcBlobService, memory::MemoryBlobService, object_store::ObjectStoreBlobService,
    },
    directory_service::{
        grpc::GrpcDirectoryService, memory::MemoryDirectoryService,
        object_store::ObjectStoreDirectoryService,
    },
    grpc::GrpcPeer,
    object_base::ObjectBase,
};
use cairn_store::{
    PathInfoService, Services,
    path_info_service::{
        grpc::GrpcPathInfoService, memory::MemoryPathInfoService,
        object_store::ObjectStorePathInfoService,
    },
};

use crate::{
    exit::{Code, Failure},
    local_owner::{
        Contents, SharedBlobService, SharedDirectoryService, SharedPathInfoService, SharedStore,
    },
};

/// Which store to work on.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Store")]
pub(crate) struct ServiceArgs {
    /// The store to work on: sled:/path, grpc+http://host:port, grpc+https://host,
    /// grpc+unix:/path, objectstore+file:///path, objectstore+s3://bucket/prefix or memory:
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
}

impl ServiceArgs {
    /// All services of one store.
    pub(crate) fn of(address: Address) -> Self {
        Self {
            store: Some(address),
            blob_service_addr: None,
            directory_service_addr: None,
            path_info_service_addr: None,
        }
    }

    /// Where blobs, directories and path infos are.
    pub(crate) fn addresses(&self) -> Result<[Address; 3], Failure> {
        let store = self.store()?;
        let address = |other: &Option<Address>| other.clone().unwrap_or_else(|| store.clone());
        Ok([
            address(&self.blob_service_addr),
            address(&self.directory_service_addr),
            address(&self.path_info_service_addr),
        ])
    }

    fn store(&self) -> Result<Address, Failure> {
        match &self.store {
            Some(address) => Ok(address.clone()),
            None => Ok(Address::Local(default_folder()?)),
        }
    }

    /// The folder of the local store that blobs are in. `None` if they are elsewhere.
    pub(crate) fn blob_folder(&self) -> Result<Option<PathBuf>, Failure> {
        let blobs_at = match &self.blob_service_addr {
            Some(address) => address.clone(),
            None => self.store()?,
        };
        Ok(match blobs_at {
            Address::Local(folder) => Some(folder),
            Address::Memory | Address::ObjectStore(_) | Address::Grpc(_) => None,
        })
    }
}

/// The services that a command works with, and what has to be closed behind them.
#[derive(Debug)]
pub(crate) struct OpenServices {
    /// The services.
    pub(crate) services: Services,
    local: Vec<Arc<SharedStore>>,
}

impl OpenServices {
    /// Opens the services that the arguments name.
    pub(crate) async fn open(args: &ServiceArgs) -> Result<Self, Failure> {
        let [blobs_at, directories_at, path_infos_at] = args.addresses()?;

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
        let services = Services { blobs, directories, path_infos };
        tracing::info!(
            blobs = %services.blobs,
            directories = %services.directories,
            path_infos = %services.path_infos,
            "opened the store",
        );
        Ok(Self { services, local: opener.local.into_values().collect() })
    }

    /// Lets go of the store. Local stores are closed, or left to the processes that share them.
    pub(crate) async fn close(self) {
        drop(self.services);
        for store in self.local {
            store.close().await;
        }
    }
}

/// Opens each store once, however many services are in it.
#[derive(Default)]
struct Opener {
    local: HashMap<PathBuf, Arc<SharedStore>>,
    peers: HashMap<String, GrpcPeer>,
    bases: HashMap<String, ObjectBase>,
}

impl Opener {
    async fn blobs(&mut self, address: &Address) -> Result<Arc<dyn BlobService>, Failure> {
        Ok(match address {
            Address::Memory => Arc::new(MemoryBlobService::new()),
            Address::Local(path) => {
                Arc::new(SharedBlobService(self.local(path, Contents::default()).await?))
            }
            Address::ObjectStore(objects) => {
                Arc::new(ObjectStoreBlobService::new(self.base(objects)?))
            }
            Address::Grpc(peer) => Arc::new(GrpcBlobService::new(self.peer(peer)?)),
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
                Arc::new(ObjectStoreDirectoryService::new(self.base(objects)?))
            }
            Address::Grpc(peer) => Arc::new(GrpcDirectoryService::new(self.peer(peer)?)),
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
                let base = self.base(objects)?;
                Arc::new(ObjectStorePathInfoService::new(base, blobs, directories))
            }
            Address::Grpc(peer) => Arc::new(GrpcPathInfoService::new(self.peer(peer)?)),
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
        let store = SharedStore::open(path, contents)
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

    fn base(&mut self, address: &ObjectAddress) -> Result<ObjectBase, Failure> {
        let key = address.to_string();
        if let Some(base) = self.bases.get(&key) {
            return Ok(base.clone());
        }
        let base = ObjectBase::open(address).map_err(|error| unusable(&key, error))?;
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
