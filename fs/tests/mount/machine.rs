//! A virtual machine without a kernel: the guest's memory, its rings, and what is said on the
//! socket. Requests can be as a guest makes them, or anything else.

use std::{
    fs::File,
    os::{fd::AsRawFd as _, unix::net::UnixStream},
    sync::atomic::{Ordering, fence},
    time::{Duration, Instant},
};

use cairn_fs::{
    file_system::{CairnFs, FileSystemOptions, Services},
    virtiofs::{Session, VirtiofsOptions, serve},
};
use fuse_backend_rs::abi::fuse_abi::{
    EntryOut, InHeader, InitIn2, InitOut, Opcode, OutHeader, ReadIn,
};
use rustix::fs::MemfdFlags;
use vhost::{
    VhostBackend as _, VhostUserMemoryRegionInfo, VringConfigData,
    vhost_user::{
        Frontend, VhostUserFrontend as _, VhostUserProtocolFeatures, message::VhostUserHeaderFlag,
    },
};
use vm_memory::{ByteValued, Bytes as _, FileOffset, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::{
    epoll::{ControlOperation, Epoll, EpollEvent, EventSet},
    eventfd::{EFD_NONBLOCK, EventFd},
};

use crate::fixture::*;

/// The bytes of the guest's memory.
pub(crate) const MEMORY: u64 = 64 << 20;

/// The entries of each ring.
pub(crate) const ENTRIES: u16 = 64;

/// Where the guest's memory is in the virtual machine's process, as it says.
const ADDRESS: u64 = 0x7000_0000_0000;

/// How far the rings lie apart.
const RING_BYTES: u64 = 0x1_0000;

/// From where on in the memory there are requests and answers.
const BUFFERS: u64 = 1 << 20;

/// The room for each of a ring's requests with its answer.
const BUFFER_BYTES: u64 = 256 << 10;

/// How far the answer is behind the request.
const ANSWER: u64 = 96 << 10;

/// How long anything may take.
const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) const NEXT: u16 = 1;
pub(crate) const WRITE: u16 = 2;
pub(crate) const INDIRECT: u16 = 4;

/// What the device and the guest agree upon.
pub(crate) const EVENT_IDX: u64 = 1 << 29;
const VERSION_1: u64 = 1 << 32;
const PROTOCOL_FEATURES: u64 = 1 << 30;

/// The guest holds back notifications, as Linux does, or gets and sends them all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Notices {
    Few,
    All,
}

/// A part of a request or of the room for its answer.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Part {
    pub(crate) address: u64,
    pub(crate) length: u32,
    pub(crate) flags: u16,
    pub(crate) next: u16,
}

pub(crate) struct Machine {
    pub(crate) memory: GuestMemoryMmap,
    file: File,
    pub(crate) frontend: Frontend,
    pub(crate) rings: Vec<Ring>,
    notices: Notices,
    unique: u64,
}

/// The guest's side of a ring.
pub(crate) struct Ring {
    kick: EventFd,
    call: EventFd,
    called: Epoll,
    pub(crate) trouble: EventFd,
    place: u64,
    /// The number of the next request.
    next: u16,
    /// The number of the next answer.
    answered: u16,
    /// Which entries of the table lead to requests that are not answered.
    busy: Vec<bool>,
}

/// What became of a request: the bytes of its answer behind the header, or the error number.
pub(crate) type Answer = Result<Vec<u8>, i32>;

/// A session with services, and the other end of its connection.
pub(crate) fn session(store: &Store, services: Services) -> (Session, UnixStream) {
    // One thread at rest, so that what blocks one is seen to block.
    session_with(store, services, FileSystemOptions::default(), 1)
}

/// The same with so many threads at rest.
pub(crate) fn session_with(
    store: &Store,
    services: Services,
    options: FileSystemOptions,
    threads: usize,
) -> (Session, UnixStream) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let fs = CairnFs::new(services, options, store.runtime.handle().clone());
    let options = VirtiofsOptions { queues: 3, threads, ..VirtiofsOptions::default() };
    (serve(fs, theirs, &options).unwrap(), ours)
}

impl Machine {
    /// Connects, and starts all rings: the one for what is urgent, and so many for requests.
    pub(crate) fn start(connection: UnixStream, queues: usize, notices: Notices) -> Self {
        let file = File::from(rustix::fs::memfd_create("guest", MemfdFlags::CLOEXEC).unwrap());
        file.set_len(MEMORY).unwrap();
        let at = FileOffset::new(file.try_clone().unwrap(), 0);
        let range = (GuestAddress(0), MEMORY as usize, Some(at));
        let memory = GuestMemoryMmap::from_ranges_with_files([range]).unwrap();
        let frontend = Frontend::from_stream(connection, 1);
        let rings = (0..=queues as u64).map(|index| Ring::at(index * RING_BYTES)).collect();
        let mut machine = Self { memory, file, frontend, rings, notices, unique: 0 };
        machine.agree();
        machine.share_memory();
        for index in 0..machine.rings.len() {
            machine.start_ring(index, 0);
        }
        machine
    }

    fn agree(&mut self) {
        self.frontend.set_owner().unwrap();
        let offered = self.frontend.get_features().unwrap();
        assert_ne!(offered & EVENT_IDX, 0);
        let event_idx = if self.notices == Notices::Few { EVENT_IDX } else { 0 };
        self.frontend.set_features(VERSION_1 | PROTOCOL_FEATURES | event_idx).unwrap();
        self.frontend.get_protocol_features().unwrap();
        let wanted = VhostUserProtocolFeatures::MQ | VhostUserProtocolFeatures::REPLY_ACK;
        self.frontend.set_protocol_features(wanted).unwrap();
        // What fails is told from here on.
        self.frontend.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
        assert_eq!(self.frontend.get_queue_num().unwrap(), 4);
    }

    /// What the device is told of the memory.
    pub(crate) fn region(&self) -> VhostUserMemoryRegionInfo {
        VhostUserMemoryRegionInfo {
            guest_phys_addr: 0,
            memory_size: MEMORY,
            userspace_addr: ADDRESS,
            mmap_offset: 0,
            mmap_handle: self.file.as_raw_fd(),
        }
    }

    fn share_memory(&mut self) {
        self.frontend.set_mem_table(&[self.region()]).unwrap();
    }

    /// Where a ring is, as the device is told.
    pub(crate) fn place(&self, index: usize) -> VringConfigData {
        let place = ADDRESS + self.rings[index].place;
        VringConfigData {
            queue_max_size: ENTRIES,
            queue_size: ENTRIES,
            flags: 0,
            desc_table_addr: place,
            avail_ring_addr: place + AVAILABLE,
            used_ring_addr: place + USED,
            log_addr: None,
        }
    }

    /// Starts a ring with the request of this number.
    pub(crate) fn start_ring(&mut self, index: usize, next: u16) {
        let place = self.place(index);
        self.frontend.set_vring_num(index, ENTRIES).unwrap();
        self.frontend.set_vring_base(index, next).unwrap();
        self.frontend.set_vring_addr(index, &place).unwrap();
        let ring = &self.rings[index];
        self.frontend.set_vring_call(index, &ring.call).unwrap();
        self.frontend.set_vring_err(index, &ring.trouble).unwrap();
        self.frontend.set_vring_kick(index, &ring.kick).unwrap();
        self.frontend.set_vring_enable(index, true).unwrap();
    }

    /// Makes a ring that is stopped one in which nothing has ever been.
    pub(crate) fn renew_ring(&mut self, index: usize) {
        let Ring { place, .. } = self.rings[index];
        self.rings[index] = Ring::at(place - RING_BYTES);
        self.memory.write_slice(&[0; RING_BYTES as usize], GuestAddress(place)).unwrap();
    }

    /// Stops a ring as a virtual machine does that is paused; the number of its next request.
    pub(crate) fn stop_ring(&mut self, index: usize) -> u16 {
        u16::try_from(self.frontend.get_vring_base(index).unwrap()).unwrap()
    }

    pub(crate) fn write<T: ByteValued>(&self, value: T, address: u64) {
        self.memory.write_obj(value, GuestAddress(address)).unwrap();
    }

    pub(crate) fn read<T: ByteValued>(&self, address: u64) -> T {
        self.memory.read_obj(GuestAddress(address)).unwrap()
    }

    /// Writes an entry into a ring's table.
    pub(crate) fn describe(&self, ring: usize, entry: u16, part: Part) {
        self.describe_at(self.rings[ring].place, entry, part);
    }

    /// Writes an entry into any table.
    pub(crate) fn describe_at(&self, table: u64, entry: u16, part: Part) {
        let place = table + 16 * u64::from(entry);
        self.write(part.address, place);
        self.write(part.length, place + 8);
        self.write(part.flags, place + 12);
        self.write(part.next, place + 14);
    }

    /// Makes the request that starts with an entry of the table available, without telling of it.
    pub(crate) fn offer(&mut self, ring: usize, head: u16) {
        let Ring { place, next, .. } = self.rings[ring];
        self.write(head, place + AVAILABLE + 4 + 2 * u64::from(next % ENTRIES));
        fence(Ordering::SeqCst);
        self.write(next.wrapping_add(1), place + AVAILABLE + 2);
        self.rings[ring].next = next.wrapping_add(1);
        fence(Ordering::SeqCst);
    }

    /// Tells of requests, if the device wants to be told of the last `count` of them.
    pub(crate) fn kick(&self, ring: usize, count: u16) {
        let Ring { place, next, .. } = self.rings[ring];
        let wanted = match self.notices {
            Notices::All => self.read::<u16>(place + USED) & 1 == 0,
            Notices::Few => {
                let event: u16 = self.read(place + USED + 4 + 8 * u64::from(ENTRIES));
                next.wrapping_sub(event).wrapping_sub(1) < count
            }
        };
        if wanted {
            self.rings[ring].kick.write(1).unwrap();
        }
    }

    /// Sends a request, and tells of it; the entry by which its answer is known. Half of the
    /// table's entries are for requests, and the other half for the room for their answers.
    pub(crate) fn send(
        &mut self,
        ring: usize,
        opcode: u32,
        node: u64,
        body: &[u8],
        room: u32,
    ) -> u16 {
        let head = self.prepare(ring, opcode, node, body, room);
        self.offer(ring, head);
        self.kick(ring, 1);
        head
    }

    /// Writes a request into the memory and the table, without offering it.
    pub(crate) fn prepare(
        &mut self,
        ring: usize,
        opcode: u32,
        node: u64,
        body: &[u8],
        room: u32,
    ) -> u16 {
        self.unique += 1;
        let header = InHeader {
            len: (size_of::<InHeader>() + body.len()) as u32,
            opcode,
            unique: self.unique,
            nodeid: node,
            ..InHeader::default()
        };
        let busy = &mut self.rings[ring].busy;
        let head = busy.iter().position(|busy| !busy).expect("few requests at a time");
        busy[head] = true;
        let head = head as u16;
        let request = self.buffer(ring, head);
        self.write(header, request);
        let body_at = GuestAddress(request + size_of::<InHeader>() as u64);
        self.memory.write_slice(body, body_at).unwrap();
        self.write(OutHeader::default(), request + ANSWER);
        let (flags, next) = if room == 0 { (0, 0) } else { (NEXT, head + ENTRIES / 2) };
        self.describe(ring, head, Part { address: request, length: header.len, flags, next });
        let part = Part { address: request + ANSWER, length: room, flags: WRITE, next: 0 };
        self.describe(ring, head + ENTRIES / 2, part);
        head
    }

    /// Where a request is.
    pub(crate) fn buffer(&self, ring: usize, head: u16) -> u64 {
        let before = u64::from(head) * self.rings.len() as u64 + ring as u64;
        BUFFERS + before * BUFFER_BYTES
    }

    /// The next answer that comes on a ring: to which request, and how many bytes it is said to
    /// have. `None` if none comes for so long.
    pub(crate) fn next_answer(&mut self, ring: usize, patience: Duration) -> Option<(u16, u32)> {
        let start = Instant::now();
        let Ring { place, answered, .. } = self.rings[ring];
        loop {
            // As Linux: the next one is to be told of, and may have come before that was said.
            self.write(answered, place + AVAILABLE + 4 + 2 * u64::from(ENTRIES));
            fence(Ordering::SeqCst);
            if self.read::<u16>(place + USED + 2) != answered {
                break;
            }
            let left = patience.checked_sub(start.elapsed())?;
            let ring = &self.rings[ring];
            ring.called.wait(left.as_millis() as i32, &mut [EpollEvent::default()]).unwrap();
            let _ = ring.call.read();
        }
        let entry = place + USED + 4 + 8 * u64::from(answered % ENTRIES);
        let (head, length) = (self.read::<u32>(entry), self.read::<u32>(entry + 4));
        self.rings[ring].answered = answered.wrapping_add(1);
        let head = u16::try_from(head).unwrap();
        if let Some(busy) = self.rings[ring].busy.get_mut(usize::from(head)) {
            *busy = false;
        }
        Some((head, length))
    }

    /// What stands in the room for the answer to a request.
    pub(crate) fn answer_to(&self, ring: usize, head: u16, length: u32) -> Answer {
        let place = self.buffer(ring, head) + ANSWER;
        let header: OutHeader = self.read(place);
        assert_eq!(header.len, length, "the ring and the answer differ");
        if header.error != 0 {
            return Err(-header.error);
        }
        let mut answer = vec![0; length as usize - size_of::<OutHeader>()];
        let behind = GuestAddress(place + size_of::<OutHeader>() as u64);
        self.memory.read_slice(&mut answer, behind).unwrap();
        Ok(answer)
    }

    /// Sends a request, and waits for its answer.
    #[track_caller]
    pub(crate) fn ask(&mut self, ring: usize, opcode: Opcode, node: u64, body: &[u8]) -> Answer {
        let head = self.send(ring, opcode as u32, node, body, ROOM);
        let (answered, length) = self.next_answer(ring, PATIENCE).expect("no answer");
        assert_eq!(answered, head);
        self.answer_to(ring, head, length)
    }

    /// Begins, as a kernel of Linux 6.1 does.
    pub(crate) fn init(&mut self) -> InitOut {
        let mut body = Vec::new();
        for number in [7, 37, 128 << 10, u32::MAX] {
            body.extend_from_slice(&u32::to_ne_bytes(number));
        }
        body.extend_from_slice(InitIn2::default().as_slice());
        let answer = self.ask(1, Opcode::Init, 0, &body).unwrap();
        let mut init = InitOut::default();
        init.as_mut_slice().copy_from_slice(&answer);
        init
    }

    /// Looks a name up.
    pub(crate) fn lookup(&mut self, parent: u64, name: &str) -> Result<EntryOut, i32> {
        let body = [name.as_bytes(), b"\0"].concat();
        let answer = self.ask(1, Opcode::Lookup, parent, &body)?;
        let mut entry = EntryOut::default();
        entry.as_mut_slice().copy_from_slice(&answer);
        Ok(entry)
    }

    /// The number of what is below a name of the root.
    pub(crate) fn find(&mut self, path: &[&str]) -> u64 {
        path.iter().fold(1, |parent, name| self.lookup(parent, name).unwrap().nodeid)
    }
}

/// The room for an answer that is enough for most.
pub(crate) const ROOM: u32 = 80 << 10;

/// The body of a request to read a file or list a directory.
pub(crate) fn reading(offset: u64, size: u32) -> Vec<u8> {
    ReadIn { offset, size, ..ReadIn::default() }.as_slice().to_vec()
}

const AVAILABLE: u64 = 0x4000;
const USED: u64 = 0x8000;

impl Ring {
    fn at(place: u64) -> Self {
        let event = || EventFd::new(EFD_NONBLOCK).unwrap();
        let (call, called) = (event(), Epoll::new().unwrap());
        let wanted = EpollEvent::new(EventSet::IN, 0);
        called.ctl(ControlOperation::Add, call.as_raw_fd(), wanted).unwrap();
        Self {
            kick: event(),
            call,
            called,
            trouble: event(),
            // Address 0 is no place for a ring.
            place: place + RING_BYTES,
            next: 0,
            answered: 0,
            busy: vec![false; usize::from(ENTRIES / 2)],
        }
    }

    /// Tells of requests whatever the device wants.
    pub(crate) fn kick_always(&self) {
        self.kick.write(1).unwrap();
    }

    /// Moves its next number, so that the device believes in others.
    pub(crate) fn skip(&mut self, count: u16) {
        self.next = self.next.wrapping_add(count);
    }
}
