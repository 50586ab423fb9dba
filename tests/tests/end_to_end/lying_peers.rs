//! Peers that send what they should not: each is an error that names the thing, none is believed,
//! and none is waited for without end or read into memory without bound.

use std::{fs, io::ErrorKind, time::Duration};

use cairn_tests::{
    cairn::{Cairn, Scene},
    compare::{Face, assert_same},
    peer::{Lie, Peer},
    process::Finished,
    trees,
};

/// More than the deadlines of a client and all its retries take.
const DEADLINES: Duration = Duration::from_secs(300);

/// Exports the tree of a lying peer.
fn export(lie: Lie) -> (Scene, Peer, Finished) {
    let scene = Scene::new();
    let peer = Peer::start(lie);
    let destination = scene.path("exported");
    let words = ["export", trees::VECTOR_STORE_PATH, destination.to_str().unwrap()];
    let finished = Cairn::new(peer.url()).start(words).finish_within(DEADLINES);
    (scene, peer, finished)
}

#[track_caller]
fn refused(lie: Lie, names: &[&str]) {
    let (_scene, _peer, finished) = export(lie);
    assert!(matches!(finished.status.code(), Some(1 | 4)), "{finished:?}");
    assert!(!finished.stderr.contains("panicked"), "{finished:?}");
    for name in names {
        assert!(finished.stderr.contains(name), "{name} is not named: {finished:?}");
    }
}

#[test]
fn an_honest_peer_is_believed() {
    let (scene, peer, finished) = export(Lie::Nothing);
    finished.succeeded();
    let wanted = trees::vector(scene.folder());
    assert_same(&wanted, &scene.path("exported"), Face::Plain);
    let mount = scene.mount(&Cairn::new(peer.url()), "mnt");
    assert_same(&wanted, &mount.at(trees::VECTOR_STORE_PATH), Face::Mount);
}

#[test]
fn wrong_bytes_are_refused() {
    refused(Lie::FlippedBit, &["blob blake3-"]);
}

#[test]
fn a_short_blob_is_refused() {
    refused(Lie::ShortBlob, &["blob blake3-"]);
}

#[test]
fn a_blob_without_end_is_refused() {
    let (_scene, peer, finished) = export(Lie::EndlessBlob);
    assert!(matches!(finished.status.code(), Some(1 | 4)), "{finished:?}");
    assert!(finished.stderr.contains("blob blake3-"), "{finished:?}");
    let sent = peer.sent();
    assert!(sent < 1 << 30, "{sent} bytes were taken before it was refused");
}

#[test]
fn a_message_that_is_too_large_is_refused() {
    refused(Lie::HugeBlobMessage, &["grpc+http://", "message length too large"]);
    refused(Lie::HugeDirectoryMessage, &["grpc+http://", "message length too large"]);
}

#[test]
fn a_truncated_closure_is_refused() {
    refused(Lie::TruncatedClosure, &["truncated closure", "blake3-"]);
}

#[test]
fn changed_directories_are_refused() {
    refused(Lie::ChangedDirectory, &["directory", "blake3-"]);
}

#[test]
fn the_record_of_another_path_is_refused() {
    refused(Lie::AnotherPath, &[]);
}

#[test]
#[ignore = "waits for a deadline: part of tests/run"]
fn a_peer_that_never_answers_is_given_up() {
    let (_scene, peer, finished) = export(Lie::SilentBlob);
    assert_eq!(finished.status.code(), Some(1), "{finished:?}");
    assert!(finished.stderr.contains(&peer.url()), "{finished:?}");
}

#[test]
fn a_mount_shows_no_wrong_byte() {
    let scene = Scene::new();
    let peer = Peer::start(Lie::FlippedBit);
    let mount = scene.mount(&Cairn::new(peer.url()), "mnt");
    let root = mount.at(trees::VECTOR_STORE_PATH);
    for file in ["big", "d/f", "run"] {
        let error = fs::read(root.join(file)).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EIO), "{file}");
    }
    // What needs no blob is right, and goes on being so.
    assert_eq!(fs::read(root.join("zero")).unwrap(), b"");
    assert_eq!(fs::read_link(root.join("link")).unwrap(), std::path::Path::new("d/f"));
    assert_eq!(fs::metadata(root.join("big")).unwrap().len(), 700_000);
}

#[test]
fn a_mount_shows_no_wrong_name() {
    let scene = Scene::new();
    let peer = Peer::start(Lie::ChangedDirectory);
    let mount = scene.mount(&Cairn::new(peer.url()), "mnt");
    let listed = fs::read_dir(mount.at(trees::VECTOR_STORE_PATH))
        .and_then(|mut entries| entries.try_for_each(|entry| entry.map(drop)));
    assert_eq!(listed.unwrap_err().raw_os_error(), Some(libc::EIO));
}

#[test]
fn a_peer_that_is_not_there_is_told() {
    let scene = Scene::new();
    let gone = Peer::start(Lie::Nothing);
    let url = gone.url();
    drop(gone);
    let socket = format!("grpc+unix:{}", scene.path("no-socket").display());
    for url in [url, socket] {
        Cairn::new(&url).run(["list"]).failed(1, &[&url]);
    }
}

#[test]
fn a_peer_that_goes_leaves_errors_and_no_hang() {
    let scene = Scene::new();
    let tree = trees::small(scene.folder(), "source");
    let path = scene.cairn().import(&tree);
    let daemon = scene.serve_tcp();
    let mount = scene.mount(&daemon.client(), "mnt");
    assert!(mount.at(&path).join("large").exists());
    daemon.kill();
    let error = fs::read(mount.at(&path).join("large")).unwrap_err();
    assert_ne!(error.kind(), ErrorKind::NotFound);
    mount.stop(rustix::process::Signal::INT).succeeded();
}
