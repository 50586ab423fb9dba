//! What a workload touches of a mount: noted in a file, and fetched from such a file ahead of it.

use std::{
    fs::{File, Permissions},
    io::{self, BufReader, BufWriter, Write as _},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    sync::Arc,
};

use cairn_castore::profile::{InvalidProfile, Profile, Recorder};
use clap::Args;
use futures::TryStreamExt as _;
use tempfile::NamedTempFile;
use tokio::task::JoinHandle;

use crate::{
    cache::{CacheControl, warm_in_parts},
    cli::Context,
    exit::{Code, Failure},
};

#[derive(Debug, Args)]
pub(super) struct WorkloadArgs {
    /// Note what is used of the mount, and in which order, and write it to this file at the end
    ///
    /// For `--profile-from`, and for `cairn cache warm --profile`. What the kernel already has in
    /// its caches is not seen: begin with a new mount. Small files are not read ahead meanwhile.
    #[arg(long, value_name = "FILE")]
    record: Option<PathBuf>,
    /// Fetch what such a file names into the cache, in that order, while the mount is used
    #[arg(long, value_name = "FILE")]
    profile_from: Option<PathBuf>,
}

/// A file that is written when the mount ends.
pub(super) struct Recording {
    path: PathBuf,
    /// Beside it, so that an older profile stays until there is a whole new one.
    new: NamedTempFile,
    recorder: Arc<Recorder>,
}

/// What is fetched behind a mount; ends when it is dropped.
pub(super) struct Warming(Option<JoinHandle<()>>);

impl Drop for Warming {
    fn drop(&mut self) {
        if let Some(task) = &self.0 {
            task.abort();
        }
    }
}

impl WorkloadArgs {
    /// Opens the file that is to be written.
    pub(super) fn begin_to_record(&self) -> Result<Option<Recording>, Failure> {
        let Some(path) = &self.record else { return Ok(None) };
        // A mount in the background leaves the folder that it was started in.
        let path = std::path::absolute(path).map_err(|error| cannot_write(path, error))?;
        if path.is_dir() {
            return Err(cannot_write(&path, io::ErrorKind::IsADirectory.into()));
        }
        let new = tempfile::Builder::new()
            .prefix(".cairn-profile-")
            .permissions(Permissions::from_mode(0o666))
            .tempfile_in(path.parent().unwrap_or(&path))
            .map_err(|error| cannot_write(&path, error))?;
        Ok(Some(Recording { path, new, recorder: Arc::default() }))
    }

    /// Reads the profile that is to be fetched.
    pub(super) async fn profile(&self, context: &Context) -> Result<Option<Profile>, Failure> {
        let Some(path) = &self.profile_from else { return Ok(None) };
        // It is of no use without one.
        context.cache()?;
        read_profile(path).await.map(Some)
    }
}

impl Recording {
    /// Who is to be told what is used.
    pub(super) fn recorder(&self) -> Arc<Recorder> {
        self.recorder.clone()
    }

    /// Writes what was noted.
    pub(super) async fn end(self) -> Result<(), Failure> {
        let path = self.path.clone();
        let written = tokio::task::spawn_blocking(move || self.write()).await;
        let written = written.map_err(io::Error::from).and_then(|written| written);
        written.map_err(|error| cannot_write(&path, error))
    }

    fn write(self) -> io::Result<()> {
        let mut to = BufWriter::new(self.new.as_file());
        self.recorder.profile().write(&mut to)?;
        to.flush()?;
        drop(to);
        self.new.as_file().sync_data()?;
        self.new.persist(&self.path)?;
        Ok(())
    }
}

fn cannot_write(path: &Path, error: io::Error) -> Failure {
    Failure::new(format!("{} can't be written", path.display()), error)
        .help("name a file in a folder that can be written to")
}

/// Fetches what a profile names into the cache, while others do what they like.
pub(super) fn warm(cache: Option<Arc<dyn CacheControl>>, profile: Option<Profile>) -> Warming {
    let Some(profile) = profile else { return Warming(None) };
    let Some(cache) = cache else {
        tracing::warn!("what the profile names is not fetched: there is no cache to keep it in");
        return Warming(None);
    };
    let task = tokio::spawn(async move {
        let mut told = warm_in_parts(cache, profile);
        let mut last = None;
        loop {
            match told.try_next().await {
                Ok(Some(warmed)) => last = Some(warmed),
                Ok(None) => break,
                // Whoever needs what is missing asks for it, and is told.
                Err(error) => {
                    let error = &error as &(dyn std::error::Error + 'static);
                    tracing::warn!(error, "what the profile names is not fetched any more");
                    break;
                }
            }
        }
        if let Some(warmed) = last {
            tracing::info!(?warmed, "fetched what the profile names");
        }
    });
    Warming(Some(task))
}

/// Reads a profile from a file.
pub(crate) async fn read_profile(path: &Path) -> Result<Profile, Failure> {
    let file = path.to_owned();
    let read =
        tokio::task::spawn_blocking(move || Profile::read(BufReader::new(File::open(file)?)));
    let profile = read.await.map_err(|error| Failure::new("reading failed", error))?;
    profile.map_err(|error| {
        let code = match &error {
            InvalidProfile::Io(error) if error.kind() == io::ErrorKind::NotFound => Code::NotFound,
            _ => Code::Usage,
        };
        let failure = Failure::new(format!("{} can't be used", path.display()), error).code(code);
        failure.help("name a file that `cairn mount --record FILE` has written")
    })
}
