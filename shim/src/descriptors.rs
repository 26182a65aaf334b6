//! Descriptors that moat was started with and has no use for. An init that waits for `start` would keep
//! them open, and whoever waits for their end would hang; a microVM's would for its whole life.
#![expect(unsafe_code, reason = "closing descriptors that no value owns")]

use std::io;

use nix::libc;

/// What is done with inherited descriptors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Inherited {
    /// They are closed.
    Close,
    /// They stay open in this program, for options that name one as a path.
    CloseOnExec,
}

/// Closes every descriptor from `first` on. Called before this program has opened any.
///
/// # Errors
/// As `close_range(2)`.
pub fn close_inherited(first: u32, how: Inherited) -> io::Result<()> {
    let flags = match how {
        Inherited::Close => 0,
        Inherited::CloseOnExec => libc::CLOSE_RANGE_CLOEXEC,
    };
    // SAFETY: called by main before it opens anything, and Rust's start-up opens only 0 to 2, which
    // `first` is above: so no descriptor that is closed here has an owner in this program.
    let result = unsafe { libc::syscall(libc::SYS_close_range, first.max(3), u32::MAX, flags) };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}
