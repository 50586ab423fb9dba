//! One fetch for all who want the same thing at the same time. Whoever comes first starts it, and it
//! goes on whoever leaves; what is fetched, and from where, is not known here.

use std::{collections::HashMap, fmt, future::Future, hash::Hash, sync::Arc, time::Duration};

use parking_lot::Mutex;
use tokio::{sync::watch, time::timeout};
use tracing::Instrument as _;

/// How long one fetch may take in all. Services have deadlines of their own, which are shorter; this
/// is for one that keeps sending without getting anywhere.
const FETCH_TIME: Duration = Duration::from_secs(300);

/// What came of a fetch. Errors are shared.
pub(crate) type Outcome<V, E> = Result<V, Arc<E>>;

type Seen<V, E> = watch::Receiver<Option<Outcome<V, E>>>;

/// The fetches that are under way. Clones share them.
pub(crate) struct Flights<K, V, E>(Arc<Mutex<HashMap<K, Seen<V, E>>>>);

impl<K, V, E> Default for Flights<K, V, E> {
    fn default() -> Self {
        Self(Arc::default())
    }
}

impl<K, V, E> Clone for Flights<K, V, E> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<K, V, E> fmt::Debug for Flights<K, V, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Flights({} under way)", self.0.lock().len())
    }
}

/// The duty to fetch something. Dropped without an outcome, it leaves those who wait with none.
pub(crate) struct Landing<K: Hash + Eq, V, E> {
    flights: Flights<K, V, E>,
    key: K,
    told: watch::Sender<Option<Outcome<V, E>>>,
}

/// Someone who waits for a fetch.
pub(crate) struct Passenger<V, E>(Seen<V, E>);

/// Someone who waits, and the duty to fetch what is waited for if nobody else has it.
pub(crate) type Boarded<K, V, E> = (Passenger<V, E>, Option<Landing<K, V, E>>);

impl<K: Hash + Eq + Clone, V: Clone, E> Flights<K, V, E> {
    /// Waits for what is being fetched, or gives the duty to fetch it as well.
    pub(crate) fn board(&self, key: &K) -> Boarded<K, V, E> {
        let mut under_way = self.0.lock();
        if let Some(seen) = under_way.get(key) {
            return (Passenger(seen.clone()), None);
        }
        let (told, seen) = watch::channel(None);
        under_way.insert(key.clone(), seen.clone());
        let landing = Landing { flights: self.clone(), key: key.clone(), told };
        (Passenger(seen), Some(landing))
    }
}

impl<K: Hash + Eq, V, E> Landing<K, V, E> {
    /// What is to be fetched.
    pub(crate) fn key(&self) -> &K {
        &self.key
    }

    /// Tells all who wait.
    pub(crate) fn land(self, outcome: Outcome<V, E>) {
        // Whoever comes from now on finds it where it is kept.
        self.flights.0.lock().remove(&self.key);
        self.told.send_replace(Some(outcome));
    }
}

impl<K: Hash + Eq, V, E> Drop for Landing<K, V, E> {
    fn drop(&mut self) {
        if self.told.borrow().is_none() {
            self.flights.0.lock().remove(&self.key);
        }
    }
}

impl<V: Clone, E> Passenger<V, E> {
    /// What came of it; `None` if the fetch was broken off.
    pub(crate) async fn arrive(mut self) -> Option<Outcome<V, E>> {
        self.0.wait_for(Option::is_some).await.ok()?.clone()
    }
}

/// Starts a fetch that ends by itself, and in time.
pub(crate) fn depart(fetch: impl Future<Output = ()> + Send + 'static) {
    let fetch = async move {
        if timeout(FETCH_TIME, fetch).await.is_err() {
            tracing::warn!(seconds = FETCH_TIME.as_secs(), "a fetch took too long and is given up");
        }
    };
    // Part of what is done for the first who waits.
    tokio::spawn(fetch.in_current_span());
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[tokio::test]
    async fn all_who_come_get_what_one_fetches_and_one_who_leaves_takes_nothing_along() {
        let flights: Flights<u8, usize, ()> = Flights::default();
        let fetched = Arc::new(AtomicUsize::new(0));
        let (release, released) = tokio::sync::oneshot::channel::<()>();
        let (first, landing) = flights.board(&1);
        let (counter, landing) = (fetched.clone(), landing.expect("nobody was there before"));
        depart(async move {
            let _ = released.await;
            counter.fetch_add(1, Ordering::SeqCst);
            landing.land(Ok(7));
        });
        let others: Vec<_> = (0..100).map(|_| flights.board(&1)).collect();
        assert!(others.iter().all(|(_, landing)| landing.is_none()));
        assert!(flights.board(&2).1.is_some(), "others are not held up");
        drop(first);
        release.send(()).unwrap();
        for (passenger, _) in others {
            assert_eq!(passenger.arrive().await, Some(Ok(7)));
        }
        assert_eq!(fetched.load(Ordering::SeqCst), 1);
        assert!(flights.board(&1).1.is_some(), "the next one fetches again");
    }

    #[tokio::test]
    async fn errors_are_for_all_and_a_broken_fetch_leaves_nobody_waiting() {
        let flights: Flights<u8, (), &str> = Flights::default();
        let (one, landing) = flights.board(&1);
        let (other, _) = flights.board(&1);
        landing.unwrap().land(Err(Arc::new("gone")));
        assert_eq!(one.arrive().await, Some(Err(Arc::new("gone"))));
        assert_eq!(other.arrive().await, Some(Err(Arc::new("gone"))));
        let (one, landing) = flights.board(&1);
        drop(landing);
        assert_eq!(one.arrive().await, None);
        assert!(flights.board(&1).1.is_some());
    }
}
