//! What the Nix command line says of a tree, in a store of its own below a temporary folder. The
//! independent witness for store paths and NAR hashes.

use std::{path::Path, process::Command};

use crate::process::{LONG_PATIENCE, Running};

/// The store path that `nix-store --add` gives to a tree.
pub fn store_path(tree: &Path) -> String {
    let store = tempfile::tempdir().unwrap();
    let path =
        ask(Command::new("nix-store").arg("--store").arg(store.path()).arg("--add").arg(tree));
    // What Nix adds is read-only, directories too, which only root can remove as it is.
    ask(Command::new("chmod").arg("-R").arg("u+w").arg(store.path()));
    path
}

/// The SHA-256 of the NAR of a tree, in hexadecimal.
pub fn nar_sha256(tree: &Path) -> String {
    ask(Command::new("nix-hash").args(["--type", "sha256"]).arg(tree))
}

fn ask(command: &mut Command) -> String {
    command.env_remove("NIX_REMOTE");
    let answer = Running::start(command).finish_within(LONG_PATIENCE).succeeded();
    answer.text().trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trees;

    #[test]
    fn nix_agrees_with_the_specification() {
        let folder = tempfile::tempdir().unwrap();
        let tree = trees::vector(folder.path());
        assert_eq!(store_path(&tree), trees::VECTOR_STORE_PATH);
        assert_eq!(nar_sha256(&tree), trees::VECTOR_NAR_SHA256);
    }
}
