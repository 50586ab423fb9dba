//! `cairn cache evict`: throws away what a cache holds.

use cairn_store::StorePath;
use clap::Args;
use serde::Serialize;

use crate::{
    cache,
    cli::Context,
    exit::{Code, Failure},
    output::Output,
};

/// Throw away what a cache holds of store paths, or all of it
///
/// Prints the paths of which something was there. What other paths share with them goes as well, and
/// is fetched again when it is read. Nothing happens to the store.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  cairn --cache /var/cache/cairn cache evict /nix/store/y0lrmcm4zaj0qd44rp7mg83dgyl87lkp-tree
  cairn --cache /var/cache/cairn cache evict --all")]
pub(crate) struct EvictArgs {
    /// Store paths, whole or without /nix/store/
    #[arg(value_name = "PATH", required_unless_present = "all", conflicts_with = "all")]
    paths: Vec<StorePath>,
    /// Everything
    #[arg(long)]
    all: bool,
    /// Print one JSON object a path: whether something of it was there
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct EvictedRecord {
    path: String,
    evicted: bool,
}

impl EvictArgs {
    pub(crate) async fn run(self, context: &Context) -> Result<(), Failure> {
        let (folder, budget) = context.cache()?;
        let failed = |error| Failure::new("nothing can be thrown away", error);
        let opened = cache::open(&folder, budget).await.map_err(failed)?;
        if self.all {
            return opened.control().clear().await.map_err(failed);
        }
        let hashes: Vec<_> = self.paths.iter().map(|path| *path.hash()).collect();
        let present = opened.control().evict(&hashes).await.map_err(failed)?;
        let mut output = Output::new();
        let mut absent = 0;
        for (path, evicted) in self.paths.iter().zip(present) {
            absent += usize::from(!evicted);
            let path = path.to_absolute();
            match (self.json, evicted) {
                (true, _) => output.json(&EvictedRecord { path, evicted }).await?,
                (false, true) => output.line(path).await?,
                (false, false) => {}
            }
        }
        output.flush().await?;
        match absent {
            0 => Ok(()),
            absent => {
                let what = format!("{absent} of {} paths are not in the cache", self.paths.len());
                Err(Failure::plain(Code::NotFound, what))
            }
        }
    }
}
