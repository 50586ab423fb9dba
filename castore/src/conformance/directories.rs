//! What every directory service must pass. Each function holds it to one part of the contract,
//! with directories of its own, so that their order does not matter.

use std::{collections::HashSet, sync::Arc};

use bytes::Bytes;
use futures::{
    StreamExt as _, TryStreamExt as _,
    future::{self, Either},
    stream,
};

use crate::{
    Digest, Directory, DirectoryError, DirectoryService, Name, Node,
    blob_service::HAS_MANY_DIGESTS,
    closure::{InvalidClosure, RootFirst},
    directory::SizeRule,
    directory_service::DirectoryStream,
};

/// Holds a freshly opened directory service to its contract. Panics where it breaks it. Needs a
/// multi-threaded runtime, as the services themselves do.
pub async fn directory_service(service: Arc<dyn DirectoryService>) {
    empty(&*service).await;
    unknown(&*service).await;
    vectors(&*service).await;
    both_rules(&*service).await;
    shared(&*service).await;
    stored_children(&*service).await;
    refused(&*service).await;
    failing_stream(&*service).await;
    has_many(&*service).await;
    wide(&*service).await;
    deep(&*service).await;
    abandoned(&*service).await;
    concurrent(service).await;
}

fn name(name: &str) -> Name {
    Name::try_from(name).expect("a valid name")
}

/// A directory with one symlink: it is told from others by the link's target.
fn leaf(text: &str) -> Directory {
    let target = Bytes::copy_from_slice(text.as_bytes()).try_into().expect("a valid target");
    Directory::new(vec![(name("link"), Node::Symlink { target })]).expect("one entry")
}

fn parent(rule: SizeRule, children: &[&Directory]) -> Directory {
    let entry = |(index, child): (usize, &&Directory)| {
        let node = Node::Directory { digest: child.digest(), size: child.size(rule) };
        (name(&format!("child-{index}")), node)
    };
    Directory::new(children.iter().enumerate().map(entry).collect()).expect("names differ")
}

fn leaves_first(directories: &[&Directory]) -> DirectoryStream {
    let directories: Vec<_> = directories.iter().map(|&directory| Ok(directory.clone())).collect();
    stream::iter(directories).boxed()
}

async fn put(service: &dyn DirectoryService, directories: &[&Directory]) -> Digest {
    let root = service.put_closure(leaves_first(directories)).await.unwrap();
    assert_eq!(Some(root), directories.last().map(|root| root.digest()));
    root
}

async fn closure(
    service: &dyn DirectoryService,
    root: &Digest,
) -> Result<Vec<Directory>, DirectoryError> {
    service.get_closure(root).await?.try_collect().await
}

/// Checks that just these directories are the root's closure, and that each is there alone.
async fn holds(service: &dyn DirectoryService, root: Digest, expected: &[&Directory]) {
    let mut check = RootFirst::new(root);
    let mut found = HashSet::new();
    for directory in closure(service, &root).await.unwrap() {
        let digest = check.push(&directory).unwrap();
        assert!(found.insert(digest), "directory {digest} came twice");
    }
    check.finish().unwrap();
    let digests: HashSet<_> = expected.iter().map(|directory| directory.digest()).collect();
    assert_eq!(found, digests);
    for directory in expected {
        there(service, directory).await;
    }
}

async fn there(service: &dyn DirectoryService, directory: &Directory) {
    let digest = directory.digest();
    assert_eq!(service.get(&digest).await.unwrap().as_ref(), Some(directory));
    if let Some(answer) = service.get_local(&digest) {
        assert_eq!(answer.unwrap().as_ref(), Some(directory), "locally");
    }
    assert_eq!(service.has_many(&[digest]).await.unwrap(), [true]);
}

async fn not_there(service: &dyn DirectoryService, digest: Digest) {
    assert_eq!(service.get(&digest).await.unwrap(), None);
    assert_eq!(service.has_many(&[digest]).await.unwrap(), [false]);
    match service.get_local(&digest) {
        None | Some(Ok(None)) => {}
        other => panic!("getting an unknown directory locally gave {other:?}"),
    }
    match closure(service, &digest).await {
        Err(DirectoryError::NotFound(found)) => assert_eq!(found, digest),
        other => panic!("the closure of an unknown directory gave {other:?}"),
    }
}

async fn empty(service: &dyn DirectoryService) {
    let empty = Directory::default();
    holds(service, Digest::EMPTY, &[&empty]).await;
    put(service, &[&empty]).await;
    holds(service, Digest::EMPTY, &[&empty]).await;
    let parent = parent(SizeRule::Doubled, &[&empty]);
    let root = put(service, &[&parent]).await;
    holds(service, root, &[&empty, &parent]).await;
}

async fn unknown(service: &dyn DirectoryService) {
    not_there(service, Digest::of(b"stored nowhere")).await;
}

/// The vectors of the format: one tree by each of the rules.
async fn vectors(service: &dyn DirectoryService) {
    let file = Node::File { digest: Digest::of(b"hi\n"), size: 3, executable: false };
    let child = Directory::new(vec![(name("f"), file)]).expect("one entry");
    let hex = "0a1e01a85e85080819577409a4d22df3cd60cc042ca7dda5a0d2213fef305382";
    assert_eq!(child.digest().to_hex(), hex);
    for (rule, hex) in [
        (SizeRule::Doubled, "3d2cdd203b22daa6abdc55a620d3cbbb1ba93e9ca440affe39a1ac19b2e0d986"),
        (SizeRule::Plain, "e8a5d7e5f57a32b0ec5d499d7c8ee1a58256d3330f28cba32186ac052d3f6cc5"),
    ] {
        let node = Node::Directory { digest: child.digest(), size: child.size(rule) };
        let root = Directory::new(vec![(name("d"), node)]).expect("one entry");
        assert_eq!(put(service, &[&child, &root]).await.to_hex(), hex);
        holds(service, root.digest(), &[&child, &root]).await;
    }
}

async fn both_rules(service: &dyn DirectoryService) {
    for rule in [SizeRule::Doubled, SizeRule::Plain] {
        let (a, b) = (leaf("rules a"), leaf("rules b"));
        let middle = parent(rule, &[&a, &b]);
        let top = parent(rule, &[&middle, &a]);
        for _ in 0..2 {
            put(service, &[&a, &b, &middle, &top]).await;
        }
        holds(service, top.digest(), &[&a, &b, &middle, &top]).await;
        holds(service, middle.digest(), &[&a, &b, &middle]).await;
        holds(service, a.digest(), &[&a]).await;
    }
}

/// Levels of directories that all name the same ones below: exponentially many paths.
async fn shared(service: &dyn DirectoryService) {
    let mut levels = vec![leaf("shared")];
    for _ in 0..30 {
        let below = levels.last().expect("there is a leaf").clone();
        levels.push(parent(SizeRule::Plain, &[&below, &below]));
    }
    let levels: Vec<_> = levels.iter().collect();
    let root = put(service, &levels).await;
    holds(service, root, &levels).await;
    // Directories that come again in a stream are passed over.
    let (a, b) = (leaf("again a"), leaf("again b"));
    let root = parent(SizeRule::Doubled, &[&a, &b]);
    put(service, &[&a, &b, &a, &root]).await;
    holds(service, root.digest(), &[&a, &b, &root]).await;
}

async fn stored_children(service: &dyn DirectoryService) {
    let leaf = leaf("stored before");
    let middle = parent(SizeRule::Doubled, &[&leaf]);
    put(service, &[&leaf, &middle]).await;
    let root = parent(SizeRule::Doubled, &[&middle, &leaf]);
    put(service, &[&root]).await;
    holds(service, root.digest(), &[&leaf, &middle, &root]).await;
    // A parent by the other rule than what is stored would make a mixed closure.
    let mixed = parent(SizeRule::Plain, &[&middle]);
    let refused = service.put_closure(leaves_first(&[&mixed])).await;
    let refused = refused.expect_err("two rules in one closure");
    assert!(matches!(refused, DirectoryError::Closure(InvalidClosure::Size { .. })), "{refused:?}");
    not_there(service, mixed.digest()).await;
}

async fn refused(service: &dyn DirectoryService) {
    let refuse = async |directories: &[&Directory], expected: InvalidClosure| {
        match service.put_closure(leaves_first(directories)).await {
            Err(DirectoryError::Closure(found)) => assert_eq!(found, expected),
            other => panic!("expected {expected:?}, but storing gave {other:?}"),
        }
        if let Some(root) = directories.last() {
            not_there(service, root.digest()).await;
        }
    };
    refuse(&[], InvalidClosure::Empty).await;

    let (a, missing) = (leaf("refused a"), leaf("refused, missing"));
    let root = parent(SizeRule::Doubled, &[&a, &missing]);
    let (parent_digest, child) = (root.digest(), missing.digest());
    let error = InvalidClosure::MissingChild { parent: parent_digest, child };
    refuse(&[&a, &root], error.clone()).await;
    // Root first is no order to store in.
    let other = leaf("refused, late");
    let early = parent(SizeRule::Doubled, &[&other]);
    let error = InvalidClosure::MissingChild { parent: early.digest(), child: other.digest() };
    let late = service.put_closure(leaves_first(&[&early, &other])).await;
    assert!(matches!(late, Err(DirectoryError::Closure(found)) if found == error));
    not_there(service, early.digest()).await;

    let stray = leaf("refused, stray");
    let root = parent(SizeRule::Doubled, &[&a]);
    refuse(&[&stray, &a, &root], InvalidClosure::Unconnected(stray.digest())).await;

    let sized = |size| {
        let node = Node::Directory { digest: a.digest(), size };
        Directory::new(vec![(name("sized"), node)]).expect("one entry")
    };
    // The leaf has one entry: its size is 2 by one rule, and 1 by the other.
    for size in [0, 3, u64::MAX / 2] {
        let root = sized(size);
        let error = InvalidClosure::Size { parent: root.digest(), child: a.digest(), size };
        refuse(&[&a, &root], error).await;
    }
    let (doubled, plain) = (sized(2), sized(1));
    let mixed = Directory::new(vec![
        (name("doubled"), Node::Directory { digest: doubled.digest(), size: 4 }),
        (name("plain"), Node::Directory { digest: plain.digest(), size: 2 }),
    ]);
    let mixed = mixed.expect("names differ");
    match service.put_closure(leaves_first(&[&a, &doubled, &plain, &mixed])).await {
        Err(DirectoryError::Closure(InvalidClosure::Size { .. })) => {}
        other => panic!("two rules in one closure gave {other:?}"),
    }
    not_there(service, mixed.digest()).await;
}

async fn failing_stream(service: &dyn DirectoryService) {
    let leaf = leaf("failing");
    let root = parent(SizeRule::Doubled, &[&leaf]);
    for good in [vec![], vec![&leaf], vec![&leaf, &root]] {
        let failure = Err(DirectoryError::Invalid("no more of this".to_owned()));
        let failing = leaves_first(&good).chain(stream::iter([failure])).boxed();
        match service.put_closure(failing).await {
            Err(DirectoryError::Invalid(what)) => assert_eq!(what, "no more of this"),
            other => panic!("a failing stream gave {other:?}"),
        }
        not_there(service, root.digest()).await;
    }
}

async fn has_many(service: &dyn DirectoryService) {
    assert_eq!(service.has_many(&[]).await.unwrap(), Vec::<bool>::new());
    let (a, b) = (leaf("has a"), leaf("has b"));
    let root = parent(SizeRule::Doubled, &[&a, &b]);
    put(service, &[&a, &b, &root]).await;
    let missing = Digest::of(b"not there at all");
    let asked = [missing, a.digest(), missing, root.digest(), a.digest(), Digest::EMPTY];
    let there = service.has_many(&asked).await.unwrap();
    assert_eq!(there, [false, true, false, true, true, true]);
    let too_many = vec![Digest::EMPTY; HAS_MANY_DIGESTS + 1];
    assert!(matches!(service.has_many(&too_many).await, Err(DirectoryError::Invalid(_))));
}

/// A directory of 100,000 entries: more than 4 MiB in its encoding.
async fn wide(service: &dyn DirectoryService) {
    let file = |index: u32| {
        let digest = Digest::of(&index.to_le_bytes());
        (name(&format!("file-{index:06}")), Node::File { digest, size: 4, executable: false })
    };
    let wide = Directory::new((0..100_000).map(file).collect()).expect("names differ");
    let root = parent(SizeRule::Doubled, &[&wide]);
    put(service, &[&wide, &root]).await;
    holds(service, root.digest(), &[&wide, &root]).await;
}

async fn deep(service: &dyn DirectoryService) {
    let mut chain = vec![leaf("deep")];
    for _ in 1..200 {
        let below = chain.last().expect("there is a leaf");
        chain.push(parent(SizeRule::Doubled, &[below]));
    }
    let chain: Vec<_> = chain.iter().collect();
    let root = put(service, &chain).await;
    holds(service, root, &chain).await;
}

/// Streams and puts that are given up leave the service as it was.
async fn abandoned(service: &dyn DirectoryService) {
    let leaves: Vec<_> = (0..50).map(|index| leaf(&format!("abandoned {index}"))).collect();
    let leaves: Vec<_> = leaves.iter().collect();
    let root = parent(SizeRule::Doubled, &leaves);
    let (drained, reached) = tokio::sync::oneshot::channel();
    let end = async move {
        let _ = drained.send(());
        future::pending().await
    };
    let waiting = leaves_first(&leaves).chain(leaves_first(&[&root])).chain(stream::once(end));
    let put = service.put_closure(waiting.boxed());
    assert!(matches!(future::select(put, reached).await, Either::Right(_)));
    not_there(service, root.digest()).await;

    let all: Vec<_> = leaves.iter().copied().chain([&root]).collect();
    self::put(service, &all).await;
    for _ in 0..20 {
        let mut stream = service.get_closure(&root.digest()).await.unwrap();
        assert_eq!(stream.try_next().await.unwrap().as_ref(), Some(&root));
    }
    holds(service, root.digest(), &all).await;
}

async fn concurrent(service: Arc<dyn DirectoryService>) {
    let tasks: Vec<_> = (0..24)
        .map(|task| {
            let service = service.clone();
            tokio::spawn(async move {
                // Each tree is put and read by eight tasks at once.
                let leaves: Vec<_> = (0..40)
                    .map(|index| leaf(&format!("concurrent {} {index}", task % 3)))
                    .collect();
                let root = parent(SizeRule::Doubled, &leaves.iter().collect::<Vec<_>>());
                let all: Vec<_> = leaves.iter().chain([&root]).collect();
                put(&*service, &all).await;
                holds(&*service, root.digest(), &all).await;
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
}
