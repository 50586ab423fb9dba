use std::{sync::atomic::Ordering, time::Duration};

use futures::TryStreamExt as _;

use super::*;
use crate::{
    blob_service::{SMALL_BLOB_MAX, memory::MemoryBlobService},
    cache::test_far::FarBlobs,
    conformance::content,
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keeps_the_contract() {
    for writable in 0..2 {
        let services: Vec<Arc<dyn BlobService>> =
            vec![Arc::new(MemoryBlobService::new()), Arc::new(MemoryBlobService::new())];
        let service = UpstreamsBlobService::new(Upstreams::new(services, writable));
        crate::conformance::blob_service(Arc::new(service)).await;
    }
}

/// Two that are far, and both together; the second one takes what is stored.
fn two(last_time: Duration) -> ([Arc<FarBlobs>; 2], UpstreamsBlobService) {
    let far = [Arc::new(FarBlobs::default()), Arc::new(FarBlobs::default())];
    let services = far.iter().map(|far| far.clone() as Arc<dyn BlobService>).collect();
    (far, UpstreamsBlobService::new(Upstreams::with_last_time(services, 1, last_time)))
}

async fn put(far: &FarBlobs, bytes: &Bytes) -> Digest {
    far.blobs.put_bytes(bytes.clone()).await.unwrap()
}

#[tokio::test]
async fn the_next_is_asked_for_what_is_missing_and_for_nothing_else() {
    let ([first, second], both) = two(Duration::ZERO);
    let [one, other] = [content("one", 1000), content("other", 2000)];
    let [one_at, other_at] = [put(&first, &one).await, put(&second, &other).await];
    put(&second, &one).await;
    let missing = Digest::of(b"nowhere");

    assert!(both.read_to_bytes(&one_at, ByteRange::ALL).await.unwrap() == one);
    assert_eq!(both.stat(&one_at).await.unwrap().unwrap().size, 1000);
    assert_eq!(both.has_many(&[one_at, one_at]).await.unwrap(), [true, true]);
    assert_eq!(both.read_many(&[one_at]).await.unwrap(), [Some(one.clone())]);
    assert_eq!((second.control.asked(), second.control.sent()), (0, 0));

    let all = [other_at, missing, one_at, Digest::EMPTY];
    assert_eq!(both.has_many(&all).await.unwrap(), [true, false, true, true]);
    let read = both.read_many(&all).await.unwrap();
    assert_eq!(read, [Some(other.clone()), None, Some(one), Some(Bytes::new())]);
    assert_eq!(second.control.sent(), other.len(), "it was asked for what the first has");
    assert!(both.read_to_bytes(&other_at, ByteRange::ALL).await.unwrap() == other);
    assert_eq!(both.stat(&missing).await.unwrap(), None);
}

#[tokio::test]
async fn what_is_stored_goes_to_one() {
    let ([first, second], both) = two(Duration::ZERO);
    let large = both.put_bytes(content("stored", 1_000_000)).await.unwrap();
    let small = Blob::new(content("stored", 10));
    both.put_many(vec![small.clone()]).await.unwrap();
    let both = [large, *small.digest()];
    assert_eq!(first.blobs.has_many(&both).await.unwrap(), [false, false]);
    assert_eq!(second.blobs.has_many(&both).await.unwrap(), [true, true]);
}

fn is_unavailable<T>(answer: Result<T, BlobError>) -> bool {
    matches!(answer, Err(BlobError::Unavailable { .. }))
}

#[tokio::test]
async fn one_that_is_gone_hides_nothing_and_makes_nothing_unknown() {
    let bytes = content("gone", 700_000);
    for gone in 0..2 {
        let (far, both) = two(Duration::ZERO);
        let there = put(&far[1 - gone], &bytes).await;
        let small = put(&far[1 - gone], &content("gone", 7)).await;
        let missing = Digest::of(b"maybe there");
        far[gone].control.is_gone.store(true, Ordering::SeqCst);

        assert!(both.read_to_bytes(&there, ByteRange::ALL).await.unwrap() == bytes);
        assert!(both.stat(&there).await.unwrap().is_some());
        assert_eq!(both.has_many(&[there, small]).await.unwrap(), [true, true]);
        assert!(both.read_many(&[small]).await.unwrap()[0].is_some());

        assert!(is_unavailable(both.stat(&missing).await));
        assert!(is_unavailable(both.has_many(&[there, missing]).await));
        assert!(is_unavailable(both.read_many(&[small, missing]).await));
        assert!(is_unavailable(both.read(&missing, ByteRange::ALL).await));
        // What it would not take from anybody is its own fault.
        let large = both.read_many(&[there]).await;
        assert!(
            matches!(large, Err(BlobError::TooLarge { max, .. }) if max == SMALL_BLOB_MAX as u64)
        );

        far[gone].control.is_gone.store(false, Ordering::SeqCst);
        assert_eq!(both.stat(&missing).await.unwrap(), None);
        let read = both.read(&missing, ByteRange::ALL).await;
        assert!(matches!(read, Err(BlobError::NotFound(digest)) if digest == missing));
    }
}

#[tokio::test]
async fn one_that_could_not_be_reached_is_asked_last_for_a_while() {
    let ([first, second], both) = two(Duration::MAX);
    let there = put(&second, &content("last", 10)).await;
    first.control.is_gone.store(true, Ordering::SeqCst);
    for asked in [1, 0, 0] {
        assert!(both.stat(&there).await.unwrap().is_some());
        assert_eq!(first.control.asked(), asked);
    }
    // Only it can say that something is not there.
    assert!(is_unavailable(both.stat(&Digest::of(b"nowhere")).await));
    assert_eq!(first.control.asked(), 1);
}

#[tokio::test]
async fn what_is_damaged_in_one_comes_from_the_next() {
    let ([first, second], both) = two(Duration::ZERO);
    let large = content("damaged", 3_000_000);
    let small: Vec<_> = (0..5).map(|index| content("damaged", 10 + index)).collect();
    let large_at = put(&first, &large).await;
    put(&second, &large).await;
    let mut small_at = Vec::new();
    for bytes in &small {
        small_at.push(put(&first, bytes).await);
    }
    put(&second, &small[2]).await;
    first.control.damaged.lock().extend([large_at, small_at[2]]);

    // Some bytes come from the first, the rest from the second.
    for range in [
        ByteRange::ALL,
        ByteRange { offset: 5, length: u64::MAX },
        ByteRange { offset: 1_000_000, length: 1_500_000 },
    ] {
        let within = range.within(large.len() as u64);
        let expected = &large[within.start as usize..within.end as usize];
        first.control.sent();
        assert!(both.read_to_bytes(&large_at, range).await.unwrap() == expected);
        let sent = [first.control.sent(), second.control.sent()];
        assert!(sent.iter().all(|sent| *sent > 0), "{sent:?}");
        assert_eq!(sent[0] + sent[1], expected.len());
    }
    let read = both.read_many(&small_at).await.unwrap();
    assert!(read.into_iter().eq(small.iter().cloned().map(Some)));

    // Damaged in both: that is told, and nothing else is lost.
    second.control.damaged.lock().extend([large_at, small_at[2]]);
    let read = both.read_many(&small_at).await;
    assert!(matches!(read, Err(BlobError::Corrupt { digest, .. }) if digest == small_at[2]));
    let mut read = both.read(&large_at, ByteRange::ALL).await.unwrap();
    let broken = loop {
        match read.try_next().await {
            Ok(Some(_)) => {}
            other => break other,
        }
    };
    assert!(matches!(broken, Err(BlobError::Corrupt { digest, .. }) if digest == large_at));
    assert!(read.try_next().await.unwrap().is_none(), "a stream ends after an error");
}
