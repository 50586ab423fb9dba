//! The FUSE transport: a file system is mounted in a folder of this machine, served, and unmounted.
//! What it answers is in `file_system`; who serves is in `fuse/crew`, how the kernel is reached in
//! `fuse/device`, what is agreed with it in `fuse/init`, what is mounted already in
//! `fuse/mount_table`, and how another process unmounts in `fuse/removal`. Files that the kernel
//! reads by itself reach it by `fuse/backing`, and a view that can be written to is made in
//! `fuse/layer`.

mod backing;
mod crew;
mod device;
mod init;
mod interrupts;
mod layer;
mod mount_table;
mod removal;

use std::{
    fs::{self, File},
    io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::Arc,
    thread,
    time::Duration,
};

use rustix::{
    fs::{major, minor},
    io::Errno,
};

pub use self::layer::Layer;
pub use self::removal::{UnmountError, UnmountOptions, Unmounted, unmount};
use self::{backing::DeviceBacking, crew::Crew, layer::HiddenFolder, mount_table::MountEntry};
use crate::{file_system::CairnFs, memory};

/// The kind of file system that the mount table shows: what comes behind `fuse.`.
pub const SUBTYPE: &str = "cairn";

/// How many threads serve at the same time at most, unless told otherwise: those that wait for the
/// store, and one that goes on serving. As many programs may be stuck with a store that does not
/// answer; what has to wait beyond that fails at once, and what needs no waiting goes on.
pub const MAX_THREADS: usize = 512;

/// How many threads wait for requests at most, unless told otherwise.
const IDLE_THREADS_MAX: usize = 4;

/// How long a new mount may take to answer.
const ANSWER_MAX: Duration = Duration::from_secs(10);

/// How long an unmount waits for the serving threads to end.
const END_MAX: Duration = Duration::from_secs(5);

/// How much the kernel reads ahead of a sequential reader, in KiB. It has 128 by itself.
const READ_AHEAD_KIB: u32 = 1024;

/// How a file system is mounted.
#[derive(Debug)]
pub struct MountOptions {
    /// Whether users other than the one who mounts may use the mount. Those who are not root need
    /// `user_allow_other` in `/etc/fuse.conf` for it.
    pub allow_other: bool,
    /// What the mount table shows as the source, such as the store's URL.
    pub source: String,
    /// How many threads wait for requests; at least 1.
    pub threads: usize,
    /// How many threads there are at most, those included that wait for the store.
    pub max_threads: usize,
    /// Makes the mount a view that can be written to, by the kernel's overlay file system. Only
    /// root may. All users can use it, as far as the modes allow.
    pub layer: Option<Layer>,
    /// Has the kernel read large files by itself where the blob service lends them. Only root may.
    /// It makes opening any file a request to this process, which the kernel otherwise spares.
    pub passthrough: Option<Passthrough>,
}

/// How a mount comes to have the kernel read large files by itself.
#[derive(Debug)]
pub struct Passthrough {
    /// A file such as the blob service lends, by which it is seen whether the kernel takes them.
    pub sample: File,
    /// Whether there is to be no mount where the kernel does not. Otherwise it is one without.
    pub is_required: bool,
}

impl Default for MountOptions {
    fn default() -> Self {
        let cores = thread::available_parallelism().map_or(1, usize::from);
        Self {
            allow_other: false,
            source: SUBTYPE.to_owned(),
            threads: cores.clamp(2, IDLE_THREADS_MAX),
            max_threads: MAX_THREADS,
            layer: None,
            passthrough: None,
        }
    }
}

/// Why a file system could not be mounted or unmounted.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// The mount point does not exist, or can't be reached.
    #[error("mount point {} can't be used", path.display())]
    MountPoint {
        /// The mount point.
        path: PathBuf,
        /// What happened.
        #[source]
        source: io::Error,
    },
    /// The mount point is no directory.
    #[error("mount point {} is not a directory", .0.display())]
    NotADirectory(PathBuf),
    /// Another FUSE file system is mounted there.
    #[error("{fs_type} ({source_name}) is mounted on {} already", path.display())]
    InUse {
        /// The mount point.
        path: PathBuf,
        /// The kind of file system.
        fs_type: String,
        /// What it shows.
        source_name: String,
    },
    /// A FUSE file system is mounted there whose server is gone.
    #[error(
        "{fs_type} is mounted on {0} but its server is gone: run `umount {0}` first",
        path.display()
    )]
    Stale {
        /// The mount point.
        path: PathBuf,
        /// The kind of file system.
        fs_type: String,
    },
    /// The kernel's FUSE device can't be opened.
    #[error(
        "{} can't be opened: is the kernel's fuse module loaded, and may this user use it?",
        device::PATH
    )]
    Device(#[source] io::Error),
    /// The program by which users who are not root mount is missing.
    #[error("{} was not found: users other than root need it to mount", device::HELPER)]
    NoHelper,
    /// The program by which users who are not root mount refused.
    #[error("{} failed: {message}", device::HELPER)]
    Helper {
        /// What it wrote.
        message: String,
    },
    /// The kernel refused.
    #[error("{} can't be mounted", path.display())]
    Mount {
        /// The mount point.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// A folder for what is written can't be made, or one to mount below it.
    #[error("a folder that a mount that can be written to needs can't be made: {}", path.display())]
    LayerFolder {
        /// The folder, or where it would be.
        path: PathBuf,
        /// What happened.
        #[source]
        source: io::Error,
    },
    /// The kernel refused to make a view that can be written to.
    #[error(
        "{} can't be mounted with {} for what is written and {} beside it",
        path.display(),
        upper.display(),
        work.display()
    )]
    Layer {
        /// The mount point.
        path: PathBuf,
        /// The folder that takes what is written.
        upper: PathBuf,
        /// The folder that the kernel needs for itself.
        work: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The kernel does not read files by itself.
    #[error("the kernel does not pass reads of large files through")]
    Passthrough(#[source] io::Error),
    /// The kernel refused to unmount.
    #[error("{} can't be unmounted", path.display())]
    Unmount {
        /// The mount point.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// No thread could be started to serve.
    #[error("no thread could be started to serve the mount")]
    Thread(#[source] io::Error),
    /// The mount did not come to life.
    #[error("the mount on {} did not answer within {ANSWER_MAX:?}", .0.display())]
    NoAnswer(PathBuf),
    /// The table of mounts can't be read.
    #[error("{} can't be read", mount_table::PATH)]
    MountTable(#[source] io::Error),
}

/// A mounted file system. Unmounted when it is dropped.
#[derive(Debug)]
pub struct Mount {
    mountpoint: PathBuf,
    /// The device number of what is mounted there, by which it is told from another on the same
    /// folder. `None` until it is known.
    device: Option<u64>,
    /// The number of the kernel's connection to this process: the minor device number of the FUSE
    /// file system. `None` until it is known.
    connection: Option<u32>,
    crew: Arc<Crew>,
    fs: Arc<CairnFs>,
}

/// Mounts a file system on a folder and serves it on threads of its own. It answers when this
/// returns. Blocks: on a runtime's thread, call it where that is allowed.
///
/// Whoever may not mount by themselves go through `fusermount3`. A mount of cairn that is left on
/// the folder without its server, as after a kill, is cleaned up.
pub fn mount(fs: CairnFs, mountpoint: &Path, options: MountOptions) -> Result<Mount, MountError> {
    let mountpoint = resolve(mountpoint)?;
    clear(&mountpoint)?;
    let unusable = |source| MountError::MountPoint { path: mountpoint.clone(), source };
    if !fs::metadata(&mountpoint).map_err(unusable)?.is_dir() {
        return Err(MountError::NotADirectory(mountpoint));
    }
    let hidden = match options.layer {
        None => None,
        Some(_) => {
            let unmade = |source| MountError::LayerFolder { path: std::env::temp_dir(), source };
            Some(HiddenFolder::new().map_err(unmade)?)
        }
    };
    let at = hidden.as_ref().map_or(&*mountpoint, HiddenFolder::path).to_owned();
    let device = device::mount(&at, &options)?;
    let fs = Arc::new(fs);
    if options.passthrough.is_some() {
        let backing = DeviceBacking::new(&device).map_err(MountError::Passthrough)?;
        fs.pass_through_by(Box::new(backing));
    }
    let crew = Crew::new(device, fs.clone(), options.threads, options.max_threads);
    let mut mount = Mount { mountpoint: at, device: None, connection: None, crew, fs };
    // From here on an error unmounts, since `mount` is dropped.
    mount.crew.start().map_err(MountError::Thread)?;
    if !mount.crew.answers_within(ANSWER_MAX) {
        return Err(MountError::NoAnswer(mountpoint));
    }
    let device = mount.device_there()?;
    mount.device = Some(device);
    mount.connection = Some(minor(device));
    raise_read_ahead(device);
    if let (Some(wanted), Some(passthrough)) = (&options.passthrough, mount.fs.passthrough()) {
        match passthrough.try_with(&wanted.sample) {
            Ok(()) => {}
            Err(error) if wanted.is_required => return Err(MountError::Passthrough(error)),
            Err(error) => {
                tracing::info!(%error, "the kernel does not pass reads of large files through");
                passthrough.turn_off();
            }
        }
    }
    if let Some(layer) = &options.layer {
        layer::mount(&mountpoint, &mount.mountpoint, layer, &options.source)?;
        mount.mountpoint = mountpoint;
        mount.device = Some(mount.device_there()?);
    }
    memory::give_back_at_rest(&mount.fs, {
        let crew = Arc::downgrade(&mount.crew);
        move || Some(crew.upgrade()?.request_count())
    });
    tracing::info!(mountpoint = %mount.mountpoint.display(), "mounted");
    Ok(mount)
}

/// The mount point as the mount table writes it: absolute and without symlinks. Does not touch
/// the folder itself, which may be a mount that does not answer.
fn resolve(mountpoint: &Path) -> Result<PathBuf, MountError> {
    let unusable = |source| MountError::MountPoint { path: mountpoint.to_owned(), source };
    match fs::canonicalize(mountpoint) {
        Ok(path) => Ok(path),
        Err(error) if is_dead(&error) => match (mountpoint.parent(), mountpoint.file_name()) {
            (Some(parent), Some(name)) => {
                let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
                Ok(fs::canonicalize(parent).map_err(unusable)?.join(name))
            }
            _ => Err(unusable(error)),
        },
        Err(error) => Err(unusable(error)),
    }
}

/// Whether this is what the kernel says of a mount that is in use.
fn is_busy(error: &io::Error) -> bool {
    error.raw_os_error() == Some(Errno::BUSY.raw_os_error())
}

/// Whether this is what the kernel says of a mount whose server is gone.
fn is_dead(error: &io::Error) -> bool {
    error.raw_os_error() == Some(Errno::NOTCONN.raw_os_error())
}

/// Sees to it that no other FUSE file system is mounted on the folder.
fn clear(mountpoint: &Path) -> Result<(), MountError> {
    let found = mount_table::find(mountpoint).map_err(MountError::MountTable)?;
    let Some(found) = found else { return Ok(()) };
    let is_view = layer::is_ours(&found);
    let MountEntry { fs_type, source, .. } = found;
    if fs_type != "fuse" && !fs_type.starts_with("fuse.") && !is_view {
        return Ok(());
    }
    let path = mountpoint.to_owned();
    // Not a `stat`: the kernel answers that from its cache, for a server that is long gone.
    let asked = match is_view {
        true => layer::ask(mountpoint),
        false => rustix::fs::statfs(mountpoint).map(drop),
    };
    match asked {
        Err(Errno::NOTCONN) => {
            let ours = is_view || fs_type.strip_prefix("fuse.") == Some(SUBTYPE);
            if !ours || device::detach(mountpoint).is_err() {
                return Err(MountError::Stale { path, fs_type });
            }
            tracing::warn!(mountpoint = %path.display(), "removed a mount whose server was gone");
            clear(mountpoint)
        }
        _ => Err(MountError::InUse { path, fs_type, source_name: source }),
    }
}

/// Makes the kernel read further ahead on this mount. Only root may, and nothing depends on it.
fn raise_read_ahead(device: u64) {
    let path = format!("/sys/class/bdi/{}:{}/read_ahead_kb", major(device), minor(device));
    if let Err(error) = fs::write(&path, READ_AHEAD_KIB.to_string()) {
        tracing::debug!(path, %error, "the kernel's read-ahead stays as it is");
    }
}

/// How a mount has left the tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Left {
    /// Nobody uses it.
    Unused,
    /// It is used where nobody else can find it any more.
    InUse,
}

impl Mount {
    /// Where it is mounted.
    pub fn mountpoint(&self) -> &Path {
        &self.mountpoint
    }

    /// What is mounted.
    pub fn file_system(&self) -> &CairnFs {
        &self.fs
    }

    /// How many threads serve the mount now.
    pub fn thread_count(&self) -> usize {
        self.crew.thread_count()
    }

    /// How many requests the kernel has made so far. What it keeps in its caches it does not ask
    /// for.
    pub fn request_count(&self) -> u64 {
        self.crew.request_count()
    }

    /// How many files' contents the kernel was given before it asked for them.
    pub fn stored_count(&self) -> u64 {
        self.crew.stored_count()
    }

    /// Returns when the mount has ended: unmounted from outside, such as by `umount`.
    pub async fn wait(&self) {
        self.crew.ended().await;
    }

    /// Takes the mount out of the tree. If files in it are open, or processes stand in it, they can
    /// go on: [`wait`](Self::wait) returns when the last has gone. Blocks for a moment.
    pub fn leave_tree(&self) -> Result<Left, MountError> {
        let failed = |source| MountError::Unmount { path: self.mountpoint.clone(), source };
        if !self.is_there().map_err(MountError::MountTable)? {
            // Unmounted from outside.
            return Ok(Left::Unused);
        }
        match device::unmount(&self.mountpoint) {
            Ok(()) => Ok(Left::Unused),
            Err(error) if is_busy(&error) => {
                device::detach(&self.mountpoint).map_err(failed)?;
                Ok(Left::InUse)
            }
            Err(error) => Err(failed(error)),
        }
    }

    /// Unmounts. Blocks for a moment.
    ///
    /// If files in it are open the mount leaves the tree all the same, and they fail from now on.
    /// Where a user other than root can't bring that about, they can be read until this process
    /// ends.
    pub fn unmount(self) -> Result<(), MountError> {
        self.end()
    }

    fn end(&self) -> Result<(), MountError> {
        let outcome = self.take_away();
        // Whoever waits for the store now has nobody left to answer to.
        self.fs.waiter.stop();
        if outcome.is_ok() && !self.crew.ends_within(END_MAX) {
            tracing::warn!(
                mountpoint = %self.mountpoint.display(),
                "files of the mount are in use; it ends when they are closed"
            );
        }
        outcome
    }

    fn take_away(&self) -> Result<(), MountError> {
        let failed = |source| MountError::Unmount { path: self.mountpoint.clone(), source };
        if !self.is_there().map_err(MountError::MountTable)? {
            // Unmounted from outside, or out of the tree and in use.
            if self.crew.is_connected() {
                self.abort();
            }
            return Ok(());
        }
        match device::unmount(&self.mountpoint) {
            Ok(()) => Ok(()),
            Err(error) if is_busy(&error) => {
                tracing::warn!(
                    mountpoint = %self.mountpoint.display(),
                    "files of the mount are open, and fail from now on"
                );
                self.abort();
                device::unmount_by_force(&self.mountpoint).map_err(failed)
            }
            Err(error) => Err(failed(error)),
        }
    }

    /// The device number of what is mounted on the folder.
    fn device_there(&self) -> Result<u64, MountError> {
        let path = self.mountpoint.clone();
        let metadata = fs::metadata(&path);
        metadata
            .map(|metadata| metadata.dev())
            .map_err(|source| MountError::MountPoint { path, source })
    }

    /// Whether this mount, and not another, is on its folder.
    fn is_there(&self) -> io::Result<bool> {
        let found = mount_table::find(&self.mountpoint)?;
        let ours = |entry: MountEntry| self.device.is_none_or(|device| device == entry.device);
        // The kernel gives the number of a mount that is gone to the next. What has our number
        // while we are not connected is either that, or ours and dead.
        Ok(found.is_some_and(|entry| {
            let is_view = layer::is_ours(&entry);
            ours(entry)
                && (is_view
                    || self.crew.is_connected()
                    || fs::symlink_metadata(&self.mountpoint).is_err_and(|error| is_dead(&error)))
        }))
    }

    /// Ends the kernel's connection: what is open fails, and the serving threads end.
    fn abort(&self) {
        let Some(connection) = self.connection else { return };
        let path = format!("/sys/fs/fuse/connections/{connection}/abort");
        if let Err(error) = fs::write(&path, "1") {
            tracing::debug!(path, %error, "the connection may stay until its files are closed");
        }
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        if let Err(error) = self.end() {
            tracing::error!(error = &error as &dyn std::error::Error, "the mount stays");
        }
    }
}
