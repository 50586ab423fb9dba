//! What the program says of its work on standard error: log lines, as many as are asked for, and
//! whether there is someone to show progress to. Results and errors are said elsewhere.

use std::{
    fs::File,
    io::{self, IsTerminal as _},
    path::PathBuf,
};

use cairn_telemetry::trace;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::{
    EnvFilter, Layer as _,
    filter::Targets,
    fmt::{self, format::FmtSpan, writer::BoxMakeWriter},
    layer::SubscriberExt as _,
    util::SubscriberInitExt as _,
};

use self::syslog::Syslog;
use crate::{exit::Failure, traces::Traces};

mod syslog;

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
    /// Log to the end of this file instead of standard error.
    #[arg(long, global = true, value_name = "PATH", help_heading = "Output")]
    log_file: Option<PathBuf>,
    /// How log lines are written
    #[arg(
        long,
        global = true,
        value_name = "FORMAT",
        default_value_t,
        hide_default_value = true,
        value_enum,
        help_heading = "Output"
    )]
    log_format: LogFormat,
}

/// How log lines are written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
enum LogFormat {
    /// Text for people, which is the default
    #[default]
    Text,
    /// An object a line for programs, with the keys timestamp, level, target and fields
    Json,
}

impl std::fmt::Display for LogFormat {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Text => "text",
            Self::Json => "json",
        })
    }
}

impl LoggingArgs {
    /// Starts to log: to the file if there is to be one, which is returned, else to the system's
    /// log for a process in the background, else to standard error.
    pub(crate) fn start(
        &self,
        in_background: bool,
        traces: Option<&Traces>,
    ) -> Result<Option<File>, Failure> {
        let log_file = self.log_file.as_ref().map(|path| {
            let file = File::options().create(true).append(true).open(path);
            file.map_err(|error| {
                Failure::new(format!("the log file {} can't be opened", path.display()), error)
            })
        });
        let log_file = log_file.transpose()?;
        let writer = match &log_file {
            Some(file) => {
                let file = file.try_clone();
                BoxMakeWriter::new(
                    file.map_err(|error| Failure::new("the log file can't be used", error))?,
                )
            }
            None if in_background => BoxMakeWriter::new(
                Syslog::new().map_err(|error| Failure::new("no log can be opened", error))?,
            ),
            None => BoxMakeWriter::new(io::stderr),
        };
        let has_colours = log_file.is_none() && !in_background && io::stderr().is_terminal();
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
        // These complain of whatever a guest sends that makes no sense, which may be a lot.
        let quiet = if self.verbose > 2 { "" } else { ",fuse_backend_rs=off,virtio_queue=off" };
        let filter = match std::env::var(VARIABLE) {
            Ok(directives) if !directives.is_empty() => EnvFilter::new(directives),
            _ => EnvFilter::new(format!("{others}{quiet},{ours}")),
        };
        let lines = fmt::layer().with_span_events(FmtSpan::NONE).with_writer(writer);
        let lines = match self.log_format {
            LogFormat::Text => lines.with_ansi(has_colours).boxed(),
            LogFormat::Json => lines.json().boxed(),
        };
        let spans = traces.map(|traces| {
            let wanted = Targets::new().with_target(trace::TARGET, LevelFilter::INFO);
            tracing_opentelemetry::layer()
                .with_tracer(traces.tracer())
                .with_location(false)
                .with_threads(false)
                .with_target(false)
                .with_tracked_inactivity(false)
                .with_filter(wanted)
        });
        tracing_subscriber::registry().with(lines.with_filter(filter)).with(spans).init();
        Ok(log_file)
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
