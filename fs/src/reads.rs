//! The bytes of files: from the service at once where it has them at hand, else in windows that
//! are fetched once for all who wait, read ahead of a sequential reader, and kept for a while.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use cairn_castore::{
    BlobError, BlobService, ByteRange, Digest,
    blob_service::{BlobServiceExt as _, SMALL_BLOB_MAX},
    outboard::GROUP_LEN,
};
use cairn_telemetry::inventory::{self, CacheLayer};
use parking_lot::Mutex;
use quick_cache::{
    DefaultHashBuilder, OptionsBuilder, Weighter,
    sync::{Cache, DefaultLifecycle, GuardResult},
};
use tokio::task::JoinSet;
use tracing::Instrument as _;

use crate::{errno::FsError, wait::Waiter};

/// What is asked of a slow service at a time, in bytes, at offsets that are multiples of it.
const WINDOW_BYTES: u64 = 1024 * 1024;

/// What is asked of it for one who reads here and there: the least that can be proven by itself.
const GROUP_BYTES: u64 = GROUP_LEN as u64;

/// The memory that windows may take, in bytes.
const CACHE_BYTES: u64 = 32 * 1024 * 1024;

/// The share of it for windows that are used again: most are used once, and have to stay until then.
const REUSED_SHARE: f64 = 0.25;

/// How many parts the cache has, each with its lock.
const CACHE_SHARDS: usize = 2;

/// How many windows are read ahead of one who has read more than one of them: what comes over a
/// line of 1 Gbit/s in 30 ms.
const WINDOWS_AHEAD: u64 = 4;

/// How many windows are read ahead at the same time, of all who read.
const READ_AHEAD_MAX: usize = 16;

/// How many reads that are not waited for it takes to tell that none is.
const SLOW_READS: u32 = 1024;

/// Who asks for more than this at once is no one who reads here and there, in bytes: that much only
/// the kernel asks for, when it has found an order.
const LITTLE_BYTES: u64 = 64 * 1024;

/// What the metrics call the windows in memory.
const LAYER: usize = CacheLayer::Windows as usize;

/// A part of a blob that is fetched at once: its first byte, and how many there are at most.
type Window = (Digest, u64, u64);

/// The window that a byte is in.
fn window(digest: &Digest, offset: u64) -> Window {
    (*digest, offset - offset % WINDOW_BYTES, WINDOW_BYTES)
}

/// The group that a byte is in.
fn group(digest: &Digest, offset: u64) -> Window {
    (*digest, offset - offset % GROUP_BYTES, GROUP_BYTES)
}

/// How many bytes are fetched of the beginning of a file of this size.
pub(crate) fn begun_bytes(size: u64) -> u64 {
    size.min(WINDOW_BYTES)
}

/// The bytes of a window.
#[derive(Clone)]
struct Fetched {
    bytes: Bytes,
    /// How many of them the kernel was not told yet, if it asks for none twice.
    unread: Arc<AtomicU64>,
}

impl Fetched {
    fn new(bytes: Bytes) -> Self {
        Self { unread: Arc::new(AtomicU64::new(bytes.len() as u64)), bytes }
    }

    /// The kernel is told so many more. Whether it was told all of them now.
    fn is_read_by(&self, bytes: u64) -> bool {
        let left = |unread: u64| Some(unread.saturating_sub(bytes));
        let before = self.unread.fetch_update(Ordering::Relaxed, Ordering::Relaxed, left);
        before.is_ok_and(|before| before <= bytes)
    }
}

#[derive(Clone)]
struct ByLength;

impl Weighter<Window, Fetched> for ByLength {
    fn weight(&self, _: &Window, fetched: &Fetched) -> u64 {
        fetched.bytes.len() as u64
    }
}

/// A blob service with a memory of what was slow to get.
pub(crate) struct Reads {
    blobs: Arc<dyn BlobService>,
    windows: Arc<Cache<Window, Fetched, ByLength>>,
    ahead: Mutex<JoinSet<()>>,
    /// How many reads more are taken to have to be waited for, since one had to be not long ago.
    slow: AtomicU32,
}

impl Reads {
    pub(crate) fn new(blobs: Arc<dyn BlobService>) -> Self {
        let options = OptionsBuilder::new()
            .shards(CACHE_SHARDS)
            .weight_capacity(CACHE_BYTES)
            .estimated_items_capacity(1024)
            .hot_allocation(REUSED_SHARE)
            .build()
            .expect("all that is needed is given");
        let (hasher, lifecycle) = (DefaultHashBuilder::default(), DefaultLifecycle::default());
        let windows = Arc::new(Cache::with_options(options, ByLength, hasher, lifecycle));
        inventory::CACHE_BUDGET.set_at(LAYER, CACHE_BYTES as f64);
        Self { blobs, windows, ahead: Mutex::default(), slow: AtomicU32::new(0) }
    }

    /// Bytes of a blob from `range.offset`, which is before its end: at least one and at most
    /// `range.length`. `size` is what the blob's directory entry says.
    pub(crate) fn piece(
        &self,
        digest: &Digest,
        size: u64,
        range: ByteRange,
        waiter: &Waiter,
    ) -> Result<Bytes, FsError> {
        let local = self.blobs.read_local(digest, range);
        self.note_speed(local.is_none());
        let mut piece = match local {
            Some(piece) => piece?,
            None => self.in_window(digest, size, range, waiter)?,
        };
        if piece.is_empty() {
            return Err(FsError::ShortBlob { digest: *digest, end: range.offset, size });
        }
        piece.truncate(usize::try_from(range.length).unwrap_or(usize::MAX));
        Ok(piece)
    }

    /// Whether reads have to be waited for. Where some of it is near, what was read ahead of need is,
    /// so that one that is quick says little.
    pub(crate) fn are_slow(&self) -> bool {
        self.slow.load(Ordering::Relaxed) > 0
    }

    fn note_speed(&self, is_slow: bool) {
        let slow = self.slow.load(Ordering::Relaxed);
        let now = if is_slow { SLOW_READS } else { slow.saturating_sub(1) };
        if now != slow {
            self.slow.store(now, Ordering::Relaxed);
        }
    }

    /// A small blob, if it is at hand.
    pub(crate) fn local(&self, digest: &Digest) -> Option<Result<Bytes, BlobError>> {
        self.blobs.read_local(digest, ByteRange::ALL)
    }

    /// Fetches small blobs of these sizes together, for all who wait for one of them, and begins to
    /// fetch the first window of larger ones. `None` for what is on its way, or can't be had: whoever
    /// needs it asks for it. Those that `is_wanted` no more by their number, now that it comes to it,
    /// are left out.
    pub(crate) async fn fetch_many(
        &self,
        wanted: &[(Digest, u64)],
        is_wanted: impl Fn(usize) -> bool,
        waiter: &Waiter,
    ) -> Result<Vec<Option<Bytes>>, BlobError> {
        let mut contents = vec![None; wanted.len()];
        let (mut digests, mut places) = (Vec::new(), Vec::new());
        for (at, (digest, size)) in wanted.iter().enumerate().filter(|(at, _)| is_wanted(*at)) {
            if *size > SMALL_BLOB_MAX as u64 {
                self.read_ahead(*size, window(digest, 0), waiter);
                continue;
            }
            match self.windows.get_value_or_guard(&window(digest, 0), Some(Duration::ZERO)) {
                GuardResult::Value(fetched) => contents[at] = Some(fetched.bytes),
                GuardResult::Guard(guard) => {
                    digests.push(*digest);
                    places.push((at, guard));
                }
                GuardResult::Timeout => {}
            }
        }
        if digests.is_empty() {
            return Ok(contents);
        }
        let blobs = self.blobs.read_many(&digests).await?;
        for ((at, guard), bytes) in places.into_iter().zip(blobs) {
            let Some(bytes) = bytes.filter(|bytes| bytes.len() as u64 == wanted[at].1) else {
                continue;
            };
            inventory::CACHE_FETCHED.add_at(LAYER, bytes.len() as u64);
            let bytes = Bytes::copy_from_slice(&bytes);
            // Whoever waits has it even if there was no room for it.
            let _ = guard.insert(Fetched::new(bytes.clone()));
            contents[at] = Some(bytes);
        }
        Ok(contents)
    }

    /// A small blob will not be asked for again soon.
    pub(crate) fn release(&self, digest: &Digest) {
        self.windows.remove(&window(digest, 0));
    }

    fn in_window(
        &self,
        digest: &Digest,
        size: u64,
        range: ByteRange,
        waiter: &Waiter,
    ) -> Result<Bytes, FsError> {
        let (here, group) = (window(digest, range.offset), group(digest, range.offset));
        let is_there = |window: Window| self.windows.contains_key(&window);
        let follows = |(_, start, length): Window| match start.checked_sub(length) {
            Some(before) => is_there((*digest, before, length)),
            None => range.offset > 0,
        };
        let in_order = follows(here) || follows(group);
        let here_and_there = here.1 > 0 && range.length <= LITTLE_BYTES && !in_order;
        let asked = match is_there(here) {
            false if here_and_there || is_there(group) => group,
            _ => here,
        };
        if in_order {
            let windows = if here.1 == 0 { 1 } else { WINDOWS_AHEAD };
            for ahead in 1..=windows {
                let start = here.1.saturating_add(ahead * WINDOW_BYTES);
                self.read_ahead(size, (*digest, start, WINDOW_BYTES), waiter);
            }
        }
        let fetched = match self.windows.get(&asked) {
            Some(fetched) => {
                inventory::CACHE_HITS.add_at(LAYER, 1);
                fetched
            }
            None => {
                inventory::CACHE_MISSES.add_at(LAYER, 1);
                let fetched = waiter.wait(fetch(&*self.blobs, &self.windows, size, asked))?;
                inventory::CACHE_BYTES.set_at(LAYER, self.windows.weight() as f64);
                fetched
            }
        };
        let start = usize::try_from(range.offset - asked.1).expect("less than a window");
        let bytes = fetched.bytes.slice(start.min(fetched.bytes.len())..);
        if fetched.is_read_by(range.length.min(bytes.len() as u64)) {
            self.forget(asked, size);
        }
        Ok(bytes)
    }

    /// All of a window was read, and the kernel keeps what it was told. One that others come behind
    /// stays until they are read as well: it tells that this is done in order.
    fn forget(&self, window: Window, size: u64) {
        let (digest, start, length) = window;
        if let Some(before) = start.checked_sub(length) {
            self.windows.remove(&(digest, before, length));
        }
        if start.saturating_add(length) >= size {
            self.windows.remove(&window);
        }
    }

    /// Fetches a window in the background, if the blob has it and not too many are under way.
    fn read_ahead(&self, size: u64, window: Window, waiter: &Waiter) {
        if window.1 >= size || self.windows.contains_key(&window) {
            return;
        }
        let mut ahead = self.ahead.lock();
        while ahead.try_join_next().is_some() {}
        if ahead.len() >= READ_AHEAD_MAX {
            return;
        }
        let (blobs, windows) = (self.blobs.clone(), self.windows.clone());
        let deadline = waiter.deadline();
        let task = async move {
            let _one = inventory::READ_AHEAD.one();
            let fetched = fetch(&*blobs, &windows, size, window);
            // Whoever needs the window asks again, and reports what is wrong then.
            if let Ok(Err(error)) = tokio::time::timeout(deadline, fetched).await {
                tracing::debug!(digest = %window.0, offset = window.1, %error, "reading ahead failed");
            }
        };
        ahead.spawn_on(task.in_current_span(), waiter.runtime());
    }
}

/// A window, asked of the service once for all who wait for it.
async fn fetch(
    blobs: &dyn BlobService,
    windows: &Cache<Window, Fetched, ByLength>,
    size: u64,
    window: Window,
) -> Result<Fetched, FsError> {
    let (digest, offset, length) = &window;
    let fetched = async {
        let range = ByteRange { offset: *offset, length: *length };
        let expected = range.within(size);
        let bytes = if size <= SMALL_BLOB_MAX as u64 {
            small(blobs, digest).await?
        } else {
            blobs.read_to_bytes(digest, range).await?
        };
        if (bytes.len() as u64) < expected.end - expected.start {
            let end = expected.start + bytes.len() as u64;
            return Err(FsError::ShortBlob { digest: *digest, end, size });
        }
        inventory::CACHE_FETCHED.add_at(LAYER, bytes.len() as u64);
        // A copy, since the bytes may be a part of a larger message that would stay as well.
        Ok(Fetched::new(Bytes::copy_from_slice(&bytes)))
    };
    windows.get_or_insert_async(&window, fetched).await
}

/// A blob that should be a small one, in one round trip.
async fn small(blobs: &dyn BlobService, digest: &Digest) -> Result<Bytes, BlobError> {
    match blobs.read_many(std::slice::from_ref(digest)).await {
        Ok(found) => found.into_iter().next().flatten().ok_or(BlobError::NotFound(*digest)),
        // Its directory says another size than it has.
        Err(BlobError::TooLarge { .. }) => {
            let range = ByteRange { offset: 0, length: WINDOW_BYTES };
            blobs.read_to_bytes(digest, range).await
        }
        Err(error) => Err(error),
    }
}

impl fmt::Debug for Reads {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reads").field("blobs", &self.blobs).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use cairn_castore::blob_service::memory::MemoryBlobService;

    use super::*;

    fn reads(blobs: MemoryBlobService) -> Reads {
        Reads::new(Arc::new(blobs))
    }

    #[test]
    fn what_was_read_ahead_stays_beside_what_is_used_again() {
        let reads = reads(MemoryBlobService::new());
        let digest = Digest::of(b"large");
        let bytes = Bytes::from(vec![0; WINDOW_BYTES as usize]);
        let at = |number: u64| window(&digest, number * WINDOW_BYTES);
        // More than there is room for, all of it used again.
        for number in 0..100 {
            reads.windows.insert(at(number), Fetched::new(bytes.clone()));
            (0..3).for_each(|_| drop(reads.windows.get(&at(number))));
        }
        let ahead = 1000..1000 + READ_AHEAD_MAX as u64 / 2;
        let insert = |number| reads.windows.insert(at(number), Fetched::new(bytes.clone()));
        ahead.clone().for_each(insert);
        let there = ahead.clone().filter(|number| reads.windows.contains_key(&at(*number)));
        assert_eq!(there.count(), ahead.count());
    }

    /// The windows of a blob that are kept, by their number.
    fn kept(reads: &Reads, digest: &Digest) -> Vec<u64> {
        let is_kept =
            |number: &u64| reads.windows.contains_key(&window(digest, number * WINDOW_BYTES));
        (0..10).filter(is_kept).collect()
    }

    #[test]
    fn what_the_kernel_was_told_is_not_kept() {
        let reads = reads(MemoryBlobService::new());
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let waiter = Waiter::new(runtime.handle().clone(), Duration::from_secs(10));
        let read = |digest: &Digest, size: u64, offset: u64, length: u64| {
            reads.in_window(digest, size, ByteRange { offset, length }, &waiter).unwrap();
        };
        let bytes = Bytes::from(vec![7; WINDOW_BYTES as usize]);

        let small = Digest::of(b"small");
        reads.windows.insert(window(&small, 0), Fetched::new(bytes.slice(..10_000)));
        // Its end first, as linkers and archivers do.
        read(&small, 10_000, 8192, 4096);
        assert_eq!(kept(&reads, &small), [0]);
        read(&small, 10_000, 0, 8192);
        assert!(kept(&reads, &small).is_empty());

        let large = Digest::of(b"large");
        let size = 3 * WINDOW_BYTES;
        for number in 0..3 {
            let at = window(&large, number * WINDOW_BYTES);
            reads.windows.insert(at, Fetched::new(bytes.clone()));
        }
        let half = WINDOW_BYTES / 2;
        let mut after = Vec::new();
        for part in 0..6 {
            read(&large, size, part * half, half);
            after.push(kept(&reads, &large));
        }
        assert_eq!(
            after,
            [vec![0, 1, 2], vec![0, 1, 2], vec![0, 1, 2], vec![1, 2], vec![1, 2], vec![]]
        );
    }

    #[test]
    fn one_quick_read_does_not_make_a_slow_store_a_quick_one() {
        let reads = reads(MemoryBlobService::new());
        assert!(!reads.are_slow());
        reads.note_speed(true);
        for _ in 1..SLOW_READS {
            reads.note_speed(false);
            assert!(reads.are_slow());
        }
        reads.note_speed(false);
        assert!(!reads.are_slow());
        reads.note_speed(false);
        assert!(!reads.are_slow());
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn small_files_are_fetched_together_and_larger_ones_begun() {
        let blobs = MemoryBlobService::new();
        let large = vec![7; 3 * WINDOW_BYTES as usize];
        let small = blobs.put_bytes(Bytes::from_static(b"small")).await.unwrap();
        let large = (blobs.put_bytes(large.clone().into()).await.unwrap(), large.len() as u64);
        let waiter = Waiter::new(tokio::runtime::Handle::current(), Duration::from_secs(10));
        let reads = reads(blobs);
        let wanted = [(small, 5), large, (small, 5)];
        let contents = reads.fetch_many(&wanted, |at| at < 2, &waiter).await.unwrap();
        assert_eq!(contents, [Some(Bytes::from_static(b"small")), None, None]);
        let mut begun = std::mem::take(&mut *reads.ahead.lock());
        begun.join_next().await.expect("something is being fetched").unwrap();
        assert!(reads.windows.contains_key(&window(&large.0, 0)));
        assert!(!reads.windows.contains_key(&window(&large.0, WINDOW_BYTES)));
    }
}
