//! The threads that serve a virtual machine. Each takes a request from any ring and answers it;
//! before one waits for the store it makes sure that another is there to go on. How rings work is
//! in `ring`, what is answered is not known here.

use std::{
    fmt, io,
    mem::MaybeUninit,
    os::fd::{AsFd, OwnedFd},
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, Weak,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

use fuse_backend_rs::{
    abi::fuse_abi::{InHeader, Opcode, OutHeader, ReadIn},
    api::server::{MAX_BUFFER_SIZE, Server},
    transport::{FuseBuf, Reader, VirtioFsWriter, Writer},
};
use futures::FutureExt as _;
use parking_lot::{Condvar, Mutex};
use rustix::{
    event::{EventfdFlags, epoll, eventfd},
    io::Errno,
};
use vm_memory::{ByteValued, Bytes as _};

use super::ring::{Chain, Ring, Taken, signal};
use crate::{file_system::CairnFs, measures::Worker};

/// The most bytes of a file or listing that one request gets.
const PAYLOAD_BYTES: u32 = MAX_BUFFER_SIZE;

/// How much of a request is looked at, in bytes: more than any has that is not refused in the end,
/// which has the largest value that an extended attribute can have.
const REQUEST_BYTES: usize = 72 * 1024;

/// The threads that serve the rings of a device.
pub(super) struct Crew {
    fs: Arc<CairnFs>,
    server: Server<Arc<CairnFs>>,
    rings: Box<[Ring]>,
    /// Where threads wait. A kick wakes one of them.
    epoll: OwnedFd,
    /// Wakes one as a kick does.
    wake: OwnedFd,
    /// Wakes all, from when it is written to.
    end: OwnedFd,
    /// How many threads wait for requests at most.
    idle_max: usize,
    /// How many threads there are at most.
    threads_max: usize,
    requests: AtomicU64,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    threads: usize,
    /// How many of the threads wait for a request, or look for one.
    idle: usize,
    ending: bool,
}

impl Crew {
    pub(super) fn new(
        fs: Arc<CairnFs>,
        rings: usize,
        idle_max: usize,
        threads_max: usize,
    ) -> io::Result<Arc<Self>> {
        let idle_max = idle_max.max(1);
        let event = || eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK);
        let crew = Arc::new(Self {
            fs: fs.clone(),
            server: Server::new(fs.clone()),
            rings: (0..rings).map(|_| Ring::new()).collect(),
            epoll: epoll::create(epoll::CreateFlags::CLOEXEC)?,
            wake: event()?,
            end: event()?,
            idle_max,
            threads_max: threads_max.max(idle_max),
            requests: AtomicU64::new(0),
            state: Mutex::default(),
            changed: Condvar::new(),
        });
        crew.watch(&crew.wake)?;
        epoll::add(&crew.epoll, &crew.end, epoll::EventData::new_u64(0), epoll::EventFlags::IN)?;
        let weak: Weak<Self> = Arc::downgrade(&crew);
        // A guest tells of no signals: what waits for the store does so until its time is over.
        let never = || std::future::pending().boxed();
        fs.waiter.before_wait(move || weak.upgrade()?.keep_one_idle().then(never));
        Ok(crew)
    }

    /// Starts to serve.
    pub(super) fn start(self: &Arc<Self>) -> io::Result<()> {
        for _ in 0..self.idle_max {
            self.spawn(&mut self.state.lock())?;
        }
        Ok(())
    }

    /// Has all threads end. What they are answering is answered first.
    pub(super) fn end(&self) {
        self.state.lock().ending = true;
        signal(&self.end);
    }

    /// Whether all threads have ended.
    pub(super) fn ends_within(&self, limit: Duration) -> bool {
        let mut state = self.state.lock();
        self.changed.wait_while_for(&mut state, |state| state.threads > 0, limit);
        state.threads == 0
    }

    pub(super) fn ring(&self, index: usize) -> Option<&Ring> {
        self.rings.get(index)
    }

    pub(super) fn rings(&self) -> &[Ring] {
        &self.rings
    }

    pub(super) fn thread_count(&self) -> usize {
        self.state.lock().threads
    }

    /// How many requests have come.
    pub(super) fn request_count(&self) -> u64 {
        self.requests.load(Ordering::Relaxed)
    }

    /// From now on a thread wakes up whenever something is written to this event descriptor. It
    /// is told of each time once, and never reads from it: whether there is anything to do, it
    /// finds out from the rings.
    pub(super) fn watch(&self, event: impl AsFd) -> io::Result<()> {
        let flags = epoll::EventFlags::IN | epoll::EventFlags::ET;
        Ok(epoll::add(&self.epoll, event, epoll::EventData::new_u64(0), flags)?)
    }

    /// No thread wakes up for this event descriptor any more.
    pub(super) fn unwatch(&self, event: impl AsFd) {
        if let Err(error) = epoll::delete(&self.epoll, event) {
            tracing::debug!(%error, "an event descriptor was not watched");
        }
    }

    /// Has a thread look whether there is anything to do. If none waits, the next one that is about
    /// to wait looks first.
    pub(super) fn wake(&self) {
        signal(&self.wake);
    }

    /// Starts another thread if none waits for requests; whether there is one now. If not, the
    /// caller is the last that serves, and must not wait.
    fn keep_one_idle(self: &Arc<Self>) -> bool {
        let mut state = self.state.lock();
        if state.idle > 0 {
            return true;
        }
        if state.threads >= self.threads_max || state.ending {
            return false;
        }
        match self.spawn(&mut state) {
            Ok(()) => true,
            Err(error) => {
                tracing::warn!(%error, "no thread can be started to serve a virtual machine");
                false
            }
        }
    }

    fn spawn(self: &Arc<Self>, state: &mut State) -> io::Result<()> {
        let crew = self.clone();
        thread::Builder::new().name("cairn-virtiofs".to_owned()).spawn(move || crew.serve())?;
        state.threads += 1;
        state.idle += 1;
        Ok(())
    }

    fn serve(self: Arc<Self>) {
        let mut buffer = vec![0; REQUEST_BYTES];
        let worker = Worker::enter();
        let mut last = 0;
        while let Some((ring, taken)) = self.next(&mut last) {
            self.state.lock().idle -= 1;
            self.requests.fetch_add(1, Ordering::Relaxed);
            let written = self.answer(&worker, &taken.chain, &mut buffer);
            ring.give_back(&taken, written);
            let mut state = self.state.lock();
            if state.idle >= self.idle_max {
                return self.leave(&mut state);
            }
            state.idle += 1;
        }
        let mut state = self.state.lock();
        state.idle -= 1;
        self.leave(&mut state);
    }

    fn leave(&self, state: &mut State) {
        state.threads -= 1;
        if state.threads == 0 {
            self.changed.notify_all();
        }
    }

    /// The next request, from another ring than the last one if there is a choice. `None` when all
    /// is over.
    fn next(&self, last: &mut usize) -> Option<(&Ring, Taken)> {
        loop {
            if self.state.lock().ending {
                return None;
            }
            for step in 1..=self.rings.len() {
                let index = (*last + step) % self.rings.len();
                let ring = &self.rings[index];
                let Some(taken) = ring.take() else { continue };
                if taken.has_more {
                    self.wake();
                }
                *last = index;
                return Some((ring, taken));
            }
            // Which event it was is of no interest. One only, or another thread would miss it.
            match epoll::wait(&self.epoll, &mut [MaybeUninit::uninit(); 1], None) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => {
                    tracing::error!(%error, "the requests of a virtual machine can't be awaited");
                    return None;
                }
            }
        }
    }

    /// Answers one request; the number of bytes of the answer. Whatever goes wrong, whoever waits
    /// for it is told, if the guest has left room for that.
    fn answer(&self, worker: &Worker, chain: &Chain, buffer: &mut [u8]) -> u32 {
        let request = copied(chain, buffer);
        let Some(header) = value_at::<InHeader>(request, 0) else {
            tracing::debug!(bytes = request.len(), "a guest sent what is no request");
            return 0;
        };
        let timed = worker.begin(header.opcode);
        let _within = timed.within();
        let is = |opcode: Opcode| header.opcode == opcode as u32;
        if is(Opcode::Read) || is(Opcode::Readdir) || is(Opcode::Readdirplus) {
            limit_size(request);
        }
        if is(Opcode::Init) || is(Opcode::Destroy) {
            // A guest that begins, or ends, tells of nothing that it held before.
            self.fs.inodes.clear();
        }
        let handled = catch_unwind(AssertUnwindSafe(|| {
            let reader = Reader::<()>::from_fuse_buffer(FuseBuf::new(request)).ok()?;
            let writer = VirtioFsWriter::new(chain.memory(), chain.clone()).ok()?;
            let writer = Writer::VirtioFs(writer);
            match self.server.handle_message(reader, writer, None, None) {
                Ok(written) => u32::try_from(written).ok(),
                Err(error) => {
                    tracing::debug!(header.opcode, %error, "a request makes no sense");
                    None
                }
            }
        }));
        match handled {
            // It has been answered, though the library does not say so.
            Ok(Some(_)) if is(Opcode::Destroy) => size_of::<OutHeader>() as u32,
            Ok(Some(written)) => written,
            // Wants no answer.
            Ok(None) if is(Opcode::Forget) || is(Opcode::BatchForget) => 0,
            Ok(None) => refuse(chain, header.unique, Errno::IO),
            Err(_) => {
                tracing::error!(header.opcode, "a request of a virtual machine failed by a panic");
                refuse(chain, header.unique, Errno::IO)
            }
        }
    }
}

/// The request, or as much of it as there is room for. A copy, which the guest can't change while
/// it is being looked at.
fn copied<'a>(chain: &Chain, buffer: &'a mut [u8]) -> &'a mut [u8] {
    let mut length = 0;
    for part in chain.clone().readable() {
        let room = &mut buffer[length..];
        let count = room.len().min(part.len() as usize);
        if chain.memory().read_slice(&mut room[..count], part.addr()).is_err() {
            return &mut [];
        }
        length += count;
        if length == buffer.len() {
            break;
        }
    }
    &mut buffer[..length]
}

/// What stands in a request behind so many bytes.
fn value_at<T: ByteValued + Default>(request: &[u8], offset: usize) -> Option<T> {
    let mut value = T::default();
    let bytes = request.get(offset..)?.get(..size_of::<T>())?;
    value.as_mut_slice().copy_from_slice(bytes);
    Some(value)
}

/// Sees to it that no more is asked for than a kernel asks for.
fn limit_size(request: &mut [u8]) {
    let offset = size_of::<InHeader>();
    let Some(mut read) = value_at::<ReadIn>(request, offset) else { return };
    read.size = read.size.min(PAYLOAD_BYTES);
    request[offset..][..size_of::<ReadIn>()].copy_from_slice(read.as_slice());
}

/// Answers with an error; the number of bytes of that.
fn refuse(chain: &Chain, unique: u64, error: Errno) -> u32 {
    let length = size_of::<OutHeader>() as u32;
    let header = OutHeader { len: length, error: -error.raw_os_error(), unique };
    let written = VirtioFsWriter::new(chain.memory(), chain.clone())
        .is_ok_and(|mut writer| writer.write_obj(header).is_ok());
    if written { length } else { 0 }
}

impl fmt::Debug for Crew {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Crew")
            .field("rings", &self.rings)
            .field("state", &self.state)
            .finish_non_exhaustive()
    }
}
