//! The stack of `deploy/compose` as its files say it, in containers of the images that the Dockerfiles
//! make: imports through it, reads of its mount, and what its readers see of crashes.

use std::{
    env,
    fs::{self, File},
    io::Read as _,
    path::{Path, PathBuf},
    process::Command,
    thread,
};

use cairn_tests::{
    cairn::{self, Cairn, Scene},
    compare::{self, Face},
    docker::{BASE, Docker, SharedFolder},
    object_stores,
    process::{Finished, LONG_PATIENCE, Running, eventually, run},
    random::Random,
    trees::{self, base_name},
};

const README: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/README.md");

const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/compose");

/// The files that a tree has in `read_through_a_crash`, and their length in bytes: together more than
/// what is read ahead of whoever has read the first of them.
const FILES: usize = 24;
const FILE_LENGTH: usize = 2 << 20;

/// The stack, up. Taken down when dropped.
struct Stack {
    files: &'static [&'static str],
    scene: Scene,
    // In this order: what runs ends before the folder that it mounts in goes.
    docker: Docker,
    shared: SharedFolder,
}

impl Stack {
    #[track_caller]
    fn start(files: &'static [&'static str]) -> Self {
        let docker = Docker::start();
        docker.build_cairn("cairn:0.1.0");
        let scene = Scene::new();
        let shared = SharedFolder::new(scene.path("mounts"));
        Self { files, scene, docker, shared }
    }

    /// A program that finds the stack, as Compose does.
    fn program(&self, name: &str) -> Command {
        let mut command = self.docker.program(name);
        let files: Vec<_> = self.files.iter().map(|file| format!("{FOLDER}/{file}")).collect();
        command.env("COMPOSE_FILE", files.join(":"));
        // Any port that is free.
        command.env("CAIRN_LISTEN", "127.0.0.1:0");
        command.env("CAIRN_MOUNT", self.shared.path()).env("CAIRN_CACHE_SIZE", "1GiB");
        command
    }

    fn command<'a>(&self, words: impl IntoIterator<Item = &'a str>) -> Command {
        let mut command = self.program("docker-compose");
        command.args(words);
        command
    }

    #[track_caller]
    fn tell<'a>(&self, words: impl IntoIterator<Item = &'a str>) -> Finished {
        Running::start(&mut self.command(words)).finish_within(LONG_PATIENCE).succeeded()
    }

    #[track_caller]
    fn up(&self) {
        self.tell(["up", "--detach", "--no-build"]);
        self.wait_for_the_mount();
    }

    #[track_caller]
    fn wait_for_the_mount(&self) {
        eventually("the mount is there", || {
            self.shared.mounts() == ["store"] && fs::read_dir(self.mount()).is_ok()
        });
    }

    /// Where the host sees the trees.
    fn mount(&self) -> PathBuf {
        self.shared.path().join("store")
    }

    fn at(&self, store_path: &str) -> PathBuf {
        self.mount().join(base_name(store_path))
    }

    /// The containers of a service.
    #[track_caller]
    fn containers(&self, service: &str) -> Vec<String> {
        self.tell(["ps", "--quiet", service]).lines()
    }

    /// The binary on the host, with the store that the gateway serves.
    #[track_caller]
    fn cairn(&self) -> Cairn {
        let address = self.tell(["port", "gateway", "8000"]);
        Cairn::new(format!("grpc+http://{}", address.text().trim_end()))
    }

    /// Imports a tree with the binary of the image, inside the network of the stack.
    #[track_caller]
    fn import_inside(&self, tree: &Path) -> String {
        let volume = format!("{}:/import/{}:ro", tree.display(), name_of(tree));
        let place = format!("/import/{}", name_of(tree));
        let words = ["run", "--rm", "--volume", &volume, "cairn", "import", &place];
        self.tell(words).text().trim_end().to_owned()
    }

    /// Makes an image of the Prometheus that the host has, as the one of this name has it.
    #[track_caller]
    fn build_prometheus(&self, tag: &str) {
        let context = self.scene.new_folder("prometheus");
        for name in ["prometheus", "promtool"] {
            fs::copy(Path::new("/usr/bin").join(name), context.join(name)).unwrap();
        }
        let dockerfile = format!(
            "FROM {BASE}\n\
             COPY prometheus promtool /bin/\n\
             RUN install -d -o nobody /prometheus\n\
             USER nobody\n\
             ENTRYPOINT [\"/bin/prometheus\"]\n"
        );
        fs::write(context.join("Dockerfile"), dockerfile).unwrap();
        let mut build = self.docker.command();
        build.args(["build", "--network", "none", "--tag", tag]).arg(context);
        Running::start(&mut build).finish_within(LONG_PATIENCE).succeeded();
    }

    /// A tree of its own that is more than what is fetched at once.
    fn tree(&self, name: &str) -> PathBuf {
        let tree = self.scene.new_folder(name);
        let mut random = Random::new(name);
        for file in 0..FILES {
            fs::write(tree.join(file_name(file)), random.bytes(FILE_LENGTH)).unwrap();
        }
        tree
    }

    /// Crashes a container while a tree is read, and looks whether its readers notice.
    #[track_caller]
    fn read_through_a_crash(&self, service: &str, round: &str) {
        let name = format!("{service}-{round}");
        let trees = [self.tree(&name), trees::small(self.scene.folder(), &format!("{name}-small"))];
        let [begun, unseen] = trees.each_ref().map(|tree| self.cairn().import(tree));
        let container = &self.containers(service)[0];
        let restarts = || self.docker.inspect(container, "{{.RestartCount}}");
        let before = restarts();

        let first = fs::read(self.at(&begun).join(file_name(0))).unwrap();
        assert!(first == fs::read(trees[0].join(file_name(0))).unwrap());
        self.docker.crash(container);
        // One in the middle of a tree, and one that comes to another meanwhile.
        thread::scope(|scope| {
            let [begun, unseen] = [&begun, &unseen].map(|path| self.at(path));
            scope.spawn(|| compare::assert_same(&trees[1], &{ unseen }, Face::Mount));
            compare::assert_same(&trees[0], &begun, Face::Mount);
        });
        eventually("the container is started again", || restarts() != before);
    }

    #[track_caller]
    fn down(&self, words: &[&str]) {
        let down = ["--profile", "metrics", "down", "--timeout", "40"];
        self.tell(down.into_iter().chain(words.iter().copied()));
        assert_eq!(self.shared.mounts(), [""; 0], "a mount is left behind");
    }
}

impl Drop for Stack {
    fn drop(&mut self) {
        if thread::panicking() {
            let logs = Running::start(&mut self.command(["logs", "--no-color"])).finish();
            eprintln!("{}", String::from_utf8_lossy(&logs.stdout));
        }
        let down = ["--profile", "metrics", "down", "--timeout", "1"];
        let _ = Running::start(&mut self.command(down)).finish();
    }
}

fn file_name(index: usize) -> String {
    format!("file-{index:02}")
}

fn name_of(tree: &Path) -> &str {
    tree.file_name().unwrap().to_str().unwrap()
}

#[test]
#[ignore = "starts containers, for some minutes"]
fn a_stack_on_object_storage_survives_the_end_of_each_of_its_parts() {
    let stack = Stack::start(&["compose.yaml"]);
    let garage = object_stores::program("garage");
    stack.docker.build("deploy/compose/garage.Dockerfile", &garage, "cairn-garage:2.5.0");
    stack.up();

    // Imported by both ways, a tree is seen on the host and in another container.
    let vector = trees::vector(stack.scene.folder());
    let imported = stack.import_inside(&vector);
    assert_eq!(imported, trees::VECTOR_STORE_PATH);
    compare::assert_same(&vector, &stack.at(&imported), Face::Mount);
    let small = trees::small(stack.scene.folder(), "small");
    let small_path = stack.cairn().import(&small);
    let volume = format!("{}:/mnt/cairn:ro,rslave", stack.shared.path().display());
    let reader =
        ["run", "--detach", "--user", "nobody", "--volume", &volume, BASE, "sleep", "infinity"];
    let reader = stack.docker.tell(reader).text().trim_end().to_owned();
    let large = format!("/mnt/cairn/store/{}/large", base_name(&small_path));
    let read_inside = || {
        let words = ["exec", &reader, "cat", &large];
        Running::start(stack.docker.command().args(words)).finish()
    };
    let expected = fs::read(small.join("large")).unwrap();
    assert!(read_inside().succeeded().stdout == expected);
    let listed = stack.tell(["run", "--rm", "cairn", "list"]).lines();
    assert_eq!(listed.len(), 2);

    // A server, or the storage below, ends: nobody notices.
    for service in ["castore", "store", "garage", "gateway"] {
        stack.read_through_a_crash(service, "alone");
    }

    // The mounter ends: what is open is lost, and the mount is back with no help from anyone, for the
    // host and for who had it before.
    let mut open = File::open(stack.at(&small_path).join("large")).unwrap();
    let mounter = &stack.containers("mounter")[0];
    stack.docker.crash(mounter);
    // The kernel opens the root of a mount without asking, also of one whose server is gone.
    eventually("the mount is replaced", || {
        let said = stack.docker.tell(["logs", mounter]);
        said.text().matches("mounted on").count() == 2 && stack.shared.mounts() == ["store"]
    });
    assert_eq!(stack.docker.inspect(mounter, "{{.RestartCount}}"), "1");
    open.read_to_end(&mut Vec::new()).unwrap_err();
    compare::assert_same(&small, &stack.at(&small_path), Face::Mount);
    assert!(read_inside().succeeded().stdout == expected);

    // Of three servers of each kind, one of each ends.
    let scaled = ["--scale", "castore=3", "--scale", "store=3"];
    stack.tell(["up", "--detach", "--no-build", "--no-recreate"].into_iter().chain(scaled));
    for service in ["castore", "store"] {
        assert_eq!(stack.containers(service).len(), 3);
        stack.read_through_a_crash(service, "of-three");
    }

    // Each of them is measured, by a Prometheus that is Debian's here.
    stack.build_prometheus("prom/prometheus:v3.5.0");
    let metrics = ["--profile", "metrics", "up", "--detach", "--no-build", "--no-recreate"];
    stack.tell(metrics.into_iter().chain(scaled).chain(["prometheus"]));
    let prometheus = &stack.containers("prometheus")[0];
    let query = |query: &str| {
        let words = ["exec", prometheus, "promtool", "query", "instant"];
        let words = words.into_iter().chain(["http://127.0.0.1:9090", query]);
        run(stack.docker.command().args(words)).text().trim().to_owned()
    };
    eventually("eight processes are measured", || {
        query("count(up == 1)").contains("=> 8 ") && query("up == 0").is_empty()
    });

    // An update of the mounter: who has a file open reads it to its end.
    let mut open = File::open(stack.at(&small_path).join("large")).unwrap();
    let restart = Running::start(&mut stack.command(["restart", "--timeout", "40", "mounter"]));
    eventually("the mount leaves the host", || stack.shared.mounts().is_empty());
    let mut content = Vec::new();
    open.read_to_end(&mut content).unwrap();
    drop(open);
    assert!(content == expected);
    restart.finish().succeeded();
    stack.wait_for_the_mount();

    stack.docker.tell(["kill", &reader]);
    stack.down(&["--volumes"]);
}

#[test]
#[ignore = "starts containers, for some minutes"]
fn a_stack_on_files_has_them_when_it_is_started_again() {
    let stack = Stack::start(&["compose.yaml", "compose.file.yaml"]);
    stack.up();
    assert_eq!(stack.containers("garage"), [""; 0]);
    let tree = trees::small(stack.scene.folder(), "small");
    let imported = stack.import_inside(&tree);
    compare::assert_same(&tree, &stack.at(&imported), Face::Mount);
    stack.down(&[]);
    // What the mounter had near is gone as well, so that all of it comes from the servers.
    let project = Path::new(FOLDER).canonicalize().unwrap();
    stack.docker.tell(["volume", "rm", &format!("{}_cache", name_of(&project))]);
    stack.up();
    compare::assert_same(&tree, &stack.at(&imported), Face::Mount);
    stack.down(&["--volumes"]);
}

#[test]
#[ignore = "starts containers, for some minutes"]
fn the_walk_through_of_the_readme_is_as_it_says() {
    let stack = Stack::start(&["compose.yaml", "compose.file.yaml"]);
    stack.up();
    let readme = fs::read_to_string(README).unwrap();
    let (_, behind) = readme.split_once("<!-- the walk through the stack -->\n```sh\n").unwrap();
    let (walk, _) = behind.split_once("```").unwrap();
    // As it stands there, but for the places and the name that Debian's Compose has.
    let shared = stack.shared.path().to_str().unwrap();
    let address = stack.tell(["port", "gateway", "8000"]);
    let walk = walk
        .replace("docker compose", "docker-compose")
        .replace("/mnt/cairn", shared)
        .replace("127.0.0.1:8000", address.text().trim_end());
    stack.docker.tell(["tag", BASE, "debian:bookworm-20251229-slim"]);
    fs::rename(trees::small(stack.scene.folder(), "small"), stack.scene.path("my-tree")).unwrap();

    let mut bash = stack.program("bash");
    bash.args(["-eux", "-o", "pipefail", "-c", &walk]).current_dir(stack.scene.folder());
    // Ours, and Debian's client of Docker, before what else there is.
    let ours = cairn::binary().parent().unwrap().display();
    bash.env("PATH", format!("{ours}:/usr/bin:{}", env::var("PATH").unwrap()));
    let walked = Running::start(&mut bash).finish_within(LONG_PATIENCE).succeeded();
    assert!(walked.text().contains("/nix/store/"));
    assert_eq!(stack.shared.mounts(), [""; 0]);
}
