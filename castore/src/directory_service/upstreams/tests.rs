use std::{sync::atomic::Ordering, time::Duration};

use futures::stream;

use super::*;
use crate::{
    Name, Node,
    cache::test_far::FarDirectories,
    closure::{InvalidClosure, RootFirst},
    directory::SizeRule,
    directory_service::memory::MemoryDirectoryService,
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keeps_the_contract() {
    for writable in 0..2 {
        let services: Vec<Arc<dyn DirectoryService>> =
            vec![Arc::new(MemoryDirectoryService::new()), Arc::new(MemoryDirectoryService::new())];
        let service = UpstreamsDirectoryService::new(Upstreams::new(services, writable));
        crate::conformance::directory_service(Arc::new(service)).await;
    }
}

/// Two that are far, and both together; the second one takes what is stored.
fn two() -> ([Arc<FarDirectories>; 2], UpstreamsDirectoryService) {
    let far = [Arc::new(FarDirectories::default()), Arc::new(FarDirectories::default())];
    let services = far.iter().map(|far| far.clone() as Arc<dyn DirectoryService>).collect();
    (far, UpstreamsDirectoryService::new(Upstreams::with_last_time(services, 1, Duration::ZERO)))
}

/// A chain of directories, leaves first.
fn chain(text: &'static str, length: usize) -> Vec<Directory> {
    let target = bytes::Bytes::from_static(text.as_bytes()).try_into().unwrap();
    let leaf = (Name::try_from("leaf").unwrap(), Node::Symlink { target });
    let mut chain = vec![Directory::new(vec![leaf]).unwrap()];
    while chain.len() < length {
        let child = chain.last().unwrap();
        let node = Node::Directory { digest: child.digest(), size: child.size(SizeRule::Doubled) };
        chain.push(Directory::new(vec![(Name::try_from("child").unwrap(), node)]).unwrap());
    }
    chain
}

async fn put(
    service: &dyn DirectoryService,
    directories: &[Directory],
) -> Result<Digest, DirectoryError> {
    let directories: Vec<_> = directories.iter().cloned().map(Ok).collect();
    service.put_closure(stream::iter(directories).boxed()).await
}

/// The directories of a closure, which has to be whole and in order.
async fn closure(
    service: &dyn DirectoryService,
    root: &Digest,
) -> Result<Vec<Directory>, DirectoryError> {
    let mut check = RootFirst::new(*root);
    let mut stream = service.get_closure(root).await?;
    let mut directories = Vec::new();
    while let Some(directory) = stream.try_next().await? {
        check.push(&directory)?;
        directories.push(directory);
    }
    check.finish()?;
    Ok(directories)
}

fn is_unavailable<T>(answer: Result<T, DirectoryError>) -> bool {
    matches!(answer, Err(DirectoryError::Unavailable { .. }))
}

#[tokio::test]
async fn one_that_is_gone_hides_nothing_and_makes_nothing_unknown() {
    for gone in 0..2 {
        let (far, both) = two();
        let chain = chain("gone", 4);
        let root = put(&far[1 - gone].directories, &chain).await.unwrap();
        let missing = Digest::of(b"maybe there");
        assert_eq!(both.get(&missing).await.unwrap(), None);
        assert!(matches!(
            both.get_closure(&missing).await,
            Err(DirectoryError::NotFound(digest)) if digest == missing
        ));

        far[gone].control.is_gone.store(true, Ordering::SeqCst);
        assert_eq!(both.get(&root).await.unwrap().as_ref(), chain.last());
        assert_eq!(both.has_many(&[root, chain[0].digest()]).await.unwrap(), [true, true]);
        assert!(closure(&both, &root).await.unwrap().iter().eq(chain.iter().rev()));

        assert!(is_unavailable(both.get(&missing).await));
        assert!(is_unavailable(both.has_many(&[root, missing]).await));
        assert!(is_unavailable(both.get_closure(&missing).await));
    }
}

#[tokio::test]
async fn a_closure_goes_on_where_one_breaks_off() {
    let ([first, second], both) = two();
    let chain = chain("broken off", 6);
    let root = put(&first.directories, &chain).await.unwrap();
    put(&second.directories, &chain).await.unwrap();
    assert_eq!(closure(&both, &root).await.unwrap().len(), 6);
    assert_eq!(second.control.asked(), 0, "a closure comes from one");

    for damaged in &chain {
        *first.control.damaged.lock() = [damaged.digest()].into();
        let whole = closure(&both, &root).await.unwrap();
        assert!(whole.iter().eq(chain.iter().rev()));
        assert_eq!(both.get(&damaged.digest()).await.unwrap().as_ref(), Some(damaged));
    }
    // Where the second one breaks off, too, that is told.
    *first.control.damaged.lock() = [chain[3].digest()].into();
    for damaged in &chain[..5] {
        *second.control.damaged.lock() = [damaged.digest()].into();
        let answer = closure(&both, &root).await;
        let told = chain[3].digest();
        assert!(
            matches!(answer, Err(DirectoryError::Corrupt { digest, .. }) if digest == told),
            "{answer:?}"
        );
    }
}

#[tokio::test]
async fn what_is_stored_is_whole_where_it_is_stored() {
    let ([first, second], both) = two();
    let chain = chain("whole", 5);
    put(&first.directories, &chain[..4]).await.unwrap();
    let root = put(&both, &chain[4..]).await.unwrap();
    assert!(closure(&second.directories, &root).await.unwrap().iter().eq(chain.iter().rev()));
    assert_eq!(first.directories.get(&root).await.unwrap(), None);

    let chain = self::chain("nowhere", 2);
    let refused = put(&both, &chain[1..]).await;
    let missing =
        InvalidClosure::MissingChild { parent: chain[1].digest(), child: chain[0].digest() };
    assert!(
        matches!(&refused, Err(DirectoryError::Closure(error)) if *error == missing),
        "{refused:?}"
    );
    first.control.is_gone.store(true, Ordering::SeqCst);
    assert!(is_unavailable(put(&both, &chain[1..]).await));
}
