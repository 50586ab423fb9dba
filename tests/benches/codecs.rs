//! Prints what the values of a real tree come to under several compressions, and what that costs: a
//! Markdown table, on one core and in memory. The choice that follows is in `docs/local-store.md`.
//!
//! `cargo bench -p cairn-tests --bench codecs -- [TREE]`; the tree is Linux 6.1 unless told.
#![allow(clippy::unwrap_used, reason = "a benchmark that can't go on panics")]

use std::{
    collections::HashSet,
    env, fs,
    hint::black_box,
    path::{Path, PathBuf},
};

use cairn_tests::{linux, measure::walk, random::Random};
use zstd::bulk::{Compressor, Decompressor};

/// Larger files are cut into pieces of about the size of a chunk, in bytes.
const PIECE: usize = 256 * 1024;

/// What a record has beside its payload, in bytes.
const RECORD: usize = 56;

/// A dictionary's size in bytes, and how many bytes of how many small values it is made of.
const DICTIONARY: usize = 112 * 1024;
const SAMPLE_MAX: usize = 64 * 1024;
const SAMPLES: usize = 4000;

/// Files up to so many bytes are read at random, and so often.
const SMALL: usize = 16 * 1024;
const READS: usize = 5000;

/// How values are put together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    /// Each by itself.
    Alone,
    /// Each by itself, with a dictionary made of samples.
    Dictionary,
    /// Several in a frame of about so many bytes.
    Frame(usize),
}

/// The compressed values, or groups of them, and the sizes of what they hold.
struct Stored {
    frames: Vec<(Vec<u8>, usize)>,
    bytes: usize,
}

fn main() {
    // Cargo passes it to every benchmark.
    let mut words = env::args_os().skip(1).filter(|word| word != "--bench");
    let tree = words.next().map_or_else(linux::tree, PathBuf::from);
    let values = values(&tree);
    let raw: usize = values.iter().map(Vec::len).sum();
    let small = values.iter().filter(|value| value.len() <= SMALL).count();
    let dictionary = train(&values);
    println!(
        "\n{} different values, {:.0} MB, {small} of them of at most {SMALL} bytes.\n",
        values.len(),
        raw as f64 / 1e6
    );
    println!(
        "| zstd level | form | stored, MB | compressed, MB/s | decompressed, MB/s | \
         a small file, µs |\n|---:|---|---:|---:|---:|---:|"
    );
    for level in [-3, -1, 1, 2, 3] {
        for form in [Form::Alone, Form::Dictionary, Form::Frame(64 << 10), Form::Frame(256 << 10)] {
            measure(&values, raw, &dictionary, level, form);
        }
    }
}

/// What a store would hold of a tree's files: each value once, in the order of their paths.
fn values(tree: &Path) -> Vec<Vec<u8>> {
    let mut files = Vec::new();
    walk(tree, &mut |path, metadata| {
        if metadata.is_file() {
            files.push(path.to_owned());
        }
    });
    files.sort();
    let mut known = HashSet::new();
    let mut values = Vec::new();
    for file in files {
        for piece in fs::read(file).unwrap().chunks(PIECE) {
            if known.insert(blake3::hash(piece)) {
                values.push(piece.to_owned());
            }
        }
    }
    values
}

fn train(values: &[Vec<u8>]) -> Vec<u8> {
    let small: Vec<_> = values.iter().filter(|value| value.len() <= SAMPLE_MAX).collect();
    let samples: Vec<_> = small.iter().step_by((small.len() / SAMPLES).max(1)).collect();
    zstd::dict::from_samples(&samples, DICTIONARY).unwrap()
}

fn measure(values: &[Vec<u8>], raw: usize, dictionary: &[u8], level: i32, form: Form) {
    let dictionary = if form == Form::Dictionary { dictionary } else { &[] };
    let groups = groups(values, form);
    let (stored, compressing) = cpu_time(|| store(values, &groups, dictionary, level));
    let mut decompressor = Decompressor::with_dictionary(dictionary).unwrap();
    let ((), decompressing) = cpu_time(|| {
        for (frame, size) in &stored.frames {
            black_box(decompressor.decompress(frame, *size).unwrap());
        }
    });
    let form = match form {
        Form::Alone => "each alone".to_owned(),
        Form::Dictionary => format!("dictionary of {} KiB", DICTIONARY >> 10),
        Form::Frame(bytes) => format!("frames of {} KiB", bytes >> 10),
    };
    println!(
        "| {level} | {form} | {:.0} | {:.0} | {:.0} | {:.1} |",
        stored.bytes as f64 / 1e6,
        raw as f64 / 1e6 / compressing,
        raw as f64 / 1e6 / decompressing,
        small_read(values, &groups, &stored, dictionary) * 1e6
    );
}

/// The first values of what is compressed together, and the number of values at the end.
fn groups(values: &[Vec<u8>], form: Form) -> Vec<usize> {
    let mut groups = Vec::new();
    let mut bytes = usize::MAX;
    for (index, value) in values.iter().enumerate() {
        let limit = if let Form::Frame(bytes) = form { bytes } else { 0 };
        if bytes.saturating_add(value.len()) > limit {
            groups.push(index);
            bytes = 0;
        }
        bytes += value.len();
    }
    groups.push(values.len());
    groups
}

fn store(values: &[Vec<u8>], groups: &[usize], dictionary: &[u8], level: i32) -> Stored {
    let mut compressor = Compressor::with_dictionary(level, dictionary).unwrap();
    let mut stored = Stored { frames: Vec::with_capacity(groups.len()), bytes: 0 };
    let mut together = Vec::new();
    for group in groups.windows(2) {
        let group = &values[group[0]..group[1]];
        let frame = match group {
            [value] => value,
            several => {
                together.clear();
                several.iter().for_each(|value| together.extend_from_slice(value));
                &together
            }
        };
        let compressed = compressor.compress(frame).unwrap();
        stored.bytes += compressed.len().min(frame.len()) + RECORD * group.len();
        stored.frames.push((compressed, frame.len()));
    }
    stored
}

/// The seconds that it takes to get one small value out of where it lies.
fn small_read(values: &[Vec<u8>], groups: &[usize], stored: &Stored, dictionary: &[u8]) -> f64 {
    let small: Vec<usize> =
        (0..values.len()).filter(|index| values[*index].len() <= SMALL).collect();
    let mut random = Random::new("reads");
    let frames: Vec<_> = (0..READS)
        .map(|_| {
            let value = small[random.below(small.len() as u64) as usize];
            &stored.frames[groups.partition_point(|first| *first <= value) - 1]
        })
        .collect();
    let mut decompressor = Decompressor::with_dictionary(dictionary).unwrap();
    let ((), elapsed) = cpu_time(|| {
        for (frame, size) in &frames {
            black_box(decompressor.decompress(frame, *size).unwrap());
        }
    });
    elapsed / READS as f64
}

/// The seconds that this thread has computed for, whatever else the machine does.
fn cpu_time<T>(work: impl FnOnce() -> T) -> (T, f64) {
    let nanoseconds = || -> f64 {
        let stat = fs::read_to_string("/proc/thread-self/schedstat").unwrap();
        stat.split(' ').next().unwrap().parse().unwrap()
    };
    let start = nanoseconds();
    let done = work();
    (done, (nanoseconds() - start) / 1e9)
}
