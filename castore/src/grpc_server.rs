//! What the gRPC servers of both services share: how requests are read and errors are told. The
//! services themselves are in their adapters.

use bytes::Bytes;
use futures::{
    StreamExt as _,
    future::Either,
    stream::{self, BoxStream},
};
use tokio::sync::mpsc;
use tonic::{Status, Streaming};

use crate::Digest;

/// The messages of a stream that are received ahead of the service that takes them.
const RECEIVED_AHEAD: usize = 2;

/// Hands a client's stream to `handle`. A stream whose client has gone ends with an error there: as
/// it comes from tonic it would end as if it were whole.
pub async fn receive<M, T, F>(
    mut messages: Streaming<M>,
    handle: impl FnOnce(BoxStream<'static, Result<M, Status>>) -> F,
) -> T
where
    M: Send + 'static,
    F: Future<Output = T>,
{
    let (sender, receiver) = mpsc::channel(RECEIVED_AHEAD);
    let forward = async move {
        loop {
            let next = messages.message().await;
            let last = !matches!(next, Ok(Some(_)));
            if last {
                // A call whose client has gone is dropped at the next wait, and so here.
                tokio::task::yield_now().await;
            }
            if sender.send(next.transpose()).await.is_err() || last {
                break;
            }
        }
    };
    let received = stream::unfold(Some(receiver), async |receiver| {
        let mut receiver: mpsc::Receiver<Option<Result<M, Status>>> = receiver?;
        match receiver.recv().await {
            Some(Some(Ok(message))) => Some((Ok(message), Some(receiver))),
            Some(Some(Err(status))) => Some((Err(status), None)),
            Some(None) => None,
            None => Some((Err(Status::cancelled("the client has gone")), None)),
        }
    });
    let answer = std::pin::pin!(handle(received.boxed()));
    match futures::future::select(answer, std::pin::pin!(forward)).await {
        Either::Left((answer, _)) => answer,
        Either::Right(((), answer)) => answer.await,
    }
}

/// The digest in a request.
#[allow(clippy::result_large_err)]
pub fn digest(bytes: &[u8]) -> Result<Digest, Status> {
    Digest::try_from(bytes).map_err(|error| Status::invalid_argument(error.to_string()))
}

/// At most `max` digests in a request.
#[allow(clippy::result_large_err)]
pub fn digests(bytes: &[Bytes], max: usize) -> Result<Vec<Digest>, Status> {
    if bytes.len() > max {
        let asked = bytes.len();
        let message = format!("{asked} digests in one request, which takes {max}");
        return Err(Status::invalid_argument(message));
    }
    bytes.iter().map(|bytes| digest(bytes)).collect()
}
