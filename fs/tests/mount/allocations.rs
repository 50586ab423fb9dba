//! Counts what each thread allocates, so that a test can tell what a request costs and how much
//! memory is held. What is asked of a file system directly is done on the thread that asks.
#![expect(unsafe_code, reason = "an allocator is unsafe to implement")]

use std::{
    alloc::{GlobalAlloc, Layout, System},
    cell::Cell,
};

#[global_allocator]
static COUNTING: Counting = Counting;

thread_local! {
    static COUNTED: Cell<Counted> = const { Cell::new(Counted { allocated: 0, held: 0 }) };
}

/// The bytes of a thread.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Counted {
    /// What it has allocated so far.
    pub(crate) allocated: u64,
    /// What of that it has not freed.
    pub(crate) held: i64,
}

/// The bytes of this thread so far.
pub(crate) fn counted() -> Counted {
    COUNTED.get()
}

struct Counting;

impl Counting {
    fn count(allocated: usize, freed: usize) {
        // A thread that is at its end counts no more.
        let _ = COUNTED.try_with(|counted| {
            let Counted { allocated: before, held } = counted.get();
            let held = held + allocated as i64 - freed as i64;
            counted.set(Counted { allocated: before + allocated as u64, held });
        });
    }
}

// SAFETY: the system's allocator does all that an allocator promises; counting allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        Self::count(layout.size(), 0);
        // SAFETY: the caller keeps to the same contract.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        Self::count(layout.size(), 0);
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        Self::count(0, layout.size());
        // SAFETY: as above.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        Self::count(new_size, layout.size());
        // SAFETY: as above.
        unsafe { System.realloc(pointer, layout, new_size) }
    }
}
