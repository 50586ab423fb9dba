//! A disk that fills up under an import: a clear error, nothing lost, and once there is room the
//! store takes more.

use std::fs;

use cairn_tests::{
    cairn::{Cairn, Scene},
    compare::{Face, assert_same},
    random::Random,
    tiny_disk::TinyDisk,
    trees,
};

#[test]
fn a_full_disk_is_an_error_and_no_loss() {
    let scene = Scene::new();
    let disk = TinyDisk::mount(scene.new_folder("disk"), 24 << 20);
    let cairn = Cairn::local(&disk.path().join("store"));
    let kept = trees::small(scene.folder(), "kept");
    let path = cairn.import(&kept);

    let large = scene.new_folder("large-tree");
    for index in 0..48 {
        let bytes = Random::new(&format!("large {index}")).bytes(1 << 20);
        fs::write(large.join(format!("file-{index}")), bytes).unwrap();
    }
    for _ in 0..2 {
        cairn.run(["import".as_ref(), large.as_os_str()]).failed(1, &["no room left"]);
        assert_eq!(cairn.list(), std::slice::from_ref(&path));
        cairn.export(&path, &scene.path("exported")).succeeded();
        assert_same(&kept, &scene.path("exported"), Face::Plain);
        fs::remove_dir_all(scene.path("exported")).unwrap();
    }

    disk.resize(256 << 20);
    let second = cairn.import(&large);
    for (tree, path) in [(&kept, &path), (&large, &second)] {
        cairn.export(path, &scene.path("exported")).succeeded();
        assert_same(tree, &scene.path("exported"), Face::Plain);
        fs::remove_dir_all(scene.path("exported")).unwrap();
    }
}
