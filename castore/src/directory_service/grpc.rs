//! Directories of another process, over gRPC. A peer is never believed: what it sends is verified
//! before it is handed on. Whether it is cairn or speaks the wire of Snix alone is found out at the
//! first call that makes a difference.

use std::{
    collections::{HashMap, HashSet},
    fmt,
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use async_stream::try_stream;
use async_trait::async_trait;
use cairn_proto::{
    cairn::v1::{self as cairn, directory_service_client::DirectoryServiceClient as CairnClient},
    snix::castore::v1::{
        self as snix, directory_service_client::DirectoryServiceClient as SnixClient,
        get_directory_request::ByWhat,
    },
};
use futures::{StreamExt as _, TryStreamExt as _, stream};
use tonic::{Code, Status};

use super::{check_count, status::from_status};
use crate::{
    Digest, Directory, DirectoryError, DirectoryService,
    closure::{InvalidClosure, check_leaves_first, check_root_first},
    directory_service::DirectoryStream,
    grpc::{FAN_OUT, GrpcPeer, MESSAGE_MAX, PeerChannel, SendError},
};

/// The most directories that are fetched from a peer to be sent back to it: one that is not cairn
/// stores a closure only whole, even what it has.
const REPEATED_MAX: usize = 256 * 1024;

const PUT: &str = "/snix.castore.v1.DirectoryService/Put";

/// A peer's directories. Clones share the connection.
#[derive(Clone)]
pub struct GrpcDirectoryService {
    peer: GrpcPeer,
    /// The peer has nothing of `cairn.v1`.
    plain: Arc<AtomicBool>,
}

impl GrpcDirectoryService {
    /// The directories of this peer. Nothing is sent yet.
    pub fn new(peer: GrpcPeer) -> Self {
        Self { peer, plain: Arc::default() }
    }

    fn snix(&self) -> SnixClient<PeerChannel> {
        let client = SnixClient::new(self.peer.channel())
            .max_decoding_message_size(MESSAGE_MAX)
            .max_encoding_message_size(MESSAGE_MAX);
        crate::compressed!(self.peer, client)
    }

    fn cairn(&self) -> CairnClient<PeerChannel> {
        let client = CairnClient::new(self.peer.channel()).max_decoding_message_size(MESSAGE_MAX);
        crate::compressed!(self.peer, client)
    }

    /// What `cairn.v1` answers; `None` if the peer does not have it, which is remembered.
    async fn extended<T>(
        &self,
        answer: impl Future<Output = Result<T, Status>>,
    ) -> Result<Option<T>, Status> {
        if self.plain.load(Ordering::Relaxed) {
            return Ok(None);
        }
        match answer.await {
            Err(status) if status.code() == Code::Unimplemented => {
                self.plain.store(true, Ordering::Relaxed);
                Ok(None)
            }
            answer => answer.map(Some),
        }
    }

    fn error(&self, status: Status, asked: Option<&Digest>, what: &'static str) -> DirectoryError {
        from_status(status, self.peer.url(), asked, what)
    }

    /// Starts to read one directory or a closure. Nothing is verified but that it is directories.
    async fn open(
        &self,
        digest: Digest,
        recursive: bool,
    ) -> Result<DirectoryStream, DirectoryError> {
        let what = "read directories";
        let request =
            snix::GetDirectoryRequest { by_what: Some(ByWhat::Digest(digest.into())), recursive };
        let messages = self.peer.call(|| {
            let (mut client, request) = (self.snix(), request.clone());
            async move { client.get(request).await }
        });
        let messages = messages.await;
        let messages = messages.map_err(|status| self.error(status, Some(&digest), what))?;
        let service = self.clone();
        let directories = self.peer.receive(messages, Some).map(move |message| {
            let message = message.map_err(|status| service.error(status, Some(&digest), what))?;
            Directory::from_proto(message).map_err(|error| DirectoryError::Corrupt {
                digest,
                reason: format!("{}: {error}", service.peer),
            })
        });
        Ok(directories.boxed())
    }

    /// The stream with what a peer that is not cairn needs as well: the closures of children that
    /// are there already, each before the directory that names it.
    fn completed(&self, mut directories: DirectoryStream) -> DirectoryStream {
        let service = self.clone();
        try_stream! {
            let mut sent = HashSet::new();
            let mut repeated = 0;
            while let Some(directory) = directories.try_next().await? {
                let children = directory.children().map(|(digest, _)| digest);
                let unsent: Vec<_> = children.filter(|digest| !sent.contains(digest)).collect();
                if !unsent.is_empty() && service.is_plain().await? {
                    for child in unsent {
                        for below in service.leaves_first(child, &sent).await? {
                            repeated += 1;
                            if repeated > REPEATED_MAX {
                                Err(InvalidClosure::TooLarge(REPEATED_MAX))?;
                            }
                            sent.insert(below.digest());
                            yield below;
                        }
                    }
                }
                sent.insert(directory.digest());
                yield directory;
            }
        }
        .boxed()
    }

    async fn is_plain(&self) -> Result<bool, DirectoryError> {
        if !self.plain.load(Ordering::Relaxed) {
            self.has_many_extended(&[Digest::EMPTY]).await?;
        }
        Ok(self.plain.load(Ordering::Relaxed))
    }

    /// The part of a stored closure that is not among those sent, children before parents; nothing
    /// if the root is not there.
    async fn leaves_first(
        &self,
        root: Digest,
        sent: &HashSet<Digest>,
    ) -> Result<Vec<Directory>, DirectoryError> {
        let mut directories = HashMap::new();
        if sent.contains(&root) {
            return Ok(Vec::new());
        }
        let mut closure = match self.get_closure(&root).await {
            Ok(closure) => closure,
            Err(DirectoryError::NotFound(_)) => return Ok(Vec::new()),
            Err(error) => return Err(error),
        };
        loop {
            match closure.try_next().await {
                Ok(Some(directory)) if directories.len() < REPEATED_MAX => {
                    directories.insert(directory.digest(), directory);
                }
                Ok(Some(_)) => return Err(InvalidClosure::TooLarge(REPEATED_MAX).into()),
                Ok(None) => break,
                Err(DirectoryError::NotFound(_)) => return Ok(Vec::new()),
                Err(error) => return Err(error),
            }
        }
        // Depth first: a directory is taken once nothing below it is left.
        let mut ordered = Vec::with_capacity(directories.len());
        let mut path = vec![root];
        while let Some(digest) = path.last() {
            let Some(directory) = directories.get(digest) else {
                path.pop();
                continue;
            };
            let below = directory.children().map(|(child, _)| child);
            let below: Vec<_> = below
                .filter(|child| directories.contains_key(child) && !sent.contains(child))
                .collect();
            if !below.is_empty() {
                path.extend(below);
                continue;
            }
            let digest = *digest;
            path.pop();
            ordered.extend(directories.remove(&digest));
        }
        Ok(ordered)
    }

    async fn has_many_extended(
        &self,
        digests: &[Digest],
    ) -> Result<Option<Vec<bool>>, DirectoryError> {
        let what = "tell which directories it has";
        let request = cairn::HasManyRequest {
            digests: digests.iter().map(|&digest| digest.into()).collect(),
        };
        let answer = self.extended(self.peer.call(|| {
            let (mut client, request) = (self.cairn(), request.clone());
            async move { client.has_many(request).await }
        }));
        match answer.await.map_err(|status| self.error(status, None, what))? {
            Some(answer) if answer.present.len() == digests.len() => Ok(Some(answer.present)),
            Some(_) => {
                let message =
                    "the peer answered for another number of directories than it was asked for";
                Err(self.error(Status::internal(message), None, what))
            }
            None => Ok(None),
        }
    }
}

#[async_trait]
impl DirectoryService for GrpcDirectoryService {
    async fn get(&self, digest: &Digest) -> Result<Option<Directory>, DirectoryError> {
        if *digest == Digest::EMPTY {
            return Ok(Some(Directory::default()));
        }
        let found = async { self.open(*digest, false).await?.try_next().await };
        let directory = match found.await {
            Ok(Some(directory)) => directory,
            Ok(None) | Err(DirectoryError::NotFound(_)) => return Ok(None),
            Err(error) => return Err(error),
        };
        let sent = directory.digest();
        if sent != *digest {
            crate::verification::failed_far(self.peer.url());
            let reason = format!("{}: directory {sent} came for it", self.peer);
            return Err(DirectoryError::Corrupt { digest: *digest, reason });
        }
        Ok(Some(directory))
    }

    async fn get_closure(&self, root: &Digest) -> Result<DirectoryStream, DirectoryError> {
        let root = *root;
        if root == Digest::EMPTY {
            return Ok(stream::iter([Ok(Directory::default())]).boxed());
        }
        let mut directories = self.open(root, true).await?;
        // Snix answers for an unknown root with a stream of nothing.
        let Some(first) = directories.try_next().await? else {
            return Err(DirectoryError::NotFound(root));
        };
        let directories = stream::iter([Ok(first)]).chain(directories);
        Ok(check_root_first(root, directories.boxed()))
    }

    async fn has_many(&self, digests: &[Digest]) -> Result<Vec<bool>, DirectoryError> {
        check_count(digests.len())?;
        if digests.is_empty() {
            return Ok(Vec::new());
        }
        if let Some(present) = self.has_many_extended(digests).await? {
            let present = digests.iter().zip(present);
            return Ok(present.map(|(digest, has)| has || *digest == Digest::EMPTY).collect());
        }
        let asked: Vec<_> = digests
            .iter()
            .map(|&digest| async move { Ok(self.get(&digest).await?.is_some()) })
            .collect();
        stream::iter(asked).buffered(FAN_OUT).try_collect().await
    }

    async fn put_closure(&self, directories: DirectoryStream) -> Result<Digest, DirectoryError> {
        let root = Arc::new(parking_lot::Mutex::new(None));
        let (service, last) = (self.clone(), root.clone());
        let directories = self.completed(directories);
        // Checked here, so that the error is told as what it is, and the peer is sent no root that
        // is none.
        let messages = try_stream! {
            let checked = check_leaves_first(&service, directories);
            let mut checked = std::pin::pin!(checked);
            while let Some((digest, directory)) = checked.try_next().await? {
                *last.lock() = Some(digest);
                yield directory.to_proto();
            }
        };
        let answer: Result<snix::PutDirectoryResponse, _> =
            self.peer.send(PUT, messages.boxed()).await;
        let answer = answer.map_err(|error| match error {
            SendError::Source(error) => error,
            SendError::Status(status) => self.error(status, None, "store directories"),
        })?;
        let root = *root.lock();
        let stored = Digest::try_from(&*answer.root_digest).ok();
        match (root, stored) {
            (Some(root), Some(stored)) if root == stored => Ok(root),
            (root, _) => {
                let reason = match stored {
                    Some(stored) => format!("{}: it was stored as {stored}", self.peer),
                    None => format!("{}: it was stored without a digest", self.peer),
                };
                Err(DirectoryError::Corrupt { digest: root.unwrap_or(Digest::EMPTY), reason })
            }
        }
    }

    fn get_local(&self, _: &Digest) -> Option<Result<Option<Directory>, DirectoryError>> {
        None
    }
}

impl fmt::Display for GrpcDirectoryService {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.peer.fmt(f)
    }
}

impl fmt::Debug for GrpcDirectoryService {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "GrpcDirectoryService({})", self.peer)
    }
}

#[cfg(test)]
mod tests;
