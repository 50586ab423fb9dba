//! Large files that the kernel reads by itself, from files that the blob service lends: which are
//! open in that way, which are read through the mount instead, and which are worth being made for
//! it. How the kernel is told of a file is the transport's affair.

use std::{
    collections::HashMap,
    fs::File,
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use cairn_castore::{BlobService, Digest};
use fuse_backend_rs::api::filesystem::OpenOptions;
use parking_lot::Mutex;
use quick_cache::sync::Cache;

use crate::inodes::NodeId;

/// Files of fewer bytes are always read through the mount.
pub const PASSTHROUGH_MIN_BYTES: u64 = 1024 * 1024;

/// A read through the mount counts as so many bytes at least when it comes to whether a file is
/// worth being made whole: about what is written in the time that a read takes.
const READ_WORTH_BYTES: u64 = 64 * 1024;

/// A file is made whole once reads worth a part of it have been made: one in so many.
const WORTHY_PART: u64 = 2;

/// How many files are remembered as read.
const WORTHS_MAX: usize = 1024;

/// Tells the kernel's answer to an open that the kernel is to read the file itself. It is not among
/// those that the crate knows.
const PASSTHROUGH: u32 = 1 << 7;

/// The handle of an open file that is counted.
const COUNTED: u64 = 1;

/// Files that the kernel is told of.
pub(crate) trait Backing: Send + Sync {
    /// Tells the kernel of a file, which it then keeps open; the number that it gives it.
    fn open(&self, file: &File) -> io::Result<u32>;

    /// The kernel need not keep the file of this number.
    fn close(&self, id: u32);
}

/// The open large files of a mount.
pub(crate) struct Passthrough {
    blobs: Arc<dyn BlobService>,
    backing: Box<dyn Backing>,
    /// Whether the kernel still takes files.
    is_on: AtomicBool,
    /// The kernel wants all that open a file at the same time to read it in the same way.
    open_files: Mutex<HashMap<NodeId, OpenFile>>,
    /// What the reads through the mount of a file were worth, in bytes.
    worths: Cache<Digest, Arc<AtomicU64>>,
}

#[derive(Debug)]
struct OpenFile {
    opens: u64,
    /// The kernel's number of the file that it reads. `None`: it is read through the mount.
    backing: Option<u32>,
}

/// What the kernel is told of an open file.
pub(crate) type Opened = (Option<u64>, OpenOptions, Option<u32>);

impl Passthrough {
    pub(crate) fn new(blobs: Arc<dyn BlobService>, backing: Box<dyn Backing>) -> Self {
        Self {
            blobs,
            backing,
            is_on: AtomicBool::new(true),
            open_files: Mutex::default(),
            worths: Cache::new(WORTHS_MAX),
        }
    }

    /// Whether opens are worth being told of.
    pub(crate) fn is_on(&self) -> bool {
        self.is_on.load(Ordering::Relaxed)
    }

    /// From now on everything is read through the mount.
    pub(crate) fn turn_off(&self) {
        self.is_on.store(false, Ordering::Relaxed);
    }

    /// Whether the kernel takes a file such as this one.
    pub(crate) fn try_with(&self, sample: &File) -> io::Result<()> {
        self.backing.open(sample).map(|id| self.backing.close(id))
    }

    /// A file is opened.
    pub(crate) fn open(&self, inode: NodeId, digest: &Digest, size: u64) -> Opened {
        if size < PASSTHROUGH_MIN_BYTES {
            return (None, OpenOptions::KEEP_CACHE, None);
        }
        if let Some(opened) = self.open_again(inode) {
            return opened;
        }
        // Not while holding the lock: it may wait for the disk.
        let backing = self.lent(digest, size);
        let mut open_files = self.open_files.lock();
        if let Some(file) = open_files.get_mut(&inode) {
            // Someone else has opened it meanwhile.
            let opened = file.open_again();
            drop(open_files);
            if let Some(id) = backing {
                self.backing.close(id);
            }
            return opened;
        }
        open_files.entry(inode).or_insert(OpenFile { opens: 0, backing }).open_again()
    }

    fn open_again(&self, inode: NodeId) -> Option<Opened> {
        self.open_files.lock().get_mut(&inode).map(OpenFile::open_again)
    }

    /// The number of the file that the blob service lends for a blob.
    fn lent(&self, digest: &Digest, size: u64) -> Option<u32> {
        if !self.is_on() {
            return None;
        }
        let file = self.blobs.lend(digest)?;
        if !file.metadata().is_ok_and(|metadata| metadata.len() == size) {
            return None;
        }
        match self.backing.open(&file) {
            Ok(id) => Some(id),
            Err(error) => {
                tracing::warn!(blob = %digest, %error, "the kernel does not take a file");
                None
            }
        }
    }

    /// An open file is closed by the last who had it from one open.
    pub(crate) fn release(&self, inode: NodeId, handle: u64) {
        if handle != COUNTED {
            return;
        }
        let mut open_files = self.open_files.lock();
        let Some(file) = open_files.get_mut(&inode) else { return };
        file.opens -= 1;
        if file.opens > 0 {
            return;
        }
        let backing = file.backing;
        open_files.remove(&inode);
        drop(open_files);
        if let Some(id) = backing {
            self.backing.close(id);
        }
    }

    /// A file is read through the mount. Once that has happened for so much of it that a whole file
    /// would have been better, one is wished for.
    pub(crate) fn note_read(&self, digest: &Digest, size: u64, length: u64) {
        if size < PASSTHROUGH_MIN_BYTES || !self.is_on() {
            return;
        }
        let new = || Ok::<_, std::convert::Infallible>(Arc::default());
        let Ok(worth) = self.worths.get_or_insert_with(digest, new);
        let added = length.max(READ_WORTH_BYTES);
        if worth.fetch_add(added, Ordering::Relaxed) + added >= size / WORTHY_PART {
            worth.store(0, Ordering::Relaxed);
            self.blobs.keep_whole(digest);
        }
    }
}

impl OpenFile {
    #[allow(unsafe_code)]
    fn open_again(&mut self) -> Opened {
        self.opens += 1;
        let options = match self.backing {
            // Keeping pages is not for a file that has none here: the kernel refuses it.
            // SAFETY: a set of bits, of which one has no name in the crate, which only passes them
            // on to the kernel.
            Some(_) => unsafe { OpenOptions::from_bits_unchecked(PASSTHROUGH) },
            None => OpenOptions::KEEP_CACHE,
        };
        (Some(COUNTED), options, self.backing)
    }
}

#[cfg(test)]
mod tests {
    use cairn_castore::blob_service::{BlobServiceExt as _, memory::MemoryBlobService};

    use super::*;

    const SIZE: u64 = 4 * PASSTHROUGH_MIN_BYTES;

    /// Numbers the files that it is told of, and keeps those that are open.
    #[derive(Default, Clone)]
    struct Kernel(Arc<Mutex<(u32, Vec<u32>)>>);

    impl Backing for Kernel {
        fn open(&self, _: &File) -> io::Result<u32> {
            let (last, open) = &mut *self.0.lock();
            *last += 1;
            open.push(*last);
            Ok(*last)
        }

        fn close(&self, id: u32) {
            let (_, open) = &mut *self.0.lock();
            let there = open.iter().position(|open| *open == id).expect("not open");
            open.remove(there);
        }
    }

    /// Lends a file of [`SIZE`] bytes for each blob, once it may.
    #[derive(Debug)]
    struct Lender {
        inner: MemoryBlobService,
        lends: AtomicBool,
        wishes: AtomicU64,
    }

    impl std::fmt::Display for Lender {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("lender")
        }
    }

    #[async_trait::async_trait]
    impl BlobService for Lender {
        async fn stat(
            &self,
            digest: &Digest,
        ) -> Result<Option<cairn_castore::BlobStat>, cairn_castore::BlobError> {
            self.inner.stat(digest).await
        }

        async fn has_many(
            &self,
            digests: &[Digest],
        ) -> Result<Vec<bool>, cairn_castore::BlobError> {
            self.inner.has_many(digests).await
        }

        async fn read(
            &self,
            digest: &Digest,
            range: cairn_castore::ByteRange,
        ) -> Result<cairn_castore::blob_service::BlobStream, cairn_castore::BlobError> {
            self.inner.read(digest, range).await
        }

        async fn read_many(
            &self,
            digests: &[Digest],
        ) -> Result<Vec<Option<bytes::Bytes>>, cairn_castore::BlobError> {
            self.inner.read_many(digests).await
        }

        async fn read_many_packed(
            &self,
            digests: &[Digest],
            packing: cairn_castore::Packing,
        ) -> Result<Vec<Option<cairn_castore::Packed>>, cairn_castore::BlobError> {
            self.read_many_and_pack(digests, packing).await
        }

        async fn put(
            &self,
            source: cairn_castore::blob_service::BlobSource,
        ) -> Result<cairn_castore::BlobStat, cairn_castore::BlobError> {
            self.inner.put(source).await
        }

        async fn put_many(
            &self,
            blobs: Vec<cairn_castore::Blob>,
        ) -> Result<(), cairn_castore::BlobError> {
            self.inner.put_many(blobs).await
        }

        fn read_local(
            &self,
            digest: &Digest,
            range: cairn_castore::ByteRange,
        ) -> Option<Result<bytes::Bytes, cairn_castore::BlobError>> {
            self.inner.read_local(digest, range)
        }

        fn lend(&self, _: &Digest) -> Option<File> {
            let file = tempfile::tempfile().unwrap();
            file.set_len(SIZE).unwrap();
            self.lends.load(Ordering::Relaxed).then_some(file)
        }

        fn keep_whole(&self, _: &Digest) {
            self.wishes.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn fixture() -> (Passthrough, Arc<Lender>, Kernel) {
        let lender = Arc::new(Lender {
            inner: MemoryBlobService::new(),
            lends: AtomicBool::new(true),
            wishes: AtomicU64::new(0),
        });
        let kernel = Kernel::default();
        (Passthrough::new(lender.clone(), Box::new(kernel.clone())), lender, kernel)
    }

    fn digest() -> Digest {
        Digest::of(b"large")
    }

    #[test]
    fn all_who_open_a_file_read_it_in_the_same_way() {
        let (files, lender, kernel) = fixture();
        lender.lends.store(false, Ordering::Relaxed);
        assert_eq!(files.open(2, &digest(), SIZE).2, None);
        lender.lends.store(true, Ordering::Relaxed);
        assert_eq!(files.open(2, &digest(), SIZE).2, None, "the first reads through the mount");
        files.release(2, COUNTED);
        assert_eq!(files.open(2, &digest(), SIZE).2, None);
        files.release(2, COUNTED);
        files.release(2, COUNTED);
        let (handle, options, backing) = files.open(2, &digest(), SIZE);
        assert_eq!((handle, options.bits(), backing), (Some(COUNTED), PASSTHROUGH, Some(1)));
        lender.lends.store(false, Ordering::Relaxed);
        assert_eq!(files.open(2, &digest(), SIZE).2, Some(1));
        files.release(2, COUNTED);
        assert_eq!(kernel.0.lock().1, [1]);
        files.release(2, COUNTED);
        assert_eq!(kernel.0.lock().1, [0; 0]);
    }

    #[test]
    fn a_file_of_another_length_is_not_taken() {
        let (files, _, kernel) = fixture();
        assert_eq!(files.open(2, &digest(), SIZE + 1).2, None);
        assert_eq!(kernel.0.lock().0, 0);
    }

    #[test]
    fn small_files_are_not_counted() {
        let (files, _, _) = fixture();
        let (handle, _, backing) = files.open(2, &digest(), PASSTHROUGH_MIN_BYTES - 1);
        assert_eq!((handle, backing), (None, None));
        assert!(files.open_files.lock().is_empty());
        files.release(2, 0);
    }

    #[test]
    fn nothing_is_lent_once_it_is_off() {
        let (files, lender, _) = fixture();
        files.turn_off();
        assert_eq!(files.open(2, &digest(), SIZE).2, None);
        files.note_read(&digest(), SIZE, SIZE);
        assert_eq!(lender.wishes.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn a_file_that_is_read_much_is_wished_for() {
        let (files, lender, _) = fixture();
        let wishes = || lender.wishes.load(Ordering::Relaxed);
        files.note_read(&digest(), SIZE, SIZE / 2 - 1);
        assert_eq!(wishes(), 0);
        files.note_read(&digest(), SIZE, 1);
        assert_eq!(wishes(), 1);
        let little_reads = SIZE / 2 / READ_WORTH_BYTES;
        for read in 0..little_reads {
            assert_eq!(wishes(), 1, "after {read} more");
            files.note_read(&digest(), SIZE, 4096);
        }
        assert_eq!(wishes(), 2);
        files.note_read(&digest(), PASSTHROUGH_MIN_BYTES - 1, u64::MAX / 2);
        assert_eq!(wishes(), 2, "for a small file");
    }
}
