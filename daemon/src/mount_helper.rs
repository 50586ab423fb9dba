//! The program as a helper of mount(8): called as `mount.fuse.cairn`, or `mount.cairn`, it takes the
//! words that mount(8) gives, and says the same in those of `cairn mount`. So a mount can stand in
//! /etc/fstab. What the options mean is the affair of the command line.

use std::{
    env,
    ffi::OsString,
    os::unix::{
        ffi::{OsStrExt as _, OsStringExt as _},
        process::CommandExt as _,
    },
    path::Path,
    process::Command,
};

use crate::exit::Failure;

/// The names by which mount(8) calls its helpers for this kind of file system.
const NAMES: [&str; 2] = ["mount.fuse.cairn", "mount.cairn"];

/// The sources that name no store: what the environment names is meant, or else root's own.
const NO_STORE: [&str; 3] = ["none", "cairn", "store"];

/// Options that are for mount(8), systemd or the kernel, and mean nothing here: a mount of cairn has no
/// devices, no set-user-id programs and no times that change anyway.
const NOT_OURS: [&str; 28] = [
    "_netdev",
    "async",
    "atime",
    "auto",
    "defaults",
    "dev",
    "diratime",
    "exec",
    "group",
    "loud",
    "mand",
    "noatime",
    "noauto",
    "nodev",
    "nodiratime",
    "nofail",
    "nomand",
    "norelatime",
    "nosuid",
    "nouser",
    "owner",
    "relatime",
    "ro",
    "rw",
    "silent",
    "suid",
    "user",
    "users",
];

/// The words of `cairn`, if these are those of a helper of mount(8).
///
/// An option of `cairn mount`, such as `allow-other` or `cache=/var/cache/cairn`, is given without
/// its dashes; those within may be underscores, as is usual there.
pub(crate) fn words(arguments: impl IntoIterator<Item = OsString>) -> Option<Vec<OsString>> {
    let mut arguments = arguments.into_iter();
    let program = arguments.next()?;
    let name = Path::new(&program).file_name()?;
    if !NAMES.iter().any(|known| name == *known) {
        return None;
    }
    let mut places = Vec::new();
    let mut flags = Vec::new();
    while let Some(word) = arguments.next() {
        match word.as_bytes() {
            b"-o" => {
                let options = arguments.next().unwrap_or_default();
                let options = options.as_bytes().split(|byte| *byte == b',');
                flags.extend(options.filter_map(flag));
            }
            // The type, or a name space, which mount(8) has entered already.
            b"-t" | b"-N" => drop(arguments.next()),
            b"-v" => flags.push("-v".into()),
            // To be sloppy about options, which are not known then; and not to write a table that
            // there is no more.
            b"-s" | b"-n" => {}
            _ => places.push(word),
        }
    }
    let mut places = places.into_iter();
    let source = places.next();
    let mut words: Vec<_> = ["cairn", "mount", "--daemonize"].map(OsString::from).into();
    if let Some(source) = source.filter(|source| !NO_STORE.iter().any(|none| source == none)) {
        words.extend(["--store".into(), source]);
    }
    words.append(&mut flags);
    // What is missing, or too much, is told by the command.
    words.extend(places);
    Some(words)
}

/// The flag that an option is, if it is for the command.
fn flag(option: &[u8]) -> Option<OsString> {
    let (name, value) = match option.iter().position(|byte| *byte == b'=') {
        Some(end) => (&option[..end], Some(&option[end + 1..])),
        None => (option, None),
    };
    let is_comment = name.starts_with(b"x-") || name.starts_with(b"X-");
    if name.is_empty() || is_comment || NOT_OURS.iter().any(|other| name == other.as_bytes()) {
        return None;
    }
    let name: Vec<u8> = name.iter().map(|byte| if *byte == b'_' { b'-' } else { *byte }).collect();
    let mut word = b"--".to_vec();
    word.extend(&name);
    if let Some(value) = value {
        word.push(b'=');
        word.extend(value);
    }
    Some(OsString::from_vec(word))
}

/// Becomes `cairn` with these words. Returns only if it can't.
pub(crate) fn become_cairn(words: &[OsString]) -> Failure {
    let program = match env::current_exe() {
        Ok(program) => program,
        Err(error) => return Failure::new("the program does not find itself", error),
    };
    let error = Command::new(&program).args(words.iter().skip(1)).exec();
    Failure::new(format!("{} can't be run", program.display()), error)
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;

    use super::*;

    fn translated(line: &str) -> String {
        let words = words(line.split(' ').map(OsString::from)).unwrap();
        words.join(OsStr::new(" ")).into_string().unwrap()
    }

    #[test]
    fn what_mount_says_is_said_to_the_command() {
        assert_eq!(
            translated("/sbin/mount.fuse.cairn grpc+http://store:8000 /mnt -o rw,allow_other"),
            "cairn mount --daemonize --store grpc+http://store:8000 --allow-other /mnt"
        );
        assert_eq!(
            translated(
                "mount.cairn none /mnt -v -n -o \
                 ro,_netdev,x-systemd.automount,cache=/var/cache/cairn,uid_gid=1000:100"
            ),
            "cairn mount --daemonize -v --cache=/var/cache/cairn --uid-gid=1000:100 /mnt"
        );
        assert_eq!(translated("mount.cairn store"), "cairn mount --daemonize");
    }

    #[test]
    fn any_other_name_is_the_program_itself() {
        assert_eq!(words(["/usr/bin/cairn".into(), "mount".into()]), None);
        assert_eq!(words([]), None);
    }
}
