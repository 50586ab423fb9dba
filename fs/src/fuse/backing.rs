//! Files that the kernel reads by itself on behalf of a mount: how it is told of them. Which they
//! are is decided in `passthrough`.

// The requests are not among those that the crates know.
#![allow(unsafe_code)]

use std::{
    fs::File,
    io,
    os::fd::{AsFd, AsRawFd as _, OwnedFd},
};

use crate::passthrough::Backing;

/// `FUSE_DEV_IOC_BACKING_OPEN` of linux/fuse.h.
const OPEN: libc::Ioctl = 0x4010_e501;

/// `FUSE_DEV_IOC_BACKING_CLOSE` of linux/fuse.h.
const CLOSE: libc::Ioctl = 0x4004_e502;

/// `struct fuse_backing_map` of linux/fuse.h.
#[repr(C)]
struct BackingMap {
    fd: i32,
    flags: u32,
    padding: u64,
}

/// A mount's device.
pub(super) struct DeviceBacking(OwnedFd);

impl DeviceBacking {
    /// Tells the kernel through this device, of which it keeps a descriptor of its own.
    pub(super) fn new(device: &impl AsFd) -> io::Result<Self> {
        Ok(Self(device.as_fd().try_clone_to_owned()?))
    }
}

impl Backing for DeviceBacking {
    fn open(&self, file: &File) -> io::Result<u32> {
        let map = BackingMap { fd: file.as_raw_fd(), flags: 0, padding: 0 };
        // SAFETY: the kernel reads the structure of this request, which outlives the call.
        let id = unsafe { libc::ioctl(self.0.as_raw_fd(), OPEN, &raw const map) };
        u32::try_from(id).map_err(|_| io::Error::last_os_error())
    }

    fn close(&self, id: u32) {
        // SAFETY: the kernel reads the number of this request, which outlives the call.
        let outcome = unsafe { libc::ioctl(self.0.as_raw_fd(), CLOSE, &raw const id) };
        if outcome != 0 {
            tracing::debug!(error = %io::Error::last_os_error(), "a file stays open");
        }
    }
}
