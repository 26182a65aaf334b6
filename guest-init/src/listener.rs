//! Where the host connects to.

use std::{
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
};

use moat_protocol::ports::{CONTROL_PORT, STREAM_PORT};
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, VsockAddr, bind, getpeername, listen, socket,
};
use rustix::{io::Errno, net::SocketFlags};

/// The host's context id (VIRTIO 1.2, 5.10.4).
const HOST_CID: u32 = 2;
/// `VMADDR_CID_ANY`.
const ANY_CID: u32 = u32::MAX;
/// Connections that may wait to be accepted; an exec opens three at once, and many may start together.
const BACKLOG: i32 = 128;

/// Not listening.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on vsock port {port}")]
pub struct ListenError {
    /// Which port.
    pub port: u32,
    /// Cause.
    #[source]
    pub source: io::Error,
}

/// Whether a connection may be served.
pub type Admit = fn(BorrowedFd<'_>) -> bool;

/// A listening socket, non-blocking.
#[derive(Debug)]
pub struct Listener {
    socket: OwnedFd,
    admit: Admit,
}

/// Both ports.
#[derive(Debug)]
pub struct Listeners {
    /// [`CONTROL_PORT`].
    pub control: Listener,
    /// [`STREAM_PORT`].
    pub streams: Listener,
}

impl Listeners {
    /// On the guest's vsock, for the host only.
    ///
    /// # Errors
    /// Without a vsock device, or when the ports are taken.
    pub fn vsock() -> Result<Listeners, ListenError> {
        Ok(Listeners {
            control: vsock(CONTROL_PORT)?,
            streams: vsock(STREAM_PORT)?,
        })
    }
}

impl Listener {
    /// Serves connections to `socket`, which is set non-blocking, that `admit` lets pass.
    ///
    /// # Errors
    /// When the socket can't be made non-blocking.
    pub fn new(socket: OwnedFd, admit: Admit) -> io::Result<Listener> {
        rustix::io::ioctl_fionbio(&socket, true)?;
        Ok(Listener { socket, admit })
    }

    /// The next connection (non-blocking, close-on-exec), `None` when there is none at the moment.
    ///
    /// # Errors
    /// As `accept(2)`, when it is about the listener and not about one connection.
    pub fn accept(&self) -> io::Result<Option<OwnedFd>> {
        loop {
            let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
            match rustix::net::accept_with(&self.socket, flags) {
                Ok(connection) if (self.admit)(connection.as_fd()) => return Ok(Some(connection)),
                // from the workload, which may connect to its own guest: dropped
                Ok(_) | Err(Errno::INTR | Errno::CONNABORTED) => {}
                Err(Errno::AGAIN) => return Ok(None),
                Err(errno) => return Err(errno.into()),
            }
        }
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

fn vsock(port: u32) -> Result<Listener, ListenError> {
    let listening = || -> nix::Result<OwnedFd> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let socket = socket(AddressFamily::Vsock, SockType::Stream, flags, None)?;
        bind(socket.as_raw_fd(), &VsockAddr::new(ANY_CID, port))?;
        listen(&socket, Backlog::new(BACKLOG)?)?;
        Ok(socket)
    };
    let socket = listening().map_err(|errno| ListenError {
        port,
        source: errno.into(),
    })?;
    Ok(Listener {
        socket,
        admit: is_host,
    })
}

fn is_host(connection: BorrowedFd<'_>) -> bool {
    getpeername::<VsockAddr>(connection.as_raw_fd()).is_ok_and(|peer| peer.cid() == HOST_CID)
}
