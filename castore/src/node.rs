//! A node of a tree: what a directory's entry or a root is. Names are kept beside nodes, not in
//! them, since a root has none.

use cairn_proto::snix::castore::v1 as proto;

use crate::{
    Digest, Name, SymlinkTarget,
    digest::InvalidDigest,
    name::{InvalidName, InvalidSymlinkTarget},
};

/// A directory, a regular file or a symlink.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Node {
    /// A directory.
    Directory {
        /// The digest of its canonical encoding.
        digest: Digest,
        /// Its size by one of the two rules ([`crate::directory::SizeRule`]); kept as it came, and
        /// never to be given a meaning.
        size: u64,
    },
    /// A regular file.
    File {
        /// The digest of its bytes.
        digest: Digest,
        /// Its length in bytes.
        size: u64,
        /// Whether its owner may execute it.
        executable: bool,
    },
    /// A symlink.
    Symlink {
        /// What it points at.
        target: SymlinkTarget,
    },
}

/// A protobuf entry that is no node.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidNode {
    /// The entry says nothing.
    #[error("an entry without content")]
    Missing,
    /// Its name is not a name.
    #[error(transparent)]
    Name(#[from] InvalidName),
    /// The name that has to be empty is not.
    #[error("an entry with the name {0:?} where there must be none")]
    Named(String),
    /// Its digest is not one.
    #[error(transparent)]
    Digest(#[from] InvalidDigest),
    /// Its target is not one.
    #[error(transparent)]
    SymlinkTarget(#[from] InvalidSymlinkTarget),
}

impl Node {
    /// The node in an entry that has a name.
    pub fn from_named_entry(entry: proto::Entry) -> Result<(Name, Self), InvalidNode> {
        let (name, node) = Self::from_entry(entry)?;
        Ok((name.try_into()?, node))
    }

    /// The node in an entry that must not have a name.
    pub fn from_nameless_entry(entry: proto::Entry) -> Result<Self, InvalidNode> {
        match Self::from_entry(entry)? {
            (name, node) if name.is_empty() => Ok(node),
            (name, _) => Err(InvalidNode::Named(String::from_utf8_lossy(&name).into_owned())),
        }
    }

    fn from_entry(entry: proto::Entry) -> Result<(bytes::Bytes, Self), InvalidNode> {
        use proto::entry::Entry;
        Ok(match entry.entry.ok_or(InvalidNode::Missing)? {
            Entry::Directory(entry) => (entry.name, Self::directory(&entry.digest, entry.size)?),
            Entry::File(entry) => {
                (entry.name, Self::file(&entry.digest, entry.size, entry.executable)?)
            }
            Entry::Symlink(entry) => (entry.name, Self::symlink(entry.target)?),
        })
    }

    /// The node as a protobuf entry, with a name or with an empty one.
    pub fn to_entry(&self, name: Option<&Name>) -> proto::Entry {
        use proto::entry::Entry;
        let name = name.map(|name| name.as_bytes().clone()).unwrap_or_default();
        let entry = match self.clone() {
            Self::Directory { digest, size } => {
                Entry::Directory(proto::DirectoryEntry { name, digest: digest.into(), size })
            }
            Self::File { digest, size, executable } => {
                Entry::File(proto::FileEntry { name, digest: digest.into(), size, executable })
            }
            Self::Symlink { target } => {
                Entry::Symlink(proto::SymlinkEntry { name, target: target.as_bytes().clone() })
            }
        };
        proto::Entry { entry: Some(entry) }
    }

    pub(crate) fn directory(digest: &[u8], size: u64) -> Result<Self, InvalidNode> {
        Ok(Self::Directory { digest: digest.try_into()?, size })
    }

    pub(crate) fn file(digest: &[u8], size: u64, executable: bool) -> Result<Self, InvalidNode> {
        Ok(Self::File { digest: digest.try_into()?, size, executable })
    }

    pub(crate) fn symlink(target: bytes::Bytes) -> Result<Self, InvalidNode> {
        Ok(Self::Symlink { target: target.try_into()? })
    }
}
