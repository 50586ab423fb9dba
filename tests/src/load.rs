//! A load on two servers over one storage: many clients, each with a connection of its own, that put
//! and read side by side without a pause, while one of the servers is killed. What has to come of it is
//! the affair of the tests.

mod client;
mod report;
mod stored;

use std::{
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use cairn_telemetry::inventory::GRPC_CLIENT_RETRIES;
use futures::future::join_all;
use rustix::process::Signal;
use tokio::runtime::Runtime;

use self::{
    client::Client,
    stored::{Kept, Stored},
};
use crate::{
    cairn::{Cairn, Daemon, Scene},
    measure::peak_memory,
    object_stores::S3,
    proxy::Proxy,
    telling::Telling,
};

/// The most memory that a server may have resident, in bytes: what `deploy/kubernetes` gives it.
pub const MEMORY_BUDGET: u64 = 1 << 30;

/// How long before its end a server is watched for whether it serves.
const WATCHED: Duration = Duration::from_millis(500);

/// How many clients there are, for how long, and on what.
#[derive(Debug, Clone, Copy)]
pub struct Load {
    /// The clients, half of them with each of the servers.
    pub clients: usize,
    /// How long they make requests. In the middle of it a server is killed.
    pub duration: Duration,
    /// Where the servers keep what they are given.
    pub storage: Storage,
}

/// What servers without state of their own share.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Storage {
    /// A bucket of an object store, which has a processor's work with it as well.
    Bucket,
    /// A folder of the same layout, which leaves more to the servers.
    Folder,
}

/// What clients ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Stores eight blobs of up to 16 KiB.
    PutSmall,
    /// Stores a blob of 1 to 4 MiB.
    PutLarge,
    /// Stores five directories.
    PutClosure,
    /// Has the NAR of a tree computed.
    CalculateNar,
    /// Stores a path info.
    PutPathInfo,
    /// Asks which of 16 blobs are there.
    Has,
    /// Reads eight small blobs.
    ReadSmall,
    /// Reads up to 64 KiB out of a large blob.
    ReadRange,
    /// Reads five directories.
    GetClosure,
    /// Looks a store path up.
    GetPathInfo,
}

/// All kinds, how many of a hundred requests are of each, and what they are called.
const KINDS: [(Kind, u64, &str); 10] = [
    (Kind::PutSmall, 12, "put 8 blobs of up to 16 KiB"),
    (Kind::PutLarge, 3, "put a blob of 1 to 4 MiB"),
    (Kind::PutClosure, 7, "put 5 directories"),
    (Kind::CalculateNar, 4, "compute a NAR's hash"),
    (Kind::PutPathInfo, 4, "put a path info"),
    (Kind::Has, 15, "tell which of 16 blobs are there"),
    (Kind::ReadSmall, 20, "read 8 blobs of up to 16 KiB"),
    (Kind::ReadRange, 17, "read a range of up to 64 KiB"),
    (Kind::GetClosure, 10, "get 5 directories"),
    (Kind::GetPathInfo, 8, "get a path info"),
];

/// A request of a client, with all its attempts.
#[derive(Debug)]
struct Record {
    kind: Kind,
    start: Instant,
    end: Instant,
    /// The bytes of blobs that were sent or came.
    bytes: u64,
    /// How often the client made it again.
    retries: u32,
    /// Why it failed for good.
    failure: Option<String>,
}

/// What came of a load.
#[derive(Debug)]
pub struct Outcome {
    load: Load,
    /// How long it really took until every client had its last answer.
    taken: Duration,
    records: Vec<Record>,
    /// The retries that the clients' own code knows nothing of.
    retries_below: u64,
    killed: Killed,
    /// The most memory of the killed server, and of the other one, in bytes.
    peak_memory: [u64; 2],
    kept: Kept,
    /// What had been acknowledged and could not be read in the end.
    lost: Vec<String>,
}

/// What is known of the end of a server.
#[derive(Debug, Clone, Copy)]
pub struct Killed {
    /// When it was told, after the start.
    pub after: Duration,
    /// How many requests it had answered in the `WATCHED` time before.
    pub served: u64,
    /// How many requests its clients were waiting for.
    pub under_way: usize,
    /// How long the first and the last of these took from there on.
    pub answered_after: [Duration; 2],
}

impl Outcome {
    /// How many requests were answered.
    pub fn answered(&self) -> usize {
        self.records.iter().filter(|record| record.failure.is_none()).count()
    }

    /// What requests failed with, all attempts being made.
    pub fn failures(&self) -> Vec<&str> {
        self.records.iter().filter_map(|record| record.failure.as_deref()).collect()
    }

    /// What was acknowledged and can't be read as it was put.
    pub fn lost(&self) -> &[String] {
        &self.lost
    }

    /// How the one server ended.
    pub fn killed(&self) -> Killed {
        self.killed
    }

    /// The most memory that any of the servers had resident, in bytes.
    pub fn peak_memory(&self) -> u64 {
        self.peak_memory.into_iter().max().unwrap_or(0)
    }
}

/// A server, and the way to it by which clients come to the other one when it is gone.
struct Server {
    daemon: Daemon,
    telling: Telling,
    balanced: Proxy,
}

impl Server {
    /// How many requests it has answered so far.
    fn answered(&self) -> u64 {
        self.telling.metrics().sum("cairn_grpc_server_requests_total", &[]) as u64
    }
}

fn servers(cairn: &Cairn) -> [Server; 2] {
    let daemons = [(); 2].map(|()| cairn.serve_with("127.0.0.1:0", ["--http", "127.0.0.1:0"]));
    let [first, second] = daemons.each_ref().map(|daemon| daemon.url().to_owned());
    let mut ways = [[&*first, &second], [&second, &first]].into_iter();
    daemons.map(|daemon| {
        let way = ways.next().expect("there is one for each");
        let telling = Telling::of(&daemon.said);
        Server { daemon, telling, balanced: Proxy::before_any(&way) }
    })
}

impl Load {
    /// Runs the load, kills one of the servers in the middle of it, and reads all that was acknowledged
    /// from the other one.
    #[track_caller]
    pub fn run(self) -> Outcome {
        let (scene, s3);
        let cairn = match self.storage {
            Storage::Bucket => {
                s3 = S3::start();
                s3.access().cairn("load")
            }
            Storage::Folder => {
                scene = Scene::new();
                Cairn::new(format!("objectstore+file://{}", scene.store().display()))
            }
        };
        let [mut doomed, mut lasting] = servers(&cairn);
        let runtime = Runtime::new().unwrap();
        let _entered = runtime.enter();
        let stored = Arc::new(Stored::default());
        let client = |url: &str, name: &str| Client::new(url, name, stored.clone());
        let mut first = client(lasting.daemon.url(), "first");
        runtime.block_on(first.prepare());

        let retries_before = GRPC_CLIENT_RETRIES.get_at(0);
        let start = Instant::now();
        let until = start + self.duration;
        let group = |number: usize, server: &Server| {
            let url = server.balanced.url();
            let numbers = (number..self.clients).step_by(2);
            let clients = numbers.map(|number| client(&url, &format!("client {number}")));
            let work: Vec<_> = clients.map(|client| runtime.spawn(client.work(until))).collect();
            runtime.spawn(join_all(work))
        };
        let groups = [group(0, &doomed), group(1, &lasting)];

        thread::sleep((self.duration / 2).saturating_sub(WATCHED));
        let answered = doomed.answered();
        thread::sleep(WATCHED);
        let served = doomed.answered() - answered;
        let doomed_memory = peak_memory(doomed.daemon.process());
        let killed_at = Instant::now();
        doomed.daemon.kill();

        let [of_doomed, of_lasting] = groups.map(|group| {
            let clients = runtime.block_on(group).expect("it is not given up");
            let records = clients.into_iter().map(|records| records.expect("a client ends well"));
            records.flatten().collect::<Vec<_>>()
        });
        let taken = start.elapsed();
        let under_way = of_doomed
            .iter()
            .filter(|record| record.start < killed_at && record.end > killed_at)
            .map(|record| record.end - killed_at);
        let killed = Killed {
            after: killed_at - start,
            served,
            under_way: under_way.clone().count(),
            answered_after: [under_way.clone().min(), under_way.max()]
                .map(Option::unwrap_or_default),
        };
        let retries_below = GRPC_CLIENT_RETRIES.get_at(0) - retries_before;
        let peak_memory = [doomed_memory, peak_memory(lasting.daemon.process())];
        let lost = runtime.block_on(first.verify());
        lasting.daemon.stop(Signal::TERM).succeeded();
        Outcome {
            load: self,
            taken,
            records: of_doomed.into_iter().chain(of_lasting).collect(),
            retries_below,
            killed,
            peak_memory,
            kept: stored.kept(),
            lost,
        }
    }
}
