//! CREATE, TMPFILE, MKDIR, MKNOD, SYMLINK: new inodes, and whose they are.
//!
//! The server makes an inode as itself and then gives it to the caller; it never takes the caller's
//! identity. Two things must not happen in between:
//!
//! - *Others must not get rights.* Without a default ACL the inode is made with the owner's rights only;
//!   the rest, set-id bits last, comes when the owner is right. With a default ACL the host's
//!   kernel has to see the wanted mode (it cuts the ACL with it); then only set-id bits wait.
//! - *Something else must not be given away.* A regular file comes with its descriptor. A directory, link,
//!   FIFO or socket is opened by name after it was made, and somebody on the host may have put another
//!   file there: only what is ours, of the right kind, and has no second name is given away.

use std::ffi::CStr;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::fs::{AtFlags, FileType, Mode, OFlags};
use rustix::io::Errno;
use rustix::process::geteuid;

use super::abi::FUSE_OPEN_KILL_SUIDGID;
use super::attr::permissions;
use super::handle::Handle;
use super::host::{self, Stat};
use super::inode::Found;
use super::names::{take_name, take_string};
use super::server::{Request, Server, take};
use super::wire::{CreateIn, EntryOut, MkdirIn, MknodIn, Wire};

/// Who a new inode is made for, and how.
struct Making {
    uid: u32,
    gid: u32,
    /// What to make it with.
    first: Mode,
    /// What it is to end with; `None` when the host's kernel has found out by an ACL.
    last: Option<u32>,
    /// Set-id bits to add in that case.
    set_id: u32,
}

impl Server {
    /// CREATE: makes and opens a regular file, or opens the one that is there.
    pub(super) fn create(&mut self, request: &Request<'_>, reply: &mut Vec<u8>) -> Result<(), Errno> {
        let mut args = request.args;
        let input: CreateIn = take(&mut args)?;
        let name = take_name(&mut args)?;
        self.handles.has_room()?;
        let directory = self.directory(request.header.nodeid)?;
        let making = self.making(request, &directory, input.mode, input.umask, false)?;
        let flags = self.open_flags(input.flags);
        let (entry, file) = match host::create_beneath(&directory, name, flags, making.first) {
            Ok(file) => {
                let stat = match give(&making, &file) {
                    Ok(stat) => stat,
                    Err(error) => {
                        let _ = rustix::fs::unlinkat(&directory, name, AtFlags::empty());
                        return Err(error);
                    }
                };
                let descriptor = self.proc.to_path(&file)?;
                (
                    self.enter(request.header.nodeid, name, &stat, Some(descriptor))?,
                    file,
                )
            }
            Err(Errno::EXIST) if input.flags & OFlags::EXCL.bits() == 0 => {
                self.open_existing(request.header.nodeid, name, &input)?
            }
            Err(error) => return Err(error),
        };
        self.put_created(entry, file, input.flags, reply);
        Ok(())
    }

    /// TMPFILE: a regular file without a name, until LINK gives it one.
    pub(super) fn tmpfile(&mut self, request: &Request<'_>, reply: &mut Vec<u8>) -> Result<(), Errno> {
        let input: CreateIn = take(&mut { request.args })?;
        self.handles.has_room()?;
        let parent = request.header.nodeid;
        let directory = self.directory(parent)?;
        let making = self.making(request, &directory, input.mode, input.umask, false)?;
        // O_EXCL means here that the file shall never get a name.
        let exclusive = OFlags::from_bits_retain(input.flags) & OFlags::EXCL;
        let flags = self.open_flags(input.flags) | exclusive;
        let file = host::create_unnamed(&directory, flags, making.first)?;
        let stat = give(&making, &file)?;
        let found = Found {
            stat: &stat,
            descriptor: Some(self.proc.to_path(&file)?),
            place: None,
            export: self.inodes.get(parent)?.export,
            is_submount: false,
        };
        let node = self.inodes.refer(found)?;
        let entry = self.entry_out(node, &stat)?;
        self.put_created(entry, file, input.flags, reply);
        Ok(())
    }

    /// MKDIR.
    pub(super) fn mkdir(&mut self, request: &Request<'_>, reply: &mut Vec<u8>) -> Result<(), Errno> {
        let mut args = request.args;
        let input: MkdirIn = take(&mut args)?;
        let name = take_name(&mut args)?;
        let directory = self.directory(request.header.nodeid)?;
        let making = self.making(request, &directory, input.mode, input.umask, true)?;
        rustix::fs::mkdirat(&directory, name, making.first)?;
        self.give_by_name(request, &directory, name, FileType::Directory, &making, reply)
    }

    /// MKNOD of regular files, FIFOs and sockets. Devices would be the host's: EPERM.
    pub(super) fn mknod(&mut self, request: &Request<'_>, reply: &mut Vec<u8>) -> Result<(), Errno> {
        let mut args = request.args;
        let input: MknodIn = take(&mut args)?;
        let name = take_name(&mut args)?;
        let kind = match FileType::from_raw_mode(input.mode) {
            kind @ (FileType::RegularFile | FileType::Fifo | FileType::Socket) => kind,
            FileType::CharacterDevice | FileType::BlockDevice => return Err(Errno::PERM),
            FileType::Directory | FileType::Symlink | FileType::Unknown => return Err(Errno::INVAL),
        };
        let directory = self.directory(request.header.nodeid)?;
        let making = self.making(request, &directory, input.mode, input.umask, false)?;
        rustix::fs::mknodat(&directory, name, kind, making.first, 0)?;
        self.give_by_name(request, &directory, name, kind, &making, reply)
    }

    /// SYMLINK: any target will do, for the guest alone follows it.
    pub(super) fn symlink(&mut self, request: &Request<'_>, reply: &mut Vec<u8>) -> Result<(), Errno> {
        let mut args = request.args;
        let name = take_name(&mut args)?;
        let target = take_string(&mut args)?;
        let directory = self.directory(request.header.nodeid)?;
        let mut making = self.making(request, &directory, 0o777, 0, false)?;
        making.last = None;
        making.set_id = 0;
        rustix::fs::symlinkat(target, &directory, name)?;
        self.give_by_name(request, &directory, name, FileType::Symlink, &making, reply)
    }

    /// What the mode, the umask, the directory's set-group-id bit and its default ACL make of a new inode.
    fn making(
        &mut self,
        request: &Request<'_>,
        directory: &OwnedFd,
        mode: u32,
        umask: u32,
        is_directory: bool,
    ) -> Result<Making, Errno> {
        let above = host::stat(directory)?;
        let inherits_group = above.permissions() & Mode::SGID.bits() != 0;
        let has_default_acl =
            self.agreed.posix_acl && self.has_default_acl(request.header.nodeid, directory)?;
        let mut wanted = mode & 0o7777;
        if !has_default_acl {
            wanted &= !(umask & 0o777);
        }
        if is_directory {
            wanted &= 0o1777;
        }
        let set_id = if is_directory { 0 } else { wanted & 0o6000 };
        let inherited_bit = if is_directory && inherits_group {
            Mode::SGID.bits()
        } else {
            0
        };
        Ok(Making {
            uid: request.header.uid,
            gid: if inherits_group {
                above.raw.stx_gid
            } else {
                request.header.gid
            },
            first: permissions(if has_default_acl {
                wanted & !0o6000
            } else {
                wanted & 0o700
            }),
            last: (!has_default_acl).then_some(wanted | inherited_bit),
            set_id,
        })
    }

    /// Opens what was just made by name, makes sure of it, gives it to its owner and tells the guest.
    fn give_by_name(
        &mut self,
        request: &Request<'_>,
        directory: &OwnedFd,
        name: &CStr,
        kind: FileType,
        making: &Making,
        reply: &mut Vec<u8>,
    ) -> Result<(), Errno> {
        let descriptor = host::open_beneath(directory, name)?;
        let made = host::stat(&descriptor)?;
        let is_alone = kind == FileType::Directory || made.raw.stx_nlink == 1;
        let is_ours = [geteuid().as_raw(), making.uid].contains(&made.raw.stx_uid);
        if made.kind != kind || !is_ours || !is_alone {
            return Err(Errno::STALE);
        }
        let given = own(making, &descriptor).and_then(|()| match last_mode(making, &descriptor)? {
            Some(mode) => self.proc.chmod(&descriptor, mode),
            None => Ok(()),
        });
        if let Err(error) = given {
            let flags = if kind == FileType::Directory {
                AtFlags::REMOVEDIR
            } else {
                AtFlags::empty()
            };
            let _ = rustix::fs::unlinkat(directory, name, flags);
            return Err(error);
        }
        let stat = host::stat(&descriptor)?;
        self.enter(request.header.nodeid, name, &stat, Some(descriptor))?
            .put(reply);
        Ok(())
    }

    /// CREATE without `O_EXCL` where a file is already: an OPEN.
    fn open_existing(
        &mut self,
        parent: u64,
        name: &CStr,
        input: &CreateIn,
    ) -> Result<(EntryOut, OwnedFd), Errno> {
        let entry = self.find(parent, name)?;
        let kill = input.open_flags & FUSE_OPEN_KILL_SUIDGID != 0;
        match self.open_node(entry.nodeid, input.flags, kill) {
            Ok(file) => Ok((entry, file)),
            Err(error) => {
                self.inodes.forget(entry.nodeid, 1);
                Err(error)
            }
        }
    }

    fn put_created(&mut self, entry: EntryOut, file: OwnedFd, flags: u32, reply: &mut Vec<u8>) {
        let handle = Handle {
            node: entry.nodeid,
            file: Arc::new(file),
            is_writable: self.is_writable(flags),
            stream: None,
        };
        entry.put(reply);
        self.put_opened(handle, reply);
    }
}

/// Gives a regular file, just made and open, to its owner.
fn give(making: &Making, file: &OwnedFd) -> Result<Stat, Errno> {
    own(making, file)?;
    if let Some(mode) = last_mode(making, file)? {
        rustix::fs::fchmod(file, permissions(mode))?;
    }
    host::stat(file)
}

/// Changes the owner. File systems without owners refuse that; then it must be the right one already.
fn own(making: &Making, descriptor: &OwnedFd) -> Result<(), Errno> {
    match host::chown(descriptor, Some(making.uid), Some(making.gid)) {
        Err(Errno::PERM) => {
            let raw = host::stat(descriptor)?.raw;
            let is_right = (raw.stx_uid, raw.stx_gid) == (making.uid, making.gid);
            if is_right { Ok(()) } else { Err(Errno::PERM) }
        }
        other => other,
    }
}

/// The mode that is still to be set.
fn last_mode(making: &Making, descriptor: &OwnedFd) -> Result<Option<u32>, Errno> {
    match making.last {
        Some(mode) => Ok(Some(mode)),
        None if making.set_id != 0 => Ok(Some(host::stat(descriptor)?.permissions() | making.set_id)),
        None => Ok(None),
    }
}
