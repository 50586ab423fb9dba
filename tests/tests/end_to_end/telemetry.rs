//! What processes tell of themselves while they do real work: metrics and health.

use std::{fs, path::Path};

use cairn_telemetry::{inventory::INVENTORY, metric::Kind};
use cairn_tests::{
    cairn::{Cairn, Daemon, Mount, Scene},
    object_stores::S3,
    process::eventually,
    telling::{Samples, Telling},
    trees::{self, damage},
};
use rustix::process::Signal;

/// What has a process tell of itself on a free port.
const TELL: [&str; 2] = ["--http", "127.0.0.1:0"];

fn serve(cairn: &Cairn) -> (Daemon, Telling) {
    let daemon = cairn.serve_with("127.0.0.1:0", TELL);
    let telling = Telling::of(&daemon.said);
    (daemon, telling)
}

fn mount(cairn: &Cairn, scene: &Scene, name: &str) -> (Mount, Telling) {
    let mount = cairn.mount_with(&scene.new_folder(name), TELL);
    let telling = Telling::of(&mount.imported);
    (mount, telling)
}

/// Reads every file below a folder; their bytes.
fn read_all(folder: &Path) -> u64 {
    let mut bytes = 0;
    for entry in fs::read_dir(folder).unwrap() {
        let entry = entry.unwrap();
        let kind = entry.file_type().unwrap();
        if kind.is_dir() {
            bytes += read_all(&entry.path());
        } else if kind.is_file() {
            bytes += fs::read(entry.path()).unwrap().len() as u64;
        }
    }
    bytes
}

/// What is told must be in the inventory.
#[track_caller]
fn are_known(samples: &Samples) {
    for name in samples.names() {
        let is_known = INVENTORY.iter().any(|metric| {
            let rest = name.strip_prefix(metric.about().name);
            match metric.kind() {
                Kind::Histogram => matches!(rest, Some("_bucket" | "_sum" | "_count")),
                Kind::Counter | Kind::Gauge => rest == Some(""),
            }
        });
        assert!(is_known, "{name} is not in the inventory");
    }
}

#[track_caller]
fn has_moved(samples: &Samples, name: &str, labels: &[&str]) {
    assert!(samples.sum(name, labels) > 0.0, "{name} {labels:?} is 0 in {samples:?}");
}

#[test]
fn the_work_of_a_mount_and_of_a_daemon_is_in_their_metrics() {
    let (scene, s3) = (Scene::new(), S3::start());
    let bucket = s3.access().cairn("store");
    let path = bucket.import(&trees::small(scene.folder(), "tree"));
    let (daemon, served) = serve(&bucket);
    let cache = scene.path("cache");
    let cairn = daemon.client().with_cache(&cache);
    let (first, mounted) = mount(&cairn, &scene, "first");
    let bytes = read_all(&first.at(&path));

    let samples = mounted.metrics();
    are_known(&samples);
    for operation in ["lookup", "read"] {
        let label = format!("operation=\"{operation}\"");
        has_moved(&samples, "cairn_fuse_request_duration_seconds_count", &[&label]);
    }
    let given = samples.sum("cairn_fuse_read_bytes_total", &[])
        + samples.sum("cairn_fuse_stored_bytes_total", &[]);
    assert!(bytes > 0 && given > 0.0, "{given} of {bytes}");
    has_moved(&samples, "cairn_fuse_threads", &[]);
    has_moved(&samples, "cairn_grpc_client_requests_total", &["code=\"OK\""]);
    has_moved(&samples, "cairn_grpc_client_received_bytes_total", &[]);
    has_moved(&samples, "cairn_cache_misses_total", &["layer=\"node\""]);
    has_moved(&samples, "cairn_cache_fetched_bytes_total", &["layer=\"node\""]);
    has_moved(&samples, "cairn_cache_bytes", &["layer=\"node\""]);
    has_moved(&samples, "cairn_cache_budget_bytes", &["layer=\"node\""]);
    has_moved(&samples, "cairn_process_resident_memory_bytes", &[]);
    let limit = samples.sum("cairn_process_memory_limit_bytes", &[]);
    assert!(limit > samples.sum("cairn_process_resident_memory_bytes", &[]));
    assert_eq!(samples.sum("cairn_fuse_errors_total", &[]), 0.0);
    assert_eq!(samples.sum("cairn_verification_failures_total", &[]), 0.0);
    assert_eq!(samples.sum("cairn_operations_hanging", &[]), 0.0);

    let samples = served.metrics();
    are_known(&samples);
    has_moved(&samples, "cairn_grpc_server_requests_total", &["code=\"OK\""]);
    has_moved(&samples, "cairn_grpc_server_request_duration_seconds_count", &[]);
    has_moved(&samples, "cairn_grpc_server_sent_bytes_total", &[]);
    has_moved(&samples, "cairn_grpc_server_received_bytes_total", &[]);
    let got = ["operation=\"get\"", "outcome=\"ok\""];
    has_moved(&samples, "cairn_object_store_requests_total", &got);
    has_moved(&samples, "cairn_object_store_request_duration_seconds_count", &got[..1]);
    has_moved(&samples, "cairn_object_store_read_bytes_total", &[]);
    assert_eq!(samples.sum("cairn_fuse_threads", &[]), 0.0);

    // What was read once is near, though not in this process's memory.
    first.stop(Signal::TERM).succeeded();
    let (second, mounted) = mount(&cairn, &scene, "second");
    read_all(&second.at(&path));
    let samples = mounted.metrics();
    has_moved(&samples, "cairn_cache_hits_total", &["layer=\"node\""]);
    second.stop(Signal::TERM).succeeded();
    daemon.stop(Signal::TERM).succeeded();
}

#[test]
fn what_is_wrong_in_a_bucket_is_counted_on_both_sides() {
    let (scene, s3) = (Scene::new(), S3::start());
    let bucket = s3.access().cairn("store");
    let tree = scene.new_folder("tree");
    fs::write(tree.join("file"), "what will be damaged").unwrap();
    let path = bucket.import(&tree);
    let (daemon, served) = serve(&bucket);
    let (mounted, telling) = mount(&daemon.client(), &scene, "mnt");
    damage(&s3.file("store/chunks"));
    assert!(fs::read(mounted.at(&path).join("file")).is_err());
    let samples = served.metrics();
    has_moved(&samples, "cairn_verification_failures_total", &["layer=\"object_store\""]);
    has_moved(&telling.metrics(), "cairn_fuse_errors_total", &["errno=\"EIO\""]);
    mounted.stop(Signal::TERM).succeeded();
}

#[test]
fn a_mount_without_its_store_is_live_and_ready_and_says_what_it_lacks() {
    let scene = Scene::new();
    let daemon = scene.serve_tcp();
    let (mounted, telling) = mount(&daemon.client(), &scene, "mnt");
    let well = (200, "ok\n".to_owned());
    eventually("the store is tried", || telling.get("/healthz?deep") == well);
    daemon.kill();
    eventually("the store is missed", || telling.get("/healthz?deep").1.contains("blobs: "));
    let (status, said) = telling.get("/healthz?deep");
    assert!(status == 503 && said.contains("can't be reached: "), "{status}: {said}");
    assert!(!said.contains("Status") && !said.contains("source:"), "{said}");
    for path in ["/livez", "/readyz", "/healthz"] {
        assert_eq!(telling.get(path), well, "{path}");
    }
    has_moved(&telling.metrics(), "cairn_grpc_client_retries_total", &[]);
    assert_eq!(telling.metrics().sum("cairn_store_answers", &["service=\"blob\""]), 0.0);
    mounted.stop(Signal::TERM).succeeded();
}
