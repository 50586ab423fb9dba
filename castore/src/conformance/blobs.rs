//! What every blob service must pass. Each function holds it to one part of the contract, with
//! content of its own, so that their order does not matter.

use std::{io, io::Read as _, sync::Arc};

use bytes::Bytes;
use futures::{
    StreamExt as _, TryStreamExt as _,
    future::{self, Either},
    stream,
};

use super::content;
use crate::{
    Blob, BlobError, BlobService, ByteRange, Digest, Packed, Packing,
    blob_service::{
        BlobServiceExt as _, BlobSource, HAS_MANY_DIGESTS, READ_MANY_BLOBS, SMALL_BLOB_MAX,
    },
    chunking::{CHUNK_MAX, CHUNK_MIN},
    outboard::GROUP_LEN,
};

/// The most bytes that a piece of a [`crate::blob_service::BlobStream`] may have.
const PIECE_MAX: usize = 4 * 1024 * 1024;

/// Holds a freshly opened blob service to its contract. Panics where it breaks it. Needs a
/// multi-threaded runtime, as the services themselves do.
pub async fn blob_service(service: Arc<dyn BlobService>) {
    empty(&*service).await;
    unknown(&*service).await;
    every_size(&*service).await;
    partitions(&*service).await;
    read_many(&*service).await;
    has_many(&*service).await;
    put_many(&*service).await;
    failing_source(&*service).await;
    abandoned(&*service).await;
    concurrent(service).await;
}

fn source(bytes: &Bytes, piece: usize) -> BlobSource {
    let pieces: Vec<_> = bytes.chunks(piece).map(|piece| Ok(bytes.slice_ref(piece))).collect();
    stream::iter(pieces).boxed()
}

async fn empty(service: &dyn BlobService) {
    let check = async || {
        assert!(service.has(&Digest::EMPTY).await.unwrap(), "the empty blob is always there");
        let stat = service.stat(&Digest::EMPTY).await.unwrap().expect("the empty blob is there");
        assert_eq!((stat.digest, stat.size, stat.chunks), (Digest::EMPTY, 0, vec![]));
        let read = service.read_many(&[Digest::EMPTY]).await.unwrap();
        assert_eq!(read, [Some(Bytes::new())]);
        ranges(service, Digest::EMPTY, &Bytes::new(), &[]).await;
    };
    check().await;
    for pieces in [vec![], vec![Ok(Bytes::new())], vec![Ok(Bytes::new()), Ok(Bytes::new())]] {
        let stat = service.put(stream::iter(pieces).boxed()).await.unwrap();
        assert_eq!((stat.digest, stat.size, stat.chunks), (Digest::EMPTY, 0, vec![]));
    }
    service.put_many(vec![Blob::new(Bytes::new())]).await.unwrap();
    check().await;
}

async fn unknown(service: &dyn BlobService) {
    let digest = Digest::of(b"stored nowhere");
    assert_eq!(service.stat(&digest).await.unwrap(), None);
    assert!(!service.has(&digest).await.unwrap());
    for range in [ByteRange::ALL, ByteRange { offset: 0, length: 0 }] {
        match service.read(&digest, range).await.err() {
            Some(BlobError::NotFound(found)) => assert_eq!(found, digest),
            other => panic!("reading an unknown blob gave {other:?}"),
        }
        match service.read_local(&digest, range) {
            None | Some(Err(BlobError::NotFound(_))) => {}
            other => panic!("reading an unknown blob locally gave {other:?}"),
        }
    }
    assert_eq!(service.read_many(&[digest]).await.unwrap(), [None]);
    assert!(service.lend(&digest).is_none());
}

async fn every_size(service: &dyn BlobService) {
    let sizes = [
        1,
        1024,
        1025,
        CHUNK_MIN - 1,
        CHUNK_MIN,
        CHUNK_MIN + 1,
        GROUP_LEN,
        GROUP_LEN + 1,
        CHUNK_MAX,
        CHUNK_MAX + 1,
        4 * GROUP_LEN,
        5_000_011,
    ];
    for size in sizes {
        let bytes = content("every size", size);
        let digest = Digest::of(&bytes);
        assert_eq!(service.stat(&digest).await.unwrap(), None, "{service}: not put yet");
        for round in 0..2 {
            let stat = service.put(source(&bytes, 100_003)).await.unwrap();
            assert_eq!((stat.digest, stat.size), (digest, size as u64), "put, round {round}");
        }
        assert!(service.has(&digest).await.unwrap());
        let chunks = stat(service, digest, &bytes).await;
        let mut boundary = 0;
        let boundaries: Vec<u64> = chunks
            .iter()
            .map(|chunk| {
                boundary += chunk.1.len() as u64;
                boundary
            })
            .collect();
        ranges(service, digest, &bytes, &boundaries).await;
        for (digest, bytes) in chunks.iter().take(2) {
            assert!(service.has(digest).await.unwrap(), "a chunk is a blob");
            assert_eq!(stat(service, *digest, bytes).await, []);
            ranges(service, *digest, bytes, &[]).await;
        }
    }
}

/// Checks what is said of a blob, and gives its chunks.
async fn stat(service: &dyn BlobService, digest: Digest, bytes: &Bytes) -> Vec<(Digest, Bytes)> {
    let stat = service.stat(&digest).await.unwrap().expect("the blob was put");
    assert_eq!((stat.digest, stat.size), (digest, bytes.len() as u64));
    assert_ne!(stat.chunks.len(), 1, "a single chunk is not listed");
    if let Some(outboard) = &stat.outboard {
        assert_eq!((*outboard.digest(), outboard.size()), (digest, stat.size));
        for (index, group) in bytes.chunks(GROUP_LEN).enumerate() {
            assert!(outboard.verify_group(index as u64, group), "group {index}");
        }
    }
    let mut rest = bytes.clone();
    let mut chunks = Vec::new();
    for chunk in &stat.chunks {
        assert!((1..=rest.len() as u64).contains(&chunk.size), "chunks lie within the blob");
        let bytes = rest.split_to(chunk.size as usize);
        assert_eq!(Digest::of(&bytes), chunk.digest);
        chunks.push((chunk.digest, bytes));
    }
    assert!(chunks.is_empty() || rest.is_empty(), "chunks cover the blob");
    chunks
}

/// Reads ranges of all kinds, and those around some boundaries.
async fn ranges(service: &dyn BlobService, digest: Digest, bytes: &Bytes, boundaries: &[u64]) {
    let size = bytes.len() as u64;
    let group = GROUP_LEN as u64;
    let mut ranges = vec![
        (0, u64::MAX),
        (0, size),
        (0, size + 1),
        (0, 0),
        (0, 1),
        (1, size.saturating_sub(2)),
        (size / 2, u64::MAX),
        (size / 2, 0),
        (size / 3, 5),
        (size.saturating_sub(1), 1),
        (size.saturating_sub(1), u64::MAX),
        (size, 1),
        (size, u64::MAX),
        (size + 1, 7),
        (u64::MAX, 1),
        (u64::MAX, u64::MAX),
        (group - 1, 2),
        (group, group),
        (group + 1, 2 * group),
    ];
    ranges.extend(boundaries.iter().take(3).map(|boundary| (boundary - 1, 2)));
    for (offset, length) in ranges {
        let range = ByteRange { offset, length };
        let within = range.within(size);
        let expected = bytes.slice(within.start as usize..within.end as usize);
        let mut stream = service.read(&digest, range).await.unwrap();
        let mut rest = expected.clone();
        while let Some(piece) = stream.try_next().await.unwrap() {
            assert!(piece.len() <= PIECE_MAX, "a piece of {} bytes", piece.len());
            assert!(piece.len() <= rest.len(), "{range:?} of {size} bytes: too many bytes");
            assert!(rest.split_to(piece.len()) == piece, "{range:?} of {size} bytes: wrong bytes");
        }
        assert_eq!(rest.len(), 0, "{range:?} of {size} bytes: bytes are missing");
        if let Some(answer) = service.read_local(&digest, range) {
            let local = answer.unwrap();
            assert!(expected.starts_with(&local), "{range:?} of {size} bytes, locally");
            assert!(expected.is_empty() || !local.is_empty(), "{range:?} of {size} bytes, locally");
        }
    }
    if let Some(mut file) = service.lend(&digest) {
        let mut lent = Vec::new();
        file.read_to_end(&mut lent).unwrap();
        assert!(lent == *bytes, "the file that was lent holds other bytes");
    }
}

async fn partitions(service: &dyn BlobService) {
    for (size, piece) in [(300, 1), (CHUNK_MAX + 5, 1009), (2_000_003, 2_000_003)] {
        let bytes = content("partitions", size);
        let pieces = source(&bytes, piece)
            .flat_map(|piece| stream::iter([Ok(Bytes::new()), piece, Ok(Bytes::new())]));
        let stat = service.put(pieces.boxed()).await.unwrap();
        assert_eq!((stat.digest, stat.size), (Digest::of(&bytes), size as u64));
        let read = service.read_to_bytes(&stat.digest, ByteRange::ALL).await.unwrap();
        assert!(read == bytes, "{size} bytes in pieces of {piece}");
    }
}

async fn read_many(service: &dyn BlobService) {
    assert_eq!(service.read_many(&[]).await.unwrap(), Vec::<Option<Bytes>>::new());
    let blobs: Vec<_> =
        (0..200).map(|size| Blob::new(content("read many", 1 + size * 13))).collect();
    service.put_many(blobs.clone()).await.unwrap();
    let largest = Blob::new(content("read many", SMALL_BLOB_MAX));
    service.put_many(vec![largest.clone()]).await.unwrap();
    let compressible = Blob::new(b"again ".repeat(10_000).into());
    service.put_many(vec![compressible.clone()]).await.unwrap();
    let missing = Digest::of(b"not among the many");

    let mut digests = vec![missing, *largest.digest(), *compressible.digest(), missing];
    let [some, other] = [&largest, &compressible].map(|blob| Some(blob.bytes().clone()));
    let mut expected = vec![None, some, other, None];
    // Backwards, each twice, with holes.
    for blob in blobs.iter().rev() {
        digests.extend([*blob.digest(), missing, *blob.digest(), Digest::EMPTY]);
        let bytes = Some(blob.bytes().clone());
        expected.extend([bytes.clone(), None, bytes, Some(Bytes::new())]);
    }
    assert!(service.read_many(&digests).await.unwrap() == expected, "read_many gave other blobs");
    for packing in [Packing::Stored, Packing::All] {
        let packed = service.read_many_packed(&digests, packing).await.unwrap();
        let is_frame = |packed: &Option<Packed>| matches!(packed, Some(Packed::Frame { .. }));
        let is_packed = is_frame(&packed[2]);
        assert!(is_packed || packing == Packing::Stored, "what can be compressed is not packed");
        assert_eq!(packed.iter().filter(|packed| is_frame(packed)).count(), usize::from(is_packed));
        let unpacked = packed.into_iter().map(|blob| blob.map(|packed| packed.unpack().unwrap()));
        assert!(unpacked.eq(expected.iter().cloned()), "read_many_packed gave other blobs");
    }

    // More bytes than one message of any transport holds.
    let many: Vec<_> =
        (0..48).map(|index| Blob::new(content("many bytes", SMALL_BLOB_MAX - index))).collect();
    service.put_many(many.clone()).await.unwrap();
    let digests: Vec<_> = many.iter().map(|blob| *blob.digest()).collect();
    let expected: Vec<_> = many.iter().map(|blob| Some(blob.bytes().clone())).collect();
    assert!(service.read_many(&digests).await.unwrap() == expected, "read_many gave other blobs");

    for size in [SMALL_BLOB_MAX + 1, 1_500_000] {
        let large = service.put_bytes(content("large", size)).await.unwrap();
        match service.read_many(&[*largest.digest(), large]).await {
            Err(BlobError::TooLarge { digest, .. }) => assert_eq!(digest, large),
            other => panic!("{size} bytes through read_many gave {:?}", other.map(drop)),
        }
        let packed = service.read_many_packed(&[large], Packing::All).await;
        assert!(matches!(packed, Err(BlobError::TooLarge { .. })), "{size} bytes were packed");
    }
    let too_many = vec![Digest::EMPTY; READ_MANY_BLOBS + 1];
    assert!(matches!(service.read_many(&too_many).await, Err(BlobError::Invalid(_))));
    let packed = service.read_many_packed(&too_many, Packing::Stored).await;
    assert!(matches!(packed, Err(BlobError::Invalid(_))));
}

async fn has_many(service: &dyn BlobService) {
    assert_eq!(service.has_many(&[]).await.unwrap(), Vec::<bool>::new());
    let small = service.put_bytes(content("has many", 10)).await.unwrap();
    let large = service.put_bytes(content("has many", 1_000_000)).await.unwrap();
    let missing = Digest::of(b"not there at all");
    let asked = [missing, small, missing, large, small, Digest::EMPTY, missing];
    let there = service.has_many(&asked).await.unwrap();
    assert_eq!(there, [false, true, false, true, true, true, false]);
    let too_many = vec![Digest::EMPTY; HAS_MANY_DIGESTS + 1];
    assert!(matches!(service.has_many(&too_many).await, Err(BlobError::Invalid(_))));
}

async fn put_many(service: &dyn BlobService) {
    service.put_many(vec![]).await.unwrap();
    let blobs: Vec<_> =
        (0..300).map(|index| Blob::new(content("put many", 1 + index * 7))).collect();
    let twice: Vec<_> = blobs.iter().chain(&blobs).cloned().collect();
    for _ in 0..2 {
        service.put_many(twice.clone()).await.unwrap();
    }
    for blob in blobs.iter().step_by(50) {
        assert_eq!(stat(service, *blob.digest(), blob.bytes()).await, []);
        ranges(service, *blob.digest(), blob.bytes(), &[]).await;
    }
    let large = Blob::new(content("put many", SMALL_BLOB_MAX + 1));
    let refused = service.put_many(vec![large.clone()]).await;
    assert!(matches!(refused, Err(BlobError::TooLarge { .. })), "{refused:?}");
    assert!(!service.has(large.digest()).await.unwrap());
}

async fn failing_source(service: &dyn BlobService) {
    for size in [10, CHUNK_MIN, 1_500_000] {
        let bytes = content("failing source", size);
        let failure = io::Error::new(io::ErrorKind::PermissionDenied, "no more of this");
        let failing = source(&bytes, 65_537).chain(stream::iter([Err(failure)]));
        match service.put(failing.boxed()).await {
            Err(BlobError::Source(error)) => {
                assert_eq!(error.kind(), io::ErrorKind::PermissionDenied);
            }
            other => panic!("{size} bytes and a failure gave {other:?}"),
        }
        assert!(!service.has(&Digest::of(&bytes)).await.unwrap(), "a failed put stored a blob");
    }
}

/// Streams and puts that are given up leave the service as it was.
async fn abandoned(service: &dyn BlobService) {
    let bytes = content("abandoned", 3_000_000);
    let digest = service.put_bytes(bytes.clone()).await.unwrap();
    for _ in 0..20 {
        let mut stream = service.read(&digest, ByteRange::ALL).await.unwrap();
        assert!(!stream.try_next().await.unwrap().expect("the blob has bytes").is_empty());
    }
    let endless = content("never ends", 100_000);
    let (drained, reached) = tokio::sync::oneshot::channel();
    let end = async move {
        let _ = drained.send(());
        future::pending().await
    };
    let put = service.put(source(&endless, 1000).chain(stream::once(end)).boxed());
    assert!(matches!(future::select(put, reached).await, Either::Right(_)));
    assert!(!service.has(&Digest::of(&endless)).await.unwrap());
    assert!(service.read_to_bytes(&digest, ByteRange::ALL).await.unwrap() == bytes);
}

async fn concurrent(service: Arc<dyn BlobService>) {
    let tasks: Vec<_> = (0..24)
        .map(|task| {
            let service = service.clone();
            tokio::spawn(async move {
                // Each content is put and read by eight tasks at once.
                let large = content("concurrent", 1_200_000 + task % 3);
                let small: Vec<_> = (0..50)
                    .map(|index| Blob::new(content("concurrent", 2 + task % 3 * 50 + index)))
                    .collect();
                service.put_many(small.clone()).await.unwrap();
                let stat = service.put(source(&large, 50_000)).await.unwrap();
                let read = service.read_to_bytes(&stat.digest, ByteRange::ALL).await.unwrap();
                assert!(read == large, "concurrent tasks changed a blob");
                let digests: Vec<_> = small.iter().map(|blob| *blob.digest()).collect();
                let read = service.read_many(&digests).await.unwrap();
                let expected: Vec<_> = small.into_iter().map(|b| Some(b.into_bytes())).collect();
                assert!(read == expected, "concurrent tasks changed small blobs");
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
}
