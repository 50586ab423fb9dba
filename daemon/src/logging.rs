//! What the program says of its work on standard error: log lines, as many as are asked for, and
//! whether there is someone to show progress to. Results and errors are said elsewhere.

use std::io::{self, IsTerminal as _};

use tracing::level_filters::LevelFilter;
use tracing_subscriber::{EnvFilter, fmt::format::FmtSpan};

/// The variable that names what is logged, module by module.
const VARIABLE: &str = "RUST_LOG";

/// How much is said on standard error.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct LoggingArgs {
    /// Log more: once for what happens, twice for why, three times for everything.
    ///
    /// RUST_LOG, as in RUST_LOG=cairn_castore=debug, chooses by module and goes before this.
    #[arg(short, long, global = true, action = clap::ArgAction::Count, help_heading = "Output")]
    verbose: u8,
    /// Log errors only, and show no progress.
    #[arg(short, long, global = true, conflicts_with = "verbose", help_heading = "Output")]
    quiet: bool,
}

impl LoggingArgs {
    /// Starts to log.
    pub(crate) fn start(&self) {
        let level = match (self.quiet, self.verbose) {
            (true, _) => LevelFilter::ERROR,
            (false, 0) => LevelFilter::WARN,
            (false, 1) => LevelFilter::INFO,
            (false, 2) => LevelFilter::DEBUG,
            (false, _) => LevelFilter::TRACE,
        };
        // What libraries below us do is of interest only to who asks for everything.
        let others =
            level.min(if self.verbose > 2 { LevelFilter::DEBUG } else { LevelFilter::WARN });
        let ours = ["cairn", "cairn_castore", "cairn_fs", "cairn_store"]
            .map(|module| format!("{module}={level}"))
            .join(",");
        let filter = match std::env::var(VARIABLE) {
            Ok(directives) if !directives.is_empty() => EnvFilter::new(directives),
            _ => EnvFilter::new(format!("{others},{ours}")),
        };
        tracing_subscriber::fmt()
            .with_env_filter(filter)
            .with_span_events(FmtSpan::NONE)
            .with_writer(io::stderr)
            .with_ansi(io::stderr().is_terminal())
            .init();
    }

    /// Whether to say in a line what was done: to someone who watches, or who asked for more.
    pub(crate) fn shows_summary(&self) -> bool {
        self.shows_progress() || self.verbose > 0
    }

    /// Whether to show progress: to someone who watches and did not ask for silence.
    pub(crate) fn shows_progress(&self) -> bool {
        !self.quiet && io::stderr().is_terminal()
    }
}
