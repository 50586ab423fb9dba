//! Opening a store: its folder, its lock, its format, and bringing index and packs together again
//! after whatever has happened to them.

use std::{
    collections::HashMap,
    fs::{self, DirBuilder, File, OpenOptions},
    io,
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use rustix::fs::{FlockOperation, flock};

use super::{
    error::LocalError,
    index::Index,
    pack::{ActivePack, PACK_HEADER_LEN, Packs, check_header, pack_path},
    purpose::Purpose,
    replay::replay,
};

/// The number of the folder's format.
const FORMAT: u32 = 1;

/// The folder of the packs, in that of the store.
pub(super) const PACKS: &str = "packs";

/// The most bytes of the format's file that are looked at.
const FORMAT_MAX: u64 = 256;

/// What may be in a folder before it is a store: an open that was cut short leaves it, and a
/// daemon's socket.
const BEFORE_FORMAT: [&str; 3] = ["lock", "format.new", "socket"];

/// What is removed of a cache that is of no use any more, in this order.
const CONTENTS: [&str; 7] =
    ["packs", "index", "index-state", "index-state.new", "read-marks", "read-marks.new", "format"];

/// A store's parts, ready for use.
pub(super) struct Opened {
    /// Held for as long as the store is open.
    pub(super) lock: File,
    pub(super) packs: Packs,
    pub(super) index: Index,
    pub(super) active: Option<ActivePack>,
    pub(super) next_pack: u32,
}

/// Opens the store in a folder, or makes one.
pub(super) fn open(path: &Path, purpose: Purpose) -> Result<Opened, LocalError> {
    let mut builder = DirBuilder::new();
    builder.recursive(true).mode(0o700);
    builder.create(path).map_err(|error| LocalError::io("create", path, error))?;
    let lock = lock(path)?;
    check_format(path, purpose)?;
    let packs_path = path.join(PACKS);
    builder.create(&packs_path).map_err(|error| LocalError::io("create", &packs_path, error))?;
    let packs = Packs::list(packs_path)?;
    let mut whole = check_packs(&packs)?;
    let index = open_index(path, &packs, &mut whole)?;
    let lengths = packs.lengths();
    let marked = index.mark()?.map_or(0, |mark| mark.pack);
    let last = lengths.keys().last().copied().unwrap_or(0).max(marked);
    let active = match lengths.get(&last) {
        Some(length) if whole.get(&last) == Some(&true) && *length < purpose.pack_limit() => {
            Some(ActivePack::reopen(packs.folder(), last, *length)?)
        }
        _ => None,
    };
    Ok(Opened { lock, packs, index, active, next_pack: last + 1 })
}

/// Refuses a folder with something else in it before anything is made there.
fn lock(path: &Path) -> Result<File, LocalError> {
    if !path.join("format").exists() {
        let entries = fs::read_dir(path).map_err(|error| LocalError::io("list", path, error))?;
        for entry in entries {
            let entry = entry.map_err(|error| LocalError::io("list", path, error))?;
            if !BEFORE_FORMAT.iter().any(|name| entry.file_name() == *name) {
                // Another process may have made the store just now.
                if path.join("format").exists() {
                    break;
                }
                return Err(LocalError::NotAStore(path.to_owned()));
            }
        }
    }
    let lock_path = path.join("lock");
    let failed = |error| LocalError::io("lock", &lock_path, error);
    let mut options = OpenOptions::new();
    let lock = options.write(true).create(true).truncate(false).mode(0o600).open(&lock_path);
    let lock = lock.map_err(failed)?;
    match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(lock),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(LocalError::Locked(path.to_owned())),
        Err(error) => Err(failed(error.into())),
    }
}

/// Whether a folder that could not be opened is a cache of which nothing can be made but a new one:
/// it is damaged, or of another version.
pub(super) fn is_beyond_use(path: &Path, error: &LocalError) -> bool {
    match error {
        LocalError::Version { .. } | LocalError::Index { .. } | LocalError::Damaged { .. } => true,
        LocalError::NotAStore(_) => path.join("format").exists() && holds_nothing_else(path),
        LocalError::Io { source, .. } => {
            let is_refused = matches!(
                source.kind(),
                io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem
            );
            !is_refused && path.join("format").exists() && holds_nothing_else(path)
        }
        _ => false,
    }
}

fn holds_nothing_else(path: &Path) -> bool {
    let Ok(mut entries) = fs::read_dir(path) else { return false };
    entries.all(|entry| {
        let Ok(entry) = entry else { return false };
        let name = entry.file_name();
        let mut known = BEFORE_FORMAT.iter().chain(&CONTENTS);
        known.any(|known| name == *known) || name.as_encoded_bytes().starts_with(b"socket")
    })
}

/// Removes what is in a cache.
pub(super) fn clear(path: &Path) -> Result<(), LocalError> {
    let _lock = lock(path)?;
    for name in CONTENTS {
        let path = path.join(name);
        let removed = match fs::symlink_metadata(&path) {
            Ok(metadata) if metadata.is_dir() => fs::remove_dir_all(&path),
            Ok(_) => fs::remove_file(&path),
            Err(error) => Err(error),
        };
        match removed {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(LocalError::io("remove", &path, error));
            }
            _ => {}
        }
    }
    Ok(())
}

fn check_format(path: &Path, purpose: Purpose) -> Result<(), LocalError> {
    let format = path.join("format");
    match read_text(&format) {
        Ok(text) => {
            let version = text.strip_prefix(purpose.format()).map(str::trim);
            match version {
                Some(version) if version == FORMAT.to_string() => Ok(()),
                Some(version) => Err(LocalError::Version {
                    path: format,
                    found: version.to_owned(),
                    supported: FORMAT,
                }),
                None => Err(purpose.misused(path, &text)),
            }
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            replace(&format, &format!("{} {FORMAT}\n", purpose.format()))
        }
        Err(error) => Err(LocalError::io("read", &format, error)),
    }
}

fn read_text(path: &Path) -> io::Result<String> {
    let mut bytes = Vec::new();
    io::Read::read_to_end(&mut io::Read::take(File::open(path)?, FORMAT_MAX), &mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Writes a small file whole or not at all, durably.
fn replace(path: &Path, text: &str) -> Result<(), LocalError> {
    let new = path.with_added_extension("new");
    let folder = path.parent().expect("the path is one within the store");
    let write = || -> io::Result<()> {
        fs::write(&new, text)?;
        File::open(&new)?.sync_all()?;
        fs::rename(&new, path)?;
        File::open(folder)?.sync_all()
    };
    write().map_err(|error| LocalError::io("write", path, error))
}

/// Which packs have whole headers. A pack of a later version is an error. A last one that was not
/// even begun is removed.
fn check_packs(packs: &Packs) -> Result<HashMap<u32, bool>, LocalError> {
    let mut whole = HashMap::new();
    let lengths = packs.lengths();
    let last = lengths.keys().last().copied();
    for (id, length) in lengths {
        let path = pack_path(packs.folder(), id);
        if length < PACK_HEADER_LEN && Some(id) == last {
            fs::remove_file(&path).map_err(|error| LocalError::io("remove", &path, error))?;
            packs.forget(id);
            continue;
        }
        let file = File::open(&path).map_err(|error| LocalError::io("open", &path, error))?;
        let is_whole = check_header(&file, &path, id)?;
        if !is_whole {
            tracing::error!(pack = %path.display(), "the header of a pack is damaged");
        }
        whole.insert(id, is_whole);
    }
    Ok(whole)
}

/// The index, up to date with the packs.
fn open_index(
    path: &Path,
    packs: &Packs,
    whole: &mut HashMap<u32, bool>,
) -> Result<Index, LocalError> {
    let index_path = path.join("index");
    let is_trusted = IndexState::read(path).is_trusted();
    let exists = index_path.exists();
    if is_trusted && exists {
        let reused = IndexState::used_now().write(path).and_then(|()| {
            let index = Index::open(&index_path)?;
            let mark = index.mark()?;
            replay(&index, packs, mark, whole)?;
            Ok(index)
        });
        match reused {
            Err(LocalError::Index { source, .. }) => tracing::warn!(
                store = %path.display(),
                error = &*source as &dyn std::error::Error,
                "the index is broken and is rebuilt",
            ),
            reused => return reused,
        }
    } else if exists {
        tracing::warn!(store = %path.display(), "the index can't be trusted and is rebuilt");
    }
    match fs::remove_dir_all(&index_path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(LocalError::io("remove", &index_path, error));
        }
        _ => {}
    }
    IndexState::used_now().write(path)?;
    let index = Index::open(&index_path)?;
    replay(&index, packs, None, whole)?;
    Ok(index)
}

/// Whether what sled has written can be trusted. It syncs nothing, so after a power loss anything
/// may be missing from its middle; after the end of a process the system still has it all.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum IndexState {
    /// Closed, and durable.
    Closed,
    /// In use in this boot of the system.
    Used { boot: String },
    /// Failed, or of a state that is not known.
    Broken,
}

impl IndexState {
    fn path(store: &Path) -> PathBuf {
        store.join("index-state")
    }

    pub(super) fn used_now() -> Self {
        match boot_id() {
            Some(boot) => Self::Used { boot },
            None => Self::Broken,
        }
    }

    fn is_trusted(&self) -> bool {
        match self {
            Self::Closed => true,
            Self::Used { boot } => boot_id().as_ref() == Some(boot),
            Self::Broken => false,
        }
    }

    fn read(store: &Path) -> Self {
        let text = read_text(&Self::path(store)).unwrap_or_default();
        match text.trim_end().split_once(' ') {
            Some(("used", boot)) => Self::Used { boot: boot.to_owned() },
            None if text.trim_end() == "closed" => Self::Closed,
            _ => Self::Broken,
        }
    }

    /// Writes the state, durably.
    pub(super) fn write(&self, store: &Path) -> Result<(), LocalError> {
        let text = match self {
            Self::Closed => "closed\n".to_owned(),
            Self::Used { boot } => format!("used {boot}\n"),
            Self::Broken => "broken\n".to_owned(),
        };
        replace(&Self::path(store), &text)
    }
}

fn boot_id() -> Option<String> {
    let text = read_text(Path::new("/proc/sys/kernel/random/boot_id")).ok()?;
    let boot = text.trim();
    (!boot.is_empty()).then(|| boot.to_owned())
}
