use std::{
    fs,
    io::Read as _,
    path::PathBuf,
    time::{Duration, SystemTime},
};

use super::*;
use crate::{
    blob_service::{BlobServiceExt as _, memory::MemoryBlobService},
    conformance::{self, content},
};

const MIB: usize = 1024 * 1024;

/// Longer than any of it takes.
const PATIENCE: Duration = Duration::from_secs(30);

struct Fixture {
    blobs: Arc<MemoryBlobService>,
    folder: tempfile::TempDir,
}

impl Fixture {
    fn new() -> Self {
        Self { blobs: Arc::new(MemoryBlobService::new()), folder: tempfile::tempdir().unwrap() }
    }

    fn open(&self, budget: usize) -> WholeFileBlobService {
        let folder = self.folder.path().join("whole");
        let (blobs, runtime) = (self.blobs.clone(), Handle::current());
        WholeFileBlobService::open(blobs, &folder, budget as u64, runtime).unwrap()
    }

    async fn put(&self, purpose: &str, size: usize) -> Digest {
        self.blobs.put_bytes(content(purpose, size)).await.unwrap()
    }

    fn file(&self, digest: &Digest) -> PathBuf {
        let name = data_encoding::HEXLOWER.encode(digest.as_bytes());
        self.folder.path().join("whole").join(name)
    }

    /// The names of all files, which are to be as many.
    fn count(&self) -> usize {
        fs::read_dir(self.folder.path().join("whole")).unwrap().count()
    }
}

/// Waits until no wish is open.
async fn settle(service: &WholeFileBlobService) {
    let settled = async {
        while !service.maker.wishes.lock().is_empty() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(PATIENCE, settled).await.expect("a wish is never granted");
}

async fn keep(service: &WholeFileBlobService, digest: &Digest) {
    service.keep_whole(digest);
    settle(service).await;
}

fn bytes_of(lent: Option<File>) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    lent?.read_to_end(&mut bytes).unwrap();
    Some(bytes)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn conforms() {
    let fixture = Fixture::new();
    conformance::blob_service(Arc::new(fixture.open(64 * MIB))).await;
}

#[tokio::test]
async fn what_is_wished_for_is_lent() {
    let fixture = Fixture::new();
    let service = fixture.open(64 * MIB);
    for size in [0, 1, 3 * MIB + 5] {
        let digest = fixture.put("lent", size).await;
        assert!(service.lend(&digest).is_none());
        keep(&service, &digest).await;
        assert_eq!(bytes_of(service.lend(&digest)).unwrap(), content("lent", size));
        let mut lent = service.lend(&digest).unwrap();
        assert!(std::io::Write::write(&mut lent, b"x").is_err(), "it can be written to");
    }
    keep(&service, &Digest::of(b"nowhere")).await;
    assert!(service.lend(&Digest::of(b"nowhere")).is_none());
    assert_eq!(fixture.count(), 3);
}

#[tokio::test]
async fn a_later_process_verifies_a_file_before_it_lends_it() {
    let fixture = Fixture::new();
    let digest = fixture.put("kept", 2 * MIB).await;
    keep(&fixture.open(64 * MIB), &digest).await;

    let service = fixture.open(64 * MIB);
    assert!(service.lend(&digest).is_none());
    settle(&service).await;
    assert_eq!(bytes_of(service.lend(&digest)).unwrap(), content("kept", 2 * MIB));

    // The blob itself is gone, so that a file that is there now is the old one.
    let empty = Arc::new(MemoryBlobService::new());
    let folder = fixture.folder.path().join("whole");
    let service = WholeFileBlobService::open(empty, &folder, 64 << 20, Handle::current()).unwrap();
    keep(&service, &digest).await;
    assert!(service.lend(&digest).is_some());
}

#[tokio::test]
async fn a_damaged_file_is_not_lent_but_made_anew() {
    let fixture = Fixture::new();
    let digest = fixture.put("damaged", 2 * MIB).await;
    keep(&fixture.open(64 * MIB), &digest).await;
    let mut bytes = fs::read(fixture.file(&digest)).unwrap();
    bytes[MIB] ^= 1;
    fs::remove_file(fixture.file(&digest)).unwrap();
    fs::write(fixture.file(&digest), bytes).unwrap();

    let service = fixture.open(64 * MIB);
    assert!(service.lend(&digest).is_none());
    settle(&service).await;
    assert_eq!(bytes_of(service.lend(&digest)).unwrap(), content("damaged", 2 * MIB));
}

#[tokio::test]
async fn a_file_that_takes_the_place_of_a_verified_one_is_not_trusted() {
    let fixture = Fixture::new();
    let digest = fixture.put("replaced", 2 * MIB).await;
    let service = fixture.open(64 * MIB);
    keep(&service, &digest).await;
    let other = fixture.folder.path().join("whole/other");
    fs::write(&other, content("another", 2 * MIB)).unwrap();
    fs::rename(&other, fixture.file(&digest)).unwrap();
    assert!(service.lend(&digest).is_none());
}

#[tokio::test]
async fn a_link_is_no_file() {
    let fixture = Fixture::new();
    let digest = fixture.put("linked", 2 * MIB).await;
    let service = fixture.open(64 * MIB);
    let outside = fixture.folder.path().join("outside");
    fs::write(&outside, content("linked", 2 * MIB)).unwrap();
    std::os::unix::fs::symlink(&outside, fixture.file(&digest)).unwrap();
    assert!(service.lend(&digest).is_none());
    settle(&service).await;
    assert!(service.lend(&digest).is_none());
}

#[tokio::test]
async fn the_least_recently_lent_make_room() {
    let fixture = Fixture::new();
    let service = fixture.open(5 * MIB);
    let (mut digests, mut age) = (Vec::new(), 1000);
    for purpose in ["a", "b"] {
        let digest = fixture.put(purpose, 2 * MIB).await;
        keep(&service, &digest).await;
        let used = SystemTime::now() - Duration::from_secs(age);
        File::open(fixture.file(&digest)).unwrap().set_modified(used).unwrap();
        digests.push(digest);
        age -= 100;
    }
    assert!(service.lend(&digests[0]).is_some());
    let third = fixture.put("c", 2 * MIB).await;
    keep(&service, &third).await;
    assert!(service.lend(&digests[0]).is_some());
    assert!(service.lend(&digests[1]).is_none());
    assert!(service.lend(&third).is_some());

    let too_large = fixture.put("too large", 5 * MIB + 1).await;
    keep(&service, &too_large).await;
    assert!(service.lend(&too_large).is_none());
    assert_eq!(fixture.count(), 2, "room was made for what can't have it");
}

#[tokio::test]
async fn files_of_others_stay() {
    let fixture = Fixture::new();
    let service = fixture.open(3 * MIB);
    let others = fixture.folder.path().join("whole/notes");
    fs::write(&others, vec![0; 4 * MIB]).unwrap();
    for purpose in ["a", "b"] {
        let digest = fixture.put(purpose, 2 * MIB).await;
        keep(&service, &digest).await;
        assert!(service.lend(&digest).is_some());
    }
    assert!(others.exists());
    assert_eq!(fixture.count(), 2);
}

#[tokio::test]
async fn wishes_are_bounded() {
    let fixture = Fixture::new();
    let service = fixture.open(64 * MIB);
    for number in 0..2 * WISHES_MAX {
        service.keep_whole(&Digest::of(&number.to_le_bytes()));
    }
    assert_eq!(service.maker.wishes.lock().len(), WISHES_MAX);
    settle(&service).await;
}

#[tokio::test]
async fn a_folder_that_can_not_be_says_so() {
    let fixture = Fixture::new();
    let file = fixture.folder.path().join("file");
    fs::write(&file, "").unwrap();
    let open =
        |path: &Path| WholeFileBlobService::open(fixture.blobs.clone(), path, 1, Handle::current());
    let error = open(&file).unwrap_err();
    assert!(matches!(error, WholeFilesError::Folder { .. }), "{error}");
    let error = open(Path::new("/proc")).unwrap_err();
    assert!(
        matches!(error, WholeFilesError::FileSystem(_) | WholeFilesError::Folder { .. }),
        "{error}"
    );
}
