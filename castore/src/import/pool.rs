//! Buffers that large files are read into, used again and again: a new one costs the system as much
//! as reading into it, since it has to be cleared.

use std::{mem, sync::Arc};

use bytes::Bytes;
use parking_lot::Mutex;

/// The most buffers that are kept for later.
const KEPT_MAX: usize = 64;

/// Buffers of one length.
#[derive(Debug)]
pub(super) struct Pool {
    length: usize,
    free: Arc<Mutex<Vec<Vec<u8>>>>,
}

/// What was read into a buffer, which is free again when nobody needs it any more.
struct Filled {
    buffer: Vec<u8>,
    length: usize,
    free: Arc<Mutex<Vec<Vec<u8>>>>,
}

impl Pool {
    pub(super) fn new(length: usize) -> Self {
        Self { length, free: Arc::default() }
    }

    /// The bytes that are put into a buffer, of which the number is given.
    pub(super) fn fill<E>(
        &self,
        fill: impl FnOnce(&mut [u8]) -> Result<usize, E>,
    ) -> Result<Bytes, E> {
        let free = self.free.lock().pop();
        let buffer = free.unwrap_or_else(|| vec![0; self.length]);
        let mut filled = Filled { buffer, length: 0, free: self.free.clone() };
        filled.length = fill(&mut filled.buffer)?;
        Ok(Bytes::from_owner(filled))
    }
}

impl AsRef<[u8]> for Filled {
    fn as_ref(&self) -> &[u8] {
        &self.buffer[..self.length]
    }
}

impl Drop for Filled {
    fn drop(&mut self) {
        let mut free = self.free.lock();
        if free.len() < KEPT_MAX {
            free.push(mem::take(&mut self.buffer));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fill(pool: &Pool, byte: u8, length: usize) -> Bytes {
        let filled = pool.fill(|buffer| {
            buffer[..length].fill(byte);
            Ok::<_, ()>(length)
        });
        filled.unwrap()
    }

    #[test]
    fn a_buffer_is_used_again_when_all_parts_of_it_are_gone() {
        let pool = Pool::new(8);
        let first = fill(&pool, 1, 8);
        let part = first.slice(2..4);
        drop(first);
        assert_eq!(fill(&pool, 2, 3), [2; 3][..]);
        assert_eq!(part, [1; 2][..]);
        assert_eq!(pool.free.lock().len(), 1);
        drop(part);
        assert_eq!(pool.free.lock().len(), 2);
        assert_eq!(fill(&pool, 3, 0), Bytes::new());
        assert_eq!(pool.fill(|_| Err("failed")), Err("failed"));
        assert_eq!(pool.free.lock().len(), 2);
    }
}
