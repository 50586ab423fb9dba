//! Directories of a far service, of which what was read is kept near. Whoever goes down a tree gets
//! what lies below in one stream; where records are kept, and for how long, is the affair of the near
//! side.

use std::{fmt, sync::Arc};

use async_trait::async_trait;
use bytes::Bytes;
use futures::{StreamExt as _, TryStreamExt as _};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    task::JoinError,
};

use self::courses::Courses;
use super::check_count;
use crate::{
    Digest, Directory, DirectoryError, DirectoryService,
    cache::{
        Near, NotNear,
        flights::{Flights, Landing, Passenger, depart},
    },
    closure::walk,
    directory_service::DirectoryStream,
    local::{Kind, Record},
};

mod courses;
#[cfg(test)]
mod tests;

/// The requests that are under way at a time; others wait for their turn.
const REQUESTS: usize = 64;

/// The directories that are fetched ahead in one stream, at most: so many, and no more once they
/// have so many bytes.
const AHEAD_DIRECTORIES: usize = 16 * 1024;
const AHEAD_BYTES: usize = 16 * 1024 * 1024;

/// The directories of a cache. Clones share everything.
///
/// What is there is what the far service has. What is near is answered from there, though, so that
/// it can be read while the far service can't be reached.
#[derive(Debug, Clone)]
pub struct CacheDirectoryService {
    near: Near,
    far: Arc<dyn DirectoryService>,
    flights: Flights<Digest, Option<Directory>, DirectoryError>,
    courses: Courses,
    requests: Arc<Semaphore>,
}

type DirectoryLanding = Landing<Digest, Option<Directory>, DirectoryError>;

impl CacheDirectoryService {
    /// The directories of the far service, kept near.
    pub fn new(near: Near, far: Arc<dyn DirectoryService>) -> Self {
        let requests = Arc::new(Semaphore::new(REQUESTS));
        Self { near, far, flights: Flights::default(), courses: Courses::default(), requests }
    }

    /// A directory that is near. May wait for the disk.
    fn look(&self, digest: &Digest) -> Option<Directory> {
        if *digest == Digest::EMPTY {
            return Some(Directory::default());
        }
        let encoded = self.near.get(Kind::Directory, digest.as_bytes())?;
        let decoded = Directory::decode(encoded);
        if decoded.is_err() {
            self.near.distrust(Kind::Directory, digest.as_bytes());
        }
        decoded.ok()
    }

    /// The same, on a thread that may wait.
    async fn look_async(&self, digest: &Digest) -> Result<Option<Directory>, DirectoryError> {
        let (service, digest) = (self.clone(), *digest);
        let looked = tokio::task::spawn_blocking(move || service.look(&digest)).await;
        looked.map_err(|error: JoinError| DirectoryError::Other {
            service: self.to_string(),
            source: error.into(),
        })
    }

    /// Keeps a directory; the bytes of its encoding.
    fn keep(&self, digest: Digest, directory: &Directory) -> usize {
        let value: Bytes = directory.encode();
        let size = value.len();
        self.near.fetched(size);
        if size > 0 {
            self.near.keep(vec![Record::new(Kind::Directory, digest.into(), value)]);
        }
        size
    }

    /// Fetches a directory, and lets those who wait for it have it. What lies below follows if
    /// somebody seems to be on the way there, unless it is wanted alone.
    async fn fetch(self, landing: DirectoryLanding, alone: bool) {
        let _turn = self.turn().await;
        let digest = *landing.key();
        // Somebody may just have fetched it.
        match self.look_async(&digest).await {
            Ok(None) => {}
            found => return landing.land(found.map_err(Arc::new)),
        }
        if let Some(course) = (!alone).then(|| self.courses.begin(&digest)).flatten() {
            if course.root == digest {
                return self.fetch_closure(course, Some(landing)).await;
            }
            let service = self.clone();
            depart(async move { service.fetch_closure(course, None).await });
            if self.courses.wait_for(&digest).await
                && let found @ (Ok(Some(_)) | Err(_)) = self.look_async(&digest).await
            {
                return landing.land(found.map_err(Arc::new));
            }
        }
        let fetched = self.far.get(&digest).await;
        if let Ok(Some(directory)) = &fetched {
            self.keep(digest, directory);
            self.courses.named(&digest, directory);
        }
        landing.land(fetched.map_err(|error| Arc::new(self.error(error, &digest))));
    }

    /// Fetches a directory, for whoever waits for it, and what lies below it, within bounds.
    async fn fetch_closure(&self, course: courses::Course, landing: Option<DirectoryLanding>) {
        let digest = course.root;
        let root = async {
            let mut closure = self.far.get_closure(&digest).await?;
            Ok((closure.try_next().await?.ok_or(DirectoryError::NotFound(digest))?, closure))
        };
        let (root, mut closure) = match root.await {
            Ok(begun) => begun,
            Err(error) => {
                let outcome = match error {
                    DirectoryError::NotFound(_) => Ok(None),
                    error => Err(Arc::new(self.error(error, &digest))),
                };
                return landing.into_iter().for_each(|landing| landing.land(outcome.clone()));
            }
        };
        let mut bytes = self.keep(digest, &root);
        course.came(&digest, &root);
        if let Some(landing) = landing {
            landing.land(Ok(Some(root)));
        }
        let mut count = 1;
        while count < AHEAD_DIRECTORIES && bytes < AHEAD_BYTES {
            self.near.room().await;
            match closure.try_next().await {
                Ok(Some(directory)) => {
                    let digest = directory.digest();
                    bytes += self.keep(digest, &directory);
                    course.came(&digest, &directory);
                    count += 1;
                }
                Ok(None) => break,
                // Whoever needs what is missing asks for it, and is told.
                Err(error) => {
                    tracing::debug!(root = %digest, %error, "fetching what lies below broke off");
                    break;
                }
            }
        }
    }

    /// A directory, for one who knows what else is wanted: nothing that lies below is fetched ahead.
    pub(crate) async fn get_alone(
        &self,
        digest: &Digest,
    ) -> Result<Option<Directory>, DirectoryError> {
        if let Some(directory) = self.look_async(digest).await? {
            return Ok(Some(directory));
        }
        let (passenger, landing) = self.flights.board(digest);
        if let Some(landing) = landing {
            self.near.miss(1);
            depart(self.clone().fetch(landing, true));
        }
        self.outcome(passenger).await
    }

    async fn turn(&self) -> OwnedSemaphorePermit {
        self.requests.clone().acquire_owned().await.expect("the semaphore is never closed")
    }

    async fn outcome(
        &self,
        passenger: Passenger<Option<Directory>, DirectoryError>,
    ) -> Result<Option<Directory>, DirectoryError> {
        match passenger.arrive().await {
            Some(outcome) => outcome.map_err(|error| error.duplicate()),
            None => Err(DirectoryError::Unavailable {
                service: self.to_string(),
                source: "what was being fetched did not come".into(),
            }),
        }
    }

    /// An error of the far side, with what was looked for near before.
    fn error(&self, error: DirectoryError, digest: &Digest) -> DirectoryError {
        if !matches!(error, DirectoryError::Unavailable { .. }) {
            return error;
        }
        let (what, near) = (format!("directory {digest}"), self.near.to_string());
        let source = Box::new(NotNear { what, near, source: error.into() });
        DirectoryError::Unavailable { service: self.to_string(), source }
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl DirectoryService for CacheDirectoryService {
    async fn get(&self, digest: &Digest) -> Result<Option<Directory>, DirectoryError> {
        let mut near = self.look_async(digest).await?;
        if near.is_none() && self.courses.wait_for(digest).await {
            near = self.look_async(digest).await?;
        }
        if let Some(directory) = near {
            self.near.hit(1);
            return Ok(Some(directory));
        }
        let (passenger, landing) = self.flights.board(digest);
        if let Some(landing) = landing {
            self.near.miss(1);
            depart(self.clone().fetch(landing, false));
        }
        self.outcome(passenger).await
    }

    async fn get_closure(&self, root: &Digest) -> Result<DirectoryStream, DirectoryError> {
        if let Some(directory) = self.look_async(root).await? {
            self.courses.named(root, &directory);
            return Ok(walk(Arc::new(self.clone()), *root));
        }
        self.near.miss(1);
        let (service, root) = (self.clone(), *root);
        let closure =
            self.far.get_closure(&root).await.map_err(|error| self.error(error, &root))?;
        let closure = closure.map(move |directory| match directory {
            Ok(directory) => {
                service.keep(directory.digest(), &directory);
                Ok(directory)
            }
            Err(error) => Err(service.error(error, &root)),
        });
        Ok(closure.boxed())
    }

    /// Asks the far service, since who wants to know is mostly about to store what is not there. As
    /// long as that can't be reached, what is near is there.
    async fn has_many(&self, digests: &[Digest]) -> Result<Vec<bool>, DirectoryError> {
        check_count(digests.len())?;
        let error = match self.far.has_many(digests).await {
            Err(error @ DirectoryError::Unavailable { .. }) => error,
            answer => return answer,
        };
        for digest in digests {
            if self.look_async(digest).await?.is_none() {
                return Err(self.error(error, digest));
            }
        }
        Ok(vec![true; digests.len()])
    }

    /// Stored when the far service has them. They are kept when they are read.
    async fn put_closure(&self, directories: DirectoryStream) -> Result<Digest, DirectoryError> {
        self.far.put_closure(directories).await
    }

    fn get_local(&self, digest: &Digest) -> Option<Result<Option<Directory>, DirectoryError>> {
        let directory = self.look(digest)?;
        self.near.hit(1);
        Some(Ok(Some(directory)))
    }
}

impl fmt::Display for CacheDirectoryService {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cache(near: {}, far: {})", self.near, self.far)
    }
}
