//! The control stream to guest-init: framed messages over a socket pair whose other end the vsock
//! device carries into the guest. Never blocks; the supervisor polls it.

use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use moat_protocol::frame::{self, Decoder, FrameError};
use moat_protocol::message::{GuestMessage, HostMessage};

/// Why the guest can't be spoken to.
#[derive(Debug, thiserror::Error)]
pub enum ChannelError {
    /// Reading or writing failed.
    #[error("the control stream to the guest is broken")]
    Io(#[from] io::Error),
    /// The guest has closed it.
    #[error("the guest closed its control stream")]
    Closed,
    /// A message can't be framed, or the guest sent no message.
    #[error("the control stream to the guest carries no messages")]
    Frame(#[from] FrameError),
}

/// Our end of the control stream.
#[derive(Debug)]
pub struct GuestChannel {
    socket: UnixStream,
    decoder: Decoder,
    outgoing: Vec<u8>,
}

/// Bytes taken from the socket at once.
const READ_CHUNK: usize = 16 << 10;

impl GuestChannel {
    /// A channel, and the end that the vsock device gets.
    ///
    /// # Errors
    /// When no socket pair can be made.
    pub fn new() -> io::Result<(GuestChannel, OwnedFd)> {
        let (ours, devices) = UnixStream::pair()?;
        ours.set_nonblocking(true)?;
        devices.set_nonblocking(true)?;
        let channel = GuestChannel {
            socket: ours,
            decoder: Decoder::new(),
            outgoing: Vec::new(),
        };
        Ok((channel, devices.into()))
    }

    /// Queues a message and sends what can be sent now.
    ///
    /// # Errors
    /// When the message is too long or the stream is broken.
    pub fn send(&mut self, message: &HostMessage) -> Result<(), ChannelError> {
        self.outgoing.extend_from_slice(&frame::encode(message)?);
        self.flush()
    }

    /// Sends what is queued as far as the socket takes it.
    ///
    /// # Errors
    /// When the stream is broken.
    pub fn flush(&mut self) -> Result<(), ChannelError> {
        while !self.outgoing.is_empty() {
            match self.socket.write(&self.outgoing) {
                Ok(sent) => {
                    self.outgoing.drain(..sent);
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Whether queued bytes wait for the socket to become writable.
    pub fn wants_to_write(&self) -> bool {
        !self.outgoing.is_empty()
    }

    /// Takes in what has arrived and returns the whole messages, in order.
    ///
    /// # Errors
    /// When the guest has closed or broken the stream and no message is left to return.
    pub fn receive(&mut self) -> Result<Vec<GuestMessage>, ChannelError> {
        let mut chunk = [0; READ_CHUNK];
        let ended = loop {
            match self.socket.read(&mut chunk) {
                Ok(0) => break Some(ChannelError::Closed),
                Ok(length) => self.decoder.push(&chunk[..length]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => break None,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => break Some(error.into()),
            }
        };
        let mut messages = Vec::new();
        while let Some(message) = self.decoder.next_message()? {
            messages.push(message);
        }
        match ended {
            Some(error) if messages.is_empty() => Err(error),
            _ => Ok(messages),
        }
    }
}

impl AsFd for GuestChannel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use moat_protocol::message::ProcessId;

    use super::*;

    #[test]
    fn messages_that_arrive_together_with_the_end_are_not_lost() {
        let (mut channel, devices) = GuestChannel::new().unwrap();
        let mut guest = UnixStream::from(devices);
        guest
            .write_all(&frame::encode(&GuestMessage::Prepared).unwrap())
            .unwrap();
        let started = GuestMessage::Started {
            process: ProcessId::INIT,
        };
        guest.write_all(&frame::encode(&started).unwrap()).unwrap();
        drop(guest);
        assert_eq!(channel.receive().unwrap(), [GuestMessage::Prepared, started]);
        assert!(matches!(channel.receive(), Err(ChannelError::Closed)));
    }

    #[test]
    fn what_the_socket_does_not_take_is_kept_in_order() {
        let (mut channel, devices) = GuestChannel::new().unwrap();
        let entropy = vec![7; 1 << 20];
        let hello = HostMessage::Hello {
            version: 1,
            realtime_ns: 2,
            entropy,
        };
        channel.send(&hello).unwrap();
        assert!(channel.wants_to_write());
        let mut guest = UnixStream::from(devices);
        let mut decoder = Decoder::new();
        let mut chunk = [0; 4096];
        let received: HostMessage = loop {
            channel.flush().unwrap();
            if let Ok(length) = guest.read(&mut chunk) {
                decoder.push(&chunk[..length]);
            }
            if let Some(message) = decoder.next_message().unwrap() {
                break message;
            }
        };
        assert_eq!(received, hello);
    }
}
