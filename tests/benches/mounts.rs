//! Prints what reading through a mount takes beside other file systems that show the same tree: a
//! Markdown table with a column for each, medians of several runs, all of them in turn in each run.
//!
//! `cargo bench -p cairn-tests --bench mounts -- [--runs N] [--places PLACE,…] [TREE]`, with the
//! places of [`PLACES`]; the tree is Linux 6.1 unless told. Needs root, to mount and to drop the
//! kernel's caches, and for `erofs`, `squashfs` and `squashfuse` the programs that make and mount
//! them.
#![allow(clippy::unwrap_used, reason = "a benchmark that can't go on panics")]

use std::{
    collections::BTreeMap,
    env,
    ffi::OsStr,
    fs::{self, File},
    io::Write as _,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use cairn_tests::{
    cairn::{Cairn, Mount, Scene, binary},
    linux,
    measure::{
        command, drop_caches, find, measure_tree, median, medians_of, memory, peak_memory,
        read_in_order, tar, time, walk, write_large,
    },
    process::{LONG_PATIENCE, bytes_read_by, eventually},
    random::Random,
};
use rustix::process::Signal;

/// How often each thing is done unless told.
const RUNS: usize = 3;

/// The bytes of the large file.
const LARGE_BYTES: u64 = 1 << 30;

/// How many reads are made at random places of it, and the bytes of each.
const RANDOM_READS: usize = 20_000;
const RANDOM_BYTES: usize = 4096;

/// How long a mount may take to give its memory back.
const REST: Duration = Duration::from_secs(4);

/// How many times names that are not there are asked for in the tree.
const MISSES: usize = 100_000;

/// The entries of two folders of empty files, in which names are asked for.
const FEW: usize = 10;
const MANY: usize = 100_000;

/// How many names that are not there are asked for in each of them, each once.
const NAMES: usize = 20_000;

/// The places that the tree is read from, with the names to choose them by.
const PLACES: [(Place, &str, &str); 9] = [
    (Place::Disk, "disk", "local file system"),
    (Place::Erofs, "erofs", "erofs"),
    (Place::Squashfs, "squashfs", "squashfs"),
    (Place::Squashfuse, "squashfuse", "squashfuse"),
    (Place::Cairn, "cairn", "**cairn**, local store"),
    (Place::Passthrough, "passthrough", "**cairn**, passthrough"),
    (Place::Tcp, "tcp", "**cairn**, over TCP"),
    (Place::Cold, "cold", "**cairn**, over TCP through an empty cache"),
    (Place::Warm, "warm", "**cairn**, over TCP through a warm cache"),
];

/// What is done, in this order.
const WORKS: [(Work, &str); 16] = [
    (Work::Find, "`find -printf %s`, caches dropped"),
    (Work::Tar, "`tar` of the tree, caches dropped"),
    (Work::TarAgain, "`tar` again"),
    (Work::Misses, "100,000 times a name that is not there, of 1,000 names"),
    (Work::NewMisses(FEW), "20,000 names that are not there, once each, among 10 entries"),
    (Work::NewMisses(MANY), "the same among 100,000 entries"),
    (Work::OldMisses(MANY), "the same again"),
    (Work::List, "`ls -f` of 100,000 entries, caches dropped"),
    (Work::ListAgain, "`ls -f` again"),
    (Work::Readers(1), "every file, 1 reader, caches dropped"),
    (Work::Readers(2), "every file, 2 readers, caches dropped"),
    (Work::Readers(8), "every file, 8 readers, caches dropped"),
    (Work::Sequential, "1 GiB file in order, caches dropped"),
    (Work::SequentialAgain, "1 GiB file in order, again"),
    (Work::Random, "20,000 × 4 KiB of it at random, caches dropped"),
    (Work::RandomAgain, "the same places again"),
];

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Place {
    Disk,
    Erofs,
    Squashfs,
    Squashfuse,
    Cairn,
    /// Like the one before, with the large file made whole.
    Passthrough,
    Tcp,
    Cold,
    Warm,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Work {
    Find,
    Tar,
    TarAgain,
    Misses,
    /// In the folder of so many entries.
    NewMisses(usize),
    OldMisses(usize),
    List,
    ListAgain,
    Readers(usize),
    Sequential,
    SequentialAgain,
    Random,
    RandomAgain,
}

/// What was measured, in seconds, a value for each run.
type Results = BTreeMap<(Work, Place), Vec<f64>>;

/// The most memory of the local mount's process, and what it had when the kernel had forgotten all,
/// in bytes.
#[derive(Default)]
struct Memory {
    peak: u64,
    after: u64,
}

/// Something that is mounted by other means than cairn's.
struct Mounted(PathBuf);

impl Drop for Mounted {
    fn drop(&mut self) {
        command("umount", [&self.0]);
    }
}

fn main() {
    let mut runs = RUNS;
    let mut places: Vec<Place> = PLACES.iter().map(|(place, ..)| *place).collect();
    let mut tree = None;
    let mut words = env::args().skip(1);
    while let Some(word) = words.next() {
        match word.as_str() {
            // Cargo passes it to every benchmark.
            "--bench" => {}
            "--runs" => runs = words.next().unwrap().parse().unwrap(),
            "--places" => places = words.next().unwrap().split(',').map(place).collect(),
            word => tree = Some(PathBuf::from(word)),
        }
    }
    assert!(runs > 0, "nothing is measured by no run");
    let tree = tree.unwrap_or_else(linux::tree).canonicalize().unwrap();
    eprintln!("{} on {}", binary().display(), tree.display());

    let scene = Scene::new();
    let source = scene.new_folder("source");
    command("cp", [OsStr::new("-a"), tree.as_os_str(), source.join("tree").as_os_str()]);
    write_large(&source.join("large"), LARGE_BYTES);
    write_many(&source, FEW);
    write_many(&source, MANY);
    let _images: Vec<_> =
        places.iter().filter_map(|place| show_image(&scene, &source, *place)).collect();
    let cairn = scene.cairn();
    let path = cairn.import(&source);
    // A store of its own: a mount of one that a daemon has open would go through the daemon.
    let served = scene.path("served");
    command("cp", [OsStr::new("-a"), scene.store().as_os_str(), served.as_os_str()]);
    let daemon = Cairn::local(&served).serve("127.0.0.1:0");

    let cached = daemon.client().with_cache(&scene.path("cache"));

    let mut results = Results::new();
    let mut own = Memory::default();
    for run in 0..runs {
        for &place in &places {
            eprintln!("run {} of {runs}: {place:?}", run + 1);
            // A new mount each time: what a server has in its own memory is not the kernel's to
            // drop. And alone: a second one of the same store would go through the first.
            let mount = match place {
                Place::Disk | Place::Erofs | Place::Squashfs | Place::Squashfuse => None,
                Place::Cairn => Some(scene.mount(&cairn, "local")),
                Place::Passthrough => Some(pass_through(&scene, &cairn, &path)),
                Place::Tcp => Some(scene.mount(&daemon.client(), "tcp")),
                Place::Cold | Place::Warm => Some(scene.mount(&cached, "cached")),
            };
            let top = match (&mount, place) {
                (Some(mount), _) => mount.at(&path),
                (None, Place::Disk) => source.clone(),
                (None, image) => scene.path(&format!("{image:?}")),
            };
            if place == Place::Warm {
                let warming = cached.start(["cache", "warm", &path]);
                warming.finish_within(LONG_PATIENCE).succeeded();
            }
            let forget = || {
                if place == Place::Cold {
                    cached.run(["cache", "evict", "--all"]).succeeded();
                }
                drop_caches();
            };
            measure(&top, run, forget, |work, seconds| {
                results.entry((work, place)).or_default().push(seconds);
            });
            if let Some(mount) = mount {
                mount.stop(Signal::TERM).succeeded();
            }
            if place == Place::Cairn {
                note_memory(scene.mount(&cairn, "memory"), &path, &mut own);
            }
        }
    }
    print(&source, &places, runs, &results, &own);
}

fn place(name: &str) -> Place {
    let found = PLACES.iter().find(|(_, called, _)| *called == name);
    found.unwrap_or_else(|| panic!("{name}: not a place of this benchmark")).0
}

/// A mount of the store by which the kernel reads the large file by itself.
fn pass_through(scene: &Scene, cairn: &Cairn, path: &str) -> Mount {
    let folder = scene.path("whole");
    let options = ["--profile", "passthrough", "--whole-files", folder.to_str().unwrap()];
    let mut mount = cairn.mount_with(&scene.new_folder("passthrough"), options);
    // Read once, it becomes whole, or is verified if it has been in an earlier run.
    eventually("the kernel reads the large file", || {
        drop_caches();
        let before = bytes_read_by(mount.process().pid());
        read_in_order(&File::open(mount.at(path).join("large")).unwrap());
        bytes_read_by(mount.process().pid()) - before < LARGE_BYTES / 2
    });
    mount
}

/// The folder of so many entries.
fn folder_of(top: &Path, entries: usize) -> PathBuf {
    top.join(format!("entries-{entries}"))
}

fn write_many(top: &Path, entries: usize) {
    let folder = folder_of(top, entries);
    fs::create_dir(&folder).unwrap();
    for number in 0..entries {
        File::create(folder.join(format!("entry-{number}"))).unwrap();
    }
}

/// Makes an image of the source, unless it is there, and mounts it, if the place is one.
fn show_image(scene: &Scene, source: &Path, place: Place) -> Option<Mounted> {
    let (image, program, options): (_, _, &[&str]) = match place {
        Place::Disk | Place::Cairn | Place::Passthrough => return None,
        Place::Tcp | Place::Cold | Place::Warm => return None,
        Place::Erofs => (scene.path("erofs.image"), "mkfs.erofs", &["-zlz4"]),
        // The level that is the default takes minutes, and reads no slower.
        Place::Squashfs | Place::Squashfuse => {
            let zstd = &["-comp", "zstd", "-Xcompression-level", "3"];
            (scene.path("squashfs.image"), "mksquashfs", zstd)
        }
    };
    if !image.exists() {
        let (source, image) = (source.as_os_str(), image.as_os_str());
        let options = options.iter().map(OsStr::new);
        let words: Vec<&OsStr> = match place {
            Place::Erofs => options.chain([image, source]).collect(),
            _ => [source, image].into_iter().chain(options).collect(),
        };
        command(program, words);
    }
    let mountpoint = scene.new_folder(&format!("{place:?}"));
    let paths = [image.as_os_str(), mountpoint.as_os_str()];
    let mount = |kind| {
        let words = ["-t", kind, "-o", "loop,ro"].into_iter().map(OsStr::new);
        command("mount", words.chain(paths));
    };
    match place {
        Place::Erofs => mount("erofs"),
        Place::Squashfs => mount("squashfs"),
        _ => command("squashfuse", paths),
    }
    Some(Mounted(mountpoint))
}

/// Does all that is measured with one place, with caches that are made to forget where that is part
/// of it.
fn measure(top: &Path, run: usize, forget: impl Fn(), mut add: impl FnMut(Work, f64)) {
    let (tree, large) = (top.join("tree"), top.join("large"));
    let mut random = Random::new(&format!("reads {run}"));
    let offsets: Vec<u64> = (0..RANDOM_READS)
        .map(|_| random.below(LARGE_BYTES / RANDOM_BYTES as u64) * RANDOM_BYTES as u64)
        .collect();
    let mut files = None;
    for (work, _) in WORKS {
        match work {
            Work::TarAgain | Work::SequentialAgain | Work::RandomAgain | Work::ListAgain => {}
            Work::Misses | Work::OldMisses(_) => {}
            _ => forget(),
        }
        let taken = match work {
            Work::Find => time(|| find(&tree)),
            Work::Tar | Work::TarAgain => time(|| tar(&tree)),
            Work::Misses => time(|| miss(&tree)),
            Work::NewMisses(entries) | Work::OldMisses(entries) => {
                let folder = folder_of(top, entries);
                // The folder itself has been read, by whoever looks for something in it.
                fs::metadata(folder.join("entry-0")).unwrap();
                time(|| miss_once(&folder))
            }
            Work::List | Work::ListAgain => time(|| list(&folder_of(top, MANY))),
            Work::Readers(readers) => {
                let files: &Vec<PathBuf> = files.get_or_insert_with(|| files_of(&tree));
                forget();
                time(|| read_all(files, readers))
            }
            Work::Sequential | Work::SequentialAgain => {
                time(|| read_in_order(&File::open(&large).unwrap()))
            }
            Work::Random | Work::RandomAgain => time(|| read_at(&large, &offsets)),
        };
        add(work, taken.as_secs_f64());
    }
}

/// As a compiler does that looks for a header in one folder after the other: each name is asked
/// for some times.
fn miss(folder: &Path) {
    for number in 0..MISSES {
        fs::symlink_metadata(folder.join(format!("none-{}", number % 1000))).unwrap_err();
    }
}

fn miss_once(folder: &Path) {
    for number in 0..NAMES {
        fs::symlink_metadata(folder.join(format!("none-{number}"))).unwrap_err();
    }
}

fn list(folder: &Path) {
    command("ls", [OsStr::new("-f"), folder.as_os_str()]);
}

fn files_of(tree: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    walk(tree, &mut |path, metadata| {
        if metadata.is_file() {
            files.push(path.to_owned());
        }
    });
    files
}

/// Each of the readers reads its part of the files, one after the other.
fn read_all(files: &[PathBuf], readers: usize) {
    thread::scope(|scope| {
        for part in files.chunks(files.len().div_ceil(readers)) {
            scope.spawn(move || {
                part.iter().for_each(|file| read_in_order(&File::open(file).unwrap()))
            });
        }
    });
}

fn read_at(file: &Path, offsets: &[u64]) {
    let mut buffer = vec![0; RANDOM_BYTES];
    let file = File::open(file).unwrap();
    for offset in offsets {
        file.read_exact_at(&mut buffer, *offset).unwrap();
    }
}

/// What a mount takes that has shown the whole tree, and read it twice.
fn note_memory(mut mount: Mount, path: &str, own: &mut Memory) {
    let tree = mount.at(path).join("tree");
    find(&tree);
    tar(&tree);
    tar(&tree);
    own.peak = own.peak.max(peak_memory(mount.process()));
    drop_caches();
    // The kernel tells of what it has forgotten behind our back.
    thread::sleep(REST);
    own.after = own.after.max(memory(mount.process()));
    mount.stop(Signal::TERM).succeeded();
}

fn print(source: &Path, places: &[Place], runs: usize, results: &Results, own: &Memory) {
    let mut out = std::io::stdout().lock();
    let (nodes, bytes) = measure_tree(&source.join("tree"));
    let cpus = thread::available_parallelism().map_or(0, usize::from);
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let release = kernel.split('-').next().unwrap_or_default().trim();
    let megabytes = |bytes: u64| bytes as f64 / 1e6;
    let size = megabytes(bytes);
    let medians = medians_of(runs);
    writeln!(
        out,
        "\n{nodes} nodes, {size:.0} MB. {medians}, in seconds, and the ratio to the \
         first column; {cpus} CPUs, Linux {release}.\n",
    )
    .unwrap();
    let title = |place: &Place| PLACES.iter().find(|(shown, ..)| shown == place).unwrap().2;
    let titles: Vec<_> = places.iter().map(title).collect();
    writeln!(out, "| | {} |\n|---|{}", titles.join(" | "), "---:|".repeat(places.len())).unwrap();
    for (work, name) in WORKS {
        let seconds = |place: &Place| median(&results[&(work, *place)]);
        let first = seconds(&places[0]);
        let cell = |place: &Place| format!("{:.2} ({:.2})", seconds(place), seconds(place) / first);
        let cells: Vec<_> = places.iter().map(cell).collect();
        writeln!(out, "| {name} | {} |", cells.join(" | ")).unwrap();
    }
    if places.contains(&Place::Cairn) {
        let (peak, after) = (megabytes(own.peak), megabytes(own.after));
        writeln!(
            out,
            "\nMemory of a local mount that has shown the tree and read it twice: {peak:.0} MB at most, \
             {after:.0} MB when the kernel had forgotten everything."
        )
        .unwrap();
    }
}
