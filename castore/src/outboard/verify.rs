//! Bytes from elsewhere against what proves them: only groups that are a blob's are handed on.
//! Where the bytes and the proof come from is the affair of the backends.

use std::{ops::Range, sync::Arc};

use async_stream::try_stream;
use bytes::Bytes;
use futures::{Stream, StreamExt as _, TryStreamExt as _, stream};

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
/// be longer: each group is verified before a byte of it is handed on, and is then one item. `range`
/// lies within the blob; `from` is who sent the bytes, as it displays.
///
/// Holds one group and the piece that came last.
pub fn verified(
    outboard: Arc<Outboard>,
    range: Range<u64>,
    bytes: BlobStream,
    from: Arc<str>,
) -> BlobStream {
    groups(outboard, range, bytes, from).map_ok(whole).boxed()
}

/// The same without a copy: each group is handed on in the pieces that it came in.
pub fn verified_in_pieces(
    outboard: Arc<Outboard>,
    range: Range<u64>,
    bytes: BlobStream,
    from: Arc<str>,
) -> BlobStream {
    let pieces = |pieces: Vec<Bytes>| stream::iter(pieces.into_iter().map(Ok));
    groups(outboard, range, bytes, from).map_ok(pieces).try_flatten().boxed()
}

/// The parts of a range that lie in each group, in pieces, of which none is empty.
fn groups(
    outboard: Arc<Outboard>,
    range: Range<u64>,
    mut bytes: BlobStream,
    from: Arc<str>,
) -> impl Stream<Item = Result<Vec<Bytes>, BlobError>> + Send {
    try_stream! {
        let mut start = group_start(range.start);
        let mut piece = Bytes::new();
        while start < range.end {
            let length = outboard.size().saturating_sub(start).min(GROUP_LEN as u64) as usize;
            let (mut group, mut missing) = (Vec::new(), length);
            while missing > 0 {
                if piece.is_empty() {
                    piece = match bytes.try_next().await? {
                        Some(piece) => piece,
                        None => Err(corrupt(&outboard, &from, "the bytes end before the blob does"))?,
                    };
                }
                let part = piece.split_to(piece.len().min(missing));
                missing -= part.len();
                group.push(part);
            }
            let index = start / GROUP_LEN as u64;
            if !outboard.verify_parts(index, &group) {
                let reason = format!("the {length} bytes at {start} are wrong");
                Err(corrupt(&outboard, &from, &reason))?;
            }
            let skipped = range.start.saturating_sub(start) as usize;
            let wanted = (range.end - start).min(length as u64) as usize;
            yield within(group, skipped..wanted);
            start += length as u64;
        }
    }
}

/// A range of what is in pieces.
fn within(pieces: Vec<Bytes>, range: Range<usize>) -> Vec<Bytes> {
    let mut start = 0;
    let part = |piece: Bytes| {
        let end = start + piece.len();
        let (from, to) = (range.start.clamp(start, end), range.end.clamp(start, end));
        let part = piece.slice(from - start..to - start);
        start = end;
        (!part.is_empty()).then_some(part)
    };
    pieces.into_iter().filter_map(part).collect()
}

fn whole(mut pieces: Vec<Bytes>) -> Bytes {
    match &mut pieces[..] {
        [piece] => std::mem::take(piece),
        pieces => pieces.concat().into(),
    }
}

fn corrupt(outboard: &Outboard, from: &str, reason: &str) -> BlobError {
    crate::verification::failed_far(from);
    BlobError::Corrupt { digest: *outboard.digest(), reason: format!("{from}: {reason}") }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;
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
        let pieces: Vec<_> = sent.chunks(piece).map(|piece| sent.slice_ref(piece)).collect();
        let read = |verified: fn(Arc<Outboard>, Range<u64>, BlobStream, Arc<str>) -> BlobStream| {
            let pieces = stream::iter(pieces.clone().into_iter().map(Ok)).boxed();
            let read = verified(outboard.clone(), range.clone(), pieces, "test".into());
            let parts = read.try_collect::<Vec<Bytes>>();
            let parts = parts.now_or_never().expect("nothing waits")?;
            assert!(parts.iter().all(|part| !part.is_empty()));
            Ok::<_, BlobError>(parts)
        };
        let groups = read(verified);
        let in_pieces = read(verified_in_pieces);
        assert_eq!(groups.is_ok(), in_pieces.is_ok());
        if let (Ok(groups), Ok(in_pieces)) = (&groups, &in_pieces) {
            assert!(groups.concat() == in_pieces.concat());
            let covered = covering(&range);
            let count =
                (covered.end.min(bytes.len() as u64) - covered.start).div_ceil(GROUP_LEN as u64);
            assert_eq!(groups.len() as u64, if range.is_empty() { 0 } else { count });
        }
        Ok(groups?.concat())
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
