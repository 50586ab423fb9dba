//! Reads NARs into a store: strictly, so that what is read is written again byte for byte, and in
//! bounded memory. What the tree is to be called is not known here.

use std::sync::Arc;

use bytes::{Buf as _, Bytes, BytesMut};
use cairn_castore::{
    Blob, BlobService, Directory, DirectoryError, DirectoryService, Name, Node, SymlinkTarget,
    blob_service::{PUT_MANY_BYTES, SMALL_BLOB_MAX},
    directory::SizeRule,
};
use futures::{StreamExt as _, future};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _},
    sync::mpsc,
};
use tokio_stream::wrappers::ReceiverStream;

use super::{
    CONTENTS_MAX, DEPTH_MAX, ENTRIES_MAX, NarError,
    hash::ByteHasher,
    writer::{CLOSE, MAGIC, NAME, NODE, OPEN, TARGET, padding},
};
use crate::path_info_service::NarWitness;

/// The bytes that are read at once.
const READ_LEN: usize = 64 * 1024;
/// The pieces of a large file that wait to be stored.
const PIECES_AHEAD: usize = 8;
/// The small files that are stored together.
const BLOBS_HELD: usize = 4096;
/// The bytes of small files that are stored together.
const BYTES_HELD: usize = PUT_MANY_BYTES - SMALL_BLOB_MAX;
/// The directories that wait for the files before them to be stored.
const DIRECTORIES_HELD: usize = 4096;
/// The entries in them.
const ENTRIES_HELD: usize = 65_536;
/// The directories on their way to the directory service.
const DIRECTORIES_AHEAD: usize = 16;
/// The entries in directories that have begun and not ended: what is in memory is bounded by it.
const OPEN_ENTRIES_MAX: u64 = 1 << 22;
/// The length of the longest word of the format.
const WORD_MAX: u64 = 13;

/// Stores the tree in a NAR, and witnesses it. The NAR has to end where its tree does.
///
/// If that fails, parts of the tree may be in the store.
pub async fn read(
    nar: impl AsyncRead + Send + Unpin,
    blobs: Arc<dyn BlobService>,
    directories: Arc<dyn DirectoryService>,
) -> Result<NarWitness, NarError> {
    let (sender, receiver) = mpsc::channel(DIRECTORIES_AHEAD);
    let storing = directories.put_closure(ReceiverStream::new(receiver).boxed());
    let reading = async move {
        let mut reader = Reader {
            input: Input { source: nar, buffer: BytesMut::new(), hash: ByteHasher::default() },
            store: Store {
                blobs: &*blobs,
                directories: sender,
                held_blobs: Vec::new(),
                held_bytes: 0,
                held_directories: Vec::new(),
                held_entries: 0,
            },
            entries: 0,
            open_entries: 0,
            contents: 0,
        };
        let read = reader.read().await;
        let Reader { input, store, .. } = reader;
        match read {
            Ok(node) => Ok(NarWitness::new(node, input.hash.finish())),
            Err(error) => {
                // Else the directories so far would be taken for all.
                let abort = DirectoryError::Invalid("the NAR is not whole".to_owned());
                // Nobody receives if the directory service has failed already.
                let _ = store.directories.send(Err(abort)).await;
                Err(error)
            }
        }
    };
    let (read, stored) = future::join(reading, storing).await;
    let witness = match read {
        Ok(witness) => witness,
        Err(Stopped::Nar(error)) => return Err(error),
        Err(Stopped::DirectoriesGone) => {
            let what = "the directory service answered before the end".to_owned();
            return Err(stored.err().unwrap_or(DirectoryError::Invalid(what)).into());
        }
    };
    // The closure of a tree without a directory is empty, about which the service rightly complains.
    if let Node::Directory { digest, .. } = witness.node()
        && *digest != stored?
    {
        let what = "the directory service stored another root".to_owned();
        return Err(DirectoryError::Invalid(what).into());
    }
    Ok(witness)
}

/// Why reading has ended.
enum Stopped {
    Nar(NarError),
    /// The directory service takes no more; its own error is the reason.
    DirectoriesGone,
}

impl<E: Into<NarError>> From<E> for Stopped {
    fn from(error: E) -> Self {
        Self::Nar(error.into())
    }
}

/// A directory that has begun.
#[derive(Default)]
struct OpenDirectory {
    entries: Vec<(Name, Node)>,
    /// The entry that has begun.
    name: Option<Name>,
}

struct Reader<'a, R> {
    input: Input<R>,
    store: Store<'a>,
    entries: u64,
    open_entries: u64,
    contents: u64,
}

impl<R: AsyncRead + Send + Unpin> Reader<'_, R> {
    async fn read(&mut self) -> Result<Node, Stopped> {
        self.input.expect(&MAGIC, "no magic").await?;
        let mut stack: Vec<OpenDirectory> = Vec::new();
        let root = loop {
            let mut ended = self.node_start(&mut stack).await?;
            // Until the next node begins.
            let root = loop {
                let Some(directory) = stack.last_mut() else { break ended };
                if let Some(node) = ended.take() {
                    self.input.expect(&CLOSE, "no end of an entry").await?;
                    let name = directory.name.take().expect("a node within begins with its name");
                    directory.entries.push((name, node));
                }
                let start = self.input.hash.size();
                match &*self.input.string(WORD_MAX).await? {
                    b"entry" => {
                        self.entry_start(directory).await?;
                        break None;
                    }
                    b")" => {
                        let entries = std::mem::take(&mut directory.entries);
                        stack.pop();
                        ended = Some(self.directory_end(entries, start).await?);
                    }
                    _ => return Err(format("neither an entry nor an end", start).into()),
                }
            };
            if let Some(root) = root {
                break root;
            }
        };
        self.input.expect_end().await?;
        self.store.flush().await?;
        Ok(root)
    }

    /// Reads a node up to its end, or a directory up to its first entry.
    async fn node_start(
        &mut self,
        stack: &mut Vec<OpenDirectory>,
    ) -> Result<Option<Node>, Stopped> {
        self.input.expect(&OPEN, "no node").await?;
        let start = self.input.hash.size();
        match &*self.input.string(WORD_MAX).await? {
            b"directory" => {
                if stack.len() >= DEPTH_MAX {
                    let max = DEPTH_MAX as u64;
                    let what = "directories in each other";
                    return Err(NarError::TooLarge { what, max }.into());
                }
                stack.push(OpenDirectory::default());
                Ok(None)
            }
            b"regular" => self.file().await.map(Some),
            b"symlink" => {
                self.input.expect(&TARGET, "no target").await?;
                let start = self.input.hash.size();
                let target = self.input.string(SymlinkTarget::MAX_LEN as u64).await?;
                let target = SymlinkTarget::try_from(target)
                    .map_err(|error| format(error.to_string(), start))?;
                self.input.expect(&CLOSE, "no end of a symlink").await?;
                Ok(Some(Node::Symlink { target }))
            }
            _ => Err(format("an unknown type of node", start).into()),
        }
    }

    async fn entry_start(&mut self, directory: &mut OpenDirectory) -> Result<(), Stopped> {
        self.entries += 1;
        self.open_entries += 1;
        for (what, count, max) in [
            ("entries", self.entries, ENTRIES_MAX),
            ("entries in directories in each other", self.open_entries, OPEN_ENTRIES_MAX),
        ] {
            if count > max {
                return Err(NarError::TooLarge { what, max }.into());
            }
        }
        self.input.expect(&NAME, "no name").await?;
        let start = self.input.hash.size();
        let name = self.input.string(Name::MAX_LEN as u64).await?;
        let name = Name::try_from(name).map_err(|error| format(error.to_string(), start))?;
        if directory.entries.last().is_some_and(|(last, _)| *last >= name) {
            return Err(format(std::format!("an entry {name:?} out of order"), start).into());
        }
        self.input.expect(&NODE, "no node of an entry").await?;
        directory.name = Some(name);
        Ok(())
    }

    async fn directory_end(
        &mut self,
        entries: Vec<(Name, Node)>,
        start: u64,
    ) -> Result<Node, Stopped> {
        self.open_entries -= entries.len() as u64;
        let directory =
            Directory::new(entries).map_err(|error| format(error.to_string(), start))?;
        let node =
            Node::Directory { digest: directory.digest(), size: directory.size(SizeRule::Doubled) };
        self.store.put_directory(directory).await?;
        Ok(node)
    }

    async fn file(&mut self) -> Result<Node, Stopped> {
        let start = self.input.hash.size();
        let executable = match &*self.input.string(WORD_MAX).await? {
            b"contents" => false,
            b"executable" => {
                self.input.expect(&[0; 8], "no empty string after \"executable\"").await?;
                let start = self.input.hash.size();
                if *self.input.string(WORD_MAX).await? != *b"contents" {
                    return Err(format("a file without contents", start).into());
                }
                true
            }
            _ => return Err(format("a file without contents", start).into()),
        };
        let size = self.input.u64().await?;
        self.contents = self.contents.saturating_add(size);
        if self.contents > CONTENTS_MAX {
            return Err(NarError::TooLarge { what: "bytes in files", max: CONTENTS_MAX }.into());
        }
        let digest = if size <= SMALL_BLOB_MAX as u64 {
            let blob = Blob::new(self.input.bytes(size as usize).await?);
            let digest = *blob.digest();
            self.store.put_small(blob).await?;
            digest
        } else {
            let (sender, receiver) = mpsc::channel(PIECES_AHEAD);
            let putting = self.store.blobs.put(ReceiverStream::new(receiver).boxed());
            let (fed, stat) = future::join(self.input.feed(size, sender), putting).await;
            fed?;
            let stat = stat?;
            if stat.size != size {
                let (digest, found) = (stat.digest, stat.size);
                return Err(NarError::Size { digest, found, claimed: size }.into());
            }
            stat.digest
        };
        self.input.zeros(padding(size)).await?;
        self.input.expect(&CLOSE, "no end of a file").await?;
        Ok(Node::File { digest, size, executable })
    }
}

/// The NAR's bytes, hashed as they are taken.
struct Input<R> {
    source: R,
    buffer: BytesMut,
    hash: ByteHasher,
}

impl<R: AsyncRead + Send + Unpin> Input<R> {
    /// Reads until there are `wanted` bytes in the buffer: at most some hundred.
    async fn fill(&mut self, wanted: usize) -> Result<(), NarError> {
        while self.buffer.len() < wanted {
            self.buffer.reserve(READ_LEN);
            if self.source.read_buf(&mut self.buffer).await.map_err(NarError::Source)? == 0 {
                return Err(format("an early end", self.hash.size() + self.buffer.len() as u64));
            }
        }
        Ok(())
    }

    fn consume(&mut self, length: usize) {
        self.hash.update(&self.buffer[..length]);
        self.buffer.advance(length);
    }

    /// Takes these very bytes.
    async fn expect(&mut self, expected: &[u8], what: &str) -> Result<(), NarError> {
        self.fill(expected.len()).await?;
        if self.buffer[..expected.len()] != *expected {
            return Err(format(what, self.hash.size()));
        }
        self.consume(expected.len());
        Ok(())
    }

    async fn expect_end(&mut self) -> Result<(), NarError> {
        match self.fill(1).await {
            Ok(()) => Err(format("more behind the end", self.hash.size())),
            Err(NarError::Format { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    async fn zeros(&mut self, count: usize) -> Result<(), NarError> {
        self.expect(&[0; 8][..count], "padding that is not zero").await
    }

    async fn u64(&mut self) -> Result<u64, NarError> {
        self.fill(8).await?;
        let number = u64::from_le_bytes(*self.buffer.first_chunk().expect("there are 8 bytes"));
        self.consume(8);
        Ok(number)
    }

    /// A string of at most `max` bytes, in memory of its own.
    async fn string(&mut self, max: u64) -> Result<Bytes, NarError> {
        let start = self.hash.size();
        let length = self.u64().await?;
        if length > max {
            return Err(format(std::format!("a string longer than {max} bytes"), start));
        }
        let bytes = self.bytes(length as usize).await?;
        self.zeros(padding(length)).await?;
        Ok(bytes)
    }

    /// The next bytes, in memory of their own: a name must not keep a whole buffer from being
    /// freed.
    async fn bytes(&mut self, length: usize) -> Result<Bytes, NarError> {
        let mut bytes = BytesMut::with_capacity(length);
        while bytes.len() < length {
            self.fill(1).await?;
            let next = self.buffer.len().min(length - bytes.len());
            bytes.extend_from_slice(&self.buffer[..next]);
            self.consume(next);
        }
        Ok(bytes.freeze())
    }

    /// Gives the next bytes to whoever stores them.
    async fn feed(
        &mut self,
        mut left: u64,
        sender: mpsc::Sender<std::io::Result<Bytes>>,
    ) -> Result<(), NarError> {
        while left > 0 {
            if let Err(error) = self.fill(1).await {
                let source = std::io::Error::other("the NAR is not whole");
                // Nobody receives if the blob service has failed already.
                let _ = sender.send(Err(source)).await;
                return Err(error);
            }
            let next = self.buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            self.hash.update(&self.buffer[..next]);
            let piece = self.buffer.split_to(next).freeze();
            left -= piece.len() as u64;
            if sender.send(Ok(piece)).await.is_err() {
                // The service has failed, and says why.
                return Ok(());
            }
        }
        Ok(())
    }
}

/// The way into the store. Blobs go before the directories that name them.
struct Store<'a> {
    blobs: &'a dyn BlobService,
    directories: mpsc::Sender<Result<Directory, DirectoryError>>,
    held_blobs: Vec<Blob>,
    held_bytes: usize,
    held_directories: Vec<Directory>,
    held_entries: usize,
}

impl Store<'_> {
    async fn put_small(&mut self, blob: Blob) -> Result<(), Stopped> {
        self.held_bytes += blob.bytes().len();
        self.held_blobs.push(blob);
        if self.held_bytes >= BYTES_HELD || self.held_blobs.len() >= BLOBS_HELD {
            self.flush().await?;
        }
        Ok(())
    }

    async fn put_directory(&mut self, directory: Directory) -> Result<(), Stopped> {
        self.held_entries += directory.entries().len();
        self.held_directories.push(directory);
        if self.held_directories.len() >= DIRECTORIES_HELD || self.held_entries >= ENTRIES_HELD {
            self.flush().await?;
        }
        Ok(())
    }

    async fn flush(&mut self) -> Result<(), Stopped> {
        self.held_bytes = 0;
        self.held_entries = 0;
        let blobs = std::mem::take(&mut self.held_blobs);
        if !blobs.is_empty() {
            self.blobs.put_many(blobs).await?;
        }
        for directory in self.held_directories.drain(..) {
            let sent = self.directories.send(Ok(directory)).await;
            sent.map_err(|_| Stopped::DirectoriesGone)?;
        }
        Ok(())
    }
}

fn format(what: impl Into<String>, offset: u64) -> NarError {
    NarError::Format { what: what.into(), offset }
}

#[cfg(test)]
mod tests {
    use cairn_castore::{
        blob_service::memory::MemoryBlobService, directory_service::memory::MemoryDirectoryService,
    };
    use futures::TryStreamExt as _;
    use proptest::prelude::*;
    use sha2::Digest as _;

    use super::*;
    use crate::nar::{
        hash, model,
        model::{Tree, string, trees},
        writer,
    };

    type Services = (Arc<dyn BlobService>, Arc<dyn DirectoryService>);

    fn services() -> Services {
        (Arc::new(MemoryBlobService::new()), Arc::new(MemoryDirectoryService::new()))
    }

    fn block_on<T>(future: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(future)
    }

    async fn read_all(nar: &[u8], (blobs, directories): &Services) -> Result<NarWitness, NarError> {
        read(nar, Arc::clone(blobs), Arc::clone(directories)).await
    }

    async fn write(node: &Node, (blobs, directories): &Services) -> Vec<u8> {
        let stream = writer::stream(node.clone(), Arc::clone(blobs), Arc::clone(directories));
        stream.try_collect::<Vec<_>>().await.unwrap().concat()
    }

    /// What is wrong with a NAR, without where.
    fn fault(nar: &[u8]) -> String {
        match block_on(read_all(nar, &services())) {
            Err(NarError::Format { what, .. }) => what,
            other => panic!("expected a format error, got {other:?}"),
        }
    }

    fn words(words: &[&str]) -> Vec<u8> {
        words.iter().flat_map(|word| string(word.as_bytes())).collect()
    }

    #[test]
    fn the_tree_of_the_specification_has_its_digest_and_nar() {
        let services = services();
        let witness = block_on(read_all(&Tree::vector().nar(), &services)).unwrap();
        let Node::Directory { digest, .. } = witness.node() else { panic!("{witness:?}") };
        let root = "c196ece39d078098b72cde823e327cf000f81b23a6e60558b7189a6bad9c5a62";
        assert_eq!(digest.to_hex(), root);
        let nar = witness.nar();
        let sha256 = "36739fcb9b1539fe10b866c1d18013f7255c88c1bc42a1da2a94158f5678f74b";
        assert_eq!(data_encoding::HEXLOWER.encode(&nar.sha256), sha256);
        assert_eq!(nar.size, 701_424);
        let (blobs, directories) = services;
        assert_eq!(block_on(hash::calculate(witness.node(), blobs, directories)).unwrap(), nar);
    }

    #[test]
    fn what_is_not_canonical_is_refused() {
        let file = Tree::file("hi\n").nar();
        let directory = |entries: &[(&str, &str)]| {
            let mut nar = words(&["nix-archive-1", "(", "type", "directory"]);
            for (name, target) in entries {
                nar.extend(words(&["entry", "(", "name", name, "node"]));
                nar.extend(words(&["(", "type", "symlink", "target", target, ")", ")"]));
            }
            nar.extend(words(&[")"]));
            nar
        };
        assert!(block_on(read_all(&directory(&[("a", "x"), ("b", "x")]), &services())).is_ok());
        assert!(fault(&directory(&[("b", "x"), ("a", "x")])).contains("out of order"));
        assert!(fault(&directory(&[("a", "x"), ("a", "x")])).contains("out of order"));
        for name in ["", ".", "..", "a/b", "a\0"] {
            assert!(fault(&directory(&[(name, "x")])).contains("name"), "{name:?}");
        }
        assert!(fault(&directory(&[("a", "")])).contains("target"));
        assert_eq!(fault(&[&file[..], b"\0"].concat()), "more behind the end");
        for end in [0, 7, 24, 60, file.len() - 1] {
            assert_eq!(fault(&file[..end]), "an early end");
        }
        let mut padded = file.clone();
        let padding = file.len() - 17;
        padded[padding] = 1;
        assert_eq!(fault(&padded), "padding that is not zero");
        let mut huge = words(&["nix-archive-1", "(", "type", "symlink", "target"]);
        huge.extend(u64::MAX.to_le_bytes());
        assert_eq!(fault(&huge), "a string longer than 4095 bytes");
        assert_eq!(
            fault(&words(&["nix-archive-1", "(", "type", "fifo"])),
            "an unknown type of node"
        );
    }

    #[test]
    fn lengths_without_bytes_are_an_early_end_and_too_long_ones_refused() {
        for (size, early) in [(1u64 << 40, true), (u64::MAX, false)] {
            let mut nar = words(&["nix-archive-1", "(", "type", "regular", "contents"]);
            nar.extend(size.to_le_bytes());
            nar.extend([7; 300_000]);
            let error = block_on(read_all(&nar, &services())).unwrap_err();
            match error {
                NarError::Format { what, .. } => assert!(early && what == "an early end"),
                error => assert!(!early && matches!(error, NarError::TooLarge { .. }), "{error}"),
            }
        }
    }

    #[test]
    fn a_deep_tree_is_read_and_a_deeper_one_refused() {
        let nested = |depth| {
            let mut nar = words(&["nix-archive-1"]);
            for _ in 1..depth {
                nar.extend(words(&["(", "type", "directory", "entry", "(", "name", "d", "node"]));
            }
            nar.extend(words(&["(", "type", "directory", ")"]));
            for _ in 1..depth {
                nar.extend(words(&[")", ")"]));
            }
            nar
        };
        let services = services();
        let deep = nested(5_000);
        let witness = block_on(read_all(&deep, &services)).unwrap();
        assert_eq!(block_on(write(witness.node(), &services)), deep);
        let error = block_on(read_all(&nested(DEPTH_MAX + 1), &services)).unwrap_err();
        assert!(matches!(error, NarError::TooLarge { .. }), "{error}");
    }

    #[test]
    fn a_nar_that_breaks_off_leaves_no_root() {
        let services = services();
        let nar = Tree::directory([("a", Tree::directory([])), ("b", Tree::file("b"))]).nar();
        let whole = block_on(read_all(&nar, &self::services())).unwrap();
        assert!(block_on(read_all(&nar[..nar.len() - 8], &services)).is_err());
        let Node::Directory { digest, .. } = whole.node() else { panic!("{whole:?}") };
        assert_eq!(block_on(services.1.get(digest)).unwrap(), None);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn what_is_read_is_written_again(tree in trees()) {
            let services = services();
            let nar = tree.nar();
            let witness = block_on(read_all(&nar, &services)).unwrap();
            prop_assert_eq!(witness.nar().size, nar.len() as u64);
            prop_assert_eq!(&witness.nar().sha256[..], &sha2::Sha256::digest(&nar)[..]);
            prop_assert!(block_on(write(witness.node(), &services)) == nar);
        }

        #[test]
        fn bytes_from_anywhere_do_no_harm(
            tree in trees(),
            changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        ) {
            let mut nar = tree.nar();
            for (index, byte) in changes {
                let index = index.index(nar.len());
                nar[index] = byte;
            }
            let services = services();
            if let Ok(witness) = block_on(read_all(&nar, &services)) {
                prop_assert!(block_on(write(witness.node(), &services)) == nar);
            }
        }

        #[test]
        fn noise_is_refused(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let noise = [&model::string(b"nix-archive-1")[..], &bytes].concat();
            prop_assert!(block_on(read_all(&noise, &services())).is_err());
            prop_assert!(block_on(read_all(&bytes, &services())).is_err());
        }
    }
}
