//! Real mounts of real content, read as programs read them, and the same content as a virtual
//! machine asks for it. What one module does without a kernel is tested beside it.

#![expect(clippy::unwrap_used, reason = "what the tests stand on fails them loudly")]

mod allocations;
mod failures;
mod fixture;
mod hostile_guests;
mod in_order;
mod large;
mod lifecycle;
mod listings;
mod machine;
mod passthrough;
mod requests;
mod slow_store;
mod tree;
mod virtiofs;
