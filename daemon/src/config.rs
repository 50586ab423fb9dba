//! What files say in place of flags: which files are read, what goes before what, and how it becomes
//! part of the command line. What is in a file is read in `file`; which flags have keys is in `keys`.
//!
//! Values become the defaults of their flags before the command line is parsed, so that clap's own
//! rules put flags and variables before them.

pub(crate) mod file;
pub(crate) mod keys;
pub(crate) mod mask;
pub(crate) mod stores;

use std::{
    env,
    ffi::{OsStr, OsString},
    os::unix::ffi::OsStrExt as _,
    path::{Path, PathBuf},
};

use clap::{
    Arg, ArgAction, ArgMatches, Command, CommandFactory, FromArgMatches, Id, builder::ValueParser,
    parser::ValueSource,
};

use self::{
    file::{ConfigFile, Problem, Setting},
    keys::Kind,
    stores::{NamedStore, Stores},
};
use crate::{
    exit::{Code, Failure},
    services::user_folder,
};

/// The file of the whole machine.
const SYSTEM_FILE: &str = "/etc/cairn/config.toml";

/// The file's name in the user's folder.
const FILE_NAME: &str = "config.toml";

/// The variable that names a file.
const VARIABLE: &str = "CAIRN_CONFIG";

/// Where else settings are.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct ConfigFileArgs {
    /// Read settings from this file, and from no other
    ///
    /// Without it, from $XDG_CONFIG_HOME/cairn/config.toml or ~/.config/cairn/config.toml, and then
    /// from /etc/cairn/config.toml, as far as they are there. Flags go before variables, and
    /// these before what files say. An empty file such as /dev/null sets nothing.
    #[arg(
        long,
        global = true,
        value_name = "FILE",
        env = VARIABLE,
        hide_env_values = true,
        help_heading = "Configuration"
    )]
    pub(crate) config: Option<PathBuf>,
}

/// The files that count, the one that goes before the others first.
#[derive(Debug, Default)]
pub(crate) struct Config {
    files: Vec<ConfigFile>,
    stores: Stores,
}

/// What was found, and what has become of it.
#[derive(Debug)]
pub(crate) struct Configured {
    /// What is wrong with the files, if they are of no use; at least one.
    pub(crate) config: Result<Config, Vec<Failure>>,
    /// The command line with all that belongs to it.
    pub(crate) matches: ArgMatches,
}

impl Configured {
    /// Refuses files that are of no use, and warns of others.
    pub(crate) fn usable(self) -> Result<Self, Failure> {
        let config = self.config.map_err(Failure::last_of)?;
        config.warn();
        Ok(Self { config: Ok(config), ..self })
    }
}

/// Reads the command line and the files that it, or else the machine, names. Ends the process on
/// wrong usage and after `--help`, as clap does.
pub(crate) fn parse<C: CommandFactory + FromArgMatches>(
    args: Vec<OsString>,
) -> Result<(C, Configured), Failure> {
    let named = named(&args).or_else(|| env::var_os(VARIABLE));
    let named = named.filter(|name| !name.is_empty()).map(PathBuf::from);
    let (config, matches) = match Config::read(named.as_deref(), C::command) {
        Ok(config) => {
            let matches = config.matches(C::command, |command| command.get_matches_from(&args));
            (Ok(config), matches)
        }
        Err(failures) => match C::command().try_get_matches_from(&args) {
            Ok(matches) => (Err(failures), matches),
            // The command line may be wrong for want of what the file says.
            Err(error) if error.use_stderr() => return Err(Failure::last_of(failures)),
            Err(help) => help.exit(),
        },
    };
    let parsed = C::from_arg_matches(&matches).unwrap_or_else(|error| error.exit());
    Ok((parsed, Configured { config, matches }))
}

/// The file that a command line names. No other flag has a value that begins with two dashes.
fn named(args: &[OsString]) -> Option<OsString> {
    let mut words = args.iter().skip(1).take_while(|word| *word != "--");
    let mut named = None;
    while let Some(word) = words.next() {
        if word == "--config" {
            named = words.next().cloned();
        } else if let Some(value) = word.as_bytes().strip_prefix(b"--config=") {
            named = Some(OsStr::from_bytes(value).to_owned());
        }
    }
    named
}

impl Config {
    /// Reads the file that is named, or else those that there are.
    pub(crate) fn read(
        named: Option<&Path>,
        root: impl Fn() -> Command,
    ) -> Result<Self, Vec<Failure>> {
        let Some(path) = named else {
            let user = user_folder("XDG_CONFIG_HOME", ".config").map(|f| f.join(FILE_NAME));
            return Self::of_files(user.into_iter().chain([SYSTEM_FILE.into()]), root);
        };
        let config = Self::of_files([path.to_owned()], root)?;
        if config.files.is_empty() {
            let what = format!("there is no configuration file {}", path.display());
            let help = format!("correct --config or {VARIABLE}, or write the file");
            return Err(vec![Failure::plain(Code::NotFound, what).help(help)]);
        }
        Ok(config)
    }

    /// Reads those files that there are.
    fn of_files(
        paths: impl IntoIterator<Item = PathBuf>,
        root: impl Fn() -> Command,
    ) -> Result<Self, Vec<Failure>> {
        let (mut config, mut problems) = (Self::default(), Vec::new());
        for path in paths {
            match ConfigFile::read(&path, &root) {
                Ok(file) => config.files.extend(file),
                Err(failures) => problems.extend(failures),
            }
        }
        if !problems.is_empty() {
            return Err(problems);
        }
        config.resolve().map_err(|problems| problems.into_iter().map(Failure::from).collect())
    }

    /// Finds the stores that have names, and those that settings name.
    fn resolve(mut self) -> Result<Self, Vec<Problem>> {
        self.stores = Stores::resolve(self.named_stores())?;
        let mut problems = Vec::new();
        for setting in self.files.iter().flat_map(|file| &file.settings) {
            for value in setting.values.iter().filter(|_| setting.is_store) {
                if let Err(why) = self.stores.parse(value) {
                    let what = format!("{}: {why}", setting.key);
                    problems.push(Problem::new(setting.place.clone(), what));
                }
            }
        }
        if problems.is_empty() { Ok(self) } else { Err(problems) }
    }

    /// The stores that files give names to; of each name the first counts.
    pub(crate) fn named_stores(&self) -> impl Iterator<Item = &NamedStore> {
        self.files.iter().flat_map(|file| &file.stores)
    }

    /// The addresses of the stores that have names.
    pub(crate) fn stores(&self) -> &Stores {
        &self.stores
    }

    /// The files that were read.
    pub(crate) fn files(&self) -> &[ConfigFile] {
        &self.files
    }

    /// Says what is no error, but should not be so.
    pub(crate) fn warn(&self) {
        for file in self.files.iter().filter(|file| file.is_exposed()) {
            tracing::warn!(
                file = %file.path.display(),
                "the configuration holds credentials, and every user can read it: chmod o-r",
            );
        }
    }

    /// The settings that count: those that no file above sets, or excludes.
    pub(crate) fn settings(&self) -> impl Iterator<Item = &Setting> {
        let files = self.files.iter().enumerate();
        files.flat_map(|(index, file)| {
            let above = &self.files[..index];
            let is_over = |other: &Setting, setting: &Setting| {
                let is_same = other.table == setting.table && other.key == setting.key;
                is_same || setting.is_excluded_by(other)
            };
            file.settings.iter().filter(move |setting| {
                !above.iter().flat_map(|file| &file.settings).any(|other| is_over(other, setting))
            })
        })
    }

    /// Parses with the settings as defaults.
    fn matches(
        &self,
        command: impl Fn() -> Command,
        parse: impl Fn(Command) -> ArgMatches,
    ) -> ArgMatches {
        let all: Vec<_> = self.settings().collect();
        if all.is_empty() && self.stores.is_empty() {
            return parse(command());
        }
        let matches = parse(self.with(command(), &all));
        // A setting goes behind a flag that excludes it, as it does behind its own.
        let run = leaf(&matches);
        let is_given = |id: &Id| {
            let id = id.as_str();
            let source = run.try_contains_id(id).ok().and_then(|_| run.value_source(id));
            source.is_some_and(|source| source != ValueSource::DefaultValue)
        };
        let count = all.len();
        let kept: Vec<_> =
            all.into_iter().filter(|setting| !setting.excluded.iter().any(is_given)).collect();
        if kept.len() == count { matches } else { parse(self.with(command(), &kept)) }
    }

    /// The command line with these settings as the defaults of their flags.
    fn with(&self, root: Command, settings: &[&Setting]) -> Command {
        let root = match self.stores.is_empty() {
            true => root,
            false => with_names(root, &self.stores),
        };
        settings.iter().fold(root, |root, setting| {
            in_command(root, &setting.path, &|command| {
                command.mut_arg(setting.id.as_str(), |arg| default(arg, setting))
            })
        })
    }
}

/// What the command that is run was given.
pub(crate) fn leaf(mut matches: &ArgMatches) -> &ArgMatches {
    while let Some((_, below)) = matches.subcommand() {
        matches = below;
    }
    matches
}

/// Lets stores be named where there are addresses.
fn with_names(command: Command, stores: &Stores) -> Command {
    let command = command.mut_args(|arg| {
        if !keys::is_store(&arg) {
            return arg;
        }
        let stores = stores.clone();
        arg.value_parser(ValueParser::new(move |text: &str| stores.parse(text)))
    });
    command.mut_subcommands(|below| with_names(below, stores))
}

/// Changes the command with this path of names.
fn in_command(command: Command, path: &[String], change: &dyn Fn(Command) -> Command) -> Command {
    match path {
        [] => change(command),
        [name, rest @ ..] => command.mut_subcommand(name, |below| in_command(below, rest, change)),
    }
}

fn default(arg: Arg, setting: &Setting) -> Arg {
    let mut arg = arg.default_values(setting.values.clone());
    if setting.has_secret() {
        arg = arg.hide_default_value(true);
    }
    if setting.kind != Kind::Switch || setting.values != ["true"] {
        return arg;
    }
    // What a file switches on can be switched off: --name=false.
    arg.action(ArgAction::Set)
        .num_args(0..=1)
        .require_equals(true)
        .default_missing_value("true")
        .value_parser(ValueParser::bool())
        .hide_possible_values(true)
        .hide_default_value(true)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::cli::Cli;

    /// What counts of a key when these are the user's and the machine's file.
    fn layered(user: &str, machine: &str, table: &str, key: &str) -> Option<Vec<String>> {
        let folder = tempfile::tempdir().unwrap();
        let paths = ["user", "machine"].map(|name| folder.path().join(name));
        fs::write(&paths[0], user).unwrap();
        fs::write(&paths[1], machine).unwrap();
        let missing = folder.path().join("missing");
        let config = Config::of_files([missing].into_iter().chain(paths), Cli::command).unwrap();
        let mut counting = config.settings();
        let set = counting.find(|setting| setting.table == table && setting.key == key)?;
        Some(set.values.clone())
    }

    #[test]
    fn files_are_layers() {
        let machine =
            "store = \"memory:\"\nverbose = 1\n[mount]\ngrace = 3\n[daemon]\nlisten = \"a:1\"";
        let user = "verbose = 2\n[mount]\ndeadline = 5\n[daemon]\nlisten = \"b:1\"";
        for (table, key, value) in [
            ("", "store", "memory:"),
            ("", "verbose", "2"),
            ("mount", "grace", "3"),
            ("mount", "deadline", "5"),
            ("daemon", "listen", "b:1"),
        ] {
            assert_eq!(layered(user, machine, table, key), Some(vec![value.to_owned()]), "{key}");
        }
        // What excludes a setting below it goes before it as well, unless it is off.
        assert_eq!(layered("verbose = 1", "quiet = true", "", "quiet"), None);
        let quiet = layered("verbose = 0", "quiet = true", "", "quiet");
        assert_eq!(quiet, Some(vec!["true".to_owned()]));
    }

    #[test]
    fn stores_are_named_across_files() {
        let user = "store = \"site\"\n[stores.site]\nurl = \"far\"";
        let machine = "[stores.site]\nurl = \"sled:/b\"\n[stores.far]\nurl = \"sled:/a\"";
        let folder = tempfile::tempdir().unwrap();
        let paths = ["user", "machine"].map(|name| folder.path().join(name));
        fs::write(&paths[0], user).unwrap();
        fs::write(&paths[1], machine).unwrap();
        let config = Config::of_files(paths, Cli::command).unwrap();
        let stores: Vec<_> =
            config.stores().iter().map(|(name, at)| (name, at.to_string())).collect();
        let far = "sled:/a".to_owned();
        assert_eq!(stores, [("far", far.clone()), ("site", far)]);
    }

    #[test]
    fn the_file_is_found_wherever_it_is_named() {
        let named = |words: &[&str]| {
            named(&words.iter().map(OsString::from).collect::<Vec<_>>())
                .map(|name| name.into_string().unwrap())
        };
        let file = Some("file".to_owned());
        assert_eq!(named(&["cairn", "--config", "file", "list"]), file);
        assert_eq!(named(&["cairn", "list", "--config=file"]), file);
        assert_eq!(named(&["cairn", "list", "--configure", "file"]), None);
        assert_eq!(named(&["cairn", "cat", "--", "--config", "file"]), None);
        assert_eq!(named(&["cairn", "--config"]), None);
    }
}
