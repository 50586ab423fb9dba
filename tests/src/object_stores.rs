//! Real object stores on the loopback interface: `s3s-fs`, which is one process over a folder, and a
//! cluster of three nodes of `garage`. The script `tests/object-stores` builds them where they are
//! missing. What is stored in them is the affair of the tests.

use std::{
    fs,
    net::{TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::Command,
};

use tempfile::TempDir;

use crate::{
    cairn::Cairn,
    process::{Finished, LONG_PATIENCE, Running, eventually, run},
    proxy::Proxy,
};

/// The bucket that is there.
pub const BUCKET: &str = "bucket";

/// Who may use it.
const KEY_ID: &str = "GK00112233445566778899aabb";
const SECRET: &str = "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff";

const REGION: &str = "garage";

/// A secret of the cluster's own.
const RPC_SECRET: &str = "aabbccddeeff00112233445566778899aabbccddeeff00112233445566778899";

/// The options by which a bucket is reached at an endpoint.
#[derive(Debug, Clone)]
pub struct Access {
    /// The name of the bucket.
    pub bucket: String,
    /// The URL of the server.
    pub endpoint: String,
    /// The name of the key.
    pub key_id: String,
    /// The key.
    pub secret: String,
}

impl Access {
    /// How the bucket is reached by who may use it.
    pub fn to(endpoint: &str) -> Self {
        Self {
            bucket: BUCKET.to_owned(),
            endpoint: endpoint.to_owned(),
            key_id: KEY_ID.to_owned(),
            secret: SECRET.to_owned(),
        }
    }

    /// The variables that say so, besides the name of the bucket.
    pub fn variables(&self) -> [(&'static str, &str); 5] {
        [
            ("AWS_ENDPOINT_URL", &self.endpoint),
            ("AWS_ACCESS_KEY_ID", &self.key_id),
            ("AWS_SECRET_ACCESS_KEY", &self.secret),
            ("AWS_REGION", REGION),
            ("AWS_ALLOW_HTTP", "true"),
        ]
    }

    /// The URL of a store below a prefix, with all that is needed in its query.
    pub fn url(&self, prefix: &str) -> String {
        let option = |(name, value): (&str, &str)| format!("{}={value}", name.to_lowercase());
        let options = self.variables().map(option).join("&");
        format!("objectstore+s3://{}/{prefix}?{options}", self.bucket)
    }

    /// The binary with that store.
    pub fn cairn(&self, prefix: &str) -> Cairn {
        Cairn::new(self.url(prefix))
    }
}

/// A port of the loopback interface that nobody uses, as far as can be told.
pub fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn is_listening(port: u16) -> bool {
    TcpStream::connect(("127.0.0.1", port)).is_ok()
}

/// The program of this name, which may have to be built first.
pub fn program(name: &str) -> PathBuf {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/object-stores");
    let found = Running::start(Command::new(script).arg(name)).finish_within(LONG_PATIENCE);
    Path::new(found.succeeded().text().trim_end()).join(name)
}

/// One server over a folder. Killed when dropped.
#[derive(Debug)]
pub struct S3 {
    folder: TempDir,
    port: u16,
    _server: Running,
}

impl S3 {
    /// A server with an empty bucket.
    #[track_caller]
    pub fn start() -> Self {
        let folder = tempfile::Builder::new().prefix("cairn-s3-").tempdir().unwrap();
        fs::create_dir(folder.path().join(BUCKET)).unwrap();
        let port = free_port();
        let mut command = Command::new(program("s3s-fs"));
        command.args(["--host", "127.0.0.1", "--port", &port.to_string()]);
        command.args(["--access-key", KEY_ID, "--secret-key", SECRET]).arg(folder.path());
        let server = Running::start(&mut command);
        eventually("the object store listens", || is_listening(port));
        Self { folder, port, _server: server }
    }

    /// The URL of the server.
    pub fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// How the bucket is reached.
    pub fn access(&self) -> Access {
        Access::to(&self.endpoint())
    }

    /// Where an object lies.
    pub fn file(&self, key: &str) -> PathBuf {
        self.folder.path().join(BUCKET).join(key)
    }
}

/// Three nodes that each have all of what is stored. Killed when dropped.
#[derive(Debug)]
pub struct Garage {
    nodes: Vec<Node>,
    _folder: TempDir,
}

#[derive(Debug)]
struct Node {
    config: PathBuf,
    program: PathBuf,
    s3_port: u16,
    server: Option<Running>,
}

impl Node {
    fn new(folder: &Path, number: usize, program: &Path) -> Self {
        let (s3_port, rpc_port) = (free_port(), free_port());
        let (home, config) =
            (folder.join(format!("node-{number}")), folder.join(format!("node-{number}.toml")));
        fs::create_dir(&home).unwrap();
        let home = home.display();
        let text = format!(
            "metadata_dir = \"{home}/meta\"\n\
             data_dir = \"{home}/data\"\n\
             db_engine = \"sqlite\"\n\
             replication_factor = 3\n\
             rpc_bind_addr = \"127.0.0.1:{rpc_port}\"\n\
             rpc_public_addr = \"127.0.0.1:{rpc_port}\"\n\
             rpc_secret = \"{RPC_SECRET}\"\n\
             [s3_api]\n\
             s3_region = \"{REGION}\"\n\
             api_bind_addr = \"127.0.0.1:{s3_port}\"\n"
        );
        fs::write(&config, text).unwrap();
        let mut node = Self { config, program: program.to_owned(), s3_port, server: None };
        node.server = Some(Running::start(node.command().arg("server")));
        eventually("a node listens", || is_listening(s3_port) && is_listening(rpc_port));
        node
    }

    fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        command.arg("-c").arg(&self.config).env("RUST_LOG", "warn");
        command
    }

    #[track_caller]
    fn tell(&self, words: &[&str]) -> Finished {
        run(self.command().args(words)).succeeded()
    }

    fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.s3_port)
    }
}

impl Garage {
    /// A cluster with an empty bucket.
    #[track_caller]
    pub fn start() -> Self {
        let folder = tempfile::Builder::new().prefix("cairn-garage-").tempdir().unwrap();
        let program = program("garage");
        let nodes: Vec<_> =
            (0..3).map(|number| Node::new(folder.path(), number, &program)).collect();
        let first = &nodes[0];
        for node in &nodes {
            let id = node.tell(&["node", "id", "-q"]);
            let id = id.text().trim();
            first.tell(&["node", "connect", id]);
            let (name, _) = id.split_once('@').unwrap();
            first.tell(&["layout", "assign", "-z", "here", "-c", "1G", name]);
        }
        first.tell(&["layout", "apply", "--version", "1"]);
        first.tell(&["key", "import", "--yes", KEY_ID, SECRET]);
        first.tell(&["bucket", "create", BUCKET]);
        let allow = ["bucket", "allow", "--read", "--write", "--owner", BUCKET, "--key", KEY_ID];
        first.tell(&allow);
        Self { nodes, _folder: folder }
    }

    /// The endpoints of the nodes.
    pub fn endpoints(&self) -> Vec<String> {
        self.nodes.iter().map(Node::endpoint).collect()
    }

    /// An endpoint that is that of any node which is there, as a load balancer has it.
    pub fn balanced(&self) -> Proxy {
        let endpoints = self.endpoints();
        let endpoints: Vec<_> = endpoints.iter().map(String::as_str).collect();
        Proxy::before_any(&endpoints)
    }

    /// Ends a node as a power cut would.
    #[track_caller]
    pub fn kill(&mut self, number: usize) {
        self.nodes[number].server.take().expect("it is there until now").kill();
    }
}
