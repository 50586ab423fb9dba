//! A ring of a virtual machine, by which requests come and answers go: which of them are being
//! answered, and how the guest is told. What the guest writes into it is not trusted; what the
//! requests mean is not known here.

use std::{
    fmt,
    num::Wrapping,
    os::fd::OwnedFd,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use parking_lot::{Condvar, Mutex};
use virtio_queue::{DescriptorChain, Error, Queue, QueueOwnedT as _, QueueT as _};
use vm_memory::{GuestAddress, GuestMemoryMmap};

/// The most entries that a ring can have.
pub(super) const ENTRIES_MAX: u16 = 1024;

/// The guest's memory, as far as the virtual machine shares it.
pub(super) type Memory = Arc<GuestMemoryMmap<()>>;

/// Where a request is in the guest's memory, and where its answer goes.
pub(super) type Chain = DescriptorChain<Memory>;

/// A ring. It runs while it has a kick descriptor and is enabled.
pub(super) struct Ring {
    state: Mutex<State>,
    /// Told when the last request that was taken has been given back.
    returned: Condvar,
}

struct State {
    queue: Queue,
    memory: Memory,
    /// By which the guest says that there are requests.
    kick: Option<OwnedFd>,
    /// By which it is told of answers.
    call: Option<OwnedFd>,
    /// By which the virtual machine is told that the ring is unusable.
    trouble: Option<OwnedFd>,
    enabled: bool,
    /// Whether the guest has made it unusable. It then rests until it is started again.
    broken: bool,
    /// Whether that was logged. A guest may do it again and again.
    complained: bool,
    /// How many requests are being answered.
    taken: usize,
    /// Tells requests of the ring as it is from those that were given up.
    era: u64,
}

/// A request that was taken from a ring, to be given back to it.
pub(super) struct Taken {
    pub(super) chain: Chain,
    /// Whether there are others behind it, of which nobody has been told.
    pub(super) has_more: bool,
    era: u64,
}

impl Ring {
    pub(super) fn new() -> Self {
        let state = State {
            queue: Queue::new(ENTRIES_MAX).expect("a power of two"),
            memory: Memory::default(),
            kick: None,
            call: None,
            trouble: None,
            enabled: false,
            broken: false,
            complained: false,
            taken: 0,
            era: 0,
        };
        Self { state: Mutex::new(state), returned: Condvar::new() }
    }

    /// Takes the next request. If there is none, the guest will kick when there is one.
    pub(super) fn take(&self) -> Option<Taken> {
        let state = &mut *self.state.lock();
        if state.kick.is_none() || !state.enabled || state.broken {
            return None;
        }
        match state.next() {
            Ok(taken) => {
                state.taken += usize::from(taken.is_some());
                taken
            }
            Err(error) => {
                state.fail(&error);
                None
            }
        }
    }

    /// Gives a request back, whose answer has so many bytes.
    pub(super) fn give_back(&self, taken: &Taken, written: u32) {
        let state = &mut *self.state.lock();
        if taken.era != state.era {
            return;
        }
        state.taken -= 1;
        if state.taken == 0 {
            self.returned.notify_all();
        }
        if let Err(error) = state.put(taken.chain.head_index(), written) {
            state.fail(&error);
        }
    }

    /// Starts it, or goes on with another kick descriptor: the one before is returned.
    pub(super) fn start(&self, kick: OwnedFd) -> Option<OwnedFd> {
        let state = &mut *self.state.lock();
        if state.kick.is_none() {
            state.broken = false;
            state.queue.set_ready(true);
        }
        state.kick.replace(kick)
    }

    /// Stops it when all that was taken has been given back. After so much time it is given up
    /// instead, and its answer is of no consequence. Returns the kick descriptor, and the number
    /// of the request that would have come next.
    pub(super) fn stop(&self, patience: Duration) -> (Option<OwnedFd>, u16) {
        let mut state = self.state.lock();
        let kick = state.kick.take();
        let waited = self.returned.wait_while_for(&mut state, |state| state.taken > 0, patience);
        if waited.timed_out() {
            tracing::warn!(requests = state.taken, "requests of a virtual machine are given up");
            state.taken = 0;
            state.era += 1;
        }
        state.queue.set_ready(false);
        state.call = None;
        (kick, state.queue.next_avail())
    }

    pub(super) fn enable(&self, enabled: bool) {
        self.state.lock().enabled = enabled;
    }

    pub(super) fn set_memory(&self, memory: &Memory) {
        self.state.lock().memory = memory.clone();
    }

    pub(super) fn set_call(&self, call: Option<OwnedFd>) {
        self.state.lock().call = call;
    }

    pub(super) fn set_trouble(&self, trouble: Option<OwnedFd>) {
        self.state.lock().trouble = trouble;
    }

    /// Whether the guest and we hold back notifications by numbers in the ring.
    pub(super) fn set_event_idx(&self, event_idx: bool) {
        self.state.lock().queue.set_event_idx(event_idx);
    }

    /// How many entries it has: a power of two up to [`ENTRIES_MAX`].
    pub(super) fn set_size(&self, entries: u16) -> Result<(), Error> {
        self.state.lock().queue.try_set_size(entries)
    }

    /// The number of the next request.
    pub(super) fn set_next(&self, next: u16) {
        self.state.lock().queue.set_next_avail(next);
    }

    /// Where its three parts are in the guest's memory. Answers go on behind those that are there.
    pub(super) fn set_place(&self, table: u64, available: u64, used: u64) -> Result<(), Error> {
        let state = &mut *self.state.lock();
        let queue = &mut state.queue;
        queue.try_set_desc_table_address(GuestAddress(table))?;
        queue.try_set_avail_ring_address(GuestAddress(available))?;
        queue.try_set_used_ring_address(GuestAddress(used))?;
        let Wrapping(next) = queue.used_idx(&*state.memory, Ordering::Acquire)?;
        queue.set_next_used(next);
        Ok(())
    }
}

impl State {
    fn next(&mut self) -> Result<Option<Taken>, Error> {
        let era = self.era;
        // A second time for a request that came when the first was over.
        for _ in 0..2 {
            let chain = self.queue.iter(self.memory.clone())?.next();
            // Each time, so that the guest kicks for whatever comes from now on.
            let has_more = self.queue.enable_notification(&*self.memory)?;
            match chain {
                Some(chain) => return Ok(Some(Taken { chain, has_more, era })),
                None if !has_more => return Ok(None),
                None => {}
            }
        }
        // There is one, but it can't be read.
        Err(Error::InvalidAvailRingIndex)
    }

    fn put(&mut self, head: u16, written: u32) -> Result<(), Error> {
        self.queue.add_used(&*self.memory, head, written)?;
        if self.queue.needs_notification(&*self.memory)? {
            self.call.as_ref().inspect(|call| signal(call));
        }
        Ok(())
    }

    fn fail(&mut self, error: &Error) {
        if !self.complained {
            tracing::warn!(%error, "a ring of a virtual machine makes no sense, and is left alone");
        }
        self.complained = true;
        self.broken = true;
        self.trouble.as_ref().inspect(|trouble| signal(trouble));
    }
}

/// Adds one to an event descriptor.
pub(super) fn signal(event: &OwnedFd) {
    if let Err(error) = rustix::io::write(event, &1_u64.to_ne_bytes()) {
        tracing::debug!(%error, "an event can't be told");
    }
}

impl fmt::Debug for Ring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let State { queue, enabled, broken, taken, .. } = &*self.state.lock();
        f.debug_struct("Ring")
            .field("queue", queue)
            .field("enabled", enabled)
            .field("broken", broken)
            .field("taken", taken)
            .finish_non_exhaustive()
    }
}
