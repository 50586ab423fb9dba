//! `cairn config`: what files set in place of flags. Each of its commands is in a file of its own.

use clap::{Args, Subcommand};

use self::{check::CheckArgs, show::ShowArgs};
use crate::{config::Configured, exit::Failure};

mod check;
mod show;

/// Check configuration files, or show what is set
///
/// A file sets in TOML what flags would: a key for each flag, by its long name; those that every
/// command takes on top, those of one command in a table of its name. What names the work of one
/// run, or the form of its output, is for the command line alone.
#[derive(Debug, Args)]
#[command(after_help = "\
Example of a file:
  store = \"grpc+http://host:8000\"
  cache = \"/var/cache/cairn\"

  [mount]
  deadline = 60

  [cache-warm]                            for `cairn cache warm`")]
pub(crate) struct ConfigArgs {
    #[command(subcommand)]
    command: ConfigCommand,
}

#[derive(Debug, Subcommand)]
enum ConfigCommand {
    Check(CheckArgs),
    Show(ShowArgs),
}

impl ConfigArgs {
    pub(crate) async fn run(self, configured: Configured) -> Result<(), Failure> {
        match self.command {
            ConfigCommand::Check(args) => args.run(configured).await,
            ConfigCommand::Show(args) => args.run(configured).await,
        }
    }
}
