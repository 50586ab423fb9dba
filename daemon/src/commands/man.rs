//! `cairn man`: the manual, made of the help of every command.

use std::{io, path::PathBuf};

use clap::{Args, CommandFactory as _};
use clap_mangen::Man;

use crate::{cli::Cli, exit::Failure, output::Output};

/// Print the manual, or write that of every command to a folder
///
/// The pages are those that `man` shows: cairn.1, and one for each command, such as cairn-ls.1.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  cairn man | man -l -
  cairn man --out /usr/local/share/man/man1")]
pub(crate) struct ManArgs {
    /// Write the pages of all commands to this folder, which is made if need be
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

impl ManArgs {
    pub(crate) async fn run(self) -> Result<(), Failure> {
        let Some(folder) = self.out else {
            let mut page = Vec::new();
            let rendered = Man::new(Cli::command()).render(&mut page);
            rendered.map_err(|error| Failure::new("the manual can't be made", error))?;
            let mut output = Output::new();
            output.bytes(&page).await?;
            return output.flush().await;
        };
        let failed = |error| {
            Failure::new(format!("the manual can't be written to {}", folder.display()), error)
        };
        let to = folder.clone();
        let written = tokio::task::spawn_blocking(move || {
            std::fs::create_dir_all(&to)?;
            clap_mangen::generate_to(Cli::command(), &to)
        });
        written.await.map_err(io::Error::other).flatten().map_err(failed)
    }
}
