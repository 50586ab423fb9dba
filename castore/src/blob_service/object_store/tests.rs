use object_store::{ObjectStoreExt as _, PutPayload};

use super::*;
use crate::{
    Address,
    blob_service::BlobServiceExt as _,
    chunking::CHUNK_MIN,
    conformance::{self, content},
};

fn open(url: &str) -> ObjectStoreBlobService {
    match url.parse().unwrap() {
        Address::ObjectStore(address) => {
            ObjectStoreBlobService::new(ObjectBase::open(&address).unwrap())
        }
        other => panic!("{other} is no address of objects"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn conforms_in_memory() {
    conformance::blob_service(Arc::new(open("objectstore+memory:/base"))).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn conforms_in_a_folder() {
    let folder = tempfile::tempdir().unwrap();
    let url = format!("objectstore+file://{}/store", folder.path().display());
    conformance::blob_service(Arc::new(open(&url))).await;
}

/// Writes a blob as other programs do: chunks in streamed zstd frames, and no proof.
async fn write_as_others(service: &ObjectStoreBlobService, bytes: &Bytes) -> Digest {
    let digest = Digest::of(bytes);
    let mut chunks = Vec::new();
    let mut chunker = Chunker::new();
    chunker.push(bytes.clone(), |chunk| chunks.push(chunk));
    chunker.finish(|chunk| chunks.push(chunk));
    let mut list = proto::StatBlobResponse::default();
    for chunk in &chunks {
        let location = service.base.location(ObjectKind::Chunk, &Digest::of(chunk));
        let frame = zstd::stream::encode_all(&chunk[..], 3).unwrap();
        service.base.objects().put(&location, frame.into()).await.unwrap();
        list.chunks.push(proto::stat_blob_response::ChunkMeta {
            digest: Digest::of(chunk).into(),
            size: chunk.len() as u64,
        });
    }
    if chunks.len() == 1 {
        list.chunks.clear();
    }
    let location = service.base.location(ObjectKind::Blob, &digest);
    service.base.objects().put(&location, list.encode_to_vec().into()).await.unwrap();
    digest
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn blobs_of_other_programs_are_read() {
    let service = open("objectstore+memory:/");
    for size in [1, CHUNK_MIN, 2_000_000] {
        let bytes = content("by others", size);
        let digest = write_as_others(&service, &bytes).await;
        let range = ByteRange { offset: size as u64 / 3, length: size as u64 / 3 + 1 };
        let part = bytes.slice(size / 3..(size / 3) * 2 + 1);
        assert!(service.read_to_bytes(&digest, range).await.unwrap() == part);
        assert!(service.read_to_bytes(&digest, ByteRange::ALL).await.unwrap() == bytes);
        assert_eq!(service.stat(&digest).await.unwrap().map(|stat| stat.size), Some(size as u64));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn damaged_objects_are_told() {
    let corrupt = |result: Result<Bytes, BlobError>, what: &str| match result {
        Err(BlobError::Corrupt { reason, .. }) => assert!(reason.contains(what), "{reason}"),
        other => panic!("{what}: {:?}", other.map(|bytes| bytes.len())),
    };
    let bytes = content("damaged", 2_000_000);
    let digest = Digest::of(&bytes);
    let other = zstd::bulk::compress(b"something else", 3).unwrap();
    let bomb = zstd::bulk::compress(&vec![0; 64 * 1024 * 1024], 3).unwrap();
    for (object, what) in [
        (other, "other bytes"),
        (b"noise".to_vec(), "no compressed chunk"),
        (bomb, "no compressed chunk"),
    ] {
        let service = open("objectstore+memory:/");
        let stat = service.put(stream::iter([Ok(bytes.clone())]).boxed()).await.unwrap();
        let location = service.base.location(ObjectKind::Chunk, &stat.chunks[1].digest);
        service.base.objects().put(&location, object.into()).await.unwrap();
        corrupt(service.read_to_bytes(&digest, ByteRange::ALL).await, what);
        // What is whole is still read.
        let whole = ByteRange { offset: 0, length: 10 };
        assert_eq!(service.read_to_bytes(&digest, whole).await.unwrap(), bytes[..10]);
    }

    let service = open("objectstore+memory:/");
    write_as_others(&service, &bytes).await;
    // The list of another blob, each of whose chunks is sound.
    let location = service.base.location(ObjectKind::Blob, &digest);
    let list = service.base.objects().get(&location).await.unwrap().bytes().await.unwrap();
    let claimed = Digest::of(b"claimed");
    let location = service.base.location(ObjectKind::Blob, &claimed);
    service.base.objects().put(&location, PutPayload::from(list)).await.unwrap();
    corrupt(service.read_to_bytes(&claimed, ByteRange::ALL).await, "its bytes are those of");
    // A list of what is not there, and no list at all.
    let chunk = service.stat(&digest).await.unwrap().expect("it is there").chunks[0].digest;
    let location = service.base.location(ObjectKind::Chunk, &chunk);
    service.base.objects().delete(&location).await.unwrap();
    corrupt(service.read_to_bytes(&digest, ByteRange::ALL).await, "is missing");
    let location = service.base.location(ObjectKind::Blob, &claimed);
    service.base.objects().put(&location, PutPayload::from_static(b"\xff\xff")).await.unwrap();
    corrupt(service.read_to_bytes(&claimed, ByteRange::ALL).await, "no list");
}
