//! How a serving thread waits for what only an async service can answer: with a deadline, not past
//! the end of the mount or of the program that asked, and never if it is the last that serves. What
//! needs no waiting never comes here.

use std::{future::Future, sync::OnceLock, time::Duration};

use futures::future::BoxFuture;
use tokio::{runtime::Handle, sync::watch};

use crate::errno::FsError;

/// Called on a thread that is about to wait. `None`: it must not. Else what returns when nobody
/// needs the answer any more.
type BeforeWait = Box<dyn Fn() -> Option<BoxFuture<'static, ()>> + Send + Sync>;

/// Runs futures to their end on threads that are not the runtime's.
pub(crate) struct Waiter {
    runtime: Handle,
    deadline: Duration,
    stopped: watch::Sender<bool>,
    before_wait: OnceLock<BeforeWait>,
}

impl Waiter {
    pub(crate) fn new(runtime: Handle, deadline: Duration) -> Self {
        Self { runtime, deadline, stopped: watch::Sender::new(false), before_wait: OnceLock::new() }
    }

    /// What the transport does before one of its threads waits: see to it that another one serves,
    /// or forbid it. The first that is set stays.
    pub(crate) fn before_wait(
        &self,
        hook: impl Fn() -> Option<BoxFuture<'static, ()>> + Send + Sync + 'static,
    ) {
        let first = self.before_wait.set(Box::new(hook));
        debug_assert!(first.is_ok(), "a file system has one transport");
    }

    pub(crate) fn runtime(&self) -> &Handle {
        &self.runtime
    }

    pub(crate) fn deadline(&self) -> Duration {
        self.deadline
    }

    /// Ends all waiting, now and later, with [`FsError::Stopped`].
    pub(crate) fn stop(&self) {
        self.stopped.send_replace(true);
    }

    /// The future's outcome, or [`FsError::Deadline`].
    pub(crate) fn wait<T, E: Into<FsError>>(
        &self,
        future: impl Future<Output = Result<T, E>>,
    ) -> Result<T, FsError> {
        self.wait_within(self.deadline, future)
    }

    /// The future's outcome, or [`FsError::Deadline`] after a time that is shorter than that of
    /// others.
    pub(crate) fn wait_within<T, E: Into<FsError>>(
        &self,
        deadline: Duration,
        future: impl Future<Output = Result<T, E>>,
    ) -> Result<T, FsError> {
        let given_up = match self.before_wait.get() {
            Some(hook) => hook().ok_or(FsError::Busy)?,
            None => Box::pin(std::future::pending()),
        };
        let mut stopped = self.stopped.subscribe();
        self.runtime.block_on(async {
            tokio::select! {
                biased;
                _ = stopped.wait_for(|stopped| *stopped) => Err(FsError::Stopped),
                outcome = tokio::time::timeout(deadline, future) => match outcome {
                    Ok(outcome) => outcome.map_err(Into::into),
                    Err(_) => Err(FsError::Deadline(deadline)),
                },
                () = given_up => Err(FsError::Interrupted),
            }
        })
    }
}
