//! An entry of a tree as the commands that look at trees print it: for people, and for programs.

use anstyle::{AnsiColor, Style};
use cairn_castore::Node;
use serde::Serialize;

use super::stat::NodeRecord;
use crate::output::json_text;

/// An entry, with its path.
#[derive(Debug, Serialize)]
pub(crate) struct EntryRecord {
    path: String,
    /// The path's bytes, if they are no text.
    #[serde(skip_serializing_if = "Option::is_none")]
    path_hex: Option<String>,
    #[serde(flatten)]
    node: NodeRecord,
}

impl EntryRecord {
    pub(crate) fn of(path: &[u8], node: &Node) -> Self {
        let (path, path_hex) = json_text(path);
        Self { path, path_hex, node: NodeRecord::of(node) }
    }
}

/// Its mode and size in bytes, as on a mount. A directory has none that means something.
pub(crate) fn mode_and_size(node: &Node) -> (&'static str, Option<u64>) {
    match node {
        Node::Directory { .. } => ("dr-xr-xr-x", None),
        Node::File { size, executable: true, .. } => ("-r-xr-xr-x", Some(*size)),
        Node::File { size, executable: false, .. } => ("-r--r--r--", Some(*size)),
        Node::Symlink { target } => ("lrwxrwxrwx", Some(target.as_bytes().len() as u64)),
    }
}

/// The style of its name, as of `ls`.
pub(crate) fn style(node: &Node) -> Style {
    match node {
        Node::Directory { .. } => AnsiColor::Blue.on_default().bold(),
        Node::File { executable: true, .. } => AnsiColor::Green.on_default().bold(),
        Node::File { .. } => Style::new(),
        Node::Symlink { .. } => AnsiColor::Cyan.on_default().bold(),
    }
}
