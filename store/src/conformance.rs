//! What every path-info service must pass, every sentence of its contract. Ordinary code behind a
//! feature, so that a backend elsewhere can be held to it.

use std::{collections::BTreeSet, sync::Arc};

use bytes::Bytes;
use cairn_castore::{
    Blob, BlobService, Digest, Directory, DirectoryService, Name, Node, SymlinkTarget,
    directory::SizeRule,
};
use cairn_proto::snix::store::v1::nar_info::ca::Hash;
use futures::{StreamExt as _, future::join_all, stream};

use crate::{
    ContentAddress, NarInfo, NarWitness, PathInfo, PathInfoError, PathInfoService, Signature,
    StorePath, nar::hash, path_info_service::PAGE_MAX, store_path::OutputHash,
};

/// Holds a freshly opened, empty service to its contract. The trees are put into the two services
/// that it looks them up in.
pub async fn path_info_service(
    service: Arc<dyn PathInfoService>,
    blobs: Arc<dyn BlobService>,
    directories: Arc<dyn DirectoryService>,
) {
    let suite = Suite { service, blobs, directories };
    suite.what_was_never_put_is_not_there().await;
    suite.a_record_comes_back_as_it_was_put().await;
    suite.a_root_has_to_be_there_whole().await;
    suite.another_nar_is_refused().await;
    suite.what_no_node_or_rule_allows_is_refused().await;
    suite.nothing_is_overwritten().await;
    suite.signatures_are_added().await;
    suite.of_two_records_at_once_one_wins().await;
    suite.nars_are_computed_of_every_kind_of_root().await;
    suite.a_witness_is_believed_for_its_tree_alone().await;
    suite.what_is_deleted_is_gone_and_can_come_again().await;
    suite.pages_give_all_in_order().await;
}

struct Suite {
    service: Arc<dyn PathInfoService>,
    blobs: Arc<dyn BlobService>,
    directories: Arc<dyn DirectoryService>,
}

impl Suite {
    async fn put_blob(&self, text: &str) -> Node {
        let blob = Blob::new(Bytes::copy_from_slice(text.as_bytes()));
        let node = file(text);
        self.blobs.put_many(vec![blob]).await.expect("blobs are stored");
        node
    }

    /// A stored file's record under this name.
    async fn file_info(&self, name: &str, text: &str) -> PathInfo {
        let node = self.put_blob(text).await;
        self.info(name, node).await
    }

    /// The record of a stored tree, as an import makes it.
    async fn info(&self, name: &str, node: Node) -> PathInfo {
        let (blobs, directories) = (Arc::clone(&self.blobs), Arc::clone(&self.directories));
        let nar = hash::calculate(&node, blobs, directories).await.expect("the tree is stored");
        info(name, node, nar)
    }

    /// A directory with a directory with a file.
    async fn put_tree(&self, text: &str) -> Node {
        let leaf = directory([("file", self.put_blob(text).await)]);
        let root = directory([("directory", node(&leaf)), ("link", symlink("directory/file"))]);
        self.put_directories([leaf, root.clone()]).await;
        node(&root)
    }

    async fn put_directories<const N: usize>(&self, directories: [Directory; N]) {
        let closure = stream::iter(directories.map(Ok)).boxed();
        self.directories.put_closure(closure).await.expect("directories are stored");
    }

    async fn get(&self, info: &PathInfo) -> Option<PathInfo> {
        let hash = info.store_path.hash();
        let found = self.service.get(hash).await.expect("the service answers");
        if let Some(local) = self.service.get_local(hash) {
            assert_eq!(local.expect("the service answers"), found, "get_local differs from get");
        }
        found
    }

    async fn what_was_never_put_is_not_there(&self) {
        let hash = [7; 20];
        assert_eq!(self.service.get(&hash).await.expect("it answers"), None);
        assert!(!self.service.delete(&hash).await.expect("it answers"));
        assert_eq!(self.service.list(None, PAGE_MAX).await.expect("it answers"), []);
        assert_eq!(self.service.list(Some(hash), 1).await.expect("it answers"), []);
    }

    async fn a_record_comes_back_as_it_was_put(&self) {
        let node = self.put_tree("as it was").await;
        let mut info = self.info("whole", node).await;
        let reference = |byte, name| StorePath::new([byte; 20], name).expect("a valid name");
        // Not in order, with itself among them: the signature covers the order.
        info.references = vec![reference(9, "z"), info.store_path.clone(), reference(1, "a")];
        info.signatures = vec![signature("key-1", 1), signature("key-2", 2)];
        info.deriver = Some(reference(3, "whole"));
        let put = self.service.put(info.clone(), None).await.expect("it is stored");
        assert_eq!(put, info);
        assert_eq!(self.get(&info).await, Some(info.clone()));

        let plain = self.file_info("plain", "plain").await;
        let plain = PathInfo { ca: None, ..plain };
        assert_eq!(self.service.put(plain.clone(), None).await.expect("it is stored"), plain);
        assert_eq!(self.get(&plain).await, Some(plain));
        assert_eq!(self.get(&info).await, Some(info));
    }

    async fn a_root_has_to_be_there_whole(&self) {
        let nar = NarInfo { size: 120, sha256: [1; 32] };
        let lone = directory([("x", symlink("not stored"))]);
        let dangling =
            directory([("present", self.put_blob("present").await), ("gone", file("gone"))]);
        self.put_directories([dangling.clone()]).await;
        let nested = directory([("below", node(&dangling))]);
        self.put_directories([nested.clone()]).await;
        for root in [file("not there"), node(&lone), node(&dangling), node(&nested)] {
            let info = info("missing", root.clone(), nar);
            let error = self.service.put(info.clone(), None).await.expect_err("it is not whole");
            assert!(matches!(error, PathInfoError::Missing { .. }), "{root:?}: {error:?}");
            assert_eq!(self.get(&info).await, None);
            let error = self.service.calculate_nar(&root).await.expect_err("it is not whole");
            assert!(matches!(error, PathInfoError::Missing { .. }), "{root:?}: {error:?}");
        }
    }

    async fn another_nar_is_refused(&self) {
        let node = self.put_tree("another NAR").await;
        let right = self.info("nar", node).await;
        let size = NarInfo { size: right.nar.size + 8, ..right.nar };
        let hash = NarInfo { sha256: [8; 32], ..right.nar };
        for nar in [size, hash] {
            let wrong = PathInfo { nar, ..right.clone() };
            let error = self.service.put(wrong, None).await.expect_err("the NAR is another");
            match error {
                PathInfoError::NarMismatch { store_path, found, claimed } => {
                    assert_eq!((store_path, *found), (right.store_path.clone(), right.nar));
                    assert_eq!(*claimed, nar);
                }
                error => panic!("expected a mismatch of NARs, got {error:?}"),
            }
            assert_eq!(self.get(&right).await, None);
        }
        self.service.put(right, None).await.expect("it is stored");
    }

    async fn what_no_node_or_rule_allows_is_refused(&self) {
        let tree = self.put_tree("by no rule").await;
        let right = self.info("rule", tree.clone()).await;
        let Node::Directory { digest, size } = tree else { panic!("a tree is a directory") };
        let node = Node::Directory { digest, size: size + 1 };
        let wrong = PathInfo { node, ..right.clone() };
        let error = self.service.put(wrong, None).await.expect_err("the size is by no rule");
        assert!(matches!(error, PathInfoError::InvalidRequest(_)), "{error:?}");

        let text = self.put_blob("of another size").await;
        let right = self.info("size", text.clone()).await;
        let Node::File { digest, size, executable } = text else { panic!("a blob is a file") };
        let node = Node::File { digest, size: size + 1, executable };
        let wrong = PathInfo { node, ..right.clone() };
        self.service.put(wrong, None).await.expect_err("the file is shorter");
        assert_eq!(self.get(&right).await, None);
    }

    async fn nothing_is_overwritten(&self) {
        let stored = self.file_info("kept", "kept").await;
        self.service.put(stored.clone(), None).await.expect("it is stored");
        let again = self.service.put(stored.clone(), None).await.expect("the same is no conflict");
        assert_eq!(again, stored);

        let other = self.file_info("kept", "something else").await;
        let name = StorePath::new(*stored.store_path.hash(), "another").expect("a valid name");
        for other in [
            PathInfo { store_path: stored.store_path.clone(), ..other },
            PathInfo { store_path: name.clone(), ..stored.clone() },
            PathInfo { references: vec![name.clone()], ..stored.clone() },
            PathInfo { deriver: Some(name), ..stored.clone() },
            PathInfo { ca: None, signatures: vec![signature("key", 1)], ..stored.clone() },
        ] {
            let error = self.service.put(other, None).await.expect_err("there is another");
            assert!(matches!(error, PathInfoError::Conflict { .. }), "{error:?}");
            assert_eq!(self.get(&stored).await, Some(stored.clone()));
        }
    }

    async fn signatures_are_added(&self) {
        let unsigned = self.file_info("signed", "signed").await;
        let signed =
            |byte| PathInfo { signatures: vec![signature("key", byte)], ..unsigned.clone() };
        self.service.put(signed(0), None).await.expect("it is stored");
        let puts = (1..24).map(|byte| self.service.put(signed(byte), None));
        for (put, byte) in join_all(puts).await.into_iter().zip(1..) {
            let answer = put.expect("signatures are added");
            assert!(answer.signatures.contains(&signature("key", byte)));
        }
        let kept = self.service.put(unsigned.clone(), None).await.expect("it takes nothing away");
        let bytes: BTreeSet<_> =
            kept.signatures.iter().map(|signature| signature.data[0]).collect();
        assert_eq!(bytes, (0..24).collect(), "a signature is lost");
        assert_eq!(kept.signatures.len(), 24, "a signature is there twice");
        assert!(kept.is_same_but_signatures(&unsigned));
        assert_eq!(self.get(&unsigned).await, Some(kept));
    }

    async fn of_two_records_at_once_one_wins(&self) {
        let first = self.file_info("raced", "raced").await;
        let reference = StorePath::new([5; 20], "reference").expect("a valid name");
        let second = PathInfo { references: vec![reference], ..first.clone() };
        let (one, other) = futures::join!(
            self.service.put(first.clone(), None),
            self.service.put(second.clone(), None)
        );
        let (won, lost) = match (one, other) {
            (Ok(won), Err(lost)) | (Err(lost), Ok(won)) => (won, lost),
            both => panic!("one has to win, and one only: {both:?}"),
        };
        assert!(won == first || won == second);
        assert!(matches!(lost, PathInfoError::Conflict { .. }), "{lost:?}");
        assert_eq!(self.get(&first).await, Some(won));
    }

    async fn nars_are_computed_of_every_kind_of_root(&self) {
        // Never put: the empty blob and the empty directory are always there.
        let empty_directory = node(&Directory::default());
        let empty_file = file("");
        let executable = match self.put_blob("run").await {
            Node::File { digest, size, .. } => Node::File { digest, size, executable: true },
            other => other,
        };
        let tree = self.put_tree("kinds").await;
        for root in [empty_directory, empty_file, executable, symlink("kinds"), tree] {
            let info = self.info("kind", root.clone()).await;
            for _ in 0..2 {
                let nar = self.service.calculate_nar(&root).await.expect("the tree is there");
                assert_eq!(nar, info.nar, "{root:?}");
            }
            self.service.put(info, None).await.expect("it is stored");
        }
    }

    async fn a_witness_is_believed_for_its_tree_alone(&self) {
        let tree = self.put_tree("witnessed").await;
        let right = self.info("witnessed", tree.clone()).await;
        let witness = NarWitness::new(tree.clone(), right.nar);
        let wrong = PathInfo { nar: NarInfo { size: 1, ..right.nar }, ..right.clone() };
        let error = self.service.put(wrong, Some(witness.clone())).await.expect_err("it lies");
        assert!(matches!(error, PathInfoError::NarMismatch { .. }), "{error:?}");
        let gone = info("gone", file("in no store"), right.nar);
        let error = self.service.put(gone, Some(witness.clone())).await.expect_err("it is missing");
        assert!(matches!(error, PathInfoError::Missing { .. }), "{error:?}");
        self.service.put(right.clone(), Some(witness)).await.expect("it is stored");
        assert_eq!(self.service.calculate_nar(&tree).await.expect("it is there"), right.nar);
        assert_eq!(self.get(&right).await, Some(right));
    }

    async fn what_is_deleted_is_gone_and_can_come_again(&self) {
        let first = self.file_info("deleted", "deleted").await;
        let second = self.file_info("stays", "stays").await;
        for info in [&first, &second] {
            self.service.put(info.clone(), None).await.expect("it is stored");
        }
        assert!(self.service.delete(first.store_path.hash()).await.expect("it is deleted"));
        assert!(!self.service.delete(first.store_path.hash()).await.expect("it answers"));
        assert_eq!(self.get(&first).await, None);
        assert_eq!(self.get(&second).await, Some(second));
        // Another record is no conflict any more.
        let reference = StorePath::new([6; 20], "reference").expect("a valid name");
        let again = PathInfo { references: vec![reference], ..first };
        self.service.put(again.clone(), None).await.expect("it is stored");
        assert_eq!(self.get(&again).await, Some(again));
    }

    async fn pages_give_all_in_order(&self) {
        for name in ["page-1", "page-2", "page-3", "page-4", "page-5"] {
            let info = self.file_info(name, name).await;
            self.service.put(info, None).await.expect("it is stored");
        }
        let all = self.service.list(None, usize::MAX).await.expect("it lists");
        assert!(all.len() > 5 && all.len() < PAGE_MAX);
        let hash = |info: &PathInfo| *info.store_path.hash();
        let hashes: Vec<OutputHash> = all.iter().map(hash).collect();
        assert!(hashes.is_sorted_by(|a, b| a < b), "not in ascending order, or one twice");
        for info in &all {
            assert_eq!(self.get(info).await.as_ref(), Some(info));
        }
        for limit in [1, 2, 3, all.len() - 1, all.len(), all.len() + 1] {
            let mut paged = Vec::new();
            loop {
                let after = paged.last().map(hash);
                let page = self.service.list(after, limit).await.expect("it lists");
                let is_last = page.len() < limit;
                assert!(page.len() <= limit);
                paged.extend(page);
                if is_last {
                    break;
                }
            }
            assert_eq!(paged, all, "in pages of {limit}");
        }
        // The cursor need not be there.
        let mut between = hashes[1];
        between[19] = between[19].wrapping_sub(1);
        let behind = self.service.list(Some(between), PAGE_MAX).await.expect("it lists");
        let expected = all.iter().filter(|info| hash(info) > between).count();
        assert_eq!(behind.len(), expected);
        assert_eq!(self.service.list(Some([0xff; 20]), 1).await.expect("it lists"), []);
    }
}

/// The record of a tree as an import makes it.
fn info(name: &str, node: Node, nar: NarInfo) -> PathInfo {
    let store_path = StorePath::of_nar(name, &nar.sha256).expect("a valid name");
    let ca = ContentAddress { kind: Hash::NarSha256, digest: nar.sha256.to_vec() };
    let (references, signatures) = (Vec::new(), Vec::new());
    PathInfo { store_path, node, references, nar, signatures, deriver: None, ca: Some(ca) }
}

fn signature(name: &str, byte: u8) -> Signature {
    Signature { name: name.to_owned(), data: [byte; 64] }
}

fn file(text: &str) -> Node {
    let digest = Digest::of(text.as_bytes());
    Node::File { digest, size: text.len() as u64, executable: false }
}

fn symlink(target: &'static str) -> Node {
    let target = SymlinkTarget::try_from(Bytes::from_static(target.as_bytes()));
    Node::Symlink { target: target.expect("a valid target") }
}

fn directory<const N: usize>(entries: [(&str, Node); N]) -> Directory {
    let entries = entries.map(|(name, node)| (Name::try_from(name).expect("a valid name"), node));
    Directory::new(entries.into()).expect("names are unique")
}

fn node(directory: &Directory) -> Node {
    Node::Directory { digest: directory.digest(), size: directory.size(SizeRule::Doubled) }
}
