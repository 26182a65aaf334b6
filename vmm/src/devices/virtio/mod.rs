//! Virtio devices (VIRTIO 1.2), each behind the MMIO transport of [`mmio`].
//!
//! A device knows queues and bytes. It has no thread of its own: the event loop that it is given to
//! calls it when the driver kicks a queue and when a descriptor of its own is ready. It touches guest
//! memory only through [`chain::Chain`], which has checked every range.

pub mod block;
pub mod chain;
pub mod fs;
pub mod interrupt;
pub mod mmio;
pub mod queue;
pub mod rng;
#[cfg(test)]
pub mod test_driver;
pub mod vsock;

use std::os::fd::BorrowedFd;

use vm_memory::GuestMemoryMmap;

use self::queue::DeviceQueue;

/// Guest memory as devices see it.
pub type GuestMemory = GuestMemoryMmap<()>;

/// What a driver hands over when it sets `DRIVER_OK` (VIRTIO 1.2, 3.1.1).
pub struct Activation {
    /// The guest's memory; cheap to clone.
    pub memory: GuestMemory,
    /// Feature bits that the driver accepted, a subset of those offered.
    pub features: u64,
    /// One for each entry of [`VirtioDevice::queue_sizes`], in order.
    pub queues: Vec<DeviceQueue>,
}

/// A virtio device as the transport and the event loop see it. Calls never overlap.
pub trait VirtioDevice: Send {
    /// Device id (VIRTIO 1.2, section 5).
    fn device_type(&self) -> u32;

    /// Name for logs, errors and thread names.
    fn name(&self) -> &str;

    /// Largest size of each queue; a power of two, 32,768 at the most.
    fn queue_sizes(&self) -> &[u16];

    /// Feature bits offered. The transport adds `VIRTIO_F_VERSION_1`, and refuses drivers without it, and
    /// the two features of rings that [`queue::DeviceQueue`] serves: event indices and indirect tables.
    fn features(&self) -> u64;

    /// Reads the configuration space. Beyond its end the device leaves `data` zero.
    fn read_config(&self, offset: u64, data: &mut [u8]);

    /// Writes the configuration space; most devices have nothing to write.
    fn write_config(&mut self, offset: u64, data: &[u8]) {
        let _ = (offset, data);
    }

    /// The driver is ready: from now on queues may be used.
    fn activate(&mut self, activation: Activation);

    /// The driver has reset the device: queues and all state of the session are dropped.
    fn reset(&mut self);

    /// The driver has kicked queue `index`. Not called before [`VirtioDevice::activate`].
    fn queue_kicked(&mut self, index: usize);

    /// A descriptor that is readable when the device has work from outside, often an epoll instance of
    /// its own. It must stay the same for the life of the device.
    fn event_fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    /// The descriptor of [`VirtioDevice::event_fd`] is readable. May come before activation.
    fn event_ready(&mut self) {}
}
