//! Store paths from one store to another, with all that they refer to. How the tree of a path gets
//! there is in `castore::copy`.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use cairn_castore::copy::{Contents, CopyError, CopyProgress, copy_tree};
use futures::{Stream, StreamExt as _, TryStreamExt as _, stream};
use tokio::sync::watch;

use crate::{OutputHash, PathInfo, PathInfoError, PathInfoService, Services, StorePath};

/// How many paths are copied at the same time.
const PATHS_AT_ONCE: usize = 4;

/// How many path infos are asked for at the same time.
const LOOKUPS_AT_ONCE: usize = 16;

/// The most paths in one closure: what is held in memory of them is bounded by it.
pub const CLOSURE_MAX: usize = 1024 * 1024;

/// Why paths were not copied. What had arrived stays, and is not sent again the next time.
#[derive(Debug, thiserror::Error)]
pub enum CopyPathsError {
    /// A path is not in the store that is copied from.
    #[error("{path} is not in {store}")]
    NotFound {
        /// The path.
        path: StorePath,
        /// The store, as it displays.
        store: String,
    },
    /// A path that another one refers to is not in the store that is copied from.
    #[error("{path} is not in {store}, but {referrer} refers to it")]
    MissingReference {
        /// The path.
        path: StorePath,
        /// One that refers to it.
        referrer: StorePath,
        /// The store, as it displays.
        store: String,
    },
    /// More paths than can be copied at once.
    #[error("more than {CLOSURE_MAX} paths in one closure")]
    TooMany,
    /// The store that is copied from can't tell of its paths.
    #[error("{store} does not tell of its paths")]
    Read {
        /// The store, as it displays.
        store: String,
        /// What it said.
        #[source]
        source: PathInfoError,
    },
    /// The store that is copied to does not take a path.
    #[error("{store} does not take {path}")]
    Write {
        /// The path.
        path: StorePath,
        /// The store, as it displays.
        store: String,
        /// What it said.
        #[source]
        source: PathInfoError,
    },
    /// The contents of a path were not copied.
    #[error("the contents of {path} were not copied")]
    Contents {
        /// The path.
        path: StorePath,
        /// What went wrong.
        #[source]
        source: CopyError,
    },
}

/// A path that is where it was copied to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CopiedPath {
    /// The path's record, as it is there.
    pub info: PathInfo,
    /// Whether it was there before, with all that its record says.
    pub was_there: bool,
}

/// These paths and, with `follows_references`, all that they refer to, each behind what it refers
/// to itself.
pub async fn closure(
    paths: &[StorePath],
    follows_references: bool,
    from: &Services,
) -> Result<Vec<PathInfo>, CopyPathsError> {
    let store = from.path_infos.to_string();
    let mut known: HashMap<OutputHash, PathInfo> = HashMap::new();
    let mut wanted: Vec<(StorePath, Option<StorePath>)> = Vec::new();
    let mut named = HashSet::new();
    for path in paths {
        if named.insert(*path.hash()) {
            wanted.push((path.clone(), None));
        }
    }
    while !wanted.is_empty() {
        if named.len() > CLOSURE_MAX {
            return Err(CopyPathsError::TooMany);
        }
        let mut found = stream::iter(std::mem::take(&mut wanted))
            .map(|(path, referrer)| async {
                let found = from.path_infos.get(path.hash()).await;
                let found = found
                    .map_err(|source| CopyPathsError::Read { store: store.clone(), source })?;
                // The hash alone is not the path.
                found.filter(|info| info.store_path == path).ok_or_else(|| {
                    let store = store.clone();
                    match referrer {
                        None => CopyPathsError::NotFound { path, store },
                        Some(referrer) => {
                            CopyPathsError::MissingReference { path, referrer, store }
                        }
                    }
                })
            })
            .buffered(LOOKUPS_AT_ONCE);
        while let Some(info) = found.try_next().await? {
            let references = info.references.iter().filter(|_| follows_references);
            for reference in references {
                if named.insert(*reference.hash()) {
                    wanted.push((reference.clone(), Some(info.store_path.clone())));
                }
            }
            known.insert(*info.store_path.hash(), info);
        }
    }
    Ok(in_order(paths, known))
}

/// All paths, each behind what it refers to.
fn in_order(paths: &[StorePath], mut known: HashMap<OutputHash, PathInfo>) -> Vec<PathInfo> {
    let mut ordered = Vec::with_capacity(known.len());
    let mut entered = HashSet::new();
    for path in paths {
        // What is on the way from a path to what it refers to, and how much of each was followed.
        let mut way = Vec::new();
        if entered.insert(*path.hash()) {
            way.push((*path.hash(), 0));
        }
        while let Some((hash, followed)) = way.last_mut() {
            let references = known.get(hash).map_or(&[][..], |info| &info.references);
            let Some(reference) = references.get(*followed) else {
                ordered.extend(known.remove(hash));
                way.pop();
                continue;
            };
            *followed += 1;
            if entered.insert(*reference.hash()) {
                way.push((*reference.hash(), 0));
            }
        }
    }
    ordered
}

/// Copies paths that are given each behind what it refers to, as [`closure`] does. They come out in
/// that order, each once it is durable where it was copied to, behind all that it refers to.
///
/// A path that is there with all that its record says is passed over. What is there of another's
/// tree is not sent again. The first error ends the stream.
pub fn copy_paths(
    infos: Vec<PathInfo>,
    from: &Services,
    to: &Services,
    progress: Arc<CopyProgress>,
) -> impl Stream<Item = Result<CopiedPath, CopyPathsError>> {
    let (from_contents, to_contents) = (contents(from), contents(to));
    let path_infos = to.path_infos.clone();
    let mut done: HashMap<OutputHash, watch::Receiver<bool>> = HashMap::new();
    let jobs: Vec<_> = infos
        .into_iter()
        .map(|info| {
            let awaited = info.references.iter().filter_map(|path| done.get(path.hash()).cloned());
            let awaited: Vec<_> = awaited.collect();
            let (finished, receiver) = watch::channel(false);
            done.insert(*info.store_path.hash(), receiver);
            (info, awaited, finished)
        })
        .collect();
    stream::iter(jobs)
        .map(move |(info, awaited, finished)| {
            let (from, to) = (from_contents.clone(), to_contents.clone());
            let (path_infos, progress) = (path_infos.clone(), progress.clone());
            async move {
                let copied = copy_path(info, awaited, &from, &to, &*path_infos, &progress).await?;
                finished.send_replace(true);
                Ok(copied)
            }
        })
        .buffered(PATHS_AT_ONCE)
}

async fn copy_path(
    info: PathInfo,
    awaited: Vec<watch::Receiver<bool>>,
    from: &Contents,
    to: &Contents,
    path_infos: &dyn PathInfoService,
    progress: &Arc<CopyProgress>,
) -> Result<CopiedPath, CopyPathsError> {
    let path = info.store_path.clone();
    let refused = |source| CopyPathsError::Write {
        path: path.clone(),
        store: path_infos.to_string(),
        source,
    };
    if let Some(there) = path_infos.get(path.hash()).await.map_err(refused)?
        && has_all_of(&there, &info)
    {
        return Ok(CopiedPath { info: there, was_there: true });
    }
    copy_tree(&info.node, from, to, progress)
        .await
        .map_err(|source| CopyPathsError::Contents { path: path.clone(), source })?;
    for mut reference in awaited {
        // An error means that the reference was given up, and so is this path.
        let _ = reference.wait_for(|is_there| *is_there).await;
    }
    let info = path_infos.put(info, None).await.map_err(refused)?;
    Ok(CopiedPath { info, was_there: false })
}

/// Whether the record that is there says all that another one does.
fn has_all_of(there: &PathInfo, info: &PathInfo) -> bool {
    let signed = info.signatures.iter().all(|signature| there.signatures.contains(signature));
    let unsigned = |info: &PathInfo| PathInfo { signatures: Vec::new(), ..info.clone() };
    signed && unsigned(there) == unsigned(info)
}

fn contents(services: &Services) -> Contents {
    Contents { blobs: services.blobs.clone(), directories: services.directories.clone() }
}

#[cfg(test)]
mod tests;
