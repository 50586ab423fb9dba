//! Stores that have names, and stores that consist of others.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use crate::process::{Running, TREE_PATH, cairn, cairn_on, run, tree};

fn write(folder: &Path, text: impl AsRef<[u8]>) -> PathBuf {
    let file = folder.join("cairn.toml");
    fs::write(&file, text).unwrap();
    file
}

fn with(file: &Path) -> Command {
    let mut command = cairn();
    command.env("CAIRN_CONFIG", file);
    command
}

fn sled(folder: &Path, name: &str) -> String {
    format!("sled:{}", folder.join(name).display())
}

#[test]
fn a_store_is_opened_by_its_name() {
    let folder = tempfile::tempdir().unwrap();
    let (one, other) = (sled(folder.path(), "one"), sled(folder.path(), "other"));
    let text = format!(
        "store = \"one\"\n[stores.one]\nurl = {one:?}\n[stores.other]\nurl = {other:?}\n\
         [stores.both]\nupstreams = [\"one\", {other:?}]\nwrite = {other:?}\n"
    );
    let file = write(folder.path(), text);
    let source = tree(folder.path(), "tree");
    let listed = |arguments: &[&str]| run(with(&file).args(arguments).arg("list")).stdout();
    let imported = run(with(&file).arg("import").arg(&source)).stdout();
    assert_eq!(listed(&[]), imported);
    assert_eq!(listed(&["--store", "other"]), "");
    assert_eq!(listed(&["--store", "both"]), imported);
    assert_eq!(listed(&["--store", &one]), imported);
    let mut variable = with(&file);
    assert_eq!(run(variable.env("CAIRN_STORE", "other").arg("list")).stdout(), "");

    // What is stored goes to the one that is written to, with all that belongs to it.
    fs::write(source.join("more"), "more").unwrap();
    let more = run(with(&file).args(["--store", "both", "import"]).arg(&source)).stdout();
    assert_eq!(listed(&["--store", "one"]), imported);
    assert_eq!(listed(&["--store", "other"]), more);
    let exported = folder.path().join("exported");
    let mut export = with(&file);
    run(export.args(["--store", "other", "export", more.trim_end()]).arg(&exported)).stdout();
    let files = |folder: &Path| -> Vec<String> {
        let mut names: Vec<_> = fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    };
    assert_eq!(files(&exported), files(&source));
    let mut copy = with(&file);
    let copied = run(copy.args(["copy", "--from", "both", "--to", "one", "--all"])).stdout();
    assert_eq!(copied, more);
    let mut twice = with(&file);
    assert_eq!(run(twice.args(["copy", "--to", "one", "--all"])).code, Some(2));

    for (name, says) in
        [("ohter", "did you mean \"other\"?"), ("zzz", "there are both, one, other")]
    {
        let ended = run(with(&file).args(["--store", name, "list"]));
        assert_eq!(ended.code, Some(2));
        assert!(ended.stderr.contains(says), "{}", ended.stderr);
    }
}

#[test]
fn stores_are_of_others_and_of_caches() {
    let folder = tempfile::tempdir().unwrap();
    let source = tree(folder.path(), "tree");
    let far_store = folder.path().join("far");
    run(cairn_on(&far_store).arg("import").arg(&source)).stdout();
    let socket = folder.path().join("socket");
    let mut daemon = Running::start(
        cairn_on(&far_store).arg("daemon").arg(format!("--listen=unix:{}", socket.display())),
    );
    let far = daemon.line("listening on ");
    let text = format!(
        "store = \"all\"\n[stores.site]\nnear = {near:?}\nfar = {far:?}\nsize = \"64MiB\"\n\
         [stores.all]\nupstreams = [\"own\", \"site\"]\n[stores.own]\nurl = {own:?}\n",
        near = sled(folder.path(), "near"),
        own = sled(folder.path(), "own"),
    );
    let file = write(folder.path(), text);
    let path = format!("{TREE_PATH}/d/f");
    assert_eq!(run(with(&file).args(["cat", &path])).stdout(), "hi\n");
    assert_eq!(run(with(&file).args(["ls", "-R", TREE_PATH])).code, Some(0));
    let stats = run(with(&file).args(["--store", "site", "cache", "stats"]));
    assert_eq!(stats.code, Some(0), "{}", stats.stderr);

    // The one that is far is gone: what is near is there, and the rest is not known.
    daemon.end();
    assert_eq!(run(with(&file).args(["cat", &path])).stdout(), "hi\n");
    let big = run(with(&file).args(["cat", &format!("{TREE_PATH}/big")]));
    assert_eq!(big.code, Some(1), "{}", big.stderr);
    assert!(big.stderr.contains("can't be reached"), "{}", big.stderr);
    let unknown = TREE_PATH.replacen('y', "z", 1);
    let unknown = run(with(&file).args(["path-info", &unknown]));
    assert_eq!(unknown.code, Some(1), "{}", unknown.stderr);

    // All of it as one address.
    let all = format!(
        "upstreams:?store={}&store=cache:?near={}%26far={}",
        sled(folder.path(), "own"),
        sled(folder.path(), "near"),
        far
    );
    assert_eq!(run(cairn().args(["--store", &all, "cat", &path])).stdout(), "hi\n");
    let shown = run(with(&file).args(["config", "show", "--json"])).stdout();
    let line = shown.lines().find(|line| line.contains("stores.all")).unwrap();
    let record: serde_json::Value = serde_json::from_str(line).unwrap();
    assert_eq!(record["value"], format!("{all}%2526size=64MiB").replace("%2526", "%26"));
    assert_eq!(record["line"], 6);
}

#[test]
fn what_is_no_store_is_told_with_its_line() {
    let folder = tempfile::tempdir().unwrap();
    for (text, says) in [
        ("stores = 1", &[":1: there is no key \"stores\""][..]),
        ("[stores]\na = \"memory:\"", &[":2: stores.a is no table", "write [stores.a]"]),
        ("[stores.a]", &[":1: [stores.a] says not what the store is"]),
        ("[stores.a]\nnear = \"memory:\"", &[":1: [stores.a] says not what the store is"]),
        ("[stores.a]\nurl = \"memory:\"\nfar = \"memory:\"", &["says not what the store is"]),
        ("[stores.a]\nurll = \"memory:\"", &[":2: a store has no key \"urll\"", "\"url\"?"]),
        ("[stores.a]\nurl = 1", &[":2: url is a text in quotes"]),
        ("[stores.a]\nupstreams = \"b\"", &[":2: upstreams is a list of texts"]),
        ("[stores.a]\nupstreams = [1]", &[":2: upstreams is a list of texts"]),
        ("[stores.a]\nupstreams = []", &[":1: store \"a\": a store is missing"]),
        ("[stores.\"a:b\"]\nurl = \"memory:\"", &[":1: \"a:b\" can't be the name of a store"]),
        ("[stores.a]\nurl = \"http://x\"", &[":2: ", "did you mean grpc+http"]),
        (
            "[stores.a]\nurl = \"b\"",
            &[":2: no store is named \"b\" in the configuration; there are a"],
        ),
        (
            "[stores.site]\nurl = \"memory:\"\n[stores.a]\nurl = \"stie\"",
            &[":4: no store is named \"stie\"", "did you mean \"site\"?"],
        ),
        ("[stores.a]\nurl = \"a\"", &[":1: store \"a\" consists of itself: a, a"]),
        (
            "[stores.a]\nupstreams = [\"b\"]\n[stores.b]\nnear = \"memory:\"\nfar = \"a\"",
            &[":1: store \"a\" consists of itself: a, b, a"],
        ),
        (
            "[stores.a]\nupstreams = [\"memory:\"]\nwrite = \"sled:/a\"",
            &[":3: write: \"sled:/a\" is none of the upstreams"],
        ),
        (
            "[stores.a]\nupstreams = [\"memory:\", \"memory:\"]",
            &[":1: store \"a\": memory: is there twice"],
        ),
        (
            "[stores.a]\nnear = \"grpc+http://h\"\nfar = \"memory:\"",
            &[":1: store \"a\": near is in sled:/path or memory:"],
        ),
        (
            "[stores.a]\nnear = \"memory:\"\nfar = \"memory:\"\nsize = \"1GB of\"",
            &[":4: size: \"1GB of\" is no size"],
        ),
        ("store = \"a\"", &[":1: store: no store is named \"a\""]),
        ("\nstore = \"a\"\n[stores.b]\nurl = \"memory:\"", &[":2: store: no store is named \"a\""]),
    ] {
        let file = write(folder.path(), text);
        let ended = run(cairn().args(["config", "check"]).arg(&file));
        assert_eq!(ended.code, Some(2), "{text}: {}", ended.stderr);
        for says in says {
            assert!(ended.stderr.contains(says), "{text}: {says} is not in {}", ended.stderr);
        }
    }
}

#[test]
fn stores_of_stores_have_bounds() {
    let folder = tempfile::tempdir().unwrap();
    let check = |text: &str| run(cairn().args(["config", "check"]).arg(write(folder.path(), text)));
    let chain = |length: usize| -> String {
        let link = |index: usize| format!("[stores.s{index}]\nupstreams = [\"s{}\"]\n", index + 1);
        let end = format!("[stores.s{length}]\nurl = \"memory:\"\n");
        (0..length).map(link).chain([end]).collect()
    };
    assert_eq!(check(&chain(7)).code, Some(0));
    for length in [8, 200] {
        let ended = check(&chain(length));
        assert_eq!(ended.code, Some(2));
        assert!(ended.stderr.contains("at most 8 deep"), "{}", ended.stderr);
    }
    // Small files can name very much.
    let level = |level: usize| -> String {
        let of = |store: usize| {
            let mut below: Vec<_> =
                (0..16).map(|index| format!("\"l{}-{index}\"", level - 1)).collect();
            below.rotate_left(store);
            format!("[stores.l{level}-{store}]\nupstreams = [{}]\n", below.join(", "))
        };
        (0..16).map(of).collect()
    };
    let leaves: String =
        (0..16).map(|index| format!("[stores.l0-{index}]\nurl = \"sled:/{index}\"\n")).collect();
    let broad = format!("{leaves}{}{}{}", level(1), level(2), level(3));
    let ended = check(&broad);
    assert_eq!(ended.code, Some(2));
    assert!(ended.stderr.contains("at most 64 others"), "{}", ended.stderr);
    let many: String =
        (0..300).map(|index| format!("[stores.s{index}]\nurl = \"memory:\"\n")).collect();
    assert!(check(&many).stderr.contains("more than 256 stores"));
}

#[test]
fn no_folder_is_the_cache_of_two_stores() {
    let folder = tempfile::tempdir().unwrap();
    let near = sled(folder.path(), "near");
    let of = |name: &str| format!("cache:?near={near}%26far={}", sled(folder.path(), name));
    let both = format!("upstreams:?store={}&store={}", of("one"), of("other"));
    let ended = run(cairn().args(["--store", &both, "list"]));
    assert_eq!(ended.code, Some(2), "{}", ended.stderr);
    assert!(ended.stderr.contains("is the cache of two stores"), "{}", ended.stderr);
}
