//! The README as a newcomer follows it: in a Debian that has nothing but what the README asks for, by a
//! user without rights, with the very commands that stand there.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use cairn_tests::{
    docker::{BASE, Docker},
    process::{LONG_PATIENCE, Running, run},
};

const README: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../README.md");

/// The script that lays a clean checkout.
const CHECKOUT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/newcomer");

const IMAGE: &str = "cairn-test-newcomer";

/// The newcomer, and where they live.
const USER: &str = "1000";
const HOME: &str = "/home/newcomer";

/// How long all of it may take where nothing was built before and others build at the same time.
const PATIENCE: Duration = Duration::from_secs(3600);

/// The lines of the README's code block behind the comment `<!-- NAME -->`.
fn block(name: &str) -> String {
    let readme = fs::read_to_string(README).unwrap();
    let (_, behind) = readme.split_once(&format!("<!-- {name} -->\n```sh\n")).unwrap();
    behind.split_once("```").unwrap().0.trim_end().to_owned()
}

/// Debian with the packages that the README names. Their installation asks for nothing.
fn build_image(docker: &Docker) {
    let context = tempfile::tempdir().unwrap();
    let packages = block("the packages");
    let dockerfile = format!(
        "FROM {BASE}\n\
         RUN echo 'APT::Get::Assume-Yes \"true\";' >/etc/apt/apt.conf.d/yes && apt-get update -q\n\
         RUN {packages}\n\
         RUN useradd --create-home --home-dir {HOME} --uid {USER} newcomer \
         && install -d -o {USER} -g {USER} {HOME}/.cargo {HOME}/.cargo/registry\n\
         USER {USER}\n\
         ENV HOME={HOME} CARGO_NET_OFFLINE=true PATH=/rust/bin:/usr/bin:/bin\n\
         WORKDIR {HOME}/cairn\n"
    );
    fs::write(context.path().join("Dockerfile"), dockerfile).unwrap();
    let mut build = docker.command();
    // The network of the host, by which the host's packages come as well.
    build.args(["build", "--network", "host", "--tag", IMAGE]).arg(context.path());
    Running::start(&mut build).finish_within(LONG_PATIENCE).succeeded();
}

/// The toolchain that these tests are built with.
fn toolchain() -> PathBuf {
    let rustc = env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let told = run(Command::new(rustc).args(["--print", "sysroot"])).succeeded();
    let toolchain = PathBuf::from(told.text().trim_end());
    assert!(toolchain.join("bin/cargo").exists(), "{} has no cargo", toolchain.display());
    toolchain
}

/// The folder in which this machine's crates are.
fn cargo_home() -> PathBuf {
    let named = env::var_os("CARGO_HOME").map(PathBuf::from);
    named.unwrap_or_else(|| Path::new(&env::var_os("HOME").expect("HOME is set")).join(".cargo"))
}

#[test]
#[ignore = "builds the release in a container, for some minutes"]
fn the_readme_is_all_that_a_newcomer_needs() {
    let checkout = Running::start(Command::new(CHECKOUT).arg(USER));
    let checkout = checkout.finish_within(LONG_PATIENCE).succeeded();
    let docker = Docker::start();
    build_image(&docker);

    let mut newcomer = docker.command();
    newcomer.args(["run", "--rm", "--network", "none"]);
    newcomer.args(["--device", "/dev/fuse", "--cap-add", "SYS_ADMIN"]);
    newcomer.args(["--security-opt", "apparmor=unconfined"]);
    let mut give = |from: &Path, to: &str| {
        newcomer.arg("--volume").arg(format!("{}:{to}", from.display()));
    };
    give(Path::new(checkout.text().trim_end()), &format!("{HOME}/cairn"));
    give(&toolchain(), "/rust:ro");
    // As they were fetched. Unpacked by another user, some could not be read.
    for part in ["cache", "index"] {
        let part = format!("registry/{part}");
        give(&cargo_home().join(&part), &format!("{HOME}/.cargo/{part}:ro"));
    }
    // Where the crates come from, if that is another place than usual.
    let config = cargo_home().join("config.toml");
    if config.exists() {
        give(&config, &format!("{HOME}/.cargo/config.toml:ro"));
    }
    // With patience, and what is tested beside it has less.
    newcomer.args([IMAGE, "nice", "-n", "19", "tests/readme"]);
    let finished = Running::start(&mut newcomer).finish_within(PATIENCE).succeeded();
    assert!(finished.text().contains("the README's commands work"), "{}", finished.text());
}
