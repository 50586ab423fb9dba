//! What is known of a store path: the root of its tree, its NAR's size and hash, what it refers
//! to, who signed it. Parsed from and written to protobuf here; what is in the record but not in
//! the content (references, deriver) is kept, not judged.

use cairn_castore::{Node, node::InvalidNode};
use cairn_proto::snix::store::v1 as proto;

use crate::store_path::{InvalidStorePath, StorePath};

/// A store path's record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PathInfo {
    /// The path.
    pub store_path: StorePath,
    /// The root of its tree.
    pub node: Node,
    /// The paths that its contents refer to, in the order that signatures cover.
    pub references: Vec<StorePath>,
    /// Its NAR.
    pub nar: NarInfo,
    /// Who vouches for it.
    pub signatures: Vec<Signature>,
    /// The derivation that it was built by; the name without `.drv`.
    pub deriver: Option<StorePath>,
    /// What its path was computed from, for a path addressed by its content.
    pub ca: Option<ContentAddress>,
}

/// The size and hash of a NAR.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NarInfo {
    /// Bytes.
    pub size: u64,
    /// The SHA-256 of the NAR.
    pub sha256: [u8; 32],
}

/// An ed25519 signature of a path's fingerprint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signature {
    /// The name of the key.
    pub name: String,
    /// The signature.
    pub data: [u8; 64],
}

/// What a content-addressed path was computed from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContentAddress {
    /// The kind of hash, with the numbers of the wire.
    pub kind: proto::nar_info::ca::Hash,
    /// The hash: 16, 20, 32 or 64 bytes, by its kind.
    pub digest: Vec<u8>,
}

/// A protobuf message that is no path info.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidPathInfo {
    /// A field that has to be there is not.
    #[error("a path info without {0}")]
    Missing(&'static str),
    /// A field of another length than it has.
    #[error("a path info whose {field} has {found} bytes instead of {expected}")]
    Length {
        /// The field.
        field: &'static str,
        /// The bytes it has.
        found: usize,
        /// The bytes it has to have.
        expected: usize,
    },
    /// The root is no node.
    #[error("a path info with an invalid root: {0}")]
    Node(#[from] InvalidNode),
    /// A name that is none.
    #[error("a path info with an invalid name: {0}")]
    StorePath(#[from] InvalidStorePath),
    /// References and their names disagree.
    #[error("a path info whose references and reference_names disagree at {0}")]
    References(usize),
    /// An unknown kind of content address.
    #[error("a path info with the unknown kind of content address {0}")]
    ContentAddress(i32),
}

impl PathInfo {
    /// Reads a protobuf message.
    pub fn from_proto(message: proto::PathInfo) -> Result<Self, InvalidPathInfo> {
        let entry = message.entry.ok_or(InvalidPathInfo::Missing("entry"))?;
        let (name, node) = Node::from_named_entry(entry)?;
        let store_path = StorePath::from_base_name(name.as_ref())?;
        let nar = message.narinfo.ok_or(InvalidPathInfo::Missing("narinfo"))?;
        if message.references.len() != nar.reference_names.len() {
            let index = message.references.len().min(nar.reference_names.len());
            return Err(InvalidPathInfo::References(index));
        }
        let mut references = Vec::with_capacity(message.references.len());
        for (index, (hash, name)) in message.references.iter().zip(&nar.reference_names).enumerate()
        {
            let reference = StorePath::from_base_name(name.as_bytes())?;
            if reference.hash() != &array("references", hash)? {
                return Err(InvalidPathInfo::References(index));
            }
            references.push(reference);
        }
        let signatures = nar.signatures.into_iter().map(|signature| {
            let data = array("signature", &signature.data)?;
            Ok(Signature { name: signature.name, data })
        });
        let deriver = nar.deriver.map(|deriver| -> Result<_, InvalidPathInfo> {
            Ok(StorePath::new(array("deriver", &deriver.digest)?, &deriver.name)?)
        });
        Ok(Self {
            store_path,
            node,
            references,
            nar: NarInfo { size: nar.nar_size, sha256: array("nar_sha256", &nar.nar_sha256)? },
            signatures: signatures.collect::<Result<_, InvalidPathInfo>>()?,
            deriver: deriver.transpose()?,
            ca: nar.ca.map(ContentAddress::from_proto).transpose()?,
        })
    }

    /// The record as a protobuf message.
    pub fn to_proto(&self) -> proto::PathInfo {
        let hash = |path: &StorePath| bytes::Bytes::copy_from_slice(path.hash());
        let signatures = self.signatures.iter().map(|signature| proto::nar_info::Signature {
            name: signature.name.clone(),
            data: bytes::Bytes::copy_from_slice(&signature.data),
        });
        let narinfo = proto::NarInfo {
            nar_size: self.nar.size,
            nar_sha256: bytes::Bytes::copy_from_slice(&self.nar.sha256),
            signatures: signatures.collect(),
            reference_names: self.references.iter().map(StorePath::base_name).collect(),
            deriver: self.deriver.as_ref().map(|deriver| proto::StorePath {
                name: deriver.name().to_owned(),
                digest: hash(deriver),
            }),
            ca: self.ca.as_ref().map(|ca| proto::nar_info::Ca {
                r#type: ca.kind.into(),
                digest: ca.digest.clone().into(),
            }),
        };
        proto::PathInfo {
            entry: Some(self.node.to_entry(Some(&self.store_path.to_name()))),
            references: self.references.iter().map(hash).collect(),
            narinfo: Some(narinfo),
        }
    }

    /// Whether two records differ in nothing but their signatures.
    pub fn is_same_but_signatures(&self, other: &Self) -> bool {
        let unsigned = |info: &Self| Self { signatures: Vec::new(), ..info.clone() };
        unsigned(self) == unsigned(other)
    }
}

impl NarInfo {
    /// The size and hash as the protobuf message that answers who asks for them.
    pub fn to_proto(&self) -> proto::CalculateNarResponse {
        let nar_sha256 = bytes::Bytes::copy_from_slice(&self.sha256);
        proto::CalculateNarResponse { nar_size: self.size, nar_sha256 }
    }

    /// Reads such a message.
    pub fn from_proto(message: &proto::CalculateNarResponse) -> Result<Self, InvalidPathInfo> {
        Ok(Self { size: message.nar_size, sha256: array("nar_sha256", &message.nar_sha256)? })
    }
}

impl ContentAddress {
    fn from_proto(message: proto::nar_info::Ca) -> Result<Self, InvalidPathInfo> {
        use proto::nar_info::ca::Hash;
        let kind = Hash::try_from(message.r#type)
            .map_err(|_| InvalidPathInfo::ContentAddress(message.r#type))?;
        let expected = match kind {
            Hash::NarMd5 | Hash::FlatMd5 => 16,
            Hash::NarSha1 | Hash::FlatSha1 => 20,
            Hash::NarSha256 | Hash::TextSha256 | Hash::FlatSha256 => 32,
            Hash::NarSha512 | Hash::FlatSha512 => 64,
        };
        let found = message.digest.len();
        if found != expected {
            return Err(InvalidPathInfo::Length { field: "ca", found, expected });
        }
        Ok(Self { kind, digest: message.digest.to_vec() })
    }
}

fn array<const N: usize>(field: &'static str, bytes: &[u8]) -> Result<[u8; N], InvalidPathInfo> {
    let found = bytes.len();
    bytes.try_into().map_err(|_| InvalidPathInfo::Length { field, found, expected: N })
}
