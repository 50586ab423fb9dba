//! The one binary: reads the command line, runs the command and ends with its exit code. What the
//! commands do is in `commands`; what they do it with, in the crates below.

use std::process::ExitCode;

mod background;
mod cache;
mod cli;
mod commands;
mod config;
mod exit;
mod health;
mod holdings;
mod http;
mod local_owner;
mod logging;
mod mount_helper;
mod output;
mod peer;
mod probe;
mod process;
mod progress;
mod server;
mod services;
mod signals;
mod space;
mod traces;

fn main() -> ExitCode {
    if let Some(words) = mount_helper::words(std::env::args_os()) {
        return mount_helper::become_cairn(&words).report();
    }
    // Before anything else opens a file.
    let sockets = server::systemd::handed_over();
    let (cli, configured) = match config::parse::<cli::Cli>(std::env::args_os().collect()) {
        Ok(parsed) => parsed,
        Err(failure) => return failure.report(),
    };
    let runtime =
        match tokio::runtime::Builder::new_multi_thread().thread_name("cairn").enable_all().build()
        {
            Ok(runtime) => runtime,
            Err(error) => return exit::Failure::new("no thread can be started", error).report(),
        };
    let told = {
        // Traces are sent by it.
        let _entered = runtime.enter();
        cli.start_logging()
    };
    let (log_file, traces) = match told {
        Ok(told) => told,
        Err(failure) => return failure.report(),
    };
    let result = runtime.block_on(cli.run(configured, sockets, log_file));
    if let Some(traces) = traces {
        traces.end();
    }
    // A thread that waits, for a reader of standard output say, must not keep the process.
    runtime.shutdown_background();
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}
