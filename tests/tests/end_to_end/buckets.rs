//! A store in a bucket, on real object stores: whole, shared by servers without state of their own,
//! and with all that can be wrong with a bucket told.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{TcpListener, TcpStream},
    path::{Path, PathBuf},
    slice,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use cairn_castore::{
    Address, Directory, DirectoryService as _, Name, Node, SymlinkTarget,
    blob_service::object_store::ObjectStoreBlobService, directory::SizeRule,
    directory_service::object_store::ObjectStoreDirectoryService, object_base::ObjectBase,
};
use cairn_store::path_info_service::object_store::ObjectStorePathInfoService;
use cairn_tests::{
    cairn::{Cairn, Daemon, Scene},
    compare::{Face, assert_same},
    measure::walk,
    object_stores::{Access, Garage, S3},
    process::run,
    proxy::{Line, Proxy},
    random::Random,
    trees,
};
use futures::{StreamExt as _, TryStreamExt as _, stream};
use rustix::process::Signal;

/// Holds each service to its contract.
async fn conforms(url: &str) {
    let address: Address = url.parse().unwrap();
    let Address::ObjectStore(address) = address else { panic!("{url} is of another kind") };
    let base = ObjectBase::open(&address).unwrap();
    let blobs = Arc::new(ObjectStoreBlobService::new(base.clone()));
    let directories = Arc::new(ObjectStoreDirectoryService::new(base.clone()));
    let path_infos =
        Arc::new(ObjectStorePathInfoService::new(base, blobs.clone(), directories.clone()));
    cairn_castore::conformance::blob_service(blobs.clone()).await;
    cairn_castore::conformance::directory_service(directories.clone()).await;
    cairn_store::conformance::path_info_service(path_infos, blobs, directories).await;
}

#[test]
fn a_bucket_is_a_whole_store() {
    let (scene, s3) = (Scene::new(), S3::start());
    let cairn = s3.access().cairn("some/prefix");
    let tree = trees::small(scene.folder(), "tree");
    let path = cairn.import(&tree);
    assert_eq!(cairn.import(&tree), path);
    assert_eq!(cairn.list(), slice::from_ref(&path));
    let mount = scene.mount(&cairn, "mnt");
    assert_same(&tree, &mount.at(&path), Face::Mount);
    mount.stop(Signal::TERM).succeeded();
    cairn.export(&path, &scene.path("exported")).succeeded();
    assert_same(&tree, &scene.path("exported"), Face::Plain);
    // In the documented places, and in no others.
    let mut kinds: Vec<_> = fs::read_dir(s3.file("some/prefix"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    kinds.sort();
    let known = ["blobs", "chunks", "directories", "dirs", "nars", "outboards", "pathinfos"];
    assert!(kinds.iter().all(|kind| known.contains(&kind.as_str())), "{kinds:?}");
    assert!(s3.access().cairn("another").list().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_contracts_hold_in_a_bucket() {
    let s3 = tokio::task::spawn_blocking(S3::start).await.unwrap();
    conforms(&s3.access().url("contracts")).await;
}

/// A closure is one object, and one that is larger than 16 MiB goes in parts.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_large_is_uploaded_in_parts() {
    let s3 = tokio::task::spawn_blocking(S3::start).await.unwrap();
    let address: Address = s3.access().url("large").parse().unwrap();
    let Address::ObjectStore(address) = address else { panic!("{address} is of another kind") };
    let service = ObjectStoreDirectoryService::new(ObjectBase::open(&address).unwrap());
    // Nothing that can be compressed.
    let mut random = Random::new("targets");
    let mut directory = |_| {
        let mut entries = Vec::new();
        for number in 0..1000 {
            let mut target = random.bytes(1000);
            target.iter_mut().for_each(|byte| *byte = (*byte).max(1));
            let target = SymlinkTarget::try_from(bytes::Bytes::from(target)).unwrap();
            let name = Name::try_from(format!("{number:04}").as_str()).unwrap();
            entries.push((name, Node::Symlink { target }));
        }
        Directory::new(entries).unwrap()
    };
    let children: Vec<_> = (0..20).map(&mut directory).collect();
    let entry = |(number, child): (usize, &Directory)| {
        let name = Name::try_from(format!("{number:02}").as_str()).unwrap();
        let (digest, size) = (child.digest(), child.size(SizeRule::Doubled));
        (name, Node::Directory { digest, size })
    };
    let root = Directory::new(children.iter().enumerate().map(entry).collect()).unwrap();
    let digest = root.digest();
    let closure: Vec<_> = children.into_iter().chain([root]).collect();
    let put = service.put_closure(stream::iter(closure.clone()).map(Ok).boxed()).await.unwrap();
    assert_eq!(put, digest);
    let key = format!("large/dirs/b3/{}/{}", &digest.to_hex()[..4], digest.to_hex().as_str());
    assert!(fs::metadata(s3.file(&key)).unwrap().len() > 16 << 20);
    let read: Vec<_> = service.get_closure(&digest).await.unwrap().try_collect().await.unwrap();
    assert_eq!(read.len(), closure.len());
    assert!(closure.iter().all(|directory| read.contains(directory)));
}

#[test]
fn options_come_from_the_environment_too() {
    let (scene, s3) = (Scene::new(), S3::start());
    let access = s3.access();
    let cairn = Cairn::new("objectstore+s3://bucket/here");
    let tree = trees::small(scene.folder(), "tree");
    let words = ["import".as_ref(), tree.as_os_str()];
    run(cairn.command(words).envs(access.variables())).succeeded();
    assert_eq!(access.cairn("here").list().len(), 1);
    // Those of the URL count more.
    let gone = Access { endpoint: "http://127.0.0.1:1".to_owned(), ..access.clone() };
    let cairn = access.cairn("here");
    let listed = run(cairn.command(["list"]).envs(gone.variables())).succeeded();
    assert_eq!(listed.lines().len(), 1);
}

#[test]
fn what_is_wrong_with_a_bucket_is_told() {
    let (scene, s3) = (Scene::new(), S3::start());
    let access = s3.access();
    let tree = trees::small(scene.folder(), "tree");
    let import = ["import".as_ref(), tree.as_os_str()];

    let missing = Access { bucket: "no-such-bucket".to_owned(), ..access.clone() }.cairn("p");
    missing.run(["list"]).failed(3, &["there is no bucket at", "no-such-bucket", "help:"]);
    missing.run(import).failed(3, &["there is no bucket at"]);

    let stranger = Access { secret: "wrong".to_owned(), ..access.clone() };
    let failed = stranger.cairn("p").run(import).failed(1, &["objectstore+s3://bucket/p"]);
    assert!(failed.stderr.contains("credentials"), "{}", failed.stderr);
    assert!(!failed.stderr.contains("wrong"), "the secret is told: {}", failed.stderr);

    // Who would give some out on a machine of a cloud is not there.
    let unsigned = format!(
        "objectstore+s3://bucket/p?aws_endpoint_url={}&aws_allow_http=true&aws_region=garage\
         &aws_metadata_endpoint=http://127.0.0.1:1",
        access.endpoint
    );
    let unnamed = Cairn::new(&unsigned).run(["list"]);
    let failed = unnamed.failed(1, &["there are no credentials", "help: set AWS_"]);
    assert!(!failed.stderr.contains("can't be reached"), "{}", failed.stderr);
    let open = Cairn::new(unsigned + "&aws_skip_signature=yes");
    open.run(["list"]).failed(1, &["objectstore+s3://bucket/p"]);

    let nobody = Access::to("http://127.0.0.1:1").cairn("p");
    nobody.run(["list"]).failed(1, &["objectstore+s3://bucket/p", "can't be reached"]);
}

#[test]
fn a_bucket_that_is_busy_is_asked_again() {
    let (scene, s3) = (Scene::new(), S3::start());
    let busy = Busy::before(&s3.endpoint());
    let cairn = Access::to(&busy.endpoint()).cairn("busy");
    let tree = trees::small(scene.folder(), "tree");
    let path = cairn.import(&tree);
    cairn.export(&path, &scene.path("exported")).succeeded();
    assert_same(&tree, &scene.path("exported"), Face::Plain);
    assert!(busy.refused.load(Ordering::SeqCst) > 5);
}

/// A server that is too busy for every third connection.
struct Busy {
    port: u16,
    refused: Arc<AtomicUsize>,
}

impl Busy {
    fn before(endpoint: &str) -> Self {
        let server = endpoint.strip_prefix("http://").unwrap().to_owned();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let refused = Arc::new(AtomicUsize::new(0));
        let counter = refused.clone();
        thread::spawn(move || {
            for (number, client) in listener.incoming().enumerate() {
                let (client, server, counter) = (client.unwrap(), server.clone(), counter.clone());
                thread::spawn(move || match number % 3 {
                    0 => {
                        counter.fetch_add(1, Ordering::SeqCst);
                        refuse(client);
                    }
                    _ => answer_once(client, &server),
                });
            }
        });
        Self { port, refused }
    }

    fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }
}

/// Tells a client to come again.
fn refuse(mut client: TcpStream) {
    let mut request = [0; 4096];
    let _ = client.read(&mut request);
    let body = "<Error><Code>SlowDown</Code></Error>";
    let head = "HTTP/1.1 503 Slow Down\r\nConnection: close\r\nContent-Length:";
    let _ = write!(client, "{head} {}\r\n\r\n{body}", body.len());
    // What else it sends is taken, or it would find the connection reset before the answer.
    let _ = client.set_read_timeout(Some(Duration::from_millis(200)));
    while client.read(&mut request).is_ok_and(|length| length > 0) {}
}

/// Carries a connection for a moment, so that the client has to make a new one now and then.
fn answer_once(client: TcpStream, server: &str) {
    let server = TcpStream::connect(server).unwrap();
    let (mut from_client, mut from_server) =
        (client.try_clone().unwrap(), server.try_clone().unwrap());
    let (mut to_client, mut to_server) = (client, server);
    from_client.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
    let sent = thread::spawn(move || {
        let _ = std::io::copy(&mut from_client, &mut to_server);
        let _ = to_server.shutdown(std::net::Shutdown::Write);
    });
    let _ = std::io::copy(&mut from_server, &mut to_client);
    let _ = to_client.shutdown(std::net::Shutdown::Both);
    let _ = sent.join();
}

#[test]
fn what_is_damaged_in_a_bucket_is_named_and_never_read() {
    let (scene, s3) = (Scene::new(), S3::start());
    let cairn = s3.access().cairn("store");
    let tree = trees::small(scene.folder(), "tree");
    let path = cairn.import(&tree);
    let cached = s3.access().cairn("store").with_cache(&scene.path("cache"));
    cached.export(&path, &scene.path("before")).succeeded();
    walk(&s3.file("store/chunks"), &mut |file, metadata| {
        if metadata.is_file() && metadata.len() > 64 {
            let mut bytes = fs::read(file).unwrap();
            let middle = bytes.len() / 2;
            bytes[middle] ^= 1;
            fs::write(file, bytes).unwrap();
        }
    });
    let cat = cairn.run(["cat", &format!("{path}/large")]).failed(4, &["blake3-"]);
    assert!(cat.stdout.is_empty());
    cairn.export(&path, &scene.path("exported")).failed(4, &["blake3-"]);
    // A copy that is good is read.
    cached.export(&path, &scene.path("after")).succeeded();
    assert_same(&tree, &scene.path("after"), Face::Plain);
}

/// Has two readers of a tree at work while something is done.
fn while_read(tree: &Path, shown: &Path, work: impl FnOnce()) {
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let readers: Vec<_> =
            (0..2).map(|_| scope.spawn(|| read_under_load(tree, shown, &stop))).collect();
        work();
        stop.store(true, Ordering::SeqCst);
        for reader in readers {
            assert!(reader.join().unwrap() > 0);
        }
    });
}

/// Reads a tree through a mount again and again until it is told to stop; how often it did. Each
/// time it has to be what was imported.
fn read_under_load(tree: &Path, shown: &Path, stop: &AtomicBool) -> usize {
    let mut rounds = 0;
    while !stop.load(Ordering::SeqCst) {
        cairn_tests::measure::drop_caches();
        assert_same(tree, shown, Face::Mount);
        rounds += 1;
    }
    rounds
}

/// Servers over one bucket, and what balances between them.
struct Servers {
    daemons: Vec<Option<Daemon>>,
    balanced: Proxy,
}

impl Servers {
    fn start(cairns: &[Cairn]) -> Self {
        let daemons: Vec<_> = cairns.iter().map(|cairn| cairn.serve("127.0.0.1:0")).collect();
        let urls: Vec<_> = daemons.iter().map(Daemon::url).collect();
        let balanced = Proxy::before_any(&urls);
        Self { balanced, daemons: daemons.into_iter().map(Some).collect() }
    }

    fn client(&self) -> Cairn {
        Cairn::new(self.balanced.url())
    }

    fn kill(&mut self, number: usize) {
        self.daemons[number].take().expect("it is there until now").kill();
    }
}

fn tree_of_many(scene: &Scene) -> PathBuf {
    let tree = scene.new_folder("many");
    for name in ["one", "two", "three"] {
        trees::small(&tree, name);
    }
    tree
}

#[test]
fn servers_without_state_are_one_store_and_one_that_is_killed_is_not_missed() {
    let (scene, s3) = (Scene::new(), S3::start());
    let cairn = s3.access().cairn("store");
    let mut servers = Servers::start(&[cairn.clone(), cairn.clone()]);
    let tree = tree_of_many(&scene);
    // What one has taken the other has.
    let first = servers.daemons[0].as_ref().unwrap().client();
    let second = servers.daemons[1].as_ref().unwrap().client();
    let path = first.import(&tree);
    assert_eq!(second.list(), slice::from_ref(&path));
    second.export(&path, &scene.path("exported")).succeeded();

    servers.balanced.set(Line { delay: Duration::from_millis(2), ..Line::default() });
    let mount = scene.mount(&servers.client(), "mnt");
    while_read(&tree, &mount.at(&path), || {
        thread::sleep(Duration::from_millis(1500));
        servers.kill(0);
        thread::sleep(Duration::from_millis(1500));
    });
    // Writes find the other one too.
    let written = trees::small(scene.folder(), "written");
    servers.client().import(&written);
    mount.stop(Signal::TERM).succeeded();
}

#[test]
#[ignore = "a cluster that takes minutes to build: part of tests/run"]
fn a_node_of_a_cluster_that_is_killed_is_not_missed() {
    let (scene, mut garage) = (Scene::new(), Garage::start());
    let tree = tree_of_many(&scene);
    // Each server has all nodes behind a balancer of its own.
    let nodes = [garage.balanced(), garage.balanced()];
    let cairns = nodes.each_ref().map(|nodes| {
        let endpoint = nodes.url().replace("grpc+", "");
        Access::to(&endpoint).cairn("store")
    });
    let mut servers = Servers::start(&cairns);
    let path = servers.client().import(&tree);
    let mount = scene.mount(&servers.client(), "mnt");
    while_read(&tree, &mount.at(&path), || {
        thread::sleep(Duration::from_secs(2));
        garage.kill(0);
        thread::sleep(Duration::from_secs(3));
        servers.kill(0);
        thread::sleep(Duration::from_secs(2));
    });
    let written = trees::small(scene.folder(), "written");
    let written_path = servers.client().import(&written);
    // Another node has what was written while one was gone.
    let other = Access::to(&garage.endpoints()[2]).cairn("store");
    other.export(&written_path, &scene.path("out")).succeeded();
    assert_same(&written, &scene.path("out"), Face::Plain);
    mount.stop(Signal::TERM).succeeded();
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "a cluster that takes minutes to build: part of tests/run"]
async fn the_contracts_hold_in_a_cluster() {
    let garage = tokio::task::spawn_blocking(Garage::start).await.unwrap();
    conforms(&Access::to(&garage.endpoints()[1]).url("contracts")).await;
}
