//! The command line as a whole: the options that every command takes, and the list of commands.
//! Each command is in a file of its own.

use cairn_store::Services;
use clap::{Parser, Subcommand};

use crate::{
    commands::{
        cat::CatArgs, completions::CompletionsArgs, daemon::DaemonArgs, export::ExportArgs,
        import::ImportArgs, list::ListArgs, ls::LsArgs, mount::MountArgs, path_info::PathInfoArgs,
        stat::StatArgs,
    },
    exit::Failure,
    logging::LoggingArgs,
    server::systemd::HandedOver,
    services::{OpenServices, ServiceArgs},
};

/// A content-addressed store that can be mounted: trees go in by what they contain, and come out
/// again as a file system, as files or over the network.
#[derive(Debug, Parser)]
#[command(
    name = "cairn",
    version,
    max_term_width = 100,
    infer_long_args = false,
    disable_help_subcommand = true,
    after_help = "\
Examples:
  cairn import ./tree                     store a tree, print its store path
  cairn mount --import ./tree /mnt        store a tree and show all trees at /mnt
  cairn ls -lR /nix/store/…-tree          look at a stored tree without mounting it
  cairn daemon --listen [::]:8000         serve the local store to others
  cairn --store grpc+http://host:8000 mount /mnt
                                          show the trees of another machine

Exit codes: 0 all done, 1 failure, 2 wrong usage, 3 not found, 4 damaged data,
130 and 143 ended by SIGINT and SIGTERM."
)]
pub(crate) struct Cli {
    #[command(flatten)]
    services: ServiceArgs,
    #[command(flatten)]
    pub(crate) logging: LoggingArgs,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Import(ImportArgs),
    Mount(MountArgs),
    Daemon(DaemonArgs),
    Export(ExportArgs),
    Ls(LsArgs),
    Cat(CatArgs),
    Stat(StatArgs),
    PathInfo(PathInfoArgs),
    List(ListArgs),
    Completions(CompletionsArgs),
}

/// What a command gets besides its own arguments.
#[derive(Debug)]
pub(crate) struct Context {
    services: ServiceArgs,
    /// Whether to show progress on standard error.
    pub(crate) shows_progress: bool,
    /// Whether to say in a line on standard error what was done.
    pub(crate) shows_summary: bool,
}

impl Context {
    /// Does something with the store, and lets go of the store whatever comes of it.
    pub(crate) async fn with_services(
        &self,
        work: impl AsyncFnOnce(&Services) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        let opened = OpenServices::open(&self.services).await?;
        let result = work(&opened.services).await;
        opened.close().await;
        result
    }
}

impl Cli {
    /// Runs the command. The sockets are those that whoever started the process handed over.
    pub(crate) async fn run(self, sockets: HandedOver) -> Result<(), Failure> {
        let context = Context {
            services: self.services,
            shows_progress: self.logging.shows_progress(),
            shows_summary: self.logging.shows_summary(),
        };
        match self.command {
            Command::Import(args) => args.run(&context).await,
            Command::Mount(args) => args.run(&context).await,
            Command::Daemon(args) => args.run(&context, sockets).await,
            Command::Export(args) => args.run(&context).await,
            Command::Ls(args) => args.run(&context).await,
            Command::Cat(args) => args.run(&context).await,
            Command::Stat(args) => args.run(&context).await,
            Command::PathInfo(args) => args.run(&context).await,
            Command::List(args) => args.run(&context).await,
            Command::Completions(args) => args.run().await,
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
