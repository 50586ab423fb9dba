//! `cairn ls`: what is in a stored directory.

use std::sync::Arc;

use bytes::{BufMut as _, Bytes, BytesMut};
use cairn_castore::{Digest, Directory, Node};
use cairn_store::{
    Services,
    store_ref::{StoreRef, StoreRoot},
};
use clap::Args;
use serde::Serialize;

use super::{REF_HELP, resolve, stat::NodeRecord};
use crate::{
    cli::Context,
    exit::{Code, Failure},
    output::{Output, json_text},
};

/// The directories that may be open at a time in a recursive listing: deeper ones are refused.
const DEPTH_MAX: usize = 65_536;

/// List what is in a stored directory
///
/// One name a line, in the order of the names' bytes. A file or symlink is listed by itself.
/// Control characters and what is no text are escaped on a terminal, and printed as they are
/// otherwise.
#[derive(Debug, Args)]
#[command(after_help = format!("\
{REF_HELP}

Examples:
  cairn ls /nix/store/y0lrmcm4zaj0qd44rp7mg83dgyl87lkp-tree
  cairn ls -lR y0lrmcm4zaj0qd44rp7mg83dgyl87lkp-tree/d
  cairn ls -R --json blake3-wZbs454HgJi3LN6CPjJ89QAPgfI+pgZVi3GJprrZxbo= | jq .size"))]
pub(crate) struct LsArgs {
    /// What to list
    #[arg(value_name = "REF", value_parser = super::store_ref())]
    target: StoreRef,
    /// Show the mode and size of each entry, and what symlinks point at
    #[arg(short, long)]
    long: bool,
    /// List what is below as well, each entry with its path
    #[arg(short = 'R', long)]
    recursive: bool,
    /// Print a JSON object for each entry
    #[arg(long, conflicts_with = "long")]
    json: bool,
}

#[derive(Debug, Serialize)]
struct EntryRecord {
    path: String,
    /// The path's bytes, if they are no text.
    #[serde(skip_serializing_if = "Option::is_none")]
    path_hex: Option<String>,
    #[serde(flatten)]
    node: NodeRecord,
}

impl LsArgs {
    pub(crate) async fn run(self, context: &Context) -> Result<(), Failure> {
        let target = &self.target;
        context
            .with_services(async |services| {
                let mut output = Output::new();
                match resolve(target, services).await?.node {
                    Node::Directory { digest, .. } => {
                        self.list(&digest, target, services, &mut output).await?;
                    }
                    node => {
                        let name = match (target.below().last(), target.root()) {
                            (Some(name), _) => name.as_bytes().clone(),
                            (None, StoreRoot::StorePath(path)) => path.base_name().into(),
                            (None, StoreRoot::Digest(digest)) => digest.to_string().into(),
                        };
                        self.entry(&name, &node, &mut output).await?;
                    }
                }
                output.flush().await
            })
            .await
    }

    /// Lists a directory, and with `-R` what is below each directory right behind it.
    async fn list(
        &self,
        root: &Digest,
        target: &StoreRef,
        services: &Services,
        output: &mut Output,
    ) -> Result<(), Failure> {
        let open = async |digest: &Digest| -> Result<Arc<Directory>, Failure> {
            let directory = services.directories.get(digest).await;
            let directory = directory
                .map_err(|error| Failure::new(format!("{target} can't be read"), error))?;
            directory.map(Arc::new).ok_or_else(|| {
                let what = format!("{target}: directory {digest} is not in the store");
                Failure::plain(Code::NotFound, what)
            })
        };
        // The directories from the root to the one being listed: each with its path and the
        // number of entries that are done.
        let mut levels = vec![(open(root).await?, Bytes::new(), 0)];
        while let Some((directory, path, done)) = levels.last_mut() {
            let Some((name, node)) = directory.entries().get(*done) else {
                levels.pop();
                continue;
            };
            *done += 1;
            let mut entry_path = BytesMut::with_capacity(path.len() + 1 + name.as_bytes().len());
            if !path.is_empty() {
                entry_path.put_slice(path);
                entry_path.put_u8(b'/');
            }
            entry_path.put_slice(name.as_bytes());
            self.entry(&entry_path, node, output).await?;
            if let (true, Node::Directory { digest, .. }) = (self.recursive, node) {
                let below = open(digest).await?;
                if levels.len() >= DEPTH_MAX {
                    let what = format!("{target} is more than {DEPTH_MAX} directories deep");
                    return Err(Failure::plain(Code::Failed, what));
                }
                levels.push((below, entry_path.freeze(), 0));
            }
        }
        Ok(())
    }

    async fn entry(&self, path: &[u8], node: &Node, output: &mut Output) -> Result<(), Failure> {
        if self.json {
            let (text, hex) = json_text(path);
            let record = EntryRecord { path: text, path_hex: hex, node: NodeRecord::of(node) };
            return output.json(&record).await;
        }
        if !self.long {
            let path = output.name(path);
            return output.line(path).await;
        }
        // The modes are those of a mount.
        let (mode, size) = match node {
            Node::Directory { .. } => ("dr-xr-xr-x", "-".to_owned()),
            Node::File { size, executable: true, .. } => ("-r-xr-xr-x", size.to_string()),
            Node::File { size, executable: false, .. } => ("-r--r--r--", size.to_string()),
            Node::Symlink { target } => ("lrwxrwxrwx", target.as_bytes().len().to_string()),
        };
        output.bytes(format!("{mode} {size:>12} ").as_bytes()).await?;
        let shown = output.name(path);
        output.bytes(&shown).await?;
        match node {
            Node::Directory { .. } => output.bytes(b"/").await?,
            Node::File { .. } => {}
            Node::Symlink { target } => {
                output.bytes(b" -> ").await?;
                let target = output.name(target.as_ref());
                output.bytes(&target).await?;
            }
        }
        output.bytes(b"\n").await
    }
}
