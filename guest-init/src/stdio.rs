//! The standard streams of a process: pipes or a terminal on its side, one vsock connection each on the
//! host's, a relay between. Pipes and not the connections themselves, because programs reopen
//! `/dev/stdout` by `/proc/self/fd/1` and expect what a pipe does.

use std::{io, os::fd::OwnedFd, rc::Rc};

use moat_protocol::ports::Stream;
use rustix::{fs::OFlags, pipe::PipeFlags, termios::Winsize};

use crate::relay::{AtEnd, Progress, Relay};

/// What the process gets.
#[derive(Debug)]
pub(crate) enum ProcessStdio {
    Pipes {
        stdin: OwnedFd,
        stdout: OwnedFd,
        stderr: OwnedFd,
    },
    /// It opens one itself and hands us the master.
    Terminal,
}

impl ProcessStdio {
    /// Makes pipes the caller's descriptors 0, 1 and 2.
    pub(crate) fn install(self) -> io::Result<()> {
        if let ProcessStdio::Pipes {
            stdin,
            stdout,
            stderr,
        } = self
        {
            rustix::stdio::dup2_stdin(&stdin)?;
            rustix::stdio::dup2_stdout(&stdout)?;
            rustix::stdio::dup2_stderr(&stderr)?;
        }
        Ok(())
    }
}

/// Our side.
#[derive(Debug)]
pub(crate) struct Streams {
    input: (Stream, Relay),
    outputs: Vec<(Stream, Relay)>,
    terminal: Option<Rc<OwnedFd>>,
}

impl Streams {
    /// Three pipes.
    pub(crate) fn pipes() -> io::Result<(Streams, ProcessStdio)> {
        let (stdin, stdin_ours) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
        let (stdout_ours, stdout) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
        let (stderr_ours, stderr) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
        // each end of a pipe has flags of its own: the process's stay blocking
        for ours in [&stdin_ours, &stdout_ours, &stderr_ours] {
            rustix::fs::fcntl_setfl(ours, OFlags::NONBLOCK)?;
        }
        let output = |ours: OwnedFd| Relay::new(AtEnd::ShutDown).from(Rc::new(ours));
        let streams = Streams {
            input: (Stream::Stdin, Relay::new(AtEnd::Close).to(Rc::new(stdin_ours))),
            outputs: vec![
                (Stream::Stdout, output(stdout_ours)),
                (Stream::Stderr, output(stderr_ours)),
            ],
            terminal: None,
        };
        Ok((
            streams,
            ProcessStdio::Pipes {
                stdin,
                stdout,
                stderr,
            },
        ))
    }

    /// A terminal, whose master comes later.
    pub(crate) fn terminal() -> (Streams, ProcessStdio) {
        let streams = Streams {
            input: (Stream::Terminal, Relay::new(AtEnd::Leave)),
            outputs: vec![(Stream::Terminal, Relay::new(AtEnd::ShutDown))],
            terminal: None,
        };
        (streams, ProcessStdio::Terminal)
    }

    /// Descriptors to be watched from the start.
    pub(crate) fn ours(&self) -> Vec<Rc<OwnedFd>> {
        let (_, input) = &self.input;
        let outputs = self.outputs.iter().flat_map(|(_, relay)| relay.ends());
        input.ends().into_iter().chain(outputs).collect()
    }

    /// Ties the host's connection to the stream that it is for; false when there is no such stream, or
    /// it has one already.
    pub(crate) fn connect(&mut self, stream: Stream, connection: &Rc<OwnedFd>) -> bool {
        let mut used = false;
        let (of, input) = &mut self.input;
        if *of == stream && input.needs_source() {
            input.set_source(Rc::clone(connection));
            used = true;
        }
        for (of, output) in &mut self.outputs {
            if *of == stream && output.needs_sink() {
                output.set_sink(Rc::clone(connection));
                used = true;
            }
        }
        used
    }

    /// The terminal's master has come.
    pub(crate) fn set_terminal(&mut self, master: OwnedFd) -> io::Result<Rc<OwnedFd>> {
        rustix::io::ioctl_fionbio(&master, true)?;
        let master = Rc::new(master);
        self.input.1.set_sink(Rc::clone(&master));
        for (_, output) in &mut self.outputs {
            output.set_source(Rc::clone(&master));
        }
        self.terminal = Some(Rc::clone(&master));
        Ok(master)
    }

    /// Sets the terminal's size.
    pub(crate) fn resize(&self, rows: u16, columns: u16) -> io::Result<()> {
        let terminal = self.terminal.as_ref().ok_or(io::ErrorKind::NotFound)?;
        let size = Winsize {
            ws_row: rows,
            ws_col: columns,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        Ok(rustix::termios::tcsetwinsize(terminal, size)?)
    }

    /// Moves bytes; true when there is more to move at once.
    pub(crate) fn pump(&mut self) -> bool {
        let outputs = self.outputs.iter_mut().map(|(_, relay)| relay);
        let relays = outputs.chain([&mut self.input.1]);
        let mut more = false;
        for relay in relays {
            more |= relay.pump() == Progress::Ready;
        }
        more
    }

    /// The process reads no more.
    pub(crate) fn end_input(&mut self) {
        self.input.1.stop();
    }

    /// Everything that was written is delivered, and no writer is left.
    pub(crate) fn outputs_done(&self) -> bool {
        self.outputs.iter().all(|(_, relay)| relay.is_done())
    }

    /// What was read is delivered, though writers may be left.
    pub(crate) fn outputs_idle(&self) -> bool {
        self.outputs
            .iter()
            .all(|(_, relay)| relay.is_done() || relay.is_empty())
    }

    /// Some output has nowhere to go yet: the host's connection is not there.
    pub(crate) fn lacks_connection(&self) -> bool {
        self.outputs
            .iter()
            .any(|(_, relay)| !relay.is_done() && relay.needs_sink())
    }

    /// Gives up outputs that nobody has come for.
    pub(crate) fn drop_unconnected(&mut self) {
        for (_, relay) in &mut self.outputs {
            if relay.needs_sink() {
                relay.stop();
            }
        }
    }
}
