//! A disk that fails when a test says so.

use std::{
    io,
    sync::atomic::{AtomicBool, Ordering},
};

use parking_lot::Mutex;

use super::rewrite::Step;

#[derive(Default)]
pub(super) struct Faults {
    /// The next write finds the disk full.
    pub(super) full: AtomicBool,
    /// The next sync fails.
    pub(super) sync: AtomicBool,
    /// A rewrite ends behind this step.
    pub(super) rewrite: Mutex<Option<Step>>,
}

impl Faults {
    pub(super) fn before_write(&self) -> io::Result<()> {
        fail(&self.full, libc::ENOSPC)
    }

    pub(super) fn before_sync(&self) -> io::Result<()> {
        fail(&self.sync, libc::EIO)
    }
}

fn fail(flag: &AtomicBool, error: i32) -> io::Result<()> {
    match flag.swap(false, Ordering::SeqCst) {
        true => Err(io::Error::from_raw_os_error(error)),
        false => Ok(()),
    }
}
