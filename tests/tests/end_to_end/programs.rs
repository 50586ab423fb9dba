//! Programs that people use, at work on a mount: what they find there has to be what they find on a
//! local disk. Whether the trees are the same byte by byte is compared elsewhere.

use std::{
    env, fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Command,
};

use cairn_tests::{
    cairn::{Mount, Scene},
    process::{Finished, LONG_PATIENCE, Running},
    trees,
};

/// Runs a program to its end, which has to be a success.
#[track_caller]
fn run(program: impl AsRef<std::ffi::OsStr>, words: &[&str], folder: &Path) -> Finished {
    finish(Command::new(program).args(words).current_dir(folder)).succeeded()
}

#[track_caller]
fn finish(command: &mut Command) -> Finished {
    // Cargo names the libraries of its own toolchain there, which would be taken for the mount's.
    let command = command.env("LC_ALL", "C").env_remove("LD_LIBRARY_PATH");
    Running::start(command).finish_within(LONG_PATIENCE)
}

/// Imports a tree and mounts the store; the tree on the mount.
fn mounted(scene: &Scene, tree: &Path) -> (Mount, PathBuf) {
    let path = scene.cairn().import(tree);
    let mount = scene.mount(&scene.cairn(), "mnt");
    let root = mount.at(&path);
    (mount, root)
}

#[test]
fn fio_verifies_what_it_has_written() {
    const SIZE: &str = "--size=24M";
    let scene = Scene::new();
    let tree = scene.new_folder("source");
    let common = ["--name=verify", "--filename=file", "--bs=16k", "--verify=crc32c", SIZE];
    let fio = |more: &[&str], folder: &Path| run("fio", &[&common[..], more].concat(), folder);
    let unsaved = "--verify_state_save=0";
    fio(&["--rw=write", "--do_verify=0", unsaved], &tree);

    let (mount, root) = mounted(&scene, &tree);
    let jobs: [&[&str]; 6] = [
        &["--rw=read"],
        &["--rw=randread"],
        &["--rw=randread", "--numjobs=4"],
        &["--rw=read", "--numjobs=4"],
        &["--rw=randread", "--ioengine=mmap", "--numjobs=2"],
        &["--rw=randread", "--ioengine=libaio", "--iodepth=16", "--direct=1"],
    ];
    for job in jobs {
        cairn_tests::measure::drop_caches();
        fio(
            &[job, &["--readonly", "--verify_fatal=1", "--group_reporting", unsaved]].concat(),
            &root,
        );
    }

    // A verification that could not fail would show nothing.
    let mut bytes = fs::read(root.join("file")).unwrap();
    bytes[5_000_000] ^= 1;
    let damaged = scene.new_folder("damaged");
    fs::write(damaged.join("file"), bytes).unwrap();
    let words = [&common[..], &["--rw=read", "--readonly", "--verify_fatal=1", unsaved]].concat();
    let found = finish(Command::new("fio").args(words).current_dir(&damaged));
    assert!(!found.status.success() && found.stderr.contains("verify failed"), "{found:?}");
    drop(mount);
}

#[test]
fn rsync_finds_no_difference() {
    let scene = Scene::new();
    let tree = trees::small(scene.folder(), "source");
    let (_mount, root) = mounted(&scene, &tree);
    let differences = |from: &Path| {
        let (from, to) = (format!("{}/", from.display()), format!("{}/", root.display()));
        let words = ["-rlcn", "--delete", "--itemize-changes", "--", &from, &to];
        run("rsync", &words, scene.folder()).lines()
    };
    assert_eq!(differences(&tree), [""; 0]);
    fs::write(tree.join("a/x/deep/equal"), "now another").unwrap();
    fs::remove_file(tree.join("link")).unwrap();
    assert_eq!(differences(&tree).len(), 2);
}

#[test]
fn find_and_tar_see_what_they_see_on_a_disk() {
    let scene = Scene::new();
    let tree = trees::small(scene.folder(), "source");
    let (_mount, root) = mounted(&scene, &tree);
    let listed = |folder: &Path| {
        // Sizes of directories are those of the file system.
        let words = [".", "-type", "d", "-printf", "%y %P\\n", "-o", "-printf", "%y %P %s %l\\n"];
        let mut lines = run("find", &words, folder).lines();
        lines.sort();
        lines
    };
    assert_eq!(listed(&tree), listed(&root));
    assert!(listed(&root).len() > 20);
    // Owners, times and the bits of the mode that are not kept are left out.
    let packed = |folder: &Path| {
        let words = [
            "--sort=name",
            "--owner=0",
            "--group=0",
            "--mtime=@1",
            "--mode=a=rX",
            "--hard-dereference",
            "-cf",
            "-",
            ".",
        ];
        run("tar", &words, folder).stdout
    };
    assert!(packed(&tree) == packed(&root));
}

/// A work tree with some commits, a branch and packed objects.
fn work_tree(scene: &Scene) -> PathBuf {
    let tree = trees::small(scene.folder(), "work");
    let git = |words: &[&str]| drop(git(&tree, words).succeeded());
    git(&["init", "--quiet", "--initial-branch=main"]);
    git(&["add", "--all"]);
    git(&["commit", "--quiet", "--message=first"]);
    git(&["gc", "--quiet"]);
    git(&["checkout", "--quiet", "-b", "other"]);
    fs::write(tree.join("a/new"), "new").unwrap();
    git(&["add", "--all"]);
    git(&["commit", "--quiet", "--message=second"]);
    tree
}

/// Runs git as nobody in particular, with nothing of the user's settings.
fn git(tree: &Path, words: &[&str]) -> Finished {
    let mut git = Command::new("git");
    git.arg("-C").arg(tree).args(words);
    git.env("GIT_CONFIG_GLOBAL", "/dev/null").env("GIT_CONFIG_NOSYSTEM", "1");
    for who in ["AUTHOR", "COMMITTER"] {
        git.env(format!("GIT_{who}_NAME"), "A").env(format!("GIT_{who}_EMAIL"), "a@example.org");
    }
    finish(&mut git)
}

#[test]
fn git_finds_a_work_tree_clean_and_whole() {
    let scene = Scene::new();
    let tree = work_tree(&scene);
    let log = git(&tree, &["log", "--all", "--stat"]).succeeded().lines();
    let (_mount, root) = mounted(&scene, &tree);
    let status = ["--no-optional-locks", "status", "--porcelain"];
    assert_eq!(git(&root, &status).succeeded().lines(), [""; 0]);
    git(&root, &["fsck", "--full", "--strict"]).succeeded();
    assert_eq!(git(&root, &["log", "--all", "--stat"]).succeeded().lines(), log);
    assert_eq!(git(&root, &["grep", "-l", "same bytes"]).succeeded().lines().len(), 2);
    // Asked to write, it says why it can't.
    let refused = git(&root, &["commit", "--allow-empty", "--message=x"]);
    assert!(refused.stderr.contains("Read-only file system"), "{refused:?}");
    let clone = scene.path("clone");
    run("git", &["clone", "--quiet", root.to_str().unwrap(), "clone"], scene.folder());
    assert_eq!(git(&clone, &["log", "--format=%s"]).succeeded().lines(), ["second", "first"]);
}

#[test]
fn git_works_in_a_view_that_can_be_written_to() {
    let scene = Scene::new();
    let tree = work_tree(&scene);
    let path = scene.cairn().import(&tree);
    let mount = scene.cairn().mount_with(&scene.new_folder("mnt"), ["--ephemeral"]);
    let root = mount.at(&path);
    let status = || git(&root, &["status", "--porcelain"]).succeeded().lines();
    assert_eq!(status(), [""; 0]);
    fs::write(root.join("same-plain"), "other bytes").unwrap();
    fs::remove_file(root.join("link")).unwrap();
    assert_eq!(status(), [" D link", " M same-plain"]);
    git(&root, &["commit", "--quiet", "--all", "--message=third"]).succeeded();
    git(&root, &["checkout", "--quiet", "main"]).succeeded();
    assert_eq!(fs::read_to_string(root.join("same-plain")).unwrap(), "same bytes");
    git(&root, &["merge", "--quiet", "other"]).succeeded();
    git(&root, &["gc", "--quiet", "--prune=now"]).succeeded();
    git(&root, &["fsck", "--full", "--strict"]).succeeded();
    assert_eq!(status(), [""; 0]);
    assert_eq!(git(&root, &["rev-list", "--count", "HEAD"]).succeeded().text().trim(), "3");
}

const HELLO: &str = r#"
#include <math.h>
#include <stdio.h>
#include "greeting.h"
int main(int argc, char **argv) { printf("%s %.3f\n", greeting(), sqrt(argc + 1.0)); return 0; }
"#;

/// What `hello` prints.
const HELLO_SAYS: &str = "hello from a library 1.414\n";

/// A program with a library of its own, built in a folder.
fn program(scene: &Scene) -> PathBuf {
    let tree = scene.new_folder("program");
    fs::write(tree.join("hello.c"), HELLO).unwrap();
    fs::write(tree.join("greeting.h"), "const char *greeting(void);\n").unwrap();
    let greeting = "const char *greeting(void) { return \"hello from a library\"; }\n";
    fs::write(tree.join("greeting.c"), greeting).unwrap();
    tree
}

fn cc(folder: &Path, words: &[&str]) {
    run("cc", words, folder);
}

#[test]
fn programs_run_with_their_libraries() {
    let scene = Scene::new();
    let tree = program(&scene);
    cc(&tree, &["-shared", "-fPIC", "-o", "libgreeting.so", "greeting.c"]);
    cc(&tree, &["-o", "hello", "hello.c", "-L.", "-lgreeting", "-Wl,-rpath,$ORIGIN", "-lm"]);
    let (_mount, root) = mounted(&scene, &tree);
    for _ in 0..2 {
        assert_eq!(run(root.join("hello"), &[], Path::new("/")).text(), HELLO_SAYS);
        cairn_tests::measure::drop_caches();
    }
}

/// The folder that the compiler finds a file of its own in.
fn folder_of(file: &str) -> PathBuf {
    let found = run("cc", &[&format!("-print-file-name={file}")], Path::new("/"));
    let found = PathBuf::from(found.text().trim());
    found.canonicalize().unwrap().parent().unwrap().to_owned()
}

/// A tree of the system's headers and C library, at their places.
fn sysroot(scene: &Scene) -> PathBuf {
    let sysroot = scene.new_folder("sysroot");
    fs::create_dir(sysroot.join("usr")).unwrap();
    run("cp", &["-a", "/usr/include", "usr"], &sysroot);
    let libraries = folder_of("crt1.o");
    let inner = libraries.strip_prefix("/").unwrap();
    fs::create_dir_all(sysroot.join(inner)).unwrap();
    for name in ["*crt1.o", "crti.o", "crtn.o", "libc[._]*", "libm[.-]*", "libmvec*", "ld-linux*"] {
        let script = "cp -aL \"$0\"/$1 \"$2\" 2>/dev/null || true";
        let to = sysroot.join(inner);
        let words = ["-c", script, libraries.to_str().unwrap(), name, to.to_str().unwrap()];
        run("sh", &words, Path::new("/"));
    }
    // As on a system where both are one.
    for name in ["lib", "lib64"] {
        if inner.starts_with("usr") {
            symlink(format!("usr/{name}"), sysroot.join(name)).unwrap();
        }
    }
    sysroot
}

#[test]
fn a_compiler_has_its_headers_and_libraries_on_a_mount() {
    let scene = Scene::new();
    let sysroot = sysroot(&scene);
    let source = program(&scene);
    let (mount, root) = mounted(&scene, &sysroot);
    let option = format!("--sysroot={}", root.display());
    cc(&source, &[&option, "-O2", "-Wall", "-o", "hello", "hello.c", "greeting.c", "-lm"]);
    // What it has read was on the mount, and nowhere else.
    let dependencies = run("cc", &[&option, "-M", "hello.c"], &source);
    let is_on_mount = |word: &&str| word.starts_with(mount.mountpoint().to_str().unwrap());
    assert!(dependencies.text().split_whitespace().filter(is_on_mount).count() > 10);
    assert!(!dependencies.text().contains(" /usr/include"), "{}", dependencies.text());
    let libraries = root.join(folder_of("crt1.o").strip_prefix("/").unwrap());
    let mut loader = fs::read_dir(&libraries).unwrap().map(|entry| entry.unwrap().path());
    let loader = loader.find(|path| path.to_str().unwrap().contains("/ld-linux")).unwrap();
    let words = ["--library-path", libraries.to_str().unwrap(), "./hello"];
    assert_eq!(run(loader, &words, &source).text(), HELLO_SAYS);
}

#[test]
#[ignore = "a toolchain of 1.3 GB: part of tests/run"]
fn a_compiler_runs_from_a_mount() {
    let scene = Scene::new();
    let rustc = env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let toolchain = run(&rustc, &["--print", "sysroot"], Path::new("/"));
    let (_mount, root) = mounted(&scene, Path::new(toolchain.text().trim()));
    let source = "fn main() { println!(\"hello from {}\", std::env::args().count()); }\n";
    fs::write(scene.path("hello.rs"), source).unwrap();
    let rustc = root.join("bin/rustc");
    let found = run(&rustc, &["--print", "sysroot"], scene.folder());
    assert_eq!(Path::new(found.text().trim()), root);
    run(&rustc, &["-O", "-o", "hello", "hello.rs"], scene.folder());
    assert_eq!(run(scene.path("hello"), &[], scene.folder()).text(), "hello from 1\n");
}
