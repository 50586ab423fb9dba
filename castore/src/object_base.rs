//! A bucket or folder of objects, and where in it a store lies. The layout's paths and encodings
//! are here; which objects make up a blob or a directory is the affair of the backends.

mod folder;
mod measured;

use std::{
    env,
    ffi::OsString,
    fmt, io, iter,
    path::{Path as FilePath, PathBuf},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use futures::{StreamExt as _, TryStreamExt as _, stream};
use object_store::{
    Error, ObjectStore, ObjectStoreExt as _, ObjectStoreScheme, PutMode, PutPayload, RetryConfig,
    WriteMultipart,
    aws::{AmazonS3Builder, AmazonS3ConfigKey, AwsCredentialProvider},
    azure::MicrosoftAzureBuilder,
    client::{HttpError, HttpErrorKind},
    gcp::GoogleCloudStorageBuilder,
    http::HttpBuilder,
    local::LocalFileSystem,
    memory::InMemory,
    path::Path,
};
use tokio::time::timeout;
use url::Url;

use self::{
    folder::{Folder, NewFile},
    measured::{Connector, Measured},
};
use crate::{BoxError, Digest, address::ObjectAddress};

/// The level of compression. Chunks are read far more often than written, and a higher level costs
/// more than it saves over a network.
const ZSTD_LEVEL: i32 = 3;

/// The largest object that is uploaded in one request, in bytes.
const SINGLE_UPLOAD_MAX: usize = 16 * 1024 * 1024;

/// A part of a larger one, in bytes.
const PART_LEN: usize = 8 * 1024 * 1024;

/// The parts of one object that are uploaded at once.
const PARTS_AT_ONCE: usize = 4;

/// The requests that one call has under way at once.
pub(crate) const REQUESTS_AT_ONCE: usize = 16;

/// How often an object is uploaded of which it is not known what became.
const UPLOAD_ATTEMPTS: usize = 4;

/// How long a request is tried again that the storage refuses for now, or that does not get there.
const RETRY_TIME: Duration = Duration::from_secs(30);

/// How long is waited for who gives out credentials, and for the storage to tell whether there is a
/// bucket.
const CHECK_TIME: Duration = Duration::from_secs(5);

/// The kinds of objects, each in a folder of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ObjectKind {
    /// The bytes of a chunk, in a zstd frame.
    Chunk,
    /// The chunk list of a blob; empty for a blob of no chunk or one.
    Blob,
    /// What proves a blob's ranges. Not part of the layout in use: others pass it over.
    Outboard,
    /// The closure of a directory that was stored as a root.
    Closure,
    /// One directory, in a zstd frame. Not part of the layout in use: others pass it over.
    Directory,
}

impl ObjectKind {
    fn folder(self) -> &'static str {
        match self {
            Self::Chunk => "chunks",
            Self::Blob => "blobs",
            Self::Outboard => "outboards",
            Self::Closure => "dirs",
            Self::Directory => "directories",
        }
    }
}

/// Where a store lies among objects. Clones share the connection.
#[derive(Clone)]
pub struct ObjectBase {
    objects: Arc<dyn ObjectStore>,
    path: Path,
    url: Arc<str>,
    /// Where the objects are files, what makes many of them at once.
    folder: Option<Folder>,
    /// Who gives out what requests are signed with, where they are.
    credentials: Option<AwsCredentialProvider>,
}

/// An object to be made. What it holds follows from its name.
#[derive(Debug, Clone)]
pub struct NewObject {
    /// Its kind.
    pub kind: ObjectKind,
    /// Its digest: the other part of its name.
    pub digest: Digest,
    /// What it is to hold.
    pub bytes: Bytes,
}

/// Objects that can't be opened.
#[derive(Debug, thiserror::Error)]
pub enum ObjectBaseError {
    /// Neither the folder nor the one that it would be made in is there.
    #[error("{url}: the folder {folder} does not exist")]
    NoFolder {
        /// The address.
        url: String,
        /// What is missing.
        folder: String,
    },
    /// There is no such bucket.
    #[error("there is no bucket at {url}")]
    NoBucket {
        /// The address.
        url: String,
        /// What the storage said.
        #[source]
        source: BoxError,
    },
    /// Nobody gives out what requests are signed with.
    #[error("there are no credentials for {url}")]
    NoCredentials {
        /// The address.
        url: String,
        /// What became of asking the last who might.
        #[source]
        source: BoxError,
    },
    /// What the address and its options say is not enough, or wrong.
    #[error("can't open {url}")]
    Open {
        /// The address.
        url: String,
        /// What is wrong.
        #[source]
        source: BoxError,
    },
}

impl ObjectBase {
    /// Opens the objects at an address. The query pairs of its URL are options; what they leave open
    /// is taken from the environment, in the variables that other tools of the storage read, such as
    /// `AWS_ACCESS_KEY_ID`. Nothing is written: a folder is made by the first write, in a folder that
    /// has to be there.
    pub fn open(address: &ObjectAddress) -> Result<Self, ObjectBaseError> {
        let display = address.to_string();
        let failed = |source: BoxError| ObjectBaseError::Open { url: display.clone(), source };
        let url = address.url();
        if url.scheme() == "file" {
            let folder = url.to_file_path().map_err(|()| failed("not a path".into()))?;
            let parent = folder.parent().unwrap_or(FilePath::new("/"));
            if !folder.is_dir() && !parent.is_dir() {
                let folder = parent.display().to_string();
                return Err(ObjectBaseError::NoFolder { url: display, folder });
            }
            let path = Path::from_absolute_path(&folder).map_err(|error| failed(error.into()))?;
            // What is acknowledged has to outlast a loss of power.
            let objects = Arc::new(Measured(Arc::new(LocalFileSystem::new().with_fsync(true))));
            let folder = Some(Folder::new(folder));
            let url = display.into();
            return Ok(Self { objects, path, url, folder, credentials: None });
        }
        let Remote { objects, path, credentials } =
            open_remote(url).map_err(|error| failed(error.into()))?;
        let objects = Arc::new(Measured(objects));
        Ok(Self { objects, path, url: display.into(), folder: None, credentials })
    }

    /// Looks whether there are credentials, so that it is not the service of a cloud that is said to be
    /// missing where none are given, and whether there is a bucket to open, so that one that is missing
    /// is not taken for one that is empty. What can't be told is left to those who read and write.
    pub async fn check(&self) -> Result<(), ObjectBaseError> {
        if self.folder.is_some() {
            return Ok(());
        }
        if let Some(credentials) = &self.credentials {
            let given = match timeout(CHECK_TIME, credentials.get_credential()).await {
                Ok(given) => given.map(|_| ()).map_err(BoxError::from),
                Err(_) => Err("nobody gives out any".into()),
            };
            let url = || self.url.to_string();
            given.map_err(|source| ObjectBaseError::NoCredentials { url: url(), source })?;
        }
        let listed = timeout(CHECK_TIME, self.objects.list_with_delimiter(Some(&self.path))).await;
        match listed {
            Ok(Err(error)) if says_no_bucket(&error) => {
                Err(ObjectBaseError::NoBucket { url: self.url.to_string(), source: error.into() })
            }
            Ok(Err(error)) => {
                tracing::debug!(url = %self.url, %error, "the bucket can't be looked at");
                Ok(())
            }
            Ok(Ok(_)) | Err(_) => Ok(()),
        }
    }

    /// The address, as it displays.
    pub fn url(&self) -> &Arc<str> {
        &self.url
    }

    /// The objects themselves, all of them.
    pub fn objects(&self) -> &Arc<dyn ObjectStore> {
        &self.objects
    }

    /// The path of the store among the objects.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Where an object of a digest lies: `<base>/<kind>/b3/<4 hex digits>/<64 hex digits>`.
    pub fn location(&self, kind: ObjectKind, digest: &Digest) -> Path {
        let hex = digest.to_hex();
        let (prefix, _) = hex.split_at(4);
        let path = self.path.clone().join(kind.folder()).join("b3");
        path.join(prefix).join(hex.as_str())
    }

    /// The same below the store's own folder.
    fn file(kind: ObjectKind, digest: &Digest) -> PathBuf {
        let hex = digest.to_hex();
        let (prefix, _) = hex.split_at(4);
        [kind.folder(), "b3", prefix, hex.as_str()].iter().collect()
    }

    /// For each digest, in their order, whether there is an object of one of these kinds.
    pub async fn has_many(
        &self,
        kinds: &'static [ObjectKind],
        digests: Vec<Digest>,
    ) -> Result<Vec<bool>, Error> {
        if let Some(folder) = self.folder.clone() {
            let has = move |digest: &Digest| {
                let paths: Vec<_> = kinds.iter().map(|kind| Self::file(*kind, digest)).collect();
                folder.has_any(&paths)
            };
            return blocking(move || digests.iter().map(has).collect()).await;
        }
        let has = |digest: Digest| async move {
            for kind in kinds {
                match self.objects.head(&self.location(*kind, &digest)).await {
                    Ok(_) => return Ok(true),
                    Err(Error::NotFound { .. }) => {}
                    Err(error) => return Err(error),
                }
            }
            Ok(false)
        };
        let asked: Vec<_> = digests.into_iter().map(has).collect();
        stream::iter(asked).buffered(REQUESTS_AT_ONCE).try_collect().await
    }

    /// A whole object of at most `max` bytes; a larger one is an error. `None` if it is not there.
    pub async fn get(
        &self,
        kind: ObjectKind,
        digest: &Digest,
        max: usize,
    ) -> Result<Option<Bytes>, Error> {
        let found = match self.objects.get(&self.location(kind, digest)).await {
            Ok(found) => found,
            Err(Error::NotFound { .. }) => return Ok(None),
            Err(error) => return Err(error),
        };
        let path = found.meta.location.to_string();
        let mut pieces = found.into_stream();
        let mut all = Vec::new();
        while let Some(piece) = pieces.try_next().await? {
            if all.len() + piece.len() > max {
                let source = format!("object {path} has more than {max} bytes").into();
                return Err(Error::Generic { store: "cairn", source });
            }
            all.extend_from_slice(&piece);
        }
        Ok(Some(all.into()))
    }

    /// Makes objects, but for those that are there: those of a stage in any order, and none before
    /// all of the stages before are durable.
    pub async fn create_many(&self, stages: Vec<Vec<NewObject>>) -> Result<(), Error> {
        if let Some(folder) = self.folder.clone() {
            let file = |NewObject { kind, digest, bytes }: NewObject| NewFile {
                path: Self::file(kind, &digest),
                bytes,
            };
            let files = stages.into_iter().flatten().map(file).collect();
            return blocking(move || folder.create(files)).await;
        }
        for stage in stages {
            let create = |NewObject { kind, digest, bytes }: NewObject| async move {
                self.upload(kind, &digest, bytes).await
            };
            let creates: Vec<_> = stage.into_iter().map(create).collect();
            stream::iter(creates).buffer_unordered(REQUESTS_AT_ONCE).try_collect::<()>().await?;
        }
        Ok(())
    }

    async fn upload(&self, kind: ObjectKind, digest: &Digest, bytes: Bytes) -> Result<(), Error> {
        let location = self.location(kind, digest);
        if bytes.len() > SINGLE_UPLOAD_MAX {
            let upload = self.objects.put_multipart(&location).await?;
            let mut parts = WriteMultipart::new_with_chunk_size(upload, PART_LEN);
            for start in (0..bytes.len()).step_by(PART_LEN) {
                parts.wait_for_capacity(PARTS_AT_ONCE).await?;
                parts.put(bytes.slice(start..bytes.len().min(start + PART_LEN)));
            }
            return parts.finish().await.map(drop);
        }
        let payload = PutPayload::from(bytes);
        let mut attempts = 1..UPLOAD_ATTEMPTS;
        loop {
            let create = PutMode::Create.into();
            match self.objects.put_opts(&location, payload.clone(), create).await {
                Ok(_) | Err(Error::AlreadyExists { .. } | Error::Precondition { .. }) => {
                    return Ok(());
                }
                // A store without conditions: to write the same again does no harm.
                Err(Error::NotImplemented { .. } | Error::NotSupported { .. }) => {
                    return self.objects.put(&location, payload).await.map(drop);
                }
                // Whoever refuses an object that is there may do so while it is being sent, and hang
                // up. What the request did otherwise is not known either.
                Err(error) if ObjectFault::of(&error) == ObjectFault::Unavailable => {
                    match self.objects.head(&location).await {
                        Ok(_) => return Ok(()),
                        Err(Error::NotFound { .. }) if attempts.next().is_some() => {}
                        Err(_) => return Err(error),
                    }
                }
                Err(error) => return Err(error),
            }
        }
    }
}

/// The storage that a URL leads to.
struct Remote {
    objects: Arc<dyn ObjectStore>,
    /// The path in it.
    path: Path,
    /// Who gives out the credentials of S3.
    credentials: Option<AwsCredentialProvider>,
}

fn open_remote(url: &Url) -> Result<Remote, Error> {
    let mut bare = url.clone();
    bare.set_query(None);
    let (scheme, path) = ObjectStoreScheme::parse(&bare)?;
    let path = Path::parse(path)?;
    let retry = RetryConfig { retry_timeout: RETRY_TIME, ..RetryConfig::default() };
    // With the options of the environment, and those of the URL, which count more.
    macro_rules! configured {
        ($builder:expr, $environment:expr) => {{
            let options = $environment.chain(url.query_pairs().into_owned());
            let mut builder = $builder.with_retry(retry).with_http_connector(Connector);
            for (key, value) in options {
                if let Ok(key) = key.parse() {
                    builder = builder.with_config(key, value);
                }
            }
            builder
        }};
    }
    let mut credentials = None;
    let objects: Arc<dyn ObjectStore> = match scheme {
        ObjectStoreScheme::Memory => Arc::new(InMemory::new()),
        ObjectStoreScheme::AmazonS3 => {
            let builder = AmazonS3Builder::new().with_url(bare.as_str());
            let builder = configured!(builder, environment("AWS_"));
            let unsigned = builder.get_config_value(&AmazonS3ConfigKey::SkipSignature);
            let bucket = builder.build()?;
            if !unsigned.is_some_and(|unsigned| says_yes(&unsigned)) {
                credentials = Some(bucket.credentials().clone());
            }
            Arc::new(bucket)
        }
        ObjectStoreScheme::GoogleCloudStorage => {
            let builder = GoogleCloudStorageBuilder::new().with_url(bare.as_str());
            Arc::new(configured!(builder, environment("GOOGLE_")).build()?)
        }
        ObjectStoreScheme::MicrosoftAzure => {
            let builder = MicrosoftAzureBuilder::new().with_url(bare.as_str());
            Arc::new(configured!(builder, environment("AZURE_")).build()?)
        }
        ObjectStoreScheme::Http => {
            let server = &bare[..url::Position::BeforePath];
            Arc::new(configured!(HttpBuilder::new().with_url(server), iter::empty()).build()?)
        }
        other => {
            let source = format!("{other:?} is not supported").into();
            return Err(Error::Generic { store: "cairn", source });
        }
    };
    Ok(Remote { objects, path, credentials })
}

/// Whether an option is on, in any of the words for it.
fn says_yes(option: &str) -> bool {
    ["1", "true", "on", "yes", "y"].iter().any(|yes| option.eq_ignore_ascii_case(yes))
}

/// Whether an answer to the listing of a bucket says that there is none. Of what the storage has
/// said, only the text is left.
fn says_no_bucket(error: &Error) -> bool {
    const WORDS: [&str; 3] = ["NoSuchBucket", "ContainerNotFound", "bucket does not exist"];
    let said = error.to_string();
    matches!(error, Error::NotFound { .. }) || WORDS.iter().any(|words| said.contains(words))
}

/// The variables with a prefix, as the names of options.
fn environment(prefix: &'static str) -> impl Iterator<Item = (String, String)> {
    let option = move |(name, value): (OsString, OsString)| {
        let name = name.to_str().filter(|name| name.starts_with(prefix))?.to_ascii_lowercase();
        Some((name, value.into_string().ok()?))
    };
    env::vars_os().filter_map(option)
}

/// Runs what waits for the disk on a thread that may.
async fn blocking<T: Send + 'static>(
    run: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> Result<T, Error> {
    let done = tokio::task::spawn_blocking(run).await;
    let done = done.map_err(io::Error::other).and_then(|done| done);
    done.map_err(|error| Error::Generic { store: "LocalFileSystem", source: error.into() })
}

/// One zstd frame of each of these bytes.
pub(crate) async fn compress_many(many: Vec<Bytes>) -> io::Result<Vec<Bytes>> {
    let compress = move || {
        // Setting one up costs as much as compressing a small file.
        let mut compressor = zstd::bulk::Compressor::new(ZSTD_LEVEL)?;
        many.iter().map(|bytes| compressor.compress(bytes).map(Bytes::from)).collect()
    };
    tokio::task::spawn_blocking(compress).await.map_err(io::Error::other)?
}

/// The bytes of one zstd frame, at most `max` of them.
pub(crate) fn decompress(bytes: &[u8], max: usize) -> std::io::Result<Bytes> {
    zstd::bulk::decompress(bytes, max).map(Bytes::from)
}

/// The most bytes that zstd makes of so many.
pub(crate) fn compressed_max(bytes: usize) -> usize {
    bytes + bytes / 128 + 1024
}

/// What an error of the objects means to those who asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ObjectFault {
    /// The caller is not allowed to.
    Denied,
    /// There is no room left.
    Full,
    /// The storage can't be reached, or did not answer in time.
    Unavailable,
    /// Anything else.
    Other,
}

impl ObjectFault {
    /// What this error means.
    pub fn of(error: &Error) -> Self {
        match error {
            Error::PermissionDenied { .. } | Error::Unauthenticated { .. } => Self::Denied,
            Error::Generic { source, .. } => Self::of_cause(source.as_ref()),
            _ => Self::Other,
        }
    }

    /// The kind of fault is told by the error of the connection or of the disk at the bottom, where
    /// there is one.
    fn of_cause(error: &(dyn std::error::Error + 'static)) -> Self {
        use std::io::ErrorKind;
        let mut cause = Some(error);
        while let Some(error) = cause {
            if let Some(error) = error.downcast_ref::<HttpError>()
                && let HttpErrorKind::Connect | HttpErrorKind::Timeout | HttpErrorKind::Interrupted =
                    error.kind()
            {
                return Self::Unavailable;
            }
            if let Some(error) = error.downcast_ref::<std::io::Error>() {
                match error.kind() {
                    ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::FileTooLarge => {
                        return Self::Full;
                    }
                    ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem => {
                        return Self::Denied;
                    }
                    ErrorKind::ConnectionRefused
                    | ErrorKind::ConnectionReset
                    | ErrorKind::ConnectionAborted
                    | ErrorKind::HostUnreachable
                    | ErrorKind::NetworkUnreachable
                    | ErrorKind::NotConnected
                    | ErrorKind::TimedOut => return Self::Unavailable,
                    _ => {}
                }
            }
            cause = error.source();
        }
        Self::Other
    }
}

impl fmt::Display for ObjectBase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.url)
    }
}

impl fmt::Debug for ObjectBase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ObjectBase({})", self.url)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Address;

    fn open(text: &str) -> Result<ObjectBase, ObjectBaseError> {
        match text.parse().unwrap() {
            Address::ObjectStore(address) => ObjectBase::open(&address),
            other => panic!("{other} is no address of objects"),
        }
    }

    #[test]
    fn objects_lie_where_the_layout_says() {
        let base = open("objectstore+memory:/base").unwrap();
        let digest = Digest::of(b"hi\n");
        assert_eq!(
            base.location(ObjectKind::Chunk, &digest).as_ref(),
            "base/chunks/b3/0b8b/0b8b60248fad7ac6dfac221b7e01a8b91c772421a15b387dd1fb2d6a94aee438"
        );
        let rooted = open("objectstore+memory:/").unwrap();
        assert!(
            rooted.location(ObjectKind::Closure, &digest).as_ref().starts_with("dirs/b3/0b8b/")
        );
    }

    #[test]
    fn nothing_is_made_by_opening() {
        let folder = tempfile::tempdir().unwrap();
        let new = folder.path().join("new");
        open(&format!("objectstore+file://{}", new.display())).unwrap();
        assert!(!new.exists());
        let error = open(&format!("objectstore+file://{}/deeper", new.display())).unwrap_err();
        assert!(matches!(error, ObjectBaseError::NoFolder { .. }), "{error}");
    }

    #[test]
    fn options_reach_the_store_and_stay_out_of_its_name() {
        let url = "objectstore+s3://bucket/base?aws_region=here&aws_secret_access_key=secret\
            &aws_access_key_id=me&aws_endpoint_url=http://127.0.0.1:1&aws_allow_http=true";
        let base = open(url).unwrap();
        assert_eq!(base.to_string(), "objectstore+s3://bucket/base");
        assert_eq!(base.path().as_ref(), "base");
        assert!(base.objects().to_string().contains("bucket"));
    }
}
