//! What came of a load, for people: a Markdown table with a row for each kind of request, and what
//! there is to say of the servers below it.

use std::{fmt, time::Duration};

use super::{KINDS, Killed, Load, Outcome, Record, Storage, WATCHED};

/// How long requests took, each with all its attempts.
struct Times(Vec<Duration>);

impl Times {
    fn of<'a>(records: impl Iterator<Item = &'a Record>) -> Self {
        let mut times: Vec<_> = records.map(|record| record.end - record.start).collect();
        times.sort_unstable();
        Self(times)
    }

    /// The time that so many of a hundred took at most, in milliseconds.
    fn percentile(&self, percent: usize) -> f64 {
        let last = self.0.len().saturating_sub(1);
        let index = (self.0.len() * percent / 100).min(last);
        self.0.get(index).map_or(0.0, |time| time.as_secs_f64() * 1e3)
    }
}

impl Outcome {
    fn row(&self, f: &mut fmt::Formatter<'_>, name: &str, records: &[&Record]) -> fmt::Result {
        let seconds = self.taken.as_secs_f64();
        let rate = records.len() as f64 / seconds;
        let bytes: u64 = records.iter().map(|record| record.bytes).sum();
        let bytes = match bytes {
            0 => String::new(),
            bytes => format!("{:.1}", bytes as f64 / 1e6 / seconds),
        };
        let times = Times::of(records.iter().copied());
        let [half, most, all] = [50, 99, 100].map(|percent| times.percentile(percent));
        let retries: u32 = records.iter().map(|record| record.retries).sum();
        writeln!(
            f,
            "| {name} | {rate:.1} | {bytes} | {half:.0} | {most:.0} | {all:.0} | {retries} |"
        )
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Load { clients, duration, storage } = self.load;
        let storage = match storage {
            Storage::Bucket => "bucket",
            Storage::Folder => "folder",
        };
        let seconds = duration.as_secs();
        writeln!(f, "{clients} clients for {seconds} s, two servers over one {storage}.\n")?;
        writeln!(f, "| | requests/s | MB/s | median, ms | 99 %, ms | longest, ms | retries |")?;
        writeln!(f, "|---|---:|---:|---:|---:|---:|---:|")?;
        for (kind, _, name) in KINDS {
            let records: Vec<_> = self.records.iter().filter(|one| one.kind == kind).collect();
            self.row(f, name, &records)?;
        }
        self.row(f, "all of them", &self.records.iter().collect::<Vec<_>>())?;

        let Killed { after, served, under_way, answered_after } = self.killed;
        let [first, last] = answered_after.map(|time| time.as_secs_f64() * 1e3);
        let served = served as f64 / WATCHED.as_secs_f64();
        writeln!(
            f,
            "\nKilled after {:.1} s: a server that answered {served:.0} requests/s. Its clients waited \
             for {under_way} answers, of which the other gave the first {first:.0} ms later and the last \
             {last:.0} ms. Clients' own retries beside those of the table: {}. Failed: {}.",
            after.as_secs_f64(),
            self.retries_below,
            self.failures().len(),
        )?;
        let [killed, lasting] = self.peak_memory.map(|bytes| bytes as f64 / 1e6);
        let kept = self.kept;
        writeln!(
            f,
            "\nPeak memory: {killed:.0} MB of the killed server, {lasting:.0} MB of the other one. \
             Acknowledged and read again: {} blobs of {:.0} MB, {} directories, {} path infos; lost: \
             {}.",
            kept.blobs,
            kept.bytes as f64 / 1e6,
            kept.directories,
            kept.path_infos,
            self.lost.len(),
        )
    }
}
