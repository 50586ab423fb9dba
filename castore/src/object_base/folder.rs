//! Objects that are files: many are made durable together, where each by itself would cost several
//! waits for the disk. What the files hold and where they lie is the affair of `object_base`.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use parking_lot::{Condvar, Mutex};
use rustix::fs::{CWD, FileType, Mode};

/// Where files are until they are durable, in the root.
const STAGED: &str = "staged";

/// What has been there for so long is nobody's any more.
const LEFTOVER_AGE: Duration = Duration::from_secs(24 * 60 * 60);

/// The files there that are looked at when a folder is written to for the first time.
const LEFTOVERS_MAX: usize = 16 * 1024;

/// A folder of files that are never changed once they are there. Clones share what they wait for.
#[derive(Clone)]
pub(super) struct Folder {
    root: PathBuf,
    syncs: Arc<Syncs>,
}

/// A file to be made.
pub(super) struct NewFile {
    /// Its path in the folder.
    pub(super) path: PathBuf,
    /// What it is to hold.
    pub(super) bytes: bytes::Bytes,
}

impl Folder {
    /// The folder at a path, which need not be there.
    pub(super) fn new(root: PathBuf) -> Self {
        Self { root, syncs: Arc::default() }
    }

    /// Whether there is a file at one of these paths.
    pub(super) fn has_any(&self, paths: &[PathBuf]) -> io::Result<bool> {
        for path in paths {
            match fs::metadata(self.root.join(path)) {
                Ok(metadata) if metadata.is_file() => return Ok(true),
                Ok(_) => {}
                Err(error) if is_absent(&error) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(false)
    }

    /// Makes files, but for those that are there. They come to be there whole and in their order,
    /// and are durable when this returns. Waits for the disk.
    pub(super) fn create(&self, files: Vec<NewFile>) -> io::Result<()> {
        let begun = self.syncs.begin(&self.root)?;
        let mut staged = Staged(Vec::new());
        let mut created = Vec::with_capacity(files.len());
        for NewFile { path, bytes } in files {
            let path = self.root.join(path);
            // One that holds nothing where it should is what a loss of power has left of another
            // program's.
            let is_there = fs::metadata(&path).is_ok_and(|metadata| {
                metadata.is_file() && (metadata.len() > 0 || bytes.is_empty())
            });
            if is_there {
                continue;
            }
            if bytes.is_empty() {
                created.push((None, path));
                continue;
            }
            let (place, mut file) = stage(&self.root)?;
            staged.0.push(place.clone());
            file.write_all(&bytes)?;
            created.push((Some(place), path));
        }
        if !staged.0.is_empty() {
            // A name must not outlast a loss of power that the bytes don't.
            self.syncs.wait(begun)?;
        }
        for (place, path) in &created {
            in_folder(path, || match place {
                Some(place) => fs::rename(place, path),
                None => make_empty(path),
            })?;
        }
        staged.0.clear();
        // What was there may be from another who still waits for it to be durable.
        self.syncs.wait(begun)
    }
}

/// Files that have no name yet under which they are found. What is left of them is removed.
struct Staged(Vec<PathBuf>);

impl Drop for Staged {
    fn drop(&mut self) {
        for path in &self.0 {
            let _ = fs::remove_file(path);
        }
    }
}

/// An empty file to be written and then renamed. All of them are in one folder: so they lie close
/// together on the disk, no folder is gone into twice for a file, and what is left of them is found.
fn stage(root: &Path) -> io::Result<(PathBuf, File)> {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    loop {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        // Of the kind that `object_store` does not list. Other processes have other numbers, and
        // what a killed one has left is passed over.
        let place = root.join(STAGED).join(format!("{}#{number}", std::process::id()));
        let mut options = OpenOptions::new();
        options.write(true).create_new(true);
        match in_folder(&place, || options.open(&place)) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            made => return Ok((place, made?)),
        }
    }
}

/// Makes a file that holds nothing, unless there is one, in one call: there are as many of them as
/// blobs.
fn make_empty(path: &Path) -> io::Result<()> {
    let mode = Mode::from_raw_mode(0o666);
    match rustix::fs::mknodat(CWD, path, FileType::RegularFile, mode, 0) {
        Ok(()) | Err(rustix::io::Errno::EXIST) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Does what makes something at a path, and first the folders that this needs.
fn in_folder<T>(path: &Path, make: impl Fn() -> io::Result<T>) -> io::Result<T> {
    match make() {
        Err(error) if is_absent(&error) => {
            if let Some(folder) = path.parent() {
                fs::create_dir_all(folder)?;
            }
            make()
        }
        made => made,
    }
}

/// Removes what killed processes have left, as far as nobody can be at it any more. That this goes
/// well is not needed for anything.
fn remove_leftovers(staged: &Path) {
    let Ok(entries) = fs::read_dir(staged) else { return };
    for entry in entries.take(LEFTOVERS_MAX).flatten() {
        let age =
            entry.metadata().and_then(|metadata| metadata.modified()).map(|time| time.elapsed());
        if let Ok(Ok(age)) = age
            && age > LEFTOVER_AGE
        {
            let _ = fs::remove_file(entry.path());
        }
    }
}

fn is_absent(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound)
}

/// Makes what was written durable, for all who wait at a time at once: a sync of the file system
/// costs about what the sync of a file does.
#[derive(Default)]
struct Syncs {
    state: Mutex<SyncState>,
    ended: Condvar,
}

#[derive(Default)]
struct SyncState {
    /// The folder. Open from before the first write on, since it is told of faults from then on.
    folder: Option<Arc<File>>,
    /// The rounds that have begun, and the last of them that has ended.
    begun: u64,
    ended: u64,
    /// The rounds that have failed.
    failures: u64,
    /// What the last of these failed with.
    failed: Option<io::ErrorKind>,
}

impl Syncs {
    /// Must be called before anything is written; the answer is for [`wait`](Self::wait).
    fn begin(&self, root: &Path) -> io::Result<u64> {
        let mut state = self.state.lock();
        if state.folder.is_none() {
            match fs::create_dir(root) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
                _ => {}
            }
            remove_leftovers(&root.join(STAGED));
            state.folder = Some(Arc::new(File::open(root)?));
        }
        Ok(state.failures)
    }

    /// Waits for a round that begins from now on.
    ///
    /// The kernel tells a fault once, and not whose it was: it counts for all who have written
    /// something since before.
    fn wait(&self, failures_before: u64) -> io::Result<()> {
        let mut state = self.state.lock();
        let round = state.begun + 1;
        while state.ended < round {
            if state.ended < state.begun {
                self.ended.wait(&mut state);
                continue;
            }
            let folder = state.folder.clone().expect("it was opened before anything was written");
            state.begun += 1;
            drop(state);
            let synced = rustix::fs::syncfs(&folder);
            state = self.state.lock();
            state.ended = state.begun;
            if let Err(error) = synced {
                state.failures += 1;
                state.failed = Some(io::Error::from(error).kind());
            }
            self.ended.notify_all();
        }
        match state.failed {
            Some(kind) if state.failures > failures_before => Err(kind.into()),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{thread, time::SystemTime};

    use bytes::Bytes;

    use super::*;

    fn file(path: &str, bytes: &'static str) -> NewFile {
        NewFile { path: path.into(), bytes: Bytes::from_static(bytes.as_bytes()) }
    }

    fn names(folder: &Path) -> Vec<String> {
        let names = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name());
        let mut names: Vec<_> = names.map(|name| name.into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn files_are_made_once_and_nothing_else_is_left() {
        let scene = tempfile::tempdir().unwrap();
        let root = scene.path().join("new");
        let folder = Folder::new(root.clone());
        let both = || vec![file("a/b/full", "bytes"), file("a/c/empty", "")];
        assert!(!folder.has_any(&["a/b/full".into()]).unwrap());
        folder.create(both()).unwrap();
        assert!(folder.has_any(&["none".into(), "a/b/full".into()]).unwrap());
        assert!(!folder.has_any(&["a/b".into()]).unwrap(), "a folder is no object");
        let inode = |path: &str| {
            use std::os::unix::fs::MetadataExt as _;
            fs::metadata(root.join(path)).unwrap().ino()
        };
        let before = (inode("a/b/full"), inode("a/c/empty"));
        folder.create(both()).unwrap();
        assert_eq!(before, (inode("a/b/full"), inode("a/c/empty")));
        assert_eq!(fs::read(root.join("a/b/full")).unwrap(), b"bytes");
        assert_eq!((names(&root.join("a/b")), names(&root.join("a/c"))), {
            (vec!["full".to_owned()], vec!["empty".to_owned()])
        });
    }

    #[test]
    fn what_lost_its_bytes_is_made_again() {
        let scene = tempfile::tempdir().unwrap();
        let folder = Folder::new(scene.path().to_owned());
        fs::write(scene.path().join("object"), "").unwrap();
        folder.create(vec![file("object", "bytes")]).unwrap();
        assert_eq!(fs::read(scene.path().join("object")).unwrap(), b"bytes");
    }

    #[test]
    fn of_what_fails_only_whole_files_are_left() {
        let scene = tempfile::tempdir().unwrap();
        let folder = Folder::new(scene.path().to_owned());
        fs::write(scene.path().join("file"), "in the way").unwrap();
        folder.create(vec![file("first", "1"), file("file/below", "2")]).unwrap_err();
        assert_eq!(names(scene.path()), ["file", "first", STAGED]);
        assert!(names(&scene.path().join(STAGED)).is_empty());
    }

    #[test]
    fn what_killed_processes_have_left_is_removed_when_it_is_old() {
        let scene = tempfile::tempdir().unwrap();
        let staged = scene.path().join(STAGED);
        fs::create_dir(&staged).unwrap();
        fs::write(staged.join("1#1"), "of one that may still run").unwrap();
        let old = File::create(staged.join("1#0")).unwrap();
        old.set_modified(SystemTime::now() - LEFTOVER_AGE - Duration::from_secs(60)).unwrap();
        Folder::new(scene.path().to_owned()).create(vec![file("object", "bytes")]).unwrap();
        assert_eq!(names(&staged), ["1#1"]);
    }

    #[test]
    fn those_who_wait_at_once_are_all_answered() {
        let scene = tempfile::tempdir().unwrap();
        let folder = Folder::new(scene.path().to_owned());
        thread::scope(|scope| {
            for writer in 0..8 {
                let folder = &folder;
                scope.spawn(move || {
                    for index in 0..4 {
                        let bytes = Bytes::from_static(b"bytes");
                        let path = PathBuf::from(format!("{writer}/{index}"));
                        folder.create(vec![NewFile { path, bytes }]).unwrap();
                    }
                });
            }
        });
        assert_eq!(names(scene.path()).len(), 8 + 1);
        assert_eq!(names(&scene.path().join("7")), ["0", "1", "2", "3"]);
    }
}
