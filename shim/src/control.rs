//! The control socket of a container: how a later command line speaks with the container's init. It is
//! the barrier of `start` in both isolations.
//!
//! A client connects and sends one request as a frame of the `protocol` crate; the answer is a frame, or
//! the end of the connection. In isolation `process` init becomes the workload while the connection is
//! open, and since its descriptor is close-on-exec, the end without an answer says that it worked.
//!
//! The socket is reached through `/proc/self/fd/N`, so that a long `--root` does not exceed the 108
//! bytes of a socket's address (unix(7)).

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;

use moat_protocol::frame::{self, Decoder, FrameError};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// Name of the socket once the container can be started.
pub const SOCKET: &str = "control.sock";
/// Name of the socket while the container is created.
pub const SOCKET_OF_CREATION: &str = "control.sock.new";

/// What a client asks for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ControlRequest {
    /// Let the workload start.
    Start,
}

/// What init answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ControlReply {
    /// Done. In isolation `process` said by the end of the connection.
    Done,
    /// It failed: the chain of errors, outermost first, joined by `": "`.
    Failed(String),
}

/// Why a request was not carried out.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// The socket can't be made.
    #[error("cannot make the control socket of the container")]
    Bind(#[source] io::Error),
    /// Nobody listens.
    #[error("cannot reach the container's init")]
    Connect(#[source] io::Error),
    /// The connection broke.
    #[error("cannot speak with the container's init")]
    Talk(#[source] io::Error),
    /// Something else than a message arrived.
    #[error("an unreadable message arrived on the control socket")]
    Frame(#[source] FrameError),
    /// init answered with an error. Its text is the whole message.
    #[error("{0}")]
    Refused(String),
}

fn path(directory: impl AsFd, name: &str) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}/{name}", directory.as_fd().as_raw_fd()))
}

/// Makes the socket in a container's directory, under the name that it has while the container is
/// created.
///
/// # Errors
/// As `bind(2)`.
pub fn listen(directory: impl AsFd) -> Result<UnixListener, ControlError> {
    UnixListener::bind(path(directory, SOCKET_OF_CREATION)).map_err(ControlError::Bind)
}

/// Connects to a container's init.
///
/// # Errors
/// [`ControlError::Connect`] when nobody listens, which in isolation `process` is so from the start of
/// the workload on.
pub fn connect(directory: impl AsFd) -> Result<UnixStream, ControlError> {
    UnixStream::connect(path(directory, SOCKET)).map_err(ControlError::Connect)
}

/// Sends a request and waits for its answer.
///
/// # Errors
/// [`ControlError::Refused`] with init's own words.
pub fn request(stream: &UnixStream, request: &ControlRequest) -> Result<(), ControlError> {
    send(stream, request)?;
    match receive(stream)? {
        None | Some(ControlReply::Done) => Ok(()),
        Some(ControlReply::Failed(message)) => Err(ControlError::Refused(message)),
    }
}

/// Sends a message.
///
/// # Errors
/// When the peer has gone.
pub fn send<T: Serialize>(mut stream: &UnixStream, message: &T) -> Result<(), ControlError> {
    let frame = frame::encode(message).map_err(ControlError::Frame)?;
    stream.write_all(&frame).map_err(ControlError::Talk)
}

/// Receives a message; `None` when the peer has ended without one.
///
/// # Errors
/// When the connection breaks or carries something else.
pub fn receive<T: DeserializeOwned>(mut stream: &UnixStream) -> Result<Option<T>, ControlError> {
    let mut decoder = Decoder::new();
    let mut buffer = [0; 4096];
    loop {
        if let Some(message) = decoder.next_message().map_err(ControlError::Frame)? {
            return Ok(Some(message));
        }
        match stream.read(&mut buffer) {
            Ok(0) => return Ok(None),
            Ok(length) => decoder.push(&buffer[..length]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Ok(None),
            Err(error) => return Err(ControlError::Talk(error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};

    use super::*;

    #[test]
    fn a_container_in_a_very_long_path_can_be_reached() {
        let folder = tempfile::tempdir().unwrap();
        let long = folder.path().join("x".repeat(200));
        fs::create_dir(&long).unwrap();
        let directory = File::open(&long).unwrap();
        let listener = listen(&directory).unwrap();
        assert!(
            matches!(connect(&directory), Err(ControlError::Connect(_))),
            "not under its final name yet"
        );
        fs::rename(long.join(SOCKET_OF_CREATION), long.join(SOCKET)).unwrap();
        let client = connect(&directory).unwrap();
        let (server, _) = listener.accept().unwrap();
        send(&client, &ControlRequest::Start).unwrap();
        assert_eq!(receive(&server).unwrap(), Some(ControlRequest::Start));
    }

    #[test]
    fn the_end_without_an_answer_is_success_and_an_answer_is_what_it_says() {
        let (client, server) = UnixStream::pair().unwrap();
        send(&server, &ControlReply::Failed("exec: no such file".into())).unwrap();
        let error = request(&client, &ControlRequest::Start).unwrap_err();
        assert_eq!(error.to_string(), "exec: no such file");

        let (client, server) = UnixStream::pair().unwrap();
        server.shutdown(std::net::Shutdown::Write).unwrap();
        request(&client, &ControlRequest::Start).unwrap();
    }
}
