//! FUSE on the wire: the structures of Linux `include/uapi/linux/fuse.h`, protocol 7.41, as little-endian
//! bytes. Names and fields keep the header's spelling. Nothing here is ever a view of guest memory: a
//! structure is parsed from bytes that were copied once.

/// Something with a fixed little-endian form.
pub(super) trait Wire: Sized {
    /// Bytes it takes.
    const SIZE: usize;

    /// Takes it off the front of `bytes`; `None` when they are too few.
    fn take(bytes: &mut &[u8]) -> Option<Self>;

    /// Appends it to `out`.
    fn put(&self, out: &mut Vec<u8>);
}

macro_rules! wire_integer {
    ($($int:ty)*) => {$(
        impl Wire for $int {
            const SIZE: usize = size_of::<$int>();

            fn take(bytes: &mut &[u8]) -> Option<$int> {
                let (first, rest) = bytes.split_first_chunk()?;
                *bytes = rest;
                Some(<$int>::from_le_bytes(*first))
            }

            fn put(&self, out: &mut Vec<u8>) {
                out.extend_from_slice(&self.to_le_bytes());
            }
        }
    )*};
}

wire_integer!(u16 u32 u64 i32 i64);

/// Declares structures of [`Wire`] fields, in the header's order; padding is spelled out.
macro_rules! wire_structs {
    ($($(#[$doc:meta])* $name:ident { $($field:ident: $kind:ty),* $(,)? })*) => {$(
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
        pub(super) struct $name { $(pub(super) $field: $kind),* }

        impl Wire for $name {
            const SIZE: usize = 0 $(+ <$kind as Wire>::SIZE)*;

            fn take(bytes: &mut &[u8]) -> Option<$name> {
                Some($name { $($field: <$kind as Wire>::take(bytes)?),* })
            }

            fn put(&self, out: &mut Vec<u8>) {
                $(self.$field.put(out);)*
            }
        }
    )*};
}

wire_structs! {
    /// `struct fuse_in_header`
    InHeader {
        len: u32, opcode: u32, unique: u64, nodeid: u64, uid: u32, gid: u32, pid: u32,
        total_extlen: u16, padding: u16,
    }
    /// `struct fuse_out_header`
    OutHeader { len: u32, error: i32, unique: u64 }
    /// `struct fuse_attr`
    Attr {
        ino: u64, size: u64, blocks: u64, atime: u64, mtime: u64, ctime: u64,
        atimensec: u32, mtimensec: u32, ctimensec: u32, mode: u32, nlink: u32, uid: u32, gid: u32,
        rdev: u32, blksize: u32, flags: u32,
    }
    /// `struct fuse_entry_out`
    EntryOut {
        nodeid: u64, generation: u64, entry_valid: u64, attr_valid: u64,
        entry_valid_nsec: u32, attr_valid_nsec: u32, attr: Attr,
    }
    /// `struct fuse_attr_out`
    AttrOut { attr_valid: u64, attr_valid_nsec: u32, dummy: u32, attr: Attr }
    /// `struct fuse_init_in` as of 7.0: what every kernel sends.
    InitIn { major: u32, minor: u32, max_readahead: u32, flags: u32 }
    /// `struct fuse_init_out`, without its 24 unused bytes at the end.
    InitOut {
        major: u32, minor: u32, max_readahead: u32, flags: u32, max_background: u16,
        congestion_threshold: u16, max_write: u32, time_gran: u32, max_pages: u16, map_alignment: u16,
        flags2: u32, max_stack_depth: u32,
    }
    /// `struct fuse_forget_one`
    ForgetOne { nodeid: u64, nlookup: u64 }
    /// `struct fuse_batch_forget_in`
    BatchForgetIn { count: u32, dummy: u32 }
    /// `struct fuse_getattr_in`
    GetattrIn { getattr_flags: u32, dummy: u32, fh: u64 }
    /// `struct fuse_setattr_in`
    SetattrIn {
        valid: u32, padding: u32, fh: u64, size: u64, lock_owner: u64, atime: u64, mtime: u64, ctime: u64,
        atimensec: u32, mtimensec: u32, ctimensec: u32, mode: u32, unused4: u32, uid: u32, gid: u32,
        unused5: u32,
    }
    /// `struct fuse_statx_in`
    StatxIn { getattr_flags: u32, reserved: u32, fh: u64, sx_flags: u32, sx_mask: u32 }
    /// `struct fuse_sx_time`
    SxTime { tv_sec: i64, tv_nsec: u32, reserved: i32 }
    /// `struct fuse_statx_out`, without the spare fields of `struct fuse_statx` at the end.
    StatxOut {
        attr_valid: u64, attr_valid_nsec: u32, flags: u32, spare0: u64, spare1: u64,
        mask: u32, blksize: u32, attributes: u64, nlink: u32, uid: u32, gid: u32, mode: u16, spare2: u16,
        ino: u64, size: u64, blocks: u64, attributes_mask: u64,
        atime: SxTime, btime: SxTime, ctime: SxTime, mtime: SxTime,
        rdev_major: u32, rdev_minor: u32, dev_major: u32, dev_minor: u32,
    }
    /// `struct fuse_mknod_in`
    MknodIn { mode: u32, rdev: u32, umask: u32, padding: u32 }
    /// `struct fuse_mkdir_in`
    MkdirIn { mode: u32, umask: u32 }
    /// `struct fuse_rename2_in`
    Rename2In { newdir: u64, flags: u32, padding: u32 }
    /// `struct fuse_open_in`
    OpenIn { flags: u32, open_flags: u32 }
    /// `struct fuse_create_in`
    CreateIn { flags: u32, mode: u32, umask: u32, open_flags: u32 }
    /// `struct fuse_open_out`
    OpenOut { fh: u64, open_flags: u32, backing_id: i32 }
    /// `struct fuse_release_in`
    ReleaseIn { fh: u64, flags: u32, release_flags: u32, lock_owner: u64 }
    /// `struct fuse_flush_in`
    FlushIn { fh: u64, unused: u32, padding: u32, lock_owner: u64 }
    /// `struct fuse_read_in`; READDIR and READDIRPLUS send it too.
    ReadIn { fh: u64, offset: u64, size: u32, read_flags: u32, lock_owner: u64, flags: u32, padding: u32 }
    /// `struct fuse_write_in`
    WriteIn { fh: u64, offset: u64, size: u32, write_flags: u32, lock_owner: u64, flags: u32, padding: u32 }
    /// `struct fuse_write_out`
    WriteOut { size: u32, padding: u32 }
    /// `struct fuse_kstatfs`, without the 24 spare bytes at the end.
    Kstatfs {
        blocks: u64, bfree: u64, bavail: u64, files: u64, ffree: u64,
        bsize: u32, namelen: u32, frsize: u32, padding: u32,
    }
    /// `struct fuse_fsync_in`
    FsyncIn { fh: u64, fsync_flags: u32, padding: u32 }
    /// `struct fuse_setxattr_in`, the first half; the second comes with `FUSE_SETXATTR_EXT` only.
    SetxattrIn { size: u32, flags: u32 }
    /// The second half of `struct fuse_setxattr_in`.
    SetxattrExt { setxattr_flags: u32, padding: u32 }
    /// `struct fuse_getxattr_in` and `struct fuse_getxattr_out`
    GetxattrSize { size: u32, padding: u32 }
    /// `struct fuse_fallocate_in`
    FallocateIn { fh: u64, offset: u64, length: u64, mode: u32, padding: u32 }
    /// `struct fuse_lseek_in`
    LseekIn { fh: u64, offset: u64, whence: u32, padding: u32 }
    /// `struct fuse_copy_file_range_in`
    CopyFileRangeIn {
        fh_in: u64, off_in: u64, nodeid_out: u64, fh_out: u64, off_out: u64, len: u64, flags: u64,
    }
    /// The fixed part of `struct fuse_dirent`; the name follows, padded to 8 bytes.
    Dirent { ino: u64, off: u64, namelen: u32, kind: u32 }
}

/// Bytes that the guest expects after `struct fuse_init_out` as declared here.
pub(super) const INIT_OUT_UNUSED: usize = 24;
/// The same for `struct fuse_statx`.
pub(super) const STATX_OUT_SPARE: usize = 14 * 8;
/// The same for `struct fuse_kstatfs`.
pub(super) const KSTATFS_SPARE: usize = 6 * 4;

#[cfg(test)]
mod tests {
    use super::*;

    /// Sizes that the header's comments and `FUSE_COMPAT_*` constants state, or that gcc gives.
    #[test]
    fn structures_have_the_sizes_of_the_kernel_header() {
        assert_eq!(InHeader::SIZE, 40);
        assert_eq!(OutHeader::SIZE, 16);
        assert_eq!(Attr::SIZE, 88);
        assert_eq!(EntryOut::SIZE, 128);
        assert_eq!(AttrOut::SIZE, 104);
        assert_eq!(InitOut::SIZE + INIT_OUT_UNUSED, 64);
        assert_eq!(SetattrIn::SIZE, 88);
        assert_eq!(StatxIn::SIZE, 24);
        assert_eq!(StatxOut::SIZE + STATX_OUT_SPARE, 32 + 256);
        assert_eq!(ReadIn::SIZE, 40);
        assert_eq!(WriteIn::SIZE, 40);
        assert_eq!(Kstatfs::SIZE + KSTATFS_SPARE, 80);
        assert_eq!(CopyFileRangeIn::SIZE, 56);
        assert_eq!(Dirent::SIZE, 24);
    }

    #[test]
    fn what_is_put_is_what_is_taken_and_too_few_bytes_are_nothing() {
        let header = InHeader {
            len: 44,
            opcode: 1,
            unique: u64::MAX - 1,
            nodeid: 7,
            uid: 1000,
            gid: 100,
            pid: 42,
            ..InHeader::default()
        };
        let mut bytes = Vec::new();
        header.put(&mut bytes);
        assert_eq!(bytes.len(), InHeader::SIZE);
        assert_eq!(InHeader::take(&mut bytes.as_slice()), Some(header));
        assert_eq!(InHeader::take(&mut &bytes[..39]), None);
    }
}
