//! Tells a peer of a tree while it is being imported, so that the peer hashes its NAR meanwhile.
//! Nothing depends on it: a peer that does not want to know, or does not keep up, is told no more.

use std::{convert::Infallible, mem};

use cairn_castore::{
    Name, Node,
    blob_service::SMALL_BLOB_MAX,
    grpc::{GrpcPeer, SendError},
    import::{TreeEvent, TreeObserver},
};
use cairn_proto::cairn::v1::{TellTreeRequest, TellTreeResponse, TreeStep, tree_step::Step};
use futures::StreamExt as _;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::task::AbortOnDropHandle;

/// The bytes of the steps in a message, but for the last one.
const MESSAGE_BYTES: usize = 16 * 1024;

/// The bytes of the files in a message, but for the last one: what the peer waits for at once.
const MESSAGE_CONTENTS: u64 = 1024 * 1024;

/// What a step takes at most beside its name and target, in bytes.
const STEP_BYTES: usize = 64;

/// The messages that wait to be sent. A peer that takes them too slowly for that is told no more.
const MESSAGES_AHEAD: usize = 1024;

const TELL_TREE: &str = "/cairn.v1.PathInfoService/TellTree";

/// Tells of one tree. If it is dropped, the peer is told no more.
#[derive(Debug)]
pub struct TreeTeller {
    /// `None` when there is nobody to tell, or no tree to tell of.
    messages: Option<mpsc::Sender<TellTreeRequest>>,
    sending: AbortOnDropHandle<()>,
    depth: usize,
    /// The entry that has begun.
    name: Option<Name>,
    /// The file that has begun: its size, and whether it is executable.
    file: (u64, bool),
    steps: Vec<TreeStep>,
    bytes: usize,
    contents: u64,
}

impl TreeTeller {
    /// Tells this peer, as soon as there is something to tell. Must be called within a tokio
    /// runtime.
    pub(super) fn new(peer: GrpcPeer) -> Self {
        let (messages, waiting) = mpsc::channel(MESSAGES_AHEAD);
        Self {
            messages: Some(messages),
            sending: AbortOnDropHandle::new(tokio::spawn(send(peer, waiting))),
            depth: 0,
            name: None,
            file: (0, false),
            steps: Vec::new(),
            bytes: 0,
            contents: 0,
        }
    }

    /// Waits until the peer has hashed what it was told of, or does not want to know.
    pub async fn finish(mut self) {
        self.send_steps();
        if self.messages.take().is_some() {
            // Whether it did is told by how long the put takes that follows.
            let _ = (&mut self.sending).await;
        }
    }

    fn tell(&mut self, step: Step, bytes: usize) {
        self.steps.push(TreeStep { step: Some(step) });
        self.bytes += bytes + STEP_BYTES;
        if self.bytes >= MESSAGE_BYTES || self.contents >= MESSAGE_CONTENTS {
            self.send_steps();
        }
    }

    fn tell_entry(&mut self, node: &Node) {
        let Some(name) = self.name.take() else {
            // The root is no directory: there is nothing to gain.
            self.messages = None;
            return;
        };
        let bytes = match node {
            Node::Symlink { target } => target.as_bytes().len(),
            _ => 0,
        };
        self.tell(Step::Entry(node.to_entry(Some(&name))), name.as_bytes().len() + bytes);
    }

    fn send_steps(&mut self) {
        self.bytes = 0;
        self.contents = 0;
        let steps = mem::take(&mut self.steps);
        if let Some(messages) = &self.messages
            && !steps.is_empty()
            && let Err(error) = messages.try_send(TellTreeRequest { steps })
        {
            // The import must not wait: the peer may be waiting for what it would upload next.
            tracing::debug!(%error, "the peer is told no more of the tree");
            self.messages = None;
        }
    }
}

impl TreeObserver for TreeTeller {
    fn observe(&mut self, event: TreeEvent<'_>) {
        if self.messages.is_none() {
            return;
        }
        match event {
            TreeEvent::DirectoryStart => {
                self.depth += 1;
                if let Some(name) = self.name.take() {
                    let bytes = name.as_bytes().len();
                    self.tell(Step::Enter(name.as_bytes().clone()), bytes);
                }
            }
            TreeEvent::DirectoryEnd => {
                self.depth -= 1;
                self.tell(Step::Leave(true), 0);
            }
            TreeEvent::EntryStart(name) => self.name = Some(name.clone()),
            TreeEvent::EntryEnd | TreeEvent::FileBytes(_) => {}
            TreeEvent::FileStart { size, executable } => self.file = (size, executable),
            TreeEvent::FileEnd(digest) => {
                let (size, executable) = self.file;
                if size <= SMALL_BLOB_MAX as u64 {
                    self.contents += size;
                }
                self.tell_entry(&Node::File { digest: *digest, size, executable });
            }
            TreeEvent::Symlink(target) => {
                self.tell_entry(&Node::Symlink { target: target.clone() });
            }
        }
    }
}

async fn send(peer: GrpcPeer, mut waiting: mpsc::Receiver<TellTreeRequest>) {
    let Some(first) = waiting.recv().await else { return };
    let first = futures::stream::iter([first]);
    let messages = first.chain(ReceiverStream::new(waiting)).map(Ok::<_, Infallible>).boxed();
    let answer: Result<TellTreeResponse, SendError<_>> = peer.send(TELL_TREE, messages).await;
    if let Err(error) = answer {
        tracing::debug!(peer = %peer, ?error, "the peer does not want to be told of a tree");
    }
}
