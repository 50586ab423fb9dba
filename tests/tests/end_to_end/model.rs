//! Mounts against the tree that they show: random operations from several threads, while the kernel
//! is made to forget. `CAIRN_MODEL_STEPS` sets how many each thread does, `CAIRN_MODEL_SEED` which.

use std::{
    env, fs,
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use cairn_tests::{
    cairn::{Cairn, Scene},
    model::{Model, plant},
};

const NODES: usize = 1500;
const THREADS: usize = 4;
const STEPS: usize = 500;

#[test]
fn a_mount_is_the_tree_that_was_imported() {
    let seed = env::var("CAIRN_MODEL_SEED").unwrap_or_else(|_| "model".to_owned());
    let scene = Scene::new();
    let tree = scene.path("tree");
    plant(&tree, &seed, NODES);
    let cairn = scene.cairn();
    let path = cairn.import(&tree);
    let compare = |cairn: &Cairn, name: &str| {
        let mount = scene.mount(cairn, name);
        operate(&tree, &mount.at(&path), &seed);
    };
    compare(&cairn, "local");
    let daemon = scene.serve_tcp();
    compare(&daemon.client(), "tcp");
}

fn operate(tree: &Path, found: &Path, seed: &str) {
    let steps = env::var("CAIRN_MODEL_STEPS").map_or(STEPS, |steps| steps.parse().unwrap());
    let model = Model::new(tree, found);
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                // What is not in use goes: inodes, names, and with them the contents. Only root
                // may ask for that.
                let _ = fs::write("/proc/sys/vm/drop_caches", "2");
                thread::sleep(Duration::from_millis(100));
            }
        });
        let threads: Vec<_> = (0..THREADS)
            .map(|number| {
                let (model, seed) = (&model, format!("{seed} {number}"));
                scope.spawn(move || model.run(&seed, steps))
            })
            .collect();
        let outcomes: Vec<_> = threads.into_iter().map(thread::ScopedJoinHandle::join).collect();
        done.store(true, Ordering::Relaxed);
        for outcome in outcomes {
            outcome.unwrap();
        }
    });
}
