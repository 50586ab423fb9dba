//! The name of every content: 32 bytes of BLAKE3. Text forms are read and written here; what is
//! hashed, and how, is the affair of those who hash.

use std::{fmt, str::FromStr};

use data_encoding::{BASE64, HEXLOWER, HEXLOWER_PERMISSIVE};

/// A BLAKE3 digest.
///
/// Its text form is `blake3-` and padded standard base64, as in Subresource Integrity. `b3:` and
/// base64 (Tvix) and 64 hexadecimal digits are read as well.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest([u8; 32]);

/// Bytes or a text that are no digest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidDigest {
    /// The number of bytes is not 32.
    #[error("a digest has 32 bytes, not {0}")]
    Length(usize),
    /// None of the text forms.
    #[error("{0:?} is no digest: expected blake3-<base64> or 64 hexadecimal digits")]
    Text(String),
}

impl Digest {
    /// The number of bytes in a digest.
    pub const LEN: usize = 32;

    /// The digest of no bytes: of the empty blob and of the empty directory.
    pub const EMPTY: Self = Self([
        0xaf, 0x13, 0x49, 0xb9, 0xf5, 0xf9, 0xa1, 0xa6, 0xa0, 0x40, 0x4d, 0xea, 0x36, 0xdc, 0xc9,
        0x49, 0x9b, 0xcb, 0x25, 0xc9, 0xad, 0xc1, 0x12, 0xb7, 0xcc, 0x9a, 0x93, 0xca, 0xe4, 0x1f,
        0x32, 0x62,
    ]);

    /// The digest of these bytes.
    pub fn of(bytes: &[u8]) -> Self {
        Self(blake3::hash(bytes).into())
    }

    /// The digest itself.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// 64 lower-case hexadecimal digits.
    pub fn to_hex(&self) -> String {
        HEXLOWER.encode(&self.0)
    }
}

impl From<[u8; 32]> for Digest {
    fn from(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }
}

impl From<blake3::Hash> for Digest {
    fn from(hash: blake3::Hash) -> Self {
        Self(hash.into())
    }
}

impl TryFrom<&[u8]> for Digest {
    type Error = InvalidDigest;

    fn try_from(bytes: &[u8]) -> Result<Self, InvalidDigest> {
        bytes.try_into().map(Self).map_err(|_| InvalidDigest::Length(bytes.len()))
    }
}

impl From<Digest> for bytes::Bytes {
    fn from(digest: Digest) -> Self {
        Self::copy_from_slice(&digest.0)
    }
}

impl FromStr for Digest {
    type Err = InvalidDigest;

    fn from_str(text: &str) -> Result<Self, InvalidDigest> {
        let bytes = match text.strip_prefix("blake3-").or_else(|| text.strip_prefix("b3:")) {
            Some(base64) => BASE64.decode(base64.as_bytes()),
            None => HEXLOWER_PERMISSIVE.decode(text.as_bytes()),
        };
        bytes
            .ok()
            .and_then(|bytes| Self::try_from(bytes.as_slice()).ok())
            .ok_or_else(|| InvalidDigest::Text(text.to_owned()))
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "blake3-{}", BASE64.encode(&self.0))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_forms_name_one_digest() {
        let digest = Digest::of(b"hi\n");
        let hex = "0b8b60248fad7ac6dfac221b7e01a8b91c772421a15b387dd1fb2d6a94aee438";
        assert_eq!(digest.to_hex(), hex);
        assert_eq!(hex.parse(), Ok(digest));
        assert_eq!(hex.to_uppercase().parse(), Ok(digest));
        let text = digest.to_string();
        assert_eq!(text, "blake3-C4tgJI+tesbfrCIbfgGouRx3JCGhWzh90fstapSu5Dg=");
        assert_eq!(text.parse(), Ok(digest));
        assert_eq!(text.replace("blake3-", "b3:").parse(), Ok(digest));
    }

    #[test]
    fn what_is_no_digest_is_refused() {
        for text in [
            "",
            "blake3-",
            "blake3-AAAA",
            "0b8b",
            "blake3-C4tgJI+tesbfrCIbfgGouRx3JCGhWzh90fstapSu5Dg",
        ] {
            assert_eq!(text.parse::<Digest>(), Err(InvalidDigest::Text(text.to_owned())));
        }
        assert_eq!(Digest::try_from(&[0u8; 31][..]), Err(InvalidDigest::Length(31)));
    }

    #[test]
    fn empty_is_the_digest_of_nothing() {
        assert_eq!(Digest::of(b""), Digest::EMPTY);
    }
}
