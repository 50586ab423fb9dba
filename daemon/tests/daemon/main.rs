//! Tests of the built binary: its command line, its server, and what several of its processes do
//! with one store. What a mount shows is tested in the `tests` crate.

#![allow(clippy::unwrap_used, reason = "a test that can not go on fails")]

mod commands;
mod config;
mod help;
mod importing;
mod process;
mod serving;
mod sharing;
mod stores;
mod telling;
