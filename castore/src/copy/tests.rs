use std::ops::Range;

use proptest::prelude::*;

use super::*;
use crate::{
    Directory, Name,
    blob_service::{BlobServiceExt as _, memory::MemoryBlobService},
    conformance::content,
    directory::SizeRule,
    directory_service::memory::MemoryDirectoryService,
};

fn memory() -> Contents {
    Contents {
        blobs: Arc::new(MemoryBlobService::new()),
        directories: Arc::new(MemoryDirectoryService::new()),
    }
}

fn name(text: &str) -> Name {
    Name::try_from(text).unwrap()
}

async fn file(store: &Contents, purpose: &str, size: usize) -> Node {
    let digest = store.blobs.put_bytes(content(purpose, size)).await.unwrap();
    Node::File { digest, size: size as u64, executable: false }
}

async fn directory(store: &Contents, entries: Vec<(String, Node)>) -> Node {
    let entries = entries.into_iter().map(|(text, node)| (name(&text), node)).collect();
    let directory = Directory::new(entries).unwrap();
    let size = directory.size(SizeRule::Doubled);
    let stream = futures::stream::iter([Ok(directory)]).boxed();
    let digest = store.directories.put_closure(stream).await.unwrap();
    Node::Directory { digest, size }
}

/// Panics unless all of the tree is there.
async fn assert_whole(root: &Node, store: &Contents) {
    let mut files = Vec::new();
    match root {
        Node::Directory { digest, .. } => {
            let mut closure = store.directories.get_closure(digest).await.unwrap();
            while let Some(directory) = closure.try_next().await.unwrap() {
                files.extend(directory.entries().iter().map(|(_, node)| node.clone()));
            }
        }
        node => files.push(node.clone()),
    }
    for node in files {
        if let Node::File { digest, size, .. } = node {
            let bytes = store.blobs.read_to_bytes(&digest, ByteRange::ALL).await.unwrap();
            assert_eq!((Digest::of(&bytes), bytes.len() as u64), (digest, size));
        }
    }
}

async fn tree(store: &Contents) -> Node {
    let shared = directory(store, vec![("f".into(), file(store, "shared", 100).await)]).await;
    let mut entries = vec![
        ("large".to_owned(), file(store, "large", 3_000_000).await),
        ("empty".to_owned(), file(store, "", 0).await),
        ("a".to_owned(), shared.clone()),
        // Seen as a child of the root before it is one of a directory that comes later.
        ("z".to_owned(), directory(store, vec![("again".into(), shared)]).await),
    ];
    for number in 0..300 {
        entries.push((format!("n{number}"), file(store, &format!("{number}"), 40_000).await));
    }
    directory(store, entries).await
}

#[tokio::test]
async fn all_of_a_tree_arrives_and_nothing_is_sent_twice() {
    let (from, to) = (memory(), memory());
    let root = tree(&from).await;
    let progress = Arc::new(CopyProgress::default());
    copy_tree(&root, &from, &to, &progress).await.unwrap();
    assert_whole(&root, &to).await;
    assert_eq!((progress.blobs_sent(), progress.blobs_known()), (302, 0));
    assert_eq!(progress.bytes_sent(), 3_000_000 + 100 + 300 * 40_000);
    assert_eq!(progress.directories_sent(), 3);

    let again = Arc::new(CopyProgress::default());
    copy_tree(&root, &from, &to, &again).await.unwrap();
    assert_eq!((again.blobs_sent(), again.blobs_known(), again.directories_sent()), (0, 302, 0));
}

#[tokio::test]
async fn a_copy_that_broke_off_goes_on() {
    let (from, to) = (memory(), memory());
    let root = tree(&from).await;
    to.blobs.put_bytes(content("large", 3_000_000)).await.unwrap();
    let progress = Arc::new(CopyProgress::default());
    copy_tree(&root, &from, &to, &progress).await.unwrap();
    assert_whole(&root, &to).await;
    assert_eq!((progress.blobs_sent(), progress.blobs_known()), (301, 1));
}

#[tokio::test]
async fn a_single_file_and_a_symlink_are_trees() {
    let (from, to) = (memory(), memory());
    let progress = Arc::new(CopyProgress::default());
    for root in [file(&from, "alone", 70).await, file(&from, "large", 2_000_000).await] {
        copy_tree(&root, &from, &to, &progress).await.unwrap();
        assert_whole(&root, &to).await;
    }
    let target = crate::SymlinkTarget::try_from(std::ffi::OsStr::new("x")).unwrap();
    copy_tree(&Node::Symlink { target }, &from, &to, &progress).await.unwrap();
}

#[tokio::test]
async fn what_is_missing_is_named_and_no_directory_leads_to_it() {
    let (from, to) = (memory(), memory());
    let progress = Arc::new(CopyProgress::default());
    for size in [10, 1_000_000] {
        let digest = Digest::of(b"nowhere");
        let missing = Node::File { digest, size, executable: false };
        let root = directory(&from, vec![("missing".into(), missing)]).await;
        let error = copy_tree(&root, &from, &to, &progress).await.unwrap_err();
        let CopyError::ReadBlob { source: BlobError::NotFound(found), .. } = error else {
            panic!("{error}")
        };
        assert_eq!(found, digest);
        let Node::Directory { digest, .. } = root else { unreachable!() };
        assert_eq!(to.directories.has_many(&[digest]).await.unwrap(), [false]);
    }
    let gone = Node::Directory { digest: Digest::of(b"gone"), size: 0 };
    let error = copy_tree(&gone, &from, &to, &progress).await.unwrap_err();
    assert!(matches!(error, CopyError::ReadDirectory { .. }), "{error}");
}

#[tokio::test]
async fn a_blob_that_is_larger_than_its_directory_says_is_copied_all_the_same() {
    let (from, to) = (memory(), memory());
    let Node::File { digest, .. } = file(&from, "large", 2_000_000).await else { unreachable!() };
    let lying = Node::File { digest, size: 5, executable: false };
    let root = directory(&from, vec![("lying".into(), lying)]).await;
    copy_tree(&root, &from, &to, &Arc::default()).await.unwrap();
    assert!(to.blobs.has(&digest).await.unwrap());
}

proptest! {
    /// Directories that share children at any depth.
    #[test]
    fn any_closure_arrives(shape in proptest::collection::vec((0..8_usize, 0..8_usize), 1..24)) {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).build();
        runtime.unwrap().block_on(async {
            let (from, to) = (memory(), memory());
            let mut made: Vec<Node> = Vec::new();
            for (number, (first, second)) in shape.into_iter().enumerate() {
                let mut entries = vec![(format!("f{number}"), file(&from, &format!("{number}"), 9).await)];
                let range: Range<usize> = 0..made.len();
                for (index, back) in [first, second].into_iter().enumerate() {
                    if let Some(at) = range.end.checked_sub(back + 1) {
                        entries.push((format!("d{index}"), made[at].clone()));
                    }
                }
                made.push(directory(&from, entries).await);
            }
            let root = made.pop().unwrap();
            copy_tree(&root, &from, &to, &Arc::default()).await.unwrap();
            assert_whole(&root, &to).await;
        });
    }
}
