//! The guest's side for tests: its driver's rings, and streams as Linux's socket layer keeps them.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use vm_memory::{Bytes, GuestAddress};

use super::device::{Vsock, VsockConfig};
use super::handle::{StreamEvent, StreamId, VsockHandle};
use super::packet::{HEADER_LEN, Header, Op};
use crate::devices::virtio::queue::DeviceQueue;
use crate::devices::virtio::test_driver::{NEXT, RawDescriptor, TestDriver, WRITE, test_memory};
use crate::devices::virtio::{Activation, GuestMemory, VirtioDevice};

pub const GUEST_CID: u32 = 3;
pub const RX: usize = 0;
pub const TX: usize = 1;

/// Linux's receive buffer: `SKB_WITH_OVERHEAD(4096)`, header included.
const RX_BUFFER: u32 = 3776;
const RX_BUFFERS: u16 = 64;
const RX_AT: u64 = 0x10_0000;
/// A transmit packet takes two descriptors.
const TX_PACKETS: u16 = 32;
const TX_AT: u64 = 0x20_0000;
const TX_STRIDE: u64 = 0x11000;

/// A device, its handle, and the driver of its queues.
pub struct FakeGuest {
    pub device: Vsock,
    pub handle: VsockHandle,
    pub rx: TestDriver,
    pub tx: TestDriver,
    memory: GuestMemory,
    free_tx: Vec<u16>,
    /// Events seen so far.
    pub events: Vec<(StreamId, StreamEvent)>,
}

impl FakeGuest {
    /// A device that waits for its driver.
    pub fn new() -> FakeGuest {
        let memory = test_memory(0x50_0000);
        let (device, handle) = Vsock::new(VsockConfig { guest_cid: GUEST_CID }).unwrap();
        let (rx, _) = TestDriver::new(&memory, 0x1000, RX_BUFFERS);
        let (tx, _) = TestDriver::new(&memory, 0x4_0000, 2 * TX_PACKETS);
        FakeGuest {
            device,
            handle,
            rx,
            tx,
            memory,
            free_tx: Vec::new(),
            events: Vec::new(),
        }
    }

    /// The driver starts, with all its receive buffers when `buffers`.
    pub fn activate(&mut self, buffers: bool) {
        self.activate_with(TestDriver::new, buffers);
    }

    /// As [`FakeGuest::activate`], with a kind of queue.
    pub fn activate_with(
        &mut self,
        queue: fn(&GuestMemory, u64, u16) -> (TestDriver, DeviceQueue),
        buffers: bool,
    ) {
        let (rx, rx_queue) = queue(&self.memory, 0x1000, RX_BUFFERS);
        let (tx, tx_queue) = queue(&self.memory, 0x4_0000, 2 * TX_PACKETS);
        let (_, event_queue) = queue(&self.memory, 0x8_0000, 8);
        (self.rx, self.tx) = (rx, tx);
        for at in [0x1000u64, 0x4_0000, 0x8_0000] {
            // Rings of an earlier life.
            self.memory.write_slice(&[0; 0x2000], GuestAddress(at)).unwrap();
        }
        self.free_tx = (0..TX_PACKETS).collect();
        for i in 0..RX_BUFFERS {
            let addr = RX_AT + 4096 * u64::from(i);
            self.rx.set_descriptor(
                i,
                RawDescriptor {
                    addr,
                    len: RX_BUFFER,
                    flags: WRITE,
                    next: 0,
                },
            );
        }
        let queues = vec![rx_queue, tx_queue, event_queue];
        self.device.activate(Activation {
            memory: self.memory.clone(),
            features: 0,
            queues,
        });
        if buffers {
            self.offer_all();
        }
    }

    /// All receive buffers become available.
    pub fn offer_all(&mut self) {
        (0..RX_BUFFERS).for_each(|i| self.rx.offer_head(i));
        self.device.queue_kicked(RX);
    }

    /// Puts a packet into the transmit queue; the device is not kicked.
    pub fn queue(&mut self, header: &Header, payload: &[u8]) {
        let slot = self.free_tx.pop().expect("a free transmit slot");
        let addr = TX_AT + TX_STRIDE * u64::from(slot);
        self.memory
            .write_slice(&header.to_bytes(), GuestAddress(addr))
            .unwrap();
        self.memory.write_slice(payload, GuestAddress(addr + 64)).unwrap();
        let flags = if payload.is_empty() { 0 } else { NEXT };
        let header_len = u32::try_from(HEADER_LEN).unwrap();
        let len = u32::try_from(payload.len()).unwrap();
        self.tx.set_descriptor(
            2 * slot,
            RawDescriptor {
                addr,
                len: header_len,
                flags,
                next: 2 * slot + 1,
            },
        );
        self.tx.set_descriptor(
            2 * slot + 1,
            RawDescriptor {
                addr: addr + 64,
                len,
                flags: 0,
                next: 0,
            },
        );
        self.tx.offer_head(2 * slot);
    }

    pub fn kick_tx(&mut self) {
        self.device.queue_kicked(TX);
        self.reclaim();
    }

    fn reclaim(&mut self) {
        for (head, written) in self.tx.used() {
            assert_eq!(written, 0, "transmit buffers are not written");
            self.free_tx.push(head / 2);
        }
    }

    pub fn tx_slots(&mut self) -> usize {
        self.reclaim();
        self.free_tx.len()
    }

    /// Sends one packet.
    pub fn send(&mut self, header: &Header, payload: &[u8]) {
        self.queue(header, payload);
        self.kick_tx();
    }

    /// Takes what the device has sent, and gives it the buffers back when `refill`.
    pub fn receive(&mut self, refill: bool) -> Vec<(Header, Vec<u8>)> {
        let mut packets = Vec::new();
        let used = self.rx.used();
        for &(head, written) in &used {
            let written = usize::try_from(written).unwrap();
            if written > 0 {
                let mut bytes = vec![0; written];
                self.memory
                    .read_slice(&mut bytes, GuestAddress(RX_AT + 4096 * u64::from(head)))
                    .unwrap();
                let header = Header::from_bytes(bytes.first_chunk().unwrap());
                let payload = bytes.split_off(HEADER_LEN);
                assert_eq!(usize::try_from(header.len).unwrap(), payload.len());
                packets.push((header, payload));
            }
            if refill {
                self.rx.offer_head(head);
            }
        }
        if refill && !used.is_empty() {
            self.device.queue_kicked(RX);
        }
        packets
    }

    /// Whether the device's descriptor becomes readable in that time.
    pub fn wait(&self, time: Duration) -> bool {
        let fd = self.device.event_fd().unwrap();
        let mut fds = [rustix::event::PollFd::new(&fd, rustix::event::PollFlags::IN)];
        let timeout = rustix::event::Timespec::try_from(time).unwrap();
        rustix::event::poll(&mut fds, Some(&timeout)).unwrap() > 0
    }

    /// Runs the device until its descriptors are quiet for a moment.
    pub fn run(&mut self) {
        while self.wait(Duration::from_millis(5)) {
            self.device.event_ready();
        }
        self.events.extend(self.handle.take_events());
    }

    /// The last event of a stream.
    pub fn ended(&self, id: StreamId) -> Option<StreamEvent> {
        self.events
            .iter()
            .find(|(of, event)| *of == id && event.is_final())
            .map(|(_, event)| *event)
    }
}

/// One stream in the guest.
pub struct GuestStream {
    host_port: u32,
    guest_port: u32,
    /// What the guest's process has not read yet.
    pub received: VecDeque<u8>,
    fwd_cnt: u32,
    told: u32,
    tx_cnt: u32,
    host_buf_alloc: u32,
    host_fwd_cnt: u32,
    /// Shutdown flags of the host.
    pub host_shutdown: u32,
    pub reset: bool,
}

impl GuestStream {
    pub const BUF_ALLOC: u32 = 256 << 10;

    pub fn credit(&self) -> u32 {
        self.host_buf_alloc - self.tx_cnt.wrapping_sub(self.host_fwd_cnt)
    }

    pub fn packet(&mut self, op: Op, flags: u32, len: usize) -> Header {
        self.told = self.fwd_cnt;
        let len = u32::try_from(len).unwrap();
        self.tx_cnt = self.tx_cnt.wrapping_add(len);
        Header {
            src_cid: GUEST_CID.into(),
            dst_cid: 2,
            src_port: self.guest_port,
            dst_port: self.host_port,
            len,
            socket_type: 1,
            op: op.wire(),
            flags,
            buf_alloc: Self::BUF_ALLOC,
            fwd_cnt: self.fwd_cnt,
        }
    }

    /// The process reads; returns an update for the host when Linux would send one.
    pub fn read(&mut self, most: usize) -> (Vec<u8>, Option<Header>) {
        let bytes: Vec<u8> = self.received.drain(..most.min(self.received.len())).collect();
        self.fwd_cnt = self.fwd_cnt.wrapping_add(u32::try_from(bytes.len()).unwrap());
        let untold = self.fwd_cnt.wrapping_sub(self.told);
        let due = untold > 0 && (Self::BUF_ALLOC - untold < 64 << 10 || self.received.is_empty());
        let update = due.then(|| self.packet(Op::CreditUpdate, 0, 0));
        (bytes, update)
    }
}

/// The guest's streams, by the host's port.
#[derive(Default)]
pub struct GuestSockets {
    pub streams: HashMap<u32, GuestStream>,
}

impl GuestSockets {
    /// Handles packets from the host as a Linux that listens on every port does, and answers them.
    pub fn handle(&mut self, guest: &mut FakeGuest, packets: Vec<(Header, Vec<u8>)>) {
        for (header, payload) in packets {
            assert_eq!(
                (header.src_cid, header.dst_cid, header.socket_type),
                (2, GUEST_CID.into(), 1)
            );
            let op = Op::from_wire(header.op).unwrap();
            if op == Op::Request {
                let stream = GuestStream {
                    host_port: header.src_port,
                    guest_port: header.dst_port,
                    received: VecDeque::new(),
                    fwd_cnt: 0,
                    told: 0,
                    tx_cnt: 0,
                    host_buf_alloc: 0,
                    host_fwd_cnt: 0,
                    host_shutdown: 0,
                    reset: false,
                };
                assert!(
                    self.streams.insert(header.src_port, stream).is_none(),
                    "a port used twice"
                );
            }
            let stream = self
                .streams
                .get_mut(&header.src_port)
                .expect("a stream that was asked for");
            assert_eq!(stream.guest_port, header.dst_port);
            assert!(!stream.reset, "{op:?} after a reset");
            stream.host_buf_alloc = header.buf_alloc;
            stream.host_fwd_cnt = header.fwd_cnt;
            match op {
                Op::Request => {
                    let response = stream.packet(Op::Response, 0, 0);
                    guest.send(&response, &[]);
                }
                Op::Rw => {
                    assert!(stream.host_shutdown & 2 == 0, "payload after the half-close");
                    stream.received.extend(payload);
                    assert!(
                        stream.received.len() <= GuestStream::BUF_ALLOC as usize,
                        "beyond the credit"
                    );
                }
                Op::Shutdown => stream.host_shutdown |= header.flags,
                Op::Rst => stream.reset = true,
                Op::CreditUpdate => {}
                Op::Response | Op::CreditRequest => panic!("{op:?} from the host"),
            }
        }
    }

    /// Lets device and guest exchange packets until both are quiet.
    pub fn run(&mut self, guest: &mut FakeGuest) {
        loop {
            guest.run();
            let packets = guest.receive(true);
            if packets.is_empty() {
                return;
            }
            self.handle(guest, packets);
        }
    }

    /// Sends as much of `bytes` as credit and the ring allow; returns how much that was.
    pub fn send(&mut self, guest: &mut FakeGuest, host_port: u32, bytes: &[u8]) -> usize {
        let stream = self.streams.get_mut(&host_port).unwrap();
        let mut sent = 0;
        while sent < bytes.len() && guest.tx_slots() > 0 {
            let len = (bytes.len() - sent).min(64 << 10).min(stream.credit() as usize);
            if len == 0 {
                break;
            }
            let header = stream.packet(Op::Rw, 0, len);
            guest.queue(&header, &bytes[sent..sent + len]);
            sent += len;
        }
        guest.kick_tx();
        sent
    }
}
