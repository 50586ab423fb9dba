//! The threads that serve a mount. Each reads a request from the kernel and answers it; before one
//! waits for the store it makes sure that another is there to go on. What is answered is not known
//! here.

use std::{
    fmt,
    io::{self, IoSlice},
    os::fd::{AsRawFd as _, OwnedFd},
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, Weak,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

use cairn_telemetry::inventory::FUSE_STORED;
use fuse_backend_rs::{
    abi::fuse_abi::{InHeader, NotifyOpcode, NotifyStoreOut, Opcode, OutHeader},
    api::server::{MAX_BUFFER_SIZE, Server},
    transport::{FuseBuf, FuseDevWriter, Reader, Writer},
};
use parking_lot::{Condvar, Mutex};
use rustix::{
    event::{PollFd, PollFlags, Timespec},
    io::Errno,
};
use tokio::sync::watch;

use super::{
    init,
    interrupts::{self, Interrupts, Serving},
};
use crate::{file_system::CairnFs, inodes::NodeId, measures::Worker};

/// The most bytes of a file or listing that one request asks for.
pub(crate) const PAYLOAD_BYTES: usize = MAX_BUFFER_SIZE as usize;

/// Room for what surrounds the payload. The kernel wants it in requests as well, though nothing is
/// ever written to the mount; pages that are not touched take no memory.
const HEADER_BYTES: usize = 4096;

/// A mount's threads.
pub(crate) struct Crew {
    device: OwnedFd,
    fs: Arc<CairnFs>,
    server: Server<Arc<CairnFs>>,
    /// How many threads wait for requests at most.
    idle_max: usize,
    /// How many threads there are at most.
    threads_max: usize,
    requests: AtomicU64,
    /// How many files' contents the kernel was given unasked.
    stored: AtomicU64,
    interrupts: Interrupts,
    state: Mutex<State>,
    changed: Condvar,
    ended: watch::Sender<bool>,
}

#[derive(Debug, Default)]
struct State {
    threads: usize,
    /// How many of the threads wait for a request, or are about to.
    idle: usize,
    /// Whether the kernel has been told what the file system can do.
    answering: bool,
    /// Whether threads have been started and have all ended.
    ended: bool,
}

impl Crew {
    pub(crate) fn new(
        device: OwnedFd,
        fs: Arc<CairnFs>,
        idle_max: usize,
        threads_max: usize,
    ) -> Arc<Self> {
        let idle_max = idle_max.max(1);
        let crew = Arc::new(Self {
            device,
            fs: fs.clone(),
            server: Server::new(fs.clone()),
            idle_max,
            threads_max: threads_max.max(idle_max),
            requests: AtomicU64::new(0),
            stored: AtomicU64::new(0),
            interrupts: Interrupts::default(),
            state: Mutex::default(),
            changed: Condvar::new(),
            ended: watch::Sender::new(false),
        });
        let weak: Weak<Self> = Arc::downgrade(&crew);
        let ahead = weak.clone();
        fs.waiter.before_wait(move || weak.upgrade()?.keep_one_idle().then(interrupts::given_up));
        fs.ahead.store_by(move |id, bytes| match ahead.upgrade() {
            Some(crew) => crew.store(id, bytes),
            None => Err(Errno::NODEV.into()),
        });
        crew
    }

    /// Starts to serve.
    pub(crate) fn start(self: &Arc<Self>) -> io::Result<()> {
        for _ in 0..self.idle_max {
            self.spawn(&mut self.state.lock())?;
        }
        Ok(())
    }

    pub(crate) fn thread_count(&self) -> usize {
        self.state.lock().threads
    }

    /// How many requests have come.
    pub(crate) fn request_count(&self) -> u64 {
        self.requests.load(Ordering::Relaxed)
    }

    /// How many files' contents the kernel was given unasked.
    pub(crate) fn stored_count(&self) -> u64 {
        self.stored.load(Ordering::Relaxed)
    }

    /// Whether the kernel's first request was answered.
    pub(crate) fn answers_within(&self, limit: Duration) -> bool {
        let mut state = self.state.lock();
        self.changed.wait_while_for(&mut state, |state| !state.answering && !state.ended, limit);
        state.answering
    }

    /// Whether all threads have ended, which they do when the mount is gone.
    pub(crate) fn ends_within(&self, limit: Duration) -> bool {
        let mut state = self.state.lock();
        self.changed.wait_while_for(&mut state, |state| !state.ended, limit);
        state.ended
    }

    /// Whether the kernel still has requests for us. Not so once the mount is gone, or was
    /// aborted.
    pub(crate) fn is_connected(&self) -> bool {
        let mut device = [PollFd::new(&self.device, PollFlags::empty())];
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        let polled = rustix::event::poll(&mut device, Some(&now));
        polled.is_ok() && !device.iter().any(|fd| fd.revents().contains(PollFlags::ERR))
    }

    /// Returns when all threads have ended.
    pub(crate) async fn ended(&self) {
        // An error would mean that the sender, which is ours, is gone.
        let _ = self.ended.subscribe().wait_for(|ended| *ended).await;
    }

    /// Starts another thread if none waits for requests; whether there is one now. If not, the
    /// caller is the last that serves, and must not wait.
    fn keep_one_idle(self: &Arc<Self>) -> bool {
        let mut state = self.state.lock();
        if state.idle > 0 {
            return true;
        }
        if state.threads >= self.threads_max {
            return false;
        }
        match self.spawn(&mut state) {
            Ok(()) => true,
            Err(error) => {
                tracing::warn!(%error, "no thread can be started to serve the mount");
                false
            }
        }
    }

    fn spawn(self: &Arc<Self>, state: &mut State) -> io::Result<()> {
        let crew = self.clone();
        thread::Builder::new().name("cairn-fuse".to_owned()).spawn(move || crew.serve())?;
        state.threads += 1;
        state.idle += 1;
        Ok(())
    }

    fn serve(self: Arc<Self>) {
        let serving = self.interrupts.enter();
        let worker = Worker::enter();
        let mut request = vec![0; PAYLOAD_BYTES + HEADER_BYTES];
        let mut reply = vec![0; PAYLOAD_BYTES + HEADER_BYTES];
        loop {
            let length = match rustix::io::read(&self.device, &mut request[..]) {
                Ok(length) => length,
                // A request that was taken back before it was read.
                Err(Errno::INTR | Errno::NOENT | Errno::AGAIN) => continue,
                Err(Errno::NODEV) => break,
                Err(error) => {
                    tracing::error!(%error, "the kernel's requests can't be read");
                    break;
                }
            };
            self.requests.fetch_add(1, Ordering::Relaxed);
            self.state.lock().idle -= 1;
            if let Some(request) = request.get_mut(..length) {
                self.answer(&worker, &serving, request, &mut reply);
            }
            let mut state = self.state.lock();
            if state.idle >= self.idle_max {
                state.threads -= 1;
                return;
            }
            state.idle += 1;
        }
        let mut state = self.state.lock();
        state.idle -= 1;
        state.threads -= 1;
        if state.threads == 0 {
            state.ended = true;
            self.ended.send_replace(true);
            self.changed.notify_all();
        }
    }

    /// Answers one request. Whatever goes wrong, the program that waits for it is told.
    fn answer(&self, worker: &Worker, serving: &Serving<'_>, request: &mut [u8], reply: &mut [u8]) {
        let Some(Header { opcode, unique, pid }) = header_of(request) else { return };
        let timed = worker.begin(opcode);
        let _within = timed.within();
        if opcode == Opcode::Interrupt as u32 {
            return self.interrupt(unique, request);
        }
        if opcode == Opcode::Init as u32 {
            return self.begin(unique, request);
        }
        serving.begin(unique, pid);
        let handled = catch_unwind(AssertUnwindSafe(|| {
            let reader = Reader::<()>::from_fuse_buffer(FuseBuf::new(request));
            let writer = FuseDevWriter::<()>::new(self.device.as_raw_fd(), reply);
            let (Ok(reader), Ok(writer)) = (reader, writer) else { return false };
            let outcome = self.server.handle_message(reader, Writer::FuseDev(writer), None, None);
            if let Err(error) = &outcome {
                tracing::debug!(opcode, %error, "a request was not answered as it should be");
            }
            outcome.is_ok()
        }));
        serving.end();
        if !matches!(handled, Ok(true)) {
            // If it was answered after all, or wants no answer, the kernel knows of none and
            // refuses this one.
            self.refuse(unique, Errno::IO);
        }
        if handled.is_err() {
            tracing::error!(opcode, "a request of the mount failed by a panic");
        }
    }

    /// Answers the kernel's first request.
    fn begin(&self, unique: u64, request: &[u8]) {
        if let Err(error) =
            rustix::io::write(&self.device, &init::answer(unique, request, &self.fs))
        {
            tracing::error!(%error, "the kernel does not take the answer to its first request");
            return;
        }
        self.state.lock().answering = true;
        self.changed.notify_all();
    }

    /// Gives the kernel the whole contents of a file that it knows, which it then need not ask for.
    /// Waits for the answer if it is asking for them now.
    fn store(&self, id: NodeId, bytes: &[u8]) -> io::Result<()> {
        let length = size_of::<OutHeader>() + size_of::<NotifyStoreOut>() + bytes.len();
        let too_long = |_| io::Error::from(Errno::OVERFLOW);
        let mut head = Vec::with_capacity(size_of::<OutHeader>() + size_of::<NotifyStoreOut>());
        head.extend_from_slice(&u32::try_from(length).map_err(too_long)?.to_ne_bytes());
        head.extend_from_slice(&(NotifyOpcode::Store as i32).to_ne_bytes());
        head.extend_from_slice(&0_u64.to_ne_bytes());
        head.extend_from_slice(&id.to_ne_bytes());
        head.extend_from_slice(&0_u64.to_ne_bytes());
        head.extend_from_slice(&u32::try_from(bytes.len()).map_err(too_long)?.to_ne_bytes());
        head.extend_from_slice(&0_u32.to_ne_bytes());
        rustix::io::writev(&self.device, &[IoSlice::new(&head), IoSlice::new(bytes)])?;
        self.stored.fetch_add(1, Ordering::Relaxed);
        FUSE_STORED.add(bytes.len() as u64);
        Ok(())
    }

    /// A signal has reached whoever made a request. One that no thread has begun to answer yet is
    /// refused, which makes the kernel tell of it again.
    fn interrupt(&self, unique: u64, request: &[u8]) {
        let Some(interrupted) = request.get(size_of::<InHeader>()..).and_then(number) else {
            return;
        };
        if !self.interrupts.interrupt(interrupted) {
            self.refuse(unique, Errno::AGAIN);
        }
    }

    fn refuse(&self, unique: u64, error: Errno) {
        let length = size_of::<OutHeader>() as u32;
        let error = -error.raw_os_error();
        let mut header = Vec::with_capacity(size_of::<OutHeader>());
        header.extend_from_slice(&length.to_ne_bytes());
        header.extend_from_slice(&error.to_ne_bytes());
        header.extend_from_slice(&unique.to_ne_bytes());
        if let Err(error) = rustix::io::write(&self.device, &header) {
            tracing::debug!(%error, "the kernel takes no answer to the request");
        }
    }
}

/// What is of interest here in a request.
struct Header {
    opcode: u32,
    unique: u64,
    /// The thread that made it.
    pid: u32,
}

fn header_of(request: &[u8]) -> Option<Header> {
    let header = request.get(..size_of::<InHeader>())?;
    let word = |at: usize| Some(u32::from_ne_bytes(header.get(at..at + 4)?.try_into().ok()?));
    Some(Header { opcode: word(4)?, unique: number(header.get(8..)?)?, pid: word(32)? })
}

/// The number that bytes start with.
fn number(bytes: &[u8]) -> Option<u64> {
    bytes.first_chunk().map(|bytes| u64::from_ne_bytes(*bytes))
}

impl fmt::Debug for Crew {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Crew").field("state", &self.state).finish_non_exhaustive()
    }
}
