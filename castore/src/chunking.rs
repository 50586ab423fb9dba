//! Where a blob is cut into chunks: FastCDC (v2020), normalization level 1, with the parameters of
//! the object-store layout in use, so that stores of different programs share their chunks.

use std::mem;

use bytes::{Buf as _, Bytes, BytesMut};

/// The average chunk, in bytes.
pub const CHUNK_AVG: usize = 256 * 1024;
/// The smallest chunk but a blob's last, in bytes. A blob of at most this size is one chunk.
pub const CHUNK_MIN: usize = CHUNK_AVG / 2;
/// The largest chunk, in bytes.
pub const CHUNK_MAX: usize = CHUNK_AVG * 2;

/// Cuts a stream of bytes, given in pieces of any size, into chunks.
///
/// Holds less than [`CHUNK_MAX`] bytes between two pieces. A chunk that lies in one piece shares its
/// memory.
#[derive(Debug, Default)]
pub struct Chunker {
    buffer: BytesMut,
}

impl Chunker {
    /// A chunker at the start of a blob.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes the blob's next bytes and hands on the chunks that are complete.
    pub fn push(&mut self, mut piece: Bytes, mut emit: impl FnMut(Bytes)) {
        while self.buffer.len() + piece.len() >= CHUNK_MAX {
            let held = self.buffer.len();
            if held == 0 {
                emit(piece.split_to(cut(&piece)));
                continue;
            }
            self.buffer.reserve(CHUNK_MAX - held);
            self.buffer.extend_from_slice(&piece[..CHUNK_MAX - held]);
            let length = cut(&self.buffer);
            if let Some(taken) = length.checked_sub(held) {
                piece.advance(taken);
                self.buffer.truncate(length);
                emit(mem::take(&mut self.buffer).freeze());
            } else {
                self.buffer.truncate(held);
                emit(self.buffer.split_to(length).freeze());
            }
        }
        self.buffer.extend_from_slice(&piece);
    }

    /// Ends the blob and hands on the chunks that are left: none only for an empty blob.
    pub fn finish(self, mut emit: impl FnMut(Bytes)) {
        let mut rest = self.buffer.freeze();
        while !rest.is_empty() {
            let length = cut(&rest);
            emit(rest.split_to(length));
        }
    }
}

/// The length of the first chunk of these bytes: all that is left of the blob, or at least
/// [`CHUNK_MAX`].
fn cut(bytes: &[u8]) -> usize {
    if bytes.len() <= CHUNK_MIN {
        return bytes.len();
    }
    let window = &bytes[..bytes.len().min(CHUNK_MAX)];
    fastcdc::v2020::FastCDC::new(window, CHUNK_MIN, CHUNK_AVG, CHUNK_MAX)
        .next()
        .map_or(window.len(), |chunk| chunk.length)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Digest;

    fn chunks(bytes: &[u8], piece: usize) -> Vec<Bytes> {
        let mut chunks = Vec::new();
        let mut chunker = Chunker::new();
        for piece in bytes.chunks(piece) {
            chunker.push(Bytes::copy_from_slice(piece), |chunk| chunks.push(chunk));
        }
        chunker.finish(|chunk| chunks.push(chunk));
        chunks
    }

    #[test]
    fn cuts_are_those_of_the_specification() {
        let mut bytes = vec![0; 3_000_000];
        blake3::Hasher::new().update(b"cairn chunking vector").finalize_xof().fill(&mut bytes);
        let hex = "d6943c947109bf4e7b8b0a8dc8ee484b07b1a43ca13280c10115e5137d5d17a6";
        assert_eq!(Digest::of(&bytes).to_hex(), hex);
        for piece in [1000, 131_072, 500_000, 1 << 20, bytes.len()] {
            let chunks = chunks(&bytes, piece);
            let sizes: Vec<_> = chunks.iter().map(Bytes::len).collect();
            let expected =
                [449_479, 197_542, 353_318, 524_288, 280_173, 357_351, 280_778, 359_971, 197_100];
            assert_eq!(sizes, expected);
            assert_eq!(
                Digest::of(&chunks[0]).to_hex(),
                "c3d1374dc68c417adb44fedcee0ad3c42a37cddeac299911ea9e6c2b86025626"
            );
            assert_eq!(
                Digest::of(&chunks[8]).to_hex(),
                "d37d7374d6b268ca41f4cc9e25a8bf72b6a990faa7f991619b602000a71b504c"
            );
        }
    }

    #[test]
    fn small_blobs_are_one_chunk_and_empty_ones_none() {
        assert_eq!(chunks(b"", 1).len(), 0);
        for size in [1, CHUNK_MIN - 1, CHUNK_MIN] {
            assert_eq!(chunks(&vec![7; size], 4096).len(), 1);
        }
        assert_eq!(chunks(&vec![7; CHUNK_MAX + 1], 4096).len(), 2);
    }
}
