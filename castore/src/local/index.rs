//! The seam to the index engine, sled: keys to places, and the mark up to which packs are indexed.
//! Nothing that can't be rebuilt from the packs is in here, and no other module knows sled.

use std::{
    error::Error,
    fs::{self, File},
    io,
    ops::Bound,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    sync::Arc,
    thread,
    time::Duration,
};

use super::{
    error::LocalError,
    pack::Place,
    record::{Key, Kind},
};

/// What sled may hold in memory, in bytes.
const CACHE_BYTES: u64 = 24 * 1024 * 1024;

/// An index of another version is rebuilt.
const INDEX_VERSION: u8 = 1;

/// Not the first byte of any [`Key`].
const MARK_KEY: [u8; 1] = [0];

/// How often an index is tried that another part of this process is just closing, 50 ms apart.
const OPEN_ATTEMPTS: usize = 40;

/// Up to where the packs are indexed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Mark {
    pub(super) pack: u32,
    pub(super) offset: u64,
}

/// What becomes of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Change {
    Set(Place),
    Remove,
}

impl Change {
    /// Where the record is, after this.
    pub(super) fn place(self) -> Option<Place> {
        match self {
            Self::Set(place) => Some(place),
            Self::Remove => None,
        }
    }
}

/// The index. Every operation turns what sled does when it fails, a panic included, into an error.
pub(super) struct Index {
    path: PathBuf,
    db: sled::Db,
}

impl Index {
    /// Opens the index, or makes an empty one.
    pub(super) fn open(path: &Path) -> Result<Self, LocalError> {
        let config = sled::Config::new().path(path).cache_capacity(CACHE_BYTES);
        let mut attempts = 1..OPEN_ATTEMPTS;
        loop {
            match guarded(path, || config.open()) {
                Ok(db) => return Ok(Self { path: path.to_owned(), db }),
                Err(LocalError::Index { source, .. })
                    if is_contended(&*source) && attempts.next().is_some() =>
                {
                    thread::sleep(Duration::from_millis(50));
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Up to where the packs are indexed: `None` for an empty index, an error for one of another
    /// version.
    pub(super) fn mark(&self) -> Result<Option<Mark>, LocalError> {
        let Some(value) = guarded(&self.path, || self.db.get(MARK_KEY))? else { return Ok(None) };
        let mark = decode_mark(&value).ok_or_else(|| self.invalid("a mark of another version"))?;
        Ok(Some(mark))
    }

    /// Where a record is.
    pub(super) fn get(&self, key: &Key) -> Result<Option<Place>, LocalError> {
        let value = guarded(&self.path, || self.db.get(key.indexed()))?;
        let Some(value) = value else { return Ok(None) };
        Ok(Some(decode_place(&value).ok_or_else(|| self.invalid("an entry of another version"))?))
    }

    /// Whether no record is in it.
    pub(super) fn is_empty(&self) -> Result<bool, LocalError> {
        let first = guarded(&self.path, || self.db.range([MARK_KEY[0] + 1]..).next().transpose())?;
        Ok(first.is_none())
    }

    /// Applies changes, in their order, and then the mark. One that fails may be applied in part;
    /// to do it once more does no harm.
    ///
    /// Quickest in the order of the keys. sled's batches, which are all or nothing, take twice the
    /// time, and let nobody read meanwhile.
    pub(super) fn apply(
        &self,
        changes: &[(Key, Change)],
        mark: Option<Mark>,
    ) -> Result<(), LocalError> {
        guarded(&self.path, || {
            for (key, change) in changes {
                match change {
                    Change::Set(place) => {
                        self.db.insert(key.indexed(), encode_place(place).as_slice())?
                    }
                    Change::Remove => self.db.remove(key.indexed())?,
                };
            }
            if let Some(mark) = mark {
                self.db.insert(MARK_KEY, encode_mark(mark).as_slice())?;
            }
            Ok(())
        })
    }

    /// The next at most `limit` records of a kind, behind `after`, in the order of their keys.
    pub(super) fn list(
        &self,
        kind: Kind,
        after: Option<&Key>,
        limit: usize,
    ) -> Result<Vec<(Key, Place)>, LocalError> {
        let from = match after {
            Some(after) => Bound::Excluded(after.indexed().to_vec()),
            None => Bound::Included(vec![kind as u8]),
        };
        let to = Bound::Excluded(vec![kind as u8 + 1]);
        let entries = guarded(&self.path, || {
            self.db.range((from, to)).take(limit).collect::<Result<Vec<_>, _>>()
        })?;
        let decode = |(key, value): (sled::IVec, sled::IVec)| {
            Some((Key::from_indexed(&key)?, decode_place(&value)?))
        };
        entries
            .into_iter()
            .map(|entry| decode(entry).ok_or_else(|| self.invalid("an entry of another version")))
            .collect()
    }

    /// The bytes of its files.
    pub(super) fn size_on_disk(&self) -> Result<u64, LocalError> {
        guarded(&self.path, || self.db.size_on_disk())
    }

    /// Hands everything to the system, so that it outlives this process.
    pub(super) fn flush(&self) -> Result<(), LocalError> {
        guarded(&self.path, || self.db.flush())?;
        Ok(())
    }

    /// Writes everything to the disk, which sled's own flush does not.
    pub(super) fn close(&self) -> Result<(), LocalError> {
        self.flush()?;
        sync_files(&self.path).map_err(|error| LocalError::io("write", &self.path, error))
    }

    fn invalid(&self, what: &str) -> LocalError {
        LocalError::Index { path: self.path.clone(), source: Arc::from(Box::from(what)) }
    }
}

/// sled panics where it can't go on.
fn guarded<T>(path: &Path, run: impl FnOnce() -> sled::Result<T>) -> Result<T, LocalError> {
    let source: Arc<dyn Error + Send + Sync> = match catch_unwind(AssertUnwindSafe(run)) {
        Ok(Ok(value)) => return Ok(value),
        Ok(Err(error)) => Arc::new(error),
        Err(panic) => {
            let text = panic.downcast_ref::<String>().map(String::as_str);
            let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
            Arc::from(Box::from(text.unwrap_or("a panic without a message")))
        }
    };
    Err(LocalError::Index { path: path.to_owned(), source })
}

fn is_contended(error: &(dyn Error + Send + Sync + 'static)) -> bool {
    match error.downcast_ref() {
        Some(sled::Error::Io(error)) => {
            error.kind() == io::ErrorKind::WouldBlock || error.to_string().contains("acquire lock")
        }
        _ => false,
    }
}

fn sync_files(folder: &Path) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            sync_files(&entry.path())?;
            continue;
        }
        // sled removes old snapshots in the background.
        match File::open(entry.path()) {
            Ok(file) => file.sync_all()?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    File::open(folder)?.sync_all()
}

fn encode_place(place: &Place) -> [u8; 21] {
    let mut bytes = [0; 21];
    bytes[0] = u8::from(place.suspect);
    bytes[1..5].copy_from_slice(&place.pack.to_le_bytes());
    bytes[5..13].copy_from_slice(&place.offset.to_le_bytes());
    bytes[13..17].copy_from_slice(&place.stored.to_le_bytes());
    bytes[17..].copy_from_slice(&place.raw.to_le_bytes());
    bytes
}

fn decode_place(bytes: &[u8]) -> Option<Place> {
    let (suspect, rest) = bytes.split_first()?;
    let (pack, rest) = rest.split_first_chunk()?;
    let (offset, rest) = rest.split_first_chunk()?;
    let (stored, rest) = rest.split_first_chunk()?;
    let raw = rest.try_into().ok()?;
    Some(Place {
        pack: u32::from_le_bytes(*pack),
        offset: u64::from_le_bytes(*offset),
        stored: u32::from_le_bytes(*stored),
        raw: u32::from_le_bytes(raw),
        suspect: *suspect != 0,
    })
}

fn encode_mark(mark: Mark) -> [u8; 13] {
    let mut bytes = [0; 13];
    bytes[0] = INDEX_VERSION;
    bytes[1..5].copy_from_slice(&mark.pack.to_le_bytes());
    bytes[5..].copy_from_slice(&mark.offset.to_le_bytes());
    bytes
}

fn decode_mark(bytes: &[u8]) -> Option<Mark> {
    let (&version, rest) = bytes.split_first()?;
    let (pack, rest) = rest.split_first_chunk()?;
    let offset = rest.try_into().ok()?;
    let mark = Mark { pack: u32::from_le_bytes(*pack), offset: u64::from_le_bytes(offset) };
    (version == INDEX_VERSION).then_some(mark)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_and_marks_come_back() {
        let folder = tempfile::tempdir().unwrap();
        let place = Place { pack: 3, offset: 1 << 40, stored: 5, raw: u32::MAX, suspect: true };
        let mark = Mark { pack: 3, offset: 1 << 41 };
        let key = |kind, byte: u8| Key::new(kind, &[byte; 32]).unwrap();
        let index = Index::open(folder.path()).unwrap();
        assert_eq!(index.mark().unwrap(), None);
        let keys =
            [key(Kind::Chunk, 255), key(Kind::Blob, 0), key(Kind::Blob, 1), key(Kind::Blob, 255)];
        let set = Change::Set(place);
        assert!(index.is_empty().unwrap());
        index.apply(&[], Some(mark)).unwrap();
        assert!(index.is_empty().unwrap());
        index.apply(&keys.map(|key| (key, set)), Some(mark)).unwrap();
        index.apply(&[(keys[2], Change::Remove)], None).unwrap();
        index.close().unwrap();
        drop(index);
        let index = Index::open(folder.path()).unwrap();
        assert_eq!(index.mark().unwrap(), Some(mark));
        assert!(!index.is_empty().unwrap());
        assert_eq!(index.get(&keys[1]).unwrap(), Some(place));
        assert_eq!(index.get(&keys[2]).unwrap(), None);
        let listed = |after, limit| -> Vec<Key> {
            let listed = index.list(Kind::Blob, after, limit).unwrap();
            listed.into_iter().map(|(key, _)| key).collect()
        };
        assert!(listed(None, 9) == [keys[1], keys[3]]);
        assert!(listed(None, 1) == [keys[1]]);
        assert!(listed(Some(&keys[1]), 9) == [keys[3]]);
        assert!(listed(Some(&keys[3]), 9).is_empty());
    }

    #[test]
    fn a_panic_is_an_error() {
        let error = guarded::<()>(Path::new("/index"), || panic!("full of {}", "it")).unwrap_err();
        let LocalError::Index { source, .. } = error else { panic!("{error}") };
        assert_eq!(source.to_string(), "full of it");
    }
}
