//! Extended attributes. `user.*` and POSIX ACLs pass; `security.capability` by rule. Other `security.*`,
//! `trusted.*` and `system.*` mean something to the host's kernel, and are neither shown nor set.

use std::ffi::CStr;
use std::os::fd::OwnedFd;

use rustix::fs::{FileType, Mode, OFlags, XattrFlags};
use rustix::io::Errno;

use super::abi::FUSE_SETXATTR_ACL_KILL_SGID;
use super::host;
use super::names::take_string;
use super::server::{Request, Server, take};
use super::wire::{GetxattrSize, SetxattrExt, SetxattrIn, Wire};

/// Largest value, and largest list, of attributes (`XATTR_SIZE_MAX`, `XATTR_LIST_MAX`).
const XATTR_MAX: usize = 64 << 10;

const ACCESS_ACL: &CStr = c"system.posix_acl_access";
const DEFAULT_ACL: &CStr = c"system.posix_acl_default";

impl Server {
    /// GETXATTR: the value, or its length when the guest has room for 0 bytes.
    pub(super) fn getxattr(&mut self, request: &Request<'_>, reply: &mut Vec<u8>) -> Result<(), Errno> {
        let mut args = request.args;
        let input: GetxattrSize = take(&mut args)?;
        let name = take_string(&mut args)?;
        if !self.passes(name) {
            return Err(Errno::NODATA);
        }
        let Some(file) = self.open_for_xattr(request)? else {
            return Err(Errno::NODATA);
        };
        if input.size == 0 {
            let len = rustix::fs::fgetxattr_query(&file, name)?;
            return put_sized(&input, request, len, &[], reply);
        }
        let mut value = vec![0; XATTR_MAX.min(room_for(&input, request)?)];
        let len = rustix::fs::fgetxattr(&file, name, value.as_mut_slice())?;
        value.truncate(len);
        put_sized(&input, request, len, &value, reply)
    }

    /// LISTXATTR: the names that GETXATTR would answer for.
    pub(super) fn listxattr(&mut self, request: &Request<'_>, reply: &mut Vec<u8>) -> Result<(), Errno> {
        let input: GetxattrSize = take(&mut { request.args })?;
        let mut names = Vec::new();
        if let Some(file) = self.open_for_xattr(request)? {
            let mut all = vec![0; XATTR_MAX];
            let len = rustix::fs::flistxattr(&file, all.as_mut_slice())?;
            all.truncate(len);
            for name in all.split_inclusive(|byte| *byte == 0) {
                if CStr::from_bytes_with_nul(name).is_ok_and(|name| self.passes(name)) {
                    names.extend_from_slice(name);
                }
            }
        }
        if input.size != 0 && names.len() > room_for(&input, request)? {
            return Err(Errno::RANGE);
        }
        put_sized(&input, request, names.len(), &names, reply)
    }

    /// SETXATTR.
    pub(super) fn setxattr(&mut self, request: &Request<'_>) -> Result<(), Errno> {
        let mut args = request.args;
        let input: SetxattrIn = take(&mut args)?;
        let mut kill_sgid = false;
        if self.agreed.setxattr_ext {
            let more: SetxattrExt = take(&mut args)?;
            kill_sgid = more.setxattr_flags & FUSE_SETXATTR_ACL_KILL_SGID != 0;
        }
        let name = take_string(&mut args)?;
        let size = usize::try_from(input.size).map_err(|_| Errno::INVAL)?;
        if size > XATTR_MAX {
            return Err(Errno::TOOBIG);
        }
        let value = args.get(..size).ok_or(Errno::INVAL)?;
        let flags = XattrFlags::from_bits(input.flags).ok_or(Errno::INVAL)?;
        let file = self.open_to_change(request, name)?;
        rustix::fs::fsetxattr(&file, name, value, flags)?;
        if kill_sgid && name == ACCESS_ACL {
            let mode = host::stat(&file)?.permissions();
            rustix::fs::fchmod(&file, Mode::from_raw_mode(mode & !Mode::SGID.bits()))?;
        }
        Ok(())
    }

    /// REMOVEXATTR.
    pub(super) fn removexattr(&mut self, request: &Request<'_>) -> Result<(), Errno> {
        let name = take_string(&mut { request.args })?;
        let file = self.open_to_change(request, name)?;
        rustix::fs::fremovexattr(&file, name)
    }

    /// Whether new inodes of a directory get their ACL and mode from it. On a private export, what was
    /// found once is remembered until the guest changes it.
    pub(super) fn has_default_acl(&mut self, node: u64, directory: &OwnedFd) -> Result<bool, Errno> {
        let inode = self.inodes.get(node)?;
        let may_remember = self.cache.rule(inode.export).is_private();
        if let Some(known) = inode.default_acl.filter(|_| may_remember) {
            return Ok(known);
        }
        let file = self.proc.reopen(directory, FileType::Directory, OFlags::RDONLY)?;
        let has = match rustix::fs::fgetxattr_query(&file, DEFAULT_ACL) {
            Ok(len) => len > 0,
            Err(Errno::NODATA | Errno::OPNOTSUPP) => false,
            Err(error) => return Err(error),
        };
        self.inodes.remember_default_acl(node, Some(has));
        Ok(has)
    }

    fn open_to_change(&mut self, request: &Request<'_>, name: &CStr) -> Result<OwnedFd, Errno> {
        if !self.passes(name) {
            return Err(Errno::OPNOTSUPP);
        }
        if name == DEFAULT_ACL {
            self.inodes.remember_default_acl(request.header.nodeid, None);
        }
        // As Linux says for `user.*` on links and special files.
        self.open_for_xattr(request)?.ok_or(Errno::PERM)
    }

    /// The system calls want a descriptor that is open for real. Links, FIFOs, sockets and devices are
    /// never opened, so they have no attributes here.
    fn open_for_xattr(&mut self, request: &Request<'_>) -> Result<Option<OwnedFd>, Errno> {
        let kind = self.inodes.get(request.header.nodeid)?.kind;
        if !matches!(kind, FileType::RegularFile | FileType::Directory) {
            return Ok(None);
        }
        let descriptor = self.node(request)?;
        self.proc.reopen(&descriptor, kind, OFlags::RDONLY).map(Some)
    }

    fn passes(&self, name: &CStr) -> bool {
        name.to_bytes().starts_with(b"user.")
            || name == ACCESS_ACL
            || name == DEFAULT_ACL
            || (self.file_capabilities && name == c"security.capability")
    }
}

/// Bytes that the guest takes, of a request that asks for some.
fn room_for(input: &GetxattrSize, request: &Request<'_>) -> Result<usize, Errno> {
    let size = usize::try_from(input.size).unwrap_or(usize::MAX);
    match size.min(request.room) {
        0 => Err(Errno::IO),
        room => Ok(room),
    }
}

fn put_sized(
    input: &GetxattrSize,
    request: &Request<'_>,
    len: usize,
    content: &[u8],
    reply: &mut Vec<u8>,
) -> Result<(), Errno> {
    if input.size != 0 {
        reply.extend_from_slice(content);
        return Ok(());
    }
    if request.room < GetxattrSize::SIZE {
        return Err(Errno::IO);
    }
    let size = GetxattrSize {
        size: u32::try_from(len).unwrap_or(u32::MAX),
        padding: 0,
    };
    size.put(reply);
    Ok(())
}
