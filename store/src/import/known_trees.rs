//! What is remembered of imported trees between runs: the fingerprint that a tree had, and what it
//! came to. Whether a store still has that is asked elsewhere, every time.

use std::{
    fmt, fs,
    io::{self, Read as _},
    os::unix::{ffi::OsStrExt as _, fs::DirBuilderExt as _},
    path::{Path, PathBuf},
    process,
    sync::atomic::{AtomicU64, Ordering},
};

use cairn_castore::{BoxError, Digest, Node, import::TreeFingerprint};
use cairn_proto::snix::castore::v1 as proto;
use prost::Message as _;

use crate::{Services, path_info::NarInfo};

/// The most trees that are remembered. Those that were imported longest ago are forgotten first.
pub const KNOWN_TREES_MAX: usize = 1024;

/// The most bytes of one of the files: the longest symlink, and some.
const FILE_MAX: usize = 16 * 1024;

/// What a file starts with. The number is the version of the format.
const MAGIC: &[u8] = b"cairn known tree 1\n";

/// Tells the temporary files of one process apart.
static TEMPORARY: AtomicU64 = AtomicU64::new(0);

/// A folder in which imports remember trees, a small file for each tree and store.
///
/// What is in it can only spare work: a file that is missing, damaged or of another version is as
/// good as none, and is written anew. Several processes may use it at a time.
#[derive(Debug, Clone)]
pub struct KnownTrees {
    folder: PathBuf,
}

impl KnownTrees {
    /// Remembers in this folder, which is made when it is needed.
    pub fn new(folder: PathBuf) -> Self {
        Self { folder }
    }

    /// Where the tree at a path is remembered for this store. May wait for the disk.
    pub(super) fn slot(&self, services: &Services, path: &Path) -> io::Result<Slot> {
        let path = fs::canonicalize(path)?;
        // No part has a NUL in it.
        let mut key = Vec::new();
        for service in [
            services.blobs.to_string(),
            services.directories.to_string(),
            services.path_infos.to_string(),
        ] {
            key.extend_from_slice(service.as_bytes());
            key.push(0);
        }
        key.extend_from_slice(path.as_os_str().as_bytes());
        Ok(Slot { folder: self.folder.clone(), key: Digest::of(&key) })
    }
}

/// A tree that was imported into a store whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct KnownTree {
    /// The tree as it was.
    pub(super) fingerprint: Digest,
    /// Its root.
    pub(super) node: Node,
    /// Its NAR.
    pub(super) nar: NarInfo,
}

impl KnownTree {
    /// `None` if the tree has changed too lately to be known again by its fingerprint.
    pub(super) fn new(fingerprint: &TreeFingerprint, node: Node, nar: NarInfo) -> Option<Self> {
        let digest = fingerprint.digest;
        fingerprint.is_settled.then_some(Self { fingerprint: digest, node, nar })
    }
}

/// The place of one tree and one store. Its methods may wait for the disk.
#[derive(Debug, Clone)]
pub(super) struct Slot {
    folder: PathBuf,
    key: Digest,
}

impl Slot {
    fn path(&self) -> PathBuf {
        self.folder.join(self.key.to_hex())
    }

    /// What is remembered, if there is something and it can be used.
    pub(super) fn load(&self) -> Option<KnownTree> {
        let path = self.path();
        let loaded = read(&path).map_err(BoxError::from).and_then(|bytes| match bytes {
            Some(bytes) => self.decode(&bytes).map(Some).map_err(BoxError::from),
            None => Ok(None),
        });
        loaded.unwrap_or_else(|error| {
            tracing::debug!(path = %path.display(), %error, "what is known of a tree is of no use");
            None
        })
    }

    /// Remembers the tree in place of what was remembered before.
    pub(super) fn save(&self, tree: &KnownTree) -> io::Result<()> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.folder)?;
        let number = TEMPORARY.fetch_add(1, Ordering::Relaxed);
        let temporary = self.folder.join(format!("new-{}-{number}", process::id()));
        // Not synced: the checksum tells a file that a crash has left torn.
        let saved = fs::write(&temporary, self.encode(tree))
            .and_then(|()| fs::rename(&temporary, self.path()));
        if saved.is_err() {
            let _ = fs::remove_file(&temporary);
        }
        saved?;
        forget_oldest(&self.folder)
    }

    /// Magic, key, fingerprint, the NAR's size and hash, the root as an entry, and a checksum over
    /// all of it.
    fn encode(&self, tree: &KnownTree) -> Vec<u8> {
        let mut bytes = MAGIC.to_vec();
        bytes.extend_from_slice(self.key.as_bytes());
        bytes.extend_from_slice(tree.fingerprint.as_bytes());
        bytes.extend_from_slice(&tree.nar.size.to_le_bytes());
        bytes.extend_from_slice(&tree.nar.sha256);
        bytes.extend_from_slice(&tree.node.to_entry(None).encode_to_vec());
        let checksum = Digest::of(&bytes);
        bytes.extend_from_slice(checksum.as_bytes());
        bytes
    }

    fn decode(&self, bytes: &[u8]) -> Result<KnownTree, Unusable> {
        if !bytes.starts_with(MAGIC) {
            return Err(Unusable::Version);
        }
        let (checked, checksum) = bytes.split_last_chunk::<32>().ok_or(Unusable::Damaged)?;
        if Digest::of(checked).as_bytes() != checksum {
            return Err(Unusable::Damaged);
        }
        let rest = checked.strip_prefix(MAGIC).ok_or(Unusable::Damaged)?;
        let (key, rest) = rest.split_first_chunk::<32>().ok_or(Unusable::Damaged)?;
        if key != self.key.as_bytes() {
            return Err(Unusable::Other);
        }
        let (fingerprint, rest) = rest.split_first_chunk::<32>().ok_or(Unusable::Damaged)?;
        let (size, rest) = rest.split_first_chunk::<8>().ok_or(Unusable::Damaged)?;
        let (sha256, entry) = rest.split_first_chunk::<32>().ok_or(Unusable::Damaged)?;
        let entry = proto::Entry::decode(entry).map_err(|_| Unusable::Damaged)?;
        let node = Node::from_nameless_entry(entry).map_err(|_| Unusable::Damaged)?;
        let nar = NarInfo { size: u64::from_le_bytes(*size), sha256: *sha256 };
        Ok(KnownTree { fingerprint: Digest::from(*fingerprint), node, nar })
    }
}

/// Why a file is not used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Unusable {
    Version,
    Damaged,
    Other,
}

impl fmt::Display for Unusable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Version => "it is of another version",
            Self::Damaged => "it is damaged",
            Self::Other => "it is of another tree",
        })
    }
}

impl std::error::Error for Unusable {}

/// A whole file, or `None` if there is none.
fn read(path: &Path) -> io::Result<Option<Vec<u8>>> {
    let file = match fs::File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let mut bytes = Vec::new();
    file.take(FILE_MAX as u64).read_to_end(&mut bytes)?;
    Ok(Some(bytes))
}

/// Removes the files that were written longest ago, if there are too many; also those that a crash
/// has left unfinished.
fn forget_oldest(folder: &Path) -> io::Result<()> {
    let entries = fs::read_dir(folder)?.collect::<Result<Vec<_>, _>>()?;
    let excess = entries.len().saturating_sub(KNOWN_TREES_MAX);
    if excess == 0 {
        return Ok(());
    }
    let mut files: Vec<_> = entries
        .into_iter()
        .filter_map(|entry| Some((entry.metadata().ok()?.modified().ok()?, entry.path())))
        .collect();
    files.sort_unstable();
    for (_, path) in files.into_iter().take(excess) {
        match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slot(folder: &Path, key: &[u8]) -> Slot {
        Slot { folder: folder.join("known"), key: Digest::of(key) }
    }

    fn tree(number: u8) -> KnownTree {
        let node = Node::File { digest: Digest::of(&[number]), size: 1, executable: true };
        let nar = NarInfo { size: 120, sha256: [number; 32] };
        KnownTree { fingerprint: Digest::of(b"fingerprint"), node, nar }
    }

    #[test]
    fn what_was_saved_is_loaded_from_the_same_place_alone() {
        let folder = tempfile::tempdir().unwrap();
        let (first, second) = (slot(folder.path(), b"1"), slot(folder.path(), b"2"));
        assert_eq!(first.load(), None);
        first.save(&tree(1)).unwrap();
        first.save(&tree(2)).unwrap();
        assert_eq!(first.load(), Some(tree(2)));
        assert_eq!(second.load(), None);
        fs::copy(first.path(), second.path()).unwrap();
        assert_eq!(second.load(), None, "it is of another tree");
    }

    #[test]
    fn a_file_with_any_byte_changed_or_missing_is_as_good_as_none() {
        let folder = tempfile::tempdir().unwrap();
        let slot = slot(folder.path(), b"1");
        slot.save(&tree(1)).unwrap();
        let good = fs::read(slot.path()).unwrap();
        for index in 0..good.len() {
            let mut bad = good.clone();
            bad[index] ^= 1;
            fs::write(slot.path(), &bad).unwrap();
            assert_eq!(slot.load(), None, "byte {index}");
            fs::write(slot.path(), &good[..index]).unwrap();
            assert_eq!(slot.load(), None, "cut off at {index}");
        }
        fs::write(slot.path(), vec![0; 4 * FILE_MAX]).unwrap();
        assert_eq!(slot.load(), None);
        slot.save(&tree(1)).unwrap();
        assert_eq!(slot.load(), Some(tree(1)));
    }

    #[test]
    fn no_more_than_so_many_trees_are_remembered() {
        let folder = tempfile::tempdir().unwrap();
        for number in 0..KNOWN_TREES_MAX + 10 {
            slot(folder.path(), &number.to_le_bytes()).save(&tree(1)).unwrap();
        }
        let files = fs::read_dir(folder.path().join("known")).unwrap().count();
        assert_eq!(files, KNOWN_TREES_MAX);
    }
}
