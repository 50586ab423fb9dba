//! What is under way, what it is and since when, so that what hangs can be told; and what was slow. Each
//! kind has a table of so many operations; those beyond are not looked after, and are counted and timed
//! all the same.

mod slowest;

use std::{
    cmp::Reverse,
    sync::{
        LazyLock,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use self::slowest::{Ended, Slowest};
use crate::inventory::{self, FuseOperation, ObjectOperation, Operation, PATHS};

/// An operation in which nothing has happened for so long hangs. Longer than programs wait for a store
/// unless told otherwise.
pub const HANGS: Duration = Duration::from_secs(60);

/// How many places are looked at for one that is free.
const LOOKED_AT: usize = 64;

/// Requests of the kernel, or of a virtual machine, numbered as [`FuseOperation`].
pub static FUSE: Operations<1024> = Operations::new(Operation::Fuse, |what| {
    FuseOperation::ALL.get(what).map_or(OTHER, |operation| operation.name())
});

/// Requests that are answered over gRPC, numbered as [`PATHS`].
pub static GRPC_SERVER: Operations<4096> = Operations::new(Operation::GrpcServer, path);

/// Requests that are made over gRPC, numbered as [`PATHS`].
pub static GRPC_CLIENT: Operations<1024> = Operations::new(Operation::GrpcClient, path);

/// Requests to an object store, numbered as [`ObjectOperation`].
pub static OBJECT_STORE: Operations<1024> = Operations::new(Operation::ObjectStore, |what| {
    ObjectOperation::ALL.get(what).map_or(OTHER, |operation| operation.name())
});

/// The name of what has no number.
const OTHER: &str = "other";

fn path(what: usize) -> &'static str {
    PATHS.get(what).map_or(OTHER, |path| path.trim_start_matches('/'))
}

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

/// From one time to a later one.
fn between(earlier: u64, later: u64) -> Duration {
    Duration::from_nanos(later.saturating_sub(earlier))
}

/// The operations of a kind, at most `N`.
#[derive(Debug)]
pub struct Operations<const N: usize> {
    kind: Operation,
    /// What an operation of a number is called.
    name: fn(usize) -> &'static str,
    slots: [Slot; N],
    next: AtomicUsize,
    slowest: Slowest,
}

/// What is known of an operation. Each by itself: of one that ends while it is looked at, what is told may
/// be of the next one, and that is as quick.
#[derive(Debug)]
struct Slot {
    /// [`FREE`], [`IDLE`], or when something last happened in the operation.
    heard: AtomicU64,
    began: AtomicU64,
    what: AtomicUsize,
}

/// Somebody who does one operation after the other, until dropped.
#[derive(Debug)]
pub struct Place {
    slot: Option<&'static Slot>,
    slowest: &'static Slowest,
}

/// An operation that has begun.
#[derive(Debug, Clone, Copy)]
pub struct Begun {
    what: usize,
    at: u64,
}

/// An operation that nobody does others with, until dropped.
#[derive(Debug)]
pub struct UnderWay {
    place: Place,
    begun: Begun,
}

/// What is told of an operation that is under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pending {
    /// Of which kind it is.
    pub kind: Operation,
    /// What it is.
    pub name: &'static str,
    /// How long ago it began.
    pub age: Duration,
    /// How long nothing has happened in it.
    pub silent: Duration,
}

/// What is told of an operation that was slow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Slow {
    /// Of which kind it was.
    pub kind: Operation,
    /// What it was.
    pub name: &'static str,
    /// How long it took.
    pub taken: Duration,
    /// How long ago it ended.
    pub ago: Duration,
}

impl<const N: usize> Operations<N> {
    const fn new(kind: Operation, name: fn(usize) -> &'static str) -> Self {
        let slots = [const { Slot::new() }; N];
        Self { kind, name, slots, next: AtomicUsize::new(0), slowest: Slowest::new() }
    }

    /// A place for somebody who does one operation after the other, and does none yet.
    pub fn enter(&'static self) -> Place {
        let first = self.next.fetch_add(1, Ordering::Relaxed);
        let mut slots = (0..LOOKED_AT.min(N)).map(|step| &self.slots[(first + step) % N]);
        let slot = slots.find(|slot| {
            let taken =
                slot.heard.compare_exchange(FREE, IDLE, Ordering::Relaxed, Ordering::Relaxed);
            taken.is_ok()
        });
        Place { slot, slowest: &self.slowest }
    }

    /// An operation of this number that begins now.
    pub fn begin(&'static self, what: usize) -> UnderWay {
        let place = self.enter();
        let begun = place.begin(what);
        UnderWay { place, begun }
    }

    fn states(&self) -> impl Iterator<Item = u64> {
        self.slots.iter().map(|slot| slot.heard.load(Ordering::Relaxed))
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

    /// Those that are under way.
    pub fn pending(&self) -> Vec<Pending> {
        let now = now();
        let pending = self.slots.iter().filter_map(|slot| {
            let heard = slot.heard.load(Ordering::Relaxed);
            (heard > IDLE).then(|| Pending {
                kind: self.kind,
                name: (self.name)(slot.what.load(Ordering::Relaxed)),
                age: between(slot.began.load(Ordering::Relaxed), now),
                silent: between(heard, now),
            })
        });
        pending.collect()
    }

    /// The slowest of those that have ended within a minute.
    pub fn slowest(&self) -> Vec<Slow> {
        let now = now();
        let slow = |ended: Ended| Slow {
            kind: self.kind,
            name: (self.name)(ended.what),
            taken: Duration::from_nanos(ended.taken),
            ago: between(ended.at, now),
        };
        self.slowest.all(now).into_iter().map(slow).collect()
    }
}

impl Slot {
    const fn new() -> Self {
        Self { heard: AtomicU64::new(FREE), began: AtomicU64::new(FREE), what: AtomicUsize::new(0) }
    }
}

fn before(limit: Duration) -> u64 {
    now().saturating_sub(u64::try_from(limit.as_nanos()).unwrap_or(u64::MAX))
}

impl Place {
    /// An operation of this number begins.
    pub fn begin(&self, what: usize) -> Begun {
        let at = now();
        if let Some(slot) = self.slot {
            slot.what.store(what, Ordering::Relaxed);
            slot.began.store(at, Ordering::Relaxed);
            slot.heard.store(at, Ordering::Relaxed);
        }
        Begun { what, at }
    }

    /// The operation is over, and another one will come; how long it took.
    pub fn end(&self, begun: Begun) -> Duration {
        let Begun { what, at: began } = begun;
        let now = now();
        if let Some(slot) = self.slot {
            slot.heard.store(IDLE, Ordering::Relaxed);
        }
        let taken = now.saturating_sub(began);
        self.slowest.note(Ended { what, taken, at: now });
        Duration::from_nanos(taken)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Some(slot) = self.slot {
            slot.heard.store(FREE, Ordering::Relaxed);
        }
    }
}

impl UnderWay {
    /// Something has happened in the operation.
    pub fn goes_on(&self) {
        if let Some(slot) = self.place.slot {
            slot.heard.store(now(), Ordering::Relaxed);
        }
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.place.end(self.begun);
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

/// Those of all kinds that have been under way the longest, at most so many, the oldest first.
pub fn oldest(limit: usize) -> Vec<Pending> {
    let mut all =
        [FUSE.pending(), GRPC_SERVER.pending(), GRPC_CLIENT.pending(), OBJECT_STORE.pending()]
            .concat();
    all.sort_unstable_by_key(|pending| Reverse(pending.age));
    all.truncate(limit);
    all
}

/// The slowest of all kinds that have ended within a minute, at most so many, the slowest first.
pub fn slowest(limit: usize) -> Vec<Slow> {
    let mut all =
        [FUSE.slowest(), GRPC_SERVER.slowest(), GRPC_CLIENT.slowest(), OBJECT_STORE.slowest()]
            .concat();
    all.sort_unstable_by_key(|slow| Reverse(slow.taken));
    all.truncate(limit);
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn operations<const N: usize>() -> Operations<N> {
        Operations::new(Operation::Fuse, |what| if what == 7 { "seven" } else { OTHER })
    }

    #[test]
    fn who_does_not_go_on_hangs_and_all_of_them_are_stuck() {
        static ALL: Operations<4> = operations();
        assert!(!ALL.is_stuck(Duration::ZERO), "nobody is there");
        let (one, two) = (ALL.enter(), ALL.enter());
        let begun = two.begin(7);
        assert_eq!((ALL.under_way(), ALL.hanging(HANGS)), (1, 0));
        // Time goes on.
        while ALL.hanging(Duration::ZERO) == 0 {}
        assert!(!ALL.is_stuck(Duration::ZERO), "one is free");
        one.begin(7);
        while !ALL.is_stuck(Duration::ZERO) {}
        assert!(!ALL.is_stuck(HANGS));
        two.end(begun);
        assert!(!ALL.is_stuck(Duration::ZERO));
        drop((one, two));
        assert_eq!(ALL.under_way(), 0);
    }

    #[test]
    fn those_that_have_no_place_are_let_be() {
        static FEW: Operations<2> = operations();
        let all = [FEW.begin(0), FEW.begin(0), FEW.begin(0)];
        assert_eq!(FEW.under_way(), 2);
        drop(all);
        let again = FEW.begin(0);
        assert_eq!(FEW.under_way(), 1);
        drop(again);
    }

    #[test]
    fn what_is_under_way_is_told_with_its_name_and_its_times() {
        static ALL: Operations<4> = operations();
        let (seven, other) = (ALL.begin(7), ALL.begin(1));
        let pause = Duration::from_millis(2);
        std::thread::sleep(pause);
        other.goes_on();
        let told = ALL.pending();
        let [first, second] = told[..] else { panic!("{told:?}") };
        assert_eq!((first.name, second.name), ("seven", "other"));
        assert!(first.age >= pause && first.silent >= pause, "{first:?}");
        assert!(second.age >= pause && second.silent < second.age, "{second:?}");
        assert_eq!(ALL.slowest(), []);
        drop(seven);
        assert_eq!(ALL.pending().len(), 1);
        let slow = ALL.slowest();
        let [Slow { name: "seven", taken, ago, .. }] = slow[..] else { panic!("{slow:?}") };
        assert!(taken >= pause && ago < taken + HANGS);
    }

    #[test]
    fn one_without_a_place_is_timed_all_the_same() {
        static NONE: Operations<1> = operations();
        let (_first, place) = (NONE.enter(), NONE.enter());
        let begun = place.begin(7);
        std::thread::sleep(Duration::from_millis(2));
        assert!(place.end(begun) >= Duration::from_millis(2));
        assert_eq!((NONE.pending(), NONE.slowest().len()), (vec![], 1));
    }

    #[test]
    fn every_number_has_a_name() {
        assert_eq!((FUSE.name)(FuseOperation::Read as usize), "read");
        assert_eq!((GRPC_CLIENT.name)(0), "snix.castore.v1.BlobService/Stat");
        assert_eq!((OBJECT_STORE.name)(ObjectOperation::Put as usize), "put");
        for name in [FUSE.name, GRPC_SERVER.name, OBJECT_STORE.name] {
            assert_eq!(name(usize::MAX), OTHER);
        }
    }
}
