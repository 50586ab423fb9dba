//! Imports that are killed at random moments. What must be true of the store afterwards is the
//! affair of `history`.

use std::{thread, time::Duration};

use crate::{cairn::Scene, history::History, random::Random};

/// An import is killed within this time of its start, in microseconds.
const KILLED_WITHIN: u64 = 400_000;

/// What a series of kills has shown.
#[derive(Debug, Default)]
pub struct Tally {
    /// The imports that were killed before they had ended.
    pub killed: u32,
    /// The store paths that were acknowledged.
    pub acknowledged: usize,
    /// The store paths that were there in the end, acknowledged or not.
    pub present: usize,
}

/// Starts this many imports of new trees into one local store and kills each at a random moment.
/// After each kill the store must have all that was acknowledged so far; what it lists must
/// export as it was imported.
#[track_caller]
pub fn rounds(seed: &str, count: u32) -> Tally {
    let scene = Scene::new();
    let cairn = scene.cairn();
    let mut random = Random::new(seed);
    let mut history = History::default();
    let mut tally = Tally::default();
    for _ in 0..count {
        let import = history.start_import(&scene, &cairn);
        thread::sleep(Duration::from_micros(random.below(KILLED_WITHIN)));
        let ended = import.kill();
        tally.killed += u32::from(!ended.status.success());
        history.acknowledge(&ended);
        history.check(&scene, &cairn);
    }
    history.check_all(&scene, &cairn);
    tally.acknowledged = history.acknowledged();
    tally.present = history.present();
    tally
}
