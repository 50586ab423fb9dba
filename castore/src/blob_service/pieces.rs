//! A blob's bytes in messages: as they are, or in a zstd frame for whoever is far. Either is only
//! believed once the blob's digest has been compared.

use std::io;

use bytes::Bytes;
use cairn_proto::cairn::v1::Piece;
use futures::{Stream, StreamExt as _};
use tokio::task::spawn_blocking;

use crate::{Packed, grpc::PIECE_LEN};

/// How many pieces of a stream are compressed ahead of the one that is being sent.
const PACKED_AHEAD: usize = 2;

/// A piece whose bytes can't be had.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a piece is not the zstd frame that it should be")]
pub(super) struct InvalidPiece;

/// The bytes as they are.
pub(super) fn plain(data: Bytes) -> Piece {
    Piece { data, unpacked_size: 0 }
}

/// At most [`PIECE_LEN`] bytes, as they are packed.
pub(super) fn packed(packed: Packed) -> Piece {
    match packed {
        Packed::Plain(bytes) => plain(bytes),
        Packed::Frame { frame, size } => {
            debug_assert!(size <= PIECE_LEN, "a piece is no longer");
            Piece { data: frame, unpacked_size: size as u32 }
        }
    }
}

/// What is in a piece, as it came.
pub(super) fn of_piece(piece: Piece) -> Result<Packed, InvalidPiece> {
    let Piece { data, unpacked_size } = piece;
    match unpacked_size as usize {
        0 => Ok(Packed::Plain(data)),
        size @ 1..=PIECE_LEN => Ok(Packed::Frame { frame: data, size }),
        _ => Err(InvalidPiece),
    }
}

/// The bytes of a piece.
pub(super) fn unpacked(piece: Piece) -> Result<Bytes, InvalidPiece> {
    of_piece(piece)?.unpack().ok_or(InvalidPiece)
}

/// Packs what comes, in its order, on threads that may take a while.
pub(super) fn packed_in_order<E: From<io::Error> + Send + 'static>(
    bytes: impl Stream<Item = Result<Bytes, E>> + Send + 'static,
) -> impl Stream<Item = Result<Piece, E>> + Send + 'static {
    let pack = |bytes: Result<Bytes, E>| async {
        let bytes = bytes?;
        let packing = spawn_blocking(|| packed(Packed::pack(bytes)));
        packing.await.map_err(|error| io::Error::from(error).into())
    };
    bytes.map(pack).buffered(PACKED_AHEAD)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conformance::content;

    #[test]
    fn a_piece_is_what_it_was() {
        let repetitive = Bytes::from(b"again ".repeat(1000));
        let random = content("pieces", 6000);
        for (bytes, is_frame) in [(repetitive, true), (random, false), (Bytes::new(), false)] {
            let piece = packed(Packed::pack(bytes.clone()));
            assert_eq!(piece.unpacked_size > 0, is_frame);
            assert_eq!(unpacked(piece).unwrap(), bytes);
            assert_eq!(unpacked(plain(bytes.clone())).unwrap(), bytes);
        }
    }

    #[test]
    fn a_piece_that_is_none_is_refused() {
        let piece = packed(Packed::pack(vec![0; 1000].into()));
        for unpacked_size in [1, 999, 1001, PIECE_LEN as u32 + 1, u32::MAX] {
            assert_eq!(unpacked(Piece { unpacked_size, ..piece.clone() }), Err(InvalidPiece));
        }
        let cut = Piece { data: piece.data.slice(..piece.data.len() - 1), ..piece };
        assert!(unpacked(cut).is_err());
    }
}
