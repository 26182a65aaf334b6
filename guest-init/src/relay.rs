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

#[cfg(test)]
mod tests {
    use std::{
        io::{Read, Write},
        os::unix::net::UnixStream,
    };

    use proptest::prelude::*;
    use rustix::pipe::{PipeFlags, pipe_with};

    use super::*;

    fn non_blocking_pair() -> (UnixStream, Rc<OwnedFd>) {
        let (far, near) = UnixStream::pair().unwrap();
        for end in [&far, &near] {
            end.set_nonblocking(true).unwrap();
        }
        (far, Rc::new(near.into()))
    }

    /// A socket's end of file is the relay's, and the sink's reader sees it after the last byte.
    #[test]
    fn the_end_of_the_source_is_the_end_of_the_sink() {
        let (mut writer, source) = non_blocking_pair();
        let (mut reader, sink) = non_blocking_pair();
        let mut relay = Relay::new(AtEnd::ShutDown).from(source).to(Rc::clone(&sink));
        assert_eq!(relay.pump(), Progress::Waiting);
        writer.write_all(b"last words").unwrap();
        drop(writer);
        assert_eq!(relay.pump(), Progress::Done);
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        assert_eq!(text, "last words");
    }

    #[test]
    fn a_sink_without_reader_closes_the_source() {
        let (mut writer, source) = non_blocking_pair();
        let (reader, sink) = pipe_with(PipeFlags::NONBLOCK).unwrap();
        let mut relay = Relay::new(AtEnd::Close).from(source).to(Rc::new(sink));
        drop(reader);
        writer.write_all(b"for nobody").unwrap();
        assert_eq!(relay.pump(), Progress::Done);
        let refused = writer.write_all(b"more").unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::BrokenPipe);
    }

    #[test]
    fn bytes_wait_for_an_end_that_comes_later() {
        let (mut writer, source) = non_blocking_pair();
        let mut relay = Relay::new(AtEnd::ShutDown).from(source);
        writer.write_all(b"early").unwrap();
        assert_eq!(relay.pump(), Progress::Waiting);
        assert!(relay.needs_sink());
        let (mut reader, sink) = non_blocking_pair();
        relay.set_sink(sink);
        assert_eq!(relay.pump(), Progress::Waiting);
        let mut bytes = [0; 5];
        reader.read_exact(&mut bytes).unwrap();
        assert_eq!(&bytes, b"early");
    }

    #[test]
    fn a_fast_source_gives_others_their_turn() {
        let zeros = std::fs::File::open("/dev/zero").unwrap();
        let null = std::fs::OpenOptions::new().write(true).open("/dev/null").unwrap();
        let mut relay = Relay::new(AtEnd::Close)
            .from(Rc::new(zeros.into()))
            .to(Rc::new(null.into()));
        assert_eq!(relay.pump(), Progress::Ready);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]

        /// However reads, writes and turns interleave, what arrives is what was sent.
        #[test]
        fn every_byte_arrives_once_and_in_order(
            steps in proptest::collection::vec((0usize..100_000, 0usize..100_000), 1..30),
        ) {
            let (mut writer, source) = non_blocking_pair();
            let (mut reader, sink) = non_blocking_pair();
            let mut relay = Relay::new(AtEnd::ShutDown).from(source).to(sink);
            let (mut sent, mut received): (Vec<u8>, Vec<u8>) = (Vec::new(), Vec::new());
            for (write, read) in steps {
                let block: Vec<u8> =
                    (sent.len()..sent.len() + write).map(|place| (place / 7 + place / 4099).to_le_bytes()[0]).collect();
                // a full socket takes less, and that is what was sent then
                let written = writer.write(&block).unwrap_or(0);
                sent.extend(&block[..written]);
                relay.pump();
                let mut block = vec![0; read];
                let read = reader.read(&mut block).unwrap_or(0);
                received.extend(&block[..read]);
            }
            drop(writer);
            let mut block = vec![0; 1 << 16];
            loop {
                relay.pump();
                match reader.read(&mut block) {
                    Ok(0) => break,
                    Ok(read) => received.extend(&block[..read]),
                    Err(error) => prop_assert_eq!(error.kind(), io::ErrorKind::WouldBlock),
                }
            }
            prop_assert!(received == sent, "{} of {} bytes", received.len(), sent.len());
        }
    }
}
