use std::{
    fs::{self, OpenOptions},
    os::unix::fs::FileExt as _,
    path::Path,
    sync::atomic::Ordering::SeqCst,
    time::Duration,
};

use proptest::prelude::*;
use tonic::service::Routes;

use super::*;
use crate::{
    blob_service::{
        SMALL_BLOB_MAX, grpc::GrpcBlobService, grpc_server::BlobServer, memory::MemoryBlobService,
    },
    cache::test_far::{Control, FarBlobs},
    conformance::{self, content},
    grpc::test_server::{Listen, TestServer},
    local::cache::{CACHE_MIN, LocalCache},
};

/// Enough for all that a test reads.
const MEMORY: u64 = 1 << 30;

fn local(folder: &Path) -> Near {
    Near::local(LocalCache::open(folder, CACHE_MIN).unwrap())
}

/// A cache over a far side, which is to be filled by itself.
fn cache(near: Near) -> (CacheBlobService, Arc<FarBlobs>) {
    let far = Arc::new(FarBlobs::default());
    (CacheBlobService::new(near, far.clone()), far)
}

async fn put(far: &FarBlobs, name: &str, size: usize) -> (Digest, Bytes) {
    let bytes = content(name, size);
    (far.blobs.put_bytes(bytes.clone()).await.unwrap(), bytes)
}

fn range(offset: u64, length: u64) -> ByteRange {
    ByteRange { offset, length }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn conforms() {
    let memory = || Arc::new(MemoryBlobService::new());
    let service = CacheBlobService::new(Near::memory(MEMORY), memory());
    assert_eq!(service.to_string(), "cache(near: memory:, far: memory:)");
    conformance::blob_service(Arc::new(service)).await;

    let folder = tempfile::tempdir().unwrap();
    let service = CacheBlobService::new(local(folder.path()), memory());
    let near = folder.path().display();
    assert_eq!(service.to_string(), format!("cache(near: sled:{near}, far: memory:)"));
    conformance::blob_service(Arc::new(service)).await;

    let server = BlobServer::new(memory());
    let routes = Routes::new(server.clone().into_snix_service());
    let server =
        TestServer::start(Listen::Tcp, routes.add_service(server.into_cairn_service())).await;
    let folder = tempfile::tempdir().unwrap();
    let far = Arc::new(GrpcBlobService::new(server.peer()));
    conformance::blob_service(Arc::new(CacheBlobService::new(local(folder.path()), far))).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_readers_of_one_blob_fetch_it_once() {
    let folder = tempfile::tempdir().unwrap();
    let (service, far) = cache(local(folder.path()));
    let small = put(&far, "small", 1000).await;
    let whole = put(&far, "whole", 200_000).await;
    let large = put(&far, "large", 3_000_000).await;
    // What a reader asks for, and how much the far side is asked then.
    for (asked, (digest, bytes), part, many) in [
        (1, small, 0..1000, true),
        (2, whole, 100..150_000, false),
        (2, large, 1_100_000..1_200_000, false),
    ] {
        far.control.open(false);
        let mut readers: Vec<_> = (0..1000)
            .map(|_| {
                let (service, part) = (service.clone(), part.clone());
                tokio::spawn(async move {
                    if many {
                        return service.read_many(&[digest]).await.unwrap()[0].clone().unwrap();
                    }
                    let range = range(part.start, part.end - part.start);
                    service.read_to_bytes(&digest, range).await.unwrap()
                })
            })
            .collect();
        tokio::time::sleep(Duration::from_millis(100)).await;
        // Those who leave take nothing along, though one of them has come first.
        let stay = readers.split_off(500);
        readers.iter().for_each(|reader| reader.abort());
        far.control.open(true);
        for reader in stay {
            assert!(reader.await.unwrap() == bytes[part.start as usize..part.end as usize]);
        }
        assert_eq!(far.control.asked(), asked);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_read_is_near_whatever_becomes_of_the_far_side() {
    let folder = tempfile::tempdir().unwrap();
    let far = Arc::new(FarBlobs::default());
    let small = [put(&far, "a", 10).await, put(&far, "b", SMALL_BLOB_MAX).await];
    let whole = put(&far, "whole", 300_000).await;
    let large = put(&far, "large", 5_000_000).await;
    let never = put(&far, "never", 10).await;
    let stat = far.blobs.stat(&large.0).await.unwrap();
    let check = async |service: &CacheBlobService| {
        let digests: Vec<_> = small.iter().map(|(digest, _)| *digest).collect();
        let expected: Vec<_> = small.iter().map(|(_, bytes)| Some(bytes.clone())).collect();
        assert!(service.read_many(&digests).await.unwrap() == expected);
        assert!(service.read_to_bytes(&whole.0, ByteRange::ALL).await.unwrap() == whole.1);
        // A part alone, in groups that start before it and end behind it.
        let part = range(1_000_000, 600_000);
        let read = service.read_to_bytes(&large.0, part).await.unwrap();
        assert!(read == large.1[1_000_000..1_600_000]);
        assert_eq!(service.stat(&large.0).await.unwrap(), stat);
        service.near.store().settle().await;
        for (digest, bytes) in small.iter().chain([&whole]) {
            let read = service.read_local(digest, ByteRange::ALL).unwrap().unwrap();
            assert!(read == *bytes);
        }
        let piece = service.read_local(&large.0, range(1_300_000, 100_000)).unwrap().unwrap();
        assert!(!piece.is_empty() && piece == large.1[1_300_000..1_300_000 + piece.len()]);
        let behind = service.read_local(&large.0, range(5_000_000, 9)).unwrap().unwrap();
        assert!(behind.is_empty());
        assert!(service.read_local(&large.0, range(0, 10)).is_none());
        assert!(service.read_local(&never.0, ByteRange::ALL).is_none());
    };
    {
        let service = CacheBlobService::new(local(folder.path()), far.clone());
        check(&service).await;
        assert!(far.control.asked() > 0);
        assert!(far.control.sent() < 1_800_000, "more was fetched than the groups of the range");
        check(&service).await;
        assert_eq!(far.control.asked(), 0, "all of it is near");
    }
    far.control.is_gone.store(true, SeqCst);
    let service = CacheBlobService::new(local(folder.path()), far.clone());
    check(&service).await;
    assert_eq!(far.control.asked(), 0, "all of it is near after it was opened again");
    assert_eq!(service.has_many(&[small[0].0, whole.0, Digest::EMPTY]).await.unwrap(), [true; 3]);

    let miss = |digest: &Digest, error: BlobError| {
        let BlobError::Unavailable { service, source } = &error else { panic!("{error:?}") };
        let near = format!("sled:{}", folder.path().display());
        assert_eq!(*service, format!("cache(near: {near}, far: far-away:)"));
        let source = source.to_string();
        let expected = format!("blob {digest} is not in {near}");
        assert!(source.starts_with(&expected), "{source}");
        assert!(source.contains("no route to it"), "{source}");
    };
    miss(&never.0, service.read_many(&[small[0].0, never.0]).await.unwrap_err());
    miss(&never.0, service.stat(&never.0).await.unwrap_err());
    miss(&never.0, service.read_to_bytes(&never.0, ByteRange::ALL).await.unwrap_err());
    miss(&large.0, service.read_to_bytes(&large.0, range(0, 10)).await.unwrap_err());
    for digests in [[small[0].0, never.0], [small[0].0, large.0]] {
        let error = service.has_many(&digests).await.unwrap_err();
        assert!(matches!(error, BlobError::Unavailable { .. }), "{error:?}");
    }
}

#[tokio::test]
async fn a_damaged_copy_is_fetched_again_and_healed() {
    let folder = tempfile::tempdir().unwrap();
    let (service, far) = cache(local(folder.path()));
    let (digest, bytes) = put(&far, "whole", 300_000).await;
    let (large, large_bytes) = put(&far, "large", 2_000_000).await;
    let check = async || {
        assert!(service.read_to_bytes(&digest, ByteRange::ALL).await.unwrap() == bytes);
        assert!(service.read_to_bytes(&large, ByteRange::ALL).await.unwrap() == large_bytes);
        service.near.store().settle().await;
        far.control.asked()
    };
    assert!(check().await > 0);
    assert_eq!(check().await, 0);
    let mut flipped = 0;
    for pack in fs::read_dir(folder.path().join("packs")).unwrap() {
        let file = OpenOptions::new().read(true).write(true).open(pack.unwrap().path()).unwrap();
        for offset in (50_000..file.metadata().unwrap().len()).step_by(100_000) {
            let mut byte = [0];
            file.read_exact_at(&mut byte, offset).unwrap();
            file.write_all_at(&[byte[0] ^ 1], offset).unwrap();
            flipped += 1;
        }
    }
    assert!(flipped > 15);
    assert!(check().await > 0, "what is damaged is fetched again");
    assert_eq!(check().await, 0, "and is healed");
}

#[tokio::test]
async fn what_the_far_side_spoils_is_neither_kept_nor_handed_on() {
    let (service, far) = cache(Near::memory(MEMORY));
    let (small, bytes) = put(&far, "small", 1000).await;
    let (whole, whole_bytes) = put(&far, "whole", 300_000).await;
    let (large, large_bytes) = put(&far, "large", 2_000_000).await;
    let repetitive = Bytes::from(b"again ".repeat(1000));
    let framed = far.blobs.put_bytes(repetitive.clone()).await.unwrap();
    far.control.lies.store(true, SeqCst);
    let corrupt = |digest: Digest, error: BlobError| {
        assert!(matches!(&error, BlobError::Corrupt { digest: named, .. } if *named == digest));
        assert!(error.to_string().contains("far-away:"), "{error}");
    };
    for _ in 0..2 {
        corrupt(small, service.read_many(&[small]).await.unwrap_err());
        corrupt(framed, service.read_many(&[framed]).await.unwrap_err());
        corrupt(small, service.read_to_bytes(&small, ByteRange::ALL).await.unwrap_err());
        corrupt(whole, service.read_to_bytes(&whole, range(5, 5)).await.unwrap_err());
        corrupt(large, service.read_to_bytes(&large, range(5, 5)).await.unwrap_err());
        assert!(service.read_local(&small, ByteRange::ALL).is_none());
        assert!(service.read_local(&framed, ByteRange::ALL).is_none());
        assert!(service.read_local(&large, range(5, 5)).is_none());
    }
    far.control.lies.store(false, SeqCst);
    assert!(service.read_many(&[small, framed]).await.unwrap() == [Some(bytes), Some(repetitive)]);
    assert!(service.read_to_bytes(&whole, ByteRange::ALL).await.unwrap() == whole_bytes);
    assert!(service.read_to_bytes(&large, ByteRange::ALL).await.unwrap() == large_bytes);
}

#[tokio::test]
async fn many_small_blobs_are_one_request() {
    let (service, far) = cache(Near::memory(MEMORY));
    let mut blobs = Vec::new();
    for index in 0..50 {
        blobs.push(put(&far, "many", 100 + index).await);
    }
    let digests: Vec<_> = blobs.iter().map(|(digest, _)| *digest).collect();
    let missing = Digest::of(b"in no store");
    service.read_many(&digests[..20]).await.unwrap();
    assert_eq!(far.control.asked(), 1);
    let asked: Vec<_> = digests.iter().copied().chain([missing, digests[30]]).collect();
    let read = service.read_many(&asked).await.unwrap();
    assert_eq!(far.control.asked(), 1);
    for (index, (_, bytes)) in blobs.iter().enumerate() {
        assert_eq!(read[index].as_ref(), Some(bytes));
    }
    assert_eq!((read[50].as_ref(), read[51].as_ref()), (None, Some(&blobs[30].1)));
    // What is not there may come at any time.
    far.blobs.put_many(vec![Blob::new(Bytes::from_static(b"in no store"))]).await.unwrap();
    assert!(service.read_many(&[missing]).await.unwrap()[0].is_some());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_asks_for_too_much_spoils_nothing_for_others() {
    let (service, far) = cache(Near::memory(MEMORY));
    let (small, bytes) = put(&far, "small", 1000).await;
    let (whole, whole_bytes) = put(&far, "whole", SMALL_BLOB_MAX + 1).await;
    far.control.open(false);
    let spawn = |digests: Vec<Digest>| {
        let service = service.clone();
        tokio::spawn(async move { service.read_many(&digests).await })
    };
    let both = spawn(vec![small, whole]);
    tokio::time::sleep(Duration::from_millis(50)).await;
    let one = spawn(vec![small]);
    let reader = service.clone();
    let large = tokio::spawn(async move { reader.read_to_bytes(&whole, ByteRange::ALL).await });
    tokio::time::sleep(Duration::from_millis(50)).await;
    far.control.open(true);
    let error = both.await.unwrap().unwrap_err();
    assert!(matches!(error, BlobError::TooLarge { digest, .. } if digest == whole), "{error:?}");
    assert_eq!(one.await.unwrap().unwrap(), [Some(bytes)]);
    assert!(large.await.unwrap().unwrap() == whole_bytes);
    let error = service.read_many(&[whole]).await.unwrap_err();
    assert!(matches!(error, BlobError::TooLarge { .. }), "{error:?}");
}

#[tokio::test]
async fn a_near_side_that_fails_is_done_without() {
    let folder = tempfile::tempdir().unwrap();
    let near = local(folder.path());
    let (service, far) = cache(near.clone());
    let (small, bytes) = put(&far, "small", 1000).await;
    let (large, large_bytes) = put(&far, "large", 2_000_000).await;
    near.close();
    for _ in 0..2 {
        assert!(service.read_many(&[small]).await.unwrap() == [Some(bytes.clone())]);
        let part = service.read_to_bytes(&large, range(7, 1_000_000)).await.unwrap();
        assert!(part == large_bytes[7..1_000_007]);
        near.settle().await;
        assert!(far.control.asked() >= 2);
    }
    assert!(near.stats().unwrap().usage.dropped > 0);
}

#[tokio::test]
async fn chunk_lists_are_not_needed_and_proofs_are() {
    let (service, far) = cache(Near::memory(MEMORY));
    let (unlisted, bytes) = put(&far, "unlisted", 2_000_000).await;
    let (unproven, unproven_bytes) = put(&far, "unproven", 2_000_000).await;
    far.control.hides_chunks.store(true, SeqCst);
    for _ in 0..2 {
        assert!(service.read_to_bytes(&unlisted, ByteRange::ALL).await.unwrap() == bytes);
    }
    far.control.hides_proofs.store(true, SeqCst);
    far.control.asked();
    assert!(service.read_to_bytes(&unlisted, ByteRange::ALL).await.unwrap() == bytes);
    assert_eq!(far.control.asked(), 0);
    for _ in 0..2 {
        assert!(
            service.read_to_bytes(&unproven, range(7, 9)).await.unwrap() == unproven_bytes[7..16]
        );
        assert_eq!(far.control.asked(), 2, "it is read through");
        assert!(service.read_to_bytes(&unproven, ByteRange::ALL).await.unwrap() == unproven_bytes);
        assert_eq!(far.control.asked(), 3, "what is behind the first is one more");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    /// Whatever is near, gone or damaged: what is read is the blob, or an error.
    #[test]
    fn ranges_are_right(
        sizes in prop::collection::vec(
            prop_oneof![1..2000usize, 100_000..600_000usize, 1_000_000..2_500_000usize], 1..4,
        ),
        steps in prop::collection::vec((0..8u8, 0..4usize, 0..3_000_000u64, 0..900_000u64), 1..40),
    ) {
        let mut runtime = tokio::runtime::Builder::new_multi_thread();
        let runtime = runtime.worker_threads(2).enable_all().build().unwrap();
        runtime.block_on(async {
            let folder = tempfile::tempdir().unwrap();
            let near = local(folder.path());
            let (service, far) = cache(near.clone());
            let mut blobs = Vec::new();
            for (index, size) in sizes.iter().enumerate() {
                blobs.push(put(&far, &format!("blob {index}"), *size).await);
            }
            for (step, blob, offset, length) in steps {
                let (digest, bytes) = &blobs[blob % blobs.len()];
                let Control { is_gone, lies, .. } = &*far.control;
                match step {
                    0 => is_gone.store(length % 3 == 0, SeqCst),
                    1 => lies.store(length % 3 == 0, SeqCst),
                    2 => near.settle().await,
                    3 if length % 5 == 0 => {
                        near.settle().await;
                        near.clear().unwrap();
                    }
                    _ => {
                        let asked = range(offset, length);
                        let within = asked.within(bytes.len() as u64);
                        let expected = &bytes[within.start as usize..within.end as usize];
                        let failing = is_gone.load(SeqCst) || lies.load(SeqCst);
                        match service.read_to_bytes(digest, asked).await {
                            Ok(read) => prop_assert!(read == expected),
                            Err(error) => prop_assert!(failing, "{error:?}"),
                        }
                        if let Some(part) = service.read_local(digest, asked) {
                            let part = part.unwrap();
                            prop_assert!(part == expected[..part.len()]);
                            prop_assert_eq!(part.is_empty(), expected.is_empty());
                        }
                    }
                }
            }
            Ok(())
        })?;
    }
}

/// Which is two chunks, and one group.
#[tokio::test]
async fn a_blob_that_is_known_and_not_kept_is_fetched_whole() {
    let (service, far) = cache(Near::memory(MEMORY));
    let (digest, bytes) = put(&far, "blob 0", 247_417).await;
    assert_eq!(service.stat(&digest).await.unwrap().unwrap().chunks.len(), 2);
    assert!(service.read_local(&digest, ByteRange::ALL).is_none());
    assert!(service.read_to_bytes(&digest, range(230, 300_000)).await.unwrap() == bytes[230..]);
    assert!(service.read_local(&digest, ByteRange::ALL).unwrap().unwrap() == bytes);
}
