//! One connection as a pure state machine: packets in, what to do out. No descriptors and no guest
//! memory here; [`super::stream`] joins it with the host's end.
//!
//! ```text
//!            REQUEST sent         RESPONSE
//!   Queued ───────────────► Requested ──────► Open ──── both directions ended: RST ────► over
//!                               │ RST           │ RST from the guest, or a mistake of it
//!                               ▼               ▼
//!                            refused          reset
//! ```
//!
//! The primer is in [`super`].

use serde::{Deserialize, Serialize};

use super::credit::Credit;
use super::packet::{
    Header, Op, VIRTIO_VSOCK_HOST_CID, VIRTIO_VSOCK_SHUTDOWN_F_RECEIVE, VIRTIO_VSOCK_SHUTDOWN_F_SEND,
    VIRTIO_VSOCK_TYPE_STREAM,
};

/// How far a connection has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Phase {
    /// The guest knows nothing of it yet.
    Queued,
    /// Asked for; the guest has not answered.
    Requested,
    /// Bytes flow.
    Open,
}

/// The host's source of bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Input {
    /// There is none: only the preamble is sent. The direction is left open, which costs no packet, and
    /// ends with the connection.
    Absent,
    /// There may be more.
    Open,
    /// It has ended: the guest is told by a half-close.
    Ended,
}

/// How the protocol of a connection ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// The guest doesn't want the connection.
    Refused,
    /// The guest has said before that it sends no more: nothing was cut off.
    Closed,
    /// Broken off, by the guest or for a mistake of it.
    Reset,
}

/// What a packet from the guest leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reaction {
    /// Nothing beyond the new counters.
    None,
    /// The guest has accepted.
    Opened,
    /// Its payload is within the credit: take it, and count it by [`Connection::forwarded`] as it leaves.
    Deliver,
    /// The guest has ended one direction: look at [`Connection::guest_reads`] and [`Connection::guest_writes`].
    Shutdown,
    /// The connection is over.
    End {
        /// How.
        end: End,
        /// Whether the guest must be sent a RST.
        reset: bool,
    },
}

/// A connection's state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Connection {
    local_port: u32,
    peer_port: u32,
    phase: Phase,
    credit: Credit,
    /// Bytes to be sent before those of the input.
    preamble: Vec<u8>,
    preamble_sent: usize,
    input: Input,
    /// Nobody takes what the guest sends any more, and the guest should know.
    output_broken: bool,
    /// `VIRTIO_VSOCK_SHUTDOWN_F_*` that the guest was told.
    told_shutdown: u32,
    /// `VIRTIO_VSOCK_SHUTDOWN_F_*` that the guest has told.
    peer_shutdown: u32,
    /// The guest has asked for our credit.
    credit_requested: bool,
}

impl Connection {
    /// A connection that shall be opened from `local_port` of the host to `peer_port` of the guest.
    pub fn new(local_port: u32, peer_port: u32, preamble: Vec<u8>, has_input: bool) -> Connection {
        Connection {
            local_port,
            peer_port,
            phase: Phase::Queued,
            credit: Credit::default(),
            preamble,
            preamble_sent: 0,
            input: if has_input { Input::Open } else { Input::Absent },
            output_broken: false,
            told_shutdown: 0,
            peer_shutdown: 0,
            credit_requested: false,
        }
    }

    /// How far it has come.
    pub fn phase(&self) -> Phase {
        self.phase
    }

    /// The guest's port.
    pub fn peer_port(&self) -> u32 {
        self.peer_port
    }

    /// Bytes received that have not left the device.
    #[cfg(test)]
    pub fn held(&self) -> u32 {
        self.credit.held()
    }

    /// Whether the guest still takes bytes.
    pub fn guest_reads(&self) -> bool {
        self.peer_shutdown & VIRTIO_VSOCK_SHUTDOWN_F_RECEIVE == 0
    }

    /// Whether the guest may still send bytes.
    pub fn guest_writes(&self) -> bool {
        self.peer_shutdown & VIRTIO_VSOCK_SHUTDOWN_F_SEND == 0
    }

    /// A packet of this connection has arrived from the guest.
    pub fn receive(&mut self, header: &Header) -> Reaction {
        self.credit.peer_says(header.buf_alloc, header.fwd_cnt);
        let op = Op::from_wire(header.op);
        match self.phase {
            // Never reached by an honest guest: it can't know the port. The caller answers as to an
            // unknown connection.
            Phase::Queued => Reaction::None,
            Phase::Requested => match op {
                Some(Op::Response) => {
                    self.phase = Phase::Open;
                    Reaction::Opened
                }
                Some(Op::Rst) => Reaction::End {
                    end: End::Refused,
                    reset: false,
                },
                Some(Op::Request | Op::Shutdown | Op::Rw | Op::CreditUpdate | Op::CreditRequest) | None => {
                    Reaction::End {
                        end: End::Reset,
                        reset: true,
                    }
                }
            },
            Phase::Open => self.receive_open(op, header),
        }
    }

    fn receive_open(&mut self, op: Option<Op>, header: &Header) -> Reaction {
        const MISTAKE: Reaction = Reaction::End {
            end: End::Reset,
            reset: true,
        };
        const BOTH: u32 = VIRTIO_VSOCK_SHUTDOWN_F_RECEIVE | VIRTIO_VSOCK_SHUTDOWN_F_SEND;
        match op {
            Some(Op::Rw) if !self.guest_writes() || self.credit.receive(header.len).is_err() => MISTAKE,
            Some(Op::Rw) => Reaction::Deliver,
            Some(Op::Shutdown) => {
                self.peer_shutdown |= header.flags & BOTH;
                if self.peer_shutdown == BOTH {
                    return Reaction::End {
                        end: End::Closed,
                        reset: true,
                    };
                }
                Reaction::Shutdown
            }
            Some(Op::CreditUpdate) => Reaction::None,
            Some(Op::CreditRequest) => {
                self.credit_requested = true;
                Reaction::None
            }
            Some(Op::Rst) => {
                // When nobody takes the guest's bytes any more, nothing is cut off either.
                let end = if self.guest_writes() && !self.output_broken {
                    End::Reset
                } else {
                    End::Closed
                };
                Reaction::End { end, reset: false }
            }
            Some(Op::Request | Op::Response) | None => MISTAKE,
        }
    }

    /// `len` bytes that the guest sent have been written out, or discarded.
    pub fn forwarded(&mut self, len: u32) {
        self.credit.forwarded(len);
    }

    /// The host's input has ended.
    pub fn end_input(&mut self) {
        if self.input == Input::Open {
            self.input = Input::Ended;
        }
    }

    /// The host's output takes no more.
    pub fn break_output(&mut self) {
        self.output_broken = true;
    }

    /// Whether nothing can come any more in either direction: time for a RST.
    pub fn is_over(&self) -> bool {
        self.phase == Phase::Open && self.sent_all() && (!self.guest_writes() || self.output_broken)
    }

    /// Part of the preamble that was not sent yet.
    pub fn preamble_left(&self) -> &[u8] {
        &self.preamble[self.preamble_sent..]
    }

    /// Payload bytes that may be sent now, credit and phase considered.
    pub fn sendable(&self) -> u32 {
        if self.phase == Phase::Open && self.guest_reads() {
            self.credit.sendable()
        } else {
            0
        }
    }

    /// Whether bytes of the input (rather than of the preamble) are next.
    pub fn wants_input(&self) -> bool {
        self.input == Input::Open && self.preamble_left().is_empty()
    }

    /// Whether [`Connection::next_control`] has a packet.
    pub fn control_due(&self) -> bool {
        self.control().is_some()
    }

    /// The next packet without payload that the guest must get; it counts as sent.
    pub fn next_control(&mut self, guest_cid: u32) -> Option<Header> {
        let (op, flags) = self.control()?;
        match op {
            Op::Request => self.phase = Phase::Requested,
            Op::Shutdown => self.told_shutdown = flags,
            // A credit update, by its fields alone.
            Op::Response | Op::Rst | Op::Rw | Op::CreditUpdate | Op::CreditRequest => {}
        }
        Some(self.header(op, flags, 0, guest_cid))
    }

    /// Header of a packet with `len` bytes of payload, at most [`Connection::sendable`]; they count as
    /// sent, and as the preamble's as long as there is one.
    pub fn next_data(&mut self, len: u32, guest_cid: u32) -> Header {
        self.credit.sent(len);
        let left = self.preamble.len() - self.preamble_sent;
        self.preamble_sent += left.min(usize::try_from(len).unwrap_or(usize::MAX));
        if self.preamble_left().is_empty() {
            // Sent for good: give its memory back.
            (self.preamble, self.preamble_sent) = (Vec::new(), 0);
        }
        self.header(Op::Rw, 0, len, guest_cid)
    }

    /// A reset of this connection.
    pub fn reset(&mut self, guest_cid: u32) -> Header {
        self.header(Op::Rst, 0, 0, guest_cid)
    }

    fn control(&self) -> Option<(Op, u32)> {
        match self.phase {
            Phase::Queued => Some((Op::Request, 0)),
            Phase::Requested => None,
            Phase::Open => {
                let shutdown = self.shutdown_due();
                if shutdown & !self.told_shutdown != 0 {
                    // Flags add up (5.10.6.5): those told before are told again.
                    Some((Op::Shutdown, shutdown | self.told_shutdown))
                } else if self.credit_requested || self.credit.update_due() {
                    Some((Op::CreditUpdate, 0))
                } else {
                    None
                }
            }
        }
    }

    fn shutdown_due(&self) -> u32 {
        let mut flags = 0;
        if self.input == Input::Ended && self.sent_all() && self.guest_reads() {
            flags |= VIRTIO_VSOCK_SHUTDOWN_F_SEND;
        }
        if self.output_broken && self.guest_writes() {
            flags |= VIRTIO_VSOCK_SHUTDOWN_F_RECEIVE;
        }
        flags
    }

    fn sent_all(&self) -> bool {
        !self.guest_reads() || (self.preamble_left().is_empty() && self.input != Input::Open)
    }

    fn header(&mut self, op: Op, flags: u32, len: u32, guest_cid: u32) -> Header {
        self.credit_requested = false;
        let (buf_alloc, fwd_cnt) = self.credit.tell();
        Header {
            src_cid: VIRTIO_VSOCK_HOST_CID,
            dst_cid: guest_cid.into(),
            src_port: self.local_port,
            dst_port: self.peer_port,
            len,
            socket_type: VIRTIO_VSOCK_TYPE_STREAM,
            op: op.wire(),
            flags,
            buf_alloc,
            fwd_cnt,
        }
    }
}

#[cfg(test)]
#[path = "connection_tests.rs"]
mod tests;
