//! Pages, in order, of listings that come whole and in no order. The items are whatever the
//! listing has.

use std::{
    collections::BTreeMap,
    ops::Bound,
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::Mutex;

use crate::store_path::OutputHash;

/// How long the pages of a listing come from what was read for its first. What is put in the
/// meantime may be missing from them.
const WINDOW_AGE: Duration = Duration::from_secs(60);

/// The items that come first behind a path, in order, as many as there is room for.
#[derive(Debug)]
pub(super) struct Window<T> {
    after: Option<OutputHash>,
    max: usize,
    items: BTreeMap<OutputHash, T>,
    /// Some items did not fit.
    is_cut: bool,
    since: Instant,
}

impl<T: Clone> Window<T> {
    /// A window behind `after` of at most `max` items, which is more than any page has.
    pub(super) fn new(after: Option<OutputHash>, max: usize) -> Self {
        Self { after, max, items: BTreeMap::new(), is_cut: false, since: Instant::now() }
    }

    /// Takes the next item of the whole listing.
    pub(super) fn push(&mut self, hash: OutputHash, item: T) {
        if self.after.is_some_and(|after| hash <= after) {
            return;
        }
        self.items.insert(hash, item);
        if self.items.len() > self.max {
            self.items.pop_last();
            self.is_cut = true;
        }
    }

    /// The page behind `after`. `None` if it reaches beyond the window.
    pub(super) fn page(
        &self,
        after: Option<OutputHash>,
        limit: usize,
    ) -> Option<Vec<(OutputHash, T)>> {
        if after < self.after {
            return None;
        }
        let start = after.map_or(Bound::Unbounded, Bound::Excluded);
        let items = self.items.range((start, Bound::Unbounded)).take(limit);
        let page: Vec<_> = items.map(|(hash, item)| (*hash, item.clone())).collect();
        (page.len() == limit || !self.is_cut).then_some(page)
    }
}

/// The window that was read last, for the pages that follow.
#[derive(Debug)]
pub(super) struct LastWindow<T>(Mutex<Option<Arc<Window<T>>>>);

impl<T: Clone> LastWindow<T> {
    /// The page behind `after` from the last window, if it has it and is not too old. A listing
    /// that starts anew is read anew.
    pub(super) fn page(&self, after: OutputHash, limit: usize) -> Option<Vec<(OutputHash, T)>> {
        let window = self.0.lock().clone()?;
        if window.since.elapsed() > WINDOW_AGE {
            return None;
        }
        let page = window.page(Some(after), limit)?;
        if page.len() < limit {
            // The listing is at its end: the memory is not needed any more.
            self.0.lock().take_if(|last| Arc::ptr_eq(last, &window));
        }
        Some(page)
    }

    /// Keeps a window for the pages behind this first one, and gives the page.
    pub(super) fn keep(&self, window: Window<T>, limit: usize) -> Vec<(OutputHash, T)> {
        let page = window.page(window.after, limit).unwrap_or_default();
        if page.len() == limit {
            *self.0.lock() = Some(Arc::new(window));
        }
        page
    }
}

impl<T> Default for LastWindow<T> {
    fn default() -> Self {
        Self(Mutex::new(None))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn hash(number: u16) -> OutputHash {
        let mut hash = [0; 20];
        hash[..2].copy_from_slice(&number.to_be_bytes());
        hash
    }

    proptest! {
        #[test]
        fn pages_of_windows_are_those_of_the_listing(
            listing in proptest::collection::hash_set(0u16..300, 0..200),
            (limit, room) in (1usize..20, 0usize..20),
        ) {
            let last = LastWindow::default();
            let mut expected: Vec<_> = listing.iter().copied().collect();
            expected.sort_unstable();
            let mut paged: Vec<u16> = Vec::new();
            let mut whole_listings = 0;
            loop {
                let after = paged.last().copied().map(hash);
                let page = after.and_then(|after| last.page(after, limit)).unwrap_or_else(|| {
                    whole_listings += 1;
                    let mut window = Window::new(after, limit + room);
                    listing.iter().for_each(|number| window.push(hash(*number), *number));
                    last.keep(window, limit)
                });
                let is_last = page.len() < limit;
                paged.extend(page.into_iter().map(|(_, number)| number));
                if is_last {
                    break;
                }
            }
            prop_assert_eq!(paged, expected);
            let pages_a_window = 1 + room / limit;
            prop_assert!(whole_listings <= 2 + listing.len() / limit / pages_a_window);
        }
    }
}
