//! All streams of the device, and what happens to them: the part of the device that a snapshot keeps.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use vm_memory::VolatileSlice;

use super::connection::{Connection, End, Phase, Reaction};
use super::endpoint::{Epoll, HostEnd, Side};
use super::handle::{Command, Mailbox, StreamEvent, StreamId};
use super::packet::{Header, Op, VIRTIO_VSOCK_TYPE_STREAM};
use super::stream::{Flow, Stream};

/// Most resets that wait for receive buffers as answers to packets of no connection. A guest that sends
/// more of those without taking the answers gets no answer to the rest; as many as the largest queue that
/// Linux uses hold packets, so an honest guest never comes here.
const MAX_WAITING_RESETS: usize = 256;

/// What the streams need of the host.
#[derive(Debug)]
pub struct Host {
    /// Watches the descriptors of all streams.
    pub epoll: Epoll,
    /// Where events go.
    pub mailbox: Arc<Mailbox>,
    /// The guest's context id.
    pub guest_cid: u32,
}

/// Every stream, and the packets that are owed.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Table {
    /// By local port.
    streams: BTreeMap<u32, Stream>,
    /// Local ports of streams that have something for the guest, in the order of their turns.
    pub(super) turns: VecDeque<u32>,
    /// Resets owed.
    pub(super) resets: VecDeque<Header>,
    pub(super) mistakes: u64,
}

impl Table {
    /// Packets that the guest should not have sent, or that belong to no stream.
    pub fn mistakes(&self) -> u64 {
        self.mistakes
    }

    /// The stream at a local port.
    pub(super) fn stream(&mut self, port: u32) -> Option<&mut Stream> {
        self.streams.get_mut(&port)
    }

    /// Carries out what the handle asks.
    pub(super) fn command(&mut self, command: Command, host: &Host) {
        match command {
            Command::Connect {
                id,
                guest_port,
                preamble,
                endpoint,
            } => {
                let connection = Connection::new(id.0, guest_port, preamble, endpoint.input.is_some());
                match HostEnd::new(endpoint, id.0, &host.epoll) {
                    Ok(end) => {
                        self.streams.insert(id.0, Stream::new(connection, end));
                        self.settle(id.0, host);
                    }
                    Err(error) => {
                        let errno = error.raw_os_error().unwrap_or(libc::EIO);
                        host.mailbox.tell(id, StreamEvent::HostError { errno });
                    }
                }
            }
            Command::Close(id) => {
                if let Some(stream) = self.streams.get_mut(&id.0) {
                    stream.discard(&host.epoll);
                    // One that is ending already has no connection to reset.
                    let reset = stream.ending.is_none() && stream.connection.phase() != Phase::Queued;
                    self.end(id.0, StreamEvent::Aborted, reset, host);
                }
            }
            Command::GuestGone => self.end_all(host),
        }
    }

    /// Ends all streams that the guest knows of, as it has forgotten them. Those that it was not asked
    /// for yet stay.
    pub(super) fn end_all(&mut self, host: &Host) {
        self.resets.clear();
        let ports: Vec<u32> = self.streams.keys().copied().collect();
        for port in ports {
            let known =
                |stream: &Stream| stream.ending.is_none() && stream.connection.phase() != Phase::Queued;
            if self.streams.get(&port).is_some_and(known) {
                self.end(port, StreamEvent::DeviceReset, false, host);
            }
        }
    }

    /// A descriptor has become ready.
    pub(super) fn ready(&mut self, port: u32, side: Side, host: &Host) {
        let Some(stream) = self.streams.get_mut(&port) else {
            return;
        };
        stream.end.set_ready(side);
        let flow = stream.flush(&host.epoll);
        self.after_write(port, flow, host);
    }

    /// A packet for this device from the guest, whose payload (if it has any) is `payload`.
    pub(super) fn receive(&mut self, header: &Header, payload: Option<&[VolatileSlice<'_>]>, host: &Host) {
        let port = header.dst_port;
        let known = |stream: &&mut Stream| {
            header.socket_type == VIRTIO_VSOCK_TYPE_STREAM
                && stream.ending.is_none()
                && stream.connection.phase() != Phase::Queued
                && stream.connection.peer_port() == header.src_port
        };
        let Some(stream) = self.streams.get_mut(&port).filter(known) else {
            return self.answer_unknown(header);
        };
        match stream.connection.receive(header) {
            Reaction::None => self.settle(port, host),
            Reaction::Opened => {
                host.mailbox.tell(StreamId(port), StreamEvent::Opened);
                self.settle(port, host);
            }
            Reaction::Deliver => match payload {
                Some(payload) => {
                    let flow = stream.deliver(payload, &host.epoll);
                    self.after_write(port, flow, host);
                }
                // The header promises more than the chain holds.
                None => self.mistake(port, host),
            },
            Reaction::Shutdown => {
                if !stream.connection.guest_reads() {
                    stream.end.close_input(&host.epoll, true);
                }
                let flow = stream.flush(&host.epoll);
                self.after_write(port, flow, host);
            }
            Reaction::End {
                end: End::Reset,
                reset: true,
            } => self.mistake(port, host),
            Reaction::End { end, reset } => {
                let event = match end {
                    End::Refused => StreamEvent::Refused,
                    End::Closed => StreamEvent::Closed,
                    End::Reset => StreamEvent::Reset,
                };
                self.end(port, event, reset, host);
            }
        }
    }

    /// After a change: ends the stream if it is over, else gives it a turn if it has something to send.
    pub(super) fn settle(&mut self, port: u32, host: &Host) {
        let Some(stream) = self.streams.get_mut(&port) else {
            return;
        };
        if stream.ending.is_some() {
            if stream.is_drained() {
                self.finish(port, host);
            }
        } else if stream.connection.is_over() {
            self.end(port, StreamEvent::Closed, true, host);
        } else if !stream.listed && stream.has_work() {
            stream.listed = true;
            self.turns.push_back(port);
        }
    }

    fn mistake(&mut self, port: u32, host: &Host) {
        self.mistakes += 1;
        self.end(port, StreamEvent::Reset, true, host);
    }

    fn after_write(&mut self, port: u32, flow: Flow, host: &Host) {
        if let Flow::Broken { errno } = flow {
            host.mailbox
                .tell(StreamId(port), StreamEvent::OutputBroken { errno });
        }
        self.settle(port, host);
    }

    /// The protocol of this stream is over. It stays until what is held was written.
    fn end(&mut self, port: u32, event: StreamEvent, reset: bool, host: &Host) {
        let Some(stream) = self.streams.get_mut(&port) else {
            return;
        };
        if reset {
            // Beyond the bound for unknown packets: as many as the host has opened streams, at the most.
            self.resets.push_back(stream.connection.reset(host.guest_cid));
        }
        stream.end.close_input(&host.epoll, true);
        stream.ending = Some(event);
        if stream.is_drained() {
            self.finish(port, host);
        }
    }

    fn finish(&mut self, port: u32, host: &Host) {
        if let Some(mut stream) = self.streams.remove(&port) {
            stream.discard(&host.epoll);
            if let Some(event) = stream.ending {
                host.mailbox.tell(StreamId(port), event);
            }
        }
    }

    /// A packet of no connection is answered by a reset, but for a reset (VIRTIO 1.2, 5.10.6.5).
    fn answer_unknown(&mut self, header: &Header) {
        self.mistakes += 1;
        if Op::from_wire(header.op) == Some(Op::Rst) {
            return;
        }
        let reset = Header::reset_for(header);
        if self.resets.len() < MAX_WAITING_RESETS && !self.resets.contains(&reset) {
            self.resets.push_back(reset);
        }
    }
}
