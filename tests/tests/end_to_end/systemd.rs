//! The Debian package, built of the binary under test and installed in a Debian that has nothing of it,
//! and its units under a systemd that runs them: as the first process of a container.

use std::{fs, path::PathBuf, process::Command};

use cairn_tests::{
    cairn,
    docker::{BASE, Docker},
    process::{Finished, LONG_PATIENCE, Running, eventually, run},
};

const BUILD: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/debian/build");

/// The image with systemd and the package.
const IMAGE: &str = "cairn-test-systemd";

/// A Debian that is up.
struct Machine {
    docker: Docker,
    container: String,
}

impl Machine {
    /// Installs the package by apt, which brings what it depends on, and boots.
    #[track_caller]
    fn boot() -> Self {
        let docker = Docker::start();
        let context = tempfile::tempdir().unwrap();
        let mut build = Command::new(BUILD);
        build.arg(cairn::binary()).arg(context.path());
        let package = PathBuf::from(run(&mut build).succeeded().text().trim_end());
        fs::rename(package, context.path().join("cairn.deb")).unwrap();
        let dockerfile = format!(
            "FROM {BASE}\n\
             COPY cairn.deb /\n\
             RUN apt-get update -q && apt-get install -yq --no-install-recommends systemd-sysv dbus\n\
             RUN apt-get install -yq --no-install-recommends /cairn.deb\n\
             RUN systemd-analyze verify --man=no cairn-daemon.socket cairn-daemon.service \
             cairn-mount@mnt-tree.service 2>&1 | tee /verified\n"
        );
        fs::write(context.path().join("Dockerfile"), dockerfile).unwrap();
        let mut build = docker.command();
        // The network of the host, by which the host's packages come as well.
        build.args(["build", "--network", "host", "--tag", IMAGE]).arg(context.path());
        Running::start(&mut build).finish_within(LONG_PATIENCE).succeeded();
        let mut words = vec!["run", "--detach", "--network", "none", "--cap-add", "SYS_ADMIN"];
        words.extend(["--device", "/dev/fuse", "--tmpfs", "/run", "--tmpfs", "/run/lock"]);
        words.extend(["--security-opt", "seccomp=unconfined"]);
        words.extend(["--security-opt", "apparmor=unconfined"]);
        words.extend(["--volume", "/sys/fs/cgroup:/sys/fs/cgroup:rw"]);
        words.extend([IMAGE, "/lib/systemd/systemd"]);
        let container = docker.tell(words).text().trim_end().to_owned();
        let machine = Self { docker, container };
        eventually("systemd is up", || {
            let state = machine.try_tell("systemctl is-system-running");
            matches!(state.text().trim_end(), "running" | "degraded")
        });
        machine
    }

    /// Runs a line of shell.
    #[track_caller]
    fn try_tell(&self, line: &str) -> Finished {
        let words = ["exec", &self.container, "sh", "-ec", line];
        Running::start(self.docker.command().args(words)).finish()
    }

    /// Runs one that has to succeed; what it prints.
    #[track_caller]
    fn tell(&self, line: &str) -> String {
        let told = self.try_tell(line);
        if !told.status.success() {
            let log = self.try_tell("journalctl --no-pager --lines 100");
            panic!("{line}: {told:?}\n{}", String::from_utf8_lossy(&log.stdout));
        }
        told.text().trim_end().to_owned()
    }

    fn property(&self, unit: &str, name: &str) -> String {
        self.tell(&format!("systemctl show --value --property {name} {unit}"))
    }
}

#[test]
#[ignore = "installs packages in a container, for some minutes"]
fn the_package_serves_and_mounts_under_systemd() {
    let machine = Machine::boot();
    assert_eq!(machine.tell("cat /verified"), "", "what systemd-analyze verify complains of");
    assert_eq!(machine.tell("dpkg --verify cairn"), "");
    assert!(machine.tell("dpkg --listfiles cairn").contains("/lib/systemd/system/cairn-daemon"));
    machine.tell("test -s /usr/share/bash-completion/completions/cairn");
    machine.tell("test -s /usr/share/man/man1/cairn-mount.1.gz");

    // Whoever connects starts the server, which runs as nobody in particular.
    machine.tell("mkdir -p /tree && cp -r /etc/apt /tree/ && ln -s apt /tree/link");
    machine.tell("systemctl enable --now cairn-daemon.socket");
    assert_eq!(machine.property("cairn-daemon.service", "ActiveState"), "inactive");
    let import = "CAIRN_STORE=grpc+unix:/run/cairn/socket cairn import /tree";
    let path = machine.tell(import);
    let name = path.strip_prefix("/nix/store/").unwrap();
    assert_eq!(machine.property("cairn-daemon.service", "ActiveState"), "active");
    let pid = machine.property("cairn-daemon.service", "MainPID");
    assert_eq!(machine.tell(&format!("stat -c %U /proc/{pid}")), "cairn");
    assert_eq!(machine.tell("stat -c '%U %G %a' /run/cairn/socket"), "cairn cairn 660");

    // It is watched: one that gives no sign of life is replaced, and what it had is there.
    let watched = "cairn-daemon.service.d/watchdog.conf";
    machine.tell(&format!(
        "mkdir -p /etc/systemd/system/cairn-daemon.service.d; \
         printf '[Service]\\nWatchdogSec=3\\n' >/etc/systemd/system/{watched}; \
         systemctl daemon-reload; systemctl restart cairn-daemon.service"
    ));
    let pid = machine.property("cairn-daemon.service", "MainPID");
    // Signs come, or it would not last for that long.
    machine.tell("sleep 7");
    assert_eq!(machine.property("cairn-daemon.service", "MainPID"), pid);
    machine.tell(&format!("kill -STOP {pid}"));
    eventually("the server is replaced", || {
        machine.property("cairn-daemon.service", "NRestarts") == "1"
            && machine.property("cairn-daemon.service", "ActiveState") == "active"
    });
    assert_eq!(machine.tell("CAIRN_STORE=grpc+unix:/run/cairn/socket cairn list"), path);

    // A mount by its unit, on a folder that is not there yet.
    machine.tell("systemctl enable --now cairn-mount@mnt-tree.service");
    machine.tell(&format!("diff -r --no-dereference /tree /mnt/tree/{name}"));
    machine.tell(&format!("setpriv --reuid=nobody --clear-groups ls -R /mnt/tree/{name}"));

    // Killed, it comes back in the place of what it left.
    let pid = machine.property("cairn-mount@mnt-tree.service", "MainPID");
    machine.tell(&format!("kill -KILL {pid}"));
    eventually("the mount is back", || {
        machine.property("cairn-mount@mnt-tree.service", "NRestarts") == "1"
            && machine.try_tell(&format!("test -d /mnt/tree/{name}")).status.success()
    });
    assert_eq!(machine.tell("grep -c ' /mnt/tree ' /proc/self/mountinfo"), "1");

    // Stopped, it leaves who has a file open to read it.
    let read = format!(
        "exec 9</mnt/tree/{name}/apt/sources.list; \
         systemctl stop --no-block cairn-mount@mnt-tree.service; \
         while grep -q ' /mnt/tree ' /proc/self/mountinfo; do sleep 0.1; done; \
         cmp /dev/fd/9 /tree/apt/sources.list"
    );
    machine.tell(&read);
    eventually("the unit has ended", || {
        machine.property("cairn-mount@mnt-tree.service", "ActiveState") == "inactive"
    });

    // By mount(8), and by fstab.
    let store = "grpc+unix:/run/cairn/socket";
    machine.tell(&format!(
        "mkdir /mnt/by-hand; mount -t fuse.cairn {store} /mnt/by-hand -o ro,allow_other; \
         diff -r --no-dereference /tree /mnt/by-hand/{name}; umount /mnt/by-hand"
    ));
    machine.tell(&format!(
        "mkdir -p /mnt/by-table; \
         echo '{store} /mnt/by-table fuse.cairn allow_other,_netdev,nofail 0 0' >>/etc/fstab; \
         systemctl daemon-reload; systemctl start mnt-by\\\\x2dtable.mount; \
         diff -r --no-dereference /tree /mnt/by-table/{name}; \
         systemctl stop mnt-by\\\\x2dtable.mount"
    ));
    machine
        .try_tell(&format!("mount -t fuse.cairn {store} /mnt/by-hand -o no_such_thing"))
        .failed(2, &["--no-such-thing"]);

    // Removed, nothing of it runs or is mounted; what was stored stays.
    machine.tell("systemctl start cairn-mount@mnt-tree.service");
    machine.tell("apt-get purge -yq cairn");
    assert_eq!(machine.tell("grep -c fuse.cairn /proc/self/mountinfo || true"), "0");
    machine.tell("test ! -e /usr/bin/cairn; test ! -e /etc/default/cairn-daemon");
    machine.tell("test -d /var/lib/cairn-daemon; test ! -e /var/cache/cairn");
}
