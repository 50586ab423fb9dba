//! How much trees hold: all that is in them, and each content once. How much room that takes in a
//! store is the affair of the store.

use std::{
    collections::{HashMap, HashSet},
    fmt,
    sync::Arc,
};

use async_trait::async_trait;

use crate::{
    BoxError, Digest, DirectoryService, Node,
    tree_walk::{Step, TreeWalk, WalkError, WalkOptions},
};

/// The most blobs in one [`StoredSizes::stored_sizes`].
pub const STORED_SIZES_MAX: usize = 4096;

/// A store that may be able to tell how much room blobs take in it.
#[async_trait]
pub trait StoredSizes: Send + Sync {
    /// The bytes that each of at most [`STORED_SIZES_MAX`] blobs takes, compressed as it may be; 0 for one
    /// that is not there. A chunk that blobs share counts for each of them. `None` if the store can't
    /// tell.
    async fn stored_sizes(&self, digests: &[Digest]) -> Result<Option<Vec<u64>>, BoxError>;
}

/// What is in a tree, or in a part of one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Usage {
    /// Regular files, wherever they are.
    pub files: u64,
    /// Directories, the root included.
    pub directories: u64,
    /// Symlinks.
    pub symlinks: u64,
    /// The files' bytes, wherever they are.
    pub bytes: u64,
    /// Contents of files that were not counted before.
    pub unique_files: u64,
    /// Their bytes.
    pub unique_bytes: u64,
    /// The bytes that these take in the store, as far as it can tell.
    pub stored_bytes: u64,
}

impl Usage {
    /// Adds what is in another part. What overflows stays at the largest number: a tree that repeats
    /// itself can be larger than any disk.
    pub fn add(&mut self, other: &Self) {
        let Self { files, directories, symlinks, bytes, unique_files, unique_bytes, stored_bytes } =
            other;
        for (sum, number) in [
            (&mut self.files, files),
            (&mut self.directories, directories),
            (&mut self.symlinks, symlinks),
            (&mut self.bytes, bytes),
            (&mut self.unique_files, unique_files),
            (&mut self.unique_bytes, unique_bytes),
            (&mut self.stored_bytes, stored_bytes),
        ] {
            *sum = sum.saturating_add(*number);
        }
    }
}

/// The half of a digest that stands for it where many are remembered.
type Half = u128;

fn half(digest: &Digest) -> Half {
    let (half, _) = digest.as_bytes().split_first_chunk().expect("a digest has 32 bytes");
    u128::from_le_bytes(*half)
}

/// The contents that have been counted, over all trees that are counted with it. Some 20 bytes for each
/// content of a file, and 70 for each directory, as far as they differ, are kept in memory.
#[derive(Default)]
pub struct UsageMeter {
    files: HashSet<Half>,
    /// Who can tell how much room contents take in the store.
    sizes: Option<Arc<dyn StoredSizes>>,
    /// The contents that were counted and not asked about yet.
    unasked: Vec<Digest>,
    /// What is in directories that were counted, as it counts when they come again.
    directories: HashMap<Half, Repeated>,
}

impl fmt::Debug for UsageMeter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "UsageMeter({} contents counted)", self.files.len())
    }
}

/// What is in a tree that was counted before: nothing in it is counted as a content again.
#[derive(Debug, Clone, Copy)]
struct Repeated {
    files: u64,
    directories: u64,
    symlinks: u64,
    bytes: u64,
}

impl UsageMeter {
    /// Nothing counted yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Nothing counted yet; how much room contents take in the store is asked for, too.
    pub fn with_sizes(sizes: Arc<dyn StoredSizes>) -> Self {
        Self { sizes: Some(sizes), ..Self::default() }
    }

    /// Whether the store can tell how much room contents take, as far as is known.
    pub fn knows_stored_bytes(&self) -> bool {
        self.sizes.is_some()
    }

    /// How much room the contents take in the store that were counted since the last time.
    async fn ask(&mut self) -> Result<Usage, WalkError> {
        let mut usage = Usage::default();
        if let (Some(sizes), false) = (&self.sizes, self.unasked.is_empty()) {
            match sizes.stored_sizes(&self.unasked).await.map_err(WalkError::Sizes)? {
                Some(sizes) => usage.stored_bytes = sizes.into_iter().fold(0, u64::saturating_add),
                None => self.sizes = None,
            }
        }
        self.unasked.clear();
        Ok(usage)
    }

    /// Counts a file or a symlink, and how much room it takes in the store.
    pub async fn count_alone(&mut self, node: &Node) -> Result<Usage, WalkError> {
        let mut usage = self.count(node);
        usage.add(&self.ask().await?);
        Ok(usage)
    }

    fn count(&mut self, node: &Node) -> Usage {
        match node {
            Node::Directory { .. } => Usage { directories: 1, ..Usage::default() },
            Node::Symlink { .. } => Usage { symlinks: 1, ..Usage::default() },
            Node::File { digest, size, .. } => {
                let is_new = self.files.insert(half(digest));
                if is_new && self.sizes.is_some() {
                    self.unasked.push(*digest);
                }
                let (unique_files, unique_bytes) = if is_new { (1, *size) } else { (0, 0) };
                let bytes = *size;
                Usage { files: 1, bytes, unique_files, unique_bytes, ..Usage::default() }
            }
        }
    }

    /// Counts a whole tree.
    pub async fn count_tree(
        &mut self,
        service: &Arc<dyn DirectoryService>,
        root: &Node,
    ) -> Result<Usage, WalkError> {
        let Node::Directory { digest, .. } = root else { return self.count_alone(root).await };
        let mut usage = TreeUsage::open(service.clone(), digest, 0).await?;
        let mut total = Usage::default();
        while let Some(counted) = usage.next(self).await? {
            total = counted.usage;
        }
        Ok(total)
    }

    fn repeated(&self, digest: &Digest) -> Option<Usage> {
        let Repeated { files, directories, symlinks, bytes } =
            *self.directories.get(&half(digest))?;
        Some(Usage { files, directories, symlinks, bytes, ..Usage::default() })
    }

    fn remember(&mut self, digest: &Digest, usage: &Usage) {
        let Usage { files, directories, symlinks, bytes, .. } = *usage;
        self.directories.insert(half(digest), Repeated { files, directories, symlinks, bytes });
    }
}

/// A directory, all of which has been counted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Counted {
    /// Its path below the root; empty for the root.
    pub path: Vec<u8>,
    /// What is in it.
    pub usage: Usage,
}

/// Counts a tree, directory by directory: each is told when all below it was counted, the root last. A
/// directory that comes again is not walked again, so that the work is that of what differs.
#[derive(Debug)]
pub struct TreeUsage {
    walk: TreeWalk,
    /// How deep directories are told of by themselves.
    depth: usize,
    /// The directories that have been entered, and what was counted in them so far.
    open: Vec<(Digest, Usage)>,
}

impl TreeUsage {
    /// Starts at the root, which is a directory. Directories down to a depth are told of by themselves:
    /// at 0 it is the root alone.
    pub async fn open(
        service: Arc<dyn DirectoryService>,
        root: &Digest,
        depth: usize,
    ) -> Result<Self, WalkError> {
        let walk = TreeWalk::open(service, root, WalkOptions::default()).await?;
        let this = Usage { directories: 1, ..Usage::default() };
        Ok(Self { walk, depth, open: vec![(*root, this)] })
    }

    /// The next directory of which all is counted. `None` behind the root.
    pub async fn next(&mut self, meter: &mut UsageMeter) -> Result<Option<Counted>, WalkError> {
        while let Some(step) = self.walk.step() {
            let usage = match step {
                Step::Entry(entry) => match &entry.node {
                    Node::Directory { digest, .. } => {
                        let is_told = self.walk.depth() <= self.depth;
                        match meter.repeated(digest).filter(|_| !is_told) {
                            Some(repeated) => repeated,
                            None => {
                                // What was counted so far is not in it.
                                if is_told {
                                    self.ask(meter).await?;
                                }
                                self.walk.enter(digest).await?;
                                self.open.push((*digest, meter.count(&entry.node)));
                                continue;
                            }
                        }
                    }
                    node => meter.count(node),
                },
                Step::Left => {
                    if self.walk.depth() <= self.depth {
                        self.ask(meter).await?;
                    }
                    let Some((digest, usage)) = self.open.pop() else { return Ok(None) };
                    meter.remember(&digest, &usage);
                    if let Some((_, around)) = self.open.last_mut() {
                        around.add(&usage);
                    }
                    if self.walk.depth() <= self.depth {
                        return Ok(Some(Counted { path: self.walk.path().to_vec(), usage }));
                    }
                    continue;
                }
            };
            if let Some((_, around)) = self.open.last_mut() {
                around.add(&usage);
            }
            if meter.unasked.len() >= STORED_SIZES_MAX {
                self.ask(meter).await?;
            }
        }
        Ok(None)
    }

    /// Counts how much room contents take where the walk is: whatever was counted since the last time is
    /// there, or below, and not in a directory that is told of by itself.
    async fn ask(&mut self, meter: &mut UsageMeter) -> Result<(), WalkError> {
        let stored = meter.ask().await?;
        if let Some((_, around)) = self.open.last_mut() {
            around.add(&stored);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_trees::{Tree, file};

    #[tokio::test]
    async fn a_content_counts_once_and_its_places_each() {
        let mut tree = Tree::new();
        let a = tree.directory([("x", file("four")), ("y", file("four"))]).await;
        let b = tree.directory([("x", file("four")), ("z", file("other"))]).await;
        let root = tree.directory([("a", a.clone()), ("again", a.clone()), ("b", b)]).await;
        let service = tree.service();
        let mut meter = UsageMeter::new();
        let mut usage = TreeUsage::open(service.clone(), &Tree::digest(&root), 1).await.unwrap();
        let mut told = Vec::new();
        while let Some(Counted { path, usage }) = usage.next(&mut meter).await.unwrap() {
            let path = String::from_utf8(path).unwrap();
            told.push((path, usage.files, usage.bytes, usage.unique_files, usage.unique_bytes));
        }
        let row = |path: &str, files, bytes, unique, unique_bytes| {
            (path.to_owned(), files, bytes, unique, unique_bytes)
        };
        assert_eq!(
            told,
            [
                row("a", 2, 8, 1, 4),
                row("again", 2, 8, 0, 0),
                row("b", 2, 9, 1, 5),
                row("", 6, 25, 2, 9)
            ]
        );
        let again = meter.count_tree(&service, &root).await.unwrap();
        let expected = Usage { files: 6, directories: 4, bytes: 25, ..Usage::default() };
        assert_eq!(again, expected, "all of it was counted before");
    }

    /// Every blob takes as many bytes as its digest says first, and 1000 more.
    struct Sizes;

    fn stored(digest: &Digest) -> u64 {
        1000 + u64::from(digest.as_bytes()[0])
    }

    #[async_trait]
    impl StoredSizes for Sizes {
        async fn stored_sizes(&self, digests: &[Digest]) -> Result<Option<Vec<u64>>, BoxError> {
            assert!(digests.len() <= STORED_SIZES_MAX);
            Ok(Some(digests.iter().map(stored).collect()))
        }
    }

    #[tokio::test]
    async fn room_in_the_store_is_counted_where_the_content_is() {
        let mut tree = Tree::new();
        let numbers: Vec<_> = (0..10_000).map(|number| number.to_string()).collect();
        let of = |range: std::ops::Range<usize>| -> Vec<_> {
            numbers[range].iter().map(|number| (number.as_str(), file(number))).collect()
        };
        let inner = tree.directory(of(0..5000)).await;
        let a = tree.directory([("inner", inner.clone()), ("z", file("z"))]).await;
        let b = tree.directory(of(4000..10_000)).await;
        let root = tree.directory([("1", file("first")), ("a", a), ("b", b), ("c", inner)]).await;
        let mut meter = UsageMeter::with_sizes(Arc::new(Sizes));
        let mut usage = TreeUsage::open(tree.service(), &Tree::digest(&root), 1).await.unwrap();
        let mut told = Vec::new();
        while let Some(Counted { usage, .. }) = usage.next(&mut meter).await.unwrap() {
            told.push(usage.stored_bytes);
        }
        let sum = |range: std::ops::Range<usize>| -> u64 {
            numbers[range].iter().map(|number| stored(&Digest::of(number.as_bytes()))).sum()
        };
        let alone = |text: &str| stored(&Digest::of(text.as_bytes()));
        let (a, b) = (sum(0..5000) + alone("z"), sum(5000..10_000));
        assert_eq!(told, [a, b, 0, a + b + alone("first")]);
        assert!(meter.knows_stored_bytes());
    }

    /// Says that blobs take more than there can be.
    struct TooMuch;

    #[async_trait]
    impl StoredSizes for TooMuch {
        async fn stored_sizes(&self, digests: &[Digest]) -> Result<Option<Vec<u64>>, BoxError> {
            Ok(Some(vec![u64::MAX; digests.len()]))
        }
    }

    #[tokio::test]
    async fn a_store_may_say_any_number() {
        let mut tree = Tree::new();
        let root = tree.directory([("a", file("1")), ("b", file("2"))]).await;
        let mut meter = UsageMeter::with_sizes(Arc::new(TooMuch));
        let usage = meter.count_tree(&tree.service(), &root).await.unwrap();
        assert_eq!(usage.stored_bytes, u64::MAX);
    }

    #[tokio::test]
    async fn a_tree_that_repeats_itself_is_counted_at_once() {
        let mut tree = Tree::new();
        let mut node = file("x");
        // As many as a tree can have: the sizes of directories have 64 bits.
        for _ in 0..18 {
            let names: Vec<_> = (0..10).map(|number| number.to_string()).collect();
            node = tree.directory(names.iter().map(|name| (name.as_str(), node.clone()))).await;
        }
        let usage = UsageMeter::new().count_tree(&tree.service(), &node).await.unwrap();
        let files = 10_u64.pow(18);
        assert_eq!((usage.files, usage.unique_files, usage.unique_bytes), (files, 1, 1));
        assert_eq!(tree.control.asked(), 1);
    }
}
