//! The record: the unit that packs are made of, its layout and its checksums.
//! Where records lie, and which of them count, is not known here.

use std::fmt;

use bytes::Bytes;

use super::pack::Place;
use crate::Packed;

/// The most bytes in a key.
pub const KEY_MAX: usize = 32;

/// The most bytes in a value: a directory of some millions of entries.
pub const VALUE_MAX: usize = 512 * 1024 * 1024;

/// The bytes of a record before its key.
pub(super) const HEADER_LEN: usize = 24;

/// The bytes of a record before its payload, at most.
pub(super) const HEAD_MAX: usize = HEADER_LEN + KEY_MAX;

/// What a record starts with; what a reader looks for behind damage.
pub(super) const MAGIC: [u8; 4] = [0xca, 0x1e, 0x5a, 0xed];

/// What a record holds. Keys are apart by kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Kind {
    /// The bytes of a chunk or of a blob of one chunk, by their digest.
    Chunk = 1,
    /// The chunks of a blob and the proof of its ranges, by the blob's digest.
    Blob = 2,
    /// The canonical encoding of a directory, by its digest.
    Directory = 3,
    /// A path info, by the 20 bytes of its path. A later one replaces an earlier one.
    PathInfo = 4,
    /// The size and hash of a tree's NAR, by the digest of the tree's encoded nameless entry.
    Nar = 5,
    /// The bytes of a group of a large blob, by its chaining value. In caches alone.
    Group = 6,
}

impl Kind {
    pub(super) const ALL: [Self; 6] =
        [Self::Chunk, Self::Blob, Self::Directory, Self::PathInfo, Self::Nar, Self::Group];

    fn from_byte(byte: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| *kind as u8 == byte)
    }

    /// Whether the key is the digest of the value.
    pub(super) fn is_content(self) -> bool {
        matches!(self, Self::Chunk | Self::Directory)
    }

    /// Whether a later value takes the place of an earlier one. The other kinds have one value a
    /// key.
    pub(super) fn is_replaced(self) -> bool {
        matches!(self, Self::PathInfo)
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Chunk => "chunk",
            Self::Blob => "blob",
            Self::Directory => "directory",
            Self::PathInfo => "path info",
            Self::Nar => "NAR hash",
            Self::Group => "group",
        })
    }
}

/// A key and a value to be stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// What it is.
    pub kind: Kind,
    /// 1 to [`KEY_MAX`] bytes.
    pub key: Bytes,
    /// At most [`VALUE_MAX`] bytes.
    pub value: Bytes,
    /// The value in a zstd frame, from whoever has it in one already.
    pub frame: Option<Bytes>,
}

impl Record {
    /// What is to be stored; it is compressed where that is worth its while.
    pub fn new(kind: Kind, key: Bytes, value: Bytes) -> Self {
        Self { kind, key, value, frame: None }
    }
}

/// A kind and the key of a record of that kind, in the order of the index.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Key {
    /// The kind's byte, the key, and zeros.
    bytes: [u8; 1 + KEY_MAX],
    len: u8,
}

impl Key {
    /// `None` if the key is empty or too long.
    pub(super) fn new(kind: Kind, key: &[u8]) -> Option<Self> {
        if key.is_empty() || key.len() > KEY_MAX {
            return None;
        }
        let mut bytes = [0; 1 + KEY_MAX];
        bytes[0] = kind as u8;
        bytes[1..=key.len()].copy_from_slice(key);
        Some(Self { bytes, len: key.len() as u8 })
    }

    /// A key as it is in the index. `None` if it is none.
    pub(super) fn from_indexed(bytes: &[u8]) -> Option<Self> {
        let (&kind, key) = bytes.split_first()?;
        Self::new(Kind::from_byte(kind)?, key)
    }

    pub(super) fn kind(&self) -> Kind {
        Kind::from_byte(self.bytes[0]).expect("a key is made of a kind")
    }

    /// The key alone.
    pub(super) fn key(&self) -> &[u8] {
        &self.bytes[1..=usize::from(self.len)]
    }

    /// The kind's byte and the key.
    pub(super) fn indexed(&self) -> &[u8] {
        &self.bytes[..=usize::from(self.len)]
    }
}

/// How a payload is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Codec {
    Raw = 0,
    Zstd = 1,
    /// No payload: the key is deleted.
    Deletion = 2,
}

/// A record's header, whose checksum was right.
#[derive(Clone, Copy)]
pub(super) struct Header {
    pub(super) key: Key,
    pub(super) codec: Codec,
    pub(super) stored: u32,
    pub(super) raw: u32,
    payload_checksum: u32,
}

/// Why bytes are not the record looked for.
pub(super) type Flaw = &'static str;

impl Header {
    /// Reads a header and the key behind it. The checksum is good only for the place that the
    /// record was written to: a record inside another's payload is none.
    pub(super) fn parse(head: &[u8], pack: u32, offset: u64) -> Result<Self, Flaw> {
        let (fixed, rest) =
            head.split_first_chunk::<HEADER_LEN>().ok_or("the record is cut off")?;
        let [m0, m1, m2, m3, kind, codec, key_len, _, fields @ ..] = *fixed;
        if [m0, m1, m2, m3] != MAGIC {
            return Err("no record starts there");
        }
        let (fields, _) = fields.as_chunks::<4>();
        let [stored, raw, payload_checksum, checksum] = *fields else {
            unreachable!("sixteen bytes are four fields")
        };
        let key = rest.get(..usize::from(key_len)).ok_or("the record is cut off")?;
        if u32::from_le_bytes(checksum) != head_checksum(fixed, key, pack, offset) {
            return Err("the checksum of the record's header is wrong");
        }
        let codec = [Codec::Raw, Codec::Zstd, Codec::Deletion]
            .into_iter()
            .find(|known| *known as u8 == codec)
            .ok_or("the record has an unknown codec")?;
        let kind = Kind::from_byte(kind).ok_or("the record has an unknown kind")?;
        let key = Key::new(kind, key).ok_or("the record's key has an impossible length")?;
        let (stored, raw) = (u32::from_le_bytes(stored), u32::from_le_bytes(raw));
        let impossible = match codec {
            Codec::Raw => stored != raw,
            Codec::Zstd => stored >= raw,
            Codec::Deletion => stored != 0 || raw != 0,
        };
        if impossible || raw as usize > VALUE_MAX {
            return Err("the record has impossible lengths");
        }
        let payload_checksum = u32::from_le_bytes(payload_checksum);
        Ok(Self { key, codec, stored, raw, payload_checksum })
    }

    /// The bytes before the payload.
    pub(super) fn head_len(&self) -> usize {
        HEADER_LEN + self.key.key().len()
    }

    /// The bytes of the whole record.
    pub(super) fn record_len(&self) -> u64 {
        self.head_len() as u64 + u64::from(self.stored)
    }

    /// Whether this is the checksum of the payload.
    pub(super) fn admits(&self, payload_checksum: u32) -> bool {
        self.payload_checksum == payload_checksum
    }

    /// The payload of a record, checked by its checksum.
    pub(super) fn payload(&self, record: &Bytes) -> Result<Bytes, Flaw> {
        let payload = record.slice(self.head_len().min(record.len())..);
        if payload.len() != self.stored as usize {
            return Err("the record is cut off");
        }
        if !self.admits(crc32c::crc32c(&payload)) {
            return Err("the checksum of the record's payload is wrong");
        }
        Ok(payload)
    }

    /// The value in a record, checked by the payload's checksum.
    pub(super) fn value(&self, record: &Bytes) -> Result<Bytes, Flaw> {
        self.packed(record)?.unpack().ok_or("the record's payload can't be decompressed")
    }

    /// The same, as it is stored.
    pub(super) fn packed(&self, record: &Bytes) -> Result<Packed, Flaw> {
        let payload = self.payload(record)?;
        match self.codec {
            Codec::Raw => Ok(Packed::Plain(payload)),
            Codec::Zstd => Ok(Packed::Frame { frame: payload, size: self.raw as usize }),
            Codec::Deletion => Err("the record is a deletion"),
        }
    }
}

fn head_checksum(fixed: &[u8; HEADER_LEN], key: &[u8], pack: u32, offset: u64) -> u32 {
    let checksum = crc32c::crc32c(&fixed[..HEADER_LEN - 4]);
    let checksum = crc32c::crc32c_append(checksum, key);
    let checksum = crc32c::crc32c_append(checksum, &pack.to_le_bytes());
    crc32c::crc32c_append(checksum, &offset.to_le_bytes())
}

/// Where a record comes from, which decides whether it still counts when it is its turn to be
/// written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Origin {
    /// Whoever puts or deletes.
    Caller,
    /// A pack that is rewritten: it counts if the key's record is still the one at this place.
    Moved(Place),
    /// A deletion in a pack that is rewritten: it counts if the key still has no record.
    KeptDeletion,
}

/// A record ready to be written, but for the checksum that depends on its place.
pub(super) struct Encoded {
    pub(super) key: Key,
    pub(super) codec: Codec,
    pub(super) stored: u32,
    pub(super) raw: u32,
    pub(super) origin: Origin,
    head: Vec<u8>,
    payload: Bytes,
}

impl Encoded {
    /// Compresses, on the calling thread, what comes in no frame that is shorter, and adds the
    /// payload's checksum. `None` if the value is larger than [`VALUE_MAX`].
    pub(super) fn new(key: Key, value: Bytes, frame: Option<Bytes>) -> Option<Self> {
        let raw = value.len();
        if raw > VALUE_MAX {
            return None;
        }
        let packed = match frame.filter(|frame| frame.len() < raw) {
            Some(frame) => Packed::Frame { frame, size: raw },
            None => Packed::pack(value),
        };
        Some(match packed {
            Packed::Frame { frame, .. } => Self::of_payload(key, Codec::Zstd, frame, raw),
            Packed::Plain(value) => Self::of_payload(key, Codec::Raw, value, raw),
        })
    }

    /// The record that deletes a key.
    pub(super) fn deletion(key: Key) -> Self {
        Self::of_payload(key, Codec::Deletion, Bytes::new(), 0)
    }

    /// A copy of a record, whose payload has been checked.
    pub(super) fn moved(header: &Header, payload: Bytes, from: Place) -> Self {
        let copy = Self::of_payload(header.key, header.codec, payload, header.raw as usize);
        Self { origin: Origin::Moved(from), ..copy }
    }

    /// The record that deletes a key whose value at this place is damaged.
    pub(super) fn loss(key: Key, from: Place) -> Self {
        Self { origin: Origin::Moved(from), ..Self::deletion(key) }
    }

    /// A copy of a deletion.
    pub(super) fn kept_deletion(key: Key) -> Self {
        Self { origin: Origin::KeptDeletion, ..Self::deletion(key) }
    }

    fn of_payload(key: Key, codec: Codec, payload: Bytes, raw: usize) -> Self {
        let (stored, raw) = (payload.len() as u32, raw as u32);
        let mut head = Vec::with_capacity(HEADER_LEN + key.key().len());
        head.extend_from_slice(&MAGIC);
        head.extend_from_slice(&[key.kind() as u8, codec as u8, key.key().len() as u8, 0]);
        head.extend_from_slice(&stored.to_le_bytes());
        head.extend_from_slice(&raw.to_le_bytes());
        head.extend_from_slice(&crc32c::crc32c(&payload).to_le_bytes());
        head.extend_from_slice(&[0; 4]);
        head.extend_from_slice(key.key());
        Self { key, codec, stored, raw, origin: Origin::Caller, head, payload }
    }

    /// The record's length in bytes.
    pub(super) fn len(&self) -> usize {
        self.head.len() + self.payload.len()
    }

    /// The record's bytes for its place: what comes before the payload, and that.
    pub(super) fn sealed(&mut self, pack: u32, offset: u64) -> [&[u8]; 2] {
        let (fixed, _) = self.head.split_first_chunk().expect("a record starts with a header");
        let checksum = head_checksum(fixed, self.key.key(), pack, offset);
        self.head[HEADER_LEN - 4..HEADER_LEN].copy_from_slice(&checksum.to_le_bytes());
        [&self.head, &self.payload]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn roundtrip(value: &[u8]) -> Encoded {
        let key = Key::new(Kind::Nar, b"key").unwrap();
        let mut encoded = Encoded::new(key, Bytes::copy_from_slice(value), None).unwrap();
        let bytes = Bytes::from(encoded.sealed(3, 70).concat());
        let header = Header::parse(&bytes, 3, 70).unwrap();
        assert_eq!(header.record_len(), bytes.len() as u64);
        assert!(header.key == key);
        assert_eq!(header.value(&bytes).unwrap(), value);
        for (pack, offset) in [(2, 70), (3, 71)] {
            assert!(Header::parse(&bytes, pack, offset).is_err(), "a record counts in its place");
        }
        for end in 0..bytes.len().min(200) {
            let cut = bytes.slice(..end);
            let value = Header::parse(&cut, 3, 70).and_then(|header| header.value(&cut));
            assert!(value.is_err());
        }
        for at in 0..bytes.len().min(200) {
            let mut wrong = bytes.to_vec();
            wrong[at] ^= 0x10;
            let wrong = Bytes::from(wrong);
            let read = Header::parse(&wrong, 3, 70).and_then(|header| header.value(&wrong));
            assert!(read.is_err(), "a flipped bit at {at} went unseen");
        }
        encoded
    }

    #[test]
    fn values_come_back_compressed_where_it_pays() {
        assert_eq!(roundtrip(b"").codec, Codec::Raw);
        assert_eq!(roundtrip(b"small").codec, Codec::Raw);
        assert_eq!(roundtrip(&[7; 100_000]).codec, Codec::Zstd);
        let mut noise = vec![0; 100_000];
        blake3::Hasher::new().finalize_xof().fill(&mut noise);
        assert_eq!(roundtrip(&noise).codec, Codec::Raw);
        assert_eq!(roundtrip(&[8; 100]).codec, Codec::Zstd);
    }

    #[test]
    fn keys_have_the_order_of_their_bytes() {
        assert!(Key::new(Kind::Chunk, b"").is_none());
        assert!(Key::new(Kind::Chunk, &[0; 33]).is_none());
        let key = |kind, bytes: &[u8]| Key::new(kind, bytes).unwrap();
        assert!(key(Kind::Chunk, &[1]) < key(Kind::Chunk, &[1, 0]));
        assert!(key(Kind::Chunk, &[255; 32]) < key(Kind::Blob, &[0]));
        let indexed = key(Kind::PathInfo, &[3; 20]);
        assert!(Key::from_indexed(indexed.indexed()) == Some(indexed));
        assert!(Key::from_indexed(&[0, 1]).is_none());
    }
}
