//! Prints what a mount of a store that is far takes, over lines of different length and width: a
//! Markdown table with a column for each line, beside the local store.
//!
//! `cargo bench -p cairn-tests --bench remote -- [--runs N] [--lines LINE,…] [TREE]`, with the lines
//! of [`LINES`]; the tree is Linux 6.1 unless told. The lines are a proxy's on the loopback
//! interface. Needs root, to mount and to drop the kernel's caches, and a Rust toolchain, which is the
//! large tree of which little is read.
#![allow(clippy::unwrap_used, reason = "a benchmark that can't go on panics")]

use std::{
    cell::Cell,
    collections::BTreeMap,
    env,
    ffi::OsStr,
    fs::{self, File},
    io::Write as _,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use cairn_tests::{
    cairn::{Cairn, Daemon, Mount, Scene, binary},
    linux,
    measure::{
        command, drop_caches, find, measure_tree, median, medians_of, read_in_order, tar, time,
        write_large,
    },
    process::{LONG_PATIENCE, Running},
    proxy::{Line, Proxy},
    trees::base_name,
};
use rustix::process::Signal;

/// How often each thing is done unless told.
const RUNS: usize = 3;

/// The bytes of the large file, which can't be compressed.
const LARGE_BYTES: u64 = 1 << 30;

/// A line's name, its title in the table, and how it is.
type Choice = (&'static str, &'static str, Option<(u64, Option<u64>)>);

/// The lines, each with the time of a round trip in milliseconds, and the bits of a second, both
/// ways. `None` is no line at all, but the local store.
const LINES: [Choice; 6] = [
    ("local", "local store", None),
    ("loopback", "loopback", Some((0, None))),
    ("near", "1 ms, 1 Gbit/s", Some((1, Some(1_000_000_000)))),
    ("site", "10 ms, 1 Gbit/s", Some((10, Some(1_000_000_000)))),
    ("town", "10 ms, 100 Mbit/s", Some((10, Some(100_000_000)))),
    ("world", "50 ms, 100 Mbit/s", Some((50, Some(100_000_000)))),
];

/// What is done.
const WORKS: [(Work, &str); 12] = [
    (Work::Find, "`find -printf %s` of the tree"),
    (Work::Tar, "`tar` of the tree"),
    (Work::TarBytes, "MB received for that"),
    (Work::CacheCold, "`tar` through an empty cache"),
    (Work::CacheWarm, "`tar` of a second mount, with that cache"),
    (Work::CacheWarmBytes, "MB received for that"),
    (Work::FirstByte, "first byte of a file of 1 GiB"),
    (Work::Sequential, "the rest of it, in order"),
    (Work::Compile, "`rustc` from a toolchain of 1.3 GB"),
    (Work::CompileWarming, "fetching by profile what it touches"),
    (Work::CompileWarmed, "`rustc` behind that"),
    (Work::CompileWarm, "`rustc` of a second mount, with that cache"),
];

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Work {
    Find,
    Tar,
    TarBytes,
    CacheCold,
    CacheWarm,
    CacheWarmBytes,
    FirstByte,
    Sequential,
    Compile,
    CompileWarming,
    CompileWarmed,
    CompileWarm,
}

/// The values of each work on each line, by the line's name.
type Results = BTreeMap<(Work, &'static str), Vec<f64>>;

fn main() {
    let (mut runs, mut tree) = (RUNS, None);
    let mut lines: Vec<_> = LINES.iter().collect();
    let mut words = env::args().skip(1).filter(|word| word != "--bench");
    while let Some(word) = words.next() {
        match word.as_str() {
            "--runs" => runs = words.next().and_then(|number| number.parse().ok()).unwrap(),
            "--lines" => lines = words.next().unwrap().split(',').map(line).collect(),
            word => tree = Some(PathBuf::from(word)),
        }
    }
    assert!(runs > 0, "nothing is measured by no run");
    let tree = tree.unwrap_or_else(linux::tree).canonicalize().unwrap();
    eprintln!("{} on {}", binary().display(), tree.display());

    let bench = Bench::new(tree);
    let mut results = Results::new();
    for run in 0..runs {
        for &&(name, _, line) in &lines {
            eprintln!("run {} of {runs}: {name}", run + 1);
            bench.measure(line, |work, value| {
                results.entry((work, name)).or_default().push(value);
            });
        }
    }
    print(&bench.tree, &lines, runs, &results);
}

fn line(name: &str) -> &'static Choice {
    let found = LINES.iter().find(|(called, ..)| *called == name);
    found.unwrap_or_else(|| panic!("{name}: not a line of this benchmark"))
}

struct Bench {
    scene: Scene,
    tree: PathBuf,
    proxy: Proxy,
    /// The names of the tree, the large file and the toolchain below a mount.
    paths: [String; 3],
    /// What a compiler touches of the toolchain.
    profile: PathBuf,
    /// Serves a copy of the store: a mount of one that a daemon has open would go through it.
    _daemon: Daemon,
    mounts: Cell<u32>,
}

impl Bench {
    fn new(tree: PathBuf) -> Self {
        let scene = Scene::new();
        let large = scene.path("large");
        write_large(&large, LARGE_BYTES);
        let rustc = env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
        let mut sysroot = Command::new(rustc);
        let toolchain = Running::start(sysroot.args(["--print", "sysroot"])).finish().succeeded();
        let toolchain = PathBuf::from(toolchain.text().trim());
        let paths = [&*tree, &large, &toolchain].map(|path| scene.cairn().import(path));
        let source = "fn main() { println!(\"hello\"); }\n";
        fs::write(scene.path("hello.rs"), source).unwrap();
        let profile = scene.path("profile");
        let record = [OsStr::new("--record"), profile.as_os_str()];
        let mount = scene.cairn().mount_with(&scene.new_folder("recorded"), record);
        drop_caches();
        compile(&scene, &mount.at(&paths[2]));
        mount.stop(Signal::TERM).succeeded();
        let served = scene.path("served");
        command("cp", [OsStr::new("-a"), scene.store().as_os_str(), served.as_os_str()]);
        let daemon = Cairn::local(&served).serve("127.0.0.1:0");
        let proxy = Proxy::before(daemon.url());
        Self { scene, tree, proxy, paths, profile, _daemon: daemon, mounts: Cell::new(0) }
    }

    fn measure(&self, line: Option<(u64, Option<u64>)>, mut add: impl FnMut(Work, f64)) {
        let [tree, large, toolchain] = &self.paths;
        let cairn = match line {
            None => self.scene.cairn(),
            Some((round_trip, bits)) => {
                self.proxy.set(Line {
                    delay: Duration::from_millis(round_trip) / 2,
                    bandwidth: bits.map(|bits| bits / 8),
                    ..Line::default()
                });
                Cairn::new(self.proxy.url())
            }
        };
        self.with_mount(&cairn, |mount| {
            add(Work::Find, time(|| find(&mount.at(tree))).as_secs_f64());
        });
        let before = self.proxy.received();
        self.with_mount(&cairn, |mount| {
            add(Work::Tar, time(|| tar(&mount.at(tree))).as_secs_f64());
        });
        add(Work::TarBytes, (self.proxy.received() - before) as f64 / 1e6);
        self.with_mount(&cairn, |mount| {
            let start = Instant::now();
            let file = File::open(mount.at(large)).unwrap();
            file.read_exact_at(&mut [0], 0).unwrap();
            add(Work::FirstByte, start.elapsed().as_secs_f64());
            add(Work::Sequential, time(|| read_in_order(&file)).as_secs_f64());
        });
        self.with_mount(&cairn, |mount| {
            let taken = time(|| compile(&self.scene, &mount.at(toolchain)));
            add(Work::Compile, taken.as_secs_f64());
        });
        // Nothing is kept near of the local store.
        if line.is_some() {
            self.measure_cache(&cairn.with_cache(&self.scene.path("cache")), &mut add);
        }
    }

    fn measure_cache(&self, cairn: &Cairn, add: &mut impl FnMut(Work, f64)) {
        let [tree, _, toolchain] = &self.paths;
        let empty = || {
            if self.scene.path("cache").exists() {
                cairn.run(["cache", "evict", "--all"]).succeeded();
            }
        };
        empty();
        for work in [Work::CacheCold, Work::CacheWarm] {
            let before = self.proxy.received();
            self.with_mount(cairn, |mount| {
                add(work, time(|| tar(&mount.at(tree))).as_secs_f64());
            });
            if work == Work::CacheWarm {
                add(Work::CacheWarmBytes, (self.proxy.received() - before) as f64 / 1e6);
            }
        }
        empty();
        let warm = [OsStr::new("cache"), "warm".as_ref(), "--profile".as_ref()];
        let warm = warm.into_iter().chain([self.profile.as_os_str()]);
        let taken = time(|| {
            cairn.start(warm).finish_within(LONG_PATIENCE).succeeded();
        });
        add(Work::CompileWarming, taken.as_secs_f64());
        for work in [Work::CompileWarmed, Work::CompileWarm] {
            self.with_mount(cairn, |mount| {
                let taken = time(|| compile(&self.scene, &mount.at(toolchain)));
                add(work, taken.as_secs_f64());
            });
        }
    }

    /// A new mount, which nobody has read of, with nothing in the kernel's caches.
    fn with_mount(&self, cairn: &Cairn, work: impl FnOnce(&Mount)) {
        self.mounts.set(self.mounts.get() + 1);
        let mount = self.scene.mount(cairn, &format!("mount-{}", self.mounts.get()));
        drop_caches();
        work(&mount);
        mount.stop(Signal::TERM).succeeded();
    }
}

fn compile(scene: &Scene, toolchain: &Path) {
    let mut rustc = Command::new(toolchain.join("bin/rustc"));
    rustc.args(["-O", "-o", "hello", "hello.rs"]).current_dir(scene.folder());
    // Cargo names the libraries of its own toolchain there, which would be taken for the mount's.
    rustc.env_remove("LD_LIBRARY_PATH").stdin(Stdio::null());
    let status = rustc.status().unwrap();
    assert!(status.success(), "{}: {status}", base_name(toolchain.to_str().unwrap()));
}

fn print(tree: &Path, lines: &[&Choice], runs: usize, results: &Results) {
    let mut out = std::io::stdout().lock();
    let (nodes, bytes) = measure_tree(tree);
    let cpus = thread::available_parallelism().map_or(0, usize::from);
    let (size, medians) = (bytes as f64 / 1e6, medians_of(runs));
    writeln!(out, "\n{nodes} nodes, {size:.0} MB. {medians}, in seconds; {cpus} CPUs.\n").unwrap();
    let titles: Vec<_> = lines.iter().map(|(_, title, _)| *title).collect();
    writeln!(out, "| | {} |\n|---|{}", titles.join(" | "), "---:|".repeat(lines.len())).unwrap();
    for (work, name) in WORKS {
        let cell = |(line, ..): &&Choice| {
            let Some(values) = results.get(&(work, *line)) else { return String::new() };
            match work {
                Work::FirstByte => format!("{:.3}", median(values)),
                Work::TarBytes | Work::CacheWarmBytes => format!("{:.1}", median(values)),
                _ => format!("{:.2}", median(values)),
            }
        };
        let cells: Vec<_> = lines.iter().map(cell).collect();
        writeln!(out, "| {name} | {} |", cells.join(" | ")).unwrap();
    }
}
