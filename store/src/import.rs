//! Imports a tree as a store path: its contents, its NAR's hash on the way, and its record at the
//! end. How a tree is read and stored is the affair of `castore`.

use std::{
    ffi::OsString,
    path::{Path, PathBuf},
    sync::Arc,
};

use cairn_castore::import::{self, ImportError};

use crate::{
    PathInfo, PathInfoError, Services, StorePath, nar::hash::NarHasher,
    path_info_service::NarWitness, store_path::InvalidStorePath,
};

/// How a path is imported.
#[derive(Debug, Clone, Default)]
pub struct ImportOptions {
    /// The name in the store path; the last part of the path's own if there is none.
    pub name: Option<String>,
    /// How its tree is imported.
    pub tree: import::ImportOptions,
}

/// Why a path could not be imported.
#[derive(Debug, thiserror::Error)]
pub enum ImportPathError {
    /// The name can't be one of a store path. Nothing was read.
    #[error("{} needs another name in the store: give one with --name", path.display())]
    Name {
        /// What was to be imported.
        path: PathBuf,
        /// What is wrong with the name.
        #[source]
        source: InvalidStorePath,
    },
    /// The name that was given can't be one of a store path. Nothing was read.
    #[error("the name given with --name can't be used")]
    GivenName(#[source] InvalidStorePath),
    /// The tree could not be imported.
    #[error(transparent)]
    Import(#[from] ImportError),
    /// The path could not be recorded.
    #[error(transparent)]
    PathInfo(#[from] PathInfoError),
}

/// Imports what is at `path`, and answers with its record when all of it is durable.
///
/// The store path is that of `nix-store --add`. Importing again what is there is no error, and
/// answers with what is recorded.
pub async fn import_path(
    services: &Services,
    path: &Path,
    options: ImportOptions,
) -> Result<PathInfo, ImportPathError> {
    let name = store_name(path, options.name).await?;
    let (blobs, directories) = (Arc::clone(&services.blobs), Arc::clone(&services.directories));
    let (node, hasher) =
        import::import(path, blobs, directories, options.tree, NarHasher::new()).await?;
    let witness = NarWitness::new(node, hasher.finish());
    let info = PathInfo::of_imported(&name, &witness).map_err(ImportPathError::GivenName)?;
    match services.path_infos.put(info.clone(), Some(witness)).await {
        // The same contents came with another record: from a builder, or from who keeps no `ca`.
        Err(conflict @ PathInfoError::Conflict { .. }) => {
            let stored = services.path_infos.get(info.store_path.hash()).await?;
            let is_same =
                |stored: &PathInfo| stored.store_path == info.store_path && stored.nar == info.nar;
            Ok(stored.filter(is_same).ok_or(conflict)?)
        }
        stored => Ok(stored?),
    }
}

/// The name in the store path, known to be one.
async fn store_name(path: &Path, given: Option<String>) -> Result<String, ImportPathError> {
    let valid = |name: &str| StorePath::new([0; 20], name).map(|_| ());
    if let Some(name) = given {
        valid(&name).map_err(ImportPathError::GivenName)?;
        return Ok(name);
    }
    let own = match path.file_name() {
        Some(name) => name.to_owned(),
        // `.` and what ends with `..` have a name, if a hidden one.
        None => tokio::fs::canonicalize(path)
            .await
            .ok()
            .and_then(|path| Some(path.file_name()?.to_owned()))
            .unwrap_or_else(|| OsString::from(path)),
    };
    let name = own.to_string_lossy().into_owned();
    match valid(&name) {
        Ok(()) => Ok(name),
        Err(source) => Err(ImportPathError::Name { path: path.to_owned(), source }),
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt as _};

    use cairn_castore::{
        Node, blob_service::memory::MemoryBlobService,
        directory_service::memory::MemoryDirectoryService,
    };
    use cairn_proto::snix::store::v1::nar_info::ca::Hash;

    use super::*;
    use crate::{ContentAddress, path_info_service::memory::MemoryPathInfoService};

    fn services() -> Services {
        let blobs = Arc::new(MemoryBlobService::new());
        let directories = Arc::new(MemoryDirectoryService::new());
        let path_infos = Arc::new(MemoryPathInfoService::new(blobs.clone(), directories.clone()));
        Services { blobs, directories, path_infos }
    }

    fn named(name: &str) -> ImportOptions {
        ImportOptions { name: Some(name.to_owned()), ..ImportOptions::default() }
    }

    /// The tree of the specification.
    fn vector(folder: &Path) -> PathBuf {
        let tree = folder.join("tree");
        fs::create_dir_all(tree.join("d")).unwrap();
        fs::create_dir(tree.join("empty")).unwrap();
        fs::write(tree.join("big"), vec![b'a'; 700_000]).unwrap();
        fs::write(tree.join("d/f"), "hi\n").unwrap();
        fs::write(tree.join("run"), "#!/bin/sh\necho ok\n").unwrap();
        fs::set_permissions(tree.join("run"), fs::Permissions::from_mode(0o755)).unwrap();
        fs::write(tree.join("zero"), "").unwrap();
        std::os::unix::fs::symlink("d/f", tree.join("link")).unwrap();
        tree
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn the_tree_of_the_specification_gets_its_path_and_record() {
        let folder = tempfile::tempdir().unwrap();
        let tree = vector(folder.path());
        let services = services();
        let info = import_path(&services, &tree, ImportOptions::default()).await.unwrap();
        let path = "/nix/store/y0lrmcm4zaj0qd44rp7mg83dgyl87lkp-tree";
        assert_eq!(info.store_path.to_string(), path);
        let Node::Directory { digest, .. } = info.node else { panic!("{info:?}") };
        let root = "c196ece39d078098b72cde823e327cf000f81b23a6e60558b7189a6bad9c5a62";
        assert_eq!(digest.to_hex(), root);
        assert_eq!(info.nar.size, 701_424);
        let sha256 = "36739fcb9b1539fe10b866c1d18013f7255c88c1bc42a1da2a94158f5678f74b";
        assert_eq!(data_encoding::HEXLOWER.encode(&info.nar.sha256), sha256);
        let ca = ContentAddress { kind: Hash::NarSha256, digest: info.nar.sha256.to_vec() };
        assert_eq!(info.ca, Some(ca));

        let stored = services.path_infos.get(info.store_path.hash()).await.unwrap();
        assert_eq!(stored.as_ref(), Some(&info));
        // What was witnessed is what the tree says.
        let (blobs, directories) = (services.blobs.clone(), services.directories.clone());
        let nar = crate::nar::hash::calculate(&info.node, blobs, directories).await.unwrap();
        assert_eq!(nar, info.nar);

        assert_eq!(import_path(&services, &tree, named("tree")).await.unwrap(), info);
        let dots = import_path(&services, &tree.join("d/.."), ImportOptions::default()).await;
        assert_eq!(dots.unwrap(), info);
        let other = import_path(&services, &tree, named("other")).await.unwrap();
        assert_eq!((other.node, other.nar), (info.node.clone(), info.nar));
        assert_ne!(other.store_path.hash(), info.store_path.hash());
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn what_is_there_with_another_record_is_answered_with_it() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        fs::write(&file, "contents").unwrap();
        let first = import_path(&services(), &file, ImportOptions::default()).await.unwrap();

        let services = services();
        let source = futures::stream::once(async { Ok(bytes::Bytes::from_static(b"contents")) });
        services.blobs.put(Box::pin(source)).await.unwrap();
        let plain = PathInfo { ca: None, ..first };
        services.path_infos.put(plain.clone(), None).await.unwrap();
        let again = import_path(&services, &file, ImportOptions::default()).await.unwrap();
        assert_eq!(again, plain);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn names_are_judged_before_anything_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let services = services();
        // There is nothing at these paths, which would be another error.
        for name in ["with space", "ä", "semi;colon"] {
            let path = folder.path().join(name);
            let error = import_path(&services, &path, ImportOptions::default()).await.unwrap_err();
            assert!(matches!(error, ImportPathError::Name { .. }), "{error:?}");
            assert!(error.to_string().contains("--name"), "{error}");
            let error = import_path(&services, &path, named("fit")).await.unwrap_err();
            assert!(matches!(error, ImportPathError::Import(_)), "{error:?}");
        }
        let path = folder.path().join("fit");
        for name in ["", "a/b", &"x".repeat(212)] {
            let error = import_path(&services, &path, named(name)).await.unwrap_err();
            assert!(matches!(error, ImportPathError::GivenName(_)), "{error:?}");
        }
        let error = import_path(&services, Path::new("/"), ImportOptions::default()).await;
        assert!(matches!(error, Err(ImportPathError::Name { .. })));
    }
}
