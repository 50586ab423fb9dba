//! `cairn config check`: whether configuration files are right.

use std::path::PathBuf;

use clap::{Args, CommandFactory as _};

use crate::{
    cli::Cli,
    config::{Config, Configured},
    exit::Failure,
    output::Output,
};

/// Check configuration files
///
/// Prints a line for each file when all are right. All that is wrong is told with the file, the line and
/// the key, and the exit code is 2. Nothing is opened: whether a store is there is not asked.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  cairn config check
  cairn config check ./cairn.toml")]
pub(crate) struct CheckArgs {
    /// The file to check; those that a command would read unless told
    file: Option<PathBuf>,
}

impl CheckArgs {
    pub(crate) async fn run(self, configured: Configured) -> Result<(), Failure> {
        let config = match self.file {
            None => configured.config,
            Some(file) => {
                let read = move || Config::read(Some(&file), Cli::command);
                let read = tokio::task::spawn_blocking(read).await;
                read.map_err(|error| Failure::new("the file can't be checked", error))?
            }
        };
        let config = config.map_err(Failure::last_of)?;
        config.warn();
        let mut output = Output::new();
        if config.files().is_empty() {
            output.line("there is no configuration file").await?;
        }
        for file in config.files() {
            let (settings, stores) = (file.settings.len(), file.stores.len());
            let path = file.path.display();
            output.line(format!("{path} is right; settings: {settings}, stores: {stores}")).await?;
        }
        output.flush().await
    }
}
