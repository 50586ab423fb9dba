//! What it costs to count: a request of the kernel, and the parts of that. Prints nanoseconds for each,
//! of one thread alone and of as many as there are processors.

use std::{
    hint::black_box,
    thread,
    time::{Duration, Instant},
};

use cairn_telemetry::{
    inventory::{FUSE_DURATION, FUSE_READ, FuseOperation},
    operations, trace,
};

/// How often each is done.
const ROUNDS: u32 = 5_000_000;

/// How long one takes, on so many threads at once.
fn measured(threads: usize, run: impl Fn() + Sync) -> f64 {
    let start = Instant::now();
    thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| (0..ROUNDS).for_each(|_| run()));
        }
    });
    start.elapsed().as_secs_f64() * 1e9 / f64::from(ROUNDS)
}

fn main() {
    let cores = thread::available_parallelism().map_or(1, usize::from);
    println!("| what is counted | ns, one thread | ns, {cores} threads |\n|---|---:|---:|");
    let row = |what: &str, run: &(dyn Fn() + Sync)| {
        let (one, all) = (measured(1, run), measured(cores, run));
        println!("| {what} | {one:.0} | {all:.0} |");
    };
    row("the time, twice", &|| {
        let start = black_box(Instant::now());
        black_box(start.elapsed());
    });
    let read = FuseOperation::Read as usize;
    row("a time in a histogram", &|| FUSE_DURATION.observe_at(read, Duration::from_micros(7)));
    row("bytes", &|| FUSE_READ.add(4096));
    row("whether to trace, which is off", &|| drop(trace::begin("fuse", "read")));
    thread_local! {
        static PLACE: operations::Place = operations::FUSE.enter();
    }
    row("a request of the kernel: all of these", &|| {
        PLACE.with(|place| {
            let begun = place.begin(read);
            drop(trace::begin("fuse", "read"));
            FUSE_READ.add(4096);
            FUSE_DURATION.observe_at(read, place.end(begun));
        });
    });
}
