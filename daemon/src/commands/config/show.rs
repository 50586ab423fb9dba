//! `cairn config show`: what each setting is, and who says so.

use std::{env, ffi::OsStr};

use clap::{Arg, ArgMatches, Args, CommandFactory as _, parser::ValueSource};
use serde::Serialize;
use serde_json::Value;

use crate::{
    cli::Cli,
    config::{
        Config, Configured,
        file::Place,
        keys::{Kind, Table, tables},
        leaf,
        mask::{MASK, masked},
        stores::STORES,
    },
    exit::Failure,
    output::Output,
};

/// The column at which it is said where a value comes from.
const SOURCE_COLUMN: usize = 40;

/// Show every setting, and where it comes from
///
/// Prints a configuration file that sets what is set now: by a flag, a variable or a file, or by
/// default. What is not set stands there behind a `#`. Passwords, and options of buckets that may be
/// secret, are printed as ***.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  cairn config show
  cairn --config ./cairn.toml config show --json | jq 'select(.source == \"file\")'")]
pub(crate) struct ShowArgs {
    /// Print one JSON object a line for each setting
    #[arg(long)]
    json: bool,
}

/// What a setting is now.
struct Effective {
    values: Vec<String>,
    source: Source,
}

enum Source {
    Flag,
    Variable(String),
    File(Place),
    Default,
    /// Nobody has set it, and there is no default.
    Unset,
}

#[derive(Debug, Serialize)]
struct SettingRecord {
    table: Option<String>,
    key: String,
    value: Option<Value>,
    source: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    variable: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    file: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    line: Option<usize>,
}

impl ShowArgs {
    pub(crate) async fn run(self, configured: Configured) -> Result<(), Failure> {
        let config = configured.config.map_err(Failure::last_of)?;
        let matches = leaf(&configured.matches);
        let root = Cli::command();
        let mut output = Output::new();
        if !self.json {
            for file in config.files() {
                output.line(format!("# {} was read.", file.path.display())).await?;
            }
        }
        for table in tables(&root) {
            self.show(&table, &config, matches, &mut output).await?;
        }
        for (name, address) in config.stores().iter() {
            let place = config.named_stores().find(|store| store.name == name);
            let place = place.map(|store| store.place.clone());
            let source = place.map_or(Source::Unset, Source::File);
            let url = Effective { values: vec![address.masked(MASK)], source };
            let table = format!("{STORES}.{name}");
            match self.json {
                true => output.json(&url.record(&table, "url", Kind::Value)).await?,
                false => {
                    output.line(format!("\n[{table}]")).await?;
                    output.line(url.line("url", Kind::Value)).await?;
                }
            }
        }
        output.flush().await
    }

    async fn show(
        &self,
        table: &Table<'_>,
        config: &Config,
        matches: &ArgMatches,
        output: &mut Output,
    ) -> Result<(), Failure> {
        let is_own = table.name.is_empty();
        let mut is_first = true;
        for (key, arg, kind) in table.settings() {
            let effective = Effective::of(table, key, arg, config, is_own.then_some(matches));
            if self.json {
                output.json(&effective.record(&table.name, key, kind)).await?;
                continue;
            }
            if is_first && !is_own {
                output.line(format!("\n[{}]", table.name)).await?;
            }
            is_first = false;
            output.line(effective.line(key, kind)).await?;
        }
        Ok(())
    }
}

impl Effective {
    /// What a key is. The command line counts for a flag that every command takes: those of others are
    /// not on it.
    fn of(
        table: &Table<'_>,
        key: &str,
        arg: &Arg,
        config: &Config,
        matches: Option<&ArgMatches>,
    ) -> Self {
        let id = arg.get_id().as_str();
        let raw = |matches: &ArgMatches| -> Vec<String> {
            let values = matches.get_raw(id).into_iter().flatten();
            values.map(|value| value.to_string_lossy().into_owned()).collect()
        };
        let given = matches.and_then(|matches| Some((matches.value_source(id)?, raw(matches))));
        let variable = arg.get_env().map(OsStr::to_string_lossy);
        match (given, &variable) {
            (Some((ValueSource::CommandLine, values)), _) => {
                return Self { values, source: Source::Flag };
            }
            (_, Some(name)) => {
                if let Some(value) = env::var_os(&**name) {
                    let values = vec![value.to_string_lossy().into_owned()];
                    return Self { values, source: Source::Variable(name.to_string()) };
                }
            }
            (_, None) => {}
        }
        let set = config.settings().find(|set| set.table == table.name && set.key == key);
        // One that goes behind a flag which excludes it does not count.
        let counts = |values: &[String]| matches.is_none_or(|matches| raw(matches) == values);
        if let Some(set) = set.filter(|set| counts(&set.values)) {
            return Self { values: set.values.clone(), source: Source::File(set.place.clone()) };
        }
        let default: Vec<String> = match Kind::of(arg) {
            Some(Kind::Switch) => vec!["false".to_owned()],
            Some(Kind::Count) => vec!["0".to_owned()],
            _ => {
                let values = arg.get_default_values().iter();
                values.map(|value| value.to_string_lossy().into_owned()).collect()
            }
        };
        let source = if default.is_empty() { Source::Unset } else { Source::Default };
        Self { values: default, source }
    }

    /// The value as TOML and JSON have it alike.
    fn value(&self, kind: Kind) -> Option<Value> {
        let word = |value: &String| match value.parse::<i64>() {
            Ok(number) => Value::from(number),
            Err(_) => Value::from(masked(value)),
        };
        match (&self.source, kind, self.values.as_slice()) {
            (Source::Unset, ..) => None,
            (_, Kind::Switch, values) => Some(Value::from(values == ["true"])),
            (_, Kind::List, values) => Some(values.iter().map(|value| masked(value)).collect()),
            (_, _, values) => values.first().map(word),
        }
    }

    fn line(&self, key: &str, kind: Kind) -> String {
        let set = match self.value(kind) {
            Some(value) => format!("{key} = {value}"),
            None => format!("# {key} ="),
        };
        let source = match &self.source {
            Source::Flag => "by a flag".to_owned(),
            Source::Variable(name) => format!("by {name}"),
            Source::File(place) => place.to_string(),
            Source::Default => "by default".to_owned(),
            Source::Unset => return set,
        };
        format!("{set:SOURCE_COLUMN$} # {source}")
    }

    fn record(self, table: &str, key: &str, kind: Kind) -> SettingRecord {
        let value = self.value(kind);
        let (source, variable, place) = match self.source {
            Source::Flag => (Some("flag"), None, None),
            Source::Variable(name) => (Some("variable"), Some(name), None),
            Source::File(place) => (Some("file"), None, Some(place)),
            Source::Default => (Some("default"), None, None),
            Source::Unset => (None, None, None),
        };
        SettingRecord {
            table: (!table.is_empty()).then(|| table.to_owned()),
            key: key.to_owned(),
            value,
            source,
            variable,
            file: place.as_ref().map(|place| place.file.display().to_string()),
            line: place.map(|place| place.line),
        }
    }
}
