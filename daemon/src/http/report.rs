//! What a process tells of its work beside its metrics: who it is, what is wrong with it, what is under
//! way in it and what was slow. Written by the process itself and read by `cairn top`; docs/telemetry.md
//! has its form.

use std::time::Duration;

use cairn_telemetry::operations::{self, HANGS};
use serde::{Deserialize, Serialize};

use crate::{health::Health, process};

/// The most operations of each list.
const OPERATIONS_MAX: usize = 20;

/// What a process tells. What a later version adds to it is passed over.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Report {
    /// What the process is: the command that runs.
    pub(crate) role: String,
    pub(crate) version: String,
    pub(crate) pid: u32,
    /// `None` if the system does not tell.
    pub(crate) uptime_seconds: Option<f64>,
    pub(crate) health: HealthReport,
    /// Those that began first.
    pub(crate) under_way: Vec<Pending>,
    /// Those that ended within a minute and took the longest.
    pub(crate) slowest: Vec<Slow>,
}

/// What is wrong: nothing where there is no text.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct HealthReport {
    /// Why the process does not do its work.
    pub(crate) live: Vec<String>,
    /// Why it takes none.
    pub(crate) ready: Vec<String>,
    /// What its store lacks.
    pub(crate) store: Vec<String>,
}

/// An operation that is under way.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Pending {
    pub(crate) kind: String,
    pub(crate) name: String,
    /// Since it began.
    pub(crate) seconds: f64,
    /// Since something last happened in it.
    pub(crate) silent_seconds: f64,
    pub(crate) hangs: bool,
}

/// An operation that was slow.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Slow {
    pub(crate) kind: String,
    pub(crate) name: String,
    /// How long it took.
    pub(crate) seconds: f64,
    /// Since it ended.
    pub(crate) ended_seconds_ago: f64,
}

impl Report {
    /// What this process has to tell now.
    pub(super) fn of_this_process(role: &str, health: &Health) -> Self {
        let pending = |pending: operations::Pending| Pending {
            kind: pending.kind.name().to_owned(),
            name: pending.name.to_owned(),
            seconds: seconds(pending.age),
            silent_seconds: seconds(pending.silent),
            hangs: pending.silent > HANGS,
        };
        let slow = |slow: operations::Slow| Slow {
            kind: slow.kind.name().to_owned(),
            name: slow.name.to_owned(),
            seconds: seconds(slow.taken),
            ended_seconds_ago: seconds(slow.ago),
        };
        Self {
            role: role.to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            uptime_seconds: process::uptime(),
            health: HealthReport {
                live: health.live().into_lines(),
                ready: health.readiness().into_lines(),
                store: health.store().into_lines(),
            },
            under_way: operations::oldest(OPERATIONS_MAX).into_iter().map(pending).collect(),
            slowest: operations::slowest(OPERATIONS_MAX).into_iter().map(slow).collect(),
        }
    }
}

/// Seconds, to the microsecond.
fn seconds(time: Duration) -> f64 {
    time.as_micros() as f64 / 1e6
}

#[cfg(test)]
mod tests {
    use cairn_telemetry::inventory::FuseOperation;

    use super::*;

    #[test]
    fn a_report_is_read_as_it_was_written() {
        let _one = operations::FUSE.begin(FuseOperation::Read as usize);
        let report = Report::of_this_process("mount", &Health::new());
        assert_eq!((report.role.as_str(), report.pid), ("mount", std::process::id()));
        assert_eq!(report.health.ready, ["starting: not all is open yet"]);
        assert_eq!(report.health.store.len(), 3, "nothing was tried yet");
        let one = &report.under_way[0];
        assert_eq!((one.kind.as_str(), one.name.as_str(), one.hangs), ("fuse", "read", false));
        let text = serde_json::to_string(&report).unwrap();
        assert_eq!(serde_json::from_str::<Report>(&text).unwrap(), report);
        // One of a later version.
        let more = text.replacen('{', "{\"more\":[],", 1);
        assert_eq!(serde_json::from_str::<Report>(&more).unwrap(), report);
    }
}
