//! The commands that look into stores and compare what is in them: what they print, what it costs a
//! store that is far, and the codes that they end with.

use std::{collections::BTreeSet, fs, net::TcpListener, path::Path};

use cairn_castore::Digest;
use cairn_tests::{
    cairn::{Cairn, Scene},
    peer::{Lie, Peer},
    proxy::Proxy,
    trees,
};
use serde_json::{Value, json};

fn stored() -> (Scene, Cairn, &'static str) {
    let scene = Scene::new();
    let cairn = scene.cairn();
    let path = cairn.import(&trees::vector(scene.folder()));
    assert_eq!(path, trees::VECTOR_STORE_PATH);
    (scene, cairn, trees::VECTOR_STORE_PATH)
}

#[track_caller]
fn printed<const N: usize>(cairn: &Cairn, words: [&str; N]) -> Vec<String> {
    cairn.run(words).succeeded().lines()
}

#[track_caller]
fn values<const N: usize>(cairn: &Cairn, words: [&str; N]) -> Vec<Value> {
    let lines = cairn.run(words).succeeded().lines();
    lines.iter().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// A tree that differs from [`trees::vector`] in everything that can differ.
fn other(scene: &Scene) -> std::path::PathBuf {
    let folder = scene.new_folder("other");
    let tree = trees::vector(&folder);
    fs::write(tree.join("d/f"), "hi there\n").unwrap();
    fs::write(tree.join("d/new"), "new").unwrap();
    fs::create_dir_all(tree.join("more/below")).unwrap();
    fs::write(tree.join("more/below/file"), "below").unwrap();
    trees::executable(&tree.join("zero"), "");
    fs::remove_file(tree.join("link")).unwrap();
    std::os::unix::fs::symlink("run", tree.join("link")).unwrap();
    fs::remove_dir(tree.join("empty")).unwrap();
    fs::remove_file(tree.join("run")).unwrap();
    fs::create_dir(tree.join("run")).unwrap();
    tree
}

#[test]
fn tree_draws_what_is_there() {
    let (_scene, cairn, path) = stored();
    assert_eq!(
        printed(&cairn, ["tree", path]),
        [
            path,
            "├── big",
            "├── d",
            "│   └── f",
            "├── empty",
            "├── link -> d/f",
            "├── run",
            "└── zero",
            "",
            "2 directories, 4 files, 1 symlink"
        ]
    );
    assert_eq!(
        printed(&cairn, ["tree", "-d", "--sizes", path]),
        [
            &format!("[          -]  {path}"),
            "├── [          -]  d",
            "└── [          -]  empty",
            "",
            "2 directories, 0 files"
        ]
    );
    let drawn = printed(&cairn, ["tree", "-L", "1", "-s", path]);
    assert_eq!(drawn[1..3], ["├── [     700000]  big", "├── [          -]  d"]);
    assert_eq!(drawn[3], "├── [          -]  empty");
    assert_eq!(printed(&cairn, ["tree", &format!("{path}/run")])[2], "0 directories, 1 file");
    let values = values(&cairn, ["tree", "--json", path]);
    assert_eq!(values.len(), 7);
    assert_eq!(values[2]["path"], "d/f");
}

#[test]
fn find_finds_what_is_asked_for() {
    let (_scene, cairn, path) = stored();
    let find = |words: &[&str]| {
        let words = ["find"].iter().chain(words).chain([&path]).copied();
        cairn.run(words).succeeded().lines()
    };
    let below = |names: &[&str]| -> Vec<String> {
        names.iter().map(|name| format!("{path}{name}")).collect()
    };
    let all = ["", "/big", "/d", "/d/f", "/empty", "/link", "/run", "/zero"];
    assert_eq!(find(&[]), below(&all));
    assert_eq!(find(&["--name", "[b-f]*"]), below(&["/big", "/d", "/d/f", "/empty"]));
    assert_eq!(find(&["--name", "*-tree"]), below(&[""]));
    assert_eq!(find(&["--type", "d"]), below(&["", "/d", "/empty"]));
    assert_eq!(find(&["--type", "x,l"]), below(&["/link", "/run"]));
    assert_eq!(find(&["--size", "+10", "--size", "-1MiB"]), below(&["/big", "/run"]));
    assert_eq!(find(&["--size", "3"]), below(&["/d/f", "/link"]));
    assert_eq!(find(&["--max-depth", "0"]), below(&[""]));
    assert_eq!(find(&["--max-depth", "1", "--type", "f"]), below(&["/big", "/run", "/zero"]));
    let empty = Digest::EMPTY.to_string();
    assert_eq!(find(&["--digest", &empty]), below(&["/empty", "/zero"]));
    assert_eq!(find(&["--digest", &empty, "--type", "f"]), below(&["/zero"]));
    assert!(find(&["--name", "nothing"]).is_empty());

    let ended = cairn.run(["find", "-0", "--name", "f", path]).succeeded();
    assert_eq!(ended.text(), format!("{path}/d/f\0"));
    let found = values(&cairn, ["find", "--json", "--name", "f", path]);
    assert_eq!(found[0]["path"], format!("{path}/d/f"));
    assert_eq!(found[0]["digest"], Digest::of(b"hi\n").to_string());
    // What is printed can be used.
    assert_eq!(printed(&cairn, ["cat", &find(&["--name", "f"])[0]]), ["hi"]);
    // Below a digest, too.
    let root = trees::VECTOR_ROOT.parse::<Digest>().unwrap().to_string();
    let found = printed(&cairn, ["find", "--name", "f", &root]);
    assert_eq!(printed(&cairn, ["cat", &found[0]]), ["hi"]);
    cairn.run(["find", "--name", "[a", path]).failed(2, &["[a"]);
    cairn.run(["find", "--size", "much", path]).failed(2, &["much"]);
}

#[test]
fn du_counts_each_content_once() {
    let (scene, cairn, path) = stored();
    let apparent = 700_000 + 3 + 18;
    let rows = |words: &[&str]| -> Vec<String> {
        let lines = cairn.run(["du"].iter().chain(words)).succeeded().lines();
        let without_stored = |line: &String| {
            let cells: Vec<_> = line.split('\t').collect();
            [cells[0], cells[1], cells[3], cells[4]].join("\t")
        };
        lines.iter().map(without_stored).collect()
    };
    assert_eq!(rows(&[path]), [format!("{apparent}\t{apparent}\t4\t{path}")]);
    let other = cairn.import(&other(&scene));
    assert_eq!(
        rows(&[path, &other, path]),
        [
            format!("{apparent}\t{apparent}\t4\t{path}"),
            format!("700017\t17\t5\t{other}"),
            format!("{apparent}\t0\t4\t{path}"),
            format!("{}\t{}\t13\ttotal", 2 * apparent + 700_017, apparent + 17),
        ]
    );
    assert_eq!(
        rows(&["--depth", "1", path]),
        [
            format!("3\t3\t1\t{path}/d"),
            format!("0\t0\t0\t{path}/empty"),
            format!("{apparent}\t{apparent}\t4\t{path}")
        ]
    );
    let usage = values(&cairn, ["du", "--json", &format!("{path}/d"), &format!("{path}/run")]);
    assert_eq!(
        usage[1],
        json!({
            "path": format!("{path}/run"), "bytes": 18, "uniqueBytes": 18,
            "storedBytes": usage[1]["storedBytes"], "files": 1, "uniqueFiles": 1,
            "directories": 0, "symlinks": 0
        })
    );
    assert_eq!((&usage[2]["bytes"], &usage[2]["path"]), (&json!(21), &Value::Null));
    cairn.run(["du", &format!("{path}/nothing")]).failed(3, &["nothing"]);
}

#[test]
fn diff_tells_what_differs_and_whether_anything_does() {
    let (scene, cairn, path) = stored();
    let other = cairn.import(&other(&scene));
    let diff = |words: &[&str]| {
        let words = ["diff"].iter().chain(words).copied().chain([path, other.as_str()]);
        cairn.run(words).failed(1, &[])
    };
    let plain = diff(&[]);
    assert_eq!(plain.stderr, "", "a difference is no failure");
    assert_eq!(
        plain.lines(),
        ["M  d/f", "A  d/new", "D  empty/", "L  link", "A  more/", "T  run", "X  zero"]
    );
    let whole = diff(&["--recursive"]).lines();
    assert_eq!(whole[4..7], ["A  more/", "A  more/below/", "A  more/below/file"]);
    assert_eq!(diff(&["--name-only"]).lines()[..2], ["d/f", "d/new"]);
    assert!(diff(&["--name-only", "-0"]).text().starts_with("d/f\0d/new\0empty\0"));
    let stat: Value = serde_json::from_str(diff(&["--stat", "--json"]).text()).unwrap();
    assert_eq!(
        stat,
        json!({
            // The file that became a directory is both.
            "added": { "files": 2, "directories": 3, "symlinks": 0, "bytes": 8 },
            "deleted": { "files": 1, "directories": 1, "symlinks": 0, "bytes": 18 },
            "changed": {
                "files": 1, "bytesFrom": 3, "bytesTo": 9, "executable": 1, "symlinks": 1, "types": 1
            }
        })
    );
    let lines = diff(&["--stat"]).lines();
    assert_eq!(lines[0], "added:      2 files, 3 directories, 0 symlinks, 8 B");
    let json = diff(&["--json"]).lines();
    let changes: Vec<Value> = json.iter().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(changes[0]["change"], "changed");
    assert_eq!(changes[0]["differs"], json!(["content"]));
    assert_eq!(changes[0]["to"]["size"], 9);
    assert_eq!(changes[2]["from"]["type"], "directory");
    assert_eq!(changes[2].get("to"), None);

    assert!(printed(&cairn, ["diff", path, path]).is_empty());
    let root = trees::VECTOR_ROOT;
    assert!(printed(&cairn, ["diff", path, root]).is_empty(), "by whatever name");
    cairn.run(["diff", path, &format!("{path}/run")]).failed(1, &[]);
    // What can't be compared does not look different.
    cairn.run(["diff", path, &format!("{path}/nothing")]).failed(3, &["nothing"]);
    Cairn::new("grpc+http://127.0.0.1:1").run(["diff", path, path]).failed(2, &["127.0.0.1:1"]);
}

#[test]
fn a_diff_fetches_nothing_that_is_equal() {
    let scene = Scene::new();
    let wide = |name: &str, text: &str| {
        let tree = scene.new_folder(name);
        for folder in ["wide", "narrow"] {
            fs::create_dir(tree.join(folder)).unwrap();
        }
        for index in 0..2000 {
            fs::write(tree.join(format!("wide/file-{index}")), index.to_string()).unwrap();
        }
        fs::write(tree.join("narrow/large"), vec![text.as_bytes()[0]; 3_000_000]).unwrap();
        scene.cairn().import(&tree)
    };
    let (one, two) = (wide("one", "1"), wide("two", "2"));
    let daemon = scene.serve_tcp();
    let proxy = Proxy::before(daemon.url());
    let far = Cairn::new(proxy.url());
    assert_eq!(far.run(["diff", &one, &two]).failed(1, &[]).lines(), ["M  narrow/large"]);
    let received = proxy.received();
    assert!(received < 20_000, "{received} bytes for two small directories of each tree");
    far.run(["du", &one]).succeeded();
    assert!(proxy.received() - received > 50_000, "the wide directory has 2000 digests");
}

#[test]
fn what_is_far_is_looked_at_like_what_is_near() {
    let (scene, cairn, path) = stored();
    let other = cairn.import(&other(&scene));
    let words: [&[&str]; 6] = [
        &["tree", path],
        &["tree", "-L", "1", path],
        &["find", "--type", "f", path, &other],
        &["du", "--depth", "2", path, &other],
        &["diff", "--recursive", path, &other],
        &["list", "--long"],
    ];
    let near: Vec<_> = words.iter().map(|words| cairn.run(*words).stdout).collect();
    let daemon = scene.serve_unix();
    for (words, near) in words.iter().zip(near) {
        assert_eq!(daemon.client().run(*words).stdout, near, "{words:?}");
    }
    // Also one that speaks only what all have in common.
    let peer = Peer::start(Lie::Nothing);
    let far = Cairn::new(peer.url());
    let drawn = |cairn: &Cairn| cairn.run(["tree", path]).succeeded().stdout;
    assert_eq!(drawn(&far), drawn(&cairn));
    let found = |cairn: &Cairn| cairn.run(["find", path]).succeeded().stdout;
    assert_eq!(found(&far), found(&cairn));
}

#[test]
fn list_filters_sorts_and_pages() {
    let scene = Scene::new();
    let cairn = scene.cairn();
    let mut paths = Vec::new();
    for index in 0..5 {
        let file = scene.path(&format!("file-{index}"));
        fs::write(&file, vec![b'x'; 1000 * (index + 1)]).unwrap();
        paths.push(cairn.import(&file));
    }
    paths.push(cairn.import(&trees::vector(scene.folder())));
    let sizes: Vec<_> = values(&cairn, ["list", "--json"])
        .iter()
        .map(|value| (value["path"].as_str().unwrap().to_owned(), value["narSize"].clone()))
        .collect();
    let all: Vec<_> = sizes.iter().map(|(path, _)| path.clone()).collect();
    assert_eq!(BTreeSet::from_iter(&all), BTreeSet::from_iter(&paths));

    assert_eq!(printed(&cairn, ["list", "--name", "t*"]), paths[5..]);
    let named = printed(&cairn, ["list", "--name", "file-[01]", "--name", "*-2"]);
    assert_eq!(BTreeSet::from_iter(&named), BTreeSet::from_iter(&paths[..3]));
    assert_eq!(printed(&cairn, ["list", "--size", "+100kB"]), paths[5..]);
    let sorted = printed(&cairn, ["list", "--sort", "size", "--limit", "3"]);
    assert_eq!(sorted, [&*paths[5], &paths[4], &paths[3]]);
    let sorted = printed(&cairn, ["list", "--sort", "name", "--limit", "10"]);
    assert_eq!(sorted, paths);
    let long = printed(&cairn, ["list", "--long"]);
    let lines: Vec<_> = sizes.iter().map(|(path, size)| format!("{size}\t0\t{path}")).collect();
    assert_eq!(long, lines);
    assert!(printed(&cairn, ["list", "--refers-to", &paths[0]]).is_empty());

    // Page by page, all come once and in order.
    let daemon = scene.serve_tcp();
    for cairn in [&cairn, &daemon.client()] {
        let mut pages = printed(cairn, ["list", "--limit", "2"]);
        while pages.len() < 6 {
            let last = pages.last().unwrap().clone();
            let page = printed(cairn, ["list", "--limit", "2", "--after", &last]);
            assert_eq!(page.len(), 2);
            pages.extend(page);
        }
        assert_eq!(pages, all);
        assert!(printed(cairn, ["list", "--after", &all[5]]).is_empty());
        let filtered = printed(cairn, ["list", "--name", "file-*", "--limit", "4"]);
        let wanted: Vec<_> = all.iter().filter(|path| path.contains("-file-")).take(4).collect();
        assert_eq!(filtered, wanted.into_iter().cloned().collect::<Vec<_>>());
    }
    cairn.run(["list", "--sort", "size"]).failed(2, &["--limit"]);
}

#[test]
fn ping_tells_whether_a_store_answers() {
    let (scene, cairn, _) = stored();
    let rows = printed(&cairn, ["ping"]);
    let services: Vec<_> = rows.iter().map(|row| row.split('\t').next().unwrap()).collect();
    assert_eq!(services, ["blobs", "directories", "path infos"]);
    let daemon = scene.serve_tcp();
    let pinged = values(&daemon.client(), ["ping", "--count", "3", "--json"]);
    for record in &pinged {
        assert_eq!(record["store"], daemon.url());
        assert_eq!(record["offered"], true);
        let times = &record["milliseconds"];
        assert!(times["quickest"].as_f64() <= times["slowest"].as_f64(), "{record}");
    }
    let peer = Peer::start(Lie::Nothing);
    assert_eq!(printed(&Cairn::new(peer.url()), ["ping"]).len(), 3);

    // One that serves a part of it is healthy, too.
    let words = ["daemon", "--listen", "127.0.0.1:0", "--serve", "blob"];
    let mut blobs = scene.cairn().start(words);
    let (url, _) = blobs.wait_for("listening on ");
    let pinged = values(&Cairn::new(url), ["ping", "--json"]);
    let offered: Vec<_> = pinged.iter().map(|record| record["offered"] == true).collect();
    assert_eq!(offered, [true, false, false]);

    Cairn::new("grpc+http://127.0.0.1:1").run(["ping"]).failed(1, &["127.0.0.1:1", "cairn daemon"]);
    // One that takes the connection and says nothing.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let silent = Cairn::new(format!("grpc+http://{}", silent.local_addr().unwrap()));
    silent.run(["ping", "--deadline", "0.2"]).failed(1, &["200ms", "--deadline"]);
    silent.run(["services", "--deadline", "0.2"]).failed(1, &["200ms", "--deadline"]);
    cairn.run(["ping", "--deadline", "0"]).failed(2, &["seconds"]);
}

#[test]
fn services_tells_what_a_store_offers() {
    let (scene, cairn, _) = stored();
    let local = values(&cairn, ["services", "--json"]);
    assert_eq!(local[0]["kind"], "local store");
    assert_eq!(local[0]["usedFor"], json!(["blobs", "directories", "path infos"]));
    assert_eq!(local[0]["version"], Value::Null);
    assert_eq!(local[0]["grpcServices"], Value::Null);

    let daemon = scene.serve_tcp();
    let served = values(&daemon.client(), ["services", "--json"]);
    assert_eq!(served[0]["store"], daemon.url());
    let version = printed(&cairn, ["--version"]);
    assert_eq!(format!("cairn {}", served[0]["version"].as_str().unwrap()), version[0]);
    let offered = served[0]["grpcServices"].as_array().unwrap();
    for name in
        ["snix.castore.v1.BlobService", "cairn.v1.PathInfoService", "cairn.v1.ServerService"]
    {
        let service = json!({ "name": name, "health": "serving" });
        assert!(offered.contains(&service), "{offered:?}");
    }
    let text = daemon.client().run(["services"]).succeeded();
    assert!(text.text().contains("gRPC:        snix.castore.v1.BlobService (serving)"));

    // One that tells nothing of itself.
    let peer = Peer::start(Lie::Nothing);
    let told = Cairn::new(peer.url()).run(["services"]).succeeded();
    assert!(told.text().contains("version:     unknown"), "{}", told.text());
    assert!(told.text().contains("no reflection"), "{}", told.text());

    // Two stores, told of one after the other.
    let blobs = format!("sled:{}", scene.path("blobs").display());
    let both = values(&cairn, ["--blob-service-addr", &blobs, "services", "--json"]);
    assert_eq!(both.len(), 2);
    assert_eq!(both[0]["usedFor"], json!(["blobs"]));
    assert!(Path::new(&scene.path("blobs")).exists());
}

#[test]
fn stats_tells_how_much_a_store_holds() {
    let (scene, cairn, path) = stored();
    let quick = &values(&cairn, ["stats", "--json"])[0];
    assert_eq!((&quick["packs"], quick.get("chunks")), (&json!(1), None));
    let counted = |cairn: &Cairn| values(cairn, ["stats", "--count", "--json"]).remove(0);
    let stats = counted(&cairn);
    assert_eq!(stats["storePaths"]["count"], 1);
    assert_eq!(stats["directories"]["count"], 3);
    assert_eq!(stats["deadBytes"], 0);
    assert_eq!(stats["narBytes"], trees::VECTOR_NAR_SIZE);
    let chunks = &stats["chunks"];
    assert!(chunks["stored"].as_u64() < chunks["bytes"].as_u64(), "{stats}");
    let live: u64 = ["chunks", "chunkLists", "directories", "storePaths", "narHashes"]
        .iter()
        .map(|kind| stats[kind]["stored"].as_u64().unwrap())
        .sum();
    assert_eq!(stats["liveBytes"], live);
    assert!(stats["compressionRatio"].as_f64() > Some(1.0), "{stats}");

    // What the store says of each file adds up.
    let usage = values(&cairn, ["du", "--json", path]);
    let stored = stats["chunks"]["stored"].as_u64().unwrap();
    let stored = stored + stats["chunkLists"]["stored"].as_u64().unwrap();
    assert_eq!(usage[0]["storedBytes"], stored);

    // A server tells the same, and one that is not cairn nothing.
    let daemon = scene.serve_tcp();
    let served = counted(&daemon.client());
    assert_eq!((&served["chunks"], &served["liveBytes"]), (chunks, &stats["liveBytes"]));
    assert_eq!(values(&daemon.client(), ["du", "--json", path]), usage);
    let peer = Peer::start(Lie::Nothing);
    Cairn::new(peer.url()).run(["stats"]).failed(1, &["can't tell", "cairn daemon"]);
    let row = printed(&Cairn::new(peer.url()), ["du", path]).remove(0);
    assert_eq!(row.split('\t').nth(2), Some("-"), "{row}");
    let bucket = scene.new_folder("bucket");
    let bucket = Cairn::new(format!("objectstore+file://{}", bucket.display()));
    bucket.run(["stats"]).failed(1, &["can't tell", "listed"]);
    let text = cairn.run(["stats", "--count"]).succeeded();
    assert!(text.text().contains("store paths:   1, "), "{}", text.text());
}
