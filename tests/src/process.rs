//! A child process whose output is collected, that can't outlive its test and that no test waits
//! for without end. What the process is, is not known here.

use std::{
    ffi::OsStr,
    fmt,
    io::{BufRead as _, BufReader, Read},
    process::{Child, Command, ExitStatus, Stdio},
    sync::mpsc::{self, Receiver, RecvTimeoutError},
    thread,
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};

/// How long a test waits for what takes a moment. Long, since a loaded machine is slow; whoever
/// runs into it has found a hang.
pub const PATIENCE: Duration = Duration::from_secs(180);

/// The same for what works through a tree of a gigabyte or more.
pub const LONG_PATIENCE: Duration = Duration::from_secs(1200);

/// How often a child is asked whether it has ended.
const POLL: Duration = Duration::from_millis(5);

/// How long the pipes of an ended child may stay open, held by children of its own.
const LINGER: Duration = Duration::from_secs(5);

/// A child process. Killed when dropped.
pub struct Running {
    name: String,
    child: Child,
    stdout: Pipe,
    stderr: Pipe,
}

/// How a process ended, and all that it printed.
pub struct Finished {
    name: String,
    /// Its exit status.
    pub status: ExitStatus,
    /// What it printed as data.
    pub stdout: Vec<u8>,
    /// What it said beside.
    pub stderr: String,
}

impl Running {
    /// Starts a command. Its standard input is empty.
    #[track_caller]
    pub fn start(command: &mut Command) -> Self {
        Self::start_with(command, Stdio::null())
    }

    /// Starts a command with a standard input.
    #[track_caller]
    pub fn start_with(command: &mut Command, stdin: impl Into<Stdio>) -> Self {
        let name = describe(command);
        let mut child = command
            .stdin(stdin)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("{name} can't be started: {error}"));
        let stdout = Pipe::of(child.stdout.take().expect("stdout is piped"));
        let stderr = Pipe::of(child.stderr.take().expect("stderr is piped"));
        Self { name, child, stdout, stderr }
    }

    /// The process.
    pub fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    /// Sends a signal.
    #[track_caller]
    pub fn signal(&self, signal: Signal) {
        kill_process(self.pid(), signal).unwrap_or_else(|error| panic!("{}: {error}", self.name));
    }

    /// Whether the process has ended.
    pub fn has_ended(&mut self) -> bool {
        self.child.try_wait().unwrap().is_some()
    }

    /// The next line that the process prints to stdout, without its end; `None` when there are no
    /// more. Panics when none comes for long.
    #[track_caller]
    pub fn next_line(&mut self) -> Option<String> {
        match self.stdout.next(PATIENCE) {
            Ok(line) => Some(String::from_utf8_lossy(&line).trim_end_matches('\n').to_owned()),
            Err(RecvTimeoutError::Disconnected) => None,
            Err(RecvTimeoutError::Timeout) => {
                panic!("{} prints nothing: {}", self.name, self.stderr.rest(Duration::ZERO))
            }
        }
    }

    /// Reads lines until one starts with `prefix`, and answers with what follows in it and with
    /// the lines before.
    #[track_caller]
    pub fn wait_for(&mut self, prefix: &str) -> (String, Vec<String>) {
        let mut before = Vec::new();
        while let Some(line) = self.next_line() {
            match line.strip_prefix(prefix) {
                Some(rest) => return (rest.to_owned(), before),
                None => before.push(line),
            }
        }
        let stderr = self.stderr.rest(LINGER);
        panic!("{} ended without printing {prefix:?}: {stderr}", self.name);
    }

    /// What the process has said on stderr and nobody has asked for yet.
    pub fn said(&mut self) -> String {
        self.stderr.rest(Duration::ZERO)
    }

    /// Waits for the process to end by itself. Panics when it takes longer than `patience`.
    #[track_caller]
    pub fn finish_within(mut self, patience: Duration) -> Finished {
        let start = Instant::now();
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            if start.elapsed() > patience {
                let stderr = self.stderr.rest(Duration::ZERO);
                panic!("{} runs for more than {patience:?}: {stderr}", self.name);
            }
            thread::sleep(POLL);
        };
        let stdout = self.stdout.bytes(LINGER);
        let stderr = self.stderr.rest(LINGER);
        Finished { name: self.name.clone(), status, stdout, stderr }
    }

    /// Waits for the process to end by itself, with the common patience.
    #[track_caller]
    pub fn finish(self) -> Finished {
        self.finish_within(PATIENCE)
    }

    /// Ends the process as a power cut would, and collects what it had printed.
    #[track_caller]
    pub fn kill(self) -> Finished {
        self.signal(Signal::KILL);
        self.finish()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Finished {
    /// Panics unless the process ended with exit code 0; its output otherwise.
    #[track_caller]
    pub fn succeeded(self) -> Self {
        assert!(self.status.success(), "{} failed: {}\n{}", self.name, self.status, self.stderr);
        self
    }

    /// Panics unless the process ended with this exit code, with a message that names each of
    /// these things, and without a panic.
    #[track_caller]
    pub fn failed(self, code: i32, names: &[&str]) -> Self {
        let Self { name, status, stderr, .. } = &self;
        assert_eq!(status.code(), Some(code), "{name}: {status}\n{stderr}");
        assert!(!stderr.contains("panicked"), "{name}: {stderr}");
        for part in names {
            assert!(stderr.contains(part), "{name} does not name {part:?}: {stderr}");
        }
        self
    }

    /// What the process printed, as text.
    #[track_caller]
    pub fn text(&self) -> &str {
        str::from_utf8(&self.stdout).unwrap_or_else(|_| panic!("{} prints no text", self.name))
    }

    /// The whole lines that the process printed.
    #[track_caller]
    pub fn lines(&self) -> Vec<String> {
        let whole = self.text().rfind('\n').map_or("", |end| &self.text()[..end]);
        whole.lines().map(str::to_owned).collect()
    }
}

impl fmt::Debug for Running {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.name, self.child.id())
    }
}

impl fmt::Debug for Finished {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}\n{}", self.name, self.status, self.stderr)
    }
}

/// Runs a command that takes a moment.
#[track_caller]
pub fn run(command: &mut Command) -> Finished {
    Running::start(command).finish()
}

/// Calls `done` until it is true. Panics, naming `what`, when it takes too long.
#[track_caller]
pub fn eventually(what: &str, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < PATIENCE, "{what} takes more than {PATIENCE:?}");
        thread::sleep(POLL);
    }
}

/// The bytes that a process has read by system calls, from files and sockets alike.
pub fn bytes_read_by(pid: Pid) -> u64 {
    let path = format!("/proc/{}/io", pid.as_raw_nonzero());
    let Ok(io) = std::fs::read_to_string(path) else { return 0 };
    let count = io.lines().find_map(|line| line.strip_prefix("rchar: "));
    count.and_then(|count| count.parse().ok()).unwrap_or(0)
}

fn describe(command: &Command) -> String {
    let program = command.get_program();
    let program = std::path::Path::new(program).file_name().unwrap_or(program);
    let words: Vec<_> = [program].into_iter().chain(command.get_args()).collect();
    let words: Vec<_> = words.into_iter().map(OsStr::to_string_lossy).collect();
    words.join(" ")
}

/// What comes out of one of the child's pipes, in lines, read by a thread of its own so that the
/// child never waits.
struct Pipe(Receiver<Vec<u8>>);

impl Pipe {
    fn of(source: impl Read + Send + 'static) -> Self {
        let (sender, receiver) = mpsc::channel();
        thread::spawn(move || {
            let mut source = BufReader::new(source);
            loop {
                let mut line = Vec::new();
                match source.read_until(b'\n', &mut line) {
                    Ok(1..) if sender.send(line).is_ok() => {}
                    _ => break,
                }
            }
        });
        Self(receiver)
    }

    fn next(&self, patience: Duration) -> Result<Vec<u8>, RecvTimeoutError> {
        self.0.recv_timeout(patience)
    }

    fn bytes(&self, patience: Duration) -> Vec<u8> {
        let mut bytes = Vec::new();
        while let Ok(line) = self.next(patience) {
            bytes.extend(line);
        }
        bytes
    }

    fn rest(&self, patience: Duration) -> String {
        String::from_utf8_lossy(&self.bytes(patience)).into_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sh(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn output_and_exit_code_are_collected() {
        let finished = run(&mut sh("echo out; echo not found >&2; printf half; exit 3"));
        let finished = finished.failed(3, &["not found"]);
        assert_eq!(finished.text(), "out\nhalf");
        assert_eq!(finished.lines(), ["out"]);
    }

    #[test]
    fn lines_come_while_the_process_runs() {
        let mut running = Running::start(&mut sh("echo a; echo ready 7; exec sleep 1000"));
        assert_eq!(running.wait_for("ready "), ("7".to_owned(), vec!["a".to_owned()]));
        running.signal(Signal::TERM);
        assert_eq!(running.finish().status.code(), None);
    }

    #[test]
    #[should_panic = "does not name"]
    fn a_message_that_names_nothing_is_not_accepted() {
        run(&mut sh("echo oops >&2; exit 1")).failed(1, &["/the/file"]);
    }
}
