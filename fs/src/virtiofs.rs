//! The virtiofs transport: a file system is served to one virtual machine, over a socket on which
//! it speaks vhost-user. What it answers is in `file_system`; who serves is in `virtiofs/crew`, how
//! requests come is in `virtiofs/ring`, how the virtual machine sets that up in `virtiofs/device`.

mod crew;
mod device;
mod ring;

use std::{
    fmt, io,
    net::Shutdown,
    os::unix::net::UnixStream,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    thread::{self, JoinHandle},
    time::Duration,
};

use tokio::sync::oneshot;
use vhost::vhost_user::{BackendReqHandler, Error as VhostUserError};

use self::{crew::Crew, device::Device};
use crate::{file_system::CairnFs, memory};

/// How many queues for requests a virtual machine can have at most, besides the one for what is
/// urgent.
pub const QUEUES_MAX: usize = 64;

/// How many threads serve at the same time at most, unless told otherwise: those that wait for the
/// store, and one that goes on serving. What has to wait beyond that fails at once, and what needs
/// no waiting goes on.
pub const MAX_THREADS: usize = 512;

/// How many threads wait for requests at most, unless told otherwise.
const IDLE_THREADS_MAX: usize = 4;

/// How many queues for requests a virtual machine can have at most, unless told otherwise.
const DEFAULT_QUEUES_MAX: usize = 16;

/// How long the end of a session waits for the serving threads to end.
const END_MAX: Duration = Duration::from_secs(5);

/// How a virtual machine is served.
#[derive(Debug, Clone)]
pub struct VirtiofsOptions {
    /// How many queues for requests it can have at most, up to [`QUEUES_MAX`]. It is free to have
    /// fewer. Any thread serves any queue.
    pub queues: usize,
    /// How many threads wait for requests; at least 1.
    pub threads: usize,
    /// How many threads there are at most, those included that wait for the store.
    pub max_threads: usize,
}

impl Default for VirtiofsOptions {
    fn default() -> Self {
        let cores = thread::available_parallelism().map_or(1, usize::from);
        Self {
            queues: cores.min(DEFAULT_QUEUES_MAX),
            threads: cores.clamp(2, IDLE_THREADS_MAX),
            max_threads: MAX_THREADS,
        }
    }
}

/// Why a virtual machine could not be served, or not to its end.
#[derive(Debug, thiserror::Error)]
pub enum VirtiofsError {
    /// Something that every session needs could not be had of the system.
    #[error("a virtual machine can't be served")]
    Start(#[source] io::Error),
    /// It said something that the device does not understand, or can't do.
    #[error("the virtual machine and its device do not agree")]
    Protocol(#[source] VhostUserError),
    /// Serving it ended by a fault of this program.
    #[error("serving the virtual machine ended by a panic")]
    Panicked,
}

/// How a session ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// The other side closed the connection without a word: it was no virtual machine, but someone
    /// who wanted to know whether there is an answer.
    Unused,
    /// The virtual machine is gone.
    Disconnected,
}

/// A virtual machine that is being served. The connection is closed when this is dropped.
pub struct Session {
    crew: Arc<Crew>,
    fs: Arc<CairnFs>,
    socket: Arc<UnixStream>,
    conversing: Option<JoinHandle<()>>,
    ended: oneshot::Receiver<Result<Ended, VirtiofsError>>,
}

/// Serves a file system on a connection, on threads of its own.
pub fn serve(
    fs: CairnFs,
    connection: UnixStream,
    options: &VirtiofsOptions,
) -> Result<Session, VirtiofsError> {
    let fs = Arc::new(fs);
    let rings = options.queues.clamp(1, QUEUES_MAX) + 1;
    let crew = Crew::new(fs.clone(), rings, options.threads, options.max_threads)
        .map_err(VirtiofsError::Start)?;
    let device = Arc::new(Device::new(crew.clone(), fs.clone()));
    let socket = Arc::new(connection.try_clone().map_err(VirtiofsError::Start)?);
    let (sender, ended) = oneshot::channel();
    // From here on an error ends what was started, since `session` is dropped.
    let mut session = Session { crew, fs, socket: socket.clone(), conversing: None, ended };
    session.crew.start().map_err(VirtiofsError::Start)?;
    memory::give_back_at_rest(&session.fs, {
        let crew = Arc::downgrade(&session.crew);
        move || Some(crew.upgrade()?.request_count())
    });
    let converse = move || {
        let handler = BackendReqHandler::from_stream(connection, device);
        let ended = catch_unwind(AssertUnwindSafe(|| converse(handler)));
        close(&socket);
        // Nobody may want to know any more.
        let _ = sender.send(ended.unwrap_or(Err(VirtiofsError::Panicked)));
    };
    let thread = thread::Builder::new().name("cairn-vhost".to_owned()).spawn(converse);
    session.conversing = Some(thread.map_err(VirtiofsError::Start)?);
    Ok(session)
}

/// Does what the virtual machine says until it is gone.
fn converse(mut handler: BackendReqHandler<Device>) -> Result<Ended, VirtiofsError> {
    let mut is_used = false;
    loop {
        match handler.handle_request() {
            Ok(()) => is_used = true,
            Err(VhostUserError::SocketRetry(_)) => {}
            Err(
                VhostUserError::Disconnected
                | VhostUserError::PartialMessage
                | VhostUserError::SocketBroken(_),
            ) => return Ok(if is_used { Ended::Disconnected } else { Ended::Unused }),
            Err(error) => return Err(VirtiofsError::Protocol(error)),
        }
    }
}

/// Ends what is said on a connection, for both sides.
fn close(socket: &UnixStream) {
    // Fails if the other side has closed it.
    let _ = socket.shutdown(Shutdown::Both);
}

impl Session {
    /// Returns when the virtual machine is gone, or can't be served any more.
    pub async fn ended(&mut self) -> Result<Ended, VirtiofsError> {
        (&mut self.ended).await.unwrap_or(Err(VirtiofsError::Panicked))
    }

    /// What is served.
    pub fn file_system(&self) -> &CairnFs {
        &self.fs
    }

    /// How many threads serve now.
    pub fn thread_count(&self) -> usize {
        self.crew.thread_count()
    }

    /// How many requests the guest has made so far.
    pub fn request_count(&self) -> u64 {
        self.crew.request_count()
    }
}

impl Drop for Session {
    /// Blocks for a moment.
    fn drop(&mut self) {
        // What waits for the store is answered now, and the guest's memory left alone from then on.
        self.fs.waiter.stop();
        self.crew.end();
        if !self.crew.ends_within(END_MAX) {
            tracing::warn!("threads that serve a virtual machine do not end");
        }
        close(&self.socket);
        // It has caught what would be an error here.
        let _ = self.conversing.take().map(JoinHandle::join);
    }
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session").field("crew", &self.crew).finish_non_exhaustive()
    }
}
