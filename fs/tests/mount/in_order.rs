//! Files that are read in the order of their names: the kernel has the next ones before it asks.

use std::{
    fs::{self, File},
    io::Read as _,
    thread,
    time::{Duration, Instant},
};

use cairn_castore::Node;

use crate::{
    fixture::*,
    slow_store::{NEVER, Remote},
};

fn contents(index: usize) -> String {
    format!("{index} ").repeat(index * 37 % 300 + 1)
}

fn names() -> impl Iterator<Item = (String, usize)> {
    (0..).map(|index| (format!("f{index:05}"), index))
}

fn directory(store: &Store, files: usize) -> Node {
    let entries = names().take(files).map(|(name, index)| (name, store.file(contents(index))));
    store.directory(entries.collect::<Vec<_>>())
}

/// Returns when the kernel has been given so many files.
fn wait_for_stored(mounted: &Mounted, count: u64) {
    let limit = Instant::now() + Duration::from_secs(10);
    while mounted.mount().stored_count() < count && Instant::now() < limit {
        thread::sleep(Duration::from_millis(1));
    }
    assert_eq!(mounted.mount().stored_count(), count);
}

/// Reads all files, and gives the number of requests that this took.
fn read_all(mounted: &Mounted, files: usize) -> u64 {
    let before = mounted.mount().request_count();
    for (name, index) in names().take(files) {
        assert_eq!(fs::read_to_string(mounted.path(&name)).unwrap(), contents(index), "{name}");
    }
    mounted.mount().request_count() - before
}

/// A reader who is as fast as what reads ahead may get in its way.
fn assert_few_fetched_twice(remote: &Remote) {
    let reads = remote.reads.lock();
    let all: usize = reads.values().sum();
    assert!(all - reads.len() <= reads.len() / 10, "{all} reads of {} files", reads.len());
}

#[test]
fn the_first_file_brings_those_that_follow() {
    const FILES: usize = 20;
    if !can_mount() {
        return;
    }
    let store = Store::new();
    let mounted = Mounted::tree(&store, directory(&store, FILES));
    assert_eq!(names_in(&mounted.path("")).len(), FILES);
    fs::read(mounted.path("f00000")).unwrap();
    // All but the first, and the second, which is being asked for when the first was answered.
    wait_for_stored(&mounted, FILES as u64 - 2);
    assert_eq!(read_all(&mounted, FILES), 1, "only the second had to be asked for");
}

#[test]
fn files_of_a_remote_store_come_together() {
    const FILES: usize = 20;
    if !can_mount() {
        return;
    }
    let store = Store::new();
    let remote = Remote::new(&store, []);
    let mounted = remote.mount(&store, directory(&store, FILES), NEVER);
    assert_eq!(names_in(&mounted.path("")).len(), FILES);
    fs::read(mounted.path("f00000")).unwrap();
    wait_for_stored(&mounted, FILES as u64 - 1);
    assert_eq!(read_all(&mounted, FILES), 0);
    let mut batches = remote.batches.lock().clone();
    batches.sort_unstable();
    assert_eq!(batches, [1, FILES - 1]);
    assert!(remote.reads.lock().values().all(|count| *count == 1));
}

/// As `tar` reads: what comes ahead arrives while a file is being read.
#[test]
fn files_that_are_read_in_parts_are_fetched_once() {
    const FILES: u8 = 100;
    if !can_mount() {
        return;
    }
    let store = Store::new();
    let content = |index: u8| vec![index; 100_000];
    let file = |index| (format!("f{index:03}"), store.file(content(index)));
    let root = store.directory((0..FILES).map(file).collect::<Vec<_>>());
    let remote = Remote::new(&store, []);
    let mounted = remote.mount(&store, root, NEVER);
    for index in 0..FILES {
        let mut file = File::open(mounted.path(&format!("f{index:03}"))).unwrap();
        let mut part = [0; 10_000];
        for _ in 0..10 {
            file.read_exact(&mut part).unwrap();
            assert_eq!(part, [index; 10_000]);
        }
    }
    let reads = remote.reads.lock();
    assert!(reads.values().all(|count| *count == 1), "{:?}", reads.values());
}

/// What is read stays in the kernel, and takes no room from what was fetched ahead.
#[test]
fn what_was_fetched_ahead_is_there_behind_much_that_is_read() {
    const LARGE_BYTES: usize = 48 << 20;
    if !can_mount() {
        return;
    }
    let store = Store::new();
    let large = store.file(bytes(LARGE_BYTES));
    let mut entries: Vec<_> = (0..8)
        .map(|index| {
            let file = |part| (format!("f{part}"), store.file(format!("{index} {part}")));
            (format!("d{index}"), store.directory((0..4).map(file).collect::<Vec<_>>()))
        })
        .collect();
    // Read when those behind it have been fetched.
    let large = store.directory([("f0", store.file("0")), ("l", large)]);
    entries.insert(3, ("d2x".to_owned(), large));
    let remote = Remote::new(&store, []);
    let mounted = remote.mount(&store, store.directory(entries), NEVER);
    let directories = names_in(&mounted.path(""));
    for (at, directory) in directories.iter().enumerate() {
        for name in names_in(&mounted.path(directory)) {
            fs::read(mounted.path(&format!("{directory}/{name}"))).unwrap();
            if at < 3 {
                // Those that come next are fetched meanwhile.
                thread::sleep(Duration::from_millis(10));
            }
        }
    }
    let reads = remote.reads.lock();
    assert!(reads.values().all(|count| *count == 1), "{reads:?}");
}

#[test]
fn a_large_directory_comes_in_batches_as_it_is_read() {
    const FILES: usize = 2000;
    if !can_mount() {
        return;
    }
    let store = Store::new();
    let tree = directory(&store, FILES);
    let remote = Remote::new(&store, []);
    for mounted in [Mounted::tree(&store, tree.clone()), remote.mount(&store, tree, NEVER)] {
        assert_eq!(names_in(&mounted.path("")).len(), FILES);
        read_all(&mounted, FILES);
        assert!(mounted.mount().stored_count() > 0);
    }
    assert_few_fetched_twice(&remote);
}

#[test]
fn who_reads_here_and_there_gets_what_was_asked_for_only() {
    const FILES: usize = 500;
    if !can_mount() {
        return;
    }
    let store = Store::new();
    let remote = Remote::new(&store, []);
    let mounted = remote.mount(&store, directory(&store, FILES), NEVER);
    for index in [400, 100, 300, 200, 10] {
        let (name, index) = names().nth(index).unwrap();
        assert_eq!(fs::read_to_string(mounted.path(&name)).unwrap(), contents(index));
    }
    assert_eq!(*remote.batches.lock(), [1; 5]);
    assert_eq!(mounted.mount().stored_count(), 0);
}

#[test]
fn a_file_that_is_missing_fails_alone() {
    if !can_mount() {
        return;
    }
    let store = Store::new();
    let elsewhere = Store::new();
    let mut files: Vec<_> =
        names().take(20).map(|(name, index)| (name, store.file(contents(index)))).collect();
    files[7].1 = elsewhere.file("not there");
    let remote = Remote::new(&store, []);
    let mounted = remote.mount(&store, store.directory(files), NEVER);
    for (name, index) in names().take(20) {
        let read = fs::read_to_string(mounted.path(&name));
        match index {
            7 => assert_eq!(
                read.unwrap_err().raw_os_error(),
                Some(rustix::io::Errno::IO.raw_os_error())
            ),
            _ => assert_eq!(read.unwrap(), contents(index)),
        }
    }
}

#[test]
fn a_remote_tree_that_is_read_in_order_comes_in_few_requests() {
    const DIRECTORIES: usize = 100;
    const FILES: usize = 5;
    if !can_mount() {
        return;
    }
    let store = Store::new();
    let content = |directory: usize, file: usize| format!("{directory} {file}");
    let folder = |directory: usize| {
        let file = |(name, index)| (name, store.file(content(directory, index)));
        store.directory(names().take(FILES).map(file).collect::<Vec<_>>())
    };
    let folders = || names().take(DIRECTORIES);
    let tree = store.directory(folders().map(|(name, n)| (name, folder(n))).collect::<Vec<_>>());
    let read = |mounted: &Mounted, directory: &str, n: usize| {
        for (name, index) in names().take(FILES) {
            let path = mounted.path(directory).join(name);
            assert_eq!(fs::read_to_string(path).unwrap(), content(n, index));
        }
    };

    let remote = Remote::new(&store, []);
    let mounted = remote.mount(&store, tree.clone(), NEVER);
    for (directory, n) in folders() {
        assert_eq!(names_in(&mounted.path(&directory)).len(), FILES);
        read(&mounted, &directory, n);
    }
    let batches = remote.batches.lock().clone();
    assert!(batches.len() < DIRECTORIES, "{batches:?}");
    assert_few_fetched_twice(&remote);

    // Who goes another way gets the directories that were asked for.
    let remote = Remote::new(&store, []);
    let mounted = remote.mount(&store, tree, NEVER);
    for (directory, n) in folders().collect::<Vec<_>>().into_iter().rev() {
        read(&mounted, &directory, n);
        assert_eq!(remote.reads.lock().len(), FILES * (DIRECTORIES - n));
    }
}
