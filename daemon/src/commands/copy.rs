//! `cairn copy`: brings store paths from one store into another, with all that they refer to.

use std::{sync::Arc, time::Instant};

use cairn_castore::{Address, copy::CopyProgress};
use cairn_store::{
    Services, StorePath,
    copy::{CopyPathsError, closure, copy_paths},
    path_info_service::PAGE_MAX,
};
use clap::Args;
use futures::TryStreamExt as _;
use indicatif::{HumanBytes, HumanCount};
use serde::Serialize;

use crate::{
    cli::Context,
    exit::{Code, Failure},
    output::Output,
    progress::{rate, watch},
    services::OpenServices,
    signals::EndSignals,
};

/// Copy store paths from one store to another
///
/// Goes with a path all that it refers to, what is referred to first, so that the other store never
/// has a path without what it needs. What is there is not sent again, also what an earlier copy left
/// when it was broken off. Everything is verified on the way. Prints the store path of each path
/// that was not there before, once it is durable.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  cairn copy --to grpc+http://host:8000 /nix/store/y0lrmcm4zaj0qd44rp7mg83dgyl87lkp-tree
  cairn copy --from 'objectstore+s3://bucket/cairn?aws_region=eu-central-1' --all
  cairn copy --from grpc+http://old:8000 --to grpc+http://new:8000 --all")]
pub(crate) struct CopyArgs {
    /// The store to copy from, if it is not that of --store
    #[arg(long, value_name = "URL", required_unless_present = "to")]
    from: Option<Address>,
    /// The store to copy to, if it is not that of --store
    #[arg(long, value_name = "URL")]
    to: Option<Address>,
    /// What to copy: store paths, whole or without /nix/store/
    #[arg(value_name = "PATH", required_unless_present = "all")]
    paths: Vec<StorePath>,
    /// Copy every path that there is
    #[arg(long, conflicts_with = "paths")]
    all: bool,
    /// Copy the paths alone, without what they refer to
    #[arg(long)]
    no_references: bool,
    /// Print a JSON object for each path, also for those that were there
    #[arg(long)]
    json: bool,
}

/// A path that was copied, or was there.
#[derive(Debug, Serialize)]
struct CopyRecord {
    path: String,
    copied: bool,
}

impl CopyArgs {
    pub(crate) async fn run(self, context: &Context) -> Result<(), Failure> {
        let from = context.services_at(self.from.as_ref());
        let to = context.services_at(self.to.as_ref());
        if from.is_same_store(&to)? {
            return Err(Failure::plain(Code::Usage, "--from and --to are the same store"));
        }
        let mut signals = EndSignals::listen()
            .map_err(|error| Failure::new("signals can't be listened for", error))?;
        let from = OpenServices::open(&from).await?;
        let to = match OpenServices::open(&to).await {
            Ok(to) => to,
            Err(failure) => {
                from.close().await;
                return Err(failure);
            }
        };
        let copied = tokio::select! {
            copied = self.copy(context, &from.services, &to.services) => copied,
            signal = signals.next() => Err(Failure::signal(signal)),
        };
        to.close().await;
        from.close().await;
        copied
    }

    async fn copy(&self, context: &Context, from: &Services, to: &Services) -> Result<(), Failure> {
        let progress = Arc::new(CopyProgress::default());
        let start = Instant::now();
        let told = || {
            format!(
                "{} sent ({}/s) in {} files, {} files known",
                HumanBytes(progress.bytes_sent()),
                HumanBytes(rate(progress.bytes_sent(), start.elapsed())),
                HumanCount(progress.blobs_sent()),
                HumanCount(progress.blobs_known()),
            )
        };
        let copy = self.copy_paths(from, to, progress.clone());
        let (new, all) = match context.shows_progress {
            true => watch("copy", &told, copy).await?,
            false => copy.await?,
        };
        if context.shows_summary {
            let seconds = start.elapsed().as_secs_f64();
            eprintln!("cairn: {new} of {all} paths were new; {}; {seconds:.2} s", told());
        }
        Ok(())
    }

    /// The numbers of paths that are new, and of all.
    async fn copy_paths(
        &self,
        from: &Services,
        to: &Services,
        progress: Arc<CopyProgress>,
    ) -> Result<(u64, u64), Failure> {
        let failed = |error: CopyPathsError| {
            let code = match &error {
                CopyPathsError::NotFound { .. } | CopyPathsError::MissingReference { .. } => {
                    Some(Code::NotFound)
                }
                _ => None,
            };
            let failure = Failure::new("the copy is not complete", error);
            match code {
                Some(code) => failure.code(code),
                None => failure,
            }
        };
        let paths = match self.all {
            true => all_of(from).await?,
            false => self.paths.clone(),
        };
        let infos = closure(&paths, !self.no_references, from).await.map_err(failed)?;
        let (mut new, mut all) = (0, 0);
        let mut output = Output::new();
        let mut copied = std::pin::pin!(copy_paths(infos, from, to, progress));
        while let Some(path) = copied.try_next().await.map_err(failed)? {
            all += 1;
            new += u64::from(!path.was_there);
            let name = path.info.store_path.to_absolute();
            match self.json {
                true => output.json(&CopyRecord { path: name, copied: !path.was_there }).await?,
                false if path.was_there => continue,
                false => output.line(name).await?,
            }
            // A line says that the path is durable: it must not wait for the next.
            output.flush().await?;
        }
        Ok((new, all))
    }
}

/// All paths of a store.
async fn all_of(store: &Services) -> Result<Vec<StorePath>, Failure> {
    let mut paths: Vec<StorePath> = Vec::new();
    loop {
        let after = paths.last().map(|path| *path.hash());
        let page = store.path_infos.list(after, PAGE_MAX).await;
        let page = page.map_err(|error| Failure::new("the paths can't be listed", error))?;
        let is_last = page.len() < PAGE_MAX;
        paths.extend(page.into_iter().map(|info| info.store_path));
        if is_last {
            return Ok(paths);
        }
    }
}
