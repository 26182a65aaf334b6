//! INIT: what server and guest agree on.
//!
//! Not agreed on, and why: `FUSE_POSIX_LOCKS` and `FUSE_FLOCK_LOCKS` (the guest's kernel keeps locks
//! itself: fast, and a waiting lock can never hold up the server; locks are not seen outside the guest),
//! `FUSE_EXPORT_SUPPORT` (it would look up `.` and `..`), `FUSE_CREATE_SUPP_GROUP` (ownership is set, not
//! inherited), `FUSE_PASSTHROUGH`, `FUSE_HAS_INODE_DAX` (no shared memory window).

use rustix::io::Errno;

use super::abi::{
    FUSE_ASYNC_DIO, FUSE_ASYNC_READ, FUSE_ATOMIC_O_TRUNC, FUSE_AUTO_INVAL_DATA, FUSE_BIG_WRITES,
    FUSE_CACHE_SYMLINKS, FUSE_DO_READDIRPLUS, FUSE_DONT_MASK, FUSE_HANDLE_KILLPRIV_V2, FUSE_INIT_EXT,
    FUSE_KERNEL_MINOR_VERSION, FUSE_KERNEL_VERSION, FUSE_MAX_PAGES, FUSE_PARALLEL_DIROPS, FUSE_POSIX_ACL,
    FUSE_READDIRPLUS_AUTO, FUSE_SETXATTR_EXT, FUSE_SUBMOUNTS, FUSE_WRITEBACK_CACHE, OLDEST_MINOR_VERSION,
};
use super::server::{Agreed, IO_MAX, Request, Server, take};
use super::wire::{INIT_OUT_UNUSED, InitIn, InitOut, Wire};

/// Pages of 4 KiB in one request.
const MAX_PAGES: u16 = 256;
const _: () = assert!(MAX_PAGES as usize * 4096 == IO_MAX);

/// Requests that the guest keeps going in the background (readahead, writeback); its default of 12 leaves
/// the server idle in between.
const MAX_BACKGROUND: u16 = 64;

/// What is always wanted, if the guest has it.
const WANTED: u64 = FUSE_ASYNC_READ
    | FUSE_ATOMIC_O_TRUNC
    | FUSE_BIG_WRITES
    | FUSE_DONT_MASK
    | FUSE_AUTO_INVAL_DATA
    | FUSE_DO_READDIRPLUS
    | FUSE_READDIRPLUS_AUTO
    | FUSE_ASYNC_DIO
    | FUSE_PARALLEL_DIROPS
    | FUSE_MAX_PAGES
    | FUSE_CACHE_SYMLINKS
    | FUSE_SUBMOUNTS
    | FUSE_HANDLE_KILLPRIV_V2
    | FUSE_SETXATTR_EXT
    | FUSE_INIT_EXT;

impl Server {
    /// INIT. A second one starts a new session.
    pub(super) fn init(&mut self, request: &Request<'_>, reply: &mut Vec<u8>) -> Result<(), Errno> {
        let mut args = request.args;
        let input: InitIn = take(&mut args)?;
        if input.major < FUSE_KERNEL_VERSION
            || (input.major == FUSE_KERNEL_VERSION && input.minor < OLDEST_MINOR_VERSION)
        {
            return Err(Errno::PROTO);
        }
        self.reset()?;
        if input.major > FUSE_KERNEL_VERSION {
            // The guest tries again with our version.
            let versions = InitOut {
                major: FUSE_KERNEL_VERSION,
                minor: FUSE_KERNEL_MINOR_VERSION,
                ..InitOut::default()
            };
            return put_init(&versions, reply);
        }
        let flags = self.wanted() & u64::from(input.flags);
        self.agreed = Agreed {
            done: true,
            submounts: flags & FUSE_SUBMOUNTS != 0,
            writeback: flags & FUSE_WRITEBACK_CACHE != 0,
            posix_acl: flags & FUSE_POSIX_ACL != 0,
            setxattr_ext: flags & FUSE_SETXATTR_EXT != 0,
        };
        let output = InitOut {
            major: FUSE_KERNEL_VERSION,
            minor: input.minor.min(FUSE_KERNEL_MINOR_VERSION),
            max_readahead: input.max_readahead,
            flags: u32::try_from(flags & u64::from(u32::MAX)).unwrap_or(0),
            max_background: MAX_BACKGROUND,
            congestion_threshold: MAX_BACKGROUND / 4 * 3,
            max_write: u32::from(MAX_PAGES) * 4096,
            time_gran: 1,
            max_pages: MAX_PAGES,
            ..InitOut::default()
        };
        put_init(&output, reply)
    }

    fn wanted(&self) -> u64 {
        let mut wanted = WANTED;
        if self.offer_acl {
            wanted |= FUSE_POSIX_ACL;
        }
        if self.offer_writeback && !self.readonly {
            wanted |= FUSE_WRITEBACK_CACHE;
        }
        wanted
    }
}

fn put_init(output: &InitOut, reply: &mut Vec<u8>) -> Result<(), Errno> {
    output.put(reply);
    reply.resize(reply.len() + INIT_OUT_UNUSED, 0);
    Ok(())
}
