//! `cairn umount`: ends a mount from outside.

use std::{path::PathBuf, time::Duration};

use cairn_fs::fuse::{self, UnmountError, UnmountOptions, Unmounted};
use clap::Args;

use crate::exit::{Code, Failure};

/// Unmount a mount of cairn
///
/// Returns when the process behind the mount has ended and has closed its store. Root can unmount
/// any mount of cairn, others their own. What a killed `cairn mount` left behind is removed; what
/// is no mount of cairn is left alone.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  cairn umount /mnt
  cairn umount --lazy /mnt")]
pub(crate) struct UmountArgs {
    /// Where it is mounted
    mountpoint: PathBuf,
    /// Unmount also what is in use, and wait for nothing: what is open can still be read, and the
    /// process behind the mount ends when all of it is closed
    #[arg(long, short)]
    lazy: bool,
    /// How long to wait for the process behind the mount
    #[arg(long, value_name = "SECONDS", default_value_t = 60, conflicts_with = "lazy")]
    timeout: u64,
}

impl UmountArgs {
    pub(crate) async fn run(self) -> Result<(), Failure> {
        let options =
            UnmountOptions { lazy: self.lazy, timeout: Duration::from_secs(self.timeout) };
        let mountpoint = self.mountpoint.clone();
        let unmounted = tokio::task::spawn_blocking(move || fuse::unmount(&mountpoint, options))
            .await
            .map_err(|error| Failure::new("unmounting failed", error))?;
        match unmounted {
            Ok(Unmounted::Ended | Unmounted::Detached) => Ok(()),
            Ok(Unmounted::WasDead) => {
                tracing::info!("removed a mount whose process was gone");
                Ok(())
            }
            Ok(Unmounted::Unseen) => {
                tracing::warn!("the process behind the mount can't be seen, and is not waited for");
                Ok(())
            }
            Err(error) => Err(self.failure(error)),
        }
    }

    fn failure(&self, error: UnmountError) -> Failure {
        let shown = self.mountpoint.display();
        let what = format!("unmounting {shown} failed");
        match &error {
            UnmountError::NotMounted(_) => Failure::new(what, error).code(Code::NotFound),
            UnmountError::InUse(_) => {
                let help = format!(
                    "`fuser -vm {shown}` tells who uses it; --lazy unmounts it all the same"
                );
                Failure::new(what, error).help(help)
            }
            UnmountError::NoAnswer { .. } => {
                let help = format!("`cairn umount --lazy {shown}` unmounts it without asking");
                Failure::new(what, error).help(help)
            }
            UnmountError::Other { .. } => {
                Failure::new(what, error).help(format!("`umount {shown}` unmounts anything"))
            }
            UnmountError::NotEnded { .. } | UnmountError::Mount(_) => Failure::new(what, error),
        }
    }
}
