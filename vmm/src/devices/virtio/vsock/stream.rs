//! A stream: the connection to the guest, the host's end, and between them the bytes that the host's
//! reader has not taken yet.

use std::collections::VecDeque;
use std::io::IoSlice;

use serde::{Deserialize, Serialize};
use vm_memory::VolatileSlice;

use super::connection::Connection;
use super::credit::BUF_ALLOC;
use super::endpoint::{Epoll, HostEnd, Transfer};
use super::handle::StreamEvent;

/// One stream of the device.
#[derive(Debug, Serialize, Deserialize)]
pub struct Stream {
    /// Its protocol state.
    pub connection: Connection,
    /// Bytes from the guest that wait for the output, at most [`BUF_ALLOC`] (the connection's credit sees
    /// to that). Has no allocation while it is empty, which is nearly always.
    held: VecDeque<u8>,
    /// The protocol is over, and this is to be told once `held` is empty.
    pub ending: Option<StreamEvent>,
    /// It stands in the list of those that have something for the guest.
    pub listed: bool,
    /// The input filled all the space that it was given the last time: give it more.
    pub bulk: bool,
    /// The descriptors. A restored stream has none.
    #[serde(skip)]
    pub end: HostEnd,
}

/// What became of an attempt to write to the output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum Flow {
    /// All is written, or waits for the output to become ready.
    Fine,
    /// The output broke just now.
    Broken {
        /// Why.
        errno: i32,
    },
}

impl Stream {
    /// A stream at its start.
    pub fn new(connection: Connection, end: HostEnd) -> Stream {
        Stream {
            connection,
            held: VecDeque::new(),
            ending: None,
            listed: false,
            bulk: false,
            end,
        }
    }

    /// Whether every byte of the guest has left.
    pub fn is_drained(&self) -> bool {
        self.held.is_empty()
    }

    /// Bytes of the guest that wait for the output.
    #[cfg(test)]
    pub fn held_len(&self) -> usize {
        self.held.len()
    }

    /// Whether there is something for the guest, given receive buffers.
    pub fn has_work(&self) -> bool {
        let data = self.connection.sendable() > 0
            && (!self.connection.preamble_left().is_empty()
                || (self.connection.wants_input() && self.end.can_read()));
        self.ending.is_none() && (data || self.connection.control_due())
    }

    /// Takes a packet's payload: straight to the output as far as that goes, the rest is held.
    pub fn deliver(&mut self, payload: &[VolatileSlice<'_>], epoll: &Epoll) -> Flow {
        let len = total(payload);
        if !self.end.has_output() {
            self.forwarded(len);
            return Flow::Fine;
        }
        let mut written = 0;
        if len > 0 && self.held.is_empty() && self.end.can_write() {
            match self.end.write_guest(payload) {
                Transfer::Bytes(bytes) => written = bytes,
                Transfer::Blocked => {}
                Transfer::Ended(errno) => {
                    self.forwarded(len);
                    return self.break_output(errno, epoll);
                }
            }
        }
        self.forwarded(written);
        self.hold(payload, written);
        self.flush(epoll)
    }

    /// Writes held bytes until none is left or the output blocks.
    pub fn flush(&mut self, epoll: &Epoll) -> Flow {
        while !self.held.is_empty() && self.end.can_write() {
            let (front, back) = self.held.as_slices();
            match self.end.write(&[IoSlice::new(front), IoSlice::new(back)]) {
                Transfer::Bytes(bytes) => {
                    self.held.drain(..bytes);
                    self.forwarded(bytes);
                }
                Transfer::Blocked => {}
                Transfer::Ended(errno) => return self.break_output(errno, epoll),
            }
        }
        if self.held.is_empty() {
            self.held = VecDeque::new();
            if !self.connection.guest_writes() {
                self.end.close_output(epoll);
            }
        }
        Flow::Fine
    }

    /// Forgets held bytes and lets go of both descriptors.
    pub fn discard(&mut self, epoll: &Epoll) {
        self.forwarded(self.held.len());
        self.held = VecDeque::new();
        self.end.close_input(epoll, true);
        self.end.close_output(epoll);
    }

    /// The output takes no more: neither what is held nor what will come.
    fn break_output(&mut self, errno: Option<i32>, epoll: &Epoll) -> Flow {
        self.forwarded(self.held.len());
        self.held = VecDeque::new();
        self.end.close_output(epoll);
        self.connection.break_output();
        // No errno: a write of some bytes that wrote none. No file that we know does that.
        Flow::Broken {
            errno: errno.unwrap_or(libc::EIO),
        }
    }

    /// Copies `payload` without its first `skip` bytes.
    fn hold(&mut self, payload: &[VolatileSlice<'_>], mut skip: usize) {
        for slice in payload {
            let begin = skip.min(slice.len());
            skip -= begin;
            let at = self.held.len();
            self.held.resize(at + slice.len() - begin, 0);
            let (front, back) = self.held.as_mut_slices();
            let (front, back) = if at < front.len() {
                (&mut front[at..], back)
            } else {
                (&mut back[at - front.len()..], &mut [][..])
            };
            copy(slice, begin, front);
            copy(slice, begin + front.len(), back);
        }
        debug_assert!(self.held.len() <= BUF_ALLOC as usize);
    }

    fn forwarded(&mut self, len: usize) {
        self.connection
            .forwarded(u32::try_from(len).expect("no more than BUF_ALLOC bytes are held"));
    }
}

/// Bytes of all `slices`.
pub fn total(slices: &[VolatileSlice<'_>]) -> usize {
    slices.iter().map(VolatileSlice::len).sum()
}

fn copy(slice: &VolatileSlice<'_>, offset: usize, to: &mut [u8]) {
    if !to.is_empty() {
        slice
            .offset(offset)
            .expect("the offset lies within the slice")
            .copy_to(to);
    }
}
