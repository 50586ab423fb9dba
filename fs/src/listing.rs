//! Listings, and the offsets by which one is taken up again. A directory's entries are numbered;
//! the root's names may come and go, and so each has an offset of its own, made from the name.

use std::{collections::HashMap, io, sync::Arc, time::Duration};

use bytes::Bytes;
use cairn_castore::{Digest, Name, Node};
use fuse_backend_rs::api::filesystem::{DirEntry, Entry};
use futures::{StreamExt as _, stream};
use quick_cache::sync::Cache;
use rustix::io::Errno;

use crate::{
    attributes,
    directories::Loaded,
    errno::FsError,
    file_system::{CairnFs, FOREVER, directory_inode},
    inodes::{Inode, NodeId, Place, ROOT, Seen},
};

/// The offset behind `.`.
const BEHIND_DOT: u64 = 1;

/// The offset behind `..`, where the entries start.
const BEHIND_DOTS: u64 = 2;

/// How many names are asked for at a time in search of an offset.
const ROOT_PAGE: usize = 4096;

/// How many names that a listing of the root may be taken up at are kept. Others are found by
/// listing from the start.
const CURSORS_MAX: usize = 16_384;

/// How many directories that stand in one listing are fetched at the same time.
const FETCH_MAX: usize = 16;

/// The least that an entry takes in a reply, in bytes: its header, and a name with its padding.
const NAME_BYTES: u32 = 24 + 8;

/// What an entry takes in addition if its attributes are in the reply, in bytes.
const ENTRY_BYTES: u32 = 128;

/// Where entries go: a reply that has room for so many.
pub(crate) enum Reply<'a> {
    /// Names only, of which the kernel does not come to know the inodes.
    Names(&'a mut dyn FnMut(DirEntry<'_>) -> io::Result<usize>),
    /// Names and inodes, each of which counts as a lookup.
    Entries(&'a mut dyn FnMut(DirEntry<'_>, Entry) -> io::Result<usize>),
}

impl Reply<'_> {
    /// At most how many entries a reply of so many bytes holds.
    fn room(&self, size: u32) -> usize {
        let each = match self {
            Self::Names(_) => NAME_BYTES,
            Self::Entries(_) => NAME_BYTES + ENTRY_BYTES,
        };
        usize::try_from(size / each).unwrap_or(usize::MAX).max(1)
    }
}

/// An entry on its way into a reply.
struct Listed<'a> {
    name: &'a [u8],
    /// Where the listing goes on behind it.
    offset: u64,
    ino: u64,
    /// The kind of file, as in `d_type`.
    kind: u32,
    /// `None` if the kernel is to ask when it wants to know more.
    inode: Option<Inode>,
    /// Its place among the entries of a directory. The root's have none.
    seen: Option<Seen>,
    timeout: Duration,
}

/// Names of the root by their offsets.
#[derive(Debug)]
pub(crate) struct Cursors {
    names: Cache<u64, Name>,
}

impl Cursors {
    pub(crate) fn new() -> Self {
        Self { names: Cache::new(CURSORS_MAX) }
    }

    /// Lets go of all of them. Whoever goes on with a listing finds its place from the start.
    pub(crate) fn clear(&self) {
        self.names.clear();
    }

    /// Keeps a copy, since the name may share the memory of a whole page of them.
    fn keep(&self, offset: u64, name: &Name) {
        let copy = Name::try_from(Bytes::copy_from_slice(name.as_ref()));
        self.names.insert(offset, copy.expect("a copy of a valid name"));
    }
}

/// The offset behind a name in the root: the same in every listing, so that one that goes on
/// where another was cached neither loses nor repeats a name.
fn offset_of(name: &Name) -> u64 {
    let digest = Digest::of(name.as_ref());
    let (first, _) = digest.as_bytes().split_first_chunk().expect("a digest has 32 bytes");
    // Positive as a signed number, and never that of a dot entry.
    u64::from_le_bytes(*first) >> 1 | 1 << 62
}

impl CairnFs {
    /// Fills a reply of `size` bytes with the entries of a directory from an offset.
    pub(crate) fn list(
        &self,
        id: NodeId,
        offset: u64,
        size: u32,
        reply: &mut Reply<'_>,
    ) -> io::Result<()> {
        let inode = self.inode(id)?;
        let place = match &inode {
            Inode::Root if !self.options.list_root => return Err(Errno::PERM.into()),
            Inode::Root => None,
            Inode::Directory(place) => Some(place),
            Inode::File { .. } | Inode::Symlink { .. } => return Err(Errno::NOTDIR.into()),
        };
        // The kernel holds on to the directories above one that it holds.
        let parent = place.and_then(|place| self.inodes.get(place.seen.parent));
        let parent_ino = parent.map_or(ROOT, |parent| attributes::ino(&parent));
        let dots =
            [(&b"."[..], BEHIND_DOT, attributes::ino(&inode)), (b"..", BEHIND_DOTS, parent_ino)];
        for (name, behind, ino) in dots {
            let kind = u32::from(libc::DT_DIR);
            let dot = Listed {
                name,
                offset: behind,
                ino,
                kind,
                inode: None,
                seen: None,
                timeout: FOREVER,
            };
            if offset < behind && !self.add(reply, dot)? {
                return Ok(());
            }
        }
        match place {
            None => self.list_root(offset, size, reply),
            Some(place) => self.list_directory(id, place, offset, size, reply),
        }
    }

    fn list_directory(
        &self,
        id: NodeId,
        place: &Place,
        offset: u64,
        size: u32,
        reply: &mut Reply<'_>,
    ) -> io::Result<()> {
        let loaded = self.directory(&place.digest).map_err(|error| self.fail(error))?;
        let skipped = usize::try_from(offset.saturating_sub(BEHIND_DOTS)).unwrap_or(usize::MAX);
        let entries = loaded.directory.entries().get(skipped..).unwrap_or(&[]);
        let page = entries.get(..reply.room(size)).unwrap_or(entries);
        let children = match reply {
            Reply::Names(_) => HashMap::new(),
            Reply::Entries(_) => self.fetch_children(page),
        };
        for (index, (name, node)) in page.iter().enumerate() {
            let child = match node {
                Node::Directory { digest, .. } => children.get(digest).cloned(),
                Node::File { .. } | Node::Symlink { .. } => None,
            };
            let behind = BEHIND_DOTS + (skipped + index) as u64 + 1;
            let seen = Seen::new(id, skipped + index);
            let listed = self.listed((seen, place.ino), name, node, child, behind, FOREVER);
            let listed = Listed { seen: Some(seen), ..listed };
            if !self.add(reply, listed)? {
                break;
            }
        }
        Ok(())
    }

    /// The directories among these entries, fetched together: whoever lists names with attributes
    /// will want them, and one after the other would cost a round trip each. What can't be had is
    /// left out, and reported when it is asked for by its name.
    fn fetch_children(&self, entries: &[(Name, Node)]) -> HashMap<Digest, Arc<Loaded>> {
        let mut children = HashMap::new();
        let mut slow = Vec::new();
        for (_, node) in entries {
            let Node::Directory { digest, .. } = node else { continue };
            match self.directories.local(digest) {
                Some(loaded) => children.extend(loaded.ok().map(|loaded| (*digest, loaded))),
                None => slow.push(*digest),
            }
        }
        if slow.is_empty() {
            return children;
        }
        let fetched = self.waiter.wait(async {
            let fetches = slow.iter().map(|digest| async move {
                self.directories.fetch(digest).await.ok().map(|loaded| (*digest, loaded))
            });
            let fetched: Vec<_> = stream::iter(fetches)
                .buffer_unordered(FETCH_MAX)
                .filter_map(std::future::ready)
                .collect()
                .await;
            Ok::<_, FsError>(fetched)
        });
        children.extend(fetched.unwrap_or_default());
        children
    }

    fn list_root(&self, offset: u64, size: u32, reply: &mut Reply<'_>) -> io::Result<()> {
        let mut after = None;
        if offset > BEHIND_DOTS {
            after = self.name_before(offset).map_err(|error| self.fail(error))?;
            if after.is_none() {
                // The name is gone, and with it the place to go on from.
                return Ok(());
            }
        }
        let limit = reply.room(size);
        loop {
            let page = self.root_page(after.as_ref(), limit).map_err(|error| self.fail(error))?;
            let last = page.len() < limit;
            for (name, node) in page {
                // No waiting for directories here: a listing of many roots would fetch as many.
                let child = match (&*reply, &node) {
                    (Reply::Entries(_), Node::Directory { digest, .. }) => {
                        self.directories.local(digest).and_then(Result::ok)
                    }
                    _ => None,
                };
                let behind = offset_of(&name);
                let timeout = self.options.root_timeout;
                let at = (Seen::IN_ROOT, ROOT);
                let listed = self.listed(at, &name, &node, child, behind, timeout);
                if !self.add(reply, listed)? {
                    return Ok(());
                }
                self.cursors.keep(behind, &name);
                after = Some(name);
            }
            if last {
                return Ok(());
            }
        }
    }

    fn root_page(&self, after: Option<&Name>, limit: usize) -> Result<Vec<(Name, Node)>, FsError> {
        self.waiter.wait(self.services.roots.list(after, limit))
    }

    /// The name in the root with this offset behind it.
    fn name_before(&self, offset: u64) -> Result<Option<Name>, FsError> {
        if let Some(name) = self.cursors.names.get(&offset) {
            return Ok(Some(name));
        }
        let mut after = None;
        loop {
            let page = self.root_page(after.as_ref(), ROOT_PAGE)?;
            if let Some((name, _)) = page.iter().find(|(name, _)| offset_of(name) == offset) {
                return Ok(Some(name.clone()));
            }
            if page.len() < ROOT_PAGE {
                return Ok(None);
            }
            after = page.into_iter().next_back().map(|(name, _)| name);
        }
    }

    /// An entry of a directory with the inode number `parent_ino`; `child` is its content if it is a
    /// directory.
    fn listed<'a>(
        &self,
        (seen, parent_ino): (Seen, u64),
        name: &'a Name,
        node: &Node,
        child: Option<Arc<Loaded>>,
        offset: u64,
        timeout: Duration,
    ) -> Listed<'a> {
        let kind = match node {
            Node::Directory { .. } => libc::DT_DIR,
            Node::File { .. } => libc::DT_REG,
            Node::Symlink { .. } => libc::DT_LNK,
        };
        let inode = match (node, child) {
            (Node::Directory { digest, .. }, Some(child)) => {
                Some(directory_inode(seen, parent_ino, name, digest, &child))
            }
            _ => Inode::of_content(node, self.content_place(parent_ino, name)),
        };
        let place_ino = || attributes::place_ino(parent_ino, name.as_ref());
        let ino = inode.as_ref().map_or_else(place_ino, attributes::ino);
        Listed {
            name: name.as_ref(),
            offset,
            ino,
            kind: u32::from(kind),
            inode,
            seen: None,
            timeout,
        }
    }

    /// Whether the reply had room for it.
    fn add(&self, reply: &mut Reply<'_>, listed: Listed<'_>) -> io::Result<bool> {
        let entry = DirEntry {
            ino: listed.ino,
            offset: listed.offset,
            type_: listed.kind,
            name: listed.name,
        };
        match reply {
            Reply::Names(add) => Ok(add(entry)? > 0),
            Reply::Entries(add) => {
                let known = match listed
                    .inode
                    .map(|inode| self.entry(inode, listed.seen, listed.timeout))
                {
                    Some(Ok(known)) => known,
                    // Entry number 0 makes the kernel ask by name, and fail there.
                    Some(Err(_)) | None => Entry::default(),
                };
                let added = add(entry, known)? > 0;
                if !added && known.inode != 0 {
                    self.forget_one(known.inode);
                }
                Ok(added)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offsets_of_names_are_positive_and_none_of_the_dots() {
        for name in ["a", "b", "longer-name"] {
            let offset = offset_of(&Name::try_from(name).unwrap());
            assert!(i64::try_from(offset).is_ok_and(|offset| offset > BEHIND_DOTS as i64));
        }
    }

    #[test]
    fn a_reply_has_room_for_one_entry_at_least() {
        let reply = &mut |_: DirEntry<'_>| Ok(0);
        assert_eq!(Reply::Names(reply).room(0), 1);
        assert_eq!(Reply::Names(reply).room(4096), 128);
    }
}
