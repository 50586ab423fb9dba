//! The command line as a whole: the options that every command takes, and the list of commands.
//! Each command is in a file of its own.

use std::{fs::File, path::PathBuf, sync::Arc};

use cairn_castore::Address;
use cairn_fs::space::SpaceSource;
use cairn_store::Services;
use clap::{Parser, Subcommand};

use crate::{
    background,
    cache::CacheControl,
    commands::{
        cache::CacheArgs, cat::CatArgs, completions::CompletionsArgs, config::ConfigArgs,
        copy::CopyArgs, daemon::DaemonArgs, diff::DiffArgs, du::DuArgs, export::ExportArgs,
        find::FindArgs, import::ImportArgs, list::ListArgs, ls::LsArgs, man::ManArgs,
        mount::MountArgs, path_info::PathInfoArgs, ping::PingArgs, services::ServicesArgs,
        stat::StatArgs, stats::StatsArgs, top::TopArgs, tree::TreeArgs, umount::UmountArgs,
        virtiofs::VirtiofsArgs,
    },
    config::{ConfigFileArgs, Configured},
    exit::Failure,
    logging::LoggingArgs,
    server::systemd::HandedOver,
    services::{OpenServices, ServiceArgs},
    space::LocalSpace,
    traces::Traces,
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
  cairn virtiofs ./cairn.sock             show all trees to a virtual machine

Exit codes: 0 all done, 1 failure, 2 wrong usage, 3 not found, 4 damaged data,
130 and 143 ended by SIGINT and SIGTERM."
)]
pub(crate) struct Cli {
    #[command(flatten)]
    services: ServiceArgs,
    #[command(flatten)]
    logging: LoggingArgs,
    #[command(flatten)]
    file: ConfigFileArgs,
    /// This is the process that goes on in the background
    #[arg(long = background::FLAG, hide = true)]
    in_background: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Import(ImportArgs),
    Mount(MountArgs),
    Umount(UmountArgs),
    Virtiofs(VirtiofsArgs),
    Daemon(DaemonArgs),
    Export(ExportArgs),
    Copy(CopyArgs),
    Ls(LsArgs),
    Tree(TreeArgs),
    Cat(CatArgs),
    Stat(StatArgs),
    Find(FindArgs),
    Du(DuArgs),
    Diff(DiffArgs),
    PathInfo(PathInfoArgs),
    List(ListArgs),
    Ping(PingArgs),
    Services(ServicesArgs),
    Stats(StatsArgs),
    Top(TopArgs),
    Cache(CacheArgs),
    Config(ConfigArgs),
    Completions(CompletionsArgs),
    Man(ManArgs),
}

/// What a command gets besides its own arguments.
#[derive(Debug)]
pub(crate) struct Context {
    services: ServiceArgs,
    /// Whether to show progress on standard error.
    pub(crate) shows_progress: bool,
    /// Whether to say in a line on standard error what was done.
    pub(crate) shows_summary: bool,
    /// Whether this is the process that was started to go on in the background.
    pub(crate) in_background: bool,
    /// What is logged to, if that is a file.
    pub(crate) log_file: Option<File>,
}

impl Context {
    /// The room where blobs are kept, if that is on this machine.
    pub(crate) fn space(&self) -> Result<Option<Arc<dyn SpaceSource>>, Failure> {
        let folder = self.services.blob_folder()?;
        Ok(folder.map(|folder| Arc::new(LocalSpace(folder)) as Arc<dyn SpaceSource>))
    }

    /// The store at an address, or else that of the command line.
    pub(crate) fn services_at(&self, address: Option<&Address>) -> ServiceArgs {
        match address {
            Some(address) => ServiceArgs::of(address.clone()),
            None => self.services.clone(),
        }
    }

    /// The stores that the command line names, and which services are in each.
    pub(crate) fn stores(&self) -> Result<Vec<(Address, Vec<&'static str>)>, Failure> {
        self.services.stores()
    }

    /// The folder of the cache that is named, and how much it may keep.
    pub(crate) fn cache(&self) -> Result<(PathBuf, u64), Failure> {
        self.services.cache()
    }

    /// Whether each directory that is asked for costs the way to a store that is far.
    pub(crate) fn has_far_directories(&self) -> Result<bool, Failure> {
        self.services.has_far_directories()
    }

    /// Does something with the store and its cache, and lets go of both whatever comes of it.
    pub(crate) async fn with_cache(
        &self,
        work: impl AsyncFnOnce(&Services, Option<Arc<dyn CacheControl>>) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        self.with_opened(async |opened| work(&opened.services, opened.cache.clone()).await).await
    }

    /// Does something with all that is opened with the store, and lets go of it whatever comes of it.
    pub(crate) async fn with_opened(
        &self,
        work: impl AsyncFnOnce(&OpenServices) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        let opened = OpenServices::open(&self.services).await?;
        let result = work(&opened).await;
        opened.close().await;
        result
    }

    /// Does something with the store, and lets go of the store whatever comes of it.
    pub(crate) async fn with_services(
        &self,
        work: impl AsyncFnOnce(&Services) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        self.with_cache(async |services, _| work(services).await).await
    }
}

impl Cli {
    /// Starts to log, and to send traces; the file that is logged to, if it is one, and the way of
    /// the traces. Must be called within the runtime.
    pub(crate) fn start_logging(&self) -> Result<(Option<File>, Option<Traces>), Failure> {
        let traces = match &self.command {
            Command::Mount(args) => args.traces.start()?,
            Command::Virtiofs(args) => args.traces.start()?,
            Command::Daemon(args) => args.traces.start()?,
            _ => None,
        };
        let log_file = self.logging.start(self.in_background, traces.as_ref())?;
        Ok((log_file, traces))
    }

    /// Runs the command. The sockets are those that whoever started the process handed over.
    pub(crate) async fn run(
        self,
        configured: Configured,
        sockets: HandedOver,
        log_file: Option<File>,
    ) -> Result<(), Failure> {
        // Who looks into the files wants to know what is wrong with them.
        let configured = match &self.command {
            Command::Config(_) => configured,
            _ => configured.usable()?,
        };
        let context = Context {
            services: self.services,
            shows_progress: self.logging.shows_progress(),
            shows_summary: self.logging.shows_summary(),
            in_background: self.in_background,
            log_file,
        };
        match self.command {
            Command::Import(args) => args.run(&context).await,
            Command::Mount(args) => args.run(&context).await,
            Command::Umount(args) => args.run().await,
            Command::Virtiofs(args) => args.run(&context).await,
            Command::Daemon(args) => args.run(&context, sockets).await,
            Command::Export(args) => args.run(&context).await,
            Command::Copy(args) => args.run(&context).await,
            Command::Ls(args) => args.run(&context).await,
            Command::Tree(args) => args.run(&context).await,
            Command::Cat(args) => args.run(&context).await,
            Command::Stat(args) => args.run(&context).await,
            Command::Find(args) => args.run(&context).await,
            Command::Du(args) => args.run(&context).await,
            Command::Diff(args) => args.run(&context).await,
            Command::PathInfo(args) => args.run(&context).await,
            Command::List(args) => args.run(&context).await,
            Command::Ping(args) => args.run(&context).await,
            Command::Services(args) => args.run(&context).await,
            Command::Stats(args) => args.run(&context).await,
            Command::Top(args) => args.run().await,
            Command::Cache(args) => args.run(&context).await,
            Command::Config(args) => args.run(configured).await,
            Command::Completions(args) => args.run().await,
            Command::Man(args) => args.run().await,
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
