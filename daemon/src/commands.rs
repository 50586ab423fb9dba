//! The commands, one a file: the doc comments of their arguments are their help.

pub(crate) mod cache;
pub(crate) mod cat;
pub(crate) mod completions;
pub(crate) mod config;
pub(crate) mod copy;
pub(crate) mod daemon;
pub(crate) mod diff;
pub(crate) mod du;
mod entry;
pub(crate) mod export;
mod filters;
pub(crate) mod find;
pub(crate) mod import;
pub(crate) mod list;
pub(crate) mod ls;
pub(crate) mod man;
pub(crate) mod mount;
pub(crate) mod path_info;
pub(crate) mod ping;
pub(crate) mod services;
pub(crate) mod shown;
pub(crate) mod stat;
pub(crate) mod stats;
pub(crate) mod top;
pub(crate) mod tree;
pub(crate) mod umount;
pub(crate) mod virtiofs;

use std::{ffi::OsString, os::unix::ffi::OsStringExt as _};

use cairn_castore::tree_walk::WalkError;
use cairn_store::{
    Services,
    store_ref::{InvalidStoreRef, Resolved, StoreRef},
};
use clap::builder::{OsStringValueParser, RangedU64ValueParser, TypedValueParser};

use crate::exit::Failure;

/// What the help of a command says of its REFs.
const REF_HELP: &str = "\
REF is a store path, whole or without /nix/store/, or the digest of a directory or file
(blake3-… or 64 hexadecimal digits), and may go on with the path of something below it.
Symlinks are not followed.";

/// Reads a REF, whose path may be any bytes.
fn store_ref() -> impl TypedValueParser<Value = StoreRef> {
    let parse = |text: OsString| -> Result<StoreRef, InvalidStoreRef> { StoreRef::parse(&text) };
    OsStringValueParser::new().try_map(parse)
}

/// Reads how many directories to go down, at least one.
fn depth() -> impl TypedValueParser<Value = usize> {
    RangedU64ValueParser::<usize>::new().range(1..)
}

/// The path of a REF, as it is written.
fn path_bytes(target: &StoreRef) -> Vec<u8> {
    target.to_path().into_os_string().into_vec()
}

/// The path of something that is below another path, or of that itself.
fn path_within(root: &[u8], below: &[u8]) -> Vec<u8> {
    match below {
        [] => root.to_vec(),
        below => [root, below].join(&b'/'),
    }
}

/// Looks a REF up.
async fn resolve(target: &StoreRef, services: &Services) -> Result<Resolved, Failure> {
    target
        .resolve(services)
        .await
        .map_err(|error| Failure::new(format!("{target} can't be found"), error))
}

/// What is told of a tree that can't be walked.
fn unread(target: &StoreRef, error: WalkError) -> Failure {
    Failure::new(format!("{target} can't be read"), error)
}
