//! Prints what it takes to import several kinds of data, locally and over the wire, beside what
//! the system's own tools take: a Markdown table for each set of data, medians of several runs, all
//! ways in turn in each run.
//!
//! `cargo bench -p cairn-tests --bench imports -- [--runs N] [--sets SET,…] [--ways WAY,…]`, with
//! the sets `linux`, `rust`, `small` and `large`, and the ways of [`WAYS`]. Everything is written
//! below `TMPDIR`, which needs some 90 GB of room for all of it.
#![allow(clippy::unwrap_used, reason = "a benchmark that can't go on panics")]

use std::{
    collections::BTreeMap,
    env,
    ffi::{OsStr, OsString},
    fs::{self, File},
    io::{Read as _, Write as _},
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use cairn_tests::{
    cairn::{Cairn, Scene, binary},
    linux,
    measure::{allocated, command, measure_tree, median, medians_of, peak_memory, time, walk},
    random::Random,
    usage,
};

/// How often each thing is done unless told.
const RUNS: usize = 5;

/// The files of the set of small ones, those in a folder, and the bytes of each.
const SMALL_FILES: usize = 100_000;
const SMALL_IN_FOLDER: usize = 1000;
const SMALL_BYTES: usize = 100;

/// The bytes of the large file, and those that are made of it at a time.
const LARGE_BYTES: u64 = 4 << 30;
const LARGE_PIECE: usize = 8 << 20;

/// One in so many files, or of so many bytes of a single file, is changed.
const CHANGED_SHARE: usize = 100;

/// The ways in, in the order that they are gone, with the names to choose them by.
const WAYS: [(Way, &str, &str); 9] = [
    (Way::Copy, "copy", "`cp -a` and `sync`"),
    (Way::Nix, "nix", "`nix-store --add`"),
    (Way::Local, "local", "**`cairn import`**, local store"),
    (Way::Again, "again", "the same again, unchanged"),
    (Way::Changed, "changed", "again, with 1 % changed"),
    (Way::Grpc, "grpc", "over gRPC on loopback, new store"),
    (Way::Object, "object", "into `objectstore+file`"),
    (Way::Trees, "trees", "in three parts at once, local store"),
    (Way::Clients, "clients", "in three parts, by three clients of a daemon"),
];

/// What has no more files than this is removed at once.
const FILES_REMOVED: usize = 10_000;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Way {
    Copy,
    Nix,
    Local,
    Again,
    Changed,
    Grpc,
    Object,
    Trees,
    Clients,
}

/// What was measured of one way.
#[derive(Debug, Default)]
struct Measured {
    seconds: Vec<f64>,
    /// Of all processes of cairn together, in bytes.
    memory: u64,
    /// In bytes on disk, at the end of the last run.
    stored: Option<u64>,
}

type Results = BTreeMap<Way, Measured>;

/// The data of one set.
struct Data {
    tree: PathBuf,
    /// The same in three parts.
    parts: Vec<PathBuf>,
}

fn main() {
    let mut runs = RUNS;
    let mut sets = "linux,rust,small,large".to_owned();
    let mut ways: Vec<Way> = WAYS.iter().map(|(way, ..)| *way).collect();
    let mut words = env::args().skip(1);
    while let Some(word) = words.next() {
        match word.as_str() {
            // Cargo passes it to every benchmark.
            "--bench" => {}
            "--runs" => runs = words.next().unwrap().parse().unwrap(),
            "--sets" => sets = words.next().unwrap(),
            "--ways" => ways = words.next().unwrap().split(',').map(way).collect(),
            word => panic!("{word}: not an option of this benchmark"),
        }
    }
    assert!(runs > 0, "nothing is measured by no run");
    eprintln!("{}", binary().display());
    // Removed at the end alone: see `put_aside`.
    let mut scenes = Vec::new();
    for set in sets.split(',') {
        let scene = {
            scenes.push(Scene::new());
            &scenes[scenes.len() - 1]
        };
        eprintln!("{set}: preparing");
        let data = prepare(set, scene);
        let size = measure_tree(&data.tree);
        let mut results = Results::new();
        for run in 0..runs {
            eprintln!("{set}: run {} of {runs}", run + 1);
            measure(scene, &data, run, &ways, &mut results);
        }
        print(set, size, runs, &results);
    }
}

fn way(name: &str) -> Way {
    let found = WAYS.iter().find(|(_, known, _)| *known == name);
    found.unwrap_or_else(|| panic!("{name}: not a way that is measured")).0
}

/// Makes a set of data: a copy, since some of it is changed on the way.
fn prepare(set: &str, scene: &Scene) -> Data {
    let tree = scene.path("data");
    match set {
        "linux" => copy(&linux::tree(), &tree),
        "rust" => copy(&rust_toolchain(), &tree),
        "small" => make_small(&tree),
        "large" => make_large(&tree),
        set => panic!("{set}: not a set of data"),
    }
    let names = ["part-1", "part-2", "part-3"];
    let parts: Vec<_> = names.iter().map(|name| scene.path(name)).collect();
    match tree.is_dir() {
        true => split_tree(&tree, &parts),
        false => split_file(&tree, &parts),
    }
    Data { tree, parts }
}

fn copy(from: &Path, to: &Path) {
    command("cp", [OsStr::new("-a"), from.as_os_str(), to.as_os_str()]);
}

fn rust_toolchain() -> PathBuf {
    let rustc = env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let output = Command::new(rustc).args(["--print", "sysroot"]).output().unwrap();
    assert!(output.status.success(), "rustc tells no folder of its toolchain");
    PathBuf::from(String::from_utf8(output.stdout).unwrap().trim_end())
}

fn make_small(tree: &Path) {
    let mut random = Random::new("small files");
    for index in 0..SMALL_FILES {
        let folder = tree.join(format!("{:03}", index / SMALL_IN_FOLDER));
        if index % SMALL_IN_FOLDER == 0 {
            fs::create_dir_all(&folder).unwrap();
        }
        fs::write(folder.join(format!("{index:06}")), random.bytes(SMALL_BYTES)).unwrap();
    }
}

fn make_large(path: &Path) {
    let mut random = Random::new("a large file");
    let mut file = File::create(path).unwrap();
    for _ in 0..LARGE_BYTES / LARGE_PIECE as u64 {
        file.write_all(&random.bytes(LARGE_PIECE)).unwrap();
    }
}

/// Moves what is two levels below the root of a copy into three parts of about one size.
fn split_tree(tree: &Path, parts: &[PathBuf]) {
    let whole = tree.with_file_name("whole");
    copy(tree, &whole);
    let mut pieces = Vec::new();
    for top in entries(&whole) {
        let is_folder = top.symlink_metadata().unwrap().is_dir();
        pieces.extend(if is_folder { entries(&top) } else { vec![top] });
    }
    let mut pieces: Vec<_> =
        pieces.into_iter().map(|piece| (measure_tree(&piece).1, piece)).collect();
    pieces.sort();
    let mut sizes = vec![0; parts.len()];
    for (size, piece) in pieces.into_iter().rev() {
        let least = (0..parts.len()).min_by_key(|index| sizes[*index]).unwrap();
        sizes[least] += size;
        let place = parts[least].join(piece.strip_prefix(&whole).unwrap());
        fs::create_dir_all(place.parent().unwrap()).unwrap();
        fs::rename(&piece, place).unwrap();
    }
    fs::remove_dir_all(whole).unwrap();
}

fn entries(folder: &Path) -> Vec<PathBuf> {
    fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect()
}

fn split_file(file: &Path, parts: &[PathBuf]) {
    let mut whole = File::open(file).unwrap();
    let share = whole.metadata().unwrap().len().div_ceil(parts.len() as u64);
    for part in parts {
        std::io::copy(&mut (&mut whole).take(share), &mut File::create(part).unwrap()).unwrap();
    }
}

/// Changes some of the data, and something else in every run.
fn change(tree: &Path, run: usize) {
    let mut random = Random::new(&format!("change {run}"));
    if tree.is_file() {
        let file = File::options().write(true).open(tree).unwrap();
        let share = file.metadata().unwrap().len() / CHANGED_SHARE as u64;
        let start = (run % CHANGED_SHARE) as u64 * share;
        file.write_all_at(&random.bytes(usize::try_from(share).unwrap()), start).unwrap();
        return;
    }
    let mut files = Vec::new();
    walk(tree, &mut |path, metadata| {
        if metadata.is_file() {
            files.push(path.to_owned());
        }
    });
    files.sort();
    for path in files.iter().skip(run % CHANGED_SHARE).step_by(CHANGED_SHARE) {
        let mut bytes = fs::read(path).unwrap();
        bytes.extend(random.bytes(16));
        // Files of toolchains may be linked to others, and files of trees be read-only.
        let permissions = fs::metadata(path).unwrap().permissions();
        fs::remove_file(path).unwrap();
        fs::write(path, bytes).unwrap();
        fs::set_permissions(path, permissions).unwrap();
    }
}

fn measure(scene: &Scene, data: &Data, run: usize, ways: &[Way], results: &mut Results) {
    let place = scene.path("written");
    let tree = data.tree.as_os_str();
    // Brings the data into the page cache, as it is for each of those who take it in.
    for path in data.parts.iter().chain([&data.tree]) {
        // Through a pipe, since `tar` reads nothing when it writes to `/dev/null` itself.
        let script = "set -o pipefail; tar -cf - \"$0\" 2> /dev/null | cat > /dev/null";
        command("bash", [OsStr::new("-c"), OsStr::new(script), path.as_os_str()]);
    }
    let has = |way| ways.contains(&way);
    if has(Way::Copy) {
        let seconds = fresh(|| {
            copy(&data.tree, &place);
            command("sync", [OsStr::new("-f"), place.as_os_str()]);
        });
        note(results, Way::Copy, seconds, 0, None);
        put_aside(scene, &place);
    }
    if has(Way::Nix) {
        let add = [OsStr::new("--store"), place.as_os_str(), OsStr::new("--add"), tree];
        let seconds = fresh(|| command("nix-store", add));
        note(results, Way::Nix, seconds, 0, None);
        command("chmod", [OsStr::new("-R"), OsStr::new("u+w"), place.as_os_str()]);
        put_aside(scene, &place);
    }
    if has(Way::Local) || has(Way::Again) || has(Way::Changed) {
        let cairn = Cairn::local(&place);
        for way in [Way::Local, Way::Again, Way::Changed] {
            if way != Way::Local && !has(way) {
                continue;
            }
            if way == Way::Changed {
                change(&data.tree, run);
            }
            let (seconds, memory) = import(&cairn, &[&[&data.tree]]);
            note(results, way, seconds, memory, Some(allocated(&place)));
        }
        remove(&place);
    }
    if has(Way::Object) {
        let mut url = OsString::from("objectstore+file://");
        url.push(&place);
        let (seconds, memory) = import(&Cairn::new(url), &[&[&data.tree]]);
        note(results, Way::Object, seconds, memory, Some(allocated(&place)));
        put_aside(scene, &place);
    }
    let parts: Vec<&Path> = data.parts.iter().map(PathBuf::as_path).collect();
    if has(Way::Trees) {
        let (seconds, memory) = import(&Cairn::local(&place), &[&parts]);
        note(results, Way::Trees, seconds, memory, Some(allocated(&place)));
        remove(&place);
    }
    let alone: Vec<&[&Path]> = parts.chunks(1).collect();
    for (way, processes) in [(Way::Grpc, &[&[data.tree.as_path()][..]][..]), (Way::Clients, &alone)]
    {
        if has(way) {
            let mut daemon = Cairn::local(&place).serve("127.0.0.1:0");
            let (seconds, memory) = import(&daemon.client(), processes);
            let memory = memory + peak_memory(daemon.process());
            note(results, way, seconds, memory, Some(allocated(&place)));
            daemon.kill();
            remove(&place);
        }
    }
}

/// The seconds that something takes with nothing left to be written of what was before.
fn fresh(work: impl FnOnce()) -> f64 {
    rustix::fs::sync();
    time(work).as_secs_f64()
}

/// Imports, in one process for each list of paths, all at once: the seconds until the last has
/// ended, and the peaks of their memory together.
fn import<P: AsRef<Path>>(cairn: &Cairn, processes: &[&[P]]) -> (f64, u64) {
    rustix::fs::sync();
    let start = Instant::now();
    let children: Vec<Child> = processes
        .iter()
        .map(|paths| {
            let mut import = cairn.command(["import"]);
            import.args(paths.iter().map(|path| path.as_ref()));
            import.stdout(Stdio::null()).spawn().unwrap()
        })
        .collect();
    let mut memory = 0;
    for child in children {
        let (status, usage) = usage::wait(child).unwrap();
        assert!(status.success(), "an import has failed: {status}");
        memory += usage.peak_memory;
    }
    let elapsed: Duration = start.elapsed();
    (elapsed.as_secs_f64(), memory)
}

fn note(results: &mut Results, way: Way, seconds: f64, memory: u64, stored: Option<u64>) {
    let measured = results.entry(way).or_default();
    measured.seconds.push(seconds);
    measured.memory = measured.memory.max(memory);
    measured.stored = stored;
}

/// Takes what was written out of the way. Many files are removed at the end of the benchmark: a file
/// system that has just lost a hundred thousand makes new ones at a tenth of its speed for minutes.
fn put_aside(scene: &Scene, path: &Path) {
    let mut files = 0;
    walk(path, &mut |_, _| files += 1);
    if files < FILES_REMOVED {
        return remove(path);
    }
    let mut aside = (0..).map(|number| scene.path(&format!("aside-{number}")));
    let aside = aside.find(|aside| !aside.exists()).unwrap();
    fs::rename(path, aside).unwrap();
}

fn remove(path: &Path) {
    match path.is_dir() {
        true => fs::remove_dir_all(path).unwrap(),
        false => fs::remove_file(path).unwrap(),
    }
}

fn print(set: &str, (nodes, bytes): (u64, u64), runs: usize, results: &Results) {
    let megabytes = |bytes: u64| format!("{:.0}", bytes as f64 / 1e6);
    let cpus = std::thread::available_parallelism().map_or(0, usize::from);
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let mut out = std::io::stdout().lock();
    let medians = medians_of(runs);
    writeln!(
        out,
        "\n{set}: {nodes} nodes, {} MB. {medians}; {cpus} CPUs, Linux {}.\n",
        megabytes(bytes),
        kernel.trim()
    )
    .unwrap();
    writeln!(
        out,
        "| | seconds | to `cp -a` | to `nix-store` | to local | peak memory, MB | stored, MB |\n\
         |---|---:|---:|---:|---:|---:|---:|"
    )
    .unwrap();
    let seconds = |way| results.get(&way).map(|measured| median(&measured.seconds));
    for (way, _, title) in WAYS {
        let Some(measured) = results.get(&way) else { continue };
        let own = median(&measured.seconds);
        let ratio = |baseline| match seconds(baseline) {
            Some(baseline) => format!("{:.2}", own / baseline),
            None => String::new(),
        };
        let memory = if measured.memory > 0 { megabytes(measured.memory) } else { String::new() };
        writeln!(
            out,
            "| {title} | {own:.2} | {} | {} | {} | {memory} | {} |",
            ratio(Way::Copy),
            ratio(Way::Nix),
            ratio(Way::Local),
            measured.stored.map(megabytes).unwrap_or_default()
        )
        .unwrap();
    }
}
