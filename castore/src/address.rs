//! Where a store is: the URLs of `--store` and its kin, parsed and printed. Nothing is opened
//! here, and whether something is there is not asked.

use std::{
    fmt,
    path::{Path, PathBuf},
    str::FromStr,
};

use url::Url;

use crate::{ByteSize, local::cache::CACHE_MIN, upstreams::UPSTREAMS_MAX};

/// The smallest cache in memory, in bytes: some of the largest records.
const MEMORY_CACHE_MIN: u64 = 16 * 1024 * 1024;

/// How deep addresses can be in one another: what opens them goes as deep.
const DEPTH_MAX: usize = 8;

/// The most stores in one address, however they are in one another.
const PARTS_MAX: usize = 64;

/// The options of a bucket that are known to hold no secret.
const PUBLIC_OPTIONS: [&str; 12] = [
    "allow_http",
    "aws_allow_http",
    "aws_default_region",
    "aws_endpoint",
    "aws_endpoint_url",
    "aws_region",
    "aws_skip_signature",
    "aws_virtual_hosted_style_request",
    "endpoint",
    "endpoint_url",
    "region",
    "skip_signature",
];

/// The address of a store, or of one of its services.
///
/// | written | store |
/// |---|---|
/// | `memory:` | in the memory of the process, empty at first |
/// | `sled:/path`, `sled:///path` | local, in a folder |
/// | `objectstore+file:///path`, `+s3://bucket/prefix`, `+gs://`, `+az://`, `+http(s)://`, `+memory:/` | objects; query pairs are options |
/// | `grpc+http://host:port`, `grpc+https://host`, `grpc+unix:/path` | another process |
/// | `cache:?near=URL&far=URL`, with `&size=20GiB` | what is far, of which what was read is kept near |
/// | `upstreams:?store=URL&store=URL`, with one as `&write=URL` | several, asked in this order; the first, or the one to `write`, takes what is stored |
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    /// In the memory of the process.
    Memory,
    /// The local store in the folder with this absolute path.
    Local(PathBuf),
    /// Objects.
    ObjectStore(ObjectAddress),
    /// Another process.
    Grpc(GrpcAddress),
    /// A store that is far, and what is kept near of it.
    Cache(Box<CacheAddress>),
    /// Several stores.
    Upstreams(Box<UpstreamsAddress>),
}

/// A store and its cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CacheAddress {
    /// Where what was read is kept: in memory or in a folder of this machine.
    pub near: Address,
    /// The store, which has no other cache.
    pub far: Address,
    /// The most bytes that are kept; not told, it is for whoever opens it to say.
    pub size: Option<ByteSize>,
}

/// Stores that are asked one after the other until one has what is wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UpstreamsAddress {
    /// The stores in their order: at least one, and none of them twice.
    pub stores: Vec<Address>,
    /// The index of the one that takes what is stored.
    pub write: usize,
}

/// A URL that [`object_store`] knows, without the `objectstore+` before it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObjectAddress(Url);

/// Where a gRPC server listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum GrpcAddress {
    /// On TCP, `http` in the clear or `https` with the system's trusted roots. The URL has no
    /// path.
    Tcp(Url),
    /// On the unix socket with this absolute path.
    Unix(PathBuf),
}

/// A text that is no address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidAddress {
    /// It does not start with a scheme.
    #[error("{address:?} is no store address: it has no scheme; {suggestion}")]
    NoScheme {
        /// What was given.
        address: String,
        /// What to write instead.
        suggestion: String,
    },
    /// Its scheme is not one of a store.
    #[error("{address:?} is no store address: there is no scheme {scheme:?}; {suggestion}")]
    UnknownScheme {
        /// What was given.
        address: String,
        /// Its scheme.
        scheme: String,
        /// What to write instead.
        suggestion: String,
    },
    /// Its scheme is a known one, but not supported.
    #[error("{address:?}: {scheme}: addresses are not supported yet")]
    Unsupported {
        /// What was given.
        address: String,
        /// Its scheme.
        scheme: String,
    },
    /// What follows the scheme is wrong.
    #[error("{address:?} is no store address: {reason}")]
    Malformed {
        /// What was given.
        address: String,
        /// What is wrong, and what to write instead.
        reason: String,
    },
}

const SCHEMES: &str = "use memory:, sled:/path, objectstore+file:///path, objectstore+s3://bucket, \
    grpc+http://host:port, grpc+https://host, grpc+unix:/path, cache:?near=URL&far=URL \
    or upstreams:?store=URL&store=URL";

impl FromStr for Address {
    type Err = InvalidAddress;

    fn from_str(text: &str) -> Result<Self, InvalidAddress> {
        parse(text, 1)
    }
}

/// Parses what is so deep in other addresses.
fn parse(text: &str, depth: usize) -> Result<Address, InvalidAddress> {
    if depth > DEPTH_MAX {
        return Err(malformed("…", too_deep()));
    }
    let Some((scheme, rest)) = split_scheme(text) else {
        let suggestion = match text.starts_with(['/', '.']) {
            true => format!("for the local store in a folder, write sled:{text}"),
            false => SCHEMES.to_owned(),
        };
        return Err(InvalidAddress::NoScheme { address: text.to_owned(), suggestion });
    };
    let scheme = scheme.to_ascii_lowercase();
    match scheme.as_str() {
        "memory" if matches!(rest, "" | "/" | "//") => Ok(Address::Memory),
        "memory" => Err(malformed(text, "memory: stands alone")),
        "sled" => Ok(Address::Local(absolute_path(text, "sled", rest)?)),
        "grpc+unix" => {
            Ok(Address::Grpc(GrpcAddress::Unix(absolute_path(text, "grpc+unix", rest)?)))
        }
        "grpc+http" | "grpc+https" => tcp(text).map(|url| Address::Grpc(GrpcAddress::Tcp(url))),
        "cache" => cache(text, rest, depth),
        "upstreams" => upstreams(text, rest, depth),
        "nix+http" | "nix+https" => {
            Err(InvalidAddress::Unsupported { address: text.to_owned(), scheme })
        }
        _ => match scheme.strip_prefix("objectstore+") {
            Some(inner) => objects(text, inner).map(Address::ObjectStore),
            None => Err(unknown_scheme(text, &scheme, rest)),
        },
    }
}

/// The scheme, by the syntax of RFC 3986, and what follows its colon.
fn split_scheme(text: &str) -> Option<(&str, &str)> {
    let (scheme, rest) = text.split_once(':')?;
    let valid = scheme.starts_with(|c: char| c.is_ascii_alphabetic())
        && scheme.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '+' | '-' | '.'));
    valid.then_some((scheme, rest))
}

fn malformed(address: &str, reason: impl Into<String>) -> InvalidAddress {
    InvalidAddress::Malformed { address: address.to_owned(), reason: reason.into() }
}

fn unknown_scheme(text: &str, scheme: &str, rest: &str) -> InvalidAddress {
    let suggestion = match scheme {
        "file" | "s3" | "s3a" | "gs" | "az" => format!("did you mean objectstore+{scheme}:{rest}?"),
        "http" | "https" => {
            format!("did you mean grpc+{scheme}:{rest} or objectstore+{scheme}:{rest}?")
        }
        "grpc" => format!("did you mean grpc+http:{rest}?"),
        "grpcs" => format!("did you mean grpc+https:{rest}?"),
        "unix" => format!("did you mean grpc+unix:{rest}?"),
        "redb" | "local" => format!("did you mean sled:{rest}?"),
        _ => SCHEMES.to_owned(),
    };
    InvalidAddress::UnknownScheme {
        address: text.to_owned(),
        scheme: scheme.to_owned(),
        suggestion,
    }
}

/// The path in `/path` or `///path`. It is taken as it stands: nothing in it is an escape.
fn absolute_path(text: &str, scheme: &str, rest: &str) -> Result<PathBuf, InvalidAddress> {
    let path = match rest.strip_prefix("//") {
        Some(path) if path.starts_with('/') => path,
        Some(host) => {
            let reason = format!("a path has no host before it; write {scheme}:/{host}");
            return Err(malformed(text, reason));
        }
        None => rest,
    };
    if !Path::new(path).is_absolute() {
        let reason = format!("the path is not absolute; write {scheme}:/path");
        return Err(malformed(text, reason));
    }
    if path.contains('\0') {
        return Err(malformed(text, "a path holds no zero byte"));
    }
    Ok(PathBuf::from(path))
}

fn tcp(text: &str) -> Result<Url, InvalidAddress> {
    let url = Url::parse(&text["grpc+".len()..])
        .map_err(|error| malformed(text, format!("{error}; write grpc+http://host:port")))?;
    let bare = url.path() == "/" && url.query().is_none() && url.fragment().is_none();
    if !bare {
        return Err(malformed(text, "nothing may follow the host and the port"));
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err(malformed(text, "no user can be given"));
    }
    Ok(url)
}

fn objects(text: &str, inner: &str) -> Result<ObjectAddress, InvalidAddress> {
    if !matches!(inner, "file" | "memory" | "s3" | "s3a" | "gs" | "az" | "http" | "https") {
        let scheme = format!("objectstore+{inner}");
        return Err(unknown_scheme(text, &scheme, ""));
    }
    let url = Url::parse(&text["objectstore+".len()..])
        .map_err(|error| malformed(text, error.to_string()))?;
    let host = url.host_str().is_some_and(|host| !host.is_empty());
    match inner {
        "file" | "memory" if host => {
            let path = url.path();
            let reason =
                format!("a path has no host before it; write objectstore+{inner}://{path}");
            Err(malformed(text, reason))
        }
        "file" if url.path() == "/" => {
            Err(malformed(text, "a path is missing; write objectstore+file:///path"))
        }
        "file" if url.to_file_path().is_err() => {
            Err(malformed(text, "the path is not one of this system"))
        }
        "file" | "memory" => Ok(ObjectAddress(url)),
        _ if !host => {
            Err(malformed(text, format!("a bucket is missing; write objectstore+{inner}://bucket")))
        }
        _ => Ok(ObjectAddress(url)),
    }
}

/// The pairs in `?name=URL&name=URL`. What has a meaning there is an escape in them; a plus is none.
fn pairs(query: &str) -> Option<Vec<(String, String)>> {
    let query = query.strip_prefix('?')?.replace('+', "%2B");
    Some(url::form_urlencoded::parse(query.as_bytes()).into_owned().collect())
}

fn cache(text: &str, rest: &str, depth: usize) -> Result<Address, InvalidAddress> {
    let malformed =
        |reason: String| malformed(text, format!("{reason}; write cache:?near=sled:/path&far=URL"));
    let pairs = pairs(rest).ok_or_else(|| malformed("a question mark is missing".to_owned()))?;
    let (mut near, mut far, mut size) = (None, None, None);
    for (name, value) in pairs {
        let is_first = match &*name {
            "near" => near.replace(value).is_none(),
            "far" => far.replace(value).is_none(),
            "size" => size.replace(value).is_none(),
            _ => return Err(malformed(format!("there is no option {name:?}"))),
        };
        if !is_first {
            return Err(malformed(format!("{name} is there twice")));
        }
    }
    let side = |name: &str, value: Option<String>| -> Result<Address, InvalidAddress> {
        let value = value.ok_or_else(|| malformed(format!("{name} is missing")))?;
        // The error says itself what to write.
        let malformed = |reason: String| self::malformed(text, reason);
        parse(&value, depth + 1).map_err(|error| malformed(format!("{name}: {error}")))
    };
    let (near, far) = (side("near", near)?, side("far", far)?);
    let size = size.map(|size| size.parse().map_err(|error| malformed(format!("{error}"))));
    CacheAddress::build(near, far, size.transpose()?).map_err(malformed)
}

fn upstreams(text: &str, rest: &str, depth: usize) -> Result<Address, InvalidAddress> {
    let malformed =
        |reason: String| malformed(text, format!("{reason}; write upstreams:?store=URL&store=URL"));
    let pairs = pairs(rest).ok_or_else(|| malformed("a question mark is missing".to_owned()))?;
    let (mut stores, mut write) = (Vec::new(), None);
    for (name, value) in pairs {
        match &*name {
            "store" => {}
            "write" if write.is_none() => write = Some(stores.len()),
            "write" => return Err(malformed("write is there twice".to_owned())),
            _ => return Err(malformed(format!("there is no option {name:?}"))),
        }
        // The error says itself what to write.
        let malformed = |reason: String| self::malformed(text, reason);
        let store = parse(&value, depth + 1);
        stores.push(store.map_err(|error| malformed(format!("{name}: {error}")))?);
    }
    UpstreamsAddress::build(stores, write.unwrap_or(0)).map_err(malformed)
}

fn too_deep() -> String {
    format!("stores are made of others at most {DEPTH_MAX} deep")
}

impl Address {
    /// How deep stores are in one another here, and how many there are.
    fn extent(&self) -> (usize, usize) {
        let around = |parts: &mut dyn Iterator<Item = &Self>| {
            parts.map(Self::extent).fold((1, 1), |(depth, count), (below, parts)| {
                (depth.max(below + 1), count + parts)
            })
        };
        match self {
            Self::Cache(cache) => around(&mut [&cache.near, &cache.far].into_iter()),
            Self::Upstreams(all) => around(&mut all.stores.iter()),
            _ => (1, 1),
        }
    }

    /// The same, if it can be opened; else why not.
    fn checked(self) -> Result<Self, String> {
        match self.extent() {
            (depth, _) if depth > DEPTH_MAX => Err(too_deep()),
            (_, count) if count > PARTS_MAX => {
                Err(format!("a store is made of at most {PARTS_MAX} others"))
            }
            _ => Ok(self),
        }
    }
}

impl CacheAddress {
    /// A cache, if these can be its sides; else why not.
    pub fn build(near: Address, far: Address, size: Option<ByteSize>) -> Result<Address, String> {
        let min = match &near {
            Address::Local(_) => CACHE_MIN,
            Address::Memory => MEMORY_CACHE_MIN,
            _ => return Err("near is in sled:/path or memory:".to_owned()),
        };
        if matches!(far, Address::Cache(_)) {
            return Err("what is far has no cache of its own".to_owned());
        }
        if let Some(size) = size.filter(|size| size.0 < min) {
            return Err(format!("{size} are too few: at least {}", ByteSize(min)));
        }
        Address::Cache(Box::new(Self { near, far, size })).checked()
    }
}

impl UpstreamsAddress {
    /// Several stores, the one with the index being stored in, if these can be several; else why not.
    pub fn build(stores: Vec<Address>, write: usize) -> Result<Address, String> {
        if stores.is_empty() {
            return Err("a store is missing".to_owned());
        }
        if stores.len() > UPSTREAMS_MAX {
            return Err(format!("at most {UPSTREAMS_MAX} stores are asked in turn"));
        }
        for (index, store) in stores.iter().enumerate() {
            if stores[..index].contains(store) {
                return Err(format!("{store} is there twice"));
            }
        }
        if write >= stores.len() {
            return Err("what is stored has no place".to_owned());
        }
        Address::Upstreams(Box::new(Self { stores, write })).checked()
    }

    /// The store that takes what is stored.
    pub fn written(&self) -> &Address {
        &self.stores[self.write]
    }
}

impl ObjectAddress {
    /// The URL as `object_store` knows it. Its query pairs are options.
    pub fn url(&self) -> &Url {
        &self.0
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Memory => f.write_str("memory:"),
            Self::Local(path) => write!(f, "sled:{}", path.display()),
            Self::ObjectStore(objects) => objects.fmt(f),
            Self::Grpc(grpc) => grpc.fmt(f),
            Self::Cache(cache) => cache.fmt(f),
            Self::Upstreams(upstreams) => upstreams.fmt(f),
        }
    }
}

impl fmt::Display for CacheAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.written_with(Address::to_string))
    }
}

impl fmt::Display for UpstreamsAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.written_with(Address::to_string))
    }
}

impl CacheAddress {
    fn written_with(&self, write: impl Fn(&Address) -> String) -> String {
        let size = self.size.map(|size| format!("&size={size}")).unwrap_or_default();
        let [near, far] = [&self.near, &self.far].map(|side| escaped(&write(side)));
        format!("cache:?near={near}&far={far}{size}")
    }
}

impl UpstreamsAddress {
    fn written_with(&self, write: impl Fn(&Address) -> String) -> String {
        let pair = |(index, store): (usize, &Address)| {
            let is_written = index == self.write && index > 0;
            format!("{}={}", if is_written { "write" } else { "store" }, escaped(&write(store)))
        };
        let pairs: Vec<_> = self.stores.iter().enumerate().map(pair).collect();
        format!("upstreams:?{}", pairs.join("&"))
    }
}

/// An address as it stands in another one.
fn escaped(address: &str) -> String {
    address.replace('%', "%25").replace('&', "%26").replace('#', "%23")
}

impl Address {
    /// The address as it could be written, with the mask in place of what may be a secret: passwords,
    /// and options of which it is not known that they are none.
    pub fn masked(&self, mask: &str) -> String {
        match self {
            Self::ObjectStore(objects) => objects.masked(mask),
            Self::Cache(cache) => cache.written_with(|side| side.masked(mask)),
            Self::Upstreams(all) => all.written_with(|store| store.masked(mask)),
            address => address.to_string(),
        }
    }
}

impl ObjectAddress {
    fn masked(&self, mask: &str) -> String {
        let mut shown = self.to_string();
        if self.0.password().is_some() {
            shown = shown.replacen(":-@", &format!(":{mask}@"), 1);
        }
        for (index, (name, value)) in self.0.query_pairs().enumerate() {
            let is_known = PUBLIC_OPTIONS.iter().any(|known| name.eq_ignore_ascii_case(known));
            let value = if is_known && !value.contains('@') { &value } else { mask };
            shown.push(if index == 0 { '?' } else { '&' });
            shown.push_str(&format!("{name}={value}"));
        }
        shown
    }
}

/// Without the options: they may hold secrets.
impl fmt::Display for ObjectAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut url = self.0.clone();
        url.set_query(None);
        if url.password().is_some() {
            // A URL with a password has a host, so this can't fail.
            let _ = url.set_password(Some("-"));
        }
        write!(f, "objectstore+{url}")
    }
}

impl fmt::Display for GrpcAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(url) => write!(f, "grpc+{}", url.as_str().trim_end_matches('/')),
            Self::Unix(path) => write!(f, "grpc+unix:{}", path.display()),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn addresses_print_as_they_are_written() {
        for (text, printed) in [
            ("memory:", "memory:"),
            ("memory://", "memory:"),
            ("sled:/var/lib/cairn", "sled:/var/lib/cairn"),
            ("sled:///var/lib/my cairn", "sled:/var/lib/my cairn"),
            ("SLED:/a%20b?c", "sled:/a%20b?c"),
            ("grpc+http://localhost:8000", "grpc+http://localhost:8000"),
            ("grpc+http://[::1]:8000/", "grpc+http://[::1]:8000"),
            ("grpc+https://store.example", "grpc+https://store.example"),
            ("grpc+unix:/run/cairn.sock", "grpc+unix:/run/cairn.sock"),
            ("grpc+unix:///run/cairn.sock", "grpc+unix:/run/cairn.sock"),
            ("objectstore+file:/tmp/store", "objectstore+file:///tmp/store"),
            ("objectstore+file:///tmp/store", "objectstore+file:///tmp/store"),
            ("objectstore+memory:/", "objectstore+memory:/"),
            (
                "objectstore+s3://bucket/prefix?aws_secret_access_key=secret",
                "objectstore+s3://bucket/prefix",
            ),
            ("objectstore+https://host/store", "objectstore+https://host/store"),
            (
                "cache:?near=sled:/c&far=grpc+http://host:1",
                "cache:?near=sled:/c&far=grpc+http://host:1",
            ),
            (
                "cache:?size=64MiB&far=objectstore%2Bs3://b?aws_region=x%26k=y&near=sled:/a%26%25b",
                "cache:?near=sled:/a%26%25b&far=objectstore+s3://b&size=64MiB",
            ),
            ("cache:?near=memory:&far=memory:", "cache:?near=memory:&far=memory:"),
            ("upstreams:?store=memory:&store=sled:/a", "upstreams:?store=memory:&store=sled:/a"),
            ("upstreams:?write=memory:&store=sled:/a", "upstreams:?store=memory:&store=sled:/a"),
            (
                "upstreams:?store=cache:?near=sled:/c%26far=grpc%2Bhttp://h:1&write=sled:/a%2526b",
                "upstreams:?store=cache:?near=sled:/c%26far=grpc+http://h:1&write=sled:/a%2526b",
            ),
            (
                "cache:?near=memory:&far=upstreams:?store=sled:/a%26write=grpc+unix:/s",
                "cache:?near=memory:&far=upstreams:?store=sled:/a%26write=grpc+unix:/s",
            ),
        ] {
            let address: Address = text.parse().unwrap();
            assert_eq!(address.to_string(), printed);
            assert_eq!(printed.parse::<Address>().unwrap().to_string(), printed);
        }
        let paths = [("sled:/a/b", "/a/b"), ("sled:///a/b", "/a/b")];
        for (text, path) in paths {
            assert_eq!(text.parse(), Ok(Address::Local(PathBuf::from(path))));
        }
        let options = "objectstore+s3://bucket?aws_region=here".parse().unwrap();
        let Address::ObjectStore(objects) = options else { panic!("objects expected") };
        assert_eq!(objects.url().as_str(), "s3://bucket?aws_region=here");
        let nested = "cache:?near=sled:/a%26b&far=objectstore+s3://b?x=1%26y=2&size=1GiB";
        let Ok(Address::Cache(cache)) = nested.parse() else { panic!("a cache expected") };
        assert_eq!(cache.near, Address::Local(PathBuf::from("/a&b")));
        assert_eq!(cache.size, Some(ByteSize(1 << 30)));
        let Address::ObjectStore(objects) = cache.far else { panic!("objects expected") };
        assert_eq!(objects.url().as_str(), "s3://b?x=1&y=2");
    }

    #[test]
    fn what_is_no_address_says_what_would_be() {
        for (text, expected) in [
            ("", "use memory:"),
            ("/var/lib/cairn", "write sled:/var/lib/cairn"),
            ("store", "use memory:"),
            ("sled:store", "write sled:/path"),
            ("sled://store", "write sled:/store"),
            ("sled:", "write sled:/path"),
            ("redb:/path", "did you mean sled:/path?"),
            ("grpc://host:1", "did you mean grpc+http://host:1?"),
            ("http://host:1", "did you mean grpc+http://host:1 or"),
            ("unix:/path", "did you mean grpc+unix:/path?"),
            ("grpc+unix:path", "write grpc+unix:/path"),
            ("grpc+http://host:99999", "write grpc+http://host:port"),
            ("grpc+http://host:1/path", "nothing may follow"),
            ("grpc+http://host:1?a=b", "nothing may follow"),
            ("grpc+http://me@host:1", "no user"),
            ("grpc+ftp://host", "there is no scheme \"grpc+ftp\""),
            ("s3://bucket", "did you mean objectstore+s3://bucket?"),
            ("objectstore+s3:", "a bucket is missing"),
            ("objectstore+file://host/path", "write objectstore+file:///path"),
            ("objectstore+file:", "a path is missing"),
            ("objectstore+ftp://host", "there is no scheme \"objectstore+ftp\""),
            ("memory:/x", "memory: stands alone"),
            ("nix+https://cache.example", "nix+https: addresses are not supported yet"),
            ("cache:", "write cache:?near=sled:/path&far=URL"),
            ("cache:?near=sled:/c", "far is missing"),
            ("cache:?far=memory:", "near is missing"),
            ("cache:?near=sled:/c&far=nothing", "far: \"nothing\" is no store address"),
            ("cache:?near=sled:/c&near=sled:/d&far=memory:", "near is there twice"),
            ("cache:?near=grpc+http://h&far=memory:", "near is in sled:/path or memory:"),
            ("cache:?near=memory:&far=cache:?near=memory:%26far=memory:", "no cache of its own"),
            ("cache:?near=sled:/c&far=memory:&size=1MiB", "at least 64MiB"),
            ("cache:?near=sled:/c&far=memory:&size=big", "\"big\" is no size"),
            ("cache:?near=sled:/c&far=memory:&colour=red", "there is no option \"colour\""),
            ("upstreams:", "write upstreams:?store=URL&store=URL"),
            ("upstreams:?", "a store is missing"),
            ("upstreams:?store=here", "store: \"here\" is no store address"),
            ("upstreams:?store=memory:&store=memory:", "memory: is there twice"),
            ("upstreams:?write=memory:&write=sled:/a", "write is there twice"),
            ("upstreams:?near=memory:", "there is no option \"near\""),
            (&"upstreams:?store=".repeat(4000), "at most 8 deep"),
            (&format!("{}memory:", "upstreams:?store=".repeat(8)), "at most 8 deep"),
            (&format!("upstreams:?{}", "store=sled:/a&".repeat(2)), "sled:/a is there twice"),
        ] {
            let error = text.parse::<Address>().unwrap_err().to_string();
            assert!(error.contains(expected), "{text}: {error}");
        }
    }

    #[test]
    fn addresses_are_in_one_another_up_to_a_depth() {
        let deep = format!("{}memory:", "upstreams:?store=".repeat(7));
        assert_eq!(deep.parse::<Address>().unwrap().to_string(), deep);
        let too_many: Vec<_> = (0..17).map(|index| format!("store=sled:/{index}")).collect();
        let many = |count: usize| format!("upstreams:?{}", too_many[..count].join("&"));
        assert_eq!(many(16).parse::<Address>().unwrap().to_string(), many(16));
        let error = many(17).parse::<Address>().unwrap_err().to_string();
        assert!(error.contains("at most 16 stores"), "{error}");
    }

    proptest! {
        #[test]
        fn nothing_panics_and_what_is_printed_is_read(text in "[a-z+]{0,16}:?/{0,3}.{0,12}") {
            if let Ok(address) = text.parse::<Address>() {
                let printed = address.to_string();
                let again: Address = printed.parse().unwrap();
                prop_assert_eq!(again.to_string(), printed);
            }
        }
    }
}
