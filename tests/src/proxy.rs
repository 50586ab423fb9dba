//! A proxy between a client and a server on the loopback interface, whose line can be made as bad
//! as any: slow, narrow, silent, cut, or with bytes changed on their way. What is said over it is
//! not known here.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    runtime::Runtime,
    sync::{mpsc, watch},
    time::{Instant, sleep_until},
};

/// The most bytes that go on their way together.
const PIECE_BYTES: usize = 16 * 1024;

/// How many pieces may be on their way in one direction of one connection: 64 MiB, more than a
/// line of 1 GB/s holds at a delay of 50 ms.
const PIECES_MAX: usize = 4096;

/// How much time a narrow line may make up for, since nobody is woken to the microsecond.
const LATE_MAX: Duration = Duration::from_millis(5);

/// How the line is between the two. Applies at once to all connections.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Line {
    /// How long each byte takes, in each direction: half of a round trip.
    pub delay: Duration,
    /// How many bytes pass in a second, in each direction of each connection. `None`: as many as
    /// can.
    pub bandwidth: Option<u64>,
    /// After how many bytes from the server one is changed, again and again. `None`: never.
    pub corrupt_every: Option<u64>,
    /// Whether anything gets through.
    pub passage: Passage,
}

/// Whether a line lets anything through.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Passage {
    /// All of it.
    #[default]
    Open,
    /// Nothing, and nobody is told: connections stay, also new ones, and what was sent comes when
    /// the line is open again.
    Stalled,
    /// Nothing: connections end, and new ones end at once.
    Cut,
}

/// A proxy on a port of the loopback interface, until it is dropped.
#[derive(Debug)]
pub struct Proxy {
    address: SocketAddr,
    line: watch::Sender<Line>,
    traffic: Arc<Traffic>,
    runtime: Option<Runtime>,
}

#[derive(Debug, Default)]
struct Traffic {
    connections: AtomicU64,
    asked: AtomicU64,
    received: AtomicU64,
    turns: Turns,
}

/// How often one side had to hear of the other before it could say what it said: clocks of Lamport's,
/// of which only the client's ticks. What is said at once, on whichever connection, is one turn.
#[derive(Debug, Default)]
struct Turns {
    client: AtomicU64,
    server: AtomicU64,
}

impl Turns {
    /// The turn of what is being said.
    fn said(&self, direction: Direction) -> u64 {
        match direction {
            Direction::ToServer => self.client.load(Ordering::SeqCst) + 1,
            Direction::ToClient => self.server.load(Ordering::SeqCst),
        }
    }

    /// The other side is about to hear what was said in a turn.
    fn heard(&self, direction: Direction, turn: u64) {
        let clock = match direction {
            Direction::ToServer => &self.server,
            Direction::ToClient => &self.client,
        };
        clock.fetch_max(turn, Ordering::SeqCst);
    }
}

/// The direction of bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Direction {
    ToServer,
    ToClient,
}

impl Proxy {
    /// A proxy before the server of a URL such as `grpc+http://127.0.0.1:8000`, with an open line.
    #[track_caller]
    pub fn before(url: &str) -> Self {
        Self::before_any(&[url])
    }

    /// A proxy before several servers, with an open line: a connection is with the first of them
    /// that takes it.
    #[track_caller]
    pub fn before_any(urls: &[&str]) -> Self {
        let address = |url: &&str| {
            let (_, server) = url.rsplit_once("//").expect("a URL with an address");
            server.parse().expect("an address of numbers")
        };
        let servers: Arc<[SocketAddr]> = urls.iter().map(address).collect();
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap();
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
        let address = listener.local_addr().unwrap();
        let line = watch::Sender::new(Line::default());
        let traffic = Arc::new(Traffic::default());
        runtime.spawn(accept(listener, servers, line.subscribe(), traffic.clone()));
        Self { address, line, traffic, runtime: Some(runtime) }
    }

    /// The URL to reach the server through it, if the server speaks gRPC.
    pub fn url(&self) -> String {
        format!("grpc+http://{}", self.address)
    }

    /// Makes the line another.
    pub fn set(&self, line: Line) {
        self.line.send_replace(line);
    }

    /// Lets nothing through any more, or all of it again.
    pub fn pass(&self, passage: Passage) {
        self.line.send_modify(|line| line.passage = passage);
    }

    /// How many connections there were so far.
    pub fn connections(&self) -> u64 {
        self.traffic.connections.load(Ordering::Relaxed)
    }

    /// How many bytes the client has sent so far, whether they got through or not.
    pub fn asked(&self) -> u64 {
        self.traffic.asked.load(Ordering::Relaxed)
    }

    /// How many bytes the client was sent so far.
    pub fn received(&self) -> u64 {
        self.traffic.received.load(Ordering::Relaxed)
    }

    /// How many round trips there were so far, one after the other: how often the client has said
    /// something behind an answer, and has had an answer to that. Tells what had to wait for what on a
    /// line with a delay, in which all that is asked at once can be said.
    pub fn round_trips(&self) -> u64 {
        self.traffic.turns.client.load(Ordering::SeqCst)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

async fn accept(
    listener: TcpListener,
    servers: Arc<[SocketAddr]>,
    line: watch::Receiver<Line>,
    traffic: Arc<Traffic>,
) {
    while let Ok((client, _)) = listener.accept().await {
        traffic.connections.fetch_add(1, Ordering::Relaxed);
        tokio::spawn(connection(client, servers.clone(), line.clone(), traffic.clone()));
    }
}

/// Carries bytes both ways until the line is cut, or both sides have said all.
async fn connection(
    client: TcpStream,
    servers: Arc<[SocketAddr]>,
    line: watch::Receiver<Line>,
    traffic: Arc<Traffic>,
) {
    let mut cut = line.clone();
    let is_cut = |line: &Line| line.passage == Passage::Cut;
    let carried = async {
        let server = TcpStream::connect(&*servers).await?;
        for side in [&client, &server] {
            side.set_nodelay(true)?;
        }
        let (from_client, to_client) = client.into_split();
        let (from_server, to_server) = server.into_split();
        let one = carry(from_client, to_server, Direction::ToServer, line.clone(), &traffic);
        let other = carry(from_server, to_client, Direction::ToClient, line.clone(), &traffic);
        futures::future::join(one, other).await;
        std::io::Result::Ok(())
    };
    tokio::select! {
        // Either way both sides find the connection closed.
        _ = cut.wait_for(is_cut) => {}
        _ = carried => {}
    }
}

/// What one side has said.
struct Said {
    at: Instant,
    turn: u64,
    bytes: Vec<u8>,
}

/// Carries bytes one way. An end of what is said is passed on, an error ends the way.
async fn carry(
    mut from: OwnedReadHalf,
    to: OwnedWriteHalf,
    direction: Direction,
    line: watch::Receiver<Line>,
    traffic: &Traffic,
) {
    let (sender, pieces) = mpsc::channel(PIECES_MAX);
    let read = async move {
        let mut buffer = vec![0; PIECE_BYTES];
        while let Ok(length @ 1..) = from.read(&mut buffer).await {
            if direction == Direction::ToServer {
                traffic.asked.fetch_add(length as u64, Ordering::Relaxed);
            }
            let said = Said {
                at: Instant::now(),
                turn: traffic.turns.said(direction),
                bytes: buffer[..length].to_vec(),
            };
            if sender.send(said).await.is_err() {
                break;
            }
        }
    };
    futures::future::join(read, deliver(pieces, to, direction, line, traffic)).await;
}

async fn deliver(
    mut pieces: mpsc::Receiver<Said>,
    mut to: OwnedWriteHalf,
    direction: Direction,
    mut line: watch::Receiver<Line>,
    traffic: &Traffic,
) {
    let mut until_changed = None;
    let mut free_at = Instant::now();
    while let Some(Said { at, turn, bytes: mut piece }) = pieces.recv().await {
        let delay = line.borrow().delay;
        sleep_until(at + delay).await;
        // One that was cut ends while it waits.
        let passes = line.wait_for(|line| line.passage == Passage::Open).await;
        let Ok(line) = passes.map(|line| *line) else { return };
        if let (Direction::ToClient, Some(every)) = (direction, line.corrupt_every) {
            corrupt(&mut piece, every.max(1), &mut until_changed);
        }
        traffic.turns.heard(direction, turn);
        if to.write_all(&piece).await.is_err() {
            return;
        }
        if direction == Direction::ToClient {
            traffic.received.fetch_add(piece.len() as u64, Ordering::Relaxed);
        }
        if let Some(bandwidth) = line.bandwidth {
            let taken = Duration::from_secs_f64(piece.len() as f64 / bandwidth.max(1) as f64);
            free_at = free_at.max(Instant::now() - LATE_MAX) + taken;
            sleep_until(free_at).await;
        }
    }
}

/// Changes a bit of each byte that comes `every` bytes after the last that was changed.
fn corrupt(piece: &mut [u8], every: u64, until_changed: &mut Option<u64>) {
    let left = until_changed.get_or_insert(every);
    for byte in piece {
        *left -= 1;
        if *left == 0 {
            *byte ^= 1;
            *left = every;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::{ErrorKind, Read as _, Write as _},
        net::{TcpListener, TcpStream},
        thread,
    };

    use super::*;

    /// A server that sends back what it is sent, and a client of it through a proxy.
    fn echo() -> (Proxy, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let server = listener.local_addr().unwrap();
        thread::spawn(move || {
            for client in listener.incoming() {
                let mut client = client.unwrap();
                thread::spawn(move || {
                    let mut answers = client.try_clone().unwrap();
                    std::io::copy(&mut client, &mut answers)
                });
            }
        });
        let proxy = Proxy::before(&format!("http://{server}"));
        let client = TcpStream::connect(proxy.address).unwrap();
        (proxy, client)
    }

    fn say(client: &mut TcpStream, said: &[u8]) -> std::io::Result<Vec<u8>> {
        client.write_all(said)?;
        let mut heard = vec![0; said.len()];
        client.read_exact(&mut heard)?;
        Ok(heard)
    }

    #[test]
    fn bytes_pass_both_ways_and_so_does_their_end() {
        let (proxy, mut client) = echo();
        let said: Vec<u8> = (0..1_000_000).map(|i| (i % 251) as u8).collect();
        let mut sender = client.try_clone().unwrap();
        let all = said.clone();
        thread::spawn(move || {
            sender.write_all(&all).unwrap();
            sender.shutdown(std::net::Shutdown::Write).unwrap();
        });
        let mut heard = Vec::new();
        client.read_to_end(&mut heard).unwrap();
        assert!(heard == said);
        assert_eq!(proxy.connections(), 1);
        assert_eq!((proxy.asked(), proxy.received()), (1_000_000, 1_000_000));
    }

    #[test]
    fn nothing_comes_while_the_line_is_stalled_and_all_of_it_behind() {
        let (proxy, mut client) = echo();
        assert_eq!(say(&mut client, b"one").unwrap(), b"one");
        proxy.pass(Passage::Stalled);
        client.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        let stalled = say(&mut client, b"two").unwrap_err();
        assert!(matches!(stalled.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut));
        client.set_read_timeout(None).unwrap();
        proxy.pass(Passage::Open);
        let mut heard = [0; 3];
        client.read_exact(&mut heard).unwrap();
        assert_eq!(&heard, b"two");
    }

    #[test]
    fn a_cut_ends_connections_until_the_line_is_open_again() {
        let (proxy, mut client) = echo();
        assert_eq!(say(&mut client, b"one").unwrap(), b"one");
        proxy.pass(Passage::Cut);
        say(&mut client, b"two").unwrap_err();
        let ended = TcpStream::connect(proxy.address).and_then(|mut new| say(&mut new, b"three"));
        ended.unwrap_err();
        proxy.pass(Passage::Open);
        let mut new = TcpStream::connect(proxy.address).unwrap();
        assert_eq!(say(&mut new, b"four").unwrap(), b"four");
    }

    #[test]
    fn what_is_changed_is_one_bit_in_so_many_bytes() {
        let (proxy, mut client) = echo();
        proxy.set(Line { corrupt_every: Some(1000), ..Line::default() });
        let heard = say(&mut client, &[0; 2500]).unwrap();
        let changed: Vec<_> = (0..heard.len()).filter(|at| heard[*at] != 0).collect();
        assert_eq!(changed, [999, 1999]);
    }

    #[test]
    fn round_trips_are_what_waits_for_an_answer() {
        let (proxy, mut client) = echo();
        proxy.set(Line { delay: Duration::from_millis(50), ..Line::default() });
        assert_eq!(proxy.round_trips(), 0);
        for round_trips in 1..4 {
            say(&mut client, b"there and back").unwrap();
            assert_eq!(proxy.round_trips(), round_trips);
        }
        // At once, on two connections.
        let mut other = TcpStream::connect(proxy.address).unwrap();
        client.write_all(b"one").unwrap();
        other.write_all(b"two").unwrap();
        client.write_all(b"three").unwrap();
        client.read_exact(&mut [0; 8]).unwrap();
        other.read_exact(&mut [0; 3]).unwrap();
        assert_eq!(proxy.round_trips(), 4);
    }

    #[test]
    fn a_line_is_no_faster_than_it_is_told() {
        let (proxy, mut client) = echo();
        let delay = Duration::from_millis(20);
        proxy.set(Line { delay, ..Line::default() });
        let start = Instant::now();
        say(&mut client, b"there and back").unwrap();
        assert!(start.elapsed() >= 2 * delay);
        proxy.set(Line { bandwidth: Some(1_000_000), ..Line::default() });
        let start = Instant::now();
        say(&mut client, &[0; 100_000]).unwrap();
        // Less the last piece, and what may be made up for.
        assert!(start.elapsed() >= Duration::from_millis(100 - 17) - LATE_MAX);
    }
}
