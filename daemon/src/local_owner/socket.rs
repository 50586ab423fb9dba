//! The socket in a local store's folder: where it lies, who answers on it, and the server behind
//! it in the process that holds the store.

use std::{
    io,
    os::fd::{AsRawFd as _, OwnedFd},
    path::{Path, PathBuf},
    time::Duration,
};

use cairn_castore::{BoxError, Digest, address::GrpcAddress, grpc::GrpcPeer};
use data_encoding::HEXLOWER;
use rustix::{
    fs::{Mode, OFlags},
    net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType},
};
use tokio::{
    net::{UnixListener, UnixStream},
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;

use crate::server::{Served, Server, listener::Listener};

/// The socket's name in a store's folder.
const NAME: &str = "socket";

/// What the socket's name in a cache's folder starts with. What follows tells of which store it is,
/// so that nobody is ever given the contents of another one.
const CACHE_NAME: &str = "socket-of-";

/// The bytes of the store's digest in that name.
const CACHE_NAME_LEN: usize = 8;

/// How long the process that holds a store waits, when it ends, for what others are storing.
const DRAIN_TIME: Duration = Duration::from_secs(30);

/// How long it waits for what they are reading.
const FAREWELL_TIME: Duration = Duration::from_millis(250);

/// How long a process that listens may take to accept a connection.
const ANSWER_TIME: Duration = Duration::from_secs(2);

/// Connections that wait to be accepted.
const BACKLOG: i32 = 128;

/// The longest path that a socket's address takes, in bytes.
const ADDRESS_MAX: usize = 107;

/// Where a store's socket is.
#[derive(Debug)]
pub(crate) struct SocketPlace {
    folder: PathBuf,
    name: String,
}

impl SocketPlace {
    /// The place of the socket of a store.
    pub(super) fn new(store: &Path) -> Self {
        Self { folder: store.to_owned(), name: NAME.to_owned() }
    }

    /// The place of the socket of a cache of the store with this name.
    pub(super) fn of_cache(cache: &Path, far: &str) -> Self {
        let digest = Digest::of(far.as_bytes());
        let name = HEXLOWER.encode(&digest.as_bytes()[..CACHE_NAME_LEN]);
        Self { folder: cache.to_owned(), name: format!("{CACHE_NAME}{name}") }
    }

    /// The places of all sockets in the folder of a cache.
    pub(crate) fn of_caches(cache: &Path) -> Vec<Self> {
        let Ok(entries) = std::fs::read_dir(cache) else { return Vec::new() };
        let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        let names = names.filter(|name| name.starts_with(CACHE_NAME));
        names.map(|name| Self { folder: cache.to_owned(), name }).collect()
    }

    /// Whether a process listens on the socket.
    pub(crate) async fn answers(&self) -> bool {
        let Ok(path) = self.reachable(&self.name) else { return false };
        let connecting = UnixStream::connect(&path.path);
        matches!(tokio::time::timeout(ANSWER_TIME, connecting).await, Ok(Ok(_)))
    }

    /// Removes the socket of a process that is gone. Only the process that holds the cache may call
    /// this, and not for the socket that it listens on.
    pub(super) fn remove(&self) {
        if let Err(error) = std::fs::remove_file(self.folder.join(&self.name)) {
            tracing::debug!(%error, socket = self.name, "a socket stays behind");
        }
    }

    /// The process that listens on the socket, and the path that leads to it, to be kept for as
    /// long as the peer is used.
    pub(crate) fn peer(&self) -> Result<(GrpcPeer, Reachable), BoxError> {
        let reachable = self.reachable(&self.name)?;
        let peer = GrpcPeer::new(&GrpcAddress::Unix(reachable.path.clone()))?;
        Ok((peer, reachable))
    }

    /// A file in the store's folder under a path that is short enough for a socket's address.
    fn reachable(&self, name: &str) -> io::Result<Reachable> {
        let path = self.folder.join(name);
        if path.as_os_str().len() <= ADDRESS_MAX {
            return Ok(Reachable { path, _folder: None });
        }
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let folder = rustix::fs::open(&self.folder, flags, Mode::empty())?;
        let path = format!("/proc/self/fd/{}/{name}", folder.as_raw_fd()).into();
        Ok(Reachable { path, _folder: Some(folder) })
    }
}

/// A path that holds as long as this does.
#[derive(Debug)]
pub(crate) struct Reachable {
    path: PathBuf,
    _folder: Option<OwnedFd>,
}

/// The server of the process that holds a store.
pub(super) struct OwnerSocket {
    path: PathBuf,
    server: Server,
    stop: CancellationToken,
    serving: JoinHandle<()>,
}

impl OwnerSocket {
    /// Puts a new socket in the place of one that an earlier owner may have left, and serves the
    /// store there. Only the process that holds the store may call this.
    pub(super) async fn open(place: &SocketPlace, served: Served) -> Result<Self, BoxError> {
        let server = Server::new(served).await?;
        let listener = listen(place)?;
        let stop = CancellationToken::new();
        let serving = server.clone().serve(Listener::Unix(listener, None), stop.clone());
        let serving = tokio::spawn(async move {
            if let Err(error) = serving.await {
                let error = &error as &(dyn std::error::Error + 'static);
                tracing::error!(error, "a local store is no longer served to other processes");
            }
        });
        Ok(Self { path: place.folder.join(&place.name), server, stop, serving })
    }

    /// Refuses new requests, waits for those that store something and removes the socket. Whoever
    /// reads goes on with the next owner, and need not be waited for.
    pub(super) async fn close(mut self) {
        self.stop.cancel();
        let quiet = async {
            // Those who have just been told are done at once, if nothing of theirs is under way.
            if tokio::time::timeout(FAREWELL_TIME, &mut self.serving).await.is_err() {
                self.server.writes_done().await;
            }
        };
        if tokio::time::timeout(DRAIN_TIME, quiet).await.is_err() {
            tracing::warn!(path = %self.path.display(), "requests of other processes are cut off");
        }
        if let Err(error) = tokio::fs::remove_file(&self.path).await {
            tracing::debug!(%error, path = %self.path.display(), "the socket stays behind");
        }
    }
}

impl Drop for OwnerSocket {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

/// A socket that only this user can connect to. It gets its name when it is ready, so that nobody
/// meets one that does not answer.
fn listen(place: &SocketPlace) -> io::Result<UnixListener> {
    let unready = place.reachable(&format!("{}.new", place.name))?;
    match std::fs::remove_file(&unready.path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    rustix::net::bind(&socket, &SocketAddrUnix::new(&unready.path)?)?;
    rustix::fs::chmod(&unready.path, Mode::RUSR | Mode::WUSR)?;
    rustix::net::listen(&socket, BACKLOG)?;
    std::fs::rename(&unready.path, place.folder.join(&place.name))?;
    UnixListener::from_std(std::os::unix::net::UnixListener::from(socket))
}
