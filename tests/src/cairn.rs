//! The binary under test: found or built, run against a store, mounted, serving. What its answers
//! should be is the affair of the tests.

use std::{
    env,
    ffi::{OsStr, OsString},
    fs,
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
};

use rustix::{
    mount::{UnmountFlags, unmount},
    process::Signal,
};
use tempfile::TempDir;

use crate::process::{Finished, LONG_PATIENCE, Running, run};

/// The user and group that have no rights: `nobody` and `nogroup`.
const NOBODY: u32 = 65534;

/// The binary: what `CAIRN_BIN` names, or else built now, in the profile of the tests.
pub fn binary() -> &'static Path {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    BINARY.get_or_init(|| match env::var_os("CAIRN_BIN") {
        Some(path) => PathBuf::from(path),
        None => build(),
    })
}

fn build() -> PathBuf {
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."));
    cargo.args(["build", "--quiet", "--locked", "--package", "cairn-daemon"]);
    cargo.arg("--message-format=json");
    if !cfg!(debug_assertions) {
        cargo.arg("--release");
    }
    let messages = Running::start(&mut cargo).finish_within(LONG_PATIENCE).succeeded();
    let mut executables = messages.text().lines().filter_map(|line| {
        let message: serde_json::Value = serde_json::from_str(line).ok()?;
        message["executable"].as_str().map(PathBuf::from)
    });
    executables.next_back().expect("the package has a binary")
}

/// A folder of one test, with a store and room for trees and mountpoints. Removed when dropped.
#[derive(Debug)]
pub struct Scene {
    folder: TempDir,
}

impl Scene {
    /// An empty folder.
    pub fn new() -> Self {
        Self { folder: tempfile::Builder::new().prefix("cairn-test-").tempdir().unwrap() }
    }

    /// The folder.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// A place in the folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder().join(name)
    }

    /// A new folder in the folder.
    pub fn new_folder(&self, name: &str) -> PathBuf {
        let path = self.path(name);
        fs::create_dir_all(&path).unwrap();
        path
    }

    /// The folder of the local store.
    pub fn store(&self) -> PathBuf {
        self.path("store")
    }

    /// The binary with the local store.
    pub fn cairn(&self) -> Cairn {
        Cairn::local(&self.store())
    }

    /// Mounts a store, on a new folder of this name.
    #[track_caller]
    pub fn mount(&self, cairn: &Cairn, name: &str) -> Mount {
        cairn.mount(&self.new_folder(name))
    }

    /// Serves the store on a free TCP port of the loopback interface.
    #[track_caller]
    pub fn serve_tcp(&self) -> Daemon {
        self.cairn().serve("127.0.0.1:0")
    }

    /// Serves the store on a unix socket in the folder.
    #[track_caller]
    pub fn serve_unix(&self) -> Daemon {
        self.cairn().serve(&format!("unix:{}", self.path("socket").display()))
    }
}

impl Default for Scene {
    fn default() -> Self {
        Self::new()
    }
}

/// The binary with a store.
#[derive(Debug, Clone)]
pub struct Cairn {
    store: OsString,
    cache: Option<PathBuf>,
    nobody: Option<PathBuf>,
    service: Option<&'static str>,
}

impl Cairn {
    /// The binary with the store of a URL.
    pub fn new(store: impl Into<OsString>) -> Self {
        Self { store: store.into(), cache: None, nobody: None, service: None }
    }

    /// The binary with the local store in a folder.
    pub fn local(folder: &Path) -> Self {
        let mut url = OsString::from("sled:");
        url.push(folder);
        Self::new(url)
    }

    /// The same with a cache in a folder.
    pub fn with_cache(mut self, folder: &Path) -> Self {
        self.cache = Some(folder.to_owned());
        self
    }

    /// The same under a name of its own in traces.
    pub fn called(mut self, service: &'static str) -> Self {
        self.service = Some(service);
        self
    }

    /// The same as a user without rights. `folder` is one that this user may enter, for a copy of
    /// the binary. Without root it is the user of the tests who has no rights.
    pub fn as_nobody(mut self, folder: &Path) -> Self {
        if rustix::process::geteuid().is_root() {
            let copy = folder.join("cairn");
            fs::copy(binary(), &copy).unwrap();
            self.nobody = Some(copy);
        }
        self
    }

    /// The command of these arguments.
    pub fn command<A: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = A>) -> Command {
        let mut command = Command::new(self.nobody.as_deref().unwrap_or(binary()));
        if self.nobody.is_some() {
            command.uid(NOBODY).gid(NOBODY);
        }
        // Nothing of the environment that the tests run in may choose another store or log level.
        for name in ["BLOB", "DIRECTORY", "PATH_INFO"] {
            command.env_remove(format!("{name}_SERVICE_ADDR"));
        }
        for name in ["CAIRN_CACHE", "CAIRN_CACHE_SIZE", "CAIRN_HTTP", "OTEL_EXPORTER_OTLP_ENDPOINT"]
        {
            command.env_remove(name);
        }
        if let Some(cache) = &self.cache {
            command.env("CAIRN_CACHE", cache);
        }
        if let Some(service) = self.service {
            command.env("OTEL_SERVICE_NAME", service);
        }
        // Nor may it learn of trees from other runs, or its user from these.
        command.env("XDG_CACHE_HOME", env::temp_dir().join("cairn-test-cache"));
        command.env("CAIRN_CONFIG", "/dev/null");
        command.env_remove("RUST_LOG").env("CAIRN_STORE", &self.store).args(arguments);
        command
    }

    /// Runs a command to its end.
    #[track_caller]
    pub fn run<A: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = A>) -> Finished {
        run(&mut self.command(arguments))
    }

    /// Starts a command.
    #[track_caller]
    pub fn start<A: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = A>) -> Running {
        Running::start(&mut self.command(arguments))
    }

    /// Imports a tree; its store path.
    #[track_caller]
    pub fn import(&self, tree: &Path) -> String {
        let import = self.start([OsStr::new("import"), tree.as_os_str()]);
        let lines = import.finish_within(LONG_PATIENCE).succeeded().lines();
        let [path] = &lines[..] else { panic!("not one line: {lines:?}") };
        path.clone()
    }

    /// Exports what a reference names to a place where nothing is yet.
    pub fn export(&self, reference: &str, destination: &Path) -> Finished {
        let words = [OsStr::new("export"), reference.as_ref(), destination.as_os_str()];
        self.start(words).finish_within(LONG_PATIENCE)
    }

    /// The store paths that the store knows, in ascending order.
    #[track_caller]
    pub fn list(&self) -> Vec<String> {
        let mut paths = self.run(["list"]).succeeded().lines();
        paths.sort_unstable();
        paths
    }

    /// Mounts the store on a folder.
    #[track_caller]
    pub fn mount(&self, mountpoint: &Path) -> Mount {
        self.mount_with::<&str>(mountpoint, [])
    }

    /// Mounts the store on a folder, with more arguments.
    #[track_caller]
    pub fn mount_with<A: AsRef<OsStr>>(
        &self,
        mountpoint: &Path,
        arguments: impl IntoIterator<Item = A>,
    ) -> Mount {
        let mut words = vec![OsString::from("mount")];
        words.extend(arguments.into_iter().map(|word| word.as_ref().to_owned()));
        words.push(mountpoint.into());
        let mut process = self.start(words);
        let (_, imported) = process.wait_for("mounted on ");
        Mount { process: Some(process), mountpoint: mountpoint.to_owned(), imported }
    }

    /// Serves the store on an address.
    #[track_caller]
    pub fn serve(&self, listen: &str) -> Daemon {
        self.serve_with::<&str>(listen, [])
    }

    /// Serves the store on an address, with more arguments.
    #[track_caller]
    pub fn serve_with<A: AsRef<OsStr>>(
        &self,
        listen: &str,
        arguments: impl IntoIterator<Item = A>,
    ) -> Daemon {
        let mut words = ["daemon", "--listen", listen].map(OsString::from).to_vec();
        words.extend(arguments.into_iter().map(|word| word.as_ref().to_owned()));
        let mut process = self.start(words);
        let (url, said) = process.wait_for("listening on ");
        Daemon { process, url, said }
    }
}

/// A mounted store. Unmounted when dropped, whatever has become of the process.
#[derive(Debug)]
pub struct Mount {
    process: Option<Running>,
    mountpoint: PathBuf,
    /// The store paths that the command imported first.
    pub imported: Vec<String>,
}

impl Mount {
    /// Where the store is mounted.
    pub fn mountpoint(&self) -> &Path {
        &self.mountpoint
    }

    /// The place of a store path on the mount.
    pub fn at(&self, store_path: &str) -> PathBuf {
        self.mountpoint.join(crate::trees::base_name(store_path))
    }

    /// The process that serves it.
    pub fn process(&mut self) -> &mut Running {
        self.process.as_mut().expect("only the methods that take the mount end its process")
    }

    /// Sends a signal and waits for the process to end by itself.
    #[track_caller]
    pub fn stop(mut self, signal: Signal) -> Finished {
        let process = self.process.take().expect("the process runs until here");
        process.signal(signal);
        process.finish()
    }

    /// Waits for the process to end by itself, after an unmount from elsewhere.
    #[track_caller]
    pub fn finish(mut self) -> Finished {
        self.process.take().expect("the process runs until here").finish()
    }

    /// Ends the process as a power cut would; what it had mounted stays behind, dead.
    #[track_caller]
    pub fn kill(mut self) -> DeadMount {
        self.process.take().expect("the process runs until here").kill();
        DeadMount(self.mountpoint.clone())
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        if self.process.take().is_some() {
            detach(&self.mountpoint);
        }
    }
}

/// A mountpoint whose server is gone. Unmounted when dropped.
#[derive(Debug)]
pub struct DeadMount(PathBuf);

impl Drop for DeadMount {
    fn drop(&mut self) {
        detach(&self.0);
    }
}

fn detach(mountpoint: &Path) {
    if unmount(mountpoint, UnmountFlags::DETACH).is_err() {
        let _ = Command::new("fusermount3").arg("-uz").arg(mountpoint).output();
    }
}

/// A served store. Killed when dropped.
#[derive(Debug)]
pub struct Daemon {
    process: Running,
    url: String,
    /// The lines that the command printed first.
    pub said: Vec<String>,
}

impl Daemon {
    /// The URL to reach it.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The binary as its client.
    pub fn client(&self) -> Cairn {
        Cairn::new(&self.url)
    }

    /// The process that serves.
    pub fn process(&mut self) -> &mut Running {
        &mut self.process
    }

    /// Sends a signal and waits for the process to end by itself.
    #[track_caller]
    pub fn stop(self, signal: Signal) -> Finished {
        self.process.signal(signal);
        self.process.finish()
    }

    /// Ends the process as a power cut would.
    #[track_caller]
    pub fn kill(self) -> Finished {
        self.process.kill()
    }
}
