//! The directories of a closure, put aside as they come, root first, and given back leaves first.
//! Large closures are put aside on disk; about a hundred bytes a directory stay in memory.

use std::{
    collections::{HashMap, HashSet},
    io::{self, Read as _, Seek as _, SeekFrom, Write as _},
};

use bytes::Bytes;
use futures::{StreamExt as _, stream};
use tempfile::SpooledTempFile;
use tokio::sync::mpsc;

use crate::{Digest, Directory, DirectoryError, directory_service::DirectoryStream};

/// The bytes of directories that are kept in memory.
const MEMORY_BYTES: usize = 32 * 1024 * 1024;

/// How many directories are read back ahead of whoever takes them.
const AHEAD: usize = 64;

/// What a failure to read back is said to come from.
const SPOOL: &str = "the temporary file for directories";

/// Directories that were put aside.
#[derive(Debug)]
pub(crate) struct SpooledClosure {
    spool: SpooledTempFile,
    /// Where each begins and how long it is.
    places: HashMap<Digest, (u64, usize)>,
    end: u64,
}

impl SpooledClosure {
    pub(crate) fn new() -> Self {
        Self { spool: SpooledTempFile::new(MEMORY_BYTES), places: HashMap::new(), end: 0 }
    }

    pub(crate) fn len(&self) -> usize {
        self.places.len()
    }

    /// Puts one aside.
    pub(crate) fn push(&mut self, directory: &Directory) -> io::Result<()> {
        let bytes = directory.encode();
        self.spool.write_all(&bytes)?;
        self.places.insert(directory.digest(), (self.end, bytes.len()));
        self.end += bytes.len() as u64;
        Ok(())
    }

    /// All that the root leads to, each once and behind its children.
    pub(crate) fn leaves_first(self, root: Digest) -> DirectoryStream {
        let (sender, receiver) = mpsc::channel(AHEAD);
        // It ends when all is sent, or when nobody takes it any more.
        tokio::task::spawn_blocking(move || {
            let Err(error) = self.send(root, &sender) else { return };
            let service = SPOOL.to_owned();
            let failed = DirectoryError::Other { service, source: Box::new(error) };
            // Whoever has gone needs no error.
            let _ = sender.blocking_send(Err(failed));
        });
        stream::unfold(receiver, async |mut receiver| Some((receiver.recv().await?, receiver)))
            .boxed()
    }

    fn send(
        mut self,
        root: Digest,
        sender: &mpsc::Sender<Result<Directory, DirectoryError>>,
    ) -> io::Result<()> {
        let mut seen = HashSet::from([root]);
        let mut path = vec![self.read(&root)?];
        while let Some((_, unseen)) = path.last_mut() {
            let Some(child) = unseen.pop() else {
                let (directory, _) = path.pop().expect("it has a last one");
                if sender.blocking_send(Ok(directory)).is_err() {
                    return Ok(());
                }
                continue;
            };
            if seen.insert(child) {
                path.push(self.read(&child)?);
            }
        }
        Ok(())
    }

    /// A directory, and its children.
    fn read(&mut self, digest: &Digest) -> io::Result<(Directory, Vec<Digest>)> {
        let (start, length) = *self.places.get(digest).ok_or(io::ErrorKind::NotFound)?;
        let mut bytes = vec![0; length];
        self.spool.seek(SeekFrom::Start(start))?;
        self.spool.read_exact(&mut bytes)?;
        let directory = Directory::decode(Bytes::from(bytes)).map_err(io::Error::other)?;
        let children = directory.children().map(|(child, _)| child).collect();
        Ok((directory, children))
    }
}
