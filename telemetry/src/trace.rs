//! Traces: one request on a mount, or to a server, is a tree of spans down to the object store,
//! whichever processes it goes through. Off unless turned on, and then one request in so many has
//! spans; the others cost no more than looking whether they do. Where spans are sent is the affair of
//! the crates above.

use std::{
    pin::Pin,
    sync::atomic::{AtomicU64, Ordering},
    task::{Context as Polled, Poll},
};

use futures::{Stream, StreamExt as _, stream::BoxStream};
use http::{HeaderMap, HeaderValue};
use opentelemetry::{
    Context,
    trace::{SpanContext, SpanId, TraceContextExt as _, TraceFlags, TraceId, TraceState},
};
use tracing::{Span, field::Empty};
use tracing_opentelemetry::OpenTelemetrySpanExt as _;

/// The target of all spans that belong to traces. No log line has it.
pub const TARGET: &str = "cairn_trace";

/// The header that carries the context over gRPC; see the W3C's recommendation.
const HEADER: &str = "traceparent";

/// How many bytes the header has in the version that is understood.
const HEADER_LEN: usize = 55;

/// The share of requests that have spans, as a part of 2^64; 0 is none.
static SHARE: AtomicU64 = AtomicU64::new(0);

/// The sum of the shares of all requests so far, of which each time around is one with spans.
static SUM: AtomicU64 = AtomicU64::new(0);

/// Gives a share of the requests spans from now on, between 0 and 1. Those that come from a peer with
/// spans have them anyway.
pub fn turn_on(share: f64) {
    // As numbers are converted, 1 is the highest there is.
    let share = (share.clamp(0.0, 1.0) * 2_f64.powi(64)) as u64;
    SHARE.store(share.max(1), Ordering::Relaxed);
}

/// Whether any request has spans.
pub fn is_on() -> bool {
    SHARE.load(Ordering::Relaxed) != 0
}

/// Whether the next request that comes without a context is to have spans.
fn is_chosen() -> bool {
    match SHARE.load(Ordering::Relaxed) {
        0 => false,
        u64::MAX => true,
        share => SUM.fetch_add(share, Ordering::Relaxed).checked_add(share).is_none(),
    }
}

macro_rules! span {
    ($kind:expr, $name:expr $(, parent: $parent:expr)?) => {
        tracing::info_span!(
            target: TARGET,
            $(parent: $parent,)?
            "request",
            otel.name = $name,
            otel.kind = $kind,
            otel.status_code = Empty,
            otel.status_description = Empty,
        )
    };
}

/// The span of a request that begins here, if it is to have one.
pub fn begin(protocol: &str, what: &str) -> Span {
    match is_chosen() {
        true => span!("server", format!("{protocol} {what}"), parent: None),
        false => Span::none(),
    }
}

/// Whether what is done now is part of a request that has spans.
fn is_within() -> bool {
    is_on() && Span::current().metadata().is_some_and(|span| span.target() == TARGET)
}

/// The span of a call to a layer below, if the request that it is part of has spans.
pub fn call(layer: &str, what: &str) -> Span {
    match is_within() {
        true => span!("internal", format!("{layer} {what}")),
        false => Span::none(),
    }
}

/// The span of a request to another process, likewise.
pub fn ask(protocol: &str, what: &str) -> Span {
    match is_within() {
        true => span!("client", format!("{protocol} {what}")),
        false => Span::none(),
    }
}

/// The span of a request from another process: of the trace that it is part of there, or else of one
/// that begins here.
pub fn answer(headers: &HeaderMap, protocol: &str, what: &str) -> Span {
    if !is_on() {
        return Span::none();
    }
    let remote = headers.get(HEADER).and_then(|header| parse(header.as_bytes()));
    match &remote {
        Some(remote) if !remote.is_sampled() => return Span::none(),
        None if !is_chosen() => return Span::none(),
        _ => {}
    }
    let span = span!("server", format!("{protocol} {what}"), parent: None);
    if let Some(remote) = remote {
        // An error would mean that it has one already, or that nobody wants spans.
        let _ = span.set_parent(Context::new().with_remote_span_context(remote));
    }
    span
}

/// Tells of a span to whom a request goes.
pub fn tell(span: &Span, headers: &mut HeaderMap) {
    if span.is_none() {
        return;
    }
    let context = span.context();
    let context = context.span().span_context().clone();
    if !context.is_valid() {
        return;
    }
    let flags = context.trace_flags().to_u8();
    let header = format!("00-{}-{}-{flags:02x}", context.trace_id(), context.span_id());
    if let Ok(header) = HeaderValue::from_str(&header) {
        headers.insert(HEADER, header);
    }
}

/// What has failed in a span.
pub fn failed(span: &Span, why: &str) {
    if !span.is_none() {
        span.record("otel.status_code", "ERROR");
        span.record("otel.status_description", why);
    }
}

/// Reads a header: `00-<32 digits>-<16 digits>-<2 digits>`, in small hexadecimal digits. `None` if it
/// is anything else.
fn parse(header: &[u8]) -> Option<SpanContext> {
    if header.len() != HEADER_LEN {
        return None;
    }
    let header = str::from_utf8(header).ok()?;
    let is_digits = |text: &str| text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    let mut parts = header.split('-');
    let (version, trace, span, flags) =
        (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    let lengths = [version.len(), trace.len(), span.len(), flags.len()];
    if parts.next().is_some() || lengths != [2, 32, 16, 2] || version != "00" {
        return None;
    }
    if ![trace, span, flags].into_iter().all(is_digits) {
        return None;
    }
    let context = SpanContext::new(
        TraceId::from_hex(trace).ok()?,
        SpanId::from_hex(span).ok()?,
        TraceFlags::new(u8::from_str_radix(flags, 16).ok()?),
        true,
        TraceState::NONE,
    );
    context.is_valid().then_some(context)
}

/// A stream that is part of a span, which lasts until it is dropped.
pub fn within<T: 'static>(span: Span, items: BoxStream<'static, T>) -> BoxStream<'static, T> {
    match span.is_none() {
        true => items,
        false => Within { items, span }.boxed(),
    }
}

struct Within<T> {
    items: BoxStream<'static, T>,
    span: Span,
}

impl<T> Stream for Within<T> {
    type Item = T;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Polled<'_>) -> Poll<Option<T>> {
        let Self { items, span } = &mut *self;
        let _entered = span.enter();
        items.poll_next_unpin(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_context_comes_in_one_form() {
        let header = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        let context = parse(header.as_bytes()).unwrap();
        assert_eq!(context.trace_id().to_string(), "0af7651916cd43dd8448eb211c80319c");
        assert_eq!(context.span_id().to_string(), "b7ad6b7169203331");
        assert!(context.is_sampled() && context.is_remote());
        let unsampled = parse(header.replace("-01", "-00").as_bytes()).unwrap();
        assert!(!unsampled.is_sampled());
        for wrong in [
            "".to_owned(),
            "00".to_owned(),
            header.to_uppercase(),
            header.replace("00-0", "01-0"),
            header.replace("-b7", "-zz"),
            header.replace("-01", "-0"),
            format!("{header}-"),
            header.replace("0af7651916cd43dd8448eb211c80319c", &"0".repeat(32)),
            header.replace("b7ad6b7169203331", &"0".repeat(16)),
            header.replace("-b7ad", "+b7ad"),
            header.replace("-01", "-\u{e9}"),
            "-".repeat(HEADER_LEN),
            "0".repeat(1 << 20),
        ] {
            assert!(parse(wrong.as_bytes()).is_none(), "{wrong}");
        }
    }

    /// All in one, since the share is one for the process.
    #[test]
    fn as_many_requests_have_spans_as_are_to() {
        assert!(!is_on() && !is_chosen());
        for (share, expected) in [(1.0, 1000), (0.25, 250), (0.0, 0), (f64::NAN, 0)] {
            turn_on(share);
            assert!(is_on());
            let chosen = (0..1000).filter(|_| is_chosen()).count();
            assert!(chosen.abs_diff(expected) <= 1, "{chosen} of {share}");
        }
        // Nobody wants them, so there are none.
        turn_on(1.0);
        let mut headers = HeaderMap::new();
        tell(&call("layer", "what"), &mut headers);
        assert!(headers.is_empty());
    }
}
