//! How the program ends: what is said of a failure, what can be done about it, and the exit code.
//! Where failures come from is the affair of the commands.

use std::{error::Error, fmt, io, process};

use cairn_castore::{
    BlobError, BoxError, DirectoryError,
    cache::warm::WarmError,
    errors::{chain, message},
    export::ExportError,
    local::LocalError,
    object_base::ObjectBaseError,
    tree_walk::WalkError,
};
use cairn_store::{
    PathInfoError, import::ImportPathError, store_path::InvalidStorePath, store_ref::StoreRefError,
};

use crate::{cache::ControlError, local_owner::SharedStoreError, signals::EndSignal};

/// What the exit code says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Code {
    /// All was done.
    Done = 0,
    /// Something failed.
    Failed = 1,
    /// The command line is wrong; clap ends with the same.
    Usage = 2,
    /// What was asked for is not there.
    NotFound = 3,
    /// What was asked for is there, but not what it should be.
    Damaged = 4,
    /// SIGINT ended the command before it was done; what a shell says of such a process.
    Interrupted = 130,
    /// SIGTERM did.
    Terminated = 143,
}

impl Code {
    /// What another process of this program has said.
    pub(crate) fn of(code: i32) -> Self {
        let all = [
            Self::Done,
            Self::Failed,
            Self::Usage,
            Self::NotFound,
            Self::Damaged,
            Self::Interrupted,
            Self::Terminated,
        ];
        all.into_iter().find(|known| *known as i32 == code).unwrap_or(Self::Failed)
    }
}

/// A command that could not do as asked.
#[derive(Debug)]
pub(crate) struct Failure {
    what: String,
    source: Option<BoxError>,
    help: Option<String>,
    code: Code,
    /// Whether it was reported already.
    is_told: bool,
}

impl Failure {
    /// Failed to do `what` (`import of /a/tree failed`); the error says why, what the code is and
    /// what helps.
    pub(crate) fn new(what: impl Into<String>, error: impl Into<BoxError>) -> Self {
        let source = error.into();
        let Advice { code, help } = advice(source.as_ref());
        Self { what: what.into(), source: Some(source), help, code, is_told: false }
    }

    /// Failed for a reason that is said in full.
    pub(crate) fn plain(code: Code, what: impl Into<String>) -> Self {
        Self { what: what.into(), source: None, help: None, code, is_told: false }
    }

    /// Another process failed for us, and has said why.
    pub(crate) fn told(code: Code) -> Self {
        Self { is_told: true, ..Self::plain(code, "another process failed") }
    }

    /// A signal ended the command before it was done.
    pub(crate) fn signal(signal: EndSignal) -> Self {
        let code = match signal {
            EndSignal::Interrupt => Code::Interrupted,
            EndSignal::Terminate => Code::Terminated,
        };
        Self::plain(code, format!("{signal} came before all was done"))
    }

    /// What was compared differs, and that has been shown.
    pub(crate) fn difference() -> Self {
        Self { is_told: true, ..Self::plain(Code::Failed, "something differs") }
    }

    /// Another failure than [`difference`](Self::difference) gets a code of its own, for commands that
    /// end with the codes of `diff`.
    pub(crate) fn unless_difference(self) -> Self {
        let is_failure = self.code == Code::Failed && !self.is_told;
        if is_failure { self.code(Code::Usage) } else { self }
    }

    /// Output could not be written. If nobody reads it any more, that is no failure.
    pub(crate) fn output(error: io::Error) -> Self {
        let is_unwanted = error.kind() == io::ErrorKind::BrokenPipe;
        let failure = Self::new("standard output can't be written", error);
        if is_unwanted { Self { code: Code::Done, ..failure } } else { failure }
    }

    /// The last of at least one failure, to be reported by whoever gets it; the others are reported
    /// here.
    pub(crate) fn last_of(failures: Vec<Self>) -> Self {
        let mut failures = failures.into_iter();
        let mut last = failures.next().expect("there is at least one");
        for failure in failures {
            last.report();
            last = failure;
        }
        last
    }

    /// Adds what can be done, in place of what the error suggests.
    pub(crate) fn help(self, help: impl Into<String>) -> Self {
        Self { help: Some(help.into()), ..self }
    }

    /// Ends with another code than the error suggests.
    pub(crate) fn code(self, code: Code) -> Self {
        Self { code, ..self }
    }

    /// Says on standard error what failed; the code to exit with.
    pub(crate) fn report(&self) -> process::ExitCode {
        if self.code != Code::Done && !self.is_told {
            eprintln!("cairn: error: {self}");
            if let Some(help) = &self.help {
                eprintln!("  help: {help}");
            }
        }
        process::ExitCode::from(self.code as u8)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)?;
        self.source.iter().try_for_each(|source| write!(f, ": {}", message(source.as_ref())))
    }
}

struct Advice {
    code: Code,
    help: Option<String>,
}

impl Advice {
    fn new(code: Code, help: &str) -> Self {
        Self { code, help: Some(help.to_owned()) }
    }

    fn code(code: Code) -> Self {
        Self { code, help: None }
    }
}

const DENIED: &str = "check who may use the store: the credentials of a bucket, as in AWS_ACCESS_KEY_ID and \
    AWS_SECRET_ACCESS_KEY, or the owner and mode of a folder";

const NO_SPACE: &str = "make room on the disk that holds the store, and try again: what was \
    stored before is not affected";

const UNAVAILABLE: &str =
    "check the address, and that `cairn daemon` (or another store) runs there";

const DAMAGED: &str = "storing the same content again, as by importing the tree once more, \
    repairs it";

/// What to make of the first error in the chain that says something.
fn advice(error: &(dyn Error + 'static)) -> Advice {
    chain(error).find_map(advice_of_one).unwrap_or(Advice::code(Code::Failed))
}

fn advice_of_one(error: &(dyn Error + 'static)) -> Option<Advice> {
    if let Some(error) = error.downcast_ref::<PathInfoError>() {
        return path_info_advice(error);
    }
    if let Some(error) = error.downcast_ref::<BlobError>() {
        return blob_advice(error);
    }
    if let Some(error) = error.downcast_ref::<DirectoryError>() {
        return directory_advice(error);
    }
    // What it wraps is not its source.
    if let Some(WalkError::Directory(error)) = error.downcast_ref::<WalkError>() {
        return directory_advice(error);
    }
    if let Some(error) = error.downcast_ref::<LocalError>() {
        return local_advice(error);
    }
    match error.downcast_ref::<ObjectBaseError>() {
        Some(ObjectBaseError::NoBucket { .. }) => {
            return Some(Advice::new(
                Code::NotFound,
                "make the bucket, or correct its name or the endpoint (AWS_ENDPOINT_URL)",
            ));
        }
        Some(ObjectBaseError::NoCredentials { .. }) => {
            return Some(Advice::new(
                Code::Failed,
                "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_SKIP_SIGNATURE=true for a \
                 bucket that is open to all",
            ));
        }
        _ => {}
    }
    if let Some(SharedStoreError::OtherStore { .. }) = error.downcast_ref::<SharedStoreError>() {
        return Some(Advice::new(
            Code::Failed,
            "choose another folder with --cache, or end the process that uses this one",
        ));
    }
    if let Some(error) = error.downcast_ref::<ControlError>() {
        return control_advice(error);
    }
    if let Some(ImportPathError::PathInfo(error)) = error.downcast_ref::<ImportPathError>() {
        return path_info_advice(error);
    }
    if let Some(ExportError::NoSpace { .. }) = error.downcast_ref::<ExportError>() {
        return Some(Advice::new(Code::Failed, "make room there, or export to another place"));
    }
    if let Some(error) = error.downcast_ref::<StoreRefError>() {
        return store_ref_advice(error);
    }
    if let Some(InvalidStorePath::Name(_)) = error.downcast_ref::<InvalidStorePath>() {
        return Some(Advice::code(Code::Usage));
    }
    if let Some(error) = error.downcast_ref::<io::Error>() {
        // An error made of another is looked into, since its source is what that one has.
        return error.get_ref().and_then(|inner| advice_of_one(inner));
    }
    None
}

fn path_info_advice(error: &PathInfoError) -> Option<Advice> {
    match error {
        PathInfoError::Blob(error) => blob_advice(error),
        PathInfoError::Directory(error) => directory_advice(error),
        PathInfoError::Missing { .. } => Some(Advice::code(Code::Damaged)),
        PathInfoError::Corrupt { .. } => Some(Advice::new(Code::Damaged, DAMAGED)),
        PathInfoError::PermissionDenied { .. } => Some(Advice::new(Code::Failed, DENIED)),
        PathInfoError::NoSpace { .. } => Some(Advice::new(Code::Failed, NO_SPACE)),
        PathInfoError::Unavailable { .. } => Some(Advice::new(Code::Failed, UNAVAILABLE)),
        _ => None,
    }
}

fn blob_advice(error: &BlobError) -> Option<Advice> {
    match error {
        // A tree in the store leads to it: it should be there.
        BlobError::NotFound(_) => Some(Advice::code(Code::NotFound)),
        BlobError::Corrupt { .. } => Some(Advice::new(Code::Damaged, DAMAGED)),
        BlobError::PermissionDenied { .. } => Some(Advice::new(Code::Failed, DENIED)),
        BlobError::NoSpace { .. } => Some(Advice::new(Code::Failed, NO_SPACE)),
        BlobError::Unavailable { .. } => Some(Advice::new(Code::Failed, UNAVAILABLE)),
        _ => None,
    }
}

fn directory_advice(error: &DirectoryError) -> Option<Advice> {
    match error {
        DirectoryError::NotFound(_) => Some(Advice::code(Code::NotFound)),
        DirectoryError::Corrupt { .. } => Some(Advice::new(Code::Damaged, DAMAGED)),
        DirectoryError::PermissionDenied { .. } => Some(Advice::new(Code::Failed, DENIED)),
        DirectoryError::NoSpace { .. } => Some(Advice::new(Code::Failed, NO_SPACE)),
        DirectoryError::Unavailable { .. } => Some(Advice::new(Code::Failed, UNAVAILABLE)),
        _ => None,
    }
}

fn store_ref_advice(error: &StoreRefError) -> Option<Advice> {
    match error {
        StoreRefError::NoRoot(_) => {
            Some(Advice::new(Code::NotFound, "`cairn list` shows the store paths in the store"))
        }
        StoreRefError::NoEntry { .. } => {
            Some(Advice::new(Code::NotFound, "`cairn ls` shows what is in a directory"))
        }
        StoreRefError::File(_) | StoreRefError::Symlink { .. } => {
            Some(Advice::code(Code::NotFound))
        }
        StoreRefError::PathInfo(error) => path_info_advice(error),
        StoreRefError::Directory(error) => directory_advice(error),
        StoreRefError::Blob(error) => blob_advice(error),
    }
}

fn control_advice(error: &ControlError) -> Option<Advice> {
    match error {
        ControlError::NoCache(_) => Some(Advice::new(
            Code::NotFound,
            "a cache is made by the first command that reads a store with it",
        )),
        ControlError::Local(error) => local_advice(error),
        ControlError::PathInfo(error) => path_info_advice(error),
        ControlError::Warm(WarmError::Blob(error)) => blob_advice(error),
        ControlError::Warm(WarmError::Directory(error)) => directory_advice(error),
        ControlError::Warm(WarmError::NotKept { .. }) => Some(Advice::new(
            Code::Failed,
            "give the cache more room with --cache-size, or make room on its disk",
        )),
        ControlError::Peer(status) => match status.code() {
            tonic::Code::NotFound => Some(Advice::code(Code::NotFound)),
            tonic::Code::DataLoss => Some(Advice::new(Code::Damaged, DAMAGED)),
            _ => None,
        },
        ControlError::BrokenOff(_) => None,
    }
}

fn local_advice(error: &LocalError) -> Option<Advice> {
    match error {
        LocalError::Version { .. } => {
            Some(Advice::new(Code::Failed, "use a cairn that is at least as new as the store"))
        }
        LocalError::NotAStore(_) => Some(Advice::new(
            Code::Failed,
            "name an empty folder, one that does not exist yet, or one that holds a store",
        )),
        LocalError::IsStore(_) => Some(Advice::new(
            Code::Failed,
            "name an empty folder with --cache, or one that does not exist yet",
        )),
        LocalError::IsCache(_) => Some(Advice::new(
            Code::Failed,
            "name the folder of a store; a cache is given by --cache",
        )),
        LocalError::Damaged { .. } => Some(Advice::new(Code::Damaged, DAMAGED)),
        LocalError::NoSpace { .. } => Some(Advice::new(Code::Failed, NO_SPACE)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use cairn_castore::Digest;

    use super::*;

    #[test]
    fn a_failure_tells_its_causes_once_each() {
        let inner = io::Error::other("no such luck");
        let error = BlobError::Unavailable { service: "there".to_owned(), source: Box::new(inner) };
        let failure = Failure::new("reading failed", PathInfoError::Blob(error));
        assert_eq!(failure.to_string(), "reading failed: there can't be reached: no such luck");
        assert_eq!(failure.help.as_deref(), Some(UNAVAILABLE));
        assert_eq!(failure.code, Code::Failed);
    }

    #[test]
    fn the_code_is_found_wherever_the_error_is() {
        let damaged = || BlobError::Corrupt { digest: Digest::EMPTY, reason: "torn".to_owned() };
        let nested = io::Error::other(PathInfoError::Blob(damaged()));
        for (error, code) in [
            (BoxError::from(damaged()), Code::Damaged),
            (nested.into(), Code::Damaged),
            (DirectoryError::NotFound(Digest::EMPTY).into(), Code::NotFound),
            (io::Error::other("?").into(), Code::Failed),
        ] {
            assert_eq!(Failure::new("it failed", error).code, code);
        }
    }

    #[test]
    fn output_that_nobody_reads_is_no_failure() {
        let failure = Failure::output(io::ErrorKind::BrokenPipe.into());
        assert_eq!(failure.code, Code::Done);
        assert_eq!(Failure::output(io::ErrorKind::StorageFull.into()).code, Code::Failed);
    }
}
