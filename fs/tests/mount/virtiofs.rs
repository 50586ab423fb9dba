//! What a virtual machine gets for its requests: any number at a time, and while the store does not
//! answer; and how it comes and goes.

use std::{
    io::Write as _,
    thread,
    time::{Duration, Instant},
};

use cairn_castore::Node;
use cairn_fs::{
    file_system::FileSystemOptions,
    virtiofs::{Ended, Session, VirtiofsError},
};
use fuse_backend_rs::{
    abi::fuse_abi::{Dirent, EntryOut, ForgetIn, Opcode},
    api::filesystem::{FsOptions, ROOT_ID},
};
use rustix::io::Errno;
use vm_memory::ByteValued as _;

use crate::{
    fixture::*,
    machine::*,
    slow_store::{NEVER, Remote},
};

/// How long the test waits for what has to come.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// What the header of an answer has, in bytes.
pub(crate) const HEADER: u32 = 16;

/// A store with a tree as `root`, and a virtual machine that sees it.
pub(crate) struct Guest {
    pub(crate) machine: Machine,
    pub(crate) session: Session,
    store: Store,
}

impl Guest {
    pub(crate) fn with(store: Store, root: Node, notices: Notices) -> Self {
        let services = store.services(&Names::new([("root", root)]));
        let (session, connection) = session(&store, services);
        let mut machine = Machine::start(connection, 3, notices);
        machine.init();
        Self { machine, session, store }
    }

    pub(crate) fn new() -> Self {
        let store = Store::new();
        let inner = store.directory([("inner", store.file("inside"))]);
        let root = store.directory([
            ("file", store.file(bytes(70_000))),
            ("folder", inner),
            ("link", symlink("folder/inner")),
            ("run", store.executable("#!")),
        ]);
        Self::with(store, root, Notices::Few)
    }

    /// How the session ended, when the connection is gone.
    pub(crate) fn ended(mut self) -> Result<Ended, VirtiofsError> {
        drop(self.machine);
        self.store.runtime.block_on(self.session.ended())
    }
}

pub(crate) fn errno(error: Errno) -> i32 {
    error.raw_os_error()
}

/// The names of a listing with attributes.
fn names_of(mut listing: &[u8]) -> Vec<String> {
    let mut names = Vec::new();
    while !listing.is_empty() {
        let mut entry = Dirent::default();
        let fixed = size_of::<EntryOut>() + size_of::<Dirent>();
        entry.as_mut_slice().copy_from_slice(&listing[size_of::<EntryOut>()..fixed]);
        let name = &listing[fixed..][..entry.namelen as usize];
        names.push(String::from_utf8(name.to_vec()).unwrap());
        listing = &listing[(fixed + name.len()).next_multiple_of(8)..];
    }
    names
}

#[test]
fn a_guest_sees_the_tree() {
    let mut guest = Guest::new();
    let machine = &mut guest.machine;
    let flags = FsOptions::from_bits_truncate(machine.init().flags.into());
    assert!(flags.contains(FsOptions::ZERO_MESSAGE_OPEN | FsOptions::ZERO_MESSAGE_OPENDIR));

    let root = machine.find(&["root"]);
    let file = machine.lookup(root, "file").unwrap();
    assert_eq!((file.attr.size, file.attr.mode), (70_000, libc::S_IFREG | 0o444));
    assert_eq!(machine.lookup(root, "run").unwrap().attr.mode, libc::S_IFREG | 0o555);
    assert_eq!(machine.lookup(root, "none").unwrap().nodeid, 0);
    assert_eq!(machine.lookup(file.nodeid, "x").err(), Some(errno(Errno::NOTDIR)));
    let read = |offset, size| reading(offset, size);
    let all = machine.ask(1, Opcode::Read, file.nodeid, &read(0, 70_000)).unwrap();
    assert!(all == bytes(70_000));
    let part = machine.ask(2, Opcode::Read, file.nodeid, &read(69_990, 4096)).unwrap();
    assert!(part == bytes(70_000)[69_990..]);
    let link = machine.find(&["root", "link"]);
    assert_eq!(machine.ask(3, Opcode::Readlink, link, &[]).unwrap(), b"folder/inner");
    let listing = machine.ask(1, Opcode::Readdirplus, root, &read(0, 4096)).unwrap();
    assert_eq!(names_of(&listing), [".", "..", "file", "folder", "link", "run"]);
    let listing = machine.ask(1, Opcode::Readdirplus, ROOT_ID, &read(0, 4096)).unwrap();
    assert_eq!(names_of(&listing), [".", "..", "root"]);

    let open = [libc::O_RDONLY.to_ne_bytes(), [0; 4]].concat();
    let opened = machine.ask(1, Opcode::Open, file.nodeid, &open);
    assert_eq!(opened, Err(errno(Errno::NOSYS)));
    let made = machine.ask(1, Opcode::Unlink, root, b"file\0");
    assert_eq!(made, Err(errno(Errno::ROFS)));
    assert_eq!(guest.ended().unwrap(), Ended::Disconnected);
}

#[test]
fn what_a_guest_held_is_forgotten_when_it_says_so_and_when_it_begins_again() {
    let mut guest = Guest::new();
    let machine = &mut guest.machine;
    let root = machine.find(&["root"]);
    machine.find(&["root", "folder", "inner"]);
    assert_eq!(guest.session.file_system().inode_count(), 4);
    // On the ring for it, and without room for an answer.
    let all = ForgetIn { nlookup: 2 };
    machine.send(0, Opcode::Forget as u32, root, all.as_slice(), 0);
    let (_, length) = machine.next_answer(0, PATIENCE).unwrap();
    assert_eq!((length, guest.session.file_system().inode_count()), (0, 3));
    machine.init();
    assert_eq!(guest.session.file_system().inode_count(), 1);
    machine.find(&["root"]);
    assert_eq!(machine.ask(1, Opcode::Destroy, 0, &[]), Ok(Vec::new()));
    assert_eq!(guest.session.file_system().inode_count(), 1);
}

#[test]
fn any_number_of_requests_at_a_time_is_answered() {
    const FILES: u64 = 40;
    for notices in [Notices::Few, Notices::All] {
        let store = Store::new();
        let contents = |index: u64| format!("{index} ").repeat(index as usize * 50);
        let files = (0..FILES).map(|index| (format!("{index}"), store.file(contents(index))));
        let root = store.directory(files.collect::<Vec<_>>());
        let mut guest = Guest::with(store, root, notices);
        let machine = &mut guest.machine;
        let nodes: Vec<_> =
            (0..FILES).map(|index| machine.find(&["root", &index.to_string()])).collect();
        let before = guest.session.request_count();
        let mut sent = 0;
        for round in 0..2000_u64 {
            // Bursts of all sizes, now and then told of together.
            let ring = 1 + (round % 3) as usize;
            let count = 1 + round * 7 % 31;
            let mut heads = Vec::new();
            for index in 0..count {
                let file = (round + index) % FILES;
                let node = nodes[file as usize];
                let (body, read) = (reading(0, ROOM - HEADER), Opcode::Read as u32);
                let head = machine.prepare(ring, read, node, &body, ROOM);
                machine.offer(ring, head);
                if round % 2 == 0 {
                    machine.kick(ring, 1);
                }
                heads.push((head, file));
            }
            if round % 2 == 1 {
                machine.kick(ring, count as u16);
            }
            sent += count;
            for _ in 0..count {
                let (head, length) = machine.next_answer(ring, PATIENCE).expect("no answer");
                let at = heads.iter().position(|(sent, _)| *sent == head).unwrap();
                let (_, file) = heads.swap_remove(at);
                let answer = machine.answer_to(ring, head, length).unwrap();
                assert!(answer == contents(file).as_bytes(), "{file}");
            }
        }
        assert_eq!(guest.session.request_count() - before, sent);
    }
}

/// A store with files that never come, as `stuck0` and so on, and one that does, as `fine`.
fn with_stuck(count: usize, deadline: Duration, threads: usize) -> (Guest, Remote) {
    let store = Store::new();
    let stuck: Vec<_> = (0..count).map(|i| store.file(format!("stuck {i}"))).collect();
    let remote = Remote::new(&store, stuck.iter().map(digest_of));
    let mut entries: Vec<_> =
        stuck.into_iter().enumerate().map(|(i, node)| (format!("stuck{i}"), node)).collect();
    entries.push(("fine".to_owned(), store.file("fine")));
    let root = store.directory(entries);
    let options = FileSystemOptions { deadline, ..FileSystemOptions::default() };
    let (session, connection) = session_with(&store, remote.services(root), options, threads);
    let mut machine = Machine::start(connection, 3, Notices::Few);
    machine.init();
    (Guest { machine, session, store }, remote)
}

#[test]
fn a_stuck_request_blocks_nobody_else_and_ends_as_an_error() {
    // With a thread that has to be started for the next request, and with some that wait for it.
    for threads in [1, 4] {
        stuck_requests(threads);
    }
}

fn stuck_requests(threads: usize) {
    const STUCK: usize = 10;
    let (mut guest, remote) = with_stuck(STUCK, Duration::from_secs(2), threads);
    let machine = &mut guest.machine;
    let fine = machine.find(&["root", "fine"]);
    let nodes: Vec<_> = (0..STUCK).map(|i| machine.find(&["root", &format!("stuck{i}")])).collect();
    // All on one ring, and told of once.
    let heads = nodes.iter().map(|node| {
        let head = machine.prepare(1, Opcode::Read as u32, *node, &reading(0, 4096), ROOM);
        machine.offer(1, head);
        head
    });
    let heads: Vec<_> = heads.collect();
    machine.kick(1, STUCK as u16);
    remote.wait_for_stuck(&guest.store, STUCK);
    assert_eq!(machine.ask(1, Opcode::Read, fine, &reading(0, 4096)).unwrap(), b"fine");
    for _ in 0..STUCK {
        let (head, length) = machine.next_answer(1, PATIENCE).unwrap();
        assert!(heads.contains(&head));
        assert_eq!(machine.answer_to(1, head, length), Err(errno(Errno::IO)));
    }
    // Those that were started for the stuck ones go to rest, a moment after they have answered.
    let limit = Instant::now() + PATIENCE;
    while guest.session.thread_count() > threads + 2 && Instant::now() < limit {
        thread::sleep(Duration::from_millis(1));
    }
    assert!(guest.session.thread_count() <= threads + 2);
}

#[test]
fn a_session_ends_though_its_requests_are_stuck() {
    let (mut guest, remote) = with_stuck(1, NEVER, 1);
    let node = guest.machine.find(&["root", "stuck0"]);
    let head = guest.machine.send(1, Opcode::Read as u32, node, &reading(0, 4096), ROOM);
    remote.wait_for_stuck(&guest.store, 1);
    drop(guest.session);
    let (_, length) = guest.machine.next_answer(1, Duration::ZERO).unwrap();
    assert_eq!(guest.machine.answer_to(1, head, length), Err(errno(Errno::IO)));
}

#[test]
fn a_ring_stops_when_its_requests_are_answered_and_goes_on_with_the_next() {
    let (mut guest, remote) = with_stuck(1, Duration::from_secs(2), 1);
    let machine = &mut guest.machine;
    let fine = machine.find(&["root", "fine"]);
    let node = machine.find(&["root", "stuck0"]);
    let head = machine.send(2, Opcode::Read as u32, node, &reading(0, 4096), ROOM);
    remote.wait_for_stuck(&guest.store, 1);
    let next = machine.stop_ring(2);
    assert_eq!(next, 1);
    let (answered, length) = machine.next_answer(2, Duration::ZERO).expect("it was taken back");
    assert_eq!((answered, machine.answer_to(2, head, length)), (head, Err(errno(Errno::IO))));
    // What comes meanwhile waits.
    let head = machine.send(2, Opcode::Read as u32, fine, &reading(0, 4096), ROOM);
    assert!(machine.next_answer(2, Duration::from_millis(50)).is_none());
    machine.start_ring(2, next);
    let (answered, length) = machine.next_answer(2, PATIENCE).unwrap();
    assert_eq!(answered, head);
    assert_eq!(machine.answer_to(2, head, length).unwrap(), b"fine");
}

#[test]
fn a_ring_that_is_not_enabled_waits() {
    use vhost::vhost_user::VhostUserFrontend as _;

    let mut guest = Guest::new();
    let machine = &mut guest.machine;
    machine.frontend.set_vring_enable(1, false).unwrap();
    machine.send(1, Opcode::Statfs as u32, ROOT_ID, &[], ROOM);
    assert!(machine.next_answer(1, Duration::from_millis(50)).is_none());
    machine.frontend.set_vring_enable(1, true).unwrap();
    assert!(machine.next_answer(1, PATIENCE).is_some());
}

#[test]
fn files_of_a_slow_store_come_together() {
    const FILES: usize = 20;
    let store = Store::new();
    let contents = |index: usize| format!("content {index}");
    let files = (0..FILES).map(|index| (format!("f{index:02}"), store.file(contents(index))));
    let root = store.directory(files.collect::<Vec<_>>());
    let remote = Remote::new(&store, []);
    let services = remote.services(root);
    let (session, connection) = session(&store, services);
    let mut machine = Machine::start(connection, 3, Notices::Few);
    machine.init();
    let nodes: Vec<_> =
        (0..FILES).map(|index| machine.find(&["root", &format!("f{index:02}")])).collect();
    for (index, node) in nodes.into_iter().enumerate() {
        let read = machine.ask(1, Opcode::Read, node, &reading(0, 4096)).unwrap();
        assert_eq!(read, contents(index).as_bytes());
    }
    // The first read does not know yet that the store is slow.
    let batches = remote.batches.lock().clone();
    assert!(batches.len() <= 4, "{batches:?}");
    assert!(remote.reads.lock().values().all(|count| *count == 1));
    drop(session);
}

#[test]
fn nothing_is_read_ahead_that_is_at_hand_and_can_not_be_given() {
    const FILES: usize = 20;
    let store = Store::new();
    let names: Vec<_> = (0..FILES).map(|index| format!("f{index:02}")).collect();
    let root = store.directory(names.iter().map(|name| (name, store.file(name.clone()))));
    let remote = Remote::new(&store, []).at_hand();
    let (session, connection) = session(&store, remote.services(root));
    let mut machine = Machine::start(connection, 3, Notices::Few);
    machine.init();
    let nodes: Vec<_> = names.iter().map(|name| machine.find(&["root", name])).collect();
    for node in nodes {
        machine.ask(1, Opcode::Read, node, &reading(0, 4096)).unwrap();
        // What reads ahead gets its chance.
        thread::sleep(Duration::from_millis(5));
    }
    drop(session);
    assert_eq!(remote.local_reads(), FILES);
}

#[test]
fn a_connection_without_a_word_is_told_from_a_virtual_machine() {
    let store = Store::new();
    let services = store.services(&Names::default());
    let (mut session, connection) = session(&store, services);
    drop(connection);
    assert_eq!(store.runtime.block_on(session.ended()).unwrap(), Ended::Unused);
}

#[test]
fn a_connection_that_says_something_else_is_an_error() {
    let store = Store::new();
    let services = store.services(&Names::default());
    let (mut session, mut connection) = session(&store, services);
    connection.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
    let ended = store.runtime.block_on(session.ended());
    assert!(matches!(ended, Err(VirtiofsError::Protocol(_))), "{ended:?}");
}
