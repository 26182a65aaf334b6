//! Constants of the FUSE protocol (Linux `include/uapi/linux/fuse.h`, 7.41), spelled as there.

/// `FUSE_KERNEL_VERSION`
pub(super) const FUSE_KERNEL_VERSION: u32 = 7;
/// The newest minor version that this server knows.
pub(super) const FUSE_KERNEL_MINOR_VERSION: u32 = 41;
/// The oldest one it serves: Linux 5.4, where virtio-fs came.
pub(super) const OLDEST_MINOR_VERSION: u32 = 31;
/// `FUSE_ROOT_ID`
pub(super) const FUSE_ROOT_ID: u64 = 1;

macro_rules! constants {
    ($kind:ty: $($name:ident = $value:expr;)*) => {
        $(#[doc = concat!("`", stringify!($name), "`")]
        pub(super) const $name: $kind = $value;)*
    };
}

// Request flags of INIT.
constants! { u64:
    FUSE_ASYNC_READ = 1 << 0;
    FUSE_ATOMIC_O_TRUNC = 1 << 3;
    FUSE_BIG_WRITES = 1 << 5;
    FUSE_DONT_MASK = 1 << 6;
    FUSE_AUTO_INVAL_DATA = 1 << 12;
    FUSE_DO_READDIRPLUS = 1 << 13;
    FUSE_READDIRPLUS_AUTO = 1 << 14;
    FUSE_ASYNC_DIO = 1 << 15;
    FUSE_WRITEBACK_CACHE = 1 << 16;
    FUSE_PARALLEL_DIROPS = 1 << 18;
    FUSE_POSIX_ACL = 1 << 20;
    FUSE_MAX_PAGES = 1 << 22;
    FUSE_CACHE_SYMLINKS = 1 << 23;
    FUSE_SUBMOUNTS = 1 << 27;
    FUSE_HANDLE_KILLPRIV_V2 = 1 << 28;
    FUSE_SETXATTR_EXT = 1 << 29;
    FUSE_INIT_EXT = 1 << 30;
}

// Bits in requests and replies.
constants! { u32:
    FUSE_ATTR_SUBMOUNT = 1 << 0;
    FUSE_GETATTR_FH = 1 << 0;
    FUSE_OPEN_KILL_SUIDGID = 1 << 0;
    FUSE_SETXATTR_ACL_KILL_SGID = 1 << 0;
    FUSE_FSYNC_FDATASYNC = 1 << 0;
    FUSE_WRITE_CACHE = 1 << 0;
    FUSE_WRITE_KILL_SUIDGID = 1 << 2;
    FOPEN_KEEP_CACHE = 1 << 1;
    FOPEN_CACHE_DIR = 1 << 3;
    FOPEN_NOFLUSH = 1 << 5;
    FATTR_MODE = 1 << 0;
    FATTR_UID = 1 << 1;
    FATTR_GID = 1 << 2;
    FATTR_SIZE = 1 << 3;
    FATTR_ATIME = 1 << 4;
    FATTR_MTIME = 1 << 5;
    FATTR_FH = 1 << 6;
    FATTR_ATIME_NOW = 1 << 7;
    FATTR_MTIME_NOW = 1 << 8;
    FATTR_KILL_SUIDGID = 1 << 11;
}

macro_rules! opcodes {
    ($($name:ident = $value:literal,)*) => {
        /// A request that this server knows. All others are answered with ENOSYS.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub(super) enum Opcode {
            $(#[doc = concat!("`FUSE_", stringify!($name), "`")] $name = $value,)*
        }

        impl Opcode {
            /// All of them, for tests.
            #[cfg(test)]
            pub(super) const ALL: &'static [Opcode] = &[$(Opcode::$name),*];

            /// The request of this number.
            pub(super) fn from_wire(opcode: u32) -> Option<Opcode> {
                match opcode {
                    $($value => Some(Opcode::$name),)*
                    _ => None,
                }
            }
        }
    };
}

opcodes! {
    Lookup = 1,
    Forget = 2,
    Getattr = 3,
    Setattr = 4,
    Readlink = 5,
    Symlink = 6,
    Mknod = 8,
    Mkdir = 9,
    Unlink = 10,
    Rmdir = 11,
    Rename = 12,
    Link = 13,
    Open = 14,
    Read = 15,
    Write = 16,
    Statfs = 17,
    Release = 18,
    Fsync = 20,
    Setxattr = 21,
    Getxattr = 22,
    Listxattr = 23,
    Removexattr = 24,
    Flush = 25,
    Init = 26,
    Opendir = 27,
    Readdir = 28,
    Releasedir = 29,
    Fsyncdir = 30,
    Create = 35,
    Interrupt = 36,
    Destroy = 38,
    NotifyReply = 41,
    BatchForget = 42,
    Fallocate = 43,
    Readdirplus = 44,
    Rename2 = 45,
    Lseek = 46,
    CopyFileRange = 47,
    Syncfs = 50,
    Tmpfile = 51,
    Statx = 52,
}

impl Opcode {
    /// The guest expects no answer: the chain goes back empty.
    pub(super) fn is_silent(self) -> bool {
        matches!(
            self,
            Opcode::Forget | Opcode::BatchForget | Opcode::Interrupt | Opcode::NotifyReply
        )
    }

    /// It changes the tree: refused with EROFS on a read-only export.
    pub(super) fn changes_tree(self) -> bool {
        matches!(
            self,
            Opcode::Setattr
                | Opcode::Symlink
                | Opcode::Mknod
                | Opcode::Mkdir
                | Opcode::Unlink
                | Opcode::Rmdir
                | Opcode::Rename
                | Opcode::Rename2
                | Opcode::Link
                | Opcode::Write
                | Opcode::Setxattr
                | Opcode::Removexattr
                | Opcode::Create
                | Opcode::Tmpfile
                | Opcode::Fallocate
                | Opcode::CopyFileRange
        )
    }
}
