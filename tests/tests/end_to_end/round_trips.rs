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

/// Files and their sizes, with the round trips: for the name, for the folder and for the file, and for
/// what lies between, all of it at once.
const FILES: [(&str, usize, u64); 3] =
    [("large", 20 << 20, 3), ("small", 300_000, 3), ("some/folders/below", 10_000, 4)];

#[test]
fn the_first_byte_of_a_file_is_there_after_few() {
    let scene = Scene::new();
    let tree = scene.new_folder("tree");
    for (name, size, _) in FILES {
        fs::create_dir_all(tree.join(name).parent().unwrap()).unwrap();
        fs::write(tree.join(name), Random::new(name).bytes(size)).unwrap();
    }
    let path = scene.cairn().import(&tree);
    let daemon = scene.serve_tcp();
    let proxy = Proxy::before(daemon.url());
    proxy.set(Line { delay: ROUND_TRIP / 2, ..Line::default() });
    for is_cached in [false, true] {
        for (name, size, most) in FILES {
            let far = Cairn::new(proxy.url());
            let cairn = match is_cached {
                true => far.with_cache(&scene.path(&format!("cache-{size}"))),
                false => far,
            };
            let mount = scene.mount(&cairn, &format!("mount-{size}-{is_cached}"));
            let before = proxy.round_trips();
            let file = File::open(mount.at(&path).join(name)).unwrap();
            file.read_exact_at(&mut [0], 0).unwrap();
            let round_trips = proxy.round_trips() - before;
            assert!(round_trips <= most, "{name}, cached: {is_cached}: {round_trips} round trips");
        }
    }
}
