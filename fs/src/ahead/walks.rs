//! Who reads a directory's files in order, and which files come next.

use std::{
    collections::VecDeque,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use cairn_castore::{Digest, Name, Node, blob_service::SMALL_BLOB_MAX};

use crate::{
    inodes::{ContentPlace, NodeId},
    reads::begun_bytes,
};

/// How many directories are observed, those that were read in last.
const WALKS_MAX: usize = 64;

/// How many files the first batch has at most; each further one has twice as many.
const FIRST_FILES: usize = 32;

/// How many files a batch has at most.
const BATCH_FILES: usize = 256;

/// How many bytes the files of a batch have together at most.
pub(crate) const BATCH_BYTES: u64 = 1024 * 1024;

/// What a file that is not small counts for, of which a window is fetched: so that some of them are
/// on their way at a time.
const LARGE_WEIGHT: u64 = 128 * 1024;

/// How many bytes those of a first batch have at most.
const FIRST_BYTES: u64 = 256 * 1024;

/// The next batch is due when one of so many parts of a batch has been read: the others last longer
/// than it takes to come, over a line that is not too long.
const DUE_PART: usize = 4;

/// How many files may be left out by one who reads in order.
const LEFT_OUT_MAX: usize = 1;

/// How many entries are looked through for files at a time.
const SCAN_ENTRIES: usize = 4096;

/// How many entries may come before the first file of a directory, or between two that are read,
/// if that is to be taken for order.
const GAP_ENTRIES: usize = 256;

/// What a read of a small file leads to.
#[derive(Debug)]
pub(crate) struct Step {
    /// Whether it is the first one that is read of its directory, and the first in it.
    pub(crate) begins: bool,
    /// What comes next, if it is time to fetch it.
    pub(crate) batch: Option<Batch>,
}

/// Files that come next.
#[derive(Debug)]
pub(crate) struct Batch {
    /// In the order of their names.
    pub(crate) files: Vec<File>,
    reader: Arc<AtomicUsize>,
}

/// A file that is not empty. Of one that is not small, only the beginning is fetched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct File {
    pub(crate) digest: Digest,
    pub(crate) size: u64,
    pub(crate) executable: bool,
    /// The kernel must go on asking for this one, which tells that the next batch is due.
    pub(crate) is_marker: bool,
    /// Its number among the directory's entries.
    pub(crate) index: usize,
    /// See [`Inode::File`](crate::inodes::Inode::File).
    pub(crate) place: ContentPlace,
}

impl Batch {
    /// Whether the reader has not come past this file by now.
    pub(crate) fn wants(&self, file: &File) -> bool {
        file.index > self.reader.load(Ordering::Relaxed)
    }

    /// Whether the reader has come to one behind it. The one that it is at may be read in parts.
    pub(crate) fn is_passed(&self, file: &File) -> bool {
        file.index < self.reader.load(Ordering::Relaxed)
    }
}

/// The directories in which small files were read lately.
#[derive(Debug, Default)]
pub(crate) struct Walks {
    /// The last one first.
    recent: VecDeque<(NodeId, Walk)>,
}

#[derive(Debug)]
struct Walk {
    /// The entry that was read last.
    reader: Arc<AtomicUsize>,
    /// Where the last batch ends, or the place behind the entry that was read last.
    end: usize,
    /// The entry that makes the next batch due.
    marker: Option<usize>,
    /// How many files the last batch could have; 0 if there was none.
    files: usize,
}

impl Walk {
    fn new(index: usize) -> Self {
        Self { reader: Arc::new(AtomicUsize::new(index)), end: index + 1, marker: None, files: 0 }
    }
}

impl Walks {
    /// Whether reading this entry may be part of a reading in order; [`step`](Self::step) tells
    /// for sure. Costs little, and notes that it was read.
    pub(crate) fn may_be_in_order(&mut self, directory: NodeId, index: usize) -> bool {
        let Some(walk) = self.walk(directory) else {
            let may = index < GAP_ENTRIES;
            if !may {
                self.insert(directory, Walk::new(index));
            }
            return may;
        };
        walk.reader.store(index, Ordering::Relaxed);
        if walk.marker == Some(index) {
            return true;
        }
        if index < walk.end {
            return false;
        }
        let may = index - walk.end <= GAP_ENTRIES;
        if !may {
            *walk = Walk::new(index);
        }
        may
    }

    /// What comes next if the directory is read in order and the last batch is coming to its end.
    pub(crate) fn step(
        &mut self,
        directory: NodeId,
        index: usize,
        entries: &[(Name, Node)],
    ) -> Step {
        let left_out = |from: usize| {
            let between = entries.get(from..index).unwrap_or(&[]);
            between.iter().filter(|(_, node)| file_of(node).is_some()).count()
        };
        if self.walk(directory).is_none() {
            let mut walk = Walk::new(index);
            let begins = left_out(0) == 0;
            let batch = begins.then(|| walk.next(index + 1, entries)).flatten();
            self.insert(directory, walk);
            return Step { begins, batch };
        }
        let walk = self.walk(directory).expect("it is there");
        let from = if walk.marker == Some(index) {
            Some(walk.end)
        } else if index < walk.end {
            None
        } else if left_out(walk.end) <= LEFT_OUT_MAX {
            Some(index + 1)
        } else {
            *walk = Walk::new(index);
            None
        };
        let batch = from.and_then(|from| walk.next(from, entries));
        Step { begins: false, batch }
    }

    fn walk(&mut self, directory: NodeId) -> Option<&mut Walk> {
        let at = self.recent.iter().position(|(id, _)| *id == directory)?;
        if at > 0 {
            let walk = self.recent.remove(at).expect("it was found there");
            self.recent.push_front(walk);
        }
        self.recent.front_mut().map(|(_, walk)| walk)
    }

    fn insert(&mut self, directory: NodeId, walk: Walk) {
        self.recent.truncate(WALKS_MAX - 1);
        self.recent.push_front((directory, walk));
    }
}

impl Walk {
    /// The files of the next batch, from an entry on. `None` if there are none.
    fn next(&mut self, from: usize, entries: &[(Name, Node)]) -> Option<Batch> {
        let bytes_max = if self.files == 0 { FIRST_BYTES } else { BATCH_BYTES };
        self.files = (self.files * 2).clamp(FIRST_FILES, BATCH_FILES);
        let scanned = entries.len().min(from.saturating_add(SCAN_ENTRIES));
        self.end = scanned;
        let (mut files, mut bytes) = (Vec::new(), 0);
        for (at, (_, node)) in entries.iter().enumerate().take(scanned).skip(from) {
            let Some(file) = file_of(node) else { continue };
            bytes += weight(file.size);
            if files.len() == self.files || bytes > bytes_max {
                self.end = at;
                break;
            }
            files.push(File { index: at, ..file });
        }
        let due = files.len() / DUE_PART;
        let marker = files.get_mut(due).filter(|_| self.end < entries.len());
        self.marker = marker.map(|file| {
            file.is_marker = true;
            file.index
        });
        (!files.is_empty()).then(|| Batch { files, reader: self.reader.clone() })
    }
}

/// The files with which a directory begins, and their sizes: for one who reads one directory after
/// the other, at most so many bytes of them, and no more than a batch has; but at least one.
pub(crate) fn first_files(entries: &[(Name, Node)], bytes_max: u64) -> Vec<(Digest, u64)> {
    let files = entries.iter().take(SCAN_ENTRIES).filter_map(|(_, node)| file_of(node));
    let bytes_max = bytes_max.clamp(FIRST_BYTES, BATCH_BYTES);
    let mut bytes = 0;
    files
        .take(BATCH_FILES)
        .take_while(|file| {
            let is_first = bytes == 0;
            bytes += begun_bytes(file.size);
            is_first || bytes <= bytes_max
        })
        .map(|file| (file.digest, file.size))
        .collect()
}

/// Whether all of a file of this size is read ahead.
pub(crate) fn is_small(size: u64) -> bool {
    size <= SMALL_BLOB_MAX as u64
}

/// What a file counts for in a batch, in bytes.
fn weight(size: u64) -> u64 {
    size.min(LARGE_WEIGHT)
}

/// The file of an entry, if it is one that is read ahead.
fn file_of(node: &Node) -> Option<File> {
    match *node {
        Node::File { digest, size, executable } if size > 0 => {
            Some(File { digest, size, executable, is_marker: false, index: 0, place: None })
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIRECTORY: NodeId = 7;

    fn files(sizes: impl IntoIterator<Item = u64>) -> Vec<(Name, Node)> {
        let file = |(index, size)| {
            let name = format!("{index:06}");
            let digest = Digest::of(name.as_bytes());
            let node = Node::File { digest, size, executable: false };
            (Name::try_from(name.as_str()).unwrap(), node)
        };
        sizes.into_iter().enumerate().map(file).collect()
    }

    impl Walks {
        /// The entries of the batch that a read leads to, and its marker.
        fn read(&mut self, index: usize, entries: &[(Name, Node)]) -> (Vec<usize>, Option<usize>) {
            if !self.may_be_in_order(DIRECTORY, index) {
                return (Vec::new(), None);
            }
            let Some(batch) = self.step(DIRECTORY, index, entries).batch else {
                return (Vec::new(), None);
            };
            let marker = batch.files.iter().find(|file| file.is_marker);
            let marker = marker.map(|file| file.index);
            (batch.files.iter().map(|file| file.index).collect(), marker)
        }
    }

    #[test]
    fn the_first_file_brings_a_small_directory() {
        let entries = files([0, 10, 10, 0, 1 << 30, 10]);
        assert_eq!(Walks::default().read(1, &entries), (vec![2, 4, 5], None));
    }

    #[test]
    fn batches_grow_and_the_next_one_is_due_early() {
        let entries = files(vec![1; 1000]);
        let mut walks = Walks::default();
        assert_eq!(walks.read(0, &entries), ((1..33).collect(), Some(9)));
        for index in 1..9 {
            assert_eq!(walks.read(index, &entries), (vec![], None), "{index}");
        }
        assert_eq!(walks.read(9, &entries), ((33..97).collect(), Some(49)));
        assert_eq!(walks.read(49, &entries), ((97..225).collect(), Some(129)));
        assert_eq!(walks.read(129, &entries), ((225..481).collect(), Some(289)));
        assert_eq!(walks.read(289, &entries), ((481..737).collect(), Some(545)));
        assert_eq!(walks.read(545, &entries), ((737..993).collect(), Some(801)));
        assert_eq!(walks.read(801, &entries), ((993..1000).collect(), None));
    }

    #[test]
    fn a_batch_is_bounded_in_bytes() {
        let entries = files(vec![100 * 1024; 100]);
        let mut walks = Walks::default();
        assert_eq!(walks.read(0, &entries), ((1..3).collect(), Some(1)));
        assert_eq!(walks.read(1, &entries), ((3..13).collect(), Some(5)));
    }

    #[test]
    fn who_reads_here_and_there_gets_nothing() {
        let entries = files(vec![1; 1000]);
        let mut walks = Walks::default();
        for index in [5, 300, 20, 998, 500, 498, 3] {
            assert_eq!(walks.read(index, &entries), (vec![], None), "{index}");
        }
    }

    #[test]
    fn order_is_found_in_the_middle_of_a_directory_and_after_a_jump() {
        let entries = files(vec![1; 1000]);
        let mut walks = Walks::default();
        assert_eq!(walks.read(500, &entries), (vec![], None));
        assert_eq!(walks.read(501, &entries).0, (502..534).collect::<Vec<_>>());
        assert_eq!(walks.read(900, &entries), (vec![], None));
        // One may be left out.
        assert_eq!(walks.read(902, &entries).0, (903..935).collect::<Vec<_>>());
    }

    #[test]
    fn what_the_reader_has_passed_is_not_wanted() {
        let entries = files(vec![1; 1000]);
        let mut walks = Walks::default();
        assert!(walks.may_be_in_order(DIRECTORY, 0));
        let batch = walks.step(DIRECTORY, 0, &entries).batch.unwrap();
        assert!(batch.files.iter().all(|file| batch.wants(file)));
        assert!(!walks.may_be_in_order(DIRECTORY, 2));
        let wanted = batch.files.iter().find(|file| batch.wants(file));
        assert_eq!(wanted.map(|file| file.index), Some(3));
        let passed = batch.files.iter().rfind(|file| batch.is_passed(file));
        assert_eq!(passed.map(|file| file.index), Some(1), "the one at 2 is being read");
    }

    #[test]
    fn few_directories_are_observed() {
        let entries = files(vec![1; 1000]);
        let mut walks = Walks::default();
        for directory in 0..1000 {
            assert!(walks.may_be_in_order(directory, 0));
            assert!(walks.step(directory, 0, &entries).begins);
            assert!(walks.recent.len() <= WALKS_MAX);
        }
        assert!(!walks.may_be_in_order(999, 1), "the last one is known");
        assert!(walks.may_be_in_order(0, 1), "the first one is not");
    }
}
