//! A gRPC store that lies, in one way at a time, about one tree. It speaks only the wire that all
//! programs share, and shares no code with the server of cairn but the generated messages.

use std::{
    collections::HashMap,
    future::pending,
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use bytes::Bytes;
use cairn_proto::snix::{castore::v1 as castore, store::v1 as store};
use futures::{Stream, StreamExt as _, stream};
use prost::Message as _;
use tokio::{net::TcpListener, runtime::Runtime, sync::oneshot};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status, Streaming, transport::Server};

use crate::trees;

/// What the peer does wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lie {
    /// Nothing: what shows that a test can tell.
    Nothing,
    /// Each blob has one bit flipped.
    FlippedBit,
    /// Each blob ends a byte early.
    ShortBlob,
    /// Each blob goes on without end.
    EndlessBlob,
    /// Each blob comes in one message that is larger than any client has to take.
    HugeBlobMessage,
    /// A closure ends before its last directory.
    TruncatedClosure,
    /// A closure, or a directory, comes with a name changed.
    ChangedDirectory,
    /// A closure comes in one message that is larger than any client has to take.
    HugeDirectoryMessage,
    /// A path is answered with the record of another one.
    AnotherPath,
    /// The request for a blob is never answered.
    SilentBlob,
}

/// The size of a message that no client has to take: larger than a directory of a million entries
/// of middling length.
const HUGE_MESSAGE: usize = 300 << 20;

/// The size of the messages of an endless blob.
const ENDLESS_MESSAGE: usize = 1 << 20;

/// A peer that runs on a port of the loopback interface until it is dropped.
#[derive(Debug)]
pub struct Peer {
    address: SocketAddr,
    sent: Arc<AtomicU64>,
    _stop: oneshot::Sender<()>,
    runtime: Option<Runtime>,
}

impl Peer {
    /// Starts a peer that has the tree of [`trees::vector`] and lies about it.
    pub fn start(lie: Lie) -> Self {
        let runtime = Runtime::new().unwrap();
        let (stop, stopped) = oneshot::channel::<()>();
        let sent = Arc::new(AtomicU64::new(0));
        let liar = Liar { content: Arc::new(Content::vector()), lie, sent: Arc::clone(&sent) };
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
        let address = listener.local_addr().unwrap();
        let server = Server::builder()
            .add_service(castore::blob_service_server::BlobServiceServer::new(liar.clone()))
            .add_service(castore::directory_service_server::DirectoryServiceServer::new(
                liar.clone(),
            ))
            .add_service(store::path_info_service_server::PathInfoServiceServer::new(liar));
        runtime.spawn(async move {
            let stopped = async { drop(stopped.await) };
            server.serve_with_incoming_shutdown(TcpListenerStream::new(listener), stopped).await
        });
        Self { address, sent, _stop: stop, runtime: Some(runtime) }
    }

    /// The URL to reach it.
    pub fn url(&self) -> String {
        format!("grpc+http://{}", self.address)
    }

    /// The bytes of blobs that it has sent.
    pub fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// The tree that the peer has.
struct Content {
    blobs: HashMap<Bytes, Bytes>,
    chunks: HashMap<Bytes, Vec<castore::stat_blob_response::ChunkMeta>>,
    /// Root first.
    directories: Vec<castore::Directory>,
    path_info: store::PathInfo,
}

impl Content {
    /// The tree of the specification, put together by hand.
    fn vector() -> Self {
        let mut blobs = HashMap::new();
        let mut blob = |bytes: &[u8]| {
            let digest = digest(bytes);
            blobs.insert(digest.clone(), Bytes::copy_from_slice(bytes));
            digest
        };
        let mut file = |name: &str, content: &[u8], executable| castore::FileEntry {
            name: Bytes::copy_from_slice(name.as_bytes()),
            digest: blob(content),
            size: content.len() as u64,
            executable,
        };
        let big = vec![b'a'; 700_000];
        let deep =
            castore::Directory { files: vec![file("f", b"hi\n", false)], ..Default::default() };
        let empty = castore::Directory::default();
        let directory =
            |name: &'static str, directory: &castore::Directory, size| castore::DirectoryEntry {
                name: Bytes::from_static(name.as_bytes()),
                digest: digest(&directory.encode_to_vec()),
                size,
            };
        let root = castore::Directory {
            directories: vec![directory("d", &deep, 2), directory("empty", &empty, 0)],
            files: vec![
                file("big", &big, false),
                file("run", b"#!/bin/sh\necho ok\n", true),
                file("zero", b"", false),
            ],
            symlinks: vec![castore::SymlinkEntry {
                name: Bytes::from_static(b"link"),
                target: Bytes::from_static(b"d/f"),
            }],
        };
        let (first, second) = big.split_at(1 << 19);
        let chunks = [first, second].map(|chunk| castore::stat_blob_response::ChunkMeta {
            digest: blob(chunk),
            size: chunk.len() as u64,
        });
        let path_info = path_info(trees::VECTOR_STORE_PATH, &root);
        Self {
            chunks: HashMap::from([(digest(&big), chunks.to_vec())]),
            blobs,
            directories: vec![root, deep, empty],
            path_info,
        }
    }
}

fn path_info(store_path: &str, root: &castore::Directory) -> store::PathInfo {
    let entry = castore::DirectoryEntry {
        name: Bytes::copy_from_slice(trees::base_name(store_path).as_bytes()),
        digest: digest(&root.encode_to_vec()),
        // Twice six entries, and the size of `d`.
        size: 2 * 6 + 2,
    };
    let entry = castore::Entry { entry: Some(castore::entry::Entry::Directory(entry)) };
    let nar_sha256 = blake3::Hash::from_hex(trees::VECTOR_NAR_SHA256).expect("a hash of 32 bytes");
    let narinfo = store::NarInfo {
        nar_size: trees::VECTOR_NAR_SIZE,
        nar_sha256: Bytes::copy_from_slice(nar_sha256.as_bytes()),
        ..Default::default()
    };
    store::PathInfo { entry: Some(entry), narinfo: Some(narinfo), ..Default::default() }
}

fn digest(bytes: &[u8]) -> Bytes {
    Bytes::copy_from_slice(blake3::hash(bytes).as_bytes())
}

#[derive(Clone)]
struct Liar {
    content: Arc<Content>,
    lie: Lie,
    sent: Arc<AtomicU64>,
}

type Answer<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

fn answer<T: Send + 'static>(messages: Vec<T>) -> Response<Answer<T>> {
    Response::new(stream::iter(messages.into_iter().map(Ok)).boxed())
}

#[tonic::async_trait]
impl castore::blob_service_server::BlobService for Liar {
    type ReadStream = Answer<castore::BlobChunk>;

    async fn stat(
        &self,
        request: Request<castore::StatBlobRequest>,
    ) -> Result<Response<castore::StatBlobResponse>, Status> {
        let digest = request.into_inner().digest;
        if !self.content.blobs.contains_key(&digest) {
            return Err(Status::not_found("no such blob"));
        }
        let chunks = self.content.chunks.get(&digest).cloned().unwrap_or_default();
        Ok(Response::new(castore::StatBlobResponse { chunks, ..Default::default() }))
    }

    async fn read(
        &self,
        request: Request<castore::ReadBlobRequest>,
    ) -> Result<Response<Self::ReadStream>, Status> {
        let digest = request.into_inner().digest;
        let Some(blob) = self.content.blobs.get(&digest) else {
            return Err(Status::not_found("no such blob"));
        };
        let mut bytes = blob.to_vec();
        match self.lie {
            Lie::SilentBlob => pending().await,
            Lie::EndlessBlob => {
                let sent = Arc::clone(&self.sent);
                let endless = stream::repeat_with(move || {
                    sent.fetch_add(ENDLESS_MESSAGE as u64, Ordering::Relaxed);
                    Ok(castore::BlobChunk { data: vec![b'a'; ENDLESS_MESSAGE].into() })
                });
                return Ok(Response::new(endless.boxed()));
            }
            Lie::HugeBlobMessage => bytes.resize(HUGE_MESSAGE, b'a'),
            Lie::ShortBlob => drop(bytes.pop()),
            Lie::FlippedBit => bytes.iter_mut().take(1).for_each(|byte| *byte ^= 1),
            _ => {}
        }
        self.sent.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        Ok(answer(vec![castore::BlobChunk { data: bytes.into() }]))
    }

    async fn put(
        &self,
        _: Request<Streaming<castore::BlobChunk>>,
    ) -> Result<Response<castore::PutBlobResponse>, Status> {
        Err(Status::permission_denied("this store is read-only"))
    }
}

#[tonic::async_trait]
impl castore::directory_service_server::DirectoryService for Liar {
    type GetStream = Answer<castore::Directory>;

    async fn get(
        &self,
        request: Request<castore::GetDirectoryRequest>,
    ) -> Result<Response<Self::GetStream>, Status> {
        let castore::GetDirectoryRequest { by_what, recursive } = request.into_inner();
        let Some(castore::get_directory_request::ByWhat::Digest(wanted)) = by_what else {
            return Err(Status::invalid_argument("no digest"));
        };
        let directories = &self.content.directories;
        let position = directories.iter().position(|one| digest(&one.encode_to_vec()) == wanted);
        let position = position.ok_or_else(|| Status::not_found("no such directory"))?;
        // Only the root leads to others, which are all the others.
        let mut found = match recursive && position == 0 {
            true => directories.clone(),
            false => vec![directories[position].clone()],
        };
        match self.lie {
            Lie::TruncatedClosure if found.len() > 1 => drop(found.pop()),
            Lie::ChangedDirectory => {
                found.iter_mut().flat_map(|one| &mut one.files).for_each(|file| {
                    file.name = [&file.name[..], b"x"].concat().into();
                });
            }
            Lie::HugeDirectoryMessage => {
                found[0].symlinks[0].target = vec![b't'; HUGE_MESSAGE].into();
            }
            _ => {}
        }
        Ok(answer(found))
    }

    async fn put(
        &self,
        _: Request<Streaming<castore::Directory>>,
    ) -> Result<Response<castore::PutDirectoryResponse>, Status> {
        Err(Status::permission_denied("this store is read-only"))
    }
}

#[tonic::async_trait]
impl store::path_info_service_server::PathInfoService for Liar {
    type ListStream = Answer<store::PathInfo>;

    async fn get(
        &self,
        request: Request<store::GetPathInfoRequest>,
    ) -> Result<Response<store::PathInfo>, Status> {
        let Some(store::get_path_info_request::ByWhat::ByOutputHash(wanted)) =
            request.into_inner().by_what
        else {
            return Err(Status::invalid_argument("no hash"));
        };
        if self.lie == Lie::AnotherPath {
            let other = "/nix/store/00000000000000000000000000000000-tree";
            return Ok(Response::new(path_info(other, &self.content.directories[0])));
        }
        let known: cairn_store::StorePath = trees::VECTOR_STORE_PATH.parse().unwrap();
        if wanted[..] != known.hash()[..] {
            return Err(Status::not_found("no such path"));
        }
        Ok(Response::new(self.content.path_info.clone()))
    }

    async fn put(&self, _: Request<store::PathInfo>) -> Result<Response<store::PathInfo>, Status> {
        Err(Status::permission_denied("this store is read-only"))
    }

    async fn calculate_nar(
        &self,
        _: Request<castore::Entry>,
    ) -> Result<Response<store::CalculateNarResponse>, Status> {
        let nar = self.content.path_info.narinfo.clone().unwrap_or_default();
        let (nar_size, nar_sha256) = (nar.nar_size, nar.nar_sha256);
        Ok(Response::new(store::CalculateNarResponse { nar_size, nar_sha256 }))
    }

    async fn list(
        &self,
        _: Request<store::ListPathInfoRequest>,
    ) -> Result<Response<Self::ListStream>, Status> {
        Ok(answer(vec![self.content.path_info.clone()]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_peer_has_the_tree_of_the_specification() {
        let root = digest(&Content::vector().directories[0].encode_to_vec());
        let wanted = blake3::Hash::from_hex(trees::VECTOR_ROOT).unwrap();
        assert_eq!(root, wanted.as_bytes()[..]);
    }
}
