//! What systemd gives to a service and wants to hear from it: sockets that it has bound, and the
//! states of the process. Other supervisors that speak the same protocol are served by it, too.
#![allow(unsafe_code)]

use std::{
    convert::Infallible,
    env, future, io,
    os::{
        fd::{FromRawFd as _, OwnedFd, RawFd},
        linux::net::SocketAddrExt as _,
        unix::{
            ffi::OsStrExt as _,
            net::{SocketAddr, UnixDatagram},
        },
    },
    time::Duration,
};

use rustix::{
    io::FdFlags,
    net::{AddressFamily, sockopt},
};
use tokio::net::{TcpListener, UnixListener};

use super::listener::{ListenError, Listener};

/// The first descriptor that is handed over.
const FIRST: RawFd = 3;

/// The most sockets that are taken over.
const SOCKETS_MAX: RawFd = 64;

/// The sockets that were handed over to this process; none if it was started otherwise.
///
/// To be called once, before anything else in the process has opened a file: the descriptors are
/// taken by their numbers.
pub(crate) fn handed_over() -> HandedOver {
    let number = |name| env::var(name).ok().and_then(|text| text.parse::<i64>().ok());
    let is_ours = number("LISTEN_PID") == Some(i64::from(std::process::id()));
    let count = number("LISTEN_FDS").filter(|_| is_ours).unwrap_or(0);
    let count = count.clamp(0, i64::from(SOCKETS_MAX)) as RawFd;
    let descriptors = (FIRST..FIRST + count).filter_map(|descriptor| {
        // SAFETY: the descriptor is only asked about; if it isn't open, the call says so.
        let borrowed = unsafe { std::os::fd::BorrowedFd::borrow_raw(descriptor) };
        rustix::io::fcntl_setfd(borrowed, FdFlags::CLOEXEC).ok()?;
        // SAFETY: it is open, and by the protocol it belongs to this process, which has not yet
        // given it to anyone: this is called once, first of all.
        Some((descriptor, unsafe { OwnedFd::from_raw_fd(descriptor) }))
    });
    HandedOver { descriptors: descriptors.collect() }
}

/// Sockets as they were handed over.
#[derive(Debug)]
pub(crate) struct HandedOver {
    descriptors: Vec<(RawFd, OwnedFd)>,
}

impl HandedOver {
    /// The sockets as listeners. Fails on one that is neither TCP nor unix, or does not listen.
    pub(crate) fn into_listeners(self) -> Result<Vec<Listener>, ListenError> {
        self.descriptors
            .into_iter()
            .map(|(descriptor, socket)| {
                listener(socket).map_err(|source| ListenError::HandedOver { descriptor, source })
            })
            .collect()
    }
}

fn listener(socket: OwnedFd) -> io::Result<Listener> {
    if !sockopt::socket_acceptconn(&socket)? {
        return Err(io::Error::other("it is not a stream socket that listens"));
    }
    rustix::io::ioctl_fionbio(&socket, true)?;
    match sockopt::socket_domain(&socket)? {
        AddressFamily::INET | AddressFamily::INET6 => {
            let listener = std::net::TcpListener::from(socket);
            Ok(Listener::Tcp(TcpListener::from_std(listener)?))
        }
        AddressFamily::UNIX => {
            let listener = std::os::unix::net::UnixListener::from(socket);
            // Its file belongs to whoever bound it.
            Ok(Listener::Unix(UnixListener::from_std(listener)?, None))
        }
        other => Err(io::Error::other(format!("its address family is {}", other.as_raw()))),
    }
}

/// Tells the supervisor, if it wants to know, of the process: `READY=1`, `STOPPING=1`, `WATCHDOG=1`.
pub(crate) fn notify(state: &str) {
    let Some(name) = env::var_os("NOTIFY_SOCKET") else { return };
    let bytes = name.as_bytes();
    let address = match bytes.strip_prefix(b"@") {
        Some(abstract_name) => SocketAddr::from_abstract_name(abstract_name),
        None => SocketAddr::from_pathname(&name),
    };
    let sent = address.and_then(|address| {
        let socket = UnixDatagram::unbound()?;
        socket.set_nonblocking(true)?;
        socket.send_to_addr(state.as_bytes(), &address)
    });
    if let Err(error) = sent {
        tracing::warn!(%error, state, "the supervisor could not be told");
    }
}

/// Tells the supervisor again and again that the process lives, each time when `lives` has returned.
/// Says nothing to one that does not wait for it.
pub(crate) async fn keep_alive(lives: impl AsyncFn()) -> Infallible {
    let variable = |name| env::var(name).ok();
    let Some(patience) = patience(variable("WATCHDOG_PID"), variable("WATCHDOG_USEC")) else {
        return future::pending().await;
    };
    loop {
        lives().await;
        notify("WATCHDOG=1");
        // Twice in its patience, so that one that comes late does no harm.
        tokio::time::sleep(patience / 2).await;
    }
}

/// How long the supervisor waits for a sign of life of this process, if it does.
fn patience(pid: Option<String>, microseconds: Option<String>) -> Option<Duration> {
    let is_ours = pid.is_none_or(|pid| pid == std::process::id().to_string());
    let microseconds = microseconds?.parse().ok().filter(|time| *time > 0 && is_ours)?;
    Some(Duration::from_micros(microseconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signs_of_life_are_for_who_waits_for_them() {
        let us = || Some(std::process::id().to_string());
        let time = || Some("3000000".to_owned());
        assert_eq!(patience(us(), time()), Some(Duration::from_secs(3)));
        assert_eq!(patience(None, time()), Some(Duration::from_secs(3)));
        assert_eq!(patience(Some("1".to_owned()), time()), None);
        assert_eq!(patience(us(), None), None);
        assert_eq!(patience(us(), Some("0".to_owned())), None);
        assert_eq!(patience(us(), Some("soon".to_owned())), None);
    }

    #[tokio::test]
    async fn sockets_that_listen_are_taken_and_others_are_not() {
        let tcp = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        assert!(matches!(listener(tcp.into()), Ok(Listener::Tcp(_))));

        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let unix = std::os::unix::net::UnixListener::bind(&path).unwrap();
        let taken = listener(unix.into()).unwrap();
        assert!(matches!(taken, Listener::Unix(_, None)));
        drop(taken);
        assert!(path.exists(), "the file belongs to whoever bound it");

        let (silent, _peer) = std::os::unix::net::UnixStream::pair().unwrap();
        assert!(listener(silent.into()).is_err());
    }
}
