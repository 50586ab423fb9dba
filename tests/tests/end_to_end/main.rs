//! The binary from end to end: imports, mounts, daemons and inspection on real trees, and what
//! happens when something is wrong. One binary of tests, a module for each concern.
#![allow(clippy::unwrap_used, reason = "a test that can't go on panics")]

mod blocked;
mod buckets;
mod caching;
mod commands;
mod compose;
mod copying;
mod damage;
mod full_disk;
mod inspecting;
mod kills;
mod kubernetes;
mod large;
mod load;
mod lying_peers;
mod main_job;
mod model;
mod mounting;
mod newcomer;
mod observing;
mod profiles;
mod programs;
mod real_tree;
mod refusals;
mod round_trips;
mod semantics;
mod serving;
mod sharing;
mod systemd;
mod telemetry;
mod top;
mod tracing;
mod virtiofs;
mod writable;
