//! A virtqueue as a device uses it: take chains, give them back, interrupt (VIRTIO 1.2, 2.7).

use std::sync::atomic::Ordering;

use serde::{Deserialize, Serialize};
use virtio_bindings::bindings::virtio_ring::VRING_AVAIL_F_NO_INTERRUPT;
use virtio_queue::{DescriptorChain, Queue, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress};

use super::GuestMemory;
use super::chain::{Chain, ChainError, ChainLimit};
use super::interrupt::Interrupt;

/// What a queue is, apart from the guest's memory: enough to go on with it in another process.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueueState {
    /// Descriptors, a power of two.
    pub size: u16,
    /// Where the device reads next in the available ring.
    pub next_avail: u16,
    /// Where it writes next in the used ring.
    pub next_used: u16,
    /// `VIRTIO_F_RING_EVENT_IDX` was negotiated.
    pub event_idx: bool,
    /// Guest address of the descriptor table.
    pub desc_table: u64,
    /// Guest address of the available ring.
    pub avail_ring: u64,
    /// Guest address of the used ring.
    pub used_ring: u64,
}

/// One virtqueue and the interrupt of its device.
#[derive(Debug)]
pub struct DeviceQueue {
    queue: Queue,
    interrupt: Interrupt,
    mistakes: u64,
}

impl DeviceQueue {
    /// A queue that the driver has configured and the transport has validated.
    pub fn new(queue: Queue, interrupt: Interrupt) -> DeviceQueue {
        DeviceQueue {
            queue,
            interrupt,
            mistakes: 0,
        }
    }

    /// Takes the next chain that the driver has made available.
    ///
    /// `None` says that there is none, and that the driver has been asked to kick the queue for the next.
    /// A bad chain comes as its head and the error: push the head with 0 bytes, or break off.
    pub fn pop(
        &mut self,
        memory: &GuestMemory,
        limit: &ChainLimit,
    ) -> Option<Result<Chain, (u16, ChainError)>> {
        // Twice: the driver may add a chain just before its kicks are asked for. An error is a ring index
        // out of range: the driver is broken, and gets no more service until it resets the device.
        for _ in 0..2 {
            let Ok(mut available) = self.queue.iter(memory) else {
                return self.broken();
            };
            if let Some(found) = available.next() {
                return Some(self.check(found, limit));
            }
            match self.queue.enable_notification(memory) {
                Ok(true) => {}
                Ok(false) => return None,
                Err(_) => return self.broken(),
            }
        }
        self.broken()
    }

    /// Gives a chain back, `written` bytes of its writable part filled. A head that the ring cannot take
    /// is counted and dropped.
    pub fn push(&mut self, memory: &GuestMemory, head: u16, written: u32) {
        if self.queue.add_used(memory, head, written).is_err() {
            self.mistakes += 1;
        }
    }

    /// Interrupts the driver if it wants that (2.7.10). Call once after a batch of [`DeviceQueue::push`].
    pub fn notify(&mut self, memory: &GuestMemory) {
        if self.wants_interrupt(memory) {
            self.interrupt.queue_used();
        }
    }

    /// Mistakes that the driver has made on this queue.
    pub fn mistakes(&self) -> u64 {
        self.mistakes
    }

    /// The device's interrupt, for configuration changes.
    pub fn interrupt(&self) -> &Interrupt {
        &self.interrupt
    }

    /// What to store to go on with this queue elsewhere.
    pub fn state(&self) -> QueueState {
        QueueState {
            size: self.queue.size(),
            next_avail: self.queue.next_avail(),
            next_used: self.queue.next_used(),
            event_idx: self.queue.event_idx_enabled(),
            desc_table: self.queue.desc_table(),
            avail_ring: self.queue.avail_ring(),
            used_ring: self.queue.used_ring(),
        }
    }

    fn check(
        &mut self,
        found: DescriptorChain<&GuestMemory>,
        limit: &ChainLimit,
    ) -> Result<Chain, (u16, ChainError)> {
        let head = found.head_index();
        Chain::check(found, limit).map_err(|error| {
            self.mistakes += 1;
            (head, error)
        })
    }

    fn wants_interrupt(&mut self, memory: &GuestMemory) -> bool {
        if self.queue.event_idx_enabled() {
            // When the ring cannot be read, an interrupt too many is the harmless side.
            return self.queue.needs_notification(memory).unwrap_or(true);
        }
        // The used index was stored before; the flags are read after it, or a driver that goes to sleep
        // between would not be woken.
        std::sync::atomic::fence(Ordering::SeqCst);
        let flags: u16 = memory
            .load(GuestAddress(self.queue.avail_ring()), Ordering::SeqCst)
            .unwrap_or(0);
        u32::from(u16::from_le(flags)) & VRING_AVAIL_F_NO_INTERRUPT == 0
    }

    fn broken<T>(&mut self) -> Option<T> {
        self.mistakes += 1;
        None
    }
}

#[cfg(test)]
impl DeviceQueue {
    /// A queue over rings at `base` of a test memory, as [`super::test_driver::TestDriver`] lays them out.
    pub fn for_test(base: u64, size: u16, event_idx: bool, interrupt: Interrupt) -> DeviceQueue {
        use super::test_driver::{avail_ring, used_ring};
        let mut queue = Queue::new(size).unwrap();
        queue.try_set_desc_table_address(GuestAddress(base)).unwrap();
        queue
            .try_set_avail_ring_address(GuestAddress(avail_ring(base, size)))
            .unwrap();
        queue
            .try_set_used_ring_address(GuestAddress(used_ring(base, size)))
            .unwrap();
        queue.set_event_idx(event_idx);
        queue.set_ready(true);
        DeviceQueue::new(queue, interrupt)
    }
}

#[cfg(test)]
mod tests {
    use super::super::test_driver::{Buffer, TestDriver, test_memory};
    use super::*;

    const LIMIT: ChainLimit = ChainLimit {
        readable: 4096,
        writable: 4096,
    };

    #[test]
    fn chains_come_in_order_and_go_back_with_their_length() {
        let memory = test_memory(1 << 20);
        let (mut driver, mut queue) = TestDriver::new(&memory, 0x1000, 8);
        let first = driver.add(&[Buffer::Readable(b"ping")]);
        let second = driver.add(&[Buffer::Readable(b"x"), Buffer::Writable(16)]);

        let chain = queue.pop(&memory, &LIMIT).unwrap().unwrap();
        assert_eq!(
            (chain.head(), chain.readable_left(), chain.writable_len()),
            (first, 4, 0)
        );
        queue.push(&memory, chain.head(), 0);
        let mut chain = queue.pop(&memory, &LIMIT).unwrap().unwrap();
        chain.write_all(&memory, b"pong").unwrap();
        queue.push(&memory, chain.head(), 4);
        assert!(queue.pop(&memory, &LIMIT).is_none());
        queue.notify(&memory);

        assert_eq!(driver.used(), vec![(first, 0), (second, 4)]);
        assert_eq!(driver.written(second, 4), b"pong");
        assert_eq!(driver.interrupts(), 1);
        assert_eq!(queue.mistakes(), 0);
    }

    #[test]
    fn driver_that_wants_no_interrupt_gets_none() {
        let memory = test_memory(1 << 20);
        let (mut driver, mut queue) = TestDriver::new(&memory, 0x1000, 8);
        driver.set_no_interrupt(true);
        queue.notify(&memory);
        assert_eq!(driver.interrupts(), 0);
        driver.set_no_interrupt(false);
        queue.notify(&memory);
        assert_eq!(driver.interrupts(), 1);
    }

    #[test]
    fn event_idx_interrupts_when_the_asked_entry_is_used_and_asks_for_the_next_kick() {
        let memory = test_memory(1 << 20);
        let (mut driver, mut queue) = TestDriver::with_event_idx(&memory, 0x1000, 8);
        driver.set_used_event(1); // interrupt me when entry 1 is used
        for _ in 0..2 {
            driver.add(&[Buffer::Writable(1)]);
        }
        let chain = queue.pop(&memory, &LIMIT).unwrap().unwrap();
        queue.push(&memory, chain.head(), 0);
        queue.notify(&memory);
        assert_eq!(driver.interrupts(), 0);
        let chain = queue.pop(&memory, &LIMIT).unwrap().unwrap();
        queue.push(&memory, chain.head(), 0);
        queue.notify(&memory);
        assert_eq!(driver.interrupts(), 1);
        assert!(queue.pop(&memory, &LIMIT).is_none());
        assert_eq!(driver.avail_event(), 2);
    }

    #[test]
    fn available_index_far_ahead_is_a_mistake_not_a_loop() {
        let memory = test_memory(1 << 20);
        let (mut driver, mut queue) = TestDriver::new(&memory, 0x1000, 8);
        driver.set_avail_idx(9);
        assert!(queue.pop(&memory, &LIMIT).is_none());
        assert_eq!(queue.mistakes(), 1);
    }

    #[test]
    fn head_outside_the_table_is_refused_both_ways() {
        let memory = test_memory(1 << 20);
        let (mut driver, mut queue) = TestDriver::new(&memory, 0x1000, 8);
        driver.offer_head(8);
        let (head, error) = queue.pop(&memory, &LIMIT).unwrap().unwrap_err();
        assert_eq!(head, 8);
        assert!(matches!(error, ChainError::Malformed(_)), "{error}");
        queue.push(&memory, head, 0);
        assert!(driver.used().is_empty());
        assert_eq!(queue.mistakes(), 2);
    }

    #[test]
    fn state_holds_what_the_driver_set_up_and_where_we_are() {
        let memory = test_memory(1 << 20);
        let (mut driver, mut queue) = TestDriver::new(&memory, 0x1000, 8);
        driver.add(&[Buffer::Writable(1)]);
        let chain = queue.pop(&memory, &LIMIT).unwrap().unwrap();
        assert_eq!((queue.state().next_avail, queue.state().next_used), (1, 0));
        queue.push(&memory, chain.head(), 1);
        assert_eq!(queue.state().next_used, 1);
        assert_eq!((queue.state().size, queue.state().desc_table), (8, 0x1000));
    }
}
