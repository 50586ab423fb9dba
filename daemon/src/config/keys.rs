//! What can be said in a file: a key for each flag that is a setting, as the command line defines
//! them. What the keys are set to is in `file`.

use cairn_castore::Address;
use clap::{
    Arg, ArgAction, Command, Id, ValueHint,
    builder::ValueParser,
    error::{ContextKind, ContextValue, ErrorKind},
    value_parser,
};

/// Flags that name what one run works on, or what it leaves behind: the table of the command, and the
/// flag.
const OF_ONE_RUN: [(&str, &str); 25] = [
    ("", "config"),
    ("cache-evict", "all"),
    ("cache-warm", "profile"),
    ("copy", "all"),
    ("copy", "from"),
    ("copy", "to"),
    ("du", "depth"),
    ("find", "digest"),
    ("find", "max-depth"),
    ("find", "name"),
    ("find", "size"),
    ("find", "type"),
    ("import", "name"),
    ("list", "after"),
    ("list", "limit"),
    ("list", "name"),
    ("list", "refers-to"),
    ("list", "size"),
    ("list", "sort"),
    ("mount", "import"),
    ("mount", "record"),
    ("ping", "count"),
    ("top", "count"),
    ("tree", "level"),
    ("virtiofs", "import"),
];

/// Flags that choose the form of what is printed, of whatever command.
const OF_OUTPUT: [&str; 8] =
    ["directories", "json", "long", "name-only", "null", "recursive", "sizes", "stat"];

/// How alike two words are that may be taken for each other; what clap has for flags.
const ALIKE: f64 = 0.7;

/// A table of keys: what every command takes, or what one command takes besides.
pub(crate) struct Table<'a> {
    /// The names of the command, joined by dashes. Empty for the table that is the file itself.
    pub(crate) name: String,
    /// The same, one by one.
    pub(crate) path: Vec<String>,
    /// The command.
    pub(crate) command: &'a Command,
}

/// How a flag takes its values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// It is there or not.
    Switch,
    /// It counts how often it is there.
    Count,
    /// It has one value.
    Value,
    /// It has any number of them.
    List,
}

/// Why something is no key.
#[derive(Debug)]
pub(crate) struct NoKey {
    pub(crate) what: String,
    pub(crate) help: Option<String>,
}

impl Kind {
    pub(crate) fn of(arg: &Arg) -> Option<Self> {
        Some(match arg.get_action() {
            ArgAction::SetTrue | ArgAction::SetFalse => Self::Switch,
            ArgAction::Count => Self::Count,
            ArgAction::Append => Self::List,
            ArgAction::Set if arg.get_value_delimiter().is_some() => Self::List,
            ArgAction::Set => Self::Value,
            _ => return None,
        })
    }
}

/// The tables that a file can have: its own first, then those of all commands.
pub(crate) fn tables(root: &Command) -> Vec<Table<'_>> {
    fn add<'a>(tables: &mut Vec<Table<'a>>, path: &[String], command: &'a Command) {
        tables.push(Table { name: path.join("-"), path: path.to_vec(), command });
        for below in command.get_subcommands() {
            add(tables, &[path, &[below.get_name().to_owned()]].concat(), below);
        }
    }
    let mut tables = Vec::new();
    add(&mut tables, &[], root);
    tables
}

impl Table<'_> {
    /// The flags that are keys here.
    pub(crate) fn settings(&self) -> impl Iterator<Item = (&str, &Arg, Kind)> {
        self.command.get_arguments().filter_map(|arg| {
            let long = arg.get_long().filter(|_| !arg.is_hide_set())?;
            let is_setting =
                !OF_OUTPUT.contains(&long) && !OF_ONE_RUN.contains(&(&self.name, long));
            Some((long, arg, Kind::of(arg).filter(|_| is_setting)?))
        })
    }

    /// What a key is here; if it is none, why.
    pub(crate) fn key(&self, key: &str, all: &[Table<'_>]) -> Result<(&Arg, Kind), NoKey> {
        if let Some((_, arg, kind)) = self.settings().find(|(long, ..)| *long == key) {
            return Ok((arg, kind));
        }
        let is_named = |arg: &&Arg| match arg.get_long() {
            Some(long) => long == key && !arg.is_hide_set(),
            None => arg.get_id().as_str().replace('_', "-") == key,
        };
        if self.command.get_arguments().any(|arg| is_named(&arg)) {
            let why = match OF_OUTPUT.contains(&key) {
                true => "who reads the output has to know its form",
                false => "it says what one run works on",
            };
            return Err(NoKey {
                what: format!("{key:?} is no setting: {why}"),
                help: Some("give it on the command line".to_owned()),
            });
        }
        let elsewhere: Vec<String> = all
            .iter()
            .filter(|table| table.settings().any(|(long, ..)| long == key))
            .map(Table::heading)
            .collect();
        let help = match elsewhere.is_empty() {
            true => self.alike(key).map(|alike| format!("did you mean {alike:?}?")),
            false => Some(format!("it is a key of {}", elsewhere.join(" and "))),
        };
        let what = match self.name.as_str() {
            "" => format!("there is no key {key:?}"),
            name => format!("there is no key {key:?} in [{name}]"),
        };
        Err(NoKey { what, help })
    }

    /// The flags that can't be given together with this one.
    pub(crate) fn excluded(&self, arg: &Arg) -> Vec<Id> {
        let excludes = |one: &Arg, other: &Arg| {
            let excluded = self.command.get_arg_conflicts_with(one);
            excluded.iter().any(|found| found.get_id() == other.get_id())
        };
        let others = self.command.get_arguments();
        let excluded = others.filter(|other| excludes(arg, other) || excludes(other, arg));
        excluded.map(|other| other.get_id().clone()).collect()
    }

    fn alike(&self, key: &str) -> Option<&str> {
        most_alike(key, self.settings().map(|(long, ..)| long))
    }

    /// What the table is called in a message.
    fn heading(&self) -> String {
        match self.name.as_str() {
            "" => "the file itself, above all tables".to_owned(),
            name => format!("[{name}]"),
        }
    }
}

/// The candidate that was most probably meant.
pub(crate) fn most_alike<'a>(
    word: &str,
    candidates: impl IntoIterator<Item = &'a str>,
) -> Option<&'a str> {
    let likeness = |candidate: &'a str| (strsim::jaro(word, candidate), candidate);
    let alike = candidates.into_iter().map(likeness).filter(|(likeness, _)| *likeness > ALIKE);
    alike.max_by(|(one, _), (other, _)| one.total_cmp(other)).map(|(_, candidate)| candidate)
}

/// Whether the values of a flag are stores.
pub(crate) fn is_store(arg: &Arg) -> bool {
    arg.get_value_parser().type_id() == ValueParser::from(value_parser!(Address)).type_id()
}

/// Reads a value as the flag itself would; if it can't be one, why.
pub(crate) fn check(arg: &Arg, value: &str) -> Result<(), String> {
    let hint = arg.get_value_hint();
    let is_path = matches!(hint, ValueHint::AnyPath | ValueHint::FilePath | ValueHint::DirPath);
    if is_path && !value.starts_with('/') {
        return Err(format!(
            "{value:?} is no absolute path: a file does not know where commands are started"
        ));
    }
    // The flag without what it has to do with others.
    let mut alone = Arg::new("value").long("value").action(ArgAction::Append);
    alone = alone.value_parser(arg.get_value_parser().clone());
    if let Some(delimiter) = arg.get_value_delimiter() {
        alone = alone.value_delimiter(delimiter);
    }
    let command = Command::new("").no_binary_name(true).arg(alone);
    let Err(error) = command.try_get_matches_from([format!("--value={value}")]) else {
        return Ok(());
    };
    let valid = match error.get(ContextKind::ValidValue) {
        Some(ContextValue::Strings(values)) => values.join(", "),
        _ => String::new(),
    };
    Err(match (error.kind(), std::error::Error::source(&error)) {
        (_, Some(source)) => source.to_string(),
        (ErrorKind::InvalidValue, None) if value.is_empty() => "it is empty".to_owned(),
        (_, None) => format!("{value:?} is none of {valid}"),
    })
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;
    use crate::cli::Cli;

    #[test]
    fn every_flag_is_a_key_or_said_to_be_none() {
        let root = Cli::command();
        let tables = tables(&root);
        let keys: Vec<String> = tables
            .iter()
            .flat_map(|table| table.settings().map(|(key, ..)| format!("{}.{key}", table.name)))
            .collect();
        for key in [".store", ".verbose", ".log-file", "mount.deadline", "daemon.listen"] {
            assert!(keys.iter().any(|known| known == key), "{key} is not in {keys:?}");
        }
        for (table, flag) in OF_ONE_RUN {
            let table = tables.iter().find(|known| known.name == table).unwrap();
            let is_there = table.command.get_arguments().any(|arg| arg.get_long() == Some(flag));
            assert!(is_there, "[{}] has no flag {flag} any more", table.name);
        }
    }

    #[test]
    fn every_form_of_output_is_one_of_a_command() {
        let root = Cli::command();
        let tables = tables(&root);
        for flag in OF_OUTPUT {
            let mut args = tables.iter().flat_map(|table| table.command.get_arguments());
            assert!(args.any(|arg| arg.get_long() == Some(flag)), "{flag}");
        }
    }

    /// A TOML file can't have both a value and a table of one name.
    #[test]
    fn no_table_has_the_name_of_a_key() {
        let root = Cli::command();
        let tables = tables(&root);
        let top: Vec<_> = tables[0].settings().map(|(key, ..)| key.to_owned()).collect();
        for table in &tables[1..] {
            let clashes = top.contains(&table.name) || table.name == "stores";
            assert!(!clashes || table.settings().next().is_none(), "[{}]", table.name);
        }
    }

    #[test]
    fn values_are_read_by_the_flags_parsers() {
        let root = Cli::command();
        let tables = tables(&root);
        let told = |table: &str, key: &str, value: &str| {
            let table = tables.iter().find(|known| known.name == table).unwrap();
            let (arg, _) = table.key(key, &tables).unwrap();
            check(arg, value).err().unwrap_or_default()
        };
        assert_eq!(told("", "store", "sled:/a"), "");
        assert_eq!(told("daemon", "serve", "blob,path-info"), "");
        assert!(told("", "store", "http://a").contains("did you mean grpc+http://a"));
        assert!(told("", "cache-size", "1MiB").contains("at least 64MiB"));
        assert!(told("", "cache", "~/cache").contains("no absolute path"));
        assert!(told("mount", "deadline", "soon").contains("invalid digit"));
        assert!(told("mount", "profile", "fast").contains("none of auto, cache, passthrough"));
        assert!(told("daemon", "serve", "blob,blobs").contains("none of blob, directory"));
    }
}
