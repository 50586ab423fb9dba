//! The names in the root as the mount knows them: asked of their source each time, and taken from
//! memory while that can't be reached. What they lead to, and how they are listed, is not here.

use std::{
    fmt,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use cairn_castore::{Name, Node, roots::Roots};
use parking_lot::Mutex;
use quick_cache::sync::Cache;

use crate::{errno::FsError, wait::Waiter};

/// How many names are kept that were found lately.
const KNOWN_MAX: usize = 65_536;

/// How long a name that is known waits for its source: no longer than someone at a terminal would
/// put up with, since there is an answer at hand.
const KNOWN_DEADLINE: Duration = Duration::from_secs(2);

/// How long a source that could not be reached is not asked about names that are known.
const UNREACHABLE_FOR: Duration = Duration::from_secs(10);

/// A source of names with a memory. What a name leads to does not change; it can only go.
pub(crate) struct RootNames {
    source: Arc<dyn Roots>,
    known: Cache<Name, Node>,
    /// Until when the source is taken to be out of reach.
    unreachable: Mutex<Option<Instant>>,
}

impl RootNames {
    pub(crate) fn new(source: Arc<dyn Roots>) -> Self {
        Self { source, known: Cache::new(KNOWN_MAX), unreachable: Mutex::new(None) }
    }

    /// The tree of a name. `None` if there is none.
    pub(crate) fn find(&self, name: &Name, waiter: &Waiter) -> Result<Option<Node>, FsError> {
        if let Some(found) = self.source.lookup_local(name) {
            return Ok(found?);
        }
        let known = self.known.get(name);
        if known.is_some() && self.is_unreachable() {
            return Ok(known);
        }
        let deadline = match known {
            Some(_) => KNOWN_DEADLINE.min(waiter.deadline()),
            None => waiter.deadline(),
        };
        match waiter.wait_within(deadline, self.source.lookup(name)) {
            Ok(found) => {
                *self.unreachable.lock() = None;
                match &found {
                    Some(node) => self.keep(name, node),
                    None => drop(self.known.remove(name)),
                }
                Ok(found)
            }
            // No fault of the source.
            Err(FsError::Busy) if known.is_some() => Ok(known),
            Err(error @ (FsError::Roots(_) | FsError::Deadline(_))) if known.is_some() => {
                tracing::warn!(
                    names = %self.source,
                    error = &error as &dyn std::error::Error,
                    "names can't be asked about; those that are known go on"
                );
                *self.unreachable.lock() = Instant::now().checked_add(UNREACHABLE_FOR);
                Ok(known)
            }
            Err(error) => Err(error),
        }
    }

    fn is_unreachable(&self) -> bool {
        self.unreachable.lock().is_some_and(|until| Instant::now() < until)
    }

    /// Keeps a copy, since the name may share the memory of a whole page of them.
    fn keep(&self, name: &Name, node: &Node) {
        let copy = Name::try_from(Bytes::copy_from_slice(name.as_ref()));
        self.known.insert(copy.expect("a copy of a valid name"), node.clone());
    }
}

impl fmt::Debug for RootNames {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RootNames").field("source", &self.source).finish_non_exhaustive()
    }
}
