//! `cairn import`: puts trees into a store and prints their store paths.

use std::{
    path::PathBuf,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use cairn_castore::import::{ImportOptions as TreeOptions, ImportProgress, READERS_MIN};
use cairn_store::{
    PathInfo, Services,
    import::{ImportOptions, KnownTrees, import_path},
};
use clap::Args;
use futures::{StreamExt as _, stream};
use indicatif::{HumanBytes, HumanCount};

use super::path_info::PathInfoRecord;
use crate::{
    cli::Context,
    exit::{Code, Failure},
    output::Output,
    progress::{rate, watch},
    services::user_folder,
    signals::EndSignals,
};

/// The most trees that are imported at a time, however many processors there are.
const TREES_AT_ONCE_MAX: usize = 4;

/// Store files and directories, and print their store paths
///
/// What is stored of a tree is its directories, its files' bytes, whether their owner may execute
/// them, and its symlinks' targets; no other modes, no owners, no times. Each path is durable
/// when its line is printed. The store path is the one that `nix-store --add` computes.
///
/// Of several paths some are imported at the same time; their lines come in the order given. If
/// one fails, the others are imported and printed all the same, and the exit code is that of the
/// last failure.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  cairn import ./tree
  cairn import --name source-1.0 ./tree
  cairn --store grpc+http://host:8000 import ./a ./b")]
pub(crate) struct ImportArgs {
    /// What to store
    #[arg(value_name = "PATH", required = true)]
    paths: Vec<PathBuf>,
    /// The name in the store path, if it is not to be the file's own
    #[arg(long)]
    name: Option<String>,
    /// Print what is known of each store path, as one JSON object a line
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    stat_cache: StatCacheArgs,
}

/// Whether a tree that has not changed is read.
#[derive(Debug, Clone, Copy, Args)]
pub(super) struct StatCacheArgs {
    /// Read every file, also of trees that have not changed
    ///
    /// Without this, a tree is not read again if the store has all of it and no name, size, inode
    /// or time in it has changed since it was imported the last time. What is needed to know that
    /// is in $XDG_CACHE_HOME/cairn/trees or ~/.cache/cairn/trees.
    #[arg(long)]
    no_stat_cache: bool,
}

impl StatCacheArgs {
    fn known_trees(self) -> Option<KnownTrees> {
        let folder = user_folder("XDG_CACHE_HOME", ".cache").filter(|_| !self.no_stat_cache);
        folder.map(|folder| KnownTrees::new(folder.join("trees")))
    }
}

impl ImportArgs {
    pub(crate) async fn run(self, context: &Context) -> Result<(), Failure> {
        if self.name.is_some() && self.paths.len() > 1 {
            return Err(Failure::plain(
                Code::Usage,
                "--name names one path, and several are given",
            )
            .help("import them one by one"));
        }
        context
            .with_services(async |services| {
                let mut output = Output::new();
                let mut signals = EndSignals::listen()
                    .map_err(|error| Failure::new("signals can't be listened for", error))?;
                let imports = Imports {
                    paths: &self.paths,
                    name: self.name.as_deref(),
                    stat_cache: self.stat_cache,
                };
                let print = async |info: PathInfo| {
                    match self.json {
                        true => output.json(&PathInfoRecord::of(&info)).await?,
                        false => output.line(info.store_path.to_absolute()).await?,
                    }
                    // A line says that the path is durable: it must not wait for the next.
                    output.flush().await
                };
                imports.run(services, context, &mut signals, print).await
            })
            .await
    }
}

/// What is to be imported.
pub(super) struct Imports<'a> {
    pub(super) paths: &'a [PathBuf],
    /// The name of the one path, if not its own.
    pub(super) name: Option<&'a str>,
    pub(super) stat_cache: StatCacheArgs,
}

impl Imports<'_> {
    /// Imports, and prints the store path of each path once it is durable.
    pub(super) async fn run_and_print(
        &self,
        services: &Services,
        context: &Context,
        signals: &mut EndSignals,
        output: &mut Output,
    ) -> Result<(), Failure> {
        let print = async |info: PathInfo| {
            output.line(info.store_path.to_absolute()).await?;
            output.flush().await
        };
        self.run(services, context, signals, print).await
    }

    /// Imports all paths, and shows how far that is where someone watches. `done` gets what was
    /// imported in the order of the paths. A path that fails does not keep the others from being
    /// imported; a signal does, and so does a failure of `done`.
    pub(super) async fn run(
        &self,
        services: &Services,
        context: &Context,
        signals: &mut EndSignals,
        done: impl AsyncFnMut(PathInfo) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        let progress = Arc::new(ImportProgress::default());
        let start = Instant::now();
        let import = self.import(services, Arc::clone(&progress), done);
        let import = async {
            match context.shows_progress {
                true => watch(&self.label(), || told(&progress, start.elapsed()), import).await,
                false => import.await,
            }
        };
        let imported = tokio::select! {
            imported = import => imported,
            // The threads of the imports end by themselves; what they had stored is kept.
            signal = signals.next() => Err(Failure::signal(signal)),
        };
        if context.shows_summary && !self.paths.is_empty() {
            eprintln!("cairn: {}", summary(&progress, start.elapsed()));
        }
        imported
    }

    async fn import(
        &self,
        services: &Services,
        progress: Arc<ImportProgress>,
        mut done: impl AsyncFnMut(PathInfo) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        let processors = thread::available_parallelism().map_or(1, usize::from);
        let at_once = self.paths.len().clamp(1, processors.min(TREES_AT_ONCE_MAX));
        let mut tree = TreeOptions { progress, ..TreeOptions::default() };
        tree.readers = (tree.readers / at_once).max(READERS_MIN);
        let options = ImportOptions {
            name: self.name.map(str::to_owned),
            // All share the budget of what is on its way to the store.
            tree,
            known_trees: self.stat_cache.known_trees(),
        };
        let mut imports = stream::iter(self.paths)
            .map(|path| {
                let options = options.clone();
                async move {
                    import_path(services, path, options).await.map_err(|error| {
                        Failure::new(format!("import of {} failed", path.display()), error)
                    })
                }
            })
            .buffered(at_once);
        let mut last: Option<Failure> = None;
        while let Some(imported) = imports.next().await {
            let (failure, goes_on) = match imported {
                Ok(info) => match done(info).await {
                    Ok(()) => continue,
                    Err(failure) => (failure, false),
                },
                Err(failure) => (failure, true),
            };
            // The last one is reported by whoever gets it.
            if let Some(earlier) = last.replace(failure) {
                earlier.report();
            }
            if !goes_on {
                break;
            }
        }
        last.map_or(Ok(()), Err)
    }

    fn label(&self) -> String {
        match self.paths {
            [path] => path.display().to_string(),
            paths => format!("{} paths", paths.len()),
        }
    }
}

/// What is done so far.
fn told(progress: &ImportProgress, elapsed: Duration) -> String {
    format!(
        "{} entries, {} read ({}/s), {} new, {} files known",
        HumanCount(progress.entries()),
        HumanBytes(progress.bytes_read()),
        HumanBytes(rate(progress.bytes_read(), elapsed)),
        HumanBytes(progress.bytes_new()),
        HumanCount(progress.blobs_known()),
    )
}

/// What was done, in a line.
fn summary(progress: &ImportProgress, elapsed: Duration) -> String {
    format!(
        "{} entries, {} of them unchanged and not read; {} read, {} new in {} files, {} files \
         known; {:.2} s, {}/s",
        HumanCount(progress.entries()),
        HumanCount(progress.entries_unchanged()),
        HumanBytes(progress.bytes_read()),
        HumanBytes(progress.bytes_new()),
        HumanCount(progress.blobs_new()),
        HumanCount(progress.blobs_known()),
        elapsed.as_secs_f64(),
        HumanBytes(rate(progress.bytes_read(), elapsed)),
    )
}
