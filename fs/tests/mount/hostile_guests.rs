//! What a hostile guest, or one that is beside itself, can make of its rings and requests: nothing
//! that others notice.

use std::{
    thread,
    time::{Duration, Instant},
};

use cairn_fs::virtiofs::{Ended, VirtiofsError};
use fuse_backend_rs::{
    abi::fuse_abi::{ForgetIn, InHeader, Opcode},
    api::filesystem::ROOT_ID,
};
use proptest::prelude::*;
use rustix::io::Errno;
use vhost::VhostBackend as _;
use vm_memory::{ByteValued as _, Bytes as _, GuestAddress};

use crate::{
    fixture::*,
    machine::*,
    virtiofs::{Guest, HEADER, PATIENCE, errno},
};

#[test]
fn a_virtual_machine_that_sets_the_device_up_wrongly_is_refused() {
    type Wrong = fn(&mut Machine) -> Result<(), vhost::Error>;
    let wrongs: [(&str, Wrong); 7] = [
        ("a feature that was not offered", |machine| machine.frontend.set_features(1 << 40)),
        ("memory behind the end of its file", |machine| {
            let mut region = machine.region();
            region.memory_size += 4096;
            machine.frontend.set_mem_table(&[region])
        }),
        ("memory that overlaps", |machine| {
            machine.frontend.set_mem_table(&[machine.region(), machine.region()])
        }),
        ("a ring outside the memory", |machine| {
            let mut place = machine.place(1);
            place.used_ring_addr = 4096;
            machine.frontend.set_vring_addr(1, &place)
        }),
        ("a ring at an odd place", |machine| {
            let mut place = machine.place(1);
            place.desc_table_addr += 1;
            machine.frontend.set_vring_addr(1, &place)
        }),
        ("a ring of no size", |machine| machine.frontend.set_vring_num(1, 0)),
        ("a ring of an odd size", |machine| machine.frontend.set_vring_num(1, 63)),
    ];
    for (what, wrong) in wrongs {
        let mut guest = Guest::new();
        assert!(wrong(&mut guest.machine).is_err(), "{what} was accepted");
        let ended = guest.ended();
        assert!(matches!(ended, Err(VirtiofsError::Protocol(_))), "{what}: {ended:?}");
    }
}

/// A request as it is, with entries of the table from 0 on that may be anything.
fn wrong_chains(machine: &Machine) -> Vec<(&'static str, Vec<Part>)> {
    let request = machine.buffer(1, 0);
    let room = machine.buffer(1, 1);
    let part = |address, length, flags, next| Part { address, length, flags, next };
    // A proper one to find fault with.
    let header = InHeader {
        len: size_of::<InHeader>() as u32,
        opcode: Opcode::Statfs as u32,
        unique: 77,
        nodeid: ROOT_ID,
        ..InHeader::default()
    };
    machine.write(header, request);
    let length = header.len;
    let outside = MEMORY + (1 << 30);
    vec![
        ("nothing to read", vec![part(room, 4096, WRITE, 0)]),
        ("nothing to write", vec![part(request, length, 0, 0)]),
        ("nothing at all", vec![part(request, 0, 0, 0)]),
        ("half a header", vec![part(request, 20, NEXT, 1), part(room, 4096, WRITE, 0)]),
        (
            "too little room for a header",
            vec![part(request, length, NEXT, 1), part(room, HEADER - 1, WRITE, 0)],
        ),
        (
            "too little room for the answer",
            vec![part(request, length, NEXT, 1), part(room, HEADER + 3, WRITE, 0)],
        ),
        (
            "a request outside the memory",
            vec![part(outside, length, NEXT, 1), part(room, 4096, WRITE, 0)],
        ),
        (
            "a request over the end of the memory",
            vec![part(MEMORY - 8, length, NEXT, 1), part(room, 4096, WRITE, 0)],
        ),
        (
            "a request at the end of all addresses",
            vec![part(u64::MAX - 8, length, NEXT, 1), part(room, 4096, WRITE, 0)],
        ),
        (
            "room outside the memory",
            vec![part(request, length, NEXT, 1), part(outside, 4096, WRITE, 0)],
        ),
        (
            "room over the end of the memory",
            vec![part(request, length, NEXT, 1), part(MEMORY - 8, u32::MAX, WRITE, 0)],
        ),
        (
            "a chain that leads back to its start",
            vec![part(request, length, NEXT, 1), part(room, 4096, WRITE | NEXT, 0)],
        ),
        ("a chain that leads to itself", vec![part(request, length, NEXT, 0)]),
        ("a chain that leads out of the table", vec![part(request, length, NEXT, ENTRIES)]),
        (
            "more bytes than there can be",
            vec![
                part(0, u32::MAX, NEXT, 1),
                part(0, u32::MAX, NEXT, 2),
                part(room, 4096, WRITE, 0),
            ],
        ),
        (
            "room before the request",
            vec![part(room, 4096, WRITE | NEXT, 1), part(request, length, 0, 0)],
        ),
        ("an empty table elsewhere", vec![part(request, 0, INDIRECT, 0)]),
        ("half an entry elsewhere", vec![part(request, 24, INDIRECT, 0)]),
        ("a table elsewhere, outside the memory", vec![part(outside, 64, INDIRECT, 0)]),
        ("a table that is too long", vec![part(0, 16 * 65_536, INDIRECT, 0)]),
    ]
}

#[test]
fn chains_that_make_no_sense_harm_nobody() {
    let mut guest = Guest::new();
    let machine = &mut guest.machine;
    for (what, parts) in wrong_chains(machine) {
        for (entry, part) in (0..).zip(parts) {
            machine.describe(1, entry, part);
        }
        machine.offer(1, 0);
        machine.kick(1, 1);
        let answer = machine.next_answer(1, PATIENCE);
        let (head, length) = answer.unwrap_or_else(|| panic!("{what}: no answer"));
        assert_eq!(head, 0, "{what}");
        assert!(length <= 4096, "{what}: {length}");
        assert_eq!(machine.lookup(ROOT_ID, "none").unwrap().nodeid, 0, "after {what}");
    }
    assert_eq!(guest.ended().unwrap(), Ended::Disconnected);
}

#[test]
fn tables_elsewhere_are_followed_once() {
    let mut guest = Guest::new();
    let machine = &mut guest.machine;
    let head = machine.prepare(1, Opcode::Statfs as u32, ROOT_ID, &[], ROOM);
    assert_eq!(head, 0);
    let (request, table) = (machine.buffer(1, 0), machine.buffer(1, 5));
    let part = |address, length, flags, next| Part { address, length, flags, next };
    machine.describe_at(table, 0, part(request, size_of::<InHeader>() as u32, NEXT, 1));
    machine.describe_at(table, 1, part(request + (96 << 10), ROOM, WRITE, 0));
    machine.describe(1, 0, part(table, 32, INDIRECT, 0));
    machine.offer(1, 0);
    machine.kick(1, 1);
    let (_, length) = machine.next_answer(1, PATIENCE).unwrap();
    assert!(machine.answer_to(1, 0, length).is_ok());
    // A table that has itself as its first entry.
    machine.describe_at(table, 0, part(table, 32, INDIRECT, 0));
    machine.offer(1, 0);
    machine.kick(1, 1);
    assert_eq!(machine.next_answer(1, PATIENCE), Some((0, 0)));
    machine.find(&["root"]);
}

#[test]
fn requests_that_make_no_sense_are_refused() {
    let mut guest = Guest::new();
    let machine = &mut guest.machine;
    let root = machine.find(&["root"]);
    let file = machine.find(&["root", "file"]);
    let read = Opcode::Read as u32;
    let (lookup, list) = (Opcode::Lookup as u32, Opcode::Readdir as u32);
    let (big, far, few) = (reading(0, u32::MAX), reading(u64::MAX - 5, 4096), reading(0, 10));
    // The error that it has to be, or `None` for any.
    type Wrong<'a> = (&'a str, u32, u64, &'a [u8], Option<Errno>);
    let wrongs: [Wrong<'_>; 9] = [
        ("an operation that is none", 9999, ROOT_ID, &[1, 2, 3], Some(Errno::NOSYS)),
        ("a name without an end", lookup, root, b"file", None),
        ("no name", lookup, root, b"", None),
        ("a name of a file's entry", lookup, file, b"x\0", Some(Errno::NOTDIR)),
        ("half of what there has to be", read, file, &big[..20], Some(Errno::IO)),
        ("an inode that was never told of", read, 12_345, &few, Some(Errno::STALE)),
        ("bytes of a folder", read, root, &few, Some(Errno::ISDIR)),
        ("a listing of a file", list, file, &few, Some(Errno::NOTDIR)),
        ("a window", Opcode::SetupMapping as u32, file, &[0; 40], None),
    ];
    for (what, opcode, node, body, expected) in wrongs {
        let head = machine.send(1, opcode, node, body, ROOM);
        let (_, length) = machine.next_answer(1, PATIENCE).unwrap_or_else(|| panic!("{what}"));
        let answer = machine.answer_to(1, head, length);
        let error = answer.expect_err(what);
        assert!(expected.is_none_or(|expected| errno(expected) == error), "{what}: {error}");
    }
    let head = machine.send(1, read, file, &big, 4096);
    let (_, length) = machine.next_answer(1, PATIENCE).unwrap();
    machine.answer_to(1, head, length).expect_err("more than there is room for");
    // What has a meaning after all.
    assert_eq!(machine.lookup(root, "").err(), Some(errno(Errno::NOENT)));
    assert_eq!(machine.lookup(root, "no\0ne").unwrap().nodeid, 0);
    assert_eq!(machine.ask(1, Opcode::Read, file, &far), Ok(Vec::new()));
    // A request that says that it is longer, or shorter, than it is.
    for len in [0, 5, 41, 1 << 20, u32::MAX] {
        let head = machine.prepare(1, Opcode::Lookup as u32, root, b"file\0", ROOM);
        machine.write(len, machine.buffer(1, head));
        machine.offer(1, head);
        machine.kick(1, 1);
        let (_, length) = machine.next_answer(1, PATIENCE).unwrap();
        assert!(machine.answer_to(1, head, length).is_err(), "{len}");
    }
    // Lists of what to forget that end early, or are endless.
    for count in [3, 100_000, u32::MAX] {
        let body = [count.to_ne_bytes(), [0; 4]].concat();
        machine.send(0, Opcode::BatchForget as u32, 0, &body, 0);
        assert!(machine.next_answer(0, PATIENCE).is_some());
    }
    machine.find(&["root", "file"]);
}

#[test]
fn no_answer_is_larger_than_any_that_a_kernel_asks_for() {
    const SIZE: usize = 3 << 20;
    let store = Store::new();
    let root = store.directory([("large", store.file(bytes(SIZE)))]);
    let mut guest = Guest::with(store, root, Notices::Few);
    let machine = &mut guest.machine;
    let node = machine.find(&["root", "large"]);
    let head = machine.prepare(1, Opcode::Read as u32, node, &reading(0, u32::MAX), ROOM);
    // Much room, which is the same memory again and again.
    let (request, table) = (machine.buffer(1, head), machine.buffer(1, 20));
    let length = (size_of::<InHeader>() + reading(0, 0).len()) as u32;
    let part = |address, length, flags, next| Part { address, length, flags, next };
    machine.describe_at(table, 0, part(request, length, NEXT, 1));
    for entry in 1..1000 {
        let flags = if entry < 999 { WRITE | NEXT } else { WRITE };
        machine.describe_at(table, entry, part(request + (96 << 10), ROOM, flags, entry + 1));
    }
    machine.describe(1, head, part(table, 16_000, INDIRECT, 0));
    machine.offer(1, head);
    machine.kick(1, 1);
    assert_eq!(machine.next_answer(1, PATIENCE), Some((head, HEADER + (1 << 20))));
}

#[test]
fn a_ring_that_makes_no_sense_is_left_alone_until_it_is_started_again() {
    type Wrong = fn(&mut Machine);
    let wrongs: [(&str, Wrong); 2] = [
        ("more requests than it has entries", |machine| {
            machine.rings[1].skip(ENTRIES + 1);
            machine.offer(1, 0);
        }),
        ("a request that starts outside the table", |machine| machine.offer(1, ENTRIES)),
    ];
    for (what, wrong) in wrongs {
        let mut guest = Guest::new();
        let machine = &mut guest.machine;
        let answered = machine.stop_ring(1);
        machine.start_ring(1, answered);
        wrong(machine);
        machine.rings[1].kick_always();
        // The virtual machine is told.
        let trouble = machine.rings[1].trouble.try_clone().unwrap();
        let limit = Instant::now() + PATIENCE;
        while trouble.read().is_err() {
            assert!(Instant::now() < limit, "{what}: nobody was told");
            thread::sleep(Duration::from_millis(1));
        }
        machine.send(1, Opcode::Statfs as u32, ROOT_ID, &[], ROOM);
        machine.rings[1].kick_always();
        assert!(machine.next_answer(1, Duration::from_millis(50)).is_none(), "{what}");
        // Others go on.
        let head = machine.send(2, Opcode::Statfs as u32, ROOT_ID, &[], ROOM);
        let (answered, length) = machine.next_answer(2, PATIENCE).unwrap();
        assert_eq!(answered, head, "{what}");
        assert!(machine.answer_to(2, head, length).is_ok(), "{what}");
        // A driver that begins anew gets a new ring.
        machine.stop_ring(1);
        machine.renew_ring(1);
        machine.start_ring(1, 0);
        machine.init();
        machine.find(&["root", "file"]);
        assert_eq!(guest.ended().unwrap(), Ended::Disconnected, "{what}");
    }
}

#[test]
fn a_guest_holds_no_more_inodes_than_its_memory_has_room_for() {
    const SHARED: u64 = 2 << 20;
    let mut guest = Guest::new();
    let machine = &mut guest.machine;
    let mut region = machine.region();
    region.memory_size = SHARED;
    machine.frontend.set_mem_table(&[region]).unwrap();
    let outcome = (0..SHARED).find_map(|_| {
        let root = machine.lookup(ROOT_ID, "root").unwrap();
        let below = machine.lookup(root.nodeid, "folder");
        // No kernel would forget a folder that it knows something below of. It gets another number
        // the next time, and so does what is below.
        machine.send(0, Opcode::Forget as u32, root.nodeid, ForgetIn { nlookup: 1 }.as_slice(), 0);
        machine.next_answer(0, PATIENCE).unwrap();
        below.err()
    });
    assert_eq!(outcome, Some(errno(Errno::NOMEM)));
    assert!(guest.session.file_system().inode_count() as u64 <= SHARED / 512 + 1);
    // It can go on when it has begun again.
    machine.init();
    machine.find(&["root", "folder", "inner"]);
}

/// What a hostile guest may write anywhere.
fn word() -> impl Strategy<Value = u64> {
    prop_oneof![Just(0), Just(u64::MAX), 0..MEMORY, MEMORY - 64..MEMORY + 64, any::<u64>(),]
}

fn part() -> impl Strategy<Value = Part> {
    let length = prop_oneof![0..200_u32, 4000..9000_u32, any::<u32>()];
    let flags = prop_oneof![0..8_u16, any::<u16>()];
    let next = prop_oneof![0..ENTRIES, any::<u16>()];
    (word(), length, flags, next).prop_map(|(address, length, flags, next)| Part {
        address,
        length,
        flags,
        next,
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn whatever_a_guest_writes_others_go_on(
        parts in proptest::collection::vec(part(), 1..16),
        opcodes in proptest::collection::vec((0..60_u32, 0..200_u32, word()), 1..16),
        bodies in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..300), 16),
        heads in proptest::collection::vec(prop_oneof![0..16_u16, any::<u16>()], 1..8),
        jump in prop_oneof![Just(0_u16), 0..ENTRIES, any::<u16>()],
    ) {
        let mut guest = Guest::new();
        let machine = &mut guest.machine;
        let node = machine.find(&["root", "file"]);
        // Requests that look like some, with anything in them.
        for (at, (opcode, len, id)) in (0..).zip(opcodes) {
            let header = InHeader {
                len, opcode, unique: 1, nodeid: id % (node + 2), ..InHeader::default()
            };
            let place = machine.buffer(1, at);
            machine.write(header, place);
            let behind = GuestAddress(place + size_of::<InHeader>() as u64);
            machine.memory.write_slice(&bodies[usize::from(at)], behind).unwrap();
        }
        for (entry, mut part) in (0..).zip(parts) {
            if entry % 2 == 0 {
                part.address = machine.buffer(1, entry);
            }
            machine.describe(1, entry, part);
        }
        for head in heads {
            machine.offer(1, head);
        }
        machine.rings[1].skip(jump);
        machine.rings[1].kick_always();
        let head = machine.send(2, Opcode::Statfs as u32, ROOT_ID, &[], ROOM);
        let (answered, length) = machine.next_answer(2, PATIENCE).expect("no answer");
        prop_assert_eq!(answered, head);
        prop_assert!(machine.answer_to(2, head, length).is_ok());
        machine.stop_ring(1);
        prop_assert_eq!(guest.ended().unwrap(), Ended::Disconnected);
    }
}
