//! How a serving thread waits for what only an async service can answer: with a deadline, and not
//! past the end of the mount. What needs no waiting never comes here.

use std::{future::Future, sync::OnceLock, time::Duration};

use tokio::{runtime::Handle, sync::watch};

use crate::errno::FsError;

/// Called on a thread that is about to wait.
type BeforeWait = Box<dyn Fn() + Send + Sync>;

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

    /// What the transport does before one of its threads waits: see to it that another one serves.
    /// The first that is set stays.
    pub(crate) fn before_wait(&self, hook: impl Fn() + Send + Sync + 'static) {
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
        if let Some(hook) = self.before_wait.get() {
            hook();
        }
        let mut stopped = self.stopped.subscribe();
        self.runtime.block_on(async {
            tokio::select! {
                biased;
                _ = stopped.wait_for(|stopped| *stopped) => Err(FsError::Stopped),
                outcome = tokio::time::timeout(self.deadline, future) => match outcome {
                    Ok(outcome) => outcome.map_err(Into::into),
                    Err(_) => Err(FsError::Deadline(self.deadline)),
                },
            }
        })
    }
}
