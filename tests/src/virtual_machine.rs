//! A virtual machine: Debian's kernel in Debian's qemu, without hardware's help, with a guest that
//! has what is in its memory, a script that it runs, and what a virtiofs server shows it. The script
//! `tests/virtual-machine` fetches the kernel where it is missing.

use std::{
    ffi::OsStr,
    fs,
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::{Duration, Instant},
};

use crate::{
    process::{LONG_PATIENCE, Running, run},
    trees,
};

/// How long a guest may run.
const LIFE_MAX: Duration = Duration::from_secs(300);

/// How often it is asked whether it has ended.
const POLL: Duration = Duration::from_millis(100);

/// The guest's memory, as qemu writes it.
const MEMORY: &str = "512M";

/// The tag by which the guest mounts what it is shown.
const TAG: &str = "cairn";

/// What the guest does first and last. The modules stand in the order of what needs what.
const INIT: &str = "#!/bin/busybox sh
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
for module in virtio_ring virtio virtio_pci_modern_dev virtio_pci_legacy_dev virtio_pci fuse virtiofs
do
    insmod /kernel/$module.ko || echo \"$module can't be loaded\"
done
if mount -t virtiofs -o ro cairn /mnt; then
    sh /script 2>&1
    echo \"exit code $?\"
    umount /mnt
fi
poweroff -f
";

/// A guest to be started.
#[derive(Debug)]
pub struct Guest {
    folder: PathBuf,
    kernel: PathBuf,
}

impl Guest {
    /// A guest that has nothing but a shell and what belongs to it. The folder, which is made, is
    /// for what it is made of.
    pub fn new(folder: &Path) -> Self {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/virtual-machine");
        let found = Running::start(&mut Command::new(script));
        let found = found.finish_within(LONG_PATIENCE).succeeded();
        let kernel = PathBuf::from(found.text().trim_end());
        let guest = Self { folder: folder.to_owned(), kernel };
        for folder in ["bin", "dev", "kernel", "mnt", "proc", "sys", "tmp"] {
            fs::create_dir_all(guest.root().join(folder)).unwrap();
        }
        guest.add(Path::new("/bin/busybox"));
        for module in fs::read_dir(&guest.kernel).unwrap() {
            let module = module.unwrap().path();
            if module.extension() == Some(OsStr::new("ko")) {
                let name = module.file_name().unwrap();
                fs::copy(&module, guest.root().join("kernel").join(name)).unwrap();
            }
        }
        trees::executable(&guest.root().join("init"), INIT);
        guest
    }

    fn root(&self) -> PathBuf {
        self.folder.join("root")
    }

    fn add(&self, path: &Path) {
        let place = self.root().join(path.strip_prefix("/").unwrap());
        fs::create_dir_all(place.parent().unwrap()).unwrap();
        fs::copy(path, place).unwrap();
    }

    /// Adds a program as `/bin/NAME`, and the libraries that it is linked with.
    pub fn add_program(&self, program: &Path, name: &str) {
        fs::copy(program, self.root().join("bin").join(name)).unwrap();
        let libraries = run(Command::new("ldd").arg(program)).succeeded();
        for library in libraries.text().split_whitespace().filter(|word| word.starts_with('/')) {
            self.add(Path::new(library));
        }
    }

    /// Boots it with a folder, which it has as `/NAME`, and what a server on a socket shows, as
    /// `/mnt`; runs a script, and powers off. Returns what was printed on its console. Panics if it
    /// does not come to an end.
    pub fn run(&self, tree: &Path, socket: &Path, script: &str) -> String {
        fs::write(self.root().join("script"), script).unwrap();
        let (image, console) = (self.folder.join("image"), self.folder.join("console"));
        // Two archives, one behind the other, are one to the kernel.
        let archive = "(cd \"$1\" && find . -print0 | cpio --null -o -H newc --quiet) > \"$4\" && \
                       (cd \"$2\" && find \"$3\" -print0 | cpio --null -o -H newc --quiet) >> \"$4\"";
        let mut make = Command::new("sh");
        make.args(["-ec", archive, "sh"]).arg(self.root());
        make.args([tree.parent().unwrap().as_os_str(), tree.file_name().unwrap()]).arg(&image);
        run(&mut make).succeeded();

        let mut qemu = Command::new("qemu-system-x86_64");
        qemu.args(["-accel", "tcg", "-cpu", "max", "-smp", "2", "-m", MEMORY]);
        qemu.args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]);
        qemu.arg("-kernel").arg(self.kernel.join("vmlinuz")).arg("-initrd").arg(&image);
        qemu.args(["-append", "console=ttyS0 panic=-1 quiet"]);
        qemu.arg("-serial").arg(argument("file:", &console));
        let memory = format!("memory-backend-memfd,id=memory,size={MEMORY},share=on");
        qemu.args(["-object", &memory, "-numa", "node,memdev=memory"]);
        qemu.arg("-chardev").arg(argument("socket,id=cairn,path=", socket));
        let device = format!("vhost-user-fs-pci,chardev=cairn,tag={TAG},queue-size=1024");
        qemu.args(["-device", &device]);
        let start = Instant::now();
        let mut running = Running::start(&mut qemu);
        let printed =
            || String::from_utf8_lossy(&fs::read(&console).unwrap_or_default()).into_owned();
        while !running.has_ended() {
            let said = start.elapsed() > LIFE_MAX;
            assert!(!said, "the guest runs for more than {LIFE_MAX:?}:\n{}", printed());
            thread::sleep(POLL);
        }
        let ended = running.finish();
        assert!(ended.status.success(), "{ended:?}\n{}", printed());
        printed().replace("\r\n", "\n")
    }
}

/// A word for qemu with a path in it, which has no comma.
fn argument(before: &str, path: &Path) -> std::ffi::OsString {
    let mut word = std::ffi::OsString::from(before);
    word.push(path);
    word
}
