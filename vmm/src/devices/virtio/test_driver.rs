//! The driver's side of a virtqueue in a test memory, so that a device's tests need no transport, no KVM
//! and no guest.
//!
//! Rings lie at `base`; buffers are taken upwards from `base` + 64 KiB and never reused (see
//! [`TestDriver::recycle`]). Give queues of one device bases that are far enough apart.

use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::GuestMemory;
use super::interrupt::Interrupt;
use super::queue::DeviceQueue;

/// `VRING_DESC_F_NEXT` (VIRTIO 1.2, 2.7.5).
pub const NEXT: u16 = 1;
/// `VRING_DESC_F_WRITE`.
pub const WRITE: u16 = 2;
/// `VRING_DESC_F_INDIRECT`.
pub const INDIRECT: u16 = 4;

/// Bytes from `base` to the first buffer: room for the rings of a queue of 1024.
const BUFFERS: u64 = 64 << 10;
const DESCRIPTOR_LEN: u64 = 16;

/// Guest memory of `len` bytes from address 0.
pub fn test_memory(len: usize) -> GuestMemory {
    GuestMemory::from_ranges(&[(GuestAddress(0), len)]).unwrap()
}

pub(super) fn avail_ring(base: u64, size: u16) -> u64 {
    base + DESCRIPTOR_LEN * u64::from(size)
}

pub(super) fn used_ring(base: u64, size: u16) -> u64 {
    // flags, idx, ring, used_event; then aligned to 4.
    (avail_ring(base, size) + 6 + 2 * u64::from(size)).next_multiple_of(4)
}

/// One buffer of a chain.
#[derive(Debug, Clone, Copy)]
pub enum Buffer<'a> {
    /// Device-readable, with this content.
    Readable(&'a [u8]),
    /// Device-writable, of this length, filled with 0xa5.
    Writable(usize),
}

/// A descriptor as it lies in the table.
#[derive(Debug, Clone, Copy)]
pub struct RawDescriptor {
    /// Guest address of the buffer.
    pub addr: u64,
    /// Its length.
    pub len: u32,
    /// `VRING_DESC_F_*`.
    pub flags: u16,
    /// Index of the next descriptor, with `VRING_DESC_F_NEXT`.
    pub next: u16,
}

/// The driver of one queue.
pub struct TestDriver {
    memory: GuestMemory,
    base: u64,
    size: u16,
    interrupt: Interrupt,
    next_descriptor: u16,
    next_buffer: u64,
    avail_idx: u16,
    used_idx: u16,
    writable: std::collections::HashMap<u16, Vec<(u64, usize)>>,
}

impl TestDriver {
    /// A driver and the device's end of its queue.
    pub fn new(memory: &GuestMemory, base: u64, size: u16) -> (TestDriver, DeviceQueue) {
        TestDriver::make(memory, base, size, false)
    }

    /// As [`TestDriver::new`], with `VIRTIO_F_RING_EVENT_IDX` negotiated.
    pub fn with_event_idx(memory: &GuestMemory, base: u64, size: u16) -> (TestDriver, DeviceQueue) {
        TestDriver::make(memory, base, size, true)
    }

    fn make(memory: &GuestMemory, base: u64, size: u16, event_idx: bool) -> (TestDriver, DeviceQueue) {
        let interrupt = Interrupt::new(EventFd::new(EFD_NONBLOCK).unwrap());
        let driver = TestDriver {
            memory: memory.clone(),
            base,
            size,
            interrupt: interrupt.clone(),
            next_descriptor: 0,
            next_buffer: base + BUFFERS,
            avail_idx: 0,
            used_idx: 0,
            writable: Default::default(),
        };
        (driver, DeviceQueue::for_test(base, size, event_idx, interrupt))
    }

    /// Puts buffers into the table, offers the chain and returns its head.
    pub fn add(&mut self, buffers: &[Buffer]) -> u16 {
        assert!(!buffers.is_empty() && buffers.len() <= usize::from(self.size));
        let head = self.next_descriptor;
        let mut writable = Vec::new();
        for (i, buffer) in buffers.iter().enumerate() {
            let index = self.next_descriptor;
            self.next_descriptor = (index + 1) % self.size;
            let (addr, len, mut flags) = self.place(buffer);
            if flags & WRITE != 0 {
                writable.push((addr, len));
            }
            if i + 1 < buffers.len() {
                flags |= NEXT;
            }
            let len = u32::try_from(len).unwrap();
            self.set_descriptor(
                index,
                RawDescriptor {
                    addr,
                    len,
                    flags,
                    next: self.next_descriptor,
                },
            );
        }
        self.writable.insert(head, writable);
        self.offer_head(head);
        head
    }

    /// As [`TestDriver::add`], with the descriptors in an indirect table.
    pub fn add_indirect(&mut self, buffers: &[Buffer]) -> u16 {
        let mut writable = Vec::new();
        let placed: Vec<_> = buffers.iter().map(|buffer| self.place(buffer)).collect();
        let table = self.take(DESCRIPTOR_LEN * placed.len() as u64);
        for (i, &(addr, len, mut flags)) in placed.iter().enumerate() {
            if flags & WRITE != 0 {
                writable.push((addr, len));
            }
            if i + 1 < placed.len() {
                flags |= NEXT;
            }
            let (len, next) = (u32::try_from(len).unwrap(), u16::try_from(i + 1).unwrap());
            let at = table + DESCRIPTOR_LEN * i as u64;
            self.store_descriptor(
                at,
                RawDescriptor {
                    addr,
                    len,
                    flags,
                    next,
                },
            );
        }
        let head = self.next_descriptor;
        self.next_descriptor = (head + 1) % self.size;
        let len = u32::try_from(DESCRIPTOR_LEN * placed.len() as u64).unwrap();
        self.set_descriptor(
            head,
            RawDescriptor {
                addr: table,
                len,
                flags: INDIRECT,
                next: 0,
            },
        );
        self.writable.insert(head, writable);
        self.offer_head(head);
        head
    }

    /// Makes `head` available, whatever its descriptors are.
    pub fn offer_head(&mut self, head: u16) {
        let slot = avail_ring(self.base, self.size) + 4 + 2 * u64::from(self.avail_idx % self.size);
        self.store(slot, head);
        self.set_avail_idx(self.avail_idx.wrapping_add(1));
    }

    /// Writes the available index, honest or not.
    pub fn set_avail_idx(&mut self, idx: u16) {
        self.avail_idx = idx;
        self.store(avail_ring(self.base, self.size) + 2, idx);
    }

    /// Writes descriptor `index` of the table, honest or not.
    pub fn set_descriptor(&mut self, index: u16, descriptor: RawDescriptor) {
        self.store_descriptor(self.base + DESCRIPTOR_LEN * u64::from(index), descriptor);
    }

    /// Heads and lengths that the device has used since the last call.
    pub fn used(&mut self) -> Vec<(u16, u32)> {
        let ring = used_ring(self.base, self.size);
        let idx: u16 = self.memory.read_obj(GuestAddress(ring + 2)).unwrap();
        let mut used = Vec::new();
        while self.used_idx != idx {
            let slot = ring + 4 + 8 * u64::from(self.used_idx % self.size);
            let head: u32 = self.memory.read_obj(GuestAddress(slot)).unwrap();
            let len: u32 = self.memory.read_obj(GuestAddress(slot + 4)).unwrap();
            used.push((u16::try_from(head).unwrap(), len));
            self.used_idx = self.used_idx.wrapping_add(1);
        }
        used
    }

    /// The first `len` bytes of the writable part of the chain with this head.
    pub fn written(&self, head: u16, len: usize) -> Vec<u8> {
        let mut bytes = Vec::new();
        for &(addr, span) in &self.writable[&head] {
            let mut part = vec![0; span];
            self.memory.read_slice(&mut part, GuestAddress(addr)).unwrap();
            bytes.extend_from_slice(&part);
        }
        bytes.truncate(len);
        assert_eq!(bytes.len(), len, "the chain is shorter");
        bytes
    }

    /// Pulses of the interrupt line since the last call.
    pub fn interrupts(&self) -> u64 {
        self.interrupt.line().read().unwrap_or(0)
    }

    /// Sets or clears `VRING_AVAIL_F_NO_INTERRUPT`.
    pub fn set_no_interrupt(&mut self, on: bool) {
        self.store(avail_ring(self.base, self.size), u16::from(on));
    }

    /// Writes `used_event` (2.7.7): interrupt when this entry is used.
    pub fn set_used_event(&mut self, idx: u16) {
        self.store(
            avail_ring(self.base, self.size) + 4 + 2 * u64::from(self.size),
            idx,
        );
    }

    /// Reads `avail_event` (2.7.10): the entry that the device wants a kick for.
    pub fn avail_event(&self) -> u16 {
        let at = used_ring(self.base, self.size) + 4 + 8 * u64::from(self.size);
        self.memory.read_obj(GuestAddress(at)).unwrap()
    }

    /// Starts buffers from the bottom again: all earlier chains must be done with.
    pub fn recycle(&mut self) {
        self.next_buffer = self.base + BUFFERS;
        self.writable.clear();
    }

    fn place(&mut self, buffer: &Buffer) -> (u64, usize, u16) {
        match *buffer {
            Buffer::Readable(bytes) => {
                let addr = self.take(bytes.len() as u64);
                self.memory.write_slice(bytes, GuestAddress(addr)).unwrap();
                (addr, bytes.len(), 0)
            }
            Buffer::Writable(len) => {
                let addr = self.take(len as u64);
                self.memory
                    .write_slice(&vec![0xa5; len], GuestAddress(addr))
                    .unwrap();
                (addr, len, WRITE)
            }
        }
    }

    fn take(&mut self, len: u64) -> u64 {
        let addr = self.next_buffer;
        self.next_buffer = (addr + len).next_multiple_of(8);
        addr
    }

    fn store_descriptor(&self, at: u64, descriptor: RawDescriptor) {
        self.memory.write_obj(descriptor.addr, GuestAddress(at)).unwrap();
        self.memory
            .write_obj(descriptor.len, GuestAddress(at + 8))
            .unwrap();
        self.store(at + 12, descriptor.flags);
        self.store(at + 14, descriptor.next);
    }

    fn store(&self, at: u64, value: u16) {
        self.memory.write_obj(value, GuestAddress(at)).unwrap();
    }
}
