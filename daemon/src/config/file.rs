//! One configuration file: reading it within bounds, and what is set in it, line by line. What the
//! keys are is in `keys`, which file counts in `config`.

use std::{
    borrow::Cow,
    fmt,
    fs::File,
    io::{self, Read as _},
    ops::Range,
    os::unix::fs::PermissionsExt as _,
    path::Path,
    sync::Arc,
};

use clap::{Command, Id};
use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use super::{
    keys::{self, Kind, NoKey, Table, tables},
    mask::masked,
    stores::{NamedStore, STORES, is_name},
};
use crate::exit::{Code, Failure};

/// The largest file that is read, in bytes.
const FILE_MAX: usize = 1024 * 1024;

/// The most problems of one file that are told.
const PROBLEMS_MAX: usize = 20;

/// Where something is set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) file: Arc<Path>,
    /// Counted from 1.
    pub(crate) line: usize,
}

/// Something that is wrong with a file.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Problem {
    place: Place,
    what: String,
    help: Option<String>,
}

/// A key and what it is set to.
#[derive(Debug, Clone)]
pub(crate) struct Setting {
    /// The name of the key's table, which is that of the command; empty for what every command takes.
    pub(crate) table: String,
    /// The names of the command.
    pub(crate) path: Vec<String>,
    pub(crate) key: String,
    /// What the command line calls it by.
    pub(crate) id: Id,
    pub(crate) kind: Kind,
    /// As they would be on the command line.
    pub(crate) values: Vec<String>,
    /// The flags that can't be given together with that of the key.
    pub(crate) excluded: Vec<Id>,
    /// Whether the values are stores, which may have names.
    pub(crate) is_store: bool,
    pub(crate) place: Place,
}

/// A file that was read, and makes sense.
#[derive(Debug)]
pub(crate) struct ConfigFile {
    pub(crate) path: Arc<Path>,
    pub(crate) settings: Vec<Setting>,
    pub(crate) stores: Vec<NamedStore>,
    /// Whether other users may read it.
    is_public: bool,
}

impl Setting {
    /// Whether it is a setting for what the flag of the other one excludes.
    pub(crate) fn is_excluded_by(&self, other: &Self) -> bool {
        let is_off = |setting: &Self| match setting.kind {
            Kind::Switch => setting.values == ["false"],
            Kind::Count => setting.values == ["0"],
            Kind::Value | Kind::List => false,
        };
        let excludes = self.table == other.table && self.excluded.contains(&other.id);
        excludes && !is_off(self) && !is_off(other)
    }

    pub(crate) fn has_secret(&self) -> bool {
        self.values.iter().any(|value| masked(value) != *value)
    }
}

impl ConfigFile {
    /// Reads a file for a command line. `None` if there is none.
    pub(crate) fn read(
        path: &Path,
        root: impl Fn() -> Command,
    ) -> Result<Option<Self>, Vec<Failure>> {
        let (bytes, is_public) = match read(path) {
            Ok(Some(read)) => read,
            Ok(None) => return Ok(None),
            Err(error) => {
                let what = format!("the configuration file {} can't be read", path.display());
                return Err(vec![
                    Failure::new(what, error)
                        .help("make it readable, or name another one with --config"),
                ]);
            }
        };
        let mut reader = Reader { path: path.into(), bytes: &bytes, problems: Vec::new() };
        let (settings, stores) = reader.read(&root());
        if reader.problems.is_empty() {
            return Ok(Some(Self { path: reader.path, settings, stores, is_public }));
        }
        reader.problems.sort_by_key(|problem| problem.place.line);
        Err(reader.problems.into_iter().map(Failure::from).collect())
    }

    /// Whether everybody can read what nobody should.
    pub(crate) fn is_exposed(&self) -> bool {
        let has_secret = self.settings.iter().any(Setting::has_secret)
            || self.stores.iter().any(NamedStore::has_secret);
        self.is_public && has_secret
    }
}

/// The bytes of a file, one more than the most at most, and whether everybody may read them.
fn read(path: &Path) -> io::Result<Option<(Vec<u8>, bool)>> {
    use io::ErrorKind::{IsADirectory, NotADirectory, NotFound};
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if matches!(error.kind(), NotFound | NotADirectory) => return Ok(None),
        Err(error) => return Err(error),
    };
    let metadata = file.metadata()?;
    if metadata.is_dir() {
        return Err(IsADirectory.into());
    }
    let mut bytes = Vec::new();
    file.take(FILE_MAX as u64 + 1).read_to_end(&mut bytes)?;
    Ok(Some((bytes, metadata.permissions().mode() & 0o004 != 0)))
}

/// Makes settings of a file's bytes, and gathers what is wrong with them.
pub(super) struct Reader<'a> {
    path: Arc<Path>,
    bytes: &'a [u8],
    problems: Vec<Problem>,
}

impl Reader<'_> {
    pub(super) fn place(&self, offset: usize) -> Place {
        let before = self.bytes.get(..offset).unwrap_or(self.bytes);
        let line = 1 + before.iter().filter(|byte| **byte == b'\n').count();
        Place { file: self.path.clone(), line }
    }

    pub(super) fn problem(
        &mut self,
        at: &Range<usize>,
        what: impl fmt::Display,
        help: Option<String>,
    ) {
        if self.problems.len() < PROBLEMS_MAX {
            let place = self.place(at.start);
            self.problems.push(Problem { place, what: what.to_string(), help });
        }
    }

    fn read(&mut self, root: &Command) -> (Vec<Setting>, Vec<NamedStore>) {
        let (mut settings, mut stores) = (Vec::new(), Vec::new());
        if self.bytes.len() > FILE_MAX {
            let what = format!("a configuration file has at most {FILE_MAX} bytes");
            self.problem(&(0..0), what, None);
            return (settings, stores);
        }
        let text = match str::from_utf8(self.bytes) {
            Ok(text) => text,
            Err(error) => {
                let at = error.valid_up_to();
                self.problem(&(at..at), "this is no UTF-8", None);
                return (settings, stores);
            }
        };
        let document = match DeTable::parse(text) {
            Ok(document) => document,
            Err(error) => {
                let end = text.len()..text.len();
                let what = error.message().lines().collect::<Vec<_>>().join(", ");
                self.problem(&error.span().unwrap_or(end), what, None);
                return (settings, stores);
            }
        };
        let tables = tables(root);
        let own = &tables[0];
        for (key, value) in document.get_ref() {
            match value.get_ref() {
                DeValue::Table(tables) if key.get_ref() == STORES => stores = self.stores(tables),
                DeValue::Table(values) if own.key(key.get_ref(), &tables).is_err() => {
                    let Some(table) = self.table(key, &tables) else { continue };
                    for (key, value) in values {
                        settings.extend(self.setting(table, key, value, &tables));
                    }
                }
                _ => settings.extend(self.setting(own, key, value, &tables)),
            }
        }
        self.check_together(&settings);
        (settings, stores)
    }

    /// Finds settings that can't be together.
    fn check_together(&mut self, settings: &[Setting]) {
        for (index, setting) in settings.iter().enumerate() {
            for other in settings[..index].iter().filter(|other| setting.is_excluded_by(other)) {
                let (later, earlier) = match setting.place.line > other.place.line {
                    true => (setting, other),
                    false => (other, setting),
                };
                let what = format!("{} can't be set together with {}", later.key, earlier.key);
                self.problems.push(Problem::new(later.place.clone(), what));
            }
        }
    }

    /// The table of a command.
    fn table<'t>(
        &mut self,
        name: &Spanned<Cow<'_, str>>,
        tables: &'t [Table<'t>],
    ) -> Option<&'t Table<'t>> {
        let found = tables[1..].iter().find(|table| table.name == **name.get_ref());
        let Some(table) = found else {
            let with_keys = tables[1..].iter().filter(|table| table.settings().next().is_some());
            let names = with_keys.map(|table| table.name.as_str());
            let help = keys::most_alike(name.get_ref(), names)
                .map(|alike| format!("did you mean [{alike}]?"));
            let what = format!("there is no table [{}]: it is no command", name.get_ref());
            self.problem(&name.span(), what, help);
            return None;
        };
        Some(table)
    }

    fn setting(
        &mut self,
        table: &Table<'_>,
        key: &Spanned<Cow<'_, str>>,
        value: &Spanned<DeValue<'_>>,
        tables: &[Table<'_>],
    ) -> Option<Setting> {
        let (arg, kind) = match table.key(key.get_ref(), tables) {
            Ok(found) => found,
            Err(NoKey { what, help }) => {
                self.problem(&key.span(), what, help);
                return None;
            }
        };
        let name = key.get_ref();
        let Some(values) = values(kind, value.get_ref()) else {
            let expected = match kind {
                Kind::Switch => "true or false",
                Kind::Count => "a number of times",
                Kind::Value => "a text in quotes, or a number",
                Kind::List => "a text in quotes, or a list of some: [\"one\", \"other\"]",
            };
            self.problem(&value.span(), format!("{name} is {expected}"), None);
            return None;
        };
        let is_store = keys::is_store(arg);
        if kind != Kind::Switch {
            for value_text in &values {
                // Whether there is a store of a name is known when all files are.
                let is_named = is_store && is_name(value_text);
                if !is_named && let Err(why) = keys::check(arg, value_text) {
                    self.problem(&value.span(), format!("{name}: {why}"), None);
                    return None;
                }
            }
        }
        Some(Setting {
            table: table.name.clone(),
            path: table.path.clone(),
            key: name.to_string(),
            id: arg.get_id().clone(),
            kind,
            values,
            excluded: table.excluded(arg),
            is_store,
            place: self.place(key.span().start),
        })
    }
}

/// A value as words of a command line; `None` if it is not of the kind.
fn values(kind: Kind, value: &DeValue<'_>) -> Option<Vec<String>> {
    let one = |value: &DeValue<'_>| match value {
        DeValue::String(text) => Some(text.to_string()),
        DeValue::Integer(number) => {
            Some(i64::from_str_radix(number.as_str(), number.radix()).ok()?.to_string())
        }
        _ => None,
    };
    match (kind, value) {
        (Kind::Switch, DeValue::Boolean(is_on)) => Some(vec![is_on.to_string()]),
        (Kind::Switch, _) => None,
        (Kind::Count, DeValue::Integer(_)) => Some(vec![one(value)?]),
        (Kind::Count, _) => None,
        (Kind::Value, value) => Some(vec![one(value)?]),
        (Kind::List, DeValue::Array(values)) if values.is_empty() => None,
        (Kind::List, DeValue::Array(values)) => values.iter().map(|v| one(v.get_ref())).collect(),
        (Kind::List, value) => Some(vec![one(value)?]),
    }
}

impl Problem {
    pub(super) fn new(place: Place, what: String) -> Self {
        Self { place, what, help: None }
    }
}

impl From<Problem> for Failure {
    fn from(Problem { place, what, help }: Problem) -> Self {
        let failure = Self::plain(Code::Usage, format!("{place}: {what}"));
        match help {
            Some(help) => failure.help(help),
            None => failure,
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.file.display(), self.line)
    }
}
