//! Prints what cairn takes for a real tree beside what the system's own tools take, as a Markdown
//! table: medians of several runs, the tools in turn, all in one go on one machine.
//!
//! `cargo bench -p cairn-tests --bench table -- [--runs N] [TREE]`; the tree is Linux 6.1 unless
//! told. Needs root, to drop the kernel's caches.
#![allow(clippy::unwrap_used, reason = "a benchmark that can't go on panics")]

use std::{
    collections::BTreeMap,
    env,
    ffi::OsStr,
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    process::Stdio,
    time::{Duration, Instant},
};

use cairn_tests::{
    cairn::{Cairn, Scene, binary},
    linux,
    measure::{
        allocated, command, drop_caches, find, measure_tree, median, medians_of, peak_memory, tar,
        time,
    },
    usage,
};

/// How often each thing is done unless told.
const RUNS: usize = 3;

/// The rows of the table, in their order.
const ROWS: [Row; 14] = [
    Row { name: "`cp -a` and `sync`", group: Group::Write, what: Work::Copy },
    Row { name: "`nix-store --add`", group: Group::Write, what: Work::NixAdd },
    Row { name: "**`cairn import`**, durable", group: Group::Write, what: Work::Import },
    Row { name: "the same again, unchanged", group: Group::Write, what: Work::ImportAgain },
    Row { name: "the same again, every file read", group: Group::Write, what: Work::ImportRead },
    Row { name: "`tar`, local file system", group: Group::Cold, what: Work::Tar(Place::Disk) },
    Row { name: "**`tar`, cairn mount**", group: Group::Cold, what: Work::Tar(Place::Mount) },
    Row {
        name: "**`tar`, cairn mount over TCP**",
        group: Group::Cold,
        what: Work::Tar(Place::Tcp),
    },
    Row { name: "`tar`, local file system", group: Group::Warm, what: Work::Tar(Place::Disk) },
    Row { name: "**`tar`, cairn mount**", group: Group::Warm, what: Work::Tar(Place::Mount) },
    Row {
        name: "**`tar`, cairn mount over TCP**",
        group: Group::Warm,
        what: Work::Tar(Place::Tcp),
    },
    Row { name: "`find`, local file system", group: Group::Find, what: Work::Find(Place::Disk) },
    Row { name: "**`find`, cairn mount**", group: Group::Find, what: Work::Find(Place::Mount) },
    Row {
        name: "**`find`, cairn mount over TCP**",
        group: Group::Find,
        what: Work::Find(Place::Tcp),
    },
];

#[derive(Clone, Copy)]
struct Row {
    name: &'static str,
    group: Group,
    what: Work,
}

/// What is compared with what: each row with the first of its group.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Group {
    Write,
    Cold,
    Warm,
    Find,
}

impl Group {
    fn title(self) -> &'static str {
        match self {
            Self::Write => "take the tree in, source warm",
            Self::Cold => "read all of it, caches dropped",
            Self::Warm => "read all of it again",
            Self::Find => "`find -printf %s`, caches dropped",
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Work {
    Copy,
    NixAdd,
    Import,
    ImportAgain,
    ImportRead,
    Tar(Place),
    Find(Place),
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Place {
    Disk,
    Mount,
    Tcp,
}

/// The places that a tree is read from.
struct Places {
    disk: PathBuf,
    mount: PathBuf,
    tcp: PathBuf,
}

impl Places {
    fn get(&self, place: Place) -> &Path {
        match place {
            Place::Disk => &self.disk,
            Place::Mount => &self.mount,
            Place::Tcp => &self.tcp,
        }
    }
}

fn main() {
    let mut runs = RUNS;
    let mut tree = None;
    let mut words = env::args_os().skip(1);
    while let Some(word) = words.next() {
        // Cargo passes `--bench` to every benchmark.
        match word.to_str() {
            Some("--bench") => {}
            Some("--runs") => runs = words.next().unwrap().to_str().unwrap().parse().unwrap(),
            _ => tree = Some(PathBuf::from(word)),
        }
    }
    let tree = tree.unwrap_or_else(linux::tree).canonicalize().unwrap();
    let size = measure_tree(&tree);
    eprintln!("{} on {}", binary().display(), tree.display());

    let mut results = Results::default();
    let scene = Scene::new();
    // Brings the source into the page cache, as it is for each of those who take it in.
    tar(&tree);
    for run in 0..runs {
        eprintln!("run {} of {runs}: writing", run + 1);
        writing(&scene, &tree, run, &mut results);
    }
    eprintln!("reading");
    let stored = reading(&scene, &tree, runs, &mut results);
    print(&tree, size, runs, &results, stored);
}

/// What was measured, by group and work, a value for each run.
#[derive(Default)]
struct Results {
    seconds: BTreeMap<(Group, Work), Vec<f64>>,
    import_memory: u64,
    mount_memory: u64,
}

impl Results {
    fn add(&mut self, group: Group, work: Work, time: Duration) {
        self.seconds.entry((group, work)).or_default().push(time.as_secs_f64());
    }

    fn median(&self, group: Group, work: Work) -> f64 {
        median(&self.seconds[&(group, work)])
    }
}

/// What is written is removed at the end of the benchmark alone: a file system that has just lost a
/// hundred thousand files makes new ones at a tenth of its speed for minutes.
fn writing(scene: &Scene, tree: &Path, run: usize, results: &mut Results) {
    let place = scene.path(&format!("copy-{run}"));
    rustix::fs::sync();
    let start = Instant::now();
    command("cp", [OsStr::new("-a"), tree.as_os_str(), place.as_os_str()]);
    command("sync", ["-f", place.to_str().unwrap()]);
    results.add(Group::Write, Work::Copy, start.elapsed());

    let place = scene.path(&format!("nix-{run}"));
    rustix::fs::sync();
    let start = Instant::now();
    let words = [OsStr::new("--store"), place.as_os_str(), OsStr::new("--add"), tree.as_os_str()];
    command("nix-store", words);
    results.add(Group::Write, Work::NixAdd, start.elapsed());
    command("chmod", [OsStr::new("-R"), OsStr::new("u+w"), place.as_os_str()]);

    let place = scene.path(&format!("store-{run}"));
    rustix::fs::sync();
    let cairn = Cairn::local(&place);
    for work in [Work::Import, Work::ImportAgain, Work::ImportRead] {
        let start = Instant::now();
        let mut import = cairn.command([OsStr::new("import"), tree.as_os_str()]);
        if work == Work::ImportRead {
            import.arg("--no-stat-cache");
        }
        let (status, usage) = usage::wait(import.stdout(Stdio::null()).spawn().unwrap()).unwrap();
        results.add(Group::Write, work, start.elapsed());
        assert!(status.success());
        results.import_memory = results.import_memory.max(usage.peak_memory);
    }
}

/// Reads through the mounts; the number of bytes that the store takes.
fn reading(scene: &Scene, tree: &Path, runs: usize, results: &mut Results) -> u64 {
    let cairn = scene.cairn();
    let path = cairn.import(tree);
    let stored = allocated(&scene.store());
    // A store of its own: a mount of one that a daemon has open would go through the daemon.
    let served = scene.path("served");
    command("cp", [OsStr::new("-a"), scene.store().as_os_str(), served.as_os_str()]);
    let daemon = Cairn::local(&served).serve("127.0.0.1:0");
    for run in 0..runs {
        eprintln!("run {} of {runs}", run + 1);
        // New mounts each time: what a server has in its own memory is not the kernel's to drop.
        let mut local = scene.mount(&cairn, "local");
        let tcp = scene.mount(&daemon.client(), "tcp");
        let places = Places { disk: tree.to_owned(), mount: local.at(&path), tcp: tcp.at(&path) };
        for place in [Place::Disk, Place::Mount, Place::Tcp] {
            drop_caches();
            results.add(Group::Find, Work::Find(place), time(|| find(places.get(place))));
        }
        for place in [Place::Disk, Place::Mount, Place::Tcp] {
            drop_caches();
            results.add(Group::Cold, Work::Tar(place), time(|| tar(places.get(place))));
            results.add(Group::Warm, Work::Tar(place), time(|| tar(places.get(place))));
        }
        results.mount_memory = results.mount_memory.max(peak_memory(local.process()));
    }
    stored
}

fn print(tree: &Path, size: (u64, u64), runs: usize, results: &Results, stored: u64) {
    let megabytes = |bytes: u64| format!("{:.0} MB", bytes as f64 / 1e6);
    let mut out = std::io::stdout().lock();
    let name = tree.file_name().unwrap().to_string_lossy();
    let cpus = std::thread::available_parallelism().map_or(0, usize::from);
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let medians = medians_of(runs);
    writeln!(
        out,
        "{name}: {} nodes, {}. {medians}; {cpus} CPUs, Linux {}.\n",
        size.0,
        megabytes(size.1),
        kernel.trim()
    )
    .unwrap();
    writeln!(out, "| | seconds | ratio |\n|---|---:|---:|").unwrap();
    let mut group = None;
    let mut baseline = 0.0;
    for row in ROWS {
        let seconds = results.median(row.group, row.what);
        if group != Some(row.group) {
            writeln!(out, "| *{}* | | |", row.group.title()).unwrap();
            group = Some(row.group);
            baseline = seconds;
        }
        writeln!(out, "| {} | {seconds:.2} | {:.2} |", row.name, seconds / baseline).unwrap();
    }
    writeln!(
        out,
        "\nStored: {} ({:.0} % of the files' bytes). Peak memory: import {}, mount {}.",
        megabytes(stored),
        stored as f64 / size.1 as f64 * 100.0,
        megabytes(results.import_memory),
        megabytes(results.mount_memory)
    )
    .unwrap();
}
