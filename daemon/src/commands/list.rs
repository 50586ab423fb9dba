//! `cairn list`: the store paths that a store has.

use std::{cmp::Reverse, collections::BinaryHeap};

use anstyle::Style;
use cairn_store::{
    PathInfo, Services, StorePath, path_info_service::PAGE_MAX, store_path::OutputHash,
};
use clap::{Args, ValueEnum};

use super::{
    filters::{NamePattern, SizeFilter},
    path_info::PathInfoRecord,
};
use crate::{
    cli::Context,
    exit::Failure,
    output::{
        Output,
        table::{Cell, Column, Table},
    },
};

/// List the store paths in the store
///
/// One a line, in the order of the hashes in their names' bytes. The list is read page by page:
/// what comes or goes meanwhile may be in it or not. Options that choose have all to hold; of --name,
/// which may be given several times, one has to.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  cairn list
  cairn list --name 'linux-*' --size +100MiB -l
  cairn list --sort size --limit 10 -l
  cairn list --limit 1000 --after /nix/store/y0lrmcm4zaj0qd44rp7mg83dgyl87lkp-tree
  cairn --store grpc+http://host:8000 list --json | jq .narSize")]
pub(crate) struct ListArgs {
    /// Names, behind the hash, of this pattern, as of a shell: *, ?, [a-z], {a,b}
    #[arg(long, value_name = "GLOB")]
    name: Vec<NamePattern>,
    /// Sizes of the NAR; +SIZE is larger, -SIZE smaller, as in +10MiB
    #[arg(long, value_name = "[+-]SIZE", allow_hyphen_values = true)]
    size: Vec<SizeFilter>,
    /// Those that refer to this store path
    #[arg(long, value_name = "PATH")]
    refers_to: Option<StorePath>,
    /// End after so many
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u64).range(1..))]
    limit: Option<u64>,
    /// Go on behind this store path, the last of the page before; it need not be in the store
    #[arg(long, value_name = "PATH", conflicts_with = "sort")]
    after: Option<StorePath>,
    /// Print the first --limit of all, in this order
    #[arg(long, value_name = "ORDER", requires = "limit")]
    sort: Option<Order>,
    /// Show the size of the NAR and the number of references, too
    #[arg(short, long, conflicts_with = "json")]
    long: bool,
    /// Print what is known of each path, as one JSON object a line
    #[arg(long)]
    json: bool,
}

/// What to sort by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Order {
    /// By the name behind the hash
    Name,
    /// By the size of the NAR, the largest first
    Size,
}

/// What a path is sorted by; what comes first is the least.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Key {
    Name(String, OutputHash),
    Size(Reverse<u64>, OutputHash),
}

/// A path with its key.
struct Sorted(Key, PathInfo);

impl PartialEq for Sorted {
    fn eq(&self, other: &Self) -> bool {
        self.0 == other.0
    }
}

impl Eq for Sorted {}

impl PartialOrd for Sorted {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Sorted {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.0.cmp(&other.0)
    }
}

const COLUMNS: &[Column] =
    &[Column::number("NAR SIZE", 10), Column::number("REFERENCES", 10), Column::text("PATH", 0)];

impl ListArgs {
    pub(crate) async fn run(self, context: &Context) -> Result<(), Failure> {
        context
            .with_services(async |services| {
                let mut report =
                    Report { args: &self, output: Output::new(), table: Table::new(COLUMNS) };
                match self.sort {
                    None => self.in_order(services, &mut report).await?,
                    Some(order) => self.sorted(order, services, &mut report).await?,
                }
                report.output.flush().await
            })
            .await
    }

    /// Lists as the store does.
    async fn in_order(&self, services: &Services, report: &mut Report<'_>) -> Result<(), Failure> {
        let mut left = self.limit.unwrap_or(u64::MAX);
        self.each(services, async |info| {
            report.line(&info).await?;
            left -= 1;
            Ok(left > 0)
        })
        .await
    }

    /// Lists the first of all in an order. No more are in memory than are listed.
    async fn sorted(
        &self,
        order: Order,
        services: &Services,
        report: &mut Report<'_>,
    ) -> Result<(), Failure> {
        let limit = self.limit.map_or(usize::MAX, |limit| limit as usize);
        let mut first = BinaryHeap::new();
        self.each(services, async |info| {
            let hash = *info.store_path.hash();
            let key = match order {
                Order::Name => Key::Name(info.store_path.name().to_owned(), hash),
                Order::Size => Key::Size(Reverse(info.nar.size), hash),
            };
            first.push(Sorted(key, info));
            if first.len() > limit {
                first.pop();
            }
            Ok(true)
        })
        .await?;
        for Sorted(_, info) in first.into_sorted_vec() {
            report.line(&info).await?;
        }
        Ok(())
    }

    /// Does something with each path that is chosen, as long as it wants more.
    async fn each(
        &self,
        services: &Services,
        mut work: impl AsyncFnMut(PathInfo) -> Result<bool, Failure>,
    ) -> Result<(), Failure> {
        let mut after = self.after.as_ref().map(|path| *path.hash());
        // What is not chosen by anything but its place is not asked for.
        let page_len = match (self.chooses(), self.limit) {
            (false, Some(limit)) if self.sort.is_none() => PAGE_MAX.min(limit as usize),
            _ => PAGE_MAX,
        };
        loop {
            let page = services.path_infos.list(after, page_len).await;
            let page =
                page.map_err(|error| Failure::new("the store paths can't be listed", error))?;
            let is_full = page.len() == page_len;
            after = page.last().map(|last| *last.store_path.hash());
            for info in page {
                if self.is_chosen(&info) && !work(info).await? {
                    return Ok(());
                }
            }
            if !is_full {
                return Ok(());
            }
        }
    }

    fn chooses(&self) -> bool {
        !self.name.is_empty() || !self.size.is_empty() || self.refers_to.is_some()
    }

    fn is_chosen(&self, info: &PathInfo) -> bool {
        let refers = |path: &StorePath| info.references.contains(path);
        NamePattern::any(&self.name, info.store_path.name().as_bytes())
            && SizeFilter::all(&self.size, Some(info.nar.size))
            && self.refers_to.as_ref().is_none_or(refers)
    }
}

/// Where the lines go.
struct Report<'a> {
    args: &'a ListArgs,
    output: Output,
    table: Table,
}

impl Report<'_> {
    async fn line(&mut self, info: &PathInfo) -> Result<(), Failure> {
        let path = info.store_path.to_absolute();
        if self.args.json {
            return self.output.json(&PathInfoRecord::of(info)).await;
        }
        if !self.args.long {
            return self.output.line(path).await;
        }
        let cells = [
            Cell::Size(info.nar.size),
            Cell::Count(info.references.len() as u64),
            Cell::Name(path.as_bytes(), Style::new()),
        ];
        self.table.row(&mut self.output, &cells).await
    }
}
