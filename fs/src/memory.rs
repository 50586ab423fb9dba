//! Memory that is free, on its way back to the system. Allocators keep what was freed in case it is
//! wanted again, and a mount wants most when it is walked through for the first time.

/// Gives back to the system what the allocator holds free. Takes some milliseconds.
#[cfg(target_env = "gnu")]
#[allow(unsafe_code, reason = "the only way to the allocator")]
pub(crate) fn give_back() {
    // SAFETY: it asks nothing of its caller, and takes the allocator's locks.
    unsafe { libc::malloc_trim(0) };
}

/// Other allocators than glibc's are left alone.
#[cfg(not(target_env = "gnu"))]
pub(crate) fn give_back() {}
