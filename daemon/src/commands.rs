//! The commands, one a file: the doc comments of their arguments are their help.

pub(crate) mod cache;
pub(crate) mod cat;
pub(crate) mod completions;
pub(crate) mod config;
pub(crate) mod copy;
pub(crate) mod daemon;
pub(crate) mod export;
pub(crate) mod import;
pub(crate) mod list;
pub(crate) mod ls;
pub(crate) mod mount;
pub(crate) mod path_info;
pub(crate) mod shown;
pub(crate) mod stat;
pub(crate) mod umount;
pub(crate) mod virtiofs;

use std::ffi::OsString;

use cairn_store::{
    Services,
    store_ref::{InvalidStoreRef, Resolved, StoreRef},
};
use clap::builder::{OsStringValueParser, TypedValueParser};

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

/// Looks a REF up.
async fn resolve(target: &StoreRef, services: &Services) -> Result<Resolved, Failure> {
    target
        .resolve(services)
        .await
        .map_err(|error| Failure::new(format!("{target} can't be found"), error))
}
