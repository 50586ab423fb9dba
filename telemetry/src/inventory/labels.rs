//! The labels of the metrics, with all values that there can be: nothing from outside makes another.

use crate::metric::Label;

/// A set of values of a label: an enum, and the label.
macro_rules! label {
    (
        $(#[$about:meta])*
        $label:ident, $name:literal, $type:ident {
            $($(#[$about_value:meta])* $value:ident = $text:literal,)*
        }
    ) => {
        $(#[$about])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum $type {
            $($(#[$about_value])* $value,)*
        }

        impl $type {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$value,)*];

            /// What the label says.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$value => $text,)*
                }
            }
        }

        #[doc = concat!("The label `", $name, "`.")]
        pub const $label: Label =
            Label { names: &[$name], values: &[$(concat!($name, "=\"", $text, "\""),)*] };
    };
}

/// This build.
pub(super) const BUILD: Label = Label {
    names: &["version"],
    values: &[concat!("version=\"", env!("CARGO_PKG_VERSION"), "\"")],
};

/// How many values a label has.
pub(super) const fn count(label: &Label) -> usize {
    label.values.len()
}

label! {
    /// A service of a store.
    SERVICE, "service", Service {
        /// Blobs.
        Blobs = "blob",
        /// Directories.
        Directories = "directory",
        /// Path infos.
        PathInfos = "path-info",
    }
}

label! {
    /// A kind of work that can be under way.
    OPERATION, "kind", Operation {
        /// Requests of the kernel, or of a virtual machine.
        Fuse = "fuse",
        /// Requests that are answered over gRPC.
        GrpcServer = "grpc_server",
        /// Requests that are made over gRPC.
        GrpcClient = "grpc_client",
        /// Requests to an object store.
        ObjectStore = "object_store",
    }
}

label! {
    /// What the kernel asks for.
    FUSE_OPERATION, "operation", FuseOperation {
        /// A name.
        Lookup = "lookup",
        /// Lets go of inodes.
        Forget = "forget",
        /// Attributes.
        Getattr = "getattr",
        /// Where a symlink leads.
        Readlink = "readlink",
        /// Opens a file.
        Open = "open",
        /// Bytes.
        Read = "read",
        /// The room.
        Statfs = "statfs",
        /// Closes a file.
        Release = "release",
        /// An extended attribute.
        Getxattr = "getxattr",
        /// The names of extended attributes.
        Listxattr = "listxattr",
        /// Opens a directory.
        Opendir = "opendir",
        /// Names.
        Readdir = "readdir",
        /// Names with their attributes.
        Readdirplus = "readdirplus",
        /// Closes a directory.
        Releasedir = "releasedir",
        /// Whether access is allowed.
        Access = "access",
        /// All else, most of which is refused.
        Other = "other",
    }
}

label! {
    /// What a program is told of a request that failed.
    ERRNO, "errno", FuseErrno {
        /// An input/output error.
        Io = "EIO",
        /// No access.
        Access = "EACCES",
        /// The program that asked is ending.
        Interrupted = "EINTR",
        /// Too many inodes.
        Memory = "ENOMEM",
        /// Anything else.
        Other = "other",
    }
}

label! {
    /// Where what is read is kept. What the kernel keeps is not seen.
    CACHE_LAYER, "layer", CacheLayer {
        /// Parts of files in the memory of a mount.
        Windows = "windows",
        /// Records in memory, such as directories of a store that is far.
        Memory = "memory",
        /// Records on the disk, of the node cache.
        Node = "node",
    }
}

label! {
    /// Where something came from that is not what it should be.
    SOURCE, "layer", Source {
        /// The packs of a local store.
        Local = "local",
        /// Those of the node cache.
        Node = "node",
        /// A peer, over gRPC.
        Peer = "peer",
        /// An object store.
        ObjectStore = "object_store",
    }
}

label! {
    /// What an object store is asked for.
    OBJECT_OPERATION, "operation", ObjectOperation {
        /// An object.
        Get = "get",
        /// Whether one is there.
        Head = "head",
        /// To keep one.
        Put = "put",
        /// To keep a large one: its beginning, a part, or its end.
        Multipart = "multipart",
        /// The names of many.
        List = "list",
        /// To remove one.
        Delete = "delete",
        /// To keep one under another name.
        Copy = "copy",
    }
}

label! {
    /// What came of it.
    OBJECT_OUTCOME, "outcome", ObjectOutcome {
        /// What was asked for.
        Ok = "ok",
        /// It is not there.
        NotFound = "not_found",
        /// It is there already.
        Exists = "exists",
        /// It is not allowed.
        Denied = "denied",
        /// Nothing, also after it was tried again.
        Failed = "failed",
        /// Nobody waited for it any more.
        Cancelled = "cancelled",
    }
}

/// What a request over gRPC came to, in the order of the protocol's numbers.
pub const CODE: Label = Label {
    names: &["code"],
    values: &[
        "code=\"OK\"",
        "code=\"CANCELLED\"",
        "code=\"UNKNOWN\"",
        "code=\"INVALID_ARGUMENT\"",
        "code=\"DEADLINE_EXCEEDED\"",
        "code=\"NOT_FOUND\"",
        "code=\"ALREADY_EXISTS\"",
        "code=\"PERMISSION_DENIED\"",
        "code=\"RESOURCE_EXHAUSTED\"",
        "code=\"FAILED_PRECONDITION\"",
        "code=\"ABORTED\"",
        "code=\"OUT_OF_RANGE\"",
        "code=\"UNIMPLEMENTED\"",
        "code=\"INTERNAL\"",
        "code=\"UNAVAILABLE\"",
        "code=\"DATA_LOSS\"",
        "code=\"UNAUTHENTICATED\"",
    ],
};

/// The methods that are counted each: their paths, and a label.
macro_rules! methods {
    ($($service:literal { $($method:literal),* })*) => {
        /// The paths of the methods that are counted each.
        pub const PATHS: &[&str] =
            &[$($(concat!("/", $service, "/", $method),)*)*];

        /// A method, and its service, in the order of [`PATHS`]; then any other.
        pub const METHOD: Label = Label {
            names: &["service", "method"],
            values: &[
                $($(concat!("service=\"", $service, "\",method=\"", $method, "\""),)*)*
                "service=\"other\",method=\"other\"",
            ],
        };
    };
}

methods! {
    "snix.castore.v1.BlobService" { "Stat", "Read", "Put" }
    "snix.castore.v1.DirectoryService" { "Get", "Put" }
    "snix.store.v1.PathInfoService" { "Get", "Put", "CalculateNAR", "List" }
    "cairn.v1.BlobService" { "HasMany", "Stat", "ReadRange", "ReadMany", "PutMany", "Put" }
    "cairn.v1.DirectoryService" { "HasMany" }
    "cairn.v1.PathInfoService" { "ListPage", "Delete", "TellTree" }
    "cairn.v1.CacheService" { "Stats", "Evict", "Warm" }
    "cairn.v1.ServerService" { "Info" }
    "cairn.v1.StoreService" { "Stats", "StoredSizes" }
}

/// How many methods there are.
pub const METHODS: usize = count(&METHOD);

/// The method that stands for all that are not known.
pub const OTHER_METHOD: usize = PATHS.len();

/// How many values there are of method and code together.
pub const REQUESTS: usize = METHODS * count(&CODE);
