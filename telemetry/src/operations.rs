//! What is under way, and since when, so that what hangs can be told. Each kind has a table of so many
//! operations; those beyond are not looked after, and are counted and timed all the same.

use std::{
    sync::{
        LazyLock,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use crate::inventory::{self, Operation};

/// An operation in which nothing has happened for so long hangs. Longer than programs wait for a store
/// unless told otherwise.
pub const HANGS: Duration = Duration::from_secs(60);

/// How many places are looked at for one that is free.
const LOOKED_AT: usize = 64;

/// Requests of the kernel, or of a virtual machine.
pub static FUSE: Operations<1024> = Operations::new();

/// Requests that are answered over gRPC.
pub static GRPC_SERVER: Operations<4096> = Operations::new();

/// Requests that are made over gRPC.
pub static GRPC_CLIENT: Operations<1024> = Operations::new();

/// Requests to an object store.
pub static OBJECT_STORE: Operations<1024> = Operations::new();

/// A place that nobody has.
const FREE: u64 = 0;

/// A place of somebody who waits for work. Higher numbers are times.
const IDLE: u64 = 1;

/// The time, in nanoseconds, as a place tells it.
fn now() -> u64 {
    static START: LazyLock<Instant> = LazyLock::new(Instant::now);
    // More would be centuries.
    u64::try_from(START.elapsed().as_nanos()).unwrap_or(u64::MAX).saturating_add(IDLE + 1)
}

/// The operations of a kind, at most `N`.
#[derive(Debug)]
pub struct Operations<const N: usize> {
    places: [AtomicU64; N],
    next: AtomicUsize,
}

/// An operation, or somebody who does one after the other, until dropped.
#[derive(Debug)]
pub struct Place(Option<&'static AtomicU64>);

impl<const N: usize> Operations<N> {
    const fn new() -> Self {
        Self { places: [const { AtomicU64::new(FREE) }; N], next: AtomicUsize::new(0) }
    }

    /// A place for somebody who does one operation after the other, and does none yet.
    pub fn enter(&'static self) -> Place {
        let first = self.next.fetch_add(1, Ordering::Relaxed);
        let mut places = (0..LOOKED_AT.min(N)).map(|step| &self.places[(first + step) % N]);
        Place(places.find(|place| {
            let taken = place.compare_exchange(FREE, IDLE, Ordering::Relaxed, Ordering::Relaxed);
            taken.is_ok()
        }))
    }

    /// An operation that begins now.
    pub fn begin(&'static self) -> Place {
        let place = self.enter();
        place.goes_on();
        place
    }

    fn states(&self) -> impl Iterator<Item = u64> {
        self.places.iter().map(|place| place.load(Ordering::Relaxed))
    }

    /// How many are under way.
    pub fn under_way(&self) -> usize {
        self.states().filter(|state| *state > IDLE).count()
    }

    /// How many of them have not gone on for so long.
    pub fn hanging(&self, limit: Duration) -> usize {
        let long_ago = before(limit);
        self.states().filter(|state| *state > IDLE && *state < long_ago).count()
    }

    /// Whether there is somebody, and nobody who is free or has gone on within the limit: nothing
    /// gets through.
    pub fn is_stuck(&self, limit: Duration) -> bool {
        let long_ago = before(limit);
        let mut somebody = false;
        self.states().filter(|state| *state != FREE).all(|state| {
            somebody = true;
            state > IDLE && state < long_ago
        }) && somebody
    }
}

fn before(limit: Duration) -> u64 {
    now().saturating_sub(u64::try_from(limit.as_nanos()).unwrap_or(u64::MAX))
}

impl Place {
    /// The operation begins, or something has happened in it.
    pub fn goes_on(&self) {
        if let Some(place) = self.0 {
            place.store(now(), Ordering::Relaxed);
        }
    }

    /// It is over, and another one will come.
    pub fn rests(&self) {
        if let Some(place) = self.0 {
            place.store(IDLE, Ordering::Relaxed);
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Some(place) = self.0 {
            place.store(FREE, Ordering::Relaxed);
        }
    }
}

/// Writes down how many there are now.
pub fn read() {
    let write = |kind: Operation, under_way: usize, hanging: usize| {
        inventory::OPERATIONS.set_at(kind as usize, under_way as f64);
        inventory::OPERATIONS_HANGING.set_at(kind as usize, hanging as f64);
    };
    write(Operation::Fuse, FUSE.under_way(), FUSE.hanging(HANGS));
    write(Operation::GrpcServer, GRPC_SERVER.under_way(), GRPC_SERVER.hanging(HANGS));
    write(Operation::GrpcClient, GRPC_CLIENT.under_way(), GRPC_CLIENT.hanging(HANGS));
    write(Operation::ObjectStore, OBJECT_STORE.under_way(), OBJECT_STORE.hanging(HANGS));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_does_not_go_on_hangs_and_all_of_them_are_stuck() {
        static ALL: Operations<4> = Operations::new();
        assert!(!ALL.is_stuck(Duration::ZERO), "nobody is there");
        let (one, two) = (ALL.enter(), ALL.begin());
        assert_eq!((ALL.under_way(), ALL.hanging(HANGS)), (1, 0));
        // Time goes on.
        while ALL.hanging(Duration::ZERO) == 0 {}
        assert!(!ALL.is_stuck(Duration::ZERO), "one is free");
        one.goes_on();
        while !ALL.is_stuck(Duration::ZERO) {}
        assert!(!ALL.is_stuck(HANGS));
        two.rests();
        assert!(!ALL.is_stuck(Duration::ZERO));
        drop((one, two));
        assert_eq!(ALL.under_way(), 0);
    }

    #[test]
    fn those_that_have_no_place_are_let_be() {
        static FEW: Operations<2> = Operations::new();
        let all = [FEW.begin(), FEW.begin(), FEW.begin()];
        assert_eq!(FEW.under_way(), 2);
        drop(all);
        let again = FEW.begin();
        assert_eq!(FEW.under_way(), 1);
        drop(again);
    }
}
