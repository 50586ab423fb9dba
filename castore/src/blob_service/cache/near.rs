//! What is near of blobs, and how it is kept there. Nothing here asks the far side.

use std::{ops::Range, sync::Arc};

use bytes::Bytes;
use quick_cache::{Weighter, sync::Cache};
use tokio::task::JoinError;

use super::Shape;
use crate::{
    Blob, BlobError, BlobStat, ByteRange, Digest,
    blob_service::{
        check_small,
        local::chunk_list::{decode_stat, encode_stat},
    },
    cache::Near,
    local::{Kind, Record},
    outboard::{GROUP_LEN, Outboard},
};

/// The bytes that are kept in memory for readers who take them in parts: enough for a group each of
/// some readers.
const PARTS_BYTES: u64 = 4 * 1024 * 1024;

/// The proofs that are kept in memory, in bytes.
const OUTBOARDS_BYTES: u64 = 16 * 1024 * 1024;

/// How many entries these are laid out for. Few, so that the room is not split into parts that are
/// smaller than an entry.
const PARTS: usize = 64;
const OUTBOARDS: usize = 64;

/// A blob's digest, or a group's chaining value.
type PartKey = (Kind, [u8; 32]);

/// The near side, for blobs.
#[derive(Debug, Clone)]
pub(super) struct NearBlobs(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    store: Near,
    parts: Cache<PartKey, Bytes, PartWeight>,
    outboards: Cache<Digest, Arc<Outboard>, OutboardWeight>,
}

#[derive(Debug, Clone)]
struct PartWeight;

impl Weighter<PartKey, Bytes> for PartWeight {
    fn weight(&self, _: &PartKey, part: &Bytes) -> u64 {
        part.len().max(1) as u64
    }
}

#[derive(Debug, Clone)]
struct OutboardWeight;

impl Weighter<Digest, Arc<Outboard>> for OutboardWeight {
    fn weight(&self, _: &Digest, outboard: &Arc<Outboard>) -> u64 {
        outboard.size().div_ceil(GROUP_LEN as u64) * 32 + size_of::<Outboard>() as u64
    }
}

/// The keys of a large blob's groups, if it is known to be one.
pub(crate) fn groups_of(near: &Near, digest: &Digest) -> Vec<[u8; 32]> {
    let value = near.get(Kind::Blob, digest.as_bytes());
    let stat = value.and_then(|value| decode_stat(digest, &value));
    let Some(outboard) = stat.and_then(|stat| stat.outboard) else { return Vec::new() };
    let groups = 0..outboard.size().div_ceil(GROUP_LEN as u64);
    groups.filter_map(|index| outboard.group(index).copied()).collect()
}

impl NearBlobs {
    pub(super) fn new(store: Near) -> Self {
        let parts = Cache::with_weighter(PARTS, PARTS_BYTES, PartWeight);
        let outboards = Cache::with_weighter(OUTBOARDS, OUTBOARDS_BYTES, OutboardWeight);
        Self(Arc::new(Inner { store, parts, outboards }))
    }

    pub(super) fn store(&self) -> &Near {
        &self.0.store
    }

    /// Runs what may wait for the disk on a thread that may.
    pub(super) async fn blocking<T: Send + 'static>(
        &self,
        run: impl FnOnce(&Self) -> T + Send + 'static,
    ) -> Result<T, JoinError> {
        let near = self.clone();
        tokio::task::spawn_blocking(move || run(&near)).await
    }

    /// A blob that is kept whole.
    pub(super) fn whole(&self, digest: &Digest) -> Option<Bytes> {
        if *digest == Digest::EMPTY {
            return Some(Bytes::new());
        }
        let key = (Kind::Chunk, *digest.as_bytes());
        self.0.parts.get(&key).or_else(|| self.0.store.get(Kind::Chunk, digest.as_bytes()))
    }

    /// What proves a blob that is kept by its groups.
    fn outboard(&self, digest: &Digest) -> Option<Arc<Outboard>> {
        if let Some(outboard) = self.0.outboards.get(digest) {
            return Some(outboard);
        }
        let stat = self.known(digest)?;
        let Shape::Groups(outboard) = self.shape_of(&stat) else { return None };
        Some(outboard)
    }

    fn shape_of(&self, stat: &BlobStat) -> Shape {
        let shape = Shape::of(stat);
        if let Shape::Groups(outboard) = &shape {
            self.0.outboards.insert(stat.digest, outboard.clone());
        }
        shape
    }

    /// What is kept of a blob of which not all is in one record.
    fn known(&self, digest: &Digest) -> Option<BlobStat> {
        let value = self.0.store.get(Kind::Blob, digest.as_bytes())?;
        let stat = decode_stat(digest, &value);
        if stat.is_none() {
            self.0.store.distrust(Kind::Blob, digest.as_bytes());
        }
        stat
    }

    pub(super) fn stat(&self, digest: &Digest) -> Option<BlobStat> {
        let size = self.whole_len(digest);
        let whole = |size| BlobStat { digest: *digest, size, chunks: Vec::new(), outboard: None };
        self.known(digest).or_else(|| size.map(whole))
    }

    fn whole_len(&self, digest: &Digest) -> Option<u64> {
        match *digest == Digest::EMPTY {
            true => Some(0),
            false => self.0.store.value_len(Kind::Chunk, digest.as_bytes()),
        }
    }

    pub(super) fn shape(&self, digest: &Digest) -> Option<Shape> {
        // What is kept in memory may have gone from the disk, where it has to be for later.
        let is_kept = || self.0.store.value_len(Kind::Blob, digest.as_bytes()).is_some();
        if let Some(outboard) = self.0.outboards.get(digest).filter(|_| is_kept()) {
            return Some(Shape::Groups(outboard));
        }
        if self.whole_len(digest).is_some() {
            return Some(Shape::Whole);
        }
        Some(self.shape_of(&self.known(digest)?))
    }

    /// Whether all of a range of a blob is near, as far as is known.
    pub(super) fn has(&self, digest: &Digest, range: ByteRange) -> bool {
        let has_groups = || {
            let Some(outboard) = self.outboard(digest) else { return false };
            let (group, range) = (GROUP_LEN as u64, range.within(outboard.size()));
            let mut groups = range.start / group..range.end.div_ceil(group);
            groups.all(|index| {
                let value = outboard.group(index);
                value.is_some_and(|value| self.0.store.value_len(Kind::Group, value).is_some())
            })
        };
        self.whole_len(digest).is_some() || has_groups()
    }

    /// Blobs that have to be small ones.
    pub(super) fn small(&self, digests: &[Digest]) -> Result<Vec<Option<Bytes>>, BlobError> {
        let small = |digest: &Digest| {
            let whole = self.whole(digest);
            let size = match &whole {
                Some(whole) => Some(whole.len() as u64),
                None => self.0.outboards.get(digest).map(|outboard| outboard.size()),
            };
            check_small(digest, size.unwrap_or(0))?;
            Ok(whole)
        };
        digests.iter().map(small).collect()
    }

    /// Those of these groups that are near.
    pub(super) fn groups(&self, outboard: &Outboard, indices: Range<u64>) -> Vec<Option<Bytes>> {
        indices.map(|index| self.group(outboard, index)).collect()
    }

    pub(super) fn group(&self, outboard: &Outboard, index: u64) -> Option<Bytes> {
        let value = outboard.group(index)?;
        if let Some(group) = self.0.parts.get(&(Kind::Group, *value)) {
            return Some(group);
        }
        let group = self.0.store.get(Kind::Group, value)?;
        let blob = outboard.digest();
        if outboard.verify_group(index, &group) {
            // A group is of no use without it.
            self.0.store.touch(Kind::Blob, blob.as_bytes());
            return Some(group);
        }
        tracing::warn!(%blob, index, near = %self.0.store, "a group is wrong: it is fetched again");
        self.0.store.distrust(Kind::Group, value);
        None
    }

    /// Bytes from the start of a range, at least one if the blob has some there. `None` if that is
    /// not near.
    pub(super) fn part(&self, digest: &Digest, range: ByteRange) -> Option<Bytes> {
        if let Some(outboard) = self.0.outboards.get(digest) {
            return self.part_of_group(&outboard, range);
        }
        if let Some(whole) = self.whole(digest) {
            return Some(self.taken((Kind::Chunk, *digest.as_bytes()), whole, range));
        }
        let outboard = self.outboard(digest)?;
        self.part_of_group(&outboard, range)
    }

    fn part_of_group(&self, outboard: &Outboard, range: ByteRange) -> Option<Bytes> {
        let range = range.within(outboard.size());
        if range.is_empty() {
            return Some(Bytes::new());
        }
        let index = range.start / GROUP_LEN as u64;
        let group = self.group(outboard, index)?;
        let within = ByteRange {
            offset: range.start - index * GROUP_LEN as u64,
            length: range.end - range.start,
        };
        Some(self.taken((Kind::Group, *outboard.group(index)?), group, within))
    }

    /// A part of a record, which is kept in memory for the next part if there is one.
    fn taken(&self, key: PartKey, bytes: Bytes, range: ByteRange) -> Bytes {
        let range = range.within(bytes.len() as u64);
        let part = bytes.slice(range.start as usize..range.end as usize);
        if range.end < bytes.len() as u64 && !part.is_empty() {
            self.0.parts.insert(key, bytes);
        }
        part
    }

    /// Keeps whole blobs, with the frames that they came in.
    pub(super) fn keep_wholes(&self, blobs: impl IntoIterator<Item = (Blob, Option<Bytes>)>) {
        let blobs = blobs.into_iter().filter(|(blob, _)| !blob.bytes().is_empty());
        let record = |(blob, frame): (Blob, Option<Bytes>)| Record {
            frame,
            ..Record::new(Kind::Chunk, (*blob.digest()).into(), blob.into_bytes())
        };
        self.0.store.keep(blobs.map(record).collect());
    }

    /// Keeps a proven group.
    pub(super) fn keep_group(&self, value: &[u8; 32], group: &Bytes) {
        let key = Bytes::copy_from_slice(value);
        self.0.store.keep(vec![Record::new(Kind::Group, key, group.clone())]);
    }

    /// Keeps what is known of a blob that is not one record, if it can be proven by it.
    pub(super) fn keep_stat(&self, stat: &BlobStat) {
        let value = encode_stat(stat);
        if decode_stat(&stat.digest, &value).as_ref() == Some(stat) {
            self.0.store.keep(vec![Record::new(Kind::Blob, stat.digest.into(), value)]);
        }
    }
}
