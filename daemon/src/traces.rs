//! Where spans are sent: to a collector that speaks OTLP over gRPC, in the background. What fails on the
//! way there is logged, and is nobody else's trouble. What the spans are is in `cairn_telemetry::trace`.

use std::time::Duration;

use cairn_telemetry::trace;
use opentelemetry::{KeyValue, trace::TracerProvider as _};
use opentelemetry_otlp::{SpanExporter, WithExportConfig as _, WithTonicConfig as _};
use opentelemetry_sdk::{
    Resource,
    trace::{SdkTracer, SdkTracerProvider},
};
use tonic::transport::ClientTlsConfig;
use url::Url;

use crate::exit::{Code, Failure};

/// How long a batch of spans may take to be sent.
const SEND_TIME: Duration = Duration::from_secs(10);

/// How long what is left may take at the end of the process.
const END_TIME: Duration = Duration::from_secs(3);

/// The most events, links and attributes of a span.
const PARTS_MAX: u32 = 32;

/// Which requests are traced, and where that goes.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Traces")]
pub(crate) struct TraceArgs {
    /// Send traces to this collector, which speaks OTLP over gRPC, as http://localhost:4317
    ///
    /// Off unless given. OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES name the process.
    #[arg(
        long,
        value_name = "URL",
        env = "OTEL_EXPORTER_OTLP_ENDPOINT",
        hide_env_values = true,
        value_parser = parse_endpoint
    )]
    otlp_endpoint: Option<Url>,
    /// The share of requests that are traced, from 0 to 1; those that come from a peer which traces
    /// them are anyway
    #[arg(
        long,
        value_name = "SHARE",
        env = "CAIRN_OTLP_SHARE",
        hide_env_values = true,
        default_value_t = 0.01,
        value_parser = parse_share
    )]
    otlp_share: f64,
}

fn parse_endpoint(text: &str) -> Result<Url, String> {
    match Url::parse(text) {
        Ok(url) if matches!(url.scheme(), "http" | "https") && url.has_host() => Ok(url),
        _ => Err("expected a URL, as http://localhost:4317".to_owned()),
    }
}

fn parse_share(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(share) if (0.0..=1.0).contains(&share) => Ok(share),
        _ => Err("expected a number from 0 to 1, as 0.01".to_owned()),
    }
}

/// The way of spans to a collector. What is on it when this ends is sent as far as there is time.
#[derive(Debug)]
pub(crate) struct Traces(SdkTracerProvider);

impl TraceArgs {
    /// Begins to send, if that is wanted. Must be called within a runtime, which does it.
    pub(crate) fn start(&self) -> Result<Option<Traces>, Failure> {
        let Some(url) = &self.otlp_endpoint else { return Ok(None) };
        let mut exporter = SpanExporter::builder()
            .with_tonic()
            .with_endpoint(url.as_str())
            .with_timeout(SEND_TIME);
        if url.scheme() == "https" {
            exporter = exporter.with_tls_config(ClientTlsConfig::new().with_native_roots());
        }
        let exporter = exporter.build().map_err(|error| {
            Failure::new(format!("traces can't be sent to {url}"), error).code(Code::Usage)
        })?;
        let resource = Resource::builder().with_attribute(version());
        let resource = match std::env::var_os("OTEL_SERVICE_NAME") {
            Some(_) => resource,
            None => resource.with_service_name("cairn"),
        };
        let provider = SdkTracerProvider::builder()
            .with_batch_exporter(exporter)
            .with_resource(resource.build())
            .with_max_attributes_per_span(PARTS_MAX)
            .with_max_events_per_span(PARTS_MAX)
            .with_max_links_per_span(PARTS_MAX)
            .build();
        trace::turn_on(self.otlp_share);
        Ok(Some(Traces(provider)))
    }
}

fn version() -> KeyValue {
    KeyValue::new("service.version", env!("CARGO_PKG_VERSION"))
}

impl Traces {
    /// What makes spans.
    pub(crate) fn tracer(&self) -> SdkTracer {
        self.0.tracer("cairn")
    }

    /// Sends what is left. Blocks for a while if the collector is not there.
    pub(crate) fn end(self) {
        if let Err(error) = self.0.shutdown_with_timeout(END_TIME) {
            tracing::debug!(%error, "the last spans were not sent");
        }
    }
}
