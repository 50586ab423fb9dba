//! Whether all that a root leads to is in the store. What its NAR is is computed elsewhere.

use std::collections::HashSet;

use cairn_castore::{
    BlobError, BlobService, Digest, DirectoryError, DirectoryService, Node,
    closure::InvalidClosure, directory::SizeRule,
};
use futures::TryStreamExt as _;

use super::PathInfoError;
use crate::nar::NarError;

/// The blobs that are asked for at once.
const BLOBS_AT_ONCE: usize = 16_384;

/// Fails unless all that `root` leads to is there. `name` is what the error calls it.
pub(crate) async fn check(
    name: &str,
    root: &Node,
    blobs: &dyn BlobService,
    directories: &dyn DirectoryService,
) -> Result<(), PathInfoError> {
    let checked = match root {
        Node::Symlink { .. } => Ok(()),
        Node::File { digest, .. } => check_blobs(&HashSet::from([*digest]), blobs).await,
        Node::Directory { digest, size } => check_tree(digest, *size, blobs, directories).await,
    };
    checked.map_err(|error| as_missing(name, error))
}

async fn check_tree(
    root: &Digest,
    size: u64,
    blobs: &dyn BlobService,
    directories: &dyn DirectoryService,
) -> Result<(), PathInfoError> {
    let mut closure = directories.get_closure(root).await?;
    let mut batch = HashSet::new();
    let mut is_root = true;
    while let Some(directory) = closure.try_next().await? {
        if std::mem::take(&mut is_root)
            && ![SizeRule::Doubled, SizeRule::Plain]
                .iter()
                .any(|rule| directory.size(*rule) == size)
        {
            let what = format!("directory {root} is given the size {size}, by no rule");
            return Err(PathInfoError::InvalidRequest(what));
        }
        for (_, node) in directory.entries() {
            if let Node::File { digest, .. } = node {
                batch.insert(*digest);
                if batch.len() == BLOBS_AT_ONCE {
                    check_blobs(&batch, blobs).await?;
                    batch.clear();
                }
            }
        }
    }
    check_blobs(&batch, blobs).await
}

async fn check_blobs(
    digests: &HashSet<Digest>,
    blobs: &dyn BlobService,
) -> Result<(), PathInfoError> {
    let digests: Vec<_> = digests.iter().copied().collect();
    if digests.is_empty() {
        return Ok(());
    }
    let present = blobs.has_many(&digests).await?;
    let mut missing = digests.iter().zip(present).filter(|(_, present)| !present);
    match missing.next() {
        Some((digest, _)) => Err(BlobError::NotFound(*digest).into()),
        None => Ok(()),
    }
}

/// What a tree is called that has no store path.
pub(super) fn name_of(node: &Node) -> String {
    match node {
        Node::Directory { digest, .. } => format!("directory {digest}"),
        Node::File { digest, .. } => format!("blob {digest}"),
        Node::Symlink { target } => format!("a symlink to {target}"),
    }
}

/// The same error, if it is not that a blob or directory is not there.
pub(super) fn as_missing(name: &str, error: PathInfoError) -> PathInfoError {
    let what = match &error {
        PathInfoError::Blob(error) | PathInfoError::Nar(NarError::Blob(error)) => match error {
            BlobError::NotFound(digest) => Some(format!("blob {digest}")),
            _ => None,
        },
        PathInfoError::Directory(error) | PathInfoError::Nar(NarError::Directory(error)) => {
            match error {
                DirectoryError::NotFound(digest)
                | DirectoryError::Closure(
                    InvalidClosure::MissingChild { child: digest, .. }
                    | InvalidClosure::Truncated { first: digest, .. },
                ) => Some(format!("directory {digest}")),
                _ => None,
            }
        }
        _ => None,
    };
    match what {
        Some(what) => PathInfoError::Missing { store_path: name.to_owned(), what },
        None => error,
    }
}
