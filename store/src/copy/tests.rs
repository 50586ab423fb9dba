use bytes::Bytes;
use cairn_castore::{
    Node,
    blob_service::{BlobServiceExt as _, memory::MemoryBlobService},
    directory_service::memory::MemoryDirectoryService,
};

use super::*;
use crate::{Signature, nar::hash, path_info_service::memory::MemoryPathInfoService};

fn memory() -> Services {
    let blobs = Arc::new(MemoryBlobService::new());
    let directories = Arc::new(MemoryDirectoryService::new());
    let path_infos = Arc::new(MemoryPathInfoService::new(blobs.clone(), directories.clone()));
    Services { blobs, directories, path_infos }
}

fn path(name: &str) -> StorePath {
    let mut hash = [0; 20];
    hash[..name.len()].copy_from_slice(name.as_bytes());
    StorePath::new(hash, name).unwrap()
}

/// Stores a path whose content is its name.
async fn put(store: &Services, name: &str, references: &[&str]) -> PathInfo {
    let bytes = Bytes::copy_from_slice(name.as_bytes());
    let size = bytes.len() as u64;
    let digest = store.blobs.put_bytes(bytes).await.unwrap();
    let node = Node::File { digest, size, executable: false };
    let nar = hash::calculate(&node, store.blobs.clone(), store.directories.clone()).await;
    let info = PathInfo {
        store_path: path(name),
        node,
        references: references.iter().map(|name| path(name)).collect(),
        nar: nar.unwrap(),
        signatures: Vec::new(),
        deriver: None,
        ca: None,
    };
    store.path_infos.put(info, None).await.unwrap()
}

async fn copy(
    names: &[&str],
    from: &Services,
    to: &Services,
) -> Result<Vec<(String, bool)>, CopyPathsError> {
    let paths: Vec<_> = names.iter().map(|name| path(name)).collect();
    let infos = closure(&paths, true, from).await?;
    let copied: Vec<_> = copy_paths(infos, from, to, Arc::default()).try_collect().await?;
    let told = copied
        .into_iter()
        .map(|copied| (copied.info.store_path.name().to_owned(), copied.was_there));
    Ok(told.collect())
}

#[tokio::test]
async fn a_closure_comes_with_what_it_refers_to_before_it() {
    let (from, to) = (memory(), memory());
    put(&from, "libc", &["libc"]).await;
    put(&from, "zlib", &["libc"]).await;
    put(&from, "tool", &["zlib", "tool", "libc"]).await;
    put(&from, "other", &["libc"]).await;
    let copied = copy(&["tool", "tool"], &from, &to).await.unwrap();
    let new = |name: &str| (name.to_owned(), false);
    assert_eq!(copied, [new("libc"), new("zlib"), new("tool")]);
    for name in ["libc", "zlib", "tool"] {
        let hash = *path(name).hash();
        let (there, here) = (to.path_infos.get(&hash).await, from.path_infos.get(&hash).await);
        assert_eq!(there.unwrap(), here.unwrap());
    }
    let there = copy(&["other", "tool"], &from, &to).await.unwrap();
    let known = |name: &str| (name.to_owned(), true);
    assert_eq!(there, [known("libc"), new("other"), known("zlib"), known("tool")]);
}

#[tokio::test]
async fn paths_that_refer_to_each_other_are_no_endless_loop() {
    let from = memory();
    put(&from, "a", &["b"]).await;
    put(&from, "b", &["a"]).await;
    let infos = closure(&[path("a")], true, &from).await.unwrap();
    let names: Vec<_> = infos.iter().map(|info| info.store_path.name()).collect();
    assert_eq!(names, ["b", "a"]);
    let copied = copy(&["a"], &from, &memory()).await.unwrap();
    assert_eq!(copied.len(), 2);
}

#[tokio::test]
async fn what_is_missing_is_told_with_who_wants_it() {
    let (from, to) = (memory(), memory());
    put(&from, "tool", &["gone"]).await;
    let error = copy(&["tool"], &from, &to).await.unwrap_err();
    assert!(
        matches!(&error, CopyPathsError::MissingReference { path: gone, referrer, .. }
        if *gone == path("gone") && *referrer == path("tool")),
        "{error}"
    );
    let error = copy(&["nothing"], &from, &to).await.unwrap_err();
    assert!(matches!(error, CopyPathsError::NotFound { .. }), "{error}");
    // Alone it can be copied.
    let infos = closure(&[path("tool")], false, &from).await.unwrap();
    let copied: Vec<_> = copy_paths(infos, &from, &to, Arc::default()).try_collect().await.unwrap();
    assert_eq!(copied.len(), 1);
}

#[tokio::test]
async fn new_signatures_are_copied() {
    let (from, to) = (memory(), memory());
    let mut info = put(&from, "signed", &[]).await;
    copy(&["signed"], &from, &to).await.unwrap();
    info.signatures.push(Signature { name: "key".to_owned(), data: [7; 64] });
    from.path_infos.put(info.clone(), None).await.unwrap();
    assert_eq!(copy(&["signed"], &from, &to).await.unwrap(), [("signed".to_owned(), false)]);
    let there = to.path_infos.get(info.store_path.hash()).await.unwrap().unwrap();
    assert_eq!(there.signatures, info.signatures);
    assert_eq!(copy(&["signed"], &from, &to).await.unwrap(), [("signed".to_owned(), true)]);
}
