//! Large numbers: directories of a million entries, and trees of millions of directories.

use std::{
    collections::HashSet,
    ffi::CString,
    fs,
    path::Path,
    time::{Duration, Instant},
};

use cairn_castore::{Digest, Node};
use cairn_fs::file_system::{CairnFs, FileSystemOptions};
use fuse_backend_rs::api::filesystem::{Context, DirEntry, Entry, FileSystem as _, ROOT_ID};

use crate::{allocations::counted, fixture::*};

/// The size of the replies to listings: that which the kernel asks for.
const REPLY_BYTES: u32 = 128 * 1024;

/// What an inode may take on average, in bytes, with its part of all tables.
const INODE_BYTES_MAX: i64 = 112;

fn entry_name(number: usize) -> String {
    format!("entry-{number:07}")
}

/// A directory of so many files, all of them different. That their contents are nowhere to be found
/// is of no interest here.
fn wide(store: &Store, entries: usize) -> Node {
    let file = |number: usize| {
        let digest = Digest::of(&number.to_le_bytes());
        Node::File { digest, size: number as u64, executable: number % 2 == 1 }
    };
    store.directory((0..entries).map(|number| (entry_name(number), file(number))))
}

/// A tree of directories with `breadth` directories in each, down to `depth` levels below its root.
/// Each level has one content, so that it takes little to keep.
fn repeated(store: &Store, breadth: usize, depth: usize) -> Node {
    let mut node = store.directory([("f", store.file("x"))]);
    for _ in 0..depth {
        node = store.directory((0..breadth).map(|number| (format!("d{number:03}"), node.clone())));
    }
    node
}

/// How many directories a repeated tree has, its root included.
fn places(breadth: usize, depth: usize) -> usize {
    (0..=depth as u32).map(|level| breadth.pow(level)).sum()
}

fn file_system(store: &Store, root: Node) -> CairnFs {
    let names = Names::new([("root", root)]);
    let runtime = store.runtime.handle().clone();
    CairnFs::new(store.services(&names), FileSystemOptions::default(), runtime)
}

fn look_up(fs: &CairnFs, parent: u64, name: &str) -> u64 {
    let name = CString::new(name).unwrap();
    fs.lookup(&Context::default(), parent, &name).unwrap().inode
}

/// What is listed in one reply, as the kernel asks for it: names, inodes and offsets.
fn reply(fs: &CairnFs, directory: u64, offset: u64, plus: bool) -> Vec<(Vec<u8>, u64, u64)> {
    let mut room = REPLY_BYTES as usize;
    let mut listed = Vec::new();
    let mut add = |entry: DirEntry<'_>, inode: u64, extra: usize| {
        let length = (24 + entry.name.len()).next_multiple_of(8) + extra;
        if length > room {
            return Ok(0);
        }
        room -= length;
        listed.push((entry.name.to_vec(), inode, entry.offset));
        Ok(length)
    };
    let context = Context::default();
    if plus {
        let add = &mut |entry: DirEntry<'_>, known: Entry| add(entry, known.inode, 128);
        fs.readdirplus(&context, directory, 0, REPLY_BYTES, offset, add).unwrap();
    } else {
        let add = &mut |entry: DirEntry<'_>| add(entry, 0, 0);
        fs.readdir(&context, directory, 0, REPLY_BYTES, offset, add).unwrap();
    }
    listed
}

#[test]
fn a_lookup_costs_the_same_whatever_the_size_of_the_directory() {
    let store = Store::new();
    let allocated = [10, 1_000_000].map(|entries| {
        let fs = file_system(&store, wide(&store, entries));
        let root = look_up(&fs, ROOT_ID, "root");
        // The first one reads the directory.
        look_up(&fs, root, &entry_name(0));
        let before = counted().allocated;
        for number in (0..entries).step_by(entries / 10) {
            assert_ne!(look_up(&fs, root, &entry_name(number)), 0);
            assert_eq!(look_up(&fs, root, &format!("none-{number:07}")), 0);
        }
        counted().allocated - before
    });
    assert_eq!(allocated[0], allocated[1]);
}

#[test]
fn a_million_entries_are_each_listed_once_and_forgotten() {
    const ENTRIES: usize = 1_000_000;
    let store = Store::new();
    let fs = file_system(&store, wide(&store, ENTRIES));
    let root = look_up(&fs, ROOT_ID, "root");
    for plus in [false, true] {
        let before = counted();
        let (mut names, mut held, mut replies) = (HashSet::new(), Vec::new(), 0);
        let mut offset = 0;
        loop {
            let listed = reply(&fs, root, offset, plus);
            let Some((_, _, behind)) = listed.last() else { break };
            offset = *behind;
            replies += 1;
            for (name, inode, _) in listed {
                assert!(names.insert(name), "a name came twice");
                held.push((inode, 1));
            }
        }
        assert_eq!(names.len(), ENTRIES + 2);
        assert_eq!(fs.inode_count(), if plus { ENTRIES + 2 } else { 2 });
        // No reply costs more than itself: not the directory, nor what it was before.
        let of_a_name = if plus { 500 } else { 300 };
        let allocated = counted().allocated - before.allocated;
        assert!(allocated < ((ENTRIES + replies) * of_a_name) as u64, "{allocated}");
        drop(names);
        fs.batch_forget(&Context::default(), held);
        assert_eq!(fs.inode_count(), 2);
        let kept = counted().held - before.held;
        assert!(kept < 200_000_000, "{kept}");
    }
}

/// Holds all directories of a repeated tree and then forgets them, and walks through it forgetting
/// what lies behind, as a kernel does that is short of memory.
fn hold_and_forget(breadth: usize, depth: usize) {
    let store = Store::new();
    let fs = file_system(&store, repeated(&store, breadth, depth));
    let context = Context::default();
    let root = look_up(&fs, ROOT_ID, "root");
    let children = |directory: u64| {
        let (mut children, mut offset) = (Vec::new(), 0);
        loop {
            let listed = reply(&fs, directory, offset, true);
            let Some((_, _, behind)) = listed.last() else { return children };
            offset = *behind;
            let known = listed.into_iter().filter(|(name, inode, _)| *inode != 0 && name != b"f");
            children.extend(known.map(|(_, inode, _)| inode));
        }
    };
    let file = look_up(&fs, deepest(&fs, root, depth), "f");

    // A level at a time, and nothing forgotten. The file is one, wherever it is.
    let before = counted().held;
    let (mut level, mut all) = (vec![root], Vec::new());
    for _ in 0..depth {
        level = level.iter().flat_map(|directory| children(*directory)).collect();
        all.extend_from_slice(&level);
    }
    assert_eq!(all.iter().collect::<HashSet<_>>().len(), places(breadth, depth) - 1);
    assert_eq!(fs.inode_count(), places(breadth, depth) + 2);
    let own = (all.capacity() + level.capacity()) * size_of::<u64>();
    let of_an_inode = (counted().held - before - own as i64) / all.len() as i64;
    eprintln!("{} inodes of {of_an_inode} bytes each", all.len());
    assert!(of_an_inode < INODE_BYTES_MAX, "{of_an_inode} bytes for each inode");
    drop(level);
    // Those that were looked up on the way to the deepest one are known once more.
    for parts in all.chunks(1000) {
        fs.batch_forget(&context, parts.iter().map(|inode| (*inode, 2)).collect());
    }
    drop(all);
    assert_eq!(fs.inode_count(), 3);
    let kept = counted().held - before;
    assert!(kept < 2_000_000, "{kept} bytes are kept");

    // In depth, forgetting each directory behind what is in it.
    let (mut walked, mut most) = (1, 0);
    let mut stack = vec![(root, false)];
    while let Some((directory, is_left)) = stack.pop() {
        if is_left {
            fs.forget(&context, directory, 1);
            continue;
        }
        stack.push((directory, true));
        let inner = children(directory);
        walked += inner.len();
        stack.extend(inner.iter().map(|inner| (*inner, false)));
        most = most.max(fs.inode_count());
    }
    assert_eq!(walked, places(breadth, depth));
    assert!(most <= depth * breadth + 4, "{most} inodes were held");
    fs.forget(&context, file, u64::MAX);
    assert_eq!(fs.inode_count(), 1);
}

/// The first directory on the last level.
fn deepest(fs: &CairnFs, root: u64, depth: usize) -> u64 {
    (0..depth).fold(root, |directory, _| look_up(fs, directory, "d000"))
}

#[test]
fn many_inodes_take_little_and_give_it_back() {
    hold_and_forget(60, 3);
}

#[test]
#[ignore = "ten million inodes: part of tests/run"]
fn ten_million_inodes_take_little_and_give_it_back() {
    hold_and_forget(56, 4);
}

/// Makes the kernel forget what nobody uses. Only root may.
fn drop_inodes() {
    fs::write("/proc/sys/vm/drop_caches", "2").unwrap();
}

/// Waits until the kernel has told of all that it has forgotten.
#[track_caller]
fn forgets_all_but(mounted: &Mounted, inodes: usize) {
    let limit = Instant::now() + Duration::from_secs(60);
    let count = || mounted.mount().file_system().inode_count();
    while count() > inodes {
        assert!(Instant::now() < limit, "{} inodes are still known", count());
        drop_inodes();
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// The number of nodes below a folder, each found by listing, and told of by `lstat`.
fn count_below(folder: &Path) -> usize {
    let mut count = 0;
    for entry in fs::read_dir(folder).unwrap() {
        let entry = entry.unwrap();
        let metadata = entry.metadata().unwrap();
        count += 1;
        if metadata.is_dir() {
            count += count_below(&entry.path());
        }
    }
    count
}

fn walk_on_a_mount(breadth: usize, depth: usize) {
    if !can_mount() || !is_root() {
        return;
    }
    let store = Store::new();
    let mounted = Mounted::tree(&store, repeated(&store, breadth, depth));
    let leaves = breadth.pow(depth as u32);
    assert_eq!(count_below(&mounted.path("")), places(breadth, depth) - 1 + leaves);
    forgets_all_but(&mounted, 1);
}

#[test]
fn a_walk_on_a_mount_leaves_nothing_once_the_kernel_forgets() {
    walk_on_a_mount(20, 3);
}

#[test]
#[ignore = "a million directories: part of tests/run"]
fn a_long_walk_on_a_mount_leaves_nothing_once_the_kernel_forgets() {
    walk_on_a_mount(100, 3);
}

fn wide_on_a_mount(entries: usize) {
    if !can_mount() || !is_root() {
        return;
    }
    let store = Store::new();
    let mounted = Mounted::tree(&store, wide(&store, entries));
    let listed = fs::read_dir(mounted.path("")).unwrap();
    let names: HashSet<_> = listed.map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names.len(), entries);
    for number in (0..entries).step_by(entries / 100) {
        let metadata = fs::symlink_metadata(mounted.path(&entry_name(number))).unwrap();
        assert_eq!(metadata.len(), number as u64);
        fs::symlink_metadata(mounted.path(&format!("none-{number}"))).unwrap_err();
    }
    forgets_all_but(&mounted, 1);
    // Without a listing before, each is a request.
    let requests = mounted.mount().request_count();
    for number in (0..entries).step_by(entries / 100) {
        fs::symlink_metadata(mounted.path(&entry_name(number))).unwrap();
    }
    let asked = mounted.mount().request_count() - requests;
    assert!((100..300).contains(&asked), "{asked} requests");
}

#[test]
fn a_wide_directory_on_a_mount_is_whole() {
    wide_on_a_mount(50_000);
}

#[test]
#[ignore = "a million entries in the kernel's memory: part of tests/run"]
fn a_directory_of_a_million_entries_on_a_mount_is_whole() {
    wide_on_a_mount(1_000_000);
}
