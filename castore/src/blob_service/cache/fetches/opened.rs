//! A blob of which nothing is near: what the far side says of it is asked for together with the bytes
//! that are wanted first, so that both are there after one round trip.

use std::{ops::Range, sync::Arc};

use bytes::{Bytes, BytesMut};
use futures::TryStreamExt as _;

use super::{Fetches, WHOLE_MAX};
use crate::{
    BlobError, BlobStat, ByteRange, Digest,
    blob_service::cache::{Shape, WINDOW_GROUPS},
    cache::flights::depart,
    outboard::{GROUP_LEN, Outboard, verify::covering},
};

/// What came of asking for a blob.
#[derive(Debug)]
pub(in super::super) struct Opened {
    pub(in super::super) stat: BlobStat,
    pub(in super::super) shape: Shape,
    /// Bytes of it from `start` on.
    start: u64,
    bytes: Bytes,
}

impl Opened {
    fn new(stat: BlobStat, start: u64, bytes: Bytes) -> Self {
        Self { shape: Shape::of(&stat), stat, start, bytes }
    }

    /// What has come from the start of a range on.
    pub(in super::super) fn first(&self, range: &Range<u64>) -> Bytes {
        let came = self.start..self.start + self.bytes.len() as u64;
        if range.is_empty() || !came.contains(&range.start) {
            return Bytes::new();
        }
        let end = range.end.min(came.end) - came.start;
        self.bytes.slice((range.start - came.start) as usize..end as usize)
    }
}

impl Fetches {
    /// What the far side says of a blob. `None` if it is not there.
    pub(in super::super) async fn stat(
        &self,
        digest: &Digest,
    ) -> Result<Option<BlobStat>, BlobError> {
        let opened = self.open(digest, ByteRange { offset: 0, length: 0 }).await?;
        Ok(opened.map(|opened| opened.stat.clone()))
    }

    /// Asks for a blob, of which a range is wanted. `None` if it is not there. Of a range that is
    /// long, or of which another's is under way, only a part may come, or nothing.
    pub(in super::super) async fn open(
        &self,
        digest: &Digest,
        range: ByteRange,
    ) -> Result<Option<Arc<Opened>>, BlobError> {
        let (passenger, landing) = self.opened.board(digest);
        if let Some(landing) = landing {
            self.near.store().miss(1);
            let fetches = self.clone();
            depart(async move {
                let _turn = fetches.turn().await;
                let digest = *landing.key();
                let opened = fetches.fetch_opened(&digest, wanted_first(range)).await;
                let error = |error| Arc::new(fetches.error(error, Some(&digest)));
                landing.land(opened.map(|opened| opened.map(Arc::new)).map_err(error));
            });
        }
        self.outcome(passenger).await
    }

    async fn fetch_opened(
        &self,
        digest: &Digest,
        wanted: Range<u64>,
    ) -> Result<Option<Opened>, BlobError> {
        // Somebody may just have fetched it.
        let asked = *digest;
        if let Ok(Some(stat)) = self.near.blocking(move |near| near.stat(&asked)).await {
            return Ok(Some(Opened::new(stat, 0, Bytes::new())));
        }
        let (stat, bytes) = tokio::join!(self.far.stat(digest), self.read_first(digest, &wanted));
        let Some(stat) = stat? else { return Ok(None) };
        let bytes = match bytes {
            Ok(bytes) => bytes,
            // Others may want what is sound of it.
            Err(BlobError::Corrupt { .. }) => return Ok(Some(Opened::new(stat, 0, Bytes::new()))),
            Err(error) => return Err(error),
        };
        let mut opened = Opened::new(stat, wanted.start, bytes);
        match &opened.shape {
            // A part of a whole proves nothing.
            Shape::Whole if wanted.start > 0 || wanted.is_empty() => opened.bytes = Bytes::new(),
            Shape::Whole => {
                let blob = self.verified(digest, opened.bytes.clone())?;
                self.near.keep_wholes([(blob, None)]);
            }
            Shape::Groups(outboard) => self.keep_first(outboard, wanted.start, &opened.bytes)?,
            // Read through.
            Shape::Unproven => {}
        }
        // The last, since who finds it looks for the bytes behind it.
        self.near.keep_stat(&opened.stat);
        Ok(Some(opened))
    }

    async fn read_first(&self, digest: &Digest, wanted: &Range<u64>) -> Result<Bytes, BlobError> {
        if wanted.is_empty() {
            return Ok(Bytes::new());
        }
        let range = ByteRange { offset: wanted.start, length: wanted.end - wanted.start };
        let mut stream = self.far.read(digest, range).await?;
        let mut bytes = BytesMut::new();
        while let Some(piece) = stream.try_next().await? {
            if (bytes.len() + piece.len()) as u64 > range.length {
                return Err(self.corrupt(digest, "more came than was asked for"));
            }
            bytes.extend_from_slice(&piece);
        }
        Ok(bytes.freeze())
    }

    /// Proves groups that have come, and keeps them.
    fn keep_first(&self, outboard: &Outboard, start: u64, bytes: &Bytes) -> Result<(), BlobError> {
        self.near.store().fetched(bytes.len());
        for (index, group) in (start / GROUP_LEN as u64..).zip(bytes.chunks(GROUP_LEN)) {
            let value = outboard.group(index).filter(|_| outboard.verify_group(index, group));
            let value = value.ok_or_else(|| self.wrong(outboard.digest()))?;
            self.near.keep_group(value, &bytes.slice_ref(group));
        }
        Ok(())
    }
}

/// The groups to be asked for with what proves them: those that a window has of the range, or all of a
/// blob that is kept whole where the range does not tell that it is larger.
fn wanted_first(range: ByteRange) -> Range<u64> {
    if range.length == 0 {
        return 0..0;
    }
    let window = WINDOW_GROUPS * GROUP_LEN as u64;
    let groups = covering(&(range.offset..range.offset.saturating_add(range.length)));
    let window_end = (range.offset / window + 1).saturating_mul(window);
    let end = groups.end.min(window_end);
    match end <= WHOLE_MAX {
        true => 0..WHOLE_MAX,
        false => groups.start..end,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wanted_first_is_of_groups_and_of_one_window() {
        let wanted = |offset, length| wanted_first(ByteRange { offset, length });
        let group = GROUP_LEN as u64;
        assert_eq!(wanted(7, 0), 0..0);
        assert_eq!(wanted(0, 1), 0..WHOLE_MAX);
        assert_eq!(wanted(WHOLE_MAX - 1, 1), 0..WHOLE_MAX);
        assert_eq!(wanted(WHOLE_MAX - 1, 2), group..WHOLE_MAX + group);
        assert_eq!(wanted(0, u64::MAX), 0..4 * group);
        assert_eq!(wanted(5 * group + 1, 1), 5 * group..6 * group);
        assert_eq!(wanted(6 * group, 4 * group), 6 * group..8 * group);
        assert_eq!(wanted(u64::MAX, 1), u64::MAX - (group - 1)..u64::MAX);
    }
}
