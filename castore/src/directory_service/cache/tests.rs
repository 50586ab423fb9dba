use std::{path::Path, sync::atomic::Ordering::SeqCst, time::Duration};

use futures::TryStreamExt as _;
use tonic::service::Routes;

use super::*;
use crate::{
    Name, Node,
    cache::test_far::FarDirectories,
    conformance,
    directory::SizeRule,
    directory_service::{
        grpc::GrpcDirectoryService, grpc_server::DirectoryServer, memory::MemoryDirectoryService,
    },
    grpc::test_server::{Listen, TestServer},
    local::cache::{CACHE_MIN, LocalCache},
};

const MEMORY: u64 = 1 << 30;

fn local(folder: &Path) -> Near {
    Near::local(LocalCache::open(folder, CACHE_MIN).unwrap())
}

fn cache(near: Near) -> (CacheDirectoryService, Arc<FarDirectories>) {
    let far = Arc::new(FarDirectories::default());
    (CacheDirectoryService::new(near, far.clone()), far)
}

fn leaf(text: &str) -> Directory {
    let target = Bytes::copy_from_slice(text.as_bytes()).try_into().unwrap();
    Directory::new(vec![(Name::try_from("link").unwrap(), Node::Symlink { target })]).unwrap()
}

fn parent(children: &[Directory]) -> Directory {
    let entry = |(index, child): (usize, &Directory)| {
        let size = child.size(SizeRule::Doubled);
        let node = Node::Directory { digest: child.digest(), size };
        (Name::try_from(format!("{index:04}").as_str()).unwrap(), node)
    };
    Directory::new(children.iter().enumerate().map(entry).collect()).unwrap()
}

/// A tree with so many children in each directory of so many levels, its root last.
fn tree(name: &str, children: usize, levels: usize) -> Vec<Directory> {
    if levels == 0 {
        return vec![leaf(name)];
    }
    let below: Vec<_> =
        (0..children).map(|child| tree(&format!("{name}/{child}"), children, levels - 1)).collect();
    let roots: Vec<Directory> = below.iter().map(|tree| tree.last().unwrap().clone()).collect();
    let mut all: Vec<Directory> = below.into_iter().flatten().collect();
    all.push(parent(&roots));
    all
}

async fn put(far: &FarDirectories, tree: &[Directory]) -> Digest {
    let tree: Vec<_> = tree.iter().cloned().map(Ok).collect();
    let closure = futures::stream::iter(tree).boxed();
    far.directories.put_closure(closure).await.unwrap()
}

/// Goes down a tree as `find` does, one directory at a time; how many there are.
async fn find(service: &CacheDirectoryService, root: Digest) -> usize {
    let mut stack = vec![root];
    let mut count = 0;
    while let Some(digest) = stack.pop() {
        let directory = match service.get_local(&digest) {
            Some(found) => found.unwrap(),
            None => service.get(&digest).await.unwrap(),
        };
        count += 1;
        stack.extend(directory.unwrap().children().map(|(child, _)| child));
    }
    count
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn conforms() {
    let memory = || Arc::new(MemoryDirectoryService::new());
    let service = CacheDirectoryService::new(Near::memory(MEMORY), memory());
    conformance::directory_service(Arc::new(service)).await;

    let folder = tempfile::tempdir().unwrap();
    let service = CacheDirectoryService::new(local(folder.path()), memory());
    conformance::directory_service(Arc::new(service)).await;

    let server = DirectoryServer::new(memory());
    let routes = Routes::new(server.clone().into_snix_service());
    let server =
        TestServer::start(Listen::Tcp, routes.add_service(server.into_cairn_service())).await;
    let folder = tempfile::tempdir().unwrap();
    let far = Arc::new(GrpcDirectoryService::new(server.peer()));
    let service = CacheDirectoryService::new(local(folder.path()), far);
    conformance::directory_service(Arc::new(service)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_goes_down_a_tree_asks_once_for_what_lies_below() {
    let folder = tempfile::tempdir().unwrap();
    let (service, far) = cache(local(folder.path()));
    let tree = tree("tree", 6, 4);
    let root = put(&far, &tree).await;
    assert_eq!(find(&service, root).await, tree.len());
    let asked = far.control.asked();
    // The root, the closure of its first child, and then that of the root itself.
    assert!(asked <= 3, "{asked} requests for {} directories", tree.len());
    service.near.settle().await;
    far.control.is_gone.store(true, SeqCst);
    assert_eq!(find(&service, root).await, tree.len());
    assert_eq!(far.control.asked(), 0);
}

#[tokio::test]
async fn who_looks_at_a_root_gets_no_more_than_that() {
    let (service, far) = cache(Near::memory(MEMORY));
    let tree = tree("tree", 3, 3);
    let root = put(&far, &tree).await;
    service.get(&root).await.unwrap().unwrap();
    tokio::time::sleep(Duration::from_millis(20)).await;
    let there = tree.iter().filter(|directory| service.look(&directory.digest()).is_some());
    assert_eq!(there.count(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_readers_of_one_directory_fetch_it_once() {
    let (service, far) = cache(Near::memory(MEMORY));
    let root = put(&far, &tree("tree", 2, 1)).await;
    far.control.open(false);
    let spawn = |_| {
        let service = service.clone();
        tokio::spawn(async move { service.get(&root).await.unwrap().unwrap() })
    };
    let mut readers: Vec<_> = (0..1000).map(spawn).collect();
    tokio::time::sleep(Duration::from_millis(100)).await;
    let stay = readers.split_off(500);
    readers.iter().for_each(|reader| reader.abort());
    far.control.open(true);
    for reader in stay {
        assert_eq!(reader.await.unwrap().digest(), root);
    }
    assert_eq!(far.control.asked(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_closure_is_kept_as_it_passes_and_a_part_of_one_is_completed() {
    let folder = tempfile::tempdir().unwrap();
    let (service, far) = cache(local(folder.path()));
    let tree = tree("tree", 5, 3);
    let root = put(&far, &tree).await;
    let closure = async || -> Result<Vec<Directory>, DirectoryError> {
        service.get_closure(&root).await?.try_collect().await
    };
    assert_eq!(closure().await.unwrap().len(), tree.len());
    assert_eq!(far.control.asked(), 1);
    service.near.settle().await;
    far.control.is_gone.store(true, SeqCst);
    assert_eq!(closure().await.unwrap().len(), tree.len());

    let missing = tree[tree.len() / 2].digest();
    service.near.forget(Kind::Directory, missing.as_bytes());
    let error = closure().await.unwrap_err();
    let DirectoryError::Unavailable { source, .. } = &error else { panic!("{error:?}") };
    assert!(source.to_string().contains(&format!("directory {missing} is not in sled:")));
    assert!(source.to_string().contains("no route to it"), "{source}");
    far.control.is_gone.store(false, SeqCst);
    assert_eq!(closure().await.unwrap().len(), tree.len());
    far.control.is_gone.store(true, SeqCst);
    assert_eq!(closure().await.unwrap().len(), tree.len());
}

#[tokio::test]
async fn what_is_unknown_far_away_may_come() {
    let (service, far) = cache(Near::memory(MEMORY));
    let tree = tree("late", 1, 1);
    let root = tree.last().unwrap().digest();
    assert_eq!(service.get(&root).await.unwrap(), None);
    assert_eq!(put(&far, &tree).await, root);
    assert!(service.get(&root).await.unwrap().is_some());
    // Somebody on the way down may come to a directory that is not there.
    let above = parent(&[leaf("gone")]);
    service.courses.named(&above.digest(), &above);
    assert_eq!(service.get(&leaf("gone").digest()).await.unwrap(), None);
}
