//! Who goes down a tree, and what is on its way to them: the streams of closures that are being
//! fetched, and the directories that they will bring.
//!
//! Whoever asks for a directory whose parent was fetched alone is on the way down, and gets the closure
//! of that directory. Whoever asks for a second one below the same parent is looking around there, and
//! gets the closure of the parent, once.

use std::{collections::HashSet, sync::Arc, time::Duration};

use parking_lot::Mutex;
use quick_cache::sync::Cache;
use tokio::{
    sync::{Notify, OwnedSemaphorePermit, Semaphore},
    time::timeout,
};

use super::AHEAD_DIRECTORIES;
use crate::{Digest, Directory};

/// The closures that are fetched at a time. Beyond that, directories are fetched one by one.
const COURSES_MAX: usize = 4;

/// The directories that are remembered for having been named by one that was fetched alone.
const NAMED_MAX: usize = 16 * 1024;

/// How long somebody waits for a directory that is on its way with others, before asking for it
/// alone.
const PATIENCE: Duration = Duration::from_millis(200);

/// The streams under way. Clones share them.
#[derive(Debug, Clone)]
pub(super) struct Courses {
    under_way: Arc<Mutex<Vec<Arc<State>>>>,
    /// Directories that were named by one that has come, with that one.
    named: Arc<Cache<Digest, Digest>>,
    /// Directories of which a child was asked for, and whether their closure was fetched since.
    descents: Arc<Cache<Digest, bool>>,
    permits: Arc<Semaphore>,
}

#[derive(Debug, Default)]
struct State {
    expected: Mutex<HashSet<Digest>>,
    /// Told whenever one of them has come, or does not come any more.
    came: Notify,
}

/// A closure that is being fetched.
#[derive(Debug)]
pub(super) struct Course {
    /// The directory whose closure it is.
    pub(super) root: Digest,
    state: Arc<State>,
    courses: Courses,
    _permit: OwnedSemaphorePermit,
}

impl Default for Courses {
    fn default() -> Self {
        Self {
            under_way: Arc::default(),
            named: Arc::new(Cache::new(NAMED_MAX)),
            descents: Arc::new(Cache::new(NAMED_MAX)),
            permits: Arc::new(Semaphore::new(COURSES_MAX)),
        }
    }
}

impl Courses {
    /// A directory was fetched alone.
    pub(super) fn named(&self, digest: &Digest, directory: &Directory) {
        for (child, _) in directory.children().take(NAMED_MAX) {
            self.named.insert(child, *digest);
        }
    }

    /// Begins to fetch a closure for one who asks for a directory: the closure of that one or of its
    /// parent, if whoever asks is on the way down and not too many are being fetched.
    pub(super) fn begin(&self, asked: &Digest) -> Option<Course> {
        let parent = self.named.get(asked)?;
        let permit = self.permits.clone().try_acquire_owned().ok()?;
        let state = Arc::new(State::default());
        // While this is locked, so that of several who ask at once one begins.
        let mut under_way = self.under_way.lock();
        let root = match self.descents.get(&parent) {
            Some(false) => parent,
            None | Some(true) => *asked,
        };
        self.descents.insert(parent, root == parent);
        if root == parent {
            state.expected.lock().insert(*asked);
        }
        under_way.push(state.clone());
        drop(under_way);
        Some(Course { root, state, courses: self.clone(), _permit: permit })
    }

    /// Waits for a directory that is on its way with others; whether it may have come.
    pub(super) async fn wait_for(&self, digest: &Digest) -> bool {
        let brings = |state: &&Arc<State>| state.expected.lock().contains(digest);
        let Some(state) = self.under_way.lock().iter().find(brings).cloned() else { return false };
        let came = async {
            loop {
                let came = state.came.notified();
                if !state.expected.lock().contains(digest) {
                    break;
                }
                came.await;
            }
        };
        timeout(PATIENCE, came).await.is_ok()
    }
}

impl Course {
    /// A directory has come, and been kept.
    pub(super) fn came(&self, digest: &Digest, directory: &Directory) {
        let mut expected = self.state.expected.lock();
        expected.remove(digest);
        for (child, _) in directory.children() {
            // Those that come no more, since there are too many, are asked for in a stream again.
            self.courses.named.insert(child, *digest);
            if expected.len() < AHEAD_DIRECTORIES {
                expected.insert(child);
            }
        }
        drop(expected);
        self.state.came.notify_waiters();
    }
}

impl Drop for Course {
    fn drop(&mut self) {
        self.courses.under_way.lock().retain(|state| !Arc::ptr_eq(state, &self.state));
        self.state.expected.lock().clear();
        self.state.came.notify_waiters();
    }
}
