//! What is fetched from the far side: once for all who want it at the same time, verified, and kept
//! near. Whether it is near already is asked before, by whoever wants it.

use std::{fmt, ops::Range, sync::Arc};

use bytes::{Bytes, BytesMut};
use futures::TryStreamExt as _;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    task::{JoinError, spawn_blocking},
};

use self::opened::Opened;
use super::{NearBlobs, WHOLE_MAX};
use crate::{
    Blob, BlobError, BlobService, ByteRange, Digest, Packed, Packing,
    blob_service::check_small,
    cache::{
        NotNear,
        flights::{Flights, Landing, Passenger, depart},
    },
    local::Kind,
    outboard::{GROUP_LEN, Outboard, verify::verified},
};

mod opened;

/// The requests that are under way at a time; others wait for their turn.
const REQUESTS: usize = 64;

/// What is fetched: a whole blob by its digest, or a group by its chaining value.
type Wanted = (Kind, [u8; 32]);

type ContentLanding = Landing<Wanted, Option<Bytes>, BlobError>;

/// The far side, for blobs. Clones share what is under way.
#[derive(Debug, Clone)]
pub(super) struct Fetches {
    near: NearBlobs,
    far: Arc<dyn BlobService>,
    opened: Flights<Digest, Option<Arc<Opened>>, BlobError>,
    contents: Flights<Wanted, Option<Bytes>, BlobError>,
    requests: Arc<Semaphore>,
}

impl Fetches {
    pub(super) fn new(near: NearBlobs, far: Arc<dyn BlobService>) -> Self {
        let requests = Arc::new(Semaphore::new(REQUESTS));
        let (opened, contents) = (Flights::default(), Flights::default());
        Self { near, far, opened, contents, requests }
    }

    pub(super) fn far(&self) -> &dyn BlobService {
        &*self.far
    }

    /// A blob that is kept whole. `None` if it is not there.
    pub(super) async fn whole(&self, digest: &Digest) -> Result<Option<Bytes>, BlobError> {
        let start = |landings: Vec<ContentLanding>| {
            let fetches = self.clone();
            depart(async move {
                let _turn = fetches.turn().await;
                for landing in fetches.without_near(landings).await {
                    let digest = Digest::from(landing.key().1);
                    let fetched = fetches.fetch_whole(&digest).await;
                    landing.land(fetched.map_err(Arc::new));
                }
            });
        };
        let fetched = self.gather(&[(*digest, whole(digest))], start).await?;
        Ok(fetched.into_iter().next().flatten())
    }

    /// Small blobs, in their order: those that were found near, and the rest with one request.
    /// `None` for those that are not there.
    pub(super) async fn many(
        &self,
        digests: &[Digest],
        mut found: Vec<Option<Bytes>>,
    ) -> Result<Vec<Option<Bytes>>, BlobError> {
        let start = |landings: Vec<ContentLanding>| {
            let fetches = self.clone();
            depart(async move {
                let _turn = fetches.turn().await;
                let landings = fetches.without_near(landings).await;
                fetches.fetch_many(landings).await;
            });
        };
        let missing = digests.iter().zip(&mut found).filter(|(_, found)| found.is_none());
        let (missing, places): (Vec<_>, Vec<_>) =
            missing.map(|(digest, place)| ((*digest, whole(digest)), place)).unzip();
        let fetched = self.gather(&missing, start).await?;
        for ((place, fetched), (digest, _)) in places.into_iter().zip(fetched).zip(&missing) {
            check_small(digest, fetched.as_ref().map_or(0, |bytes| bytes.len() as u64))?;
            *place = fetched;
        }
        Ok(found)
    }

    /// The groups of a blob from `first` on: those that were found near, and the rest with one
    /// request for each stretch of them.
    pub(super) async fn groups(
        &self,
        outboard: &Arc<Outboard>,
        first: u64,
        found: Vec<Option<Bytes>>,
    ) -> Result<Vec<Bytes>, BlobError> {
        let blob = *outboard.digest();
        let last = first + found.len() as u64;
        let group = |index: u64| (Kind::Group, *outboard.group(index).unwrap_or(&[0; 32]));
        let start = |landings: Vec<ContentLanding>| {
            let mut landings: Vec<_> = landings
                .into_iter()
                .filter_map(|landing| {
                    let index = (first..last).find(|index| group(*index) == *landing.key())?;
                    Some((index, landing))
                })
                .collect();
            landings.sort_by_key(|(index, _)| *index);
            let (fetches, outboard) = (self.clone(), outboard.clone());
            depart(async move {
                let _turn = fetches.turn().await;
                fetches.fetch_groups(&outboard, landings).await;
            });
        };
        let indices = (first..last).zip(&found).filter(|(_, found)| found.is_none());
        let missing: Vec<_> = indices.map(|(index, _)| (blob, group(index))).collect();
        let mut fetched = self.gather(&missing, start).await?.into_iter();
        let all = found.into_iter().map(|found| found.or_else(|| fetched.next().flatten()));
        all.map(|group| group.ok_or(BlobError::NotFound(blob))).collect()
    }

    /// What is fetched of these contents, each of a blob: by `start` where it is not under way, and
    /// else by whoever was first.
    async fn gather(
        &self,
        wanted: &[(Digest, Wanted)],
        start: impl Fn(Vec<ContentLanding>),
    ) -> Result<Vec<Option<Bytes>>, BlobError> {
        let (mut passengers, mut landings) = (Vec::with_capacity(wanted.len()), Vec::new());
        for (_, wanted) in wanted {
            let (passenger, landing) = self.contents.board(wanted);
            passengers.push((passenger, landing.is_some()));
            landings.extend(landing);
        }
        if !landings.is_empty() {
            self.near.store().miss(landings.len());
            start(landings);
        }
        let mut contents = Vec::with_capacity(wanted.len());
        for ((blob, wanted), (passenger, is_first)) in wanted.iter().zip(passengers) {
            contents.push(match self.outcome(passenger).await {
                // It failed for something else that was asked for with it.
                Err(error) if !is_first && is_of_another(&error, blob) => {
                    let (passenger, landing) = self.contents.board(wanted);
                    if let Some(landing) = landing {
                        start(vec![landing]);
                    }
                    self.outcome(passenger).await?
                }
                outcome => outcome?,
            });
        }
        Ok(contents)
    }

    /// Whole blobs that are not near, after all: somebody may just have fetched them.
    async fn without_near(&self, landings: Vec<ContentLanding>) -> Vec<ContentLanding> {
        let digests: Vec<_> =
            landings.iter().map(|landing| Digest::from(landing.key().1)).collect();
        let found = move |near: &NearBlobs| -> Vec<_> {
            digests.iter().map(|digest| near.whole(digest)).collect()
        };
        land_found(landings, self.near.blocking(found).await.unwrap_or_default())
    }

    async fn fetch_whole(&self, digest: &Digest) -> Result<Option<Bytes>, BlobError> {
        let error = |error| self.error(error, Some(digest));
        let mut stream = match self.far.read(digest, ByteRange::ALL).await {
            Err(BlobError::NotFound(_)) => return Ok(None),
            stream => stream.map_err(error)?,
        };
        let mut bytes = BytesMut::new();
        while let Some(piece) = stream.try_next().await.map_err(error)? {
            if (bytes.len() + piece.len()) as u64 > WHOLE_MAX {
                return Err(self.corrupt(digest, "it is larger than it was said to be"));
            }
            bytes.extend_from_slice(&piece);
        }
        let blob = self.verified(digest, bytes.freeze())?;
        self.near.keep_wholes([(blob.clone(), None)]);
        Ok(Some(blob.into_bytes()))
    }

    async fn fetch_many(&self, landings: Vec<ContentLanding>) {
        let digests: Vec<_> =
            landings.iter().map(|landing| Digest::from(landing.key().1)).collect();
        if digests.is_empty() {
            return;
        }
        let blobs = match self.far.read_many_packed(&digests, Packing::Stored).await {
            Ok(blobs) => blobs,
            Err(error) => {
                let error = Arc::new(self.error(error, digests.first()));
                landings.into_iter().for_each(|landing| landing.land(Err(error.clone())));
                return;
            }
        };
        // Takes a processor for a while where there are many.
        let fetches = self.clone();
        let unpacking = spawn_blocking(move || {
            let unpacked = digests.iter().zip(blobs).map(|(digest, packed)| match packed {
                None => Ok(None),
                Some(packed) => fetches.unpacked(digest, packed).map(Some),
            });
            let unpacked: Vec<Result<Option<_>, BlobError>> = unpacked.collect();
            fetches.near.keep_wholes(unpacked.iter().flatten().flatten().cloned());
            unpacked
        });
        // Dropped where the runtime ends, so that nobody waits for them.
        let Ok(unpacked) = unpacking.await else { return };
        for (landing, blob) in landings.into_iter().zip(unpacked) {
            let bytes = blob.map(|blob| blob.map(|(blob, _)| blob.into_bytes()));
            landing.land(bytes.map_err(Arc::new));
        }
    }

    /// Groups of a blob, in ascending order.
    async fn fetch_groups(&self, outboard: &Arc<Outboard>, landings: Vec<(u64, ContentLanding)>) {
        let (indices, landings): (Vec<u64>, Vec<_>) = landings.into_iter().unzip();
        let (proof, wanted) = (outboard.clone(), indices.clone());
        let found = self.near.blocking(move |near| {
            wanted.iter().map(|index| near.group(&proof, *index)).collect::<Vec<_>>()
        });
        let found = found.await.unwrap_or_default();
        let left = indices.iter().enumerate();
        let left: Vec<u64> = left
            .filter(|(at, _)| found.get(*at).is_none_or(Option::is_none))
            .map(|(_, index)| *index)
            .collect();
        let mut landings = land_found(landings, found).into_iter();
        for stretch in left.chunk_by(|one, next| one + 1 == *next) {
            let landings: Vec<_> = landings.by_ref().take(stretch.len()).collect();
            let (Some(first), Some(last)) = (stretch.first(), stretch.last()) else { continue };
            self.fetch_stretch(outboard, *first..last + 1, landings).await;
        }
    }

    /// Groups of a blob that lie together, each proven as it comes.
    async fn fetch_stretch(
        &self,
        outboard: &Arc<Outboard>,
        indices: Range<u64>,
        landings: Vec<ContentLanding>,
    ) {
        let blob = *outboard.digest();
        let start = indices.start * GROUP_LEN as u64;
        let end = (indices.end * GROUP_LEN as u64).min(outboard.size());
        let range = ByteRange { offset: start, length: end - start };
        let mut landings = landings.into_iter();
        let fetched = async {
            let bytes = self.far.read(&blob, range).await?;
            let from: Arc<str> = self.far.to_string().into();
            let mut groups = verified(outboard.clone(), start..end, bytes, from);
            for index in indices {
                let Some(group) = groups.try_next().await? else { break };
                let (Some(landing), Some(value)) = (landings.next(), outboard.group(index)) else {
                    break;
                };
                self.near.keep_group(value, &group);
                self.near.store().fetched(group.len());
                landing.land(Ok(Some(group)));
            }
            Ok(())
        };
        let fetched: Result<(), BlobError> = fetched.await;
        let error = match fetched {
            Ok(()) => self.corrupt(&blob, "it ended early"),
            Err(error) => self.error(error, Some(&blob)),
        };
        let error = Arc::new(error);
        landings.for_each(|landing| landing.land(Err(error.clone())));
    }

    fn verified(&self, digest: &Digest, bytes: Bytes) -> Result<Blob, BlobError> {
        self.near.store().fetched(bytes.len());
        Blob::verified(*digest, bytes).ok_or_else(|| self.wrong(digest))
    }

    /// What came packed, which nobody has verified, with the frame that it was in.
    fn unpacked(
        &self,
        digest: &Digest,
        packed: Packed,
    ) -> Result<(Blob, Option<Bytes>), BlobError> {
        let frame = match &packed {
            Packed::Frame { frame, .. } => Some(frame.clone()),
            Packed::Plain(_) => None,
        };
        let bytes = packed.unpack().ok_or_else(|| self.wrong(digest))?;
        Ok((self.verified(digest, bytes)?, frame))
    }

    fn wrong(&self, digest: &Digest) -> BlobError {
        crate::verification::failed_far(&self.far.to_string());
        self.corrupt(digest, "other bytes came for it")
    }

    fn corrupt(&self, digest: &Digest, reason: &str) -> BlobError {
        BlobError::Corrupt { digest: *digest, reason: format!("{}: {reason}", self.far) }
    }

    /// A request's turn, which ends when this is dropped.
    async fn turn(&self) -> OwnedSemaphorePermit {
        self.requests.clone().acquire_owned().await.expect("the semaphore is never closed")
    }

    async fn outcome<V: Clone>(&self, passenger: Passenger<V, BlobError>) -> Result<V, BlobError> {
        match passenger.arrive().await {
            Some(outcome) => outcome.map_err(|error| error.duplicate()),
            None => Err(BlobError::Unavailable {
                service: self.to_string(),
                source: "what was being fetched did not come".into(),
            }),
        }
    }

    /// An error of the far side, with what was looked for near before.
    pub(super) fn error(&self, error: BlobError, digest: Option<&Digest>) -> BlobError {
        if !matches!(error, BlobError::Unavailable { .. }) {
            return error;
        }
        let what =
            digest.map_or("what was asked for".to_owned(), |digest| format!("blob {digest}"));
        let near = self.near.store().to_string();
        let source = Box::new(NotNear { what, near, source: error.into() });
        BlobError::Unavailable { service: self.to_string(), source }
    }

    /// The runtime is shutting down, or something has panicked.
    pub(super) fn broken_off(&self, error: JoinError) -> BlobError {
        BlobError::Other { service: self.to_string(), source: error.into() }
    }
}

fn whole(digest: &Digest) -> Wanted {
    (Kind::Chunk, *digest.as_bytes())
}

/// Lands those that were found; the others.
fn land_found(landings: Vec<ContentLanding>, found: Vec<Option<Bytes>>) -> Vec<ContentLanding> {
    let mut found = found.into_iter();
    let mut left = Vec::new();
    for landing in landings {
        match found.next().flatten() {
            Some(bytes) => landing.land(Ok(Some(bytes))),
            None => left.push(landing),
        }
    }
    left
}

/// Whether an error says nothing of a blob, but of another one that was asked for with it, or of the
/// way in which it was asked for.
fn is_of_another(error: &BlobError, blob: &Digest) -> bool {
    match error {
        BlobError::Corrupt { digest, .. } | BlobError::NotFound(digest) => digest != blob,
        BlobError::TooLarge { .. } | BlobError::Invalid(_) => true,
        _ => false,
    }
}

impl fmt::Display for Fetches {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cache(near: {}, far: {})", self.near.store(), self.far)
    }
}
