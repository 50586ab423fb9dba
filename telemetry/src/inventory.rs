//! Every metric of cairn: its name, unit, labels and how far it can be relied on. Nothing is told that
//! is not here, and docs/metrics.md is written from it. Units are seconds and bytes, and part of the
//! name; what only grows ends in `_total`.

mod labels;

use self::labels::{BUILD, count};
pub use self::labels::{
    CACHE_LAYER, CODE, CacheLayer, ERRNO, FUSE_OPERATION, FuseErrno, FuseOperation, METHOD,
    METHODS, OBJECT_OPERATION, OBJECT_OUTCOME, OPERATION, OTHER_METHOD, ObjectOperation,
    ObjectOutcome, Operation, PATHS, REQUESTS, SERVICE, SOURCE, Service, Source,
};
use crate::metric::{
    About, Counter, Histogram, Label, Level, Metric, Reading,
    Stability::{self, Experimental, Stable},
};

const fn about(
    stability: Stability,
    name: &'static str,
    labels: &'static [Label],
    help: &'static str,
) -> About {
    About { name, help, stability, labels }
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

/// What is under way.
pub static OPERATIONS: Reading<{ count(&OPERATION) }> = Reading::gauge(about(
    Stable,
    "cairn_operations_in_flight",
    &[OPERATION],
    "Operations that are under way.",
));

/// What hangs.
pub static OPERATIONS_HANGING: Reading<{ count(&OPERATION) }> = Reading::gauge(about(
    Stable,
    "cairn_operations_hanging",
    &[OPERATION],
    "Operations under way in which nothing has happened for 60 s.",
));

/// Requests that were answered over gRPC.
pub static GRPC_SERVER_REQUESTS: Counter<REQUESTS> = Counter::new(about(
    Stable,
    "cairn_grpc_server_requests_total",
    &[METHOD, CODE],
    "Requests over gRPC that were answered, by what came of them.",
));

/// How long the answers took.
pub static GRPC_SERVER_DURATION: Histogram<METHODS> = Histogram::new(about(
    Stable,
    "cairn_grpc_server_request_duration_seconds",
    &[METHOD],
    "Time to the end of an answer over gRPC.",
));

/// What came in requests.
pub static GRPC_SERVER_RECEIVED: Counter<METHODS> = Counter::new(about(
    Stable,
    "cairn_grpc_server_received_bytes_total",
    &[METHOD],
    "Bytes of messages that came in requests over gRPC, compressed if they were.",
));

/// What went out in answers.
pub static GRPC_SERVER_SENT: Counter<METHODS> = Counter::new(about(
    Stable,
    "cairn_grpc_server_sent_bytes_total",
    &[METHOD],
    "Bytes of messages that went out in answers over gRPC, compressed if they were.",
));

/// Requests that were made over gRPC.
pub static GRPC_CLIENT_REQUESTS: Counter<REQUESTS> = Counter::new(about(
    Stable,
    "cairn_grpc_client_requests_total",
    &[METHOD, CODE],
    "Requests over gRPC that were made, each attempt being one, by what came of them.",
));

/// How long their answers took.
pub static GRPC_CLIENT_DURATION: Histogram<METHODS> = Histogram::new(about(
    Stable,
    "cairn_grpc_client_request_duration_seconds",
    &[METHOD],
    "Time to the end of a peer's answer over gRPC.",
));

/// What went out in requests.
pub static GRPC_CLIENT_SENT: Counter<METHODS> = Counter::new(about(
    Stable,
    "cairn_grpc_client_sent_bytes_total",
    &[METHOD],
    "Bytes of messages that went out in requests over gRPC.",
));

/// What came in their answers.
pub static GRPC_CLIENT_RECEIVED: Counter<METHODS> = Counter::new(about(
    Stable,
    "cairn_grpc_client_received_bytes_total",
    &[METHOD],
    "Bytes of messages that came in answers over gRPC, compressed if they were.",
));

/// Requests that were made again.
pub static GRPC_CLIENT_RETRIES: Counter = Counter::new(about(
    Stable,
    "cairn_grpc_client_retries_total",
    &[],
    "Requests over gRPC that were made again, since the peer could not be reached.",
));

/// How many values there are of operation and outcome together.
const OBJECT_REQUESTS: usize = count(&OBJECT_OPERATION) * count(&OBJECT_OUTCOME);

/// Requests to an object store.
pub static OBJECT_STORE_REQUESTS: Counter<OBJECT_REQUESTS> = Counter::new(about(
    Stable,
    "cairn_object_store_requests_total",
    &[OBJECT_OPERATION, OBJECT_OUTCOME],
    "Requests to an object store, each with all its attempts being one, by what came of them.",
));

/// How long the answers took.
pub static OBJECT_STORE_DURATION: Histogram<{ count(&OBJECT_OPERATION) }> = Histogram::new(about(
    Stable,
    "cairn_object_store_request_duration_seconds",
    &[OBJECT_OPERATION],
    "Time to an object store's answer, for `get` to its beginning, with all attempts.",
));

/// Requests that were sent again.
pub static OBJECT_STORE_RETRIES: Counter = Counter::new(about(
    Stable,
    "cairn_object_store_retries_total",
    &[],
    "Requests that were sent to an object store again.",
));

/// What came.
pub static OBJECT_STORE_READ: Counter = Counter::new(about(
    Stable,
    "cairn_object_store_read_bytes_total",
    &[],
    "Bytes of objects that came from an object store.",
));

/// What went out.
pub static OBJECT_STORE_WRITTEN: Counter = Counter::new(about(
    Stable,
    "cairn_object_store_written_bytes_total",
    &[],
    "Bytes of objects that an object store has taken.",
));

/// Requests of the kernel.
pub static FUSE_DURATION: Histogram<{ count(&FUSE_OPERATION) }> = Histogram::new(about(
    Stable,
    "cairn_fuse_request_duration_seconds",
    &[FUSE_OPERATION],
    "Time from a request of the kernel, or of a virtual machine, to its answer.",
));

/// Those that failed.
pub static FUSE_ERRORS: Counter<{ count(&ERRNO) }> = Counter::new(about(
    Stable,
    "cairn_fuse_errors_total",
    &[ERRNO],
    "Requests of the kernel that failed, by what the program was told; not what it could expect, \
     such as a name that is not there or a write refused.",
));

/// What was read.
pub static FUSE_READ: Counter = Counter::new(about(
    Stable,
    "cairn_fuse_read_bytes_total",
    &[],
    "Bytes of files that the kernel, or a virtual machine, was given when it asked.",
));

/// What was given unasked.
pub static FUSE_STORED: Counter = Counter::new(about(
    Experimental,
    "cairn_fuse_stored_bytes_total",
    &[],
    "Bytes of files that the kernel was given before it asked.",
));

/// The threads that serve.
pub static FUSE_THREADS: Level = Level::new(about(
    Experimental,
    "cairn_fuse_threads",
    &[],
    "Threads that serve a mount or a virtual machine, those included that wait for the store.",
));

/// What is being read ahead.
pub static READ_AHEAD: Level = Level::new(about(
    Experimental,
    "cairn_read_ahead_in_flight",
    &[],
    "Parts of files that are being read ahead of somebody who reads in order.",
));

/// What was found near.
pub static CACHE_HITS: Counter<{ count(&CACHE_LAYER) }> = Counter::new(about(
    Stable,
    "cairn_cache_hits_total",
    &[CACHE_LAYER],
    "What was found where it is kept.",
));

/// What was not.
pub static CACHE_MISSES: Counter<{ count(&CACHE_LAYER) }> = Counter::new(about(
    Stable,
    "cairn_cache_misses_total",
    &[CACHE_LAYER],
    "What was not found there, and had to be fetched from the next layer.",
));

/// What was fetched.
pub static CACHE_FETCHED: Counter<{ count(&CACHE_LAYER) }> = Counter::new(about(
    Stable,
    "cairn_cache_fetched_bytes_total",
    &[CACHE_LAYER],
    "Bytes that were fetched from the next layer.",
));

/// What is kept.
pub static CACHE_BYTES: Reading<{ count(&CACHE_LAYER) }> = Reading::gauge(about(
    Stable,
    "cairn_cache_bytes",
    &[CACHE_LAYER],
    "What is kept takes so much, since something was last kept.",
));

/// What may be kept.
pub static CACHE_BUDGET: Reading<{ count(&CACHE_LAYER) }> = Reading::gauge(about(
    Stable,
    "cairn_cache_budget_bytes",
    &[CACHE_LAYER],
    "What is kept may take so much.",
));

/// What made room.
pub static CACHE_EVICTED: Counter = Counter::new(about(
    Stable,
    "cairn_cache_evicted_bytes_total",
    &[],
    "Bytes on the disk that the node cache has given up for others.",
));

/// What could not be kept.
pub static CACHE_DROPPED: Counter = Counter::new(about(
    Stable,
    "cairn_cache_dropped_records_total",
    &[],
    "Records that came and could not be kept in the node cache: the disk is full, fails or is too \
     slow.",
));

/// What is not what it should be.
pub static VERIFICATION_FAILURES: Counter<{ count(&SOURCE) }> = Counter::new(about(
    Stable,
    "cairn_verification_failures_total",
    &[SOURCE],
    "What was read and is not what its digest or checksum says, by where it came from.",
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
    &OPERATIONS,
    &OPERATIONS_HANGING,
    &GRPC_SERVER_REQUESTS,
    &GRPC_SERVER_DURATION,
    &GRPC_SERVER_RECEIVED,
    &GRPC_SERVER_SENT,
    &GRPC_CLIENT_REQUESTS,
    &GRPC_CLIENT_DURATION,
    &GRPC_CLIENT_SENT,
    &GRPC_CLIENT_RECEIVED,
    &GRPC_CLIENT_RETRIES,
    &OBJECT_STORE_REQUESTS,
    &OBJECT_STORE_DURATION,
    &OBJECT_STORE_RETRIES,
    &OBJECT_STORE_READ,
    &OBJECT_STORE_WRITTEN,
    &FUSE_DURATION,
    &FUSE_ERRORS,
    &FUSE_READ,
    &FUSE_STORED,
    &FUSE_THREADS,
    &READ_AHEAD,
    &CACHE_HITS,
    &CACHE_MISSES,
    &CACHE_FETCHED,
    &CACHE_BYTES,
    &CACHE_BUDGET,
    &CACHE_EVICTED,
    &CACHE_DROPPED,
    &VERIFICATION_FAILURES,
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
             new major version; an experimental one with any. Histograms, and metrics with more than 32\n\
             values of their labels, show those that are not 0; of the others all are there from the start.\n\
             Histograms count times; what is longer than 100 s is in the last bucket.\n\n\
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
