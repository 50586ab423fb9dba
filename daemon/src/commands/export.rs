//! `cairn export`: writes a stored tree into the file system.

use std::path::PathBuf;

use cairn_castore::export::{ExportOptions, export};
use cairn_store::store_ref::StoreRef;
use clap::Args;

use super::{REF_HELP, resolve};
use crate::{cli::Context, exit::Failure};

/// Write a stored file, directory or symlink into the file system
///
/// Files get the mode 0644 or 0755 and directories 0755, less the umask. The destination appears
/// when all of it is written, or not at all; it must not be there before.
#[derive(Debug, Args)]
#[command(after_help = format!("\
{REF_HELP}

Examples:
  cairn export /nix/store/y0lrmcm4zaj0qd44rp7mg83dgyl87lkp-tree ./tree
  cairn export y0lrmcm4zaj0qd44rp7mg83dgyl87lkp-tree/d/f ./f"))]
pub(crate) struct ExportArgs {
    /// What to write
    #[arg(value_name = "REF", value_parser = super::store_ref())]
    target: StoreRef,
    /// Where to write it
    #[arg(value_name = "DEST")]
    destination: PathBuf,
}

impl ExportArgs {
    pub(crate) async fn run(self, context: &Context) -> Result<(), Failure> {
        context
            .with_services(async |services| {
                let node = resolve(&self.target, services).await?.node;
                let (blobs, directories) = (services.blobs.clone(), services.directories.clone());
                let options = ExportOptions::default();
                export(&node, &self.destination, blobs, directories, options).await.map_err(
                    |error| {
                        let destination = self.destination.display();
                        Failure::new(format!("export to {destination} failed"), error)
                    },
                )?;
                Ok(())
            })
            .await
    }
}
