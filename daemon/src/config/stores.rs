//! Stores that files give names to: what a table `[stores.NAME]` says, and which address it comes to.

use std::{borrow::Cow, collections::BTreeMap, sync::Arc};

use cairn_castore::{
    Address, ByteSize,
    address::{CacheAddress, InvalidAddress, UpstreamsAddress},
};
use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use super::{
    file::{Place, Problem, Reader},
    keys,
    mask::masked,
};

/// The table that has a table for each store.
pub(crate) const STORES: &str = "stores";

/// The most stores in one file.
const STORES_MAX: usize = 256;

/// The keys of a store.
const KEYS: [&str; 6] = ["far", "near", "size", "upstreams", "url", "write"];

/// A store as a file says it.
#[derive(Debug)]
pub(crate) struct NamedStore {
    pub(crate) name: String,
    pub(crate) place: Place,
    kind: StoreKind,
}

/// What a store consists of: addresses, or names of stores.
#[derive(Debug)]
enum StoreKind {
    Url(Word),
    Cache { near: Word, far: Word, size: Option<Word> },
    Upstreams { stores: Vec<Word>, write: Option<Word> },
}

/// A text and where it stands.
#[derive(Debug, Clone)]
struct Word {
    text: String,
    place: Place,
}

/// The stores that have names, by these.
#[derive(Debug, Clone, Default)]
pub(crate) struct Stores(Arc<BTreeMap<String, Address>>);

impl NamedStore {
    /// Whether it is not for everybody to read.
    pub(super) fn has_secret(&self) -> bool {
        let words: Vec<&Word> = match &self.kind {
            StoreKind::Url(url) => vec![url],
            StoreKind::Cache { near, far, .. } => vec![near, far],
            StoreKind::Upstreams { stores, .. } => stores.iter().collect(),
        };
        words.iter().any(|word| masked(&word.text) != word.text)
    }
}

impl Reader<'_> {
    /// The stores of a file.
    pub(super) fn stores(&mut self, tables: &DeTable<'_>) -> Vec<NamedStore> {
        let mut stores = Vec::new();
        for (name, value) in tables {
            if stores.len() >= STORES_MAX {
                let what = format!("more than {STORES_MAX} stores in one file");
                self.problem(&name.span(), what, None);
                break;
            }
            let DeValue::Table(keys) = value.get_ref() else {
                let what = format!("{STORES}.{} is no table", name.get_ref());
                let help = format!("write [{STORES}.{}], and url = \"…\" below it", name.get_ref());
                self.problem(&name.span(), what, Some(help));
                continue;
            };
            let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
            if name.get_ref().is_empty() || !name.get_ref().chars().all(is_plain) {
                let what = format!("{:?} can't be the name of a store", name.get_ref());
                let help = Some("use letters, digits, - and _".to_owned());
                self.problem(&name.span(), what, help);
                continue;
            }
            let place = self.place(name.span().start);
            if let Some(kind) = self.kind(name, keys) {
                stores.push(NamedStore { name: name.get_ref().to_string(), place, kind });
            }
        }
        stores
    }

    fn kind(&mut self, name: &Spanned<Cow<'_, str>>, table: &DeTable<'_>) -> Option<StoreKind> {
        let (mut words, mut lists) = (BTreeMap::new(), BTreeMap::new());
        let mut is_right = true;
        for (key, value) in table {
            let key_name = key.get_ref().as_ref();
            if !KEYS.contains(&key_name) {
                let help = keys::most_alike(key_name, KEYS)
                    .map(|alike| format!("did you mean {alike:?}?"))
                    .or_else(|| Some(format!("a store has {}", KEYS.join(", "))));
                self.problem(&key.span(), format!("a store has no key {key_name:?}"), help);
                is_right = false;
                continue;
            }
            let told = match (key_name, value.get_ref()) {
                ("upstreams", DeValue::Array(values)) => {
                    let list: Option<Vec<_>> =
                        values.iter().map(|value| self.word(value)).collect();
                    list.map(|list| drop(lists.insert("upstreams", list)))
                }
                ("upstreams", _) => None,
                _ => self.word(value).map(|word| drop(words.insert(key_name, word))),
            };
            if told.is_none() {
                let what = match key_name {
                    "upstreams" => "upstreams is a list of texts in quotes: [\"one\", \"other\"]",
                    _ => &format!("{key_name} is a text in quotes"),
                };
                self.problem(&value.span(), what, None);
                is_right = false;
            }
        }
        if !is_right {
            return None;
        }
        let keys: Vec<_> = table.keys().map(|key| key.get_ref().as_ref()).collect();
        let kind = match (keys.as_slice(), words.remove("url"), lists.remove("upstreams")) {
            (["url"], Some(url), _) => Some(StoreKind::Url(url)),
            (["upstreams"] | ["upstreams", "write"], _, Some(stores)) => {
                Some(StoreKind::Upstreams { stores, write: words.remove("write") })
            }
            (["far", "near"] | ["far", "near", "size"], ..) => {
                let (near, far) = (words.remove("near")?, words.remove("far")?);
                Some(StoreKind::Cache { near, far, size: words.remove("size") })
            }
            _ => None,
        };
        if kind.is_none() {
            let what = format!("[{STORES}.{}] says not what the store is", name.get_ref());
            let help = "a store has a url; near and far, and maybe a size; or upstreams, and maybe \
                        which of them to write to";
            self.problem(&name.span(), what, Some(help.to_owned()));
        }
        kind
    }

    fn word(&self, value: &Spanned<DeValue<'_>>) -> Option<Word> {
        let DeValue::String(text) = value.get_ref() else { return None };
        Some(Word { text: text.to_string(), place: self.place(value.span().start) })
    }
}

impl Stores {
    /// The addresses of these stores, of which the first of a name counts.
    pub(crate) fn resolve<'a>(
        named: impl IntoIterator<Item = &'a NamedStore>,
    ) -> Result<Self, Vec<Problem>> {
        let mut all: BTreeMap<&str, &NamedStore> = BTreeMap::new();
        for store in named {
            all.entry(&store.name).or_insert(store);
        }
        let mut resolving = Resolving { all: &all, done: BTreeMap::new(), within: Vec::new() };
        let mut problems = Vec::new();
        for store in all.values() {
            if let Err(problem) = resolving.store(store) {
                // What is wrong with one is told once, however many consist of it.
                if !problems.contains(&problem) {
                    problems.push(problem);
                }
            }
        }
        match problems.is_empty() {
            true => Ok(Self(Arc::new(resolving.done))),
            false => Err(problems),
        }
    }

    /// All of them, by name.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&str, &Address)> {
        self.0.iter().map(|(name, address)| (name.as_str(), address))
    }

    /// Whether nothing has a name.
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The store at an address, or of a name. An address has a colon, and a name has none.
    pub(crate) fn parse(&self, text: &str) -> Result<Address, String> {
        if let Some(address) = self.0.get(text) {
            return Ok(address.clone());
        }
        match is_name(text) {
            true => Err(no_store(text, self.0.keys().map(String::as_str))),
            false => text.parse().map_err(|error| format!("{error}")),
        }
    }
}

/// Whether a text can only be the name of a store.
pub(crate) fn is_name(text: &str) -> bool {
    !text.is_empty() && !text.contains([':', '/', '.'])
}

fn no_store<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> String {
    let known: Vec<_> = known.collect();
    let what = format!("no store is named {name:?} in the configuration");
    match keys::most_alike(name, known.iter().copied()) {
        Some(alike) => format!("{what}; did you mean {alike:?}?"),
        None if known.is_empty() => format!("{what}; an address has a scheme, as in sled:/path"),
        None => format!("{what}; there are {}", known.join(", ")),
    }
}

/// Stores on their way to their addresses.
struct Resolving<'a> {
    all: &'a BTreeMap<&'a str, &'a NamedStore>,
    done: BTreeMap<String, Address>,
    /// The names of those that are being resolved, each a part of the one before.
    within: Vec<&'a str>,
}

impl<'a> Resolving<'a> {
    fn store(&mut self, store: &'a NamedStore) -> Result<Address, Problem> {
        if let Some(address) = self.done.get(&store.name) {
            return Ok(address.clone());
        }
        if let Some(start) = self.within.iter().position(|name| *name == store.name) {
            let cycle: Vec<_> =
                self.within[start..].iter().chain([&store.name.as_str()]).copied().collect();
            let what = format!("store {:?} consists of itself: {}", store.name, cycle.join(", "));
            return Err(Problem::new(store.place.clone(), what));
        }
        self.within.push(&store.name);
        let address = self.of_kind(store);
        self.within.pop();
        let address = address?;
        self.done.insert(store.name.clone(), address.clone());
        Ok(address)
    }

    fn of_kind(&mut self, store: &'a NamedStore) -> Result<Address, Problem> {
        let refused = |what: String| {
            Problem::new(store.place.clone(), format!("store {:?}: {what}", store.name))
        };
        match &store.kind {
            StoreKind::Url(word) => self.word(word),
            StoreKind::Cache { near, far, size } => {
                let parse = |word: &Word| {
                    let size: Result<ByteSize, _> = word.text.parse();
                    size.map_err(|error| Problem::new(word.place.clone(), format!("size: {error}")))
                };
                let size = size.as_ref().map(parse).transpose()?;
                let (near, far) = (self.word(near)?, self.word(far)?);
                CacheAddress::build(near, far, size).map_err(refused)
            }
            StoreKind::Upstreams { stores, write } => {
                let index = match write {
                    None => 0,
                    Some(write) => {
                        let found = stores.iter().position(|store| store.text == write.text);
                        found.ok_or_else(|| {
                            let what = format!("write: {:?} is none of the upstreams", write.text);
                            Problem::new(write.place.clone(), what)
                        })?
                    }
                };
                let stores: Result<Vec<_>, _> = stores.iter().map(|word| self.word(word)).collect();
                UpstreamsAddress::build(stores?, index).map_err(refused)
            }
        }
    }

    fn word(&mut self, word: &Word) -> Result<Address, Problem> {
        let problem = |what: String| Problem::new(word.place.clone(), what);
        match self.all.get(word.text.as_str()) {
            Some(store) => self.store(store),
            None if is_name(&word.text) => {
                Err(problem(no_store(&word.text, self.all.keys().copied())))
            }
            None => word.text.parse().map_err(|error: InvalidAddress| problem(error.to_string())),
        }
    }
}
