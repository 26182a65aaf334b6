//! System calls that no safe crate gives: vectored I/O straight between files and guest memory, and
//! directory entries with their cookies.
#![expect(unsafe_code, reason = "preadv, pwritev2 and getdents64 take raw pointers")]

use std::os::fd::{AsRawFd, BorrowedFd, IntoRawFd};

use rustix::io::Errno;
use vm_memory::VolatileSlice;
use vm_memory::volatile_memory::PtrGuardMut;

/// Most buffers that one call takes (`UIO_MAXIOV`).
const IOV_MAX: usize = 1024;

/// `RWF_APPEND` of `pwritev2`: at the end of the file, whatever the offset.
const RWF_APPEND: libc::c_int = 0x10;

/// Reads from `offset` of `file` until the buffers are full or the file ends.
///
/// # Errors
/// Of the first call that fails: to the guest a short read means the end of the file, so what was read
/// before an error does not count.
pub(super) fn read_at(file: BorrowedFd<'_>, into: &[VolatileSlice<'_>], offset: u64) -> Result<usize, Errno> {
    let mut buffers = Buffers::new(into);
    while !buffers.is_empty() {
        let at = file_offset(offset, buffers.done)?;
        let (iovecs, count) = buffers.next_iovecs();
        // SAFETY: `iovecs` points to `count` valid `iovec`s, which live in `buffers`. Each describes
        // memory that stays mapped and writable while `buffers` holds the guard of its slice, and of
        // which no reference exists: it is only reached through volatile slices.
        let got = unsafe { libc::preadv(file.as_raw_fd(), iovecs, count, at) };
        match retry_on_signal(got)? {
            Some(0) => break,
            Some(read) => buffers.advance(read),
            None => {}
        }
    }
    Ok(buffers.done)
}

/// Writes all buffers to `file`, at `offset` or, with `append`, at its end.
///
/// # Errors
/// Of the first call that fails, if nothing was written; else the number of bytes written counts.
pub(super) fn write_at(
    file: BorrowedFd<'_>,
    from: &[VolatileSlice<'_>],
    offset: u64,
    append: bool,
) -> Result<usize, Errno> {
    let flags = if append { RWF_APPEND } else { 0 };
    let mut buffers = Buffers::new(from);
    while !buffers.is_empty() {
        let at = file_offset(offset, buffers.done)?;
        let (iovecs, count) = buffers.next_iovecs();
        // SAFETY: as in `read_at`; the memory is only read.
        let put = unsafe { libc::pwritev2(file.as_raw_fd(), iovecs, count, at, flags) };
        match retry_on_signal(put) {
            Ok(Some(0)) => break,
            Ok(Some(written)) => buffers.advance(written),
            Ok(None) => {}
            Err(_) if buffers.done > 0 => break,
            Err(error) => return Err(error),
        }
    }
    Ok(buffers.done)
}

/// Reads directory entries (`struct linux_dirent64`) into `buffer`; 0 at the end of the directory.
///
/// # Errors
/// Of `getdents64`.
pub(super) fn getdents(directory: BorrowedFd<'_>, buffer: &mut [u8]) -> Result<usize, Errno> {
    // SAFETY: the kernel writes at most `buffer.len()` bytes to `buffer`, which is borrowed exclusively.
    let got = unsafe {
        libc::syscall(
            libc::SYS_getdents64,
            directory.as_raw_fd(),
            buffer.as_mut_ptr(),
            buffer.len(),
        )
    };
    usize::try_from(got).map_err(|_| last_error())
}

/// Closes a duplicate of the descriptor, for the errors that a close reports.
///
/// # Errors
/// Of `dup` and `close`.
pub(super) fn flush(file: BorrowedFd<'_>) -> Result<(), Errno> {
    let duplicate = rustix::io::fcntl_dupfd_cloexec(file, 0)?.into_raw_fd();
    // SAFETY: the descriptor was just made, nothing else knows its number, and it is not used again.
    let closed = unsafe { libc::close(duplicate) };
    if closed == 0 { Ok(()) } else { Err(last_error()) }
}

fn file_offset(offset: u64, done: usize) -> Result<libc::off_t, Errno> {
    let at = offset.checked_add(done as u64).ok_or(Errno::INVAL)?;
    libc::off_t::try_from(at).map_err(|_| Errno::INVAL)
}

/// `None`: a signal came before the first byte; call again.
fn retry_on_signal(result: libc::ssize_t) -> Result<Option<usize>, Errno> {
    match usize::try_from(result) {
        Ok(count) => Ok(Some(count)),
        Err(_) => match last_error() {
            Errno::INTR => Ok(None),
            error => Err(error),
        },
    }
}

fn last_error() -> Errno {
    Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)
}

/// Slices of guest memory as the kernel takes them, and how much of them is done.
struct Buffers<'m> {
    guards: Vec<(PtrGuardMut, usize)>,
    iovecs: Vec<libc::iovec>,
    first: usize,
    done: usize,
    _memory: std::marker::PhantomData<VolatileSlice<'m>>,
}

impl<'m> Buffers<'m> {
    fn new(slices: &[VolatileSlice<'m>]) -> Buffers<'m> {
        let guards: Vec<_> = slices
            .iter()
            .filter(|slice| !slice.is_empty())
            .map(|slice| (slice.ptr_guard_mut(), slice.len()))
            .collect();
        let iovecs = guards
            .iter()
            .map(|(guard, len)| libc::iovec {
                iov_base: guard.as_ptr().cast(),
                iov_len: *len,
            })
            .collect();
        Buffers {
            guards,
            iovecs,
            first: 0,
            done: 0,
            _memory: std::marker::PhantomData,
        }
    }

    fn is_empty(&self) -> bool {
        self.first == self.iovecs.len()
    }

    fn next_iovecs(&self) -> (*const libc::iovec, libc::c_int) {
        debug_assert_eq!(self.guards.len(), self.iovecs.len());
        let rest = self.iovecs.get(self.first..).unwrap_or_default();
        let count = rest.len().min(IOV_MAX);
        (rest.as_ptr(), libc::c_int::try_from(count).unwrap_or(0))
    }

    /// The kernel has taken `count` bytes.
    fn advance(&mut self, mut count: usize) {
        self.done += count;
        while let Some(iovec) = self.iovecs.get_mut(self.first) {
            if count < iovec.iov_len {
                iovec.iov_base = iovec.iov_base.cast::<u8>().wrapping_add(count).cast();
                iovec.iov_len -= count;
                return;
            }
            count -= iovec.iov_len;
            self.first += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Seek, Write};
    use std::os::fd::AsFd;

    use super::*;

    /// 3,000 buffers of 7 bytes: more than one call takes, and a length that fits no block.
    fn scattered(bytes: &mut [u8]) -> Vec<VolatileSlice<'_>> {
        bytes.chunks_mut(7).map(VolatileSlice::from).collect()
    }

    #[test]
    fn more_buffers_than_one_call_takes_are_written_and_read_whole() {
        let mut file = tempfile::tempfile().unwrap();
        let mut sent: Vec<u8> = (0..21_000u32).map(|i| (i % 251) as u8).collect();
        let expected = sent.clone();
        assert_eq!(
            write_at(file.as_fd(), &scattered(&mut sent), 5, false),
            Ok(21_000)
        );
        let mut content = Vec::new();
        file.rewind().unwrap();
        file.read_to_end(&mut content).unwrap();
        assert_eq!(content[..5], [0; 5]);
        assert!(content[5..] == expected);

        let mut got = vec![0; 21_000];
        assert_eq!(read_at(file.as_fd(), &scattered(&mut got), 5), Ok(21_000));
        assert!(got == expected);
        let mut tail = vec![0; 21_000];
        assert_eq!(read_at(file.as_fd(), &scattered(&mut tail), 20_000), Ok(1_005));
    }

    #[test]
    fn appending_ignores_the_offset() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"one").unwrap();
        let mut more = *b"two";
        assert_eq!(
            write_at(file.as_fd(), &[VolatileSlice::from(&mut more[..])], 0, true),
            Ok(3)
        );
        let mut content = String::new();
        file.rewind().unwrap();
        file.read_to_string(&mut content).unwrap();
        assert_eq!(content, "onetwo");
    }

    #[test]
    fn offsets_past_the_largest_file_are_refused() {
        let file = tempfile::tempfile().unwrap();
        let mut byte = [0u8];
        let slices = [VolatileSlice::from(&mut byte[..])];
        assert_eq!(read_at(file.as_fd(), &slices, u64::MAX), Err(Errno::INVAL));
        assert_eq!(write_at(file.as_fd(), &slices, 1 << 63, false), Err(Errno::INVAL));
    }
}
