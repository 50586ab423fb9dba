//! Which requests store something: they are counted, so that a server that ends can wait for them
//! and cut off the others, which can be made again elsewhere. What they store is not looked at.

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use tokio_util::task::TaskTracker;
use tonic::{body::Body, codegen::http};
use tower::{Layer, Service};

use super::is_one_of;

/// The methods whose interruption can't be mended by asking another server.
const METHODS: [&str; 3] = ["Put", "PutMany", "Delete"];

/// Counts the requests that write.
#[derive(Debug, Clone)]
pub(super) struct CountWrites(pub(super) TaskTracker);

/// A service whose writes are counted.
#[derive(Debug, Clone)]
pub(super) struct Counted<S> {
    inner: S,
    writes: TaskTracker,
}

impl<S> Layer<S> for CountWrites {
    type Service = Counted<S>;

    fn layer(&self, inner: S) -> Counted<S> {
        Counted { inner, writes: self.0.clone() }
    }
}

impl<S> Service<http::Request<Body>> for Counted<S>
where
    S: Service<http::Request<Body>, Future: Send + 'static>,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<S::Response, S::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let counted = is_one_of(request.uri().path(), &METHODS).then(|| self.writes.token());
        let answer = self.inner.call(request);
        Box::pin(async move {
            let answer = answer.await;
            drop(counted);
            answer
        })
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;
    use tokio::sync::oneshot;

    use super::*;

    #[tokio::test]
    async fn a_write_counts_until_it_is_answered() {
        let writes = TaskTracker::new();
        writes.close();
        for (path, counts) in [
            ("/snix.castore.v1.BlobService/Put", true),
            ("/cairn.v1.BlobService/PutMany", true),
            ("/snix.castore.v1.BlobService/Read", false),
            ("/Put/", false),
        ] {
            let (answer, answered) = oneshot::channel::<()>();
            let mut answered = Some(answered);
            let inner = tower::service_fn(move |_| answered.take().unwrap());
            let mut service = CountWrites(writes.clone()).layer(inner);
            let request = http::Request::builder().uri(path).body(Body::empty()).unwrap();
            let mut call = service.call(request);
            assert!((&mut call).now_or_never().is_none());
            assert_eq!(writes.wait().now_or_never().is_none(), counts, "{path}");
            answer.send(()).unwrap();
            call.await.unwrap();
            assert!(writes.wait().now_or_never().is_some(), "{path}");
        }
    }
}
