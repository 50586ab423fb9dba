//! Trees to import: the one whose names and hashes are specified, small ones of any number, and
//! the hard one. Only made here; what they are compared with is the affair of `compare`.

use std::{
    ffi::{OsStr, OsString},
    fs::{self, File},
    os::unix::{ffi::OsStringExt as _, fs::PermissionsExt as _, fs::symlink},
    path::{Path, PathBuf},
};

use crate::random::Random;

/// The store path of [`vector`].
pub const VECTOR_STORE_PATH: &str = "/nix/store/y0lrmcm4zaj0qd44rp7mg83dgyl87lkp-tree";

/// The digest of the root of [`vector`], in hexadecimal.
pub const VECTOR_ROOT: &str = "c196ece39d078098b72cde823e327cf000f81b23a6e60558b7189a6bad9c5a62";

/// The size of the NAR of [`vector`], in bytes.
pub const VECTOR_NAR_SIZE: u64 = 701_424;

/// The SHA-256 of the NAR of [`vector`], in hexadecimal.
pub const VECTOR_NAR_SHA256: &str =
    "36739fcb9b1539fe10b866c1d18013f7255c88c1bc42a1da2a94158f5678f74b";

/// The tree whose digests and store path are specified, as `tree` in a folder.
pub fn vector(folder: &Path) -> PathBuf {
    let tree = folder.join("tree");
    fs::create_dir_all(tree.join("d")).unwrap();
    fs::create_dir(tree.join("empty")).unwrap();
    fs::write(tree.join("big"), vec![b'a'; 700_000]).unwrap();
    fs::write(tree.join("d/f"), "hi\n").unwrap();
    symlink("d/f", tree.join("link")).unwrap();
    executable(&tree.join("run"), "#!/bin/sh\necho ok\n");
    fs::write(tree.join("zero"), "").unwrap();
    tree
}

/// A tree of some twenty nodes and 2 MB, another for each name: files of no, one and several
/// chunks, executables, symlinks, nested and equal directories.
pub fn small(folder: &Path, name: &str) -> PathBuf {
    let tree = folder.join(name);
    let mut random = Random::new(name);
    for place in ["a/x/deep", "b/x/deep"] {
        fs::create_dir_all(tree.join(place)).unwrap();
        fs::write(tree.join(place).join("equal"), format!("equal in {name}")).unwrap();
    }
    for index in 0..8 {
        let length = random.below(20_000) as usize;
        fs::write(tree.join(format!("a/file-{index}")), random.bytes(length)).unwrap();
    }
    fs::write(tree.join("large"), random.bytes(1_800_000)).unwrap();
    executable(&tree.join("same-executable"), "same bytes");
    fs::write(tree.join("same-plain"), "same bytes").unwrap();
    fs::write(tree.join("zero"), "").unwrap();
    fs::create_dir(tree.join("empty")).unwrap();
    symlink("a/file-0", tree.join("link")).unwrap();
    tree
}

/// How much there is of what is hard.
#[derive(Debug, Clone, Copy)]
pub struct Hardness {
    /// The entries of the wide directory.
    pub wide: u32,
    /// The directories in the chain, each in the one before.
    pub deep: u32,
    /// The length of the sparse file in bytes.
    pub sparse: u64,
}

impl Hardness {
    /// As hard as it has to be.
    pub const FULL: Self = Self { wide: 100_000, deep: 200, sparse: 5 << 30 };

    /// The same shapes in a moment.
    pub const QUICK: Self = Self { wide: 3_000, deep: 200, sparse: 64 << 20 };
}

/// A tree of all that is hard to keep, as `hard` in a folder.
pub fn hard(folder: &Path, hardness: Hardness) -> PathBuf {
    let tree = folder.join("hard");
    fs::create_dir(&tree).unwrap();

    let wide = tree.join("wide");
    fs::create_dir(&wide).unwrap();
    for index in 0..hardness.wide {
        fs::write(wide.join(format!("entry-{index}")), index.to_string()).unwrap();
    }

    let chain: PathBuf = (0..hardness.deep).map(|level| format!("level{level}")).collect();
    fs::create_dir_all(tree.join("deep").join(&chain)).unwrap();
    fs::write(tree.join("deep").join(&chain).join("bottom"), "the bottom").unwrap();

    let sparse = File::create(tree.join("sparse")).unwrap();
    sparse.set_len(hardness.sparse).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&sparse, b"the end", hardness.sparse - 7).unwrap();

    let names = tree.join("names");
    fs::create_dir(&names).unwrap();
    for name in hard_names() {
        fs::write(names.join(&name), name.as_encoded_bytes()).unwrap();
    }
    fs::create_dir(names.join("d".repeat(255))).unwrap();
    symlink("x", names.join("l".repeat(255))).unwrap();

    fs::write(tree.join("empty-file"), "").unwrap();
    executable(&tree.join("empty-executable"), "");
    fs::create_dir(tree.join("empty-directory")).unwrap();

    fs::write(tree.join("same-plain"), "the same bytes").unwrap();
    executable(&tree.join("same-executable"), "the same bytes");
    fs::write(tree.join("large-plain"), Random::new("large").bytes(3_000_000)).unwrap();
    executable(&tree.join("large-executable"), Random::new("large").bytes(3_000_000));

    for place in ["equal/a/x/deep", "equal/b/x/deep"] {
        fs::create_dir_all(tree.join(place)).unwrap();
        fs::write(tree.join(place).join("file"), "in two places").unwrap();
    }

    symlink("nowhere", tree.join("dangling")).unwrap();
    symlink("/nowhere/at/all", tree.join("dangling-absolute")).unwrap();
    symlink(".", tree.join("itself")).unwrap();
    symlink("t".repeat(4095), tree.join("long-target")).unwrap();
    symlink(OsString::from_vec(vec![0xff, b'/', 0x80]), tree.join("odd-target")).unwrap();
    tree
}

/// Names at the limits of what a file can be called.
fn hard_names() -> Vec<OsString> {
    let mut long = vec![b'n'; 255];
    let mut names = vec![OsString::from_vec(long.clone())];
    long[0] = 0xff;
    names.push(OsString::from_vec(long));
    for name in [&b"\xff\xfe"[..], b"\x80", b" ", b"...", b"-", b"a\nb", b"\x01", b"*", b"\\", b"~"]
    {
        names.push(OsString::from_vec(name.to_owned()));
    }
    // In byte order `a.b` is before `a`'s children would be: `a-`, `a.`, `a0`.
    names.extend(["a", "a-", "a.", "a0", "A", "ä", "日本"].map(OsString::from));
    // Every byte that a name can have, one name for each.
    names.extend(
        (1..=255u8).filter(|byte| *byte != b'/').map(|byte| OsString::from_vec(vec![b'b', byte])),
    );
    names
}

/// A file that its owner may execute.
pub fn executable(path: &Path, content: impl AsRef<[u8]>) {
    fs::write(path, content).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
}

/// The last component of a path as text.
pub fn base_name(path: &str) -> &str {
    Path::new(path).file_name().and_then(OsStr::to_str).unwrap()
}

/// Makes every file below a folder one of other bytes.
pub fn damage(folder: &Path) {
    for entry in fs::read_dir(folder).unwrap() {
        let entry = entry.unwrap();
        if entry.file_type().unwrap().is_dir() {
            damage(&entry.path());
        } else {
            fs::write(entry.path(), "nonsense").unwrap();
        }
    }
}
