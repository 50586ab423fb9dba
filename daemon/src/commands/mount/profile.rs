//! How the kernel reads the files of a mount: the options that say so, and what they come to.

use std::{path::PathBuf, sync::Arc};

use cairn_castore::{BlobService, ByteSize, blob_service::whole_files::WholeFileBlobService};
use cairn_fs::fuse::Passthrough;
use clap::{Args, ValueEnum};
use tokio::runtime::Handle;

use crate::exit::Failure;

/// Where whole files are kept unless the options say.
const WHOLE_FILES: &str = "/var/cache/cairn/whole";

#[derive(Debug, Args)]
pub(super) struct ProfileArgs {
    /// How the kernel reads files
    #[arg(long, value_enum, default_value_t)]
    profile: Profile,
    /// Where whole files are kept, for reads that pass through; /var/cache/cairn/whole unless told
    ///
    /// A folder on ext4, xfs, btrfs or tmpfs, made if need be, that mounts may share.
    #[arg(long, value_name = "FOLDER", env = "CAIRN_WHOLE_FILES", hide_env_values = true)]
    whole_files: Option<PathBuf>,
    /// The room that whole files may take together; those least recently used make room for others
    #[arg(long, value_name = "SIZE", default_value_t = ByteSize(10 << 30))]
    whole_files_size: ByteSize,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
enum Profile {
    /// passthrough if there is a --whole-files and the kernel takes part, otherwise cache
    #[default]
    Auto,
    /// Through the mount, into the kernel's page cache. Opening a file costs nothing
    Cache,
    /// Large files that are read much are kept whole in a folder, where the kernel reads them by
    /// itself, as fast as that folder's file system. Opening a file is a request. Only for root
    Passthrough,
}

impl ProfileArgs {
    /// The blobs as the mount is to have them, and how it passes reads through, if it does.
    pub(super) async fn apply(
        &self,
        blobs: Arc<dyn BlobService>,
    ) -> Result<(Arc<dyn BlobService>, Option<Passthrough>), Failure> {
        let is_required = match (self.profile, &self.whole_files) {
            (Profile::Cache, _) | (Profile::Auto, None) => return Ok((blobs, None)),
            (Profile::Auto, Some(_)) => false,
            (Profile::Passthrough, _) => true,
        };
        let folder = self.whole_files.clone().unwrap_or_else(|| WHOLE_FILES.into());
        let ByteSize(budget) = self.whole_files_size;
        let (inner, runtime) = (blobs.clone(), Handle::current());
        let opened = tokio::task::spawn_blocking(move || {
            let files = WholeFileBlobService::open(inner, &folder, budget, runtime)?;
            let sample = files.sample()?;
            Ok((files, sample))
        });
        let opened = opened.await.map_err(|error| Failure::new("mounting failed", error))?;
        match opened {
            Ok((files, sample)) => Ok((Arc::new(files), Some(Passthrough { sample, is_required }))),
            Err::<_, cairn_castore::blob_service::whole_files::WholeFilesError>(error)
                if is_required =>
            {
                Err(Failure::new("reads can't be passed through", error)
                    .help("name a folder with --whole-files, or mount with --profile cache"))
            }
            Err(error) => {
                let error = &error as &dyn std::error::Error;
                tracing::warn!(error, "reads are not passed through");
                Ok((blobs, None))
            }
        }
    }
}
