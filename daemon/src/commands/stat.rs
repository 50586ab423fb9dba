//! `cairn stat`: what a file, directory or symlink in a store is.

use cairn_castore::{BoxError, Digest, Node};
use cairn_store::store_ref::StoreRef;
use clap::Args;
use serde::Serialize;

use super::{REF_HELP, resolve};
use crate::{
    cli::Context,
    exit::{Code, Failure},
    output::{Output, json_text},
};

/// Show what a stored file, directory or symlink is
///
/// Its type and digest, for a file its size, whether it is executable and the chunks that it is
/// stored in, for a directory the number of its entries, for a symlink its target.
#[derive(Debug, Args)]
#[command(after_help = format!("\
{REF_HELP}

Examples:
  cairn stat /nix/store/y0lrmcm4zaj0qd44rp7mg83dgyl87lkp-tree/big
  cairn stat --json blake3-C4tgJI+tesbfrCIbfgGouRx3JCGhWzh90fstapSu5Dg="))]
pub(crate) struct StatArgs {
    /// What to show
    #[arg(value_name = "REF", value_parser = super::store_ref())]
    target: StoreRef,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// A node, with what is known of it without looking at its content.
#[derive(Debug, Serialize)]
pub(crate) struct NodeRecord {
    #[serde(rename = "type")]
    kind: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    digest: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    size: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    executable: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    target: Option<String>,
    /// The target's bytes, if they are no text.
    #[serde(skip_serializing_if = "Option::is_none")]
    target_hex: Option<String>,
}

impl NodeRecord {
    pub(crate) fn of(node: &Node) -> Self {
        let mut record = Self {
            kind: "directory",
            digest: None,
            size: None,
            executable: None,
            target: None,
            target_hex: None,
        };
        match node {
            // The size that comes with a directory says nothing of its content.
            Node::Directory { digest, .. } => record.digest = Some(digest.to_string()),
            Node::File { digest, size, executable } => {
                record.kind = "file";
                record.digest = Some(digest.to_string());
                record.size = Some(*size);
                record.executable = Some(*executable);
            }
            Node::Symlink { target } => {
                record.kind = "symlink";
                let (text, hex) = json_text(target.as_ref());
                record.target = Some(text);
                record.target_hex = hex;
            }
        }
        record
    }

    /// The node in a few words.
    pub(crate) fn summary(&self) -> String {
        let what = self.digest.as_deref().or(self.target.as_deref()).unwrap_or_default();
        format!("{} {what}", self.kind)
    }
}

#[derive(Debug, Serialize)]
struct StatRecord {
    #[serde(flatten)]
    node: NodeRecord,
    #[serde(skip_serializing_if = "Option::is_none")]
    entries: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    chunks: Option<Vec<ChunkRecord>>,
}

#[derive(Debug, Serialize)]
struct ChunkRecord {
    digest: String,
    size: u64,
}

impl StatArgs {
    pub(crate) async fn run(self, context: &Context) -> Result<(), Failure> {
        let target = &self.target;
        context
            .with_services(async |services| {
                let node = resolve(target, services).await?.node;
                let failed =
                    |error: BoxError| Failure::new(format!("{target} can't be read"), error);
                let mut record =
                    StatRecord { node: NodeRecord::of(&node), entries: None, chunks: None };
                match &node {
                    Node::Directory { digest, .. } => {
                        let directory = services.directories.get(digest).await;
                        let directory = directory.map_err(|error| failed(error.into()))?;
                        let directory = directory.ok_or_else(|| missing(target, digest))?;
                        record.entries = Some(directory.entries().len());
                    }
                    Node::File { digest, .. } => {
                        let stat = services.blobs.stat(digest).await;
                        let stat = stat.map_err(|error| failed(error.into()))?;
                        let stat = stat.ok_or_else(|| missing(target, digest))?;
                        let chunks = stat.chunks.iter().map(|chunk| ChunkRecord {
                            digest: chunk.digest.to_string(),
                            size: chunk.size,
                        });
                        record.chunks = Some(chunks.collect());
                    }
                    Node::Symlink { .. } => {}
                }
                let mut output = Output::new();
                match self.json {
                    true => output.json(&record).await?,
                    false => print(&record, &node, &mut output).await?,
                }
                output.flush().await
            })
            .await
    }
}

fn missing(target: &StoreRef, digest: &Digest) -> Failure {
    Failure::plain(Code::NotFound, format!("{target}: {digest} is not in the store"))
}

async fn print(record: &StatRecord, node: &Node, output: &mut Output) -> Result<(), Failure> {
    let mut line = async |label: &str, value: &[u8]| {
        output.bytes(format!("{:<12}", format!("{label}:")).as_bytes()).await?;
        output.line(value).await
    };
    line("type", record.node.kind.as_bytes()).await?;
    if let Some(digest) = &record.node.digest {
        line("digest", digest.as_bytes()).await?;
    }
    if let Some(size) = record.node.size {
        line("size", size.to_string().as_bytes()).await?;
    }
    if let Some(executable) = record.node.executable {
        line("executable", if executable { b"yes" } else { b"no" }).await?;
    }
    if let Some(entries) = record.entries {
        line("entries", entries.to_string().as_bytes()).await?;
    }
    if let Some(chunks) = &record.chunks {
        // A blob of a single chunk is that chunk.
        line("chunks", chunks.len().max(1).to_string().as_bytes()).await?;
        for chunk in chunks {
            line("chunk", format!("{} {}", chunk.digest, chunk.size).as_bytes()).await?;
        }
    }
    if let Node::Symlink { target } = node {
        let target = output.name(target.as_ref());
        output.bytes(b"target:     ").await?;
        output.line(target).await?;
    }
    Ok(())
}
