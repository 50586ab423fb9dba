//! Prints how two servers over one storage bear many clients that put and read at the same time, one of
//! them being killed in the middle: a Markdown table with a row for each kind of request.
//!
//! `cargo bench -p cairn-tests --bench load -- [--clients N] [--seconds N] [--folder]`. All of it is on
//! this machine, the clients and the object store included; with `--folder` there is no object store.
#![allow(clippy::unwrap_used, reason = "a benchmark that can't go on panics")]

use std::{env, process::ExitCode, time::Duration};

use cairn_tests::{
    cairn::binary,
    load::{Load, Storage},
};

fn main() -> ExitCode {
    let (mut clients, mut seconds, mut storage) = (200, 60, Storage::Bucket);
    let mut words = env::args().skip(1).filter(|word| word != "--bench");
    while let Some(word) = words.next() {
        let mut number = || words.next().and_then(|number| number.parse::<u32>().ok()).unwrap();
        match word.as_str() {
            "--clients" => clients = number(),
            "--seconds" => seconds = number(),
            "--folder" => storage = Storage::Folder,
            word => panic!("{word}: not an option of this benchmark"),
        }
    }
    eprintln!("{}", binary().display());
    let duration = Duration::from_secs(seconds.into());
    let outcome = Load { clients: clients as usize, duration, storage }.run();
    println!("\n{outcome}");
    let lost = outcome.lost().iter().map(String::as_str);
    let faults: Vec<_> = outcome.failures().into_iter().chain(lost).collect();
    faults.iter().for_each(|fault| eprintln!("{fault}"));
    match faults.is_empty() {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    }
}
