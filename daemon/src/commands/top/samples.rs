//! The samples of a process's metrics, read from Prometheus's text format as cairn writes it. What they
//! come to is in `snapshot`.

use std::collections::{BTreeMap, HashMap};

use cairn_telemetry::metric::Metric;

/// The labels of a sample, name and value, as they are written.
pub(super) type Labels = Vec<(String, String)>;

/// What was counted at one time.
#[derive(Debug, Clone, Default)]
pub(super) struct Samples(HashMap<String, BTreeMap<Labels, f64>>);

/// A line that is no sample.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line} is no sample of a metric: {text}")]
pub(super) struct InvalidSample {
    line: usize,
    text: String,
}

/// How much of a line is shown that is none.
const SHOWN: usize = 80;

impl Samples {
    /// Reads the text format, as far as cairn makes use of it: labels have no escapes, samples have no
    /// times, and numbers are finite.
    pub(super) fn parse(text: &str) -> Result<Self, InvalidSample> {
        let mut samples = Self::default();
        for (index, line) in text.lines().enumerate() {
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let Some((name, labels, value)) = sample(line) else {
                let text = line.chars().take(SHOWN).collect();
                return Err(InvalidSample { line: index + 1, text });
            };
            samples.0.entry(name.to_owned()).or_default().insert(labels, value);
        }
        Ok(samples)
    }

    /// The only sample of a metric without labels.
    pub(super) fn value(&self, metric: &dyn Metric) -> Option<f64> {
        self.of(metric.about().name).next().map(|(_, value)| value)
    }

    /// All samples of a name.
    pub(super) fn of(&self, name: &str) -> impl Iterator<Item = (&Labels, f64)> {
        let samples = self.0.get(name).into_iter().flatten();
        samples.map(|(labels, value)| (labels, *value))
    }

    /// A sample; 0 if it is not told, as are those of which nothing was counted yet.
    pub(super) fn get(&self, name: &str, labels: &Labels) -> f64 {
        self.0.get(name).and_then(|samples| samples.get(labels)).copied().unwrap_or(0.0)
    }
}

/// The name, the labels and the value in a line.
fn sample(line: &str) -> Option<(&str, Labels, f64)> {
    let (series, value) = line.rsplit_once(' ')?;
    let value = value.parse().ok().filter(|value: &f64| value.is_finite())?;
    let (name, labels) = match series.strip_suffix('}') {
        Some(series) => {
            let (name, labels) = series.split_once('{')?;
            (name, self::labels(labels)?)
        }
        None => (series, Labels::new()),
    };
    let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == ':';
    (!name.is_empty() && name.chars().all(is_name)).then_some((name, labels, value))
}

fn labels(mut rest: &str) -> Option<Labels> {
    let mut labels = Labels::new();
    while !rest.is_empty() {
        let (name, value) = rest.split_once("=\"")?;
        let (value, behind) = value.split_once('"')?;
        labels.push((name.to_owned(), value.to_owned()));
        rest = match behind.strip_prefix(',') {
            Some(more) => more,
            None if behind.is_empty() => behind,
            None => return None,
        };
    }
    Some(labels)
}

#[cfg(test)]
mod tests {
    use cairn_telemetry::{exposition, inventory};
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_this_process_tells_is_read() {
        inventory::LIVE.set(1.0);
        inventory::FUSE_READ.add(7);
        let samples = Samples::parse(&exposition::text()).unwrap();
        assert_eq!(samples.value(&inventory::LIVE), Some(1.0));
        assert!(samples.value(&inventory::FUSE_READ) >= Some(7.0));
        assert_eq!(samples.value(&inventory::RESIDENT), None);
        let layers: Vec<_> = samples.of("cairn_cache_hits_total").collect();
        assert_eq!(layers.len(), inventory::CacheLayer::ALL.len());
        assert_eq!(layers[0].0[0].0, "layer");
    }

    #[test]
    fn labels_are_taken_apart() {
        let samples = Samples::parse("# HELP a b\n\na{x=\"1, {2}\",y=\"\"} 3\na 4e2\n").unwrap();
        let labels = [("x", "1, {2}"), ("y", "")].map(|(n, v)| (n.to_owned(), v.to_owned()));
        assert_eq!(samples.get("a", &labels.to_vec()), 3.0);
        assert_eq!(samples.get("a", &Labels::new()), 400.0);
        assert_eq!(samples.get("b", &Labels::new()), 0.0);
    }

    #[test]
    fn what_is_no_sample_is_refused() {
        for text in [
            "<html>",
            "a",
            "a b",
            " 1",
            "a{x=\"1\" 1",
            "a{x=\"1} 1",
            "a{x=1} 1",
            "a{x=\"1\"y=\"2\"} 1",
            "a NaN",
            "a +Inf",
            "a 1 1700000000000\n",
        ] {
            let text = format!("ok 1\n{text}");
            let error = Samples::parse(&text).expect_err(&text);
            assert!(error.to_string().starts_with("line 2 is no sample"), "{error}");
        }
        let long = Samples::parse(&"x".repeat(1_000_000)).unwrap_err();
        assert!(long.to_string().len() < 200);
    }

    proptest! {
        #[test]
        fn whatever_comes_is_read_or_refused(text in "([a-c{}=\",0-9. \n#é-]|\\PC)*") {
            let _ = Samples::parse(&text);
        }
    }
}
