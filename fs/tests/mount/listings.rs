//! Listings: whole, in small pieces, from the middle, and while names come and go.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io,
    mem::MaybeUninit,
    os::fd::OwnedFd,
    path::Path,
};

use cairn_fs::file_system::FileSystemOptions;
use rustix::{
    fs::{Mode, OFlags, RawDir, SeekFrom},
    io::Errno,
};

use crate::fixture::*;

fn open(folder: &Path) -> OwnedFd {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open(folder, flags, Mode::empty()).unwrap()
}

/// The next at most `limit` entries and the offsets behind them, read with a buffer of some bytes.
fn entries<const BUFFER: usize>(folder: &OwnedFd, limit: usize) -> Vec<(String, u64)> {
    let mut buffer = [MaybeUninit::uninit(); BUFFER];
    let mut listing = RawDir::new(folder, &mut buffer);
    let mut entries = Vec::new();
    while entries.len() < limit {
        let Some(entry) = listing.next() else { break };
        let entry = entry.unwrap();
        entries.push((entry.file_name().to_str().unwrap().to_owned(), entry.next_entry_cookie()));
    }
    entries
}

fn names_of(entries: &[(String, u64)]) -> Vec<&str> {
    let mut names: Vec<_> = entries.iter().map(|(name, _)| name.as_str()).collect();
    names.sort_unstable();
    names
}

fn numbered(count: usize) -> Vec<String> {
    (0..count).map(|i| format!("{i:05}-{}", "n".repeat(i % 40))).collect()
}

#[test]
fn a_root_of_many_names_loses_none_whatever_the_buffer() {
    if !can_mount() {
        return;
    }
    let store = Store::new();
    let file = store.file("x");
    let mut expected = numbered(1_500);
    let names = Names::new(expected.iter().map(|name| (name, file.clone())));
    expected.extend([".".to_owned(), "..".to_owned()]);
    expected.sort();
    for options in [FileSystemOptions::default(), uncached_root()] {
        let mounted = Mounted::with(&store, store.services(&names), options);
        // The second and third are answered from the kernel's memory where it may keep it.
        let folder = open(mounted.top());
        assert_eq!(names_of(&entries::<96>(&folder, usize::MAX)), expected);
        assert_eq!(names_of(&entries::<4096>(&open(mounted.top()), usize::MAX)), expected);
        assert_eq!(names_of(&entries::<65536>(&open(mounted.top()), usize::MAX)), expected);
        rustix::fs::seek(&folder, SeekFrom::Start(0)).unwrap();
        assert_eq!(names_of(&entries::<200>(&folder, usize::MAX)), expected);
    }
}

#[test]
fn a_large_directory_is_listed_whole_and_looked_up_quickly() {
    if !can_mount() {
        return;
    }
    let store = Store::new();
    let file = store.file("x");
    let mut expected = numbered(20_000);
    let root = store.directory(expected.iter().map(|name| (name, file.clone())));
    let mounted = Mounted::tree(&store, root);
    for name in &expected {
        fs::symlink_metadata(mounted.path(name)).unwrap();
    }
    expected.extend([".".to_owned(), "..".to_owned()]);
    expected.sort();
    let path = mounted.path("");
    assert_eq!(names_of(&entries::<96>(&open(&path), usize::MAX)), expected);
    assert_eq!(names_of(&entries::<65536>(&open(&path), usize::MAX)), expected);
}

#[test]
fn the_dots_come_first() {
    if !can_mount() {
        return;
    }
    let store = Store::new();
    let inner = store.directory([("!", store.file("x"))]);
    let mounted = Mounted::tree(&store, store.directory([("!", inner)]));
    for path in [mounted.top().to_owned(), mounted.path(""), mounted.path("!")] {
        let listed = entries::<4096>(&open(&path), 2);
        assert_eq!(listed.iter().map(|(name, _)| name).collect::<Vec<_>>(), [".", ".."]);
    }
}

#[test]
fn a_listing_goes_on_from_any_offset_it_gave() {
    if !can_mount() {
        return;
    }
    let store = Store::new();
    let file = store.file("x");
    let names = numbered(150);
    let root = store.directory(names.iter().map(|name| (name, file.clone())));
    let roots = Names::new(names.iter().map(|name| (name, file.clone())));
    roots.add("root", root);
    for options in [FileSystemOptions::default(), uncached_root()] {
        let mounted = Mounted::with(&store, store.services(&roots), options);
        for path in [mounted.top().to_owned(), mounted.path("")] {
            let folder = open(&path);
            let all = entries::<4096>(&folder, usize::MAX);
            for (index, (_, offset)) in all.iter().enumerate().rev() {
                rustix::fs::seek(&folder, SeekFrom::Start(*offset)).unwrap();
                let next = entries::<4096>(&folder, 1);
                assert_eq!(next.first(), all.get(index + 1), "behind {index} of {path:?}");
            }
            rustix::fs::seek(&folder, SeekFrom::Start(0)).unwrap();
            assert_eq!(entries::<4096>(&folder, usize::MAX), all);
        }
    }
}

#[test]
fn names_that_come_and_go_disturb_no_others() {
    if !can_mount() {
        return;
    }
    let store = Store::new();
    let file = store.file("x");
    let expected = numbered(1_000);
    let names = Names::new(expected.iter().map(|name| (name, file.clone())));
    for (round, options) in [FileSystemOptions::default(), uncached_root()].into_iter().enumerate()
    {
        let mounted = Mounted::with(&store, store.services(&names), options);
        let folder = open(mounted.top());
        let mut buffer = [MaybeUninit::uninit(); 300];
        let mut listing = RawDir::new(&folder, &mut buffer);
        let mut seen = Vec::new();
        let mut step = 0;
        while let Some(entry) = listing.next() {
            seen.push(entry.unwrap().file_name().to_str().unwrap().to_owned());
            if !listing.is_buffer_empty() {
                continue;
            }
            step += 1;
            // Some of these come to stand before, some behind the place of the listing.
            names.add(&format!("{:05}-new-{round}", step * 13 % 1_000), file.clone());
            // Another listing meanwhile makes the kernel renew what it keeps.
            if step % 50 == 0 {
                names_in(mounted.top());
            }
        }
        seen.retain(|name| !name.starts_with('.') && !name.contains("-new-"));
        let unique: BTreeSet<_> = seen.iter().collect();
        assert_eq!(unique.len(), seen.len(), "a name came twice");
        assert_eq!(unique, expected.iter().collect());
    }
}

#[test]
fn a_new_name_is_listed_once_the_kernel_asks_again() {
    if !can_mount() {
        return;
    }
    let store = Store::new();
    let names = Names::new([("a", store.file("x"))]);
    let mounted = Mounted::with(&store, store.services(&names), uncached_root());
    assert_eq!(names_in(mounted.top()), ["a"]);
    names.add("b", store.file("y"));
    assert_eq!(names_in(mounted.top()), ["a", "b"]);
    names.remove("a");
    assert_eq!(names_in(mounted.top()), ["b"]);
}

#[test]
fn a_root_that_is_not_to_be_listed_still_has_its_names() {
    if !can_mount() {
        return;
    }
    let store = Store::new();
    let names = Names::new([("a", store.file("x"))]);
    let options = FileSystemOptions { list_root: false, ..FileSystemOptions::default() };
    let mounted = Mounted::with(&store, store.services(&names), options);
    let listed: io::Result<Vec<_>> =
        fs::read_dir(mounted.top()).and_then(|listing| listing.collect());
    assert_eq!(listed.unwrap_err().raw_os_error(), Some(Errno::PERM.raw_os_error()));
    assert_eq!(fs::read(mounted.top().join("a")).unwrap(), b"x");
    let file = File::open(mounted.top().join("b")).unwrap_err();
    assert_eq!(file.kind(), io::ErrorKind::NotFound);
}
