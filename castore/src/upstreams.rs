//! Several services of one kind, of which one after the other is asked until one has what is wanted:
//! whose turn it is, and when "not there" may be said. What is asked is the affair of the services
//! beside the other backends.

use std::{
    fmt, iter,
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::Mutex;

use crate::{BlobError, DirectoryError};

/// The most upstreams that are asked in turn: each that lacks something is one more to wait for.
pub const UPSTREAMS_MAX: usize = 16;

/// How long one that could not be reached is asked behind the others, which spares waiting for it as
/// long as they have what is wanted.
const LAST_TIME: Duration = Duration::from_secs(10);

/// Services of one kind in the order in which they are asked. Clones share everything.
///
/// What one has is there, whatever the others say. Something is *not* there only if all say so: if one
/// of them failed to answer, that failure is the answer. What is stored goes to one of them.
#[derive(Debug)]
pub struct Upstreams<S: ?Sized> {
    shared: Arc<Shared<S>>,
}

#[derive(Debug)]
struct Shared<S: ?Sized> {
    writable: usize,
    /// When each could not be reached.
    failed_at: Vec<Mutex<Option<Instant>>>,
    last_time: Duration,
    services: Vec<Arc<S>>,
}

/// One of the services.
#[derive(Debug)]
pub struct Upstream<S: ?Sized> {
    index: usize,
    /// The service.
    pub service: Arc<S>,
}

/// What an error of an upstream says to whoever could ask the next one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It can't be reached: better to ask others first for a while.
    Unreachable,
    /// It can't answer this; others may.
    Failed,
    /// The request is wrong, whoever is asked.
    Refused,
}

/// The errors of services that can have upstreams.
pub trait UpstreamError {
    /// What to make of it.
    fn verdict(&self) -> Verdict;
}

/// What one upstream has of many things.
#[derive(Debug)]
pub struct Found<T, E> {
    /// What it has, in the order asked.
    pub found: Vec<Option<T>>,
    /// Why it may have more.
    pub failure: Option<E>,
}

impl<S: ?Sized> Upstreams<S> {
    /// The services, at least one, and which of them takes what is stored.
    pub fn new(services: Vec<Arc<S>>, writable: usize) -> Self {
        Self::with_last_time(services, writable, LAST_TIME)
    }

    pub(crate) fn with_last_time(
        services: Vec<Arc<S>>,
        writable: usize,
        last_time: Duration,
    ) -> Self {
        assert!(writable < services.len(), "one of the upstreams takes what is stored");
        let failed_at = iter::repeat_with(Mutex::default).take(services.len()).collect();
        Self { shared: Arc::new(Shared { writable, failed_at, last_time, services }) }
    }

    /// The one that takes what is stored.
    pub fn writable(&self) -> &Arc<S> {
        &self.shared.services[self.shared.writable]
    }

    /// All but that one.
    pub fn others(&self) -> impl Iterator<Item = &Arc<S>> {
        let all = self.shared.services.iter().enumerate();
        all.filter(|(index, _)| *index != self.shared.writable).map(|(_, service)| service)
    }

    /// All of them, in their order.
    pub fn all(&self) -> &[Arc<S>] {
        &self.shared.services
    }

    /// All of them, in the order in which they are to be asked now.
    pub fn in_turn(&self) -> std::vec::IntoIter<Upstream<S>> {
        let is_last = |index: &usize| {
            let failed_at = *self.shared.failed_at[*index].lock();
            failed_at.is_some_and(|at| at.elapsed() < self.shared.last_time)
        };
        let (last, mut turns): (Vec<_>, Vec<_>) =
            (0..self.shared.services.len()).partition(is_last);
        turns.extend(last);
        let upstream =
            |index: usize| Upstream { index, service: self.shared.services[index].clone() };
        turns.into_iter().map(upstream).collect::<Vec<_>>().into_iter()
    }

    /// Takes note of a failure, the first of which is kept. An error if no other could do better.
    pub fn note<E: UpstreamError + fmt::Display>(
        &self,
        upstream: &Upstream<S>,
        error: E,
        first: &mut Option<E>,
    ) -> Result<(), E>
    where
        S: fmt::Display,
    {
        match error.verdict() {
            Verdict::Refused => return Err(error),
            Verdict::Unreachable => {
                *self.shared.failed_at[upstream.index].lock() = Some(Instant::now());
            }
            Verdict::Failed => {}
        }
        tracing::debug!(upstream = %upstream.service, %error, "the next upstream is asked");
        first.get_or_insert(error);
        Ok(())
    }

    /// What the first that has it has.
    pub async fn first<T, E, F>(&self, ask: impl Fn(Arc<S>) -> F) -> Result<Option<T>, E>
    where
        S: fmt::Display,
        E: UpstreamError + fmt::Display,
        F: Future<Output = Result<Option<T>, E>>,
    {
        let mut failure = None;
        for upstream in self.in_turn() {
            match ask(upstream.service.clone()).await {
                Ok(None) => {}
                Ok(found) => return Ok(found),
                Err(error) => self.note(&upstream, error, &mut failure)?,
            }
        }
        failure.map_or(Ok(None), Err)
    }

    /// What they have of many things, each of the first that has it. The next ones are asked only
    /// for what is missing.
    pub async fn many<K, T, E, F>(
        &self,
        keys: &[K],
        ask: impl Fn(Arc<S>, Vec<K>) -> F,
    ) -> Result<Vec<Option<T>>, E>
    where
        S: fmt::Display,
        K: Copy,
        E: UpstreamError + fmt::Display,
        F: Future<Output = Found<T, E>>,
    {
        let mut all: Vec<Option<T>> = iter::repeat_with(|| None).take(keys.len()).collect();
        let mut missing: Vec<usize> = (0..keys.len()).collect();
        let mut failure = None;
        for upstream in self.in_turn() {
            if missing.is_empty() {
                break;
            }
            let asked = missing.iter().map(|index| keys[*index]).collect();
            let answer = ask(upstream.service.clone(), asked).await;
            for (index, found) in iter::zip(&missing, answer.found) {
                all[*index] = found;
            }
            missing.retain(|index| all[*index].is_none());
            if let Some(error) = answer.failure {
                self.note(&upstream, error, &mut failure)?;
            }
        }
        match failure {
            Some(error) if !missing.is_empty() => Err(error),
            _ => Ok(all),
        }
    }
}

impl<E> Found<(), E> {
    /// An answer of which things are there.
    pub(crate) fn of(present: Result<Vec<bool>, E>) -> Self {
        present.map(|all| all.into_iter().map(|is_there| is_there.then_some(())).collect()).into()
    }
}

impl<T, E> From<Result<Vec<Option<T>>, E>> for Found<T, E> {
    fn from(answer: Result<Vec<Option<T>>, E>) -> Self {
        match answer {
            Ok(found) => Self { found, failure: None },
            Err(error) => Self { found: Vec::new(), failure: Some(error) },
        }
    }
}

impl<S: ?Sized> Clone for Upstreams<S> {
    fn clone(&self) -> Self {
        Self { shared: self.shared.clone() }
    }
}

impl<S: fmt::Display + ?Sized> fmt::Display for Upstreams<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("upstreams(")?;
        for (index, service) in self.shared.services.iter().enumerate() {
            let separator = if index == 0 { "" } else { ", " };
            write!(f, "{separator}{service}")?;
        }
        f.write_str(")")
    }
}

impl UpstreamError for BlobError {
    fn verdict(&self) -> Verdict {
        match self {
            Self::Unavailable { .. } => Verdict::Unreachable,
            Self::TooLarge { .. } | Self::Source(_) | Self::Invalid(_) => Verdict::Refused,
            _ => Verdict::Failed,
        }
    }
}

impl UpstreamError for DirectoryError {
    fn verdict(&self) -> Verdict {
        match self {
            Self::Unavailable { .. } => Verdict::Unreachable,
            Self::Invalid(_) => Verdict::Refused,
            _ => Verdict::Failed,
        }
    }
}
