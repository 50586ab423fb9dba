//! `cairn ping`: whether a store answers, and how long that takes.

use std::{cell, time::Duration};

use cairn_store::Services;
use clap::Args;
use serde::Serialize;
use tokio::time::{Instant, sleep_until};

use crate::{
    cli::Context,
    exit::{Code, Failure},
    output::{
        Output,
        table::{Cell, Column, Table},
    },
    probe::{Answer, in_milliseconds, milliseconds, probe},
    services::{BLOBS, DIRECTORIES, PATH_INFOS},
};

/// Ask a store's services whether they are there
///
/// Each is asked for something that it does not have, once to connect and then --count times; the times
/// of these are shown. A service that the store does not offer is said to be so. It works with any store:
/// a server, a bucket, the local one.
///
/// Exit codes: 0 if every service that is offered has answered, 1 if one has not, or if there is none.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  cairn --store grpc+http://127.0.0.1:8000 ping
  cairn --store grpc+http://host:8000 ping --count 100
  cairn --store grpc+unix:/run/cairn/socket ping --deadline 1 --json")]
pub(crate) struct PingArgs {
    /// How often each service is asked
    #[arg(short, long, value_name = "COUNT", default_value_t = 1)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..))]
    count: u32,
    /// How long an answer may take
    #[arg(long, value_name = "SECONDS", default_value = "5", value_parser = seconds)]
    deadline: Duration,
    /// Print a JSON object for each service
    #[arg(long)]
    json: bool,
}

/// Reads a time in seconds.
pub(super) fn seconds(text: &str) -> Result<Duration, String> {
    let seconds = text.parse().ok().filter(|seconds: &f64| *seconds > 0.0);
    let duration = seconds.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    duration.ok_or_else(|| "write a number of seconds, as in 1.5".to_owned())
}

const COLUMNS: &[Column] = &[
    Column::text("SERVICE", 11),
    Column::number("QUICKEST", 11),
    Column::number("AVERAGE", 11),
    Column::number("SLOWEST", 11),
    Column::text("STORE", 0),
];

/// What a service has answered.
#[derive(Debug, Serialize)]
struct PingRecord {
    service: &'static str,
    store: String,
    offered: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    milliseconds: Option<TimesRecord>,
}

/// How long that took.
#[derive(Debug, Serialize)]
struct TimesRecord {
    quickest: f64,
    average: f64,
    slowest: f64,
}

/// The times of a service.
#[derive(Debug, Clone, Copy)]
struct Times {
    quickest: Duration,
    slowest: Duration,
    sum: Duration,
    count: u32,
}

impl PingArgs {
    pub(crate) async fn run(self, context: &Context) -> Result<(), Failure> {
        // When something was heard last.
        let heard = cell::Cell::new(Instant::now());
        let too_late = async {
            loop {
                let due = heard.get() + self.deadline;
                if due <= Instant::now() {
                    break;
                }
                sleep_until(due).await;
            }
        };
        let pinged = context.with_services(async |services| self.ping(services, &heard).await);
        tokio::select! {
            done = pinged => done,
            () = too_late => {
                let what = format!("the store has not answered within {:?}", self.deadline);
                Err(Failure::plain(Code::Failed, what)
                    .help("check that it runs, or give it more time with --deadline"))
            }
        }
    }

    async fn ping(&self, services: &Services, heard: &cell::Cell<Instant>) -> Result<(), Failure> {
        let mut all = [None::<Times>; 3];
        for round in 0..=self.count {
            heard.set(Instant::now());
            let answers = probe(services).await?;
            // The first round connects.
            for (times, answer) in all.iter_mut().zip(answers).filter(|_| round > 0) {
                if let Answer::After(time) = answer {
                    *times = Some(Times::add(*times, time));
                }
            }
        }
        heard.set(Instant::now());
        if all.iter().all(Option::is_none) {
            let what = "the store offers none of the services";
            return Err(Failure::plain(Code::Failed, what)
                .help("check the address: something else seems to run there"));
        }
        let stores = [
            (BLOBS, services.blobs.to_string()),
            (DIRECTORIES, services.directories.to_string()),
            (PATH_INFOS, services.path_infos.to_string()),
        ];
        let mut output = Output::new();
        let mut table = Table::new(COLUMNS);
        for ((service, store), times) in stores.into_iter().zip(all) {
            if self.json {
                let milliseconds = times.map(Times::record);
                let offered = times.is_some();
                output.json(&PingRecord { service, store, offered, milliseconds }).await?;
                continue;
            }
            let [quickest, average, slowest] = match times {
                Some(times) => [times.quickest, times.average(), times.slowest]
                    .map(|time| Cell::Text(in_milliseconds(time).into())),
                None => ["not offered", "-", "-"].map(|text| Cell::Text(text.into())),
            };
            let (service, store) = (Cell::Text(service.into()), Cell::Text(store.into()));
            table.row(&mut output, &[service, quickest, average, slowest, store]).await?;
        }
        output.flush().await
    }
}

impl Times {
    fn add(times: Option<Self>, time: Duration) -> Self {
        match times {
            None => Self { quickest: time, slowest: time, sum: time, count: 1 },
            Some(Self { quickest, slowest, sum, count }) => Self {
                quickest: quickest.min(time),
                slowest: slowest.max(time),
                sum: sum.saturating_add(time),
                count: count + 1,
            },
        }
    }

    fn average(self) -> Duration {
        self.sum / self.count
    }

    fn record(self) -> TimesRecord {
        TimesRecord {
            quickest: milliseconds(self.quickest),
            average: milliseconds(self.average()),
            slowest: milliseconds(self.slowest),
        }
    }
}
