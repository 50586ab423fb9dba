//! What the process tells of itself by HTTP: metrics, health and operations. It has a thread and a
//! runtime of its own, so that it answers also when all others are stuck. What is told is in `health`, in
//! `report` and in the inventory of metrics.

pub(crate) mod report;

use std::{
    convert::Infallible,
    io,
    net::{SocketAddr, TcpListener as BoundListener},
    sync::Arc,
    thread,
    time::Duration,
};

use cairn_store::Services;
use cairn_telemetry::exposition;
use http_body_util::Full;
use hyper::{
    Method, Request, Response, StatusCode,
    body::{Bytes, Incoming},
    header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, HeaderValue},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use parking_lot::Mutex;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    time::timeout,
};
use tokio_util::{
    sync::{CancellationToken, DropGuard},
    task::AbortOnDropHandle,
};

use self::report::Report;
use crate::{
    exit::Failure,
    health::{self, Health},
    output::Output,
    process,
    server::listener::{ListenAddress, Listener},
};

/// The most connections at a time; others wait to be accepted.
const CONNECTIONS_MAX: usize = 64;

/// How long a request may take to come, and a connection to be silent.
const HEADER_TIME: Duration = Duration::from_secs(30);

/// How long a connection lasts at most. Whoever wants to know more makes another.
const CONNECTION_TIME: Duration = Duration::from_secs(300);

/// The most bytes of a request's head.
const HEAD_MAX: usize = 16 * 1024;

/// The most headers of a request.
const HEADERS_MAX: usize = 64;

/// How long a listener waits after an accept has failed.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What there is, for whoever asks for something else.
const PATHS: &str = "ask for /metrics, /operations, /livez, /readyz, /healthz or /healthz?deep\n";

/// Where metrics and health are told.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct HttpArgs {
    /// Tell metrics and health by HTTP on this address, HOST:PORT: /metrics for Prometheus,
    /// /operations for `cairn top`, /livez, /readyz, /healthz and /healthz?deep
    ///
    /// Prints `telling of itself on URL`. Off unless given. There is no access control.
    #[arg(
        long,
        value_name = "ADDR",
        env = "CAIRN_HTTP",
        hide_env_values = true,
        value_parser = parse_address
    )]
    http: Option<ListenAddress>,
}

fn parse_address(text: &str) -> Result<ListenAddress, String> {
    match text.parse() {
        Ok(address @ ListenAddress::Tcp(_)) => Ok(address),
        _ => Err(format!("{text:?} is no address for HTTP: expected HOST:PORT, as [::]:9090")),
    }
}

impl HttpArgs {
    /// Begins to tell, if that is wanted, and says where. The role is what the process is: the command
    /// that runs.
    pub(crate) async fn start(
        &self,
        role: &'static str,
        output: &mut Output,
    ) -> Result<Telling, Failure> {
        let Some(address) = &self.http else { return Ok(Telling(None)) };
        let failed = |error: io::Error| Failure::new("metrics and health can't be told", error);
        let bound = Listener::bind(address).await.map_err(|error| {
            Failure::new("metrics and health can't be told", error)
                .help("choose another address with --http HOST:PORT")
        })?;
        let Listener::Tcp(listener) = bound else {
            unreachable!("it was parsed as the address of one of TCP")
        };
        let listener = listener.into_std().map_err(failed)?;
        let at = listener.local_addr().map_err(failed)?;
        let health = Arc::new(Health::new());
        let stop = CancellationToken::new();
        let teller = Teller { role, health: health.clone() };
        start_thread(listener, teller, stop.clone()).map_err(failed)?;
        output.announce(format!("telling of itself on http://{at}")).await;
        Ok(Telling(Some(Told {
            _beat: health::beat(health.clone()),
            health,
            tries: Mutex::default(),
            _stop: stop.drop_guard(),
        })))
    }
}

/// What is told, as long as this is there. Does nothing if nobody wants to know.
#[derive(Debug)]
pub(crate) struct Telling(Option<Told>);

#[derive(Debug)]
struct Told {
    health: Arc<Health>,
    _beat: AbortOnDropHandle<()>,
    tries: Mutex<Option<AbortOnDropHandle<()>>>,
    _stop: DropGuard,
}

impl Telling {
    /// The process takes work from now on.
    pub(crate) fn ready(&self) {
        if let Some(told) = &self.0 {
            told.health.ready();
        }
    }

    /// It takes no more work from now on.
    pub(crate) fn ending(&self) {
        if let Some(told) = &self.0 {
            told.health.ending();
            // The store may be closed from here on.
            told.tries.lock().take();
        }
    }

    /// Tries the store now and then, until the process takes no more work.
    pub(crate) fn try_store(&self, services: &Services) {
        if let Some(told) = &self.0 {
            let tries = health::try_store(told.health.clone(), services.clone());
            *told.tries.lock() = Some(tries);
        }
    }
}

/// Who answers.
#[derive(Debug, Clone)]
struct Teller {
    role: &'static str,
    health: Arc<Health>,
}

fn start_thread(
    listener: BoundListener,
    teller: Teller,
    stop: CancellationToken,
) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let listener = {
        let _entered = runtime.enter();
        TcpListener::from_std(listener)?
    };
    let serve = move || {
        runtime.block_on(async {
            tokio::select! {
                () = stop.cancelled() => {}
                never = accept(listener, teller) => match never {},
            }
        });
    };
    thread::Builder::new().name("cairn-http".to_owned()).spawn(serve)?;
    Ok(())
}

async fn accept(listener: TcpListener, teller: Teller) -> Infallible {
    let permits = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let permit = permits.clone().acquire_owned().await.expect("the semaphore is never closed");
        match listener.accept().await {
            Ok((stream, peer)) => {
                let teller = teller.clone();
                tokio::spawn(async move {
                    converse(stream, peer, teller).await;
                    drop(permit);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn converse(stream: TcpStream, peer: SocketAddr, teller: Teller) {
    let answer = service_fn(|request| {
        let answer = teller.answer(&request);
        async { Ok::<_, Infallible>(answer) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIME)
        .max_buf_size(HEAD_MAX)
        .max_headers(HEADERS_MAX)
        .serve_connection(TokioIo::new(stream), answer);
    if let Ok(Err(error)) = timeout(CONNECTION_TIME, connection).await {
        tracing::debug!(%peer, %error, "a connection for metrics and health ended");
    }
}

impl Teller {
    fn answer(&self, request: &Request<Incoming>) -> Response<Full<Bytes>> {
        let text = HeaderValue::from_static("text/plain; charset=utf-8");
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            let mut response = response(StatusCode::METHOD_NOT_ALLOWED, text, PATHS.to_owned());
            response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
            return response;
        }
        let query = request.uri().query().unwrap_or_default();
        let is_deep = query.split('&').any(|pair| pair.split('=').next() == Some("deep"));
        let health = &*self.health;
        let ills = match request.uri().path() {
            "/metrics" => {
                process::read(health);
                let kind = HeaderValue::from_static(exposition::CONTENT_TYPE);
                return response(StatusCode::OK, kind, exposition::text());
            }
            "/operations" => {
                let report = Report::of_this_process(self.role, health);
                let json = serde_json::to_string(&report)
                    .expect("a report has nothing but texts and numbers");
                let kind = HeaderValue::from_static("application/json");
                return response(StatusCode::OK, kind, json + "\n");
            }
            "/livez" => health.live(),
            "/readyz" => health.readiness(),
            "/healthz" if is_deep => health.deep(),
            "/healthz" => health.shallow(),
            _ => return response(StatusCode::NOT_FOUND, text, PATHS.to_owned()),
        };
        let status = if ills.is_well() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
        response(status, text, ills.to_string())
    }
}

fn response(status: StatusCode, kind: HeaderValue, text: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(text)));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, kind);
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}
