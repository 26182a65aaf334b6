//! How a device reaches its driver: a bit in `InterruptStatus` (VIRTIO 1.2, 4.2.2) and a pulse on the
//! interrupt line. The line is an eventfd that KVM injects from (irqfd), so no exit and no lock is
//! involved, and a test can simply read it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use vmm_sys_util::eventfd::EventFd;

/// A used buffer waits (`VIRTIO_MMIO_INT_VRING`).
pub const VIRTIO_MMIO_INT_VRING: u32 = 1 << 0;
/// The configuration space has changed (`VIRTIO_MMIO_INT_CONFIG`).
pub const VIRTIO_MMIO_INT_CONFIG: u32 = 1 << 1;

/// One device's interrupt line; clones share it.
#[derive(Debug, Clone)]
pub struct Interrupt {
    status: Arc<AtomicU32>,
    line: Arc<EventFd>,
}

impl Interrupt {
    /// An interrupt that pulses `line`.
    pub fn new(line: EventFd) -> Interrupt {
        Interrupt {
            status: Arc::new(AtomicU32::new(0)),
            line: Arc::new(line),
        }
    }

    /// Tells the driver that a queue has used buffers.
    pub fn queue_used(&self) {
        self.raise(VIRTIO_MMIO_INT_VRING);
    }

    /// Tells the driver that the configuration space has changed.
    pub fn config_changed(&self) {
        self.raise(VIRTIO_MMIO_INT_CONFIG);
    }

    /// Reasons raised and not acknowledged yet.
    pub fn status(&self) -> u32 {
        self.status.load(Ordering::SeqCst)
    }

    /// The driver has seen `reasons`.
    pub fn acknowledge(&self, reasons: u32) {
        self.status.fetch_and(!reasons, Ordering::SeqCst);
    }

    /// Forgets all reasons: device reset, or (with a value) a restored device.
    pub fn set_status(&self, status: u32) {
        self.status.store(status, Ordering::SeqCst);
    }

    /// The eventfd behind the line.
    pub fn line(&self) -> &EventFd {
        &self.line
    }

    fn raise(&self, reason: u32) {
        self.status.fetch_or(reason, Ordering::SeqCst);
        // An eventfd write fails only when its counter would overflow: then a pulse is pending anyway.
        let _ = self.line.write(1);
    }
}
