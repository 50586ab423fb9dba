//! Bytes in one zstd frame, as they are stored and as they go over a long line, by contexts that
//! each thread keeps. Where frames are kept and how long they may be is the affair of others.

use std::cell::RefCell;

use bytes::Bytes;
use tokio::task::{JoinError, spawn_blocking};
use zstd::bulk::{Compressor, Decompressor};

/// On 78,000 source files level 1 needs 268 MB and 2.5 s of one core, level 3 254 MB and 3.0 s.
const LEVEL: i32 = 1;

/// A frame is worth its while if it spares at least one part in this many.
const WORTHWHILE: usize = 16;

/// Below this many bytes it is not worth the attempt.
const COMPRESS_MIN: usize = 64;

/// The buffers that a thread keeps between two frames are no larger than this, in bytes.
const SCRATCH_MAX: usize = 1024 * 1024;

/// Bytes that may be in a zstd frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Packed {
    /// As they are.
    Plain(Bytes),
    /// In a frame.
    Frame {
        /// The frame.
        frame: Bytes,
        /// How many bytes are in it.
        size: usize,
    },
}

/// What of many is to come in frames.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Packing {
    /// What is kept in them. Nothing is compressed for it.
    Stored,
    /// All that is shorter in one.
    All,
}

impl Packed {
    /// Puts bytes into a frame if that is worth its while. Takes a processor for a while.
    pub fn pack(bytes: Bytes) -> Self {
        match compress(&bytes) {
            Some(frame) => Self::Frame { frame, size: bytes.len() },
            None => Self::Plain(bytes),
        }
    }

    /// The same for many, on a thread that may take a while.
    pub async fn pack_many(many: Vec<Option<Bytes>>) -> Result<Vec<Option<Self>>, JoinError> {
        spawn_blocking(|| many.into_iter().map(|bytes| bytes.map(Self::pack)).collect()).await
    }

    /// How many bytes it says to have.
    pub fn size(&self) -> usize {
        match self {
            Self::Plain(bytes) => bytes.len(),
            Self::Frame { size, .. } => *size,
        }
    }

    /// The bytes; `None` if the frame is not one of so many.
    pub fn unpack(self) -> Option<Bytes> {
        match self {
            Self::Plain(bytes) => Some(bytes),
            Self::Frame { frame, size } => decompress(&frame, size),
        }
    }
}

/// What a thread keeps: making a context costs a third of a small file's time.
#[derive(Default)]
struct Thread {
    compressor: Option<Compressor<'static>>,
    decompressor: Option<Decompressor<'static>>,
    scratch: Vec<u8>,
}

thread_local! {
    static THREAD: RefCell<Thread> = RefCell::default();
}

/// The frame of these bytes, if it is worth its while.
fn compress(bytes: &[u8]) -> Option<Bytes> {
    THREAD.with_borrow_mut(|thread| thread.compress(bytes).map(Bytes::copy_from_slice))
}

/// The bytes of a frame, if it is the frame of so many, whatever it claims itself.
fn decompress(frame: &[u8], size: usize) -> Option<Bytes> {
    THREAD.with_borrow_mut(|thread| {
        if thread.decompressor.is_none() {
            thread.decompressor = Decompressor::new().ok();
        }
        let decompressor = thread.decompressor.as_mut()?;
        let mut bytes = Vec::with_capacity(size);
        decompressor.decompress_to_buffer(frame, &mut bytes).ok()?;
        (bytes.len() == size).then(|| Bytes::from(bytes))
    })
}

impl Thread {
    fn compress(&mut self, bytes: &[u8]) -> Option<&[u8]> {
        if bytes.len() < COMPRESS_MIN {
            return None;
        }
        if self.compressor.is_none() {
            self.compressor = Compressor::new(LEVEL).ok();
        }
        let compressor = self.compressor.as_mut()?;
        let most = bytes.len() - bytes.len() / WORTHWHILE;
        if self.scratch.capacity() > SCRATCH_MAX && most <= SCRATCH_MAX {
            self.scratch = Vec::new();
        }
        self.scratch.clear();
        self.scratch.reserve(most);
        // What does not fit into `most` bytes ends with an error, and early.
        compressor.compress_to_buffer(bytes, &mut self.scratch).ok()?;
        (self.scratch.len() <= most).then_some(&*self.scratch)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_is_of_the_bytes_that_it_was_made_of() {
        let bytes = [b"abc".repeat(1000), vec![0; 64]].concat();
        let frame = compress(&bytes).unwrap();
        assert_eq!(decompress(&frame, bytes.len()).unwrap(), bytes);
        for size in [0, 1, bytes.len() - 1, bytes.len() + 1] {
            assert_eq!(decompress(&frame, size), None);
        }
        assert_eq!(decompress(b"no frame", 8), None);
    }

    #[test]
    fn what_spares_little_is_no_frame() {
        assert_eq!(compress(&[0; COMPRESS_MIN - 1]), None);
        assert_eq!(compress(&crate::conformance::content("frames", 100_000)), None);
    }

    #[test]
    fn a_frame_is_not_believed_beyond_the_size_that_is_known() {
        let bomb = zstd::bulk::compress(&[0; 1 << 20], 1).unwrap();
        assert_eq!(decompress(&bomb, 1000), None);
    }
}
