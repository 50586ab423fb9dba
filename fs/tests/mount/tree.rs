//! What is in a tree, and what programs are told about it.

use std::{
    ffi::CStr,
    fs::{self, File, OpenOptions, Permissions},
    io::{self, Read as _, Seek as _, SeekFrom},
    os::unix::{
        ffi::OsStrExt as _,
        fs::{FileExt as _, MetadataExt as _, PermissionsExt as _},
    },
    path::Path,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use cairn_castore::Node;
use cairn_fs::file_system::FileSystemOptions;
use rustix::{fs::XattrFlags, io::Errno};

use crate::fixture::*;

/// A tree with something of everything.
fn varied(store: &Store) -> (Node, Vec<(&'static str, Vec<u8>)>) {
    let files = vec![
        ("zero", vec![]),
        ("one", bytes(1)),
        ("page", bytes(4096)),
        ("page+1", bytes(4097)),
        ("d/large", bytes(700_000)),
        ("d/larger", bytes(3 * 1024 * 1024 + 17)),
        ("run", b"#!/bin/sh\necho ok\n".to_vec()),
    ];
    let file = |path: &str| {
        let (_, bytes) = files.iter().find(|(file, _)| *file == path).unwrap();
        store.file(bytes.clone())
    };
    let d = store.directory([("large", file("d/large")), ("larger", file("d/larger"))]);
    let root = store.directory([
        ("zero", file("zero")),
        ("one", file("one")),
        ("page", file("page")),
        ("page+1", file("page+1")),
        ("run", store.executable(files[6].1.clone())),
        ("d", d),
        ("empty", store.directory::<&str>([])),
        ("link", symlink("d/large")),
        ("dangling", symlink("/nowhere")),
    ]);
    (root, files)
}

#[test]
fn a_tree_reads_as_it_was_stored() {
    if !can_mount() {
        return;
    }
    let store = Store::new();
    let (root, files) = varied(&store);
    let mounted = Mounted::tree(&store, root);
    for (path, expected) in &files {
        assert!(fs::read(mounted.path(path)).unwrap() == *expected, "{path} differs");
        let metadata = fs::metadata(mounted.path(path)).unwrap();
        let mode = if *path == "run" { 0o100555 } else { 0o100444 };
        assert_eq!(metadata.mode(), mode, "{path}");
        assert_eq!(metadata.len(), expected.len() as u64);
        assert_eq!(metadata.blocks(), expected.len().div_ceil(512) as u64);
        assert_eq!((metadata.nlink(), metadata.uid(), metadata.gid()), (1, 0, 0));
        assert_eq!((metadata.atime(), metadata.mtime(), metadata.ctime()), (1, 1, 1));
    }
    let output = Command::new(mounted.path("run")).output().unwrap();
    assert_eq!(output.stdout, b"ok\n");
    let expected = ["d", "dangling", "empty", "link", "one", "page", "page+1", "run", "zero"];
    assert_eq!(names_in(&mounted.path("")), expected);
    assert_eq!(names_in(&mounted.path("empty")), [""; 0]);

    let link = fs::symlink_metadata(mounted.path("link")).unwrap();
    assert_eq!((link.mode(), link.len()), (0o120777, 7));
    assert_eq!(fs::read_link(mounted.path("link")).unwrap(), Path::new("d/large"));
    assert_eq!(fs::metadata(mounted.path("link")).unwrap().len(), 700_000);
    let dangling = fs::read(mounted.path("dangling")).unwrap_err();
    assert_eq!(dangling.kind(), io::ErrorKind::NotFound);
}

#[test]
fn directories_have_links_and_a_size_that_stays() {
    if !can_mount() {
        return;
    }
    let store = Store::new();
    let (root, _) = varied(&store);
    let mounted = Mounted::tree(&store, root);
    let before = fs::metadata(mounted.path("")).unwrap();
    assert_eq!((before.mode(), before.nlink(), before.len()), (0o40555, 4, 9));
    names_in(&mounted.path(""));
    let after = fs::metadata(mounted.path("")).unwrap();
    assert_eq!((after.nlink(), after.len(), after.ino()), (4, 9, before.ino()));
    assert_eq!(fs::metadata(mounted.path("empty")).unwrap().nlink(), 2);
    let top = fs::metadata(mounted.top()).unwrap();
    assert_eq!((top.mode(), top.mtime()), (0o40555, 1));
    assert!(top.nlink() > 0);
}

#[test]
fn inode_numbers_are_the_same_in_listings_and_in_every_mount() {
    if !can_mount() {
        return;
    }
    let store = Store::new();
    let (root, _) = varied(&store);
    let numbers = |mounted: &Mounted| {
        let mut numbers: Vec<_> = fs::read_dir(mounted.path(""))
            .unwrap()
            .map(|entry| entry.unwrap())
            .map(|entry| {
                let listed = std::os::unix::fs::DirEntryExt::ino(&entry);
                assert_eq!(listed, entry.metadata().unwrap().ino(), "{:?}", entry.file_name());
                (entry.file_name(), listed)
            })
            .collect();
        numbers.sort();
        numbers
    };
    let first = numbers(&Mounted::tree(&store, root.clone()));
    assert_eq!(numbers(&Mounted::tree(&store, root)), first);
}

#[test]
fn any_part_of_a_file_can_be_read() {
    if !can_mount() {
        return;
    }
    let store = Store::new();
    let expected = bytes(3 * 1024 * 1024 + 17);
    let root = store.directory([("f", store.file(expected.clone()))]);
    let mounted = Mounted::tree(&store, root);
    let mut file = File::open(mounted.path("f")).unwrap();
    for (offset, length) in [
        (0, 1),
        (1_048_575, 2),
        (2_000_000, 1_500_000),
        (3_145_744, 10),
        (3_145_745, 1),
        (9_999_999, 5),
    ] {
        let mut buffer = vec![0; length];
        let mut read = 0;
        while let n @ 1.. = file.read_at(&mut buffer[read..], (offset + read) as u64).unwrap() {
            read += n;
        }
        let end = (offset + length).min(expected.len());
        assert_eq!(buffer[..read], expected[offset.min(end)..end], "{length} from {offset}");
    }
    file.seek(SeekFrom::End(-3)).unwrap();
    let mut tail = Vec::new();
    file.read_to_end(&mut tail).unwrap();
    assert_eq!(tail, expected[expected.len() - 3..]);
}

#[test]
fn equal_files_keep_their_own_modes() {
    if !can_mount() {
        return;
    }
    let store = Store::new();
    let root = store.directory([("plain", store.file("x")), ("run", store.executable("x"))]);
    let mounted = Mounted::tree(&store, root);
    let mode = |path| fs::metadata(mounted.path(path)).unwrap().mode();
    for _ in 0..2 {
        assert_eq!((mode("plain"), mode("run")), (0o100444, 0o100555));
        names_in(&mounted.path(""));
    }
}

#[test]
fn a_process_stays_where_it_is_when_an_equal_directory_is_looked_at() {
    if !can_mount() {
        return;
    }
    let store = Store::new();
    let deep = store.directory([("f", store.file("x"))]);
    let x = store.directory([("deep", deep)]);
    let (a, b) = (store.directory([("x", x.clone())]), store.directory([("x", x)]));
    let mounted = Mounted::tree(&store, store.directory([("a", a), ("b", b)]));
    let script = "cd a/x/deep && cat ../../../b/x/deep/f && ls -l ../../../b/x/deep && pwd -P";
    let output =
        Command::new("/bin/bash").args(["-c", script]).current_dir(mounted.path("")).output();
    let output = String::from_utf8(output.unwrap().stdout).unwrap();
    let expected = mounted.path("a/x/deep");
    assert_eq!(output.lines().last(), expected.to_str(), "in {output:?}");
    let inode = |path| fs::metadata(mounted.path(path)).unwrap().ino();
    assert_ne!(inode("a/x/deep"), inode("b/x/deep"));
    assert_eq!(inode("a/x/deep/f"), inode("b/x/deep/f"));
}

#[test]
fn names_that_are_not_there_are_not_there() {
    if !can_mount() {
        return;
    }
    let store = Store::new();
    let names = Names::new([("root", store.directory([("f", store.file("x"))]))]);
    let mounted = Mounted::with(&store, store.services(&names), uncached_root());
    let error = |path: &str| fs::metadata(mounted.path(path)).unwrap_err().raw_os_error();
    let is = |errno: Errno| Some(errno.raw_os_error());
    for _ in 0..2 {
        assert_eq!(error("g"), is(Errno::NOENT));
        assert_eq!(error("../other"), is(Errno::NOENT));
        assert_eq!(error("f/g"), is(Errno::NOTDIR));
        assert_eq!(error(&"n".repeat(256)), is(Errno::NAMETOOLONG));
    }
    names.add("other", store.file("y"));
    assert_eq!(fs::read(mounted.top().join("other")).unwrap(), b"y");
    names.remove("other");
    assert_eq!(error("../other"), is(Errno::NOENT));
    names.add("other", store.file("another"));
    assert_eq!(fs::read(mounted.top().join("other")).unwrap(), b"another");
}

#[test]
fn digests_are_extended_attributes() {
    if !can_mount() {
        return;
    }
    let store = Store::new();
    let file = store.file("x");
    let root = store.directory([("f", file.clone()), ("l", symlink("f"))]);
    let mounted = Mounted::tree(&store, root.clone());
    let get = |path: &str, name: &CStr| {
        let mut value = [0; 100];
        let length = rustix::fs::lgetxattr(mounted.path(path), name, &mut value)?;
        Ok::<_, Errno>(String::from_utf8(value[..length].to_vec()).unwrap())
    };
    let list = |path: &str| {
        let mut names = [0; 200];
        let length = rustix::fs::llistxattr(mounted.path(path), &mut names[..]).unwrap();
        let names = String::from_utf8(names[..length].to_vec()).unwrap();
        names.split_terminator('\0').map(str::to_owned).collect::<Vec<_>>()
    };
    for (path, node, ours, other) in [
        ("", &root, c"user.snix.castore.directory.digest", c"user.snix.castore.blob.digest"),
        ("f", &file, c"user.snix.castore.blob.digest", c"user.snix.castore.directory.digest"),
    ] {
        let digest = digest_of(node).to_string();
        assert_eq!(get(path, ours).as_ref(), Ok(&digest));
        assert_eq!(get(path, c"user.cairn.digest").as_ref(), Ok(&digest));
        assert_eq!(get(path, other), Err(Errno::NODATA));
        assert_eq!(get(path, c"security.nothing"), Err(Errno::NODATA));
        assert_eq!(list(path), ["user.cairn.digest", ours.to_str().unwrap()]);
    }
    assert_eq!(list("l"), [""; 0]);
    let path = mounted.path("f");
    assert_eq!(rustix::fs::getxattr_query(&path, c"user.cairn.digest"), Ok(51));
    let mut short = [0; 50];
    let result = rustix::fs::getxattr(&path, c"user.cairn.digest", &mut short);
    assert_eq!(result, Err(Errno::RANGE));
}

#[test]
fn statfs_is_not_empty() {
    if !can_mount() {
        return;
    }
    let store = Store::new();
    let mounted = Mounted::tree(&store, store.directory::<&str>([]));
    let st = rustix::fs::statvfs(mounted.path("")).unwrap();
    assert_eq!((st.f_bsize, st.f_frsize, st.f_namemax), (4096, 4096, 255));
    assert!(st.f_blocks > 0 && st.f_files > 0);
    assert_eq!((st.f_bfree, st.f_bavail), (0, 0));
}

#[test]
fn nothing_can_be_written() {
    if !can_mount() {
        return;
    }
    let store = Store::new();
    let mounted = Mounted::tree(&store, store.directory([("f", store.file("x"))]));
    let (f, new) = (mounted.path("f"), mounted.path("new"));
    let setxattr = rustix::fs::setxattr(&f, c"user.a", b"1", XattrFlags::empty());
    let results: Vec<(&str, io::Result<()>)> = vec![
        ("create", File::create(&new).map(drop)),
        ("write", OpenOptions::new().append(true).open(&f).map(drop)),
        ("mkdir", fs::create_dir(&new)),
        ("unlink", fs::remove_file(&f)),
        ("rmdir", fs::remove_dir(mounted.path(""))),
        ("rename", fs::rename(&f, &new)),
        ("link", fs::hard_link(&f, &new)),
        ("symlink", std::os::unix::fs::symlink("f", &new)),
        ("chmod", fs::set_permissions(&f, Permissions::from_mode(0o644))),
        ("setxattr", setxattr.map_err(Into::into)),
    ];
    for (what, result) in results {
        let errno = result.unwrap_err().raw_os_error();
        assert_eq!(errno, Some(Errno::ROFS.raw_os_error()), "{what}");
    }
    assert_eq!(fs::read(f).unwrap(), b"x");
}

#[test]
fn many_readers_at_once_see_the_same() {
    if !can_mount() {
        return;
    }
    let store = Store::new();
    let directories = (0..20).map(|d| {
        let files = (0..20).map(|f| (format!("f{f}"), store.file(format!("{d} {f}").repeat(999))));
        (format!("d{d}"), store.directory(files.collect::<Vec<_>>()))
    });
    let root = store.directory(directories.collect::<Vec<_>>());
    let mounted = Mounted::tree(&store, root);
    thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                for d in 0..20 {
                    assert_eq!(names_in(&mounted.path(&format!("d{d}"))).len(), 20);
                    for f in 0..20 {
                        let read = fs::read(mounted.path(&format!("d{d}/f{f}"))).unwrap();
                        assert_eq!(read, format!("{d} {f}").repeat(999).as_bytes());
                    }
                }
            });
        }
    });
}

#[test]
fn what_was_seen_once_costs_no_request() {
    if !can_mount() {
        return;
    }
    let store = Store::new();
    let (root, files) = varied(&store);
    let names = Names::new([("root", root)]);
    let hour = Duration::from_secs(3600);
    let options = FileSystemOptions { root_timeout: hour, ..FileSystemOptions::default() };
    let mounted = Mounted::with(&store, store.services(&names), options);
    let look = || {
        for folder in [mounted.top().to_owned(), mounted.path(""), mounted.path("d")] {
            for entry in fs::read_dir(folder).unwrap() {
                entry.unwrap().metadata().unwrap();
            }
        }
        for (path, bytes) in &files {
            assert_eq!(fs::read(mounted.path(path)).unwrap().len(), bytes.len());
            fs::metadata(mounted.path(path)).unwrap();
        }
        fs::read_link(mounted.path("link")).unwrap();
        fs::metadata(mounted.path("missing")).unwrap_err();
        mounted.mount().request_count()
    };
    // Another test makes the kernel drop its caches meanwhile, so that one round may not do.
    let mut rounds = vec![look()];
    while rounds.len() < 100 && !rounds.ends_with(&[rounds[rounds.len() - 1]; 2]) {
        rounds.push(look());
    }
    assert!(rounds.len() < 100, "every round cost requests: {rounds:?}");
    assert!(rounds[0] > 0);
}

#[test]
fn what_the_kernel_forgets_is_forgotten() {
    if !can_mount() || !is_root() {
        return;
    }
    let store = Store::new();
    let files = (0..2_000).map(|i| (format!("f{i}"), store.file(i.to_string())));
    let root = store.directory(files.collect::<Vec<_>>());
    let mounted = Mounted::tree(&store, root);
    for entry in fs::read_dir(mounted.path("")).unwrap() {
        entry.unwrap().metadata().unwrap();
    }
    let file_system = mounted.mount().file_system();
    assert!(file_system.inode_count() > 2_000);
    // Another test that looks at its mount does not matter; the kernel's own time does.
    let limit = Instant::now() + Duration::from_secs(20);
    while file_system.inode_count() > 1 && Instant::now() < limit {
        fs::write("/proc/sys/vm/drop_caches", "2").unwrap();
        thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(file_system.inode_count(), 1);
    assert_eq!(fs::read(mounted.path("f7")).unwrap(), b"7");
}

#[test]
fn names_of_any_bytes_work() {
    if !can_mount() {
        return;
    }
    let store = Store::new();
    let odd = ["...", " ", "a\nb", "\u{1f5ff}", &"x".repeat(255), "-", "\\"];
    let root = store.directory(odd.map(|name| (name, store.file(name.to_owned()))));
    let mounted = Mounted::tree(&store, root);
    assert_eq!(names_in(&mounted.path("")).len(), odd.len());
    for name in odd {
        let read = fs::read(mounted.path(name)).unwrap();
        assert_eq!(read, std::ffi::OsStr::new(name).as_bytes());
    }
}
