//! A writable view: the kernel's overlay file system over a mount, with a folder above it that
//! takes what is written.

use std::{
    ffi::CString,
    fs, io,
    os::unix::{ffi::OsStrExt as _, fs::DirBuilderExt as _},
    path::{Path, PathBuf},
    time::{SystemTime, UNIX_EPOCH},
};

use rustix::{io::Errno, mount::MountFlags};

use super::{MountError, device, is_dead, mount_table::MountEntry};
use crate::file_system::SERVER_NAME;

/// The kind of file system that the mount table shows.
pub(crate) const FS_TYPE: &str = "overlay";

/// What the mount table shows before the source of ours.
const SOURCE_PREFIX: &str = "cairn:";

/// Where what is written above a mount is kept.
#[derive(Debug, Clone)]
pub struct Layer {
    /// The folder that takes it, which is made if need be. What it holds from an earlier mount is
    /// seen again.
    pub upper: PathBuf,
    /// A folder on the same file system that the kernel needs for itself, made if need be. Not in
    /// the other.
    pub work: PathBuf,
}

/// A folder that nobody else knows, to mount on until the view is there.
pub(super) struct HiddenFolder(PathBuf);

impl HiddenFolder {
    pub(super) fn new() -> io::Result<Self> {
        let mut attempt = 0;
        loop {
            let name = format!("cairn-{}-{attempt}", std::process::id());
            let path = std::env::temp_dir().join(name);
            match fs::DirBuilder::new().mode(0o700).create(&path) {
                Ok(()) => return Ok(Self(path.canonicalize()?)),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists && attempt < 1000 => {
                    attempt += 1;
                }
                Err(error) => return Err(error),
            }
        }
    }

    pub(super) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for HiddenFolder {
    fn drop(&mut self) {
        // A mount that is still there goes on below the view that was made of it, if one was.
        let _ = device::detach(&self.0);
        if let Err(error) = fs::remove_dir(&self.0) {
            tracing::warn!(path = %self.0.display(), %error, "an empty folder stays");
        }
    }
}

/// Mounts the view on a folder.
pub(super) fn mount(
    mountpoint: &Path,
    below: &Path,
    layer: &Layer,
    source: &str,
) -> Result<(), MountError> {
    for path in [&layer.upper, &layer.work] {
        fs::create_dir_all(path)
            .map_err(|source| MountError::LayerFolder { path: path.clone(), source })?;
    }
    let refused = |source| MountError::Layer {
        path: mountpoint.to_owned(),
        upper: layer.upper.clone(),
        work: layer.work.clone(),
        source,
    };
    // Files with equal contents are one inode below, and must not become one above: no index.
    let mut data = b"redirect_dir=on,index=off".to_vec();
    for (name, path) in [("lowerdir", below), ("upperdir", &layer.upper), ("workdir", &layer.work)]
    {
        let path = path.canonicalize().map_err(refused)?;
        data.extend_from_slice(format!(",{name}=").as_bytes());
        for &byte in path.as_os_str().as_bytes() {
            if matches!(byte, b'\\' | b',' | b':') {
                data.push(b'\\');
            }
            data.push(byte);
        }
    }
    let data = CString::new(data).map_err(|error| refused(error.into()))?;
    let source = format!("{SOURCE_PREFIX}{}", source.replace('\0', ""));
    rustix::mount::mount(source, mountpoint, FS_TYPE, MountFlags::empty(), data.as_c_str())
        .map_err(|error| refused(error.into()))
}

/// Whether an entry of the mount table is such a view.
pub(super) fn is_ours(entry: &MountEntry) -> bool {
    entry.fs_type == FS_TYPE && entry.source.starts_with(SOURCE_PREFIX)
}

/// Asks the server below a view for something that the kernel has not seen, which the view would
/// not ask for. `ENOTCONN` if it is gone.
pub(super) fn ask(mountpoint: &Path) -> Result<(), Errno> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
    match fs::symlink_metadata(mountpoint.join(format!("{SERVER_NAME}-{now}"))) {
        Err(error) if is_dead(&error) => Err(Errno::NOTCONN),
        _ => Ok(()),
    }
}
