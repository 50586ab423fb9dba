//! The command line's reference, which is the help of every command: a flag can't change unnoticed.

use std::{env, fs, path::Path};

use crate::process::{cairn, run};

const COMMANDS: [&str; 29] = [
    "import",
    "mount",
    "umount",
    "virtiofs",
    "daemon",
    "export",
    "copy",
    "ls",
    "tree",
    "cat",
    "stat",
    "find",
    "du",
    "diff",
    "path-info",
    "list",
    "ping",
    "services",
    "stats",
    "top",
    "cache",
    "cache stats",
    "cache warm",
    "cache evict",
    "config",
    "config check",
    "config show",
    "completions",
    "man",
];

fn help(arguments: &[&str]) -> String {
    let text = run(cairn().args(arguments).arg("--help")).stdout();
    let lines: Vec<_> = text.lines().map(str::trim_end).collect();
    lines.join("\n")
}

#[test]
fn the_reference_is_what_the_commands_say() {
    let mut reference = String::from(
        "# The command line\n\n\
         Written by `UPDATE=1 cargo test -p cairn-daemon the_reference`; do not edit.\n",
    );
    let overview = help(&[]);
    reference.push_str(&format!("\n## cairn\n\n```text\n{overview}\n```\n"));
    for command in COMMANDS {
        let words: Vec<_> = command.split(' ').collect();
        let (last, above) = words.split_last().expect("a command has a name");
        let listed = help(above).lines().any(|line| line.trim_start().starts_with(last));
        assert!(listed, "{command} is not in the overview");
        reference.push_str(&format!("\n## cairn {command}\n\n```text\n{}\n```\n", help(&words)));
    }
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/cli.md");
    if env::var_os("UPDATE").is_some() {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, &reference).unwrap();
    }
    let checked_in = fs::read_to_string(&path).unwrap_or_default();
    assert!(
        checked_in == reference,
        "docs/cli.md is not what the commands say: look at the difference that \
         `UPDATE=1 cargo test -p cairn-daemon the_reference` makes",
    );
}

#[test]
fn the_manual_has_a_page_for_each_command() {
    let page = run(cairn().arg("man")).stdout();
    assert!(page.contains(".TH cairn 1") && page.contains("cairn\\-ls"), "{page}");
    let folder = tempfile::tempdir().unwrap();
    let pages = folder.path().join("share/man1");
    run(cairn().args(["man", "--out"]).arg(&pages)).stdout();
    for command in COMMANDS {
        let page = pages.join(format!("cairn-{}.1", command.replace(' ', "-")));
        let text = fs::read_to_string(&page).unwrap_or_else(|error| panic!("{page:?}: {error}"));
        assert!(text.contains(".SH SYNOPSIS"), "{page:?}");
    }
}

#[test]
fn completions_are_for_this_command_line() {
    for shell in ["bash", "zsh", "fish"] {
        let script = run(cairn().args(["completions", shell])).stdout();
        assert!(script.contains("path-info") && script.contains("no-list-root"), "{shell}");
    }
}
