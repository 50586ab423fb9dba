//! `cairn tree`: a stored tree, drawn.

use cairn_castore::{
    Node,
    tree_walk::{Step, TreeWalk, WalkOptions, WalkedEntry},
};
use cairn_store::{Services, store_ref::StoreRef};
use clap::Args;
use indicatif::BinaryBytes;

use super::{
    REF_HELP,
    entry::{EntryRecord, mode_and_size, style},
    path_bytes, resolve, unread,
};
use crate::{
    cli::Context,
    exit::Failure,
    output::{Output, counted},
};

/// Draw a stored tree
///
/// Entries are in the order of their names' bytes. Nothing is read but directories; those of a store
/// that is far come in one stream. The last line counts what was drawn.
#[derive(Debug, Args)]
#[command(after_help = format!("\
{REF_HELP}

Examples:
  cairn tree /nix/store/y0lrmcm4zaj0qd44rp7mg83dgyl87lkp-tree
  cairn tree -L 2 -d y0lrmcm4zaj0qd44rp7mg83dgyl87lkp-tree
  cairn tree --sizes blake3-wZbs454HgJi3LN6CPjJ89QAPgfI+pgZVi3GJprrZxbo="))]
pub(crate) struct TreeArgs {
    /// What to draw
    #[arg(value_name = "REF", value_parser = super::store_ref())]
    target: StoreRef,
    /// Go down so many directories, and no further
    #[arg(short = 'L', long, value_name = "DEPTH", value_parser = super::depth())]
    level: Option<usize>,
    /// Draw directories alone
    #[arg(short, long)]
    directories: bool,
    /// Show the size of each file
    #[arg(short, long)]
    sizes: bool,
    /// Print a JSON object for each entry, with its path
    #[arg(long, conflicts_with = "sizes")]
    json: bool,
}

/// What has been drawn.
#[derive(Default)]
struct Drawn {
    directories: u64,
    files: u64,
    symlinks: u64,
}

impl Drawn {
    fn count(&mut self, node: &Node) {
        match node {
            Node::Directory { .. } => self.directories += 1,
            Node::File { .. } => self.files += 1,
            Node::Symlink { .. } => self.symlinks += 1,
        }
    }

    fn summary(&self) -> String {
        let directories = counted(self.directories, "directory", "directories");
        let mut summary = format!("{directories}, {}", counted(self.files, "file", "files"));
        if self.symlinks > 0 {
            summary = format!("{summary}, {}", counted(self.symlinks, "symlink", "symlinks"));
        }
        summary
    }
}

impl TreeArgs {
    pub(crate) async fn run(self, context: &Context) -> Result<(), Failure> {
        context
            .with_services(async |services| {
                let root = resolve(&self.target, services).await?.node;
                let mut output = Output::new();
                self.draw(&root, services, &mut output).await?;
                output.flush().await
            })
            .await
    }

    async fn draw(
        &self,
        root: &Node,
        services: &Services,
        output: &mut Output,
    ) -> Result<(), Failure> {
        let mut drawn = Drawn::default();
        if !self.json {
            self.line(b"", &path_bytes(&self.target), root, output).await?;
        } else if !matches!(root, Node::Directory { .. }) {
            output.json(&EntryRecord::of(b"", root)).await?;
        }
        match root {
            Node::Directory { digest, .. } => {
                let failed = |error| unread(&self.target, error);
                let options = WalkOptions { only_directories: self.directories, depth: self.level };
                let walk = TreeWalk::open(services.directories.clone(), digest, options).await;
                let mut walk = walk.map_err(failed)?;
                // What stands before an entry, and how much of that is each level's.
                let (mut before, mut before_len) = (String::new(), Vec::new());
                while let Some(step) = walk.step() {
                    let Step::Entry(WalkedEntry { name, node, is_last }) = step else {
                        before.truncate(before_len.pop().unwrap_or_default());
                        continue;
                    };
                    drawn.count(&node);
                    match self.json {
                        true => output.json(&EntryRecord::of(walk.path(), &node)).await?,
                        false => {
                            output.bytes(before.as_bytes()).await?;
                            let branch = if is_last { "└── " } else { "├── " };
                            self.line(branch.as_bytes(), name.as_ref(), &node, output).await?;
                        }
                    }
                    if let Node::Directory { digest, .. } = &node
                        && walk.enter(digest).await.map_err(failed)?
                    {
                        before_len.push(before.len());
                        before.push_str(if is_last { "    " } else { "│   " });
                    }
                }
            }
            node => drawn.count(node),
        }
        if !self.json {
            output.line("").await?;
            output.line(drawn.summary()).await?;
        }
        Ok(())
    }

    /// A line of the drawing.
    async fn line(
        &self,
        branch: &[u8],
        name: &[u8],
        node: &Node,
        output: &mut Output,
    ) -> Result<(), Failure> {
        output.bytes(branch).await?;
        if self.sizes {
            let (_, size) = mode_and_size(node);
            let size = match size {
                None => "-".to_owned(),
                Some(size) if output.is_terminal() => BinaryBytes(size).to_string(),
                Some(size) => size.to_string(),
            };
            output.bytes(format!("[{size:>11}]  ").as_bytes()).await?;
        }
        let shown = output.name(name);
        output.styled(style(node), &shown).await?;
        if let Node::Symlink { target } = node {
            output.bytes(b" -> ").await?;
            let target = output.name(target.as_ref());
            output.bytes(&target).await?;
        }
        output.bytes(b"\n").await
    }
}
