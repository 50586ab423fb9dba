//! What the process tells of itself by HTTP, to whom, and its log lines as JSON.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

use cairn_proto::snix::castore::v1::{BlobChunk, blob_service_client::BlobServiceClient};
use futures::{StreamExt as _, stream};
use rustix::process::Signal;
use tonic::transport::Endpoint;

use crate::process::{Running, cairn, cairn_on, run};

/// The head and the body of an answer.
fn exchange(address: SocketAddr, request: &str) -> (String, String) {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    (head.to_owned(), body.to_owned())
}

/// The status and the body of the answer to a GET.
fn get(address: SocketAddr, path: &str) -> (u16, String) {
    let request = format!("GET {path} HTTP/1.1\r\nHost: here\r\nConnection: close\r\n\r\n");
    let (head, body) = exchange(address, &request);
    (head.split(' ').nth(1).unwrap().parse().unwrap(), body)
}

fn serving(store: &std::path::Path) -> (Running, SocketAddr) {
    let mut command = cairn_on(store);
    command.args(["daemon", "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0"]);
    let mut daemon = Running::start(&mut command);
    let address = daemon.line("telling of itself on http://").parse().unwrap();
    daemon.line("listening on ");
    (daemon, address)
}

/// Asks until the answer is this one.
#[track_caller]
fn eventually(address: SocketAddr, path: &str, wanted: &(u16, String)) {
    let mut last = None;
    for _ in 0..1000 {
        let answer = get(address, path);
        if answer == *wanted {
            return;
        }
        last = Some(answer);
        std::thread::sleep(Duration::from_millis(20));
    }
    panic!("{path} never answers {wanted:?}, but {last:?}");
}

#[test]
fn a_daemon_tells_its_health_and_its_metrics() {
    let folder = tempfile::tempdir().unwrap();
    let (daemon, address) = serving(&folder.path().join("store"));
    let well = (200, "ok\n".to_owned());
    for path in ["/livez", "/readyz", "/healthz", "/healthz?deep", "/healthz?deep=1"] {
        eventually(address, path, &well);
    }
    let (status, metrics) = get(address, "/metrics");
    assert_eq!(status, 200);
    for line in [
        format!("cairn_build_info{{version=\"{}\"}} 1\n", env!("CARGO_PKG_VERSION")),
        "cairn_live 1\n".to_owned(),
        "cairn_ready 1\n".to_owned(),
        "cairn_store_answers{service=\"blob\"} 1\n".to_owned(),
        "# TYPE cairn_process_cpu_seconds_total counter\n".to_owned(),
        "# TYPE cairn_process_resident_memory_bytes gauge\n".to_owned(),
        "# TYPE cairn_process_open_files gauge\n".to_owned(),
    ] {
        assert!(metrics.contains(&line), "{line:?} is not in {metrics}");
    }
    daemon.end();
}

#[test]
fn what_is_not_asked_as_it_should_be_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let (daemon, address) = serving(&folder.path().join("store"));
    assert_eq!(get(address, "/").0, 404);
    assert_eq!(get(address, "/metrics/").0, 404);
    let (head, _) = exchange(
        address,
        "POST /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
    );
    assert!(head.starts_with("HTTP/1.1 405 ") && head.contains("allow: GET, HEAD"), "{head}");
    let (head, body) =
        exchange(address, "HEAD /livez HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    assert!(head.starts_with("HTTP/1.1 200 ") && body.is_empty(), "{head}");
    // More headers, and longer ones, than anybody has reason to send.
    let many: String = (0..100).map(|number| format!("X-{number}: y\r\n")).collect();
    let (head, _) = exchange(address, &format!("GET /livez HTTP/1.1\r\n{many}\r\n"));
    assert!(head.starts_with("HTTP/1.1 431 "), "{head}");
    let long = format!("GET /livez HTTP/1.1\r\nX: {}\r\n\r\n", "y".repeat(12 * 1024));
    assert!(
        exchange(address, &long.replace("\r\n\r\n", "\r\nConnection: close\r\n\r\n"))
            .0
            .contains("200")
    );
    let nonsense = exchange(address, "\x16\x03\x01 what?\r\n\r\n").0;
    assert!(nonsense.is_empty() || nonsense.starts_with("HTTP/1.1 400 "), "{nonsense}");
    assert_eq!(get(address, "/livez"), (200, "ok\n".to_owned()));
    daemon.end();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_that_drains_is_live_and_not_ready() {
    let folder = tempfile::tempdir().unwrap();
    let mut command = cairn_on(&folder.path().join("store"));
    command.args(["daemon", "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0"]);
    let mut daemon = Running::start(&mut command);
    let address = daemon.line("telling of itself on http://").parse().unwrap();
    let url = daemon.line("listening on grpc+");
    eventually(address, "/readyz", &(200, "ok\n".to_owned()));
    // A request that is under way keeps it from ending.
    let (finish, finished) = tokio::sync::oneshot::channel::<()>();
    let (sent, is_sent) = tokio::sync::oneshot::channel::<()>();
    let chunks = chunks_until(sent, finished);
    let channel = Endpoint::new(url).unwrap().connect().await.unwrap();
    let mut client = BlobServiceClient::new(channel);
    let put = tokio::spawn(async move { client.put(chunks).await });
    is_sent.await.unwrap();
    let under_way = "cairn_operations_in_flight{kind=\"grpc_server\"} 1\n";
    for _ in 0..1000 {
        if get(address, "/metrics").1.contains(under_way) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    daemon.signal(Signal::TERM);
    eventually(address, "/readyz", &(503, "ending: no more work is taken\n".to_owned()));
    assert_eq!(get(address, "/livez"), (200, "ok\n".to_owned()));
    assert_eq!(get(address, "/healthz").0, 503);
    finish.send(()).unwrap();
    put.await.unwrap().unwrap();
    let (status, stderr) = daemon.wait();
    assert_eq!(status.code(), Some(0), "{stderr}");
}

/// A blob's chunks, of which the last comes when it is told to.
fn chunks_until(
    sent: tokio::sync::oneshot::Sender<()>,
    finished: tokio::sync::oneshot::Receiver<()>,
) -> impl futures::Stream<Item = BlobChunk> + Send + 'static {
    let chunk = |data: &'static [u8]| BlobChunk { data: data.into() };
    let first = stream::once(async move { chunk(b"first") });
    let last = stream::once(async move {
        // Asked for only when the first has gone out.
        sent.send(()).unwrap();
        finished.await.unwrap();
        chunk(b"last")
    });
    first.chain(last)
}

#[test]
fn an_address_for_http_has_a_port_and_is_free() {
    let wrong = run(cairn().args(["daemon", "--http", "unix:/socket"]));
    assert_eq!(wrong.code, Some(2));
    assert!(wrong.stderr.contains("expected HOST:PORT"), "{}", wrong.stderr);
    let folder = tempfile::tempdir().unwrap();
    let (daemon, address) = serving(&folder.path().join("store"));
    let mut command = cairn_on(&folder.path().join("other"));
    command.args(["daemon", "--listen", "127.0.0.1:0", "--http", &address.to_string()]);
    let taken = run(&mut command);
    assert_eq!(taken.code, Some(1));
    assert!(taken.stderr.contains("in use") && taken.stderr.contains("--http"), "{}", taken.stderr);
    daemon.end();
}

#[test]
fn log_lines_are_objects_if_that_is_wanted() {
    let folder = tempfile::tempdir().unwrap();
    let mut command = cairn_on(&folder.path().join("store"));
    let listed = run(command.args(["-v", "--log-format", "json", "list"]));
    assert_eq!(listed.code, Some(0), "{}", listed.stderr);
    let line = listed.stderr.lines().find(|line| line.contains("opened the store")).unwrap();
    let line: serde_json::Value = serde_json::from_str(line).unwrap();
    assert_eq!(line["level"], "INFO");
    assert_eq!(line["target"], "cairn::services");
    assert!(line["fields"]["blobs"].as_str().unwrap().starts_with("sled:"));
    assert!(line["timestamp"].is_string());
}
