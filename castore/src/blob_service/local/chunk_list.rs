//! What a blob is made of, as the store keeps it and as readers use it.

use bytes::Bytes;
use cairn_proto::cairn::v1::{StatResponse, stat_response};
use prost::Message as _;

use crate::{BlobStat, ChunkMeta, Digest, chunking::CHUNK_MAX, outboard::Outboard};

/// The chunks of a blob of several.
#[derive(Debug)]
pub(super) struct ChunkList {
    pub(super) blob: Digest,
    pub(super) size: u64,
    pub(super) chunks: Vec<Chunk>,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Chunk {
    pub(super) digest: Digest,
    /// Where it ends within the blob.
    pub(super) end: u64,
}

impl ChunkList {
    /// The list of a blob of several chunks.
    pub(super) fn new(stat: &BlobStat) -> Self {
        let mut end = 0;
        let chunks = stat.chunks.iter().map(|chunk| {
            end += chunk.size;
            Chunk { digest: chunk.digest, end }
        });
        Self { chunks: chunks.collect(), blob: stat.digest, size: stat.size }
    }

    /// The chunk with this byte, and where it starts.
    pub(super) fn chunk_at(&self, offset: u64) -> Option<(usize, u64)> {
        let index = self.chunks.partition_point(|chunk| chunk.end <= offset);
        (index < self.chunks.len()).then(|| (index, self.start(index)))
    }

    /// Where a chunk starts.
    pub(super) fn start(&self, index: usize) -> u64 {
        index.checked_sub(1).map_or(0, |before| self.chunks[before].end)
    }
}

/// The message that cairn's peers tell each other the same things with.
pub(in crate::blob_service) fn encode_stat(stat: &BlobStat) -> Bytes {
    let chunk =
        |chunk: &ChunkMeta| stat_response::Chunk { digest: chunk.digest.into(), size: chunk.size };
    let message = StatResponse {
        size: stat.size,
        chunks: stat.chunks.iter().map(chunk).collect(),
        outboard: stat.outboard.as_ref().map(Outboard::encode).unwrap_or_default(),
    };
    message.encode_to_vec().into()
}

/// What is known of a blob of several chunks, or of one whose chunks nobody knows. `None` if the
/// value says nothing of the kind, or of another blob.
pub(in crate::blob_service) fn decode_stat(digest: &Digest, value: &Bytes) -> Option<BlobStat> {
    let message = StatResponse::decode(value.clone()).ok()?;
    let mut sum: u64 = 0;
    let mut chunks = Vec::with_capacity(message.chunks.len());
    for chunk in message.chunks {
        sum = sum.checked_add(chunk.size)?;
        chunks.push(ChunkMeta { digest: (&*chunk.digest).try_into().ok()?, size: chunk.size });
    }
    let is_list =
        chunks.len() > 1 && sum == message.size && chunks.iter().all(|chunk| chunk.size > 0);
    let is_unlisted = chunks.is_empty() && message.size > CHUNK_MAX as u64;
    if !(is_list || is_unlisted) {
        return None;
    }
    let outboard = Outboard::parse(*digest, message.size, &message.outboard).ok()?;
    Some(BlobStat { digest: *digest, size: message.size, chunks, outboard: Some(outboard) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{conformance::content, outboard::OutboardHasher};

    #[test]
    fn lists_of_chunks_that_are_none_are_refused() {
        let large = content("large", 700_000);
        let mut hasher = OutboardHasher::new();
        hasher.update(&large);
        let outboard = hasher.finish();
        let digest = *outboard.digest();
        let chunk = |range: std::ops::Range<usize>| ChunkMeta {
            digest: Digest::of(&large[range.clone()]),
            size: range.len() as u64,
        };
        let stat =
            |size, chunks| BlobStat { digest, size, chunks, outboard: Some(outboard.clone()) };
        let decoded = |stat: &BlobStat| decode_stat(&digest, &encode_stat(stat));
        let good = stat(700_000, vec![chunk(0..300_000), chunk(300_000..700_000)]);
        assert_eq!(decoded(&good).as_ref(), Some(&good));
        assert_eq!(decode_stat(&Digest::of(b"?"), &encode_stat(&good)), None);
        let unlisted = stat(700_000, vec![]);
        assert_eq!(decoded(&unlisted).as_ref(), Some(&unlisted), "its chunks are not known");
        assert_eq!(decoded(&stat(700_000, vec![chunk(0..700_000)])), None);
        assert_eq!(decoded(&stat(700_000, vec![chunk(0..300_000), chunk(0..300_000)])), None);
        let huge = ChunkMeta { digest, size: u64::MAX };
        assert_eq!(decoded(&stat(700_000, vec![huge, huge])), None);
        assert_eq!(decode_stat(&digest, &Bytes::from("no message")), None);
    }
}
