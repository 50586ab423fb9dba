//! `cairn daemon`: serves a store to other processes and machines until it is told to end.

use std::{io, time::Duration};

use clap::{Args, ValueEnum};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::{
    cli::Context,
    exit::{Code, Failure},
    http::{HttpArgs, Telling},
    output::Output,
    server::{
        Served, Server,
        listener::{ListenAddress, ListenError, Listener},
        systemd::{self, HandedOver},
    },
    signals::EndSignals,
    traces::TraceArgs,
};

/// How long requests that are under way may take to finish when the daemon is told to end.
const DRAIN_TIME: Duration = Duration::from_secs(30);

/// Where the daemon listens if nothing else is said: every address, with the port of Snix.
const DEFAULT_ADDRESS: &str = "[::]:8000";

/// The same for a machine that has no IPv6.
const DEFAULT_ADDRESS_V4: &str = "0.0.0.0:8000";

/// Serve the store over gRPC
///
/// Speaks the protocols of Snix and Tvix, so that their programs can use the store as well, and
/// health and reflection. Prints a line `listening on URL` for each address as soon as it
/// answers; the URL is what others give to --store. SIGINT or SIGTERM ends it: what is under way
/// is finished first. There is no access control: whoever reaches an address can read and write.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  cairn daemon                            serve the local store on [::]:8000
  cairn daemon --listen unix:/run/cairn.sock --listen 127.0.0.1:8000
  cairn --store objectstore+s3://bucket daemon --serve blob,directory")]
pub(crate) struct DaemonArgs {
    /// Where to listen: HOST:PORT (port 0 is any free one) or unix:/path; may be repeated
    /// (default: `[::]:8000`, or the sockets that systemd hands over)
    #[arg(short, long, value_name = "ADDR")]
    listen: Vec<ListenAddress>,
    /// The services to serve, separated by commas
    #[arg(
        long,
        value_name = "SERVICE",
        value_delimiter = ',',
        default_values_t = [Service::Blob, Service::Directory, Service::PathInfo]
    )]
    serve: Vec<Service>,
    #[command(flatten)]
    http: HttpArgs,
    #[command(flatten)]
    pub(crate) traces: TraceArgs,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Service {
    /// Blobs
    Blob,
    /// Directories
    Directory,
    /// Path infos
    PathInfo,
}

impl std::fmt::Display for Service {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Blob => "blob",
            Self::Directory => "directory",
            Self::PathInfo => "path-info",
        })
    }
}

impl DaemonArgs {
    pub(crate) async fn run(self, context: &Context, sockets: HandedOver) -> Result<(), Failure> {
        let mut signals = EndSignals::listen()
            .map_err(|error| Failure::new("signals can't be listened for", error))?;
        let listeners = self.listeners(sockets).await?;
        let mut output = Output::new();
        let telling = self.http.start("daemon", &mut output).await?;
        context
            .with_opened(async |opened| {
                let services = &opened.services;
                let serves = |service| self.serve.contains(&service);
                let served = Served {
                    blobs: serves(Service::Blob).then(|| services.blobs.clone()),
                    directories: serves(Service::Directory).then(|| services.directories.clone()),
                    path_infos: serves(Service::PathInfo).then(|| services.path_infos.clone()),
                    is_one_store: true,
                    cache: None,
                    store: opened.control.clone(),
                };
                let server = Server::new(served)
                    .await
                    .map_err(|error| Failure::new("nothing can be served", error))?;
                telling.try_store(services);
                serve(server, listeners, &mut signals, &mut output, &telling).await
            })
            .await
    }

    async fn listeners(&self, sockets: HandedOver) -> Result<Vec<Listener>, Failure> {
        let failed = |error| Failure::new("the daemon can't listen", error);
        let mut listeners = sockets.into_listeners().map_err(failed)?;
        for address in &self.listen {
            listeners.push(Listener::bind(address).await.map_err(|error| {
                match &error {
                    ListenError::InUse { .. } => failed(error)
                        .help("is another daemon running? choose another address with --listen"),
                    _ => failed(error),
                }
            })?);
        }
        if listeners.is_empty() {
            listeners.push(default_listener().await.map_err(|error| {
                failed(error).help("choose another address with --listen HOST:PORT")
            })?);
        }
        Ok(listeners)
    }
}

async fn default_listener() -> Result<Listener, ListenError> {
    let every = ListenAddress::Tcp(DEFAULT_ADDRESS.to_owned());
    match Listener::bind(&every).await {
        Err(ListenError::Bind { source, .. })
            if source.raw_os_error() == Some(libc::EAFNOSUPPORT) =>
        {
            Listener::bind(&ListenAddress::Tcp(DEFAULT_ADDRESS_V4.to_owned())).await
        }
        bound => bound,
    }
}

/// Serves until a signal comes or a listener fails, then lets requests finish.
async fn serve(
    server: Server,
    listeners: Vec<Listener>,
    signals: &mut EndSignals,
    output: &mut Output,
    telling: &Telling,
) -> Result<(), Failure> {
    let stop = CancellationToken::new();
    let mut serving = JoinSet::new();
    for listener in listeners {
        let url = listener
            .url()
            .map_err(|error| Failure::new("a socket does not tell its address", error))?;
        serving.spawn(server.clone().serve(listener, stop.clone()));
        announce(output, &url).await;
    }
    systemd::notify("READY=1");
    telling.ready();

    let ended = tokio::select! {
        signal = signals.next() => {
            tracing::info!(%signal, "ending");
            Ok(())
        }
        Some(ended) = serving.join_next() => ended.map_err(io::Error::other).map_or_else(
            |error| Err(Failure::new("the server ended", error)),
            |served| served.map_err(|error| Failure::new("nothing is served any more", error)),
        ),
        // That this is run at all is the sign.
        never = systemd::keep_alive(async || {}) => match never {},
    };
    systemd::notify("STOPPING=1");
    telling.ending();
    stop.cancel();
    let drained = async { while serving.join_next().await.is_some() {} };
    tokio::select! {
        () = drained => {}
        () = tokio::time::sleep(DRAIN_TIME) => {
            tracing::warn!(seconds = DRAIN_TIME.as_secs(), "requests are cut off");
        }
        signal = signals.next() => {
            return Err(Failure::plain(
                Code::Failed,
                format!("a second signal, {signal}, cut requests off"),
            ));
        }
    }
    ended
}

/// Says where the daemon listens. It goes on if nobody reads that.
async fn announce(output: &mut Output, url: &str) {
    let said = match output.line(format!("listening on {url}")).await {
        Ok(()) => output.flush().await,
        failed => failed,
    };
    if let Err(failure) = said {
        tracing::warn!(%failure, url, "listening");
    }
}
