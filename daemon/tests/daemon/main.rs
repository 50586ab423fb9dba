//! Tests of the built binary: its command line, its server, and what several of its processes do
//! with one store. What a mount shows is tested in the `tests` crate.

mod commands;
mod help;
mod process;
mod serving;
mod sharing;
