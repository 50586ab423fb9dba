//! A command that goes on in the background: the process that was called starts another with the
//! same words, passes on what that one prints, and ends when it is ready. What "ready" means is the
//! command's affair.

use std::{env, fs::File, os::unix::process::ExitStatusExt as _, process::Stdio};

use rustix::process::{Pid, Signal, kill_process};
use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    process::{Child, Command},
};

use crate::{
    exit::{Code, Failure},
    output::Output,
    signals::{EndSignal, EndSignals},
};

/// What tells the process in the background that it is the one. Comes before all other words.
pub(crate) const FLAG: &str = "in-background";

/// The longest line that is passed on, in bytes; longer ones in parts.
const LINE_MAX: u64 = 64 * 1024;

/// Runs this command again, in the background; returns when it has printed a line that starts with
/// `ready`. If it ends before, it has said why, and this fails with its exit code. Signals are
/// passed on to it.
pub(crate) async fn start(ready: &str) -> Result<(), Failure> {
    let failed = |error| Failure::new("no process can be started in the background", error);
    let mut signals = EndSignals::listen().map_err(failed)?;
    let program = env::current_exe().map_err(failed)?;
    let mut child = Command::new(program)
        .arg(format!("--{FLAG}"))
        .args(env::args_os().skip(1))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(failed)?;
    let mut printed = BufReader::new(child.stdout.take().expect("its output is a pipe"));
    let mut output = Output::new();
    let mut line = Vec::new();
    loop {
        // What has been read of a line when a signal comes stays in it.
        let mut limited = tokio::io::AsyncReadExt::take(&mut printed, LINE_MAX);
        tokio::select! {
            read = limited.read_until(b'\n', &mut line) => {
                if read.map_err(failed)? == 0 {
                    break;
                }
            }
            signal = signals.next() => {
                pass_on(signal, &child);
                continue;
            }
        }
        output.bytes(&line).await?;
        output.flush().await?;
        if line.starts_with(ready.as_bytes()) {
            return Ok(());
        }
        line.clear();
    }
    loop {
        tokio::select! {
            status = child.wait() => {
                let status = status.map_err(failed)?;
                return Err(match status.code() {
                    Some(code) => Failure::told(Code::of(code)),
                    None => Failure::plain(Code::Failed, format!(
                        "signal {} ended the process in the background",
                        status.signal().unwrap_or_default()
                    )),
                });
            }
            signal = signals.next() => pass_on(signal, &child),
        }
    }
}

fn pass_on(signal: EndSignal, child: &Child) {
    let signal = match signal {
        EndSignal::Interrupt => Signal::INT,
        EndSignal::Terminate => Signal::TERM,
    };
    let pid = child.id().and_then(|id| Pid::from_raw(id.cast_signed()));
    if let Some(pid) = pid
        && let Err(error) = kill_process(pid, signal)
    {
        tracing::debug!(%error, "the signal did not reach the process in the background");
    }
}

/// Makes this process independent of who started it: of its terminal and its folder.
pub(crate) fn leave_session() -> Result<(), Failure> {
    let failed = |error| Failure::new("the terminal can't be left", error);
    rustix::process::setsid().map_err(failed)?;
    rustix::process::chdir("/").map_err(failed)
}

/// Lets go of the outputs that whoever started this process waits for. What would still go to
/// standard error, such as a panic, goes to the log file if there is one.
pub(crate) fn let_go_of_outputs(log_file: Option<&File>) -> Result<(), Failure> {
    let failed = |error| Failure::new("the outputs can't be let go of", error);
    let null = File::options().write(true).open("/dev/null");
    let null = null.map_err(|error| Failure::new("/dev/null can't be opened", error))?;
    rustix::stdio::dup2_stdout(&null).map_err(failed)?;
    rustix::stdio::dup2_stderr(log_file.unwrap_or(&null)).map_err(failed)
}
