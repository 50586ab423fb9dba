//! What `statfs` says of room: how much the contents take, and how much is left where they are.
//! Where the numbers come from is not known here.

use std::{
    fmt, io,
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::Mutex;

/// How long an answer is good for. Some programs ask for each file that they look at.
const GOOD_FOR: Duration = Duration::from_secs(1);

/// Room, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Space {
    /// What the contents take.
    pub used: u64,
    /// What is free where they are kept.
    pub free: u64,
    /// What of that a user without privileges may take.
    pub available: u64,
}

/// Who knows of room.
pub trait SpaceSource: fmt::Debug + Send + Sync {
    /// The room now. Asked on threads that may wait for a disk, but not for another machine.
    fn space(&self) -> io::Result<Space>;
}

/// A source of room with a memory.
#[derive(Debug)]
pub(crate) struct RecentSpace {
    source: Option<Arc<dyn SpaceSource>>,
    last: Mutex<Option<(Instant, Space)>>,
}

impl RecentSpace {
    pub(crate) fn new(source: Option<Arc<dyn SpaceSource>>) -> Self {
        Self { source, last: Mutex::new(None) }
    }

    /// The room; nothing where nobody knows.
    pub(crate) fn get(&self) -> Space {
        let Some(source) = &self.source else { return Space::default() };
        let mut last = self.last.lock();
        if let Some((at, space)) = *last
            && at.elapsed() < GOOD_FOR
        {
            return space;
        }
        let space = source.space().unwrap_or_else(|error| {
            tracing::debug!(?source, %error, "the room is not known");
            Space::default()
        });
        *last = Some((Instant::now(), space));
        space
    }
}
