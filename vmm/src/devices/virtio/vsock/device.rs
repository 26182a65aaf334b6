//! The device: queues on one side, streams on the other.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use super::endpoint::{Epoll, Token};
use super::handle::{Command, Mailbox, VsockHandle};
use super::session::Session;
use super::table::{Host, Table};
use crate::devices::virtio::{Activation, VirtioDevice};

/// Device id (VIRTIO 1.2, 5.10.1).
const VIRTIO_ID_VSOCK: u32 = 19;

/// Sizes of the receive, transmit and event queues (5.10.2).
///
/// Linux fills the receive queue with buffers of 4 KiB each at boot, so its size is guest memory and guest
/// instructions: 64 of them hold as much as a stream's window (256 KiB). Transmit packets hold up to 64
/// KiB, of which a window takes four; 64 leaves room for sixteen streams at once. Linux keeps 8 event
/// buffers.
const QUEUE_SIZES: [u16; 3] = [64, 64, 8];

const RX: usize = 0;
const TX: usize = 1;

/// Context ids that are not a guest's: hypervisor, local, host (5.10.4), and `VMADDR_CID_ANY`.
const RESERVED_CIDS: [u32; 4] = [0, 1, 2, u32::MAX];

/// Configuration of the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VsockConfig {
    /// The guest's context id.
    pub guest_cid: u32,
}

/// Why the device can't be made, or can't take a stream.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The context id belongs to someone else.
    #[error("context id {cid} is reserved")]
    ReservedCid {
        /// The id.
        cid: u32,
    },
    /// No eventfd or epoll instance is to be had.
    #[error("cannot make the descriptors of the vsock device")]
    Descriptors(#[source] io::Error),
    /// The device no longer exists.
    #[error("the vsock device is gone")]
    DeviceGone,
    /// Each port is used once.
    #[error("the vsock device has used all its ports")]
    PortsExhausted,
}

/// The virtio-vsock device.
pub struct Vsock {
    host: Host,
    table: Table,
    /// Between activation and reset.
    session: Option<Session>,
    /// The driver has reset the device, and its streams were not told yet.
    was_reset: bool,
}

impl Vsock {
    /// A device, and the handle by which the runtime uses it.
    ///
    /// # Errors
    /// [`Error::ReservedCid`] and [`Error::Descriptors`].
    pub fn new(config: VsockConfig) -> Result<(Vsock, VsockHandle), Error> {
        if RESERVED_CIDS.contains(&config.guest_cid) {
            return Err(Error::ReservedCid {
                cid: config.guest_cid,
            });
        }
        let mailbox = Arc::new(Mailbox::new().map_err(Error::Descriptors)?);
        let epoll = Epoll::new().map_err(Error::Descriptors)?;
        epoll.watch_wake(mailbox.wake_fd()).map_err(Error::Descriptors)?;
        let handle = VsockHandle::new(Arc::clone(&mailbox));
        let host = Host {
            epoll,
            mailbox,
            guest_cid: config.guest_cid,
        };
        Ok((
            Vsock {
                host,
                table: Table::default(),
                session: None,
                was_reset: false,
            },
            handle,
        ))
    }

    /// All that changes, but for descriptors and queues, for a snapshot: receive buffers that the device
    /// held back are given to the driver empty first, so that nothing else is in its hands.
    pub fn state(&mut self) -> &Table {
        self.finish_reset();
        if let Some(session) = &mut self.session {
            session.release_spares();
        }
        &self.table
    }

    fn run_commands(&mut self) {
        for command in self.host.mailbox.take_commands() {
            if let (Command::GuestGone, Some(session)) = (&command, &mut self.session) {
                // What it sent before its end still counts.
                session.take_all(&mut self.table, &self.host);
            }
            self.table.command(command, &self.host);
        }
    }

    /// What a reset leaves to do, before anything else is done with the streams.
    fn finish_reset(&mut self) {
        if std::mem::take(&mut self.was_reset) {
            self.table.end_all(&self.host);
        }
    }

    /// Takes what the guest has sent, if `take`, and sends what there is for it.
    fn exchange(&mut self, take: bool) {
        if let Some(session) = &mut self.session {
            if take {
                session.take(&mut self.table, &self.host);
            }
            session.send(&mut self.table, &self.host);
            session.notify();
        }
    }
}

impl VirtioDevice for Vsock {
    fn device_type(&self) -> u32 {
        VIRTIO_ID_VSOCK
    }

    fn name(&self) -> &str {
        "vsock"
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn features(&self) -> u64 {
        // None offered: streams only (5.10.3).
        0
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        // struct virtio_vsock_config: le64 guest_cid (5.10.4).
        let config = u64::from(self.host.guest_cid).to_le_bytes();
        let tail = usize::try_from(offset)
            .ok()
            .and_then(|offset| config.get(offset..))
            .unwrap_or_default();
        let len = tail.len().min(data.len());
        data[..len].copy_from_slice(&tail[..len]);
    }

    // Both are called for a register write, so by a vCPU's thread, which is to have few system calls: they
    // leave the work to the device's own.

    fn activate(&mut self, activation: Activation) {
        self.session = Session::new(activation);
        self.host.mailbox.wake();
    }

    fn reset(&mut self) {
        self.session = None;
        self.was_reset = true;
        self.host.mailbox.wake();
    }

    fn queue_kicked(&mut self, index: usize) {
        self.finish_reset();
        // The event queue only gets buffers for events, of which there are none to tell.
        if index == TX || index == RX {
            self.exchange(index == TX);
        }
    }

    fn event_fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.host.epoll.as_fd())
    }

    fn event_ready(&mut self) {
        self.finish_reset();
        let mut woken = false;
        for token in self.host.epoll.ready() {
            match token {
                Token::Wake => woken = true,
                Token::Stream(port, side) => self.table.ready(port, side, &self.host),
            }
        }
        if woken {
            self.run_commands();
        }
        // A device that has woken itself has cut a batch short.
        self.exchange(woken);
    }
}

impl Drop for Vsock {
    fn drop(&mut self) {
        self.host.mailbox.shut();
    }
}

#[cfg(test)]
#[path = "device_tests.rs"]
mod tests;
