//! A container's terminal, shown on the one that `run` was called from: raw mode, bytes both ways, window
//! size. Where standard input is no terminal, bytes are passed all the same.

use std::io::{self, IsTerminal};
use std::os::fd::{AsFd, OwnedFd};

use rustix::event::{PollFd, PollFlags};
use rustix::fs::OFlags;
use rustix::io::Errno;
use rustix::termios::{self, OptionalActions, Termios};

/// A terminal passes lines and screens; a page holds most of them.
const BUFFER: usize = 4096;

/// Both ends of the relay.
#[derive(Debug)]
pub struct Relay {
    master: OwnedFd,
    /// The caller's terminal as it was.
    saved: Option<Termios>,
    /// Bytes typed and not yet taken by the container.
    typed: Vec<u8>,
    stdin_open: bool,
    master_open: bool,
}

impl Relay {
    /// Relays between the master of a container's terminal and this process's standard streams.
    ///
    /// # Errors
    /// When the caller's terminal can't be set.
    pub fn new(master: OwnedFd) -> io::Result<Relay> {
        let flags = rustix::fs::fcntl_getfl(&master)?;
        rustix::fs::fcntl_setfl(&master, flags | OFlags::NONBLOCK)?;
        let stdin = io::stdin();
        let saved = if stdin.is_terminal() {
            let saved = termios::tcgetattr(&stdin)?;
            let mut raw = saved.clone();
            raw.make_raw();
            termios::tcsetattr(&stdin, OptionalActions::Now, &raw)?;
            Some(saved)
        } else {
            None
        };
        let relay = Relay {
            master,
            saved,
            typed: Vec::new(),
            stdin_open: true,
            master_open: true,
        };
        relay.resize();
        Ok(relay)
    }

    /// Gives the container's terminal the size of the caller's.
    pub fn resize(&self) {
        if self.saved.is_some()
            && let Ok(size) = termios::tcgetwinsize(io::stdin())
        {
            // A container that has closed its terminal has no use for its size.
            let _closed = termios::tcsetwinsize(&self.master, size);
        }
    }

    /// What to wait for: the master, then standard input. [`Relay::pump`] takes the answers.
    pub fn polled(&self) -> [PollFd<'_>; 2] {
        let mut master = PollFlags::empty();
        if self.master_open {
            master |= PollFlags::IN;
            if !self.typed.is_empty() {
                master |= PollFlags::OUT;
            }
        }
        // What was typed is passed on before more is read: a container that reads nothing holds us up
        // no further than this.
        let reading = self.stdin_open && self.typed.is_empty();
        let stdin = if reading {
            PollFlags::IN
        } else {
            PollFlags::empty()
        };
        [
            PollFd::from_borrowed_fd(self.master.as_fd(), master),
            PollFd::from_borrowed_fd(stdin_fd(), stdin),
        ]
    }

    /// Passes on what is ready.
    pub fn pump(&mut self, ready: &[PollFlags]) {
        let [master, stdin] = ready else { return };
        if master.intersects(PollFlags::IN | PollFlags::HUP | PollFlags::ERR) {
            self.show();
        }
        if stdin.intersects(PollFlags::IN | PollFlags::HUP | PollFlags::ERR) && self.typed.is_empty() {
            self.read_typed();
        }
        self.pass_typed();
    }

    fn read_typed(&mut self) {
        let mut buffer = [0; BUFFER];
        match rustix::io::read(io::stdin(), &mut buffer) {
            Ok(0) => self.stdin_open = false,
            Ok(length) => self.typed.extend_from_slice(&buffer[..length]),
            Err(Errno::INTR | Errno::AGAIN) => {}
            Err(_) => self.stdin_open = false,
        }
    }

    fn pass_typed(&mut self) {
        while !self.typed.is_empty() {
            match rustix::io::write(&self.master, &self.typed) {
                Ok(length) => drop(self.typed.drain(..length)),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return,
                Err(_) => self.typed.clear(),
            }
        }
    }

    /// Shows what the container has written, until there is no more for now.
    fn show(&mut self) {
        let mut buffer = [0; BUFFER];
        loop {
            match rustix::io::read(&self.master, &mut buffer) {
                Ok(0) => break,
                Ok(length) => write_out(&buffer[..length]),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return,
                // EIO: the last slave was closed.
                Err(_) => break,
            }
        }
        self.master_open = false;
    }

    /// The container has ended: shows its last bytes.
    pub fn finish(mut self) {
        self.show();
    }
}

fn stdin_fd() -> std::os::fd::BorrowedFd<'static> {
    rustix::stdio::stdin()
}

fn write_out(mut bytes: &[u8]) {
    while !bytes.is_empty() {
        match rustix::io::write(rustix::stdio::stdout(), bytes) {
            Ok(length) => bytes = &bytes[length..],
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => {
                let mut polled = [PollFd::from_borrowed_fd(rustix::stdio::stdout(), PollFlags::OUT)];
                let _ready = rustix::event::poll(&mut polled, None);
            }
            // Nobody reads any more.
            Err(_) => return,
        }
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        if let Some(saved) = &self.saved {
            let _closed = termios::tcsetattr(io::stdin(), OptionalActions::Now, saved);
        }
    }
}
