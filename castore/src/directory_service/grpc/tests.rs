use std::time::Duration;

use bytes::Bytes;
use tonic::service::Routes;

use super::*;
use crate::{
    Name, Node, conformance,
    directory::SizeRule,
    directory_service::{grpc_server::DirectoryServer, memory::MemoryDirectoryService},
    grpc::test_server::{Listen, TestServer},
};

async fn serve(listen: Listen, plain: bool, service: Arc<dyn DirectoryService>) -> TestServer {
    let server = DirectoryServer::new(service);
    let mut routes = Routes::new(server.clone().into_snix_service());
    if !plain {
        routes = routes.add_service(server.into_cairn_service());
    }
    TestServer::start(listen, routes).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn conforms_in_both_wires() {
    for (listen, plain) in
        [(Listen::Unix, false), (Listen::Tcp, false), (Listen::Unix, true), (Listen::Tcp, true)]
    {
        let server = serve(listen, plain, Arc::new(MemoryDirectoryService::new())).await;
        conformance::directory_service(Arc::new(GrpcDirectoryService::new(server.peer()))).await;
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Lie {
    /// Another directory than the one asked for.
    Wrong,
    /// Closures without their last directory.
    Truncated,
    /// Closures of nothing, without an error.
    Nothing,
    /// What is stored is answered for as something else.
    WrongStored,
    /// A closure is stored only whole: children that are there already do not count.
    Strict,
    /// Nothing is answered.
    Silent,
}

/// A service that says what is not so. The server adapter passes it on.
#[derive(Debug)]
struct Liar {
    lie: Lie,
    truth: MemoryDirectoryService,
}

impl fmt::Display for Liar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("liar")
    }
}

#[async_trait]
impl DirectoryService for Liar {
    async fn get(&self, digest: &Digest) -> Result<Option<Directory>, DirectoryError> {
        match self.lie {
            Lie::Silent => std::future::pending().await,
            Lie::Wrong => Ok(Some(leaf("another"))),
            _ => self.truth.get(digest).await,
        }
    }

    async fn get_closure(&self, root: &Digest) -> Result<DirectoryStream, DirectoryError> {
        let closure = match self.lie {
            Lie::Silent => return Ok(stream::pending().boxed()),
            Lie::Nothing => return Ok(stream::empty().boxed()),
            Lie::Wrong => return Ok(stream::iter([Ok(leaf("another"))]).boxed()),
            _ => self.truth.get_closure(root).await?,
        };
        let mut directories: Vec<_> = closure.collect().await;
        if self.lie == Lie::Truncated {
            directories.pop();
        }
        Ok(stream::iter(directories).boxed())
    }

    async fn has_many(&self, digests: &[Digest]) -> Result<Vec<bool>, DirectoryError> {
        self.truth.has_many(digests).await
    }

    async fn put_closure(&self, directories: DirectoryStream) -> Result<Digest, DirectoryError> {
        match self.lie {
            Lie::Silent => std::future::pending().await,
            Lie::Strict => {
                let whole: Vec<_> = directories.try_collect().await?;
                let alone = MemoryDirectoryService::new();
                let again = whole.clone().into_iter().map(Ok);
                // The empty directory is not an exception.
                let empty = whole.contains(&Directory::default());
                assert!(empty, "the empty directory was not sent");
                alone.put_closure(stream::iter(again).boxed()).await?;
                self.truth.put_closure(stream::iter(whole.into_iter().map(Ok)).boxed()).await
            }
            _ => {
                self.truth.put_closure(directories).await?;
                Ok(Digest::of(b"something else"))
            }
        }
    }

    fn get_local(&self, _: &Digest) -> Option<Result<Option<Directory>, DirectoryError>> {
        None
    }
}

fn leaf(text: &str) -> Directory {
    let target = Bytes::copy_from_slice(text.as_bytes()).try_into().unwrap();
    Directory::new(vec![(Name::try_from("link").unwrap(), Node::Symlink { target })]).unwrap()
}

fn parent(children: &[&Directory]) -> Directory {
    let entry = |(index, child): (usize, &&Directory)| {
        let node = Node::Directory { digest: child.digest(), size: child.size(SizeRule::Doubled) };
        (Name::try_from(index.to_string().as_str()).unwrap(), node)
    };
    Directory::new(children.iter().enumerate().map(entry).collect()).unwrap()
}

fn leaves_first(directories: &[&Directory]) -> DirectoryStream {
    let directories: Vec<_> = directories.iter().map(|&directory| Ok(directory.clone())).collect();
    stream::iter(directories).boxed()
}

struct Lied {
    _server: TestServer,
    service: GrpcDirectoryService,
    root: Directory,
    leaf: Directory,
}

async fn lied(lie: Lie) -> Lied {
    let truth = MemoryDirectoryService::new();
    let leaf = leaf("lies");
    let root = parent(&[&leaf]);
    truth.put_closure(leaves_first(&[&leaf, &root])).await.unwrap();
    let server = serve(Listen::Unix, lie == Lie::Strict, Arc::new(Liar { lie, truth })).await;
    let deadline = match lie {
        Lie::Silent => Duration::from_millis(100),
        _ => Duration::from_secs(5),
    };
    let service = GrpcDirectoryService::new(server.peer().with_deadline(deadline));
    Lied { _server: server, service, root, leaf }
}

async fn closure(service: &GrpcDirectoryService, root: &Directory) -> Result<(), DirectoryError> {
    let closure = service.get_closure(&root.digest()).await?;
    closure.try_collect::<Vec<_>>().await.map(drop)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lies_are_told() {
    let Lied { service, root, _server, .. } = lied(Lie::Wrong).await;
    let error = service.get(&root.digest()).await.unwrap_err();
    assert!(matches!(error, DirectoryError::Corrupt { digest, .. } if digest == root.digest()));
    let error = closure(&service, &root).await.unwrap_err();
    let wrong =
        InvalidClosure::WrongRoot { expected: root.digest(), found: leaf("another").digest() };
    assert!(matches!(error, DirectoryError::Closure(found) if found == wrong));

    let Lied { service, root, leaf, _server } = lied(Lie::Truncated).await;
    let error = closure(&service, &root).await.unwrap_err();
    let truncated = InvalidClosure::Truncated { missing: 1, first: leaf.digest() };
    assert!(matches!(error, DirectoryError::Closure(found) if found == truncated));

    let Lied { service, root, _server, .. } = lied(Lie::Nothing).await;
    let error = closure(&service, &root).await.unwrap_err();
    assert!(matches!(error, DirectoryError::NotFound(digest) if digest == root.digest()));

    let Lied { service, root, leaf, _server } = lied(Lie::WrongStored).await;
    let error = service.put_closure(leaves_first(&[&leaf, &root])).await.unwrap_err();
    assert!(matches!(error, DirectoryError::Corrupt { digest, .. } if digest == root.digest()));

    let Lied { service, root, leaf, _server } = lied(Lie::Silent).await;
    for error in [
        service.get(&root.digest()).await.unwrap_err(),
        closure(&service, &root).await.unwrap_err(),
        service.put_closure(leaves_first(&[&leaf, &root])).await.unwrap_err(),
    ] {
        assert!(matches!(error, DirectoryError::Unavailable { .. }), "{error:?}");
    }
}

/// A peer that is not cairn wants every child in the stream: those that it has are sent again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn strict_peers_are_sent_whole_closures() {
    let Lied { service, root, leaf, _server } = lied(Lie::Strict).await;
    let top = parent(&[&root, &Directory::default(), &leaf]);
    let stored = service.put_closure(leaves_first(&[&top])).await.unwrap();
    assert_eq!(stored, top.digest());
    closure(&service, &top).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_are_answered_as_the_wire_says() {
    let server = serve(Listen::Tcp, false, Arc::new(MemoryDirectoryService::new())).await;
    let mut client = GrpcDirectoryService::new(server.peer()).snix();
    let mut code = async |by_what: Option<&[u8]>, recursive| {
        let by_what = by_what.map(|digest| ByWhat::Digest(Bytes::copy_from_slice(digest)));
        let answer = client.get(snix::GetDirectoryRequest { by_what, recursive }).await;
        let read = async { answer?.into_inner().try_collect::<Vec<_>>().await };
        read.await.map_or_else(|status| status.code(), |_| Code::Ok)
    };
    let unknown = *Digest::of(b"unknown").as_bytes();
    for recursive in [false, true] {
        assert_eq!(code(None, recursive).await, Code::InvalidArgument);
        assert_eq!(code(Some(b"short"), recursive).await, Code::InvalidArgument);
        assert_eq!(code(Some(&unknown), recursive).await, Code::NotFound);
        assert_eq!(code(Some(Digest::EMPTY.as_bytes()), recursive).await, Code::Ok);
    }
    let root = parent(&[&leaf("missing")]).to_proto();
    let refused = client.put(stream::iter([root])).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    let unsorted = snix::Directory {
        symlinks: vec![
            snix::SymlinkEntry { name: "b".into(), target: "x".into() },
            snix::SymlinkEntry { name: "a".into(), target: "x".into() },
        ],
        ..Default::default()
    };
    let refused = client.put(stream::iter([unsorted])).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
}
