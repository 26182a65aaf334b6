//! Children that have ended. PID 1 is also the parent of every orphan of the guest's own pid namespace.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd},
};

use nix::sys::{
    signal::{SigSet, Signal},
    signalfd::{SfdFlags, SignalFd},
};
use rustix::process::{Pid, WaitOptions, WaitStatus};

/// SIGCHLD as a descriptor.
#[derive(Debug)]
pub struct Children {
    signals: SignalFd,
}

impl Children {
    /// Blocks SIGCHLD for this process and receives it by descriptor from now on.
    ///
    /// # Errors
    /// As `signalfd(2)`.
    pub fn watch() -> io::Result<Children> {
        let mut mask = SigSet::empty();
        mask.add(Signal::SIGCHLD);
        mask.thread_block()?;
        let signals = SignalFd::with_flags(&mask, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)?;
        Ok(Children { signals })
    }

    /// Reaps every child that has ended, own or orphan.
    pub fn reap(&self) -> Vec<(Pid, WaitStatus)> {
        // one signal may stand for many children, and children are counted, not signals
        while let Ok(Some(_)) = self.signals.read_signal() {}
        let mut ended = Vec::new();
        while let Ok(Some((pid, status))) = rustix::process::wait(WaitOptions::NOHANG) {
            ended.push((pid, status));
        }
        ended
    }
}

impl AsFd for Children {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.signals.as_fd()
    }
}
