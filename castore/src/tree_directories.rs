//! The directories of one tree, for those who walk it depth first: where each would be a round trip,
//! many come ahead in one stream. What is looked for in them is the affair of who walks.

use std::{
    collections::{HashMap, hash_map::Entry},
    fmt,
    sync::Arc,
};

use futures::TryStreamExt as _;

use crate::{
    Digest, Directory, DirectoryError, DirectoryService, directory_service::DirectoryStream,
};

/// The entries of directories that are held to save fetching each directory by itself. Once there are
/// so many, no more come ahead; when one is wanted that is not among them, they make room for those
/// that come with it.
const ENTRIES_AHEAD: usize = 256 * 1024;

/// The directories that are remembered for one in them having been fetched by itself.
const DESCENTS_MAX: usize = 16 * 1024;

/// The directories of a tree. Those of a service that has them at hand are asked for one by one; of
/// another, what lies below the one that is asked for follows it in a stream, of which no more is
/// taken than leads to the next that is wanted.
pub struct TreeDirectories {
    service: Arc<dyn DirectoryService>,
    comes_ahead: bool,
    /// The most entries that are held.
    room: usize,
    held: HashMap<Digest, Arc<Directory>>,
    entries: usize,
    /// The rest of the closure that was asked for last.
    coming: Option<DirectoryStream>,
    /// Directories in which one was wanted that was not held, and whether all that is below them was
    /// asked for since.
    descents: HashMap<Digest, bool>,
}

impl TreeDirectories {
    /// For one who goes through all of a tree.
    pub fn new(service: Arc<dyn DirectoryService>) -> Self {
        Self {
            service,
            comes_ahead: true,
            room: ENTRIES_AHEAD,
            held: HashMap::new(),
            entries: 0,
            coming: None,
            descents: HashMap::new(),
        }
    }

    /// For one who wants little of a tree: nothing comes ahead.
    pub fn one_by_one(service: Arc<dyn DirectoryService>) -> Self {
        Self { comes_ahead: false, ..Self::new(service) }
    }

    /// Like [`get`](Self::get), if that needs no waiting. `None`: ask [`get`](Self::get).
    pub fn get_local(&self, digest: &Digest) -> Option<Result<Arc<Directory>, DirectoryError>> {
        if let Some(directory) = self.held.get(digest) {
            return Some(Ok(directory.clone()));
        }
        let found = self.service.get_local(digest)?;
        let found = found.map(|found| found.map(Arc::new).ok_or(DirectoryError::NotFound(*digest)));
        Some(found.flatten())
    }

    /// One of the directories, and the one in which it is, if it is not the root.
    /// [`DirectoryError::NotFound`] if it is not there.
    pub async fn get(
        &mut self,
        digest: &Digest,
        within: Option<&Digest>,
    ) -> Result<Arc<Directory>, DirectoryError> {
        if let Some(answer) = self.get_local(digest) {
            return answer;
        }
        let missing = || DirectoryError::NotFound(*digest);
        if !self.comes_ahead {
            return self.service.get(digest).await?.map(Arc::new).ok_or_else(missing);
        }
        if let Some(directory) = self.take_if_it_comes(digest).await? {
            return Ok(directory);
        }
        // Whoever wants a second one in the same directory will want all of them.
        if let Some(within) = within.filter(|within| self.is_second_descent(within))
            && self.ask(within).await.is_ok()
            && let Some(directory) = self.take_if_it_comes(digest).await?
        {
            return Ok(directory);
        }
        self.ask(digest).await?;
        self.take_until(digest).await?.ok_or_else(missing)
    }

    /// Whether this is the second time that something in a directory is not held.
    fn is_second_descent(&mut self, within: &Digest) -> bool {
        if self.descents.len() >= DESCENTS_MAX {
            self.descents.clear();
        }
        match self.descents.entry(*within) {
            Entry::Vacant(entry) => {
                entry.insert(false);
                false
            }
            Entry::Occupied(mut entry) => !entry.insert(true),
        }
    }

    /// Has the closure of a directory come, for which there is room then.
    async fn ask(&mut self, digest: &Digest) -> Result<(), DirectoryError> {
        self.coming = None;
        if self.entries >= self.room {
            self.held.clear();
            self.entries = 0;
        }
        self.coming = Some(self.service.get_closure(digest).await?);
        Ok(())
    }

    /// Takes what comes ahead until this one has come. A stream that breaks off, such as one that a server
    /// has broken off since nothing of it was taken for long, is one that does not bring it.
    async fn take_if_it_comes(
        &mut self,
        digest: &Digest,
    ) -> Result<Option<Arc<Directory>>, DirectoryError> {
        match self.take_until(digest).await {
            Err(DirectoryError::Unavailable { service, source }) => {
                tracing::debug!(service, error = %source, "directories that come ahead broke off");
                self.coming = None;
                Ok(None)
            }
            found => found,
        }
    }

    /// Takes what comes until this one has come. `None` if it does not, or if too much is held.
    async fn take_until(
        &mut self,
        digest: &Digest,
    ) -> Result<Option<Arc<Directory>>, DirectoryError> {
        let Some(coming) = &mut self.coming else { return Ok(None) };
        while self.entries < self.room
            && let Some(directory) = coming.try_next().await?
        {
            self.entries += 1 + directory.entries().len();
            let (came, directory) = (directory.digest(), Arc::new(directory));
            self.held.insert(came, directory.clone());
            if came == *digest {
                return Ok(Some(directory));
            }
        }
        self.coming = None;
        Ok(None)
    }
}

impl fmt::Debug for TreeDirectories {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TreeDirectories({}, {} held)", self.service, self.held.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        cache::test_far::{Control, FarDirectories},
        directory_service::memory::MemoryDirectoryService,
        test_trees::{directory, file, node},
    };

    fn leaves(count: usize) -> Vec<Directory> {
        let leaf = |number: usize| directory([("file".to_owned(), file(&number.to_string()))]);
        (0..count).map(leaf).collect()
    }

    fn around(children: &[Directory]) -> Directory {
        let entries = children.iter().enumerate();
        directory(entries.map(|(index, child)| (format!("{index:08}"), node(child))))
    }

    async fn stored(leaves_first: Vec<Directory>) -> (Arc<Control>, Arc<dyn DirectoryService>) {
        let directories = MemoryDirectoryService::new();
        let stream = futures::stream::iter(leaves_first.into_iter().map(Ok));
        directories.put_closure(Box::pin(stream)).await.unwrap();
        let control = Arc::new(Control::default());
        (control.clone(), Arc::new(FarDirectories { control, directories }))
    }

    #[tokio::test]
    async fn a_tree_that_is_far_is_asked_for_once() {
        let leaves = leaves(100);
        let root = around(&leaves);
        let all: Vec<_> = leaves.iter().chain([&root]).cloned().collect();
        let (control, service) = stored(all.clone()).await;
        let mut directories = TreeDirectories::new(service.clone());
        control.asked();
        for directory in all.iter().rev() {
            let got = directories.get(&directory.digest(), None).await.unwrap();
            assert_eq!(*got, *directory);
        }
        assert_eq!(control.asked(), 1);
        let missing = Digest::of(b"missing");
        let error = directories.get(&missing, Some(&root.digest())).await.unwrap_err();
        assert!(matches!(error, DirectoryError::NotFound(digest) if digest == missing));

        // A stream that has broken off is asked for again.
        let mut directories = TreeDirectories::new(service.clone());
        directories.get(&root.digest(), None).await.unwrap();
        let gone = std::io::Error::from(std::io::ErrorKind::TimedOut);
        let broken = DirectoryError::Unavailable { service: "far".into(), source: gone.into() };
        directories.coming = Some(Box::pin(futures::stream::iter([Err(broken)])));
        let leaf = directories.get(&leaves[7].digest(), Some(&root.digest())).await.unwrap();
        assert_eq!(*leaf, leaves[7]);

        let mut directories = TreeDirectories::one_by_one(service);
        control.asked();
        directories.get(&root.digest(), None).await.unwrap();
        directories.get(&leaves[0].digest(), Some(&root.digest())).await.unwrap();
        assert_eq!(control.asked(), 2);
    }

    #[tokio::test]
    async fn no_more_is_held_than_there_is_room_for() {
        const FAN_OUT: usize = 16;
        let leaves = leaves(FAN_OUT * FAN_OUT);
        let middle: Vec<_> = leaves.chunks(FAN_OUT).map(around).collect();
        let root = around(&middle);
        let all = leaves.iter().chain(&middle).chain([&root]).cloned().collect();
        let (control, service) = stored(all).await;
        control.asked();
        let mut directories = TreeDirectories { room: 100, ..TreeDirectories::new(service) };
        directories.get(&root.digest(), None).await.unwrap();
        for (directory, below) in middle.iter().zip(leaves.chunks(FAN_OUT)) {
            let within = root.digest();
            let got = directories.get(&directory.digest(), Some(&within)).await.unwrap();
            assert_eq!(*got, *directory);
            for leaf in below {
                let within = directory.digest();
                let got = directories.get(&leaf.digest(), Some(&within)).await.unwrap();
                assert_eq!(*got, *leaf);
                assert!(directories.entries <= 100 + FAN_OUT, "{}", directories.entries);
            }
        }
        let asked = control.asked();
        assert!(asked <= 3 * FAN_OUT + 2, "{asked} requests");
    }
}
