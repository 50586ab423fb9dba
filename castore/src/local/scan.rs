//! Finding the records of a pack without the index, past damage if there is some. What is made of
//! them is in `reopen`.

use std::{fs::File, io, os::unix::fs::FileExt as _, path::Path};

use super::{
    error::LocalError,
    pack::{Place, pack_path},
    record::{HEAD_MAX, Header, MAGIC},
};

/// The bytes that are read at a time.
const WINDOW: usize = 1024 * 1024;

/// The damaged records that are remembered until it is known whether anything follows them.
const DAMAGED_MAX: usize = 4096;

/// A record that was found.
pub(super) struct Found {
    pub(super) header: Header,
    pub(super) place: Place,
    /// Where it ends.
    pub(super) end: u64,
}

/// What a scan has seen.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Summary {
    /// The end of the last whole record; where the scan began if there is none.
    pub(super) end: u64,
    /// Stretches of damage that whole records follow.
    pub(super) gaps: usize,
}

/// Whether payloads are compared with their checksums. Without it, no record is found damaged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Payloads {
    Checked,
    Skipped,
}

/// Why a scan was not finished.
pub(super) enum ScanError {
    /// Whoever was handed the records failed.
    Store(LocalError),
    /// The pack could not be read.
    Io(io::Error),
}

impl ScanError {
    /// The error of the scan of this pack.
    pub(super) fn of_pack(self, folder: &Path, id: u32) -> LocalError {
        match self {
            Self::Store(error) => error,
            Self::Io(error) => LocalError::io("read", &pack_path(folder, id), error),
        }
    }
}

impl From<io::Error> for ScanError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl From<LocalError> for ScanError {
    fn from(error: LocalError) -> Self {
        Self::Store(error)
    }
}

/// Hands on the records between `from` and `length` in their order. One whose header is whole but
/// whose payload is not is handed on as suspect, if a whole record follows it: without one it may
/// just not have been written to its end.
pub(super) fn scan(
    file: &File,
    pack: u32,
    from: u64,
    length: u64,
    payloads: Payloads,
    mut visit: impl FnMut(Found) -> Result<(), ScanError>,
) -> Result<Summary, ScanError> {
    let mut window = Window { file, length, start: 0, bytes: Vec::new() };
    let mut summary = Summary { end: from, gaps: 0 };
    let mut damaged = Vec::new();
    let mut at = from;
    while at < length {
        let Some(header) = window.header(pack, at)? else {
            match window.find(pack, at + 1)? {
                Some(next) => at = next,
                None => break,
            }
            continue;
        };
        let next = at + header.record_len();
        let suspect = payloads == Payloads::Checked && !window.has_payload(&header, at)?;
        let (stored, raw) = (header.stored, header.raw);
        let found =
            Found { header, place: Place { pack, offset: at, stored, raw, suspect }, end: next };
        if suspect {
            if damaged.len() < DAMAGED_MAX {
                damaged.push(found);
            }
            // Its length is known, so what lies in its payload is no record.
            let is_followed = next == length || window.header(pack, next)?.is_some();
            at = match is_followed {
                true => next,
                false => window.find(pack, at + 1)?.unwrap_or(length),
            };
            continue;
        }
        if at != summary.end {
            summary.gaps += 1;
        }
        for damaged in damaged.drain(..) {
            visit(damaged)?;
        }
        visit(found)?;
        summary.end = next;
        at = next;
    }
    Ok(summary)
}

/// A part of a pack in memory.
struct Window<'a> {
    file: &'a File,
    length: u64,
    start: u64,
    bytes: Vec<u8>,
}

impl Window<'_> {
    /// At most `wanted` bytes (at most [`WINDOW`]) from `at`; fewer only at the pack's end.
    fn bytes(&mut self, at: u64, wanted: usize) -> io::Result<&[u8]> {
        let wanted = wanted.min(usize::try_from(self.length.saturating_sub(at)).unwrap_or(WINDOW));
        let is_inside =
            at >= self.start && at + wanted as u64 <= self.start + self.bytes.len() as u64;
        if !is_inside {
            let rest = usize::try_from(self.length.saturating_sub(at)).unwrap_or(WINDOW);
            self.bytes.resize(rest.min(WINDOW), 0);
            self.start = at;
            if let Err(error) = self.file.read_exact_at(&mut self.bytes, at) {
                self.bytes.clear();
                return Err(error);
            }
        }
        let from = (at - self.start) as usize;
        Ok(&self.bytes[from..from + wanted])
    }

    /// The header at a place, if there is a whole one and the pack has room for its payload.
    fn header(&mut self, pack: u32, at: u64) -> io::Result<Option<Header>> {
        let rest = self.length.saturating_sub(at);
        let header = Header::parse(self.bytes(at, HEAD_MAX)?, pack, at).ok();
        Ok(header.filter(|header| header.record_len() <= rest))
    }

    fn has_payload(&mut self, header: &Header, at: u64) -> io::Result<bool> {
        let mut checksum = 0;
        let mut done = header.head_len() as u64;
        while done < header.record_len() {
            let wanted = usize::try_from(header.record_len() - done).unwrap_or(WINDOW).min(WINDOW);
            let bytes = self.bytes(at + done, wanted)?;
            checksum = crc32c::crc32c_append(checksum, bytes);
            done += bytes.len() as u64;
        }
        Ok(header.admits(checksum))
    }

    /// The next place at or behind `from` with a whole header.
    fn find(&mut self, pack: u32, from: u64) -> io::Result<Option<u64>> {
        let mut at = from;
        while at < self.length {
            let bytes = self.bytes(at, WINDOW / 2)?;
            let step = bytes.len();
            match bytes.windows(MAGIC.len()).position(|window| window == MAGIC) {
                Some(position) => {
                    at += position as u64;
                    if self.header(pack, at)?.is_some() {
                        return Ok(Some(at));
                    }
                    at += 1;
                }
                // The magic may lie across the end of what was looked at.
                None if step >= MAGIC.len() => at += (step - MAGIC.len() + 1) as u64,
                None => return Ok(None),
            }
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::local::record::{Encoded, Key, Kind};

    /// A file of records with values of these sizes, and where they start.
    fn pack(sizes: &[usize]) -> (File, Vec<u64>, u64) {
        let file = tempfile::tempfile().unwrap();
        let mut at = 24;
        let mut starts = Vec::new();
        for (index, size) in sizes.iter().enumerate() {
            let key = Key::new(Kind::Nar, &index.to_le_bytes()).unwrap();
            let mut value = vec![0; *size];
            blake3::Hasher::new().update(&index.to_le_bytes()).finalize_xof().fill(&mut value);
            let mut record = Encoded::new(key, value.into(), None).unwrap();
            file.write_all_at(&record.sealed(1, at).concat(), at).unwrap();
            starts.push(at);
            at += record.len() as u64;
        }
        (file, starts, at)
    }

    fn found(file: &File, from: u64, length: u64) -> (Vec<(u64, bool)>, Summary) {
        let mut found = Vec::new();
        let summary = scan(file, 1, from, length, Payloads::Checked, |record| {
            found.push((record.place.offset, record.place.suspect));
            Ok(())
        });
        (found, summary.unwrap_or_else(|_| panic!("the file can be read")))
    }

    const SIZES: [usize; 5] = [10, 3 * WINDOW + 5, 0, 700_000, 20];

    #[test]
    fn whole_packs_have_all_their_records() {
        let (file, starts, end) = pack(&SIZES);
        let (records, summary) = found(&file, 24, end);
        assert_eq!(records, starts.iter().map(|start| (*start, false)).collect::<Vec<_>>());
        assert_eq!(summary, Summary { end, gaps: 0 });
    }

    #[test]
    fn damage_is_passed_over_and_a_torn_tail_is_told() {
        let (file, starts, end) = pack(&SIZES);
        // In a header, and in a payload.
        file.write_all_at(b"?", starts[2] + 5).unwrap();
        file.write_all_at(&[0; 50], starts[3] + 600_000).unwrap();
        let (records, summary) = found(&file, 24, end);
        let expected =
            [(starts[0], false), (starts[1], false), (starts[3], true), (starts[4], false)];
        assert_eq!(records, expected);
        assert_eq!(summary, Summary { end, gaps: 1 });

        for cut in [end - 1, starts[4] + 30, starts[4] + 3, starts[4]] {
            let (records, summary) = found(&file, 24, cut);
            assert_eq!(records, expected[..2], "nothing whole follows the damaged records");
            assert_eq!(summary, Summary { end: starts[2], gaps: 0 });
        }
    }

    #[test]
    fn records_within_a_damaged_payload_do_not_count() {
        let key = Key::new(Kind::PathInfo, &[1; 20]).unwrap();
        let mut inner = Encoded::new(key, b"spoofed"[..].into(), None).unwrap();
        let inner = inner.sealed(1, 24).concat();
        let file = tempfile::tempfile().unwrap();
        let outer = Key::new(Kind::Nar, b"outer").unwrap();
        let mut outer = Encoded::new(outer, inner.into(), None).unwrap();
        let end = 24 + outer.len() as u64;
        file.write_all_at(&outer.sealed(1, 24).concat(), 24).unwrap();
        file.write_all_at(&[0], 24 + 4).unwrap();
        assert_eq!(found(&file, 24, end), (vec![], Summary { end: 24, gaps: 0 }));
    }
}
