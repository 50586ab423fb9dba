//! What a mount and a virtual machine are shown of a store: the options for that, which both
//! commands take, and what is made of them.

use std::{sync::Arc, time::Duration};

use cairn_castore::{
    DirectoryService, cache::Near, directory_service::cache::CacheDirectoryService,
};
use cairn_fs::{
    file_system::{DEADLINE, FileSystemOptions, Owner, Services},
    space::SpaceSource,
};
use cairn_store::roots::StoreRoots;
use clap::Args;

/// The memory that encoded directories of a store that is far may take, in bytes.
const DIRECTORIES_NEAR: u64 = 24 * 1024 * 1024;

/// What is shown of a store.
#[derive(Debug, Args)]
pub(crate) struct ShownArgs {
    /// List the store paths in the root, which is the default
    #[arg(long, hide = true, overrides_with = "no_list_root")]
    list_root: bool,
    /// Do not list the store paths in the root: only who knows one finds it
    #[arg(long, overrides_with = "list_root")]
    no_list_root: bool,
    /// Whom everything belongs to, as two numbers; root, 0:0, unless told
    #[arg(long, value_name = "UID:GID", value_parser = parse_owner)]
    uid_gid: Option<Owner>,
    /// Show no extended attributes, which hold the digests of files and directories
    #[arg(long)]
    no_xattr: bool,
    /// How long a program waits for the store, such as one on another machine, until it is told of an
    /// input/output error
    #[arg(long, value_name = "SECONDS", default_value_t = DEADLINE.as_secs())]
    #[arg(value_parser = clap::value_parser!(u64).range(1..))]
    deadline: u64,
}

/// Reads UID:GID.
fn parse_owner(text: &str) -> Result<Owner, String> {
    let parsed = text.split_once(':').and_then(|(uid, gid)| {
        // The highest number means "nobody said" to the kernel.
        let number = |text: &str| text.parse().ok().filter(|number| *number != u32::MAX);
        Some(Owner { uid: number(uid)?, gid: number(gid)? })
    });
    parsed.ok_or_else(|| "write two numbers, as in 1000:100".to_owned())
}

impl ShownArgs {
    /// How the file system behaves, as far as these options say.
    pub(crate) fn options(&self, space: Option<Arc<dyn SpaceSource>>) -> FileSystemOptions {
        FileSystemOptions {
            // Both are set only if a file sets one and the command line the other.
            list_root: self.list_root || !self.no_list_root,
            owner: self.uid_gid.unwrap_or_default(),
            deadline: Duration::from_secs(self.deadline),
            xattrs: !self.no_xattr,
            space,
            ..FileSystemOptions::default()
        }
    }
}

/// The services of a store as a file system takes them. Of one that is far, directories are kept in
/// memory for a while: whoever goes down a tree then gets those below in one stream, instead of one
/// for each time that the store is asked.
pub(crate) fn services(store: &cairn_store::Services, has_far_directories: bool) -> Services {
    let directories: Arc<dyn DirectoryService> = match has_far_directories {
        true => {
            let near = Near::memory(DIRECTORIES_NEAR);
            Arc::new(CacheDirectoryService::new(near, store.directories.clone()))
        }
        false => store.directories.clone(),
    };
    Services {
        blobs: store.blobs.clone(),
        directories,
        roots: Arc::new(StoreRoots::new(store.path_infos.clone())),
    }
}
