//! The kernel's requests, each with its answer: what they come to is in `file_system`, the methods that
//! more than one of them needs.

use std::{
    ffi::CStr,
    io,
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use bytes::Bytes;
use cairn_castore::{ByteRange, Name};
use fuse_backend_rs::{
    abi::fuse_abi::{CreateIn, stat64, statvfs64},
    api::filesystem::{
        Context, DirEntry, Entry, FileSystem, FsOptions, GetxattrReply, ListxattrReply,
        OpenOptions, SetattrValid, ZeroCopyReader, ZeroCopyWriter,
    },
};
use rustix::io::Errno;

use super::{CairnFs, FOREVER};
use crate::{
    ahead,
    attributes::{self, BLOCK_BYTES},
    inodes::{Inode, NodeId, ROOT},
    listing::Reply,
};

/// The refusal of everything that would change something.
fn read_only<T>() -> io::Result<T> {
    Err(Errno::ROFS.into())
}

/// Has the defaults of every request: the way to an empty `statvfs64`, which can't be made safely
/// otherwise.
struct Defaults;

impl FileSystem for Defaults {
    type Inode = NodeId;
    type Handle = u64;
}

impl FileSystem for CairnFs {
    type Inode = NodeId;
    type Handle = u64;

    fn init(&self, capable: FsOptions) -> io::Result<FsOptions> {
        let set =
            |flag: &AtomicBool, option| flag.store(capable.contains(option), Ordering::Relaxed);
        set(&self.zero_message_open, FsOptions::ZERO_MESSAGE_OPEN);
        set(&self.zero_message_opendir, FsOptions::ZERO_MESSAGE_OPENDIR);
        Ok(FsOptions::ASYNC_READ
            | FsOptions::ASYNC_DIO
            // Makes the kernel look at a directory's modification time before it lists it from
            // memory; see `root_attributes`.
            | FsOptions::AUTO_INVAL_DATA
            | FsOptions::CACHE_SYMLINKS
            | FsOptions::DO_READDIRPLUS
            | FsOptions::MAX_PAGES
            | FsOptions::PARALLEL_DIROPS
            | FsOptions::ZERO_MESSAGE_OPEN
            | FsOptions::ZERO_MESSAGE_OPENDIR)
    }

    fn lookup(&self, _: &Context, parent: NodeId, name: &CStr) -> io::Result<Entry> {
        let name = name.to_bytes();
        if name.len() > Name::MAX_LEN {
            return Err(Errno::NAMETOOLONG.into());
        }
        let inode = self.inode(parent)?;
        let Ok(name) = Name::try_from(Bytes::copy_from_slice(name)) else {
            return Err(Errno::NOENT.into());
        };
        match &inode {
            Inode::Root => self.lookup_in_root(name),
            Inode::Directory(place) => self.lookup_in_directory(parent, place, name),
            Inode::File { .. } | Inode::Symlink { .. } => return Err(Errno::NOTDIR.into()),
        }
        .map_err(|error| self.fail(error))
    }

    fn forget(&self, _: &Context, inode: NodeId, count: u64) {
        self.inodes.forget([(inode, count)]);
    }

    fn batch_forget(&self, _: &Context, requests: Vec<(NodeId, u64)>) {
        self.inodes.forget(requests);
    }

    fn getattr(
        &self,
        _: &Context,
        inode: NodeId,
        _: Option<u64>,
    ) -> io::Result<(stat64, Duration)> {
        match &self.inode(inode)? {
            Inode::Root => self.root_attributes().map(|attr| (attr, self.options.root_timeout)),
            inode => attributes::attributes(inode, self.face()).map(|attr| (attr, FOREVER)),
        }
        .map_err(|error| self.fail(error))
    }

    fn readlink(&self, _: &Context, inode: NodeId) -> io::Result<Vec<u8>> {
        match &self.inode(inode)? {
            Inode::Symlink { target, .. } => Ok(target.as_ref().to_vec()),
            _ => Err(Errno::INVAL.into()),
        }
    }

    fn open(
        &self,
        _: &Context,
        id: NodeId,
        flags: u32,
        _: u32,
    ) -> io::Result<(Option<u64>, OpenOptions, Option<u32>)> {
        if flags & libc::O_ACCMODE.cast_unsigned() != libc::O_RDONLY.cast_unsigned() {
            return read_only();
        }
        if let Some(passthrough) = self.passthrough() {
            return Ok(match &self.inode(id)? {
                Inode::File { digest, size, .. } => {
                    let opened = passthrough.open(id, digest, *size);
                    if let (Some(recorder), (_, _, Some(_))) = (&self.options.recorder, &opened) {
                        // What is read of it from here on is not told.
                        recorder.file(digest, *size, 0..*size);
                    }
                    opened
                }
                _ => (None, OpenOptions::KEEP_CACHE, None),
            });
        }
        if self.zero_message_open.load(Ordering::Relaxed) {
            return Err(Errno::NOSYS.into());
        }
        Ok((None, OpenOptions::KEEP_CACHE, None))
    }

    fn read(
        &self,
        _: &Context,
        inode: NodeId,
        _: u64,
        w: &mut dyn ZeroCopyWriter,
        size: u32,
        offset: u64,
        _: Option<u64>,
        _: u32,
    ) -> io::Result<usize> {
        let range = ByteRange { offset, length: u64::from(size) };
        let id = inode;
        let inode = self.inode(id)?;
        if offset == 0
            && self.options.recorder.is_none()
            && ahead::is_file(&inode)
            && let Some(seen) = self.inodes.seen(id)
        {
            self.read_ahead_of(seen);
        }
        if let (Some(passthrough), Inode::File { digest, size, .. }) = (self.passthrough(), &inode)
        {
            passthrough.note_read(digest, *size, range.length);
        }
        self.copy_bytes(&inode, range, w)
    }

    fn release(
        &self,
        _: &Context,
        id: NodeId,
        _: u32,
        handle: u64,
        _: bool,
        _: bool,
        _: Option<u64>,
    ) -> io::Result<()> {
        if let Some(passthrough) = self.passthrough.get() {
            passthrough.release(id, handle);
        }
        Ok(())
    }

    fn opendir(
        &self,
        _: &Context,
        inode: NodeId,
        _: u32,
    ) -> io::Result<(Option<u64>, OpenOptions)> {
        if self.zero_message_opendir.load(Ordering::Relaxed) {
            return Err(Errno::NOSYS.into());
        }
        let cached = OpenOptions::CACHE_DIR | OpenOptions::KEEP_CACHE;
        Ok((None, if inode == ROOT { OpenOptions::empty() } else { cached }))
    }

    fn readdir(
        &self,
        _: &Context,
        inode: NodeId,
        _: u64,
        size: u32,
        offset: u64,
        add_entry: &mut dyn FnMut(DirEntry<'_>) -> io::Result<usize>,
    ) -> io::Result<()> {
        self.list(inode, offset, size, &mut Reply::Names(add_entry))
    }

    fn readdirplus(
        &self,
        _: &Context,
        inode: NodeId,
        _: u64,
        size: u32,
        offset: u64,
        add_entry: &mut dyn FnMut(DirEntry<'_>, Entry) -> io::Result<usize>,
    ) -> io::Result<()> {
        self.list(inode, offset, size, &mut Reply::Entries(add_entry))
    }

    fn releasedir(&self, _: &Context, _: NodeId, _: u32, _: u64) -> io::Result<()> {
        Ok(())
    }

    fn statfs(&self, ctx: &Context, inode: NodeId) -> io::Result<statvfs64> {
        let mut st = Defaults.statfs(ctx, inode)?;
        st.f_bsize = u64::from(BLOCK_BYTES);
        st.f_frsize = u64::from(BLOCK_BYTES);
        let space = self.space.get();
        let blocks = |bytes: u64| bytes / u64::from(BLOCK_BYTES);
        st.f_bfree = blocks(space.free);
        st.f_bavail = blocks(space.available);
        // Never 0, which makes some programs divide by it and others skip the file system.
        st.f_blocks = (blocks(space.used) + st.f_bfree).max(1);
        st.f_files = self.inodes.len() as u64;
        st.f_namemax = Name::MAX_LEN as u64;
        Ok(st)
    }

    fn access(&self, _: &Context, _: NodeId, mask: u32) -> io::Result<()> {
        // The kernel checks the modes itself; this is for a transport where it does not.
        if mask & libc::W_OK.cast_unsigned() != 0 { read_only() } else { Ok(()) }
    }

    fn getxattr(
        &self,
        _: &Context,
        inode: NodeId,
        name: &CStr,
        size: u32,
    ) -> io::Result<GetxattrReply> {
        if !self.options.xattrs {
            return Err(Errno::NOSYS.into());
        }
        let Some(value) = attributes::xattr(&self.inode(inode)?, name) else {
            let known = [&b"user."[..], b"security.", b"trusted."];
            let absent = known.iter().any(|prefix| name.to_bytes().starts_with(prefix));
            return Err(if absent { Errno::NODATA.into() } else { Errno::OPNOTSUPP.into() });
        };
        Ok(match fitted(value.into_bytes(), size)? {
            Ok(value) => GetxattrReply::Value(value),
            Err(count) => GetxattrReply::Count(count),
        })
    }

    fn listxattr(&self, _: &Context, inode: NodeId, size: u32) -> io::Result<ListxattrReply> {
        if !self.options.xattrs {
            return Err(Errno::NOSYS.into());
        }
        let names: Vec<u8> = attributes::xattr_names(&self.inode(inode)?)
            .iter()
            .flat_map(|name| name.to_bytes_with_nul())
            .copied()
            .collect();
        Ok(match fitted(names, size)? {
            Ok(names) => ListxattrReply::Names(names),
            Err(count) => ListxattrReply::Count(count),
        })
    }

    fn setattr(
        &self,
        _: &Context,
        _: NodeId,
        _: stat64,
        _: Option<u64>,
        _: SetattrValid,
    ) -> io::Result<(stat64, Duration)> {
        read_only()
    }

    fn symlink(&self, _: &Context, _: &CStr, _: NodeId, _: &CStr) -> io::Result<Entry> {
        read_only()
    }

    fn mknod(&self, _: &Context, _: NodeId, _: &CStr, _: u32, _: u32, _: u32) -> io::Result<Entry> {
        read_only()
    }

    fn mkdir(&self, _: &Context, _: NodeId, _: &CStr, _: u32, _: u32) -> io::Result<Entry> {
        read_only()
    }

    fn unlink(&self, _: &Context, _: NodeId, _: &CStr) -> io::Result<()> {
        read_only()
    }

    fn rmdir(&self, _: &Context, _: NodeId, _: &CStr) -> io::Result<()> {
        read_only()
    }

    fn rename(
        &self,
        _: &Context,
        _: NodeId,
        _: &CStr,
        _: NodeId,
        _: &CStr,
        _: u32,
    ) -> io::Result<()> {
        read_only()
    }

    fn link(&self, _: &Context, _: NodeId, _: NodeId, _: &CStr) -> io::Result<Entry> {
        read_only()
    }

    fn create(
        &self,
        _: &Context,
        _: NodeId,
        _: &CStr,
        _: CreateIn,
    ) -> io::Result<(Entry, Option<u64>, OpenOptions, Option<u32>)> {
        read_only()
    }

    fn write(
        &self,
        _: &Context,
        _: NodeId,
        _: u64,
        _: &mut dyn ZeroCopyReader,
        _: u32,
        _: u64,
        _: Option<u64>,
        _: bool,
        _: u32,
        _: u32,
    ) -> io::Result<usize> {
        read_only()
    }

    fn fallocate(&self, _: &Context, _: NodeId, _: u64, _: u32, _: u64, _: u64) -> io::Result<()> {
        read_only()
    }

    fn setxattr(&self, _: &Context, _: NodeId, _: &CStr, _: &[u8], _: u32) -> io::Result<()> {
        read_only()
    }

    fn removexattr(&self, _: &Context, _: NodeId, _: &CStr) -> io::Result<()> {
        read_only()
    }
}

/// Bytes for a buffer of a size; their number, if the size is 0 and so asks for it.
fn fitted(bytes: Vec<u8>, size: u32) -> io::Result<Result<Vec<u8>, u32>> {
    let count = u32::try_from(bytes.len()).map_err(|_| io::Error::from(Errno::TOOBIG))?;
    match size {
        0 => Ok(Err(count)),
        size if size < count => Err(Errno::RANGE.into()),
        _ => Ok(Ok(bytes)),
    }
}
