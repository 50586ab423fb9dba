use bytes::Bytes;
use cairn_castore::{
    Blob, Digest, Directory, Name,
    blob_service::{
        PUT_MANY_BYTES, SMALL_BLOB_MAX, fresh::FRESH_BYTES, grpc::GrpcBlobService,
        grpc_server::BlobServer, memory::MemoryBlobService,
    },
    directory::SizeRule,
    directory_service::{
        grpc::GrpcDirectoryService, grpc_server::DirectoryServer, memory::MemoryDirectoryService,
    },
};
use cairn_proto::cairn::v1::{
    self as cairn, path_info_service_client::PathInfoServiceClient as CairnClient,
};
use futures::StreamExt as _;
use tonic::{Code, transport::Server};

use super::*;
use crate::path_info_service::{
    PathInfoService as _,
    grpc::{
        GrpcPathInfoService,
        tests::{Served, serve},
    },
    grpc_server::PathInfoServer,
    memory::MemoryPathInfoService,
};

/// A server of all three services, and what it is told.
async fn served_store() -> (Served, Arc<ToldTrees>) {
    let blobs = Arc::new(MemoryBlobService::new());
    let directories = Arc::new(MemoryDirectoryService::new());
    let service = MemoryPathInfoService::new(blobs.clone(), directories.clone());
    let blob_server = BlobServer::new(blobs.clone());
    let told = ToldTrees::new(blobs.clone(), directories.clone(), blob_server.fresh().clone());
    let told = Arc::new(told);
    let server = PathInfoServer::new(Arc::new(service)).with_told(told.clone());
    let directory_server = DirectoryServer::new(directories);
    let router = Server::builder()
        .add_service(blob_server.clone().into_snix_service())
        .add_service(blob_server.into_cairn_service())
        .add_service(directory_server.clone().into_snix_service())
        .add_service(directory_server.into_cairn_service())
        .add_service(server.clone().into_snix_service())
        .add_service(server.into_cairn_service());
    (serve(router).await, told)
}

/// What is told of a tree, as messages of so many steps.
fn steps(tree: &[(&'static str, &'static [u8])]) -> Vec<cairn::TreeStep> {
    use cairn::tree_step::Step;
    let mut steps = Vec::new();
    for (name, bytes) in tree {
        let size = bytes.len() as u64;
        let file = Node::File { digest: Digest::of(bytes), size, executable: false };
        let name = Name::try_from(*name).unwrap();
        steps.push(Step::Entry(file.to_entry(Some(&name))));
    }
    let inner = steps.clone();
    steps.push(Step::Enter(Bytes::from_static(b"z")));
    steps.extend(inner);
    steps.extend([Step::Leave(true), Step::Leave(true)]);
    steps.into_iter().map(|step| cairn::TreeStep { step: Some(step) }).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tree_that_is_told_of_before_its_blobs_come_is_hashed() {
    let (served, _) = served_store().await;
    let files: [(&str, &[u8]); 3] = [("a", b"first"), ("b", b""), ("c", b"third")];
    let mut client = CairnClient::new(served.peer.channel());
    let messages: Vec<_> = steps(&files)
        .into_iter()
        .map(|step| cairn::TellTreeRequest { steps: vec![step] })
        .collect();
    let telling =
        tokio::spawn(async move { client.tell_tree(futures::stream::iter(messages)).await });
    let blobs = GrpcBlobService::new(served.peer.clone());
    for (_, bytes) in files {
        blobs.put_many(vec![Blob::new(Bytes::from_static(bytes))]).await.unwrap();
    }
    let root = telling.await.unwrap().unwrap().into_inner().root.unwrap();
    let root = Node::from_nameless_entry(root).unwrap();

    // A put without the directories is refused as ever, and with them it gets the same NAR.
    let service = GrpcPathInfoService::new(served.peer.clone());
    let missing = service.calculate_nar(&root).await.unwrap_err();
    assert!(matches!(missing, PathInfoError::Missing { .. }), "{missing:?}");
    let entry = |(name, bytes): &(&str, &'static [u8])| {
        let size = bytes.len() as u64;
        let file = Node::File { digest: Digest::of(bytes), size, executable: false };
        (Name::try_from(*name).unwrap(), file)
    };
    let below = Directory::new(files.iter().map(entry).collect()).unwrap();
    let node = Node::Directory { digest: below.digest(), size: below.size(SizeRule::Doubled) };
    let mut entries: Vec<_> = files.iter().map(entry).collect();
    entries.push((Name::try_from("z").unwrap(), node));
    let top = Directory::new(entries).unwrap();
    let expected = Node::Directory { digest: top.digest(), size: top.size(SizeRule::Doubled) };
    assert_eq!(root, expected);
    let info = |nar| {
        let witness = NarWitness::new(root.clone(), nar);
        PathInfo::of_imported("told", &witness).unwrap()
    };
    let wrong = info(NarInfo { size: 8, sha256: [1; 32] });
    let error = service.put(wrong.clone(), None).await.unwrap_err();
    assert!(matches!(error, PathInfoError::Missing { .. }), "{error:?}");
    let directories = GrpcDirectoryService::new(served.peer.clone());
    let closure = futures::stream::iter([Ok(below), Ok(top)]).boxed();
    directories.put_closure(closure).await.unwrap();
    let error = service.put(wrong, None).await.unwrap_err();
    let PathInfoError::NarMismatch { found, .. } = error else { panic!("{error:?}") };
    assert_eq!(service.calculate_nar(&root).await.unwrap(), *found);
    let right = info(*found);
    assert_eq!(service.put(right.clone(), None).await.unwrap(), right);
}

/// The file that is wanted first comes last, behind more than is kept.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tree_of_which_more_comes_than_is_kept_is_hashed() {
    use cairn::tree_step::Step;
    const FILES: usize = FRESH_BYTES / SMALL_BLOB_MAX + 64;
    let (served, told) = served_store().await;
    let blob = |index: usize| {
        let mut bytes = index.to_le_bytes().to_vec();
        bytes.resize(SMALL_BLOB_MAX, 0);
        Blob::new(bytes.into())
    };
    let entries: Vec<_> = (0..FILES)
        .map(|index| {
            let name = Name::try_from(format!("{index:04}").as_str()).unwrap();
            let digest = *blob(index).digest();
            (name, Node::File { digest, size: SMALL_BLOB_MAX as u64, executable: false })
        })
        .collect();
    let mut steps: Vec<_> =
        entries.iter().map(|(name, node)| Step::Entry(node.to_entry(Some(name)))).collect();
    steps.push(Step::Leave(true));
    let steps = steps.into_iter().map(|step| cairn::TreeStep { step: Some(step) }).collect();
    let mut client = CairnClient::new(served.peer.channel());
    let message = cairn::TellTreeRequest { steps };
    let telling =
        tokio::spawn(async move { client.tell_tree(futures::stream::iter([message])).await });
    while told.trees.available_permits() == TREES_AT_ONCE {
        tokio::task::yield_now().await;
    }
    let blobs = GrpcBlobService::new(served.peer.clone());
    let rest: Vec<_> = (1..FILES).collect();
    for batch in rest.chunks(PUT_MANY_BYTES / SMALL_BLOB_MAX) {
        blobs.put_many(batch.iter().map(|index| blob(*index)).collect()).await.unwrap();
    }
    assert!(!telling.is_finished());
    blobs.put_many(vec![blob(0)]).await.unwrap();
    let root = telling.await.unwrap().unwrap().into_inner().root.unwrap();
    let tree = Directory::new(entries).unwrap();
    let expected = Node::Directory { digest: tree.digest(), size: tree.size(SizeRule::Doubled) };
    assert_eq!(Node::from_nameless_entry(root).unwrap(), expected);
}

#[tokio::test]
async fn what_is_told_and_is_no_tree_is_refused() {
    use cairn::tree_step::Step;
    let (served, _) = served_store().await;
    let mut client = CairnClient::new(served.peer.channel());
    let file = |name: &str| {
        let node = Node::File { digest: Digest::EMPTY, size: 0, executable: false };
        Step::Entry(node.to_entry(Some(&Name::try_from(name).unwrap())))
    };
    let directory = Node::Directory { digest: Digest::EMPTY, size: 0 };
    let directory = directory.to_entry(Some(&Name::try_from("d").unwrap()));
    let bad: [Vec<Option<Step>>; 7] = [
        vec![],
        vec![None],
        vec![Some(file("a"))],
        vec![Some(file("b")), Some(file("a")), Some(Step::Leave(true))],
        vec![Some(Step::Enter(Bytes::from_static(b".."))), Some(Step::Leave(true))],
        vec![Some(Step::Entry(directory)), Some(Step::Leave(true))],
        vec![Some(Step::Leave(true)), Some(Step::Leave(true))],
    ];
    for steps in bad {
        let steps: Vec<_> = steps.into_iter().map(|step| cairn::TreeStep { step }).collect();
        let told = client.tell_tree(futures::stream::iter([cairn::TellTreeRequest { steps }]));
        let status = told.await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument, "{status}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_import_tells_of_its_tree() {
    let (served, told) = served_store().await;
    let services = crate::Services {
        blobs: Arc::new(GrpcBlobService::new(served.peer.clone())),
        directories: Arc::new(GrpcDirectoryService::new(served.peer.clone())),
        path_infos: Arc::new(GrpcPathInfoService::new(served.peer.clone())),
    };
    let folder = tempfile::tempdir().unwrap();
    let tree = folder.path().join("tree");
    std::fs::create_dir_all(tree.join("b/empty")).unwrap();
    for (name, size) in [("a", 3), ("b/large", 3 << 20), ("b/larger", 5 << 20), ("c", 0)] {
        std::fs::write(tree.join(name), vec![b'x'; size]).unwrap();
    }
    std::os::unix::fs::symlink("b/large", tree.join("link")).unwrap();
    let options = crate::import::ImportOptions::default();
    let info = crate::import::import_path(&services, &tree, options).await.unwrap();
    let witness = told.witness(&info).await.unwrap().unwrap();
    assert_eq!((witness.node(), witness.nar()), (&info.node, info.nar));
}
