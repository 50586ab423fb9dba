//! A tree from its root down, entry by entry: each directory's entries right behind it, in the order
//! of their names. What is made of the entries is the affair of who walks.

use std::{ffi::OsString, os::unix::ffi::OsStringExt as _, path::PathBuf, sync::Arc};

use crate::{
    BoxError, Digest, Directory, DirectoryError, DirectoryService, Name, Node,
    tree_directories::TreeDirectories,
};

/// The directories in each other that a walk goes down to, at most. So many are in memory at a time.
pub const WALK_DEPTH_MAX: usize = 65_536;

/// Why a walk can't go on.
#[derive(Debug, thiserror::Error)]
pub enum WalkError {
    /// A directory could not be had.
    #[error(transparent)]
    Directory(#[from] DirectoryError),
    /// Directories in directories, too many.
    #[error("it is more than {WALK_DEPTH_MAX} directories deep")]
    TooDeep,
    /// How much room contents take could not be asked.
    #[error("the store does not tell how much room contents take")]
    Sizes(#[source] BoxError),
}

/// What of a tree is walked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct WalkOptions {
    /// Passes over what is no directory.
    pub only_directories: bool,
    /// How deep the walker will go: the root's own entries are at depth 1. `None`: as deep as there is.
    pub depth: Option<usize>,
}

/// A step of a walk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// To the next entry. Of a directory, the entries come only if it is entered now.
    Entry(WalkedEntry),
    /// Out of the directory that was entered last, since it has no more entries.
    Left,
}

/// An entry that a walk has come to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WalkedEntry {
    /// Its name.
    pub name: Name,
    /// What it is.
    pub node: Node,
    /// Whether no other follows in its directory.
    pub is_last: bool,
}

/// A walk through a tree. Its memory is that of the directories from the root to where it is, and of
/// those that are held ahead.
#[derive(Debug)]
pub struct TreeWalk {
    directories: TreeDirectories,
    options: WalkOptions,
    levels: Vec<Level>,
    path: Vec<u8>,
}

/// A directory that was entered and not yet left.
#[derive(Debug)]
struct Level {
    digest: Digest,
    directory: Arc<Directory>,
    /// The number of the entry that comes next.
    next: usize,
    /// The bytes of the directory's path.
    path_len: usize,
}

impl TreeWalk {
    /// A walk that has entered the root, which is a directory.
    pub async fn open(
        service: Arc<dyn DirectoryService>,
        root: &Digest,
        options: WalkOptions,
    ) -> Result<Self, WalkError> {
        let directories = match options.depth {
            Some(0 | 1) => TreeDirectories::one_by_one(service),
            _ => TreeDirectories::new(service),
        };
        let mut walk = Self { directories, options, levels: Vec::new(), path: Vec::new() };
        walk.enter(root).await?;
        Ok(walk)
    }

    /// The next step. `None` when the root has been left.
    pub fn step(&mut self) -> Option<Step> {
        let level = self.levels.last_mut()?;
        self.path.truncate(level.path_len);
        let Some((name, node)) = level.directory.entries().get(level.next) else {
            self.levels.pop();
            return Some(Step::Left);
        };
        level.next = next_of(&level.directory, level.next + 1, self.options.only_directories);
        if !self.path.is_empty() {
            self.path.push(b'/');
        }
        self.path.extend_from_slice(name.as_bytes());
        let is_last = level.next >= level.directory.entries().len();
        Some(Step::Entry(WalkedEntry { name: name.clone(), node: node.clone(), is_last }))
    }

    /// Goes into the directory that the last step came to, if that is not too deep; whether it has.
    pub async fn enter(&mut self, digest: &Digest) -> Result<bool, WalkError> {
        if self.options.depth.is_some_and(|depth| self.levels.len() >= depth) {
            return Ok(false);
        }
        if self.levels.len() >= WALK_DEPTH_MAX {
            return Err(WalkError::TooDeep);
        }
        let within = self.levels.last().map(|level| level.digest);
        let directory = self.directories.get(digest, within.as_ref()).await?;
        let next = next_of(&directory, 0, self.options.only_directories);
        self.levels.push(Level { digest: *digest, directory, next, path_len: self.path.len() });
        Ok(true)
    }

    /// The directories that have been entered and not left. An entry is that deep, and a directory that
    /// was just left too; the root is at depth 0.
    pub fn depth(&self) -> usize {
        self.levels.len()
    }

    /// The path, below the root, of what the last step came to, or of the directory that it has left.
    /// Empty for the root.
    pub fn path(&self) -> &[u8] {
        &self.path
    }

    /// The same as a path.
    pub fn to_path(&self) -> PathBuf {
        OsString::from_vec(self.path.clone()).into()
    }
}

/// The number of the first entry, from a number on, that is walked.
fn next_of(directory: &Directory, from: usize, only_directories: bool) -> usize {
    if !only_directories {
        return from;
    }
    let entries = directory.entries();
    let is_directory = |(_, node): &(Name, Node)| matches!(node, Node::Directory { .. });
    let rest = entries.get(from..).unwrap_or_default();
    rest.iter().position(is_directory).map_or(entries.len(), |index| from + index)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_trees::{Tree, file};

    /// The steps in words.
    async fn walked(tree: &Tree, root: &Digest, options: WalkOptions) -> Vec<String> {
        let mut walk = TreeWalk::open(tree.service(), root, options).await.unwrap();
        let mut steps = Vec::new();
        while let Some(step) = walk.step() {
            let path = walk.to_path().display().to_string();
            let depth = walk.depth();
            match step {
                Step::Entry(entry) => {
                    let last = if entry.is_last { " last" } else { "" };
                    steps.push(format!("{depth} {path}{last}"));
                    if let Node::Directory { digest, .. } = &entry.node {
                        walk.enter(digest).await.unwrap();
                    }
                }
                Step::Left => steps.push(format!("{depth} left {path}")),
            }
        }
        steps
    }

    #[tokio::test]
    async fn entries_come_behind_their_directories() {
        let mut tree = Tree::new();
        let inner = tree.directory([("x", file("x"))]).await;
        let empty = tree.directory([]).await;
        let d = tree.directory([("f", file("f")), ("inner", inner)]).await;
        let root = tree.directory([("a", file("a")), ("d", d), ("e", empty), ("z", file("z"))]);
        let root = Tree::digest(&root.await);
        let all = walked(&tree, &root, WalkOptions::default()).await;
        assert_eq!(
            all,
            [
                "1 a",
                "1 d",
                "2 d/f",
                "2 d/inner last",
                "3 d/inner/x last",
                "2 left d/inner",
                "1 left d",
                "1 e",
                "1 left e",
                "1 z last",
                "0 left "
            ]
        );
        let options = WalkOptions { only_directories: true, depth: None };
        assert_eq!(
            walked(&tree, &root, options).await,
            [
                "1 d",
                "2 d/inner last",
                "2 left d/inner",
                "1 left d",
                "1 e last",
                "1 left e",
                "0 left "
            ]
        );
        let options = WalkOptions { only_directories: false, depth: Some(1) };
        assert_eq!(
            walked(&tree, &root, options).await,
            ["1 a", "1 d", "1 e", "1 z last", "0 left "]
        );
    }
}
