//! `cairn stats`: how much a store holds.

use cairn_castore::local::{Kind, RecordTotals, StoreHoldings, StoreSize};
use cairn_store::{Services, path_info_service::PAGE_MAX};
use clap::Args;
use indicatif::{BinaryBytes, HumanCount};
use serde::Serialize;

use crate::{
    cli::Context,
    exit::{Code, Failure},
    holdings::StoreReport,
    output::{Output, counted},
};

/// Show how much a store holds
///
/// What its files take is known at once. --count reads the index of the store, half a second for a
/// million records, and all path infos, page by page, and shows how many records of each kind there are,
/// what is dead in packs, and how much was spared: by compression, and by keeping once what is equal
/// (the sizes of all NARs, compared with the bytes of all chunks).
///
/// A local store can tell, and a server that has one. A bucket can't without being listed, which is not
/// done.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  cairn stats
  cairn stats --count
  cairn --store grpc+http://host:8000 stats --count --json | jq .deadBytes")]
pub(crate) struct StatsArgs {
    /// Count what is in the store, which takes a while
    #[arg(long)]
    count: bool,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct StatsRecord {
    store: String,
    packs: u64,
    pack_bytes: u64,
    index_bytes: u64,
    #[serde(flatten)]
    counts: Option<CountsRecord>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct CountsRecord {
    live_bytes: u64,
    dead_bytes: u64,
    chunks: TotalsRecord,
    chunk_lists: TotalsRecord,
    directories: TotalsRecord,
    store_paths: TotalsRecord,
    nar_hashes: TotalsRecord,
    /// Of all path infos.
    nar_bytes: u64,
    /// `None` of a store without chunks.
    compression_ratio: Option<f64>,
    deduplication_ratio: Option<f64>,
}

#[derive(Debug, Serialize)]
struct TotalsRecord {
    count: u64,
    bytes: u64,
    stored: u64,
}

impl From<RecordTotals> for TotalsRecord {
    fn from(totals: RecordTotals) -> Self {
        let RecordTotals { count, bytes, stored } = totals;
        Self { count, bytes, stored }
    }
}

impl StatsArgs {
    pub(crate) async fn run(self, context: &Context) -> Result<(), Failure> {
        context
            .with_opened(async |opened| {
                let store = opened.services.blobs.to_string();
                let failed =
                    |error| Failure::new(format!("{store} can't tell what it holds"), error);
                let report = match &opened.control {
                    Some(control) => control.report(self.count).await.map_err(failed)?,
                    None => None,
                };
                let Some(StoreReport { size, holdings }) = report else {
                    let what = format!("{store} can't tell how much it holds");
                    return Err(Failure::plain(Code::Failed, what).help(
                        "a local store can, and `cairn daemon` on one; a bucket would have to be \
                         listed, as by the tools of who runs it",
                    ));
                };
                let counts = match holdings {
                    Some(holdings) => {
                        let nar_bytes = nar_bytes(&opened.services).await?;
                        Some(CountsRecord::of(&size, &holdings, nar_bytes))
                    }
                    None => None,
                };
                let StoreSize { packs, pack_bytes, index_bytes } = size;
                let record = StatsRecord { store, packs, pack_bytes, index_bytes, counts };
                let mut output = Output::new();
                match self.json {
                    true => output.json(&record).await?,
                    false => record.print(&mut output).await?,
                }
                output.flush().await
            })
            .await
    }
}

/// The sizes of all NARs, together.
async fn nar_bytes(services: &Services) -> Result<u64, Failure> {
    let (mut sum, mut after) = (0u64, None);
    loop {
        let page = services.path_infos.list(after, PAGE_MAX).await;
        let page = page.map_err(|error| Failure::new("the store paths can't be listed", error))?;
        sum = page.iter().fold(sum, |sum, info| sum.saturating_add(info.nar.size));
        match page.last() {
            Some(last) if page.len() == PAGE_MAX => after = Some(*last.store_path.hash()),
            _ => return Ok(sum),
        }
    }
}

fn ratio(of: u64, to: u64) -> Option<f64> {
    (to > 0).then(|| of as f64 / to as f64)
}

impl CountsRecord {
    fn of(size: &StoreSize, holdings: &StoreHoldings, nar_bytes: u64) -> Self {
        let chunks = holdings.of(Kind::Chunk);
        Self {
            live_bytes: holdings.live_bytes(),
            dead_bytes: size.dead_bytes(holdings),
            chunks: chunks.into(),
            chunk_lists: holdings.of(Kind::Blob).into(),
            directories: holdings.of(Kind::Directory).into(),
            store_paths: holdings.of(Kind::PathInfo).into(),
            nar_hashes: holdings.of(Kind::Nar).into(),
            nar_bytes,
            compression_ratio: ratio(chunks.bytes, chunks.stored),
            deduplication_ratio: ratio(nar_bytes, chunks.bytes),
        }
    }
}

impl StatsRecord {
    async fn print(&self, output: &mut Output) -> Result<(), Failure> {
        let mut line = async |label: &str, value: String| {
            output.line(format!("{:<15}{value}", format!("{label}:"))).await
        };
        let packs = counted(self.packs, "pack", "packs");
        line("store", self.store.clone()).await?;
        line("packs", format!("{} in {packs}", BinaryBytes(self.pack_bytes))).await?;
        line("index", BinaryBytes(self.index_bytes).to_string()).await?;
        let Some(counts) = &self.counts else { return Ok(()) };
        line("live", BinaryBytes(counts.live_bytes).to_string()).await?;
        line("dead", BinaryBytes(counts.dead_bytes).to_string()).await?;
        for (label, totals) in [
            ("chunks", &counts.chunks),
            ("chunk lists", &counts.chunk_lists),
            ("directories", &counts.directories),
            ("store paths", &counts.store_paths),
            ("NAR hashes", &counts.nar_hashes),
        ] {
            let TotalsRecord { count, bytes, stored } = totals;
            let (bytes, stored) = (BinaryBytes(*bytes), BinaryBytes(*stored));
            line(label, format!("{}, {bytes}, in packs {stored}", HumanCount(*count))).await?;
        }
        line("NARs", BinaryBytes(counts.nar_bytes).to_string()).await?;
        let shown = |ratio: Option<f64>| match ratio {
            Some(ratio) => format!("{ratio:.2}"),
            None => "-".to_owned(),
        };
        line("compression", shown(counts.compression_ratio)).await?;
        line("deduplication", shown(counts.deduplication_ratio)).await
    }
}
