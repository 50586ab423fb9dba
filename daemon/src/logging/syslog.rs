//! The system's log, for a process that has no standard error: one datagram a line, to the socket
//! that syslog daemons and systemd's journal listen on. What is logged is decided elsewhere.

use std::{
    io::{self, Write},
    os::unix::net::UnixDatagram,
    process,
};

use tracing::{Level, Metadata};
use tracing_subscriber::fmt::MakeWriter;

/// Where the system's log listens.
const PATH: &str = "/dev/log";

/// The most bytes of a line; what is longer is cut off. Longer datagrams may be refused.
const LINE_MAX: usize = 8 * 1024;

/// The facility of system services; see syslog(3).
const DAEMON: u8 = 3 << 3;

/// The system's log. What is said while nobody listens there is lost.
#[derive(Debug)]
pub(super) struct Syslog {
    socket: UnixDatagram,
}

impl Syslog {
    pub(super) fn new() -> io::Result<Self> {
        let socket = UnixDatagram::unbound()?;
        // A log that is stuck must not hold up who logs.
        socket.set_nonblocking(true)?;
        Ok(Self { socket })
    }
}

impl<'a> MakeWriter<'a> for Syslog {
    type Writer = Line<'a>;

    fn make_writer(&'a self) -> Line<'a> {
        Line { log: self, severity: severity(Level::INFO) }
    }

    fn make_writer_for(&'a self, event: &Metadata<'_>) -> Line<'a> {
        Line { log: self, severity: severity(*event.level()) }
    }
}

/// A line on its way.
#[derive(Debug)]
pub(super) struct Line<'a> {
    log: &'a Syslog,
    severity: u8,
}

impl Write for Line<'_> {
    /// Takes a whole line at a time, as it is given one.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let mut datagram = format!("<{}>cairn[{}]: ", DAEMON | self.severity, process::id());
        let text = String::from_utf8_lossy(line.get(..LINE_MAX).unwrap_or(line));
        datagram.push_str(text.trim_end());
        // Nobody is there to be told.
        let _ = self.log.socket.send_to(datagram.as_bytes(), PATH);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn severity(level: Level) -> u8 {
    match level {
        Level::ERROR => 3,
        Level::WARN => 4,
        Level::INFO => 6,
        Level::DEBUG | Level::TRACE => 7,
    }
}
