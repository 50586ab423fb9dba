//! `cairn cat`: the bytes of files in a store.

use cairn_castore::{ByteRange, Node};
use cairn_store::store_ref::StoreRef;
use clap::Args;
use futures::TryStreamExt as _;

use super::{REF_HELP, resolve};
use crate::{
    cli::Context,
    exit::{Code, Failure},
    output::Output,
};

/// Print the contents of stored files
///
/// What is printed has been verified against its digest. Where a file turns out to be damaged,
/// the output ends before the damage, and the exit code is 4.
#[derive(Debug, Args)]
#[command(after_help = format!("\
{REF_HELP}

Examples:
  cairn cat /nix/store/y0lrmcm4zaj0qd44rp7mg83dgyl87lkp-tree/run
  cairn cat blake3-C4tgJI+tesbfrCIbfgGouRx3JCGhWzh90fstapSu5Dg="))]
pub(crate) struct CatArgs {
    /// The files, which are printed one behind the other
    #[arg(value_name = "REF", required = true, value_parser = super::store_ref())]
    targets: Vec<StoreRef>,
}

impl CatArgs {
    pub(crate) async fn run(self, context: &Context) -> Result<(), Failure> {
        context
            .with_services(async |services| {
                let mut output = Output::new();
                for target in &self.targets {
                    let digest = match resolve(target, services).await?.node {
                        Node::File { digest, .. } => digest,
                        Node::Directory { .. } => {
                            let what = format!("{target} is a directory");
                            return Err(Failure::plain(Code::Failed, what)
                                .help("`cairn ls` shows what is in it"));
                        }
                        Node::Symlink { target: to } => {
                            let to = to.to_string();
                            let what = format!("{target} is a symlink to {to:?}");
                            return Err(Failure::plain(Code::Failed, what)
                                .help("symlinks are not followed: name the file itself"));
                        }
                    };
                    let failed = |error| Failure::new(format!("{target} can't be read"), error);
                    let mut stream =
                        services.blobs.read(&digest, ByteRange::ALL).await.map_err(failed)?;
                    while let Some(bytes) = stream.try_next().await.map_err(failed)? {
                        output.bytes(&bytes).await?;
                    }
                }
                output.flush().await
            })
            .await
    }
}
