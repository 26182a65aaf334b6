//! The queues between activation and reset: packets out of the transmit queue, packets into the receive
//! queue.
//!
//! The driver is interrupted once for all that one call of the device has done. A batch ends early when it
//! has become long, so that a guest that never stops cannot keep the event loop from its other devices;
//! the device then wakes itself.

use std::collections::VecDeque;

use vm_memory::VolatileSlice;

use super::endpoint::Transfer;
use super::packet::{HEADER_LEN, Header, MAX_PAYLOAD, VIRTIO_VSOCK_HOST_CID};
use super::stream::Stream;
use super::table::{Host, Table};
use crate::devices::virtio::chain::{Chain, ChainLimit};
use crate::devices::virtio::queue::DeviceQueue;
use crate::devices::virtio::{Activation, GuestMemory};

/// One packet each way. A driver may offer receive buffers as large as it likes to send packets, not more.
const LIMIT: ChainLimit = ChainLimit {
    readable: HEADER_LEN + MAX_PAYLOAD,
    writable: HEADER_LEN + MAX_PAYLOAD,
};

/// Most chains taken from a queue before other devices get their turn: four times round the queue.
const BATCH: usize = 256;

/// Most receive buffers filled by one read of an input. Linux's hold 3,732 bytes, so this is close to the
/// 64 KiB that a pipe holds.
const BULK_CHAINS: usize = 16;

/// Queues and memory of an active device.
pub struct Session {
    memory: GuestMemory,
    rx: DeviceQueue,
    tx: DeviceQueue,
    /// The event queue: kept, so that the driver's buffers stay the device's. No event is ever sent, as
    /// the guest's context id does not change under it.
    _event: DeviceQueue,
    /// Receive buffers taken from the queue for bytes that then did not come. Used first. At most
    /// [`BULK_CHAINS`].
    spare: VecDeque<Chain>,
    /// Receive buffers, and transmit packets, were given back since the driver was last notified.
    filled: bool,
    taken: bool,
}

/// What came of one turn of a stream.
enum Turn {
    /// So many packets were sent.
    Sent(usize),
    /// There is nothing to send at the moment.
    Idle,
    /// There are no receive buffers.
    Starved,
}

impl Session {
    /// `None` when the transport hands over a wrong number of queues, which it never does.
    pub fn new(activation: Activation) -> Option<Session> {
        let [rx, tx, event] = <[DeviceQueue; 3]>::try_from(activation.queues).ok()?;
        Some(Session {
            memory: activation.memory,
            rx,
            tx,
            _event: event,
            spare: VecDeque::new(),
            filled: false,
            taken: false,
        })
    }

    /// Gives receive buffers that are held back to the driver, empty: Linux drops and replaces them. For
    /// a snapshot, which keeps queues but no chains.
    pub fn release_spares(&mut self) {
        for chain in std::mem::take(&mut self.spare) {
            self.rx.push(&self.memory, chain.head(), 0);
            self.filled = true;
        }
        self.notify();
    }

    /// Interrupts the driver for what was done since the last call, if it wants that.
    pub fn notify(&mut self) {
        if std::mem::take(&mut self.filled) {
            self.rx.notify(&self.memory);
        }
        if std::mem::take(&mut self.taken) {
            self.tx.notify(&self.memory);
        }
    }

    /// Takes packets from the guest, one batch.
    pub fn take(&mut self, table: &mut Table, host: &Host) {
        if !self.take_batch(table, host) {
            host.mailbox.wake();
        }
    }

    /// Takes all packets of a guest that sends no more.
    pub fn take_all(&mut self, table: &mut Table, host: &Host) {
        // Bounded all the same, should the caller be wrong about the guest.
        let _ = (0..BATCH).any(|_| self.take_batch(table, host));
    }

    /// Returns whether the queue was emptied.
    fn take_batch(&mut self, table: &mut Table, host: &Host) -> bool {
        for _ in 0..BATCH {
            let head = match self.tx.pop(&self.memory, &LIMIT) {
                None => return true,
                Some(Err((head, _))) => head,
                Some(Ok(chain)) => self.packet(chain, table, host),
            };
            self.tx.push(&self.memory, head, 0);
            self.taken = true;
        }
        false
    }

    fn packet(&self, mut chain: Chain, table: &mut Table, host: &Host) -> u16 {
        let head = chain.head();
        let mut bytes = [0; HEADER_LEN];
        if chain.read_exact(&self.memory, &mut bytes).is_err() {
            table.mistakes += 1;
            return head;
        }
        let header = Header::from_bytes(&bytes);
        if header.src_cid != u64::from(host.guest_cid) || header.dst_cid != VIRTIO_VSOCK_HOST_CID {
            // Not from this guest or not for this host: there is nobody to answer to.
            table.mistakes += 1;
            return head;
        }
        let payload = usize::try_from(header.len)
            .ok()
            .and_then(|len| chain.readable_slices(&self.memory, len).ok());
        table.receive(&header, payload.as_deref(), host);
        head
    }

    /// Sends what there is for the guest, as far as receive buffers go, one batch.
    pub fn send(&mut self, table: &mut Table, host: &Host) {
        let mut budget = BATCH;
        while budget > 0 {
            let turn = if table.resets.is_empty() {
                let Some(&port) = table.turns.front() else { break };
                self.turn(port, &mut budget, table, host)
            } else {
                self.send_reset(&mut budget, table)
            };
            match turn {
                Turn::Sent(packets) => budget = budget.saturating_sub(packets),
                Turn::Idle => {}
                Turn::Starved => break,
            }
        }
        if budget == 0 {
            host.mailbox.wake();
        }
    }

    fn send_reset(&mut self, budget: &mut usize, table: &mut Table) -> Turn {
        let Some(chain) = self.rx_chain(HEADER_LEN, budget) else {
            return Turn::Starved;
        };
        if let Some(header) = table.resets.pop_front() {
            self.fill(chain, header, 0);
        }
        Turn::Sent(1)
    }

    /// The turn of the stream at the front of the list.
    fn turn(&mut self, port: u32, budget: &mut usize, table: &mut Table, host: &Host) -> Turn {
        let turn = match table.stream(port) {
            Some(stream) if stream.has_work() => {
                if stream.connection.control_due() {
                    match self.rx_chain(HEADER_LEN, budget) {
                        Some(chain) => {
                            if let Some(header) = stream.connection.next_control(host.guest_cid) {
                                self.fill(chain, header, 0);
                            }
                            Turn::Sent(1)
                        }
                        None => Turn::Starved,
                    }
                } else if stream.connection.preamble_left().is_empty() {
                    self.send_input(stream, budget, host)
                } else {
                    self.send_preamble(stream, budget, host)
                }
            }
            Some(_) | None => Turn::Idle,
        };
        if !matches!(turn, Turn::Starved) {
            // To the end of the list, if there is more.
            table.turns.pop_front();
            if let Some(stream) = table.stream(port) {
                stream.listed = false;
                table.settle(port, host);
            }
        }
        turn
    }

    fn send_preamble(&mut self, stream: &mut Stream, budget: &mut usize, host: &Host) -> Turn {
        let Some(mut chain) = self.rx_chain(HEADER_LEN + 1, budget) else {
            return Turn::Starved;
        };
        let room = chain.writable_len() - HEADER_LEN;
        let preamble = stream.connection.preamble_left();
        let len = preamble
            .len()
            .min(room)
            .min(in_usize(stream.connection.sendable()));
        if chain.write_at(&self.memory, HEADER_LEN, &preamble[..len]).is_ok() {
            let header = stream.connection.next_data(in_u32(len), host.guest_cid);
            self.fill(chain, header, len);
        }
        Turn::Sent(1)
    }

    /// Reads from the input straight into receive buffers: into one, or into many once the input has
    /// shown that it has many bytes.
    fn send_input(&mut self, stream: &mut Stream, budget: &mut usize, host: &Host) -> Turn {
        let credit = in_usize(stream.connection.sendable());
        let (chains, room) = self.rx_chains(if stream.bulk { BULK_CHAINS } else { 1 }, credit, budget);
        if chains.is_empty() {
            return Turn::Starved;
        }
        let transfer = stream.end.read(&payload_slices(&chains, room, &self.memory));
        stream.bulk = transfer == Transfer::Bytes(room);
        match transfer {
            Transfer::Bytes(bytes) => {
                let (mut left, mut packets) = (bytes, 0);
                let mut chains = chains.into_iter();
                while left > 0
                    && let Some(chain) = chains.next()
                {
                    let len = left.min(chain.writable_len() - HEADER_LEN);
                    left -= len;
                    packets += 1;
                    let header = stream.connection.next_data(in_u32(len), host.guest_cid);
                    self.fill(chain, header, len);
                }
                self.put_back(chains);
                Turn::Sent(packets)
            }
            Transfer::Blocked => {
                self.put_back(chains.into_iter());
                Turn::Idle
            }
            Transfer::Ended(_) => {
                // Of a file or of a pipe; or an error, such as EIO of a terminal that was hung up.
                self.put_back(chains.into_iter());
                stream.end.close_input(&host.epoll, false);
                stream.connection.end_input();
                Turn::Idle
            }
        }
    }

    /// Up to `count` receive buffers, but no more than are needed for `credit` bytes; and the bytes of
    /// payload that may go into them.
    fn rx_chains(&mut self, count: usize, credit: usize, budget: &mut usize) -> (Vec<Chain>, usize) {
        let (mut chains, mut room) = (Vec::with_capacity(count), 0);
        while chains.len() < count && room < credit {
            let Some(chain) = self.rx_chain(HEADER_LEN + 1, budget) else {
                break;
            };
            room += chain.writable_len() - HEADER_LEN;
            chains.push(chain);
        }
        (chains, room.min(credit))
    }

    /// The next receive buffer. One that cannot hold `least` bytes goes back empty.
    fn rx_chain(&mut self, least: usize, budget: &mut usize) -> Option<Chain> {
        while *budget > 0 {
            let head = match self
                .spare
                .pop_front()
                .map(Ok)
                .or_else(|| self.rx.pop(&self.memory, &LIMIT))?
            {
                Ok(chain) if chain.writable_len() >= least => return Some(chain),
                Ok(chain) => chain.head(),
                Err((head, _)) => head,
            };
            self.rx.push(&self.memory, head, 0);
            self.filled = true;
            *budget -= 1;
        }
        None
    }

    /// Keeps receive buffers for the next packets, in their order.
    fn put_back(&mut self, chains: impl DoubleEndedIterator<Item = Chain>) {
        for chain in chains.rev() {
            self.spare.push_front(chain);
        }
    }

    /// Completes a packet whose `len` bytes of payload are in place, and gives it to the driver.
    fn fill(&mut self, mut chain: Chain, header: Header, len: usize) {
        let written = match chain.write_at(&self.memory, 0, &header.to_bytes()) {
            Ok(()) => in_u32(HEADER_LEN + len),
            // The chain was checked and has room: never so. The driver drops an empty one.
            Err(_) => 0,
        };
        self.rx.push(&self.memory, chain.head(), written);
        self.filled = true;
    }
}

/// The first `room` bytes for payload of all `chains`.
fn payload_slices<'m>(chains: &[Chain], mut room: usize, memory: &'m GuestMemory) -> Vec<VolatileSlice<'m>> {
    let mut slices = Vec::with_capacity(chains.len());
    for chain in chains {
        let len = room.min(chain.writable_len() - HEADER_LEN);
        room -= len;
        let part = chain.writable_slices(memory, HEADER_LEN, len);
        slices.extend(part.expect("the chain was checked, and guest memory doesn't shrink"));
    }
    slices
}

fn in_usize(bytes: u32) -> usize {
    usize::try_from(bytes).unwrap_or(usize::MAX)
}

fn in_u32(bytes: usize) -> u32 {
    u32::try_from(bytes).expect("a packet holds no more than MAX_PAYLOAD bytes and a header")
}
