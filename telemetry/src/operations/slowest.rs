//! The operations of a kind that took the longest of those that have ended of late. What is quick is
//! passed by without a lock; what is slow finds room for so many in each of a few periods, so that
//! whatever happens, no more is remembered.

use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

/// What took less, in nanoseconds, is nobody's concern.
const SLOW: u64 = 1_000_000;

/// How many are remembered of a period.
pub(super) const KEPT: usize = 8;

/// How long a period is, in nanoseconds.
const PERIOD: u64 = 10_000_000_000;

/// How many periods are remembered, with the one that goes on: a minute.
const PERIODS: usize = 6;

/// An operation that has ended. Times are nanoseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Ended {
    /// What it was, as its kind numbers them.
    pub(super) what: usize,
    /// How long it took.
    pub(super) taken: u64,
    /// When it ended.
    pub(super) at: u64,
}

/// The slowest of the last minute.
#[derive(Debug)]
pub(super) struct Slowest {
    /// The period in which something was last kept.
    period: AtomicU64,
    /// In that period, what took no longer is not kept.
    floor: AtomicU64,
    kept: Mutex<[Period; PERIODS]>,
}

#[derive(Debug, Clone, Copy)]
struct Period {
    number: u64,
    ended: [Option<Ended>; KEPT],
}

impl Period {
    const fn new(number: u64) -> Self {
        Self { number, ended: [None; KEPT] }
    }

    /// The one that is the first to give way, and how long it took.
    fn least(&mut self) -> (&mut Option<Ended>, u64) {
        let taken = |ended: &Option<Ended>| ended.map_or(0, |ended| ended.taken);
        let least = self.ended.iter_mut().min_by_key(|ended| taken(ended));
        let least = least.expect("there is room for some");
        let time = taken(least);
        (least, time)
    }
}

impl Slowest {
    pub(super) const fn new() -> Self {
        let kept = Mutex::new([const { Period::new(0) }; PERIODS]);
        Self { period: AtomicU64::new(0), floor: AtomicU64::new(0), kept }
    }

    /// An operation has ended.
    pub(super) fn note(&self, ended: Ended) {
        if ended.taken >= SLOW {
            self.note_slow(ended);
        }
    }

    #[cold]
    fn note_slow(&self, ended: Ended) {
        let number = ended.at / PERIOD;
        // In this order: the floor is that of the period, or of a later one.
        let is_known = self.period.load(Ordering::Acquire) == number;
        if is_known && ended.taken <= self.floor.load(Ordering::Relaxed) {
            return;
        }
        let mut kept = self.kept.lock();
        // Another may have been here that ended a moment later.
        let number = number.max(self.period.load(Ordering::Relaxed));
        let period = &mut kept[number as usize % PERIODS];
        if period.number != number {
            *period = Period::new(number);
        }
        let (least, taken) = period.least();
        if ended.taken > taken {
            *least = Some(ended);
        }
        self.floor.store(period.least().1, Ordering::Relaxed);
        self.period.store(number, Ordering::Release);
    }

    /// All that are remembered and had not ended a minute before `now`, in no order.
    pub(super) fn all(&self, now: u64) -> Vec<Ended> {
        let long_ago = now.saturating_sub(PERIOD * PERIODS as u64);
        let kept = *self.kept.lock();
        let all = kept.iter().flat_map(|period| period.ended).flatten();
        all.filter(|ended| ended.at >= long_ago).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    fn note(slowest: &Slowest, taken: u64, at: u64) {
        slowest.note(Ended { what: 0, taken, at });
    }

    fn taken(slowest: &Slowest, now: u64) -> Vec<u64> {
        let mut taken: Vec<_> = slowest.all(now).iter().map(|ended| ended.taken).collect();
        taken.sort_unstable();
        taken
    }

    #[test]
    fn of_many_the_slowest_are_kept() {
        let slowest = Slowest::new();
        note(&slowest, SLOW - 1, SECOND);
        assert!(taken(&slowest, SECOND).is_empty());
        // Up and down, so that the slowest come neither first nor last.
        for number in (0..50).map(|half| 2 * half).chain((0..50).rev().map(|half| 2 * half + 1)) {
            note(&slowest, SLOW + number, SECOND);
        }
        let expected: Vec<u64> = (92..100).map(|number| SLOW + number).collect();
        assert_eq!(taken(&slowest, SECOND), expected);
    }

    #[test]
    fn what_was_a_minute_ago_is_forgotten_and_makes_room() {
        let slowest = Slowest::new();
        for second in 0..1000 {
            let at = second * SECOND;
            note(&slowest, SLOW * (1000 - second), at);
            let all = slowest.all(at);
            assert!(
                all.len() <= KEPT * PERIODS && all.iter().all(|one| one.at + 60 * SECOND >= at)
            );
            // A slower one of an earlier period does not stand in the way of this one.
            assert!(all.iter().any(|ended| ended.at + 10 * SECOND >= at));
        }
        assert!(taken(&slowest, 2000 * SECOND).is_empty());
    }

    #[test]
    fn one_that_comes_late_is_kept_with_the_others() {
        let slowest = Slowest::new();
        note(&slowest, 2 * SLOW, 20 * SECOND);
        note(&slowest, SLOW, 20 * SECOND - 1);
        assert_eq!(taken(&slowest, 20 * SECOND), [SLOW, 2 * SLOW]);
    }
}
