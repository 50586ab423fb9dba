//! Large files that the kernel reads by itself.

use std::{
    fs::{self, File},
    io::{Read as _, Seek as _, SeekFrom},
    os::unix::fs::FileExt as _,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use cairn_castore::{BlobService as _, Node, blob_service::whole_files::WholeFileBlobService};
use cairn_fs::{
    file_system::{CairnFs, FileSystemOptions, Services},
    fuse::{Layer, Mount, MountError, MountOptions, Passthrough, mount},
};
use tempfile::TempDir;

use crate::fixture::*;

const MIB: usize = 1024 * 1024;
const LARGE: usize = 8 * MIB + 3;

/// Longer than any of it takes.
const PATIENCE: Duration = Duration::from_secs(30);

struct PassedThrough {
    mount: Option<Mount>,
    blobs: Arc<WholeFileBlobService>,
    large: Node,
    folder: TempDir,
    // The last to go: it runs what the others do in the background.
    store: Store,
}

impl PassedThrough {
    /// `root` with a large file, a small one, and one like the large file that can be run.
    fn new(layer: bool) -> Self {
        let store = Store::new();
        let large = store.file(bytes(LARGE));
        let root = store.directory([
            ("large", large.clone()),
            ("again", large.clone()),
            ("run", store.executable(bytes(LARGE))),
            ("small", store.file("small")),
        ]);
        let folder = tempfile::tempdir().unwrap();
        for name in ["mnt", "upper", "work"] {
            fs::create_dir(folder.path().join(name)).unwrap();
        }
        let runtime = store.runtime.handle().clone();
        let files = folder.path().join("whole");
        let blobs =
            WholeFileBlobService::open(store.blobs.clone(), &files, 64 << 20, runtime).unwrap();
        let mut this = Self { mount: None, blobs: Arc::new(blobs), large, folder, store };
        let sample = this.blobs.sample().unwrap();
        let names = Names::new([("root", root)]);
        this.mount = Some(this.try_mount(&names, layer, sample, true).unwrap());
        this
    }

    fn try_mount(
        &self,
        names: &Names,
        layered: bool,
        sample: File,
        is_required: bool,
    ) -> Result<Mount, MountError> {
        let services = Services { blobs: self.blobs.clone(), ..self.store.services(names) };
        let options = FileSystemOptions { layered, ..FileSystemOptions::default() };
        let fs = CairnFs::new(services, options, self.store.runtime.handle().clone());
        let at = |name: &str| self.folder.path().join(name);
        let options = MountOptions {
            layer: layered.then(|| Layer { upper: at("upper"), work: at("work") }),
            passthrough: Some(Passthrough { sample, is_required }),
            ..MountOptions::default()
        };
        mount(fs, &at("mnt"), options)
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.folder.path().join("mnt/root").join(name)
    }

    fn requests(&self) -> u64 {
        self.mount.as_ref().unwrap().request_count()
    }

    fn keep_whole(&self) {
        self.blobs.keep_whole(&digest_of(&self.large));
        self.wait_until_kept();
    }

    fn wait_until_kept(&self) {
        let started = Instant::now();
        while self.blobs.lend(&digest_of(&self.large)).is_none() {
            assert!(started.elapsed() < PATIENCE, "no whole file was made");
            thread::sleep(Duration::from_millis(1));
        }
    }

    /// Reads a file whole, and says whether the kernel did that by itself. Through the mount it takes
    /// a request for each [`MIB`] at least; a few others, such as of files that were closed, come
    /// whenever the kernel likes.
    fn is_read_by_the_kernel(&self, mut file: &File) -> bool {
        let before = self.requests();
        let mut read = Vec::new();
        file.seek(SeekFrom::Start(0)).unwrap();
        file.read_to_end(&mut read).unwrap();
        assert!(read == bytes(LARGE), "the bytes differ");
        self.requests() - before < (LARGE / MIB) as u64
    }
}

fn can_pass_through() -> bool {
    can_mount() && is_root()
}

#[test]
fn the_kernel_reads_a_whole_file_by_itself() {
    if !can_pass_through() {
        return;
    }
    let mounted = PassedThrough::new(false);
    mounted.keep_whole();
    for name in ["large", "again", "run"] {
        let file = File::open(mounted.path(name)).unwrap();
        assert!(mounted.is_read_by_the_kernel(&file), "{name}");
        assert_eq!(file.metadata().unwrap().len(), LARGE as u64);
    }
    assert_eq!(fs::read(mounted.path("small")).unwrap(), b"small");
}

#[test]
fn who_has_a_file_open_is_not_disturbed_when_it_becomes_whole() {
    if !can_pass_through() {
        return;
    }
    let mounted = PassedThrough::new(false);
    let first = File::open(mounted.path("large")).unwrap();
    assert!(!mounted.is_read_by_the_kernel(&first));
    // That much reading is a wish by itself.
    mounted.wait_until_kept();
    let second = File::open(mounted.path("large")).unwrap();
    let last = &mut [0; 3];
    second.read_exact_at(last, LARGE as u64 - 3).unwrap();
    assert_eq!(last[..], bytes(LARGE)[LARGE - 3..]);
    drop((first, second));
    // The kernel tells later that a file is closed.
    let started = Instant::now();
    loop {
        rustix::fs::sync();
        fs::write("/proc/sys/vm/drop_caches", "1").unwrap();
        let third = File::open(mounted.path("large")).unwrap();
        if mounted.is_read_by_the_kernel(&third) {
            break;
        }
        assert!(started.elapsed() < PATIENCE, "it is never read by the kernel");
    }
}

#[test]
fn readers_of_a_file_that_makes_room_go_on() {
    if !can_pass_through() {
        return;
    }
    let mounted = PassedThrough::new(false);
    mounted.keep_whole();
    let file = File::open(mounted.path("large")).unwrap();
    for entry in fs::read_dir(mounted.folder.path().join("whole")).unwrap() {
        fs::remove_file(entry.unwrap().path()).unwrap();
    }
    assert!(mounted.is_read_by_the_kernel(&file));
    drop(file);
    let started = Instant::now();
    // Until the kernel has told that it is closed, it is still the same file.
    while mounted.is_read_by_the_kernel(&File::open(mounted.path("large")).unwrap()) {
        assert!(started.elapsed() < PATIENCE, "it is still the file that was removed");
        fs::write("/proc/sys/vm/drop_caches", "1").unwrap();
    }
}

#[test]
fn many_open_and_close_at_once() {
    if !can_pass_through() {
        return;
    }
    let mounted = PassedThrough::new(false);
    let expected = bytes(LARGE);
    thread::scope(|scope| {
        for thread in 0..4 {
            let (mounted, expected) = (&mounted, &expected);
            scope.spawn(move || {
                for round in 0..200 {
                    if thread == 0 && round == 50 {
                        mounted.keep_whole();
                    }
                    let name = ["large", "again", "run"][(round + thread) % 3];
                    let file = File::open(mounted.path(name)).unwrap();
                    let offset = (round * 7919 * 4096 + thread) % (LARGE - 5000);
                    let read = &mut [0; 5000];
                    file.read_exact_at(read, offset as u64).unwrap();
                    assert_eq!(read[..], expected[offset..offset + 5000]);
                }
            });
        }
    });
}

#[test]
fn a_view_that_can_be_written_to_passes_reads_through() {
    if !can_pass_through() {
        return;
    }
    let mounted = PassedThrough::new(true);
    mounted.keep_whole();
    let file = File::open(mounted.path("large")).unwrap();
    assert!(mounted.is_read_by_the_kernel(&file));
    fs::write(mounted.path("again"), "changed").unwrap();
    assert!(mounted.is_read_by_the_kernel(&file));
    assert_eq!(fs::read(mounted.path("again")).unwrap(), b"changed");
}

#[test]
fn a_kernel_that_does_not_take_files_is_told_of_or_done_without() {
    if !can_pass_through() {
        return;
    }
    let mut mounted = PassedThrough::new(false);
    mounted.mount = None;
    let names = Names::new([("root", mounted.store.directory([("large", mounted.large.clone())]))]);
    let device = || File::open("/dev/null").unwrap();
    let error = mounted.try_mount(&names, false, device(), true).unwrap_err();
    assert!(matches!(error, MountError::Passthrough(_)), "{error}");
    assert_eq!(names_in(&mounted.folder.path().join("mnt")), [""; 0]);

    mounted.mount = Some(mounted.try_mount(&names, false, device(), false).unwrap());
    mounted.keep_whole();
    let file = File::open(mounted.path("large")).unwrap();
    assert!(!mounted.is_read_by_the_kernel(&file));
    // Opening a file is no request then; nor is closing it, once one was answered.
    drop(file);
    let before = mounted.requests();
    drop(File::open(mounted.path("large")).unwrap());
    assert_eq!(mounted.requests(), before);
}
