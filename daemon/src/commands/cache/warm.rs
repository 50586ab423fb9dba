//! `cairn cache warm`: fetches trees into a cache ahead of those who read them.

use std::{
    cell::Cell,
    path::PathBuf,
    time::{Duration, Instant},
};

use cairn_castore::cache::warm::Warmed;
use cairn_store::store_ref::StoreRef;
use clap::Args;
use futures::{TryStreamExt as _, stream::BoxStream};
use indicatif::{HumanBytes, HumanCount};
use serde::Serialize;

use crate::{
    cache::{ControlError, Warming, warm_in_parts},
    cli::Context,
    commands::{REF_HELP, mount::workload, resolve},
    exit::{Code, Failure},
    output::Output,
    progress::watch,
    signals::EndSignals,
};

/// Fetch trees into a cache, ahead of those who read them
///
/// All that a tree consists of is fetched, as far as it is not near, many files at a time; then it
/// can be read without the store that is far. With --profile, just what a workload has touched
/// before, in that order. One line is printed for each tree or profile once all of it is near. What
/// was cut short goes on where it was.
#[derive(Debug, Args)]
#[command(after_help = format!("\
{REF_HELP}

Examples:
  cairn --store grpc+http://host:8000 --cache /var/cache/cairn cache warm /nix/store/…-tree
  cairn --store 'cache:?near=sled:/var/cache/cairn&far=grpc+http://host:8000' cache warm …-tree/lib
  cairn mount --record build.profile ~/store
  cairn --store grpc+http://host:8000 --cache /var/cache/cairn cache warm --profile build.profile"))]
pub(crate) struct WarmArgs {
    /// What to fetch
    #[arg(
        value_name = "REF",
        value_parser = crate::commands::store_ref(),
        required_unless_present = "profile"
    )]
    targets: Vec<StoreRef>,
    /// Fetch what is named in a file that `cairn mount --record` has written; may be repeated
    ///
    /// What the store does not have is left out and counted: the profile may be of another version
    /// of a tree.
    #[arg(long, value_name = "FILE")]
    profile: Vec<PathBuf>,
    /// Print what was fetched, as one JSON object for each tree or profile
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct WarmRecord {
    target: String,
    directories: u64,
    files: u64,
    bytes: u64,
    files_fetched: u64,
    bytes_fetched: u64,
    missing: u64,
}

impl WarmArgs {
    pub(crate) async fn run(self, context: &Context) -> Result<(), Failure> {
        // A cache has to be named, and in a folder: one in memory would go with the command.
        context.cache()?;
        let mut profiles = Vec::new();
        for path in &self.profile {
            profiles.push((path.display().to_string(), workload::read_profile(path).await?));
        }
        context
            .with_cache(async |services, cache| {
                let cache = cache.ok_or_else(|| {
                    Failure::plain(Code::Failed, "the cache can't be used")
                        .help("make room on its disk, or choose another folder with --cache")
                })?;
                let mut signals = EndSignals::listen()
                    .map_err(|error| Failure::new("signals can't be listened for", error))?;
                let work = async {
                    let mut output = Output::new();
                    for target in &self.targets {
                        let node = resolve(target, services).await?.node;
                        let told = cache.warm(&Warming::Tree(node));
                        self.warm(context, &mut output, target.to_string(), told).await?;
                    }
                    for (path, profile) in profiles {
                        let told = warm_in_parts(cache.clone(), profile);
                        self.warm(context, &mut output, path, told).await?;
                    }
                    Ok(())
                };
                tokio::select! {
                    done = work => done,
                    signal = signals.next() => Err(Failure::signal(signal)),
                }
            })
            .await
    }

    async fn warm(
        &self,
        context: &Context,
        output: &mut Output,
        target: String,
        mut told: BoxStream<'static, Result<Warmed, ControlError>>,
    ) -> Result<(), Failure> {
        let start = Instant::now();
        let last = Cell::new(Warmed::default());
        let work = async {
            while let Some(warmed) = told.try_next().await? {
                last.set(warmed);
            }
            Ok(())
        };
        let done = match context.shows_progress {
            true => watch(&target, || counts(&last.get()), work).await,
            false => work.await,
        };
        let failed =
            |error: ControlError| Failure::new(format!("{target} can't be fetched"), error);
        done.map_err(failed)?;
        let warmed = last.get();
        match self.json {
            true => output.json(&record(target, &warmed)).await?,
            false => output.line(line(&target, &warmed, start.elapsed())).await?,
        }
        output.flush().await
    }
}

fn counts(warmed: &Warmed) -> String {
    let missing = match warmed.missing {
        0 => String::new(),
        missing => format!("; {} not in the store", HumanCount(missing)),
    };
    format!(
        "{} directories, {} files, {}; {} files fetched, {}{missing}",
        HumanCount(warmed.directories),
        HumanCount(warmed.files),
        HumanBytes(warmed.bytes),
        HumanCount(warmed.files_fetched),
        HumanBytes(warmed.bytes_fetched),
    )
}

fn line(target: &str, warmed: &Warmed, elapsed: Duration) -> String {
    format!("{target}: {} ({:.2} s)", counts(warmed), elapsed.as_secs_f64())
}

fn record(target: String, warmed: &Warmed) -> WarmRecord {
    let Warmed { directories, files, bytes, files_fetched, bytes_fetched, missing } = *warmed;
    WarmRecord { target, directories, files, bytes, files_fetched, bytes_fetched, missing }
}
