//! Prints how fast blobs of 1 GiB come from a server on the loopback interface, and go to it, each in
//! one stream: a Markdown table, beside what the interface itself carries and what the store gives
//! without a server between.
//!
//! `cargo bench -p cairn-tests --bench stream -- [--runs N]`.
#![allow(clippy::unwrap_used, reason = "a benchmark that can't go on panics")]

use std::{
    env,
    io::{Read as _, Write as _},
    net::{TcpListener, TcpStream},
    thread,
};

use bytes::Bytes;
use cairn_castore::{
    Address, BlobService, ByteRange, Digest,
    blob_service::{grpc::GrpcBlobService, local::LocalBlobService},
    grpc::GrpcPeer,
    local::LocalStore,
};
use cairn_tests::{
    cairn::{Scene, binary},
    measure::{median, medians_of, time},
    random::Random,
};
use futures::{StreamExt as _, TryStreamExt as _, stream};
use rustix::process::Signal;
use tokio::runtime::Runtime;

/// How often each thing is done unless told.
const RUNS: usize = 5;

/// The bytes of a blob.
const BYTES: usize = 1 << 30;

/// The bytes that are written or given at once.
const PIECE: usize = 256 * 1024;

/// What blobs are made of.
#[derive(Debug, Clone, Copy)]
enum Content {
    /// Can't be compressed.
    Random,
    /// Can.
    Text,
}

impl Content {
    /// Other bytes for each number.
    fn bytes(self, number: usize) -> Bytes {
        let mut bytes = Random::new(&format!("stream {number}")).bytes(BYTES);
        if matches!(self, Self::Text) {
            bytes.iter_mut().for_each(|byte| *byte = b"etaoin shrdlu, \n"[usize::from(*byte % 16)]);
        }
        bytes.into()
    }
}

fn main() {
    let mut runs = RUNS;
    let mut words = env::args().skip(1).filter(|word| word != "--bench");
    while let Some(word) = words.next() {
        match word.as_str() {
            "--runs" => runs = words.next().and_then(|number| number.parse().ok()).unwrap(),
            word => panic!("{word}: not an option of this benchmark"),
        }
    }
    assert!(runs > 0, "nothing is measured by no run");
    eprintln!("{}", binary().display());

    let runtime = Runtime::new().unwrap();
    let scene = Scene::new();
    let mut blobs = Vec::new();
    let mut rows = vec![("loopback interface", (0..runs).map(|_| loopback()).collect::<Vec<_>>())];
    let daemon = scene.serve_tcp();
    let client = runtime.block_on(async {
        let Ok(Address::Grpc(address)) = daemon.url().parse() else { panic!("a daemon's URL") };
        GrpcBlobService::new(GrpcPeer::new(&address).unwrap())
    });
    for (content, from, to) in [
        (Content::Random, "random bytes from a server", "random bytes to a server, durable"),
        (Content::Text, "text from a server", "text to a server, durable"),
    ] {
        let mut digests = Vec::new();
        let stored = (0..runs).map(|run| {
            let bytes = content.bytes(run);
            rate(|| digests.push(runtime.block_on(put(&client, bytes))))
        });
        let stored: Vec<_> = stored.collect();
        let came = digests.iter().map(|digest| rate(|| runtime.block_on(read(&client, digest))));
        rows.extend([(from, came.collect()), (to, stored)]);
        blobs.push(digests);
    }
    daemon.stop(Signal::TERM).succeeded();
    let store = LocalBlobService::new(LocalStore::open(&scene.store()).unwrap());
    for (name, digests) in
        ["random bytes from the store itself", "text from the store itself"].into_iter().zip(blobs)
    {
        let read = digests.iter().map(|digest| rate(|| runtime.block_on(read(&store, digest))));
        rows.push((name, read.collect()));
    }

    let interface = median(&rows[0].1);
    println!("\nBlobs of 1 GiB, one at a time, verified. {}.\n", medians_of(runs));
    println!("| | GB/s | to the interface |\n|---|---:|---:|");
    for (name, rates) in rows {
        let rate = median(&rates);
        println!("| {name} | {rate:.2} | {:.2} |", rate / interface);
    }
}

/// The GB that pass in a second where a blob passes.
fn rate(pass: impl FnOnce()) -> f64 {
    BYTES as f64 / 1e9 / time(pass).as_secs_f64()
}

async fn put(service: &dyn BlobService, bytes: Bytes) -> Digest {
    let pieces = bytes.chunks(PIECE).map(|piece| Ok(bytes.slice_ref(piece))).collect::<Vec<_>>();
    service.put(stream::iter(pieces).boxed()).await.unwrap().digest
}

async fn read(service: &dyn BlobService, digest: &Digest) {
    let mut stream = service.read(digest, ByteRange::ALL).await.unwrap();
    let mut length = 0;
    while let Some(piece) = stream.try_next().await.unwrap() {
        length += piece.len();
    }
    assert_eq!(length, BYTES);
}

/// What passes from one thread to another and is not looked at.
fn loopback() -> f64 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut sender = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (mut receiver, _) = listener.accept().unwrap();
    let sending = thread::spawn(move || {
        let piece = vec![1; PIECE];
        for _ in 0..BYTES / PIECE {
            sender.write_all(&piece).unwrap();
        }
    });
    let rate = rate(|| {
        let mut buffer = vec![0; PIECE];
        while receiver.read(&mut buffer).unwrap() > 0 {}
    });
    sending.join().unwrap();
    rate
}
