//! The kinds of metrics. Each is a static with a fixed number of cells, one for each value of its
//! labels, so that counting is an atomic addition: no lock, no look-up, no memory that grows, whatever
//! comes from outside. Which metrics there are is in `inventory`.

use std::{
    sync::atomic::{AtomicI64, AtomicU64, Ordering},
    time::Duration,
};

/// The bounds of the cells of a [`Histogram`] of times, in seconds: from what memory answers to what
/// a far store takes before it is given up.
pub const DURATIONS: [f64; 15] = [
    0.000_01, 0.000_03, 0.000_1, 0.000_3, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0,
    100.0,
];

/// The same in nanoseconds.
const BOUNDS: [u64; DURATIONS.len()] = {
    let mut bounds = [0; DURATIONS.len()];
    let mut index = 0;
    while index < bounds.len() {
        bounds[index] = (DURATIONS[index] * 1e9) as u64;
        index += 1;
    }
    bounds
};

/// What a metric's name and labels can be relied on for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stability {
    /// Changes only with a new major version, and after it was announced.
    Stable,
    /// May change with any version.
    Experimental,
}

/// A label, or some that go together, with all values that there can be.
#[derive(Debug, Clone, Copy)]
pub struct Label {
    /// The names.
    pub names: &'static [&'static str],
    /// Each of the values as Prometheus reads them: `name="value"`.
    pub values: &'static [&'static str],
}

/// What is known of a metric apart from its values.
#[derive(Debug)]
pub struct About {
    /// The name, with its unit.
    pub name: &'static str,
    /// What it tells, in a sentence.
    pub help: &'static str,
    /// How far the name can be relied on.
    pub stability: Stability,
    /// Its labels. The last one's values are those of cells side by side.
    pub labels: &'static [Label],
}

impl About {
    /// The labels of a cell, as Prometheus reads them.
    pub(crate) fn labels_of(&self, cell: usize) -> Vec<&'static str> {
        let mut rest = cell;
        let mut labels: Vec<_> = self
            .labels
            .iter()
            .rev()
            .map(|label| {
                let value = label.values[rest % label.values.len()];
                rest /= label.values.len();
                value
            })
            .collect();
        labels.reverse();
        labels
    }
}

/// What Prometheus knows a metric as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Only ever grows.
    Counter,
    /// Goes up and down.
    Gauge,
    /// How often something took how long.
    Histogram,
}

/// A value of a cell.
#[derive(Debug)]
pub enum Value {
    /// Of a counter or gauge.
    Number(f64),
    /// Of a histogram: how many there were in each cell, the last being for what is longer than all
    /// [`DURATIONS`], and their sum in seconds.
    Times {
        /// How many.
        counts: [u64; DURATIONS.len() + 1],
        /// How long together.
        sum: f64,
    },
}

/// Any metric, to be read.
pub trait Metric: Sync {
    /// What it is.
    fn about(&self) -> &About;
    /// What kind it is of.
    fn kind(&self) -> Kind;
    /// How many cells it has.
    fn cells(&self) -> usize;
    /// The value of a cell. `None` if there is none.
    fn value(&self, cell: usize) -> Option<Value>;
}

/// Counts what happens.
#[derive(Debug)]
pub struct Counter<const N: usize = 1> {
    about: About,
    cells: [AtomicU64; N],
}

impl<const N: usize> Counter<N> {
    /// One with nothing counted.
    pub const fn new(about: About) -> Self {
        Self { about, cells: [const { AtomicU64::new(0) }; N] }
    }

    /// So many more, in a cell.
    pub fn add_at(&self, cell: usize, count: u64) {
        if let Some(cell) = self.cells.get(cell) {
            cell.fetch_add(count, Ordering::Relaxed);
        }
    }

    /// How many there were, in a cell.
    pub fn get_at(&self, cell: usize) -> u64 {
        self.cells.get(cell).map_or(0, |cell| cell.load(Ordering::Relaxed))
    }
}

impl Counter {
    /// So many more.
    pub fn add(&self, count: u64) {
        self.add_at(0, count);
    }
}

/// Counts what is there now.
#[derive(Debug)]
pub struct Level {
    about: About,
    level: AtomicI64,
}

impl Level {
    /// One with nothing there.
    pub const fn new(about: About) -> Self {
        Self { about, level: AtomicI64::new(0) }
    }

    /// One more, until what is returned is dropped.
    pub fn one(&'static self) -> One {
        self.level.fetch_add(1, Ordering::Relaxed);
        One(self)
    }

    /// How many there are.
    pub fn get(&self) -> i64 {
        self.level.load(Ordering::Relaxed)
    }
}

/// One of what a [`Level`] counts.
#[derive(Debug)]
pub struct One(&'static Level);

impl Drop for One {
    fn drop(&mut self) {
        self.0.level.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What is known elsewhere, and is written down now and then. Not shown until it was.
#[derive(Debug)]
pub struct Reading<const N: usize = 1> {
    about: About,
    kind: Kind,
    /// Floating-point numbers, as their bits. Nothing was written to a NaN.
    cells: [AtomicU64; N],
}

impl<const N: usize> Reading<N> {
    /// One that goes up and down.
    pub const fn gauge(about: About) -> Self {
        let cells = [const { AtomicU64::new(f64::NAN.to_bits()) }; N];
        Self { about, kind: Kind::Gauge, cells }
    }

    /// One that only grows.
    pub const fn counter(about: About) -> Self {
        Self { kind: Kind::Counter, ..Self::gauge(about) }
    }

    /// Writes down what it is now, in a cell.
    pub fn set_at(&self, cell: usize, value: f64) {
        if let Some(cell) = self.cells.get(cell) {
            cell.store(value.to_bits(), Ordering::Relaxed);
        }
    }
}

impl Reading {
    /// Writes down what it is now.
    pub fn set(&self, value: f64) {
        self.set_at(0, value);
    }
}

/// How often something took how long.
#[derive(Debug)]
pub struct Histogram<const N: usize = 1> {
    about: About,
    cells: [Times; N],
}

#[derive(Debug)]
struct Times {
    counts: [AtomicU64; DURATIONS.len() + 1],
    nanoseconds: AtomicU64,
}

impl<const N: usize> Histogram<N> {
    /// One with nothing counted.
    pub const fn new(about: About) -> Self {
        let cells = [const {
            Times {
                counts: [const { AtomicU64::new(0) }; DURATIONS.len() + 1],
                nanoseconds: AtomicU64::new(0),
            }
        }; N];
        Self { about, cells }
    }

    /// One more that took so long, in a cell.
    pub fn observe_at(&self, cell: usize, taken: Duration) {
        let Some(times) = self.cells.get(cell) else { return };
        // More would be centuries.
        let taken = u64::try_from(taken.as_nanos()).unwrap_or(u64::MAX);
        let index = BOUNDS.partition_point(|bound| *bound < taken);
        times.counts[index].fetch_add(1, Ordering::Relaxed);
        times.nanoseconds.fetch_add(taken, Ordering::Relaxed);
    }
}

impl<const N: usize> Metric for Counter<N> {
    fn about(&self) -> &About {
        &self.about
    }

    fn kind(&self) -> Kind {
        Kind::Counter
    }

    fn cells(&self) -> usize {
        N
    }

    fn value(&self, cell: usize) -> Option<Value> {
        Some(Value::Number(self.get_at(cell) as f64))
    }
}

impl Metric for Level {
    fn about(&self) -> &About {
        &self.about
    }

    fn kind(&self) -> Kind {
        Kind::Gauge
    }

    fn cells(&self) -> usize {
        1
    }

    fn value(&self, _: usize) -> Option<Value> {
        Some(Value::Number(self.get() as f64))
    }
}

impl<const N: usize> Metric for Reading<N> {
    fn about(&self) -> &About {
        &self.about
    }

    fn kind(&self) -> Kind {
        self.kind
    }

    fn cells(&self) -> usize {
        N
    }

    fn value(&self, cell: usize) -> Option<Value> {
        let number = f64::from_bits(self.cells.get(cell)?.load(Ordering::Relaxed));
        (!number.is_nan()).then_some(Value::Number(number))
    }
}

impl<const N: usize> Metric for Histogram<N> {
    fn about(&self) -> &About {
        &self.about
    }

    fn kind(&self) -> Kind {
        Kind::Histogram
    }

    fn cells(&self) -> usize {
        N
    }

    fn value(&self, cell: usize) -> Option<Value> {
        let times = self.cells.get(cell)?;
        let mut counts = [0; DURATIONS.len() + 1];
        for (count, counted) in counts.iter_mut().zip(&times.counts) {
            *count = counted.load(Ordering::Relaxed);
        }
        let sum = times.nanoseconds.load(Ordering::Relaxed) as f64 / 1e9;
        Some(Value::Times { counts, sum })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ABOUT: About =
        About { name: "cairn_test", help: "", stability: Stability::Stable, labels: &[] };

    #[test]
    fn a_time_is_counted_in_the_first_cell_that_it_fits_in() {
        let histogram = Histogram::<1>::new(ABOUT);
        for nanoseconds in [0, 10_000, 10_001, 100_000_000_000, 100_000_000_001] {
            histogram.observe_at(0, Duration::from_nanos(nanoseconds));
        }
        histogram.observe_at(1, Duration::ZERO);
        let Some(Value::Times { counts, sum }) = histogram.value(0) else { panic!() };
        assert_eq!((counts[0], counts[1], counts[14], counts[15]), (2, 1, 1, 1));
        assert!((sum - 200.000_02).abs() < 1e-4, "{sum}");
    }

    #[test]
    fn the_labels_of_a_cell_are_those_that_it_stands_for() {
        const OUTER: Label = Label { names: &["a"], values: &["a=\"0\"", "a=\"1\""] };
        const INNER: Label = Label { names: &["b"], values: &["b=\"0\"", "b=\"1\"", "b=\"2\""] };
        let about = About { labels: &[OUTER, INNER], ..ABOUT };
        assert_eq!(about.labels_of(0), ["a=\"0\"", "b=\"0\""]);
        assert_eq!(about.labels_of(5), ["a=\"1\"", "b=\"2\""]);
        assert_eq!(about.labels_of(3), ["a=\"1\"", "b=\"0\""]);
    }

    #[test]
    fn a_level_goes_down_when_what_it_counts_is_over() {
        static LEVEL: Level = Level::new(ABOUT);
        let (one, two) = (LEVEL.one(), LEVEL.one());
        drop(one);
        assert_eq!(LEVEL.get(), 1);
        drop(two);
        assert_eq!(LEVEL.get(), 0);
    }
}
