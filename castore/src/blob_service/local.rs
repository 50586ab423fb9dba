//! Blobs in the local store: chunks, and for a blob of several the list of them with the proof of
//! its ranges. How the store keeps records is in `local`.

use std::{collections::HashSet, fmt, fs::File, sync::Arc};

use async_trait::async_trait;
use bytes::Bytes;
use futures::{StreamExt as _, TryStreamExt as _};
use quick_cache::{Weighter, sync::Cache};
use tokio::sync::Semaphore;

use self::{
    chunk_list::{Chunk, ChunkList, decode_stat},
    put::put,
};
use crate::{
    Blob, BlobError, BlobService, BlobStat, ByteRange, Digest, Packed, Packing,
    blob_service::{
        BlobSource, BlobStream, HAS_MANY_DIGESTS, PUT_MANY_BYTES, READ_MANY_BLOBS, check_count,
        check_small,
    },
    local::{Kind, LocalError, LocalStore, Record, Submitted},
};

pub(super) mod chunk_list;
mod put;

/// The decompressed chunks kept in memory for readers that take them in parts, in bytes: enough for
/// a chunk each of some readers. What has been read is kept by whoever has read it.
const CHUNK_CACHE_BYTES: u64 = 4 * 1024 * 1024;

/// The chunk lists kept in memory, in bytes.
const LIST_CACHE_BYTES: u64 = 16 * 1024 * 1024;

/// How many entries the caches are laid out for. Few, so that the room is not split into parts
/// that are smaller than an entry.
const CACHED_CHUNKS: usize = 128;
const CACHED_LISTS: usize = 64;

/// The chunks that a stream reads ahead of its reader.
const READ_AHEAD: usize = 4;

/// The streams that are stored at a time. One whose source lets wait holds no more than the start
/// of a chunk, at most [`CHUNK_MAX`](crate::chunking::CHUNK_MAX) bytes.
const PUT_STREAMS: usize = 1024;

/// The streams that are worked on at a time. Each takes one of the runtime's threads for blocking
/// work, of which enough must be left for the reads that streams may come from.
const PUT_STEPS: usize = 32;

/// The blobs of a local store.
#[derive(Debug, Clone)]
pub struct LocalBlobService {
    blobs: Arc<Blobs>,
}

/// What is done on threads that may wait.
#[derive(Debug)]
struct Blobs {
    store: Arc<LocalStore>,
    chunks: Cache<Digest, Bytes, ChunkWeight>,
    lists: Cache<Digest, Arc<ChunkList>, ListWeight>,
    streams: Semaphore,
    steps: Semaphore,
}

#[derive(Debug, Clone)]
struct ChunkWeight;

impl Weighter<Digest, Bytes> for ChunkWeight {
    fn weight(&self, _: &Digest, chunk: &Bytes) -> u64 {
        chunk.len().max(1) as u64
    }
}

#[derive(Debug, Clone)]
struct ListWeight;

impl Weighter<Digest, Arc<ChunkList>> for ListWeight {
    fn weight(&self, _: &Digest, list: &Arc<ChunkList>) -> u64 {
        (list.chunks.len() * size_of::<Chunk>()) as u64
    }
}

/// What a blob is made of.
enum Parts {
    /// A chunk of this many bytes.
    One(u64),
    Many(Arc<ChunkList>),
}

impl LocalBlobService {
    /// The blobs of this store.
    pub fn new(store: Arc<LocalStore>) -> Self {
        let chunks = Cache::with_weighter(CACHED_CHUNKS, CHUNK_CACHE_BYTES, ChunkWeight);
        let lists = Cache::with_weighter(CACHED_LISTS, LIST_CACHE_BYTES, ListWeight);
        let (streams, steps) = (Semaphore::new(PUT_STREAMS), Semaphore::new(PUT_STEPS));
        Self { blobs: Arc::new(Blobs { store, chunks, lists, streams, steps }) }
    }

    /// The bytes that each of these blobs takes in the store; 0 for one that is not there. A chunk that
    /// blobs share counts for each of them.
    pub async fn stored_sizes(&self, digests: &[Digest]) -> Result<Vec<u64>, BlobError> {
        let digests = digests.to_vec();
        self.blocking(move |blobs| digests.iter().map(|digest| blobs.stored_size(digest)).collect())
            .await
    }

    async fn blocking<T: Send + 'static>(
        &self,
        run: impl FnOnce(&Blobs) -> Result<T, BlobError> + Send + 'static,
    ) -> Result<T, BlobError> {
        self.blobs.blocking(run).await
    }
}

impl fmt::Display for LocalBlobService {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.blobs.store.fmt(f)
    }
}

impl Blobs {
    async fn blocking<T: Send + 'static>(
        self: &Arc<Self>,
        run: impl FnOnce(&Self) -> Result<T, BlobError> + Send + 'static,
    ) -> Result<T, BlobError> {
        let blobs = Arc::clone(self);
        match tokio::task::spawn_blocking(move || run(&blobs)).await {
            Ok(outcome) => outcome,
            // The runtime is shutting down, or the closure has panicked.
            Err(error) => {
                Err(BlobError::Other { service: self.store.to_string(), source: Box::new(error) })
            }
        }
    }

    fn error(&self, error: LocalError) -> BlobError {
        let service = self.store.to_string();
        match error {
            LocalError::Damaged { ref key, pack, offset, ref reason, .. } => {
                match Digest::try_from(&**key) {
                    Ok(digest) => BlobError::Corrupt {
                        digest,
                        reason: format!("{reason}, in pack {pack:08} at byte {offset}"),
                    },
                    Err(_) => BlobError::Other { service, source: Box::new(error) },
                }
            }
            LocalError::NoSpace { .. } => BlobError::NoSpace { service, source: Box::new(error) },
            LocalError::TooLarge { .. } => BlobError::Invalid(error.to_string()),
            error => BlobError::Other { service, source: Box::new(error) },
        }
    }

    /// What a blob is made of. `None` if it is not there.
    fn parts(&self, digest: &Digest) -> Result<Option<Parts>, BlobError> {
        let key = digest.as_bytes();
        if let Some(list) = self.lists.get(digest) {
            return Ok(Some(Parts::Many(list)));
        }
        if *digest == Digest::EMPTY {
            return Ok(Some(Parts::One(0)));
        }
        let size = self.store.value_len(Kind::Chunk, key).map_err(|error| self.error(error))?;
        if let Some(size) = size {
            return Ok(Some(Parts::One(size)));
        }
        if let Some(stat) = self.stat_of_many(digest)? {
            let list = ChunkList::new(&stat);
            let list = Arc::new(list);
            self.lists.insert(*digest, Arc::clone(&list));
            return Ok(Some(Parts::Many(list)));
        }
        // One that is damaged is not among those that are there, but reading it tells why.
        let chunk = self.store.get(Kind::Chunk, key).map_err(|error| self.error(error))?;
        Ok(chunk.map(|chunk| Parts::One(chunk.len() as u64)))
    }

    /// What is known of a blob of several chunks. `None` if it is none.
    fn stat_of_many(&self, digest: &Digest) -> Result<Option<BlobStat>, BlobError> {
        let value = self.store.get(Kind::Blob, digest.as_bytes());
        let Some(value) = value.map_err(|error| self.error(error))? else { return Ok(None) };
        match decode_stat(digest, &value).filter(|stat| !stat.chunks.is_empty()) {
            Some(stat) => Ok(Some(stat)),
            None => {
                let reason = "its list of chunks is none".to_owned();
                self.distrust(digest);
                Err(BlobError::Corrupt { digest: *digest, reason })
            }
        }
    }

    fn stat(&self, digest: &Digest) -> Result<Option<BlobStat>, BlobError> {
        match self.parts(digest)? {
            None => Ok(None),
            Some(Parts::One(size)) => {
                Ok(Some(BlobStat { digest: *digest, size, chunks: Vec::new(), outboard: None }))
            }
            Some(Parts::Many(_)) => self.stat_of_many(digest),
        }
    }

    fn stored_size(&self, digest: &Digest) -> Result<u64, BlobError> {
        let stored = |kind, digest: &Digest| {
            let stored = self.store.stored_len(kind, digest.as_bytes());
            Ok(stored.map_err(|error| self.error(error))?.unwrap_or(0))
        };
        match self.parts(digest)? {
            None => Ok(0),
            Some(Parts::One(_)) => stored(Kind::Chunk, digest),
            Some(Parts::Many(list)) => {
                let chunks: HashSet<_> = list.chunks.iter().map(|chunk| chunk.digest).collect();
                let mut size = stored(Kind::Blob, digest)?;
                for chunk in chunks {
                    size += stored(Kind::Chunk, &chunk)?;
                }
                Ok(size)
            }
        }
    }

    fn has(&self, digest: &Digest) -> Result<bool, BlobError> {
        let key = digest.as_bytes();
        let contains = |kind| self.store.contains(kind, key).map_err(|error| self.error(error));
        Ok(*digest == Digest::EMPTY || contains(Kind::Chunk)? || contains(Kind::Blob)?)
    }

    /// A whole chunk, from the cache if it is there.
    fn chunk(&self, digest: &Digest) -> Result<Option<Bytes>, BlobError> {
        match self.chunks.get(digest) {
            Some(chunk) => Ok(Some(chunk)),
            None if *digest == Digest::EMPTY => Ok(Some(Bytes::new())),
            None => {
                let chunk = self.store.get(Kind::Chunk, digest.as_bytes());
                chunk.map_err(|error| self.error(error))
            }
        }
    }

    /// A chunk that a blob has to have. If it is damaged or missing, so is the blob.
    fn chunk_of(&self, list: &ChunkList, index: usize) -> Result<Bytes, BlobError> {
        let digest = &list.chunks[index].digest;
        let size = list.chunks[index].end - list.start(index);
        let reason = match self.chunk(digest) {
            Ok(Some(chunk)) if chunk.len() as u64 == size => return Ok(chunk),
            Ok(Some(_)) => format!("chunk {digest} has another length"),
            Ok(None) => format!("chunk {digest} is missing"),
            Err(error @ BlobError::Corrupt { .. }) => {
                self.distrust(&list.blob);
                return Err(error);
            }
            Err(error) => return Err(error),
        };
        self.distrust(&list.blob);
        Err(BlobError::Corrupt { digest: list.blob, reason })
    }

    /// A blob whose chunks are damaged counts as absent, so that they come again.
    fn distrust(&self, blob: &Digest) {
        if let Err(error) = self.store.distrust(Kind::Blob, blob.as_bytes()) {
            let error = &error as &dyn std::error::Error;
            tracing::warn!(store = %self.store, %blob, error, "damage could not be noted");
        }
    }

    /// A part of a chunk, which is kept for the next part if there is one.
    fn part_of(
        &self,
        digest: &Digest,
        range: ByteRange,
        load: impl FnOnce() -> Result<Bytes, BlobError>,
    ) -> Result<Bytes, BlobError> {
        let part = |chunk: &Bytes| {
            let range = range.within(chunk.len() as u64);
            chunk.slice(range.start as usize..range.end as usize)
        };
        if let Some(chunk) = self.chunks.get(digest) {
            return Ok(part(&chunk));
        }
        let chunk = load()?;
        let taken = part(&chunk);
        if taken.len() < chunk.len() {
            self.chunks.insert(*digest, chunk);
        }
        Ok(taken)
    }

    fn read_now(&self, digest: &Digest, range: ByteRange) -> Result<Bytes, BlobError> {
        // Spares a reader of a chunk's parts the way through the index.
        if let Some(chunk) = self.chunks.get(digest) {
            return self.part_of(digest, range, || Ok(chunk));
        }
        match self.parts(digest)?.ok_or(BlobError::NotFound(*digest))? {
            Parts::One(size) if range.within(size).is_empty() => Ok(Bytes::new()),
            Parts::One(_) => {
                let load = || self.chunk(digest)?.ok_or(BlobError::NotFound(*digest));
                self.part_of(digest, range, load)
            }
            Parts::Many(list) => {
                let range = range.within(list.size);
                let Some((index, start)) = list.chunk_at(range.start).filter(|_| !range.is_empty())
                else {
                    return Ok(Bytes::new());
                };
                let within =
                    ByteRange { offset: range.start - start, length: range.end - range.start };
                let chunk = list.chunks[index].digest;
                self.part_of(&chunk, within, || self.chunk_of(&list, index))
            }
        }
    }

    /// Small blobs, each by `read` if it is there.
    fn read_many<T>(
        &self,
        digests: &[Digest],
        read: impl Fn(&Digest) -> Result<Option<T>, BlobError>,
    ) -> Result<Vec<Option<T>>, BlobError> {
        let read = |digest: &Digest| {
            let size = match self.parts(digest)? {
                None => return Ok(None),
                Some(Parts::One(size)) => size,
                Some(Parts::Many(list)) => list.size,
            };
            check_small(digest, size)?;
            read(digest)
        };
        digests.iter().map(read).collect()
    }

    /// A chunk as it is stored.
    fn packed_chunk(&self, digest: &Digest) -> Result<Option<Packed>, BlobError> {
        if *digest == Digest::EMPTY {
            return Ok(Some(Packed::Plain(Bytes::new())));
        }
        let packed = self.store.get_packed(Kind::Chunk, digest.as_bytes());
        packed.map_err(|error| self.error(error))
    }

    fn put_many(&self, blobs: Vec<Blob>) -> Result<Submitted, BlobError> {
        let record =
            |blob: Blob| Record::new(Kind::Chunk, (*blob.digest()).into(), blob.into_bytes());
        let is_empty = |blob: &Blob| blob.bytes().is_empty();
        let records = blobs.into_iter().filter(|blob| !is_empty(blob)).map(record).collect();
        self.store.submit(records).map_err(|error| self.error(error))
    }
}

#[async_trait]
impl BlobService for LocalBlobService {
    async fn stat(&self, digest: &Digest) -> Result<Option<BlobStat>, BlobError> {
        let digest = *digest;
        self.blocking(move |blobs| blobs.stat(&digest)).await
    }

    async fn has_many(&self, digests: &[Digest]) -> Result<Vec<bool>, BlobError> {
        check_count(digests.len(), HAS_MANY_DIGESTS)?;
        let digests = digests.to_vec();
        self.blocking(move |blobs| digests.iter().map(|digest| blobs.has(digest)).collect()).await
    }

    async fn read(&self, digest: &Digest, range: ByteRange) -> Result<BlobStream, BlobError> {
        let digest = *digest;
        let parts = self.blocking(move |blobs| blobs.parts(&digest)).await?;
        let list = match parts.ok_or(BlobError::NotFound(digest))? {
            Parts::One(size) if range.within(size).is_empty() => {
                return Ok(futures::stream::empty().boxed());
            }
            Parts::One(_) => {
                let bytes = self.blocking(move |blobs| blobs.read_now(&digest, range)).await?;
                return Ok(futures::stream::once(async { Ok(bytes) }).boxed());
            }
            Parts::Many(list) => list,
        };
        let range = range.within(list.size);
        let first = list.chunk_at(range.start).map_or(list.chunks.len(), |(index, _)| index);
        let end = list.chunks.partition_point(|chunk| chunk.end < range.end) + 1;
        let indices = if range.is_empty() { 0..0 } else { first..end.min(list.chunks.len()) };
        let blobs = Arc::clone(&self.blobs);
        let part = move |index: usize| {
            let (blobs, list, range) = (Arc::clone(&blobs), Arc::clone(&list), range.clone());
            async move {
                let start = list.start(index);
                let chunk = blobs.blocking(move |blobs| blobs.chunk_of(&list, index)).await?;
                let from = range.start.saturating_sub(start).min(chunk.len() as u64);
                let to = (range.end - start).min(chunk.len() as u64);
                Ok::<_, BlobError>(chunk.slice(from as usize..to as usize))
            }
        };
        let stream = futures::stream::iter(indices).map(part).buffered(READ_AHEAD);
        // Ends with the first error, as streams of blobs do.
        Ok(async_stream::try_stream! {
            futures::pin_mut!(stream);
            while let Some(bytes) = stream.try_next().await? {
                yield bytes;
            }
        }
        .boxed())
    }

    async fn read_many(&self, digests: &[Digest]) -> Result<Vec<Option<Bytes>>, BlobError> {
        check_count(digests.len(), READ_MANY_BLOBS)?;
        let digests = digests.to_vec();
        let read = move |blobs: &Blobs| blobs.read_many(&digests, |digest| blobs.chunk(digest));
        self.blocking(read).await
    }

    async fn read_many_packed(
        &self,
        digests: &[Digest],
        _: Packing,
    ) -> Result<Vec<Option<Packed>>, BlobError> {
        check_count(digests.len(), READ_MANY_BLOBS)?;
        let digests = digests.to_vec();
        let read =
            move |blobs: &Blobs| blobs.read_many(&digests, |digest| blobs.packed_chunk(digest));
        self.blocking(read).await
    }

    async fn put(&self, source: BlobSource) -> Result<BlobStat, BlobError> {
        put(&self.blobs, source).await
    }

    async fn put_many(&self, blobs: Vec<Blob>) -> Result<(), BlobError> {
        if blobs.iter().map(|blob| blob.bytes().len()).sum::<usize>() > PUT_MANY_BYTES {
            return Err(BlobError::Invalid(format!("more than {PUT_MANY_BYTES} bytes of blobs")));
        }
        for blob in &blobs {
            check_small(blob.digest(), blob.bytes().len() as u64)?;
        }
        let submitted = self.blocking(move |service| service.put_many(blobs)).await?;
        submitted.done().await.map_err(|error| self.blobs.error(error))?;
        Ok(())
    }

    fn read_local(&self, digest: &Digest, range: ByteRange) -> Option<Result<Bytes, BlobError>> {
        Some(self.blobs.read_now(digest, range))
    }

    fn lend(&self, _: &Digest) -> Option<File> {
        None
    }

    fn keep_whole(&self, _: &Digest) {}
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::FileExt as _, path::Path};

    use super::*;
    use crate::{
        blob_service::BlobServiceExt as _,
        conformance::{self, content},
    };

    fn open(path: &Path) -> LocalBlobService {
        LocalBlobService::new(LocalStore::open(path).unwrap())
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn conforms() {
        let folder = tempfile::tempdir().unwrap();
        conformance::blob_service(Arc::new(open(folder.path()))).await;
    }

    #[tokio::test]
    async fn blobs_are_there_after_a_reopen_with_their_proof() {
        let folder = tempfile::tempdir().unwrap();
        let large = content("large", 3_000_000);
        let stat = {
            let service = open(folder.path());
            let source = futures::stream::iter([Ok(large.clone())]).boxed();
            service.put(source).await.unwrap()
        };
        assert_eq!(stat.digest, Digest::of(&large));
        assert!(stat.chunks.len() > 4 && stat.outboard.is_some());
        let service = open(folder.path());
        assert_eq!(service.stat(&stat.digest).await.unwrap(), Some(stat.clone()));
        assert_eq!(service.read_to_bytes(&stat.digest, ByteRange::ALL).await.unwrap(), large);
    }

    /// More of them than there are threads that may block.
    #[test]
    fn streams_that_let_wait_hold_no_thread() {
        let mut runtime = tokio::runtime::Builder::new_multi_thread();
        let runtime = runtime.worker_threads(1).max_blocking_threads(4).build().unwrap();
        runtime.block_on(async {
            let folder = tempfile::tempdir().unwrap();
            let service = open(folder.path());
            let start = content("start", 200_000);
            let mut stalled = Vec::new();
            let (told, mut begun) = tokio::sync::mpsc::unbounded_channel();
            for _ in 0..100 {
                let (service, start, told) = (service.clone(), start.clone(), told.clone());
                stalled.push(tokio::spawn(async move {
                    let tell = async move {
                        told.send(()).unwrap();
                        futures::future::pending().await
                    };
                    let first = futures::stream::iter([Ok(start)]);
                    service.put(first.chain(futures::stream::once(tell)).boxed()).await
                }));
            }
            for _ in 0..stalled.len() {
                begun.recv().await.unwrap();
            }
            let large = content("large", 3_000_000);
            let pieces: Vec<_> =
                large.chunks(70_000).map(|piece| Ok(piece.to_vec().into())).collect();
            let stat = service.put(futures::stream::iter(pieces).boxed()).await.unwrap();
            assert_eq!(service.read_to_bytes(&stat.digest, ByteRange::ALL).await.unwrap(), large);
            assert!(stalled.iter().all(|put| !put.is_finished()));
            stalled.iter().for_each(|put| put.abort());
        });
    }

    #[tokio::test]
    async fn local_reads_answer_any_range_in_parts() {
        let folder = tempfile::tempdir().unwrap();
        let service = open(folder.path());
        let large = content("large", 1_500_000);
        let digest = service.put_bytes(large.clone()).await.unwrap();
        for (offset, length) in [(0, 131_072), (400_000, 600_000), (1_499_999, 10), (7, u64::MAX)] {
            let wanted = ByteRange { offset, length }.within(large.len() as u64);
            let mut at = wanted.start;
            while at < wanted.end {
                let range = ByteRange { offset: at, length: wanted.end - at };
                let part = service.read_local(&digest, range).unwrap().unwrap();
                assert!(!part.is_empty());
                assert_eq!(part, large[at as usize..at as usize + part.len()]);
                at += part.len() as u64;
            }
            assert_eq!(at, wanted.end);
        }
        let behind = ByteRange { offset: 1_500_000, length: 5 };
        assert!(service.read_local(&digest, behind).unwrap().unwrap().is_empty());
        let unknown = service.read_local(&Digest::of(b"?"), ByteRange::ALL).unwrap();
        assert!(matches!(unknown, Err(BlobError::NotFound(_))));
    }

    #[tokio::test]
    async fn a_blob_with_a_damaged_chunk_is_told_and_comes_again() {
        let folder = tempfile::tempdir().unwrap();
        let large = content("large", 1_000_000);
        let digest = open(folder.path()).put_bytes(large.clone()).await.unwrap();
        let pack = folder.path().join("packs/00000001.pack");
        let file = fs::OpenOptions::new().write(true).open(pack).unwrap();
        file.write_all_at(b"damage", 300_000).unwrap();

        let service = open(folder.path());
        assert!(service.has(&digest).await.unwrap(), "nobody has looked yet");
        let error = service.read_to_bytes(&digest, ByteRange::ALL).await.unwrap_err();
        assert!(matches!(&error, BlobError::Corrupt { .. }), "{error}");
        assert!(error.to_string().contains("in pack 00000001 at byte"), "{error}");
        let last = ByteRange { offset: 999_000, length: 1000 };
        let whole = service.read_to_bytes(&digest, last).await.unwrap();
        assert_eq!(whole, large[999_000..], "the other chunks are read");
        assert!(!service.has(&digest).await.unwrap());
        service.put_bytes(large.clone()).await.unwrap();
        assert!(service.has(&digest).await.unwrap());
        assert_eq!(service.read_to_bytes(&digest, ByteRange::ALL).await.unwrap(), large);
    }

    #[tokio::test]
    async fn a_frame_that_is_damaged_is_not_handed_on() {
        let folder = tempfile::tempdir().unwrap();
        let bytes = Bytes::from(b"again and ".repeat(1000));
        let digest = open(folder.path()).put_bytes(bytes.clone()).await.unwrap();
        let service = open(folder.path());
        let packed = service.read_many_packed(&[digest], Packing::Stored).await.unwrap();
        assert!(matches!(&packed[..], [Some(Packed::Frame { size: 10_000, .. })]), "{packed:?}");
        drop(service);
        let pack = folder.path().join("packs/00000001.pack");
        let file = fs::OpenOptions::new().write(true).open(pack).unwrap();
        // In the payload of the one record.
        file.write_all_at(b"damage", 24 + 24 + 32 + 10).unwrap();
        let service = open(folder.path());
        let error = service.read_many_packed(&[digest], Packing::Stored).await.unwrap_err();
        assert!(matches!(&error, BlobError::Corrupt { .. }), "{error}");
        assert!(error.to_string().contains("in pack 00000001 at byte"), "{error}");
        assert!(!service.has(&digest).await.unwrap());
        service.put_bytes(bytes).await.unwrap();
        assert!(service.read_many_packed(&[digest], Packing::Stored).await.unwrap()[0].is_some());
    }
}
