//! How people name something in a store: a store path or a digest, with a path below it. Parsed
//! and looked up here; what is done with it is the affair of who asks.

use std::{
    ffi::OsStr,
    fmt,
    os::unix::ffi::{OsStrExt as _, OsStringExt as _},
    path::PathBuf,
    str::FromStr,
};

use bytes::Bytes;
use cairn_castore::{
    BlobError, Digest, Directory, DirectoryError, Name, Node, SymlinkTarget, digest::InvalidDigest,
    directory::SizeRule, name::InvalidName,
};

use crate::{
    PathInfo, PathInfoError, Services, StorePath,
    store_path::{InvalidStorePath, STORE_DIR},
};

/// The length of the base64 of a digest.
const BASE64_LEN: usize = 44;
/// The length of the hexadecimal digits of a digest.
const HEX_LEN: usize = 64;

/// Something in a store: a root and the names that lead from there to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoreRef {
    root: StoreRoot,
    below: Vec<Name>,
}

/// Where a [`StoreRef`] starts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StoreRoot {
    /// A store path.
    StorePath(StorePath),
    /// A directory or a blob.
    Digest(Digest),
}

/// A text that names nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidStoreRef {
    /// Neither a store path nor a digest.
    #[error("{0:?} is neither a store path nor a digest")]
    Root(String),
    /// Meant as a store path, which it is not.
    #[error(transparent)]
    StorePath(#[from] InvalidStorePath),
    /// Meant as a digest, which it is not.
    #[error(transparent)]
    Digest(#[from] InvalidDigest),
    /// A name below that is none.
    #[error(transparent)]
    Name(#[from] InvalidName),
}

/// What a [`StoreRef`] leads to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resolved {
    /// The node itself. A blob that was named by its digest is a file that is not executable.
    pub node: Node,
    /// The record of the store path that it is in, where it was named by one.
    pub path_info: Option<PathInfo>,
}

/// Why a [`StoreRef`] leads to nothing.
#[derive(Debug, thiserror::Error)]
pub enum StoreRefError {
    /// The root is not in the store.
    #[error("{0} is not in the store")]
    NoRoot(StoreRoot),
    /// A directory has no such entry.
    #[error("there is no {name:?} in {}", within.display())]
    NoEntry {
        /// The directory.
        within: PathBuf,
        /// What it does not have.
        name: Name,
    },
    /// The path leads through a symlink.
    #[error("{} is a symlink to {target}, which is not followed", path.display())]
    Symlink {
        /// The symlink.
        path: PathBuf,
        /// What it points at.
        target: SymlinkTarget,
    },
    /// The path leads through a file.
    #[error("{} is a file, with nothing below it", .0.display())]
    File(PathBuf),
    /// The path infos could not be asked.
    #[error(transparent)]
    PathInfo(#[from] PathInfoError),
    /// The directories could not be asked.
    #[error(transparent)]
    Directory(#[from] DirectoryError),
    /// The blobs could not be asked.
    #[error(transparent)]
    Blob(#[from] BlobError),
}

impl StoreRef {
    /// Reads a store path (`/nix/store/<32 characters>-<name>`, or its base name) or a digest
    /// (`blake3-<base64>`, 64 hexadecimal digits), followed by `/a/path/below` or not.
    pub fn parse(text: &OsStr) -> Result<Self, InvalidStoreRef> {
        let text = text.as_bytes();
        let in_store = text.strip_prefix(STORE_DIR.as_bytes()).and_then(|rest| {
            // Like any path, with as many slashes as one likes.
            let base = rest.iter().position(|byte| *byte != b'/')?;
            (base > 0).then(|| &rest[base..])
        });
        let rest = in_store.unwrap_or(text);
        // Base64 has slashes of its own, so the end of such a digest is told by its length.
        let digest_len = match rest {
            _ if in_store.is_some() => None,
            [b'b', b'l', b'a', b'k', b'e', b'3', b'-', ..] => Some(7 + BASE64_LEN),
            [b'b', b'3', b':', ..] => Some(3 + BASE64_LEN),
            _ => None,
        };
        let end = digest_len
            .unwrap_or_else(|| rest.iter().position(|byte| *byte == b'/').unwrap_or(rest.len()));
        let (root, below) = rest.split_at_checked(end).unwrap_or((rest, b""));
        let is_hex = root.len() == HEX_LEN && root.iter().all(u8::is_ascii_hexdigit);
        let invalid = || InvalidStoreRef::Root(String::from_utf8_lossy(text).into_owned());
        let root = if digest_len.is_some() || (is_hex && in_store.is_none()) {
            let root = str::from_utf8(root).map_err(|_| invalid())?;
            StoreRoot::Digest(root.parse()?)
        } else if in_store.is_none() && !matches!(root.get(32), Some(b'-')) {
            return Err(invalid());
        } else {
            StoreRoot::StorePath(StorePath::from_base_name(root)?)
        };
        if !matches!(below.first(), None | Some(b'/')) {
            return Err(invalid());
        }
        let names = below.split(|byte| *byte == b'/').filter(|name| !name.is_empty());
        let below = names.map(|name| Name::try_from(Bytes::copy_from_slice(name)));
        Ok(Self { root, below: below.collect::<Result<_, _>>()? })
    }

    /// Where it starts.
    pub fn root(&self) -> &StoreRoot {
        &self.root
    }

    /// The names that lead on from the root; none for the root itself.
    pub fn below(&self) -> &[Name] {
        &self.below
    }

    /// Looks it up. Symlinks are not followed: one at the end is what is named, one on the way is
    /// an error.
    pub async fn resolve(&self, services: &Services) -> Result<Resolved, StoreRefError> {
        let (mut node, path_info) = match &self.root {
            StoreRoot::StorePath(path) => {
                let info = services.path_infos.get(path.hash()).await?;
                let info = info.filter(|info| info.store_path == *path);
                let info = info.ok_or_else(|| StoreRefError::NoRoot(self.root.clone()))?;
                (info.node.clone(), Some(info))
            }
            StoreRoot::Digest(digest) => (self.content(digest, services).await?, None),
        };
        for (depth, name) in self.below.iter().enumerate() {
            let directory = match node {
                Node::Directory { digest, .. } => directory(&digest, services).await?,
                Node::File { .. } => return Err(StoreRefError::File(self.path(depth))),
                Node::Symlink { target } => {
                    return Err(StoreRefError::Symlink { path: self.path(depth), target });
                }
            };
            let entry = directory.get(name.as_ref()).cloned();
            node = entry.ok_or_else(|| StoreRefError::NoEntry {
                within: self.path(depth),
                name: name.clone(),
            })?;
        }
        Ok(Resolved { node, path_info })
    }

    /// The directory of this digest, or else the blob.
    async fn content(&self, digest: &Digest, services: &Services) -> Result<Node, StoreRefError> {
        if let Some(directory) = services.directories.get(digest).await? {
            let size = directory.size(SizeRule::Doubled);
            return Ok(Node::Directory { digest: *digest, size });
        }
        let stat = services.blobs.stat(digest).await?;
        let stat = stat.ok_or_else(|| StoreRefError::NoRoot(self.root.clone()))?;
        Ok(Node::File { digest: *digest, size: stat.size, executable: false })
    }

    /// All of it as a path, as it is shown.
    pub fn to_path(&self) -> PathBuf {
        self.path(self.below.len())
    }

    /// The path up to a depth, as it is shown.
    fn path(&self, depth: usize) -> PathBuf {
        let mut path = self.root.to_string().into_bytes();
        for name in &self.below[..depth] {
            path.push(b'/');
            path.extend_from_slice(name.as_ref());
        }
        std::ffi::OsString::from_vec(path).into()
    }
}

async fn directory(digest: &Digest, services: &Services) -> Result<Directory, DirectoryError> {
    let found = services.directories.get(digest).await?;
    found.ok_or(DirectoryError::NotFound(*digest))
}

impl FromStr for StoreRef {
    type Err = InvalidStoreRef;

    fn from_str(text: &str) -> Result<Self, InvalidStoreRef> {
        Self::parse(OsStr::new(text))
    }
}

impl fmt::Display for StoreRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.to_path().display().fmt(f)
    }
}

impl fmt::Display for StoreRoot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::StorePath(path) => path.fmt(f),
            Self::Digest(digest) => digest.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use cairn_castore::{
        BlobService, DirectoryService, blob_service::memory::MemoryBlobService,
        directory_service::memory::MemoryDirectoryService,
    };

    use super::*;
    use crate::{
        PathInfoService, nar::model::Tree, nar::reader,
        path_info_service::memory::MemoryPathInfoService,
    };

    const BASE: &str = "y0lrmcm4zaj0qd44rp7mg83dgyl87lkp-tree";

    fn names(reference: &StoreRef) -> Vec<String> {
        reference.below().iter().map(Name::to_string).collect()
    }

    #[test]
    fn store_paths_and_digests_are_told_apart() {
        let path: StorePath = BASE.parse().unwrap();
        for (text, below) in [
            (BASE.to_owned(), &[][..]),
            (format!("/nix/store/{BASE}"), &[]),
            (format!("/nix/store//{BASE}/"), &[]),
            (format!("{BASE}/d/f"), &["d", "f"]),
            (format!("/nix/store/{BASE}//d/f/"), &["d", "f"]),
        ] {
            let reference: StoreRef = text.parse().unwrap();
            assert_eq!(reference.root(), &StoreRoot::StorePath(path.clone()), "{text}");
            assert_eq!(names(&reference), below, "{text}");
            assert_eq!(reference.to_string().parse(), Ok(reference));
        }
        // Its base64 has slashes.
        let digest: Digest =
            "ffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff".parse().unwrap();
        assert!(digest.to_string().contains('/'));
        let tvix = digest.to_string().replace("blake3-", "b3:");
        for text in [digest.to_string(), digest.to_hex(), tvix] {
            let root: StoreRef = text.parse().unwrap();
            assert_eq!((root.root(), root.below()), (&StoreRoot::Digest(digest), &[][..]));
            let below: StoreRef = format!("{text}/a/b").parse().unwrap();
            assert_eq!(below.root(), root.root());
            assert_eq!(names(&below), ["a", "b"]);
        }
    }

    #[test]
    fn what_names_nothing_is_refused() {
        let digest = Digest::EMPTY.to_string();
        for text in [
            "",
            "/",
            "/nix/store",
            "/nix/store/",
            "/nix/storey0lrmcm4zaj0qd44rp7mg83dgyl87lkp-tree",
            "tree",
            "blake3-",
            "b3:",
            &format!("{digest}x"),
            &format!("{digest}="),
            &format!("/nix/store/{digest}"),
            &format!("{BASE}/.."),
            &format!("{BASE}/d/./f"),
            &format!("{BASE}/{}", "x".repeat(256)),
        ] {
            assert!(text.parse::<StoreRef>().is_err(), "{text:?}");
        }
        assert!(StoreRef::parse(OsStr::from_bytes(b"\xff\xfe")).is_err());
        assert!(StoreRef::parse(OsStr::from_bytes(&[BASE.as_bytes(), b"/\xff"].concat())).is_ok());
    }

    #[tokio::test]
    async fn paths_lead_through_directories_only() {
        let blobs: Arc<dyn BlobService> = Arc::new(MemoryBlobService::new());
        let directories: Arc<dyn DirectoryService> = Arc::new(MemoryDirectoryService::new());
        let path_infos =
            Arc::new(MemoryPathInfoService::new(Arc::clone(&blobs), Arc::clone(&directories)));
        let nar = Tree::vector().nar();
        let read = reader::read(&nar[..], Arc::clone(&blobs), Arc::clone(&directories));
        let witness = read.await.unwrap();
        let info = PathInfo::of_imported("tree", &witness).unwrap();
        path_infos.put(info.clone(), Some(witness)).await.unwrap();
        let services = Services { blobs, directories, path_infos };
        let resolve =
            async |text: String| text.parse::<StoreRef>().unwrap().resolve(&services).await;
        let error = async |text: String| resolve(text).await.unwrap_err().to_string();

        let root = resolve(BASE.to_owned()).await.unwrap();
        assert_eq!(root, Resolved { node: info.node.clone(), path_info: Some(info.clone()) });
        let hi = Digest::of(b"hi\n");
        let file = Node::File { digest: hi, size: 3, executable: false };
        assert_eq!(resolve(format!("{BASE}/d/f")).await.unwrap().node, file);
        let link = resolve(format!("{BASE}/link")).await.unwrap().node;
        assert!(matches!(link, Node::Symlink { .. }));
        let Node::Directory { digest, .. } = info.node else { panic!("the tree is a directory") };
        let by_digest = resolve(format!("{digest}/d/f")).await.unwrap();
        assert_eq!(by_digest, Resolved { node: file.clone(), path_info: None });
        assert_eq!(resolve(hi.to_hex()).await.unwrap().node, file);

        let store = "/nix/store";
        assert_eq!(
            error(format!("{BASE}/link/f")).await,
            format!("{store}/{BASE}/link is a symlink to d/f, which is not followed")
        );
        assert_eq!(
            error(format!("{BASE}/d/f/g")).await,
            format!("{store}/{BASE}/d/f is a file, with nothing below it")
        );
        assert_eq!(
            error(format!("{BASE}/d/g/h")).await,
            format!("there is no \"g\" in {store}/{BASE}/d")
        );
        let wrong = BASE.replace("tree", "WRONGNAME");
        assert_eq!(error(wrong.clone()).await, format!("{store}/{wrong} is not in the store"));
        let unknown = Digest::of(b"unknown");
        assert_eq!(error(unknown.to_hex()).await, format!("{unknown} is not in the store"));
    }
}
