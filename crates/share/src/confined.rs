//! The file system of a share: `fuse-backend-rs`'s, which works on one folder, with what a guest may not do taken out.
//!
//! Everything here is called with a guest's numbers and names, from any session's thread.

use crate::Options;
use fuse_backend_rs::abi::fuse_abi::CreateIn;
use fuse_backend_rs::api::filesystem::{
    Context, DirEntry, Entry, FileSystem, FsOptions, OpenOptions, SetattrValid, ZeroCopyReader,
    ZeroCopyWriter,
};
use fuse_backend_rs::passthrough::{CachePolicy, Config, PassthroughFs};
use libc::{c_int, stat64};
use rustix::process::{Resource, getegid, geteuid, getrlimit};
use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

type Inode = u64;
type Handle = u64;

/// Bytes of names that are read from a folder at once.
const MOST_NAMES: u32 = 1 << 20;
/// Looks at the number of descriptors are this many lookups apart.
const LOOKS: u32 = 16;
/// Milliseconds for which a request waits for descriptors.
const PATIENCE: u32 = 100;
/// The folder itself (include/uapi/linux/fuse.h, `FUSE_ROOT_ID`).
const ROOT: Inode = 1;

/// What an open may ask for; the rest means nothing for a file that is known already, or is refused to who doesn't own it
/// (`O_NOATIME`, which overlays want).
const OPEN_FLAGS: c_int = libc::O_ACCMODE
    | libc::O_APPEND
    | libc::O_TRUNC
    | libc::O_NONBLOCK
    | libc::O_SYNC
    | libc::O_DSYNC
    | libc::O_DIRECTORY
    | libc::O_EXCL;

/// The file system.
pub(crate) struct Confined {
    inner: PassthroughFs,
    read_only: bool,
    is_still: bool,
    believe: Duration,
    owner: Owner,
    descriptors: Descriptors,
}

/// Ombra's user, who is the guest's root.
#[derive(Clone, Copy)]
struct Owner {
    uid: u32,
    gid: u32,
}

impl Owner {
    fn is_root(self) -> bool {
        self.uid == 0
    }

    /// A file's owner as the guest sees it.
    fn show(self, attr: &mut stat64) {
        if attr.st_uid == self.uid {
            attr.st_uid = 0;
        }
        if attr.st_gid == self.gid {
            attr.st_gid = 0;
        }
    }

    /// Who does what the guest's user wants.
    fn act(self, context: &Context) -> Context {
        if self.is_root() { *context } else { Context { uid: 0, gid: 0, pid: context.pid } }
    }
}

/// How many descriptors there are left.
struct Descriptors {
    /// The next one that is free has at least this number, or had a moment ago.
    used: AtomicU64,
    looks: AtomicU32,
    /// Of the process.
    most: u64,
    /// Any descriptor.
    sample: File,
}

impl Descriptors {
    fn new() -> io::Result<Self> {
        let most = getrlimit(Resource::Nofile).current.unwrap_or(1 << 20);
        let sample = File::open("/dev/null")?;
        Ok(Self { used: AtomicU64::new(0), looks: AtomicU32::new(0), most, sample })
    }

    /// A new descriptor has the least number that is free.
    fn look(&self) -> u64 {
        let used = self.sample.try_clone().map_or(self.most, |file| file.as_raw_fd() as u64);
        self.used.store(used, Ordering::Relaxed);
        used
    }

    /// Looks now and then.
    fn used(&self) -> u64 {
        if self.looks.fetch_add(1, Ordering::Relaxed).is_multiple_of(LOOKS) {
            return self.look();
        }
        self.used.load(Ordering::Relaxed)
    }

    /// The guest should forget what it doesn't use.
    fn are_few(&self) -> bool {
        self.used() > self.most / 2
    }

    /// The rest is for others. What the guest has forgotten may be on its way on another thread, and is waited for.
    fn check(&self) -> io::Result<()> {
        let limit = self.most / 8 * 7;
        if self.used() <= limit {
            return Ok(());
        }
        for _ in 0..PATIENCE {
            if self.look() <= limit {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        Err(error(libc::ENFILE))
    }
}

fn error(number: c_int) -> io::Error {
    io::Error::from_raw_os_error(number)
}

/// A name in a folder, and nothing else.
fn check_name(name: &CStr) -> io::Result<()> {
    let bytes = name.to_bytes();
    if bytes.is_empty() || bytes == b"." || bytes == b".." || bytes.contains(&b'/') {
        return Err(error(libc::EINVAL));
    }
    Ok(())
}

impl Confined {
    pub(crate) fn new(options: &Options, root: String) -> io::Result<Self> {
        let inner = PassthroughFs::new(Config {
            root_dir: root,
            entry_timeout: options.believe,
            attr_timeout: options.believe,
            cache_policy: if options.is_still { CachePolicy::Always } else { CachePolicy::Auto },
            allow_direct_io: false,
            use_host_ino: false,
            ..Config::default()
        })?;
        Ok(Self {
            inner,
            read_only: options.read_only,
            is_still: options.is_still,
            believe: options.believe,
            owner: Owner { uid: geteuid().as_raw(), gid: getegid().as_raw() },
            descriptors: Descriptors::new()?,
        })
    }

    /// As if the process had so many descriptors at most.
    #[cfg(test)]
    pub(crate) fn limit_descriptors(&mut self, most: u64) {
        self.descriptors.most = most;
    }

    fn check_writable(&self) -> io::Result<()> {
        if self.read_only { Err(error(libc::EROFS)) } else { Ok(()) }
    }

    /// A file as the guest is told of it.
    fn shown(&self, mut entry: Entry) -> Entry {
        self.owner.show(&mut entry.attr);
        if self.descriptors.are_few() {
            // Linux drops a name that it may not believe as soon as nobody uses it, and then forgets the file.
            entry.entry_timeout = Duration::ZERO;
        }
        entry
    }

    fn shown_attr(&self, (mut attr, timeout): (stat64, Duration)) -> (stat64, Duration) {
        self.owner.show(&mut attr);
        (attr, timeout)
    }

    /// The flags of an open that is allowed.
    fn open_flags(&self, flags: u32) -> io::Result<u32> {
        let flags = flags as c_int & OPEN_FLAGS;
        if flags & libc::O_ACCMODE != libc::O_RDONLY || flags & libc::O_TRUNC != 0 {
            self.check_writable()?;
        }
        self.descriptors.check()?;
        Ok(flags as u32)
    }

    /// What may be made under a name.
    fn check_new(&self, name: &CStr) -> io::Result<()> {
        self.check_writable()?;
        check_name(name)?;
        self.descriptors.check()
    }
}

impl FileSystem for Confined {
    type Inode = Inode;
    type Handle = Handle;

    fn init(&self, capable: FsOptions) -> io::Result<FsOptions> {
        let ours = FsOptions::ASYNC_READ
            | FsOptions::BIG_WRITES
            | FsOptions::MAX_PAGES
            | FsOptions::ATOMIC_O_TRUNC
            | FsOptions::PARALLEL_DIROPS
            | FsOptions::AUTO_INVAL_DATA
            | FsOptions::CACHE_SYMLINKS;
        let unwanted = FsOptions::PERFILE_DAX | FsOptions::WRITEBACK_CACHE;
        Ok((self.inner.init(capable & !unwanted)? | ours) & !unwanted)
    }

    fn destroy(&self) {
        self.inner.destroy();
    }

    fn lookup(&self, context: &Context, parent: Inode, name: &CStr) -> io::Result<Entry> {
        check_name(name)?;
        self.descriptors.check()?;
        match self.inner.lookup(context, parent, name) {
            Ok(entry) => Ok(self.shown(entry)),
            Err(missing) if self.is_still && missing.raw_os_error() == Some(libc::ENOENT) => {
                let (attr, _) = self.inner.getattr(context, ROOT, None)?;
                Ok(Entry {
                    inode: 0,
                    generation: 0,
                    attr,
                    attr_flags: 0,
                    attr_timeout: self.believe,
                    entry_timeout: self.believe,
                })
            }
            Err(other) => Err(other),
        }
    }

    fn forget(&self, context: &Context, inode: Inode, count: u64) {
        self.inner.forget(context, inode, count);
    }

    fn batch_forget(&self, context: &Context, requests: Vec<(Inode, u64)>) {
        self.inner.batch_forget(context, requests);
    }

    fn getattr(
        &self,
        context: &Context,
        inode: Inode,
        handle: Option<Handle>,
    ) -> io::Result<(stat64, Duration)> {
        Ok(self.shown_attr(self.inner.getattr(context, inode, handle)?))
    }

    fn setattr(
        &self,
        context: &Context,
        inode: Inode,
        mut attr: stat64,
        handle: Option<Handle>,
        valid: SetattrValid,
    ) -> io::Result<(stat64, Duration)> {
        self.check_writable()?;
        if attr.st_uid == 0 {
            attr.st_uid = self.owner.uid;
        }
        if attr.st_gid == 0 {
            attr.st_gid = self.owner.gid;
        }
        Ok(self.shown_attr(self.inner.setattr(context, inode, attr, handle, valid)?))
    }

    fn readlink(&self, context: &Context, inode: Inode) -> io::Result<Vec<u8>> {
        self.inner.readlink(context, inode)
    }

    fn symlink(&self, context: &Context, target: &CStr, parent: Inode, name: &CStr) -> io::Result<Entry> {
        self.check_new(name)?;
        Ok(self.shown(self.inner.symlink(&self.owner.act(context), target, parent, name)?))
    }

    fn mknod(
        &self,
        context: &Context,
        parent: Inode,
        name: &CStr,
        mode: u32,
        _: u32,
        umask: u32,
    ) -> io::Result<Entry> {
        self.check_new(name)?;
        if !matches!(mode & libc::S_IFMT, 0 | libc::S_IFREG | libc::S_IFIFO | libc::S_IFSOCK) {
            return Err(error(libc::EPERM));
        }
        Ok(self.shown(self.inner.mknod(&self.owner.act(context), parent, name, mode, 0, umask)?))
    }

    fn mkdir(
        &self,
        context: &Context,
        parent: Inode,
        name: &CStr,
        mode: u32,
        umask: u32,
    ) -> io::Result<Entry> {
        self.check_new(name)?;
        Ok(self.shown(self.inner.mkdir(&self.owner.act(context), parent, name, mode, umask)?))
    }

    fn unlink(&self, context: &Context, parent: Inode, name: &CStr) -> io::Result<()> {
        self.check_writable()?;
        check_name(name)?;
        self.inner.unlink(context, parent, name)
    }

    fn rmdir(&self, context: &Context, parent: Inode, name: &CStr) -> io::Result<()> {
        self.check_writable()?;
        check_name(name)?;
        self.inner.rmdir(context, parent, name)
    }

    fn rename(
        &self,
        context: &Context,
        from: Inode,
        old: &CStr,
        to: Inode,
        new: &CStr,
        flags: u32,
    ) -> io::Result<()> {
        self.check_writable()?;
        check_name(old)?;
        check_name(new)?;
        // A whiteout would be a device.
        if flags & !(libc::RENAME_NOREPLACE | libc::RENAME_EXCHANGE) != 0 {
            return Err(error(libc::EINVAL));
        }
        self.inner.rename(context, from, old, to, new, flags)
    }

    fn link(&self, context: &Context, inode: Inode, parent: Inode, name: &CStr) -> io::Result<Entry> {
        self.check_new(name)?;
        Ok(self.shown(self.inner.link(context, inode, parent, name)?))
    }

    fn open(
        &self,
        context: &Context,
        inode: Inode,
        flags: u32,
        fuse_flags: u32,
    ) -> io::Result<(Option<Handle>, OpenOptions, Option<u32>)> {
        self.inner.open(context, inode, self.open_flags(flags)?, fuse_flags)
    }

    fn create(
        &self,
        context: &Context,
        parent: Inode,
        name: &CStr,
        mut args: CreateIn,
    ) -> io::Result<(Entry, Option<Handle>, OpenOptions, Option<u32>)> {
        self.check_new(name)?;
        args.flags = self.open_flags(args.flags)?;
        args.mode &= 0o7777;
        let (entry, handle, options, id) = self.inner.create(&self.owner.act(context), parent, name, args)?;
        Ok((self.shown(entry), handle, options, id))
    }

    fn read(
        &self,
        context: &Context,
        inode: Inode,
        handle: Handle,
        to: &mut dyn ZeroCopyWriter,
        size: u32,
        offset: u64,
        lock_owner: Option<u64>,
        flags: u32,
    ) -> io::Result<usize> {
        self.inner.read(context, inode, handle, to, size, offset, lock_owner, flags & OPEN_FLAGS as u32)
    }

    fn write(
        &self,
        context: &Context,
        inode: Inode,
        handle: Handle,
        from: &mut dyn ZeroCopyReader,
        size: u32,
        offset: u64,
        lock_owner: Option<u64>,
        delayed: bool,
        flags: u32,
        fuse_flags: u32,
    ) -> io::Result<usize> {
        self.check_writable()?;
        let flags = flags & OPEN_FLAGS as u32;
        self.inner.write(context, inode, handle, from, size, offset, lock_owner, delayed, flags, fuse_flags)
    }

    fn fsync(&self, context: &Context, inode: Inode, datasync: bool, handle: Handle) -> io::Result<()> {
        self.inner.fsync(context, inode, datasync, handle)
    }

    fn fallocate(
        &self,
        context: &Context,
        inode: Inode,
        handle: Handle,
        mode: u32,
        offset: u64,
        length: u64,
    ) -> io::Result<()> {
        self.check_writable()?;
        self.inner.fallocate(context, inode, handle, mode, offset, length)
    }

    fn release(
        &self,
        context: &Context,
        inode: Inode,
        flags: u32,
        handle: Handle,
        flush: bool,
        flock_release: bool,
        lock_owner: Option<u64>,
    ) -> io::Result<()> {
        self.inner.release(context, inode, flags, handle, flush, flock_release, lock_owner)
    }

    fn statfs(&self, context: &Context, inode: Inode) -> io::Result<libc::statvfs64> {
        self.inner.statfs(context, inode)
    }

    fn opendir(
        &self,
        context: &Context,
        inode: Inode,
        flags: u32,
    ) -> io::Result<(Option<Handle>, OpenOptions)> {
        self.descriptors.check()?;
        self.inner.opendir(
            context,
            inode,
            flags & OPEN_FLAGS as u32 & !(libc::O_ACCMODE | libc::O_TRUNC) as u32,
        )
    }

    fn readdir(
        &self,
        context: &Context,
        inode: Inode,
        handle: Handle,
        size: u32,
        offset: u64,
        add: &mut dyn FnMut(DirEntry<'_>) -> io::Result<usize>,
    ) -> io::Result<()> {
        self.inner.readdir(context, inode, handle, size.min(MOST_NAMES), offset, add)
    }

    fn readdirplus(
        &self,
        context: &Context,
        inode: Inode,
        handle: Handle,
        size: u32,
        offset: u64,
        add: &mut dyn FnMut(DirEntry<'_>, Entry) -> io::Result<usize>,
    ) -> io::Result<()> {
        self.inner.readdirplus(context, inode, handle, size.min(MOST_NAMES), offset, &mut |name, entry| {
            if !self.descriptors.are_few() {
                return add(name, self.shown(entry));
            }
            // A name alone: the guest looks it up when it needs to.
            let known = entry.inode;
            let added = add(name, Entry { inode: 0, ..entry })?;
            if added > 0 {
                self.inner.forget(context, known, 1);
            }
            Ok(added)
        })
    }

    fn fsyncdir(&self, context: &Context, inode: Inode, datasync: bool, handle: Handle) -> io::Result<()> {
        self.inner.fsyncdir(context, inode, datasync, handle)
    }

    fn releasedir(&self, context: &Context, inode: Inode, flags: u32, handle: Handle) -> io::Result<()> {
        self.inner.releasedir(context, inode, flags, handle)
    }

    fn lseek(
        &self,
        context: &Context,
        inode: Inode,
        handle: Handle,
        offset: u64,
        whence: u32,
    ) -> io::Result<u64> {
        self.inner.lseek(context, inode, handle, offset, whence)
    }
}
