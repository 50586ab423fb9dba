//! Bytes from elsewhere against what proves them: only groups that are a blob's are handed on.
//! Where the bytes and the proof come from is the affair of the backends.

use std::{ops::Range, sync::Arc};

use async_stream::try_stream;
use bytes::{Bytes, BytesMut};
use futures::{StreamExt as _, TryStreamExt as _};

use super::{GROUP_LEN, Outboard};
use crate::{BlobError, blob_service::BlobStream};

/// The offset at which the group of this offset starts.
pub fn group_start(offset: u64) -> u64 {
    offset - offset % GROUP_LEN as u64
}

/// The groups that hold a range, as a range of a blob of any size.
pub fn covering(range: &Range<u64>) -> Range<u64> {
    let end = group_start(range.end);
    let end = if end == range.end { end } else { end.saturating_add(GROUP_LEN as u64) };
    group_start(range.start)..end
}

/// The bytes of a range, out of a stream that starts with the first group of [`covering`] and may
/// be longer: each group is verified before a byte of it is handed on. `range` lies within the
/// blob; `from` is who sent the bytes, as it displays.
///
/// Holds one group and the piece that came last.
pub fn verified(
    outboard: Arc<Outboard>,
    range: Range<u64>,
    mut bytes: BlobStream,
    from: Arc<str>,
) -> BlobStream {
    try_stream! {
        let mut start = group_start(range.start);
        let mut piece = Bytes::new();
        let mut partial = BytesMut::new();
        while start < range.end {
            let length = outboard.size().saturating_sub(start).min(GROUP_LEN as u64) as usize;
            let group = loop {
                // Whole groups are handed on without a copy.
                if partial.is_empty() && piece.len() >= length {
                    break piece.split_to(length);
                }
                partial.reserve(length - partial.len());
                let taken = piece.len().min(length - partial.len());
                partial.extend_from_slice(&piece.split_to(taken));
                if partial.len() == length {
                    break partial.split().freeze();
                }
                piece = match bytes.try_next().await? {
                    Some(piece) => piece,
                    None => Err(corrupt(&outboard, &from, "the bytes end before the blob does"))?,
                };
            };
            let index = start / GROUP_LEN as u64;
            if !outboard.verify_group(index, &group) {
                let reason = format!("the {length} bytes at {start} are wrong");
                Err(corrupt(&outboard, &from, &reason))?;
            }
            let skipped = range.start.saturating_sub(start) as usize;
            let wanted = (range.end - start).min(length as u64) as usize;
            yield group.slice(skipped..wanted);
            start += length as u64;
        }
    }
    .boxed()
}

fn corrupt(outboard: &Outboard, from: &str, reason: &str) -> BlobError {
    crate::verification::failed_far(from);
    BlobError::Corrupt { digest: *outboard.digest(), reason: format!("{from}: {reason}") }
}

#[cfg(test)]
mod tests {
    use futures::{FutureExt as _, stream};
    use proptest::prelude::*;

    use super::*;
    use crate::{conformance::content, outboard::OutboardHasher};

    fn read(
        bytes: &Bytes,
        range: Range<u64>,
        sent: &Bytes,
        piece: usize,
    ) -> Result<Vec<u8>, BlobError> {
        let mut hasher = OutboardHasher::new();
        hasher.update(bytes);
        let outboard = Arc::new(hasher.finish());
        let sent = sent.slice(covering(&range).start as usize..);
        let pieces: Vec<_> = sent.chunks(piece).map(|piece| Ok(sent.slice_ref(piece))).collect();
        let pieces = stream::iter(pieces).boxed();
        let read = verified(outboard, range, pieces, "test".into());
        let parts: Vec<Bytes> = read.try_collect().now_or_never().expect("nothing waits")?;
        Ok(parts.concat())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn ranges_are_handed_on_and_wrong_bytes_are_not(
            size in 1..1_000_000usize,
            at in 0..1_000_000usize,
            length in 0..600_000usize,
            wrong in 0..1_000_000usize,
            piece in prop_oneof![1000..70_000usize, Just(GROUP_LEN), Just(4 * GROUP_LEN)],
        ) {
            let bytes = content("verified", size);
            let (start, wrong) = (at % size, wrong % size);
            let end = (start + length).min(size);
            let range = start as u64..end as u64;
            prop_assert!(read(&bytes, range.clone(), &bytes, piece).unwrap() == bytes[start..end]);

            let mut changed = bytes.to_vec();
            changed[wrong] ^= 1;
            let covering = covering(&range);
            let covered = covering.contains(&(wrong as u64)) && start < end;
            let result = read(&bytes, range, &changed.into(), piece);
            prop_assert_eq!(matches!(result, Err(BlobError::Corrupt { .. })), covered);
        }
    }

    #[test]
    fn what_ends_early_is_no_blob() {
        let bytes = content("truncated", 600_000);
        for sent in [0, 1, GROUP_LEN, 599_999] {
            let result = read(&bytes, 0..600_000, &bytes.slice(..sent), 50_000);
            assert!(matches!(result, Err(BlobError::Corrupt { .. })), "{sent} bytes");
        }
    }

    #[test]
    fn groups_cover_ranges() {
        let group = GROUP_LEN as u64;
        assert_eq!(covering(&(0..0)), 0..0);
        assert_eq!(covering(&(1..2)), 0..group);
        assert_eq!(covering(&(group..2 * group)), group..2 * group);
        assert_eq!(covering(&(group - 1..group + 1)), 0..2 * group);
        assert_eq!(covering(&(5..u64::MAX)), 0..u64::MAX);
    }
}
