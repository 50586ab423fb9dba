//! A mount against its model: random operations are done on a tree and on what is to be the same
//! tree, and every outcome compared, errors included.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    fs::{self, File, Permissions},
    io,
    mem::MaybeUninit,
    os::{
        fd::OwnedFd,
        unix::{
            ffi::OsStringExt as _,
            fs::{FileExt as _, MetadataExt as _, PermissionsExt as _, symlink},
        },
    },
    path::{Path, PathBuf},
};

use rustix::fs::{Mode, OFlags, RawDir, SeekFrom};

use crate::random::Random;

/// The most bytes that one operation reads.
const READ_MAX: u64 = 3 << 20;

/// The least bytes that hold any one entry of a listing, and the most that are used.
const LISTING_MIN: u64 = 280;
const LISTING_MAX: u64 = 70_000;

/// A tree to be read, and another that should be the same.
#[derive(Debug)]
pub struct Model {
    expected: PathBuf,
    found: PathBuf,
    /// Every node, relative to the top.
    nodes: Vec<PathBuf>,
    directories: Vec<PathBuf>,
    files: Vec<PathBuf>,
}

/// A random tree of about so many nodes: directories of all sizes, empty ones included, files from
/// no bytes to some MiB, contents that come several times, executables, symlinks to all of it and
/// to nowhere, names of any bytes.
pub fn plant(top: &Path, seed: &str, nodes: usize) {
    let mut random = Random::new(seed);
    fs::create_dir(top).unwrap();
    let mut directories = vec![top.to_owned()];
    let mut all = vec![top.to_owned()];
    for index in 0..nodes {
        // Half of the time in one of the last, so that there are deep ones and large ones.
        let recent = random.below(2) * random.below(directories.len().min(4) as u64);
        let at = match recent {
            0 => random.below(directories.len() as u64) as usize,
            recent => directories.len() - recent as usize,
        };
        let path = directories[at].join(name(&mut random, index));
        match random.below(20) {
            0..=2 => {
                fs::create_dir(&path).unwrap();
                directories.push(path.clone());
            }
            3 => {
                let target = match random.below(3) {
                    0 => PathBuf::from("nowhere/at all"),
                    1 => PathBuf::from(format!("{}x", "../".repeat(random.below(9) as usize))),
                    _ => all[random.below(all.len() as u64) as usize].clone(),
                };
                symlink(target, &path).unwrap();
            }
            kind => {
                let length = match random.below(12) {
                    0 => 0,
                    1..=8 => random.below(9000),
                    9 => 4096 * random.below(40),
                    10 => random.below(400_000),
                    _ => random.below(3 << 20),
                };
                let mut content = random.bytes(length as usize);
                if kind < 8 {
                    content = format!("the same {}", kind * 1000).repeat(kind as usize).into();
                }
                fs::write(&path, content).unwrap();
                if random.below(4) == 0 {
                    fs::set_permissions(&path, Permissions::from_mode(0o755)).unwrap();
                }
            }
        }
        all.push(path);
    }
}

/// A name that no other node of the tree has.
fn name(random: &mut Random, index: usize) -> OsString {
    let mut name = match random.below(4) {
        0 => Vec::new(),
        1 => vec![b'n'; random.below(200) as usize],
        2 => "ünïcode ".into(),
        _ => random.bytes(8).into_iter().map(|byte| byte.max(1)).collect(),
    };
    name.retain(|byte| *byte != b'/');
    name.extend_from_slice(format!("-{index}").as_bytes());
    OsString::from_vec(name)
}

/// What an operation leads to, in a form that can be compared and told.
type Outcome = Result<String, i32>;

impl Model {
    /// The tree at `found` is to be the one at `expected`.
    pub fn new(expected: &Path, found: &Path) -> Self {
        let (mut nodes, mut directories, mut files) = (Vec::new(), Vec::new(), Vec::new());
        crate::measure::walk(expected, &mut |path, metadata| {
            let relative = path.strip_prefix(expected).unwrap().to_owned();
            if metadata.is_dir() {
                directories.push(relative.clone());
            } else if metadata.is_file() {
                files.push(relative.clone());
            }
            nodes.push(relative);
        });
        Self { expected: expected.to_owned(), found: found.to_owned(), nodes, directories, files }
    }

    /// Does so many operations, which follow from the seed. Panics at the first that differs.
    pub fn run(&self, seed: &str, steps: usize) {
        let mut random = Random::new(seed);
        for step in 0..steps {
            let told = format!("seed {seed:?}, step {step}");
            match random.below(10) {
                0 | 1 => self.look(&mut random, &told),
                2 => self.miss(&mut random, &told),
                3 | 4 => self.list(&mut random, &told),
                5..=7 => self.read(&mut random, &told),
                8 => self.read_in_order(&mut random, &told),
                _ => self.refuse(&mut random, &told),
            }
        }
    }

    fn one_of<'a>(&self, random: &mut Random, paths: &'a [PathBuf]) -> &'a Path {
        &paths[random.below(paths.len() as u64) as usize]
    }

    /// Does the same with both trees.
    #[track_caller]
    fn compare(&self, path: &Path, told: &str, operation: impl Fn(&Path) -> io::Result<String>) {
        let outcome = |top: &Path| -> Outcome {
            // `join` of nothing would add a slash.
            let path = if path.as_os_str().is_empty() { top.to_owned() } else { top.join(path) };
            operation(&path).map_err(|error| error.raw_os_error().unwrap())
        };
        let (expected, found) = (outcome(&self.expected), outcome(&self.found));
        assert!(expected == found, "{told}: {}: {found:?} and not {expected:?}", path.display());
    }

    /// What a node is, and what a symlink leads to.
    fn look(&self, random: &mut Random, told: &str) {
        let path = self.one_of(random, &self.nodes);
        self.compare(path, told, |path| {
            let metadata = fs::symlink_metadata(path)?;
            let kind = metadata.file_type();
            let mut face = format!("{kind:?}");
            if kind.is_file() {
                face += &format!(" {} {}", metadata.len(), metadata.mode() & 0o100 != 0);
            }
            if kind.is_symlink() {
                face += &format!(" {:?}", fs::read_link(path)?);
            }
            Ok(face)
        });
        self.compare(path, told, |path| {
            // A path to the expected tree itself leads there from both.
            let metadata = fs::metadata(path)?;
            Ok(format!("{:?}", metadata.is_dir()))
        });
    }

    /// Names that are not there, below what may be no directory.
    fn miss(&self, random: &mut Random, told: &str) {
        let path = self.one_of(random, &self.nodes);
        let name = match random.below(3) {
            0 => "none".to_owned(),
            1 => "n".repeat(random.below(300) as usize + 1),
            _ => format!("none-{}/below", random.below(5)),
        };
        // Through a symlink the mount leads to the expected tree, where the answer is the same.
        self.compare(&path.join(name), told, |path| {
            fs::symlink_metadata(path).map(|_| "is there".to_owned())
        });
    }

    /// A directory's names, by replies of any size, and from one of its offsets once more.
    fn list(&self, random: &mut Random, told: &str) {
        let path = self.one_of(random, &self.directories);
        let buffer =
            LISTING_MIN + random.below(LISTING_MAX - LISTING_MIN) / (1 + random.below(200));
        let expected = entries(&open(&self.expected.join(path)), LISTING_MAX as usize);
        let directory = open(&self.found.join(path));
        let found = entries(&directory, buffer as usize);
        let names = |entries: &[Listed]| -> BTreeMap<Vec<u8>, u8> {
            entries.iter().map(|entry| (entry.name.clone(), entry.kind)).collect()
        };
        assert_eq!(names(&found), names(&expected), "{told}: {}", path.display());
        assert_eq!(found.len(), expected.len(), "{told}: {}: a name twice", path.display());
        let at = random.below(found.len() as u64) as usize;
        rustix::fs::seek(&directory, SeekFrom::Start(found[at].offset)).unwrap();
        let rest = entries(&directory, buffer as usize);
        assert_eq!(rest, found[at + 1..], "{told}: {}: from entry {at}", path.display());
    }

    /// Some bytes of a file, also behind its end.
    fn read(&self, random: &mut Random, told: &str) {
        let path = self.one_of(random, &self.files);
        let size = fs::metadata(self.expected.join(path)).unwrap().len();
        let offset = random.below(size + size / 4 + 2);
        let length = match random.below(3) {
            0 => random.below(5000),
            1 => 4096 * random.below(100),
            _ => random.below(READ_MAX),
        };
        self.compare(path, told, |path| {
            let mut bytes = vec![0; length as usize];
            let count = File::open(path)?.read_at(&mut bytes, offset)?;
            bytes.truncate(count);
            Ok(format!("{offset}+{length}: {count} bytes, {}", blake3::hash(&bytes)))
        });
    }

    /// All files of a directory, in the order of a listing.
    fn read_in_order(&self, random: &mut Random, told: &str) {
        let directory = self.one_of(random, &self.directories);
        let mut children: Vec<_> =
            self.files.iter().filter(|file| file.parent() == Some(directory)).collect();
        if random.below(2) == 0 {
            children.sort();
        }
        for path in children {
            self.compare(path, told, |path| {
                let bytes = fs::read(path)?;
                Ok(format!("{} bytes, {}", bytes.len(), blake3::hash(&bytes)))
            });
        }
    }

    /// Nothing can be changed.
    fn refuse(&self, random: &mut Random, told: &str) {
        let path = self.found.join(self.one_of(random, &self.nodes));
        if fs::symlink_metadata(&path).unwrap().is_symlink() {
            // May lead to the expected tree, which can be changed.
            return;
        }
        let outcome = match random.below(4) {
            0 => fs::create_dir(path.join("new")),
            1 => fs::rename(&path, self.found.join("new")),
            2 => fs::set_permissions(&path, Permissions::from_mode(0o777)),
            _ => File::options().append(true).open(&path).map(drop),
        };
        outcome.expect_err(told);
    }
}

/// An entry of a listing.
#[derive(Debug, PartialEq, Eq)]
struct Listed {
    name: Vec<u8>,
    kind: u8,
    /// Where the listing goes on behind it.
    offset: u64,
}

fn open(directory: &Path) -> OwnedFd {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open(directory, flags, Mode::empty()).unwrap()
}

/// The entries from where the directory stands, read with a buffer of some bytes.
fn entries(directory: &OwnedFd, buffer: usize) -> Vec<Listed> {
    let mut buffer = vec![MaybeUninit::uninit(); buffer];
    let mut listing = RawDir::new(directory, &mut buffer);
    let mut entries = Vec::new();
    while let Some(entry) = listing.next() {
        let entry = entry.unwrap();
        entries.push(Listed {
            name: entry.file_name().to_bytes().to_vec(),
            kind: match entry.file_type() {
                rustix::fs::FileType::Directory => b'd',
                rustix::fs::FileType::RegularFile => b'f',
                rustix::fs::FileType::Symlink => b'l',
                other => panic!("{other:?}"),
            },
            offset: entry.next_entry_cookie(),
        });
    }
    entries
}
