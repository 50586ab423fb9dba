//! The one binary: reads the command line, runs the command and ends with its exit code. What the
//! commands do is in `commands`; what they do it with, in the crates below.

use std::process::ExitCode;

use clap::Parser as _;

mod background;
mod cache;
mod cli;
mod commands;
mod exit;
mod local_owner;
mod logging;
mod mount_helper;
mod output;
mod progress;
mod server;
mod services;
mod signals;
mod space;

fn main() -> ExitCode {
    if let Some(words) = mount_helper::words(std::env::args_os()) {
        return mount_helper::become_cairn(&words).report();
    }
    // Before anything else opens a file.
    let sockets = server::systemd::handed_over();
    let cli = cli::Cli::parse();
    let log_file = match cli.start_logging() {
        Ok(log_file) => log_file,
        Err(failure) => return failure.report(),
    };
    let runtime =
        match tokio::runtime::Builder::new_multi_thread().thread_name("cairn").enable_all().build()
        {
            Ok(runtime) => runtime,
            Err(error) => return exit::Failure::new("no thread can be started", error).report(),
        };
    let result = runtime.block_on(cli.run(sockets, log_file));
    // A thread that waits, for a reader of standard output say, must not keep the process.
    runtime.shutdown_background();
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}
