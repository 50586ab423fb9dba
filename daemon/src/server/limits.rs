//! How much of a server those who read may take: so many streams at a time, and none for one who does
//! not take what it asked for. What is in the streams is not known here.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use http_body::{Body as HttpBody, Frame, SizeHint};
use parking_lot::Mutex;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    task::AbortHandle,
    time::{Instant, sleep_until},
};
use tonic::{Status, body::Body, codegen::http};
use tower::{Layer, Service};

use super::is_one_of;

/// How many streams of blobs are sent at a time; others wait for their turn. Each holds some chunks of
/// 256 KiB, read ahead of its client.
const STREAMS_MAX: usize = 256;

/// How long a client may leave a stream lying before it is broken off.
const STALLED: Duration = Duration::from_secs(60);

/// The methods that send a blob's bytes.
const OF_BLOBS: [&str; 3] = ["Read", "ReadRange", "ReadMany"];

/// The others that send as much as they are asked for. They hold little, and have no turn: who walks a
/// tree keeps one of them open while it reads blobs.
const OTHERS: [&str; 2] = ["Get", "List"];

/// Keeps what is read within the limits, which all clones share.
#[derive(Debug, Clone)]
pub(super) struct Limits {
    streams: Arc<Semaphore>,
    stalled: Duration,
}

impl Limits {
    pub(super) fn new() -> Self {
        Self { streams: Arc::new(Semaphore::new(STREAMS_MAX)), stalled: STALLED }
    }
}

/// A service within the limits.
#[derive(Debug, Clone)]
pub(super) struct Limited<S> {
    inner: S,
    limits: Limits,
}

impl<S> Layer<S> for Limits {
    type Service = Limited<S>;

    fn layer(&self, inner: S) -> Limited<S> {
        Limited { inner, limits: self.clone() }
    }
}

impl<S> Service<http::Request<Body>> for Limited<S>
where
    S: Service<http::Request<Body>, Response = http::Response<Body>, Future: Send + 'static>,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<S::Response, S::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let path = request.uri().path();
        let (is_of_blobs, is_other) = (is_one_of(path, &OF_BLOBS), is_one_of(path, &OTHERS));
        let answer = self.inner.call(request);
        let limits = self.limits.clone();
        Box::pin(async move {
            // Little is read of it before it is polled.
            let answer = answer.await?;
            if !is_of_blobs && !is_other {
                return Ok(answer);
            }
            let turn = match is_of_blobs {
                true => {
                    let turn = limits.streams.acquire_owned().await;
                    Some(turn.expect("the semaphore is never closed"))
                }
                false => None,
            };
            Ok(answer.map(|body| Body::new(Sent::new(body, turn, limits.stalled))))
        })
    }
}

/// A stream that is broken off when its client takes none of it for a while.
struct Sent {
    state: Arc<Mutex<State>>,
    watch: AbortHandle,
}

struct State {
    /// `None`: it was broken off.
    body: Option<(Body, Option<OwnedSemaphorePermit>)>,
    /// Since when the client has what came last, and has not asked for more.
    idle_since: Option<Instant>,
}

impl Sent {
    fn new(body: Body, turn: Option<OwnedSemaphorePermit>, stalled: Duration) -> Self {
        let state = State { body: Some((body, turn)), idle_since: None };
        let state = Arc::new(Mutex::new(state));
        let watched = state.clone();
        let watch = tokio::spawn(async move {
            loop {
                let limit = watched.lock().idle_since.unwrap_or_else(Instant::now) + stalled;
                if limit > Instant::now() {
                    sleep_until(limit).await;
                    continue;
                }
                // Dropped outside the lock: it may take a while.
                let body = watched.lock().body.take();
                drop(body);
                tracing::debug!("a client did not take what it had asked for");
                break;
            }
        });
        Self { state, watch: watch.abort_handle() }
    }
}

impl Drop for Sent {
    fn drop(&mut self) {
        self.watch.abort();
    }
}

impl HttpBody for Sent {
    type Data = bytes::Bytes;
    type Error = Status;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Status>>> {
        let mut state = self.state.lock();
        state.idle_since = None;
        let Some((body, _)) = &mut state.body else {
            let message = "the stream was left lying for too long";
            return Poll::Ready(Some(Err(Status::deadline_exceeded(message))));
        };
        let frame = Pin::new(body).poll_frame(context);
        if frame.is_ready() {
            state.idle_since = Some(Instant::now());
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.state.lock().body.as_ref().is_some_and(|(body, _)| body.is_end_stream())
    }

    fn size_hint(&self) -> SizeHint {
        match &self.state.lock().body {
            Some((body, _)) => body.size_hint(),
            None => SizeHint::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use bytes::Bytes;
    use futures::{FutureExt as _, StreamExt as _, stream};
    use http_body_util::{BodyExt as _, StreamBody};

    use super::*;

    /// Longer than any client may take, and than [`STALLED`].
    const LONG: Duration = STALLED.saturating_mul(60);

    /// The answer of a service that sends two messages, the second one after a long time.
    fn ask(limits: &Limits, path: &str) -> impl Future<Output = Body> {
        fn message() -> Result<Frame<Bytes>, Status> {
            Ok(Frame::data(Bytes::from_static(b"message")))
        }
        let answer = |_| async {
            let late = tokio::time::sleep(LONG).map(|()| message());
            let body = StreamBody::new(stream::iter([message()]).chain(late.into_stream()));
            Ok::<_, Infallible>(http::Response::new(Body::new(body)))
        };
        let mut service = limits.layer(tower::service_fn(answer));
        let request = http::Request::builder().uri(path).body(Body::empty()).unwrap();
        let answer = service.call(request);
        async { answer.await.unwrap().into_body() }
    }

    fn limits() -> Limits {
        Limits { streams: Arc::new(Semaphore::new(1)), stalled: STALLED }
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_that_is_left_lying_makes_room_for_another() {
        let limits = limits();
        let mut first = ask(&limits, "/snix.castore.v1.BlobService/Read").await;
        assert!(first.frame().await.unwrap().is_ok());
        let start = Instant::now();
        let _second = ask(&limits, "/cairn.v1.BlobService/ReadRange").await;
        assert_eq!(start.elapsed().as_secs(), STALLED.as_secs());
        let error = first.frame().await.unwrap().unwrap_err();
        assert_eq!(error.code(), tonic::Code::DeadlineExceeded);
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_has_no_turn_is_broken_off_as_well() {
        let mut closure = ask(&limits(), "/snix.castore.v1.DirectoryService/Get").await;
        assert!(closure.frame().await.unwrap().is_ok());
        tokio::time::sleep(2 * STALLED).await;
        let error = closure.frame().await.unwrap().unwrap_err();
        assert_eq!(error.code(), tonic::Code::DeadlineExceeded);
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_is_waited_for_by_its_client_goes_on() {
        let mut stream = ask(&limits(), "/snix.castore.v1.BlobService/Read").await;
        assert!(stream.frame().await.unwrap().is_ok());
        tokio::time::sleep(STALLED - Duration::from_secs(1)).await;
        let start = Instant::now();
        assert!(stream.frame().await.unwrap().is_ok());
        assert!(start.elapsed() > STALLED, "the service takes longer than a client may");
        assert!(stream.frame().await.is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn streams_wait_for_their_turn_and_nothing_else_does() {
        let limits = limits();
        let first = ask(&limits, "/snix.castore.v1.BlobService/Read").await;
        for path in [
            "/grpc.health.v1.Health/Watch",
            "/snix.castore.v1.BlobService/Put",
            "/snix.castore.v1.DirectoryService/Get",
            "/Read/",
        ] {
            assert!(ask(&limits, path).now_or_never().is_some(), "{path}");
        }
        let mut second = Box::pin(ask(&limits, "/cairn.v1.BlobService/ReadMany"));
        assert!((&mut second).now_or_never().is_none());
        drop(first);
        second.await;
    }
}
