//! A tree in memory, and its NAR written in the plainest way: what the tests of this folder
//! compare with. It shares no code with what it tests.

use std::{collections::BTreeMap, fmt};

use proptest::prelude::*;

/// A tree with its files' bytes.
#[derive(Clone, PartialEq, Eq)]
pub(crate) enum Tree {
    File { bytes: Vec<u8>, executable: bool },
    Symlink(Vec<u8>),
    Directory(BTreeMap<Vec<u8>, Tree>),
}

impl Tree {
    pub(crate) fn file(bytes: impl Into<Vec<u8>>) -> Self {
        Self::File { bytes: bytes.into(), executable: false }
    }

    pub(crate) fn executable(bytes: impl Into<Vec<u8>>) -> Self {
        Self::File { bytes: bytes.into(), executable: true }
    }

    pub(crate) fn symlink(target: impl Into<Vec<u8>>) -> Self {
        Self::Symlink(target.into())
    }

    pub(crate) fn directory<const N: usize>(entries: [(&str, Tree); N]) -> Self {
        let entry = |(name, tree): (&str, Tree)| (name.as_bytes().to_vec(), tree);
        Self::Directory(entries.into_iter().map(entry).collect())
    }

    /// The tree of the specification.
    pub(crate) fn vector() -> Self {
        Self::directory([
            ("big", Self::file(vec![b'a'; 700_000])),
            ("d", Self::directory([("f", Self::file("hi\n"))])),
            ("empty", Self::directory([])),
            ("link", Self::symlink("d/f")),
            ("run", Self::executable("#!/bin/sh\necho ok\n")),
            ("zero", Self::file("")),
        ])
    }

    pub(crate) fn nar(&self) -> Vec<u8> {
        let mut nar = string(b"nix-archive-1");
        self.write(&mut nar);
        nar
    }

    fn write(&self, nar: &mut Vec<u8>) {
        let mut put = |words: &[&[u8]]| nar.extend(words.iter().flat_map(|word| string(word)));
        put(&[b"(", b"type"]);
        match self {
            Self::File { bytes, executable } => {
                put(&[b"regular"]);
                if *executable {
                    put(&[b"executable", b""]);
                }
                put(&[b"contents", bytes]);
            }
            Self::Symlink(target) => put(&[b"symlink", b"target", target]),
            Self::Directory(entries) => {
                put(&[b"directory"]);
                for (name, tree) in entries {
                    nar.extend([&b"entry"[..], b"(", b"name", name, b"node"].map(string).concat());
                    tree.write(nar);
                    nar.extend(string(b")"));
                }
            }
        }
        nar.extend(string(b")"));
    }
}

impl fmt::Debug for Tree {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File { bytes, executable } => {
                write!(f, "File({} bytes, executable: {executable})", bytes.len())
            }
            Self::Symlink(target) => write!(f, "Symlink({:?})", String::from_utf8_lossy(target)),
            Self::Directory(entries) => {
                let name = |name: &Vec<u8>| String::from_utf8_lossy(name).into_owned();
                f.debug_map().entries(entries.iter().map(|(key, tree)| (name(key), tree))).finish()
            }
        }
    }
}

pub(crate) fn string(bytes: &[u8]) -> Vec<u8> {
    let mut string = (bytes.len() as u64).to_le_bytes().to_vec();
    string.extend(bytes);
    while !string.len().is_multiple_of(8) {
        string.push(0);
    }
    string
}

/// Trees of any shape, with files on both sides of what is small.
pub(crate) fn trees() -> impl Strategy<Value = Tree> {
    let names = || cairn_castore::conformance::names().prop_map(|name| name.as_bytes().to_vec());
    let bytes = prop_oneof![
        8 => proptest::collection::vec(any::<u8>(), 0..40),
        1 => (131_060usize..131_090, any::<u8>()).prop_map(|(length, byte)| vec![byte; length]),
    ];
    let leaf = prop_oneof![
        3 => (bytes, any::<bool>())
            .prop_map(|(bytes, executable)| Tree::File { bytes, executable }),
        1 => names().prop_map(Tree::Symlink),
    ];
    leaf.prop_recursive(4, 40, 8, move |tree| {
        proptest::collection::btree_map(names(), tree, 0..8).prop_map(Tree::Directory)
    })
}
