//! An eventfd that can be waited for: vmm-sys-util's, which KVM takes, with the lifetime that `AsFd`
//! gives to its descriptor.
#![expect(unsafe_code, reason = "vmm-sys-util's EventFd has no AsFd")]

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

/// A counter in the kernel: readable while it is not zero.
#[derive(Debug)]
pub struct Event(EventFd);

impl Event {
    /// An event that has not happened.
    ///
    /// # Errors
    /// When the host has no descriptors left.
    pub fn new() -> io::Result<Event> {
        EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).map(Event)
    }

    /// Makes it readable.
    pub fn signal(&self) {
        // Fails only when the counter would overflow, and is readable then anyway.
        let _ = self.0.write(1);
    }

    /// Makes it quiet again, and tells whether it was readable.
    pub fn take(&self) -> bool {
        self.0.read().is_ok()
    }

    /// Another descriptor for the same event.
    ///
    /// # Errors
    /// When the host has no descriptors left.
    pub fn try_clone(&self) -> io::Result<Event> {
        self.0.try_clone().map(Event)
    }

    /// As KVM takes it.
    pub fn eventfd(&self) -> &EventFd {
        &self.0
    }
}

impl AsFd for Event {
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: borrow_raw demands a descriptor that stays open for the borrow: it is closed only when
        // `self.0`, which `self` owns and the result borrows, is dropped. It is never -1.
        unsafe { BorrowedFd::borrow_raw(self.0.as_raw_fd()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clones_share_the_event() {
        let event = Event::new().unwrap();
        let clone = event.try_clone().unwrap();
        assert!(!event.take());
        clone.signal();
        clone.signal();
        assert!(event.take());
        assert!(!clone.take());
    }
}
