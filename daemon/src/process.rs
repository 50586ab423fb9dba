//! What the system knows of this process, written down as metrics when somebody wants to read them.
//! All of it comes from the kernel's memory; nothing waits for a disk.

use std::{
    fs,
    path::Path,
    sync::LazyLock,
    time::{SystemTime, UNIX_EPOCH},
};

use cairn_telemetry::{inventory, operations};
use rustix::{
    param::{clock_ticks_per_second, page_size},
    process::{Resource, getrlimit},
};

use crate::health::Health;

/// Writes down what is known now.
pub(crate) fn read(health: &Health) {
    let truth = |is: bool| if is { 1.0 } else { 0.0 };
    operations::read();
    inventory::BUILD_INFO.set(1.0);
    inventory::LIVE.set(truth(health.live().is_well()));
    inventory::READY.set(truth(health.readiness().is_well()));
    if let Some(started) = *STARTED {
        inventory::START_TIME.set(started);
    }
    if let Some(limit) = *MEMORY_LIMIT {
        inventory::MEMORY_LIMIT.set(limit as f64);
    }
    if let Some(pages) = resident_pages() {
        inventory::RESIDENT.set(pages as f64 * page_size() as f64);
    }
    if let Some(stat) = Stat::read() {
        inventory::CPU.set(stat.used_ticks as f64 / clock_ticks_per_second() as f64);
        inventory::THREADS.set(stat.threads as f64);
    }
    if let Ok(files) = fs::read_dir("/proc/self/fd") {
        // Less the one that this is read by.
        inventory::OPEN_FILES.set(files.count().saturating_sub(1) as f64);
    }
    if let Some(limit) = getrlimit(Resource::Nofile).current {
        inventory::OPEN_FILES_LIMIT.set(limit as f64);
    }
}

fn resident_pages() -> Option<u64> {
    fs::read_to_string("/proc/self/statm").ok()?.split(' ').nth(1)?.parse().ok()
}

/// What is used of `/proc/self/stat`; see proc(5).
#[derive(Debug, PartialEq, Eq)]
struct Stat {
    /// Since the start, in user and system mode.
    used_ticks: u64,
    threads: u64,
    /// After the machine's start.
    started_ticks: u64,
}

impl Stat {
    fn read() -> Option<Self> {
        Self::parse(&fs::read_to_string("/proc/self/stat").ok()?)
    }

    fn parse(text: &str) -> Option<Self> {
        // The name in front of it may hold anything.
        let (_, rest) = text.rsplit_once(')')?;
        let fields: Vec<&str> = rest.split_whitespace().collect();
        // The first of these is the third of all.
        let field = |number: usize| fields.get(number - 3)?.parse::<u64>().ok();
        Some(Self {
            used_ticks: field(14)?.checked_add(field(15)?)?,
            threads: field(20)?,
            started_ticks: field(22)?,
        })
    }
}

/// How long the process has run, in seconds.
pub(crate) fn uptime() -> Option<f64> {
    Some((now()? - (*STARTED)?).max(0.0))
}

/// The seconds since the epoch.
fn now() -> Option<f64> {
    Some(SystemTime::now().duration_since(UNIX_EPOCH).ok()?.as_secs_f64())
}

/// When the process was started, in seconds since the epoch.
static STARTED: LazyLock<Option<f64>> = LazyLock::new(|| {
    let now = now()?;
    let uptime = fs::read_to_string("/proc/uptime").ok()?;
    let uptime: f64 = uptime.split(' ').next()?.parse().ok()?;
    let started = Stat::read()?.started_ticks as f64 / clock_ticks_per_second() as f64;
    Some(now - uptime + started)
});

/// The memory that the process may have, in bytes.
static MEMORY_LIMIT: LazyLock<Option<u64>> = LazyLock::new(|| {
    let number = |path: &Path| fs::read_to_string(path).ok()?.trim().parse::<u64>().ok();
    let mut limits = Vec::new();
    let meminfo = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let total = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"));
    let total = total.and_then(|total| total.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    limits.extend(total.map(|kibibytes| kibibytes * 1024));
    // The group of version 2, and of version 1 as containers see theirs.
    let groups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    if let Some(group) = groups.lines().find_map(|line| line.strip_prefix("0::/")) {
        let root = Path::new("/sys/fs/cgroup");
        let folders = Path::new(group).ancestors();
        limits.extend(folders.filter_map(|folder| number(&root.join(folder).join("memory.max"))));
    }
    limits.extend(number(Path::new("/sys/fs/cgroup/memory/memory.limit_in_bytes")));
    limits.into_iter().min()
});

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_line_is_read_behind_any_name() {
        let line = "7 (a) b) (c) S 1 7 7 0 -1 4194560 500 0 0 0 11 22 0 0 20 0 9 0 333 1000 50 1\n";
        let expected = Stat { used_ticks: 33, threads: 9, started_ticks: 333 };
        assert_eq!(Stat::parse(line), Some(expected));
        assert_eq!(Stat::parse("7 (a"), None);
        assert_eq!(Stat::parse("7 (a) S 1"), None);
    }

    #[test]
    fn this_process_has_started_and_has_memory() {
        let started = STARTED.expect("there is a /proc");
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64();
        assert!(started <= now && started > now - 86_400.0, "{started} {now}");
        let resident = resident_pages().unwrap() * page_size() as u64;
        assert!(resident > 0 && resident <= MEMORY_LIMIT.expect("there is a limit"));
    }
}
