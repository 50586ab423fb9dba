use std::sync::atomic::Ordering;

use bytes::Bytes;
use cairn_castore::{Blob, BlobService, Digest, DirectoryService, directory::SizeRule};
use futures::StreamExt as _;
use tonic::transport::Server;

use super::*;
use crate::{
    Services, StorePath,
    path_info_service::{
        grpc::{GrpcPathInfoService, tests::serve},
        grpc_server::PathInfoServer,
        test_far::{Far, far, filled},
    },
};

/// Empty services in memory.
fn memory() -> Services {
    let (path_infos, blobs, directories) = far();
    Services { blobs, directories, path_infos }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keeps_the_contract() {
    for writable in 0..2 {
        let Services { blobs, directories, path_infos } =
            Services::of_upstreams(vec![memory(), memory()], writable);
        crate::conformance::path_info_service(path_infos, blobs, directories).await;
    }
}

/// Two that have some paths each, one of them the same, and both together; the second one takes what
/// is stored.
async fn two(counts: [usize; 2]) -> ([Arc<Far>; 2], Vec<PathInfo>, UpstreamsPathInfoService) {
    let ((one, infos), (other, others)) =
        futures::join!(filled("one", counts[0]), filled("other", counts[1]));
    let shared = infos.first().cloned();
    if let Some(shared) = shared {
        other.service.put(shared, None).await.unwrap();
    }
    let mut all = [infos, others].concat();
    all.sort_by_key(|info| *info.store_path.hash());
    let services: Vec<Arc<dyn PathInfoService>> = vec![one.clone(), other.clone()];
    // Their contents do not matter.
    let nowhere = memory();
    let contents = Contents { blobs: nowhere.blobs, directories: nowhere.directories };
    let both =
        UpstreamsPathInfoService::new(Upstreams::new(services, 1), contents.clone(), contents);
    ([one, other], all, both)
}

async fn paged(service: &dyn PathInfoService, limit: usize) -> Vec<PathInfo> {
    let mut listed: Vec<PathInfo> = Vec::new();
    loop {
        let after = listed.last().map(|info| *info.store_path.hash());
        let page = service.list(after, limit).await.unwrap();
        assert!(page.len() <= limit);
        let is_last = page.len() < limit;
        listed.extend(page);
        if is_last {
            return listed;
        }
    }
}

#[tokio::test]
async fn listings_are_merged_in_order() {
    for counts in [[9, 4], [2, 11], [0, 3], [3, 0], [0, 0]] {
        let (_, all, both) = two(counts).await;
        assert_eq!(all.len(), counts[0] + counts[1]);
        for limit in 1..=all.len() + 2 {
            assert_eq!(paged(&both, limit).await, all, "{counts:?} in pages of {limit}");
        }
    }
}

fn is_unavailable<T>(answer: &Result<T, PathInfoError>) -> bool {
    matches!(answer, Err(PathInfoError::Unavailable { .. }))
}

#[tokio::test]
async fn one_that_is_gone_hides_nothing_and_makes_nothing_unknown() {
    for gone in 0..2 {
        let (far, all, both) = two([3, 4]).await;
        let missing = [7; 20];
        assert_eq!(both.get(&missing).await.unwrap(), None);
        far[gone].is_gone.store(true, Ordering::SeqCst);
        let there = far[1 - gone].service.list(None, 100).await.unwrap();
        for info in &there {
            assert_eq!(both.get(info.store_path.hash()).await.unwrap().as_ref(), Some(info));
        }
        let lost = all.iter().find(|info| !there.contains(info)).unwrap();
        for hash in [lost.store_path.hash(), &missing] {
            assert!(is_unavailable(&both.get(hash).await));
            assert!(is_unavailable(&both.delete(hash).await));
        }
        // A listing with holes would be one of paths that are not there.
        assert!(is_unavailable(&both.list(None, 100).await));
    }
}

#[tokio::test]
async fn what_is_only_read_is_not_forgotten() {
    let ([one, other], all, both) = two([2, 3]).await;
    for info in all {
        let hash = info.store_path.hash();
        let is_read = one.service.get(hash).await.unwrap().is_some();
        match both.delete(hash).await {
            Ok(deleted) => assert!(deleted && !is_read),
            Err(PathInfoError::Unsupported { .. }) => assert!(is_read),
            other => panic!("{other:?}"),
        }
        let is_there = both.get(hash).await.unwrap().is_some();
        assert_eq!(is_there, is_read);
    }
    assert_eq!(other.service.list(None, 100).await.unwrap().len(), 1);
}

/// A directory with a file; the root of the tree.
async fn put_tree(blobs: &dyn BlobService, directories: &dyn DirectoryService, text: &str) -> Node {
    let bytes = Bytes::copy_from_slice(text.as_bytes());
    let (digest, size) = (Digest::of(&bytes), bytes.len() as u64);
    blobs.put_many(vec![Blob::new(bytes)]).await.unwrap();
    let file = Node::File { digest, size, executable: false };
    let directory =
        cairn_castore::Directory::new(vec![("file".try_into().unwrap(), file)]).unwrap();
    let node =
        Node::Directory { digest: directory.digest(), size: directory.size(SizeRule::Doubled) };
    let closure = futures::stream::iter([Ok(directory)]).boxed();
    directories.put_closure(closure).await.unwrap();
    node
}

async fn record(services: &Services, node: Node) -> (PathInfo, NarWitness) {
    let nar = services.path_infos.calculate_nar(&node).await.unwrap();
    let witness = NarWitness::new(node, nar);
    (PathInfo::of_imported("tree", &witness).unwrap(), witness)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_tree_of_a_record_is_brought_to_where_it_is_stored() {
    for has_witness in [false, true] {
        let (read, written) = (memory(), memory());
        let both = Services::of_upstreams(vec![read.clone(), written.clone()], 1);
        let node = put_tree(&*read.blobs, &*read.directories, "brought over").await;
        let (info, witness) = record(&both, node).await;
        both.path_infos.put(info.clone(), has_witness.then_some(witness)).await.unwrap();
        // It can do without the other one.
        let hash = info.store_path.hash();
        assert_eq!(written.path_infos.get(hash).await.unwrap().as_ref(), Some(&info));
        contents::check("tree", &info.node, &*written.blobs, &*written.directories).await.unwrap();
        assert_eq!(read.path_infos.get(hash).await.unwrap(), None);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tree_in_parts_has_a_nar() {
    let (one, other) = (memory(), memory());
    let both = Services::of_upstreams(vec![one.clone(), other.clone()], 0);
    let node = put_tree(&*one.blobs, &*other.directories, "in parts").await;
    let whole = memory();
    put_tree(&*whole.blobs, &*whole.directories, "in parts").await;
    let expected = whole.path_infos.calculate_nar(&node).await.unwrap();
    assert_eq!(both.path_infos.calculate_nar(&node).await.unwrap(), expected);
    let (info, witness) = record(&both, node).await;
    both.path_infos.put(info.clone(), Some(witness)).await.unwrap();
    assert_eq!(one.path_infos.get(info.store_path.hash()).await.unwrap(), Some(info));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_record_of_an_upstream_is_not_overlaid() {
    let (read, written) = (memory(), memory());
    let both = Services::of_upstreams(vec![read.clone(), written.clone()], 1);
    let node = put_tree(&*read.blobs, &*read.directories, "overlaid").await;
    let (info, _) = record(&both, node).await;
    read.path_infos.put(info.clone(), None).await.unwrap();
    let references = vec![StorePath::new([5; 20], "reference").unwrap()];
    let other = PathInfo { references, ..info.clone() };
    let refused = both.path_infos.put(other, None).await;
    assert!(matches!(refused, Err(PathInfoError::Conflict { .. })), "{refused:?}");
    assert_eq!(written.path_infos.list(None, 10).await.unwrap(), []);
    assert_eq!(both.path_infos.put(info.clone(), None).await.unwrap(), info);
}

/// It would wait for the blobs that other upstreams have, for as long as it waits for any.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_is_not_told_of_a_tree_that_does_not_come() {
    let (service, blobs, directories) = far();
    let server = PathInfoServer::new(service);
    let router = Server::builder()
        .add_service(server.clone().into_snix_service())
        .add_service(server.into_cairn_service());
    let served = serve(router).await;
    let peer = Arc::new(GrpcPathInfoService::new(served.peer.clone()));
    assert!(peer.tree_teller().is_some());
    let written = Services { blobs, directories, path_infos: peer };
    let both = Services::of_upstreams(vec![memory(), written], 1);
    assert!(both.path_infos.tree_teller().is_none());
}
