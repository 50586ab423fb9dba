//! Trees for tests, in memory and far away: what is asked for is counted.

use std::sync::Arc;

use crate::{
    Digest, Directory, DirectoryService, Name, Node,
    cache::test_far::{Control, FarDirectories},
    directory::SizeRule,
    directory_service::memory::MemoryDirectoryService,
};

/// Directories that are made one after the other, leaves first.
#[derive(Debug, Default)]
pub(crate) struct Tree {
    directories: MemoryDirectoryService,
    pub(crate) control: Arc<Control>,
}

impl Tree {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    /// Stores a directory.
    pub(crate) async fn directory<'a>(
        &mut self,
        entries: impl IntoIterator<Item = (&'a str, Node)>,
    ) -> Node {
        let directory = directory(entries);
        let node = node(&directory);
        let stream = futures::stream::iter([Ok(directory)]);
        self.directories.put_closure(Box::pin(stream)).await.unwrap();
        node
    }

    /// All that were made, as a service that is far.
    pub(crate) fn service(&self) -> Arc<dyn DirectoryService> {
        let (directories, control) = (self.directories.clone(), self.control.clone());
        Arc::new(FarDirectories { directories, control })
    }

    /// The digest of a directory.
    pub(crate) fn digest(node: &Node) -> Digest {
        let Node::Directory { digest, .. } = node else { panic!("{node:?} is no directory") };
        *digest
    }
}

/// A file of this text.
pub(crate) fn file(text: &str) -> Node {
    Node::File { digest: Digest::of(text.as_bytes()), size: text.len() as u64, executable: false }
}

/// A directory, not stored yet.
pub(crate) fn directory<N: AsRef<str>>(entries: impl IntoIterator<Item = (N, Node)>) -> Directory {
    let named = |(name, node): (N, Node)| (Name::try_from(name.as_ref()).unwrap(), node);
    Directory::new(entries.into_iter().map(named).collect()).unwrap()
}

/// A directory as an entry.
pub(crate) fn node(directory: &Directory) -> Node {
    Node::Directory { digest: directory.digest(), size: directory.size(SizeRule::Doubled) }
}
