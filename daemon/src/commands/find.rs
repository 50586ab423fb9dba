//! `cairn find`: which paths of stored trees are of a kind.

use cairn_castore::{
    Digest, Node,
    tree_walk::{Step, TreeWalk, WalkOptions},
};
use cairn_store::{
    Services,
    store_ref::{StoreRef, StoreRoot},
};
use clap::{Args, ValueEnum};

use super::{
    REF_HELP,
    entry::{EntryRecord, mode_and_size, style},
    filters::{NamePattern, SizeFilter},
    path_bytes, path_within, resolve, unread,
};
use crate::{cli::Context, exit::Failure, output::Output};

/// Find paths in stored trees
///
/// Prints the path of everything that is as asked, one a line, each so that another command takes it as
/// a REF. Of an option that is given several times, one has to hold, but of --size all; of different
/// options all have to. Nothing is read but directories; those of a store that is far come in one
/// stream. That nothing was found is no failure.
#[derive(Debug, Args)]
#[command(after_help = format!("\
{REF_HELP}

Examples:
  cairn find --name '*.h' --type f y0lrmcm4zaj0qd44rp7mg83dgyl87lkp-tree
  cairn find --size +1MiB --size -1GiB /nix/store/y0lrmcm4zaj0qd44rp7mg83dgyl87lkp-tree
  cairn find --digest blake3-C4tgJI+tesbfrCIbfgGouRx3JCGhWzh90fstapSu5Dg= …-tree …-tree-2
  cairn find -0 --type x …-tree | xargs -0 cairn stat"))]
pub(crate) struct FindArgs {
    /// Where to look
    #[arg(value_name = "REF", required = true, value_parser = super::store_ref())]
    targets: Vec<StoreRef>,
    /// Names of this pattern, as of a shell: *, ?, [a-z], {a,b}
    #[arg(long, value_name = "GLOB")]
    name: Vec<NamePattern>,
    /// What is of this type
    #[arg(short = 't', long = "type", value_name = "TYPE", value_delimiter = ',')]
    kinds: Vec<Kind>,
    /// Files, or targets of symlinks, of this size; +SIZE is larger, -SIZE smaller, as in +10MiB
    #[arg(long, value_name = "[+-]SIZE", allow_hyphen_values = true)]
    size: Vec<SizeFilter>,
    /// Files and directories with this content
    #[arg(long, value_name = "DIGEST")]
    digest: Vec<Digest>,
    /// Go down so many directories, and no further; 0 is the REF alone
    #[arg(long, alias = "maxdepth", value_name = "DEPTH")]
    max_depth: Option<usize>,
    /// End each path with a zero byte instead of a line feed
    #[arg(short = '0', long, alias = "print0")]
    null: bool,
    /// Print a JSON object for each path
    #[arg(long, conflicts_with = "null")]
    json: bool,
}

/// What something is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Kind {
    /// Files
    F,
    /// Directories
    D,
    /// Symlinks
    L,
    /// Executable files
    X,
}

impl Kind {
    fn is_of(self, node: &Node) -> bool {
        match self {
            Self::F => matches!(node, Node::File { .. }),
            Self::D => matches!(node, Node::Directory { .. }),
            Self::L => matches!(node, Node::Symlink { .. }),
            Self::X => matches!(node, Node::File { executable: true, .. }),
        }
    }
}

impl FindArgs {
    pub(crate) async fn run(self, context: &Context) -> Result<(), Failure> {
        context
            .with_services(async |services| {
                let mut output = Output::new();
                for target in &self.targets {
                    self.find(target, services, &mut output).await?;
                }
                output.flush().await
            })
            .await
    }

    async fn find(
        &self,
        target: &StoreRef,
        services: &Services,
        output: &mut Output,
    ) -> Result<(), Failure> {
        let root = resolve(target, services).await?.node;
        let root_path = path_bytes(target);
        let name = match (target.below().last(), target.root()) {
            (Some(name), _) => name.as_bytes().to_vec(),
            (None, StoreRoot::StorePath(path)) => path.base_name().into_bytes(),
            (None, StoreRoot::Digest(digest)) => digest.to_string().into_bytes(),
        };
        if self.is_wanted(&name, &root) {
            self.print(&root_path, &root, output).await?;
        }
        let Node::Directory { digest, .. } = &root else { return Ok(()) };
        let failed = |error| unread(target, error);
        let only_directories = self.kinds == [Kind::D];
        let options = WalkOptions { only_directories, depth: self.max_depth };
        let walk = TreeWalk::open(services.directories.clone(), digest, options).await;
        let mut walk = walk.map_err(failed)?;
        while let Some(step) = walk.step() {
            let Step::Entry(entry) = step else { continue };
            if self.is_wanted(entry.name.as_ref(), &entry.node) {
                let path = path_within(&root_path, walk.path());
                self.print(&path, &entry.node, output).await?;
            }
            if let Node::Directory { digest, .. } = &entry.node {
                walk.enter(digest).await.map_err(failed)?;
            }
        }
        Ok(())
    }

    fn is_wanted(&self, name: &[u8], node: &Node) -> bool {
        let has_content = || match node {
            Node::Directory { digest, .. } | Node::File { digest, .. } => {
                self.digest.contains(digest)
            }
            Node::Symlink { .. } => false,
        };
        let (_, size) = mode_and_size(node);
        (self.kinds.is_empty() || self.kinds.iter().any(|kind| kind.is_of(node)))
            && (self.digest.is_empty() || has_content())
            && SizeFilter::all(&self.size, size)
            && NamePattern::any(&self.name, name)
    }

    async fn print(&self, path: &[u8], node: &Node, output: &mut Output) -> Result<(), Failure> {
        if self.json {
            return output.json(&EntryRecord::of(path, node)).await;
        }
        if self.null {
            output.bytes(path).await?;
            return output.bytes(b"\0").await;
        }
        let shown = output.name(path);
        output.styled(style(node), &shown).await?;
        output.bytes(b"\n").await
    }
}
