//! What the command line and the container's init say to each other while the container is created.
//!
//! ```text
//! command line                      init
//!   clone ───────────────────────────►  (with a user namespace: waits for Proceed first)
//!   record, maps, cgroup, limits        mounts
//!   Proceed ─────────────────────────►
//!        ◄────────────────── RootBuilt  only when hooks are to run before pivot_root
//!   prestart, createRuntime hooks
//!   HooksDone ───────────────────────►  createContainer hooks, pivot_root …
//!        ◄─────────────────── Prepared  or Failed, at any time
//! ```
//!
//! The socket keeps message boundaries (`SOCK_SEQPACKET`); a message is one frame of the `protocol`
//! crate. The end of the peer is the end of the file. init goes on after `Proceed` only, and that is sent
//! after the record holds its pid: an init that nobody knows of ends by itself.

use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use moat_protocol::frame::{self, Decoder, FrameError};
use nix::sys::socket::{
    self, AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// To init.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToInit {
    /// The record knows the process; maps are written, the cgroup is joined, its limits hold.
    Proceed,
    /// prestart and createRuntime hooks have run.
    HooksDone,
}

/// From init.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum FromInit {
    /// The mount tree stands, and hooks may look at it.
    RootBuilt,
    /// The container waits for `start`.
    Prepared,
    /// It could not be created: the chain of errors, outermost first, joined by `": "`.
    Failed(String),
}

/// Why a message could not be passed.
#[derive(Debug, thiserror::Error)]
pub enum SyncError {
    /// No socket pair.
    #[error("cannot make a socket pair for the container's init")]
    Pair(#[source] io::Error),
    /// Not sent.
    #[error("cannot send to the other side of the container's creation")]
    Send(#[source] io::Error),
    /// Not received.
    #[error("cannot receive from the other side of the container's creation")]
    Receive(#[source] io::Error),
    /// The other side has gone.
    #[error("the other side of the container's creation has ended")]
    Ended,
    /// A message without meaning.
    #[error("an unreadable message arrived during the container's creation")]
    Frame(#[source] FrameError),
}

/// Longest message: an error with the last lines of a guest's console fits.
const MAX_MESSAGE: usize = 64 << 10;
/// Longest text of a failure, so that its frame stays below [`MAX_MESSAGE`].
const MAX_TEXT: usize = 60 << 10;

/// One end.
#[derive(Debug)]
pub struct SyncSocket {
    socket: OwnedFd,
}

/// Both ends.
///
/// # Errors
/// When the kernel has no socket for us.
pub fn pair() -> Result<(SyncSocket, SyncSocket), SyncError> {
    let (ours, inits) = socket::socketpair(
        AddressFamily::Unix,
        SockType::SeqPacket,
        None,
        SockFlag::SOCK_CLOEXEC,
    )
    .map_err(|error| SyncError::Pair(error.into()))?;
    Ok((SyncSocket { socket: ours }, SyncSocket { socket: inits }))
}

impl SyncSocket {
    /// Sends a message.
    ///
    /// # Errors
    /// When the peer has gone.
    pub fn send<T: Serialize>(&self, message: &T) -> Result<(), SyncError> {
        let frame = frame::encode(message).map_err(SyncError::Frame)?;
        loop {
            match socket::send(self.socket.as_raw_fd(), &frame, MsgFlags::MSG_NOSIGNAL) {
                Ok(_) => return Ok(()),
                Err(nix::Error::EINTR) => {}
                Err(nix::Error::EPIPE | nix::Error::ECONNRESET) => return Err(SyncError::Ended),
                Err(error) => return Err(SyncError::Send(error.into())),
            }
        }
    }

    /// Sends a failure, shortened where it is too long for a message.
    ///
    /// # Errors
    /// When the peer has gone.
    pub fn send_failure(&self, text: &str) -> Result<(), SyncError> {
        let mut end = text.len().min(MAX_TEXT);
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        self.send(&FromInit::Failed(text[..end].to_owned()))
    }

    /// Waits for a message.
    ///
    /// # Errors
    /// [`SyncError::Ended`] when the peer has gone.
    pub fn receive<T: DeserializeOwned>(&self) -> Result<T, SyncError> {
        let mut buffer = vec![0; MAX_MESSAGE];
        let length = loop {
            match socket::recv(self.socket.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
                Ok(length) => break length,
                Err(nix::Error::EINTR) => {}
                Err(nix::Error::ECONNRESET) => return Err(SyncError::Ended),
                Err(error) => return Err(SyncError::Receive(error.into())),
            }
        };
        if length == 0 {
            return Err(SyncError::Ended);
        }
        let mut decoder = Decoder::new();
        decoder.push(&buffer[..length]);
        decoder
            .next_message()
            .map_err(SyncError::Frame)?
            .ok_or(SyncError::Ended)
    }
}

impl AsFd for SyncSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Sends a descriptor over a stream socket, with `name` as its bytes (a console socket expects some).
///
/// # Errors
/// When the peer has gone.
pub fn send_descriptor(socket: BorrowedFd<'_>, name: &str, descriptor: BorrowedFd<'_>) -> io::Result<()> {
    let bytes = [IoSlice::new(if name.is_empty() {
        b"\0"
    } else {
        name.as_bytes()
    })];
    let descriptors = [descriptor.as_raw_fd()];
    let control = [ControlMessage::ScmRights(&descriptors)];
    socket::sendmsg::<()>(socket.as_raw_fd(), &bytes, &control, MsgFlags::MSG_NOSIGNAL, None)?;
    Ok(())
}

/// Receives one descriptor, close-on-exec.
///
/// # Errors
/// `UnexpectedEof` when the peer ends without having sent one.
pub fn receive_descriptor(socket: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let mut bytes = [0; 4096];
    let mut slices = [IoSliceMut::new(&mut bytes)];
    let mut space = nix::cmsg_space!([RawFd; 1]);
    let message = socket::recvmsg::<()>(
        socket.as_raw_fd(),
        &mut slices,
        Some(&mut space),
        MsgFlags::MSG_CMSG_CLOEXEC,
    )?;
    for control in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(descriptors) = control
            && let Some(first) = descriptors.first()
        {
            return Ok(adopt(*first));
        }
    }
    Err(io::ErrorKind::UnexpectedEof.into())
}

#[expect(unsafe_code, reason = "a received descriptor is a mere number in nix")]
fn adopt(descriptor: RawFd) -> OwnedFd {
    // SAFETY: the kernel has just installed this descriptor for us with SCM_RIGHTS (unix(7)), so it is
    // open and owned by nobody else; the buffer has room for one, so no other is dropped unseen.
    unsafe { OwnedFd::from_raw_fd(descriptor) }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::{Read, Seek, Write};

    use super::*;

    #[test]
    fn messages_keep_their_boundaries_and_order() {
        let (ours, inits) = pair().unwrap();
        inits.send(&FromInit::RootBuilt).unwrap();
        inits.send_failure("outer: inner").unwrap();
        assert_eq!(ours.receive::<FromInit>().unwrap(), FromInit::RootBuilt);
        assert_eq!(
            ours.receive::<FromInit>().unwrap(),
            FromInit::Failed("outer: inner".into())
        );
    }

    #[test]
    fn an_ended_peer_is_told_apart() {
        let (ours, inits) = pair().unwrap();
        drop(inits);
        assert!(matches!(ours.receive::<FromInit>(), Err(SyncError::Ended)));
        assert!(matches!(ours.send(&ToInit::Proceed), Err(SyncError::Ended)));
    }

    #[test]
    fn an_endless_failure_is_shortened_between_characters() {
        let (ours, inits) = pair().unwrap();
        inits.send_failure(&"é".repeat(MAX_TEXT)).unwrap();
        let FromInit::Failed(text) = ours.receive().unwrap() else {
            panic!()
        };
        assert!(text.len() <= MAX_TEXT && text.chars().all(|c| c == 'é'));
    }

    #[test]
    fn a_descriptor_arrives_as_the_same_file() {
        let (left, right) =
            socket::socketpair(AddressFamily::Unix, SockType::Stream, None, SockFlag::empty()).unwrap();
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"same").unwrap();
        file.rewind().unwrap();
        send_descriptor(left.as_fd(), "/dev/pts/0", file.as_fd()).unwrap();
        let mut text = String::new();
        File::from(receive_descriptor(right.as_fd()).unwrap())
            .read_to_string(&mut text)
            .unwrap();
        assert_eq!(text, "same");
        drop(left);
        assert!(receive_descriptor(right.as_fd()).is_err());
    }
}
