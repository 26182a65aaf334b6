//! Sending any signal, the realtime ones included, which rustix and nix leave out.
#![expect(unsafe_code, reason = "neither rustix nor nix sends realtime signals")]

use std::io;
use std::os::fd::{AsFd, AsRawFd};

use nix::libc;
use rustix::process::Pid;

/// `SIGKILL`.
pub const KILL: u8 = 9;

/// Sends a signal to the process behind a pidfd (pidfd_send_signal(2)).
///
/// # Errors
/// `ESRCH` when it has ended and was waited for, `EPERM` when it is somebody else's.
pub fn send(process: impl AsFd, signal: u8) -> io::Result<()> {
    let process = process.as_fd().as_raw_fd();
    let no_info = std::ptr::null::<libc::siginfo_t>();
    // SAFETY: the descriptor is open for the call, the null pointer stands for the information that
    // kill(2) would send along, and no flags are given; no memory is touched.
    let result = unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            process,
            libc::c_int::from(signal),
            no_info,
            0,
        )
    };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// Sends a signal to a process by its number (kill(2)): for those that a cgroup lists, which can't all
/// be held by descriptors. One that has ended is no error.
///
/// # Errors
/// `EPERM` when it is somebody else's.
pub fn send_to_pid(pid: Pid, signal: u8) -> io::Result<()> {
    // SAFETY: kill takes two integers; the pid is positive, so it names one process, never a group.
    if unsafe { libc::kill(pid.as_raw_nonzero().get(), libc::c_int::from(signal)) } == 0 {
        return Ok(());
    }
    match io::Error::last_os_error() {
        error if error.raw_os_error() == Some(libc::ESRCH) => Ok(()),
        error => Err(error),
    }
}
