//! The commands that look at a store: what they print, for people and for scripts.

use std::{collections::BTreeMap, fs};

use cairn_castore::Digest;
use cairn_tests::{
    cairn::{Cairn, Scene},
    compare::{Face, assert_same},
    process::run,
    trees,
};
use serde_json::{Value, json};

/// What [`trees::VECTOR_NAR_SHA256`] is in the words of Nix.
fn nar_hash() -> String {
    let hash = blake3::Hash::from_hex(trees::VECTOR_NAR_SHA256).unwrap();
    format!("sha256:{}", cairn_store::nixbase32::encode(hash.as_bytes()))
}

fn root() -> String {
    trees::VECTOR_ROOT.parse::<Digest>().unwrap().to_string()
}

fn stored() -> (Scene, Cairn, &'static str) {
    let scene = Scene::new();
    let cairn = scene.cairn();
    let path = cairn.import(&trees::vector(scene.folder()));
    assert_eq!(path, trees::VECTOR_STORE_PATH);
    (scene, cairn, trees::VECTOR_STORE_PATH)
}

fn values(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn ls_lists_names_and_what_is_below() {
    let (_scene, cairn, path) = stored();
    let names = cairn.run(["ls", path]).succeeded().lines();
    assert_eq!(names, ["big", "d", "empty", "link", "run", "zero"]);
    let names = cairn.run(["ls", "-R", path]).succeeded().lines();
    assert_eq!(names, ["big", "d", "d/f", "empty", "link", "run", "zero"]);
    assert_eq!(cairn.run(["ls", &format!("{path}/d")]).succeeded().lines(), ["f"]);
    assert_eq!(cairn.run(["ls", &format!("{path}/empty")]).succeeded().text(), "");

    let long = cairn.run(["ls", "-l", path]).succeeded().lines();
    let words: Vec<Vec<_>> = long.iter().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(words[0], ["-r--r--r--", "700000", "big"]);
    assert_eq!(words[1], ["dr-xr-xr-x", "-", "d/"]);
    assert_eq!(words[3], ["lrwxrwxrwx", "3", "link", "->", "d/f"]);
    assert_eq!(words[4], ["-r-xr-xr-x", "18", "run"]);
}

#[test]
fn ls_tells_scripts_all() {
    let (_scene, cairn, path) = stored();
    let listed = cairn.run(["ls", "-R", "--json", path]).succeeded();
    let entries: BTreeMap<String, Value> = values(listed.text())
        .into_iter()
        .map(|value| (value["path"].as_str().unwrap().to_owned(), value))
        .collect();
    assert_eq!(entries.len(), 7);
    let hi = Digest::of(b"hi\n").to_string();
    let file = json!({
        "path": "d/f", "type": "file", "digest": hi, "size": 3, "executable": false
    });
    assert_eq!(entries["d/f"], file);
    assert_eq!(entries["link"], json!({ "path": "link", "type": "symlink", "target": "d/f" }));
    assert_eq!(entries["run"]["executable"], json!(true));
    let empty = Digest::EMPTY.to_string();
    let directory = json!({ "path": "empty", "type": "directory", "digest": empty });
    assert_eq!(entries["empty"], directory);
}

#[test]
fn cat_prints_bytes_as_they_are() {
    let (_scene, cairn, path) = stored();
    let names = ["run", "big", "zero", "d/f"].map(|name| format!("{path}/{name}"));
    let words = ["cat"].into_iter().chain(names.iter().map(String::as_str));
    let printed = cairn.run(words).succeeded().stdout;
    let wanted = [b"#!/bin/sh\necho ok\n".to_vec(), vec![b'a'; 700_000], b"hi\n".to_vec()].concat();
    assert!(printed == wanted);

    for digest in [Digest::of(b"hi\n").to_string(), Digest::of(b"hi\n").to_hex()] {
        assert_eq!(cairn.run(["cat", &digest]).succeeded().text(), "hi\n");
    }
    let below = format!("{}/d/f", root());
    assert_eq!(cairn.run(["cat", &below]).succeeded().text(), "hi\n");
    let base = trees::base_name(path);
    assert_eq!(cairn.run(["cat", &format!("{base}/d/f")]).succeeded().text(), "hi\n");
    let folder = format!("{path}/d");
    cairn.run(["cat", &folder]).failed(1, &[&folder, "directory"]);
}

#[test]
fn stat_tells_what_a_node_is() {
    let (_scene, cairn, path) = stored();
    let stat = |name: &str| {
        let printed = cairn.run(["stat", "--json", &format!("{path}{name}")]).succeeded();
        serde_json::from_str::<Value>(printed.text()).unwrap()
    };
    assert_eq!(stat(""), json!({ "type": "directory", "digest": root(), "entries": 6 }));
    assert_eq!(stat("/link"), json!({ "type": "symlink", "target": "d/f" }));
    let big = stat("/big");
    assert_eq!(big["size"], json!(700_000));
    let sizes = big["chunks"].as_array().unwrap().iter();
    assert_eq!(sizes.map(|chunk| chunk["size"].as_u64().unwrap()).sum::<u64>(), 700_000);

    let text = cairn.run(["stat", &format!("{path}/run")]).succeeded();
    let lines: BTreeMap<_, _> =
        text.text().lines().filter_map(|line| line.split_once(':')).collect();
    assert_eq!(lines["type"].trim(), "file");
    assert_eq!(lines["size"].trim(), "18");
    assert_eq!(lines["executable"].trim(), "yes");
}

#[test]
fn path_info_and_list_speak_the_words_of_nix() {
    let (scene, cairn, path) = stored();
    let wanted = json!({
        "path": path,
        "root": { "type": "directory", "digest": root() },
        "narSize": trees::VECTOR_NAR_SIZE,
        "narHash": nar_hash(),
        "references": [],
        "deriver": null,
        "signatures": [],
    });
    let info = cairn.run(["path-info", "--json", path]).succeeded();
    let mut info: Value = serde_json::from_str(info.text()).unwrap();
    info.as_object_mut().unwrap().remove("ca");
    assert_eq!(info, wanted);

    let other = cairn.import(&trees::small(scene.folder(), "other"));
    assert_eq!(cairn.list(), {
        let mut both = vec![path.to_owned(), other];
        both.sort_unstable();
        both
    });
    let listed = cairn.run(["list", "--json"]).succeeded();
    assert!(values(listed.text()).iter().any(|value| value["narHash"] == json!(nar_hash())));

    let again = scene.path("tree");
    let words = ["import", "--json", again.to_str().unwrap()];
    let imported = values(cairn.run(words).succeeded().text());
    assert_eq!(imported[0]["path"], json!(path));

    let text = cairn.run(["path-info", path]).succeeded();
    assert!(text.text().contains(&nar_hash()), "{}", text.text());
}

#[test]
fn export_writes_any_part() {
    let (scene, cairn, path) = stored();
    let tree = scene.path("tree");
    for (reference, part) in [
        (path.to_owned(), ""),
        (root(), ""),
        (format!("{path}/d"), "d"),
        (format!("{path}/run"), "run"),
        (format!("{path}/link"), "link"),
        (format!("{path}/empty"), "empty"),
    ] {
        let destination = scene.path("exported");
        cairn.export(&reference, &destination).succeeded();
        let source = if part.is_empty() { tree.clone() } else { tree.join(part) };
        assert_same(&source, &destination, Face::Plain);
        match destination.symlink_metadata().unwrap().is_dir() {
            true => fs::remove_dir_all(destination).unwrap(),
            false => fs::remove_file(destination).unwrap(),
        }
    }
}

#[test]
fn names_that_are_no_text_are_whole_for_scripts() {
    use std::{ffi::OsStr, os::unix::ffi::OsStrExt as _};

    let scene = Scene::new();
    let tree = scene.new_folder("odd");
    fs::write(tree.join(OsStr::from_bytes(b"a\xff")), "odd").unwrap();
    let path = scene.cairn().import(&tree);
    let listed = scene.cairn().run(["ls", &path]).succeeded();
    assert_eq!(listed.stdout, b"a\xff\n");
    let listed = scene.cairn().run(["ls", "--json", &path]).succeeded();
    assert_eq!(values(listed.text())[0]["path_hex"], json!("61ff"));
    let reference = [path.as_bytes(), b"/a\xff"].concat();
    let words = [OsStr::new("cat"), OsStr::from_bytes(&reference)];
    assert_eq!(scene.cairn().run(words).succeeded().text(), "odd");
}

#[test]
fn completions_and_help_are_there_for_every_command() {
    let cairn = Cairn::new("memory:");
    for shell in ["bash", "zsh", "fish"] {
        let script = cairn.run(["completions", shell]).succeeded();
        assert!(script.text().contains("path-info"), "{shell}");
    }
    let commands = [
        "import",
        "mount",
        "daemon",
        "export",
        "ls",
        "cat",
        "stat",
        "path-info",
        "list",
        "completions",
    ];
    let help = cairn.run(["--help"]).succeeded();
    for command in commands {
        assert!(help.text().contains(command));
        assert!(cairn.run([command, "--help"]).succeeded().text().contains("Usage:"));
    }
    cairn.run(["--version"]).succeeded();
}

#[test]
fn a_reader_that_goes_is_no_failure() {
    let (_scene, cairn, path) = stored();
    let mut shell = std::process::Command::new("bash");
    let script = "set -o pipefail; \"$0\" cat \"$1\" | head -c 10";
    shell.args(["-c", script]).arg(cairn_tests::cairn::binary()).arg(format!("{path}/big"));
    let command = cairn.command::<&str>([]);
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => shell.env(name, value),
            None => shell.env_remove(name),
        };
    }
    let finished = run(&mut shell).succeeded();
    assert_eq!((finished.text(), finished.stderr.as_str()), ("aaaaaaaaaa", ""));
}
