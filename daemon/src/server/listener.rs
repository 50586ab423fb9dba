//! Sockets that a server listens on: TCP and unix, bound here or handed over by whoever started
//! the process, and how many connections each takes. What is said on a connection is not known
//! here.

use std::{
    fmt, io,
    os::unix::fs::{FileTypeExt as _, MetadataExt as _},
    path::{Path, PathBuf},
    pin::Pin,
    str::FromStr,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use futures::{Stream, stream};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream, UnixListener, UnixStream},
    sync::{OwnedSemaphorePermit, Semaphore},
};
use tonic::transport::server::Connected;

/// The most connections that one listener holds at a time; others wait to be accepted.
pub(crate) const CONNECTIONS_MAX: usize = 1024;

/// How long a listener waits after an accept has failed (no file descriptor left, say).
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Where to listen: `HOST:PORT` or `unix:/path`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum ListenAddress {
    /// A host, by name or number, and a port. Port 0 is any free one.
    Tcp(String),
    /// A socket in the file system.
    Unix(PathBuf),
}

/// A text that is no [`ListenAddress`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no address to listen on: expected HOST:PORT, as [::]:8000, or unix:/path")]
pub(crate) struct InvalidListenAddress(String);

impl FromStr for ListenAddress {
    type Err = InvalidListenAddress;

    fn from_str(text: &str) -> Result<Self, InvalidListenAddress> {
        let invalid = || InvalidListenAddress(text.to_owned());
        if let Some(path) = text.strip_prefix("unix:") {
            // `unix:///path`, as URLs have it, is the same.
            let path = path.strip_prefix("//").unwrap_or(path);
            if path.is_empty() || path.contains('\0') {
                return Err(invalid());
            }
            return Ok(Self::Unix(PathBuf::from(path)));
        }
        let (host, port) = text.rsplit_once(':').ok_or_else(invalid)?;
        let bracketed = host.starts_with('[') && host.ends_with(']');
        if host.is_empty() || (host.contains(':') && !bracketed) || port.parse::<u16>().is_err() {
            return Err(invalid());
        }
        Ok(Self::Tcp(text.to_owned()))
    }
}

impl fmt::Display for ListenAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => f.write_str(address),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// Why an address can't be listened on.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ListenError {
    /// Another process listens there.
    #[error("{address} is in use by another process")]
    InUse {
        /// The address.
        address: ListenAddress,
    },
    /// There is a file of another kind.
    #[error("{} is there already and is no socket", path.display())]
    NoSocket {
        /// The file.
        path: PathBuf,
    },
    /// Anything else.
    #[error("can't listen on {address}")]
    Bind {
        /// The address.
        address: ListenAddress,
        /// What the system says.
        #[source]
        source: io::Error,
    },
    /// A socket handed over by whoever started the process is not of use.
    #[error("the socket handed over as file descriptor {descriptor} can't be listened on")]
    HandedOver {
        /// Its number.
        descriptor: i32,
        /// What the system says.
        #[source]
        source: io::Error,
    },
}

/// A socket that takes connections.
#[derive(Debug)]
pub(crate) enum Listener {
    /// TCP.
    Tcp(TcpListener),
    /// A unix socket.
    Unix(UnixListener, Option<SocketFile>),
}

/// The file of a unix socket that was bound here: removed on drop, if it is still the same file.
#[derive(Debug)]
pub(crate) struct SocketFile {
    path: PathBuf,
    /// Device and inode.
    identity: (u64, u64),
}

impl Listener {
    /// Binds an address. A socket's file that a server has left behind is replaced; one that
    /// answers is not.
    pub(crate) async fn bind(address: &ListenAddress) -> Result<Self, ListenError> {
        match address {
            ListenAddress::Tcp(text) => {
                let bound = TcpListener::bind(text.as_str()).await;
                Ok(Self::Tcp(bound.map_err(|error| failure(address, error))?))
            }
            ListenAddress::Unix(path) => {
                let (listener, file) = bind_unix(path).await?;
                Ok(Self::Unix(listener, Some(file)))
            }
        }
    }

    /// The address as the URL of a store.
    pub(crate) fn url(&self) -> io::Result<String> {
        Ok(match self {
            Self::Tcp(listener) => format!("grpc+http://{}", listener.local_addr()?),
            Self::Unix(listener, _) => {
                let address = listener.local_addr()?;
                match address.as_pathname() {
                    Some(path) => format!("grpc+unix:{}", path.display()),
                    None => "grpc+unix:(without a name)".to_owned(),
                }
            }
        })
    }
}

impl SocketFile {
    fn of(path: &Path) -> io::Result<Self> {
        let metadata = std::fs::symlink_metadata(path)?;
        let path = std::path::absolute(path)?;
        Ok(Self { path, identity: (metadata.dev(), metadata.ino()) })
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let is_ours = std::fs::symlink_metadata(&self.path)
            .is_ok_and(|metadata| (metadata.dev(), metadata.ino()) == self.identity);
        if is_ours && let Err(error) = std::fs::remove_file(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "a socket's file stays behind");
        }
    }
}

/// Binds a unix socket, which has its file for as long as the second of what is returned is kept. A
/// file that a server has left behind is replaced; one that answers is not.
pub(crate) async fn bind_unix(path: &Path) -> Result<(UnixListener, SocketFile), ListenError> {
    let address = ListenAddress::Unix(path.to_owned());
    remove_stale(&address, path).await?;
    let failed = |error| failure(&address, error);
    let listener = UnixListener::bind(path).map_err(failed)?;
    let file = SocketFile::of(path).map_err(failed)?;
    Ok((listener, file))
}

fn failure(address: &ListenAddress, source: io::Error) -> ListenError {
    let address = address.clone();
    match source.kind() {
        io::ErrorKind::AddrInUse => ListenError::InUse { address },
        _ => ListenError::Bind { address, source },
    }
}

/// Removes the file of a socket that nobody listens on any more.
async fn remove_stale(address: &ListenAddress, path: &Path) -> Result<(), ListenError> {
    let failed = |source| ListenError::Bind { address: address.clone(), source };
    let metadata = match std::fs::symlink_metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed(error)),
    };
    if !metadata.file_type().is_socket() {
        return Err(ListenError::NoSocket { path: path.to_owned() });
    }
    match UnixStream::connect(path).await {
        Ok(_) => Err(ListenError::InUse { address: address.clone() }),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            tracing::info!(path = %path.display(), "replacing the socket of a server that is gone");
            std::fs::remove_file(path).map_err(failed)
        }
        Err(error) => Err(failed(error)),
    }
}

/// The connections of a TCP listener.
pub(super) fn tcp_connections(
    listener: TcpListener,
) -> impl Stream<Item = io::Result<Connection<TcpStream>>> + Send {
    connections(listener, |listener| {
        Box::pin(async move {
            let (stream, _) = listener.accept().await?;
            // Small answers must not wait for larger ones, and a peer that is gone must be noticed.
            stream.set_nodelay(true)?;
            rustix::net::sockopt::set_socket_keepalive(&stream, true)?;
            Ok(stream)
        })
    })
}

/// The connections of a unix socket.
pub(super) fn unix_connections(
    listener: UnixListener,
) -> impl Stream<Item = io::Result<Connection<UnixStream>>> + Send {
    connections(listener, |listener| Box::pin(async move { Ok(listener.accept().await?.0) }))
}

type Accepting<'a, S> = Pin<Box<dyn Future<Output = io::Result<S>> + Send + 'a>>;

/// Accepts while there are fewer than [`CONNECTIONS_MAX`] connections. Never ends, and never
/// yields an error: what fails is one connection, not the listener.
fn connections<L, S>(
    listener: L,
    accept: for<'a> fn(&'a L) -> Accepting<'a, S>,
) -> impl Stream<Item = io::Result<Connection<S>>> + Send
where
    L: Send + Sync + 'static,
    S: Send + 'static,
{
    let permits = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    stream::unfold((listener, permits), move |(listener, permits)| async move {
        let permit = permits.clone().acquire_owned().await.expect("the semaphore is never closed");
        let stream = loop {
            match accept(&listener).await {
                Ok(stream) => break stream,
                Err(error) => {
                    tracing::warn!(%error, "a connection could not be accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        };
        Some((Ok(Connection { stream, _permit: permit }), (listener, permits)))
    })
}

/// A connection that counts against its listener's limit.
#[derive(Debug)]
pub(super) struct Connection<S> {
    stream: S,
    _permit: OwnedSemaphorePermit,
}

impl<S: Connected> Connected for Connection<S> {
    type ConnectInfo = S::ConnectInfo;

    fn connect_info(&self) -> Self::ConnectInfo {
        self.stream.connect_info()
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Connection<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Connection<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, pieces)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_hosts_with_ports_or_sockets() {
        let tcp = |text: &str| Ok(ListenAddress::Tcp(text.to_owned()));
        for text in ["[::]:8000", "127.0.0.1:0", "localhost:65535"] {
            assert_eq!(text.parse(), tcp(text));
        }
        for text in ["unix:/run/cairn", "unix:///run/cairn"] {
            assert_eq!(text.parse(), Ok(ListenAddress::Unix("/run/cairn".into())));
        }
        for text in ["", "8000", ":8000", "::1:8000", "host:", "host:65536", "host:http", "unix:"] {
            assert!(text.parse::<ListenAddress>().is_err(), "{text:?}");
        }
    }

    #[tokio::test]
    async fn a_socket_left_behind_is_replaced_and_one_in_use_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let address = ListenAddress::Unix(path.clone());
        // std leaves the file behind.
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        assert!(path.exists());

        let listener = Listener::bind(&address).await.unwrap();
        assert_eq!(listener.url().unwrap(), format!("grpc+unix:{}", path.display()));
        let second = Listener::bind(&address).await;
        assert!(matches!(second, Err(ListenError::InUse { .. })), "{second:?}");
        drop(listener);
        assert!(!path.exists());

        std::fs::write(&path, "precious").unwrap();
        let third = Listener::bind(&address).await;
        assert!(matches!(third, Err(ListenError::NoSocket { .. })), "{third:?}");
        assert_eq!(std::fs::read(&path).unwrap(), b"precious");
    }

    #[tokio::test]
    async fn a_port_in_use_is_told() {
        let free = ListenAddress::Tcp("127.0.0.1:0".to_owned());
        let Ok(Listener::Tcp(first)) = Listener::bind(&free).await else { panic!() };
        let taken = ListenAddress::Tcp(first.local_addr().unwrap().to_string());
        let error = Listener::bind(&taken).await.unwrap_err();
        assert!(matches!(error, ListenError::InUse { .. }), "{error:?}");
    }
}
