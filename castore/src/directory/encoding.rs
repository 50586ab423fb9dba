//! The canonical encoding of a directory, written and read without a detour: proto3, fields in the
//! order of their numbers, defaults left out. What is not written so is not read. The messages of
//! the wire, which need not be canonical, are in the parent module.

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};

use super::{Directory, InvalidDirectory, push};
use crate::{Name, Node};

/// The fields of a directory, which are lists of entries, and of an entry.
const DIRECTORIES: u8 = 1;
const FILES: u8 = 2;
const SYMLINKS: u8 = 3;
const NAME: u8 = 1;
const DIGEST_OR_TARGET: u8 = 2;
const SIZE: u8 = 3;
const EXECUTABLE: u8 = 4;

/// How protobuf writes a value.
const VARINT: u8 = 0;
const BYTES: u8 = 2;

/// The byte before a value.
const fn tag(field: u8, wire: u8) -> u8 {
    field << 3 | wire
}

fn varint_len(value: u64) -> usize {
    (u64::BITS - (value | 1).leading_zeros()).div_ceil(7) as usize
}

fn bytes_len(bytes: &[u8]) -> usize {
    1 + varint_len(bytes.len() as u64) + bytes.len()
}

fn put_varint(out: &mut BytesMut, mut value: u64) {
    while value >= 0x80 {
        out.put_u8(value as u8 | 0x80);
        value >>= 7;
    }
    out.put_u8(value as u8);
}

fn put_bytes(out: &mut BytesMut, field: u8, bytes: &[u8]) {
    out.put_u8(tag(field, BYTES));
    put_varint(out, bytes.len() as u64);
    out.put_slice(bytes);
}

fn put_number(out: &mut BytesMut, field: u8, value: u64) {
    if value != 0 {
        out.put_u8(tag(field, VARINT));
        put_varint(out, value);
    }
}

/// The list that a node is in.
fn list_of(node: &Node) -> u8 {
    match node {
        Node::Directory { .. } => DIRECTORIES,
        Node::File { .. } => FILES,
        Node::Symlink { .. } => SYMLINKS,
    }
}

/// The length of an entry without what stands before it.
fn entry_len(name: &Name, node: &Node) -> usize {
    let number_len = |value: u64| if value == 0 { 0 } else { 1 + varint_len(value) };
    bytes_len(name.as_ref())
        + match node {
            Node::Directory { digest, size } => bytes_len(digest.as_bytes()) + number_len(*size),
            Node::File { digest, size, executable } => {
                bytes_len(digest.as_bytes()) + number_len(*size) + number_len((*executable).into())
            }
            Node::Symlink { target } => bytes_len(target.as_ref()),
        }
}

pub(super) fn encode(directory: &Directory) -> Bytes {
    let entries = directory.entries();
    let lengths = entries.iter().map(|(name, node)| {
        let length = entry_len(name, node);
        1 + varint_len(length as u64) + length
    });
    let mut out = BytesMut::with_capacity(lengths.sum());
    for list in [DIRECTORIES, FILES, SYMLINKS] {
        for (name, node) in entries.iter().filter(|(_, node)| list_of(node) == list) {
            out.put_u8(tag(list, BYTES));
            put_varint(&mut out, entry_len(name, node) as u64);
            put_bytes(&mut out, NAME, name.as_ref());
            match node {
                Node::Directory { digest, size } => {
                    put_bytes(&mut out, DIGEST_OR_TARGET, digest.as_bytes());
                    put_number(&mut out, SIZE, *size);
                }
                Node::File { digest, size, executable } => {
                    put_bytes(&mut out, DIGEST_OR_TARGET, digest.as_bytes());
                    put_number(&mut out, SIZE, *size);
                    put_number(&mut out, EXECUTABLE, (*executable).into());
                }
                Node::Symlink { target } => {
                    put_bytes(&mut out, DIGEST_OR_TARGET, target.as_ref());
                }
            }
        }
    }
    out.freeze()
}

/// The entries in the order of the encoding: of each list in ascending order. They share the memory
/// of `bytes`.
pub(super) fn decode(bytes: Bytes) -> Result<Vec<(Name, Node)>, InvalidDirectory> {
    let mut message = Message(bytes);
    let mut entries = Vec::with_capacity(message.clone().count_fields()?);
    let (mut list, mut first) = (DIRECTORIES, 0);
    while let Some(field) = message.0.first() {
        let next = field >> 3;
        if *field != tag(next, BYTES) || !(list..=SYMLINKS).contains(&next) {
            return Err(InvalidDirectory::NotCanonical);
        }
        if next != list {
            (list, first) = (next, entries.len());
        }
        let mut entry = Message(message.bytes(next)?.unwrap_or_default());
        let name = entry.bytes(NAME)?.unwrap_or_default();
        let content = entry.bytes(DIGEST_OR_TARGET)?.unwrap_or_default();
        let node = match list {
            DIRECTORIES => Node::directory(&content, entry.number(SIZE)?),
            FILES => {
                let size = entry.number(SIZE)?;
                let executable = match entry.number(EXECUTABLE)? {
                    0 => false,
                    1 => true,
                    _ => return Err(InvalidDirectory::NotCanonical),
                };
                Node::file(&content, size, executable)
            }
            _ => Node::symlink(content),
        };
        if !entry.0.is_empty() {
            return Err(InvalidDirectory::NotCanonical);
        }
        push(&mut entries, first, name, node)?;
    }
    Ok(entries)
}

/// What is left of a message.
#[derive(Clone)]
struct Message(Bytes);

impl Message {
    /// How many fields of bytes are left; where something else comes, those before it.
    fn count_fields(mut self) -> Result<usize, InvalidDirectory> {
        let mut count = 0;
        while let Some(field) = self.0.first()
            && field & 7 == BYTES
        {
            self.bytes(field >> 3)?;
            count += 1;
        }
        Ok(count)
    }

    /// The bytes of a field, if it comes next. `None` if another comes, or none.
    fn bytes(&mut self, field: u8) -> Result<Option<Bytes>, InvalidDirectory> {
        if self.0.first() != Some(&tag(field, BYTES)) {
            return Ok(None);
        }
        self.0.advance(1);
        let length = usize::try_from(self.varint()?).unwrap_or(usize::MAX);
        if length > self.0.len() {
            return Err(InvalidDirectory::Encoding("it ends early".to_owned()));
        }
        Ok(Some(self.0.split_to(length)))
    }

    /// The number in a field, if it comes next, and 0 if not, which is not to be written.
    fn number(&mut self, field: u8) -> Result<u64, InvalidDirectory> {
        if self.0.first() != Some(&tag(field, VARINT)) {
            return Ok(0);
        }
        self.0.advance(1);
        match self.varint()? {
            0 => Err(InvalidDirectory::NotCanonical),
            value => Ok(value),
        }
    }

    fn varint(&mut self) -> Result<u64, InvalidDirectory> {
        let mut value = 0;
        for (index, byte) in self.0.iter().enumerate() {
            let (byte, bits) = (*byte, u64::from(*byte & 0x7f));
            if index * 7 >= 63 && bits > 1 || index > 9 {
                return Err(InvalidDirectory::Encoding("a number of over 64 bits".to_owned()));
            }
            value |= bits << (index * 7);
            if byte & 0x80 == 0 {
                self.0.advance(index + 1);
                let is_shortest = index == 0 || bits != 0;
                return if is_shortest { Ok(value) } else { Err(InvalidDirectory::NotCanonical) };
            }
        }
        Err(InvalidDirectory::Encoding("it ends early".to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use cairn_proto::snix::castore::v1 as proto;
    use proptest::prelude::*;
    use prost::Message as _;

    use super::*;

    /// The same by way of the generated message.
    fn decode_by_message(bytes: &Bytes) -> Option<Directory> {
        let message = proto::Directory::decode(bytes.clone()).ok()?;
        let directory = Directory::from_proto(message).ok()?;
        (directory.to_proto().encode_to_vec() == bytes[..]).then_some(directory)
    }

    proptest! {
        #[test]
        fn what_is_written_is_what_protobuf_writes(
            directory in crate::conformance::directories(),
        ) {
            let bytes = directory.encode();
            prop_assert_eq!(&bytes[..], directory.to_proto().encode_to_vec());
            prop_assert_eq!(Directory::decode(bytes), Ok(directory));
        }

        #[test]
        fn what_is_read_is_what_protobuf_reads_and_would_write(
            directory in crate::conformance::directories(),
            changes in proptest::collection::vec(
                (any::<prop::sample::Index>(), any::<u8>(), 0..4u8),
                0..3,
            ),
        ) {
            let mut bytes = directory.encode().to_vec();
            for (at, byte, kind) in changes {
                let at = at.index(bytes.len() + 1);
                match kind {
                    0 => bytes.insert(at, byte),
                    1 => bytes.truncate(at),
                    _ if at == bytes.len() => bytes.push(byte),
                    2 => bytes[at] = byte,
                    _ => bytes[at] ^= 1 << (byte % 8),
                }
            }
            let bytes = Bytes::from(bytes);
            prop_assert_eq!(Directory::decode(bytes.clone()).ok(), decode_by_message(&bytes));
        }
    }

    #[test]
    fn numbers_are_written_in_the_shortest_way_and_fit() {
        let mut out = BytesMut::new();
        let numbers = [1, 127, 128, 300, u64::from(u32::MAX), 1 << 63, u64::MAX];
        for number in numbers {
            put_number(&mut out, SIZE, number);
        }
        let lengths = numbers.map(|number| 1 + varint_len(number));
        assert_eq!(out.len(), lengths.iter().sum::<usize>());
        let mut message = Message(out.freeze());
        assert_eq!(numbers.map(|_| message.number(SIZE).unwrap()), numbers);
        let not = |bytes: &'static [u8]| Message(Bytes::from_static(bytes)).varint().unwrap_err();
        assert_eq!(not(b"\x81\x00"), InvalidDirectory::NotCanonical);
        for bytes in [&b""[..], b"\xff", &[0xff; 10], &[0xff; 20]] {
            assert!(matches!(not(bytes), InvalidDirectory::Encoding(_)), "{bytes:?}");
        }
    }
}
