//! What the entries of a directory are called, and what symlinks point at. Both are bytes, not
//! text, and both are checked once, here.

use std::{borrow::Borrow, ffi::OsStr, fmt, os::unix::ffi::OsStrExt};

use bytes::Bytes;

/// The name of a directory's entry: 1 to 255 bytes, without `/` and NUL, neither `.` nor `..`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name(Bytes);

/// What a symlink points at: 1 to 4,095 bytes without NUL.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SymlinkTarget(Bytes);

/// Bytes that can't be a name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{:?} can't be the name of a directory's entry", String::from_utf8_lossy(.0))]
pub struct InvalidName(pub Bytes);

/// Bytes that can't be a symlink's target.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{:?} can't be the target of a symlink", String::from_utf8_lossy(.0))]
pub struct InvalidSymlinkTarget(pub Bytes);

impl Name {
    /// The length of the longest name, in bytes.
    pub const MAX_LEN: usize = 255;

    /// The name as it is in a file system.
    pub fn as_os_str(&self) -> &OsStr {
        OsStr::from_bytes(&self.0)
    }

    /// The name's bytes.
    pub fn as_bytes(&self) -> &Bytes {
        &self.0
    }
}

impl SymlinkTarget {
    /// The length of the longest target, in bytes.
    pub const MAX_LEN: usize = 4095;

    /// The target as it is in a file system.
    pub fn as_os_str(&self) -> &OsStr {
        OsStr::from_bytes(&self.0)
    }

    /// The target's bytes.
    pub fn as_bytes(&self) -> &Bytes {
        &self.0
    }
}

impl TryFrom<Bytes> for Name {
    type Error = InvalidName;

    fn try_from(bytes: Bytes) -> Result<Self, InvalidName> {
        let valid = (1..=Self::MAX_LEN).contains(&bytes.len())
            && bytes != b"."[..]
            && bytes != b".."[..]
            && !bytes.iter().any(|&byte| byte == b'/' || byte == 0);
        if valid { Ok(Self(bytes)) } else { Err(InvalidName(bytes)) }
    }
}

impl TryFrom<&OsStr> for Name {
    type Error = InvalidName;

    fn try_from(name: &OsStr) -> Result<Self, InvalidName> {
        Bytes::copy_from_slice(name.as_bytes()).try_into()
    }
}

impl TryFrom<&str> for Name {
    type Error = InvalidName;

    fn try_from(name: &str) -> Result<Self, InvalidName> {
        OsStr::new(name).try_into()
    }
}

impl TryFrom<Bytes> for SymlinkTarget {
    type Error = InvalidSymlinkTarget;

    fn try_from(bytes: Bytes) -> Result<Self, InvalidSymlinkTarget> {
        let valid = (1..=Self::MAX_LEN).contains(&bytes.len()) && !bytes.contains(&0);
        if valid { Ok(Self(bytes)) } else { Err(InvalidSymlinkTarget(bytes)) }
    }
}

impl TryFrom<&OsStr> for SymlinkTarget {
    type Error = InvalidSymlinkTarget;

    fn try_from(target: &OsStr) -> Result<Self, InvalidSymlinkTarget> {
        Bytes::copy_from_slice(target.as_bytes()).try_into()
    }
}

impl Borrow<[u8]> for Name {
    fn borrow(&self) -> &[u8] {
        &self.0
    }
}

impl AsRef<[u8]> for Name {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl AsRef<[u8]> for SymlinkTarget {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&String::from_utf8_lossy(&self.0))
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.as_os_str())
    }
}

impl fmt::Display for SymlinkTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&String::from_utf8_lossy(&self.0))
    }
}

impl fmt::Debug for SymlinkTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.as_os_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_bounded_and_have_one_component() {
        for bad in [&b""[..], b".", b"..", b"a/b", b"/", b"a\0", &[b'x'; 256]] {
            let bad = Bytes::copy_from_slice(bad);
            assert_eq!(Name::try_from(bad.clone()), Err(InvalidName(bad)));
        }
        for good in [&b"a"[..], b"...", b".a", b"\xff\xfe", b" ", &[b'x'; 255]] {
            let good = Bytes::copy_from_slice(good);
            assert_eq!(Name::try_from(good.clone()).map(|name| name.0), Ok(good));
        }
    }

    #[test]
    fn targets_are_bounded_and_without_nul() {
        for bad in [&b""[..], b"a\0", &[b'x'; 4096]] {
            assert!(SymlinkTarget::try_from(Bytes::copy_from_slice(bad)).is_err());
        }
        for good in [&b"."[..], b"../..", b"/", b"\xff", &[b'x'; 4095]] {
            assert!(SymlinkTarget::try_from(Bytes::copy_from_slice(good)).is_ok());
        }
    }
}
