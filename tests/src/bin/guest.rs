//! What runs in the guest of a virtual machine: whether what it is shown is the tree that it has
//! itself, seen by several threads at a time, and by random operations.
//!
//! `guest EXPECTED FOUND SEED STEPS`; panics at the first difference.

use std::{env, path::PathBuf, thread};

use cairn_tests::{
    compare::{Face, assert_same},
    model::Model,
};

/// How many threads do the same at a time.
const THREADS: usize = 2;

fn main() {
    let words: Vec<_> = env::args_os().skip(1).map(PathBuf::from).collect();
    let [expected, found, seed, steps] = &words[..] else {
        panic!("guest EXPECTED FOUND SEED STEPS");
    };
    let number = |word: &PathBuf| word.to_str().and_then(|word| word.parse().ok());
    let steps: usize = number(steps).expect("a number of steps");
    let seed = seed.to_str().expect("a seed that is text");

    thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                let comparison = assert_same(expected, found, Face::Mount);
                println!("same: {} nodes, {} bytes", comparison.nodes, comparison.bytes);
            });
        }
    });
    let model = &Model::new(expected, found);
    thread::scope(|scope| {
        for number in 0..THREADS {
            scope.spawn(move || {
                model.run(&format!("{seed} {number}"), steps);
                println!("agreed: {steps} operations");
            });
        }
    });
}
