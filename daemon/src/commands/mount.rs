//! `cairn mount`: shows the trees of a store as a file system until it is unmounted.

use std::{path::PathBuf, sync::Arc};

use cairn_fs::{
    file_system::{self, CairnFs, FileSystemOptions},
    fuse::{self, Mount, MountError, MountOptions},
};
use cairn_store::{PathInfo, Services, roots::StoreRoots};
use clap::Args;
use tokio::runtime::Handle;

use super::import::{Imports, StatCacheArgs};
use crate::{
    cli::Context,
    exit::{Code, Failure},
    output::Output,
    signals::EndSignals,
};

/// Mount the store
///
/// Every store path in the store is a name in the root of the mount, also those that come later.
/// The mount is read-only. Prints the store paths of what was imported, and `mounted on
/// MOUNTPOINT` when it answers; then runs until SIGINT, SIGTERM or an unmount from elsewhere. The
/// first two unmount.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  cairn mount /mnt
  cairn mount --import ./tree /mnt
  cairn --store grpc+http://host:8000 mount --no-list-root ~/store")]
pub(crate) struct MountArgs {
    /// Where to mount: a directory that exists
    mountpoint: PathBuf,
    /// Import this first; may be repeated
    #[arg(long, value_name = "PATH")]
    import: Vec<PathBuf>,
    #[command(flatten)]
    stat_cache: StatCacheArgs,
    /// List the store paths in the root, which is the default
    #[arg(long, hide = true, overrides_with = "no_list_root")]
    list_root: bool,
    /// Do not list the store paths in the root: only who knows one finds it
    #[arg(long, overrides_with = "list_root")]
    no_list_root: bool,
    /// Let other users use the mount
    #[arg(long)]
    allow_other: bool,
}

impl MountArgs {
    pub(crate) async fn run(self, context: &Context) -> Result<(), Failure> {
        // A mountpoint that can't be one is told before anything is imported.
        if let Err(error) = tokio::fs::metadata(&self.mountpoint).await
            && error.kind() == std::io::ErrorKind::NotFound
        {
            let path = self.mountpoint.clone();
            return Err(failure(&self.mountpoint, MountError::MountPoint { path, source: error }));
        }
        context
            .with_services(async |services| {
                let mut output = Output::new();
                // A signal must not leave a dead mount behind.
                let mut signals = EndSignals::listen()
                    .map_err(|error| Failure::new("signals can't be listened for", error))?;
                let imports =
                    Imports { paths: &self.import, name: None, stat_cache: self.stat_cache };
                let print = async |info: PathInfo| {
                    output.line(info.store_path.to_absolute()).await?;
                    output.flush().await
                };
                imports.run(services, context, &mut signals, print).await?;
                let mount = self.mount(services).await?;
                let announced =
                    match output.line(format!("mounted on {}", self.mountpoint.display())).await {
                        Ok(()) => output.flush().await,
                        failed => failed,
                    };
                if let Err(failure) = announced {
                    tracing::warn!(%failure, "mounted");
                }
                self.serve(mount, &mut signals).await
            })
            .await
    }

    async fn mount(&self, services: &Services) -> Result<Mount, Failure> {
        let shown = file_system::Services {
            blobs: services.blobs.clone(),
            directories: services.directories.clone(),
            roots: Arc::new(StoreRoots::new(services.path_infos.clone())),
        };
        let options =
            FileSystemOptions { list_root: !self.no_list_root, ..FileSystemOptions::default() };
        let mount_options = MountOptions {
            allow_other: self.allow_other,
            source: services.path_infos.to_string(),
            ..MountOptions::default()
        };
        let fs = CairnFs::new(shown, options, Handle::current());
        let mountpoint = self.mountpoint.clone();
        tokio::task::spawn_blocking(move || fuse::mount(fs, &mountpoint, mount_options))
            .await
            .map_err(|error| Failure::new("mounting failed", error))?
            .map_err(|error| failure(&self.mountpoint, error))
    }

    /// Waits for the end of the mount, and brings it about if a signal says so.
    async fn serve(&self, mount: Mount, signals: &mut EndSignals) -> Result<(), Failure> {
        let signal = tokio::select! {
            signal = signals.next() => signal,
            () = mount.wait() => {
                tracing::info!("unmounted from elsewhere");
                return Ok(());
            }
        };
        tracing::info!(%signal, "unmounting");
        let unmounting = tokio::task::spawn_blocking(move || mount.unmount());
        tokio::select! {
            unmounted = unmounting => unmounted
                .map_err(|error| Failure::new("unmounting failed", error))?
                .map_err(|error| failure(&self.mountpoint, error)),
            signal = signals.next() => {
                let what = format!("a second signal, {signal}, cut unmounting off");
                let help = format!("`umount -l {}` removes the mount", self.mountpoint.display());
                Err(Failure::plain(Code::Failed, what).help(help))
            }
        }
    }
}

fn failure(mountpoint: &std::path::Path, error: MountError) -> Failure {
    let shown = mountpoint.display();
    let help = match &error {
        MountError::MountPoint { source, .. } if source.kind() == std::io::ErrorKind::NotFound => {
            Some(format!("create the directory first: mkdir -p {shown}"))
        }
        MountError::InUse { .. } => {
            Some(format!("choose another directory, or unmount what is there: umount {shown}"))
        }
        MountError::NoHelper => Some("install fuse3, or mount as root".to_owned()),
        MountError::Device(_) => Some("load the module with `modprobe fuse`".to_owned()),
        _ => None,
    };
    let failure = Failure::new(format!("mounting on {shown} failed"), error);
    match help {
        Some(help) => failure.help(help),
        None => failure,
    }
}
