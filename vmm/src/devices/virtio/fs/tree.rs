//! UNLINK, RMDIR, RENAME, RENAME2, LINK: names that change.

use std::ffi::CStr;

use rustix::fs::{AtFlags, RenameFlags};
use rustix::io::Errno;

use super::host;
use super::names::take_name;
use super::server::{Request, Server, take};
use super::wire::{Rename2In, Wire};

impl Server {
    /// UNLINK.
    pub(super) fn unlink(&mut self, request: &Request<'_>) -> Result<(), Errno> {
        self.remove_name(request, AtFlags::empty())
    }

    /// RMDIR.
    pub(super) fn rmdir(&mut self, request: &Request<'_>) -> Result<(), Errno> {
        self.remove_name(request, AtFlags::REMOVEDIR)
    }

    /// RENAME.
    pub(super) fn rename(&mut self, request: &Request<'_>) -> Result<(), Errno> {
        let mut args = request.args;
        let new_directory = take(&mut args)?;
        self.rename_with(request, args, new_directory, RenameFlags::empty())
    }

    /// RENAME2: replacing nothing, or exchanging two. Whiteouts are device nodes, and refused like those.
    pub(super) fn rename2(&mut self, request: &Request<'_>) -> Result<(), Errno> {
        let mut args = request.args;
        let input: Rename2In = take(&mut args)?;
        let flags = RenameFlags::from_bits(input.flags).ok_or(Errno::INVAL)?;
        if !(RenameFlags::NOREPLACE | RenameFlags::EXCHANGE).contains(flags) {
            return Err(Errno::INVAL);
        }
        self.rename_with(request, args, input.newdir, flags)
    }

    /// LINK: one more name for an inode, also for one that has none.
    pub(super) fn link(&mut self, request: &Request<'_>, reply: &mut Vec<u8>) -> Result<(), Errno> {
        let mut args = request.args;
        let node: u64 = take(&mut args)?;
        let name = take_name(&mut args)?;
        let parent = request.header.nodeid;
        let inode = self.inodes.descriptor(node)?;
        let directory = self.directory(parent)?;
        self.proc.link(&inode, &directory, name)?;
        self.inodes.linked(node, parent, name);
        let stat = host::stat(&inode)?;
        self.enter(parent, name, &stat, None)?.put(reply);
        Ok(())
    }

    fn remove_name(&mut self, request: &Request<'_>, flags: AtFlags) -> Result<(), Errno> {
        let name = take_name(&mut { request.args })?;
        let parent = request.header.nodeid;
        let directory = self.directory(parent)?;
        self.inodes.keep_in_reach(parent, name);
        rustix::fs::unlinkat(&directory, name, flags)?;
        self.inodes.removed(parent, name);
        Ok(())
    }

    fn rename_with(
        &mut self,
        request: &Request<'_>,
        mut args: &[u8],
        new_parent: u64,
        flags: RenameFlags,
    ) -> Result<(), Errno> {
        let from: (u64, &CStr) = (request.header.nodeid, take_name(&mut args)?);
        let to: (u64, &CStr) = (new_parent, take_name(&mut args)?);
        let old_directory = self.directory(from.0)?;
        let new_directory = self.directory(to.0)?;
        if !flags.contains(RenameFlags::EXCHANGE) {
            self.inodes.keep_in_reach(to.0, to.1);
        }
        rustix::fs::renameat_with(&old_directory, from.1, &new_directory, to.1, flags)?;
        if flags.contains(RenameFlags::EXCHANGE) {
            self.inodes.exchanged(from, to);
        } else if from != to {
            self.inodes.renamed(from, to);
        }
        Ok(())
    }
}
