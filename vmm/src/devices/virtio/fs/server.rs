//! The FUSE server: one request in, one answer out. Operations are in the files beside this one.
//!
//! The server trusts nothing of a request but its length. It never blocks on the guest: each call ends
//! with an answer. What the guest's kernel does for itself is left to it: permission checks
//! (`default_permissions` is in force for virtio-fs), FIFOs and sockets, and POSIX and BSD locks, which are
//! therefore seen inside the guest only.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::fs::FileType;
use rustix::io::Errno;
use rustix::process::{Resource, getrlimit};

use super::abi::Opcode;
use super::config::{CachePolicy, Error, FsConfig};
use super::handle::Handles;
use super::host::{self, Proc, Stat};
use super::inode::Inodes;
use super::wire::{
    AttrOut, EntryOut, INIT_OUT_UNUSED, InHeader, InitOut, KSTATFS_SPARE, Kstatfs, OpenOut, STATX_OUT_SPARE,
    StatxOut, Wire, WriteOut,
};

/// Most bytes of one READ or WRITE: 256 pages, as `max_pages` and `max_write` tell the guest.
pub(super) const IO_MAX: usize = 1 << 20;

/// Most bytes of arguments besides the data of a WRITE: a BATCH_FORGET of 128 KiB, or an attribute's value
/// of 64 KiB and its name.
pub(super) const ARGS_MAX: usize = (128 << 10) + 4096;

/// Most bytes of an answer besides the data of a READ: attributes and directory entries.
pub(super) const REPLY_MAX: usize = 128 << 10;

/// Most descriptors held for idle inodes. Each pins an inode and a name in the host's caches, about 1 KiB.
const IDLE_DESCRIPTORS_MAX: usize = 16_384;

/// One request, but for the data of READ and WRITE.
pub(super) struct Request<'a> {
    pub(super) header: InHeader,
    pub(super) opcode: Opcode,
    /// What follows the header.
    pub(super) args: &'a [u8],
    /// Bytes that the guest has room for after the header of the answer.
    pub(super) room: usize,
}

/// What was agreed on in INIT.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Agreed {
    /// Some INIT has been answered.
    pub(super) done: bool,
    pub(super) submounts: bool,
    pub(super) writeback: bool,
    pub(super) posix_acl: bool,
    pub(super) setxattr_ext: bool,
}

/// The server of one device.
#[derive(Debug)]
pub(super) struct Server {
    pub(super) cache: CachePolicy,
    pub(super) readonly: bool,
    pub(super) offer_acl: bool,
    pub(super) offer_writeback: bool,
    pub(super) file_capabilities: bool,
    pub(super) proc: Proc,
    pub(super) inodes: Inodes,
    pub(super) handles: Handles,
    pub(super) agreed: Agreed,
    root: Arc<OwnedFd>,
    descriptors: usize,
}

impl Server {
    /// A server that waits for INIT.
    ///
    /// # Errors
    /// What is wrong with the root or `/proc/self/fd`.
    pub(super) fn new(config: FsConfig) -> Result<Server, Error> {
        let stat = host::stat(&config.root).map_err(Error::Root)?;
        if stat.kind != FileType::Directory {
            return Err(Error::RootKind);
        }
        let proc = Proc::new(config.proc_self_fd).map_err(Error::Proc)?;
        let soft_limit = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
        let ours = usize::try_from(soft_limit / 4 * 3).unwrap_or(usize::MAX);
        let descriptors = config.max_descriptors.unwrap_or(ours).max(16);
        let root = Arc::new(config.root);
        Ok(Server {
            cache: config.cache,
            readonly: config.readonly,
            offer_acl: config.posix_acl,
            offer_writeback: config.writeback,
            file_capabilities: config.file_capabilities,
            proc,
            inodes: Inodes::new(Arc::clone(&root), &stat, 0),
            handles: Handles::new(0),
            agreed: Agreed::default(),
            root,
            descriptors,
        })
    }

    /// Forgets the session: all inodes but the root, all handles, what was agreed.
    ///
    /// # Errors
    /// When the root cannot be examined any more.
    pub(super) fn reset(&mut self) -> Result<(), Errno> {
        let stat = host::stat(&self.root)?;
        self.agreed = Agreed::default();
        // Open files may take two thirds of the descriptors, idle inodes get what is left.
        self.handles = Handles::new(self.descriptors / 3 * 2);
        self.inodes = Inodes::new(Arc::clone(&self.root), &stat, 0);
        self.share_descriptors();
        Ok(())
    }

    /// Answers one request into `reply`, which is empty.
    ///
    /// # Errors
    /// What goes into the header of the answer.
    pub(super) fn serve(&mut self, request: &Request<'_>, reply: &mut Vec<u8>) -> Result<(), Errno> {
        self.admit(request.opcode, request.room)?;
        match request.opcode {
            Opcode::Init => self.init(request, reply),
            Opcode::Destroy => self.reset(),
            Opcode::Interrupt | Opcode::NotifyReply => Ok(()),
            Opcode::Forget => self.forget(request),
            Opcode::BatchForget => self.batch_forget(request),
            Opcode::Lookup => self.lookup(request, reply),
            Opcode::Getattr => self.getattr(request, reply),
            Opcode::Statx => self.statx(request, reply),
            Opcode::Setattr => self.setattr(request, reply),
            Opcode::Readlink => self.readlink(request, reply),
            Opcode::Symlink => self.symlink(request, reply),
            Opcode::Mknod => self.mknod(request, reply),
            Opcode::Mkdir => self.mkdir(request, reply),
            Opcode::Create => self.create(request, reply),
            Opcode::Tmpfile => self.tmpfile(request, reply),
            Opcode::Unlink => self.unlink(request),
            Opcode::Rmdir => self.rmdir(request),
            Opcode::Rename => self.rename(request),
            Opcode::Rename2 => self.rename2(request),
            Opcode::Link => self.link(request, reply),
            Opcode::Open => self.open(request, reply),
            Opcode::Opendir => self.opendir(request, reply),
            Opcode::Release | Opcode::Releasedir => self.release(request),
            Opcode::Flush => self.flush(request),
            Opcode::Fsync | Opcode::Fsyncdir => self.fsync(request),
            Opcode::Readdir => self.readdir(request, reply),
            Opcode::Readdirplus => self.readdirplus(request, reply),
            Opcode::Statfs => self.statfs(request, reply),
            Opcode::Syncfs => self.syncfs(request),
            Opcode::Setxattr => self.setxattr(request),
            Opcode::Getxattr => self.getxattr(request, reply),
            Opcode::Listxattr => self.listxattr(request, reply),
            Opcode::Removexattr => self.removexattr(request),
            Opcode::Fallocate => self.fallocate(request),
            Opcode::Lseek => self.lseek(request, reply),
            Opcode::CopyFileRange => self.copy_file_range(request, reply),
            // Their data do not go through a buffer of ours: see `read_into` and `write_from`.
            Opcode::Read | Opcode::Write => Err(Errno::NOSYS),
        }
    }

    /// Whether a request may be tried at all, before it has any effect.
    ///
    /// # Errors
    /// EPROTO before INIT, EROFS for changes of a read-only export, EIO when the answer would not fit.
    pub(super) fn admit(&self, opcode: Opcode, room: usize) -> Result<(), Errno> {
        if !self.agreed.done && !matches!(opcode, Opcode::Init | Opcode::Destroy) && !opcode.is_silent() {
            return Err(Errno::PROTO);
        }
        if self.readonly && opcode.changes_tree() {
            return Err(Errno::ROFS);
        }
        if room < reply_len(opcode) {
            Err(Errno::IO)
        } else {
            Ok(())
        }
    }

    /// Leaves to idle inodes the descriptors that open files do not take.
    pub(super) fn share_descriptors(&mut self) {
        let left = self.descriptors.saturating_sub(self.handles.len());
        self.inodes.set_budget(left.min(IDLE_DESCRIPTORS_MAX));
    }

    /// A descriptor of the node that the request is about.
    ///
    /// # Errors
    /// ESTALE as in [`Inodes::descriptor`].
    pub(super) fn node(&mut self, request: &Request<'_>) -> Result<Arc<OwnedFd>, Errno> {
        self.inodes.descriptor(request.header.nodeid)
    }

    /// The inode behind a descriptor, as an answer that says how long it holds.
    pub(super) fn attr_out(&self, node: u64, stat: &Stat) -> Result<AttrOut, Errno> {
        let timeout = self.cache.rule(self.inodes.get(node)?.export).timeout();
        Ok(AttrOut {
            attr_valid: timeout.as_secs(),
            attr_valid_nsec: timeout.subsec_nanos(),
            dummy: 0,
            attr: stat.to_attr(),
        })
    }
}

/// Takes a structure off the front of the arguments.
///
/// # Errors
/// EINVAL when they are too short.
pub(super) fn take<T: Wire>(args: &mut &[u8]) -> Result<T, Errno> {
    T::take(args).ok_or(Errno::INVAL)
}

/// Length of an answer that is always the same; 0 for none, and for those that fit themselves to the room.
fn reply_len(opcode: Opcode) -> usize {
    match opcode {
        Opcode::Lookup | Opcode::Symlink | Opcode::Mknod | Opcode::Mkdir | Opcode::Link => EntryOut::SIZE,
        Opcode::Create | Opcode::Tmpfile => EntryOut::SIZE + OpenOut::SIZE,
        Opcode::Getattr | Opcode::Setattr => AttrOut::SIZE,
        Opcode::Statx => StatxOut::SIZE + STATX_OUT_SPARE,
        Opcode::Open | Opcode::Opendir => OpenOut::SIZE,
        Opcode::Statfs => Kstatfs::SIZE + KSTATFS_SPARE,
        Opcode::Init => InitOut::SIZE + INIT_OUT_UNUSED,
        Opcode::Lseek => u64::SIZE,
        Opcode::Write | Opcode::CopyFileRange => WriteOut::SIZE,
        Opcode::Forget
        | Opcode::BatchForget
        | Opcode::Interrupt
        | Opcode::NotifyReply
        | Opcode::Destroy
        | Opcode::Readlink
        | Opcode::Unlink
        | Opcode::Rmdir
        | Opcode::Rename
        | Opcode::Rename2
        | Opcode::Read
        | Opcode::Release
        | Opcode::Releasedir
        | Opcode::Flush
        | Opcode::Fsync
        | Opcode::Fsyncdir
        | Opcode::Readdir
        | Opcode::Readdirplus
        | Opcode::Syncfs
        | Opcode::Setxattr
        | Opcode::Getxattr
        | Opcode::Listxattr
        | Opcode::Removexattr
        | Opcode::Fallocate => 0,
    }
}
