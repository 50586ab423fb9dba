//! Real mounts of real content, read as programs read them. What one module does without a kernel
//! is tested beside it.

mod failures;
mod fixture;
mod lifecycle;
mod listings;
mod slow_store;
mod tree;
