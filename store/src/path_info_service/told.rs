//! A server's side of being told of trees while they are stored: their NARs are hashed meanwhile,
//! and remembered until the path infos come. How that is done is in `nar::told`.

use std::{collections::VecDeque, fmt, mem, sync::Arc};

use cairn_castore::{
    BlobService, DirectoryService, Node, blob_service::fresh::FreshBlobs, errors::message,
};
use cairn_proto::cairn::v1::{TellTreeRequest, TreeStep};
use futures::stream;
use parking_lot::Mutex;
use prost::Message as _;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tonic::{Status, Streaming};

use super::{NarWitness, PathInfoError, contents};
use crate::{
    nar::{
        NarError,
        told::{self, ToldContents},
    },
    path_info::{NarInfo, PathInfo},
};

/// The trees that are told of at the same time. Who comes in addition has to do without.
const TREES_AT_ONCE: usize = 8;

/// What is told of a tree and waits for the files' bytes, in bytes of memory.
const WAITING_BYTES: usize = 32 * 1024 * 1024;

/// The NARs that are remembered until a path info comes for them.
const NARS_REMEMBERED: usize = 256;

/// Hashes the trees that clients tell of.
pub struct ToldTrees {
    blobs: Arc<dyn BlobService>,
    directories: Arc<dyn DirectoryService>,
    fresh: Arc<FreshBlobs>,
    trees: Semaphore,
    nars: Mutex<VecDeque<(Node, NarInfo)>>,
}

impl ToldTrees {
    /// Trees on their way to these services. `fresh` gets the blobs as they come.
    pub fn new(
        blobs: Arc<dyn BlobService>,
        directories: Arc<dyn DirectoryService>,
        fresh: Arc<FreshBlobs>,
    ) -> Self {
        let trees = Semaphore::new(TREES_AT_ONCE);
        Self { blobs, directories, fresh, trees, nars: Mutex::default() }
    }

    /// Hashes the tree that a client tells of, and gives its root.
    pub(super) async fn hear(&self, messages: Streaming<TellTreeRequest>) -> Result<Node, Status> {
        let busy = |_| Status::resource_exhausted("enough trees are being told of");
        let _turn = self.trees.try_acquire().map_err(busy)?;
        let contents = ToldContents { blobs: Arc::clone(&self.blobs), fresh: self.fresh.listen() };
        let (sender, waiting) = mpsc::unbounded_channel();
        let steps = stream::unfold(waiting, async |mut waiting| {
            let (steps, permit): Waiting = waiting.recv().await?;
            drop(permit);
            Some((Ok::<_, NarError>(steps), waiting))
        });
        let hash = async {
            let hashed = told::hash(steps, contents).await;
            hashed.map_err(|error| Status::invalid_argument(message(&error)))
        };
        let ((), (root, nar)) = futures::try_join!(receive(messages, sender), hash)?;
        let mut nars = self.nars.lock();
        nars.retain(|(node, _)| *node != root);
        if nars.len() >= NARS_REMEMBERED {
            nars.pop_front();
        }
        nars.push_back((root.clone(), nar));
        Ok(root)
    }

    /// The witness of a path's tree, if it was told of. Fails if the store does not have all of
    /// the tree.
    pub(super) async fn witness(
        &self,
        info: &PathInfo,
    ) -> Result<Option<NarWitness>, PathInfoError> {
        let known = |(node, nar): &(Node, NarInfo)| (*node == info.node).then_some(*nar);
        let Some(nar) = self.nars.lock().iter().find_map(known) else { return Ok(None) };
        let name = info.store_path.to_string();
        contents::check(&name, &info.node, &*self.blobs, &*self.directories).await?;
        Ok(Some(NarWitness::new(info.node.clone(), nar)))
    }
}

impl fmt::Debug for ToldTrees {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ToldTrees({} remembered)", self.nars.lock().len())
    }
}

/// Steps, and the room that they take.
type Waiting = (Vec<TreeStep>, OwnedSemaphorePermit);

/// Takes what comes at once, whatever is being waited for: unread messages would take the room of
/// the blobs on the same connection.
async fn receive(
    mut messages: Streaming<TellTreeRequest>,
    sender: mpsc::UnboundedSender<Waiting>,
) -> Result<(), Status> {
    let room = Arc::new(Semaphore::new(WAITING_BYTES));
    while let Some(message) = messages.message().await? {
        let bytes = message.encoded_len() + message.steps.len() * mem::size_of::<TreeStep>();
        let permit = u32::try_from(bytes)
            .ok()
            .and_then(|bytes| Arc::clone(&room).try_acquire_many_owned(bytes).ok());
        let Some(permit) = permit else {
            return Err(Status::resource_exhausted("told faster than blobs come"));
        };
        // The hasher is gone only when it has failed, which is told.
        if sender.send((message.steps, permit)).is_err() {
            break;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
