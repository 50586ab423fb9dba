//! Requests as a kernel makes them, without one: replies of any size, and kernels that can do
//! less.

use std::{collections::HashMap, io, sync::Arc};

use cairn_castore::Node;
use cairn_fs::file_system::{CairnFs, FileSystemOptions};
use fuse_backend_rs::api::filesystem::{
    Context, DirEntry, Entry, FileSystem as _, FsOptions, OpenOptions, ROOT_ID,
};
use proptest::prelude::*;
use rustix::io::Errno;

use crate::fixture::*;

/// Content, and a file system over it.
struct Served {
    fs: Arc<CairnFs>,
    _store: Store,
}

fn served(files: usize) -> Served {
    let store = Store::new();
    let files = (0..files).map(|i| (format!("{i}{}", "n".repeat(i * 7 % 200)), i));
    let files: Vec<(String, Node)> =
        files.map(|(name, i)| (name, store.file(i.to_string()))).collect();
    let roots = Names::new(files.clone());
    roots.add("root", store.directory(files));
    let services = store.services(&roots);
    let runtime = store.runtime.handle().clone();
    let fs = Arc::new(CairnFs::new(services, FileSystemOptions::default(), runtime));
    Served { fs, _store: store }
}

/// Names and inodes of a whole listing, read in replies of `size` bytes. As the kernel does, the
/// caller uses only some of a reply's entries before it asks for more: `used` of them.
fn listing(
    fs: &CairnFs,
    inode: u64,
    size: u32,
    plus: bool,
    used: usize,
) -> io::Result<Vec<(Vec<u8>, u64)>> {
    let mut listed = Vec::new();
    let mut offset = 0;
    loop {
        let mut room = size as usize;
        let mut reply = Vec::new();
        let mut add = |entry: DirEntry<'_>, inode: u64, extra: usize| {
            let length = (24 + entry.name.len()).next_multiple_of(8) + extra;
            if length > room {
                return Ok(0);
            }
            room -= length;
            reply.push((entry.name.to_vec(), inode, entry.offset));
            Ok(length)
        };
        let context = Context::default();
        if plus {
            let add = &mut |entry: DirEntry<'_>, known: Entry| add(entry, known.inode, 128);
            fs.readdirplus(&context, inode, 0, size, offset, add)?;
        } else {
            fs.readdir(&context, inode, 0, size, offset, &mut |entry| add(entry, 0, 0))?;
        }
        if reply.is_empty() {
            return Ok(listed);
        }
        let unused = reply.split_off(used.min(reply.len()));
        fs.batch_forget(&context, unused.iter().map(|(_, inode, _)| (*inode, 1)).collect());
        for (name, inode, behind) in reply {
            listed.push((name, inode));
            offset = behind;
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn a_listing_is_whole_whatever_the_replies(
        files in 0..120usize,
        size in 512..6000u32,
        used in 1..40usize,
        plus: bool,
    ) {
        let served = served(files);
        let fs = &served.fs;
        let context = Context::default();
        let root = fs.lookup(&context, ROOT_ID, c"root").unwrap();
        for (inode, expected) in [(ROOT_ID, files + 1), (root.inode, files)] {
            let listed = listing(fs, inode, size, plus, used).unwrap();
            prop_assert_eq!(&listed[0].0, b".");
            prop_assert_eq!(&listed[1].0, b"..");
            let unique: HashMap<_, _> = listed.iter().cloned().collect();
            prop_assert_eq!(unique.len(), listed.len(), "a name came twice");
            prop_assert_eq!(unique.len(), expected + 2);
            fs.batch_forget(&context, listed.iter().map(|(_, inode)| (*inode, 1)).collect());
            // Only `root` is left, which was looked up.
            prop_assert_eq!(fs.inode_count(), 2);
        }
        fs.forget(&context, root.inode, 1);
        prop_assert_eq!(fs.inode_count(), 1);
    }
}

#[test]
fn a_kernel_that_must_open_gets_what_makes_it_keep_its_cache() {
    let served = served(1);
    let (fs, context) = (&served.fs, Context::default());
    let root = fs.lookup(&context, ROOT_ID, c"root").unwrap().inode;
    let file = fs.lookup(&context, root, c"0").unwrap().inode;

    fs.init(FsOptions::empty()).unwrap();
    let (_, flags, _) = fs.open(&context, file, libc::O_RDONLY as u32, 0).unwrap();
    assert!(flags.contains(OpenOptions::KEEP_CACHE));
    let (_, flags) = fs.opendir(&context, root, 0).unwrap();
    assert!(flags.contains(OpenOptions::CACHE_DIR | OpenOptions::KEEP_CACHE));
    let (_, flags) = fs.opendir(&context, ROOT_ID, 0).unwrap();
    assert!(flags.is_empty());

    fs.init(FsOptions::ZERO_MESSAGE_OPEN | FsOptions::ZERO_MESSAGE_OPENDIR).unwrap();
    let errno = |error: io::Error| error.raw_os_error().map(Errno::from_raw_os_error);
    let opened = fs.open(&context, file, libc::O_RDONLY as u32, 0).map(drop);
    assert_eq!(errno(opened.unwrap_err()), Some(Errno::NOSYS));
    let opened = fs.opendir(&context, root, 0).map(drop);
    assert_eq!(errno(opened.unwrap_err()), Some(Errno::NOSYS));
    let opened = fs.open(&context, file, libc::O_RDWR as u32, 0).map(drop);
    assert_eq!(errno(opened.unwrap_err()), Some(Errno::ROFS));
}

#[test]
fn a_listing_of_the_root_goes_on_at_offsets_that_nobody_remembers() {
    let (first, second) = (served(100), served(100));
    let context = Context::default();
    let mut offsets = Vec::new();
    let add = &mut |entry: DirEntry<'_>| {
        offsets.push((entry.name.to_vec(), entry.offset));
        Ok(1)
    };
    first.fs.readdir(&context, ROOT_ID, 0, 1 << 20, 0, add).unwrap();
    assert_eq!(offsets.len(), 103);
    for (index, (_, offset)) in offsets.iter().enumerate() {
        let mut next = None;
        let add = &mut |entry: DirEntry<'_>| {
            next = Some((entry.name.to_vec(), entry.offset));
            Ok(0)
        };
        second.fs.readdir(&context, ROOT_ID, 0, 4096, *offset, add).unwrap();
        assert_eq!(next.as_ref(), offsets.get(index + 1));
    }
    // An offset of a name that is gone, and numbers that never were one.
    for offset in [1 << 62, i64::MAX as u64, u64::MAX] {
        let add = &mut |_: DirEntry<'_>| panic!("there is nothing behind {offset}");
        second.fs.readdir(&context, ROOT_ID, 0, 4096, offset, add).unwrap();
    }
}

#[test]
fn inodes_that_the_kernel_does_not_hold_are_stale() {
    let served = served(1);
    let (fs, context) = (&served.fs, Context::default());
    let errno = |error: io::Error| error.raw_os_error().map(Errno::from_raw_os_error);
    assert_eq!(errno(fs.getattr(&context, 99, None).map(drop).unwrap_err()), Some(Errno::STALE));
    let looked_up = fs.lookup(&context, 99, c"a").map(drop);
    assert_eq!(errno(looked_up.unwrap_err()), Some(Errno::STALE));
    assert_eq!(errno(listing(fs, 99, 4096, true, 1).unwrap_err()), Some(Errno::STALE));
}

#[test]
fn the_roots_modification_time_moves_but_within_a_second() {
    let served = served(0);
    let time = || {
        let (attr, _) = served.fs.getattr(&Context::default(), ROOT_ID, None).unwrap();
        (attr.st_mtime, attr.st_mtime_nsec, attr.st_ctime_nsec)
    };
    let (first, second) = (time(), time());
    assert_eq!((first.0, second.0, first.2, second.2), (1, 1, 0, 0));
    assert_ne!(first.1, second.1);
}
