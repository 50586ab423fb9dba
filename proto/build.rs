//! Compiles the .proto files with a protobuf compiler written in Rust.

use std::{env, error::Error, fs, path::PathBuf};

use prost::Message as _;

const FILES: [&str; 9] = [
    "snix/castore/v1/castore.proto",
    "snix/castore/v1/rpc_blobstore.proto",
    "snix/castore/v1/rpc_directory.proto",
    "snix/store/v1/pathinfo.proto",
    "snix/store/v1/rpc_pathinfo.proto",
    "cairn/v1/cache.proto",
    "cairn/v1/castore.proto",
    "cairn/v1/server.proto",
    "cairn/v1/store.proto",
];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=proto");
    let descriptors = protox::compile(FILES, ["proto"])?;
    let out = PathBuf::from(env::var("OUT_DIR")?);
    fs::write(out.join("descriptors.bin"), descriptors.encode_to_vec())?;
    tonic_prost_build::configure().bytes(".").compile_fds(descriptors)?;
    Ok(())
}
