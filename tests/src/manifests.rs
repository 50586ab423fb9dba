//! The manifests of `deploy/kubernetes` as a cluster gets them, by the script `tests/kubernetes`. What
//! they should say is the affair of the tests.

use std::{path::Path, process::Command};

use serde_json::Value;

use crate::process::{Finished, LONG_PATIENCE, Running};

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/kubernetes");

/// What the manifests of a folder in `deploy/kubernetes` come to.
#[derive(Debug)]
pub struct Manifests(Vec<Value>);

impl Manifests {
    /// Puts them together.
    #[track_caller]
    pub fn render(folder: &str) -> Self {
        let rendered = Running::start(Command::new(SCRIPT).args(["render", folder]));
        let rendered = rendered.finish_within(LONG_PATIENCE).succeeded();
        Self(serde_json::from_str(rendered.text()).unwrap())
    }

    /// The object of a kind and a name.
    #[track_caller]
    pub fn object(&self, kind: &str, name: &str) -> &Value {
        let is_meant = |object: &&Value| {
            object["kind"] == kind && object["metadata"]["name"].as_str() == Some(name)
        };
        self.0.iter().find(is_meant).unwrap_or_else(|| panic!("there is no {kind} {name}"))
    }

    /// The objects of a kind.
    pub fn all(&self, kind: &str) -> impl Iterator<Item = &Value> {
        self.0.iter().filter(move |object| object["kind"] == kind)
    }
}

/// Says whether a manifest holds against the schemas.
pub fn validate(file: Option<&Path>) -> Finished {
    let mut command = Command::new(SCRIPT);
    command.arg("validate").args(file);
    Running::start(&mut command).finish_within(LONG_PATIENCE)
}
