//! Which inode has which number, for as long as the kernel holds it. What an inode looks like to a
//! program is in `attributes`; what a directory contains is not kept here.

use std::{collections::HashMap, num::NonZeroU64, sync::Arc};

use cairn_castore::{Digest, Name, Node, SymlinkTarget};
use parking_lot::Mutex;

use crate::attributes;

/// The number by which the kernel knows an inode. Never used again for another.
pub(crate) type NodeId = u64;

/// The number of the root.
pub(crate) const ROOT: NodeId = fuse_backend_rs::api::filesystem::ROOT_ID;

/// Tables with room for fewer inodes than this are never shrunk.
const SHRINK_MIN: usize = 1024;

/// A thing that the kernel holds.
///
/// Files and symlinks are what they contain, so that equal ones share the kernel's page cache. A
/// directory is a place: the kernel allows it one only, and would move an equal directory that
/// shared its inode.
#[derive(Debug, PartialEq, Eq, Hash)]
pub(crate) enum Inode {
    /// The mount's root, which holds names and has no content of its own.
    Root,
    /// A directory at its place.
    Directory(Box<Place>),
    /// A regular file.
    File { digest: Digest, size: u64, executable: bool, place: ContentPlace },
    /// A symlink.
    Symlink { target: SymlinkTarget, place: ContentPlace },
}

/// What makes files or symlinks with equal contents inodes of their own, if they are not to share
/// one: the inode number of the place.
pub(crate) type ContentPlace = Option<NonZeroU64>;

/// A directory at its place in the tree.
#[derive(Debug, PartialEq, Eq, Hash)]
pub(crate) struct Place {
    /// The directory that it is in.
    pub(crate) parent: NodeId,
    /// The name that it has there.
    pub(crate) name: Box<[u8]>,
    /// Its content. Part of the place since a name in the root may come to mean another tree.
    pub(crate) digest: Digest,
    /// The inode number that programs see.
    pub(crate) ino: u64,
    /// That of the directory it is in.
    pub(crate) parent_ino: u64,
    /// The number of its entries.
    pub(crate) entries: u64,
    /// The number of directories among them.
    pub(crate) subdirectories: u64,
}

/// Where the kernel came to know an inode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Seen {
    /// The directory.
    pub(crate) parent: NodeId,
    /// The number of the entry among the directory's.
    pub(crate) index: usize,
}

impl Inode {
    /// A file or symlink as an inode of its own memory: a node read from a directory may share
    /// that of the whole directory. `None` for a directory, which needs a place.
    pub(crate) fn of_content(node: &Node, place: ContentPlace) -> Option<Self> {
        match node {
            Node::Directory { .. } => None,
            Node::File { digest, size, executable } => {
                Some(Self::File { digest: *digest, size: *size, executable: *executable, place })
            }
            Node::Symlink { target } => {
                let bytes = bytes::Bytes::copy_from_slice(target.as_ref());
                let target = SymlinkTarget::try_from(bytes).expect("a copy of a valid target");
                Some(Self::Symlink { target, place })
            }
        }
    }

    /// A directory that is called `name` in the directory `parent`.
    pub(crate) fn directory(
        parent: (NodeId, u64),
        name: &Name,
        digest: Digest,
        entries: u64,
        subdirectories: u64,
    ) -> Self {
        let (parent, parent_ino) = parent;
        Self::Directory(Box::new(Place {
            parent,
            name: name.as_ref().into(),
            digest,
            ino: attributes::place_ino(parent_ino, name.as_ref()),
            parent_ino,
            entries,
            subdirectories,
        }))
    }
}

/// The inodes that the kernel holds, each with the number of times that it was told of it.
#[derive(Debug)]
pub(crate) struct Inodes {
    root: Arc<Inode>,
    table: Mutex<Table>,
}

#[derive(Debug)]
struct Table {
    by_id: HashMap<NodeId, Held>,
    by_inode: HashMap<Arc<Inode>, NodeId>,
    next: NodeId,
}

#[derive(Debug)]
struct Held {
    inode: Arc<Inode>,
    /// Where it was seen last: a directory, and the number of an entry there. 0 and 0 if that is of
    /// no interest.
    parent: NodeId,
    index: u32,
    /// If ever there are as many as fit, the inode stays.
    lookups: u32,
}

impl Inodes {
    pub(crate) fn new() -> Self {
        let table = Table { by_id: HashMap::new(), by_inode: HashMap::new(), next: ROOT + 1 };
        Self { root: Arc::new(Inode::Root), table: Mutex::new(table) }
    }

    /// The inode of a number. `None` if the kernel has forgotten it.
    pub(crate) fn get(&self, id: NodeId) -> Option<Arc<Inode>> {
        if id == ROOT {
            return Some(self.root.clone());
        }
        self.table.lock().by_id.get(&id).map(|held| held.inode.clone())
    }

    /// Where the kernel came to know an inode last.
    pub(crate) fn seen(&self, id: NodeId) -> Option<Seen> {
        let table = self.table.lock();
        let held = table.by_id.get(&id).filter(|held| held.parent != 0)?;
        Some(Seen { parent: held.parent, index: held.index as usize })
    }

    /// The number of an inode, if the kernel holds it.
    pub(crate) fn id_of(&self, inode: &Inode) -> Option<NodeId> {
        self.table.lock().by_inode.get(inode).copied()
    }

    /// The number of an inode, of which the kernel is told once more.
    pub(crate) fn remember(&self, inode: Inode, seen: Option<Seen>) -> NodeId {
        let (parent, index) = match seen {
            Some(seen) => (seen.parent, u32::try_from(seen.index).unwrap_or(u32::MAX)),
            None => (0, 0),
        };
        let table = &mut *self.table.lock();
        if let Some(&id) = table.by_inode.get(&inode) {
            let held = table.by_id.get_mut(&id).expect("both maps hold the same inodes");
            held.lookups = held.lookups.saturating_add(1);
            (held.parent, held.index) = (parent, index);
            return id;
        }
        let id = table.next;
        table.next += 1;
        let inode = Arc::new(inode);
        table.by_inode.insert(inode.clone(), id);
        table.by_id.insert(id, Held { inode, parent, index, lookups: 1 });
        id
    }

    /// The kernel forgets some of the times that it was told of inodes.
    pub(crate) fn forget(&self, forgotten: impl IntoIterator<Item = (NodeId, u64)>) {
        let table = &mut *self.table.lock();
        for (id, count) in forgotten {
            table.forget(id, count);
        }
        if table.by_id.len() < table.by_id.capacity() / 4 {
            let room = (table.by_id.len() * 2).max(SHRINK_MIN);
            table.by_id.shrink_to(room);
            table.by_inode.shrink_to(room);
        }
    }

    /// How many inodes the kernel holds, the root included.
    pub(crate) fn len(&self) -> usize {
        self.table.lock().by_id.len() + 1
    }
}

impl Table {
    fn forget(&mut self, id: NodeId, count: u64) {
        let Some(held) = self.by_id.get_mut(&id) else { return };
        if held.lookups == u32::MAX {
            return;
        }
        held.lookups = held.lookups.saturating_sub(u32::try_from(count).unwrap_or(u32::MAX));
        if held.lookups == 0 {
            self.by_inode.remove(&held.inode);
            self.by_id.remove(&id);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn file(text: &str, executable: bool) -> Inode {
        let (digest, size) = (Digest::of(text.as_bytes()), text.len() as u64);
        Inode::File { digest, size, executable, place: None }
    }

    fn directory(parent: NodeId, name: &str) -> Inode {
        let name = Name::try_from(name).unwrap();
        Inode::directory((parent, parent), &name, Digest::EMPTY, 0, 0)
    }

    #[test]
    fn files_are_their_content_and_mode() {
        let inodes = Inodes::new();
        let plain = inodes.remember(file("a", false), None);
        assert_eq!(inodes.remember(file("a", false), None), plain);
        assert_ne!(inodes.remember(file("a", true), None), plain);
        assert_ne!(inodes.remember(file("b", false), None), plain);
        assert_eq!(inodes.len(), 4);
    }

    #[test]
    fn directories_are_places() {
        let inodes = Inodes::new();
        let place = inodes.remember(directory(7, "x"), None);
        assert_eq!(inodes.remember(directory(7, "x"), None), place);
        assert_ne!(inodes.remember(directory(8, "x"), None), place);
        assert_ne!(inodes.remember(directory(7, "y"), None), place);
    }

    #[test]
    fn an_inode_stays_until_all_is_forgotten_and_its_number_never_returns() {
        let inodes = Inodes::new();
        let first = inodes.remember(file("a", false), None);
        inodes.remember(file("a", false), None);
        inodes.forget([(first, 1)]);
        assert!(inodes.get(first).is_some());
        inodes.forget([(first, 1)]);
        assert!(inodes.get(first).is_none());
        assert_eq!(inodes.len(), 1);
        assert_ne!(inodes.remember(file("a", false), None), first);
    }

    #[test]
    fn forgetting_too_much_or_the_unknown_does_no_harm() {
        let inodes = Inodes::new();
        let id = inodes.remember(file("a", false), None);
        inodes.forget([(ROOT, 5), (id, u64::MAX), (id, 1), (999, 1)]);
        assert_eq!(inodes.len(), 1);
        assert!(inodes.get(ROOT).is_some());
    }

    proptest! {
        #[test]
        fn what_is_held_is_what_was_told_and_not_forgotten(
            steps in proptest::collection::vec((0..6u8, 0..4u64), 0..200),
        ) {
            let inodes = Inodes::new();
            // For each content its number and how often it was told; numbers of the past.
            let mut told: HashMap<u8, (NodeId, u64)> = HashMap::new();
            let mut past = Vec::new();
            for (content, count) in steps {
                if count == 0 {
                    let id = inodes.remember(file(&content.to_string(), false), None);
                    prop_assert!(!past.contains(&id));
                    let entry = told.entry(content).or_insert((id, 0));
                    prop_assert_eq!(entry.0, id);
                    entry.1 += 1;
                } else if let Some(entry) = told.get_mut(&content) {
                    inodes.forget([(entry.0, count)]);
                    entry.1 = entry.1.saturating_sub(count);
                    if entry.1 == 0 {
                        past.push(entry.0);
                        told.remove(&content);
                    }
                }
                prop_assert_eq!(inodes.len(), told.len() + 1);
                for (id, _) in told.values() {
                    prop_assert!(inodes.get(*id).is_some());
                }
                prop_assert!(past.iter().all(|id| inodes.get(*id).is_none()));
            }
        }
    }

    #[test]
    fn memory_goes_back_when_the_kernel_forgets() {
        let inodes = Inodes::new();
        let ids: Vec<_> =
            (0..50_000).map(|i| (inodes.remember(file(&i.to_string(), false), None), 1)).collect();
        inodes.forget(ids);
        let table = inodes.table.lock();
        assert!(table.by_id.capacity() <= 2 * SHRINK_MIN);
        assert!(table.by_inode.capacity() <= 2 * SHRINK_MIN);
    }
}
