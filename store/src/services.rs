//! The three services of one store, together. How they are opened is the affair of who opens them.

use std::sync::Arc;

use cairn_castore::{
    BlobService, DirectoryService, blob_service::upstreams::UpstreamsBlobService, copy::Contents,
    directory_service::upstreams::UpstreamsDirectoryService, upstreams::Upstreams,
};

use crate::{PathInfoService, path_info_service::upstreams::UpstreamsPathInfoService};

/// What a store consists of.
#[derive(Debug, Clone)]
pub struct Services {
    /// The contents of files.
    pub blobs: Arc<dyn BlobService>,
    /// Directories.
    pub directories: Arc<dyn DirectoryService>,
    /// What is known of store paths.
    pub path_infos: Arc<dyn PathInfoService>,
}

impl Services {
    /// The store that consists of these, at least one, which are asked in this order. What is stored
    /// goes to the one with the index.
    pub fn of_upstreams(upstreams: Vec<Self>, writable: usize) -> Self {
        let stored = &upstreams[writable];
        let stored =
            Contents { blobs: stored.blobs.clone(), directories: stored.directories.clone() };
        let (mut blobs, mut directories, mut path_infos) = (Vec::new(), Vec::new(), Vec::new());
        for upstream in upstreams {
            blobs.push(upstream.blobs);
            directories.push(upstream.directories);
            path_infos.push(upstream.path_infos);
        }
        let blobs = UpstreamsBlobService::new(Upstreams::new(blobs, writable));
        let directories = UpstreamsDirectoryService::new(Upstreams::new(directories, writable));
        let contents = Contents { blobs: Arc::new(blobs), directories: Arc::new(directories) };
        let path_infos = UpstreamsPathInfoService::new(
            Upstreams::new(path_infos, writable),
            contents.clone(),
            stored,
        );
        Self {
            blobs: contents.blobs,
            directories: contents.directories,
            path_infos: Arc::new(path_infos),
        }
    }
}
