//! Many clients at once on servers without state of their own, one of which is killed under them.

use std::{fs, time::Duration};

use cairn_tests::load::{Load, MEMORY_BUDGET, Storage};

/// As many clients as have to be borne, for a part of the time: `cargo bench --bench load` is the whole.
const CLIENTS: usize = 200;
const DURATION: Duration = Duration::from_secs(16);

/// Has the servers of this storage bear them.
#[track_caller]
fn is_borne(storage: Storage) {
    let outcome = Load { clients: CLIENTS, duration: DURATION, storage }.run();
    println!("{outcome}");
    let failures = outcome.failures();
    assert!(failures.is_empty(), "{} failed: {:#?}", failures.len(), failures.first());
    assert!(outcome.lost().is_empty(), "{:#?}", outcome.lost());
    assert!(outcome.peak_memory() < MEMORY_BUDGET, "{} bytes", outcome.peak_memory());
    // It was at work, and not idle, when it was killed.
    let killed = outcome.killed();
    assert!(killed.served > 0 && killed.under_way > 0, "{killed:?}");
    assert!(outcome.answered() > CLIENTS, "{}", outcome.answered());
}

#[test]
#[ignore = "200 clients, for a minute with all that is read again: part of tests/run"]
fn a_server_of_a_bucket_that_is_killed_under_load_fails_no_request_and_loses_nothing() {
    is_borne(Storage::Bucket);
}

#[test]
#[ignore = "200 clients, for a minute with all that is read again: part of tests/run"]
fn a_server_of_a_folder_that_is_killed_under_load_fails_no_request_and_loses_nothing() {
    is_borne(Storage::Folder);
}

#[test]
fn the_memory_budget_is_what_servers_are_given() {
    let base = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/kubernetes/base");
    for manifest in ["castore.yaml", "store.yaml"] {
        let manifest = fs::read_to_string(format!("{base}/{manifest}")).unwrap();
        let limit = format!("limits: {{memory: {}Gi}}", MEMORY_BUDGET >> 30);
        assert!(manifest.contains(&limit), "{limit} is not in {manifest}");
    }
}
