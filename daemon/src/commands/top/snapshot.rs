//! What is shown of a process for an interval: numbers with their units, for the screen, for tables and
//! for programs alike. How they are drawn is not known here.

use cairn_telemetry::{
    inventory::{
        CACHE_BUDGET, CACHE_BYTES, CACHE_DROPPED, CACHE_FETCHED, CACHE_HITS, CACHE_MISSES, CPU,
        CacheLayer, FUSE_DURATION, FUSE_ERRORS, FUSE_READ, FUSE_STORED, FUSE_THREADS,
        GRPC_CLIENT_DURATION, GRPC_CLIENT_RECEIVED, GRPC_CLIENT_REQUESTS, GRPC_CLIENT_RETRIES,
        GRPC_CLIENT_SENT, GRPC_SERVER_DURATION, GRPC_SERVER_RECEIVED, GRPC_SERVER_REQUESTS,
        GRPC_SERVER_SENT, MEMORY_LIMIT, OBJECT_STORE_DURATION, OBJECT_STORE_READ,
        OBJECT_STORE_REQUESTS, OBJECT_STORE_RETRIES, OBJECT_STORE_WRITTEN, OPEN_FILES,
        OPEN_FILES_LIMIT, OPERATIONS, OPERATIONS_HANGING, Operation, READ_AHEAD, RESIDENT, THREADS,
        VERIFICATION_FAILURES,
    },
    metric::Metric,
};
use serde::Serialize;

use super::{
    interval::{Count, Interval, Times},
    samples::Labels,
    source::Told,
};
use crate::http::report::{HealthReport, Pending, Slow};

/// What came of a request that is nothing to worry about.
const WELL: [&str; 5] = ["OK", "CANCELLED", "NOT_FOUND", "ALREADY_EXISTS", "UNIMPLEMENTED"];

/// All that is known of a process for an interval.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Snapshot {
    /// How long the interval was that rates are of.
    pub(super) interval_seconds: f64,
    pub(super) process: Process,
    pub(super) health: HealthReport,
    pub(super) requests: Vec<Requests>,
    pub(super) flows: Vec<Flow>,
    pub(super) caches: Vec<Cache>,
    pub(super) queues: Vec<Queue>,
    pub(super) fuse_threads: Option<f64>,
    pub(super) read_ahead: Option<f64>,
    /// What has gone wrong since the process began.
    pub(super) troubles: Vec<Trouble>,
    pub(super) under_way: Vec<Pending>,
    pub(super) slowest: Vec<Slow>,
}

/// Who it is, and what it takes.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Process {
    pub(super) role: String,
    pub(super) version: String,
    pub(super) pid: u32,
    pub(super) uptime_seconds: Option<f64>,
    /// How many processors it keeps busy.
    pub(super) processors: f64,
    pub(super) memory_bytes: Option<f64>,
    pub(super) memory_limit_bytes: Option<f64>,
    pub(super) threads: Option<f64>,
    pub(super) open_files: Option<f64>,
    pub(super) open_files_limit: Option<f64>,
}

/// Requests of a kind that ask for the same.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Requests {
    pub(super) kind: &'static str,
    pub(super) name: String,
    pub(super) per_second: f64,
    /// Of those that were answered in the interval; `None` if none was.
    pub(super) p50_seconds: Option<f64>,
    pub(super) p99_seconds: Option<f64>,
    pub(super) total: f64,
}

/// Bytes on their way.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Flow {
    pub(super) name: &'static str,
    pub(super) bytes_per_second: f64,
    pub(super) bytes: f64,
}

/// A place where something is kept.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Cache {
    pub(super) layer: &'static str,
    pub(super) hits_per_second: f64,
    pub(super) misses_per_second: f64,
    /// Of what was asked for in the interval; `None` if nothing was.
    pub(super) hit_ratio: Option<f64>,
    pub(super) fetched_bytes_per_second: f64,
    pub(super) bytes: Option<f64>,
    pub(super) budget_bytes: Option<f64>,
}

/// How much of a kind is under way.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Queue {
    pub(super) kind: &'static str,
    pub(super) under_way: f64,
    pub(super) hanging: f64,
}

/// Something that goes wrong.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Trouble {
    pub(super) name: String,
    pub(super) total: f64,
    pub(super) per_second: f64,
}

/// A number without what is noise behind so many digits.
fn rounded(number: f64, digits: i32) -> f64 {
    let parts = 10_f64.powi(digits);
    (number * parts).round() / parts
}

/// How often something happens in a second.
fn rate(per_second: f64) -> f64 {
    rounded(per_second, 3)
}

/// A time in seconds, to the microsecond.
fn time(seconds: Option<f64>) -> Option<f64> {
    seconds.map(|seconds| rounded(seconds, 6))
}

impl Snapshot {
    /// What came between two tellings of one process, so many seconds apart.
    pub(super) fn between(before: &Told, after: &Told, seconds: f64) -> Self {
        let interval = Interval::new(&before.samples, &after.samples, seconds);
        let report = &after.report;
        let value = |metric: &dyn Metric| after.samples.value(metric);
        Self {
            interval_seconds: rounded(interval.seconds(), 6),
            process: Process {
                role: report.role.clone(),
                version: report.version.clone(),
                pid: report.pid,
                uptime_seconds: time(report.uptime_seconds),
                processors: rate(interval.sum(&CPU).per_second),
                memory_bytes: value(&RESIDENT),
                memory_limit_bytes: value(&MEMORY_LIMIT),
                threads: value(&THREADS),
                open_files: value(&OPEN_FILES),
                open_files_limit: value(&OPEN_FILES_LIMIT),
            },
            health: report.health.clone(),
            requests: requests(&interval),
            flows: flows(&interval),
            caches: CacheLayer::ALL.iter().map(|layer| cache(&interval, *layer)).collect(),
            queues: Operation::ALL.iter().map(|kind| queue(&interval, *kind)).collect(),
            fuse_threads: value(&FUSE_THREADS),
            read_ahead: value(&READ_AHEAD),
            troubles: troubles(&interval),
            under_way: report.under_way.clone(),
            slowest: report.slowest.clone(),
        }
    }
}

fn requests(interval: &Interval<'_>) -> Vec<Requests> {
    let kinds: [(Operation, &dyn Metric); 4] = [
        (Operation::Fuse, &FUSE_DURATION),
        (Operation::GrpcServer, &GRPC_SERVER_DURATION),
        (Operation::GrpcClient, &GRPC_CLIENT_DURATION),
        (Operation::ObjectStore, &OBJECT_STORE_DURATION),
    ];
    let of_kind = |(kind, metric): (Operation, &dyn Metric)| {
        let all = interval.times(metric).into_iter();
        let of_name = move |times: Times| Requests {
            kind: kind.name(),
            name: times.labels.join("/"),
            per_second: rate(times.per_second),
            p50_seconds: time(times.quantile(0.5)),
            p99_seconds: time(times.quantile(0.99)),
            total: times.total,
        };
        all.map(of_name)
    };
    kinds.into_iter().flat_map(of_kind).collect()
}

fn flows(interval: &Interval<'_>) -> Vec<Flow> {
    let all: [(&str, &dyn Metric); 8] = [
        ("files read", &FUSE_READ),
        ("files given ahead", &FUSE_STORED),
        ("from gRPC clients", &GRPC_SERVER_RECEIVED),
        ("to gRPC clients", &GRPC_SERVER_SENT),
        ("from gRPC peers", &GRPC_CLIENT_RECEIVED),
        ("to gRPC peers", &GRPC_CLIENT_SENT),
        ("from the object store", &OBJECT_STORE_READ),
        ("to the object store", &OBJECT_STORE_WRITTEN),
    ];
    let flow = |(name, metric)| {
        let Count { total, per_second, .. } = interval.sum(metric);
        Flow { name, bytes_per_second: rate(per_second), bytes: total }
    };
    all.into_iter().map(flow).collect()
}

fn cache(interval: &Interval<'_>, layer: CacheLayer) -> Cache {
    let more = |metric: &dyn Metric| -> f64 {
        let counts = interval.counts(metric).into_iter();
        counts.filter(|count| count.labels == [layer.name()]).map(|count| count.per_second).sum()
    };
    let (hits, misses) = (more(&CACHE_HITS), more(&CACHE_MISSES));
    let asked = hits + misses;
    Cache {
        layer: layer.name(),
        hits_per_second: rate(hits),
        misses_per_second: rate(misses),
        hit_ratio: (asked > 0.0).then(|| rounded(hits / asked, 4)),
        fetched_bytes_per_second: rate(more(&CACHE_FETCHED)),
        bytes: labelled(interval, &CACHE_BYTES, layer.name()),
        budget_bytes: labelled(interval, &CACHE_BUDGET, layer.name()),
    }
}

fn queue(interval: &Interval<'_>, kind: Operation) -> Queue {
    let now = |metric: &dyn Metric| labelled(interval, metric, kind.name()).unwrap_or(0.0);
    Queue { kind: kind.name(), under_way: now(&OPERATIONS), hanging: now(&OPERATIONS_HANGING) }
}

/// The sample whose only label has this value.
fn labelled(interval: &Interval<'_>, metric: &dyn Metric, value: &str) -> Option<f64> {
    let is_it = |labels: &Labels| matches!(&labels[..], [(_, label)] if label == value);
    interval.after().of(metric.about().name).find(|(labels, _)| is_it(labels)).map(|found| found.1)
}

/// What is wrong, or was: nothing that is 0.
fn troubles(interval: &Interval<'_>) -> Vec<Trouble> {
    let mut troubles = Vec::<Trouble>::new();
    let mut add = |name: String, count: Count| {
        let Count { total, per_second, .. } = count;
        match troubles.iter_mut().find(|trouble| trouble.name == name) {
            Some(trouble) => {
                trouble.total += total;
                trouble.per_second += per_second;
            }
            None if total > 0.0 => troubles.push(Trouble { name, total, per_second }),
            None => {}
        }
    };
    for count in interval.counts(&VERIFICATION_FAILURES) {
        add(format!("damaged, from {}", count.labels.concat()), count);
    }
    for count in interval.counts(&FUSE_ERRORS) {
        add(format!("programs told {}", count.labels.concat()), count);
    }
    for (metric, side) in [
        (&GRPC_SERVER_REQUESTS as &dyn Metric, "gRPC answered"),
        (&GRPC_CLIENT_REQUESTS, "gRPC peer said"),
    ] {
        for count in interval.counts(metric) {
            let code = count.labels.last().cloned().unwrap_or_default();
            if !WELL.contains(&code.as_str()) {
                add(format!("{side} {code}"), count);
            }
        }
    }
    for count in interval.counts(&OBJECT_STORE_REQUESTS) {
        let outcome = count.labels.last().map_or("", String::as_str);
        if matches!(outcome, "failed" | "denied") {
            add(format!("object store {outcome}"), count);
        }
    }
    add("gRPC retries".to_owned(), interval.sum(&GRPC_CLIENT_RETRIES));
    add("object store retries".to_owned(), interval.sum(&OBJECT_STORE_RETRIES));
    add("records not kept".to_owned(), interval.sum(&CACHE_DROPPED));
    for trouble in &mut troubles {
        trouble.per_second = rate(trouble.per_second);
    }
    troubles
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::{commands::top::samples::Samples, http::report::Report};

    /// What a mount tells, busy and in trouble.
    pub(in crate::commands::top) fn busy() -> Snapshot {
        let told = |text: &str| Told {
            report: Report {
                role: "mount".to_owned(),
                version: "0.1.0".to_owned(),
                pid: 4711,
                uptime_seconds: Some(7384.0),
                health: HealthReport {
                    store: vec!["blobs: no answer within 15 s".to_owned()],
                    ..HealthReport::default()
                },
                under_way: vec![Pending {
                    kind: "fuse".to_owned(),
                    name: "read".to_owned(),
                    seconds: 75.2,
                    silent_seconds: 75.2,
                    hangs: true,
                }],
                slowest: vec![Slow {
                    kind: "grpc_client".to_owned(),
                    name: "cairn.v1.BlobService/ReadRange".to_owned(),
                    seconds: 1.25,
                    ended_seconds_ago: 13.0,
                }],
            },
            samples: Samples::parse(text).unwrap(),
        };
        let before = told("cairn_grpc_client_retries_total 0");
        let after = told(
            "cairn_process_resident_memory_bytes 73400320\n\
             cairn_process_memory_limit_bytes 1073741824\n\
             cairn_process_cpu_seconds_total 0.5\n\
             cairn_fuse_request_duration_seconds_bucket{operation=\"read\",le=\"0.0001\"} 4000\n\
             cairn_fuse_request_duration_seconds_bucket{operation=\"read\",le=\"+Inf\"} 4000\n\
             cairn_fuse_request_duration_seconds_bucket{operation=\"open\",le=\"0.01\"} 10\n\
             cairn_fuse_request_duration_seconds_bucket{operation=\"open\",le=\"+Inf\"} 10\n\
             cairn_fuse_read_bytes_total 2097152\n\
             cairn_cache_hits_total{layer=\"node\"} 30\n\
             cairn_cache_misses_total{layer=\"node\"} 10\n\
             cairn_cache_bytes{layer=\"node\"} 1048576\n\
             cairn_cache_budget_bytes{layer=\"node\"} 67108864\n\
             cairn_operations_in_flight{kind=\"fuse\"} 1\n\
             cairn_operations_hanging{kind=\"fuse\"} 1\n\
             cairn_verification_failures_total{layer=\"peer\"} 2\n\
             cairn_grpc_client_requests_total{service=\"s\",method=\"m\",code=\"OK\"} 9\n\
             cairn_grpc_client_requests_total{service=\"s\",method=\"m\",code=\"UNAVAILABLE\"} 3\n\
             cairn_grpc_client_requests_total{service=\"s\",method=\"n\",code=\"UNAVAILABLE\"} 1\n\
             cairn_grpc_client_retries_total 4",
        );
        Snapshot::between(&before, &after, 2.0)
    }

    #[test]
    fn a_snapshot_has_rates_and_what_is_there_now() {
        let snapshot = busy();
        assert_eq!(snapshot.process.processors, 0.25);
        let [open, read] = &snapshot.requests[..] else { panic!("{:?}", snapshot.requests) };
        assert_eq!((open.name.as_str(), open.per_second), ("open", 5.0));
        assert_eq!((read.kind, read.per_second, read.total), ("fuse", 2000.0, 4000.0));
        assert_eq!(snapshot.flows[0].bytes_per_second, 1_048_576.0);
        let node = snapshot.caches.iter().find(|cache| cache.layer == "node").unwrap();
        assert_eq!((node.hit_ratio, node.hits_per_second), (Some(0.75), 15.0));
        assert_eq!(node.budget_bytes, Some(67_108_864.0));
        let memory = snapshot.caches.iter().find(|cache| cache.layer == "memory").unwrap();
        assert_eq!((memory.hit_ratio, memory.bytes), (None, None));
        assert_eq!((snapshot.queues[0].kind, snapshot.queues[0].hanging), ("fuse", 1.0));
        let troubles: Vec<_> =
            snapshot.troubles.iter().map(|one| (one.name.as_str(), one.total)).collect();
        let expected = [
            ("damaged, from peer", 2.0),
            ("gRPC peer said UNAVAILABLE", 4.0),
            ("gRPC retries", 4.0),
        ];
        assert_eq!(troubles, expected);
    }

    #[test]
    fn programs_are_told_what_units_there_are() {
        let json = serde_json::to_value(busy()).unwrap();
        assert_eq!(json["process"]["memoryBytes"], 73_400_320.0);
        assert_eq!(json["requests"][1]["perSecond"], 2000.0);
        assert_eq!(json["underWay"][0]["hangs"], true);
        assert_eq!(json["slowest"][0]["endedSecondsAgo"], 13.0);
        assert_eq!(json["intervalSeconds"], 2.0);
    }
}
