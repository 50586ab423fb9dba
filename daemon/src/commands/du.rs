//! `cairn du`: how much stored trees hold.

use std::sync::Arc;

use anstyle::Style;
use cairn_castore::{
    DirectoryService, Node,
    usage::{TreeUsage, Usage, UsageMeter},
};
use cairn_store::store_ref::StoreRef;
use clap::Args;
use serde::Serialize;

use super::{REF_HELP, path_bytes, path_within, resolve, unread};
use crate::{
    cli::Context,
    exit::Failure,
    output::{
        Output, json_text,
        table::{Cell, Column, Table},
    },
};

/// Show how much stored trees hold
///
/// For each REF the bytes of all files (apparent), and the bytes of contents that were not counted before
/// (unique): a content counts once, where it is seen first, whichever of the REFs it is in. So a line
/// says what it adds to those above it, and the total what all of them hold together. The third number is
/// the room that these contents take in the store (stored), compressed; - if the store can't tell, as a
/// bucket. A chunk that large files share counts for each of them there. Nothing is read but
/// directories, and none that is equal to one that was counted.
///
/// Contents that were counted are remembered: some 20 bytes of memory for each that differs, and 70 for
/// each directory.
#[derive(Debug, Args)]
#[command(after_help = format!("\
{REF_HELP}

Examples:
  cairn du y0lrmcm4zaj0qd44rp7mg83dgyl87lkp-tree
  cairn du --depth 1 /nix/store/y0lrmcm4zaj0qd44rp7mg83dgyl87lkp-tree
  cairn du --json …-tree …-tree-2 | jq .uniqueBytes"))]
pub(crate) struct DuArgs {
    /// What to measure
    #[arg(value_name = "REF", required = true, value_parser = super::store_ref())]
    targets: Vec<StoreRef>,
    /// Show each directory down to this depth as well, before the one that it is in
    #[arg(short, long, value_name = "DEPTH", default_value_t = 0)]
    depth: usize,
    /// Print a JSON object for each line, and one without a path for the total
    #[arg(long)]
    json: bool,
}

const COLUMNS: &[Column] = &[
    Column::number("APPARENT", 10),
    Column::number("UNIQUE", 10),
    Column::number("STORED", 10),
    Column::number("FILES", 10),
    Column::text("PATH", 0),
];

/// A line of the output.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct UsageRecord {
    /// `None` for the total.
    #[serde(skip_serializing_if = "Option::is_none")]
    path: Option<String>,
    /// The path's bytes, if they are no text.
    #[serde(skip_serializing_if = "Option::is_none", rename = "path_hex")]
    path_hex: Option<String>,
    bytes: u64,
    unique_bytes: u64,
    /// `None` if the store can't tell.
    stored_bytes: Option<u64>,
    files: u64,
    unique_files: u64,
    directories: u64,
    symlinks: u64,
}

impl DuArgs {
    pub(crate) async fn run(self, context: &Context) -> Result<(), Failure> {
        context
            .with_opened(async |opened| {
                let services = &opened.services;
                let mut report =
                    Report { json: self.json, output: Output::new(), table: Table::new(COLUMNS) };
                let mut meter = match opened.control.clone() {
                    Some(control) => UsageMeter::with_sizes(control),
                    None => UsageMeter::new(),
                };
                let mut total = Usage::default();
                for target in &self.targets {
                    let root = resolve(target, services).await?.node;
                    let measured =
                        self.measure(target, &root, &services.directories, &mut meter, &mut report);
                    total.add(&measured.await?);
                }
                if self.targets.len() > 1 {
                    report.line(None, &total, &meter).await?;
                }
                report.output.flush().await
            })
            .await
    }

    /// Measures a tree; what is in it.
    async fn measure(
        &self,
        target: &StoreRef,
        root: &Node,
        directories: &Arc<dyn DirectoryService>,
        meter: &mut UsageMeter,
        report: &mut Report,
    ) -> Result<Usage, Failure> {
        let root_path = path_bytes(target);
        let Node::Directory { digest, .. } = root else {
            let usage = meter.count_alone(root).await.map_err(|error| unread(target, error))?;
            report.line(Some(&root_path), &usage, meter).await?;
            return Ok(usage);
        };
        let failed = |error| unread(target, error);
        let usage = TreeUsage::open(directories.clone(), digest, self.depth).await;
        let mut usage = usage.map_err(failed)?;
        let mut last = Usage::default();
        while let Some(counted) = usage.next(meter).await.map_err(failed)? {
            let path = path_within(&root_path, &counted.path);
            report.line(Some(&path), &counted.usage, meter).await?;
            last = counted.usage;
        }
        Ok(last)
    }
}

/// Where the lines go.
struct Report {
    json: bool,
    output: Output,
    table: Table,
}

impl Report {
    /// The line of a path, or of all together.
    async fn line(
        &mut self,
        path: Option<&[u8]>,
        usage: &Usage,
        meter: &UsageMeter,
    ) -> Result<(), Failure> {
        let Usage { files, directories, symlinks, bytes, unique_files, unique_bytes, stored_bytes } =
            *usage;
        let stored_bytes = meter.knows_stored_bytes().then_some(stored_bytes);
        if self.json {
            let (path, path_hex) = match path.map(json_text) {
                Some((path, hex)) => (Some(path), hex),
                None => (None, None),
            };
            return self
                .output
                .json(&UsageRecord {
                    path,
                    path_hex,
                    bytes,
                    unique_bytes,
                    stored_bytes,
                    files,
                    unique_files,
                    directories,
                    symlinks,
                })
                .await;
        }
        let cells = [
            Cell::Size(bytes),
            Cell::Size(unique_bytes),
            stored_bytes.map_or(Cell::Unknown, Cell::Size),
            Cell::Count(files),
            match path {
                Some(path) => Cell::Name(path, Style::new()),
                None => Cell::Text("total".into()),
            },
        ];
        self.table.row(&mut self.output, &cells).await
    }
}
