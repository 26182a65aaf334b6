//! The host's side of an operation: system calls on descriptors and single names, never on paths.
//!
//! All look-ups go through [`open_beneath`] or [`stat_beneath`]: one component, relative to a directory's
//! descriptor, no symbolic link followed. An `O_PATH` descriptor becomes a usable one only through
//! [`Proc::reopen`], and only for regular files and directories.

use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, ResolveFlags, Statx, StatxFlags, Uid};
use rustix::io::Errno;

use super::inode::Identity;
use super::wire::Attr;

/// What statx says, and what of it identifies the inode.
#[derive(Debug, Clone, Copy)]
pub(super) struct Stat {
    pub(super) identity: Identity,
    pub(super) kind: FileType,
    /// Seconds and nanoseconds of the birth time; zero where the file system has none.
    pub(super) birth: (i64, u32),
    pub(super) raw: Statx,
}

impl Stat {
    fn new(raw: Statx) -> Stat {
        let has_birth = raw.stx_mask & StatxFlags::BTIME.bits() != 0;
        Stat {
            identity: Identity {
                mount: raw.stx_mnt_id,
                device: (raw.stx_dev_major, raw.stx_dev_minor),
                number: raw.stx_ino,
            },
            kind: FileType::from_raw_mode(raw.stx_mode.into()),
            birth: if has_birth {
                (raw.stx_btime.tv_sec, raw.stx_btime.tv_nsec)
            } else {
                (0, 0)
            },
            raw,
        }
    }

    /// Permission bits, set-id and sticky bits included.
    pub(super) fn permissions(&self) -> u32 {
        u32::from(self.raw.stx_mode) & 0o7777
    }

    /// As the guest wants it, without flags.
    pub(super) fn to_attr(self) -> Attr {
        let raw = &self.raw;
        Attr {
            ino: raw.stx_ino,
            size: raw.stx_size,
            blocks: raw.stx_blocks,
            atime: raw.stx_atime.tv_sec.cast_unsigned(),
            mtime: raw.stx_mtime.tv_sec.cast_unsigned(),
            ctime: raw.stx_ctime.tv_sec.cast_unsigned(),
            atimensec: raw.stx_atime.tv_nsec,
            mtimensec: raw.stx_mtime.tv_nsec,
            ctimensec: raw.stx_ctime.tv_nsec,
            mode: raw.stx_mode.into(),
            nlink: raw.stx_nlink,
            uid: raw.stx_uid,
            gid: raw.stx_gid,
            rdev: encode_device(raw.stx_rdev_major, raw.stx_rdev_minor),
            blksize: raw.stx_blksize,
            flags: 0,
        }
    }
}

/// `new_encode_dev` of Linux `include/linux/kdev_t.h`.
fn encode_device(major: u32, minor: u32) -> u32 {
    (minor & 0xff) | (major << 8) | ((minor & !0xff) << 12)
}

fn statx_flags() -> StatxFlags {
    StatxFlags::BASIC_STATS | StatxFlags::BTIME | StatxFlags::MNT_ID
}

/// The inode behind a descriptor.
pub(super) fn stat(descriptor: impl AsFd) -> Result<Stat, Errno> {
    rustix::fs::statx(descriptor, c"", AtFlags::EMPTY_PATH, statx_flags()).map(Stat::new)
}

/// The inode of a name in a directory; a link is not followed, an automount not triggered.
pub(super) fn stat_beneath(directory: impl AsFd, name: &CStr) -> Result<Stat, Errno> {
    let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT;
    rustix::fs::statx(directory, name, flags, statx_flags()).map(Stat::new)
}

/// Whether birth times stay the same for the life of an inode, as far as is known.
pub(super) fn birth_time_is_constant(descriptor: impl AsFd) -> bool {
    /// `OVERLAYFS_SUPER_MAGIC`
    const OVERLAYFS: u64 = 0x794c_7630;
    let kind = rustix::fs::fstatfs(descriptor).map(|found| u64::try_from(found.f_type).unwrap_or(OVERLAYFS));
    kind.is_ok_and(|kind| kind != OVERLAYFS)
}

/// An `O_PATH` descriptor of a name in a directory. Mounts below the root are crossed, links not followed.
pub(super) fn open_beneath(directory: impl AsFd, name: &CStr) -> Result<OwnedFd, Errno> {
    openat2(directory, name, OFlags::PATH, Mode::empty())
}

/// Makes a regular file and opens it; it is an error when the name exists, whatever it is.
pub(super) fn create_beneath(
    directory: impl AsFd,
    name: &CStr,
    flags: OFlags,
    mode: Mode,
) -> Result<OwnedFd, Errno> {
    openat2(directory, name, flags | OFlags::CREATE | OFlags::EXCL, mode)
}

fn openat2(directory: impl AsFd, name: &CStr, flags: OFlags, mode: Mode) -> Result<OwnedFd, Errno> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat2(directory, name, flags, mode, resolve)
}

/// A file without a name in a directory.
pub(super) fn create_unnamed(directory: impl AsFd, flags: OFlags, mode: Mode) -> Result<OwnedFd, Errno> {
    let flags = flags | OFlags::TMPFILE | OFlags::CLOEXEC;
    rustix::fs::openat(directory, c".", flags, mode)
}

/// Gives an inode to an owner; `None` leaves the half as it is. Clears set-id bits of non-directories.
///
/// # Errors
/// EINVAL for the id -1, which would mean "leave it" to the system call.
pub(super) fn chown(descriptor: impl AsFd, uid: Option<u32>, gid: Option<u32>) -> Result<(), Errno> {
    if uid == Some(u32::MAX) || gid == Some(u32::MAX) {
        return Err(Errno::INVAL);
    }
    let (uid, gid) = (uid.map(Uid::from_raw), gid.map(Gid::from_raw));
    rustix::fs::chownat(descriptor, c"", uid, gid, AtFlags::EMPTY_PATH)
}

/// Clears set-user-id, and set-group-id of files that their group may execute, as a write by somebody
/// without `CAP_FSETID` does. `file` is open for real, not `O_PATH`.
pub(super) fn kill_set_id(file: impl AsFd) -> Result<(), Errno> {
    let stat = stat(&file)?;
    let mode = stat.permissions();
    let mut kill = mode & Mode::SUID.bits();
    if mode & Mode::XGRP.bits() != 0 {
        kill |= mode & Mode::SGID.bits();
    }
    if kill != 0 && stat.kind == FileType::RegularFile {
        rustix::fs::fchmod(file, Mode::from_raw_mode(mode & !kill))?;
    }
    Ok(())
}

/// `/proc/self/fd`, held open: the way from an `O_PATH` descriptor to its inode.
#[derive(Debug)]
pub(super) struct Proc(OwnedFd);

impl Proc {
    /// Wraps the descriptor, which must be `/proc/self/fd` as opened by this very process.
    ///
    /// # Errors
    /// When it shows no descriptors of this process.
    pub(super) fn new(proc_self_fd: OwnedFd) -> Result<Proc, Errno> {
        let proc = Proc(proc_self_fd);
        let link = rustix::fs::openat(
            &proc.0,
            name_of(&proc.0),
            OFlags::PATH | OFlags::CLOEXEC,
            Mode::empty(),
        )?;
        let (there, here) = (stat(&link)?, stat(&proc.0)?);
        if there.identity != here.identity {
            return Err(Errno::BADF);
        }
        Ok(proc)
    }

    /// Opens a regular file or a directory that is known to be one.
    ///
    /// `O_NONBLOCK` lets an open under a lease of somebody on the host fail instead of wait.
    ///
    /// # Errors
    /// EACCES for other kinds: what a FIFO or a device does when opened is not the guest's to try.
    pub(super) fn reopen(
        &self,
        descriptor: &OwnedFd,
        kind: FileType,
        flags: OFlags,
    ) -> Result<OwnedFd, Errno> {
        match kind {
            FileType::RegularFile => self.open(descriptor, flags | OFlags::NONBLOCK),
            FileType::Directory => self.open(descriptor, flags | OFlags::DIRECTORY),
            FileType::Symlink
            | FileType::Fifo
            | FileType::Socket
            | FileType::CharacterDevice
            | FileType::BlockDevice
            | FileType::Unknown => Err(Errno::ACCESS),
        }
    }

    /// An `O_PATH` descriptor of what an open descriptor is open on.
    pub(super) fn to_path(&self, descriptor: &OwnedFd) -> Result<OwnedFd, Errno> {
        self.open(descriptor, OFlags::PATH)
    }

    /// Changes permission bits.
    pub(super) fn chmod(&self, descriptor: &OwnedFd, mode: u32) -> Result<(), Errno> {
        rustix::fs::chmodat(
            &self.0,
            name_of(descriptor),
            Mode::from_raw_mode(mode & 0o7777),
            AtFlags::empty(),
        )
    }

    /// Gives an inode, also one without any, a further name.
    pub(super) fn link(&self, descriptor: &OwnedFd, directory: &OwnedFd, name: &CStr) -> Result<(), Errno> {
        rustix::fs::linkat(
            &self.0,
            name_of(descriptor),
            directory,
            name,
            AtFlags::SYMLINK_FOLLOW,
        )
    }

    fn open(&self, descriptor: &OwnedFd, flags: OFlags) -> Result<OwnedFd, Errno> {
        let flags = flags | OFlags::CLOEXEC | OFlags::NOCTTY;
        rustix::fs::openat(&self.0, name_of(descriptor), flags, Mode::empty())
    }
}

/// Name of a descriptor's link in `/proc/self/fd`.
fn name_of(descriptor: &OwnedFd) -> CString {
    CString::new(descriptor.as_raw_fd().to_string()).unwrap_or_default()
}
