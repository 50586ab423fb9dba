//! What was counted between two times: how much more of each counter, and how long what was timed has
//! taken. What it means is in `snapshot`.

use std::collections::BTreeMap;

use cairn_telemetry::metric::Metric;

use super::samples::{Labels, Samples};

/// The time between two tellings of one process.
#[derive(Debug, Clone, Copy)]
pub(super) struct Interval<'a> {
    before: &'a Samples,
    after: &'a Samples,
    seconds: f64,
}

/// A counter, with the values of its labels.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Count {
    pub(super) labels: Vec<String>,
    /// Since the process began.
    pub(super) total: f64,
    pub(super) per_second: f64,
}

/// What was timed, with the values of its labels.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Times {
    pub(super) labels: Vec<String>,
    pub(super) total: f64,
    pub(super) per_second: f64,
    /// The upper bounds of times in seconds, and how many there were up to each.
    buckets: Vec<(f64, f64)>,
}

impl<'a> Interval<'a> {
    /// The time between these two, which is so long.
    pub(super) fn new(before: &'a Samples, after: &'a Samples, seconds: f64) -> Self {
        Self { before, after, seconds: seconds.max(f64::MIN_POSITIVE) }
    }

    pub(super) fn seconds(&self) -> f64 {
        self.seconds
    }

    pub(super) fn after(&self) -> &'a Samples {
        self.after
    }

    /// How much more there is of a sample. It has never become less, unless by rounding.
    fn more(&self, name: &str, labels: &Labels, now: f64) -> f64 {
        (now - self.before.get(name, labels)).max(0.0)
    }

    /// The samples of a counter.
    pub(super) fn counts(&self, metric: &dyn Metric) -> Vec<Count> {
        let name = metric.about().name;
        let count = |(labels, total): (&Labels, f64)| Count {
            labels: labels.iter().map(|(_, value)| value.clone()).collect(),
            total,
            per_second: self.more(name, labels, total) / self.seconds,
        };
        self.after.of(name).map(count).collect()
    }

    /// All samples of a counter together.
    pub(super) fn sum(&self, metric: &dyn Metric) -> Count {
        let counts = self.counts(metric);
        Count {
            labels: Vec::new(),
            total: counts.iter().map(|count| count.total).sum(),
            per_second: counts.iter().map(|count| count.per_second).sum(),
        }
    }

    /// What a histogram of times has counted.
    pub(super) fn times(&self, metric: &dyn Metric) -> Vec<Times> {
        let name = format!("{}_bucket", metric.about().name);
        let mut all = BTreeMap::<Vec<String>, Vec<(f64, f64, f64)>>::new();
        for (labels, count) in self.after.of(&name) {
            let (bounds, others): (Vec<_>, Vec<_>) =
                labels.iter().partition(|(label, _)| label == "le");
            let Some(bound) = bounds.first().and_then(|(_, bound)| bound.parse().ok()) else {
                continue;
            };
            let labels_but_it = others.into_iter().map(|(_, value)| value.clone()).collect();
            let buckets = all.entry(labels_but_it).or_default();
            buckets.push((bound, count, self.more(&name, labels, count)));
        }
        let times = |(labels, mut buckets): (Vec<String>, Vec<(f64, f64, f64)>)| {
            buckets.sort_by(|one, other| one.0.total_cmp(&other.0));
            let (_, total, more) = buckets.last().copied().unwrap_or_default();
            let buckets = buckets.into_iter().map(|(bound, _, more)| (bound, more)).collect();
            Times { labels, total, per_second: more / self.seconds, buckets }
        };
        all.into_iter().map(times).collect()
    }
}

impl Times {
    /// The time that a share of them took at most, in seconds; within a bucket as if they were spread
    /// evenly, as Prometheus has it. `None` if there were none. What is longer than the last bound counts
    /// as that.
    pub(super) fn quantile(&self, share: f64) -> Option<f64> {
        let (_, all) = self.buckets.last().filter(|(_, all)| *all > 0.0)?;
        let rank = share * all;
        let (mut low, mut below) = (0.0, 0.0);
        for (bound, count) in &self.buckets {
            if *count >= rank && *count > below {
                if !bound.is_finite() {
                    break;
                }
                return Some(low + (bound - low) * (rank - below) / (count - below));
            }
            if bound.is_finite() {
                low = *bound;
            }
            // Those of a bucket that was read a moment later may be fewer.
            below = count.max(below);
        }
        Some(low)
    }
}

#[cfg(test)]
mod tests {
    use cairn_telemetry::inventory::{FUSE_DURATION, FUSE_ERRORS, FUSE_READ};
    use proptest::prelude::*;

    use super::*;

    fn samples(text: &str) -> Samples {
        Samples::parse(text).unwrap()
    }

    #[test]
    fn counters_have_rates() {
        let before =
            samples("cairn_fuse_read_bytes_total 100\ncairn_fuse_errors_total{errno=\"EIO\"} 1");
        let after = samples(
            "cairn_fuse_read_bytes_total 600\ncairn_fuse_errors_total{errno=\"EIO\"} 3\n\
             cairn_fuse_errors_total{errno=\"EACCES\"} 1",
        );
        let interval = Interval::new(&before, &after, 2.0);
        let read = interval.sum(&FUSE_READ);
        assert_eq!((read.total, read.per_second), (600.0, 250.0));
        let errors = interval.counts(&FUSE_ERRORS);
        let rate =
            |errno: &str| errors.iter().find(|count| count.labels == [errno]).unwrap().per_second;
        assert_eq!((rate("EIO"), rate("EACCES")), (1.0, 0.5));
        // One that is another process's now.
        assert_eq!(Interval::new(&after, &before, 2.0).sum(&FUSE_READ).per_second, 0.0);
    }

    fn bucket(bound: &str, count: u32) -> String {
        let name = "cairn_fuse_request_duration_seconds_bucket";
        format!("{name}{{operation=\"read\",le=\"{bound}\"}} {count}\n")
    }

    #[test]
    fn times_are_those_of_the_interval() {
        let before = [bucket("0.001", 5), bucket("0.003", 5), bucket("+Inf", 5)].concat();
        let after = [bucket("+Inf", 110), bucket("0.003", 105), bucket("0.001", 55)].concat();
        let (before, after) = (samples(&before), samples(&after));
        let times = Interval::new(&before, &after, 5.0).times(&FUSE_DURATION);
        let [times] = &times[..] else { panic!("{times:?}") };
        assert_eq!(times.labels, ["read"]);
        assert_eq!((times.total, times.per_second), (110.0, 21.0));
        assert_eq!(times.quantile(0.0), Some(0.0));
        assert!((times.quantile(50.0 / 105.0).unwrap() - 0.001).abs() < 1e-12);
        assert!((times.quantile(75.0 / 105.0).unwrap() - 0.002).abs() < 1e-12);
        assert_eq!(times.quantile(1.0), Some(0.003), "the last bound");
        let quiet = Interval::new(&after, &after, 5.0).times(&FUSE_DURATION);
        assert_eq!((quiet[0].per_second, quiet[0].quantile(0.5)), (0.0, None));
    }

    proptest! {
        /// Buckets are read one after the other while they grow, so that their counts may be anything.
        #[test]
        fn a_quantile_is_a_time(counts in prop::collection::vec(0_u32..1000, 1..6), share in 0.0..=1.0) {
            let bounds = ["0.1", "0.3", "1", "3", "+Inf"];
            let text: String = counts.iter().zip(bounds).map(|(count, bound)| bucket(bound, *count)).collect();
            let (nothing, samples) = (Samples::default(), samples(&text));
            for times in Interval::new(&nothing, &samples, 1.0).times(&FUSE_DURATION) {
                let quantile = times.quantile(share);
                prop_assert!(quantile.is_none_or(|time| (0.0..=3.0).contains(&time)), "{quantile:?}");
            }
        }
    }
}
