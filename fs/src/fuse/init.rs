//! The answer to a mount's first request, in which the kernel and the file system agree on what
//! each can do. It is written here since the crate knows no passthrough.

use fuse_backend_rs::{
    abi::fuse_abi::{InHeader, InitOut, OutHeader},
    api::filesystem::{FileSystem as _, FsOptions},
};
use rustix::io::Errno;

use super::crew::PAYLOAD_BYTES;
use crate::file_system::CairnFs;

/// The version of the protocol that is spoken.
const MAJOR: u32 = 7;
const MINOR: u32 = 33;

/// The oldest minor version whose answer has today's form; that of Linux 3.15.
const MINOR_MIN: u32 = 23;

/// `FUSE_PASSTHROUGH` of linux/fuse.h.
const PASSTHROUGH: u64 = 1 << 37;

/// Lets another file system, such as overlayfs, stand above the mount. The files that the kernel
/// reads by itself must then not be on one that stands above another.
const STACK_DEPTH_MAX: u32 = 1;

/// How many pages a request may have.
const PAGES_MAX: u16 = (PAYLOAD_BYTES / 4096) as u16;

/// The answer to the request, whose header is `unique`'s.
pub(super) fn answer(unique: u64, request: &[u8], fs: &CairnFs) -> Vec<u8> {
    match negotiate(request, fs) {
        Ok(out) => {
            let mut reply = reply(unique, 0, size_of::<InitOut>());
            for word in [out.major, out.minor, out.max_readahead, out.flags] {
                reply.extend_from_slice(&word.to_ne_bytes());
            }
            reply.extend_from_slice(&out.max_background.to_ne_bytes());
            reply.extend_from_slice(&out.congestion_threshold.to_ne_bytes());
            reply.extend_from_slice(&out.max_write.to_ne_bytes());
            reply.extend_from_slice(&out.time_gran.to_ne_bytes());
            reply.extend_from_slice(&out.max_pages.to_ne_bytes());
            reply.extend_from_slice(&out.map_alignment.to_ne_bytes());
            reply.extend_from_slice(&out.flags2.to_ne_bytes());
            for word in out.unused {
                reply.extend_from_slice(&word.to_ne_bytes());
            }
            reply
        }
        Err(error) => reply(unique, -error.raw_os_error(), 0),
    }
}

/// A reply's header, with this many bytes to come behind it.
fn reply(unique: u64, error: i32, behind: usize) -> Vec<u8> {
    let length = size_of::<OutHeader>() + behind;
    let mut reply = Vec::with_capacity(length);
    reply.extend_from_slice(&(length as u32).to_ne_bytes());
    reply.extend_from_slice(&error.to_ne_bytes());
    reply.extend_from_slice(&unique.to_ne_bytes());
    reply
}

fn negotiate(request: &[u8], fs: &CairnFs) -> Result<InitOut, Errno> {
    let word = |index: usize| {
        let start = size_of::<InHeader>() + index * size_of::<u32>();
        let bytes = request.get(start..)?.first_chunk()?;
        Some(u32::from_ne_bytes(*bytes))
    };
    let (Some(major), Some(minor), Some(max_readahead), Some(flags)) =
        (word(0), word(1), word(2), word(3))
    else {
        return Err(Errno::INVAL);
    };
    if major > MAJOR {
        // The kernel asks again, in our version.
        return Ok(InitOut { major: MAJOR, minor: MINOR, ..InitOut::default() });
    }
    if major < MAJOR || minor < MINOR_MIN {
        tracing::error!(major, minor, "the kernel's FUSE protocol is too old");
        return Err(Errno::PROTO);
    }
    let is_extended = FsOptions::from_bits_truncate(flags.into()).contains(FsOptions::INIT_EXT);
    let flags2 = if is_extended { word(4).unwrap_or(0) } else { 0 };
    let offered = u64::from(flags) | u64::from(flags2) << 32;
    let capable = FsOptions::from_bits_truncate(offered);
    let wanted = fs.init(capable).map_err(|_| Errno::IO)?;
    let mut agreed = (capable & wanted).bits();
    let mut unused = [0; 7];
    if fs.passthrough().is_some() && offered & PASSTHROUGH != 0 {
        agreed |= PASSTHROUGH | FsOptions::INIT_EXT.bits();
        // `max_stack_depth`.
        unused[0] = STACK_DEPTH_MAX;
    }
    tracing::debug!(major, minor, offered, agreed, "agreed with the kernel");
    Ok(InitOut {
        major: MAJOR,
        minor: MINOR,
        max_readahead,
        flags: agreed as u32,
        max_background: u16::MAX,
        congestion_threshold: u16::MAX / 4 * 3,
        max_write: PAYLOAD_BYTES as u32,
        time_gran: 1,
        max_pages: PAGES_MAX,
        map_alignment: 0,
        flags2: (agreed >> 32) as u32,
        unused,
    })
}
