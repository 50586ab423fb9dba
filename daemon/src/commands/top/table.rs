//! A snapshot in rows: a table for each thing that there is to tell, in columns for people, or with tabs
//! between plain numbers (seconds, bytes) for programs. The first column says what a row is of.

use anstyle::Style;

use super::{
    figures,
    snapshot::{Process, Snapshot},
};
use crate::{
    exit::Failure,
    output::{
        Output,
        table::{Cell, Column, Table},
    },
};

const PROCESS: &[Column] = &[
    Column::text("PROCESS", 8),
    Column::text("ROLE", 12),
    Column::text("VERSION", 10),
    Column::number("PID", 8),
    Column::number("UP", 11),
    Column::number("PROCESSORS", 11),
    Column::number("MEMORY", 11),
    Column::number("LIMIT", 11),
];

const HEALTH: &[Column] =
    &[Column::text("HEALTH", 8), Column::text("OF", 12), Column::text("WHAT IS WRONG", 0)];

const REQUESTS: &[Column] = &[
    Column::text("REQUESTS", 8),
    Column::text("KIND", 12),
    Column::text("WHAT", 38),
    Column::number("/S", 8),
    Column::number("P50", 9),
    Column::number("P99", 9),
];

const BYTES: &[Column] = &[
    Column::text("BYTES", 8),
    Column::text("WHAT", 22),
    Column::number("/S", 11),
    Column::number("ALL", 11),
];

const CACHE: &[Column] = &[
    Column::text("CACHE", 8),
    Column::text("LAYER", 12),
    Column::number("FOUND", 8),
    Column::number("HITS/S", 8),
    Column::number("MISSES/S", 8),
    Column::number("KEPT", 11),
    Column::number("OF", 11),
];

const QUEUE: &[Column] = &[
    Column::text("QUEUE", 8),
    Column::text("KIND", 12),
    Column::number("UNDER WAY", 9),
    Column::number("HANGING", 9),
];

const TROUBLE: &[Column] = &[
    Column::text("TROUBLE", 8),
    Column::text("WHAT", 32),
    Column::number("/S", 8),
    Column::number("ALL", 11),
];

const PENDING: &[Column] = &[
    Column::text("PENDING", 8),
    Column::text("KIND", 12),
    Column::text("WHAT", 38),
    Column::number("FOR", 11),
    Column::number("SILENT FOR", 11),
    Column::text("", 5),
];

const SLOW: &[Column] = &[
    Column::text("SLOW", 8),
    Column::text("KIND", 12),
    Column::text("WHAT", 38),
    Column::number("TOOK", 11),
    Column::number("AGO", 11),
];

/// Writes all of a snapshot.
pub(super) async fn print(snapshot: &Snapshot, output: &mut Output) -> Result<(), Failure> {
    let figures = Figures { are_for_people: output.is_terminal() };
    section(output, PROCESS, [figures.process(&snapshot.process)]).await?;
    let health = &snapshot.health;
    let ills = [("live", &health.live), ("ready", &health.ready), ("store", &health.store)];
    let rows = ills.into_iter().flat_map(|(of, ills)| {
        ills.iter().map(move |ill| vec![own("health"), own(of), foreign(ill)])
    });
    section(output, HEALTH, rows).await?;
    let rows = snapshot.requests.iter().map(|requests| {
        vec![
            own("request"),
            own(requests.kind),
            foreign(&requests.name),
            figures.rate(requests.per_second),
            figures.known(requests.p50_seconds, Figures::time),
            figures.known(requests.p99_seconds, Figures::time),
        ]
    });
    section(output, REQUESTS, rows).await?;
    let rows = snapshot.flows.iter().map(|flow| {
        let (rate, all) = (figures.bytes(flow.bytes_per_second), figures.bytes(flow.bytes));
        vec![own("bytes"), own(flow.name), rate, all]
    });
    section(output, BYTES, rows).await?;
    let rows = snapshot.caches.iter().map(|cache| {
        vec![
            own("cache"),
            own(cache.layer),
            figures.known(cache.hit_ratio, Figures::share),
            figures.rate(cache.hits_per_second),
            figures.rate(cache.misses_per_second),
            figures.known(cache.bytes, Figures::bytes),
            figures.known(cache.budget_bytes, Figures::bytes),
        ]
    });
    section(output, CACHE, rows).await?;
    let rows = snapshot.queues.iter().map(|queue| {
        let (under_way, hanging) = (figures.count(queue.under_way), figures.count(queue.hanging));
        vec![own("queue"), own(queue.kind), under_way, hanging]
    });
    section(output, QUEUE, rows).await?;
    let rows = snapshot.troubles.iter().map(|trouble| {
        let (rate, all) = (figures.rate(trouble.per_second), figures.count(trouble.total));
        vec![own("trouble"), foreign(&trouble.name), rate, all]
    });
    section(output, TROUBLE, rows).await?;
    let rows = snapshot.under_way.iter().map(|pending| {
        vec![
            own("pending"),
            foreign(&pending.kind),
            foreign(&pending.name),
            figures.time(pending.seconds),
            figures.time(pending.silent_seconds),
            own(if pending.hangs { "hangs" } else { "" }),
        ]
    });
    section(output, PENDING, rows).await?;
    let rows = snapshot.slowest.iter().map(|slow| {
        vec![
            own("slow"),
            foreign(&slow.kind),
            foreign(&slow.name),
            figures.time(slow.seconds),
            figures.time(slow.ended_seconds_ago),
        ]
    });
    section(output, SLOW, rows).await?;
    output.flush().await
}

async fn section<'a>(
    output: &mut Output,
    columns: &'static [Column],
    rows: impl IntoIterator<Item = Vec<Cell<'a>>>,
) -> Result<(), Failure> {
    let mut table = Table::new(columns);
    for cells in rows {
        table.row(output, &cells).await?;
    }
    Ok(())
}

/// A text of our own.
fn own(text: &'static str) -> Cell<'static> {
    Cell::Text(text.into())
}

/// A text that the process has sent.
fn foreign(text: &str) -> Cell<'_> {
    Cell::Name(text.as_bytes(), Style::new())
}

/// How numbers are written.
#[derive(Debug, Clone, Copy)]
struct Figures {
    are_for_people: bool,
}

impl Figures {
    fn process(self, process: &Process) -> Vec<Cell<'_>> {
        vec![
            own("process"),
            foreign(&process.role),
            foreign(&process.version),
            Cell::Text(process.pid.to_string().into()),
            self.known(process.uptime_seconds, Self::time),
            self.rate(process.processors),
            self.known(process.memory_bytes, Self::bytes),
            self.known(process.memory_limit_bytes, Self::bytes),
        ]
    }

    fn either(self, number: f64, shown: fn(f64) -> String) -> Cell<'static> {
        Cell::Text(if self.are_for_people { shown(number) } else { number.to_string() }.into())
    }

    fn count(self, count: f64) -> Cell<'static> {
        Cell::Text(count.to_string().into())
    }

    fn rate(self, per_second: f64) -> Cell<'static> {
        self.either(per_second, figures::rate)
    }

    fn bytes(self, bytes: f64) -> Cell<'static> {
        self.either(bytes, figures::bytes)
    }

    fn time(self, seconds: f64) -> Cell<'static> {
        self.either(seconds, figures::time)
    }

    fn share(self, share: f64) -> Cell<'static> {
        self.either(share, figures::share)
    }

    fn known(self, number: Option<f64>, shown: fn(Self, f64) -> Cell<'static>) -> Cell<'static> {
        number.map_or_else(|| own("-"), |number| shown(self, number))
    }
}
