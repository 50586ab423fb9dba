//! When a stream of directories is a closure: complete, in order, each directory once, its sizes
//! by one rule. Streams come in two orders, root first (when read) and leaves first (when stored),
//! and each has its check here. No check keeps more than some 50 bytes a directory.

use std::{
    collections::{HashMap, HashSet, VecDeque, hash_map::Entry},
    sync::Arc,
};

use async_stream::try_stream;
use futures::{Stream, StreamExt as _, TryStreamExt as _};

use crate::{
    Digest, Directory, DirectoryError, DirectoryService, directory::SizeRule,
    directory_service::DirectoryStream,
};

/// A stream of directories that is no closure.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidClosure {
    /// The stream has no directory.
    #[error("a closure without a directory")]
    Empty,
    /// Another root came than the one asked for.
    #[error("a closure that starts with directory {found} instead of {expected}")]
    WrongRoot {
        /// The root asked for.
        expected: Digest,
        /// What came.
        found: Digest,
    },
    /// A directory that no other one names.
    #[error("directory {0} in a closure, which nothing before it names")]
    Unconnected(Digest),
    /// A directory came twice.
    #[error("directory {0} is twice in a closure")]
    Duplicate(Digest),
    /// The stream ended too early.
    #[error("a truncated closure: {missing} directories are missing, {first} among them")]
    Truncated {
        /// How many.
        missing: usize,
        /// One of them.
        first: Digest,
    },
    /// A child that was not stored before its parent.
    #[error("directory {parent} names directory {child}, which is not there")]
    MissingChild {
        /// The directory that names it.
        parent: Digest,
        /// The one that is missing.
        child: Digest,
    },
    /// A child's size follows neither rule, or not the rule of its siblings.
    #[error("directory {parent} gives directory {child} the size {size}, by no rule")]
    Size {
        /// The directory that names it.
        parent: Digest,
        /// The child.
        child: Digest,
        /// The size it is given.
        size: u64,
    },
    /// More directories than there may be.
    #[error("a closure of more than {0} directories")]
    TooLarge(usize),
}

/// The most directories in one closure: what a check holds in memory is bounded by it.
pub const CLOSURE_MAX: usize = 16 * 1024 * 1024;

/// The size that a directory can have in an entry that names it, by each rule that its closure
/// may follow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sizes {
    doubled: Option<u64>,
    plain: Option<u64>,
}

impl Sizes {
    /// The sizes of a directory whose closure is being checked with it.
    pub fn of(directory: &Directory) -> Self {
        Self {
            doubled: Some(directory.size(SizeRule::Doubled)),
            plain: Some(directory.size(SizeRule::Plain)),
        }
    }

    /// The sizes of a directory in a store, whose closure was checked when it was stored. `None`
    /// if it is not there.
    pub async fn of_stored<S: DirectoryService + ?Sized>(
        service: &S,
        digest: &Digest,
    ) -> Result<Option<Self>, DirectoryError> {
        let Some(directory) = get(service, digest).await? else { return Ok(None) };
        let mut sizes = Self::of(&directory);
        // Whatever has a size has entries, and so another size by each rule: it tells them apart.
        if let Some((child, size)) = directory.children().find(|(_, size)| *size > 0) {
            let child = get(service, &child).await?;
            let child = child.ok_or(DirectoryError::NotFound(*digest))?;
            sizes.doubled = sizes.doubled.filter(|_| child.size(SizeRule::Doubled) == size);
            sizes.plain = sizes.plain.filter(|_| child.size(SizeRule::Plain) == size);
        }
        Ok(Some(sizes))
    }
}

async fn get<S: DirectoryService + ?Sized>(
    service: &S,
    digest: &Digest,
) -> Result<Option<Directory>, DirectoryError> {
    match service.get_local(digest) {
        Some(answer) => answer,
        None => service.get(digest).await,
    }
}

/// Which of the two rules what has been seen of a closure follows.
#[derive(Debug, Clone, Copy)]
struct Rules {
    doubled: bool,
    plain: bool,
}

impl Rules {
    const ANY: Self = Self { doubled: true, plain: true };

    /// Takes one more size into account; whether a rule is left.
    fn admit(&mut self, sizes: Sizes, size: u64) -> bool {
        self.doubled &= sizes.doubled == Some(size);
        self.plain &= sizes.plain == Some(size);
        self.doubled || self.plain
    }
}

/// Checks a closure that comes root first.
#[derive(Debug)]
pub struct RootFirst {
    root: Digest,
    rules: Rules,
    /// Named and not seen: the parent that named it first, and the size it gave.
    awaited: HashMap<Digest, (Digest, u64)>,
    /// Seen: its sizes, for parents that come later.
    seen: HashMap<Digest, Sizes>,
}

impl RootFirst {
    /// A check of the closure of this root.
    pub fn new(root: Digest) -> Self {
        let awaited = HashMap::from([(root, (root, 0))]);
        Self { root, rules: Rules::ANY, awaited, seen: HashMap::new() }
    }

    /// Takes the next directory and gives its digest.
    pub fn push(&mut self, directory: &Directory) -> Result<Digest, InvalidClosure> {
        let digest = directory.digest();
        if self.seen.len() >= CLOSURE_MAX {
            return Err(InvalidClosure::TooLarge(CLOSURE_MAX));
        }
        if self.seen.is_empty() && digest != self.root {
            return Err(InvalidClosure::WrongRoot { expected: self.root, found: digest });
        }
        let sizes = Sizes::of(directory);
        match self.awaited.remove(&digest) {
            None if self.seen.contains_key(&digest) => {
                return Err(InvalidClosure::Duplicate(digest));
            }
            None => return Err(InvalidClosure::Unconnected(digest)),
            Some(_) if self.seen.is_empty() => {}
            Some((parent, size)) => self.admit(parent, digest, sizes, size)?,
        }
        self.seen.insert(digest, sizes);
        for (child, size) in directory.children() {
            if let Some(&sizes) = self.seen.get(&child) {
                self.admit(digest, child, sizes, size)?;
                continue;
            }
            match self.awaited.entry(child) {
                Entry::Vacant(entry) => {
                    entry.insert((digest, size));
                }
                // One digest has one size by each rule, so two sizes can't follow the same rule.
                Entry::Occupied(entry) if entry.get().1 != size => {
                    return Err(InvalidClosure::Size { parent: digest, child, size });
                }
                Entry::Occupied(_) => {}
            }
        }
        Ok(digest)
    }

    fn admit(
        &mut self,
        parent: Digest,
        child: Digest,
        sizes: Sizes,
        size: u64,
    ) -> Result<(), InvalidClosure> {
        if self.rules.admit(sizes, size) {
            return Ok(());
        }
        Err(InvalidClosure::Size { parent, child, size })
    }

    /// Ends the stream.
    pub fn finish(self) -> Result<(), InvalidClosure> {
        match self.awaited.keys().min() {
            None => Ok(()),
            Some(_) if self.seen.is_empty() => Err(InvalidClosure::Empty),
            Some(&first) => Err(InvalidClosure::Truncated { missing: self.awaited.len(), first }),
        }
    }
}

/// Checks a closure that comes leaves first.
#[derive(Debug)]
pub struct LeavesFirst {
    rules: Rules,
    seen: HashMap<Digest, Sizes>,
    /// Seen and not yet named by another.
    unnamed: HashSet<Digest>,
    last: Option<Digest>,
}

impl Default for LeavesFirst {
    fn default() -> Self {
        Self { rules: Rules::ANY, seen: HashMap::new(), unnamed: HashSet::new(), last: None }
    }
}

impl LeavesFirst {
    /// A check at the start of a stream.
    pub fn new() -> Self {
        Self::default()
    }

    /// The children of `directory` that the stream has not brought: they have to be in the store
    /// already, and their sizes are to be given to [`push`](Self::push).
    pub fn unseen_children(&self, directory: &Directory) -> Vec<Digest> {
        let unseen = |digest: &Digest| !self.seen.contains_key(digest);
        directory.children().map(|(digest, _)| digest).filter(unseen).collect()
    }

    /// Takes the next directory and gives its digest. `stored` gives the sizes of a child that is
    /// in the store, and `None` if it is not. A directory that comes again is passed over
    /// (`Ok(None)`).
    pub fn push(
        &mut self,
        directory: &Directory,
        stored: impl Fn(&Digest) -> Option<Sizes>,
    ) -> Result<Option<Digest>, InvalidClosure> {
        let parent = directory.digest();
        if self.seen.len() >= CLOSURE_MAX {
            return Err(InvalidClosure::TooLarge(CLOSURE_MAX));
        }
        for (child, size) in directory.children() {
            let sizes = self.seen.get(&child).copied().or_else(|| stored(&child));
            let sizes = sizes.ok_or(InvalidClosure::MissingChild { parent, child })?;
            if !self.rules.admit(sizes, size) {
                return Err(InvalidClosure::Size { parent, child, size });
            }
            self.unnamed.remove(&child);
        }
        self.last = Some(parent);
        if self.seen.insert(parent, Sizes::of(directory)).is_some() {
            return Ok(None);
        }
        self.unnamed.insert(parent);
        Ok(Some(parent))
    }

    /// Ends the stream: the root's digest.
    pub fn finish(mut self) -> Result<Digest, InvalidClosure> {
        let root = self.last.ok_or(InvalidClosure::Empty)?;
        self.unnamed.remove(&root);
        match self.unnamed.iter().min() {
            None => Ok(root),
            Some(&unconnected) => Err(InvalidClosure::Unconnected(unconnected)),
        }
    }
}

/// Checks a stream that comes root first, while it is handed on.
pub fn check_root_first(root: Digest, mut directories: DirectoryStream) -> DirectoryStream {
    try_stream! {
        let mut check = RootFirst::new(root);
        while let Some(directory) = directories.try_next().await? {
            check.push(&directory)?;
            yield directory;
        }
        check.finish()?;
    }
    .boxed()
}

/// Checks a stream that comes leaves first against itself and what `service` has, while it is
/// handed on with the directories' digests, each once. The last, the root, is handed on only when
/// the whole is known to be a closure.
pub fn check_leaves_first<S: DirectoryService + ?Sized>(
    service: &S,
    mut directories: DirectoryStream,
) -> impl Stream<Item = Result<(Digest, Directory), DirectoryError>> + Send {
    try_stream! {
        let mut check = LeavesFirst::new();
        let mut held = None;
        while let Some(directory) = directories.try_next().await? {
            let mut stored = HashMap::new();
            for child in check.unseen_children(&directory) {
                if let Some(sizes) = Sizes::of_stored(service, &child).await? {
                    stored.insert(child, sizes);
                }
            }
            let Some(digest) = check.push(&directory, |child| stored.get(child).copied())? else {
                continue;
            };
            if let Some(before) = held.replace((digest, directory)) {
                yield before;
            }
        }
        check.finish()?;
        if let Some(root) = held {
            yield root;
        }
    }
}

/// Reads a closure from a service one directory at a time, breadth first.
pub fn walk(service: Arc<dyn DirectoryService>, root: Digest) -> DirectoryStream {
    try_stream! {
        let mut named = HashSet::from([root]);
        let mut queue = VecDeque::from([(root, root)]);
        while let Some((parent, digest)) = queue.pop_front() {
            let directory = get(&*service, &digest).await?;
            let directory = directory.ok_or_else(|| match digest == root {
                true => DirectoryError::NotFound(root),
                false => InvalidClosure::MissingChild { parent, child: digest }.into(),
            })?;
            for (child, _) in directory.children() {
                if named.insert(child) {
                    if named.len() > CLOSURE_MAX {
                        Err(InvalidClosure::TooLarge(CLOSURE_MAX))?;
                    }
                    queue.push_back((digest, child));
                }
            }
            yield directory;
        }
    }
    .boxed()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Name, Node};

    fn leaf(text: &str) -> Directory {
        let target = bytes::Bytes::copy_from_slice(text.as_bytes()).try_into().unwrap();
        Directory::new(vec![(Name::try_from("link").unwrap(), Node::Symlink { target })]).unwrap()
    }

    fn parent(rule: SizeRule, children: &[&Directory]) -> Directory {
        let entry = |(index, child): (usize, &&Directory)| {
            let node = Node::Directory { digest: child.digest(), size: child.size(rule) };
            (Name::try_from(index.to_string().as_str()).unwrap(), node)
        };
        Directory::new(children.iter().enumerate().map(entry).collect()).unwrap()
    }

    fn root_first(root: &Directory, stream: &[&Directory]) -> Result<(), InvalidClosure> {
        let mut check = RootFirst::new(root.digest());
        for directory in stream {
            check.push(directory)?;
        }
        check.finish()
    }

    fn leaves_first(stream: &[&Directory]) -> Result<Digest, InvalidClosure> {
        let mut check = LeavesFirst::new();
        for directory in stream {
            check.push(directory, |_| None)?;
        }
        check.finish()
    }

    #[test]
    fn either_rule_is_a_closure_and_a_mixture_is_not() {
        let (a, b) = (leaf("a"), leaf("b"));
        for rule in [SizeRule::Doubled, SizeRule::Plain] {
            let middle = parent(rule, &[&a, &b]);
            let root = parent(rule, &[&middle, &a]);
            assert_eq!(root_first(&root, &[&root, &middle, &a, &b]), Ok(()));
            assert_eq!(root_first(&root, &[&root, &a, &middle, &b]), Ok(()));
            assert_eq!(leaves_first(&[&a, &b, &middle, &root]), Ok(root.digest()));
        }
        let middle = parent(SizeRule::Plain, &[&a, &b]);
        let root = parent(SizeRule::Doubled, &[&middle]);
        let mixed = [&root, &middle, &a, &b];
        assert!(matches!(root_first(&root, &mixed), Err(InvalidClosure::Size { .. })));
        let mixed = [&a, &b, &middle, &root];
        assert!(matches!(leaves_first(&mixed), Err(InvalidClosure::Size { .. })));
    }

    #[test]
    fn what_is_missing_twice_or_unconnected_is_told() {
        let (a, b) = (leaf("a"), leaf("b"));
        let root = parent(SizeRule::Doubled, &[&a, &b]);
        let truncated = |missing, first: &Directory| {
            Err(InvalidClosure::Truncated { missing, first: first.digest() })
        };
        assert_eq!(root_first(&root, &[&root, &a]), truncated(1, &b));
        assert_eq!(root_first(&root, &[]), Err(InvalidClosure::Empty));
        let wrong = InvalidClosure::WrongRoot { expected: root.digest(), found: a.digest() };
        assert_eq!(root_first(&root, &[&a]), Err(wrong));
        let twice = Err(InvalidClosure::Duplicate(a.digest()));
        assert_eq!(root_first(&root, &[&root, &a, &a]), twice);
        let other = leaf("c");
        let unconnected = Err(InvalidClosure::Unconnected(other.digest()));
        assert_eq!(root_first(&root, &[&root, &other]), unconnected);

        let missing = InvalidClosure::MissingChild { parent: root.digest(), child: b.digest() };
        assert_eq!(leaves_first(&[&a, &root]), Err(missing));
        assert_eq!(leaves_first(&[]), Err(InvalidClosure::Empty));
        let unconnected = Err(InvalidClosure::Unconnected(other.digest()));
        assert_eq!(leaves_first(&[&other, &a, &b, &root]), unconnected);
        assert_eq!(leaves_first(&[&a, &a, &b, &root]), Ok(root.digest()));
    }

    #[test]
    fn a_size_by_no_rule_is_refused() {
        let a = leaf("a");
        let wrong = Node::Directory { digest: a.digest(), size: 7 };
        let root = Directory::new(vec![(Name::try_from("a").unwrap(), wrong)]).unwrap();
        let error = InvalidClosure::Size { parent: root.digest(), child: a.digest(), size: 7 };
        assert_eq!(root_first(&root, &[&root, &a]), Err(error.clone()));
        assert_eq!(leaves_first(&[&a, &root]), Err(error));
    }
}
