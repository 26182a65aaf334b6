//! The control stream's guest end: framed messages both ways, never blocking.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use moat_protocol::{
    frame::{self, Decoder, FrameError},
    message::{GuestMessage, HostMessage},
};
use rustix::io::Errno;

/// Bytes read at once; most messages are far shorter, a large `Prepare` takes a few turns.
const READ: usize = 32 << 10;

/// The control stream is of no further use.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ControlError {
    #[error("cannot read the control stream")]
    Read(#[source] io::Error),
    #[error("cannot write to the control stream")]
    Write(#[source] io::Error),
    #[error("the control stream is damaged")]
    Frame(#[from] FrameError),
}

#[derive(Debug)]
pub(crate) struct Control {
    socket: OwnedFd,
    decoder: Decoder,
    /// `outgoing[sent..]` waits for room in the socket.
    outgoing: Vec<u8>,
    sent: usize,
}

/// What has arrived.
#[derive(Debug)]
pub(crate) struct Received {
    pub(crate) messages: Vec<HostMessage>,
    /// The host has closed its side.
    pub(crate) closed: bool,
}

impl Control {
    pub(crate) fn new(socket: OwnedFd) -> Control {
        Control {
            socket,
            decoder: Decoder::new(),
            outgoing: Vec::new(),
            sent: 0,
        }
    }

    /// Everything that can be read now.
    pub(crate) fn receive(&mut self) -> Result<Received, ControlError> {
        let mut received = Received {
            messages: Vec::new(),
            closed: false,
        };
        let mut bytes = vec![0; READ];
        loop {
            match rustix::io::read(&self.socket, bytes.as_mut_slice()) {
                Ok(0) => {
                    received.closed = true;
                    return Ok(received);
                }
                Ok(read) => {
                    self.decoder.push(&bytes[..read]);
                    while let Some(message) = self.decoder.next_message()? {
                        received.messages.push(message);
                    }
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Ok(received),
                Err(errno) => return Err(ControlError::Read(errno.into())),
            }
        }
    }

    /// Sends a message, or as much of it as there is room for now.
    pub(crate) fn send(&mut self, message: &GuestMessage) -> Result<(), ControlError> {
        self.outgoing.extend(frame::encode(message)?);
        self.flush()
    }

    /// Sends what waits, as far as there is room.
    pub(crate) fn flush(&mut self) -> Result<(), ControlError> {
        while self.sent < self.outgoing.len() {
            match rustix::io::write(&self.socket, &self.outgoing[self.sent..]) {
                Ok(written) => self.sent += written,
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Ok(()),
                Err(errno) => return Err(ControlError::Write(errno.into())),
            }
        }
        self.outgoing.clear();
        self.sent = 0;
        Ok(())
    }
}

impl AsFd for Control {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Read, Write},
        os::unix::net::UnixStream,
    };

    use proptest::prelude::*;

    use super::*;

    fn pair() -> (UnixStream, Control) {
        let (host, guest) = UnixStream::pair().unwrap();
        guest.set_nonblocking(true).unwrap();
        (host, Control::new(guest.into()))
    }

    #[test]
    fn a_message_larger_than_the_socket_holds_is_sent_in_turns() {
        let (mut host, mut control) = pair();
        let message = GuestMessage::Failed {
            process: moat_protocol::message::ProcessId(1),
            message: "x".repeat(4 << 20),
        };
        control.send(&message).unwrap();
        host.set_nonblocking(true).unwrap();
        let (mut decoder, mut block) = (Decoder::new(), vec![0; 1 << 16]);
        let received = loop {
            match host.read(&mut block) {
                Ok(read) => decoder.push(&block[..read]),
                Err(_) => control.flush().unwrap(),
            }
            if let Some(received) = decoder.next_message::<GuestMessage>().unwrap() {
                break received;
            }
        };
        assert_eq!(received, message);
    }

    #[test]
    fn messages_before_the_end_are_not_lost() {
        let (mut host, mut control) = pair();
        host.write_all(&frame::encode(&HostMessage::Start).unwrap())
            .unwrap();
        drop(host);
        let received = control.receive().unwrap();
        assert_eq!(
            (received.messages, received.closed),
            (vec![HostMessage::Start], true)
        );
    }

    proptest! {
        #[test]
        fn any_bytes_are_answered(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let (mut host, mut control) = pair();
            host.write_all(&bytes).unwrap();
            drop(host);
            if let Ok(received) = control.receive() {
                prop_assert!(received.closed);
            }
        }
    }
}
