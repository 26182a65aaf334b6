//! The runtime's side: from any thread, ask for streams and hear what became of them.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::event::{EventfdFlags, eventfd};
use serde::{Deserialize, Serialize};

use super::Error;
use super::endpoint::Endpoint;

/// First port of the host's side. Below it are those that people expect services on.
const FIRST_PORT: u32 = 1024;

/// Names a stream; its value is the host's port, which is never used twice by one device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct StreamId(pub u32);

/// What became of a stream. The last event of each stream is one for which [`StreamEvent::is_final`]
/// holds; by then every byte that the guest sent was written to the output (unless that broke, or the
/// stream was aborted), and both descriptors are closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum StreamEvent {
    /// The guest has accepted it.
    Opened,
    /// The output takes no more; the guest was told, so that its writer gets EPIPE. Not final.
    OutputBroken {
        /// Why: `EPIPE` when the reader has gone.
        errno: i32,
    },
    /// Final: the guest has ended it, having said that it sends no more.
    Closed,
    /// Final: nobody listens on that port of the guest.
    Refused,
    /// Final: broken off by the guest, or because the guest violated the protocol.
    Reset,
    /// Final: the guest's driver has reset the device, or the guest has gone.
    DeviceReset,
    /// Final: [`VsockHandle::close`] was called.
    Aborted,
    /// Final: its descriptors cannot be watched.
    HostError {
        /// What `epoll_ctl(2)` says.
        errno: i32,
    },
}

impl StreamEvent {
    /// Whether this is the last event of its stream.
    pub fn is_final(self) -> bool {
        match self {
            StreamEvent::Opened | StreamEvent::OutputBroken { .. } => false,
            StreamEvent::Closed
            | StreamEvent::Refused
            | StreamEvent::Reset
            | StreamEvent::DeviceReset
            | StreamEvent::Aborted
            | StreamEvent::HostError { .. } => true,
        }
    }
}

/// What the handle asks of the device.
#[derive(Debug)]
pub enum Command {
    /// Open a stream.
    Connect {
        /// Its name.
        id: StreamId,
        /// Where to.
        guest_port: u32,
        /// Sent before the input's bytes.
        preamble: Vec<u8>,
        /// The host's end.
        endpoint: Endpoint,
    },
    /// Abort a stream.
    Close(StreamId),
    /// The guest runs no more.
    GuestGone,
}

#[derive(Debug)]
struct Mail {
    commands: VecDeque<Command>,
    events: Vec<(StreamId, StreamEvent)>,
    next_port: u32,
    /// The device still exists.
    open: bool,
}

/// What handle and device share.
#[derive(Debug)]
pub struct Mailbox {
    mail: Mutex<Mail>,
    /// Readable when commands wait for the device.
    wake: OwnedFd,
    /// Readable when events wait for the handle.
    news: OwnedFd,
}

impl Mailbox {
    /// An empty mailbox.
    ///
    /// # Errors
    /// That of `eventfd(2)`.
    pub fn new() -> io::Result<Mailbox> {
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
        Ok(Mailbox {
            mail: Mutex::new(Mail {
                commands: VecDeque::new(),
                events: Vec::new(),
                next_port: FIRST_PORT,
                open: true,
            }),
            wake: eventfd(0, flags)?,
            news: eventfd(0, flags)?,
        })
    }

    /// For the device's epoll instance.
    pub fn wake_fd(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }

    /// Makes the device's event loop come back to it.
    pub fn wake(&self) {
        signal(self.wake.as_fd());
    }

    /// Takes all commands.
    pub fn take_commands(&self) -> VecDeque<Command> {
        settle(self.wake.as_fd());
        std::mem::take(&mut self.lock().commands)
    }

    /// Tells the handle.
    pub fn tell(&self, id: StreamId, event: StreamEvent) {
        self.lock().events.push((id, event));
        signal(self.news.as_fd());
    }

    /// The device goes away.
    pub fn shut(&self) {
        let mut mail = self.lock();
        mail.open = false;
        mail.commands.clear();
    }

    fn lock(&self) -> MutexGuard<'_, Mail> {
        // No code panics while it holds the lock; if it did, the data is plain and still good.
        self.mail.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Opens streams to the guest. Clones speak for the same device; events go to whoever takes them first.
#[derive(Debug, Clone)]
pub struct VsockHandle {
    mailbox: Arc<Mailbox>,
}

impl VsockHandle {
    pub(super) fn new(mailbox: Arc<Mailbox>) -> VsockHandle {
        VsockHandle { mailbox }
    }

    /// Opens a stream to a port of the guest, sends `preamble`, and joins it with `endpoint`. May be
    /// called before the guest runs: the stream is asked for as soon as the driver is ready. A guest that
    /// never answers leaves it waiting: the caller decides how long, and calls [`VsockHandle::close`].
    ///
    /// # Errors
    /// When the device is gone or has used all its ports.
    pub fn connect(&self, guest_port: u32, preamble: Vec<u8>, endpoint: Endpoint) -> Result<StreamId, Error> {
        let mut mail = self.mailbox.lock();
        if !mail.open {
            return Err(Error::DeviceGone);
        }
        let id = StreamId(mail.next_port);
        // VMADDR_PORT_ANY (u32::MAX) is no port.
        mail.next_port = id.0.checked_add(1).ok_or(Error::PortsExhausted)?;
        mail.commands.push_back(Command::Connect {
            id,
            guest_port,
            preamble,
            endpoint,
        });
        drop(mail);
        self.mailbox.wake();
        Ok(id)
    }

    /// Aborts a stream: the guest gets a reset, both descriptors are closed at once, and bytes that were
    /// not written yet are lost. Does nothing to one that has ended.
    pub fn close(&self, id: StreamId) {
        self.command(Command::Close(id));
    }

    /// The guest runs no more (it has powered off, panicked or was killed): what it sent until then is
    /// still written out, then each stream ends with [`StreamEvent::DeviceReset`].
    pub fn guest_gone(&self) {
        self.command(Command::GuestGone);
    }

    /// Readable as long as [`VsockHandle::take_events`] has something.
    pub fn events_fd(&self) -> BorrowedFd<'_> {
        self.mailbox.news.as_fd()
    }

    /// Takes all events, oldest first.
    pub fn take_events(&self) -> Vec<(StreamId, StreamEvent)> {
        settle(self.mailbox.news.as_fd());
        std::mem::take(&mut self.mailbox.lock().events)
    }

    fn command(&self, command: Command) {
        let mut mail = self.mailbox.lock();
        if mail.open {
            mail.commands.push_back(command);
            drop(mail);
            self.mailbox.wake();
        }
    }
}

fn signal(eventfd: BorrowedFd<'_>) {
    // Fails only when the counter would overflow, and then it is readable anyway.
    let _ = rustix::io::write(eventfd, &1u64.to_ne_bytes());
}

fn settle(eventfd: BorrowedFd<'_>) {
    // Fails only when nothing was signalled.
    let _ = rustix::io::read(eventfd, &mut [0u8; 8]);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_never_used_twice_and_do_not_wrap() {
        let handle = VsockHandle::new(Arc::new(Mailbox::new().unwrap()));
        let first = handle.connect(1, Vec::new(), Endpoint::default()).unwrap();
        let second = handle.connect(1, Vec::new(), Endpoint::default()).unwrap();
        assert_eq!((first, second), (StreamId(FIRST_PORT), StreamId(FIRST_PORT + 1)));
        handle.mailbox.lock().next_port = u32::MAX;
        let error = handle.connect(1, Vec::new(), Endpoint::default()).unwrap_err();
        assert!(matches!(error, Error::PortsExhausted), "{error}");
    }

    #[test]
    fn a_handle_without_its_device_says_so() {
        let mailbox = Arc::new(Mailbox::new().unwrap());
        let handle = VsockHandle::new(Arc::clone(&mailbox));
        mailbox.shut();
        let error = handle.connect(1, Vec::new(), Endpoint::default()).unwrap_err();
        assert!(matches!(error, Error::DeviceGone), "{error}");
    }
}
