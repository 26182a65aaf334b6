//! Signals sent to the VMM's pid are meant for the workload: every catchable one is blocked in all
//! threads, read from a signalfd and forwarded. SIGKILL and SIGSTOP act on the VMM itself.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use nix::errno::Errno;
use nix::sys::signal::{SigSet, SigmaskHow, Signal, sigprocmask};
use nix::sys::signalfd::{SfdFlags, SignalFd};

/// Signals that report an error of the VMM's own instructions; never forwarded, so that such an error
/// ends the VMM instead of spinning.
const OWN_FAULTS: [Signal; 5] = [
    Signal::SIGSEGV,
    Signal::SIGBUS,
    Signal::SIGILL,
    Signal::SIGFPE,
    Signal::SIGTRAP,
];

/// Signals about the VMM's own children and writes, which mean nothing to the workload.
const OWN_EVENTS: [Signal; 2] = [Signal::SIGCHLD, Signal::SIGPIPE];

/// The signals waiting for the workload.
#[derive(Debug)]
pub struct Signals {
    fd: SignalFd,
}

impl Signals {
    /// Blocks what is forwarded, in this thread and all that it starts from now on.
    ///
    /// # Errors
    /// When the mask can't be set or no signalfd can be made.
    pub fn block() -> io::Result<Signals> {
        let mut mask = SigSet::all();
        for signal in OWN_FAULTS {
            mask.remove(signal);
        }
        sigprocmask(SigmaskHow::SIG_SETMASK, Some(&mask), None)?;
        let mut forwarded = mask;
        for signal in OWN_EVENTS {
            forwarded.remove(signal);
        }
        let fd = SignalFd::with_flags(&forwarded, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)?;
        Ok(Signals { fd })
    }

    /// Signals that have arrived, as numbers, in the kernel's order.
    pub fn take(&mut self) -> Vec<i32> {
        let mut signals = Vec::new();
        loop {
            match self.fd.read_signal() {
                Ok(Some(info)) => signals.extend(i32::try_from(info.ssi_signo)),
                Err(Errno::EINTR) => {}
                Ok(None) | Err(_) => return signals,
            }
        }
    }
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}
