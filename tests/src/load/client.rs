//! One client of a load: what it asks for, how often it tries, and whether the answer is right.

use std::{error::Error, ops::Range, sync::Arc, time::Instant};

use bytes::Bytes;
use cairn_castore::{
    Address, Blob, BlobService as _, ByteRange, Digest, Directory, DirectoryService as _, Name,
    Node, SymlinkTarget,
    blob_service::{BlobServiceExt as _, grpc::GrpcBlobService},
    directory::SizeRule,
    directory_service::grpc::GrpcDirectoryService,
    errors,
    grpc::{GrpcPeer, RETRIES, back_off},
    upstreams::{UpstreamError, Verdict},
};
use cairn_store::{
    PathInfo, PathInfoService as _, StorePath, path_info_service::grpc::GrpcPathInfoService,
};
use futures::{StreamExt as _, TryStreamExt as _, stream};

use super::{
    KINDS, Kind, Record,
    stored::{Closure, Content, Stored},
};
use crate::random::Random;

/// The small blobs of a request, and the most bytes of each.
const SMALL_BLOBS: usize = 8;
const SMALL_BYTES: u64 = 16 << 10;

/// The bytes of a large blob.
const LARGE_BYTES: Range<u64> = 1 << 20..4 << 20;

/// The most bytes of a range.
const RANGE_BYTES: u64 = 64 << 10;

/// The blobs that are asked for at once whether they are there, of which every other one is not.
const ASKED: usize = 16;

/// The directories of a closure below its root, and the files of each.
const CHILDREN: usize = 4;
const FILES: usize = 8;

/// How many of each kind of things there are before the load begins.
const PREPARED: usize = 8;

/// How many requests read at once what was acknowledged, and how many small blobs each of them reads.
const VERIFIED_AT_ONCE: usize = 32;
const VERIFIED_SMALL: usize = 64;

/// A request with all that it says, so that it can be made again.
enum Request {
    PutSmall(Vec<Content>, Vec<Blob>),
    PutLarge(Content, Bytes),
    PutClosure(Closure, Vec<Directory>),
    CalculateNar(Node),
    PutPathInfo(Box<PathInfo>),
    /// Each with whether it is there.
    Has(Vec<(Digest, bool)>),
    ReadSmall(Vec<Content>),
    ReadRange(Content, Range<u64>),
    GetClosure(Closure),
    GetPathInfo(Box<PathInfo>),
}

/// Why there was no answer, or not the right one.
enum Fault {
    /// The server could not be reached, or went away.
    Unreachable(String),
    /// Anything else.
    Wrong(String),
}

impl<E: UpstreamError + Error + 'static> From<E> for Fault {
    fn from(error: E) -> Self {
        let said = errors::message(&error);
        match error.verdict() {
            Verdict::Unreachable => Self::Unreachable(said),
            Verdict::Failed | Verdict::Refused => Self::Wrong(said),
        }
    }
}

/// Fails unless what came is what was to come.
fn expect(is_right: bool, what: &str) -> Result<(), Fault> {
    is_right
        .then_some(())
        .ok_or_else(|| Fault::Wrong(format!("{what} came that is not what was put")))
}

/// A client with a connection of its own.
pub(super) struct Client {
    blobs: GrpcBlobService,
    directories: GrpcDirectoryService,
    path_infos: GrpcPathInfoService,
    random: Random,
    stored: Arc<Stored>,
}

impl Client {
    /// A client of the server at a URL. Must be called within a tokio runtime.
    pub(super) fn new(url: &str, name: &str, stored: Arc<Stored>) -> Self {
        let Ok(Address::Grpc(address)) = url.parse() else { panic!("{url} is of another kind") };
        let peer = GrpcPeer::new(&address).unwrap();
        Self {
            blobs: GrpcBlobService::new(peer.clone()),
            directories: GrpcDirectoryService::new(peer.clone()),
            path_infos: GrpcPathInfoService::new(peer),
            random: Random::new(name),
            stored,
        }
    }

    /// Puts some of each kind, so that there is something to be read from the start.
    pub(super) async fn prepare(&mut self) {
        use Kind::{CalculateNar, PutClosure, PutLarge, PutPathInfo, PutSmall};
        for kind in [PutSmall, PutLarge, PutClosure, CalculateNar, PutPathInfo] {
            for _ in 0..PREPARED {
                let record = self.ask(kind).await;
                assert!(record.failure.is_none(), "{record:?}");
            }
        }
    }

    /// Makes one request after the other.
    pub(super) async fn work(mut self, until: Instant) -> Vec<Record> {
        let mut records = Vec::new();
        while Instant::now() < until {
            let kind = self.kind();
            records.push(self.ask(kind).await);
        }
        records
    }

    fn kind(&mut self) -> Kind {
        let mut chance = self.random.below(KINDS.iter().map(|(_, share, _)| share).sum());
        let chosen = KINDS.iter().find(|(_, share, _)| match chance.checked_sub(*share) {
            Some(rest) => {
                chance = rest;
                false
            }
            None => true,
        });
        chosen.expect("the chance is below the sum of the shares").0
    }

    /// Makes a request, and again when the server went away meanwhile.
    async fn ask(&mut self, kind: Kind) -> Record {
        let request = self.request(kind);
        let start = Instant::now();
        let mut retries = 0;
        let answer = loop {
            match self.send(&request).await {
                Err(Fault::Unreachable(_)) if retries < RETRIES => {
                    back_off(retries).await;
                    retries += 1;
                }
                answer => break answer,
            }
        };
        let end = Instant::now();
        let (bytes, failure) = match answer {
            Ok(bytes) => (bytes, None),
            Err(Fault::Unreachable(said) | Fault::Wrong(said)) => (0, Some(said)),
        };
        Record { kind, start, end, bytes, retries, failure }
    }

    /// A request of this kind about something that is new, or about anything that there is.
    fn request(&mut self, kind: Kind) -> Request {
        let Self { random, stored, .. } = self;
        match kind {
            Kind::PutSmall => {
                let blob = |_| {
                    let length = 1 + random.below(SMALL_BYTES);
                    let (content, bytes) = Content::new(stored.number(), length);
                    (content, Blob::new(bytes))
                };
                let (contents, blobs) = (0..SMALL_BLOBS).map(blob).unzip();
                Request::PutSmall(contents, blobs)
            }
            Kind::PutLarge => {
                let length = LARGE_BYTES.start + random.below(LARGE_BYTES.end - LARGE_BYTES.start);
                let (content, bytes) = Content::new(stored.number(), length);
                Request::PutLarge(content, bytes)
            }
            Kind::PutClosure => {
                let (closure, directories) = closure(random, stored);
                Request::PutClosure(closure, directories)
            }
            Kind::CalculateNar => {
                let Closure { root, size, .. } = stored.closures.any(random);
                Request::CalculateNar(Node::Directory { digest: root, size })
            }
            Kind::PutPathInfo => {
                let (node, nar) = stored.nars.any(random);
                let name = format!("load-{}", stored.number());
                let info = PathInfo {
                    store_path: StorePath::of_nar(&name, &nar.sha256).unwrap(),
                    node,
                    references: Vec::new(),
                    nar,
                    signatures: Vec::new(),
                    deriver: None,
                    ca: None,
                };
                Request::PutPathInfo(Box::new(info))
            }
            Kind::Has => {
                let asked = (0..ASKED).map(|number| match number % 2 {
                    0 => (stored.small.any(random).digest, true),
                    _ => (Digest::of(&random.bytes(Digest::LEN)), false),
                });
                Request::Has(asked.collect())
            }
            Kind::ReadSmall => {
                Request::ReadSmall((0..SMALL_BLOBS).map(|_| stored.small.any(random)).collect())
            }
            Kind::ReadRange => {
                let content = stored.large.any(random);
                let start = random.below(content.length);
                let end = content.length.min(start + 1 + random.below(RANGE_BYTES));
                Request::ReadRange(content, start..end)
            }
            Kind::GetClosure => Request::GetClosure(stored.closures.any(random)),
            Kind::GetPathInfo => Request::GetPathInfo(Box::new(stored.path_infos.any(random))),
        }
    }

    /// Makes a request once, and looks whether what comes is right: how many bytes of blobs went either
    /// way. What is acknowledged everybody learns.
    async fn send(&self, request: &Request) -> Result<u64, Fault> {
        let stored = &self.stored;
        match request {
            Request::PutSmall(contents, blobs) => {
                self.blobs.put_many(blobs.clone()).await?;
                stored.small.add(contents.iter().copied());
                return Ok(contents.iter().map(|content| content.length).sum());
            }
            Request::PutLarge(content, bytes) => {
                let digest = self.blobs.put_bytes(bytes.clone()).await?;
                expect(digest == content.digest, "a blob's digest")?;
                stored.large.add([*content]);
                return Ok(content.length);
            }
            Request::PutClosure(closure, directories) => {
                let directories = stream::iter(directories.clone()).map(Ok).boxed();
                let root = self.directories.put_closure(directories).await?;
                expect(root == closure.root, "a directory's digest")?;
                stored.closures.add([*closure]);
            }
            Request::CalculateNar(node) => {
                let nar = self.path_infos.calculate_nar(node).await?;
                stored.nars.add([(node.clone(), nar)]);
            }
            Request::PutPathInfo(info) => {
                let put = self.path_infos.put((**info).clone(), None).await?;
                expect(put == **info, "a path info")?;
                stored.path_infos.add([put]);
            }
            Request::Has(asked) => {
                let (digests, wanted): (Vec<_>, Vec<_>) = asked.iter().copied().unzip();
                expect(self.blobs.has_many(&digests).await? == wanted, "a list of what is there")?;
            }
            Request::ReadSmall(contents) => {
                let digests: Vec<_> = contents.iter().map(|content| content.digest).collect();
                let read = self.blobs.read_many(&digests).await?;
                let mut wanted =
                    contents.iter().map(|content| Some(content.bytes(0..content.length)));
                expect(read.into_iter().all(|blob| wanted.next() == Some(blob)), "a small blob")?;
                return Ok(contents.iter().map(|content| content.length).sum());
            }
            Request::ReadRange(content, range) => {
                let length = range.end - range.start;
                let asked = ByteRange { offset: range.start, length };
                let read = self.blobs.read_to_bytes(&content.digest, asked).await?;
                expect(read == content.bytes(range.clone()), "a range of a blob")?;
                return Ok(length);
            }
            Request::GetClosure(closure) => {
                // That each is the one that another names has been seen to.
                let got = self.directories.get_closure(&closure.root).await?;
                let got: Vec<_> = got.try_collect().await?;
                expect(got.len() == closure.directories, "a closure")?;
            }
            Request::GetPathInfo(info) => {
                let got = self.path_infos.get(info.store_path.hash()).await?;
                expect(got.as_ref() == Some(&**info), "a path info")?;
            }
        }
        Ok(0)
    }

    /// Reads all that was acknowledged; what of it did not come as it was put.
    pub(super) async fn verify(&self) -> Vec<String> {
        let small = self.stored.small.all();
        let small = small.chunks(VERIFIED_SMALL).map(|some| Request::ReadSmall(some.to_vec()));
        let large = self.stored.large.all().into_iter();
        let large = large.map(|content| Request::ReadRange(content, 0..content.length));
        let closures = self.stored.closures.all().into_iter().map(Request::GetClosure);
        let path_infos = self.stored.path_infos.all().into_iter();
        let path_infos = path_infos.map(|info| Request::GetPathInfo(Box::new(info)));
        let requests: Vec<_> = small.chain(large).chain(closures).chain(path_infos).collect();
        let sent = stream::iter(requests).map(|request| async move { self.send(&request).await });
        let answers = sent.buffer_unordered(VERIFIED_AT_ONCE);
        let lost = answers.filter_map(|answer| {
            std::future::ready(match answer {
                Ok(_) => None,
                Err(Fault::Unreachable(said) | Fault::Wrong(said)) => Some(said),
            })
        });
        lost.collect().await
    }
}

/// A tree of directories with files that are there, leaves first, unlike any other.
fn closure(random: &mut Random, stored: &Stored) -> (Closure, Vec<Directory>) {
    let name = |what: &str, number: usize| Name::try_from(format!("{what}-{number}").as_str());
    let mut directories = Vec::with_capacity(CHILDREN + 1);
    let mut entries = Vec::with_capacity(CHILDREN + 1);
    for child in 0..CHILDREN {
        let target = format!("{}", stored.number());
        let target = SymlinkTarget::try_from(Bytes::from(target)).unwrap();
        let mut files: Vec<_> = (0..FILES)
            .map(|file| (name("file", file).unwrap(), stored.small.any(random).node()))
            .collect();
        files.push((name("link", child).unwrap(), Node::Symlink { target }));
        let directory = Directory::new(files).unwrap();
        let (digest, size) = (directory.digest(), directory.size(SizeRule::Doubled));
        entries.push((name("folder", child).unwrap(), Node::Directory { digest, size }));
        directories.push(directory);
    }
    let root = Directory::new(entries).unwrap();
    let size = root.size(SizeRule::Doubled);
    let closure = Closure { root: root.digest(), size, directories: CHILDREN + 1 };
    directories.push(root);
    (closure, directories)
}
