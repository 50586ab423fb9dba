//! Imports a tree as a store path: its contents, its NAR's hash on the way, and its record at the
//! end; one that has not changed since the last time, without reading it. How a tree is read and
//! stored is the affair of `castore`.

mod known_trees;

use std::{
    ffi::OsString,
    path::{Path, PathBuf},
    sync::Arc,
    time::SystemTime,
};

use cairn_castore::{
    Node,
    import::{self, ImportError, TreeFingerprint},
};

use crate::{
    PathInfo, PathInfoError, Services, StorePath,
    nar::hash::NarHasher,
    path_info_service::{NarWitness, contents},
    store_path::InvalidStorePath,
};

pub use self::known_trees::{KNOWN_TREES_MAX, KnownTrees};
use self::known_trees::{KnownTree, Slot};

/// How a path is imported.
#[derive(Debug, Clone, Default)]
pub struct ImportOptions {
    /// The name in the store path; the last part of the path's own if there is none.
    pub name: Option<String>,
    /// How its tree is imported.
    pub tree: import::ImportOptions,
    /// Where trees are remembered, so that one that has not changed need not be read again.
    /// Without it, every byte is read.
    pub known_trees: Option<KnownTrees>,
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
    import_path_at(services, path, options, SystemTime::now()).await
}

/// Imports at this time, before which nothing of the tree was read.
async fn import_path_at(
    services: &Services,
    path: &Path,
    options: ImportOptions,
    now: SystemTime,
) -> Result<PathInfo, ImportPathError> {
    let ImportOptions { name, tree, known_trees } = options;
    let name = store_name(path, name).await?;
    let witness = match slot(services, path, known_trees).await {
        Some(slot) => import_remembered(services, path, tree, slot, now).await?,
        None => import_tree(services, path, tree).await?,
    };
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

async fn import_tree(
    services: &Services,
    path: &Path,
    options: import::ImportOptions,
) -> Result<NarWitness, ImportError> {
    let (blobs, directories) = (Arc::clone(&services.blobs), Arc::clone(&services.directories));
    // Who gets the blobs has them at hand; anyone else would have to fetch them.
    let gets_all = [services.blobs.to_string(), services.directories.to_string()]
        .iter()
        .all(|service| *service == services.path_infos.to_string());
    let teller = gets_all.then(|| services.path_infos.tree_teller()).flatten();
    let observers = (NarHasher::new(), teller);
    let (node, (hasher, teller)) =
        import::import(path, blobs, directories, options, observers).await?;
    if let Some(teller) = teller {
        teller.finish().await;
    }
    Ok(NarWitness::new(node, hasher.finish()))
}

/// Imports a tree, or finds that it is the one that is remembered and that the store has it.
async fn import_remembered(
    services: &Services,
    path: &Path,
    options: import::ImportOptions,
    slot: Slot,
    now: SystemTime,
) -> Result<NarWitness, ImportError> {
    let loading = slot.clone();
    let known = tokio::task::spawn_blocking(move || loading.load()).await.unwrap_or_default();
    let known = match known {
        Some(known) if has_root(services, &known.node).await => Some(known),
        _ => None,
    };
    // What is wrong with the tree is told by the import, which comes upon it, too.
    let fingerprint = async { import::fingerprint(path, now).await.ok() };
    let (witness, fingerprint) = match known {
        Some(known) => {
            let fingerprint = fingerprint.await;
            if let Some(found) = &fingerprint
                && found.digest == known.fingerprint
                && is_stored(services, path, &known).await
            {
                options.progress.add_unchanged(found.entries);
                return Ok(NarWitness::new(known.node, known.nar));
            }
            (import_tree(services, path, options).await?, fingerprint)
        }
        None => {
            let fingerprint = async { Ok(fingerprint.await) };
            futures::try_join!(import_tree(services, path, options), fingerprint)?
        }
    };
    remember(slot, fingerprint, &witness).await;
    Ok(witness)
}

/// Whether it is worth while to look whether a tree has changed.
async fn has_root(services: &Services, node: &Node) -> bool {
    match node {
        Node::Directory { digest, .. } => {
            services.directories.has_many(&[*digest]).await.is_ok_and(|has| has == [true])
        }
        Node::File { digest, .. } => {
            services.blobs.has_many(&[*digest]).await.is_ok_and(|has| has == [true])
        }
        Node::Symlink { .. } => true,
    }
}

/// Whether a store still has all of a tree.
async fn is_stored(services: &Services, path: &Path, known: &KnownTree) -> bool {
    let name = path.to_string_lossy();
    let checked =
        contents::check(&name, &known.node, &*services.blobs, &*services.directories).await;
    if let Err(error) = &checked {
        tracing::debug!(path = %path.display(), %error, "an unchanged tree is imported again");
    }
    checked.is_ok()
}

/// Where the tree is remembered. `None` if it can't be: the import is then as good, and slower the
/// next time.
async fn slot(services: &Services, path: &Path, known_trees: Option<KnownTrees>) -> Option<Slot> {
    let known_trees = known_trees?;
    let (services, path) = (services.clone(), path.to_owned());
    let slot = tokio::task::spawn_blocking(move || known_trees.slot(&services, &path));
    slot.await.ok()?.ok()
}

async fn remember(slot: Slot, fingerprint: Option<TreeFingerprint>, witness: &NarWitness) {
    let Some(fingerprint) = fingerprint else { return };
    let tree = KnownTree::new(&fingerprint, witness.node().clone(), witness.nar());
    let Some(tree) = tree else { return };
    match tokio::task::spawn_blocking(move || slot.save(&tree)).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(%error, "a tree could not be remembered"),
        Err(error) => tracing::debug!(%error, "a tree could not be remembered"),
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
    use std::{fs, os::unix::fs::PermissionsExt as _, time::Duration};

    use cairn_castore::{
        blob_service::memory::MemoryBlobService, directory_service::memory::MemoryDirectoryService,
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

    /// A tree, and the folder where imports remember it.
    struct Remembered {
        folder: tempfile::TempDir,
        tree: PathBuf,
        services: Services,
    }

    impl Remembered {
        /// Imported once, when all of it had been there for long.
        async fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            let tree = vector(folder.path());
            let remembered = Self { folder, tree, services: services() };
            assert_eq!(remembered.read(LATER).await, 700_021);
            remembered
        }

        fn known_trees(&self) -> KnownTrees {
            KnownTrees::new(self.folder.path().join("known"))
        }

        /// How many bytes another import reads so much later.
        async fn read(&self, later: Duration) -> u64 {
            let progress = Arc::new(import::ImportProgress::default());
            let options = ImportOptions {
                tree: import::ImportOptions {
                    progress: Arc::clone(&progress),
                    ..import::ImportOptions::default()
                },
                known_trees: Some(self.known_trees()),
                ..ImportOptions::default()
            };
            let now = SystemTime::now() + later;
            let info = import_path_at(&self.services, &self.tree, options, now).await.unwrap();
            let plain = import_path(&super::tests::services(), &self.tree, named("tree")).await;
            assert_eq!(info, plain.unwrap(), "it is the tree as it is now");
            assert!(progress.entries() > 0);
            progress.bytes_read()
        }
    }

    /// So late that what was just written has been as it is for long.
    const LATER: Duration = Duration::from_secs(60);

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn an_unchanged_tree_is_not_read_again() {
        let remembered = Remembered::new().await;
        assert_eq!(remembered.read(LATER).await, 0);
        assert_eq!(remembered.read(Duration::ZERO).await, 0);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_tree_that_has_just_changed_is_not_remembered() {
        let folder = tempfile::tempdir().unwrap();
        let tree = vector(folder.path());
        let remembered = Remembered { folder, tree, services: services() };
        assert_eq!(remembered.read(Duration::ZERO).await, 700_021);
        assert_eq!(remembered.read(LATER).await, 700_021);
        assert_eq!(remembered.read(LATER).await, 0);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn whatever_changes_in_a_tree_is_seen() {
        type Change<'a> = (&'a str, &'a dyn Fn(&Path));
        let same_times = |path: &Path, change: &dyn Fn()| {
            let modified = fs::metadata(path).unwrap().modified().unwrap();
            // As long as the clock that stamps files may take to tick.
            std::thread::sleep(Duration::from_millis(20));
            change();
            fs::File::open(path).unwrap().set_modified(modified).unwrap();
        };
        let changes: [Change<'_>; 10] = [
            ("touched", &|tree| {
                fs::File::open(tree.join("run"))
                    .unwrap()
                    .set_modified(SystemTime::UNIX_EPOCH)
                    .unwrap();
            }),
            ("same size and time", &|tree| {
                let path = tree.join("d/f");
                same_times(&path, &|| fs::write(&path, "ho\n").unwrap());
            }),
            ("executable", &|tree| {
                fs::set_permissions(tree.join("d/f"), fs::Permissions::from_mode(0o755)).unwrap();
            }),
            ("replaced", &|tree| {
                let path = tree.join("d/f");
                same_times(&path, &|| {
                    fs::write(tree.join("new"), "ha\n").unwrap();
                    fs::rename(tree.join("new"), &path).unwrap();
                });
            }),
            ("exchanged", &|tree| {
                fs::rename(tree.join("run"), tree.join("other")).unwrap();
                fs::rename(tree.join("zero"), tree.join("run")).unwrap();
                fs::rename(tree.join("other"), tree.join("zero")).unwrap();
            }),
            ("renamed", &|tree| fs::rename(tree.join("d/f"), tree.join("d/g")).unwrap()),
            ("moved", &|tree| fs::rename(tree.join("d/f"), tree.join("f")).unwrap()),
            ("removed", &|tree| fs::remove_file(tree.join("zero")).unwrap()),
            ("another target", &|tree| {
                fs::remove_file(tree.join("link")).unwrap();
                std::os::unix::fs::symlink("d/g", tree.join("link")).unwrap();
            }),
            ("a new directory", &|tree| fs::create_dir(tree.join("empty/new")).unwrap()),
        ];
        for (what, change) in changes {
            let remembered = Remembered::new().await;
            change(&remembered.tree);
            assert!(remembered.read(LATER).await > 700_000, "{what}");
            assert_eq!(remembered.read(LATER).await, 0, "{what}, again");
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn what_the_store_no_longer_has_is_imported_again() {
        let mut remembered = Remembered::new().await;
        // The directories alone are left.
        let blobs = Arc::new(MemoryBlobService::new());
        let directories = remembered.services.directories.clone();
        let path_infos = Arc::new(MemoryPathInfoService::new(blobs.clone(), directories.clone()));
        remembered.services = Services { blobs, directories, path_infos };
        assert_eq!(remembered.read(LATER).await, 700_021);
        assert_eq!(remembered.read(LATER).await, 0);
        remembered.services = services();
        assert_eq!(remembered.read(LATER).await, 700_021);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_damaged_memory_is_as_good_as_none() {
        let remembered = Remembered::new().await;
        let known = remembered.folder.path().join("known");
        for entry in fs::read_dir(known).unwrap() {
            fs::write(entry.unwrap().path(), "cairn known tree 1\nand so on").unwrap();
        }
        assert_eq!(remembered.read(LATER).await, 700_021);
        assert_eq!(remembered.read(LATER).await, 0);
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
