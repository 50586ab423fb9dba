//! Pack files: their names, their headers, and reading records at known places. How records get
//! in is in `commit`, how they are found again in `scan`.

use std::{
    collections::BTreeMap,
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::{FileExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    sync::Arc,
};

use bytes::Bytes;
use parking_lot::RwLock;
use quick_cache::sync::Cache;
use rustix::buffer::spare_capacity;

use super::{
    error::LocalError,
    record::{HEADER_LEN, Header, Key},
};
use crate::Packed;

/// The bytes before the first record.
pub(super) const PACK_HEADER_LEN: u64 = 24;

/// The packs that are held open for reading.
const OPEN_PACKS: usize = 256;

const PACK_MAGIC: [u8; 8] = *b"cairnpak";
const PACK_VERSION: u32 = 1;

/// Where a record lies, and its lengths.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) pack: u32,
    pub(super) offset: u64,
    /// The payload's bytes as stored.
    pub(super) stored: u32,
    /// The value's bytes.
    pub(super) raw: u32,
    /// It was found damaged: it counts as absent where it is asked whether it is there.
    pub(super) suspect: bool,
}

impl Place {
    /// Whether both are the same record's place.
    pub(super) fn is_at(&self, other: &Self) -> bool {
        (self.pack, self.offset) == (other.pack, other.offset)
    }
}

/// Why a record could not be read.
pub(super) enum ReadError {
    /// It is not what was written.
    Damaged(String),
    /// The system refused, which says nothing of the record.
    Io(LocalError),
}

/// The packs of a store, for reading.
pub(super) struct Packs {
    folder: PathBuf,
    /// The lengths up to which packs are known to be written.
    lengths: RwLock<BTreeMap<u32, u64>>,
    open: Cache<u32, Arc<File>>,
}

impl Packs {
    /// The packs that are in a folder.
    pub(super) fn list(folder: PathBuf) -> Result<Self, LocalError> {
        let failed = |error| LocalError::io("list", &folder, error);
        let mut lengths = BTreeMap::new();
        for entry in fs::read_dir(&folder).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let Some(id) = entry.file_name().to_str().and_then(parse_name) else { continue };
            lengths.insert(id, entry.metadata().map_err(failed)?.len());
        }
        Ok(Self { folder, lengths: RwLock::new(lengths), open: Cache::new(OPEN_PACKS) })
    }

    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    /// The packs and their lengths, in their order.
    pub(super) fn lengths(&self) -> BTreeMap<u32, u64> {
        self.lengths.read().clone()
    }

    /// Takes note of a pack's length.
    pub(super) fn set_length(&self, id: u32, length: u64) {
        self.lengths.write().insert(id, length);
    }

    /// Forgets a pack that is gone.
    pub(super) fn forget(&self, id: u32) {
        self.lengths.write().remove(&id);
        self.open.remove(&id);
    }

    /// Whether the record of a key at this place is there and was not found damaged, as far as can
    /// be told without reading it.
    pub(super) fn holds(&self, key: &Key, place: &Place) -> bool {
        let end = place.offset.saturating_add(record_len(key, place) as u64);
        !place.suspect && self.lengths.read().get(&place.pack).is_some_and(|length| end <= *length)
    }

    /// The pack, open for reading.
    pub(super) fn open(&self, id: u32) -> Result<Arc<File>, LocalError> {
        if let Some(file) = self.open.get(&id) {
            return Ok(file);
        }
        let path = pack_path(&self.folder, id);
        let file = File::open(&path).map_err(|error| LocalError::io("open", &path, error))?;
        let file = Arc::new(file);
        self.open.insert(id, Arc::clone(&file));
        // A pack that has been removed meanwhile must not be held open: its room would not come
        // back.
        if !self.lengths.read().contains_key(&id) {
            self.open.remove(&id);
        }
        Ok(file)
    }

    /// The value at a place, checked to be that of the key.
    pub(super) fn read(&self, key: &Key, place: &Place) -> Result<Bytes, ReadError> {
        let (header, record) = self.read_record(key, place)?;
        let damaged = |flaw: &str| ReadError::Damaged(flaw.to_owned());
        let value = header.value(&record).map_err(damaged)?;
        if key.kind().is_content() && blake3::hash(&value).as_bytes() != key.key() {
            return Err(damaged("its bytes have another digest"));
        }
        Ok(value)
    }

    /// The value at a place as it is stored, checked by its checksum.
    pub(super) fn read_packed(&self, key: &Key, place: &Place) -> Result<Packed, ReadError> {
        let (header, record) = self.read_record(key, place)?;
        header.packed(&record).map_err(|flaw| ReadError::Damaged(flaw.to_owned()))
    }

    /// The record at a place, known to be the key's by its header. Its payload is not checked.
    pub(super) fn read_record(
        &self,
        key: &Key,
        place: &Place,
    ) -> Result<(Header, Bytes), ReadError> {
        let wanted = record_len(key, place);
        if !self.lengths.read().contains_key(&place.pack) {
            return Err(ReadError::Damaged("the pack is missing".to_owned()));
        }
        let file = self.open(place.pack).map_err(ReadError::Io)?;
        let mut record = Vec::with_capacity(wanted);
        while record.len() < wanted {
            let offset = place.offset + record.len() as u64;
            match rustix::io::pread(&*file, spare_capacity(&mut record), offset) {
                Ok(0) => return Err(ReadError::Damaged("the pack is too short".to_owned())),
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                // The medium has lost it; it can be written again elsewhere.
                Err(error @ rustix::io::Errno::IO) => {
                    return Err(ReadError::Damaged(error.to_string()));
                }
                Err(error) => {
                    let path = pack_path(&self.folder, place.pack);
                    return Err(ReadError::Io(LocalError::io("read", &path, error.into())));
                }
            }
        }
        record.truncate(wanted);
        let damaged = |flaw: &str| ReadError::Damaged(flaw.to_owned());
        let header = Header::parse(&record, place.pack, place.offset).map_err(damaged)?;
        if header.key != *key || header.stored != place.stored || header.raw != place.raw {
            return Err(damaged("another record lies there"));
        }
        Ok((header, record.into()))
    }

    /// Removes a pack in which nothing counts any more, durably.
    pub(super) fn remove(&self, id: u32) -> Result<(), LocalError> {
        let path = pack_path(&self.folder, id);
        fs::remove_file(&path).map_err(|error| LocalError::io("remove", &path, error))?;
        self.forget(id);
        self.sync_folder()
    }

    /// Makes it durable which packs there are.
    pub(super) fn sync_folder(&self) -> Result<(), LocalError> {
        let synced = File::open(&self.folder).and_then(|folder| folder.sync_all());
        synced.map_err(|error| LocalError::io("write", &self.folder, error))
    }
}

/// The bytes of the record of a key at a place.
pub(super) fn record_len(key: &Key, place: &Place) -> usize {
    HEADER_LEN + key.key().len() + place.stored as usize
}

/// The pack that records are added to.
pub(super) struct ActivePack {
    pub(super) id: u32,
    pub(super) file: File,
    pub(super) path: PathBuf,
    /// What is durable ends here.
    pub(super) end: u64,
}

impl ActivePack {
    /// A new pack, durable with its name.
    pub(super) fn create(folder: &Path, id: u32) -> Result<Self, LocalError> {
        let path = pack_path(folder, id);
        let failed = |error| LocalError::io("create", &path, error);
        let mut options = OpenOptions::new();
        let file = options.read(true).write(true).create_new(true).mode(0o600);
        let file = file.open(&path).map_err(failed)?;
        let written = file
            .write_all_at(&pack_header(id), 0)
            .and_then(|()| file.sync_all())
            .and_then(|()| File::open(folder)?.sync_all());
        if let Err(error) = written {
            // An empty pack does no harm; it is passed over at the next open.
            let _ = fs::remove_file(&path);
            return Err(failed(error));
        }
        Ok(Self { id, file, path, end: PACK_HEADER_LEN })
    }

    /// A pack that is there, to be continued at `end`.
    pub(super) fn reopen(folder: &Path, id: u32, end: u64) -> Result<Self, LocalError> {
        let path = pack_path(folder, id);
        let file = OpenOptions::new().read(true).write(true).open(&path);
        let file = file.map_err(|error| LocalError::io("open", &path, error))?;
        Ok(Self { id, file, path, end })
    }
}

/// The path of a pack.
pub(super) fn pack_path(folder: &Path, id: u32) -> PathBuf {
    folder.join(format!("{id:08}.pack"))
}

fn parse_name(name: &str) -> Option<u32> {
    let digits = name.strip_suffix(".pack")?;
    let id = digits.parse().ok()?;
    (format!("{id:08}") == digits).then_some(id)
}

fn pack_header(id: u32) -> [u8; PACK_HEADER_LEN as usize] {
    let mut header = [0; PACK_HEADER_LEN as usize];
    header[..8].copy_from_slice(&PACK_MAGIC);
    header[8..12].copy_from_slice(&PACK_VERSION.to_le_bytes());
    header[12..16].copy_from_slice(&id.to_le_bytes());
    let checksum = crc32c::crc32c(&header[..20]);
    header[20..].copy_from_slice(&checksum.to_le_bytes());
    header
}

/// Whether a pack's header is whole. A pack of a later version is an error.
pub(super) fn check_header(file: &File, path: &Path, id: u32) -> Result<bool, LocalError> {
    let mut header = [0; PACK_HEADER_LEN as usize];
    match file.read_exact_at(&mut header, 0) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(false),
        Err(error) => return Err(LocalError::io("read", path, error)),
    }
    let version = u32::from_le_bytes([header[8], header[9], header[10], header[11]]);
    let checksum = crc32c::crc32c(&header[..20]);
    let is_whole = header[..8] == PACK_MAGIC && header[20..] == checksum.to_le_bytes();
    if is_whole && version != PACK_VERSION {
        return Err(LocalError::Version {
            path: path.to_owned(),
            found: version.to_string(),
            supported: PACK_VERSION,
        });
    }
    Ok(is_whole && header == pack_header(id))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_eight_digits() {
        assert_eq!(parse_name("00000012.pack"), Some(12));
        assert_eq!(parse_name("123456789.pack"), Some(123_456_789));
        for name in ["12.pack", "00000012.pac", "0000001x.pack", "+0000012.pack", "000000012.pack"]
        {
            assert_eq!(parse_name(name), None);
        }
    }

    #[test]
    fn headers_are_checked_and_later_versions_refused() {
        let folder = tempfile::tempdir().unwrap();
        let pack = ActivePack::create(folder.path(), 7).unwrap();
        assert!(check_header(&pack.file, &pack.path, 7).unwrap());
        assert!(!check_header(&pack.file, &pack.path, 8).unwrap());
        let mut header = pack_header(7);
        header[8] = 2;
        let checksum = crc32c::crc32c(&header[..20]);
        header[20..].copy_from_slice(&checksum.to_le_bytes());
        pack.file.write_all_at(&header, 0).unwrap();
        let error = check_header(&pack.file, &pack.path, 7).unwrap_err();
        assert!(matches!(error, LocalError::Version { found, .. } if found == "2"));
        pack.file.set_len(10).unwrap();
        assert!(!check_header(&pack.file, &pack.path, 7).unwrap());
    }
}
