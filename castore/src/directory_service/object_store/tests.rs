use futures::stream;
use object_store::{ObjectStoreExt as _, PutPayload};

use super::*;
use crate::{Address, Name, Node, conformance, directory::SizeRule};

fn open(url: &str) -> ObjectStoreDirectoryService {
    match url.parse().unwrap() {
        Address::ObjectStore(address) => {
            ObjectStoreDirectoryService::new(ObjectBase::open(&address).unwrap())
        }
        other => panic!("{other} is no address of objects"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn conforms_in_memory() {
    conformance::directory_service(Arc::new(open("objectstore+memory:/base"))).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn conforms_in_a_folder() {
    let folder = tempfile::tempdir().unwrap();
    let url = format!("objectstore+file://{}/store", folder.path().display());
    conformance::directory_service(Arc::new(open(&url))).await;
}

fn parent(children: &[&Directory]) -> Directory {
    let entry = |(index, child): (usize, &&Directory)| {
        let node = Node::Directory { digest: child.digest(), size: child.size(SizeRule::Doubled) };
        (Name::try_from(index.to_string().as_str()).unwrap(), node)
    };
    Directory::new(children.iter().enumerate().map(entry).collect()).unwrap()
}

/// Writes the object of a closure as other programs do, and nothing else.
async fn write_as_others(
    service: &ObjectStoreDirectoryService,
    root: Digest,
    directories: &[&Directory],
) {
    let mut framed = Vec::new();
    for directory in directories {
        let encoded = directory.encode();
        framed.extend((encoded.len() as u32).to_be_bytes());
        framed.extend(encoded);
    }
    let object = zstd::stream::encode_all(&framed[..], 3).unwrap();
    put(service, root, object).await;
}

async fn put(service: &ObjectStoreDirectoryService, root: Digest, object: Vec<u8>) {
    let location = service.base.location(ObjectKind::Closure, &root);
    service.base.objects().put(&location, PutPayload::from(object)).await.unwrap();
}

async fn closure(
    service: &ObjectStoreDirectoryService,
    root: &Digest,
) -> Result<Vec<Directory>, DirectoryError> {
    service.get_closure(root).await?.try_collect().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn closures_of_other_programs_are_read() {
    let service = open("objectstore+memory:/");
    let leaf = Directory::default();
    let child = parent(&[&leaf]);
    let root = parent(&[&child, &leaf]);
    write_as_others(&service, root.digest(), &[&root, &child, &leaf]).await;
    assert_eq!(service.get(&root.digest()).await.unwrap().as_ref(), Some(&root));
    assert_eq!(service.get(&child.digest()).await.unwrap(), None, "only the root has a name");
    let read = closure(&service, &root.digest()).await.unwrap();
    assert_eq!(read, [root, child.clone(), leaf]);
    assert_eq!(service.get(&child.digest()).await.unwrap(), Some(child), "it was read");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn closures_are_written_as_others_read_them() {
    let service = open("objectstore+memory:/base");
    let leaf = Directory::default();
    let (a, b) = (parent(&[&leaf]), parent(&[&leaf, &leaf]));
    let root = parent(&[&b, &a]);
    let stored: Vec<_> = [&leaf, &a, &b, &root].map(|directory| Ok(directory.clone())).into();
    service.put_closure(stream::iter(stored).boxed()).await.unwrap();
    let location = service.base.location(ObjectKind::Closure, &root.digest());
    assert!(location.as_ref().starts_with("base/dirs/b3/"));
    let object = service.base.objects().get(&location).await.unwrap().bytes().await.unwrap();
    let mut framed = &zstd::stream::decode_all(&object[..]).unwrap()[..];
    // Breadth first, each once.
    for directory in [&root, &b, &a, &leaf] {
        let (length, rest) = framed.split_first_chunk::<4>().unwrap();
        let (encoded, rest) = rest.split_at(u32::from_be_bytes(*length) as usize);
        assert_eq!(encoded, directory.encode());
        framed = rest;
    }
    assert!(framed.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn damaged_objects_are_told() {
    let service = open("objectstore+memory:/");
    let leaf = parent(&[]);
    let child = parent(&[&leaf]);
    let root = parent(&[&child]);
    let digest = root.digest();

    write_as_others(&service, digest, &[&root, &child]).await;
    let error = closure(&service, &digest).await.unwrap_err();
    assert!(matches!(error, DirectoryError::Closure(InvalidClosure::Truncated { .. })));

    write_as_others(&service, digest, &[&child, &leaf]).await;
    let error = closure(&service, &digest).await.unwrap_err();
    assert!(matches!(error, DirectoryError::Closure(InvalidClosure::WrongRoot { .. })));

    write_as_others(&service, digest, &[&root, &child, &leaf]).await;
    let location = service.base.location(ObjectKind::Closure, &digest);
    let object = service.base.objects().get(&location).await.unwrap().bytes().await.unwrap();
    let huge = [u32::MAX.to_be_bytes().as_slice(), &[0; 64]].concat();
    for wrong in [
        object[..object.len() - 5].to_vec(),
        b"noise, and no zstd frame".to_vec(),
        Vec::new(),
        zstd::stream::encode_all(&huge[..], 3).unwrap(),
        zstd::stream::encode_all(&b"\0\0\0\x02\xff\xff"[..], 3).unwrap(),
        zstd::stream::encode_all(&b"\0\0"[..], 3).unwrap(),
    ] {
        put(&service, digest, wrong).await;
        let error = closure(&service, &digest).await.unwrap_err();
        assert!(matches!(error, DirectoryError::Corrupt { digest: found, .. } if found == digest));
    }
}
