//! `cairn cache`: what a node keeps near of a store that is far. Each of its commands is in a file of
//! its own.

use clap::{Args, Subcommand};

use self::{evict::EvictArgs, stats::StatsArgs, warm::WarmArgs};
use crate::{cli::Context, exit::Failure};

mod evict;
mod stats;
mod warm;

/// Look at a cache, fill it ahead of time, or empty it
///
/// The cache is the one in the folder of --cache, or in that of the store's address. It may be in use
/// by a mount or another command, which then does the work.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  cairn --cache /var/cache/cairn cache stats
  cairn --store grpc+http://host:8000 --cache /var/cache/cairn cache warm /nix/store/…-tree
  cairn --cache /var/cache/cairn cache evict --all")]
pub(crate) struct CacheArgs {
    #[command(subcommand)]
    command: CacheCommand,
}

#[derive(Debug, Subcommand)]
enum CacheCommand {
    Stats(StatsArgs),
    Warm(WarmArgs),
    Evict(EvictArgs),
}

impl CacheArgs {
    pub(crate) async fn run(self, context: &Context) -> Result<(), Failure> {
        match self.command {
            CacheCommand::Stats(args) => args.run(context).await,
            CacheCommand::Warm(args) => args.run(context).await,
            CacheCommand::Evict(args) => args.run(context).await,
        }
    }
}
