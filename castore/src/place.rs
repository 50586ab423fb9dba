//! Where something is in a tree of the local file system, so that messages can name it. Nothing
//! here is opened, and no path is made before it is needed.

use std::{
    ffi::OsStr,
    os::unix::ffi::OsStrExt as _,
    path::{Path, PathBuf},
    sync::Arc,
};

use bytes::Bytes;

use crate::Name;

/// Where a directory is.
#[derive(Debug)]
pub(crate) struct Place {
    parent: Option<Arc<Place>>,
    name: Bytes,
}

impl Place {
    /// The root of the tree at `path`.
    pub(crate) fn root(path: &Path) -> Arc<Self> {
        let name = Bytes::copy_from_slice(path.as_os_str().as_bytes());
        Arc::new(Self { parent: None, name })
    }

    /// A directory in another.
    pub(crate) fn child(parent: &Arc<Self>, name: &Name) -> Arc<Self> {
        Arc::new(Self { parent: Some(Arc::clone(parent)), name: name.as_bytes().clone() })
    }

    /// The directory's name, or the path of the root.
    pub(crate) fn name(&self) -> &[u8] {
        &self.name
    }

    pub(crate) fn path(&self) -> PathBuf {
        let mut names = vec![&self.name];
        let mut place = self;
        while let Some(parent) = &place.parent {
            place = parent;
            names.push(&place.name);
        }
        names.iter().rev().map(|name| OsStr::from_bytes(name)).collect()
    }

    /// The path of an entry, or without a name that of the directory itself.
    pub(crate) fn path_of(&self, name: Option<&Name>) -> PathBuf {
        match name {
            Some(name) => self.path().join(name.as_os_str()),
            None => self.path(),
        }
    }
}

/// Where a file is: in a directory, or without a name at the directory's own place.
#[derive(Debug, Clone)]
pub(crate) struct Location {
    pub(crate) place: Arc<Place>,
    pub(crate) name: Option<Name>,
}

impl Location {
    pub(crate) fn path(&self) -> PathBuf {
        self.place.path_of(self.name.as_ref())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_named_by_their_paths() {
        let root = Place::root(Path::new("/a/b/"));
        let child = Place::child(&root, &Name::try_from("c").unwrap());
        let name = Some(Name::try_from("d").unwrap());
        assert_eq!(Location { place: child, name }.path(), Path::new("/a/b/c/d"));
        assert_eq!(Location { place: root, name: None }.path(), Path::new("/a/b/"));
    }
}
