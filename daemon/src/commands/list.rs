//! `cairn list`: the store paths that a store has.

use cairn_store::path_info_service::PAGE_MAX;
use clap::Args;

use super::path_info::PathInfoRecord;
use crate::{cli::Context, exit::Failure, output::Output};

/// List the store paths in the store
///
/// One a line, in the order of the hashes in their names' bytes. The list is read page by page:
/// what comes or goes meanwhile may be in it or not.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  cairn list
  cairn --store grpc+http://host:8000 list --json | jq .narSize")]
pub(crate) struct ListArgs {
    /// Print what is known of each path, as one JSON object a line
    #[arg(long)]
    json: bool,
}

impl ListArgs {
    pub(crate) async fn run(self, context: &Context) -> Result<(), Failure> {
        context
            .with_services(async |services| {
                let mut output = Output::new();
                let mut after = None;
                loop {
                    let page =
                        services.path_infos.list(after, PAGE_MAX).await.map_err(|error| {
                            Failure::new("the store paths can't be listed", error)
                        })?;
                    for info in &page {
                        match self.json {
                            true => output.json(&PathInfoRecord::of(info)).await?,
                            false => output.line(info.store_path.to_absolute()).await?,
                        }
                    }
                    after = match page.last() {
                        Some(last) if page.len() == PAGE_MAX => Some(*last.store_path.hash()),
                        _ => break,
                    };
                }
                output.flush().await
            })
            .await
    }
}
