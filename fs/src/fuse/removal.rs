//! Unmounting from outside: finds what is mounted, takes it away and waits for its server to end.
//! How a server unmounts by itself is in the parent module.

use std::{
    fs,
    os::{fd::OwnedFd, unix::fs::MetadataExt as _},
    path::{Path, PathBuf},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec},
    io::Errno,
    process::{Pid, PidfdFlags, pidfd_open},
};

use super::{MountError, SUBTYPE, device, is_busy, layer, mount_table, resolve};
use crate::file_system::{PID_NAMESPACE, SERVER_NAME};

/// How something is unmounted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UnmountOptions {
    /// Whether it leaves the tree at once, in use or not. Its server goes on until what is open is
    /// closed, and is not waited for.
    pub lazy: bool,
    /// How long to wait, for the server's answer and for its end.
    pub timeout: Duration,
}

/// How an unmount went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unmounted {
    /// The server has ended.
    Ended,
    /// The server was gone already; what it had left is removed.
    WasDead,
    /// The mount has left the tree. Its server ends when nothing in it is open any more.
    Detached,
    /// The mount is gone, and its server ends, but it is out of our sight, as in another container.
    Unseen,
}

/// Why something could not be unmounted.
#[derive(Debug, thiserror::Error)]
pub enum UnmountError {
    /// Nothing is mounted there.
    #[error("nothing is mounted on {}", .0.display())]
    NotMounted(PathBuf),
    /// What is mounted there is not ours.
    #[error("what is mounted on {} is no mount of cairn, but {fs_type}", path.display())]
    Other {
        /// Where.
        path: PathBuf,
        /// The kind of file system.
        fs_type: String,
    },
    /// Files in it are open, or processes stand in it.
    #[error("the mount on {} is in use", .0.display())]
    InUse(PathBuf),
    /// The server has not answered a first question.
    #[error("the server of the mount on {} does not answer within {timeout:?}", path.display())]
    NoAnswer {
        /// Where.
        path: PathBuf,
        /// How long it had.
        timeout: Duration,
    },
    /// The mount is gone, but its server has not ended.
    #[error(
        "{} is unmounted, but its server, process {pid}, has not ended within {timeout:?}",
        path.display()
    )]
    NotEnded {
        /// Where.
        path: PathBuf,
        /// The server.
        pid: i32,
        /// How long it had.
        timeout: Duration,
    },
    /// It can't be found out, or done.
    #[error(transparent)]
    Mount(#[from] MountError),
}

/// Unmounts a mount of cairn, whoever serves it. Blocks.
pub fn unmount(mountpoint: &Path, options: UnmountOptions) -> Result<Unmounted, UnmountError> {
    let path = resolve(mountpoint)?;
    let found = mount_table::find(&path).map_err(MountError::MountTable)?;
    let Some(found) = found else { return Err(UnmountError::NotMounted(path)) };
    let is_view = layer::is_ours(&found);
    if !is_view && found.fs_type.strip_prefix("fuse.") != Some(SUBTYPE) {
        return Err(UnmountError::Other { path, fs_type: found.fs_type });
    }
    let refused = |source| MountError::Unmount { path: path.clone(), source };
    let UnmountOptions { lazy, timeout } = options;
    if lazy {
        device::detach(&path).map_err(refused)?;
        return Ok(Unmounted::Detached);
    }
    let started = Instant::now();
    let server = match ask_within(timeout, path.clone(), is_view) {
        None => return Err(UnmountError::NoAnswer { path, timeout }),
        Some(Err(Errno::NOTCONN)) => {
            device::detach(&path).map_err(refused)?;
            return Ok(Unmounted::WasDead);
        }
        Some(Err(error)) => return Err(refused(error.into()).into()),
        Some(Ok(server)) => server,
    };
    if let Err(error) = device::unmount(&path) {
        if is_busy(&error) {
            return Err(UnmountError::InUse(path));
        }
        return Err(refused(error).into());
    }
    let Some(Server { pid, handle }) = server else { return Ok(Unmounted::Unseen) };
    match ends_within(&handle, timeout.saturating_sub(started.elapsed())) {
        Ok(true) => Ok(Unmounted::Ended),
        Ok(false) => Err(UnmountError::NotEnded { path, pid, timeout }),
        Err(error) => Err(refused(error.into()).into()),
    }
}

/// The process behind a mount.
struct Server {
    pid: i32,
    handle: OwnedFd,
}

/// What [`server`] finds, asked by a thread of its own: one that does not answer holds up whoever
/// asks for as long as it likes. `None` if it takes too long.
fn ask_within(
    timeout: Duration,
    path: PathBuf,
    is_view: bool,
) -> Option<Result<Option<Server>, Errno>> {
    let (answer, answers) = mpsc::sync_channel(1);
    // Nobody is left to take the answer if it comes late.
    thread::spawn(move || drop(answer.send(server(&path, is_view))));
    answers.recv_timeout(timeout).ok()
}

/// The process behind a mount, `None` if it is out of our sight. `ENOTCONN` if it is gone.
fn server(path: &Path, is_view: bool) -> Result<Option<Server>, Errno> {
    // Not a `stat`: the kernel answers that from its cache, for a server that is long gone.
    let ask = || match is_view {
        true => layer::ask(path),
        false => rustix::fs::statfs(path).map(drop),
    };
    ask()?;
    let Ok(link) = fs::read_link(path.join(SERVER_NAME)) else { return Ok(None) };
    let found = link.to_str().and_then(|text| text.split_once(':'));
    let Some((namespace, pid)) = found else { return Ok(None) };
    let ours = fs::metadata(PID_NAMESPACE).map(|namespace| namespace.ino().to_string());
    if ours.ok().as_deref() != Some(namespace) {
        return Ok(None);
    }
    let Some(pid) = pid.parse().ok().and_then(Pid::from_raw) else { return Ok(None) };
    let Ok(handle) = pidfd_open(pid, PidfdFlags::empty()) else { return Ok(None) };
    // It still answers, so the number has not gone to another process meanwhile.
    ask()?;
    Ok(Some(Server { pid: pid.as_raw_nonzero().get(), handle }))
}

fn ends_within(process: &OwnedFd, timeout: Duration) -> Result<bool, Errno> {
    // None if it is further away than the clock goes.
    let deadline = Instant::now().checked_add(timeout);
    loop {
        let rest = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        let rest = rest.and_then(|rest| Timespec::try_from(rest).ok());
        match rustix::event::poll(&mut [PollFd::new(process, PollFlags::IN)], rest.as_ref()) {
            Ok(ready) => return Ok(ready > 0),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error),
        }
    }
}
