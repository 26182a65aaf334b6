//! What a file server is made from.

use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::io::Errno;

/// How a virtio-fs device and its server are made.
#[derive(Debug)]
pub struct FsConfig {
    /// Name by which the guest mounts it, 1 to 36 bytes.
    pub tag: String,
    /// The directory that is exported, with all that is mounted below it.
    pub root: OwnedFd,
    /// `/proc/self/fd`, opened by the process that runs the device (its own descriptors are looked up in
    /// it), before the walls go up. A detached mount does.
    pub proc_self_fd: OwnedFd,
    /// What the guest may keep, and for how long.
    pub cache: CachePolicy,
    /// Nothing is changed through this device (EROFS).
    pub readonly: bool,
    /// POSIX ACLs count in the guest as they do on the host. Costs one request more for each inode on
    /// which they matter. Mode bits alone are not a safe substitute: with an ACL the group bits are a mask.
    pub posix_acl: bool,
    /// `security.capability` may be read and written: programs with file capabilities work. Writing needs
    /// `CAP_SETFCAP`.
    pub file_capabilities: bool,
    /// The guest may keep written data and sizes and hand them in later. Faster, and right only when
    /// nobody else on the host writes below the root while the guest runs: no shared volumes.
    pub writeback: bool,
    /// Most descriptors that the server holds, beside a handful; by default 3/4 of the soft
    /// `RLIMIT_NOFILE`, and no more than 16,384 for idle inodes.
    pub max_descriptors: Option<usize>,
}

impl FsConfig {
    /// A writable export with ACLs, without file capabilities and writeback, cached for no time at all.
    pub fn new(tag: impl Into<String>, root: OwnedFd, proc_self_fd: OwnedFd) -> FsConfig {
        FsConfig {
            tag: tag.into(),
            root,
            proc_self_fd,
            cache: CachePolicy::default(),
            readonly: false,
            posix_acl: true,
            file_capabilities: false,
            writeback: false,
            max_descriptors: None,
        }
    }
}

/// What the guest may keep of an export.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cache {
    /// Others on the host change it too: names and attributes are asked for each time, and data are
    /// dropped at each open and whenever the file has changed.
    Shared,
    /// The guest has it for itself but for rare visitors: names (missing ones too), attributes and links
    /// hold this long, and data and directories until they are seen to have changed.
    Private(Duration),
}

/// Cache rules, one for each top-level name of the tree.
#[derive(Debug, Clone)]
pub struct CachePolicy {
    /// Rule of the root directory itself and of names without a rule.
    pub default: Cache,
    /// Rules by top-level name: `("rootfs", …)`.
    pub exports: Vec<(String, Cache)>,
}

impl Default for CachePolicy {
    /// All is shared.
    fn default() -> CachePolicy {
        CachePolicy {
            default: Cache::Shared,
            exports: Vec::new(),
        }
    }
}

impl CachePolicy {
    /// The cell's tree: a private `rootfs` whose names and attributes hold for one second, and all else
    /// shared.
    pub fn cell() -> CachePolicy {
        CachePolicy {
            default: Cache::Shared,
            exports: vec![("rootfs".to_owned(), Cache::Private(Duration::from_secs(1)))],
        }
    }

    /// Index of the rule of a top-level name; 0 is the default.
    pub(super) fn index_of(&self, name: &[u8]) -> usize {
        let found = self
            .exports
            .iter()
            .position(|(export, _)| export.as_bytes() == name);
        found.map_or(0, |index| index + 1)
    }

    /// The rule of an index.
    pub(super) fn rule(&self, index: usize) -> Cache {
        match index.checked_sub(1).and_then(|index| self.exports.get(index)) {
            Some((_, cache)) => *cache,
            None => self.default,
        }
    }
}

impl Cache {
    /// How long names and attributes hold.
    pub(super) fn timeout(self) -> Duration {
        match self {
            Cache::Shared => Duration::ZERO,
            Cache::Private(timeout) => timeout,
        }
    }

    /// The guest need not expect changes by others.
    pub(super) fn is_private(self) -> bool {
        matches!(self, Cache::Private(_))
    }
}

/// Why a file server cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The tag does not fit the configuration space.
    #[error("file system tag {0:?} is not 1 to 36 bytes long, or holds a NUL")]
    Tag(String),
    /// The root cannot be examined.
    #[error("cannot examine the exported root")]
    Root(#[source] Errno),
    /// The root is a file.
    #[error("exported root is not a directory")]
    RootKind,
    /// `/proc/self/fd` is not there, or is another process's.
    #[error("descriptor for /proc/self/fd does not show this process's descriptors")]
    Proc(#[source] Errno),
}
