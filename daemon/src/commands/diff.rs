//! `cairn diff`: what differs between two stored trees.

use anstyle::{AnsiColor, Style};
use cairn_castore::{
    Node,
    diff::{Aspects, Change, TreeDiff},
    tree_walk::{Step, TreeWalk, WalkError, WalkOptions},
    usage::{Usage, UsageMeter},
};
use cairn_store::{Services, store_ref::StoreRef};
use clap::Args;
use indicatif::HumanBytes;
use serde::Serialize;

use super::{REF_HELP, path_within, resolve, stat::NodeRecord};
use crate::{
    cli::Context,
    exit::Failure,
    output::{Output, counted, json_text},
};

/// Show what differs between two stored trees
///
/// A line for each difference, in the order of the paths' names: A what was added, D deleted, T what is
/// of another type, M files with other contents, X files that became executable or ceased to be (MX
/// both), L symlinks with another target. A directory that is on one side alone is a line, which ends
/// with a slash; --recursive shows what is in it.
///
/// The trees are compared by the digests of their directories: what is equal is never read, and no
/// contents of files are.
///
/// Exit codes are those of diff: 0 if nothing differs, 1 if something does, 2 or more if that can't be
/// told (2 any failure, 3 not found, 4 damaged data).
#[derive(Debug, Args)]
#[command(after_help = format!("\
{REF_HELP}

Examples:
  cairn diff …-tree …-tree-2
  cairn diff --stat /nix/store/…-tree/lib /nix/store/…-tree-2/lib
  cairn diff --name-only -0 …-tree …-tree-2 | xargs -0 ls -ld"))]
pub(crate) struct DiffArgs {
    /// The first tree
    #[arg(value_name = "A", value_parser = super::store_ref())]
    from: StoreRef,
    /// The second tree
    #[arg(value_name = "B", value_parser = super::store_ref())]
    to: StoreRef,
    /// Show what is in directories that are on one side alone
    #[arg(short, long)]
    recursive: bool,
    /// Count what differs, instead of showing it
    #[arg(long, conflicts_with_all = ["recursive", "name_only"])]
    stat: bool,
    /// Print the paths alone
    #[arg(long)]
    name_only: bool,
    /// With --name-only, end each path with a zero byte instead of a line feed
    #[arg(short = '0', long, requires = "name_only")]
    null: bool,
    /// Print a JSON object for each difference, or with --stat a single one
    #[arg(long, conflicts_with = "name_only")]
    json: bool,
}

/// A difference as programs read it.
#[derive(Debug, Serialize)]
struct ChangeRecord {
    path: String,
    /// The path's bytes, if they are no text.
    #[serde(skip_serializing_if = "Option::is_none")]
    path_hex: Option<String>,
    change: &'static str,
    /// In what the two differ.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    differs: Vec<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    from: Option<NodeRecord>,
    #[serde(skip_serializing_if = "Option::is_none")]
    to: Option<NodeRecord>,
}

/// The differences, counted.
#[derive(Debug, Default, Serialize)]
struct StatRecord {
    added: SideRecord,
    deleted: SideRecord,
    changed: ChangedRecord,
}

/// What is on one side alone.
#[derive(Debug, Default, Serialize)]
struct SideRecord {
    files: u64,
    directories: u64,
    symlinks: u64,
    bytes: u64,
}

/// What is on both sides.
#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
struct ChangedRecord {
    /// Files with other contents.
    files: u64,
    /// The bytes of those on each side.
    bytes_from: u64,
    bytes_to: u64,
    /// Files that became executable or ceased to be.
    executable: u64,
    /// Symlinks with another target.
    symlinks: u64,
    /// What is of another type; it counts as deleted and added, too.
    types: u64,
}

impl SideRecord {
    fn add(&mut self, usage: &Usage) {
        self.files = self.files.saturating_add(usage.files);
        self.directories = self.directories.saturating_add(usage.directories);
        self.symlinks = self.symlinks.saturating_add(usage.symlinks);
        self.bytes = self.bytes.saturating_add(usage.bytes);
    }

    fn summary(&self) -> String {
        format!(
            "{}, {}, {}, {}",
            counted(self.files, "file", "files"),
            counted(self.directories, "directory", "directories"),
            counted(self.symlinks, "symlink", "symlinks"),
            HumanBytes(self.bytes),
        )
    }
}

impl DiffArgs {
    pub(crate) async fn run(self, context: &Context) -> Result<(), Failure> {
        let compared = context.with_services(async |services| self.compare(services).await).await;
        // A failure must not look like a difference.
        compared.map_err(Failure::unless_difference)
    }

    async fn compare(&self, services: &Services) -> Result<(), Failure> {
        let from = resolve(&self.from, services).await?.node;
        let to = resolve(&self.to, services).await?.node;
        let mut output = Output::new();
        let differs = match self.stat {
            true => self.count(services, from, to, &mut output).await?,
            false => self.show(services, from, to, &mut output).await?,
        };
        output.flush().await?;
        if differs { Err(Failure::difference()) } else { Ok(()) }
    }

    fn failed(&self, error: WalkError) -> Failure {
        let Self { from, to, .. } = self;
        Failure::new(format!("{from} and {to} can't be compared"), error)
    }

    /// Shows what differs; whether anything does.
    async fn show(
        &self,
        services: &Services,
        from: Node,
        to: Node,
        output: &mut Output,
    ) -> Result<bool, Failure> {
        let mut diff = TreeDiff::new(services.directories.clone(), from, to);
        let mut differs = false;
        while let Some(change) = diff.next().await.map_err(|error| self.failed(error))? {
            differs = true;
            self.line(diff.path(), &change, output).await?;
            let (is_added, node) = match &change {
                Change::Added(node) => (true, node),
                Change::Removed(node) => (false, node),
                Change::Changed { .. } => continue,
            };
            let Node::Directory { digest, .. } = node else { continue };
            if !self.recursive {
                continue;
            }
            let walk =
                TreeWalk::open(services.directories.clone(), digest, WalkOptions::default()).await;
            let mut walk = walk.map_err(|error| self.failed(error))?;
            while let Some(step) = walk.step() {
                let Step::Entry(entry) = step else { continue };
                let path = path_within(diff.path(), walk.path());
                let below = match is_added {
                    true => Change::Added(entry.node.clone()),
                    false => Change::Removed(entry.node.clone()),
                };
                self.line(&path, &below, output).await?;
                if let Node::Directory { digest, .. } = &entry.node {
                    walk.enter(digest).await.map_err(|error| self.failed(error))?;
                }
            }
        }
        Ok(differs)
    }

    async fn line(&self, path: &[u8], change: &Change, output: &mut Output) -> Result<(), Failure> {
        if self.json {
            return output.json(&record(path, change)).await;
        }
        // The roots themselves.
        let path = if path.is_empty() { b"." } else { path };
        if self.null {
            output.bytes(path).await?;
            return output.bytes(b"\0").await;
        }
        let shown = output.name(path).into_owned();
        if self.name_only {
            return output.line(shown).await;
        }
        let (letters, style, node) = match change {
            Change::Added(node) => ("A", AnsiColor::Green, Some(node)),
            Change::Removed(node) => ("D", AnsiColor::Red, Some(node)),
            Change::Changed { from, to } => {
                let aspects = Aspects::between(from, to);
                let letters = match aspects {
                    Aspects { kind: true, .. } => "T",
                    Aspects { content: true, executable: true, .. } => "MX",
                    Aspects { content: true, .. } => "M",
                    Aspects { executable: true, .. } => "X",
                    _ => "L",
                };
                (letters, AnsiColor::Yellow, None)
            }
        };
        let style: Style = style.on_default();
        output.styled(style, format!("{letters:<2}").as_bytes()).await?;
        output.bytes(b" ").await?;
        output.styled(style, &shown).await?;
        let is_directory = matches!(node, Some(Node::Directory { .. }));
        output.bytes(if is_directory { b"/\n" } else { b"\n" }).await
    }

    /// Counts what differs; whether anything does.
    async fn count(
        &self,
        services: &Services,
        from: Node,
        to: Node,
        output: &mut Output,
    ) -> Result<bool, Failure> {
        let directories = &services.directories;
        let mut stat = StatRecord::default();
        // Of either side, so that what comes again is not walked again.
        let (mut from_meter, mut to_meter) = (UsageMeter::new(), UsageMeter::new());
        let mut diff = TreeDiff::new(directories.clone(), from, to);
        let mut differs = false;
        while let Some(change) = diff.next().await.map_err(|error| self.failed(error))? {
            differs = true;
            let (removed, added) = match &change {
                Change::Added(to) => (None, Some(to)),
                Change::Removed(from) => (Some(from), None),
                Change::Changed { from, to } => match stat.changed.add(from, to) {
                    true => (Some(from), Some(to)),
                    false => (None, None),
                },
            };
            if let Some(removed) = removed {
                let usage = from_meter.count_tree(directories, removed).await;
                stat.deleted.add(&usage.map_err(|error| self.failed(error))?);
            }
            if let Some(added) = added {
                let usage = to_meter.count_tree(directories, added).await;
                stat.added.add(&usage.map_err(|error| self.failed(error))?);
            }
        }
        if self.json {
            output.json(&stat).await?;
            return Ok(differs);
        }
        let StatRecord { added, deleted, changed } = &stat;
        output.line(format!("added:      {}", added.summary())).await?;
        output.line(format!("deleted:    {}", deleted.summary())).await?;
        output.line(format!("changed:    {}", changed.summary())).await?;
        Ok(differs)
    }
}

impl ChangedRecord {
    /// Counts a change; whether it is one of the type.
    fn add(&mut self, from: &Node, to: &Node) -> bool {
        let Aspects { kind, content, executable, target } = Aspects::between(from, to);
        self.types += u64::from(kind);
        self.executable += u64::from(executable);
        self.symlinks += u64::from(target);
        if let (true, Node::File { size: from, .. }, Node::File { size: to, .. }) =
            (content, from, to)
        {
            self.files += 1;
            self.bytes_from = self.bytes_from.saturating_add(*from);
            self.bytes_to = self.bytes_to.saturating_add(*to);
        }
        kind
    }

    fn summary(&self) -> String {
        format!(
            "{} ({} to {}), {}, {}, {}",
            counted(self.files, "file", "files"),
            HumanBytes(self.bytes_from),
            HumanBytes(self.bytes_to),
            counted(self.executable, "executable bit", "executable bits"),
            counted(self.symlinks, "symlink", "symlinks"),
            counted(self.types, "type", "types"),
        )
    }
}

fn record(path: &[u8], change: &Change) -> ChangeRecord {
    let (change, differs, from, to) = match change {
        Change::Added(to) => ("added", Vec::new(), None, Some(to)),
        Change::Removed(from) => ("deleted", Vec::new(), Some(from), None),
        Change::Changed { from, to } => {
            let Aspects { kind, content, executable, target } = Aspects::between(from, to);
            let named = [
                (kind, "type"),
                (content, "content"),
                (executable, "executable"),
                (target, "target"),
            ];
            let differs = named.into_iter().filter(|(differs, _)| *differs);
            ("changed", differs.map(|(_, name)| name).collect(), Some(from), Some(to))
        }
    };
    let (path, path_hex) = json_text(path);
    let [from, to] = [from, to].map(|node| node.map(NodeRecord::of));
    ChangeRecord { path, path_hex, change, differs, from, to }
}
