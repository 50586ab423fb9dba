//! A directory: names and nodes in order, with one canonical encoding and so one digest. Whether
//! the directories that it names exist is told by `closure`, not here.

mod encoding;

use std::cmp::Ordering;

use bytes::Bytes;
use cairn_proto::snix::castore::v1 as proto;

use crate::{Digest, Name, Node, node::InvalidNode};

/// A directory's entries, in ascending order of their names' bytes, each name once.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Directory {
    entries: Vec<(Name, Node)>,
}

/// How the sizes in a closure of directories were computed. Both are in use; see
/// [`Directory::size`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SizeRule {
    /// Twice the number of entries, and the sizes of the directories among them. What cairn emits.
    Doubled,
    /// The number of entries, and the sizes of the directories among them.
    Plain,
}

/// What is no directory.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidDirectory {
    /// The bytes are no protobuf message of this type.
    #[error("not an encoded directory: {0}")]
    Encoding(String),
    /// The bytes have another encoding than the canonical one.
    #[error("a directory that is not canonically encoded")]
    NotCanonical,
    /// Two entries have one name.
    #[error("a directory with two entries called {0:?}")]
    Duplicate(Name),
    /// A list is not in ascending order.
    #[error("a directory whose entry {0:?} is out of order")]
    Order(Name),
    /// An entry is no node.
    #[error("a directory with an invalid entry {name:?}: {source}")]
    Node {
        /// The entry's name, as far as it is one.
        name: String,
        /// What is wrong.
        source: InvalidNode,
    },
    /// The sizes add up to more than 64 bits hold.
    #[error("a directory whose sizes overflow")]
    Size,
}

impl Directory {
    /// A directory of these entries, given in any order. A name that comes twice is an error.
    pub fn new(mut entries: Vec<(Name, Node)>) -> Result<Self, InvalidDirectory> {
        if !entries.is_sorted_by(|(a, _), (b, _)| a < b) {
            entries.sort_unstable_by(|(a, _), (b, _)| a.cmp(b));
        }
        Self::from_sorted(entries)
    }

    fn from_sorted(entries: Vec<(Name, Node)>) -> Result<Self, InvalidDirectory> {
        if let Some(pair) = entries.windows(2).find(|pair| pair[0].0 >= pair[1].0) {
            return Err(InvalidDirectory::Duplicate(pair[1].0.clone()));
        }
        let directory = Self { entries };
        for rule in [SizeRule::Doubled, SizeRule::Plain] {
            directory.checked_size(rule).ok_or(InvalidDirectory::Size)?;
        }
        Ok(directory)
    }

    /// The entries, in ascending order of their names.
    pub fn entries(&self) -> &[(Name, Node)] {
        &self.entries
    }

    /// The entry of this name. Costs a binary search.
    pub fn get(&self, name: &[u8]) -> Option<&Node> {
        self.position(name).map(|index| &self.entries[index].1)
    }

    /// The number of the entry of this name, counted from 0. Costs a binary search.
    pub fn position(&self, name: &[u8]) -> Option<usize> {
        self.entries.binary_search_by(|(entry, _)| entry.as_ref().cmp(name)).ok()
    }

    /// The digests and sizes of the directories in it, in the order of their names.
    pub fn children(&self) -> impl Iterator<Item = (Digest, u64)> {
        self.entries.iter().filter_map(|(_, node)| match node {
            Node::Directory { digest, size } => Some((*digest, *size)),
            _ => None,
        })
    }

    /// What an entry that names this directory says as its size, by a rule.
    pub fn size(&self, rule: SizeRule) -> u64 {
        self.checked_size(rule).expect("sizes are checked when a directory is made")
    }

    fn checked_size(&self, rule: SizeRule) -> Option<u64> {
        let entries = self.entries.len() as u64;
        let own = match rule {
            SizeRule::Doubled => entries.checked_mul(2)?,
            SizeRule::Plain => entries,
        };
        self.children().try_fold(own, |sum, (_, size)| sum.checked_add(size))
    }

    /// The canonical encoding: proto3, fields in the order of their numbers, defaults left out.
    pub fn encode(&self) -> Bytes {
        encoding::encode(self)
    }

    /// The digest: BLAKE3 of the canonical encoding. Costs an encoding.
    pub fn digest(&self) -> Digest {
        Digest::of(&self.encode())
    }

    /// Reads a canonical encoding. The entries share the memory of `bytes`.
    pub fn decode(bytes: Bytes) -> Result<Self, InvalidDirectory> {
        Self::new(encoding::decode(bytes)?)
    }

    /// The directory in a protobuf message.
    pub fn from_proto(message: proto::Directory) -> Result<Self, InvalidDirectory> {
        let proto::Directory { directories, files, symlinks } = message;
        let mut entries = Vec::with_capacity(directories.len() + files.len() + symlinks.len());
        for entry in directories {
            let node = Node::directory(&entry.digest, entry.size);
            push(&mut entries, 0, entry.name, node)?;
        }
        let first_file = entries.len();
        for entry in files {
            let node = Node::file(&entry.digest, entry.size, entry.executable);
            push(&mut entries, first_file, entry.name, node)?;
        }
        let first_symlink = entries.len();
        for entry in symlinks {
            let node = Node::symlink(entry.target);
            push(&mut entries, first_symlink, entry.name, node)?;
        }
        Self::new(entries)
    }

    /// The directory as a protobuf message, in canonical order.
    pub fn to_proto(&self) -> proto::Directory {
        let mut message = proto::Directory::default();
        for (name, node) in &self.entries {
            let name = name.as_bytes().clone();
            match node.clone() {
                Node::Directory { digest, size } => {
                    let digest = digest.into();
                    message.directories.push(proto::DirectoryEntry { name, digest, size });
                }
                Node::File { digest, size, executable } => {
                    let digest = digest.into();
                    message.files.push(proto::FileEntry { name, digest, size, executable });
                }
                Node::Symlink { target } => {
                    let target = target.as_bytes().clone();
                    message.symlinks.push(proto::SymlinkEntry { name, target });
                }
            }
        }
        message
    }
}

/// Appends an entry to the list that starts at `first`, whose order it has to keep.
fn push(
    entries: &mut Vec<(Name, Node)>,
    first: usize,
    name: Bytes,
    node: Result<Node, InvalidNode>,
) -> Result<(), InvalidDirectory> {
    let invalid = |source| InvalidDirectory::Node {
        name: String::from_utf8_lossy(&name).into_owned(),
        source,
    };
    let node = node.map_err(invalid)?;
    let name = Name::try_from(name.clone()).map_err(|error| invalid(error.into()))?;
    if let Some((previous, _)) = entries[first..].last() {
        match previous.cmp(&name) {
            Ordering::Less => {}
            Ordering::Equal => return Err(InvalidDirectory::Duplicate(name)),
            Ordering::Greater => return Err(InvalidDirectory::Order(name)),
        }
    }
    entries.push((name, node));
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn hi() -> Node {
        Node::File { digest: Digest::of(b"hi\n"), size: 3, executable: false }
    }

    fn name(text: &str) -> Name {
        Name::try_from(text).unwrap()
    }

    #[test]
    fn digests_are_those_of_the_specification() {
        let leaf = Directory::new(vec![(name("f"), hi())]).unwrap();
        let hex = "0a1e01a85e85080819577409a4d22df3cd60cc042ca7dda5a0d2213fef305382";
        assert_eq!(leaf.digest().to_hex(), hex);
        for (rule, size, hex) in [
            (
                SizeRule::Doubled,
                2,
                "3d2cdd203b22daa6abdc55a620d3cbbb1ba93e9ca440affe39a1ac19b2e0d986",
            ),
            (
                SizeRule::Plain,
                1,
                "e8a5d7e5f57a32b0ec5d499d7c8ee1a58256d3330f28cba32186ac052d3f6cc5",
            ),
        ] {
            assert_eq!(leaf.size(rule), size);
            let child = Node::Directory { digest: leaf.digest(), size };
            let parent = Directory::new(vec![(name("d"), child)]).unwrap();
            assert_eq!(parent.digest().to_hex(), hex);
        }
        assert_eq!(Directory::default().digest(), Digest::EMPTY);
    }

    #[test]
    fn a_name_stands_once_across_the_lists() {
        let entries = vec![
            (name("a"), hi()),
            (name("a"), Node::Directory { digest: Digest::EMPTY, size: 0 }),
        ];
        assert_eq!(Directory::new(entries), Err(InvalidDirectory::Duplicate(name("a"))));
    }

    fn file_entry(name: &'static str) -> proto::FileEntry {
        proto::FileEntry {
            name: Bytes::from_static(name.as_bytes()),
            digest: Digest::EMPTY.into(),
            size: 0,
            executable: false,
        }
    }

    #[test]
    fn lists_out_of_order_are_refused() {
        let of = |names: &[&'static str]| proto::Directory {
            files: names.iter().map(|name| file_entry(name)).collect(),
            ..Default::default()
        };
        assert!(Directory::from_proto(of(&["a", "b"])).is_ok());
        let unordered = Directory::from_proto(of(&["b", "a"]));
        assert_eq!(unordered, Err(InvalidDirectory::Order(name("a"))));
        let twice = Directory::from_proto(of(&["a", "a"]));
        assert_eq!(twice, Err(InvalidDirectory::Duplicate(name("a"))));
        let mut across = of(&["a"]);
        across.symlinks.push(proto::SymlinkEntry {
            name: Bytes::from_static(b"a"),
            target: Bytes::from_static(b"t"),
        });
        assert_eq!(Directory::from_proto(across), Err(InvalidDirectory::Duplicate(name("a"))));
    }

    #[test]
    fn sizes_that_overflow_are_refused() {
        let child = |text| (name(text), Node::Directory { digest: Digest::EMPTY, size: u64::MAX });
        assert_eq!(Directory::new(vec![child("a")]), Err(InvalidDirectory::Size));
        assert_eq!(Directory::new(vec![child("a"), child("b")]), Err(InvalidDirectory::Size));
    }

    #[test]
    fn what_is_not_canonical_is_refused() {
        let mut bytes = Directory::new(vec![(name("f"), hi())]).unwrap().encode().to_vec();
        bytes.extend([0x20, 0x01]);
        assert_eq!(Directory::decode(bytes.into()), Err(InvalidDirectory::NotCanonical));
        assert!(matches!(
            Directory::decode(Bytes::from_static(b"\x0a\xff")),
            Err(InvalidDirectory::Encoding(_))
        ));
    }

    proptest! {
        #[test]
        fn what_is_encoded_is_read_back(directory in crate::conformance::directories()) {
            let bytes = directory.encode();
            let decoded = Directory::decode(bytes.clone()).unwrap();
            prop_assert_eq!(decoded.encode(), bytes);
            for (name, node) in directory.entries() {
                prop_assert_eq!(decoded.get(name.as_ref()), Some(node));
            }
            prop_assert_eq!(decoded, directory);
        }

        #[test]
        fn bytes_from_anywhere_do_no_harm(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            if let Ok(directory) = Directory::decode(bytes.clone().into()) {
                prop_assert_eq!(directory.encode(), bytes);
            }
        }
    }
}
