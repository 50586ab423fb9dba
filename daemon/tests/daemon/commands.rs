//! What the commands print, and the codes they end with.

use std::{fs, os::unix::ffi::OsStringExt as _, path::Path, process::Stdio};

use crate::process::{Running, TREE_PATH, cairn, cairn_on, noise, run, tree};

#[test]
fn a_tree_goes_in_and_can_be_looked_at() {
    let folder = tempfile::tempdir().unwrap();
    let store = folder.path().join("store");
    let cairn = |arguments: &[&str]| run(cairn_on(&store).args(arguments)).stdout();
    let source = tree(folder.path(), "tree");
    let imported = run(cairn_on(&store).arg("import").arg(&source)).stdout();
    assert_eq!(imported, format!("{TREE_PATH}\n"));
    assert_eq!(cairn(&["list"]), imported);

    assert_eq!(cairn(&["ls", TREE_PATH]), "big\nd\nempty\nlink\nrun\nzero\n");
    assert_eq!(
        cairn(&["ls", "-R", &format!("{TREE_PATH}/")]),
        "big\nd\nd/f\nempty\nlink\nrun\nzero\n"
    );
    let long = cairn(&["ls", "-l", TREE_PATH]);
    let lines: Vec<_> = long.lines().collect();
    assert_eq!(lines[0], "-r--r--r--       700000 big");
    assert_eq!(lines[1], "dr-xr-xr-x            - d/");
    assert_eq!(lines[3], "lrwxrwxrwx            3 link -> d/f");
    assert_eq!(lines[4], "-r-xr-xr-x           18 run");
    assert_eq!(cairn(&["ls", &format!("{TREE_PATH}/d/f")]), "f\n");

    let json = cairn(&["ls", "--json", TREE_PATH]);
    let entries: Vec<serde_json::Value> =
        json.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(entries[4]["path"], "run");
    assert_eq!(entries[4]["executable"], true);
    assert_eq!(entries[3]["target"], "d/f");
    assert_eq!(entries[1]["digest"], "blake3-Ch4BqF6FCAgZV3QJpNIt881gzAQsp92loNIhP+8wU4I=");

    let hi = "blake3-C4tgJI+tesbfrCIbfgGouRx3JCGhWzh90fstapSu5Dg=";
    assert_eq!(cairn(&["cat", &format!("{TREE_PATH}/d/f"), hi]), "hi\nhi\n");
    let stat = cairn(&["stat", &format!("{TREE_PATH}/d/f")]);
    assert_eq!(
        stat,
        format!(
            "type:       file\ndigest:     {hi}\nsize:       3\nexecutable: no\nchunks:     1\n"
        )
    );
    let big: serde_json::Value =
        serde_json::from_str(&cairn(&["stat", "--json", &format!("{TREE_PATH}/big")])).unwrap();
    assert_eq!(big["size"], 700_000);
    assert!(big["chunks"].as_array().unwrap().len() > 1, "{big}");

    let info = cairn(&["path-info", "--json", TREE_PATH]);
    let info: serde_json::Value = serde_json::from_str(&info).unwrap();
    assert_eq!(info["path"], TREE_PATH);
    assert_eq!(info["narSize"], 701_424);
    assert_eq!(info["root"]["type"], "directory");
    let plain = cairn(&["path-info", TREE_PATH]);
    assert!(plain.contains("\nNAR size:   701424\n"), "{plain}");
    assert!(plain.contains(info["narHash"].as_str().unwrap()), "{plain}");

    let again = folder.path().join("again");
    run(cairn_on(&store).args(["export", TREE_PATH]).arg(&again)).stdout();
    assert_eq!(fs::read(again.join("d/f")).unwrap(), b"hi\n");
    assert_eq!(fs::read_link(again.join("link")).unwrap(), Path::new("d/f"));
    let reimport = run(cairn_on(&store).args(["import", "--name", "tree"]).arg(&again)).stdout();
    assert_eq!(reimport, imported, "what was exported is not what was imported");
}

#[test]
fn names_that_are_no_text_come_through() {
    let folder = tempfile::tempdir().unwrap();
    let store = folder.path().join("store");
    let source = folder.path().join("names");
    fs::create_dir(&source).unwrap();
    let name = std::ffi::OsString::from_vec(b"a\xff\nb".to_vec());
    fs::write(source.join(&name), "x").unwrap();
    let path = run(cairn_on(&store).arg("import").arg(&source)).stdout();
    let path = path.trim_end();

    let listed = run(cairn_on(&store).args(["ls", path]));
    assert_eq!(listed.stdout, b"a\xff\nb\n");
    let json = run(cairn_on(&store).args(["ls", "--json", path])).stdout();
    let entry: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(entry["path_hex"], "61ff0a62");
    let mut target = std::ffi::OsString::from(path);
    target.push("/");
    target.push(&name);
    assert_eq!(run(cairn_on(&store).arg("cat").arg(target)).stdout(), "x");
}

#[test]
fn the_exit_code_says_what_went_wrong() {
    let folder = tempfile::tempdir().unwrap();
    let store = folder.path().join("store");
    let failing = |code: i32, arguments: &[&str], says: &str| {
        let ended = run(cairn_on(&store).args(arguments));
        assert_eq!(ended.code, Some(code), "{arguments:?}: {}", ended.stderr);
        assert!(ended.stderr.contains(says), "{arguments:?}: {}", ended.stderr);
        assert!(ended.stdout.is_empty(), "{arguments:?}");
    };
    let unknown = "0b8b60248fad7ac6dfac221b7e01a8b91c772421a15b387dd1fb2d6a94aee438";
    // Wrong usage.
    failing(2, &["frobnicate"], "frobnicate");
    failing(2, &["cat", "no-such-thing"], "no-such-thing");
    failing(2, &["--store", "ftp://host", "list"], "ftp");
    failing(2, &["daemon", "--listen", "nowhere"], "nowhere");
    let unfit = folder.path().join("not a name");
    fs::write(&unfit, "x").unwrap();
    failing(2, &["import", unfit.to_str().unwrap()], "--name");
    // Not there.
    failing(3, &["cat", unknown], "not in the store");
    failing(3, &["ls", TREE_PATH], "not in the store");
    failing(3, &["path-info", TREE_PATH], "not in the store");
    // Anything else.
    let missing = folder.path().join("missing");
    failing(1, &["import", missing.to_str().unwrap()], "does not exist");
    let nobody = format!("grpc+unix:{}", folder.path().join("nobody").display());
    failing(1, &["--store", &nobody, "list"], "cairn daemon");
    failing(1, &["mount", missing.to_str().unwrap()], "mkdir");

    let source = tree(folder.path(), "tree");
    run(cairn_on(&store).arg("import").arg(&source)).stdout();
    failing(3, &["cat", &format!("{TREE_PATH}/nothing")], "nothing");
    failing(3, &["cat", &format!("{TREE_PATH}/d/f/g")], "is a file");
    failing(1, &["cat", &format!("{TREE_PATH}/d")], "is a directory");
    failing(3, &["path-info", &TREE_PATH.replace("-tree", "-trea")], "not in the store");
}

#[test]
fn damage_is_found_and_told() {
    let folder = tempfile::tempdir().unwrap();
    let store = folder.path().join("store");
    let file = folder.path().join("file");
    let bytes = noise(1, 100_000);
    fs::write(&file, &bytes).unwrap();
    let path = run(cairn_on(&store).arg("import").arg(&file)).stdout();
    let path = path.trim_end();
    assert_eq!(run(cairn_on(&store).args(["cat", path])).stdout, bytes);

    // The bytes do not compress, so they are in a pack as they are.
    let needle = &bytes[50_000..50_032];
    let mut damaged = 0;
    for pack in fs::read_dir(store.join("packs")).unwrap() {
        let pack = pack.unwrap().path();
        let mut content = fs::read(&pack).unwrap();
        if let Some(place) = content.windows(needle.len()).position(|window| window == needle) {
            content[place] ^= 1;
            fs::write(&pack, content).unwrap();
            damaged += 1;
        }
    }
    assert_eq!(damaged, 1);
    let ended = run(cairn_on(&store).args(["cat", path]));
    assert_eq!(ended.code, Some(4), "{}", ended.stderr);
    assert!(ended.stderr.contains("damaged"), "{}", ended.stderr);
    assert!(bytes.starts_with(&ended.stdout), "damaged bytes were handed out");

    // Storing it again heals it.
    run(cairn_on(&store).arg("import").arg(&file)).stdout();
    assert_eq!(run(cairn_on(&store).args(["cat", path])).stdout, bytes);
}

#[test]
fn a_reader_that_has_enough_is_no_failure() {
    let folder = tempfile::tempdir().unwrap();
    let store = folder.path().join("store");
    let file = folder.path().join("file");
    fs::write(&file, noise(2, 4_000_000)).unwrap();
    let path = run(cairn_on(&store).arg("import").arg(&file)).stdout();
    let mut child = cairn_on(&store)
        .args(["cat", path.trim_end()])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0));
    assert!(output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn services_can_be_in_different_stores() {
    let folder = tempfile::tempdir().unwrap();
    let [blobs, rest] = ["blobs", "rest"].map(|name| folder.path().join(name));
    let source = tree(folder.path(), "tree");
    let blobs_at = format!("sled:{}", blobs.display());
    let mut import = cairn_on(&rest);
    import.args(["--blob-service-addr", &blobs_at, "import"]).arg(&source);
    assert_eq!(run(&mut import).stdout(), format!("{TREE_PATH}\n"));

    let file = format!("{TREE_PATH}/d/f");
    assert_eq!(run(cairn_on(&rest).args(["cat", &file])).code, Some(3));
    let both = run(cairn_on(&rest).env("BLOB_SERVICE_ADDR", &blobs_at).args(["cat", &file]));
    assert_eq!(both.stdout(), "hi\n");
}

#[test]
fn the_default_store_is_the_users() {
    // Only a user who is not root has one that a test may use.
    if rustix::process::geteuid().is_root() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    run(cairn().env("XDG_DATA_HOME", folder.path()).arg("list")).stdout();
    assert!(folder.path().join("cairn/format").exists());
}

#[test]
fn a_store_in_a_deep_folder_is_shared_too() {
    // Longer than the address of a socket.
    let folder = tempfile::tempdir().unwrap();
    let store = folder.path().join("x".repeat(120)).join("store");
    let socket = folder.path().join("socket");
    let listen = format!("unix:{}", socket.display());
    let mut holder = Running::start(cairn_on(&store).args(["daemon", "--listen", &listen]));
    holder.line("listening on ");
    let source = tree(folder.path(), "tree");
    let imported = run(cairn_on(&store).arg("import").arg(&source)).stdout();
    assert_eq!(imported, format!("{TREE_PATH}\n"));
    holder.end();
    assert_eq!(run(cairn_on(&store).arg("list")).stdout(), imported);
}
