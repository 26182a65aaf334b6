//! GETATTR, STATX, SETATTR, STATFS, READLINK.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, Timespec, Timestamps, UTIME_NOW, UTIME_OMIT};
use rustix::io::Errno;

use super::abi::{
    FATTR_ATIME, FATTR_ATIME_NOW, FATTR_FH, FATTR_GID, FATTR_KILL_SUIDGID, FATTR_MODE, FATTR_MTIME,
    FATTR_MTIME_NOW, FATTR_SIZE, FATTR_UID, FUSE_GETATTR_FH,
};
use super::host;
use super::server::{REPLY_MAX, Request, Server, take};
use super::wire::{
    GetattrIn, KSTATFS_SPARE, Kstatfs, STATX_OUT_SPARE, SetattrIn, StatxIn, StatxOut, SxTime, Wire,
};

/// `FUSE_STATFS` of a file system that says 0 still has names of this length (`NAME_MAX`).
const NAME_MAX: u32 = 255;

impl Server {
    /// GETATTR, by node or by open file.
    pub(super) fn getattr(&mut self, request: &Request<'_>, reply: &mut Vec<u8>) -> Result<(), Errno> {
        let input: GetattrIn = take(&mut { request.args })?;
        let descriptor = self.node_or_file(request, input.getattr_flags & FUSE_GETATTR_FH != 0, input.fh)?;
        let stat = host::stat(&descriptor)?;
        self.attr_out(request.header.nodeid, &stat)?.put(reply);
        Ok(())
    }

    /// STATX: GETATTR with the birth time.
    pub(super) fn statx(&mut self, request: &Request<'_>, reply: &mut Vec<u8>) -> Result<(), Errno> {
        let input: StatxIn = take(&mut { request.args })?;
        let descriptor = self.node_or_file(request, input.getattr_flags & FUSE_GETATTR_FH != 0, input.fh)?;
        let stat = host::stat(&descriptor)?;
        let valid = self.attr_out(request.header.nodeid, &stat)?;
        let raw = &stat.raw;
        let time = |seconds, nanoseconds| SxTime {
            tv_sec: seconds,
            tv_nsec: nanoseconds,
            reserved: 0,
        };
        let output = StatxOut {
            attr_valid: valid.attr_valid,
            attr_valid_nsec: valid.attr_valid_nsec,
            mask: raw.stx_mask & 0xfff,
            blksize: raw.stx_blksize,
            nlink: raw.stx_nlink,
            uid: raw.stx_uid,
            gid: raw.stx_gid,
            mode: raw.stx_mode,
            ino: raw.stx_ino,
            size: raw.stx_size,
            blocks: raw.stx_blocks,
            atime: time(raw.stx_atime.tv_sec, raw.stx_atime.tv_nsec),
            btime: time(raw.stx_btime.tv_sec, raw.stx_btime.tv_nsec),
            ctime: time(raw.stx_ctime.tv_sec, raw.stx_ctime.tv_nsec),
            mtime: time(raw.stx_mtime.tv_sec, raw.stx_mtime.tv_nsec),
            rdev_major: raw.stx_rdev_major,
            rdev_minor: raw.stx_rdev_minor,
            ..StatxOut::default()
        };
        output.put(reply);
        reply.resize(reply.len() + STATX_OUT_SPARE, 0);
        Ok(())
    }

    /// SETATTR: owner, mode, size, times, in the order in which one does not undo the other.
    pub(super) fn setattr(&mut self, request: &Request<'_>, reply: &mut Vec<u8>) -> Result<(), Errno> {
        let input: SetattrIn = take(&mut { request.args })?;
        let descriptor = self.node_or_file(request, input.valid & FATTR_FH != 0, input.fh)?;
        let has = |bit: u32| input.valid & bit != 0;
        if has(FATTR_UID | FATTR_GID) {
            // The host's kernel clears set-id bits with it, as FATTR_KILL_SUIDGID asks.
            let uid = has(FATTR_UID).then_some(input.uid);
            let gid = has(FATTR_GID).then_some(input.gid);
            host::chown(&descriptor, uid, gid)?;
        }
        if has(FATTR_MODE) {
            self.proc.chmod(&descriptor, input.mode)?;
        }
        if has(FATTR_SIZE) {
            self.set_size(request, &input, &descriptor)?;
        }
        set_times(&descriptor, &input)?;
        let stat = host::stat(&descriptor)?;
        self.attr_out(request.header.nodeid, &stat)?.put(reply);
        Ok(())
    }

    fn set_size(&self, request: &Request<'_>, input: &SetattrIn, descriptor: &OwnedFd) -> Result<(), Errno> {
        if i64::try_from(input.size).is_err() {
            return Err(Errno::FBIG);
        }
        let opened;
        let handle = self.handles.get(input.fh, request.header.nodeid).ok();
        let file = match handle.filter(|handle| input.valid & FATTR_FH != 0 && handle.is_writable) {
            Some(handle) => handle.file.as_fd(),
            None => {
                let kind = self.inodes.get(request.header.nodeid)?.kind;
                if kind == FileType::Directory {
                    return Err(Errno::ISDIR);
                }
                opened = self.proc.reopen(descriptor, kind, OFlags::WRONLY)?;
                opened.as_fd()
            }
        };
        if input.valid & FATTR_KILL_SUIDGID != 0 {
            host::kill_set_id(file)?;
        }
        rustix::fs::ftruncate(file, input.size)
    }

    /// STATFS of the file system that a node is on.
    pub(super) fn statfs(&mut self, request: &Request<'_>, reply: &mut Vec<u8>) -> Result<(), Errno> {
        let descriptor = self.node(request)?;
        let found = rustix::fs::fstatvfs(&descriptor)?;
        let small = |wide: u64| u32::try_from(wide).unwrap_or(u32::MAX);
        let output = Kstatfs {
            blocks: found.f_blocks,
            bfree: found.f_bfree,
            bavail: found.f_bavail,
            files: found.f_files,
            ffree: found.f_ffree,
            bsize: small(found.f_bsize),
            namelen: match small(found.f_namemax) {
                0 => NAME_MAX,
                longest => longest,
            },
            frsize: small(found.f_frsize),
            padding: 0,
        };
        output.put(reply);
        reply.resize(reply.len() + KSTATFS_SPARE, 0);
        Ok(())
    }

    /// READLINK: what a link says; nobody follows it here.
    pub(super) fn readlink(&mut self, request: &Request<'_>, reply: &mut Vec<u8>) -> Result<(), Errno> {
        if self.inodes.get(request.header.nodeid)?.kind != FileType::Symlink {
            return Err(Errno::INVAL);
        }
        let descriptor = self.node(request)?;
        reply.resize(
            request
                .room
                .min(REPLY_MAX)
                .min(libc::PATH_MAX.unsigned_abs() as usize),
            0,
        );
        let len = rustix::fs::readlinkat_raw(&descriptor, c"", reply.as_mut_slice())?;
        reply.truncate(len);
        Ok(())
    }

    /// The open file, if the request names one, else the node.
    fn node_or_file(&mut self, request: &Request<'_>, by_file: bool, fh: u64) -> Result<Arc<OwnedFd>, Errno> {
        if by_file {
            return Ok(Arc::clone(&self.handles.get(fh, request.header.nodeid)?.file));
        }
        self.node(request)
    }
}

fn set_times(descriptor: &OwnedFd, input: &SetattrIn) -> Result<(), Errno> {
    let time = |set: u32, now: u32, seconds: u64, nanoseconds: u32| {
        let nsec = if input.valid & now != 0 {
            UTIME_NOW
        } else if input.valid & set == 0 {
            UTIME_OMIT
        } else if nanoseconds < 1_000_000_000 {
            nanoseconds.into()
        } else {
            // Larger values are orders to utimensat, not times.
            return Err(Errno::INVAL);
        };
        Ok(Timespec {
            tv_sec: seconds.cast_signed(),
            tv_nsec: nsec,
        })
    };
    let both = FATTR_ATIME | FATTR_ATIME_NOW | FATTR_MTIME | FATTR_MTIME_NOW;
    if input.valid & both == 0 {
        return Ok(());
    }
    let times = Timestamps {
        last_access: time(FATTR_ATIME, FATTR_ATIME_NOW, input.atime, input.atimensec)?,
        last_modification: time(FATTR_MTIME, FATTR_MTIME_NOW, input.mtime, input.mtimensec)?,
    };
    rustix::fs::utimensat(descriptor, c"", &times, AtFlags::EMPTY_PATH)
}

/// Mode bits of a request as the host's calls take them.
pub(super) fn permissions(mode: u32) -> Mode {
    Mode::from_raw_mode(mode & 0o7777)
}
