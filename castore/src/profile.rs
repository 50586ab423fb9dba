//! What a workload touched of a store, and in which order: noted while it runs, written to a file,
//! and fetched ahead of the next run. Who touches things, and how they are fetched, is not known here.
//!
//! The file is text, one line for each thing in the order in which they were first touched:
//!
//! ```text
//! cairn-profile 1
//! root y0lrmcm4zaj0qd44rp7mg83dgyl87lkp-tree
//! directory blake3-…
//! file blake3-… SIZE
//! file blake3-… SIZE OFFSET LENGTH
//! ```

use std::{
    collections::{HashMap, HashSet},
    fmt,
    io::{self, BufRead, Write},
    ops::Range,
    str::FromStr,
};

use parking_lot::Mutex;

use crate::{Digest, Name, chunking::CHUNK_MAX, outboard::GROUP_LEN};

/// The first line, which tells the format and its version.
const HEADER: &str = "cairn-profile 1";

/// The things that are noted, at most, and the lines that are read: about 100 MB of either.
const TOUCHES_MAX: usize = 1 << 20;

/// A line's bytes, at most.
const LINE_MAX: usize = 1024;

/// The largest file that is touched as a whole wherever it is read, in bytes, since a cache keeps it
/// as a whole.
const WHOLE_MAX: u64 = CHUNK_MAX as u64;

/// The parts of larger ones, in bytes.
const PART: u64 = GROUP_LEN as u64;

/// Something that was touched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Touch {
    /// A name in the root.
    Root(Name),
    /// A directory, whose entries were looked at.
    Directory(Digest),
    /// A part of a file, from a multiple of [`GROUP_LEN`] on, or all of it.
    File {
        /// Its contents.
        digest: Digest,
        /// All of their bytes.
        size: u64,
        /// Those that were read.
        range: Range<u64>,
    },
}

impl fmt::Display for Touch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Root(name) => write!(f, "root {name}"),
            Self::Directory(digest) => write!(f, "directory {digest}"),
            Self::File { digest, size, range } if *range == (0..*size) => {
                write!(f, "file {digest} {size}")
            }
            Self::File { digest, size, range } => {
                write!(f, "file {digest} {size} {} {}", range.start, range.end - range.start)
            }
        }
    }
}

impl FromStr for Touch {
    type Err = &'static str;

    fn from_str(line: &str) -> Result<Self, &'static str> {
        let mut words = line.split(' ');
        let mut word = || words.next().ok_or("it ends early");
        let kind = word()?;
        let first = word()?;
        let digest = || first.parse::<Digest>().map_err(|_| "no digest");
        let number = |text: &str| text.parse::<u64>().map_err(|_| "no number");
        let touch = match kind {
            "root" => Self::Root(Name::try_from(first).map_err(|_| "no name")?),
            "directory" => Self::Directory(digest()?),
            "file" => {
                let (digest, size) = (digest()?, number(word()?)?);
                let range = match words.next() {
                    None => 0..size,
                    Some(offset) => {
                        let (offset, length) = (number(offset)?, words.next().unwrap_or_default());
                        let end = offset.checked_add(number(length)?);
                        let is_within = |end: &u64| offset < *end && *end <= size;
                        offset..end.filter(is_within).ok_or("the part is not within the file")?
                    }
                };
                Self::File { digest, size, range }
            }
            _ => return Err("it starts with none of root, directory and file"),
        };
        match words.next() {
            None => Ok(touch),
            Some(_) => Err("something follows"),
        }
    }
}

/// What was touched, in order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Profile(Vec<Touch>);

impl From<Vec<Touch>> for Profile {
    fn from(touches: Vec<Touch>) -> Self {
        Self(touches)
    }
}

/// Why a text is no profile.
#[derive(Debug, thiserror::Error)]
pub enum InvalidProfile {
    /// It does not start like one.
    #[error("it is no profile: its first line is not {HEADER:?}")]
    Header,
    /// A line is wrong.
    #[error("line {number} is wrong: {reason}")]
    Line {
        /// The line's number, from 1.
        number: usize,
        /// What is wrong.
        reason: &'static str,
    },
    /// There are more lines than are ever noted.
    #[error("it has more than {TOUCHES_MAX} lines")]
    TooLong,
    /// It can't be read.
    #[error("it can't be read")]
    Io(#[from] io::Error),
}

impl Profile {
    /// What was touched, in order.
    pub fn touches(&self) -> &[Touch] {
        &self.0
    }

    /// Reads a profile as it is written to a file.
    pub fn read(mut from: impl BufRead) -> Result<Self, InvalidProfile> {
        if next_line(&mut from, 1)?.as_deref() != Some(HEADER) {
            return Err(InvalidProfile::Header);
        }
        let mut touches = Vec::new();
        while let Some(line) = next_line(&mut from, touches.len() + 2)? {
            let number = touches.len() + 2;
            if touches.len() == TOUCHES_MAX {
                return Err(InvalidProfile::TooLong);
            }
            let touch = line.parse().map_err(|reason| InvalidProfile::Line { number, reason })?;
            touches.push(touch);
        }
        Ok(Self(touches))
    }

    /// Writes it as it is in a file.
    pub fn write(&self, mut to: impl Write) -> io::Result<()> {
        writeln!(to, "{HEADER}")?;
        self.0.iter().try_for_each(|touch| writeln!(to, "{touch}"))
    }
}

fn next_line(from: &mut impl BufRead, number: usize) -> Result<Option<String>, InvalidProfile> {
    let mut line = Vec::new();
    io::Read::take(&mut *from, LINE_MAX as u64).read_until(b'\n', &mut line)?;
    let reason = match line.pop() {
        None => return Ok(None),
        Some(b'\n') => match String::from_utf8(line) {
            Ok(line) => return Ok(Some(line)),
            Err(_) => "it is no UTF-8",
        },
        Some(_) if line.len() + 1 == LINE_MAX => "it is too long",
        Some(_) => "the file ends in the middle of it",
    };
    match number {
        1 => Err(InvalidProfile::Header),
        number => Err(InvalidProfile::Line { number, reason }),
    }
}

/// Notes what is touched, each thing once.
#[derive(Debug, Default)]
pub struct Recorder(Mutex<Recorded>);

#[derive(Debug, Default)]
struct Recorded {
    touches: Vec<Touch>,
    /// Roots, directories and files that were touched as a whole.
    wholes: HashSet<Vec<u8>>,
    /// The parts of other files.
    parts: HashMap<Digest, HashSet<u64>>,
    is_full: bool,
}

impl Recorder {
    /// A name in the root was found.
    pub fn root(&self, name: &Name) {
        // It has to stay a line of words.
        let is_word = |byte: &u8| byte.is_ascii_graphic();
        if name.as_ref().iter().all(is_word) {
            self.0.lock().note_whole(name.as_ref(), || Touch::Root(name.clone()));
        }
    }

    /// The entries of a directory were looked at.
    pub fn directory(&self, digest: &Digest) {
        self.0.lock().note_whole(digest.as_bytes(), || Touch::Directory(*digest));
    }

    /// Bytes of a file were read. `size` is that of all of the file.
    pub fn file(&self, digest: &Digest, size: u64, range: Range<u64>) {
        let range = range.start..range.end.min(size);
        if range.is_empty() {
            return;
        }
        let mut recorded = self.0.lock();
        if size <= WHOLE_MAX {
            let touch = || Touch::File { digest: *digest, size, range: 0..size };
            return recorded.note_whole(digest.as_bytes(), touch);
        }
        for part in range.start / PART..range.end.div_ceil(PART) {
            recorded.note_part(digest, size, part);
        }
    }

    /// What was noted so far.
    pub fn profile(&self) -> Profile {
        Profile(self.0.lock().touches.clone())
    }
}

impl Recorded {
    fn note_whole(&mut self, key: &[u8], touch: impl FnOnce() -> Touch) {
        if !self.wholes.contains(key) && self.has_room() {
            self.wholes.insert(key.to_vec());
            self.touches.push(touch());
        }
    }

    fn note_part(&mut self, digest: &Digest, size: u64, part: u64) {
        if self.parts.get(digest).is_some_and(|parts| parts.contains(&part)) || !self.has_room() {
            return;
        }
        self.parts.entry(*digest).or_default().insert(part);
        let (start, end) = (part * PART, ((part + 1) * PART).min(size));
        match self.touches.last_mut() {
            Some(Touch::File { digest: last, range, .. })
                if last == digest && range.end == start =>
            {
                range.end = end;
            }
            _ => self.touches.push(Touch::File { digest: *digest, size, range: start..end }),
        }
    }

    fn has_room(&mut self) -> bool {
        let has_room = self.touches.len() < TOUCHES_MAX;
        if !has_room && !std::mem::replace(&mut self.is_full, true) {
            tracing::warn!(most = TOUCHES_MAX, "what is touched from here on is not noted");
        }
        has_room
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> Name {
        Name::try_from(text).unwrap()
    }

    fn recorded() -> Profile {
        let recorder = Recorder::default();
        let (small, large) = (Digest::of(b"small"), Digest::of(b"large"));
        recorder.root(&name("tree"));
        recorder.directory(&Digest::EMPTY);
        recorder.file(&small, 700, 0..100);
        recorder.file(&large, 10 * PART + 1, PART + 5..PART + 6);
        recorder.file(&large, 10 * PART + 1, 2 * PART..4 * PART);
        recorder.root(&name("tree"));
        recorder.root(&name("not a word"));
        recorder.directory(&Digest::EMPTY);
        recorder.file(&small, 700, 100..700);
        recorder.file(&large, 10 * PART + 1, 3 * PART..u64::MAX);
        recorder.file(&large, 10 * PART + 1, 11 * PART..12 * PART);
        recorder.file(&large, 10 * PART + 1, 0..1);
        recorder.profile()
    }

    #[test]
    fn each_thing_is_noted_once_in_the_order_of_the_first_touch() {
        let (small, large) = (Digest::of(b"small"), Digest::of(b"large"));
        let size = 10 * PART + 1;
        let expected = [
            Touch::Root(name("tree")),
            Touch::Directory(Digest::EMPTY),
            Touch::File { digest: small, size: 700, range: 0..700 },
            Touch::File { digest: large, size, range: PART..size },
            Touch::File { digest: large, size, range: 0..PART },
        ];
        assert_eq!(recorded().touches(), expected);
    }

    #[test]
    fn what_is_written_is_read() {
        let mut bytes = Vec::new();
        recorded().write(&mut bytes).unwrap();
        assert_eq!(Profile::read(&*bytes).unwrap(), recorded());
        let text = String::from_utf8(bytes).unwrap();
        let end = format!("file {} 2621441 0 262144\n", Digest::of(b"large"));
        assert!(text.starts_with("cairn-profile 1\nroot tree\n"), "{text}");
        assert!(text.ends_with(&end), "{text}");
    }

    #[test]
    fn other_texts_are_refused() {
        let digest = Digest::EMPTY;
        let refused = |text: &str| Profile::read(text.as_bytes()).unwrap_err().to_string();
        for text in ["", "cairn-profile 2\n", "cairn-profile 1", "\0"] {
            assert!(refused(text).contains("no profile"), "{text:?}");
        }
        for line in [
            "",
            "root",
            "root a/b",
            "root a b",
            "directory x",
            "link a",
            &format!("file {digest}"),
            &format!("file {digest} -1"),
            &format!("file {digest} 9 1"),
            &format!("file {digest} 9 9 1"),
            &format!("file {digest} 9 1 0"),
            &format!("file {digest} 9 1 18446744073709551615"),
            &format!("file {digest} 9 1 2 3"),
            &"x".repeat(2 * LINE_MAX),
        ] {
            let error = refused(&format!("{HEADER}\nroot a\n{line}\n"));
            assert!(error.starts_with("line 3 is wrong"), "{line:?}: {error}");
        }
        assert!(refused(&format!("{HEADER}\nroot a")).contains("line 2"));
    }
}
