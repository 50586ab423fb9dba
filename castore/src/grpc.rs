//! A peer that is spoken to by gRPC: its connection, and how calls to it wait, try again and send
//! streams. What is said on the connection is the affair of each service's client.

use std::{
    fmt,
    future::Future,
    hash::{BuildHasher as _, RandomState},
    marker::PhantomData,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use async_stream::stream;
use cairn_telemetry::{grpc::Measured, inventory::GRPC_CLIENT_RETRIES};
use futures::{FutureExt as _, Stream, StreamExt as _, future::BoxFuture, stream::BoxStream};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use tokio::{
    net::UnixStream,
    time::{Instant, sleep, sleep_until, timeout},
};
use tonic::{
    Code, Request, Response, Status, Streaming,
    client::Grpc,
    codec::{Codec, CompressionEncoding, DecodeBuf, Decoder, EncodeBuf, Encoder},
    codegen::http::uri::PathAndQuery,
    transport::{Channel, ClientTlsConfig, Endpoint},
};
use tower::service_fn;

use crate::{BoxError, address::GrpcAddress};

/// The largest message that either side reads, in bytes: a directory of a million entries with
/// names of middling length has 80 MB.
pub const MESSAGE_MAX: usize = 256 * 1024 * 1024;

/// The largest message that a server reads for a blob's bytes. Clients partition blobs as they
/// like; ours send [`PIECE_LEN`].
pub const BLOB_MESSAGE_MAX: usize = 32 * 1024 * 1024;

/// The bytes of a blob in one message, at most: below the 4 MiB that any client reads, and so few
/// that a buffer is used again while it is in a processor's cache.
pub const PIECE_LEN: usize = 256 * 1024;

/// What a peer may send on one stream before it is told that it was read, in bytes.
pub const STREAM_WINDOW: u32 = 8 * 1024 * 1024;

/// What a peer may send on all streams together before it is told that it was read, in bytes.
pub const CONNECTION_WINDOW: u32 = 32 * 1024 * 1024;

/// The largest HTTP/2 frame that is read, in bytes; not large, for the same reason.
pub const FRAME_MAX: u32 = 128 * 1024;

/// How long a connection may take.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a peer may take to answer, to send the next message, or to take one.
pub const DEADLINE: Duration = Duration::from_secs(30);

/// How often a connection in use is probed when nothing comes.
pub const KEEP_ALIVE: Duration = Duration::from_secs(20);

/// How often an idempotent call that failed for want of a connection is made again.
pub const RETRIES: u32 = 3;

/// The longest pause before the first of these calls; it doubles from one to the next.
pub const BACK_OFF: Duration = Duration::from_millis(100);

/// How long a peer that has answered before is given to come back, as one that is started anew: from
/// the first call that finds it gone. Calls that come later do not wait for it.
pub const RETURN_TIME: Duration = Duration::from_secs(10);

/// A peer that takes at least so long to answer the quickest of its calls is far: the line to it is
/// what is waited for, and to have less come over it pays for what that costs the processors.
const FAR: Duration = Duration::from_millis(2);

/// The requests that a client has under way at once where it has to ask for each item alone.
pub(crate) const FAN_OUT: usize = 32;

/// The connection to a peer, on which requests are counted.
pub type PeerChannel = Measured<Channel>;

/// A peer and the connection to it, which all clones share. It is made at the first call, and
/// again after it broke.
#[derive(Clone)]
pub struct GrpcPeer {
    channel: PeerChannel,
    url: Arc<str>,
    deadline: Duration,
    quickest: Arc<Quickest>,
    /// How long it is given to come back.
    return_time: Duration,
    /// Since when it can't be reached, though it has answered before.
    gone_since: Arc<Mutex<Option<Instant>>>,
}

/// How long the quickest of the calls took.
struct Quickest {
    nanoseconds: AtomicU64,
    /// What is far.
    far: Duration,
}

impl Quickest {
    /// Nothing is known yet.
    fn new(far: Duration) -> Arc<Self> {
        Arc::new(Self { nanoseconds: AtomicU64::new(u64::MAX), far })
    }

    fn note(&self, taken: Duration) {
        let taken = u64::try_from(taken.as_nanos()).unwrap_or(u64::MAX);
        self.nanoseconds.fetch_min(taken, Ordering::Relaxed);
    }

    /// `false` as long as there was none.
    fn is_far(&self) -> bool {
        let quickest = self.nanoseconds.load(Ordering::Relaxed);
        self.is_known() && Duration::from_nanos(quickest) >= self.far
    }

    /// Whether there was one.
    fn is_known(&self) -> bool {
        self.nanoseconds.load(Ordering::Relaxed) != u64::MAX
    }
}

/// Has what a peer answers compressed if it is far and can: for a generated client.
#[macro_export]
macro_rules! compressed {
    ($peer:expr, $client:expr) => {
        match $peer.compression() {
            Some(encoding) => $client.accept_compressed(encoding),
            None => $client,
        }
    };
}

/// A peer that can't be set up; whether it answers is not yet asked.
#[derive(Debug, thiserror::Error)]
#[error("can't set up a connection to {url}")]
pub struct PeerError {
    /// The peer.
    pub url: String,
    /// What is wrong.
    #[source]
    pub source: BoxError,
}

impl GrpcPeer {
    /// A peer at this address. Must be called within a tokio runtime, which serves the
    /// connection. Fails if the address is none that can be connected to, or if `https` finds no
    /// trusted roots.
    pub fn new(address: &GrpcAddress) -> Result<Self, PeerError> {
        let url: Arc<str> = address.to_string().into();
        let channel = match address {
            GrpcAddress::Tcp(tcp) => tcp_endpoint(tcp).map(|endpoint| endpoint.connect_lazy()),
            GrpcAddress::Unix(path) => {
                let path = path.clone();
                let connector = service_fn(move |_| {
                    let path = path.clone();
                    async move { UnixStream::connect(path).await.map(TokioIo::new) }
                });
                // The name is what a server reads as the request's host.
                let endpoint = endpoint("http://localhost");
                endpoint.map(|endpoint| endpoint.connect_with_connector_lazy(connector))
            }
        };
        let channel =
            channel.map_err(|source| PeerError { url: url.to_string(), source: source.into() })?;
        let channel = Measured::client(channel);
        let quickest = Quickest::new(FAR);
        Ok(Self {
            channel,
            url,
            deadline: DEADLINE,
            quickest,
            return_time: RETURN_TIME,
            gone_since: Arc::default(),
        })
    }

    /// The same peer with another [`DEADLINE`].
    pub fn with_deadline(self, deadline: Duration) -> Self {
        Self { deadline, ..self }
    }

    /// The same peer, taken for one that is far.
    #[cfg(test)]
    pub(crate) fn far(self) -> Self {
        let quickest = Quickest::new(Duration::ZERO);
        quickest.note(Duration::ZERO);
        Self { quickest, ..self }
    }

    /// The connection, for a generated client.
    pub fn channel(&self) -> PeerChannel {
        self.channel.clone()
    }

    /// Whether the line to the peer is what is waited for. Nothing is known of one that has not been
    /// called yet.
    pub(crate) fn is_far(&self) -> bool {
        self.quickest.is_far()
    }

    /// How a peer that is far is to compress what it answers, if it can.
    pub fn compression(&self) -> Option<CompressionEncoding> {
        self.is_far().then_some(CompressionEncoding::Zstd)
    }

    /// The peer's URL, as it displays.
    pub fn url(&self) -> &Arc<str> {
        &self.url
    }

    /// Makes an idempotent call, and again when the peer can't be reached: at most [`RETRIES`]
    /// times, or for [`RETURN_TIME`] if it has answered before. A peer that is reached and does not
    /// answer in time is not asked again.
    pub async fn call<T, F>(&self, call: impl Fn() -> F) -> Result<T, Status>
    where
        F: Future<Output = Result<Response<T>, Status>>,
    {
        let mut attempt = 0;
        loop {
            let start = Instant::now();
            match self.within_deadline(call()).await {
                Err(status)
                    if is_transient(&status) && (self.may_come_back() || attempt < RETRIES) =>
                {
                    back_off(attempt).await;
                    attempt += 1;
                    GRPC_CLIENT_RETRIES.add(1);
                }
                answer => {
                    if answer.is_ok() {
                        self.quickest.note(start.elapsed());
                    }
                    if answer.as_ref().map_or_else(is_of_peer, |_| true) {
                        *self.gone_since.lock() = None;
                    }
                    return answer.map(Response::into_inner);
                }
            }
        }
    }

    /// Whether a peer that can't be reached has been there, and not been gone for long.
    fn may_come_back(&self) -> bool {
        self.quickest.is_known()
            && self.gone_since.lock().get_or_insert_with(Instant::now).elapsed() < self.return_time
    }

    async fn within_deadline<T>(
        &self,
        answer: impl Future<Output = Result<T, Status>>,
    ) -> Result<T, Status> {
        match timeout(self.deadline, answer).await {
            Ok(answer) => answer,
            Err(_) => Err(self.too_late()),
        }
    }

    fn too_late(&self) -> Status {
        Status::deadline_exceeded(format!("nothing came for {:?}", self.deadline))
    }

    /// What a peer streams, each message within the deadline. A message that `kept` makes nothing
    /// of is no progress.
    pub fn receive<M, T>(
        &self,
        mut messages: Streaming<M>,
        mut kept: impl FnMut(M) -> Option<T> + Send + 'static,
    ) -> BoxStream<'static, Result<T, Status>>
    where
        M: Send + 'static,
        T: Send + 'static,
    {
        let peer = self.clone();
        stream! {
            loop {
                let next = async {
                    while let Some(message) = messages.message().await? {
                        if let Some(item) = kept(message) {
                            return Ok(Some(item));
                        }
                    }
                    Ok(None)
                };
                match peer.within_deadline(next).await {
                    Ok(Some(item)) => yield Ok(item),
                    Ok(None) => break,
                    Err(status) => {
                        yield Err(status);
                        break;
                    }
                }
            }
        }
        .boxed()
    }

    /// Streams to a peer what its method at `path` takes. The deadline runs while the peer takes no
    /// message, or has them all and does not answer; not while the source is waited for. An error
    /// of the source breaks the call off, in a way that a peer can't take for the end.
    pub fn send<M, E, R>(
        &self,
        path: &'static str,
        source: BoxStream<'static, Result<M, E>>,
    ) -> BoxFuture<'static, Result<R, SendError<E>>>
    where
        M: prost::Message + 'static,
        E: Send + 'static,
        R: prost::Message + Default + 'static,
    {
        let peer = self.clone();
        let state =
            Arc::new(Mutex::new(Sending { waiting_since: Some(Instant::now()), failed: None }));
        let messages = Messages(messages(source, state.clone()).boxed());
        async move {
            let mut client = Grpc::new(peer.channel()).max_encoding_message_size(MESSAGE_MAX);
            let answer = async {
                let ready = client.ready().await;
                ready.map_err(|error| Status::from_error(error.into()))?;
                let path = PathAndQuery::from_static(path);
                client.client_streaming(Request::new(messages), path, SendCodec::new()).await
            };
            let answer = tokio::select! {
                answer = answer => answer,
                () = peer.stalled(&state) => Err(peer.too_late()),
            };
            match (state.lock().failed.take(), answer) {
                (Some(error), _) => Err(SendError::Source(error)),
                (None, Ok(answer)) => Ok(answer.into_inner()),
                (None, Err(status)) => Err(SendError::Status(status)),
            }
        }
        .boxed()
    }

    /// Ends when the peer has been waited for too long.
    async fn stalled<E>(&self, state: &Mutex<Sending<E>>) {
        loop {
            let since = state.lock().waiting_since;
            match since.map(|since| since + self.deadline) {
                Some(limit) if limit <= Instant::now() => break,
                Some(limit) => sleep_until(limit).await,
                None => sleep(self.deadline).await,
            }
        }
    }
}

/// A stream that is being sent.
struct Sending<E> {
    /// Since when the peer is waited for; `None` while the source is.
    waiting_since: Option<Instant>,
    /// What the source failed with.
    failed: Option<E>,
}

/// Broken off by the source.
struct BrokenOff;

fn messages<M, E>(
    mut source: BoxStream<'static, Result<M, E>>,
    state: Arc<Mutex<Sending<E>>>,
) -> impl Stream<Item = Result<M, BrokenOff>> {
    stream! {
        loop {
            state.lock().waiting_since = None;
            let next = source.next().await;
            state.lock().waiting_since = Some(Instant::now());
            match next {
                Some(Ok(message)) => yield Ok(message),
                Some(Err(error)) => {
                    state.lock().failed = Some(error);
                    yield Err(BrokenOff);
                    break;
                }
                None => break,
            }
        }
    }
}

/// The messages of a stream that is being sent, as a type with a name.
struct Messages<M>(BoxStream<'static, Result<M, BrokenOff>>);

impl<M> Stream for Messages<M> {
    type Item = Result<M, BrokenOff>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.0.poll_next_unpin(context)
    }
}

/// Encodes a stream that may break off. Servers take a cancelled call for one whose stream has
/// ended; only a stream that fails to be encoded is reset as failed.
struct SendCodec<M, R>(PhantomData<fn(M) -> R>);

impl<M, R> SendCodec<M, R> {
    fn new() -> Self {
        Self(PhantomData)
    }
}

impl<M, R> Codec for SendCodec<M, R>
where
    M: prost::Message + 'static,
    R: prost::Message + Default + 'static,
{
    type Encode = Result<M, BrokenOff>;
    type Decode = R;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self::new()
    }

    fn decoder(&mut self) -> Self {
        Self::new()
    }
}

impl<M: prost::Message, R> Encoder for SendCodec<M, R> {
    type Item = Result<M, BrokenOff>;
    type Error = Status;

    fn encode(&mut self, item: Self::Item, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        let message = item.map_err(|BrokenOff| Status::aborted("the source failed"))?;
        // At once, instead of growing by copying.
        buffer.reserve(message.encoded_len());
        message.encode(buffer).map_err(|error| Status::internal(error.to_string()))
    }
}

impl<M, R: prost::Message + Default> Decoder for SendCodec<M, R> {
    type Item = R;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<R>, Status> {
        R::decode(buffer).map(Some).map_err(|error| Status::internal(error.to_string()))
    }
}

/// Why a stream could not be sent.
#[derive(Debug)]
pub enum SendError<E> {
    /// Its source failed.
    Source(E),
    /// The peer did.
    Status(Status),
}

fn tcp_endpoint(url: &url::Url) -> Result<Endpoint, tonic::transport::Error> {
    let endpoint = endpoint(url.as_str())?;
    match url.scheme() {
        "https" => endpoint.tls_config(ClientTlsConfig::new().with_native_roots()),
        _ => Ok(endpoint),
    }
}

fn endpoint(url: &str) -> Result<Endpoint, tonic::transport::Error> {
    let agent = concat!("cairn/", env!("CARGO_PKG_VERSION"));
    Ok(Endpoint::new(url.to_owned())?
        .user_agent(agent)?
        .connect_timeout(CONNECT_TIMEOUT)
        .tcp_nodelay(true)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_frame_size(FRAME_MAX)
        .http2_keep_alive_interval(KEEP_ALIVE)
        .keep_alive_timeout(DEADLINE))
}

/// Whether a call may fare better when made again: the peer said so, or the connection broke.
pub fn is_transient(status: &Status) -> bool {
    // Only what came of the connection has a source: a status from the wire has none.
    status.code() == Code::Unavailable || std::error::Error::source(status).is_some()
}

/// Whether a call was answered by the peer, and not by what became of the connection or the deadline.
fn is_of_peer(status: &Status) -> bool {
    !is_transient(status) && status.code() != Code::DeadlineExceeded
}

/// Waits before another attempt, for a random time, so that those whose connections broke at once
/// do not come back at once.
pub async fn back_off(attempt: u32) {
    let longest = BACK_OFF.saturating_mul(1 << attempt.min(RETRIES));
    // Each hasher has random keys of its own.
    let random = RandomState::new().hash_one(attempt) as u32;
    sleep(longest.mul_f64(f64::from(random) / f64::from(u32::MAX))).await;
}

impl fmt::Display for GrpcPeer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.url)
    }
}

impl fmt::Debug for GrpcPeer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "GrpcPeer({})", self.url)
    }
}

#[cfg(test)]
pub(crate) mod test_server;

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_peer_that_was_there_has_time_to_come_back() {
        let Ok(crate::Address::Grpc(address)) = "grpc+http://127.0.0.1:1".parse() else {
            panic!("it is an address of a peer")
        };
        let mut peer = GrpcPeer::new(&address).unwrap();
        // Is there again after so many calls.
        let call = async |peer: &GrpcPeer, silent: u32, answer: Result<(), Status>| {
            let calls = AtomicU64::new(0);
            let answer = peer.call(|| {
                let number = calls.fetch_add(1, Ordering::Relaxed);
                std::future::ready(match number < u64::from(silent) {
                    true => Err(Status::unavailable("it is started anew")),
                    false => answer.clone().map(Response::new),
                })
            });
            answer.await
        };
        let is_answered = async |peer: &GrpcPeer, silent| call(peer, silent, Ok(())).await.is_ok();
        assert!(!is_answered(&peer, RETRIES + 1).await, "nobody has seen it yet");
        assert!(is_answered(&peer, RETRIES).await);
        assert!(is_answered(&peer, RETRIES + 2).await);
        peer.return_time = Duration::ZERO;
        assert!(!is_answered(&peer, RETRIES + 1).await, "it has been gone for long");
        assert!(is_answered(&peer, RETRIES).await);
        assert!(peer.gone_since.lock().is_none());
        assert!(!is_answered(&peer, RETRIES + 1).await);
        assert!(peer.gone_since.lock().is_some());
        call(&peer, 0, Err(Status::deadline_exceeded("nothing came"))).await.unwrap_err();
        assert!(peer.gone_since.lock().is_some(), "nobody has answered");
        call(&peer, 0, Err(Status::not_found("no such blob"))).await.unwrap_err();
        assert!(peer.gone_since.lock().is_none(), "it was there to say so");
    }

    #[test]
    fn a_peer_is_far_if_none_of_its_answers_was_quick() {
        let quickest = Quickest::new(FAR);
        assert!(!quickest.is_far(), "nothing is known yet");
        quickest.note(5 * FAR);
        assert!(quickest.is_far());
        quickest.note(FAR / 2);
        quickest.note(5 * FAR);
        assert!(!quickest.is_far());
    }
}
