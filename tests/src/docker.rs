//! A Docker of a test's own: a `dockerd` with all of its state in a folder, a base image that is made
//! of Debian's packages, and the project's images with the binary under test. The script
//! `tests/docker` starts the one and makes the other. What runs in containers is the affair of the
//! tests.

use std::{
    ffi::OsStr,
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::{Mutex, PoisonError},
};

use rustix::{
    mount::{MountPropagationFlags, UnmountFlags, mount_bind, mount_change, unmount},
    process::{Pid, Signal, kill_process},
};
use tempfile::TempDir;

use crate::{
    cairn,
    process::{Finished, LONG_PATIENCE, Running, eventually, run},
};

/// The image that stands for any that is not ours, such as a reader's.
pub const BASE: &str = "cairn-test-base";

/// Debian's client. Unlike a newer one that may come before it, it builds with what is in the daemon.
const CLIENT: &str = "/usr/bin/docker";

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/docker");

/// The root of the repository.
const REPOSITORY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");

/// A running `dockerd`. Ended when dropped, with all that runs in it.
#[derive(Debug)]
pub struct Docker {
    daemon: Option<Running>,
    folder: TempDir,
}

impl Docker {
    /// Starts one that has the base image and nothing else.
    #[track_caller]
    pub fn start() -> Self {
        // Two that begin at once would both make what there is one of on a machine: chains of rules.
        static STARTING: Mutex<()> = Mutex::new(());
        let starting = STARTING.lock().unwrap_or_else(PoisonError::into_inner);
        let folder = tempfile::Builder::new().prefix("cairn-docker-").tempdir().unwrap();
        let daemon = Running::start(Command::new(SCRIPT).arg("daemon").arg(folder.path()));
        let mut docker = Self { daemon: Some(daemon), folder };
        eventually("dockerd answers", || {
            if let Some(daemon) = &mut docker.daemon {
                assert!(!daemon.has_ended(), "dockerd can't run here: {}", daemon.said());
            }
            run(docker.command().arg("version")).status.success()
        });
        drop(starting);
        let base = Running::start(Command::new(SCRIPT).arg("base"));
        let base = base.finish_within(LONG_PATIENCE).succeeded();
        docker.tell(["import", base.text().trim_end(), BASE]);
        docker
    }

    /// A program that finds this daemon, as Docker's own do.
    pub fn program(&self, name: &str) -> Command {
        let mut command = Command::new(name);
        let socket = self.folder.path().join("docker.sock");
        command.env("DOCKER_HOST", format!("unix://{}", socket.display()));
        command.env("DOCKER_CONFIG", self.folder.path().join("config"));
        command.env("DOCKER_BUILDKIT", "1");
        command
    }

    /// The client as a command, without its words.
    pub fn command(&self) -> Command {
        self.program(CLIENT)
    }

    /// Runs the client, which has to succeed.
    #[track_caller]
    pub fn tell<A: AsRef<OsStr>>(&self, words: impl IntoIterator<Item = A>) -> Finished {
        Running::start(self.command().args(words)).finish_within(LONG_PATIENCE).succeeded()
    }

    /// Builds an image by a Dockerfile of the repository, around a binary that there is.
    #[track_caller]
    pub fn build(&self, dockerfile: &str, binary: &Path, tag: &str) {
        let context = tempfile::tempdir().unwrap();
        let name = binary.file_name().unwrap();
        run(Command::new("strip")
            .args(["--strip-debug", "-o"])
            .arg(context.path().join(name))
            .arg(binary))
        .succeeded();
        fs::create_dir(context.path().join("deploy")).unwrap();
        let script = "deploy/image-root";
        fs::copy(Path::new(REPOSITORY).join(script), context.path().join(script)).unwrap();
        let mut build = self.command();
        build.args(["build", "--network", "none", "--tag", tag, "--file"]);
        build.arg(Path::new(REPOSITORY).join(dockerfile));
        build.args(["--build-arg", &format!("RUST={BASE}")]);
        build.args(["--build-arg", "FROM_WHAT=prebuilt"]).arg(context.path());
        Running::start(&mut build).finish_within(LONG_PATIENCE).succeeded();
    }

    /// Builds the image of cairn with the binary under test.
    #[track_caller]
    pub fn build_cairn(&self, tag: &str) {
        self.build("deploy/Dockerfile", cairn::binary(), tag);
    }

    /// What the daemon knows of a container, by a template such as `{{.State.Pid}}`.
    #[track_caller]
    pub fn inspect(&self, container: &str, template: &str) -> String {
        let answer = self.tell(["inspect", "--format", template, container]);
        answer.text().trim_end().to_owned()
    }

    /// Ends a container's process as a crash would, so that its restart policy applies.
    #[track_caller]
    pub fn crash(&self, container: &str) {
        let pid = self.inspect(container, "{{.State.Pid}}").parse().unwrap();
        let pid = Pid::from_raw(pid).expect("the container runs");
        kill_process(pid, Signal::KILL).unwrap();
    }
}

impl Drop for Docker {
    fn drop(&mut self) {
        // It ends its containers first; killed, it would leave them.
        if let Some(mut daemon) = self.daemon.take()
            && !daemon.has_ended()
        {
            daemon.signal(Signal::TERM);
            daemon.finish();
        }
    }
}

/// A folder of the host that containers can mount in so that the host sees it. What is still mounted
/// there is unmounted when it is dropped.
#[derive(Debug)]
pub struct SharedFolder {
    path: PathBuf,
}

impl SharedFolder {
    /// Makes the folder.
    #[track_caller]
    pub fn new(path: PathBuf) -> Self {
        fs::create_dir_all(&path).unwrap();
        mount_bind(&path, &path).unwrap();
        let shared = Self { path };
        // Of a group of its own: nothing of it goes to where the folder is.
        mount_change(&shared.path, MountPropagationFlags::PRIVATE).unwrap();
        mount_change(&shared.path, MountPropagationFlags::SHARED).unwrap();
        shared
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What is mounted below it, in the order of the mount table, dead or alive.
    pub fn mounts(&self) -> Vec<String> {
        let below = format!("{}/", self.path.display());
        let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let points = table.lines().filter_map(|line| line.split(' ').nth(4));
        points.filter_map(|point| point.strip_prefix(&below)).map(str::to_owned).collect()
    }
}

impl Drop for SharedFolder {
    fn drop(&mut self) {
        for below in self.mounts().iter().rev() {
            let _ = unmount(self.path.join(below), UnmountFlags::DETACH);
        }
        let _ = unmount(&self.path, UnmountFlags::DETACH);
    }
}
