//! Runs the binary and watches it. Nothing that a test starts outlives it.

use std::{
    fs,
    io::{BufRead as _, BufReader, Read as _},
    path::{Path, PathBuf},
    process::{Child, ChildStdout, Command, ExitStatus, Output, Stdio},
    thread::JoinHandle,
};

use rustix::process::{Pid, Signal, kill_process};

/// Variables that would change what the binary does.
const VARIABLES: [&str; 12] = [
    "CAIRN_CACHE",
    "CAIRN_CACHE_SIZE",
    "OTEL_EXPORTER_OTLP_ENDPOINT",
    "CAIRN_HTTP",
    "CAIRN_STORE",
    "BLOB_SERVICE_ADDR",
    "DIRECTORY_SERVICE_ADDR",
    "PATH_INFO_SERVICE_ADDR",
    "RUST_LOG",
    "LISTEN_FDS",
    "LISTEN_PID",
    "NOTIFY_SOCKET",
];

/// The binary, without arguments.
pub(crate) fn cairn() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_cairn"));
    command.stdin(Stdio::null());
    for variable in VARIABLES {
        command.env_remove(variable);
    }
    // Nor does what the user has configured count.
    command.env("CAIRN_CONFIG", "/dev/null");
    // What other runs have imported is not to be known.
    command.env("XDG_CACHE_HOME", env!("CARGO_TARGET_TMPDIR"));
    command
}

/// The binary, to work on the local store in a folder.
pub(crate) fn cairn_on(store: &Path) -> Command {
    let mut command = cairn();
    command.env("CAIRN_STORE", format!("sled:{}", store.display()));
    command
}

/// What a process that has ended said.
pub(crate) struct Ended {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: String,
}

impl Ended {
    /// The standard output of a process that ended well.
    #[track_caller]
    pub(crate) fn stdout(self) -> String {
        assert_eq!(self.code, Some(0), "it failed: {}", self.stderr);
        String::from_utf8(self.stdout).unwrap()
    }
}

impl From<Output> for Ended {
    fn from(output: Output) -> Self {
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        Self { code: output.status.code(), stdout: output.stdout, stderr }
    }
}

/// Runs a command to its end.
pub(crate) fn run(command: &mut Command) -> Ended {
    command.output().unwrap().into()
}

/// A process that runs on. Killed on drop.
pub(crate) struct Running {
    child: Child,
    stdout: BufReader<ChildStdout>,
    stderr: Option<JoinHandle<String>>,
}

impl Running {
    pub(crate) fn start(command: &mut Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        let mut stderr = child.stderr.take().unwrap();
        let stderr = std::thread::spawn(move || {
            let mut text = Vec::new();
            stderr.read_to_end(&mut text).unwrap();
            String::from_utf8_lossy(&text).into_owned()
        });
        Self { child, stdout, stderr: Some(stderr) }
    }

    /// What follows `prefix` in the next line of the standard output that starts with it.
    #[track_caller]
    pub(crate) fn line(&mut self, prefix: &str) -> String {
        loop {
            let mut line = String::new();
            if self.stdout.read_line(&mut line).unwrap() == 0 {
                let stderr = self.stderr.take().unwrap().join().unwrap();
                panic!("it ended without a line that starts with {prefix:?}: {stderr}");
            }
            if let Some(rest) = line.strip_prefix(prefix) {
                return rest.trim_end().to_owned();
            }
        }
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(i32::try_from(self.child.id()).unwrap()).unwrap();
        kill_process(pid, signal).unwrap();
    }

    /// Waits for the end; the status and what was said on standard error.
    pub(crate) fn wait(mut self) -> (ExitStatus, String) {
        let status = self.child.wait().unwrap();
        (status, self.stderr.take().unwrap().join().unwrap())
    }

    /// Asks for the end, and checks that it is a good one.
    #[track_caller]
    pub(crate) fn end(self) {
        self.signal(Signal::TERM);
        let (status, stderr) = self.wait();
        assert_eq!(status.code(), Some(0), "{stderr}");
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Bytes that do not compress, the same for the same seed.
pub(crate) fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(2).wrapping_add(1);
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

/// A tree with every kind of node.
pub(crate) fn tree(parent: &Path, name: &str) -> PathBuf {
    use std::os::unix::fs::{PermissionsExt as _, symlink};
    let tree = parent.join(name);
    fs::create_dir_all(tree.join("d")).unwrap();
    fs::create_dir(tree.join("empty")).unwrap();
    fs::write(tree.join("big"), vec![b'a'; 700_000]).unwrap();
    fs::write(tree.join("d/f"), "hi\n").unwrap();
    fs::write(tree.join("run"), "#!/bin/sh\necho ok\n").unwrap();
    fs::set_permissions(tree.join("run"), fs::Permissions::from_mode(0o755)).unwrap();
    fs::write(tree.join("zero"), "").unwrap();
    symlink("d/f", tree.join("link")).unwrap();
    tree
}

/// The store path of [`tree`] named `tree`.
pub(crate) const TREE_PATH: &str = "/nix/store/y0lrmcm4zaj0qd44rp7mg83dgyl87lkp-tree";
