//! Requests over gRPC, counted and timed on either side: a layer around a server, or around the
//! connection of a client. What is said in them is not known here.

use std::{
    future::Future,
    pin::Pin,
    sync::{Arc, OnceLock},
    task::{Context, Poll},
    time::Instant,
};

use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body::{Body as HttpBody, Frame, SizeHint};
use tonic::{Code, Status, body::Body};
use tower::{Layer, Service};
use tracing::{Instrument as _, Span};

use crate::{
    inventory::{self, CODE, OTHER_METHOD, PATHS},
    metric::{Counter, Histogram},
    operations::{self, UnderWay},
    trace,
};

/// Which side of a connection this is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// The one that answers.
    Server,
    /// The one that asks.
    Client,
}

impl Side {
    fn requests(self) -> &'static Counter<{ inventory::REQUESTS }> {
        match self {
            Self::Server => &inventory::GRPC_SERVER_REQUESTS,
            Self::Client => &inventory::GRPC_CLIENT_REQUESTS,
        }
    }

    fn durations(self) -> &'static Histogram<{ inventory::METHODS }> {
        match self {
            Self::Server => &inventory::GRPC_SERVER_DURATION,
            Self::Client => &inventory::GRPC_CLIENT_DURATION,
        }
    }

    /// Of the bytes of requests, and of those of answers.
    fn bytes(self) -> [&'static Counter<{ inventory::METHODS }>; 2] {
        match self {
            Self::Server => [&inventory::GRPC_SERVER_RECEIVED, &inventory::GRPC_SERVER_SENT],
            Self::Client => [&inventory::GRPC_CLIENT_SENT, &inventory::GRPC_CLIENT_RECEIVED],
        }
    }

    fn begin(self, method: usize) -> UnderWay {
        match self {
            Self::Server => operations::GRPC_SERVER.begin(method),
            Self::Client => operations::GRPC_CLIENT.begin(method),
        }
    }
}

/// Counts the requests that go through.
#[derive(Debug, Clone, Copy)]
pub struct Measure(pub Side);

/// A service whose requests are counted.
#[derive(Debug, Clone)]
pub struct Measured<S> {
    inner: S,
    side: Side,
}

impl<S> Measured<S> {
    /// The connection of a client.
    pub fn client(inner: S) -> Self {
        Self { inner, side: Side::Client }
    }
}

impl<S> Layer<S> for Measure {
    type Service = Measured<S>;

    fn layer(&self, inner: S) -> Measured<S> {
        Measured { inner, side: self.0 }
    }
}

impl<S> Service<Request<Body>> for Measured<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Future: Send + 'static>,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, S::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        let side = self.side;
        let method = method(request.uri().path());
        // Those that are none of ours may be meant to stay: who watches the health of a server does.
        let place = (method != OTHER_METHOD).then(|| Arc::new(side.begin(method)));
        let name = PATHS.get(method).map_or("other", |path| path.trim_start_matches('/'));
        let span = match side {
            Side::Server => trace::answer(request.headers(), "grpc", name),
            Side::Client => trace::ask("grpc", name),
        };
        if side == Side::Client {
            trace::tell(&span, request.headers_mut());
        }
        let within = span.clone();
        let call = Call { span, side, method, start: Instant::now(), code: OnceLock::new() };
        let [sent, answered] = side.bytes();
        let counted =
            move |body, bytes, call, place| Body::new(Counted { body, bytes, method, call, place });
        let request = request.map(|body| counted(body, sent, None, place.clone()));
        let answer = within.in_scope(|| self.inner.call(request));
        let answer = answer.instrument(within);
        Box::pin(async move {
            // Told when it is dropped, however that comes about.
            let call = call;
            let answer = match answer.await {
                Ok(answer) => answer,
                Err(error) => {
                    call.end(Code::Unavailable);
                    return Err(error);
                }
            };
            call.read(answer.headers());
            Ok(answer.map(|body| {
                if body.is_end_stream() {
                    call.end(Code::Ok);
                    return body;
                }
                counted(body, answered, Some(call), place)
            }))
        })
    }
}

/// A request that is under way. Counted when it is dropped.
#[derive(Debug)]
struct Call {
    span: Span,
    side: Side,
    method: usize,
    start: Instant,
    /// What came of it, once that is known.
    code: OnceLock<Code>,
}

impl Call {
    /// The first that is said counts.
    fn end(&self, code: Code) {
        let _ = self.code.set(code);
    }

    /// Looks for what came of it, which is behind the answer, or before it if that is empty.
    fn read(&self, headers: &HeaderMap) {
        if let Some(status) = Status::from_header_map(headers) {
            self.end(status.code());
        }
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        // Who asked has lost interest, or the connection broke.
        let code = self.code.get().copied().unwrap_or(Code::Cancelled);
        if !matches!(code, Code::Ok | Code::NotFound | Code::AlreadyExists | Code::Cancelled) {
            trace::failed(&self.span, code.description());
        }
        self.side.requests().add_at(self.method * CODE.values.len() + code as usize, 1);
        self.side.durations().observe_at(self.method, self.start.elapsed());
    }
}

/// The bytes of a request or an answer, counted as they go by.
struct Counted {
    body: Body,
    bytes: &'static Counter<{ inventory::METHODS }>,
    method: usize,
    /// The request that this is the answer to.
    call: Option<Call>,
    /// What goes on with each of them.
    place: Option<Arc<UnderWay>>,
}

impl HttpBody for Counted {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let _within = self.call.as_ref().map(|call| call.span.clone().entered());
        let polled = Pin::new(&mut self.body).poll_frame(context);
        match &polled {
            Poll::Ready(Some(Ok(frame))) => {
                if let Some(data) = frame.data_ref() {
                    self.bytes.add_at(self.method, data.len() as u64);
                }
                if let Some(place) = &self.place {
                    place.goes_on();
                }
                if let (Some(call), Some(trailers)) = (&self.call, frame.trailers_ref()) {
                    call.read(trailers);
                }
            }
            Poll::Ready(Some(Err(status))) => {
                if let Some(call) = &self.call {
                    call.end(status.code());
                }
            }
            Poll::Ready(None) | Poll::Pending => {}
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// The number of a method in the inventory.
fn method(path: &str) -> usize {
    PATHS.iter().position(|known| *known == path).unwrap_or(OTHER_METHOD)
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use tower::service_fn;

    use super::*;
    use crate::metric::{Metric as _, Value};

    const PATH: &str = "/cairn.v1.BlobService/HasMany";

    fn answered(code: Code) -> f64 {
        let cell = method(PATH) * CODE.values.len() + code as usize;
        match inventory::GRPC_SERVER_REQUESTS.value(cell) {
            Some(Value::Number(number)) => number,
            _ => panic!("it is a counter"),
        }
    }

    async fn ask(answer: impl Fn() -> Response<Body> + Clone + Send + 'static) -> Response<Body> {
        let inner = service_fn(move |_| {
            let answer = answer();
            async { Ok::<_, Infallible>(answer) }
        });
        let request = Request::builder().uri(PATH).body(Body::empty()).unwrap();
        Measure(Side::Server).layer(inner).call(request).await.unwrap()
    }

    /// One after the other, since all count in the same place.
    #[tokio::test]
    async fn what_came_of_a_request_is_counted_when_that_is_known() {
        // In the headers, if there is nothing else.
        let refused = || Status::not_found("no").into_http::<Body>();
        drop(ask(refused).await);
        assert_eq!(answered(Code::NotFound), 1.0);

        // An answer that nobody reads to its end.
        struct Endless;
        impl HttpBody for Endless {
            type Data = Bytes;
            type Error = Status;
            fn poll_frame(
                self: Pin<&mut Self>,
                _: &mut Context<'_>,
            ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
                Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(b"four")))))
            }
        }
        let before = inventory::GRPC_SERVER_SENT.get_at(method(PATH));
        let mut answer = ask(|| Response::new(Body::new(Endless))).await;
        std::future::poll_fn(|context| Pin::new(answer.body_mut()).poll_frame(context))
            .await
            .unwrap()
            .unwrap();
        assert_eq!(inventory::GRPC_SERVER_SENT.get_at(method(PATH)) - before, 4);
        assert_eq!(answered(Code::Cancelled), 0.0);
        drop(answer);
        assert_eq!(answered(Code::Cancelled), 1.0);
    }

    #[test]
    fn what_nobody_knows_is_one_method() {
        for path in ["", "/", "/cairn.v1.BlobService/HasMany/", "/what/ever"] {
            assert_eq!(method(path), OTHER_METHOD, "{path}");
        }
        assert_ne!(method(PATH), OTHER_METHOD);
    }
}
