//! Whether two trees on disk are the same: names, types, bytes, executable bits, symlink targets
//! and, for a mount, the whole face of a node. Made to be trusted, so it uses nothing of cairn.

use std::{
    ffi::OsString,
    fmt,
    fs::{self, File, Metadata},
    io::{self, Read},
    os::unix::{ffi::OsStrExt as _, fs::MetadataExt as _},
    path::{Path, PathBuf},
};

/// How many differences are told; the walk ends there.
pub const DIFFERENCES_MAX: usize = 20;

/// The size of the two buffers that files are compared through.
const BUFFER: usize = 1 << 20;

/// What the second tree has to look like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Face {
    /// An ordinary tree, where of the mode only the owner's executable bit counts.
    Plain,
    /// A mount: modes 0444, 0555 and 0777, owner 0:0, every time a second after the epoch, no link
    /// count 0, and the blocks that hold the bytes.
    Mount,
}

/// A place where the trees differ.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// The place in the second tree.
    pub path: PathBuf,
    /// What is there, and what should be.
    pub what: String,
}

/// What a comparison found.
#[derive(Debug, Default)]
pub struct Comparison {
    /// The first differences.
    pub differences: Vec<Difference>,
    /// The nodes compared.
    pub nodes: u64,
    /// The bytes compared.
    pub bytes: u64,
}

/// Compares the tree `found` with the tree `expected`.
///
/// Fails only if the expected tree can't be read; what can't be read of the other is a difference.
pub fn trees(expected: &Path, found: &Path, face: Face) -> io::Result<Comparison> {
    let mut walk =
        Walk { face, result: Comparison::default(), buffers: (vec![0; BUFFER], vec![0; BUFFER]) };
    walk.node(expected, found)?;
    Ok(walk.result)
}

/// Panics, telling the first differences, unless the trees are the same.
#[track_caller]
pub fn assert_same(expected: &Path, found: &Path, face: Face) -> Comparison {
    let comparison = trees(expected, found, face)
        .unwrap_or_else(|error| panic!("{} can't be read: {error}", expected.display()));
    assert!(comparison.differences.is_empty(), "{comparison}");
    comparison
}

struct Walk {
    face: Face,
    result: Comparison,
    buffers: (Vec<u8>, Vec<u8>),
}

impl Walk {
    fn differs(&mut self, path: &Path, what: impl Into<String>) {
        self.result.differences.push(Difference { path: path.to_owned(), what: what.into() });
    }

    fn node(&mut self, expected: &Path, found: &Path) -> io::Result<()> {
        if self.result.differences.len() >= DIFFERENCES_MAX {
            return Ok(());
        }
        self.result.nodes += 1;
        let wanted = fs::symlink_metadata(expected)?;
        let there = match fs::symlink_metadata(found) {
            Ok(metadata) => metadata,
            Err(error) => {
                self.differs(found, format!("can't be looked at: {error}"));
                return Ok(());
            }
        };
        if wanted.file_type() != there.file_type() {
            let types = (wanted.file_type(), there.file_type());
            self.differs(found, format!("is of type {:?} instead of {:?}", types.1, types.0));
            return Ok(());
        }
        if self.face == Face::Mount {
            self.face_of_mount(found, &there);
        }
        if wanted.is_dir() {
            self.directory(expected, found)
        } else if wanted.is_symlink() {
            self.symlink(expected, found, &there)
        } else {
            self.file(expected, found, &wanted, &there)
        }
    }

    fn face_of_mount(&mut self, found: &Path, there: &Metadata) {
        let mode = there.mode() & 0o7777;
        let possible: &[u32] = match there.file_type() {
            kind if kind.is_dir() => &[0o555],
            kind if kind.is_symlink() => &[0o777],
            _ => &[0o444, 0o555],
        };
        if !possible.contains(&mode) {
            self.differs(found, format!("has mode {mode:o}"));
        }
        if (there.uid(), there.gid()) != (0, 0) {
            self.differs(found, format!("belongs to {}:{}", there.uid(), there.gid()));
        }
        if [there.mtime(), there.atime(), there.ctime()] != [1; 3] {
            self.differs(found, "has a time that is not a second after the epoch");
        }
        if there.nlink() == 0 {
            self.differs(found, "has no link");
        }
        let allocated = there.blocks() * 512;
        if there.is_file() && !(there.len()..there.len() + 4096).contains(&allocated) {
            let (blocks, length) = (there.blocks(), there.len());
            self.differs(found, format!("has {blocks} blocks of 512 bytes for {length} bytes"));
        }
    }

    fn directory(&mut self, expected: &Path, found: &Path) -> io::Result<()> {
        let wanted = names(expected)?;
        let there = match names(found) {
            Ok(names) => names,
            Err(error) => {
                self.differs(found, format!("can't be listed: {error}"));
                return Ok(());
            }
        };
        for name in there.iter().filter(|name| wanted.binary_search(name).is_err()) {
            self.differs(&found.join(name), "is too much");
        }
        if let Some(pair) = there.windows(2).find(|pair| pair[0] == pair[1]) {
            self.differs(&found.join(&pair[0]), "is listed twice");
        }
        for name in wanted {
            if there.binary_search(&name).is_err() {
                self.differs(&found.join(&name), "is not listed");
            }
            self.node(&expected.join(&name), &found.join(&name))?;
        }
        Ok(())
    }

    fn symlink(&mut self, expected: &Path, found: &Path, there: &Metadata) -> io::Result<()> {
        let wanted = fs::read_link(expected)?;
        match fs::read_link(found) {
            Ok(target) if target != wanted => {
                self.differs(found, format!("points at {target:?} instead of {wanted:?}"));
            }
            Ok(target) if there.len() != target.as_os_str().len() as u64 => {
                self.differs(found, format!("has the size {}", there.len()));
            }
            Ok(_) => {}
            Err(error) => self.differs(found, format!("can't be read: {error}")),
        }
        Ok(())
    }

    fn file(
        &mut self,
        expected: &Path,
        found: &Path,
        wanted: &Metadata,
        there: &Metadata,
    ) -> io::Result<()> {
        let executable = [wanted, there].map(|metadata| metadata.mode() & 0o100 != 0);
        if executable[0] != executable[1] {
            self.differs(found, format!("is executable: {}", executable[1]));
        }
        if wanted.len() != there.len() {
            self.differs(found, format!("has {} bytes, not {}", there.len(), wanted.len()));
            return Ok(());
        }
        let mut source = File::open(expected)?;
        let mut copy = match File::open(found) {
            Ok(file) => file,
            Err(error) => {
                self.differs(found, format!("can't be opened: {error}"));
                return Ok(());
            }
        };
        let mut offset = 0;
        loop {
            let wanted = fill(&mut source, &mut self.buffers.0)?;
            let there = match fill(&mut copy, &mut self.buffers.1) {
                Ok(length) => length,
                Err(error) => {
                    self.differs(found, format!("can't be read: {error}"));
                    return Ok(());
                }
            };
            let (wanted, there) = (&self.buffers.0[..wanted], &self.buffers.1[..there]);
            if wanted != there {
                let same = wanted.iter().zip(there).take_while(|(a, b)| a == b).count() as u64;
                self.differs(found, format!("differs from byte {} on", offset + same));
                return Ok(());
            }
            if wanted.is_empty() {
                return Ok(());
            }
            offset += wanted.len() as u64;
            self.result.bytes += wanted.len() as u64;
        }
    }
}

fn names(folder: &Path) -> io::Result<Vec<OsString>> {
    let mut names = fs::read_dir(folder)?
        .map(|entry| Ok(entry?.file_name()))
        .collect::<io::Result<Vec<_>>>()?;
    names.sort_unstable_by(|a, b| a.as_bytes().cmp(b.as_bytes()));
    Ok(names)
}

fn fill(source: &mut File, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match source.read(&mut buffer[filled..])? {
            0 => break,
            length => filled += length,
        }
    }
    Ok(filled)
}

impl fmt::Display for Comparison {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "after {} nodes and {} bytes:", self.nodes, self.bytes)?;
        for Difference { path, what } in &self.differences {
            writeln!(f, "{} {what}", path.display())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    use super::*;

    fn pair() -> (tempfile::TempDir, PathBuf, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let (a, b) = (folder.path().join("a"), folder.path().join("b"));
        for root in [&a, &b] {
            fs::create_dir_all(root.join("d/e")).unwrap();
            fs::write(root.join("d/f"), "content").unwrap();
            symlink("d/f", root.join("l")).unwrap();
        }
        (folder, a, b)
    }

    fn found(a: &Path, b: &Path) -> Vec<(String, String)> {
        let differences = trees(a, b, Face::Plain).unwrap().differences;
        let relative = |path: PathBuf| path.strip_prefix(b).unwrap().display().to_string();
        differences.into_iter().map(|found| (relative(found.path), found.what)).collect()
    }

    #[test]
    fn equal_trees_are_equal() {
        let (_folder, a, b) = pair();
        let comparison = assert_same(&a, &b, Face::Plain);
        assert_eq!((comparison.nodes, comparison.bytes), (5, 7));
    }

    #[test]
    fn each_kind_of_difference_is_found() {
        let (_folder, a, b) = pair();
        fs::write(b.join("d/f"), "conTent").unwrap();
        assert_eq!(found(&a, &b), [("d/f".into(), "differs from byte 3 on".into())]);
        fs::write(b.join("d/f"), "contents").unwrap();
        assert_eq!(found(&a, &b), [("d/f".into(), "has 8 bytes, not 7".into())]);
        fs::write(b.join("d/f"), "content").unwrap();
        fs::set_permissions(b.join("d/f"), fs::Permissions::from_mode(0o755)).unwrap();
        assert_eq!(found(&a, &b), [("d/f".into(), "is executable: true".into())]);
        fs::set_permissions(b.join("d/f"), fs::Permissions::from_mode(0o644)).unwrap();

        fs::write(b.join("d/more"), "").unwrap();
        assert_eq!(found(&a, &b), [("d/more".into(), "is too much".into())]);
        fs::remove_file(b.join("d/more")).unwrap();

        fs::remove_file(b.join("l")).unwrap();
        assert_eq!(found(&a, &b)[0], ("l".into(), "is not listed".into()));
        symlink("d/g", b.join("l")).unwrap();
        assert!(found(&a, &b)[0].1.starts_with("points at"));

        fs::remove_dir(b.join("d/e")).unwrap();
        fs::write(b.join("d/e"), "").unwrap();
        assert!(found(&a, &b)[0].1.starts_with("is of type"));
    }

    #[test]
    fn a_plain_tree_has_not_the_face_of_a_mount() {
        let (_folder, a, b) = pair();
        assert!(!trees(&a, &b, Face::Mount).unwrap().differences.is_empty());
    }
}
