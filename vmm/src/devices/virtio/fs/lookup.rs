//! LOOKUP, FORGET, BATCH_FORGET: how the guest comes to know inodes and lets go of them.

use std::ffi::CStr;
use std::os::fd::OwnedFd;

use rustix::fs::FileType;
use rustix::io::Errno;

use super::abi::{FUSE_ATTR_SUBMOUNT, FUSE_ROOT_ID};
use super::host::{self, Stat};
use super::inode::{Found, Identity};
use super::names::take_name;
use super::server::{Request, Server, take};
use super::wire::{BatchForgetIn, EntryOut, ForgetOne, Wire};

impl Server {
    /// LOOKUP of one name in a directory.
    pub(super) fn lookup(&mut self, request: &Request<'_>, reply: &mut Vec<u8>) -> Result<(), Errno> {
        let name = take_name(&mut { request.args })?;
        let parent = request.header.nodeid;
        match self.find(parent, name) {
            Ok(entry) => entry.put(reply),
            Err(Errno::NOENT) => {
                // On a private export the guest may remember for a while that there is nothing.
                let timeout = self.cache.rule(self.export_beneath(parent, name)?).timeout();
                if timeout.is_zero() {
                    return Err(Errno::NOENT);
                }
                let nothing = EntryOut {
                    entry_valid: timeout.as_secs(),
                    entry_valid_nsec: timeout.subsec_nanos(),
                    ..EntryOut::default()
                };
                nothing.put(reply);
            }
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// FORGET: the guest gives references back.
    pub(super) fn forget(&mut self, request: &Request<'_>) -> Result<(), Errno> {
        let count = take(&mut { request.args })?;
        self.inodes.forget(request.header.nodeid, count);
        Ok(())
    }

    /// BATCH_FORGET: the same for many. A count that lies is cut to what was sent.
    pub(super) fn batch_forget(&mut self, request: &Request<'_>) -> Result<(), Errno> {
        let mut args = request.args;
        let input: BatchForgetIn = take(&mut args)?;
        for _ in 0..input.count {
            let one: ForgetOne = take(&mut args)?;
            self.inodes.forget(one.nodeid, one.nlookup);
        }
        Ok(())
    }

    /// Looks a name up and counts a reference to what is there.
    pub(super) fn find(&mut self, parent: u64, name: &CStr) -> Result<EntryOut, Errno> {
        let directory = self.directory(parent)?;
        // Asked again for a name that is known: no descriptor is needed to see that it is still the same.
        if let Some(known) = self.inodes.at(parent, name) {
            let identity = self.inodes.get(known)?.identity;
            let stat = host::stat_beneath(&directory, name)?;
            if stat.identity == identity {
                return self.enter(parent, name, &stat, None);
            }
        }
        let descriptor = host::open_beneath(&directory, name)?;
        let stat = host::stat(&descriptor)?;
        self.enter(parent, name, &stat, Some(descriptor))
    }

    /// Counts a reference to the inode that was found under a name, and describes it to the guest.
    pub(super) fn enter(
        &mut self,
        parent: u64,
        name: &CStr,
        stat: &Stat,
        descriptor: Option<OwnedFd>,
    ) -> Result<EntryOut, Errno> {
        let directory = self.inodes.get(parent)?.identity;
        let found = Found {
            stat,
            descriptor,
            place: Some((parent, name)),
            export: self.export_beneath(parent, name)?,
            is_submount: is_submount(directory, stat),
        };
        let node = self.inodes.refer(found)?;
        self.entry_out(node, stat)
    }

    /// An inode that the guest has a (new) reference to, as it wants to be told.
    pub(super) fn entry_out(&self, node: u64, stat: &Stat) -> Result<EntryOut, Errno> {
        let inode = self.inodes.get(node)?;
        let timeout = self.cache.rule(inode.export).timeout();
        let mut attr = stat.to_attr();
        if inode.is_submount && self.agreed.submounts {
            attr.flags = FUSE_ATTR_SUBMOUNT;
        }
        Ok(EntryOut {
            nodeid: node,
            generation: 0,
            entry_valid: timeout.as_secs(),
            attr_valid: timeout.as_secs(),
            entry_valid_nsec: timeout.subsec_nanos(),
            attr_valid_nsec: timeout.subsec_nanos(),
            attr,
        })
    }

    /// A descriptor of a node, which must be a directory.
    ///
    /// # Errors
    /// ENOTDIR when it is not.
    pub(super) fn directory(&mut self, node: u64) -> Result<std::sync::Arc<OwnedFd>, Errno> {
        if self.inodes.get(node)?.kind != FileType::Directory {
            return Err(Errno::NOTDIR);
        }
        self.inodes.descriptor(node)
    }

    /// The cache rule for a name in a directory: its own at the top level, else the directory's.
    pub(super) fn export_beneath(&self, parent: u64, name: &CStr) -> Result<usize, Errno> {
        if parent == FUSE_ROOT_ID {
            return Ok(self.cache.index_of(name.to_bytes()));
        }
        Ok(self.inodes.get(parent)?.export)
    }
}

/// A directory on another mount or device than the one it is in. The guest makes a mount of it, so that
/// its files get a device number of their own and nothing is renamed across. Files that are bind mounts
/// cannot be told so.
fn is_submount(directory: Identity, stat: &Stat) -> bool {
    let there = stat.identity;
    stat.kind == FileType::Directory && (directory.mount, directory.device) != (there.mount, there.device)
}
