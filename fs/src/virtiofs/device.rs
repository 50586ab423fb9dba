//! The device as the virtual machine sets it up: which features it has, where the guest's memory
//! is, and how its rings lie there. Messages and their form are the affair of the `vhost` crate,
//! what happens on the rings is in `ring` and `crew`.

use std::{fs::File, io, os::fd::OwnedFd, sync::Arc, time::Duration};

use parking_lot::Mutex;
use vhost::vhost_user::{
    Error, GpuBackend, Result, VhostUserBackendReqHandler, VhostUserProtocolFeatures,
    VhostUserVirtioFeatures,
    message::{
        VhostTransferStateDirection, VhostTransferStatePhase, VhostUserConfigFlags,
        VhostUserInflight, VhostUserLog, VhostUserMemoryRegion, VhostUserSharedMsg,
        VhostUserSingleMemoryRegion, VhostUserVringAddrFlags, VhostUserVringState,
    },
};
use vm_memory::{GuestAddress, GuestMemoryMmap, GuestRegionMmap};

use super::{
    crew::Crew,
    ring::{Memory, Ring},
};
use crate::file_system::CairnFs;

/// The guest may describe a request in a table of its own, outside the ring.
const INDIRECT_DESCRIPTORS: u64 = 1 << 28;

/// Each side says in the ring when it wants to be notified the next time.
const EVENT_IDX: u64 = 1 << 29;

/// The device is one of virtio 1.0 or later.
const VERSION_1: u64 = 1 << 32;

/// What the device can do.
const FEATURES: u64 = INDIRECT_DESCRIPTORS
    | EVENT_IDX
    | VERSION_1
    | VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits();

/// How often one request may wait for the store, one deadline after the other: for a name and for
/// its directory, or for the two windows of a file that it reads from.
const WAITS_MAX: u32 = 2;

/// How much longer than that a ring waits for its requests before it stops.
const STOP_MARGIN: Duration = Duration::from_secs(1);

/// A kernel takes more than this of the guest's memory for each inode that it holds, in bytes.
const INODE_BYTES: u64 = 512;

/// A device with its rings.
pub(super) struct Device {
    crew: Arc<Crew>,
    fs: Arc<CairnFs>,
    /// Where the virtual machine has the guest's memory in its own.
    mappings: Mutex<Vec<Mapping>>,
}

struct Mapping {
    /// The address in the virtual machine's process.
    address: u64,
    length: u64,
    /// The address in the guest.
    guest: u64,
}

impl Device {
    pub(super) fn new(crew: Arc<Crew>, fs: Arc<CairnFs>) -> Self {
        Self { crew, fs, mappings: Mutex::default() }
    }

    fn ring(&self, index: u32) -> Result<&Ring> {
        let index = usize::try_from(index).map_err(|_| Error::InvalidParam)?;
        self.crew.ring(index).ok_or(Error::InvalidParam)
    }

    /// The guest's address of what the virtual machine has at an address of its own.
    fn guest_address(&self, address: u64) -> Result<u64> {
        let mappings = self.mappings.lock();
        let inside = |mapping: &Mapping| {
            let offset = address.checked_sub(mapping.address)?;
            (offset < mapping.length).then(|| mapping.guest.checked_add(offset))?
        };
        mappings.iter().find_map(inside).ok_or(Error::InvalidParam)
    }

    fn stop(&self, ring: &Ring) -> u16 {
        let waits = self.fs.options.deadline.saturating_mul(WAITS_MAX);
        let patience = waits.saturating_add(STOP_MARGIN);
        let (kick, next) = ring.stop(patience);
        if let Some(kick) = kick {
            self.crew.unwatch(&kick);
        }
        next
    }
}

/// The refusal of what the device did not say that it can do.
fn unsupported<T>() -> Result<T> {
    Err(Error::InvalidOperation("not offered by this device"))
}

fn failed(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Error {
    Error::ReqHandlerError(io::Error::other(error))
}

impl VhostUserBackendReqHandler for Device {
    fn set_owner(&self) -> Result<()> {
        Ok(())
    }

    fn reset_owner(&self) -> Result<()> {
        self.crew.rings().iter().for_each(|ring| ring.enable(false));
        Ok(())
    }

    fn reset_device(&self) -> Result<()> {
        unsupported()
    }

    fn get_features(&self) -> Result<u64> {
        Ok(FEATURES)
    }

    fn set_features(&self, features: u64) -> Result<()> {
        if features & !FEATURES != 0 {
            return Err(Error::InvalidParam);
        }
        for ring in self.crew.rings() {
            ring.set_event_idx(features & EVENT_IDX != 0);
            // Who does not know how to enable rings has them enabled from the start.
            if features & VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits() == 0 {
                ring.enable(true);
            }
        }
        self.crew.wake();
        Ok(())
    }

    fn set_mem_table(&self, regions: &[VhostUserMemoryRegion], files: Vec<File>) -> Result<()> {
        let mut mapped = Vec::with_capacity(regions.len());
        let mut mappings = Vec::with_capacity(regions.len());
        let mut bytes = 0_u64;
        for (region, file) in regions.iter().zip(files) {
            let end = region.mmap_offset.checked_add(region.memory_size);
            let metadata = file.metadata().map_err(failed)?;
            // What is mapped behind a file's end can't be touched.
            if metadata.is_file() && end.is_none_or(|end| end > metadata.len()) {
                return Err(Error::InvalidParam);
            }
            let memory = region.mmap_region(file)?;
            let guest = GuestAddress(region.guest_phys_addr);
            mapped.push(GuestRegionMmap::new(memory, guest).ok_or(Error::InvalidParam)?);
            let (address, length) = (region.user_addr, region.memory_size);
            mappings.push(Mapping { address, length, guest: region.guest_phys_addr });
            bytes = bytes.saturating_add(length);
        }
        mapped.sort_by_key(vm_memory::GuestMemoryRegion::start_addr);
        let memory: Memory = Arc::new(GuestMemoryMmap::from_regions(mapped).map_err(failed)?);
        self.crew.rings().iter().for_each(|ring| ring.set_memory(&memory));
        *self.mappings.lock() = mappings;
        let inodes = usize::try_from(bytes / INODE_BYTES).unwrap_or(usize::MAX);
        self.fs.inodes.limit(inodes);
        Ok(())
    }

    fn set_vring_num(&self, index: u32, num: u32) -> Result<()> {
        let entries = u16::try_from(num).map_err(|_| Error::InvalidParam)?;
        self.ring(index)?.set_size(entries).map_err(|_| Error::InvalidParam)
    }

    fn set_vring_addr(
        &self,
        index: u32,
        _: VhostUserVringAddrFlags,
        descriptor: u64,
        used: u64,
        available: u64,
        _: u64,
    ) -> Result<()> {
        let ring = self.ring(index)?;
        let [table, available, used] =
            [descriptor, available, used].map(|address| self.guest_address(address));
        ring.set_place(table?, available?, used?).map_err(failed)
    }

    fn set_vring_base(&self, index: u32, base: u32) -> Result<()> {
        let next = u16::try_from(base).map_err(|_| Error::InvalidParam)?;
        self.ring(index)?.set_next(next);
        Ok(())
    }

    fn get_vring_base(&self, index: u32) -> Result<VhostUserVringState> {
        let next = self.stop(self.ring(index)?);
        Ok(VhostUserVringState::new(index, u32::from(next)))
    }

    fn set_vring_kick(&self, index: u8, fd: Option<File>) -> Result<()> {
        let ring = self.ring(u32::from(index))?;
        // Without one the ring would have to be looked at all the time.
        let Some(fd) = fd else { return unsupported() };
        let kick = OwnedFd::from(fd);
        self.crew.watch(&kick).map_err(Error::ReqHandlerError)?;
        if let Some(former) = ring.start(kick) {
            self.crew.unwatch(&former);
        }
        self.crew.wake();
        Ok(())
    }

    fn set_vring_call(&self, index: u8, fd: Option<File>) -> Result<()> {
        self.ring(u32::from(index))?.set_call(fd.map(OwnedFd::from));
        Ok(())
    }

    fn set_vring_err(&self, index: u8, fd: Option<File>) -> Result<()> {
        self.ring(u32::from(index))?.set_trouble(fd.map(OwnedFd::from));
        Ok(())
    }

    fn get_protocol_features(&self) -> Result<VhostUserProtocolFeatures> {
        Ok(VhostUserProtocolFeatures::MQ)
    }

    fn set_protocol_features(&self, _: u64) -> Result<()> {
        Ok(())
    }

    fn get_queue_num(&self) -> Result<u64> {
        Ok(self.crew.rings().len() as u64)
    }

    fn set_vring_enable(&self, index: u32, enable: bool) -> Result<()> {
        self.ring(index)?.enable(enable);
        self.crew.wake();
        Ok(())
    }

    fn get_config(&self, _: u32, _: u32, _: VhostUserConfigFlags) -> Result<Vec<u8>> {
        unsupported()
    }

    fn set_config(&self, _: u32, _: &[u8], _: VhostUserConfigFlags) -> Result<()> {
        unsupported()
    }

    fn set_gpu_socket(&self, _: GpuBackend) -> Result<()> {
        unsupported()
    }

    fn get_shared_object(&self, _: VhostUserSharedMsg) -> Result<File> {
        unsupported()
    }

    fn get_inflight_fd(&self, _: &VhostUserInflight) -> Result<(VhostUserInflight, File)> {
        unsupported()
    }

    fn set_inflight_fd(&self, _: &VhostUserInflight, _: File) -> Result<()> {
        unsupported()
    }

    fn get_max_mem_slots(&self) -> Result<u64> {
        unsupported()
    }

    fn add_mem_region(&self, _: &VhostUserSingleMemoryRegion, _: File) -> Result<()> {
        unsupported()
    }

    fn remove_mem_region(&self, _: &VhostUserSingleMemoryRegion) -> Result<()> {
        unsupported()
    }

    fn set_device_state_fd(
        &self,
        _: VhostTransferStateDirection,
        _: VhostTransferStatePhase,
        _: File,
    ) -> Result<Option<File>> {
        unsupported()
    }

    fn check_device_state(&self) -> Result<()> {
        unsupported()
    }

    fn set_log_base(&self, _: &VhostUserLog, _: File) -> Result<()> {
        unsupported()
    }
}
