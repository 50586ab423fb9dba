//! What commands choose by: patterns of names, and sizes.

use std::{ffi::OsStr, os::unix::ffi::OsStrExt as _, path::Path, str::FromStr};

use cairn_castore::ByteSize;
use globset::{GlobBuilder, GlobMatcher};

/// A pattern of names, as a shell has them.
#[derive(Debug, Clone)]
pub(crate) struct NamePattern(GlobMatcher);

impl NamePattern {
    /// Whether the whole name is of the pattern.
    pub(crate) fn matches(&self, name: &[u8]) -> bool {
        self.0.is_match(Path::new(OsStr::from_bytes(name)))
    }

    /// Whether a name is of one of the patterns, if there are any.
    pub(crate) fn any(patterns: &[Self], name: &[u8]) -> bool {
        patterns.is_empty() || patterns.iter().any(|pattern| pattern.matches(name))
    }
}

impl FromStr for NamePattern {
    type Err = globset::Error;

    fn from_str(text: &str) -> Result<Self, globset::Error> {
        Ok(Self(GlobBuilder::new(text).build()?.compile_matcher()))
    }
}

/// Sizes: `+10MiB` are the larger ones, `-10MiB` the smaller ones, `10MiB` those alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SizeFilter {
    Above(u64),
    Below(u64),
    Exactly(u64),
}

impl SizeFilter {
    /// Whether a size, in bytes, is one of them.
    pub(crate) fn matches(self, size: u64) -> bool {
        match self {
            Self::Above(limit) => size > limit,
            Self::Below(limit) => size < limit,
            Self::Exactly(wanted) => size == wanted,
        }
    }

    /// Whether a size is one of all of them. What has no size is not, if there are any.
    pub(crate) fn all(filters: &[Self], size: Option<u64>) -> bool {
        filters.iter().all(|filter| size.is_some_and(|size| filter.matches(size)))
    }
}

impl FromStr for SizeFilter {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let size = |text: &str| match text.parse::<ByteSize>() {
            Ok(size) => Ok(size.0),
            Err(error) => Err(error.to_string()),
        };
        if let Some(limit) = text.strip_prefix('+') {
            return size(limit).map(Self::Above);
        }
        match text.strip_prefix('-') {
            Some(limit) => size(limit).map(Self::Below),
            None => size(text).map(Self::Exactly),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_matched_whole_and_as_bytes() {
        let matches =
            |pattern: &str, name: &[u8]| pattern.parse::<NamePattern>().unwrap().matches(name);
        assert!(matches("*.c", b"main.c"));
        assert!(matches("*.c", b".c"));
        assert!(matches("*.c", b"\xff.c"));
        assert!(matches("[a-c]*", "bö".as_bytes()));
        assert!(matches("{lib,bin}*", b"binary"));
        assert!(matches("a\\*", b"a*"));
        assert!(!matches("*.c", b"main.cc"));
        assert!(!matches("a\\*", b"ab"));
        assert!("[a".parse::<NamePattern>().is_err());
    }

    #[test]
    fn sizes_are_above_below_or_exact() {
        let filters = ["+1KiB", "-1MiB"].map(|text| text.parse::<SizeFilter>().unwrap());
        for (size, wanted) in [(1024, false), (1025, true), (1 << 20, false)] {
            assert_eq!(SizeFilter::all(&filters, Some(size)), wanted, "{size}");
        }
        assert!(!SizeFilter::all(&filters, None));
        assert!(SizeFilter::all(&[], None));
        assert_eq!("7".parse(), Ok(SizeFilter::Exactly(7)));
        for text in ["", "+", "--1", "many"] {
            assert!(text.parse::<SizeFilter>().is_err(), "{text}");
        }
    }
}
