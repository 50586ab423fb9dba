//! How often a mount of a store that is far has to wait for one answer before it can ask the next
//! question.

use std::{
    fs::{self, File},
    os::unix::fs::FileExt as _,
    time::Duration,
};

use cairn_tests::{
    cairn::{Cairn, Scene},
    proxy::{Line, Proxy},
    random::Random,
};

/// Longer than anything takes to be asked on this machine.
const ROUND_TRIP: Duration = Duration::from_millis(100);

/// A large file in a folder, and a small one.
const FILES: [(&str, usize); 2] = [("large", 20 << 20), ("small", 300_000)];

#[test]
fn the_first_byte_of_a_file_is_there_after_few() {
    let scene = Scene::new();
    let tree = scene.new_folder("tree");
    for (name, size) in FILES {
        fs::write(tree.join(name), Random::new(name).bytes(size)).unwrap();
    }
    let path = scene.cairn().import(&tree);
    let daemon = scene.serve_tcp();
    let proxy = Proxy::before(daemon.url());
    proxy.set(Line { delay: ROUND_TRIP / 2, ..Line::default() });
    for is_cached in [false, true] {
        for (name, _) in FILES {
            let far = Cairn::new(proxy.url());
            let cairn = match is_cached {
                true => far.with_cache(&scene.path(&format!("cache-{name}"))),
                false => far,
            };
            let mount = scene.mount(&cairn, &format!("mount-{name}-{is_cached}"));
            let before = proxy.round_trips();
            let file = File::open(mount.at(&path).join(name)).unwrap();
            file.read_exact_at(&mut [0], 0).unwrap();
            let round_trips = proxy.round_trips() - before;
            // For the name, for the folder and for the file.
            assert!(round_trips <= 3, "{name}, cached: {is_cached}: {round_trips} round trips");
        }
    }
}
