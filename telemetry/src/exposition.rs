//! The metrics as Prometheus reads them: its text format, version 0.0.4, which whatever collects
//! metrics understands.

use std::fmt::{self, Write as _};

use crate::{
    inventory::INVENTORY,
    metric::{DURATIONS, Kind, Metric, Value},
};

/// What the text is, for the header `Content-Type`.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Metrics of at most so many cells show all of them from the start, so that the first time that
/// something goes wrong is an increase. Others, and histograms, which have a dozen lines for each, show
/// those cells that are not 0.
const SHOWN_WHOLE: usize = 32;

/// All that there is to tell now.
pub fn text() -> String {
    text_of(INVENTORY)
}

fn text_of(metrics: &[&dyn Metric]) -> String {
    let mut text = String::with_capacity(32 * 1024);
    for metric in metrics {
        write(&mut text, *metric).expect("a string takes whatever is written to it");
    }
    text
}

fn write(text: &mut String, metric: &dyn Metric) -> fmt::Result {
    let about = metric.about();
    let kind = match metric.kind() {
        Kind::Counter => "counter",
        Kind::Gauge => "gauge",
        Kind::Histogram => "histogram",
    };
    let mut has_head = false;
    for cell in 0..metric.cells() {
        let Some(value) = metric.value(cell) else { continue };
        let is_whole = metric.cells() <= SHOWN_WHOLE && metric.kind() != Kind::Histogram;
        if !is_whole && is_zero(&value) {
            continue;
        }
        if !has_head {
            writeln!(text, "# HELP {} {}", about.name, about.help)?;
            writeln!(text, "# TYPE {} {kind}", about.name)?;
            has_head = true;
        }
        let labels = about.labels_of(cell);
        match value {
            Value::Number(number) => line(text, about.name, "", &labels, None, number)?,
            Value::Times { counts, sum } => {
                let mut all = 0;
                for (index, count) in counts.iter().enumerate() {
                    all += count;
                    let bound = DURATIONS.get(index).copied().unwrap_or(f64::INFINITY);
                    line(text, about.name, "_bucket", &labels, Some(bound), all as f64)?;
                }
                line(text, about.name, "_sum", &labels, None, sum)?;
                line(text, about.name, "_count", &labels, None, all as f64)?;
            }
        }
    }
    Ok(())
}

fn is_zero(value: &Value) -> bool {
    match value {
        Value::Number(number) => *number == 0.0,
        Value::Times { counts, .. } => counts.iter().all(|count| *count == 0),
    }
}

fn line(
    text: &mut String,
    name: &str,
    suffix: &str,
    labels: &[&str],
    bound: Option<f64>,
    value: f64,
) -> fmt::Result {
    write!(text, "{name}{suffix}")?;
    let bound = bound.map(|bound| match bound.is_finite() {
        true => format!("le=\"{bound}\""),
        false => "le=\"+Inf\"".to_owned(),
    });
    let labels: Vec<&str> = labels.iter().copied().chain(bound.as_deref()).collect();
    if !labels.is_empty() {
        write!(text, "{{{}}}", labels.join(","))?;
    }
    writeln!(text, " {value}")
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::metric::{About, Counter, Histogram, Label, Reading, Stability};

    #[test]
    fn metrics_are_written_as_prometheus_reads_them() {
        const KIND: Label = Label { names: &["kind"], values: &["kind=\"a\"", "kind=\"b\""] };
        const fn about(name: &'static str, labels: &'static [Label]) -> About {
            About { name, help: "What it is.", stability: Stability::Stable, labels }
        }
        let counter = Counter::<2>::new(about("cairn_things_total", &[KIND]));
        counter.add_at(1, 3);
        let unread = Reading::<1>::gauge(about("cairn_unread", &[]));
        let times = Histogram::<1>::new(about("cairn_time_seconds", &[]));
        times.observe_at(0, Duration::from_millis(1500));
        let text = text_of(&[&counter, &unread, &times]);
        let counted = "# HELP cairn_things_total What it is.\n# TYPE cairn_things_total counter\n\
                       cairn_things_total{kind=\"a\"} 0\ncairn_things_total{kind=\"b\"} 3\n";
        assert!(text.starts_with(counted), "{text}");
        assert!(!text.contains("unread"), "{text}");
        for line in [
            "cairn_time_seconds_bucket{le=\"1\"} 0\n",
            "cairn_time_seconds_bucket{le=\"3\"} 1\n",
            "cairn_time_seconds_bucket{le=\"0.00001\"} 0\n",
            "cairn_time_seconds_bucket{le=\"+Inf\"} 1\n",
            "cairn_time_seconds_sum 1.5\ncairn_time_seconds_count 1\n",
        ] {
            assert!(text.contains(line), "{line} is not in {text}");
        }
    }

    #[test]
    fn of_many_cells_those_are_shown_that_are_not_zero() {
        const VALUES: [&str; 40] = ["n=\"x\""; 40];
        const MANY: Label = Label { names: &["n"], values: &VALUES };
        let about =
            About { name: "cairn_m", help: "", stability: Stability::Stable, labels: &[MANY] };
        let counter = Counter::<40>::new(about);
        assert_eq!(text_of(&[&counter]), "");
        counter.add_at(39, 1);
        assert_eq!(text_of(&[&counter]).lines().count(), 3);
    }
}
