//! Every metric of cairn: its name, unit, labels and how far it can be relied on. Nothing is told that
//! is not here, and docs/metrics.md is written from it. Units are seconds and bytes, and part of the
//! name; what only grows ends in `_total`.

use crate::metric::{
    About, Label, Metric, Reading,
    Stability::{self, Experimental, Stable},
};

/// A set of values of a label: an enum, and the label.
macro_rules! label {
    (
        $(#[$about:meta])*
        $label:ident, $name:literal, $type:ident {
            $($(#[$about_value:meta])* $value:ident = $text:literal,)*
        }
    ) => {
        $(#[$about])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum $type {
            $($(#[$about_value])* $value,)*
        }

        impl $type {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$value,)*];
        }

        #[doc = concat!("The label `", $name, "`.")]
        pub const $label: Label =
            Label { names: &[$name], values: &[$(concat!($name, "=\"", $text, "\""),)*] };
    };
}

const fn about(
    stability: Stability,
    name: &'static str,
    labels: &'static [Label],
    help: &'static str,
) -> About {
    About { name, help, stability, labels }
}

/// This build.
const BUILD: Label = Label {
    names: &["version"],
    values: &[concat!("version=\"", env!("CARGO_PKG_VERSION"), "\"")],
};

label! {
    /// A service of a store.
    SERVICE, "service", Service {
        /// Blobs.
        Blobs = "blob",
        /// Directories.
        Directories = "directory",
        /// Path infos.
        PathInfos = "path-info",
    }
}

/// How many values a label has.
const fn count(label: &Label) -> usize {
    label.values.len()
}

/// Which build this is.
pub static BUILD_INFO: Reading = Reading::gauge(about(
    Stable,
    "cairn_build_info",
    &[BUILD],
    "Always 1; the label tells the version.",
));

/// When the process was started.
pub static START_TIME: Reading = Reading::gauge(about(
    Stable,
    "cairn_process_start_time_seconds",
    &[],
    "When the process was started, since the epoch.",
));

/// What processors the process has used.
pub static CPU: Reading = Reading::counter(about(
    Stable,
    "cairn_process_cpu_seconds_total",
    &[],
    "Processor time that was used, in user and system mode.",
));

/// The memory that the process has.
pub static RESIDENT: Reading = Reading::gauge(about(
    Stable,
    "cairn_process_resident_memory_bytes",
    &[],
    "Memory that is resident.",
));

/// The memory that it may have.
pub static MEMORY_LIMIT: Reading = Reading::gauge(about(
    Stable,
    "cairn_process_memory_limit_bytes",
    &[],
    "Memory that the process may have: the least limit of its control groups, or else what the \
     machine has.",
));

/// The threads.
pub static THREADS: Reading =
    Reading::gauge(about(Stable, "cairn_process_threads", &[], "Threads of the process."));

/// The open files.
pub static OPEN_FILES: Reading = Reading::gauge(about(
    Stable,
    "cairn_process_open_files",
    &[],
    "File descriptors that are open.",
));

/// The files that may be open.
pub static OPEN_FILES_LIMIT: Reading = Reading::gauge(about(
    Stable,
    "cairn_process_open_files_limit",
    &[],
    "File descriptors that may be open.",
));

/// Whether the process does its work.
pub static LIVE: Reading =
    Reading::gauge(about(Stable, "cairn_live", &[], "Whether /livez answers with 200."));

/// Whether it takes work.
pub static READY: Reading =
    Reading::gauge(about(Stable, "cairn_ready", &[], "Whether /readyz answers with 200."));

/// Whether the store answered when it was last tried.
pub static STORE_ANSWERS: Reading<{ count(&SERVICE) }> = Reading::gauge(about(
    Stable,
    "cairn_store_answers",
    &[SERVICE],
    "Whether a service of the store answered when it was last tried.",
));

/// How long the answer took.
pub static STORE_ANSWER_TIME: Reading<{ count(&SERVICE) }> = Reading::gauge(about(
    Experimental,
    "cairn_store_answer_seconds",
    &[SERVICE],
    "How long a service of the store took for the answer when it was last tried.",
));

/// All of them, in the order in which they are told.
pub static INVENTORY: &[&dyn Metric] = &[
    &BUILD_INFO,
    &START_TIME,
    &CPU,
    &RESIDENT,
    &MEMORY_LIMIT,
    &THREADS,
    &OPEN_FILES,
    &OPEN_FILES_LIMIT,
    &LIVE,
    &READY,
    &STORE_ANSWERS,
    &STORE_ANSWER_TIME,
];

#[cfg(test)]
mod tests {
    use std::{collections::HashSet, env, fs, path::Path};

    use super::*;
    use crate::metric::Kind;

    #[test]
    fn names_follow_the_rules() {
        let mut names = HashSet::new();
        for metric in INVENTORY {
            let About { name, help, labels, .. } = metric.about();
            assert!(names.insert(*name), "{name} is there twice");
            let allowed = |letter: char| letter.is_ascii_lowercase() || letter == '_';
            assert!(name.starts_with("cairn_") && name.chars().all(allowed), "{name}");
            assert_eq!(name.ends_with("_total"), metric.kind() == Kind::Counter, "{name}");
            assert_eq!(name.ends_with("_duration_seconds"), metric.kind() == Kind::Histogram);
            assert!(help.ends_with('.') && !help.contains(['\n', '\\']), "{name}: {help}");
            let cells: usize = labels.iter().map(count).product();
            assert_eq!(cells, metric.cells(), "{name}");
        }
    }

    #[test]
    fn values_of_labels_need_no_escapes() {
        for metric in INVENTORY {
            for label in metric.about().labels {
                for value in label.values {
                    for name in label.names {
                        assert!(value.contains(&format!("{name}=\"")), "{value}");
                    }
                    assert_eq!(value.matches('"').count(), 2 * label.names.len(), "{value}");
                    assert!(!value.contains(['\\', '\n']), "{value}");
                }
            }
        }
    }

    #[test]
    fn the_list_of_metrics_is_what_there_is() {
        let mut text = String::from(
            "# Metrics\n\n\
             Written by `UPDATE=1 cargo test -p cairn-telemetry the_list_of_metrics`; do not edit.\n\
             [telemetry.md](telemetry.md) says how to get at them. A stable name changes only with a\n\
             new major version; an experimental one with any. A metric with more than 32 values of its\n\
             labels shows those that are not 0; of the others all are there from the start. Histograms\n\
             count times; what is longer than 100 s is in the last bucket.\n\n\
             | name | kind | labels | stability | what it tells |\n|---|---|---|---|---|\n",
        );
        for metric in INVENTORY {
            let About { name, help, stability, labels } = metric.about();
            let kind = format!("{:?}", metric.kind()).to_lowercase();
            let stability = format!("{stability:?}").to_lowercase();
            let labels: Vec<_> = labels.iter().flat_map(|label| label.names).collect();
            let labels: Vec<_> = labels.iter().map(|name| format!("`{name}`")).collect();
            let labels = labels.join(", ");
            text.push_str(&format!("| `{name}` | {kind} | {labels} | {stability} | {help} |\n"));
        }
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/metrics.md");
        if env::var_os("UPDATE").is_some() {
            fs::write(&path, &text).unwrap();
        }
        assert!(
            fs::read_to_string(&path).unwrap_or_default() == text,
            "docs/metrics.md is not what the inventory says: look at the difference that \
             `UPDATE=1 cargo test -p cairn-telemetry the_list_of_metrics` makes",
        );
    }
}
