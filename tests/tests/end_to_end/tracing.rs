//! Traces, received by a collector of the tests' own: one read on a mount is one trace, through the
//! daemon and down to the object store.

use std::{
    collections::HashMap,
    env, fs,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use cairn_tests::{
    cairn::Scene,
    object_stores::{Access, S3},
    process::{PATIENCE, run},
    proxy::{Line, Proxy},
    random::Random,
    waterfall::{Bar, draw},
};
use opentelemetry_proto::tonic::{
    collector::trace::v1::{
        ExportTraceServiceRequest, ExportTraceServiceResponse,
        trace_service_server::{TraceService, TraceServiceServer},
    },
    common::v1::any_value::Value,
    resource::v1::Resource,
    trace::v1::Span,
};
use rustix::process::Signal;
use tokio::{net::TcpListener, runtime::Runtime};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status};

/// A read on a mount, as a picture.
const PICTURE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/trace.svg");

/// The spans that have come, each with the name of the process that it is of.
type Received = Arc<std::sync::Mutex<Vec<(String, Span)>>>;

/// A collector on the loopback interface.
struct Collector {
    address: SocketAddr,
    received: Received,
    _runtime: Runtime,
}

struct Receiver(Received);

#[tonic::async_trait]
impl TraceService for Receiver {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        for spans in request.into_inner().resource_spans {
            let service = service(&spans.resource.unwrap_or_default());
            let spans = spans.scope_spans.into_iter().flat_map(|spans| spans.spans);
            self.0.lock().unwrap().extend(spans.map(|span| (service.clone(), span)));
        }
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

impl Collector {
    fn start() -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let received = Received::default();
        let service = TraceServiceServer::new(Receiver(received.clone()));
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
        let address = listener.local_addr().unwrap();
        let server = tonic::transport::Server::builder().add_service(service);
        let incoming = TcpListenerStream::new(listener);
        runtime.spawn(async move { server.serve_with_incoming(incoming).await.unwrap() });
        Self { address, received, _runtime: runtime }
    }

    /// What has a process send here all that it does.
    fn arguments(&self) -> [String; 4] {
        let endpoint = format!("http://{}", self.address);
        ["--otlp-endpoint".to_owned(), endpoint, "--otlp-share".to_owned(), "1".to_owned()]
    }

    fn spans(&self) -> Vec<Span> {
        self.received.lock().unwrap().iter().map(|(_, span)| span.clone()).collect()
    }

    /// A trace in the order of its spans, each with those behind it that are parts of it.
    fn waterfall(&self, trace: &[u8]) -> Vec<Bar> {
        let mut spans = self.received.lock().unwrap().clone();
        spans.retain(|(_, span)| span.trace_id == trace);
        spans.sort_by_key(|(_, span)| span.start_time_unix_nano);
        let mut bars = Vec::new();
        add_parts(&spans, &[], 0, &mut bars);
        bars
    }
}

fn add_parts(spans: &[(String, Span)], of: &[u8], depth: usize, bars: &mut Vec<Bar>) {
    let (_, first) = spans.first().expect("a trace has spans");
    for (service, span) in spans.iter().filter(|(_, span)| span.parent_span_id == of) {
        let start = span.start_time_unix_nano - first.start_time_unix_nano;
        let length = span.end_time_unix_nano.saturating_sub(span.start_time_unix_nano);
        // It tells nothing of itself: what is known of its work is how long it is waited for.
        let is_of_objects = span.name.starts_with("object store");
        bars.push(Bar {
            name: span.name.clone(),
            service: if is_of_objects { "object store" } else { service }.to_owned(),
            depth,
            start: Duration::from_nanos(start),
            length: Duration::from_nanos(length),
        });
        add_parts(spans, &span.span_id, depth + 1, bars);
    }
}

fn service(resource: &Resource) -> String {
    let name = resource.attributes.iter().find(|attribute| attribute.key == "service.name");
    let name = name.and_then(|name| name.value.as_ref()).and_then(|name| name.value.as_ref());
    let Some(Value::StringValue(name)) = name else { panic!("a process without a name") };
    name.clone()
}

/// The names of a span and of those that it is part of, the outermost first.
fn line(span: &Span, by_id: &HashMap<&[u8], &Span>) -> Vec<String> {
    let mut names = vec![span.name.clone()];
    let mut parent = by_id.get(&*span.parent_span_id);
    while let Some(span) = parent {
        names.insert(0, span.name.clone());
        parent = by_id.get(&*span.parent_span_id);
    }
    names
}

/// Whether these come in this order, with others between them or not.
fn are_in_order(line: &[String], wanted: &[&str]) -> bool {
    let mut line = line.iter();
    wanted.iter().all(|wanted| line.any(|name| name.starts_with(wanted)))
}

#[test]
fn one_read_is_one_trace_down_to_the_object_store() {
    let (scene, s3, collector) = (Scene::new(), S3::start(), Collector::start());
    let bucket = s3.access().cairn("store").called("server");
    let tree = scene.new_folder("tree");
    fs::write(tree.join("file"), Random::new("file").bytes(300_000)).unwrap();
    let path = bucket.import(&tree);
    let daemon = bucket.serve_with("127.0.0.1:0", collector.arguments());
    let cairn = daemon.client().with_cache(&scene.path("cache")).called("mounter");
    let mount = cairn.mount_with(&scene.new_folder("mnt"), collector.arguments());
    assert_eq!(fs::read(mount.at(&path).join("file")).unwrap().len(), 300_000);
    mount.stop(Signal::TERM).succeeded();
    daemon.stop(Signal::TERM).succeeded();

    let spans = collector.spans();
    let by_id: HashMap<_, _> = spans.iter().map(|span| (&*span.span_id, span)).collect();
    let found = |wanted: &[&str]| {
        let span = spans.iter().find(|span| are_in_order(&line(span, &by_id), wanted));
        span.unwrap_or_else(|| {
            let lines: Vec<_> = spans.iter().map(|span| line(span, &by_id)).collect();
            panic!("{wanted:?} is in none of {lines:#?}")
        })
    };
    // Mounter, its cache, its client; the server, its store, and the request to the bucket.
    let wanted = [
        "fuse read",
        "cache blob",
        "peer blob",
        "grpc cairn.v1.BlobService/",
        "grpc cairn.v1.BlobService/",
        "bucket blob",
        "object store get",
    ];
    let span = found(&wanted);
    // All of it is one trace, whose parts have the times of their wholes around them.
    let mut inner = span;
    while let Some(outer) = by_id.get(&*inner.parent_span_id) {
        assert_eq!(outer.trace_id, span.trace_id);
        assert!(outer.start_time_unix_nano <= inner.start_time_unix_nano, "{outer:?} {inner:?}");
        inner = outer;
    }
    assert!(inner.name.starts_with("fuse read") && inner.parent_span_id.is_empty());
    found(&["fuse lookup", "cache path info get", "grpc snix.store.v1.PathInfoService/Get"]);

    let bars = collector.waterfall(&span.trace_id);
    assert!(wanted.iter().all(|name| bars.iter().any(|bar| bar.name.starts_with(name))));
    for service in ["mounter", "server", "object store"] {
        assert!(bars.iter().any(|bar| bar.service == service), "{service}: {bars:?}");
    }
    if env::var_os("UPDATE").is_some() {
        fs::write(PICTURE, draw(&bars)).unwrap();
    }
}

#[test]
fn a_request_to_the_object_store_lasts_until_all_of_it_has_come() {
    const BYTES: u64 = 300_000;
    const BANDWIDTH: u64 = 1_000_000;
    let (scene, s3, collector) = (Scene::new(), S3::start(), Collector::start());
    let file = scene.path("file");
    fs::write(&file, Random::new("file").bytes(BYTES as usize)).unwrap();
    let path = s3.access().cairn("store").import(&file);
    let line = Proxy::before(&s3.endpoint());
    line.set(Line { bandwidth: Some(BANDWIDTH), ..Line::default() });
    let bucket = Access::to(&line.url().replace("grpc+", "")).cairn("store");
    let daemon = bucket.serve_with("127.0.0.1:0", collector.arguments());
    daemon.client().export(&path, &scene.path("out")).succeeded();
    daemon.stop(Signal::TERM).succeeded();
    let spans = collector.spans();
    let gets = spans.iter().filter(|span| span.name == "object store get");
    let taken: u64 = gets.map(|span| span.end_time_unix_nano - span.start_time_unix_nano).sum();
    // Less what the line makes up for and what is on its way last.
    let least = Duration::from_secs_f64(BYTES as f64 / BANDWIDTH as f64) / 2;
    assert!(Duration::from_nanos(taken) > least, "{taken} ns");
}

#[test]
fn a_collector_that_is_not_there_is_nobodys_trouble() {
    let scene = Scene::new();
    let tree = scene.new_folder("tree");
    fs::write(tree.join("file"), "there").unwrap();
    let path = scene.cairn().import(&tree);
    let gone = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let endpoint = format!("http://{gone}");
    let arguments = ["--otlp-endpoint", &endpoint, "--otlp-share", "1"];
    let mount = scene.cairn().mount_with(&scene.new_folder("mnt"), arguments);
    assert_eq!(fs::read(mount.at(&path).join("file")).unwrap(), b"there");
    let start = Instant::now();
    mount.stop(Signal::TERM).succeeded();
    assert!(start.elapsed() < PATIENCE);
}

#[test]
fn where_traces_go_is_a_url_and_how_many_a_share() {
    let scene = Scene::new();
    for (arguments, name) in [
        (["--otlp-endpoint", "nowhere"], "http://localhost:4317"),
        (["--otlp-share", "2"], "from 0 to 1"),
        (["--otlp-share", "NaN"], "from 0 to 1"),
    ] {
        let words = ["daemon"].into_iter().chain(arguments);
        run(&mut scene.cairn().command(words)).failed(2, &[name]);
    }
}
