//! `readv` and `writev` straight between a descriptor and guest memory.
//!
//! rustix's calls take `&[u8]`, which guest memory must never be (the guest may be writing it), and
//! vm-memory's take one slice at a time.

#![expect(
    unsafe_code,
    reason = "readv and writev on guest memory, which no safe wrapper offers"
)]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use vm_memory::VolatileSlice;

/// `IOV_MAX`: the kernel takes no more ranges in one call. Longer lists are cut: a short read or write.
const MAX_RANGES: usize = 1024;

/// Reads into `slices`, in order, and returns how many bytes came.
///
/// # Errors
/// That of `readv(2)`.
pub fn read_vectored(fd: BorrowedFd<'_>, slices: &[VolatileSlice<'_>]) -> io::Result<usize> {
    let guards: Vec<_> = slices
        .iter()
        .take(MAX_RANGES)
        .map(|slice| slice.ptr_guard_mut())
        .collect();
    let ranges: Vec<_> = guards
        .iter()
        .map(|guard| libc::iovec {
            iov_base: guard.as_ptr().cast(),
            iov_len: guard.len(),
        })
        .collect();
    // SAFETY: `ranges` is an array of `count(&ranges)` entries that outlives the call. Each names a range
    // that its `VolatileSlice` vouches for as mapped and writable while `guards` live, which is until the
    // end of this function. The kernel writes there as the guest might at any time; no Rust reference to
    // the bytes exists.
    let read = unsafe { libc::readv(fd.as_raw_fd(), ranges.as_ptr(), count(&ranges)) };
    usize::try_from(read).map_err(|_| io::Error::last_os_error())
}

/// Writes `slices`, in order, and returns how many bytes went.
///
/// # Errors
/// That of `writev(2)`.
pub fn write_vectored(fd: BorrowedFd<'_>, slices: &[VolatileSlice<'_>]) -> io::Result<usize> {
    let guards: Vec<_> = slices
        .iter()
        .take(MAX_RANGES)
        .map(|slice| slice.ptr_guard())
        .collect();
    let ranges: Vec<_> = guards
        .iter()
        .map(|guard| libc::iovec {
            iov_base: guard.as_ptr().cast_mut().cast(),
            iov_len: guard.len(),
        })
        .collect();
    // SAFETY: `ranges` is an array of `count(&ranges)` entries that outlives the call. Each names a range
    // that its `VolatileSlice` vouches for as mapped and readable while `guards` live, which is until the
    // end of this function. `writev` only reads there; that the guest may write meanwhile makes the bytes
    // arbitrary, and is no data race of Rust's, as no Rust reference to them exists.
    let written = unsafe { libc::writev(fd.as_raw_fd(), ranges.as_ptr(), count(&ranges)) };
    usize::try_from(written).map_err(|_| io::Error::last_os_error())
}

fn count(ranges: &[libc::iovec]) -> libc::c_int {
    libc::c_int::try_from(ranges.len()).expect("there are at most MAX_RANGES")
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Seek, Write};
    use std::os::fd::AsFd;

    use vm_memory::{Bytes, GuestAddress, GuestMemory as _, Permissions};

    use super::super::super::GuestMemory;
    use super::*;

    #[test]
    fn bytes_go_through_scattered_guest_memory_unchanged() {
        let memory = GuestMemory::from_ranges(&[(GuestAddress(0), 0x10000)]).unwrap();
        let slices: Vec<_> = [(0x100, 3), (0x3000, 5), (0x200, 4)]
            .iter()
            .flat_map(|&(addr, len)| {
                memory
                    .get_slices(GuestAddress(addr), len, Permissions::ReadWrite)
                    .unwrap()
            })
            .map(Result::unwrap)
            .collect();

        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"abcdefghijkl").unwrap();
        file.rewind().unwrap();
        assert_eq!(read_vectored(file.as_fd(), &slices).unwrap(), 12);
        let mut middle = [0; 5];
        memory.read_slice(&mut middle, GuestAddress(0x3000)).unwrap();
        assert_eq!(&middle, b"defgh");

        let mut out = tempfile::tempfile().unwrap();
        assert_eq!(write_vectored(out.as_fd(), &slices).unwrap(), 12);
        out.rewind().unwrap();
        let mut text = String::new();
        out.read_to_string(&mut text).unwrap();
        assert_eq!(text, "abcdefghijkl");
        assert_eq!(read_vectored(out.as_fd(), &slices).unwrap(), 0, "end of file");
    }
}
