//! Directories in a bucket or folder, in the layout that Snix uses as well: the closure of each
//! root in one object. Beside it each directory of ours has an object of its own, so that one alone
//! is found; of a closure that another program wrote, the directories read last are remembered.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    fmt, io, mem,
    sync::Arc,
};

use async_stream::try_stream;
use async_trait::async_trait;
use bytes::{Buf as _, Bytes, BytesMut};
use futures::{StreamExt as _, TryStreamExt as _, stream::BoxStream};
use object_store::{Error, ObjectStoreExt as _};
use quick_cache::{Weighter, sync::Cache};
use tokio::task::JoinSet;
use zstd::stream::raw::{Decoder, Operation as _};

use super::check_count;
use crate::{
    BoxError, Digest, Directory, DirectoryError, DirectoryService,
    closure::{InvalidClosure, check_leaves_first, check_root_first, walk},
    directory_service::DirectoryStream,
    grpc::MESSAGE_MAX,
    object_base::{
        NewObject, ObjectBase, ObjectFault, ObjectKind, compress_many, compressed_max, decompress,
    },
};

/// The largest encoded directory that is read or written, in bytes: what crosses gRPC as well.
const DIRECTORY_MAX: usize = MESSAGE_MAX;

/// The memory for directories read last, in bytes of their encodings.
const REMEMBERED_BYTES: u64 = 32 * 1024 * 1024;

/// What a directory is expected to take of it.
const DIRECTORY_BYTES: u64 = 1024;

/// The encoded directories of a closure that are held until its object is written, in bytes; the
/// others are read again.
const HELD_BYTES: usize = 256 * 1024 * 1024;

/// The directories that are uploaded together at most, and the bytes of their encodings from which
/// on no more are added to them.
const WAVE_DIRECTORIES: usize = 1024;
const WAVE_BYTES: usize = 4 * 1024 * 1024;

/// The bytes that are decompressed at once.
const DECOMPRESSED_LEN: usize = 128 * 1024;

/// Directories in objects. Clones share the connection and what is remembered.
#[derive(Clone)]
pub struct ObjectStoreDirectoryService {
    base: ObjectBase,
    remembered: Arc<Cache<Digest, Directory, EntryWeight>>,
}

#[derive(Clone)]
struct EntryWeight;

impl Weighter<Digest, Directory> for EntryWeight {
    fn weight(&self, _: &Digest, directory: &Directory) -> u64 {
        // About what an entry takes with a name of middling length.
        128 + 128 * directory.entries().len() as u64
    }
}

impl ObjectStoreDirectoryService {
    /// The directories at this place.
    pub fn new(base: ObjectBase) -> Self {
        let items = (REMEMBERED_BYTES / DIRECTORY_BYTES) as usize;
        let remembered = Cache::with_weighter(items, REMEMBERED_BYTES, EntryWeight);
        Self { base, remembered: Arc::new(remembered) }
    }

    /// What a fault of the objects means.
    fn error(&self, error: Error) -> DirectoryError {
        let service = self.base.to_string();
        let fault = ObjectFault::of(&error);
        let source: BoxError = error.into();
        match fault {
            ObjectFault::Denied => DirectoryError::PermissionDenied { service, source },
            ObjectFault::Full => DirectoryError::NoSpace { service, source },
            ObjectFault::Unavailable => DirectoryError::Unavailable { service, source },
            ObjectFault::Other => DirectoryError::Other { service, source },
        }
    }

    fn failed(&self, error: io::Error) -> DirectoryError {
        DirectoryError::Other { service: self.base.to_string(), source: error.into() }
    }

    fn corrupt(&self, digest: &Digest, reason: impl fmt::Display) -> DirectoryError {
        crate::verification::failed_far(self.base.url());
        DirectoryError::Corrupt { digest: *digest, reason: format!("{}: {reason}", self.base) }
    }

    /// The object of one directory, verified.
    async fn get_alone(&self, digest: &Digest) -> Result<Option<Directory>, DirectoryError> {
        let max = compressed_max(DIRECTORY_MAX);
        let found = self.base.get(ObjectKind::Directory, digest, max).await;
        let Some(compressed) = found.map_err(|error| self.error(error))? else { return Ok(None) };
        // A frame of ours tells its length, so that no more memory is taken than it needs.
        let length = zstd::zstd_safe::get_frame_content_size(&compressed).ok().flatten();
        let Some(length) = length.filter(|&length| length <= DIRECTORY_MAX as u64) else {
            return Err(self.corrupt(digest, "its object is no compressed directory"));
        };
        let encoded = decompress(&compressed, length as usize)
            .map_err(|error| self.corrupt(digest, error))?;
        if Digest::of(&encoded) != *digest {
            return Err(self.corrupt(digest, "its object holds another directory"));
        }
        Directory::decode(encoded).map(Some).map_err(|error| self.corrupt(digest, error))
    }

    /// The object of a root's closure, from its start; nothing of it is verified. `None` if there
    /// is no such object.
    async fn open_closure(&self, root: Digest) -> Result<Option<DirectoryStream>, DirectoryError> {
        let location = self.base.location(ObjectKind::Closure, &root);
        let found = match self.base.objects().get(&location).await {
            Ok(found) => found,
            Err(Error::NotFound { .. }) => return Ok(None),
            Err(error) => return Err(self.error(error)),
        };
        let service = self.clone();
        let decoded = try_stream! {
            let compressed = found.into_stream();
            let mut frames = Frames::new(compressed).map_err(|error| service.failed(error))?;
            loop {
                let frame = frames.next().await.map_err(|fault| match fault {
                    FrameFault::Objects(error) => service.error(error),
                    FrameFault::Encoding(reason) => service.corrupt(&root, reason),
                });
                let Some(encoded) = frame? else { break };
                yield Directory::decode(encoded).map_err(|error| service.corrupt(&root, error))?;
            }
        };
        Ok(Some(decoded.boxed()))
    }

    async fn has_one(&self, digest: Digest) -> Result<bool, DirectoryError> {
        Ok(self.has_many(&[digest]).await? == [true])
    }

    /// Makes the objects of single directories.
    async fn create_wave(&self, wave: Wave) -> Result<(), DirectoryError> {
        let mut stages = Vec::with_capacity(wave.stages.len());
        for stage in wave.stages {
            let (digests, encoded): (Vec<Digest>, Vec<Bytes>) = stage.into_iter().unzip();
            let compressed = compress_many(encoded).await.map_err(|error| self.failed(error))?;
            let object = |(digest, bytes)| NewObject { kind: ObjectKind::Directory, digest, bytes };
            stages.push(digests.into_iter().zip(compressed).map(object).collect());
        }
        self.base.create_many(stages).await.map_err(|error| self.error(error))
    }

    /// Waits until the wave before has been uploaded, if there is one.
    async fn uploaded(
        &self,
        uploads: &mut JoinSet<Result<(), DirectoryError>>,
    ) -> Result<(), DirectoryError> {
        while let Some(upload) = uploads.join_next().await {
            upload.unwrap_or_else(|error| Err(self.failed(io::Error::other(error))))?;
        }
        Ok(())
    }

    /// Makes the object of a closure, breadth first, from what is held and what is stored.
    async fn create_closure(
        &self,
        root: Digest,
        held: &HashMap<Digest, Bytes>,
    ) -> Result<(), DirectoryError> {
        let mut encoder = Some(
            zstd::stream::write::Encoder::new(Vec::new(), 0).map_err(|error| self.failed(error))?,
        );
        let mut named = HashSet::from([root]);
        let mut queue = VecDeque::from([root]);
        while let Some(digest) = queue.pop_front() {
            let encoded = match held.get(&digest) {
                Some(encoded) => encoded.clone(),
                None => {
                    let stored = self.get(&digest).await?;
                    stored.ok_or(DirectoryError::NotFound(digest))?.encode()
                }
            };
            let directory = Directory::decode(encoded.clone());
            let directory = directory.map_err(|error| self.corrupt(&digest, error))?;
            let below = directory.children().map(|(child, _)| child);
            queue.extend(below.filter(|child| named.insert(*child)));
            let length = u32::try_from(encoded.len())
                .map_err(|_| DirectoryError::Invalid(format!("directory {digest} is too large")))?;
            let mut writer = encoder.take().expect("it is put back");
            let written = tokio::task::spawn_blocking(move || {
                io::Write::write_all(&mut writer, &length.to_be_bytes())?;
                io::Write::write_all(&mut writer, &encoded)?;
                Ok::<_, io::Error>(writer)
            });
            let written = written.await.map_err(|error| self.failed(io::Error::other(error)))?;
            encoder = Some(written.map_err(|error| self.failed(error))?);
        }
        let finished = encoder.take().expect("it is put back").finish();
        let object = finished.map_err(|error| self.failed(error))?;
        let closure = NewObject { kind: ObjectKind::Closure, digest: root, bytes: object.into() };
        let created = self.base.create_many(vec![vec![closure]]).await;
        created.map_err(|error| self.error(error))
    }
}

/// Encoded directories that are uploaded together: each in a stage behind those below it.
#[derive(Default)]
struct Wave {
    stages: Vec<Vec<(Digest, Bytes)>>,
    stage_of: HashMap<Digest, usize>,
    bytes: usize,
}

impl Wave {
    fn add(&mut self, digest: Digest, directory: &Directory, encoded: Bytes) {
        let below = directory.children().filter_map(|(child, _)| self.stage_of.get(&child));
        let stage = below.max().map_or(0, |stage| stage + 1);
        self.stage_of.insert(digest, stage);
        self.bytes += encoded.len();
        if self.stages.len() <= stage {
            self.stages.resize_with(stage + 1, Vec::new);
        }
        self.stages[stage].push((digest, encoded));
    }

    fn is_full(&self) -> bool {
        self.stage_of.len() >= WAVE_DIRECTORIES || self.bytes >= WAVE_BYTES
    }
}

/// What is wrong with the object of a closure.
enum FrameFault {
    Objects(Error),
    Encoding(String),
}

/// The frames of a closure's object: each a big-endian length of four bytes and an encoding.
struct Frames {
    compressed: BoxStream<'static, Result<Bytes, Error>>,
    piece: Bytes,
    decoder: Decoder<'static>,
    /// Decompressed and not yet taken: at most a frame and [`DECOMPRESSED_LEN`].
    bytes: BytesMut,
    output: Vec<u8>,
    /// The decoder stands at the end of a zstd frame.
    complete: bool,
}

impl Frames {
    fn new(compressed: BoxStream<'static, Result<Bytes, Error>>) -> io::Result<Self> {
        Ok(Self {
            compressed,
            piece: Bytes::new(),
            decoder: Decoder::new()?,
            bytes: BytesMut::new(),
            output: vec![0; DECOMPRESSED_LEN],
            complete: false,
        })
    }

    async fn next(&mut self) -> Result<Option<Bytes>, FrameFault> {
        loop {
            if let Some((length, _)) = self.bytes.split_first_chunk::<4>() {
                let length = u32::from_be_bytes(*length) as usize;
                if length > DIRECTORY_MAX {
                    let reason = format!("its closure has a directory of {length} bytes");
                    return Err(FrameFault::Encoding(reason));
                }
                if self.bytes.len() - 4 >= length {
                    self.bytes.advance(4);
                    return Ok(Some(self.bytes.split_to(length).freeze()));
                }
            }
            if self.decompress()? {
                continue;
            }
            match self.compressed.try_next().await.map_err(FrameFault::Objects)? {
                Some(piece) => self.piece = piece,
                None if self.complete && self.bytes.is_empty() => return Ok(None),
                None => return Err(FrameFault::Encoding("its closure is cut off".to_owned())),
            }
        }
    }

    /// Decompresses some more of the piece at hand; whether there was something to be had.
    fn decompress(&mut self) -> Result<bool, FrameFault> {
        if self.piece.is_empty() {
            return Ok(false);
        }
        let done = self.decoder.run_on_buffers(&self.piece, &mut self.output);
        let done = done.map_err(|error| {
            FrameFault::Encoding(format!("its closure can't be decompressed: {error}"))
        })?;
        if done.bytes_read == 0 && done.bytes_written == 0 {
            return Err(FrameFault::Encoding("its closure can't be decompressed".to_owned()));
        }
        self.complete = done.remaining == 0;
        self.piece.advance(done.bytes_read);
        self.bytes.extend_from_slice(&self.output[..done.bytes_written]);
        Ok(true)
    }
}

#[async_trait]
impl DirectoryService for ObjectStoreDirectoryService {
    async fn get(&self, digest: &Digest) -> Result<Option<Directory>, DirectoryError> {
        if *digest == Digest::EMPTY {
            return Ok(Some(Directory::default()));
        }
        if let Some(directory) = self.remembered.get(digest) {
            return Ok(Some(directory));
        }
        if let Some(directory) = self.get_alone(digest).await? {
            self.remembered.insert(*digest, directory.clone());
            return Ok(Some(directory));
        }
        let Some(mut closure) = self.open_closure(*digest).await? else { return Ok(None) };
        match closure.try_next().await? {
            Some(root) if root.digest() == *digest => {
                self.remembered.insert(*digest, root.clone());
                Ok(Some(root))
            }
            _ => Err(self.corrupt(digest, "its closure starts with another directory")),
        }
    }

    async fn get_closure(&self, root: &Digest) -> Result<DirectoryStream, DirectoryError> {
        if let Some(closure) = self.open_closure(*root).await? {
            let remembered = self.remembered.clone();
            let checked = check_root_first(*root, closure);
            return Ok(checked
                .inspect_ok(move |directory| {
                    remembered.insert(directory.digest(), directory.clone());
                })
                .boxed());
        }
        if !self.has_one(*root).await? {
            return Err(DirectoryError::NotFound(*root));
        }
        Ok(walk(Arc::new(self.clone()), *root))
    }

    async fn has_many(&self, digests: &[Digest]) -> Result<Vec<bool>, DirectoryError> {
        check_count(digests.len())?;
        let known =
            |digest: &Digest| *digest == Digest::EMPTY || self.remembered.contains_key(digest);
        let known: Vec<_> = digests.iter().map(known).collect();
        let asked = digests.iter().zip(&known).filter(|(_, known)| !**known);
        let asked = asked.map(|(digest, _)| *digest).collect();
        let kinds = &[ObjectKind::Directory, ObjectKind::Closure];
        let present = self.base.has_many(kinds, asked).await.map_err(|error| self.error(error))?;
        let mut present = present.into_iter();
        Ok(known.into_iter().map(|known| known || present.next().unwrap_or(false)).collect())
    }

    async fn put_closure(&self, directories: DirectoryStream) -> Result<Digest, DirectoryError> {
        let checked = check_leaves_first(self, directories);
        let mut checked = std::pin::pin!(checked);
        let mut held = HashMap::new();
        let mut held_bytes = 0;
        let mut root = None;
        let mut wave = Wave::default();
        // A task, so that it goes on while the stream is waited for. It ends with this call.
        let mut uploads = JoinSet::new();
        while let Some((digest, directory)) = checked.try_next().await? {
            root = Some(digest);
            let encoded = directory.encode();
            if encoded.len() > DIRECTORY_MAX {
                return Err(DirectoryError::Invalid(format!("directory {digest} is too large")));
            }
            if held_bytes + encoded.len() <= HELD_BYTES {
                held_bytes += encoded.len();
                held.insert(digest, encoded.clone());
            }
            wave.add(digest, &directory, encoded);
            if wave.is_full() {
                // A directory is there only when all below it is.
                self.uploaded(&mut uploads).await?;
                let (service, full) = (self.clone(), mem::take(&mut wave));
                uploads.spawn(async move { service.create_wave(full).await });
            }
        }
        self.uploaded(&mut uploads).await?;
        self.create_wave(wave).await?;
        let root = root.ok_or(InvalidClosure::Empty)?;
        self.create_closure(root, &held).await?;
        Ok(root)
    }

    fn get_local(&self, _: &Digest) -> Option<Result<Option<Directory>, DirectoryError>> {
        None
    }
}

impl fmt::Display for ObjectStoreDirectoryService {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.base.fmt(f)
    }
}

impl fmt::Debug for ObjectStoreDirectoryService {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ObjectStoreDirectoryService({})", self.base)
    }
}

#[cfg(test)]
mod tests;
