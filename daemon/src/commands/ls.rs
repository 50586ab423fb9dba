//! `cairn ls`: what is in a stored directory.

use cairn_castore::{
    Digest, Node,
    tree_walk::{Step, TreeWalk, WalkOptions},
};
use cairn_store::{
    Services,
    store_ref::{StoreRef, StoreRoot},
};
use clap::Args;

use super::{
    REF_HELP,
    entry::{EntryRecord, mode_and_size, style},
    resolve, unread,
};
use crate::{cli::Context, exit::Failure, output::Output};

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
        let failed = |error| unread(target, error);
        let depth = (!self.recursive).then_some(1);
        let options = WalkOptions { depth, ..WalkOptions::default() };
        let walk = TreeWalk::open(services.directories.clone(), root, options).await;
        let mut walk = walk.map_err(failed)?;
        while let Some(step) = walk.step() {
            let Step::Entry(entry) = step else { continue };
            self.entry(walk.path(), &entry.node, output).await?;
            if let Node::Directory { digest, .. } = &entry.node {
                walk.enter(digest).await.map_err(failed)?;
            }
        }
        Ok(())
    }

    async fn entry(&self, path: &[u8], node: &Node, output: &mut Output) -> Result<(), Failure> {
        if self.json {
            return output.json(&EntryRecord::of(path, node)).await;
        }
        let shown = output.name(path);
        if !self.long {
            output.styled(style(node), &shown).await?;
            return output.bytes(b"\n").await;
        }
        let (mode, size) = mode_and_size(node);
        let size = size.map_or_else(|| "-".to_owned(), |size| size.to_string());
        output.bytes(format!("{mode} {size:>12} ").as_bytes()).await?;
        output.styled(style(node), &shown).await?;
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
