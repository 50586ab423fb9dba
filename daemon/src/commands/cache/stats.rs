//! `cairn cache stats`: what a cache holds, and what came of it.

use cairn_castore::local::Kind;
use clap::Args;
use indicatif::{BinaryBytes, HumanCount};
use serde::Serialize;

use crate::{
    cache::{self, CacheReport},
    cli::Context,
    exit::Failure,
    output::Output,
};

/// Show how much a cache holds, and how often it was of use
///
/// How often something was found or fetched is counted by whoever has the cache open, from when it
/// was opened; of one that nobody uses there is nothing to tell.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  cairn --cache /var/cache/cairn cache stats
  cairn --cache /var/cache/cairn cache stats --json | jq .bytes")]
pub(crate) struct StatsArgs {
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

impl StatsArgs {
    pub(crate) async fn run(self, context: &Context) -> Result<(), Failure> {
        let (folder, budget) = context.cache()?;
        let failed = |error| Failure::new("nothing can be told of the cache", error);
        let opened = cache::open(&folder, budget).await.map_err(failed)?;
        let report = opened.control().stats().await.map_err(failed)?;
        let record = StatsRecord::of(folder.display().to_string(), opened.is_in_use(), &report);
        let mut output = Output::new();
        match self.json {
            true => output.json(&record).await?,
            false => record.print(&mut output).await?,
        }
        output.flush().await
    }
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct StatsRecord {
    folder: String,
    budget: u64,
    bytes: u64,
    files: u64,
    file_parts: u64,
    directories: u64,
    store_paths: u64,
    /// `None` if nobody has the cache open.
    #[serde(rename = "use")]
    use_: Option<UseRecord>,
}

/// What whoever has it open has counted.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct UseRecord {
    hits: u64,
    misses: u64,
    fetched_bytes: u64,
    evicted_bytes: u64,
    not_kept: u64,
}

impl StatsRecord {
    fn of(folder: String, is_in_use: bool, report: &CacheReport) -> Self {
        let CacheReport { budget, stats } = *report;
        let count = |kind: Kind| {
            let counted = stats.usage.records.iter().find(|(counted, _)| *counted == kind);
            counted.map_or(0, |(_, count)| *count)
        };
        let use_ = is_in_use.then_some(UseRecord {
            hits: stats.hits,
            misses: stats.misses,
            fetched_bytes: stats.fetched,
            evicted_bytes: stats.usage.evicted,
            not_kept: stats.usage.dropped,
        });
        Self {
            folder,
            budget,
            bytes: stats.usage.bytes,
            files: count(Kind::Chunk),
            file_parts: count(Kind::Group),
            directories: count(Kind::Directory),
            store_paths: count(Kind::PathInfo),
            use_,
        }
    }

    async fn print(&self, output: &mut Output) -> Result<(), Failure> {
        let mut line = async |label: &str, value: String| {
            output.line(format!("{:<14}{value}", format!("{label}:"))).await
        };
        line("folder", self.folder.clone()).await?;
        line("budget", BinaryBytes(self.budget).to_string()).await?;
        line("taken", BinaryBytes(self.bytes).to_string()).await?;
        line("files", HumanCount(self.files).to_string()).await?;
        line("file parts", HumanCount(self.file_parts).to_string()).await?;
        line("directories", HumanCount(self.directories).to_string()).await?;
        line("store paths", HumanCount(self.store_paths).to_string()).await?;
        let Some(used) = &self.use_ else {
            return line("in use", "no".to_owned()).await;
        };
        line("found", HumanCount(used.hits).to_string()).await?;
        line("fetched", HumanCount(used.misses).to_string()).await?;
        line("bytes fetched", BinaryBytes(used.fetched_bytes).to_string()).await?;
        line("bytes evicted", BinaryBytes(used.evicted_bytes).to_string()).await?;
        line("not kept", HumanCount(used.not_kept).to_string()).await
    }
}
