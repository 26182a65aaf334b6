//! The host's end of a stream: descriptors, and whether they are worth a try.
//!
//! Descriptors are watched edge-triggered: registered once, then remembered as ready until a call says
//! `EAGAIN`. So a stream that waits for credit or for receive buffers costs no system call and cannot
//! spin, whatever its input does. Regular files and devices without `poll` cannot be watched (`EPERM`);
//! they never say `EAGAIN` and stay ready.

use std::io::{self, IoSlice};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::epoll;
use rustix::event::epoll::EventFlags;
use rustix::net::{Shutdown, shutdown};
use vm_memory::VolatileSlice;

use super::iovec;

/// The descriptors that the host connects to a stream. Non-blocking, or regular files: the device never
/// waits for one, and a blocking one would stop it. Both may be duplicates of one socket.
#[derive(Debug, Default)]
pub struct Endpoint {
    /// Read, and sent to the guest. Its end is the guest's end of file (a half-close). `None`: the host
    /// sends the preamble only.
    pub input: Option<OwnedFd>,
    /// Gets what the guest sends. Closed when the guest has half-closed and every byte was written.
    /// `None`: what the guest sends is discarded.
    ///
    /// A socket is also shut down for writing then (and for reading, when the guest reads no more), but
    /// only when there is an input too, as its duplicate would keep it open. An output alone may be
    /// shared with processes that still write to it, as standard output is; closing must be enough.
    pub output: Option<OwnedFd>,
}

/// Which descriptor of a stream an epoll event is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// [`Endpoint::input`].
    Input,
    /// [`Endpoint::output`].
    Output,
}

/// What epoll reports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Token {
    /// The handle has left commands.
    Wake,
    /// A descriptor of the stream at this local port.
    Stream(u32, Side),
}

impl Token {
    const WAKE: u64 = u64::MAX;

    fn to_data(self) -> epoll::EventData {
        epoll::EventData::new_u64(match self {
            Token::Wake => Token::WAKE,
            Token::Stream(port, Side::Input) => u64::from(port) << 1,
            Token::Stream(port, Side::Output) => u64::from(port) << 1 | 1,
        })
    }

    fn from_data(data: epoll::EventData) -> Token {
        let number = data.u64();
        match u32::try_from(number >> 1) {
            Ok(port) if number & 1 == 0 => Token::Stream(port, Side::Input),
            Ok(port) => Token::Stream(port, Side::Output),
            Err(_) => Token::Wake,
        }
    }
}

/// The device's own epoll instance, one descriptor towards the event loop.
#[derive(Debug)]
pub struct Epoll(OwnedFd);

impl Epoll {
    /// Events taken in one go: more than streams are usually busy at a time.
    const BATCH: usize = 32;

    /// An empty instance.
    ///
    /// # Errors
    /// That of `epoll_create1(2)`.
    pub fn new() -> io::Result<Epoll> {
        Ok(Epoll(epoll::create(epoll::CreateFlags::CLOEXEC)?))
    }

    /// Watches the eventfd by which the handle wakes the device, until it is read.
    ///
    /// # Errors
    /// That of `epoll_ctl(2)`.
    pub fn watch_wake(&self, wake: BorrowedFd<'_>) -> io::Result<()> {
        Ok(epoll::add(&self.0, wake, Token::Wake.to_data(), EventFlags::IN)?)
    }

    /// What has become ready; empty when nothing has.
    pub fn ready(&self) -> Vec<Token> {
        let mut events = Vec::with_capacity(Epoll::BATCH);
        let timeout = rustix::event::Timespec::default();
        // Fails for signals (EINTR): what was ready still is at the next call, which the event loop makes
        // as the instance stays readable.
        let _ = epoll::wait(
            &self.0,
            rustix::buffer::spare_capacity(&mut events),
            Some(&timeout),
        );
        events
            .into_iter()
            .map(|event| Token::from_data(event.data))
            .collect()
    }

    /// Whether the descriptor can be watched: `false` for one that is always ready.
    fn watch(&self, fd: BorrowedFd<'_>, token: Token, flags: EventFlags) -> io::Result<bool> {
        match epoll::add(&self.0, fd, token.to_data(), flags | EventFlags::ET) {
            Ok(()) => Ok(true),
            Err(rustix::io::Errno::PERM) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Explicitly, since closing a descriptor that has duplicates elsewhere would leave it watched.
    fn forget(&self, fd: BorrowedFd<'_>) {
        // ENOENT for those that could not be watched.
        let _ = epoll::delete(&self.0, fd);
    }
}

impl AsFd for Epoll {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// What came of a read or a write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transfer {
    /// So many bytes, at least one.
    Bytes(usize),
    /// Not now; epoll will tell.
    Blocked,
    /// Never again: end of file, or the error (an errno).
    Ended(Option<i32>),
}

/// An [`Endpoint`] in use.
#[derive(Debug, Default)]
pub struct HostEnd {
    input: Option<OwnedFd>,
    input_ready: bool,
    output: Option<OwnedFd>,
    output_ready: bool,
    duplex: bool,
}

impl HostEnd {
    /// Watches the descriptors of `endpoint` for the stream at `port`.
    ///
    /// # Errors
    /// That of `epoll_ctl(2)`; nothing is left watched then.
    pub fn new(endpoint: Endpoint, port: u32, epoll: &Epoll) -> io::Result<HostEnd> {
        let mut end = HostEnd {
            duplex: endpoint.input.is_some() && endpoint.output.is_some(),
            input: endpoint.input,
            input_ready: false,
            output: endpoint.output,
            // Worth a try from the start: usually it is ready, and that saves a turn.
            output_ready: true,
        };
        if let Some(input) = &end.input {
            // A watched one reports by itself what it has already.
            let watched = epoll.watch(input.as_fd(), Token::Stream(port, Side::Input), EventFlags::IN)?;
            end.input_ready = !watched;
        }
        if let Some(output) = &end.output {
            let token = Token::Stream(port, Side::Output);
            if let Err(error) = epoll.watch(output.as_fd(), token, EventFlags::OUT) {
                end.close_input(epoll, false);
                return Err(error);
            }
        }
        Ok(end)
    }

    /// epoll has reported this side.
    pub fn set_ready(&mut self, side: Side) {
        match side {
            Side::Input => self.input_ready = true,
            Side::Output => self.output_ready = true,
        }
    }

    /// Whether a read is worth a try.
    pub fn can_read(&self) -> bool {
        self.input.is_some() && self.input_ready
    }

    /// Whether a write is worth a try.
    pub fn can_write(&self) -> bool {
        self.output.is_some() && self.output_ready
    }

    /// Whether there is (still) an output.
    pub fn has_output(&self) -> bool {
        self.output.is_some()
    }

    /// Reads from the input into guest memory.
    pub fn read(&mut self, slices: &[VolatileSlice<'_>]) -> Transfer {
        let Some(input) = &self.input else {
            return Transfer::Ended(None);
        };
        let transfer = transfer(|| iovec::read_vectored(input.as_fd(), slices));
        self.input_ready &= transfer != Transfer::Blocked;
        transfer
    }

    /// Writes from guest memory to the output.
    pub fn write_guest(&mut self, slices: &[VolatileSlice<'_>]) -> Transfer {
        let Some(output) = &self.output else {
            return Transfer::Ended(None);
        };
        let transfer = transfer(|| iovec::write_vectored(output.as_fd(), slices));
        self.output_ready &= transfer != Transfer::Blocked;
        transfer
    }

    /// Writes bytes of the device to the output.
    pub fn write(&mut self, slices: &[IoSlice<'_>]) -> Transfer {
        let Some(output) = &self.output else {
            return Transfer::Ended(None);
        };
        let transfer = transfer(|| Ok(rustix::io::writev(output, slices)?));
        self.output_ready &= transfer != Transfer::Blocked;
        transfer
    }

    /// Lets go of the input. `refuse`: the guest takes no more, so whoever writes to it should get EPIPE.
    pub fn close_input(&mut self, epoll: &Epoll, refuse: bool) {
        if let Some(input) = self.input.take() {
            epoll.forget(input.as_fd());
            if refuse && self.duplex {
                // Closing alone says as much, but for a socket whose duplicate is the output. ENOTSOCK for all that are none.
                let _ = shutdown(&input, Shutdown::Read);
            }
        }
    }

    /// Lets go of the output: the reader sees the end.
    pub fn close_output(&mut self, epoll: &Epoll) {
        if let Some(output) = self.output.take() {
            epoll.forget(output.as_fd());
            if self.duplex {
                // As above.
                let _ = shutdown(&output, Shutdown::Write);
            }
        }
    }
}

fn transfer(mut call: impl FnMut() -> io::Result<usize>) -> Transfer {
    loop {
        match call() {
            Ok(0) => return Transfer::Ended(None),
            Ok(bytes) => return Transfer::Bytes(bytes),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Transfer::Blocked,
            Err(error) => return Transfer::Ended(error.raw_os_error()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_token_survives_epoll() {
        let ends = [0, 1, 1024, u32::MAX];
        let streams = ends
            .into_iter()
            .flat_map(|port| [Side::Input, Side::Output].map(|side| Token::Stream(port, side)));
        for token in streams.chain([Token::Wake]) {
            assert_eq!(Token::from_data(token.to_data()), token);
        }
    }

    #[test]
    fn an_input_that_has_bytes_already_reports_itself_once() {
        let epoll = Epoll::new().unwrap();
        let (reader, writer) = std::io::pipe().unwrap();
        rustix::io::write(&writer, b"x").unwrap();
        let endpoint = Endpoint {
            input: Some(reader.into()),
            output: None,
        };
        let mut end = HostEnd::new(endpoint, 7, &epoll).unwrap();
        assert!(!end.can_read());
        assert_eq!(epoll.ready(), vec![Token::Stream(7, Side::Input)]);
        assert_eq!(epoll.ready(), vec![], "edge-triggered");
        end.set_ready(Side::Input);
        assert!(end.can_read());
        end.close_input(&epoll, false);
        rustix::io::write(&writer, b"y").unwrap_err();
    }

    #[test]
    fn a_regular_file_is_ready_from_the_start() {
        let epoll = Epoll::new().unwrap();
        let file = tempfile::tempfile().unwrap();
        let end = HostEnd::new(
            Endpoint {
                input: Some(file.into()),
                output: None,
            },
            7,
            &epoll,
        )
        .unwrap();
        assert!(end.can_read());
    }

    #[test]
    fn a_closed_descriptor_with_a_duplicate_elsewhere_reports_no_more() {
        let epoll = Epoll::new().unwrap();
        let (reader, writer) = std::io::pipe().unwrap();
        let duplicate = reader.try_clone().unwrap();
        let mut end = HostEnd::new(
            Endpoint {
                input: Some(reader.into()),
                output: None,
            },
            7,
            &epoll,
        )
        .unwrap();
        end.close_input(&epoll, false);
        rustix::io::write(&writer, b"x").unwrap();
        assert_eq!(epoll.ready(), vec![]);
        drop(duplicate);
    }
}
