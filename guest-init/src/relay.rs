//! Copies bytes one way between two non-blocking descriptors, through a bounded buffer: a side that does
//! not read holds up the other, and nothing else. What is read is written unchanged and in order; the
//! end of one side becomes the end of the other.

use std::{io, os::fd::OwnedFd, rc::Rc};

use rustix::{io::Errno, net::Shutdown};

/// Bytes on their way in a relay: as many as a pipe holds.
const BUFFER: usize = 64 << 10;

/// Buffers moved in one go before other relays get their turn.
const TURN: usize = 16;

/// How the end of the source is told to the sink.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AtEnd {
    /// Close it: a pipe, whose reader then sees the end of file.
    Close,
    /// Shut down its sending side: a socket, whose other direction may live on.
    ShutDown,
    /// Not at all: a terminal, which has no half to close.
    Leave,
}

/// Where a relay stands after [`Relay::pump`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// The kernel will say when there is more to do.
    Waiting,
    /// More could be done at once; others come first.
    Ready,
    /// Over.
    Done,
}

/// One direction of copying. Either end may come later than the other.
#[derive(Debug)]
pub struct Relay {
    source: Option<Rc<OwnedFd>>,
    sink: Option<Rc<OwnedFd>>,
    at_end: AtEnd,
    buffer: Vec<u8>,
    /// `buffer[start..]` waits to be written.
    start: usize,
    source_ended: bool,
    done: bool,
}

impl Relay {
    /// A relay without ends.
    pub fn new(at_end: AtEnd) -> Relay {
        Relay {
            source: None,
            sink: None,
            at_end,
            buffer: Vec::new(),
            start: 0,
            source_ended: false,
            done: false,
        }
    }

    /// With where it reads.
    #[must_use]
    pub fn from(mut self, source: Rc<OwnedFd>) -> Relay {
        self.source = Some(source);
        self
    }

    /// With where it writes.
    #[must_use]
    pub fn to(mut self, sink: Rc<OwnedFd>) -> Relay {
        self.sink = Some(sink);
        self
    }

    /// Where to read, when that is known later; without effect on a relay that is over.
    pub fn set_source(&mut self, source: Rc<OwnedFd>) {
        if !self.done {
            self.source = Some(source);
        }
    }

    /// Where to write, likewise.
    pub fn set_sink(&mut self, sink: Rc<OwnedFd>) {
        if !self.done {
            self.sink = Some(sink);
        }
    }

    /// Whether it lacks where to read.
    pub fn needs_source(&self) -> bool {
        !self.done && self.source.is_none()
    }

    /// Whether it lacks where to write.
    pub fn needs_sink(&self) -> bool {
        !self.done && self.sink.is_none()
    }

    /// The ends it has.
    pub fn ends(&self) -> Vec<Rc<OwnedFd>> {
        [&self.source, &self.sink]
            .into_iter()
            .flatten()
            .cloned()
            .collect()
    }

    /// Whether it has ended.
    pub fn is_done(&self) -> bool {
        self.done
    }

    /// Whether nothing waits to be written.
    pub fn is_empty(&self) -> bool {
        self.start == self.buffer.len()
    }

    /// Copies until one side blocks, the source ends, or its turn is over.
    pub fn pump(&mut self) -> Progress {
        for _ in 0..TURN {
            match self.step() {
                Ok(true) => {}
                Ok(false) if self.done => return Progress::Done,
                Ok(false) => return Progress::Waiting,
                Err(_) => {
                    // the reader is gone: closing the source tells the writer
                    self.stop();
                    return Progress::Done;
                }
            }
        }
        Progress::Ready
    }

    /// Lets go of both ends, without telling the sink's reader more than that.
    pub fn stop(&mut self) {
        self.done = true;
        (self.source, self.sink) = (None, None);
        self.buffer = Vec::new();
        self.start = 0;
    }

    /// One read or one write; false when it would block or all is done. An error is one of the sink.
    fn step(&mut self) -> io::Result<bool> {
        let (Some(source), Some(sink)) = (&self.source, &self.sink) else {
            return Ok(false);
        };
        if self.start < self.buffer.len() {
            return match rustix::io::write(sink, &self.buffer[self.start..]) {
                Ok(written) => {
                    self.start += written;
                    Ok(true)
                }
                Err(Errno::INTR) => Ok(true),
                Err(Errno::AGAIN) => Ok(false),
                Err(errno) => Err(errno.into()),
            };
        }
        if self.source_ended {
            self.finish();
            return Ok(false);
        }
        self.buffer.resize(BUFFER, 0);
        self.start = 0;
        let read = rustix::io::read(source, self.buffer.as_mut_slice());
        self.buffer.truncate(*read.as_ref().unwrap_or(&0));
        match read {
            Err(Errno::AGAIN) => return Ok(false),
            Err(Errno::INTR) => {}
            // EIO: a terminal that nobody holds any more; ECONNRESET: a host that is gone
            Ok(0) | Err(_) => self.source_ended = true,
            Ok(_) => {}
        }
        Ok(true)
    }

    fn finish(&mut self) {
        if let (AtEnd::ShutDown, Some(sink)) = (self.at_end, &self.sink) {
            // a socket whose peer is gone already has no need of it
            let _ = rustix::net::shutdown(sink, Shutdown::Write);
        }
        self.stop();
    }
}
