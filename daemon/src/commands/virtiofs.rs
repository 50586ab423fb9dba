//! `cairn virtiofs`: shows the trees of a store to a virtual machine until that is gone.

use std::{convert::Infallible, io, os::unix::net, path::PathBuf, time::Duration};

use cairn_fs::{
    file_system::{CairnFs, FileSystemOptions, Services},
    virtiofs::{self, Ended, QUEUES_MAX, Session, VirtiofsOptions},
};
use clap::Args;
use tokio::{
    net::{UnixListener, UnixStream},
    runtime::Handle,
};

use super::{
    import::{Imports, StatCacheArgs},
    shown::{self, ShownArgs},
};
use crate::{
    cli::Context,
    exit::Failure,
    http::{HttpArgs, Telling},
    output::Output,
    server::listener::{ListenError, bind_unix},
    signals::EndSignals,
    traces::TraceArgs,
};

/// How long to wait after a connection could not be accepted (no file descriptor left, say).
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Show the store to a virtual machine
///
/// The same file system that `cairn mount` shows, by virtiofs: a virtual machine connects to SOCKET,
/// and its guest mounts it. Prints the store paths of what was imported, and `listening on SOCKET`
/// when a virtual machine can be started. Serves one: when that is powered off or gone, or on
/// SIGINT or SIGTERM, the socket is removed and the command ends. A guest whose server ended
/// waits for it in vain, so end the guest first. Who can connect to the socket can read what is
/// shown, which is the user who started this, and root.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  cairn virtiofs --import ./tree ./cairn.sock

  qemu-system-x86_64 -m 4G … \\
    -object memory-backend-memfd,id=memory,size=4G,share=on -numa node,memdev=memory \\
    -chardev socket,id=cairn,path=./cairn.sock \\
    -device vhost-user-fs-pci,chardev=cairn,tag=cairn,queue-size=1024

  mount -t virtiofs -o ro cairn /mnt      (in the guest, by the tag)

The guest's memory has to be shared, as above. A larger queue-size makes larger reads possible.
Kernels from 6.11 use more than one queue, if the device is given num-request-queues=N.")]
pub(crate) struct VirtiofsArgs {
    /// The socket to make, for a virtual machine to connect to
    socket: PathBuf,
    /// Import this first; may be repeated
    #[arg(long, value_name = "PATH")]
    import: Vec<PathBuf>,
    #[command(flatten)]
    stat_cache: StatCacheArgs,
    #[command(flatten)]
    shown: ShownArgs,
    /// How many queues for requests the virtual machine can have at most; as many as there are
    /// processors, up to 16, unless told
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=QUEUES_MAX as i64))]
    queues: Option<u16>,
    #[command(flatten)]
    http: HttpArgs,
    #[command(flatten)]
    pub(crate) traces: TraceArgs,
}

impl VirtiofsArgs {
    pub(crate) async fn run(self, context: &Context) -> Result<(), Failure> {
        // A path that can't be one is told before anything is imported. A virtual machine that
        // connects before that is over waits.
        let bound = bind_unix(&self.socket).await;
        let (listener, _file) = bound.map_err(|error| self.failure(error))?;
        let mut output = Output::new();
        let telling = self.http.start("virtiofs", &mut output).await?;
        context
            .with_services(async |services| {
                telling.try_store(services);
                let mut signals = EndSignals::listen()
                    .map_err(|error| Failure::new("signals can't be listened for", error))?;
                let imports =
                    Imports { paths: &self.import, name: None, stat_cache: self.stat_cache };
                imports.run_and_print(services, context, &mut signals, &mut output).await?;
                output.announce(format!("listening on {}", self.socket.display())).await;
                let serving = Serving {
                    services: shown::services(services, context.has_far_directories()?),
                    options: self.shown.options(context.space()?),
                    virtiofs: self.virtiofs_options(),
                };
                telling.ready();
                let served = serving.serve(&listener, &mut signals, &telling).await;
                telling.ending();
                served
            })
            .await
    }

    fn virtiofs_options(&self) -> VirtiofsOptions {
        let mut options = VirtiofsOptions::default();
        if let Some(queues) = self.queues {
            options.queues = usize::from(queues);
        }
        options
    }

    fn failure(&self, error: ListenError) -> Failure {
        let help = match &error {
            ListenError::InUse { .. } => {
                Some("end the process that listens there, or choose another path".to_owned())
            }
            ListenError::NoSocket { .. } => {
                Some("choose another path, or remove what is there".to_owned())
            }
            ListenError::Bind { source, .. } => match source.kind() {
                io::ErrorKind::NotFound => self.socket.parent().map(|folder| {
                    format!("create the directory first: mkdir -p {}", folder.display())
                }),
                io::ErrorKind::InvalidInput => Some(
                    "the path of a socket has at most 107 bytes: choose a shorter one, or name it \
                     from inside its directory"
                        .to_owned(),
                ),
                io::ErrorKind::PermissionDenied => {
                    Some("choose a directory that you can write to".to_owned())
                }
                _ => None,
            },
            ListenError::HandedOver { .. } => None,
        };
        let failure = Failure::new("no virtual machine can be served", error);
        match help {
            Some(help) => failure.help(help),
            None => failure,
        }
    }
}

/// What a virtual machine is shown, and how.
struct Serving {
    services: Services,
    options: FileSystemOptions,
    virtiofs: VirtiofsOptions,
}

impl Serving {
    /// Serves the first virtual machine that connects, until it is gone or a signal comes.
    async fn serve(
        &self,
        listener: &UnixListener,
        signals: &mut EndSignals,
        telling: &Telling,
    ) -> Result<(), Failure> {
        loop {
            let connection = tokio::select! {
                signal = signals.next() => {
                    tracing::info!(%signal, "ending");
                    return Ok(());
                }
                connection = accept(listener) => connection,
            };
            let mut session = self.begin(connection)?;
            let ended = tokio::select! {
                signal = signals.next() => {
                    telling.ending();
                    tracing::info!(%signal, "ending, while a virtual machine is served");
                    Ok(Ended::Disconnected)
                }
                ended = session.ended() => ended,
                never = refuse_others(listener) => match never {},
            };
            // Takes a moment.
            tokio::task::spawn_blocking(move || drop(session))
                .await
                .map_err(|error| Failure::new("serving a virtual machine ended badly", error))?;
            match ended {
                Ok(Ended::Disconnected) => return Ok(()),
                // Someone has looked whether this process is there.
                Ok(Ended::Unused) => {}
                Err(error) => return Err(Failure::new("serving a virtual machine failed", error)),
            }
        }
    }

    fn begin(&self, connection: UnixStream) -> Result<Session, Failure> {
        let blocking = || -> io::Result<net::UnixStream> {
            let connection = connection.into_std()?;
            connection.set_nonblocking(false)?;
            Ok(connection)
        };
        let failed = "serving a virtual machine failed";
        let connection = blocking().map_err(|error| Failure::new(failed, error))?;
        tracing::info!("a virtual machine connects");
        let fs = CairnFs::new(self.services.clone(), self.options.clone(), Handle::current());
        virtiofs::serve(fs, connection, &self.virtiofs).map_err(|error| Failure::new(failed, error))
    }
}

/// The next connection.
async fn accept(listener: &UnixListener) -> UnixStream {
    loop {
        match listener.accept().await {
            Ok((connection, _)) => return connection,
            Err(error) => {
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Closes what connects beside the virtual machine that is served.
async fn refuse_others(listener: &UnixListener) -> Infallible {
    loop {
        drop(accept(listener).await);
        tracing::warn!("a second connection was refused: one virtual machine is served already");
    }
}
