//! What is mounted where, as the kernel lists it. Nothing is mounted or unmounted here.

use std::{fs, io, os::unix::ffi::OsStrExt as _, path::Path};

use rustix::fs::makedev;

/// The kernel's table of this process's mounts; see proc_pid_mountinfo(5).
pub(crate) const PATH: &str = "/proc/self/mountinfo";

/// A line of the table.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct MountEntry {
    /// The device number of everything in it.
    pub(crate) device: u64,
    /// The kind of file system, such as `fuse.cairn`.
    pub(crate) fs_type: String,
    /// What is mounted.
    pub(crate) source: String,
}

/// What is mounted on exactly this path, as it is seen: of several mounts the last.
pub(crate) fn find(path: &Path) -> io::Result<Option<MountEntry>> {
    Ok(find_in(&fs::read(PATH)?, path))
}

fn find_in(table: &[u8], path: &Path) -> Option<MountEntry> {
    table.split(|&byte| byte == b'\n').rev().find_map(|line| {
        let (mountpoint, entry) = parse(line)?;
        (mountpoint == path.as_os_str().as_bytes()).then_some(entry)
    })
}

fn parse(line: &[u8]) -> Option<(Vec<u8>, MountEntry)> {
    let mut fields = line.split(|&byte| byte == b' ');
    let device = std::str::from_utf8(fields.nth(2)?).ok()?;
    let mountpoint = unescape(fields.nth(1)?);
    let mut fields = fields.skip_while(|field| *field != b"-").skip(1);
    let fs_type = String::from_utf8_lossy(&unescape(fields.next()?)).into_owned();
    let source = String::from_utf8_lossy(&unescape(fields.next()?)).into_owned();
    let (major, minor) = device.split_once(':')?;
    let device = makedev(major.parse().ok()?, minor.parse().ok()?);
    Some((mountpoint, MountEntry { device, fs_type, source }))
}

/// The kernel writes white space and backslashes as `\` and three octal digits.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&byte, behind)) = rest.split_first() {
        let escaped = behind
            .get(..3)
            .filter(|_| byte == b'\\')
            .and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok());
        bytes.push(escaped.unwrap_or(byte));
        rest = if escaped.is_some() { &behind[3..] } else { behind };
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &[u8] = b"\
22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
36 22 0:41 / /mnt ro,nosuid master:2 propagate_from:1 - fuse.cairn sled:/a\\040b ro,user_id=0
37 22 0:42 / /with\\040space\\134 rw - tmpfs tmpfs rw
38 36 0:43 / /mnt rw - fuse.other top rw
garbage
39 22 0:x / /broken rw - ext4 x rw
";

    #[test]
    fn the_last_mount_on_a_path_is_the_one_that_is_seen() {
        let found = find_in(TABLE, Path::new("/mnt")).unwrap();
        assert_eq!(found.fs_type, "fuse.other");
        assert_eq!(found.device, makedev(0, 43));
        assert_eq!(find_in(TABLE, Path::new("/")).unwrap().fs_type, "ext4");
        assert_eq!(find_in(TABLE, Path::new("/mn")), None);
        assert_eq!(find_in(TABLE, Path::new("/broken")), None);
    }

    #[test]
    fn escapes_are_read() {
        let found = find_in(TABLE, Path::new("/with space\\")).unwrap();
        assert_eq!(found.fs_type, "tmpfs");
        assert_eq!(unescape(b"sled:/a\\040b"), b"sled:/a b");
        assert_eq!(unescape(b"\\0"), b"\\0");
        assert_eq!(unescape(b"\\999"), b"\\999");
    }

    #[test]
    fn this_process_sees_its_root() {
        assert!(find(Path::new("/")).unwrap().is_some());
    }
}
