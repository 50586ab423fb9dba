//! How a folder becomes a mount and stops being one: by the kernel where this process may, else
//! by `fusermount3`. Who reads the requests that then arrive is not known here.

use std::{
    ffi::CString,
    io,
    io::IoSliceMut,
    mem::MaybeUninit,
    os::fd::{AsRawFd as _, OwnedFd},
    path::Path,
    process::{Command, Output, Stdio},
};

use rustix::{
    fs::{Mode, OFlags},
    io::{Errno, FdFlags},
    mount::{MountFlags, UnmountFlags},
    net::{
        AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SocketFlags,
        SocketType,
    },
};

use super::{MountError, MountOptions, SUBTYPE, crew};

/// The kernel's FUSE device.
pub(crate) const PATH: &str = "/dev/fuse";

/// The program that mounts for users who may not.
pub(crate) const HELPER: &str = "fusermount3";

/// Where the helper finds the socket that it sends the opened device over.
const HELPER_SOCKET: &str = "_FUSE_COMMFD";

/// Mounts, and answers with the device from which the requests are read.
pub(crate) fn mount(mountpoint: &Path, options: &MountOptions) -> Result<OwnedFd, MountError> {
    let flags = OFlags::RDWR | OFlags::CLOEXEC;
    let device = rustix::fs::open(PATH, flags, Mode::empty())
        .map_err(|error| MountError::Device(error.into()))?;
    let flags = MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOATIME;
    let data = format!(
        "fd={},rootmode=40000,user_id={},group_id={},{}",
        device.as_raw_fd(),
        rustix::process::getuid().as_raw(),
        rustix::process::getgid().as_raw(),
        common_options(options),
    );
    let data = CString::new(data).expect("numbers and words have no NUL");
    let fs_type = format!("fuse.{SUBTYPE}");
    let source = options.source.replace('\0', "");
    match rustix::mount::mount(source, mountpoint, fs_type, flags, data.as_c_str()) {
        Ok(()) => Ok(device),
        Err(Errno::PERM) => {
            drop(device);
            mount_by_helper(mountpoint, options)
        }
        Err(error) => Err(MountError::Mount { path: mountpoint.into(), source: error.into() }),
    }
}

/// What the kernel is told whoever mounts. The kernel checks permissions itself, and asks for no
/// more at a time than a reply has room for.
fn common_options(options: &MountOptions) -> String {
    let allow_other = if options.allow_other { ",allow_other" } else { "" };
    format!("default_permissions,max_read={}{allow_other}", crew::PAYLOAD_BYTES)
}

fn mount_by_helper(mountpoint: &Path, options: &MountOptions) -> Result<OwnedFd, MountError> {
    let failed = |source: io::Error| MountError::Mount { path: mountpoint.into(), source };
    let (ours, theirs) = rustix::net::socketpair(
        AddressFamily::UNIX,
        SocketType::STREAM,
        SocketFlags::CLOEXEC,
        None,
    )
    .map_err(|error| failed(error.into()))?;
    rustix::io::fcntl_setfd(&theirs, FdFlags::empty()).map_err(|error| failed(error.into()))?;
    let source = options.source.replace('\0', "").replace('\\', "\\\\").replace(',', "\\,");
    let output = run(Command::new(HELPER)
        .env(HELPER_SOCKET, theirs.as_raw_fd().to_string())
        .arg("-o")
        .arg(format!(
            "ro,nosuid,nodev,noatime,{},subtype={SUBTYPE},fsname={source}",
            common_options(options)
        ))
        .arg("--")
        .arg(mountpoint))?;
    drop(theirs);
    succeeded(&output)?;
    receive_descriptor(&ours)
        .map_err(failed)?
        .ok_or_else(|| MountError::Helper { message: "it sent no descriptor".to_owned() })
}

fn receive_descriptor(socket: &OwnedFd) -> io::Result<Option<OwnedFd>> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0; 1];
    let mut into = [IoSliceMut::new(&mut byte)];
    rustix::io::retry_on_intr(|| {
        rustix::net::recvmsg(socket, &mut into, &mut control, RecvFlags::CMSG_CLOEXEC)
    })?;
    Ok(control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
        _ => None,
    }))
}

fn run(command: &mut Command) -> Result<Output, MountError> {
    match command.stdin(Stdio::null()).output() {
        Ok(output) => Ok(output),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Err(MountError::NoHelper),
        Err(error) => Err(MountError::Helper { message: error.to_string() }),
    }
}

fn succeeded(output: &Output) -> Result<(), MountError> {
    if output.status.success() {
        return Ok(());
    }
    let text = String::from_utf8_lossy(&output.stderr);
    let text = text.trim().trim_start_matches(HELPER).trim_start_matches(':').trim();
    let message = if text.is_empty() { output.status.to_string() } else { text.to_owned() };
    Err(MountError::Helper { message })
}

/// Unmounts if nothing in the mount is in use, else fails with `EBUSY`.
pub(crate) fn unmount(mountpoint: &Path) -> io::Result<()> {
    match rustix::mount::unmount(mountpoint, UnmountFlags::NOFOLLOW) {
        Err(Errno::PERM) => unmount_by_helper(mountpoint, &["-u"]),
        outcome => Ok(outcome?),
    }
}

/// Takes the mount out of the tree, in use or not; what uses it goes on.
pub(crate) fn detach(mountpoint: &Path) -> io::Result<()> {
    unmount_with(mountpoint, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW)
}

/// Takes the mount out of the tree, in use or not; what uses it fails from now on, where this
/// process may bring that about.
pub(crate) fn unmount_by_force(mountpoint: &Path) -> io::Result<()> {
    let flags = UnmountFlags::DETACH | UnmountFlags::FORCE | UnmountFlags::NOFOLLOW;
    unmount_with(mountpoint, flags)
}

fn unmount_with(mountpoint: &Path, flags: UnmountFlags) -> io::Result<()> {
    match rustix::mount::unmount(mountpoint, flags) {
        Err(Errno::PERM) => unmount_by_helper(mountpoint, &["-u", "-z"]),
        outcome => Ok(outcome?),
    }
}

fn unmount_by_helper(mountpoint: &Path, flags: &[&str]) -> io::Result<()> {
    let output = run(Command::new(HELPER).args(flags).arg("--").arg(mountpoint))
        .map_err(io::Error::other)?;
    succeeded(&output).map_err(|error| {
        let busy = error.to_string().contains("busy");
        if busy { Errno::BUSY.into() } else { io::Error::other(error) }
    })
}
