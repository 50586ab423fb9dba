//! What configuration files do to the commands, and what is said of files that are wrong.

use std::{
    fs,
    os::unix::fs::{PermissionsExt as _, symlink},
    path::{Path, PathBuf},
    process::Command,
};

use crate::process::{TREE_PATH, cairn, run, tree};

/// A command that reads this file.
fn with(file: &Path) -> Command {
    let mut command = cairn();
    command.env_remove("CAIRN_CONFIG").arg("--config").arg(file);
    command
}

fn write(folder: &Path, text: impl AsRef<[u8]>) -> PathBuf {
    let file = folder.join("cairn.toml");
    fs::write(&file, text).unwrap();
    file
}

/// The value of a key and where it comes from.
fn shown(command: &mut Command, table: Option<&str>, key: &str) -> (String, String) {
    let lines = run(command.args(["config", "show", "--json"])).stdout();
    let mut records = lines.lines().map(|line| serde_json::from_str(line).unwrap());
    let is_it =
        |record: &serde_json::Value| record["key"] == key && record["table"].as_str() == table;
    let record = records.find(is_it).unwrap();
    let text = |name: &str| record[name].as_str().map(str::to_owned).unwrap_or_default();
    let source = match text("source").as_str() {
        "file" => format!("{}:{}", text("file"), record["line"]),
        "variable" => text("variable"),
        source => source.to_owned(),
    };
    (record["value"].to_string(), source)
}

#[test]
fn a_file_sets_what_flags_would() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| format!("sled:{}", folder.path().join(name).display());
    let file = write(folder.path(), format!("store = {:?}\n", at("of-the-file")));
    let source = tree(folder.path(), "tree");
    let imported = run(with(&file).arg("import").arg(&source)).stdout();
    assert_eq!(imported, format!("{TREE_PATH}\n"));
    let list = ["list"];
    assert_eq!(run(with(&file).args(list)).stdout(), imported);
    assert_eq!(run(cairn().env("CAIRN_CONFIG", &file).args(list)).stdout(), imported);
    assert_eq!(run(cairn().args(["--store", &at("of-the-file"), "list"])).stdout(), imported);
    // A variable goes before the file, and a flag before both, wherever it stands.
    let variable = at("of-the-variable");
    assert_eq!(run(with(&file).env("CAIRN_STORE", &variable).args(list)).stdout(), "");
    let mut flag = with(&file);
    flag.env("CAIRN_STORE", &variable).args(["list", "--store", &at("of-the-file")]);
    assert_eq!(run(&mut flag).stdout(), imported);
    assert_eq!(
        run(cairn().args(["list", &format!("--config={}", file.display())])).stdout(),
        imported
    );
}

#[test]
fn it_is_shown_who_has_set_what() {
    let folder = tempfile::tempdir().unwrap();
    let text = "\
store = \"sled:/of/the/file\"\n\
log-file = \"/dev/null\"\n\
verbose = 0x2\n\
\n\
[mount]\n\
uid-gid = \"1:2\"\n\
allow-other = true\n\
[daemon]\n\
listen = [\"127.0.0.1:1\", \"unix:/s\"]\n\
serve = \"blob,directory\"\n";
    let file = write(folder.path(), text);
    let line = |number: usize| format!("{}:{number}", file.display());
    let show = |table, key| shown(&mut with(&file), table, key);
    assert_eq!(show(None, "store"), ("\"sled:/of/the/file\"".to_owned(), line(1)));
    assert_eq!(show(None, "verbose"), ("2".to_owned(), line(3)));
    assert_eq!(show(None, "quiet"), ("false".to_owned(), "default".to_owned()));
    assert_eq!(show(None, "cache"), ("null".to_owned(), String::new()));
    assert_eq!(show(Some("mount"), "allow-other"), ("true".to_owned(), line(7)));
    assert_eq!(show(Some("mount"), "grace"), ("10".to_owned(), "default".to_owned()));
    let listen = "[\"127.0.0.1:1\",\"unix:/s\"]".to_owned();
    assert_eq!(show(Some("daemon"), "listen"), (listen, line(9)));

    let mut variable = with(&file);
    variable.env("CAIRN_STORE", "memory:").env("CAIRN_WHOLE_FILES", "/w");
    let whole_files = shown(&mut variable, Some("mount"), "whole-files");
    assert_eq!(whole_files, ("\"/w\"".to_owned(), "CAIRN_WHOLE_FILES".to_owned()));
    let mut variable = with(&file);
    variable.env("CAIRN_STORE", "memory:");
    let store = shown(&mut variable, None, "store");
    assert_eq!(store, ("\"memory:\"".to_owned(), "CAIRN_STORE".to_owned()));
    let mut flag = with(&file);
    flag.args(["--store", "sled:/of/the/flag"]);
    let store = shown(&mut flag, None, "store");
    assert_eq!(store, ("\"sled:/of/the/flag\"".to_owned(), "flag".to_owned()));

    // What is shown is a file that sets the same.
    let written = folder.path().join("written.toml");
    fs::write(&written, run(with(&file).args(["config", "show"])).stdout()).unwrap();
    let values = |file: &Path| {
        let lines = run(with(file).args(["config", "show"])).stdout();
        let value = |line: &str| line.split('#').next().unwrap().trim().to_owned();
        lines.lines().map(value).filter(|line| !line.is_empty()).collect::<Vec<_>>()
    };
    assert_eq!(values(&written), values(&file));
}

#[test]
fn a_flag_goes_before_a_setting_that_it_excludes() {
    let folder = tempfile::tempdir().unwrap();
    let file = write(folder.path(), "quiet = true\n[mount]\nno-list-root = true\n");
    let quiet = |arguments: &[&str]| shown(with(&file).args(arguments), None, "quiet").0;
    assert_eq!(quiet(&[]), "true");
    assert_eq!(quiet(&["-v"]), "false");
    assert_eq!(quiet(&["--quiet=false"]), "false");
    assert_eq!(quiet(&["-q"]), "true");
    let verbose = shown(with(&file).arg("-vv"), None, "verbose");
    assert_eq!(verbose, ("2".to_owned(), "flag".to_owned()));
    // What it logs shows what counts.
    let log = |arguments: &[&str]| {
        let mut list = with(&file);
        run(list.env("CAIRN_STORE", "memory:").arg("list").args(arguments)).stderr
    };
    assert!(log(&["-v"]).contains("opened the store"));
    assert_eq!(log(&[]), "");
}

#[test]
fn what_is_wrong_is_told_with_its_line_and_what_would_be_right() {
    let folder = tempfile::tempdir().unwrap();
    for (text, says) in [
        ("stroe = \"memory:\"", &[":1: there is no key \"stroe\"", "did you mean \"store\"?"][..]),
        ("\n\n[mont]\na = 1", &[":3: there is no table [mont]", "did you mean [mount]?"]),
        ("[mount]\ndedline = 3", &[":2: there is no key \"dedline\" in [mount]", "\"deadline\""]),
        ("[mount]\nstore = \"memory:\"", &[":2: there is no key", "of the file itself, above all"]),
        ("deadline = 3", &[":1: there is no key \"deadline\"", "a key of [mount] and [virtiofs]"]),
        ("[cache-wram]", &[":1: there is no table [cache-wram]"]),
        ("store = \"sled:x\"", &[":1: store: ", "write sled:/path"]),
        ("store = [\"memory:\"]", &[":1: store is a text in quotes"]),
        ("quiet = \"yes\"", &[":1: quiet is true or false"]),
        ("verbose = true", &[":1: verbose is a number of times"]),
        ("verbose = 256", &[":1: verbose: 256"]),
        ("verbose = -1", &[":1: verbose: "]),
        ("cache = \"near\"", &[":1: cache: \"near\" is no absolute path"]),
        ("cache-size = \"1MiB\"", &[":1: cache-size: a cache has at least 64MiB"]),
        ("\n[mount]\ndeadline = 0", &[":3: deadline: 0 is not in 1.."]),
        ("[mount]\nprofile = \"fast\"", &["\"fast\" is none of auto, cache, passthrough"]),
        ("[daemon]\nlisten = [\"1:2\", \"nowhere\"]", &[":2: listen: ", "nowhere"]),
        ("[daemon]\nlisten = []", &[":2: listen is a text in quotes, or a list"]),
        (
            "[mount]\nmountpoint = \"/mnt\"",
            &["\"mountpoint\" is no setting", "on the command line"],
        ),
        (
            "[mount]\nimport = [\"/a\"]",
            &["\"import\" is no setting: it says what one run works on"],
        ),
        ("[list]\njson = true", &["\"json\" is no setting: who reads the output"]),
        ("config = \"/a\"", &["\"config\" is no setting"]),
        ("in-background = true", &["there is no key \"in-background\""]),
        ("[store]\nurl = 1", &[":1: store is a text"]),
        ("mount = 1", &[":1: there is no key \"mount\""]),
        ("verbose = 1\nquiet = true", &[":2: quiet can't be set together with verbose"]),
        ("quiet = true\nquiet = true", &[":2: duplicate key"]),
        ("quiet =", &[":1: "]),
        ("[[mount]]\ndeadline = 1", &[":1: there is no key \"mount\""]),
    ] {
        let file = write(folder.path(), text);
        for ended in [
            run(cairn().args(["config", "check"]).arg(&file)),
            run(with(&file).args(["--store", "memory:", "list"])),
        ] {
            assert_eq!(ended.code, Some(2), "{text}: {}", ended.stderr);
            assert!(ended.stdout.is_empty());
            let place = format!("cairn: error: {}:", file.display());
            assert!(ended.stderr.starts_with(&place), "{text}: {}", ended.stderr);
            for says in says {
                assert!(ended.stderr.contains(says), "{text}: {says} is not in {}", ended.stderr);
            }
        }
    }
}

#[test]
fn everything_that_is_wrong_is_told_in_its_order() {
    let folder = tempfile::tempdir().unwrap();
    let file = write(folder.path(), "zzz = 1\nstore = \"sled:x\"\n[mount]\nyyy = 1\n[aaa]\n");
    let told = run(cairn().args(["config", "check"]).arg(&file)).stderr;
    let lines: Vec<_> = told.lines().filter(|line| line.starts_with("cairn: error: ")).collect();
    assert_eq!(lines.len(), 4, "{told}");
    for (line, number) in lines.iter().zip([1, 2, 4, 5]) {
        assert!(line.contains(&format!("cairn.toml:{number}: ")), "{line}");
    }
}

#[test]
fn files_of_any_kind_are_read_or_refused() {
    let folder = tempfile::tempdir().unwrap();
    let check = |file: &Path| run(cairn().args(["config", "check"]).arg(file));
    for text in ["", "# nothing\n", "\u{feff}quiet = true\n", "quiet = true\r\n"] {
        let ended = check(&write(folder.path(), text));
        assert_eq!(ended.code, Some(0), "{text:?}: {}", ended.stderr);
    }
    assert_eq!(check(Path::new("/dev/null")).code, Some(0));
    assert_eq!(check(Path::new("/dev/zero")).code, Some(2));

    let invalid = check(&write(folder.path(), b"quiet = true\n# \xff\n"));
    assert_eq!(invalid.code, Some(2));
    assert!(invalid.stderr.contains("cairn.toml:2: this is no UTF-8"), "{}", invalid.stderr);

    let large = folder.path().join("large.toml");
    fs::File::create(&large).unwrap().set_len(100_000_000).unwrap();
    let large = check(&large);
    assert_eq!(large.code, Some(2));
    assert!(large.stderr.contains("at most"), "{}", large.stderr);

    let deep = format!("store = {}1{}", "[".repeat(100_000), "]".repeat(100_000));
    assert_eq!(check(&write(folder.path(), deep)).code, Some(2));

    let is_folder = check(folder.path());
    assert_eq!(is_folder.code, Some(1));
    assert!(is_folder.stderr.contains("directory"), "{}", is_folder.stderr);

    let missing = folder.path().join("missing.toml");
    let [checked, named] = [check(&missing), run(with(&missing).arg("list"))];
    let mut variable = cairn();
    let variable = run(variable.env("CAIRN_CONFIG", &missing).arg("list"));
    for ended in [checked, named, variable] {
        assert_eq!(ended.code, Some(3), "{}", ended.stderr);
        assert!(ended.stderr.contains("missing.toml"), "{}", ended.stderr);
    }
    let turn = folder.path().join("turn.toml");
    symlink(&turn, &turn).unwrap();
    assert_eq!(check(&turn).code, Some(1));

    if !rustix::process::geteuid().is_root() {
        let file = write(folder.path(), "");
        fs::set_permissions(&file, fs::Permissions::from_mode(0o000)).unwrap();
        let ended = check(&file);
        assert_eq!(ended.code, Some(1));
        assert!(ended.stderr.contains("ermission denied"), "{}", ended.stderr);
    }
}

#[test]
fn help_and_the_version_are_there_whatever_the_file_is() {
    let folder = tempfile::tempdir().unwrap();
    let file = write(folder.path(), "no TOML");
    for word in ["--help", "--version"] {
        assert_eq!(run(with(&file).arg(word)).code, Some(0));
    }
    // What the file could have said is not held against the command line.
    let named = run(with(&file).args(["--store", "named-there", "list"]));
    assert_eq!(named.code, Some(2));
    assert!(named.stderr.contains("cairn.toml:1: "), "{}", named.stderr);
    assert_eq!(run(with(&file).args(["config", "check", "/dev/null"])).code, Some(0));
}

#[test]
fn the_users_file_is_found_and_stands_behind_a_named_one() {
    let folder = tempfile::tempdir().unwrap();
    let of_user = folder.path().join("cairn");
    fs::create_dir(&of_user).unwrap();
    let command = || {
        let mut command = cairn();
        command.env_remove("CAIRN_CONFIG").env("XDG_CONFIG_HOME", folder.path());
        command
    };
    // Not there, which is right.
    assert_eq!(run(command().args(["config", "check"])).code, Some(0));
    let of_user = write(&of_user, "verbose = 3\ncache = \"/cache\"\n");
    fs::rename(&of_user, of_user.with_file_name("config.toml")).unwrap();
    assert_eq!(shown(&mut command(), None, "verbose").0, "3");
    let named = write(folder.path(), "verbose = 1\n");
    let both = |key| shown(command().env("CAIRN_CONFIG", &named), None, key).0;
    assert_eq!(both("verbose"), "1");
    // It stands alone.
    assert_eq!(both("cache"), "null");
}

#[test]
fn secrets_are_shown_to_nobody_and_kept_from_the_world() {
    let folder = tempfile::tempdir().unwrap();
    let text = "store = \"objectstore+s3://b?aws_region=here&aws_secret_access_key=hush\"\n";
    let file = write(folder.path(), text);
    let everybody = fs::Permissions::from_mode(0o644);
    fs::set_permissions(&file, everybody).unwrap();
    let check = || run(cairn().args(["config", "check"]).arg(&file));
    let exposed = check();
    assert_eq!(exposed.code, Some(0));
    assert!(exposed.stderr.contains("every user can read it"), "{}", exposed.stderr);
    for arguments in [&["config", "show"][..], &["config", "show", "--json"], &["--help"]] {
        let ended = run(with(&file).args(arguments));
        let all = format!("{}{}", String::from_utf8_lossy(&ended.stdout), ended.stderr);
        assert!(!all.contains("hush"), "{all}");
        assert!(arguments == ["--help"] || all.contains("aws_region=here"), "{all}");
    }
    fs::set_permissions(&file, fs::Permissions::from_mode(0o640)).unwrap();
    assert_eq!(check().stderr, "");
}

#[test]
fn the_examples_of_the_documentation_are_right() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let deployed = root.join("deploy/cairn.toml");
    let checked = run(cairn().args(["config", "check"]).arg(&deployed)).stdout();
    assert!(checked.contains("stores: 3"), "{checked}");
    let folder = tempfile::tempdir().unwrap();
    let page = fs::read_to_string(root.join("docs/configuration.md")).unwrap();
    let examples: Vec<_> = page.split("```toml\n").skip(1).collect();
    assert_eq!(examples.len(), 3);
    for example in examples {
        let file = write(folder.path(), example.split("```").next().unwrap());
        let ended = run(cairn().args(["config", "check"]).arg(&file));
        assert_eq!(ended.code, Some(0), "{example}: {}", ended.stderr);
        assert_eq!(ended.stderr, "");
    }
}
