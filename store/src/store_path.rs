//! Nix store paths: their names, and how the path of an imported tree is computed.

use std::{fmt, str::FromStr};

use cairn_castore::Name;
use sha2::{Digest as _, Sha256};

use crate::nixbase32;

/// Where store paths live.
pub const STORE_DIR: &str = "/nix/store";

/// The 20 bytes that tell store paths apart.
pub type OutputHash = [u8; 20];

/// A store path: 20 bytes and a name of 1 to 211 characters of `[A-Za-z0-9+-._?=]`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StorePath {
    hash: OutputHash,
    name: String,
}

/// A text that is no store path.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidStorePath {
    /// The name is none that a store path can have.
    #[error(
        "{0:?} can't be the name of a store path: it takes 1 to 211 of the characters \
         A-Z a-z 0-9 + - . _ ? ="
    )]
    Name(String),
    /// The text is not of the form.
    #[error("{0:?} is no store path: expected /nix/store/<32 characters>-<name>")]
    Text(String),
}

impl StorePath {
    /// The length of the longest name.
    pub const NAME_MAX: usize = 211;

    /// A store path of its two parts.
    pub fn new(hash: OutputHash, name: &str) -> Result<Self, InvalidStorePath> {
        let valid = |byte: u8| byte.is_ascii_alphanumeric() || b"+-._?=".contains(&byte);
        if !(1..=Self::NAME_MAX).contains(&name.len()) || !name.bytes().all(valid) {
            return Err(InvalidStorePath::Name(name.to_owned()));
        }
        Ok(Self { hash, name: name.to_owned() })
    }

    /// The path of a tree whose NAR has this SHA-256, and that refers to nothing: what
    /// `nix-store --add` computes.
    pub fn of_nar(name: &str, nar_sha256: &[u8; 32]) -> Result<Self, InvalidStorePath> {
        let inner = data_encoding::HEXLOWER.encode(nar_sha256);
        let fingerprint = format!("source:sha256:{inner}:{STORE_DIR}:{name}");
        let mut hash = [0; 20];
        for (index, byte) in Sha256::digest(fingerprint).into_iter().enumerate() {
            hash[index % 20] ^= byte;
        }
        Self::new(hash, name)
    }

    /// The 20 bytes.
    pub fn hash(&self) -> &OutputHash {
        &self.hash
    }

    /// The name behind the hash.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The path without the store's folder: `<32 characters>-<name>`.
    pub fn base_name(&self) -> String {
        format!("{}-{}", nixbase32::encode(&self.hash), self.name)
    }

    /// The base name as the name of an entry in the root of a mount.
    pub fn to_name(&self) -> Name {
        Name::try_from(self.base_name().as_str()).expect("a base name is a valid name")
    }

    /// The whole path: `/nix/store/<32 characters>-<name>`.
    pub fn to_absolute(&self) -> String {
        format!("{STORE_DIR}/{}", self.base_name())
    }

    /// Reads `<32 characters>-<name>`.
    pub fn from_base_name(text: &[u8]) -> Result<Self, InvalidStorePath> {
        let invalid = || InvalidStorePath::Text(String::from_utf8_lossy(text).into_owned());
        let (hash, rest) = text.split_at_checked(32).ok_or_else(invalid)?;
        let hash = nixbase32::decode(hash).ok_or_else(invalid)?;
        let name = rest.strip_prefix(b"-").and_then(|name| str::from_utf8(name).ok());
        Self::new(hash, name.ok_or_else(invalid)?)
    }
}

impl FromStr for StorePath {
    type Err = InvalidStorePath;

    /// Reads a whole path or a base name.
    fn from_str(text: &str) -> Result<Self, InvalidStorePath> {
        let base = match text.strip_prefix(STORE_DIR) {
            Some(rest) => {
                rest.strip_prefix('/').ok_or_else(|| InvalidStorePath::Text(text.to_owned()))?
            }
            None => text,
        };
        Self::from_base_name(base.as_bytes())
    }
}

impl fmt::Display for StorePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.to_absolute())
    }
}

impl fmt::Debug for StorePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.base_name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_path_of_a_tree_is_that_of_the_specification() {
        let sha256 = "36739fcb9b1539fe10b866c1d18013f7255c88c1bc42a1da2a94158f5678f74b";
        let sha256 = data_encoding::HEXLOWER.decode(sha256.as_bytes()).unwrap();
        let path = StorePath::of_nar("tree", &sha256.try_into().unwrap()).unwrap();
        assert_eq!(path.to_string(), "/nix/store/y0lrmcm4zaj0qd44rp7mg83dgyl87lkp-tree");
        assert_eq!(path.to_string().parse(), Ok(path.clone()));
        assert_eq!(path.base_name().parse(), Ok(path));
    }

    #[test]
    fn what_is_no_store_path_is_refused() {
        let base = "y0lrmcm4zaj0qd44rp7mg83dgyl87lkp";
        for text in ["", "/nix/store", "/nix/store/", "/nix/storex", base] {
            assert!(text.parse::<StorePath>().is_err(), "{text:?}");
        }
        for name in ["", "-", "a/b", "a b", "ä", "a\0", &"x".repeat(212)] {
            let valid = name == "-";
            assert_eq!(format!("{base}-{name}").parse::<StorePath>().is_ok(), valid, "{name:?}");
        }
        assert!(format!("{base}-{}", "x".repeat(211)).parse::<StorePath>().is_ok());
        assert!(StorePath::from_base_name(format!("{base}x").as_bytes()).is_err());
        assert!(StorePath::from_base_name(b"\xff-a").is_err());
    }
}
