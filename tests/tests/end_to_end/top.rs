//! `cairn top`: a mount and a daemon, looked at while they work, while something stalls and when they are
//! gone, in a real terminal.

use std::{
    env,
    fs::{self, File},
    io::Read as _,
    path::{Path, PathBuf},
    process::Command,
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    thread,
    time::Duration,
};

use cairn_tests::{
    cairn::{Cairn, Daemon, Mount, Scene},
    picture,
    process::{eventually, run},
    proxy::{Passage, Proxy},
    random::Random,
    telling::Telling,
    terminal::Terminal,
};
use rustix::{
    fs::{Advice, fadvise},
    process::Signal,
};
use serde_json::Value;

/// What has a process tell of itself on a free port.
const TELL: [&str; 2] = ["--http", "127.0.0.1:0"];

/// What is worth a look.
const YELLOW: vt100::Color = vt100::Color::Idx(3);

/// The terminal of the picture.
const SIZE: (u16, u16) = (136, 36);

/// How many files are read again and again, and their bytes: more than a mount has in its memory, so that
/// they come from the cache on the disk.
const FILES: usize = 40;
const FILE_BYTES: usize = 1_000_000;

/// The bytes of one that is read when nothing comes any more.
const LARGE: usize = 20_000_000;

/// A mount with a cache, of a daemon behind a line that can fail.
struct Remote {
    scene: Scene,
    proxy: Proxy,
    daemon: Daemon,
    mount: Mount,
    telling: Telling,
    root: PathBuf,
}

fn remote() -> Remote {
    let scene = Scene::new();
    let tree = scene.new_folder("tree");
    let mut random = Random::new("files for `cairn top`");
    for number in 0..FILES {
        fs::write(tree.join(format!("file-{number}")), random.bytes(FILE_BYTES)).unwrap();
    }
    fs::create_dir(tree.join("far")).unwrap();
    fs::write(tree.join("far/large"), random.bytes(LARGE)).unwrap();
    let path = scene.cairn().import(&tree);
    let daemon = scene.cairn().serve_with("127.0.0.1:0", TELL);
    let proxy = Proxy::before(daemon.url());
    let cairn = Cairn::new(proxy.url()).with_cache(&scene.path("cache"));
    let mut options = TELL.to_vec();
    options.extend(["--deadline", "100000", "--grace", "0"]);
    let mount = cairn.mount_with(&scene.new_folder("mnt"), options);
    let (telling, root) = (Telling::of(&mount.imported), mount.at(&path));
    Remote { scene, proxy, daemon, mount, telling, root }
}

impl Remote {
    fn top(&self, words: &[&str]) -> Command {
        let mut command = self.scene.cairn().command(["top", "--http", self.telling.address()]);
        command.args(words);
        command
    }
}

/// Reads files again and again, from the mount and not from the kernel's memory, until told to end. Counts
/// how often all were read.
#[derive(Default)]
struct Load {
    rounds: AtomicUsize,
    is_over: AtomicBool,
}

impl Load {
    fn run(&self, root: &Path) {
        let mut bytes = Vec::new();
        while !self.is_over.load(Ordering::Relaxed) {
            for number in 0..FILES {
                let mut file = File::open(root.join(format!("file-{number}"))).unwrap();
                bytes.clear();
                assert_eq!(file.read_to_end(&mut bytes).unwrap(), FILE_BYTES);
                fadvise(&file, 0, None, Advice::DontNeed).unwrap();
                thread::sleep(Duration::from_millis(5));
            }
            self.rounds.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Waits until all has been read once more.
    fn goes_on(&self) {
        let rounds = self.rounds.load(Ordering::Relaxed);
        eventually("all files to be read", || self.rounds.load(Ordering::Relaxed) > rounds);
    }

    fn end(&self) {
        self.is_over.store(true, Ordering::Relaxed);
    }
}

#[test]
fn a_terminal_shows_what_a_mount_does_and_what_stalls() {
    let remote = remote();
    let load = Load::default();
    let mut top = Terminal::start(&mut remote.top(&["--interval", "0.5"]), SIZE.0, SIZE.1);
    thread::scope(|scope| {
        let root = &remote.root;
        scope.spawn(|| load.run(root));
        top.shows(&["cairn mount ", "live ✓", "fuse", "read", "files read", "grpc client", "node"]);
        top.press("s");
        top.shows(&["Requests by time"]);
        top.press("p");
        top.shows(&["paused"]);
        top.press("pss");
        top.shows(&["Requests by rate"]);

        load.goes_on();
        // One that nobody has read yet waits for the store; what is near goes on.
        let large = root.join("far/large");
        assert_eq!(fs::metadata(&large).unwrap().len(), LARGE as u64);
        remote.proxy.pass(Passage::Stalled);
        let stuck = scope.spawn(|| fs::read(large));
        let waits = ["fuse read", "grpc client cairn.v1.BlobService/"];
        top.shows(&waits);
        // Longer than is worth a look, so that it is yellow.
        thread::sleep(Duration::from_secs(6));
        load.goes_on();
        let screen = top.shows(&waits);
        if env::var_os("UPDATE").is_some() {
            let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/top.svg");
            let address = remote.telling.address();
            fs::write(path, picture::svg(&screen, &format!("cairn top --http {address}"))).unwrap();
        }
        let colours = colours_of(&screen, "fuse read");
        assert!(colours.contains(&YELLOW), "{colours:?}: {}", screen.contents());
        remote.proxy.pass(Passage::Open);
        assert_eq!(stuck.join().unwrap().unwrap().len(), LARGE);
        top.shows(&["Slowest of the last minute", "fuse read"]);
        load.end();
    });
    // A smaller terminal has less on it.
    top.resize(80, 24);
    top.shows(&["cairn mount ", "q quit"]);

    // The process goes away, which is no reason to end.
    remote.mount.stop(Signal::TERM).succeeded();
    top.shows(&["No answer for", "nobody can be reached"]);
    top.press("q");
    assert_eq!(top.finish().code(), Some(0));
    eventually("the terminal to be given back", || top.is_restored());
    remote.daemon.stop(Signal::TERM).succeeded();
}

/// The colours of the first letter of a text, in each line that has it.
fn colours_of(screen: &vt100::Screen, text: &str) -> Vec<vt100::Color> {
    let (rows, columns) = screen.size();
    let colours = (0..rows).flat_map(|row| {
        let cells: Vec<_> = (0..columns).filter_map(|column| screen.cell(row, column)).collect();
        let letter = |cell: &&vt100::Cell| cell.contents().chars().next().unwrap_or(' ');
        let line: Vec<char> = cells.iter().map(letter).collect();
        let text: Vec<char> = text.chars().collect();
        let starts = line.windows(text.len()).enumerate().filter(|(_, part)| **part == text[..]);
        starts.map(|(at, _)| cells[at].fgcolor()).collect::<Vec<_>>()
    });
    colours.collect()
}

#[test]
fn a_terminal_is_given_back_whatever_ends_it() {
    let scene = Scene::new();
    let daemon = scene.cairn().serve_with("127.0.0.1:0", TELL);
    let telling = Telling::of(&daemon.said);
    for (signal, code) in
        [(None, 0), (Some(Signal::INT), 0), (Some(Signal::TERM), 143), (Some(Signal::HUP), 143)]
    {
        let words = ["top", "--http", telling.address(), "--interval", "0.1"];
        let mut top = Terminal::start(&mut scene.cairn().command(words), 100, 30);
        top.shows(&["cairn daemon ", "q quit"]);
        assert!(top.screen().alternate_screen() && !top.is_restored());
        match signal {
            Some(signal) => top.signal(signal),
            // Ctrl-C, which is a key while the terminal is ours.
            None => top.press("\x03"),
        }
        assert_eq!(top.finish().code(), Some(code), "{signal:?}");
        eventually("the terminal to be given back", || top.is_restored());
    }
    daemon.stop(Signal::TERM).succeeded();
}

#[test]
fn without_a_terminal_there_are_rows_and_objects() {
    let remote = remote();
    let load = Load::default();
    let (rows, values) = thread::scope(|scope| {
        scope.spawn(|| load.run(&remote.root));
        load.goes_on();
        let run = |words: &[&str]| run(&mut remote.top(words)).succeeded().lines();
        let rows = run(&[]);
        let values = run(&["--json", "--count", "2", "--interval", "0.3"]);
        load.end();
        (rows, values)
    });
    let row = |start: &str| rows.iter().find(|row| row.starts_with(start));
    assert!(row("process\tmount\t").is_some(), "{rows:?}");
    let read = row("request\tfuse\tread\t").unwrap_or_else(|| panic!("{rows:?}"));
    assert!(read.split('\t').nth(3).unwrap().parse::<f64>().unwrap() > 0.0, "{read}");
    assert!(row("cache\tnode\t").is_some() && row("queue\tfuse\t").is_some(), "{rows:?}");

    assert_eq!(values.len(), 2);
    for value in &values {
        let value: Value = serde_json::from_str(value).unwrap();
        assert_eq!(value["process"]["role"], "mount", "{value}");
        assert!(value["intervalSeconds"].as_f64().unwrap() > 0.2, "{value}");
        let requests = value["requests"].as_array().unwrap();
        let read = requests.iter().find(|one| one["kind"] == "fuse" && one["name"] == "read");
        assert!(read.unwrap()["perSecond"].as_f64().unwrap() > 0.0, "{value}");
    }
    remote.mount.stop(Signal::TERM).succeeded();
}

#[test]
fn who_tells_nothing_is_told_of() {
    let scene = Scene::new();
    let cairn = scene.cairn();
    let nobody = ["top", "--http", "127.0.0.1:1"];
    cairn.run(nobody).failed(1, &["http://127.0.0.1:1", "refused", "--http HOST:PORT"]);
    cairn.run(["top"]).failed(2, &["--http", "CAIRN_HTTP", "cairn daemon"]);
    cairn.run(["top", "--http", "nowhere"]).failed(2, &["HOST:PORT"]);
    cairn.run(["top", "--http", "a:1", "--interval", "0"]).failed(2, &["0.1"]);
    // The address of the daemon itself is another one.
    let daemon = scene.serve_tcp();
    let address = daemon.url().rsplit_once("//").unwrap().1.to_owned();
    cairn.run(["top", "--http", &address]).failed(1, &[&address, "--http HOST:PORT"]);
}
