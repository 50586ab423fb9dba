//! `cairn mount`: shows the trees of a store as a file system until it is unmounted.

mod profile;
pub(crate) mod workload;

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use cairn_fs::{
    file_system::{self, CairnFs},
    fuse::{self, Layer, Left, Mount, MountError, MountOptions},
};
use cairn_store::Services;
use clap::Args;
use tempfile::TempDir;
use tokio::runtime::Handle;

use self::{
    profile::ProfileArgs,
    workload::{Recording, WorkloadArgs},
};
use super::{
    import::{Imports, StatCacheArgs},
    shown::{self, ShownArgs},
};
use crate::{
    background,
    cli::Context,
    exit::Failure,
    http::{HttpArgs, Telling},
    output::Output,
    server::systemd,
    signals::EndSignals,
    traces::TraceArgs,
};

/// What is printed, with the mountpoint behind it, once the mount answers.
const MOUNTED: &str = "mounted on ";

/// Mount the store
///
/// Every store path in the store is a name in the root of the mount, also those that come later.
/// The mount is read-only, unless --writable or --ephemeral has the kernel's overlay file system take
/// what is written. Prints the store paths of what was imported, and `mounted on
/// MOUNTPOINT` when it answers; then runs until SIGINT, SIGTERM or an unmount, as by `cairn umount`.
/// The first two unmount: the mount leaves the tree at once, and what is open in it can be read for
/// the time of --grace; a second signal cuts that short.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  cairn mount /mnt
  cairn mount --import ./tree /mnt
  cairn mount --ephemeral /mnt
  cairn mount --daemonize --log-file ~/cairn.log ~/store
  cairn mount --record build.profile ~/store
  cairn --store grpc+http://host:8000 mount --no-list-root ~/store")]
pub(crate) struct MountArgs {
    /// Where to mount: a directory that exists, unless --mkdir makes it
    mountpoint: PathBuf,
    /// Make the mountpoint, and the folders above it, if they are not there
    #[arg(long)]
    mkdir: bool,
    /// Import this first; may be repeated
    #[arg(long, value_name = "PATH")]
    import: Vec<PathBuf>,
    #[command(flatten)]
    stat_cache: StatCacheArgs,
    #[command(flatten)]
    shown: ShownArgs,
    /// Let other users use the mount
    #[arg(long)]
    allow_other: bool,
    #[command(flatten)]
    profile: ProfileArgs,
    #[command(flatten)]
    workload: WorkloadArgs,
    /// Let everything be changed: what is written, and what is removed, is kept in this folder
    ///
    /// It is made if need be, and what it holds from an earlier mount is seen again. The store stays
    /// as it is. Only root may, and every user can use the mount as far as the modes allow, which
    /// let the owner write. Extended attributes of the store are not shown, since a file that was
    /// changed would keep the digest that it had.
    #[arg(long, value_name = "UPPER")]
    writable: Option<PathBuf>,
    /// The folder that the kernel needs beside --writable, on the same file system; UPPER with
    /// `.work` behind it unless told
    #[arg(long, value_name = "FOLDER", requires = "writable")]
    work: Option<PathBuf>,
    /// Like --writable, with a folder below TMPDIR that is removed at the end
    #[arg(long, conflicts_with = "writable")]
    ephemeral: bool,
    /// Go on in the background: returns once the mount answers, or has failed to
    ///
    /// Log lines then go to --log-file, or else to the system's log, by /dev/log; without either
    /// they are lost. `cairn umount MOUNTPOINT` ends it.
    #[arg(long, short)]
    daemonize: bool,
    /// How long what is open can still be read after SIGINT or SIGTERM
    #[arg(long, value_name = "SECONDS", default_value_t = 10)]
    grace: u64,
    #[command(flatten)]
    http: HttpArgs,
    #[command(flatten)]
    pub(crate) traces: TraceArgs,
}

impl MountArgs {
    pub(crate) async fn run(self, context: &Context) -> Result<(), Failure> {
        if self.daemonize && !context.in_background {
            return background::start(MOUNTED).await;
        }
        // A mountpoint that can't be one is told before anything is imported.
        if self.mkdir {
            self.make_mountpoint().await?;
        }
        if let Err(error) = tokio::fs::metadata(&self.mountpoint).await
            && error.kind() == std::io::ErrorKind::NotFound
        {
            let path = self.mountpoint.clone();
            return Err(failure(&self.mountpoint, MountError::MountPoint { path, source: error }));
        }
        let profile = self.workload.profile(context).await?;
        let recording = self.workload.begin_to_record()?;
        let mut output = Output::new();
        let telling = self.http.start("mount", &mut output).await?;
        context
            .with_cache(async |services, cache| {
                telling.try_store(services);
                // A signal must not leave a dead mount behind.
                let mut signals = EndSignals::listen()
                    .map_err(|error| Failure::new("signals can't be listened for", error))?;
                let imports =
                    Imports { paths: &self.import, name: None, stat_cache: self.stat_cache };
                imports.run_and_print(services, context, &mut signals, &mut output).await?;
                // Ends with the mount.
                let _warming = workload::warm(cache, profile);
                // Removed when the mount has ended.
                let (layer, temporary) = self.layer()?;
                let mount = self.mount(services, context, layer, recording.as_ref()).await?;
                if context.in_background {
                    background::leave_session()?;
                }
                let line = format!("{MOUNTED}{}", self.mountpoint.display());
                output.announce(line).await;
                systemd::notify("READY=1");
                if context.in_background {
                    background::let_go_of_outputs(context.log_file.as_ref())?;
                }
                telling.ready();
                let served = self.serve(mount, &mut signals, &telling).await;
                remove(temporary).await;
                let recorded = match recording {
                    Some(recording) => recording.end().await,
                    None => Ok(()),
                };
                served.and(recorded)
            })
            .await
    }

    async fn make_mountpoint(&self) -> Result<(), Failure> {
        match tokio::fs::create_dir_all(&self.mountpoint).await {
            // What is there, but no folder that can be looked at, may be a mount whose process is gone,
            // which is replaced later on.
            Err(source) if source.kind() != std::io::ErrorKind::AlreadyExists => {
                let path = self.mountpoint.clone();
                Err(failure(&self.mountpoint, MountError::MountPoint { path, source }))
            }
            _ => Ok(()),
        }
    }

    /// Where what is written goes, and the folder that is to be removed at the end.
    fn layer(&self) -> Result<(Option<Layer>, Option<TempDir>), Failure> {
        if self.ephemeral {
            let folder = tempfile::Builder::new().prefix("cairn-written-").tempdir();
            let folder = folder.map_err(|error| {
                Failure::new("a folder for what is written can't be made", error)
                    .help("set TMPDIR to a directory that can be written to")
            })?;
            let (upper, work) = (folder.path().join("upper"), folder.path().join("work"));
            return Ok((Some(Layer { upper, work }), Some(folder)));
        }
        let Some(upper) = self.writable.clone() else { return Ok((None, None)) };
        let work = self.work.clone().unwrap_or_else(|| {
            let mut work = upper.clone().into_os_string();
            work.push(".work");
            work.into()
        });
        Ok((Some(Layer { upper, work }), None))
    }

    async fn mount(
        &self,
        services: &Services,
        context: &Context,
        layer: Option<Layer>,
        recording: Option<&Recording>,
    ) -> Result<Mount, Failure> {
        let (blobs, passthrough) = self.profile.apply(services.blobs.clone()).await?;
        let shown = shown::services(services, context.has_far_directories()?);
        let shown = file_system::Services { blobs, ..shown };
        let mut options = self.shown.options(context.space()?);
        options.layered = layer.is_some();
        options.recorder = recording.map(Recording::recorder);
        options.xattrs &= layer.is_none();
        let mount_options = MountOptions {
            allow_other: self.allow_other,
            source: services.path_infos.to_string(),
            layer,
            passthrough,
            ..MountOptions::default()
        };
        let fs = CairnFs::new(shown, options, Handle::current());
        let mountpoint = self.mountpoint.clone();
        tokio::task::spawn_blocking(move || fuse::mount(fs, &mountpoint, mount_options))
            .await
            .map_err(|error| Failure::new("mounting failed", error))?
            .map_err(|error| failure(&self.mountpoint, error))
    }

    /// Returns when the mount has answered the kernel, whatever it has said.
    async fn has_answered(&self) {
        let mountpoint = self.mountpoint.clone();
        // Only this question always comes to the mount; others are answered from the kernel's caches.
        let asked = tokio::task::spawn_blocking(move || rustix::fs::statfs(&mountpoint)).await;
        tracing::trace!(?asked, "the mount has answered");
    }

    /// Waits for the end of the mount, and brings it about if a signal says so.
    async fn serve(
        &self,
        mount: Mount,
        signals: &mut EndSignals,
        telling: &Telling,
    ) -> Result<(), Failure> {
        let mount = Arc::new(mount);
        let signal = tokio::select! {
            signal = signals.next() => signal,
            () = mount.wait() => {
                telling.ending();
                tracing::info!("unmounted from elsewhere");
                return Ok(());
            }
            never = systemd::keep_alive(async || self.has_answered().await) => match never {},
        };
        telling.ending();
        tracing::info!(%signal, "unmounting");
        systemd::notify("STOPPING=1");
        let leaving = Arc::clone(&mount);
        let left = tokio::task::spawn_blocking(move || leaving.leave_tree())
            .await
            .map_err(|error| Failure::new("unmounting failed", error))?
            .map_err(|error| failure(&self.mountpoint, error))?;
        if left == Left::InUse && self.grace > 0 {
            tracing::warn!(
                seconds = self.grace,
                "files of the mount are open: they can be read until the time is over, or another \
                 signal comes"
            );
            tokio::select! {
                () = mount.wait() => {}
                () = tokio::time::sleep(Duration::from_secs(self.grace)) => {}
                _ = signals.next() => {}
            }
        }
        // Dropping it cuts off what is still open.
        tokio::task::spawn_blocking(move || drop(mount))
            .await
            .map_err(|error| Failure::new("unmounting failed", error))
    }
}

/// Removes what was written to a temporary folder.
async fn remove(folder: Option<TempDir>) {
    let Some(folder) = folder else { return };
    let path = folder.path().to_owned();
    let removed = tokio::task::spawn_blocking(move || folder.close()).await;
    if let Ok(Err(error)) = removed {
        tracing::warn!(%error, path = %path.display(), "what was written stays");
    }
}

fn failure(mountpoint: &Path, error: MountError) -> Failure {
    let shown = mountpoint.display();
    let help = match &error {
        MountError::MountPoint { source, .. } if source.kind() == std::io::ErrorKind::NotFound => {
            Some(format!("create the directory first, `mkdir -p {shown}`, or use --mkdir"))
        }
        MountError::InUse { .. } => {
            Some(format!("choose another directory, or unmount what is there: umount {shown}"))
        }
        MountError::Layer { source, .. }
            if source.kind() == std::io::ErrorKind::PermissionDenied =>
        {
            Some("a mount that can be written to needs root".to_owned())
        }
        MountError::Layer { .. } => Some(
            "both folders have to be on one file system that overlayfs can write to, such as ext4, \
             xfs, btrfs or tmpfs, and neither in the other"
                .to_owned(),
        ),
        MountError::Passthrough(_) => Some(
            "it needs root, Linux 6.9 or later, and whole files on a file system that stands above \
             no other; --profile cache works everywhere"
                .to_owned(),
        ),
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
