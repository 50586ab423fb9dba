//! A server in the process of a test, on loopback or on a unix socket in a folder of its own.

use std::time::Duration;

use tempfile::TempDir;
use tokio::{
    net::{TcpListener, UnixListener},
    task::JoinHandle,
};
use tokio_stream::wrappers::{TcpListenerStream, UnixListenerStream};
use tonic::{service::Routes, transport::Server};

use super::GrpcPeer;
use crate::Address;

/// Where the server listens.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Listen {
    Tcp,
    Unix,
}

/// Serves until it is dropped.
pub(crate) struct TestServer {
    address: String,
    task: JoinHandle<()>,
    _folder: Option<TempDir>,
}

impl TestServer {
    pub(crate) async fn start(listen: Listen, routes: Routes) -> Self {
        let router = Server::builder().add_routes(routes);
        match listen {
            Listen::Tcp => {
                let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
                let address = format!("grpc+http://{}", listener.local_addr().unwrap());
                let incoming = TcpListenerStream::new(listener);
                let task = tokio::spawn(async move {
                    router.serve_with_incoming(incoming).await.unwrap();
                });
                Self { address, task, _folder: None }
            }
            Listen::Unix => {
                let folder = tempfile::tempdir().unwrap();
                let path = folder.path().join("socket");
                let address = format!("grpc+unix:{}", path.display());
                let incoming = UnixListenerStream::new(UnixListener::bind(path).unwrap());
                let task = tokio::spawn(async move {
                    router.serve_with_incoming(incoming).await.unwrap();
                });
                Self { address, task, _folder: Some(folder) }
            }
        }
    }

    pub(crate) fn peer(&self) -> GrpcPeer {
        let Ok(Address::Grpc(address)) = self.address.parse() else {
            panic!("{} is no address of a peer", self.address)
        };
        // Long for an answer that comes, short for one that never does.
        GrpcPeer::new(&address).unwrap().with_deadline(Duration::from_secs(5))
    }
}

impl Drop for TestServer {
    fn drop(&mut self) {
        self.task.abort();
    }
}
