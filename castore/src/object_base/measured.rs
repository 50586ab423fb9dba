//! The requests to an object store, counted and timed. What is asked for is not known here.

use std::{cell::Cell, fmt, ops::Range, sync::Arc, time::Instant};

use async_trait::async_trait;
use bytes::Bytes;
use cairn_telemetry::{
    inventory::{
        OBJECT_OUTCOME, OBJECT_STORE_DURATION, OBJECT_STORE_READ, OBJECT_STORE_REQUESTS,
        OBJECT_STORE_RETRIES, OBJECT_STORE_WRITTEN, ObjectOperation, ObjectOutcome,
    },
    operations, trace,
};
use futures::{StreamExt as _, stream::BoxStream};
use object_store::{
    ClientOptions, CopyOptions, Error, GetOptions, GetResult, GetResultPayload, ListResult,
    MultipartUpload, ObjectMeta, ObjectStore, PutMultipartOptions, PutOptions, PutPayload,
    PutResult, RenameOptions, Result, UploadPart,
    client::{
        HttpClient, HttpConnector, HttpError, HttpRequest, HttpResponse, HttpService,
        ReqwestConnector,
    },
    path::Path,
};
use tokio::task_local;
use tracing::{Instrument as _, Span};

task_local! {
    /// How often the request of this task was sent.
    static SENT: Cell<u64>;
}

/// An object store whose requests are counted.
#[derive(Debug)]
pub(super) struct Measured(pub(super) Arc<dyn ObjectStore>);

impl fmt::Display for Measured {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Counts what comes of a request, also of one that nobody waits for any more.
struct Asked {
    operation: ObjectOperation,
    start: Instant,
    outcome: ObjectOutcome,
    _under_way: operations::UnderWay,
}

impl Asked {
    fn new(operation: ObjectOperation) -> Self {
        Self {
            operation,
            start: Instant::now(),
            outcome: ObjectOutcome::Cancelled,
            _under_way: operations::OBJECT_STORE.begin(operation as usize),
        }
    }

    fn note<T>(&mut self, result: &Result<T>) {
        self.outcome = match result {
            Ok(_) => ObjectOutcome::Ok,
            Err(Error::NotFound { .. }) => ObjectOutcome::NotFound,
            Err(Error::AlreadyExists { .. } | Error::Precondition { .. }) => ObjectOutcome::Exists,
            Err(Error::PermissionDenied { .. } | Error::Unauthenticated { .. }) => {
                ObjectOutcome::Denied
            }
            Err(_) => ObjectOutcome::Failed,
        };
    }
}

impl Drop for Asked {
    fn drop(&mut self) {
        let operation = self.operation as usize;
        let cell = operation * OBJECT_OUTCOME.values.len() + self.outcome as usize;
        OBJECT_STORE_REQUESTS.add_at(cell, 1);
        OBJECT_STORE_DURATION.observe_at(operation, self.start.elapsed());
    }
}

async fn measured<T>(
    operation: ObjectOperation,
    request: impl Future<Output = Result<T>>,
) -> Result<T> {
    measured_within(&span(operation), operation, request).await
}

fn span(operation: ObjectOperation) -> Span {
    trace::ask("object store", operation.name())
}

async fn measured_within<T>(
    span: &Span,
    operation: ObjectOperation,
    request: impl Future<Output = Result<T>>,
) -> Result<T> {
    let mut asked = Asked::new(operation);
    let request = request.instrument(span.clone());
    let (result, sent) =
        SENT.scope(Default::default(), async { (request.await, SENT.with(Cell::get)) }).await;
    OBJECT_STORE_RETRIES.add(sent.saturating_sub(1));
    asked.note(&result);
    if asked.outcome == ObjectOutcome::Failed {
        trace::failed(span, "the object store failed");
    }
    result
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl ObjectStore for Measured {
    async fn put_opts(
        &self,
        location: &Path,
        payload: PutPayload,
        options: PutOptions,
    ) -> Result<PutResult> {
        let length = payload.content_length() as u64;
        let put = self.0.put_opts(location, payload, options);
        let put = measured(ObjectOperation::Put, put).await?;
        OBJECT_STORE_WRITTEN.add(length);
        Ok(put)
    }

    async fn put_multipart_opts(
        &self,
        location: &Path,
        options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        let upload = self.0.put_multipart_opts(location, options);
        let upload = measured(ObjectOperation::Multipart, upload).await?;
        Ok(Box::new(MeasuredUpload(upload)))
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        let operation = if options.head { ObjectOperation::Head } else { ObjectOperation::Get };
        let span = span(operation);
        let got = measured_within(&span, operation, self.0.get_opts(location, options));
        let mut got = got.await?;
        if let GetResultPayload::Stream(pieces) = got.payload {
            // The time of an answer is that to its first byte: who reads it takes the rest. A trace is
            // looked at for where time goes, so the rest is in its span.
            let counted = pieces.inspect(|piece| {
                if let Ok(piece) = piece {
                    OBJECT_STORE_READ.add(piece.len() as u64);
                }
            });
            got.payload = GetResultPayload::Stream(trace::within(span, counted.boxed()));
        }
        Ok(got)
    }

    async fn get_ranges(&self, location: &Path, ranges: &[Range<u64>]) -> Result<Vec<Bytes>> {
        let got = self.0.get_ranges(location, ranges);
        let got = measured(ObjectOperation::Get, got).await?;
        OBJECT_STORE_READ.add(got.iter().map(|bytes| bytes.len() as u64).sum());
        Ok(got)
    }

    fn delete_stream(
        &self,
        locations: BoxStream<'static, Result<Path>>,
    ) -> BoxStream<'static, Result<Path>> {
        each(ObjectOperation::Delete, self.0.delete_stream(locations))
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        whole(ObjectOperation::List, self.0.list(prefix))
    }

    fn list_with_offset(
        &self,
        prefix: Option<&Path>,
        offset: &Path,
    ) -> BoxStream<'static, Result<ObjectMeta>> {
        whole(ObjectOperation::List, self.0.list_with_offset(prefix, offset))
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        measured(ObjectOperation::List, self.0.list_with_delimiter(prefix)).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        measured(ObjectOperation::Copy, self.0.copy_opts(from, to, options)).await
    }

    async fn rename_opts(&self, from: &Path, to: &Path, options: RenameOptions) -> Result<()> {
        measured(ObjectOperation::Copy, self.0.rename_opts(from, to, options)).await
    }
}

/// A stream of which each item is what came of a request.
fn each<T: 'static>(
    operation: ObjectOperation,
    items: BoxStream<'static, Result<T>>,
) -> BoxStream<'static, Result<T>> {
    items.inspect(move |item| Asked::new(operation).note(item)).boxed()
}

/// A stream that is what came of one request.
fn whole<T: Send + 'static>(
    operation: ObjectOperation,
    mut items: BoxStream<'static, Result<T>>,
) -> BoxStream<'static, Result<T>> {
    async_stream::stream! {
        let mut asked = Asked::new(operation);
        while let Some(item) = items.next().await {
            asked.note(&item);
            yield item;
        }
        if asked.outcome == ObjectOutcome::Cancelled {
            // There was nothing to list.
            asked.outcome = ObjectOutcome::Ok;
        }
    }
    .boxed()
}

/// The upload of a large object, of which each part is a request.
#[derive(Debug)]
struct MeasuredUpload(Box<dyn MultipartUpload>);

#[async_trait]
impl MultipartUpload for MeasuredUpload {
    fn put_part(&mut self, data: PutPayload) -> UploadPart {
        let length = data.content_length() as u64;
        let part = self.0.put_part(data);
        Box::pin(async move {
            measured(ObjectOperation::Multipart, part).await?;
            OBJECT_STORE_WRITTEN.add(length);
            Ok(())
        })
    }

    async fn complete(&mut self) -> Result<PutResult> {
        measured(ObjectOperation::Multipart, self.0.complete()).await
    }

    async fn abort(&mut self) -> Result<()> {
        measured(ObjectOperation::Multipart, self.0.abort()).await
    }
}

/// Makes connections that count how often something is sent.
#[derive(Debug)]
pub(super) struct Connector;

impl HttpConnector for Connector {
    fn connect(&self, options: &ClientOptions) -> Result<HttpClient> {
        let client = ReqwestConnector::default().connect(options)?;
        Ok(HttpClient::new(Connection(client)))
    }
}

#[derive(Debug)]
struct Connection(HttpClient);

#[async_trait]
impl HttpService for Connection {
    async fn call(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        // Outside of a request, as when a token is fetched, nobody wants to know.
        let _ = SENT.try_with(|sent| sent.set(sent.get() + 1));
        self.0.execute(request).await
    }
}
