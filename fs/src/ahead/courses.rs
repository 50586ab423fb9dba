//! Who reads one directory after the other, in the order of the tree, and how far ahead of them
//! files are fetched.

use std::{collections::VecDeque, sync::Arc};

use cairn_castore::{Digest, Directory, Name, Node};
use futures::{StreamExt as _, stream};

use crate::{
    directories::{Directories, Loaded},
    errno::FsError,
    inodes::{Inode, Inodes, Place},
};

/// How many readers are observed at the same time.
const COURSES_MAX: usize = 8;

/// How many directories are expected of a reader of whom nothing is known: if one of them comes
/// next, that is an order.
const EXPECTED_MIN: usize = 4;

/// How many directories a reader's files are fetched ahead in, at most; as many as are expected
/// at first, and then twice as many each time.
const DEPTH_MAX: usize = 32;

/// How many directories are fetched at the same time.
const FETCH_MAX: usize = 16;

/// How many directories are looked through for those that have files to be fetched.
const SEARCHED_MAX: usize = 256;

/// The readers observed lately.
#[derive(Debug, Default)]
pub(crate) struct Courses {
    /// The last one first.
    recent: VecDeque<Course>,
    next_id: u64,
}

#[derive(Debug)]
struct Course {
    id: u64,
    /// The directory that was begun last.
    last: Digest,
    /// Those that come next, in order.
    next: VecDeque<Expected>,
    /// In how many of them files are fetched ahead.
    depth: usize,
    /// Whether what comes next is being looked for.
    is_extending: bool,
}

/// A directory that comes next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Expected {
    directory: Digest,
    /// Whether its first files have been sent for.
    is_fetched: bool,
}

/// What is to be found out for a reader, and reported by [`Courses::extended`].
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Extension {
    course: u64,
    /// In how many directories files are to be fetched.
    depth: usize,
    /// Those of the directories that come next whose files have been fetched before.
    fetched: Vec<Digest>,
}

impl Extension {
    /// How many directories are to be found.
    pub(crate) fn wanted(&self) -> usize {
        self.depth.max(EXPECTED_MIN)
    }
}

impl Courses {
    /// The first file of a directory is being read.
    pub(crate) fn begin(&mut self, directory: &Digest) -> Option<Extension> {
        let comes = |course: &Course| course.next.iter().any(|next| next.directory == *directory);
        let at = self.recent.iter().position(comes);
        let course = match at.and_then(|at| self.recent.remove(at)) {
            Some(mut course) => {
                while course.next.pop_front().is_some_and(|next| next.directory != *directory) {}
                course.last = *directory;
                course
            }
            None => {
                self.next_id += 1;
                let (id, last, next) = (self.next_id, *directory, VecDeque::new());
                Course { id, last, next, depth: 0, is_extending: false }
            }
        };
        let is_new = at.is_none();
        self.recent.truncate(COURSES_MAX - 1);
        self.recent.push_front(course);
        let course = self.recent.front_mut()?;
        let fetched = course.next.iter().filter(|next| next.is_fetched);
        let fetched: Vec<_> = fetched.map(|next| next.directory).collect();
        if course.is_extending || fetched.len() > course.depth / 2 {
            return None;
        }
        if !is_new {
            course.depth = (course.depth * 2).clamp(EXPECTED_MIN, DEPTH_MAX);
        }
        course.is_extending = true;
        Some(Extension { course: course.id, depth: course.depth, fetched })
    }

    /// Whether a reader is expected to come to this directory, and has not begun it.
    pub(crate) fn expect(&self, directory: &Digest) -> bool {
        let mut expected = self.recent.iter().flat_map(|course| &course.next);
        expected.any(|next| next.directory == *directory)
    }

    /// What comes after the directory that an extension was asked for with. Gives those whose files
    /// are to be fetched now.
    pub(crate) fn extended(&mut self, extension: &Extension, next: Vec<Digest>) -> Vec<Digest> {
        // A reader who was faster than the search counts as another one by now.
        let is_begun = |directory: &Digest| self.recent.iter().any(|it| it.last == *directory);
        let begun = next.iter().rposition(is_begun);
        let asked = |course: &&mut Course| course.id == extension.course;
        let Some(course) = self.recent.iter_mut().find(asked) else { return Vec::new() };
        course.is_extending = false;
        let next = next.into_iter().enumerate().skip(begun.map_or(0, |at| at + 1));
        let expected = next.map(|(at, directory)| {
            let is_fetched = at < extension.depth;
            Expected { directory, is_fetched }
        });
        course.next = expected.collect();
        let fetched = course.next.iter().filter(|next| next.is_fetched);
        let due = fetched.filter(|next| !extension.fetched.contains(&next.directory));
        due.map(|next| next.directory).collect()
    }
}

/// A directory and those that it is in, each with the number of the entry that leads on.
#[derive(Debug)]
pub(crate) struct Way {
    pub(crate) directory: Digest,
    /// From the inside to the outside.
    above: Vec<(Digest, usize)>,
}

impl Way {
    /// The way to a place, as far up as the kernel knows it and below the root.
    pub(crate) fn to(place: &Place, inodes: &Inodes) -> Self {
        let mut above = Vec::new();
        let mut seen = place.seen;
        while let Some(Inode::Directory(place)) = inodes.get(seen.parent) {
            above.push((place.digest, seen.index as usize));
            seen = place.seen;
        }
        Self { directory: place.digest, above }
    }

    /// The directories that come after this one in the order of the tree, those below it first,
    /// and that have what is looked for: at most so many.
    pub(crate) async fn next(
        &self,
        directories: &Directories,
        wanted: usize,
        matches: impl Fn(&Directory) -> bool + Send + Sync,
    ) -> Result<Vec<(Digest, Arc<Loaded>)>, FsError> {
        let mut levels = Vec::with_capacity(self.above.len() + 1);
        for (digest, below) in self.above.iter().rev() {
            let loaded = directories.fetch(digest).await?;
            let behind = below + 1;
            levels.push((loaded, behind, behind));
        }
        levels.push((directories.fetch(&self.directory).await?, 0, 0));
        let mut found = Vec::new();
        let mut searched = 0;
        while let Some((loaded, at, fetched)) = levels.last_mut() {
            let entries = loaded.directory.entries();
            let Some((index, digest)) = subdirectory(entries, *at) else {
                levels.pop();
                continue;
            };
            if index >= *fetched {
                // All of the next ones at once, since one after the other costs a round trip each.
                let (ahead, end) = subdirectories(entries, index);
                *fetched = end;
                let fetches = ahead.into_iter().map(|digest| async move {
                    let _ = directories.fetch(&digest).await;
                });
                stream::iter(fetches).buffer_unordered(FETCH_MAX).collect::<()>().await;
            }
            *at = index + 1;
            let child = directories.fetch(&digest).await?;
            if matches(&child.directory) {
                found.push((digest, child.clone()));
            }
            searched += 1;
            if found.len() >= wanted || searched >= SEARCHED_MAX {
                break;
            }
            levels.push((child, 0, 0));
        }
        Ok(found)
    }
}

/// The first directory among entries from one on, and its number.
fn subdirectory(entries: &[(Name, Node)], from: usize) -> Option<(usize, Digest)> {
    entries.iter().enumerate().skip(from).find_map(|(at, (_, node))| match node {
        Node::Directory { digest, .. } => Some((at, *digest)),
        _ => None,
    })
}

/// Some directories among entries from one on, and where they end.
fn subdirectories(entries: &[(Name, Node)], from: usize) -> (Vec<Digest>, usize) {
    let mut digests = Vec::new();
    for (at, (_, node)) in entries.iter().enumerate().skip(from) {
        if let Node::Directory { digest, .. } = node {
            digests.push(*digest);
            if digests.len() == FETCH_MAX {
                return (digests, at + 1);
            }
        }
    }
    (digests, entries.len())
}

#[cfg(test)]
mod tests {
    use cairn_castore::{
        DirectoryService, directory::SizeRule, directory_service::memory::MemoryDirectoryService,
    };

    use super::*;
    use crate::inodes::Seen;

    fn digest(number: usize) -> Digest {
        Digest::of(&number.to_le_bytes())
    }

    fn digests(directories: std::ops::Range<usize>) -> Vec<Digest> {
        directories.map(digest).collect()
    }

    #[test]
    fn who_reads_in_the_order_of_the_tree_is_read_ahead_for_further_and_further() {
        let mut courses = Courses::default();
        let mut depths = Vec::new();
        let mut fetched = Vec::new();
        for n in 0..100 {
            let Some(extension) = courses.begin(&digest(n)) else { continue };
            depths.push((n, extension.depth));
            let next = n + 1..n + 1 + extension.wanted();
            fetched.extend(courses.extended(&extension, digests(next)));
        }
        assert_eq!(
            depths,
            [
                (0, 0),
                (1, 4),
                (3, 8),
                (7, 16),
                (15, 32),
                (31, 32),
                (47, 32),
                (63, 32),
                (79, 32),
                (95, 32)
            ]
        );
        assert_eq!(fetched, digests(2..128), "each of them once");
    }

    #[test]
    fn who_reads_here_and_there_is_not() {
        let mut courses = Courses::default();
        for n in [5, 50, 20, 95, 1] {
            let extension = courses.begin(&digest(n)).unwrap();
            assert_eq!(extension.depth, 0);
            assert_eq!(courses.extended(&extension, digests(n + 1..n + 5)), []);
        }
        assert!(courses.recent.len() <= COURSES_MAX);
    }

    #[test]
    fn several_readers_do_not_disturb_each_other() {
        let mut courses = Courses::default();
        let mut depth = 0;
        for n in 0..40 {
            for reader in 0..4 {
                let first = reader * 1000 + n;
                let Some(extension) = courses.begin(&digest(first)) else { continue };
                depth = extension.depth;
                let next = first + 1..first + 1 + extension.wanted();
                courses.extended(&extension, digests(next));
            }
        }
        assert_eq!(depth, DEPTH_MAX);
    }

    #[test]
    fn what_was_begun_while_it_was_looked_for_does_not_come_again() {
        let mut courses = Courses::default();
        let first = courses.begin(&digest(0)).unwrap();
        courses.extended(&first, digests(1..5));
        let second = courses.begin(&digest(1)).unwrap();
        assert_eq!(courses.begin(&digest(3)), None, "one is looking already");
        assert_eq!(courses.extended(&second, digests(2..6)), digests(4..6));
    }

    /// A directory of these entries, kept by the service.
    async fn put(service: &MemoryDirectoryService, entries: Vec<(&str, Node)>) -> Node {
        let entries = entries.into_iter().map(|(name, node)| (Name::try_from(name).unwrap(), node));
        let directory = Directory::new(entries.collect()).unwrap();
        let size = directory.size(SizeRule::Doubled);
        let closure = stream::iter([Ok(directory)]).boxed();
        Node::Directory { digest: service.put_closure(closure).await.unwrap(), size }
    }

    #[tokio::test]
    async fn directories_come_in_the_order_of_the_tree() {
        let service = MemoryDirectoryService::new();
        let file = |text: &str| {
            let digest = Digest::of(text.as_bytes());
            Node::File { digest, size: text.len() as u64, executable: false }
        };
        let leaf = |text: &'static str| {
            let service = service.clone();
            async move { put(&service, vec![("f", file(text))]).await }
        };
        let a = put(&service, vec![("x", leaf("ax").await), ("y", leaf("ay").await)]).await;
        let b = put(&service, vec![("f", file("b")), ("z", leaf("bz").await)]).await;
        let top = vec![("a", a.clone()), ("b", b), ("c", leaf("c").await), ("f", file("top"))];
        let Node::Directory { digest: top, .. } = put(&service, top).await else { unreachable!() };
        let Node::Directory { digest: a, .. } = a else { unreachable!() };
        let directories = Directories::new(Arc::new(service.clone()), None);
        let texts = |found: Vec<(Digest, Arc<Loaded>)>| -> Vec<Digest> {
            let file = |loaded: &Loaded| match loaded.directory.get(b"f") {
                Some(Node::File { digest, .. }) => *digest,
                other => panic!("{other:?}"),
            };
            found.iter().map(|(_, loaded)| file(loaded)).collect()
        };
        let has_file = |directory: &Directory| directory.get(b"f").is_some();
        let files = |texts: &[&str]| -> Vec<_> {
            texts.iter().map(|text| Digest::of(text.as_bytes())).collect()
        };

        let from_top = Way { directory: top, above: Vec::new() };
        let found = from_top.next(&directories, 10, has_file).await.unwrap();
        assert_eq!(texts(found), files(&["ax", "ay", "b", "bz", "c"]));
        let found = from_top.next(&directories, 2, has_file).await.unwrap();
        assert_eq!(texts(found), files(&["ax", "ay"]));

        let Node::Directory { digest: x, .. } = leaf("ax").await else { unreachable!() };
        // The first entries of both.
        let above = vec![(a, 0), (top, 0)];
        let from_x = Way { directory: x, above };
        let found = from_x.next(&directories, 10, has_file).await.unwrap();
        assert_eq!(texts(found), files(&["ay", "b", "bz", "c"]));
    }

    #[test]
    fn a_way_leads_up_to_the_root() {
        let inodes = Inodes::new();
        let directory = |seen: Seen, name: &str, number| {
            let name = Name::try_from(name).unwrap();
            Inode::directory(seen, seen.parent, &name, digest(number), (0, 0))
        };
        let outer = inodes.remember(directory(Seen::IN_ROOT, "outer", 1), None).unwrap();
        let inner = inodes.remember(directory(Seen::new(outer, 5), "inner", 2), None).unwrap();
        let Some(Inode::Directory(place)) = inodes.get(inner) else { unreachable!() };
        let way = Way::to(&place, &inodes);
        assert_eq!(way.directory, digest(2));
        assert_eq!(way.above, [(digest(1), 5)]);
    }
}
