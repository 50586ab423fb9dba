//! `cairn top`: what a process does just now, live in a terminal, or in rows and objects for programs. The
//! process tells by HTTP (`source`), what it counts is read (`samples`) and compared with what it was before
//! (`interval`), and what that comes to (`snapshot`) is drawn (`screen`) or written (`table`).

mod figures;
mod interval;
mod samples;
mod screen;
mod snapshot;
mod source;
mod table;
mod terminal;
mod watch;

use std::time::Duration;

use clap::Args;
use tokio::time::{MissedTickBehavior, interval};

use self::{
    source::{Source, SourceError},
    watch::Watch,
};
use crate::{
    exit::{Code, Failure},
    output::Output,
};

/// What makes a process tell of itself.
const REMEDY: &str = "`cairn daemon`, `mount` and `virtiofs` tell of themselves when they are started \
                      with --http HOST:PORT, and say where: `telling of itself on URL`";

/// Watch what a daemon, a mount or a virtual machine's server does
///
/// Shows requests and how long they take, bytes on their way, caches, what goes wrong, what is under way or
/// hangs, and what was slow, as the process tells of them at the address of its --http. q or Ctrl-C
/// ends it, p holds on, s changes the order of requests: by rate, time or name. If the process goes
/// away, its last values stay, and it is asked on. Without a terminal, or with --count or --json, values
/// are printed instead.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  cairn top --http 127.0.0.1:9090
  cairn top --http 127.0.0.1:9090 --json --count 1 | jq .requests
  CAIRN_HTTP=127.0.0.1:9090 cairn top --interval 5")]
pub(crate) struct TopArgs {
    /// Where the process tells of itself: HOST:PORT, or a URL of these
    #[arg(long, value_name = "ADDR", env = "CAIRN_HTTP", hide_env_values = true)]
    http: Option<Source>,
    /// How long each interval is; at least 0.1
    #[arg(short, long, value_name = "SECONDS", default_value = "1", value_parser = interval_time)]
    interval: Duration,
    /// Print so many intervals, and end
    ///
    /// Without it, and without a terminal, one; with --json, one after the other.
    #[arg(short, long, value_name = "COUNT", value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,
    /// Print a JSON object for each interval
    #[arg(long)]
    json: bool,
}

/// Reads the length of an interval.
fn interval_time(text: &str) -> Result<Duration, String> {
    let seconds = text.parse().ok().filter(|seconds| (0.1..=86_400.0).contains(seconds));
    let interval = seconds.map(Duration::from_secs_f64);
    interval.ok_or_else(|| "write a number of seconds from 0.1 to 86400, as in 1.5".to_owned())
}

impl TopArgs {
    pub(crate) async fn run(self) -> Result<(), Failure> {
        let Some(source) = self.http else {
            return Err(Failure::plain(Code::Usage, "it is not said which process to look at")
                .help(format!("give its address with --http or CAIRN_HTTP. {REMEDY}")));
        };
        let url = source.url();
        let failed = |error: SourceError| {
            Failure::new(format!("{url} does not tell what it does"), error).help(REMEDY)
        };
        let mut watch = Watch::new(source);
        // Whether there is somebody is told before the terminal is taken.
        watch.ask().await.map_err(failed)?;
        let mut output = Output::new();
        if output.is_terminal() && self.count.is_none() && !self.json {
            return terminal::show(watch, url, self.interval).await;
        }
        let mut left = match self.count {
            None if self.json => u64::MAX,
            count => count.unwrap_or(1),
        };
        let mut times = interval(self.interval);
        times.set_missed_tick_behavior(MissedTickBehavior::Delay);
        times.tick().await;
        while left > 0 {
            times.tick().await;
            let Some(snapshot) = watch.ask().await.map_err(failed)? else { continue };
            left -= 1;
            match self.json {
                true => {
                    output.json(&snapshot).await?;
                    output.flush().await?;
                }
                false => table::print(&snapshot, &mut output).await?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interval_is_neither_too_short_nor_without_end() {
        assert_eq!(interval_time("0.5"), Ok(Duration::from_millis(500)));
        for text in ["0", "0.01", "-1", "NaN", "inf", "1e9", "soon"] {
            assert!(interval_time(text).is_err(), "{text}");
        }
    }
}
