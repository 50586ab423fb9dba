//! Directories set aside until the last has come: what lets a closure be stored in one short
//! request, and again if that one fails. A closure that is long in coming, as that of a running
//! import, would keep the process that holds the store from ending.

use std::{io, os::fd::AsRawFd as _};

use bytes::{Bytes, BytesMut};
use cairn_castore::{BoxError, Directory, DirectoryError, directory_service::DirectoryStream};
use futures::{StreamExt as _, TryStreamExt as _, stream};
use tokio::{
    fs::File,
    io::{AsyncReadExt as _, AsyncWriteExt as _, BufReader},
};

/// The most bytes of encoded directories that are kept in memory; more go to a temporary file.
const SPOOL_MEMORY: usize = 16 * 1024 * 1024;

/// The bytes that are read from the file at a time.
const READ_BUFFER: usize = 1024 * 1024;

/// The directories of a stream in their order, for as many readings as are wanted.
pub(super) struct Spool {
    service: String,
    /// Those in the file come first.
    file: Option<File>,
    /// Each a length of four bytes, big endian, and the directory's canonical encoding.
    memory: BytesMut,
    /// The directories in the file.
    filed: u64,
    /// The directories in memory.
    kept: u64,
}

impl Spool {
    /// Takes all directories of a stream. An error of the stream is returned; `service` is who
    /// others are told failed.
    pub(super) async fn fill(
        service: String,
        mut directories: DirectoryStream,
    ) -> Result<Self, DirectoryError> {
        let mut spool = Self { service, file: None, memory: BytesMut::new(), filed: 0, kept: 0 };
        while let Some(directory) = directories.try_next().await? {
            let encoded = directory.encode();
            let length = u32::try_from(encoded.len()).map_err(|_| {
                DirectoryError::Invalid(format!("a directory of {} bytes", encoded.len()))
            })?;
            spool.memory.extend_from_slice(&length.to_be_bytes());
            spool.memory.extend_from_slice(&encoded);
            spool.kept += 1;
            if spool.memory.len() > SPOOL_MEMORY {
                spool.write_out().await.map_err(|error| spool.failed(error))?;
            }
        }
        if let Some(file) = &mut spool.file {
            file.flush().await.map_err(|error| failed(&spool.service, error))?;
        }
        Ok(spool)
    }

    async fn write_out(&mut self) -> io::Result<()> {
        let file = match &mut self.file {
            Some(file) => file,
            none => {
                let file = tokio::task::spawn_blocking(tempfile::tempfile).await??;
                none.insert(File::from_std(file))
            }
        };
        file.write_all(&self.memory).await?;
        self.memory.clear();
        self.filed += self.kept;
        self.kept = 0;
        Ok(())
    }

    /// The directories, from the first.
    pub(super) async fn read(&self) -> Result<DirectoryStream, DirectoryError> {
        let service = self.service.clone();
        let mut memory = self.memory.clone().freeze();
        let kept = self.kept;
        let in_memory = stream::iter(0..kept).map(move |_| {
            let length = memory.split_to(4.min(memory.len()));
            let length = <[u8; 4]>::try_from(&length[..]).map_or(0, u32::from_be_bytes);
            let length = usize::try_from(length).unwrap_or(usize::MAX).min(memory.len());
            decode(memory.split_to(length))
        });
        let Some(file) = &self.file else { return Ok(in_memory.boxed()) };

        // Opened anew: a reading that was given up must not move this one's place.
        let file = File::open(format!("/proc/self/fd/{}", file.as_raw_fd()))
            .await
            .map_err(|error| self.failed(error))?;
        let reader = BufReader::with_capacity(READ_BUFFER, file);
        let filed = stream::try_unfold((reader, self.filed), move |(mut reader, left)| {
            let service = service.clone();
            async move {
                let Some(left) = left.checked_sub(1) else { return Ok(None) };
                let read = async {
                    let mut encoded = vec![0; reader.read_u32().await? as usize];
                    reader.read_exact(&mut encoded).await?;
                    Ok(Bytes::from(encoded))
                };
                let encoded = read.await.map_err(|error| failed(&service, error))?;
                Ok(Some((decode(encoded)?, (reader, left))))
            }
        });
        Ok(filed.chain(in_memory).boxed())
    }

    fn failed(&self, error: io::Error) -> DirectoryError {
        failed(&self.service, error)
    }
}

fn failed(service: &str, error: io::Error) -> DirectoryError {
    let service = format!("{service} (directories set aside)");
    let is_full = error.kind() == io::ErrorKind::StorageFull;
    let source: BoxError = Box::new(error);
    match is_full {
        true => DirectoryError::NoSpace { service, source },
        false => DirectoryError::Other { service, source },
    }
}

fn decode(encoded: Bytes) -> Result<Directory, DirectoryError> {
    Directory::decode(encoded).map_err(|error| DirectoryError::Invalid(error.to_string()))
}

#[cfg(test)]
mod tests {
    use cairn_castore::{Name, Node, SymlinkTarget};

    use super::*;

    fn directory(number: usize, target: usize) -> Directory {
        let name = Name::try_from(format!("link-{number}").as_str()).unwrap();
        let target = SymlinkTarget::try_from(Bytes::from(vec![b'x'; target])).unwrap();
        Directory::new(vec![(name, Node::Symlink { target })]).unwrap()
    }

    async fn check(directories: Vec<Directory>, in_file: bool) {
        let source = stream::iter(directories.clone().into_iter().map(Ok)).boxed();
        let spool = Spool::fill("test".to_owned(), source).await.unwrap();
        assert_eq!(spool.file.is_some(), in_file);
        for _ in 0..2 {
            let read: Vec<_> = spool.read().await.unwrap().try_collect().await.unwrap();
            assert!(read == directories, "the directories differ");
        }
    }

    #[tokio::test]
    async fn directories_are_read_as_they_came_however_many() {
        check(Vec::new(), false).await;
        check((0..100).map(|number| directory(number, 10)).collect(), false).await;
        let many = SPOOL_MEMORY / 4000 + 1000;
        check((0..many).map(|number| directory(number, 4000)).collect(), true).await;
    }

    #[tokio::test]
    async fn an_error_of_the_source_is_the_callers() {
        let error = DirectoryError::Invalid("gone".to_owned());
        let source = stream::iter([Ok(directory(0, 1)), Err(error)]).boxed();
        let result = Spool::fill("test".to_owned(), source).await;
        assert!(matches!(result, Err(DirectoryError::Invalid(_))));
    }
}
