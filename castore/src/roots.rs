//! The names in the root of a mount: what a mount asks of whoever knows names, while it itself
//! knows only content. Nix store paths are one such source of names; they are not known here.

use std::fmt;

use async_trait::async_trait;

use crate::{BoxError, Name, Node};

/// Names and the trees behind them. A name may come to exist at any time.
#[async_trait]
pub trait Roots: fmt::Debug + fmt::Display + Send + Sync + 'static {
    /// The tree of a name. `None` if there is none.
    async fn lookup(&self, name: &Name) -> Result<Option<Node>, RootsError>;

    /// The next at most `limit` names and their trees, behind `after`, in an order that stays the
    /// same as long as nothing comes or goes. Fewer than `limit` come only from the end.
    async fn list(
        &self,
        after: Option<&Name>,
        limit: usize,
    ) -> Result<Vec<(Name, Node)>, RootsError>;

    /// Like [`lookup`](Self::lookup), if that needs no waiting. `None`: ask
    /// [`lookup`](Self::lookup).
    fn lookup_local(&self, name: &Name) -> Option<Result<Option<Node>, RootsError>>;
}

/// Why names could not be had.
#[derive(Debug, thiserror::Error)]
pub enum RootsError {
    /// What knows the names can't be reached, or did not answer in time.
    #[error("{roots} can't be reached")]
    Unavailable {
        /// The source of names, as it displays.
        roots: String,
        /// What happened.
        #[source]
        source: BoxError,
    },
    /// Anything else.
    #[error("{roots} failed")]
    Other {
        /// The source of names, as it displays.
        roots: String,
        /// What happened.
        #[source]
        source: BoxError,
    },
}
