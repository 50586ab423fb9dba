//! Several processes on one local store: the first holds it, the others go through it, and when
//! it goes one of them takes over.

use std::{fs, path::Path};

use cairn_proto::snix::castore::v1::{ReadBlobRequest, blob_service_client::BlobServiceClient};
use rustix::process::Signal;
use tonic::transport::Endpoint;

use crate::process::{Running, TREE_PATH, cairn_on, noise, run, tree};

/// A daemon on the store, and the address that it listens on.
fn daemon(store: &Path) -> (Running, String) {
    let mut daemon = Running::start(cairn_on(store).args(["daemon", "--listen", "127.0.0.1:0"]));
    let url = daemon.line("listening on grpc+");
    (daemon, url)
}

#[test]
fn commands_work_while_another_process_holds_the_store() {
    let folder = tempfile::tempdir().unwrap();
    let store = folder.path().join("store");
    let (holder, _) = daemon(&store);
    let source = tree(folder.path(), "tree");
    let imported = run(cairn_on(&store).arg("import").arg(&source)).stdout();
    assert_eq!(imported, format!("{TREE_PATH}\n"));
    assert_eq!(run(cairn_on(&store).arg("list")).stdout(), imported);
    let mode = fs::symlink_metadata(store.join("socket")).unwrap();
    assert_eq!(std::os::unix::fs::PermissionsExt::mode(&mode.permissions()) & 0o777, 0o600);
    holder.end();
    assert!(!store.join("socket").exists());
    assert_eq!(run(cairn_on(&store).arg("list")).stdout(), imported);
}

#[test]
fn many_imports_at_once_all_succeed() {
    const IMPORTS: u64 = 6;
    let folder = tempfile::tempdir().unwrap();
    let store = folder.path().join("store");
    let imports: Vec<_> = (0..IMPORTS)
        .map(|number| {
            let source = folder.path().join(format!("source-{number}"));
            fs::create_dir(&source).unwrap();
            // Of different sizes, so that whoever holds the store ends before others do.
            for file in 0..number * 40 {
                let bytes = noise(number * 1000 + file, 30_000);
                fs::write(source.join(format!("file-{file}")), bytes).unwrap();
            }
            let import = Running::start(cairn_on(&store).arg("import").arg(&source));
            (import, source)
        })
        .collect();
    for (mut import, source) in imports {
        let path = format!("/nix/store/{}", import.line("/nix/store/"));
        let (status, stderr) = import.wait();
        assert!(status.success(), "{stderr}");
        for entry in fs::read_dir(source).unwrap().take(3) {
            let entry = entry.unwrap();
            let stored = format!("{path}/{}", entry.file_name().to_str().unwrap());
            let read = run(cairn_on(&store).args(["cat", &stored]));
            assert_eq!(read.stdout, fs::read(entry.path()).unwrap(), "{}", read.stderr);
        }
    }
    assert_eq!(run(cairn_on(&store).arg("list")).stdout().lines().count() as u64, IMPORTS);
}

/// A reader of the second process is in the middle of a blob when the first one, which holds the
/// store, goes: it gets the rest nonetheless.
async fn the_store_is_taken_over(signal: Signal) {
    let folder = tempfile::tempdir().unwrap();
    let store = folder.path().join("store");
    let bytes = noise(3, 80_000_000);
    let file = folder.path().join("file");
    fs::write(&file, &bytes).unwrap();
    let path = run(cairn_on(&store).arg("import").arg(&file)).stdout();
    let stat = run(cairn_on(&store).args(["stat", "--json", path.trim_end()])).stdout();
    let stat: serde_json::Value = serde_json::from_str(&stat).unwrap();
    let digest: cairn_castore::Digest = stat["digest"].as_str().unwrap().parse().unwrap();

    let (holder, _) = daemon(&store);
    let (second, url) = daemon(&store);
    let channel = Endpoint::new(url).unwrap().connect().await.unwrap();
    let mut blobs = BlobServiceClient::new(channel);
    let request = ReadBlobRequest { digest: digest.into() };
    let mut stream = blobs.read(request.clone()).await.unwrap().into_inner();
    let mut read = stream.message().await.unwrap().unwrap().data.to_vec();
    holder.signal(signal);
    let waiting = std::thread::spawn(|| holder.wait());
    while let Some(chunk) = stream.message().await.unwrap() {
        read.extend_from_slice(&chunk.data);
    }
    assert!(read == bytes, "{} bytes of {}", read.len(), bytes.len());
    let (status, stderr) = waiting.join().unwrap();
    assert_eq!(status.success(), signal == Signal::TERM, "{stderr}");

    // The second process now holds the store, and others go through it.
    let source = tree(folder.path(), "tree");
    let imported = run(cairn_on(&store).arg("import").arg(&source)).stdout();
    assert_eq!(imported, format!("{TREE_PATH}\n"));
    let again = blobs.read(request).await.unwrap().into_inner().message().await.unwrap();
    assert!(bytes.starts_with(&again.unwrap().data));
    second.end();
    assert_eq!(run(cairn_on(&store).arg("list")).stdout().lines().count(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_goes_on_when_the_holder_is_killed() {
    the_store_is_taken_over(Signal::KILL).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_goes_on_when_the_holder_ends() {
    the_store_is_taken_over(Signal::TERM).await;
}
