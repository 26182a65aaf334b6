//! One epoll instance, edge-triggered: each descriptor is added once, for both directions, and whoever
//! owns it reads and writes until the kernel says "later". No interest is ever changed.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    time::Duration,
};

use moat_protocol::message::ProcessId;
use rustix::{
    buffer::spare_capacity,
    event::{
        Timespec,
        epoll::{self, EventData, EventFlags},
    },
    io::Errno,
};

/// Whose descriptor it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Token {
    /// A connection to the control port waits.
    ControlListener,
    /// A connection to the stream port waits.
    StreamListener,
    /// The control connection.
    Control,
    /// Children have ended.
    Children,
    /// A stream connection whose header is not read yet, by its number.
    Arriving(u32),
    /// Any descriptor of a process.
    Process(ProcessId),
}

impl Token {
    fn encode(self) -> u64 {
        let (kind, number) = match self {
            Token::ControlListener => (0, 0),
            Token::StreamListener => (1, 0),
            Token::Control => (2, 0),
            Token::Children => (3, 0),
            Token::Arriving(number) => (4, number),
            Token::Process(ProcessId(number)) => (5, number),
        };
        (kind << 32) | u64::from(number)
    }

    fn decode(data: u64) -> Option<Token> {
        let number = u32::try_from(data & u64::from(u32::MAX)).ok()?;
        match data >> 32 {
            0 => Some(Token::ControlListener),
            1 => Some(Token::StreamListener),
            2 => Some(Token::Control),
            3 => Some(Token::Children),
            4 => Some(Token::Arriving(number)),
            5 => Some(Token::Process(ProcessId(number))),
            _ => None,
        }
    }
}

#[derive(Debug)]
pub(crate) struct Poller {
    epoll: OwnedFd,
}

/// Events taken at once.
const BATCH: usize = 64;

impl Poller {
    pub(crate) fn new() -> io::Result<Poller> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        Ok(Poller { epoll })
    }

    /// Watches a descriptor. What is ready already is reported as well.
    pub(crate) fn add(&self, descriptor: impl AsFd, token: Token) -> io::Result<()> {
        let flags = EventFlags::IN | EventFlags::OUT | EventFlags::RDHUP | EventFlags::ET;
        match epoll::add(&self.epoll, descriptor, EventData::new_u64(token.encode()), flags) {
            // a regular file or a device that is always ready: its owner need not wait for it
            Ok(()) | Err(Errno::PERM) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Gives a descriptor to another owner.
    pub(crate) fn hand_over(&self, descriptor: impl AsFd, token: Token) -> io::Result<()> {
        let flags = EventFlags::IN | EventFlags::OUT | EventFlags::RDHUP | EventFlags::ET;
        Ok(epoll::modify(
            &self.epoll,
            descriptor,
            EventData::new_u64(token.encode()),
            flags,
        )?)
    }

    /// Waits until something happens, or the time is up.
    pub(crate) fn wait(&self, timeout: Option<Duration>) -> io::Result<Vec<Token>> {
        let timeout = timeout.map(|timeout| Timespec {
            tv_sec: i64::try_from(timeout.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: timeout.subsec_nanos().into(),
        });
        let mut events = Vec::with_capacity(BATCH);
        match epoll::wait(&self.epoll, spare_capacity(&mut events), timeout.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
        Ok(events
            .iter()
            .filter_map(|event| Token::decode(event.data.u64()))
            .collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_survive_the_kernel() {
        for token in [
            Token::ControlListener,
            Token::StreamListener,
            Token::Control,
            Token::Children,
            Token::Arriving(u32::MAX),
            Token::Process(ProcessId(7)),
        ] {
            assert_eq!(Token::decode(token.encode()), Some(token));
        }
        assert_eq!(Token::decode(u64::MAX), None);
    }
}
