//! Memory that is free, on its way back to the system. Allocators keep what was freed in case it is
//! wanted again, and a mount wants most when it is walked through for the first time.

use std::{sync::Arc, time::Duration};

use crate::file_system::CairnFs;

/// How often a file system's memory is looked after. When nothing was asked for so long, memory that
/// is free goes back to the system.
const REST: Duration = Duration::from_secs(2);

/// Has memory given back that is not used any more, the free one whenever the number of requests
/// comes to rest, until there is none.
pub(crate) fn give_back_at_rest(
    fs: &Arc<CairnFs>,
    requests: impl Fn() -> Option<u64> + Send + 'static,
) {
    let runtime = fs.waiter.runtime().clone();
    let fs = Arc::downgrade(fs);
    runtime.spawn(async move {
        let (mut before, mut tidied) = (0, 0);
        loop {
            tokio::time::sleep(REST).await;
            let Some(requests) = requests() else { return };
            if requests == tidied {
                continue;
            }
            let (at_rest, fs) = (requests == before, fs.clone());
            let tidy = move || {
                fs.upgrade().inspect(|fs| fs.tidy(at_rest));
                if at_rest {
                    give_back();
                }
            };
            // It may take long enough to be in the way of others.
            let _ = tokio::task::spawn_blocking(tidy).await;
            if at_rest {
                tidied = requests;
            }
            before = requests;
        }
    });
}

/// Gives back to the system what the allocator holds free. Takes some milliseconds.
#[cfg(target_env = "gnu")]
#[allow(unsafe_code, reason = "the only way to the allocator")]
fn give_back() {
    // SAFETY: it asks nothing of its caller, and takes the allocator's locks.
    unsafe { libc::malloc_trim(0) };
}

/// Other allocators than glibc's are left alone.
#[cfg(not(target_env = "gnu"))]
fn give_back() {}
