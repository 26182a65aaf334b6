//! The thread that serves devices: it waits for kicks and for the devices' own descriptors, and calls
//! them one at a time. There is one for most devices, and one more for each that may block (files,
//! disks): the same code, other devices.

use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;

use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::io::Errno;

use crate::devices::virtio::mmio::MmioTransport;
use crate::event::Event;

/// Events taken from the kernel at once. Level-triggered: what does not fit comes with the next call.
const BATCH: usize = 16;

/// What the loop needs of a slot.
pub struct Served {
    /// The device.
    pub transport: Arc<MmioTransport>,
    /// One eventfd for each queue, which KVM writes when the driver kicks.
    pub kicks: Vec<Event>,
}

/// Why a loop cannot be set up or went down.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action} in a device thread's event loop")]
pub struct EventLoopError {
    action: &'static str,
    #[source]
    source: io::Error,
}

fn failed(action: &'static str) -> impl Fn(Errno) -> EventLoopError {
    move |errno| EventLoopError {
        action,
        source: errno.into(),
    }
}

impl EventLoopError {
    /// The host's answer.
    pub fn errno(&self) -> i32 {
        self.source.raw_os_error().unwrap_or(0)
    }
}

/// What a descriptor is, packed into epoll's 64 bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Token {
    Stop,
    Device { slot: u32 },
    Queue { slot: u32, queue: u32 },
}

const STOP: u64 = u64::MAX;
const DEVICE: u32 = u32::MAX;

impl Token {
    fn pack(self) -> u64 {
        match self {
            Token::Stop => STOP,
            Token::Device { slot } => (u64::from(slot) << 32) | u64::from(DEVICE),
            Token::Queue { slot, queue } => (u64::from(slot) << 32) | u64::from(queue),
        }
    }

    fn unpack(packed: u64) -> Token {
        let [a, b, c, d, e, f, g, h] = packed.to_le_bytes();
        let (queue, slot) = (u32::from_le_bytes([a, b, c, d]), u32::from_le_bytes([e, f, g, h]));
        match (packed, queue) {
            (STOP, _) => Token::Stop,
            (_, DEVICE) => Token::Device { slot },
            (_, queue) => Token::Queue { slot, queue },
        }
    }
}

/// A loop that does not run yet.
pub struct EventLoop {
    epoll: std::os::fd::OwnedFd,
    stop: Event,
    served: Vec<Served>,
}

impl EventLoop {
    /// A loop over these devices, and the eventfd that ends it.
    ///
    /// # Errors
    /// When the host has no descriptors left.
    pub fn new(served: Vec<Served>) -> Result<(EventLoop, Event), EventLoopError> {
        let epoll = epoll::create(CreateFlags::CLOEXEC).map_err(failed("create an epoll instance"))?;
        let eventfd = |source| EventLoopError {
            action: "create an eventfd",
            source,
        };
        let stop = Event::new().map_err(eventfd)?;
        let handle = stop.try_clone().map_err(eventfd)?;
        let this = EventLoop { epoll, stop, served };
        this.register_all()?;
        Ok((this, handle))
    }

    fn register_all(&self) -> Result<(), EventLoopError> {
        self.register(&self.stop, Token::Stop)?;
        for (slot, served) in (0u32..).zip(&self.served) {
            for (queue, kick) in (0u32..).zip(&served.kicks) {
                self.register(kick, Token::Queue { slot, queue })?;
            }
            served.transport.with_device(|device| match device.event_fd() {
                Some(fd) => self.register(fd, Token::Device { slot }),
                None => Ok(()),
            })?;
        }
        Ok(())
    }

    fn register(&self, fd: impl AsFd, token: Token) -> Result<(), EventLoopError> {
        epoll::add(&self.epoll, fd, EventData::new_u64(token.pack()), EventFlags::IN)
            .map_err(failed("watch a descriptor"))
    }

    /// Serves until the stop eventfd is written.
    ///
    /// # Errors
    /// When waiting fails: the devices are dead then, and so is the VM.
    pub fn run(self) -> Result<(), EventLoopError> {
        loop {
            let mut events = [epoll::Event {
                flags: EventFlags::empty(),
                data: EventData::new_u64(0),
            }; BATCH];
            let count = match epoll::wait(&self.epoll, &mut events[..], None) {
                Ok(count) => count,
                Err(Errno::INTR) => continue,
                Err(errno) => return Err(failed("wait")(errno)),
            };
            for event in &events[..count] {
                match Token::unpack(event.data.u64()) {
                    Token::Stop => return Ok(()),
                    Token::Device { slot } => self.served[slot as usize].transport.event_ready(),
                    Token::Queue { slot, queue } => {
                        let served = &self.served[slot as usize];
                        // Quiet before the device looks, so that a kick during its work is not lost.
                        served.kicks[queue as usize].take();
                        served.transport.queue_kicked(queue as usize);
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_survive_packing() {
        for token in [
            Token::Stop,
            Token::Device { slot: 0 },
            Token::Device { slot: 18 },
            Token::Queue { slot: 0, queue: 0 },
            Token::Queue { slot: 18, queue: 7 },
        ] {
            assert_eq!(Token::unpack(token.pack()), token);
        }
    }
}
