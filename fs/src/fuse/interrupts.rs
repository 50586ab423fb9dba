//! Which request each serving thread answers, and whether the program behind it is coming to its
//! end, so that nobody waits for the store on behalf of a program that was killed. How the kernel
//! tells of a signal is the crew's affair.

use std::{cell::RefCell, fmt, fs, sync::Arc, time::Duration};

use futures::future::BoxFuture;
use parking_lot::Mutex;
use tokio::sync::watch;

/// How often a program that a signal has reached, but that goes on, is looked at again. The kernel
/// tells of the first signal only.
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// Signals that ask a program to end, also if it handles them: SIGHUP, SIGINT, SIGQUIT, SIGKILL
/// and SIGTERM.
const ENDING: u64 = bits([1, 2, 3, 9, 15]);

/// Signals that end no program by default: SIGCHLD, SIGCONT, the four that stop it, SIGURG and
/// SIGWINCH.
const HARMLESS: u64 = bits([17, 18, 19, 20, 21, 22, 23, 28]);

const fn bits<const N: usize>(signals: [u32; N]) -> u64 {
    let mut bits = 0;
    let mut index = 0;
    while index < N {
        bits |= 1 << (signals[index] - 1);
        index += 1;
    }
    bits
}

/// What a thread is answering.
#[derive(Debug, Clone, Copy, Default)]
struct Request {
    /// The kernel's number of the request. 0 is none.
    unique: u64,
    /// The thread that made it; 0 if it is out of our sight, as in another container.
    pid: u32,
    /// Whether a signal has reached that thread.
    interrupted: bool,
}

thread_local! {
    /// What this thread is answering.
    static ANSWERING: RefCell<Option<watch::Receiver<Request>>> = const { RefCell::new(None) };
}

/// The requests that are being answered.
#[derive(Default)]
pub(super) struct Interrupts {
    threads: Mutex<Vec<Arc<watch::Sender<Request>>>>,
}

impl Interrupts {
    /// Takes note that this thread serves, until what is returned is dropped.
    pub(super) fn enter(&self) -> Serving<'_> {
        let request = Arc::new(watch::Sender::default());
        ANSWERING.set(Some(request.subscribe()));
        self.threads.lock().push(request.clone());
        Serving { interrupts: self, request }
    }

    /// A signal has reached whoever made this request. `false` if it is not being answered.
    pub(super) fn interrupt(&self, unique: u64) -> bool {
        self.threads.lock().iter().any(|thread| {
            thread.send_if_modified(|request| {
                let is_meant = request.unique == unique;
                request.interrupted |= is_meant;
                is_meant
            })
        })
    }
}

impl fmt::Debug for Interrupts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.threads.lock().iter().map(|thread| *thread.borrow())).finish()
    }
}

/// A thread that serves.
pub(super) struct Serving<'a> {
    interrupts: &'a Interrupts,
    request: Arc<watch::Sender<Request>>,
}

impl Serving<'_> {
    /// The thread begins to answer a request.
    pub(super) fn begin(&self, unique: u64, pid: u32) {
        self.request.send_replace(Request { unique, pid, interrupted: false });
    }

    /// The thread has answered it.
    pub(super) fn end(&self) {
        self.request.send_replace(Request::default());
    }
}

impl Drop for Serving<'_> {
    fn drop(&mut self) {
        ANSWERING.set(None);
        self.interrupts.threads.lock().retain(|thread| !Arc::ptr_eq(thread, &self.request));
    }
}

/// Returns when the program whose request this thread answers is ending. A signal that a program
/// takes and goes on with, such as that of a child's end, does not count: it would find a failed
/// `open` or `stat` where a local disk never fails.
pub(super) fn given_up() -> BoxFuture<'static, ()> {
    let answering = ANSWERING.with_borrow(Option::clone);
    Box::pin(async move {
        let Some(mut answering) = answering else { return std::future::pending().await };
        let interrupted = answering.wait_for(|request| request.interrupted).await;
        let Ok(pid) = interrupted.map(|request| request.pid) else {
            return std::future::pending().await;
        };
        while pid != 0 && !is_ending(pid) {
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    })
}

/// Whether a thread of a program has a signal before it that ends it, or has ended.
fn is_ending(pid: u32) -> bool {
    match fs::read_to_string(format!("/proc/{pid}/status")) {
        Ok(status) => has_ending_signal(&status),
        Err(_) => true,
    }
}

/// The same from what the kernel says of the thread; see proc_pid_status(5).
fn has_ending_signal(status: &str) -> bool {
    let set = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        line.and_then(|set| u64::from_str_radix(set.trim(), 16).ok()).unwrap_or(0)
    };
    let pending = (set("SigPnd") | set("ShdPnd")) & !set("SigBlk") & !set("SigIgn");
    pending & (ENDING | !(set("SigCgt") | HARMLESS)) != 0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(pending: u64, blocked: u64, ignored: u64, caught: u64) -> String {
        format!(
            "Name:\tx\nSigPnd:\t{:016x}\nShdPnd:\t{pending:016x}\nSigBlk:\t{blocked:016x}\n\
             SigIgn:\t{ignored:016x}\nSigCgt:\t{caught:016x}\n",
            0
        )
    }

    #[test]
    fn only_signals_that_end_a_program_count() {
        let (int, usr1, child) = (bits([2]), bits([10]), bits([17]));
        assert!(!has_ending_signal(&status(0, 0, 0, 0)));
        assert!(has_ending_signal(&status(int, 0, 0, 0)));
        assert!(has_ending_signal(&status(int, 0, 0, int)), "asked to end in its own way");
        assert!(!has_ending_signal(&status(int, int, 0, 0)));
        assert!(!has_ending_signal(&status(int, 0, int, 0)));
        assert!(has_ending_signal(&status(usr1, 0, 0, 0)));
        assert!(!has_ending_signal(&status(usr1, 0, 0, usr1)));
        assert!(!has_ending_signal(&status(child, 0, 0, 0)));
        assert!(!has_ending_signal(&fs::read_to_string("/proc/self/status").unwrap()));
        assert!(!has_ending_signal("nothing of the kind"));
    }

    #[test]
    fn an_interrupt_meets_the_request_and_no_other() {
        let interrupts = Interrupts::default();
        let serving = interrupts.enter();
        assert!(!interrupts.interrupt(7));
        serving.begin(7, 0);
        assert!(!interrupts.interrupt(8));
        let given_up = given_up();
        assert!(interrupts.interrupt(7));
        futures::executor::block_on(given_up);
        serving.end();
        serving.begin(9, 0);
        let next = super::given_up();
        assert!(futures::FutureExt::now_or_never(next).is_none());
        drop(serving);
        assert!(!interrupts.interrupt(9));
    }
}
