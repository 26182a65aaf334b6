//! Open files: OPEN, READ, WRITE, FLUSH, RELEASE, FSYNC, SYNCFS, LSEEK, FALLOCATE, COPY_FILE_RANGE.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::{FallocateFlags, FileType, OFlags, SeekFrom};
use rustix::io::Errno;
use vm_memory::VolatileSlice;

use super::abi::{
    FOPEN_CACHE_DIR, FOPEN_KEEP_CACHE, FOPEN_NOFLUSH, FUSE_FSYNC_FDATASYNC, FUSE_OPEN_KILL_SUIDGID,
    FUSE_WRITE_CACHE, FUSE_WRITE_KILL_SUIDGID, Opcode,
};
use super::handle::Handle;
use super::host;
use super::server::{Request, Server, take};
use super::sys;
use super::wire::{
    CopyFileRangeIn, FallocateIn, FlushIn, FsyncIn, InHeader, LseekIn, OpenIn, OpenOut, ReadIn, ReleaseIn,
    Wire, WriteIn, WriteOut,
};

/// Most bytes that one COPY_FILE_RANGE moves: it holds up all other requests meanwhile. The guest's program
/// gets a short count and asks again.
const COPY_MAX: usize = 32 << 20;

impl Server {
    /// OPEN of a regular file.
    pub(super) fn open(&mut self, request: &Request<'_>, reply: &mut Vec<u8>) -> Result<(), Errno> {
        let input: OpenIn = take(&mut { request.args })?;
        self.handles.has_room()?;
        let node = request.header.nodeid;
        let file = self.open_node(node, input.flags, input.open_flags & FUSE_OPEN_KILL_SUIDGID != 0)?;
        let handle = Handle {
            node,
            file: Arc::new(file),
            is_writable: self.is_writable(input.flags),
            stream: None,
        };
        self.put_opened(handle, reply);
        Ok(())
    }

    /// Opens a node that is a regular file, with those of the guest's flags that concern the host.
    pub(super) fn open_node(&mut self, node: u64, flags: u32, kill_set_id: bool) -> Result<OwnedFd, Errno> {
        let truncate = flags & OFlags::TRUNC.bits() != 0;
        if self.readonly && (truncate || flags & OFlags::ACCMODE.bits() != 0) {
            return Err(Errno::ROFS);
        }
        let kind = self.inodes.get(node)?.kind;
        if kind == FileType::Directory {
            return Err(Errno::ISDIR);
        }
        let descriptor = self.inodes.descriptor(node)?;
        let mut host_flags = self.open_flags(flags);
        if truncate && kill_set_id {
            let file = self.proc.reopen(&descriptor, kind, OFlags::WRONLY)?;
            host::kill_set_id(&file)?;
            rustix::fs::ftruncate(&file, 0)?;
        } else if truncate {
            host_flags |= OFlags::TRUNC;
        }
        self.proc.reopen(&descriptor, kind, host_flags)
    }

    /// The flags that are passed on: how to access, and `O_SYNC` or `O_DSYNC`. `O_APPEND` is looked at with
    /// each write, since the guest may change it; `O_DIRECT` is between the guest and its cache.
    pub(super) fn open_flags(&self, flags: u32) -> OFlags {
        let flags = OFlags::from_bits_retain(flags);
        let access = match flags & OFlags::ACCMODE {
            // To write back a part of a page, the guest reads the rest first.
            OFlags::WRONLY if self.agreed.writeback => OFlags::RDWR,
            access => access,
        };
        access | flags & (OFlags::SYNC | OFlags::DSYNC)
    }

    /// Whether a file opened with these flags can be written.
    pub(super) fn is_writable(&self, flags: u32) -> bool {
        flags & OFlags::ACCMODE.bits() != 0
    }

    /// Takes a handle in and tells the guest its number and what it may keep.
    pub(super) fn put_opened(&mut self, handle: Handle, reply: &mut Vec<u8>) {
        let export = self.inodes.get(handle.node).map_or(0, |inode| inode.export);
        let mut open_flags = 0;
        if self.cache.rule(export).is_private() {
            open_flags |= FOPEN_KEEP_CACHE;
            if handle.stream.is_some() {
                open_flags |= FOPEN_CACHE_DIR;
            } else if !self.agreed.writeback {
                // Every write has been answered; there is nothing that a close could still fail on.
                open_flags |= FOPEN_NOFLUSH;
            }
        }
        self.inodes.opened(handle.node, &handle.file);
        let output = OpenOut {
            fh: self.handles.insert(handle),
            open_flags,
            backing_id: 0,
        };
        self.share_descriptors();
        output.put(reply);
    }

    /// READ, straight into the guest's buffers. Fewer bytes than asked mean the end of the file.
    pub(super) fn read_into(
        &mut self,
        header: &InHeader,
        input: &ReadIn,
        into: &[VolatileSlice<'_>],
    ) -> Result<usize, Errno> {
        self.admit(Opcode::Read, 0)?;
        let handle = self.handles.get(input.fh, header.nodeid)?;
        sys::read_at(handle.file.as_fd(), into, input.offset)
    }

    /// WRITE, straight from the guest's buffers.
    pub(super) fn write_from(
        &mut self,
        header: &InHeader,
        input: &WriteIn,
        from: &[VolatileSlice<'_>],
        room: usize,
    ) -> Result<WriteOut, Errno> {
        self.admit(Opcode::Write, room)?;
        let handle = self.handles.get(input.fh, header.nodeid)?;
        if input.write_flags & FUSE_WRITE_KILL_SUIDGID != 0 {
            host::kill_set_id(&handle.file)?;
        }
        // What comes out of the guest's cache has its place already.
        let is_cached = self.agreed.writeback || input.write_flags & FUSE_WRITE_CACHE != 0;
        let append = input.flags & OFlags::APPEND.bits() != 0 && !is_cached;
        let written = sys::write_at(handle.file.as_fd(), from, input.offset, append)?;
        Ok(WriteOut {
            size: u32::try_from(written).unwrap_or(u32::MAX),
            padding: 0,
        })
    }

    /// RELEASE and RELEASEDIR.
    pub(super) fn release(&mut self, request: &Request<'_>) -> Result<(), Errno> {
        let input: ReleaseIn = take(&mut { request.args })?;
        self.handles.remove(input.fh, request.header.nodeid)?;
        self.share_descriptors();
        Ok(())
    }

    /// FLUSH: one of the guest's descriptors was closed. Network file systems report late errors then.
    pub(super) fn flush(&mut self, request: &Request<'_>) -> Result<(), Errno> {
        let input: FlushIn = take(&mut { request.args })?;
        let handle = self.handles.get(input.fh, request.header.nodeid)?;
        sys::flush(handle.file.as_fd())
    }

    /// FSYNC and FSYNCDIR.
    pub(super) fn fsync(&mut self, request: &Request<'_>) -> Result<(), Errno> {
        let input: FsyncIn = take(&mut { request.args })?;
        let file = &self.handles.get(input.fh, request.header.nodeid)?.file;
        if input.fsync_flags & FUSE_FSYNC_FDATASYNC != 0 {
            rustix::fs::fdatasync(file)
        } else {
            rustix::fs::fsync(file)
        }
    }

    /// SYNCFS of the file system that a directory is on.
    pub(super) fn syncfs(&mut self, request: &Request<'_>) -> Result<(), Errno> {
        let descriptor = self.directory(request.header.nodeid)?;
        let directory = self
            .proc
            .reopen(&descriptor, FileType::Directory, OFlags::RDONLY)?;
        rustix::fs::syncfs(&directory)
    }

    /// LSEEK to data or to a hole; the other kinds the guest knows by itself.
    pub(super) fn lseek(&mut self, request: &Request<'_>, reply: &mut Vec<u8>) -> Result<(), Errno> {
        let input: LseekIn = take(&mut { request.args })?;
        let handle = self.handles.get(input.fh, request.header.nodeid)?;
        if handle.stream.is_some() || i64::try_from(input.offset).is_err() {
            return Err(Errno::INVAL);
        }
        let to = match i32::try_from(input.whence) {
            Ok(libc::SEEK_DATA) => SeekFrom::Data(input.offset),
            Ok(libc::SEEK_HOLE) => SeekFrom::Hole(input.offset),
            _ => return Err(Errno::INVAL),
        };
        rustix::fs::seek(&handle.file, to)?.put(reply);
        Ok(())
    }

    /// FALLOCATE: allocate, punch a hole, or zero a range.
    pub(super) fn fallocate(&mut self, request: &Request<'_>) -> Result<(), Errno> {
        let input: FallocateIn = take(&mut { request.args })?;
        let known = FallocateFlags::KEEP_SIZE | FallocateFlags::PUNCH_HOLE | FallocateFlags::ZERO_RANGE;
        let mode = FallocateFlags::from_bits_retain(input.mode);
        if !known.contains(mode) {
            return Err(Errno::OPNOTSUPP);
        }
        let handle = self.handles.get(input.fh, request.header.nodeid)?;
        kill_set_id_for(&request.header, &handle.file)?;
        rustix::fs::fallocate(&handle.file, mode, input.offset, input.length)
    }

    /// COPY_FILE_RANGE between two open files of one mount; the host may share blocks.
    pub(super) fn copy_file_range(
        &mut self,
        request: &Request<'_>,
        reply: &mut Vec<u8>,
    ) -> Result<(), Errno> {
        let input: CopyFileRangeIn = take(&mut { request.args })?;
        if input.flags != 0 {
            return Err(Errno::INVAL);
        }
        let from = self.handles.get(input.fh_in, request.header.nodeid)?;
        let to = self.handles.get(input.fh_out, input.nodeid_out)?;
        kill_set_id_for(&request.header, &to.file)?;
        let len = usize::try_from(input.len).unwrap_or(COPY_MAX).min(COPY_MAX);
        let (mut off_in, mut off_out) = (input.off_in, input.off_out);
        let copied =
            rustix::fs::copy_file_range(&from.file, Some(&mut off_in), &to.file, Some(&mut off_out), len)?;
        let output = WriteOut {
            size: u32::try_from(copied).unwrap_or(u32::MAX),
            padding: 0,
        };
        output.put(reply);
        Ok(())
    }
}

/// FALLOCATE and COPY_FILE_RANGE do not say whether the caller has `CAP_FSETID`; root is taken to have it.
fn kill_set_id_for(header: &InHeader, file: &OwnedFd) -> Result<(), Errno> {
    if header.uid == 0 {
        Ok(())
    } else {
        host::kill_set_id(file)
    }
}
