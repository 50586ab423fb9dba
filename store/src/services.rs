//! The three services of one store, together. How they are opened is the affair of who opens them.

use std::sync::Arc;

use cairn_castore::{BlobService, DirectoryService};

use crate::PathInfoService;

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
