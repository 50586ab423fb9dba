//! What is counted of the kernel's requests, whichever way they come. What they are is in
//! `file_system`.

use cairn_telemetry::{
    inventory::{FUSE_DURATION, FUSE_THREADS, FuseOperation},
    metric::One,
    operations::{self, Begun, Place},
    trace,
};
use fuse_backend_rs::abi::fuse_abi::Opcode;
use tracing::span::EnteredSpan;

/// A thread that serves, as long as this is there.
pub(crate) struct Worker {
    place: Place,
    _thread: One,
}

impl Worker {
    pub(crate) fn enter() -> Self {
        Self { place: operations::FUSE.enter(), _thread: FUSE_THREADS.one() }
    }

    /// It answers a request.
    pub(crate) fn begin(&self, opcode: u32) -> Timed<'_> {
        let operation = operation(opcode);
        Timed { place: &self.place, operation, begun: self.place.begin(operation as usize) }
    }
}

/// A request, under way until this is dropped.
pub(crate) struct Timed<'a> {
    place: &'a Place,
    operation: FuseOperation,
    begun: Begun,
}

impl Timed<'_> {
    /// Makes what is done until this is dropped part of the request, for traces.
    pub(crate) fn within(&self) -> EnteredSpan {
        trace::begin("fuse", self.operation.name()).entered()
    }
}

impl Drop for Timed<'_> {
    fn drop(&mut self) {
        FUSE_DURATION.observe_at(self.operation as usize, self.place.end(self.begun));
    }
}

/// The kinds of requests that are counted each.
const OPERATIONS: [(Opcode, FuseOperation); 16] = [
    (Opcode::Lookup, FuseOperation::Lookup),
    (Opcode::Forget, FuseOperation::Forget),
    (Opcode::BatchForget, FuseOperation::Forget),
    (Opcode::Getattr, FuseOperation::Getattr),
    (Opcode::Readlink, FuseOperation::Readlink),
    (Opcode::Open, FuseOperation::Open),
    (Opcode::Read, FuseOperation::Read),
    (Opcode::Statfs, FuseOperation::Statfs),
    (Opcode::Release, FuseOperation::Release),
    (Opcode::Getxattr, FuseOperation::Getxattr),
    (Opcode::Listxattr, FuseOperation::Listxattr),
    (Opcode::Opendir, FuseOperation::Opendir),
    (Opcode::Readdir, FuseOperation::Readdir),
    (Opcode::Readdirplus, FuseOperation::Readdirplus),
    (Opcode::Releasedir, FuseOperation::Releasedir),
    (Opcode::Access, FuseOperation::Access),
];

/// What a request is counted as. A number that stands for none comes from a guest.
fn operation(opcode: u32) -> FuseOperation {
    let known = OPERATIONS.iter().find(|(known, _)| *known as u32 == opcode);
    known.map_or(FuseOperation::Other, |(_, operation)| *operation)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_have_names_and_others_have_one() {
        assert_eq!(operation(Opcode::Read as u32), FuseOperation::Read);
        assert_eq!(operation(Opcode::BatchForget as u32), FuseOperation::Forget);
        for opcode in [0, 7, Opcode::Write as u32, 50, u32::MAX] {
            assert_eq!(operation(opcode), FuseOperation::Other, "{opcode}");
        }
    }
}
