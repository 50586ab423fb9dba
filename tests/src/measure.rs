//! What the benchmarks measure with: other programs run to their end, the sizes of trees, the
//! kernel's caches and the memory of a process. What is measured is the affair of `benches`.

use std::{
    ffi::OsStr,
    fs::{self, File},
    io::{Read as _, Write as _},
    os::unix::fs::MetadataExt as _,
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use crate::{process::Running, random::Random};

/// How long something takes.
pub fn time(work: impl FnOnce()) -> Duration {
    let start = Instant::now();
    work();
    start.elapsed()
}

/// The middle of some values, of which there is one at least: of an even number, the later.
pub fn median(values: &[f64]) -> f64 {
    let mut values = values.to_owned();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// What the values of so many runs are, as a table says it.
pub fn medians_of(runs: usize) -> String {
    match runs {
        1 => "One run".to_owned(),
        runs => format!("Medians of {runs} runs"),
    }
}

/// Runs another program, which has to succeed. Its output goes nowhere.
pub fn command<A: AsRef<OsStr>>(program: &str, words: impl IntoIterator<Item = A>) {
    let mut command = Command::new(program);
    command.args(words).env_remove("NIX_REMOTE").stdin(Stdio::null()).stdout(Stdio::null());
    let status = command.status().unwrap();
    assert!(status.success(), "{program}: {status}");
}

/// Reads every byte of a tree. Written through a pipe, since `tar` reads nothing when it writes to
/// `/dev/null` itself.
pub fn tar(folder: &Path) {
    let script = "set -o pipefail; tar -C \"$0\" -cf - . | cat > /dev/null";
    command("bash", [OsStr::new("-c"), OsStr::new(script), folder.as_os_str()]);
}

/// Looks at every name of a tree.
pub fn find(folder: &Path) {
    command("find", [folder.as_os_str(), OsStr::new("-printf"), OsStr::new("%s ")]);
}

/// Writes a file that can't be compressed, of so many bytes: a multiple of 8 MiB.
pub fn write_large(path: &Path, bytes: u64) {
    let mut random = Random::new("a large file");
    let mut file = File::create(path).unwrap();
    for _ in 0..bytes / (8 << 20) {
        file.write_all(&random.bytes(8 << 20)).unwrap();
    }
}

/// Reads what is left of a file.
pub fn read_in_order(mut file: &File) {
    let mut buffer = vec![0; 128 * 1024];
    while file.read(&mut buffer).unwrap() > 0 {}
}

/// Makes the kernel forget what it has read. Needs root.
pub fn drop_caches() {
    rustix::fs::sync();
    fs::write("/proc/sys/vm/drop_caches", "3").expect("dropping the caches needs root");
}

/// The nodes of a tree and the bytes of its files.
pub fn measure_tree(tree: &Path) -> (u64, u64) {
    let mut size = (0, 0);
    walk(tree, &mut |_, metadata| {
        size.0 += 1;
        size.1 += if metadata.is_file() { metadata.len() } else { 0 };
    });
    size
}

/// The bytes that a folder takes on disk.
pub fn allocated(folder: &Path) -> u64 {
    let mut bytes = 0;
    walk(folder, &mut |_, metadata| bytes += metadata.blocks() * 512);
    bytes
}

/// Shows every node of a tree, a folder before what is in it.
pub fn walk(path: &Path, look: &mut impl FnMut(&Path, &fs::Metadata)) {
    let metadata = fs::symlink_metadata(path).unwrap();
    look(path, &metadata);
    if metadata.is_dir() {
        for entry in fs::read_dir(path).unwrap() {
            walk(&entry.unwrap().path(), look);
        }
    }
}

/// The most memory that a running process has had resident, in bytes.
pub fn peak_memory(process: &Running) -> u64 {
    status(process, "VmHWM:")
}

/// The memory that a running process has resident, in bytes.
pub fn memory(process: &Running) -> u64 {
    status(process, "VmRSS:")
}

fn status(process: &Running, what: &str) -> u64 {
    let pid = process.pid().as_raw_nonzero();
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(what)).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tree_is_measured() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("d")).unwrap();
        fs::write(folder.path().join("d/f"), "hi\n").unwrap();
        std::os::unix::fs::symlink("d/f", folder.path().join("link")).unwrap();
        assert_eq!(measure_tree(folder.path()), (4, 3));
        assert!(allocated(folder.path()) > 0);
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!([1, 5].map(medians_of), ["One run", "Medians of 5 runs"]);
    }
}
