//! `cairn import`: puts trees into a store and prints their store paths.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use cairn_castore::import::ImportProgress;
use cairn_store::{
    PathInfo, Services,
    import::{ImportOptions, import_path},
};
use clap::Args;
use indicatif::{HumanBytes, HumanCount, ProgressBar, ProgressStyle};

use super::path_info::PathInfoRecord;
use crate::{
    cli::Context,
    exit::{Code, Failure},
    output::Output,
};

/// How often progress is drawn.
const DRAW_INTERVAL: Duration = Duration::from_millis(100);

/// Store files and directories, and print their store paths
///
/// What is stored of a tree is its directories, its files' bytes, whether their owner may execute
/// them, and its symlinks' targets; no other modes, no owners, no times. Each path is durable
/// when its line is printed. The store path is the one that `nix-store --add` computes.
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
                for path in &self.paths {
                    let info = import(path, self.name.as_deref(), services, context).await?;
                    match self.json {
                        true => output.json(&PathInfoRecord::of(&info)).await?,
                        false => output.line(info.store_path.to_absolute()).await?,
                    }
                    // A line says that the path is durable: it must not wait for the next.
                    output.flush().await?;
                }
                Ok(())
            })
            .await
    }
}

/// Imports a path, and shows how far that is where someone watches.
pub(super) async fn import(
    path: &Path,
    name: Option<&str>,
    services: &Services,
    context: &Context,
) -> Result<PathInfo, Failure> {
    let options = ImportOptions { name: name.map(str::to_owned), ..ImportOptions::default() };
    let progress = options.tree.progress.clone();
    let import = import_path(services, path, options);
    let imported = match context.shows_progress {
        true => show_progress(path, progress, import).await,
        false => import.await,
    };
    imported.map_err(|error| Failure::new(format!("import of {} failed", path.display()), error))
}

async fn show_progress<T>(
    path: &Path,
    progress: Arc<ImportProgress>,
    work: impl Future<Output = T>,
) -> T {
    let style = ProgressStyle::with_template("{spinner} {prefix}: {msg} ({elapsed})")
        .expect("the template is valid");
    let bar = ProgressBar::new_spinner().with_style(style).with_prefix(path.display().to_string());
    let mut ticks = tokio::time::interval(DRAW_INTERVAL);
    let mut work = std::pin::pin!(work);
    let done = loop {
        tokio::select! {
            done = &mut work => break done,
            _ = ticks.tick() => {
                bar.set_message(format!(
                    "{} entries, {} read, {} new",
                    HumanCount(progress.entries()),
                    HumanBytes(progress.bytes_read()),
                    HumanBytes(progress.bytes_new()),
                ));
                bar.tick();
            }
        }
    };
    bar.finish_and_clear();
    done
}
