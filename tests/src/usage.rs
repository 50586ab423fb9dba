//! What a finished process has used, as the kernel counted it. Waiting for a process that may
//! hang is the affair of `process`.
#![allow(unsafe_code)]

use std::{io, mem::MaybeUninit, os::unix::process::ExitStatusExt as _, process::ExitStatus};

/// What a process has used in its life.
#[derive(Debug, Clone, Copy)]
pub struct Usage {
    /// The most memory that it had resident, in bytes.
    pub peak_memory: u64,
}

/// Waits for a child to end. The child must not be waited for by anyone else, before or after.
pub fn wait(child: std::process::Child) -> io::Result<(ExitStatus, Usage)> {
    let pid = child.id().cast_signed();
    let mut status = 0;
    let mut usage = MaybeUninit::<libc::rusage>::zeroed();
    loop {
        // SAFETY: both pointers are to live locals of the types that wait4 writes.
        let ended = unsafe { libc::wait4(pid, &raw mut status, 0, usage.as_mut_ptr()) };
        if ended == pid {
            break;
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
    // SAFETY: all-zero is a valid rusage, and wait4 has filled it since.
    let usage = unsafe { usage.assume_init() };
    let kilobytes = u64::try_from(usage.ru_maxrss).unwrap_or(0);
    Ok((ExitStatus::from_raw(status), Usage { peak_memory: kilobytes * 1024 }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_child_and_its_memory_are_told() {
        let child = std::process::Command::new("sh").args(["-c", "exit 3"]).spawn().unwrap();
        let (status, usage) = wait(child).unwrap();
        assert_eq!(status.code(), Some(3));
        assert!(usage.peak_memory > 100 * 1024);
    }
}
