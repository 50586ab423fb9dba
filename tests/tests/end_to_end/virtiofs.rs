//! A store that a virtual machine is shown: what its guest sees, and how the server begins and
//! ends. What is said on the socket, and what a hostile guest may do, is tested in the crate `fs`.

use std::{
    fs,
    io::{Read as _, Write as _},
    os::unix::net::{UnixListener, UnixStream},
    path::Path,
    process::Command,
};

use cairn_tests::{
    cairn::{Cairn, Scene},
    model::plant,
    process::{PATIENCE, Running, eventually, run},
    trees,
    virtual_machine::Guest,
};
use rustix::process::Signal;

/// The first message of a virtual machine: that it is the owner of the device.
const OWNER: [u8; 12] = [3, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0];

/// Starts to serve on a socket; the store paths that were imported.
fn serve(cairn: &Cairn, socket: &Path, arguments: &[&str]) -> (Running, Vec<String>) {
    let mut command = cairn.command(["virtiofs"]);
    let mut server = Running::start(command.args(arguments).arg(socket));
    let (told, imported) = server.wait_for("listening on ");
    assert_eq!(told, socket.to_str().unwrap());
    (server, imported)
}

#[test]
#[ignore = "boots a kernel without hardware's help: part of tests/run"]
fn a_guest_sees_the_tree_that_was_imported() {
    const SEED: &str = "virtiofs";
    let scene = Scene::new();
    let tree = scene.path("tree");
    plant(&tree, SEED, 150);
    trees::executable(&tree.join("run"), "#!/bin/sh\necho it runs\n");
    let wide = tree.join("wide");
    fs::create_dir(&wide).unwrap();
    for index in 0..3000 {
        fs::write(wide.join(format!("entry-{index}")), index.to_string()).unwrap();
    }
    // By the same programs here and there.
    let digests = "busybox find . -type f -print0 | busybox sort -z | \
                   busybox xargs -0 busybox sha256sum | busybox sha256sum";
    let expected = run(Command::new("sh").args(["-c", digests]).current_dir(&tree)).succeeded();
    let expected = expected.text().trim_end();

    let guest = Guest::new(&scene.path("guest"));
    guest.add_program(Path::new(env!("CARGO_BIN_EXE_guest")), "guest");
    let socket = scene.path("socket");
    let arguments = ["--import", tree.to_str().unwrap()];
    let (server, imported) = serve(&scene.cairn(), &socket, &arguments);
    let found = format!("/mnt/{}", trees::base_name(&imported[0]));
    let script = format!(
        "set -e
        guest /tree {found} {SEED} 150
        echo 3 > /proc/sys/vm/drop_caches
        cd {found}
        ./run
        ls wide | wc -l
        {digests}
        mkdir /tmp/copy
        tar -cf - . | tar -xf - -C /tmp/copy
        (cd /tmp/copy && {digests})
        touch new || echo read-only
        cd /
        umount /mnt
        mount -t virtiofs -o ro cairn /mnt
        guest /tree {found} again 50"
    );
    let console = guest.run(&tree, &socket, &script);
    for (line, times) in [
        // By two threads, before and after the guest has mounted it anew.
        (&*format!("same: {} nodes", nodes(&tree)), 4),
        ("agreed: 150 operations", 2),
        ("it runs", 1),
        ("3000", 1),
        // Read by one program, and by another.
        (expected, 2),
        ("read-only", 1),
        ("agreed: 50 operations", 2),
        ("exit code 0", 1),
    ] {
        let found = console.lines().filter(|found| found.starts_with(line)).count();
        assert_eq!(found, times, "{line:?}:\n{console}");
    }
    server.finish().succeeded();
    assert!(!socket.exists());
}

/// How many nodes a tree has, the top included.
fn nodes(tree: &Path) -> usize {
    let mut nodes = 0;
    cairn_tests::measure::walk(tree, &mut |_, _| nodes += 1);
    nodes
}

#[test]
fn a_signal_removes_the_socket() {
    let scene = Scene::new();
    let socket = scene.path("socket");
    for signal in [Signal::TERM, Signal::INT] {
        let (server, _) = serve(&scene.cairn(), &socket, &[]);
        server.signal(signal);
        server.finish().succeeded();
        assert!(!socket.exists());
    }
    // The same while a virtual machine is connected.
    let (server, _) = serve(&scene.cairn(), &socket, &[]);
    let mut machine = UnixStream::connect(&socket).unwrap();
    machine.write_all(&OWNER).unwrap();
    server.signal(Signal::TERM);
    server.finish().succeeded();
    assert!(!socket.exists());
    assert_eq!(machine.read(&mut [0]).unwrap_or(0), 0, "the connection is open");
}

#[test]
fn a_server_ends_with_its_virtual_machine() {
    let scene = Scene::new();
    let socket = scene.path("socket");
    let (mut server, _) = serve(&scene.cairn(), &socket, &[]);
    // One who only looks whether there is an answer, as a second server does, is none.
    drop(UnixStream::connect(&socket).unwrap());
    let second = run(scene.cairn().command(["virtiofs"]).arg(&socket));
    second.failed(1, &[socket.to_str().unwrap(), "in use", "help: end the process"]);
    assert!(!server.has_ended());

    let mut machine = UnixStream::connect(&socket).unwrap();
    machine.write_all(&OWNER).unwrap();
    // A second one is refused, and the first goes on.
    machine.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut other = UnixStream::connect(&socket).unwrap();
    other.set_read_timeout(Some(PATIENCE)).unwrap();
    assert_eq!(other.read(&mut [0]).unwrap(), 0);
    // GET_FEATURES, which is answered.
    machine.write_all(&[1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0]).unwrap();
    machine.read_exact(&mut [0; 20]).unwrap();
    drop(machine);
    server.finish().succeeded();
    assert!(!socket.exists());
}

#[test]
fn what_is_said_by_no_virtual_machine_is_told() {
    let scene = Scene::new();
    let socket = scene.path("socket");
    let (server, _) = serve(&scene.cairn(), &socket, &[]);
    let mut stranger = UnixStream::connect(&socket).unwrap();
    stranger.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
    server.finish().failed(1, &["virtual machine", "invalid message"]);
    assert!(!socket.exists());
}

#[test]
fn the_socket_of_a_server_that_was_killed_is_replaced() {
    let scene = Scene::new();
    let socket = scene.path("socket");
    let (server, _) = serve(&scene.cairn(), &socket, &[]);
    server.kill();
    assert!(socket.exists());
    let (server, _) = serve(&scene.cairn(), &socket, &[]);
    server.signal(Signal::TERM);
    server.finish().succeeded();
    assert!(!socket.exists());
}

#[test]
fn a_path_that_can_be_no_socket_is_told_before_anything_is_imported() {
    let scene = Scene::new();
    let cairn = scene.cairn();
    let tree = trees::small(scene.folder(), "tree");
    let tree = tree.to_str().unwrap();
    let serve = |socket: &Path| {
        let mut command = cairn.command(["virtiofs", "--import", tree]);
        run(command.arg(socket))
    };
    let none = scene.path("none/socket");
    serve(&none).failed(1, &[none.to_str().unwrap(), "help: create the directory first: mkdir -p"]);
    let file = scene.path("file");
    fs::write(&file, "precious").unwrap();
    serve(&file).failed(1, &[file.to_str().unwrap(), "no socket", "help: choose another path"]);
    assert_eq!(fs::read(&file).unwrap(), b"precious");
    let folder = scene.new_folder("folder");
    serve(&folder).failed(1, &[folder.to_str().unwrap(), "no socket"]);
    let long = scene.path(&"n".repeat(120));
    serve(&long).failed(1, &["help: the path of a socket has at most 107 bytes"]);
    let used = scene.path("used");
    let _listener = UnixListener::bind(&used).unwrap();
    serve(&used).failed(1, &[used.to_str().unwrap(), "in use by another process"]);
    assert!(used.exists());
    assert_eq!(cairn.list(), [""; 0]);
    run(cairn.command(["virtiofs", "--queues", "0"]).arg(&used)).failed(2, &["--queues", "1..=64"]);
}

#[test]
fn an_import_that_fails_leaves_no_socket() {
    let scene = Scene::new();
    let socket = scene.path("socket");
    let mut command = scene.cairn().command(["virtiofs", "--import", "/nowhere/at/all"]);
    run(command.arg(&socket)).failed(1, &["/nowhere/at/all"]);
    eventually("removing the socket", || !socket.exists());
}
