//! What differs between two trees. They are walked in step by the digests of their directories: what is
//! equal is never read, and of what differs directories alone.

use std::{cmp::Ordering, fmt, sync::Arc};

use futures::{StreamExt as _, TryStreamExt as _, future::try_join, stream, stream::BoxStream};

use crate::{
    Digest, Directory, DirectoryError, DirectoryService, Name, Node,
    tree_walk::{WALK_DEPTH_MAX, WalkError},
};

/// The pairs of directories that are fetched at a time, of those that differ in one directory.
const PAIRS_AHEAD: usize = 8;

/// How deep directories are fetched ahead; below that, one pair at a time.
const AHEAD_DEPTH_MAX: usize = 16;

/// What differs in one place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// The second tree has something where the first has nothing. What is in it is not told by itself.
    Added(Node),
    /// The first tree has something where the second has nothing.
    Removed(Node),
    /// Both have something, not the same, and not both directories.
    Changed {
        /// What the first has.
        from: Node,
        /// What the second has.
        to: Node,
    },
}

/// In which ways two nodes differ that are in the same place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Aspects {
    /// One is a file, say, and the other a symlink. Then nothing else is compared.
    pub kind: bool,
    /// The contents of two files or directories.
    pub content: bool,
    /// One file is executable and the other is not.
    pub executable: bool,
    /// Two symlinks point at different things.
    pub target: bool,
}

impl Aspects {
    /// In which ways two nodes differ.
    pub fn between(from: &Node, to: &Node) -> Self {
        match (from, to) {
            (Node::Directory { digest: a, .. }, Node::Directory { digest: b, .. }) => {
                Self { content: a != b, ..Self::default() }
            }
            (
                Node::File { digest: a, size: a_size, executable: a_executable },
                Node::File { digest: b, size: b_size, executable: b_executable },
            ) => Self {
                content: (a, a_size) != (b, b_size),
                executable: a_executable != b_executable,
                ..Self::default()
            },
            (Node::Symlink { target: a }, Node::Symlink { target: b }) => {
                Self { target: a != b, ..Self::default() }
            }
            _ => Self { kind: true, ..Self::default() },
        }
    }

    /// Whether they don't differ at all.
    pub fn is_none(&self) -> bool {
        *self == Self::default()
    }
}

type Pair = (Arc<Directory>, Arc<Directory>);

/// The differences between two trees, in the order of their paths' names, a directory's own right
/// behind it.
pub struct TreeDiff {
    directories: Directories,
    /// The roots, until they have been compared.
    roots: Option<(Node, Node)>,
    levels: Vec<Level>,
    path: Vec<u8>,
}

/// Two directories that differ.
struct Level {
    from: Arc<Directory>,
    to: Arc<Directory>,
    /// The number of the entry of each that comes next.
    next: (usize, usize),
    /// The pairs of directories in them that differ, in order.
    below: BoxStream<'static, Result<Pair, DirectoryError>>,
    /// The bytes of their path.
    path_len: usize,
}

impl TreeDiff {
    /// The differences of two trees that are in one store.
    pub fn new(service: Arc<dyn DirectoryService>, from: Node, to: Node) -> Self {
        Self::between(service.clone(), from, service, to)
    }

    /// The differences of two trees, each in its own store.
    pub fn between(
        from_service: Arc<dyn DirectoryService>,
        from: Node,
        to_service: Arc<dyn DirectoryService>,
        to: Node,
    ) -> Self {
        let directories = Directories { from: from_service, to: to_service };
        Self { directories, roots: Some((from, to)), levels: Vec::new(), path: Vec::new() }
    }

    /// The next difference. `None` if there is no more.
    pub async fn next(&mut self) -> Result<Option<Change>, WalkError> {
        if let Some((from, to)) = self.roots.take() {
            match differing(&from, &to) {
                None => return Ok(None),
                Some(Differing::Directories(from, to)) => {
                    let pair = self.directories.clone().pair(from, to).await?;
                    self.enter(pair)?;
                }
                Some(Differing::Nodes) => return Ok(Some(Change::Changed { from, to })),
            }
        }
        while let Some(level) = self.levels.last_mut() {
            self.path.truncate(level.path_len);
            let Some(both) = level.step() else {
                self.levels.pop();
                continue;
            };
            let (name, change) = match both {
                Both { from: None, to: None, .. } => continue,
                Both { name, from: None, to: Some(to) } => (name, Change::Added(to)),
                Both { name, from: Some(from), to: None } => (name, Change::Removed(from)),
                Both { name, from: Some(from), to: Some(to) } => match differing(&from, &to) {
                    None => continue,
                    Some(Differing::Nodes) => (name, Change::Changed { from, to }),
                    Some(Differing::Directories(..)) => {
                        let Some(pair) = level.below.try_next().await? else { continue };
                        append(&mut self.path, &name);
                        self.enter(pair)?;
                        continue;
                    }
                },
            };
            append(&mut self.path, &name);
            return Ok(Some(change));
        }
        Ok(None)
    }

    /// The path of the last difference, below the roots. Empty if it is that of the roots.
    pub fn path(&self) -> &[u8] {
        &self.path
    }

    fn enter(&mut self, (from, to): Pair) -> Result<(), WalkError> {
        if self.levels.len() >= WALK_DEPTH_MAX {
            return Err(WalkError::TooDeep);
        }
        let ahead = if self.levels.len() < AHEAD_DEPTH_MAX { PAIRS_AHEAD } else { 1 };
        let mut level = Level {
            from,
            to,
            next: (0, 0),
            below: stream::empty().boxed(),
            path_len: self.path.len(),
        };
        let mut pairs = Vec::new();
        while let Some(both) = level.step() {
            if let Both { from: Some(from), to: Some(to), .. } = both
                && let Some(Differing::Directories(from, to)) = differing(&from, &to)
            {
                pairs.push((from, to));
            }
        }
        let directories = self.directories.clone();
        let fetched = stream::iter(pairs).map(move |(from, to)| directories.clone().pair(from, to));
        level.below = fetched.buffered(ahead).boxed();
        level.next = (0, 0);
        self.levels.push(level);
        Ok(())
    }
}

/// What two directories have of one name.
struct Both {
    name: Name,
    from: Option<Node>,
    to: Option<Node>,
}

impl Level {
    /// The next name that either directory has.
    fn step(&mut self) -> Option<Both> {
        let (from, to) = (self.from.entries().get(self.next.0), self.to.entries().get(self.next.1));
        let order = match (from, to) {
            (None, None) => return None,
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (Some((from, _)), Some((to, _))) => from.cmp(to),
        };
        let from = from.filter(|_| order.is_le());
        let to = to.filter(|_| order.is_ge());
        self.next.0 += usize::from(from.is_some());
        self.next.1 += usize::from(to.is_some());
        let (name, _) = from.or(to)?;
        let node = |entry: Option<&(Name, Node)>| entry.map(|(_, node)| node.clone());
        Some(Both { name: name.clone(), from: node(from), to: node(to) })
    }
}

/// How two nodes differ.
enum Differing {
    /// Both are directories.
    Directories(Digest, Digest),
    /// At least one is not.
    Nodes,
}

fn differing(from: &Node, to: &Node) -> Option<Differing> {
    match (from, to) {
        // The sizes that come with them may follow different rules.
        (Node::Directory { digest: from, .. }, Node::Directory { digest: to, .. }) => {
            (from != to).then_some(Differing::Directories(*from, *to))
        }
        _ => (from != to).then_some(Differing::Nodes),
    }
}

fn append(path: &mut Vec<u8>, name: &Name) {
    if !path.is_empty() {
        path.push(b'/');
    }
    path.extend_from_slice(name.as_ref());
}

/// Where the directories of the two trees are.
#[derive(Clone)]
struct Directories {
    from: Arc<dyn DirectoryService>,
    to: Arc<dyn DirectoryService>,
}

impl Directories {
    async fn pair(self, from: Digest, to: Digest) -> Result<Pair, DirectoryError> {
        try_join(get(&*self.from, from), get(&*self.to, to)).await
    }
}

async fn get(
    service: &dyn DirectoryService,
    digest: Digest,
) -> Result<Arc<Directory>, DirectoryError> {
    let found = match service.get_local(&digest) {
        Some(found) => found?,
        None => service.get(&digest).await?,
    };
    found.map(Arc::new).ok_or(DirectoryError::NotFound(digest))
}

impl fmt::Debug for TreeDiff {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TreeDiff({} levels deep)", self.levels.len())
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::{
        SymlinkTarget,
        test_trees::{Tree, file},
    };

    fn symlink(target: &'static str) -> Node {
        Node::Symlink { target: SymlinkTarget::try_from(Bytes::from(target)).unwrap() }
    }

    fn executable(text: &str) -> Node {
        let Node::File { digest, size, .. } = file(text) else { unreachable!() };
        Node::File { digest, size, executable: true }
    }

    /// The differences in words.
    async fn differences(tree: &Tree, from: &Node, to: &Node) -> Vec<String> {
        let mut diff = TreeDiff::new(tree.service(), from.clone(), to.clone());
        let mut told = Vec::new();
        while let Some(change) = diff.next().await.unwrap() {
            let path = String::from_utf8_lossy(diff.path()).into_owned();
            told.push(match change {
                Change::Added(_) => format!("+ {path}"),
                Change::Removed(_) => format!("- {path}"),
                Change::Changed { from, to } => {
                    let Aspects { kind, content, executable, target } =
                        Aspects::between(&from, &to);
                    let named = [
                        (kind, " kind"),
                        (content, " content"),
                        (executable, " executable"),
                        (target, " target"),
                    ];
                    let named = named.into_iter().filter(|(differs, _)| *differs);
                    let named: String = named.map(|(_, name)| name).collect();
                    format!("~ {path}:{named}")
                }
            });
        }
        told
    }

    #[tokio::test]
    async fn each_kind_of_difference_is_told_in_order() {
        let mut tree = Tree::new();
        let kept = tree.directory([("x", file("x"))]).await;
        let new = tree.directory([("y", file("y"))]).await;
        let d = tree.directory([("f", file("1")), ("g", file("g"))]).await;
        let from = tree
            .directory([
                ("both", file("a")),
                ("d", d),
                ("gone", kept.clone()),
                ("kept", kept.clone()),
                ("link", symlink("a")),
                ("mode", file("m")),
                ("was-a-folder", kept.clone()),
            ])
            .await;
        let d = tree.directory([("f", file("2")), ("g", file("g")), ("h", file("h"))]).await;
        let to = tree
            .directory([
                ("both", executable("b")),
                ("d", d),
                ("kept", kept),
                ("link", symlink("b")),
                ("mode", executable("m")),
                ("new", new),
                ("was-a-folder", file("")),
            ])
            .await;
        assert_eq!(
            differences(&tree, &from, &to).await,
            [
                "~ both: content executable",
                "~ d/f: content",
                "+ d/h",
                "- gone",
                "~ link: target",
                "~ mode: executable",
                "+ new",
                "~ was-a-folder: kind"
            ]
        );
        assert!(differences(&tree, &from, &from).await.is_empty());
        assert_eq!(differences(&tree, &from, &file("x")).await, ["~ : kind"]);
        assert_eq!(differences(&tree, &file("x"), &file("y")).await, ["~ : content"]);
    }

    #[tokio::test]
    async fn what_is_equal_is_not_asked_for() {
        let mut tree = Tree::new();
        // Two trees of 111 directories that differ in one file, two directories deep.
        let mut roots = Vec::new();
        for changed in ["one", "other"] {
            let mut middle = Vec::new();
            for a in 0..10 {
                let mut leaves = Vec::new();
                for b in 0..10 {
                    let text =
                        if (a, b) == (3, 7) { changed.to_owned() } else { format!("{a}{b}") };
                    leaves.push((b.to_string(), tree.directory([("f", file(&text))]).await));
                }
                let leaves = leaves.iter().map(|(name, node)| (name.as_str(), node.clone()));
                middle.push((a.to_string(), tree.directory(leaves).await));
            }
            let middle = middle.iter().map(|(name, node)| (name.as_str(), node.clone()));
            roots.push(tree.directory(middle).await);
        }
        tree.control.asked();
        assert_eq!(differences(&tree, &roots[0], &roots[1]).await, ["~ 3/7/f: content"]);
        assert_eq!(tree.control.asked(), 6, "the root, one in it, and one in that, of each tree");
        assert!(differences(&tree, &roots[0], &roots[0]).await.is_empty());
        assert_eq!(tree.control.asked(), 0);
    }

    #[tokio::test]
    async fn a_directory_that_is_missing_is_named() {
        let mut tree = Tree::new();
        let root = tree.directory([("f", file("f"))]).await;
        let missing = Digest::of(b"missing");
        let to = Node::Directory { digest: missing, size: 0 };
        let mut diff = TreeDiff::new(tree.service(), root, to);
        let error = diff.next().await.unwrap_err();
        assert!(
            matches!(&error, WalkError::Directory(DirectoryError::NotFound(digest)) if *digest == missing),
            "{error:?}"
        );
    }
}
