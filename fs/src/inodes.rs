//! Which inode has which number, for as long as the kernel holds it. What an inode looks like to a
//! program is in `attributes`; what a directory contains is not kept here.

mod slots;

use std::{
    hash::{BuildHasher as _, Hash, RandomState},
    num::NonZeroU64,
};

use cairn_castore::{Digest, Name, Node, SymlinkTarget};
use hashbrown::HashTable;
use parking_lot::Mutex;

use self::slots::Slots;
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
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Inode {
    /// The mount's root, which holds names and has no content of its own.
    Root,
    /// A directory at its place.
    Directory(Place),
    /// A regular file.
    File { digest: Digest, size: u64, executable: bool, place: ContentPlace },
    /// A symlink.
    Symlink { target: SymlinkTarget, place: ContentPlace },
}

/// What makes files or symlinks with equal contents inodes of their own, if they are not to share
/// one: the inode number of the place.
pub(crate) type ContentPlace = Option<NonZeroU64>;

/// A directory at its place in the tree. The place is `seen`, and in the root, whose names have no
/// numbers, `ino`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Place {
    /// Where it is in the directory that it is in.
    pub(crate) seen: Seen,
    /// Its content. Part of the place since a name in the root may come to mean another tree.
    pub(crate) digest: Digest,
    /// The inode number that programs see.
    pub(crate) ino: u64,
    /// The number of its entries.
    pub(crate) entries: u32,
    /// The number of directories among them.
    pub(crate) subdirectories: u32,
}

/// Where the kernel came to know an inode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Seen {
    /// The directory.
    pub(crate) parent: NodeId,
    /// The number of the entry among the directory's; 0 in the root.
    pub(crate) index: u32,
}

impl Seen {
    /// A name in the root.
    pub(crate) const IN_ROOT: Self = Self { parent: ROOT, index: 0 };

    /// The entry of this number in a directory.
    pub(crate) fn new(parent: NodeId, index: usize) -> Self {
        // What is read into memory has fewer entries; if not, the last ones are seen in one place.
        Self { parent, index: u32::try_from(index).unwrap_or(u32::MAX) }
    }
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

    /// A directory that is called `name` in one with the inode number `parent_ino`.
    pub(crate) fn directory(
        seen: Seen,
        parent_ino: u64,
        name: &Name,
        digest: Digest,
        (entries, subdirectories): (u32, u32),
    ) -> Self {
        let ino = attributes::place_ino(parent_ino, name.as_ref());
        Self::Directory(Place { seen, digest, ino, entries, subdirectories })
    }
}

/// The inodes that the kernel holds, each with the number of times that it was told of it.
#[derive(Debug)]
pub(crate) struct Inodes {
    table: Mutex<Table>,
}

#[derive(Debug)]
struct Table {
    held: Slots<Held>,
    /// The slots of inodes, found by what the inodes are.
    slots: HashTable<u32>,
    hasher: RandomState,
    /// How many there can be at most.
    limit: usize,
}

/// An inode in as few bytes as it takes, since there may be millions.
#[derive(Debug)]
struct Held {
    kind: Kind,
    /// Where a directory is, and where a file or symlink was seen last: 0 if that is of no interest.
    parent: NodeId,
    index: u32,
    /// If ever there are as many as fit, the inode stays.
    lookups: u32,
}

/// An [`Inode`] that is not the root, without the place of a directory.
#[derive(Debug, PartialEq, Eq, Hash)]
enum Kind {
    Directory { digest: Digest, ino: u64, entries: u32, subdirectories: u32 },
    File { digest: Digest, size: u64, executable: bool, place: ContentPlace },
    Symlink { target: SymlinkTarget, place: ContentPlace },
}

impl Held {
    /// An inode that the kernel is told of for the first time. `None` for the root, which it always
    /// holds.
    fn new(inode: Inode, seen: Option<Seen>) -> Option<Self> {
        let (kind, seen) = match inode {
            Inode::Root => return None,
            Inode::Directory(Place { seen, digest, ino, entries, subdirectories }) => {
                (Kind::Directory { digest, ino, entries, subdirectories }, Some(seen))
            }
            Inode::File { digest, size, executable, place } => {
                (Kind::File { digest, size, executable, place }, seen)
            }
            Inode::Symlink { target, place } => (Kind::Symlink { target, place }, seen),
        };
        let Seen { parent, index } = seen.unwrap_or(Seen { parent: 0, index: 0 });
        Some(Self { kind, parent, index, lookups: 1 })
    }

    fn inode(&self) -> Inode {
        match &self.kind {
            &Kind::Directory { digest, ino, entries, subdirectories } => {
                let seen = Seen { parent: self.parent, index: self.index };
                Inode::Directory(Place { seen, digest, ino, entries, subdirectories })
            }
            &Kind::File { digest, size, executable, place } => {
                Inode::File { digest, size, executable, place }
            }
            Kind::Symlink { target, place } => {
                Inode::Symlink { target: target.clone(), place: *place }
            }
        }
    }

    /// What it is told from others by, besides its kind.
    fn place(&self) -> Option<(NodeId, u32)> {
        matches!(self.kind, Kind::Directory { .. }).then_some((self.parent, self.index))
    }

    fn is_same(&self, other: &Self) -> bool {
        self.kind == other.kind && self.place() == other.place()
    }
}

impl Hash for Held {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        (&self.kind, self.place()).hash(state);
    }
}

impl Inodes {
    pub(crate) fn new() -> Self {
        let (held, slots) = (Slots::new(), HashTable::new());
        let table = Table { held, slots, hasher: RandomState::new(), limit: usize::MAX };
        Self { table: Mutex::new(table) }
    }

    /// Holds no more than so many from now on: for a kernel that is not trusted to hold only what
    /// it has memory for.
    pub(crate) fn limit(&self, limit: usize) {
        self.table.lock().limit = limit;
    }

    /// The kernel holds nothing any more. Numbers are not used again all the same.
    pub(crate) fn clear(&self) {
        let table = &mut *self.table.lock();
        table.held.clear();
        table.slots.clear();
        table.shrink();
    }

    /// The inode of a number. `None` if the kernel has forgotten it.
    pub(crate) fn get(&self, id: NodeId) -> Option<Inode> {
        if id == ROOT {
            return Some(Inode::Root);
        }
        self.table.lock().held.get(id).map(Held::inode)
    }

    /// Where the kernel came to know an inode last.
    pub(crate) fn seen(&self, id: NodeId) -> Option<Seen> {
        let table = self.table.lock();
        let held = table.held.get(id).filter(|held| held.parent != 0)?;
        Some(Seen { parent: held.parent, index: held.index })
    }

    /// The number of an inode, if the kernel holds it.
    pub(crate) fn id_of(&self, inode: &Inode) -> Option<NodeId> {
        let held = Held::new(inode.clone(), None)?;
        self.table.lock().find(&held)
    }

    /// The number of an inode, of which the kernel is told once more. `None` if it is a new one,
    /// and there are as many as may be.
    pub(crate) fn remember(&self, inode: Inode, seen: Option<Seen>) -> Option<NodeId> {
        let Some(new) = Held::new(inode, seen) else { return Some(ROOT) };
        let table = &mut *self.table.lock();
        if let Some(id) = table.find(&new) {
            let held = table.held.get_mut(id).expect("what is found is held");
            held.lookups = held.lookups.saturating_add(1);
            (held.parent, held.index) = (new.parent, new.index);
            return Some(id);
        }
        if table.held.len() >= table.limit {
            return None;
        }
        let hash = table.hasher.hash_one(&new);
        let id = table.held.insert(new);
        let hash_of = |slot: &u32| table.hasher.hash_one(table.held.in_slot(*slot).1);
        table.slots.insert_unique(hash, id as u32, hash_of);
        Some(id)
    }

    /// The kernel forgets some of the times that it was told of inodes.
    pub(crate) fn forget(&self, forgotten: impl IntoIterator<Item = (NodeId, u64)>) {
        let table = &mut *self.table.lock();
        for (id, count) in forgotten {
            table.forget(id, count);
        }
        table.shrink();
    }

    /// How many inodes the kernel holds, the root included.
    pub(crate) fn len(&self) -> usize {
        self.table.lock().held.len() + 1
    }
}

impl Table {
    fn find(&self, wanted: &Held) -> Option<NodeId> {
        let hash = self.hasher.hash_one(wanted);
        let is_wanted = |slot: &u32| self.held.in_slot(*slot).1.is_same(wanted);
        self.slots.find(hash, is_wanted).map(|slot| self.held.in_slot(*slot).0)
    }

    fn forget(&mut self, id: NodeId, count: u64) {
        let Some(held) = self.held.get_mut(id) else { return };
        if held.lookups == u32::MAX {
            return;
        }
        held.lookups = held.lookups.saturating_sub(u32::try_from(count).unwrap_or(u32::MAX));
        if held.lookups == 0 {
            let hash = self.hasher.hash_one(&*held);
            if let Ok(slot) = self.slots.find_entry(hash, |slot| *slot == id as u32) {
                slot.remove();
            }
            self.held.remove(id);
        }
    }

    /// Gives back most of the room that is not used.
    fn shrink(&mut self) {
        self.held.shrink();
        if self.slots.len() < self.slots.capacity() / 4 {
            let room = (self.slots.len() * 2).max(SHRINK_MIN);
            let hash_of = |slot: &u32| self.hasher.hash_one(self.held.in_slot(*slot).1);
            self.slots.shrink_to(room, hash_of);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    fn file(text: &str, executable: bool) -> Inode {
        let (digest, size) = (Digest::of(text.as_bytes()), text.len() as u64);
        Inode::File { digest, size, executable, place: None }
    }

    fn directory(parent: NodeId, index: usize, name: &str) -> Inode {
        let name = Name::try_from(name).unwrap();
        Inode::directory(Seen::new(parent, index), parent, &name, Digest::EMPTY, (0, 0))
    }

    fn remember(inodes: &Inodes, inode: Inode) -> NodeId {
        inodes.remember(inode, None).unwrap()
    }

    #[test]
    fn files_are_their_content_and_mode() {
        let inodes = Inodes::new();
        let plain = remember(&inodes, file("a", false));
        assert_eq!(remember(&inodes, file("a", false)), plain);
        assert_ne!(remember(&inodes, file("a", true)), plain);
        assert_ne!(remember(&inodes, file("b", false)), plain);
        assert_eq!(inodes.len(), 4);
    }

    #[test]
    fn directories_are_places() {
        let inodes = Inodes::new();
        let place = remember(&inodes, directory(7, 1, "x"));
        assert_eq!(remember(&inodes, directory(7, 1, "x")), place);
        assert_ne!(remember(&inodes, directory(8, 1, "x")), place);
        assert_ne!(remember(&inodes, directory(7, 2, "y")), place);
        // As in the root, whose entries have no numbers.
        assert_ne!(remember(&inodes, directory(7, 1, "y")), place);
        assert_eq!(inodes.get(place), Some(directory(7, 1, "x")));
    }

    #[test]
    fn an_inode_stays_until_all_is_forgotten_and_its_number_never_returns() {
        let inodes = Inodes::new();
        let first = remember(&inodes, file("a", false));
        remember(&inodes, file("a", false));
        inodes.forget([(first, 1)]);
        assert!(inodes.get(first).is_some());
        inodes.forget([(first, 1)]);
        assert!(inodes.get(first).is_none());
        assert_eq!(inodes.len(), 1);
        assert_ne!(remember(&inodes, file("a", false)), first);
    }

    #[test]
    fn forgetting_too_much_or_the_unknown_does_no_harm() {
        let inodes = Inodes::new();
        let id = remember(&inodes, file("a", false));
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
                    let id = remember(&inodes, file(&content.to_string(), false));
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
            (0..50_000).map(|i| (remember(&inodes, file(&i.to_string(), false)), 1)).collect();
        inodes.forget(ids);
        let table = inodes.table.lock();
        assert_eq!(table.held.chunk_count(), 0);
        assert!(table.slots.capacity() <= 2 * SHRINK_MIN);
    }

    #[test]
    fn an_inode_takes_few_bytes() {
        assert_eq!(size_of::<Held>(), 72);
        assert_eq!(slots::Slots::<Held>::SLOT_BYTES, 80);
    }
}
