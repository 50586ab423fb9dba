//! What programs see on a mount, as on a local disk: the faults that other implementations have
//! here are not ours.

use std::{
    collections::BTreeSet,
    fs,
    os::unix::{
        ffi::OsStrExt as _,
        fs::{MetadataExt as _, PermissionsExt as _},
    },
    path::Path,
    process::Command,
};

use cairn_tests::{
    cairn::{Mount, Scene},
    process::run,
    trees,
};

fn mounted() -> (Scene, Mount, std::path::PathBuf) {
    let scene = Scene::new();
    let tree = trees::small(scene.folder(), "source");
    let cairn = scene.cairn();
    let path = cairn.import(&tree);
    let mount = scene.mount(&cairn, "mnt");
    let root = mount.at(&path);
    (scene, mount, root)
}

#[test]
fn equal_files_keep_their_own_modes() {
    let (_scene, _mount, root) = mounted();
    let [plain, executable] = ["same-plain", "same-executable"].map(|name| root.join(name));
    for _ in 0..2 {
        assert_eq!(fs::metadata(&plain).unwrap().permissions().mode() & 0o7777, 0o444);
        assert_eq!(fs::metadata(&executable).unwrap().permissions().mode() & 0o7777, 0o555);
    }
    assert_eq!(fs::read(plain).unwrap(), fs::read(executable).unwrap());
}

#[test]
fn executables_run() {
    let scene = Scene::new();
    let tree = trees::vector(scene.folder());
    let path = scene.cairn().import(&tree);
    let mount = scene.mount(&scene.cairn(), "mnt");
    assert_eq!(run(&mut Command::new(mount.at(&path).join("run"))).succeeded().text(), "ok\n");
}

#[test]
fn a_root_of_many_names_is_listed_whole() {
    const PATHS: usize = 1504;
    let scene = Scene::new();
    let trees: Vec<_> = (0..PATHS)
        .map(|index| {
            let file = scene.new_folder("files").join(format!("file-{index}"));
            fs::write(&file, index.to_string()).unwrap();
            file
        })
        .collect();
    let cairn = scene.cairn();
    let words = [Path::new("import")].into_iter().chain(trees.iter().map(|tree| tree.as_path()));
    let imported = cairn.run(words).succeeded().lines();
    assert_eq!(imported.len(), PATHS);
    let mount = scene.mount(&cairn, "mnt");
    let listed = fs::read_dir(mount.mountpoint()).unwrap();
    let listed: Vec<_> =
        listed.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    assert_eq!(listed.len(), PATHS);
    let wanted: BTreeSet<_> = imported.iter().map(|path| trees::base_name(path)).collect();
    assert_eq!(listed.iter().map(String::as_str).collect::<BTreeSet<_>>(), wanted);
}

#[test]
fn only_the_whole_name_is_in_the_root() {
    let (_scene, mount, root) = mounted();
    let name = root.file_name().unwrap().to_str().unwrap();
    let hash = &name[..32];
    for wrong in [format!("{hash}-WRONGNAME"), hash.to_owned(), format!("{name}x")] {
        let error = fs::symlink_metadata(mount.mountpoint().join(wrong)).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::NotFound);
    }
    assert!(root.exists());
}

#[test]
fn directories_look_like_directories() {
    let (_scene, mount, root) = mounted();
    for folder in [mount.mountpoint().to_owned(), root.clone(), root.join("a/x")] {
        let before = fs::metadata(&folder).unwrap();
        let all = run(Command::new("ls").arg("-a").arg(&folder)).succeeded().lines();
        assert!(all.iter().any(|name| name == ".") && all.iter().any(|name| name == ".."));
        let after = fs::metadata(&folder).unwrap();
        assert_eq!(before.len(), after.len(), "{} has another size once listed", folder.display());
        assert_eq!(before.ino(), after.ino());
        assert!(after.nlink() > 0);
    }
    let above = fs::metadata(root.join("a/x/..")).unwrap();
    assert_eq!(above.ino(), fs::metadata(root.join("a")).unwrap().ino());

    let statfs = rustix::fs::statfs(mount.mountpoint()).unwrap();
    assert!(statfs.f_bsize > 0 && statfs.f_namelen == 255, "{statfs:?}");
    assert!(statfs.f_blocks > 0 && statfs.f_files > 0, "{statfs:?}");
}

#[test]
fn a_process_stays_where_it_is_when_an_equal_directory_is_looked_at() {
    let (_scene, _mount, root) = mounted();
    // The shell stands in one of two equal directories while the other is walked.
    let script = "cd a/x/deep && find ../../../b >&2 && cd . && pwd -P && ls ..";
    let finished = run(Command::new("sh").args(["-c", script]).current_dir(&root)).succeeded();
    let real = fs::canonicalize(root.join("a/x/deep")).unwrap();
    assert_eq!(finished.lines(), [real.to_str().unwrap(), "deep"]);
    let inodes =
        ["a/x/deep", "b/x/deep"].map(|place| fs::metadata(root.join(place)).unwrap().ino());
    assert_ne!(inodes[0], inodes[1]);
}

#[test]
fn nothing_can_be_written() {
    let (_scene, mount, root) = mounted();
    let read_only = |result: std::io::Result<()>| {
        assert_eq!(result.unwrap_err().kind(), std::io::ErrorKind::ReadOnlyFilesystem);
    };
    read_only(fs::write(root.join("new"), ""));
    read_only(fs::write(mount.mountpoint().join("new"), ""));
    read_only(fs::OpenOptions::new().append(true).open(root.join("large")).map(drop));
    read_only(fs::remove_file(root.join("zero")));
    read_only(fs::create_dir(root.join("folder")));
    read_only(fs::rename(root.join("zero"), root.join("one")));
}

#[test]
fn parts_of_a_file_are_the_parts_of_the_source() {
    use std::os::unix::fs::FileExt as _;

    let (scene, _mount, root) = mounted();
    let content = fs::read(scene.path("source/large")).unwrap();
    let file = fs::File::open(root.join("large")).unwrap();
    let mut random = cairn_tests::random::Random::new("parts");
    for _ in 0..500 {
        let offset = random.below(content.len() as u64 + 5000) as usize;
        let length = random.below(300_000) as usize + 1;
        let mut buffer = vec![0; length];
        let mut filled = 0;
        loop {
            let at = (offset + filled) as u64;
            match file.read_at(&mut buffer[filled..], at).unwrap() {
                0 => break,
                read => filled += read,
            }
        }
        let start = offset.min(content.len());
        let end = (offset + length).min(content.len());
        assert!(buffer[..filled] == content[start..end], "{offset} {length}");
    }
}

#[test]
fn digests_are_extended_attributes() {
    let scene = Scene::new();
    let tree = trees::vector(scene.folder());
    let path = scene.cairn().import(&tree);
    let mount = scene.mount(&scene.cairn(), "mnt");
    let read = |place: &Path, name: &str| {
        let mut buffer = [0; 256];
        let length = rustix::fs::getxattr(place, name, &mut buffer[..]).unwrap();
        String::from_utf8(buffer[..length].to_owned()).unwrap()
    };
    let names = |place: &Path| {
        let mut buffer = [0; 256];
        let length = rustix::fs::listxattr(place, &mut buffer[..]).unwrap();
        let names = buffer[..length].split(|byte| *byte == 0).filter(|name| !name.is_empty());
        names.map(|name| String::from_utf8(name.to_owned()).unwrap()).collect::<Vec<_>>()
    };
    let root: cairn_castore::Digest = trees::VECTOR_ROOT.parse().unwrap();
    let leaf = cairn_castore::Digest::of(b"hi\n");
    for (place, kind, digest) in [("", "directory", root), ("d/f", "blob", leaf)] {
        let place = mount.at(&path).join(place);
        let expected = ["user.cairn.digest", &format!("user.snix.castore.{kind}.digest")];
        assert_eq!(names(&place), expected);
        for name in expected {
            assert_eq!(read(&place, name), digest.to_string());
        }
        let absent = rustix::fs::getxattr(&place, "user.other", &mut [0; 8][..]);
        assert_eq!(absent.err(), Some(rustix::io::Errno::NODATA));
    }
    assert_eq!(names(mount.mountpoint()), [""; 0]);
}

#[test]
fn a_mount_can_be_told_to_have_no_extended_attributes() {
    let scene = Scene::new();
    let tree = trees::vector(scene.folder());
    let path = scene.cairn().import(&tree);
    let mount = scene.cairn().mount_with(&scene.new_folder("mnt"), ["--no-xattr"]);
    let file = mount.at(&path).join("d/f");
    let mut buffer = [0; 256];
    let off = Some(rustix::io::Errno::OPNOTSUPP);
    assert_eq!(rustix::fs::getxattr(&file, "user.cairn.digest", &mut buffer[..]).err(), off);
    assert_eq!(rustix::fs::listxattr(&file, &mut buffer[..]).err(), off);
    // Whoever unmounts needs none.
    let words = ["umount", mount.mountpoint().to_str().unwrap()];
    scene.cairn().run(words).succeeded();
}

#[test]
fn names_of_any_bytes_are_found_by_name() {
    let scene = Scene::new();
    let tree = scene.new_folder("odd");
    let names: [&[u8]; 4] = [b"\xff\xfe", b"a\nb", b"\x80", &[b'n'; 255]];
    for name in names {
        fs::write(tree.join(std::ffi::OsStr::from_bytes(name)), name).unwrap();
    }
    let path = scene.cairn().import(&tree);
    let mount = scene.mount(&scene.cairn(), "mnt");
    for name in names {
        let place = mount.at(&path).join(std::ffi::OsStr::from_bytes(name));
        assert_eq!(fs::read(place).unwrap(), name);
    }
    let long = mount.at(&path).join("n".repeat(256));
    let error = fs::symlink_metadata(long).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::ENAMETOOLONG));
}

#[test]
fn each_name_of_a_large_directory_is_found() {
    const ENTRIES: u32 = 20_000;
    let scene = Scene::new();
    let tree = scene.new_folder("large");
    for index in 0..ENTRIES {
        fs::write(tree.join(format!("entry-{index}")), index.to_string()).unwrap();
    }
    let path = scene.cairn().import(&tree);
    // Names are looked up without a listing, so each is a lookup of its own.
    let mount = scene.mount(&scene.cairn(), "mnt");
    for index in (0..ENTRIES).step_by(37) {
        let place = mount.at(&path).join(format!("entry-{index}"));
        assert_eq!(fs::read_to_string(place).unwrap(), index.to_string());
        let missing = mount.at(&path).join(format!("entry-{index}-not"));
        assert!(!missing.exists());
    }
    let listed = fs::read_dir(mount.at(&path)).unwrap();
    let names: BTreeSet<_> = listed.map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names.len(), ENTRIES as usize);
}
