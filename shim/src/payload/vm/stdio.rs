//! The container's standard streams, as the VMM's vsock device wants them: descriptors that never
//! block, or regular files.
//!
//! A pipe or terminal is opened a second time through `/proc/self/fd`, which gives a file description
//! of our own: setting `O_NONBLOCK` on the inherited one would change it for whoever shares it. What
//! can't be opened a second time (a socket, a pipe whose reader has gone, a terminal of another mount
//! namespace) is joined to a pipe by a thread that copies.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::thread::JoinHandle;

use rustix::fs::{FileType, Mode, OFlags};
use rustix::pipe::PipeFlags;

/// Which way a stream goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// From the host to the workload.
    Input,
    /// From the workload to the host.
    Output,
}

/// A stream of the host, opened in the CLI.
#[derive(Debug)]
pub enum HostStream {
    /// Can be given to the device as it is.
    Ready(OwnedFd),
    /// May block: needs a copying thread.
    Blocking(OwnedFd),
}

impl HostStream {
    /// Takes the stream behind an inherited descriptor. Needs `/proc`.
    ///
    /// # Errors
    /// When the descriptor is not open.
    pub fn take(inherited: BorrowedFd<'_>, direction: Direction) -> io::Result<HostStream> {
        let kind = FileType::from_raw_mode(rustix::fs::fstat(inherited)?.st_mode);
        let terminal = rustix::termios::isatty(inherited);
        match kind {
            FileType::Fifo => HostStream::reopen(inherited, direction),
            FileType::CharacterDevice if terminal => HostStream::reopen(inherited, direction),
            // Reopening a regular file would lose its offset; /dev/null and its like never block.
            FileType::RegularFile | FileType::CharacterDevice => {
                Ok(HostStream::Ready(inherited.try_clone_to_owned()?))
            }
            _ => Ok(HostStream::Blocking(inherited.try_clone_to_owned()?)),
        }
    }

    fn reopen(inherited: BorrowedFd<'_>, direction: Direction) -> io::Result<HostStream> {
        use std::os::fd::AsRawFd;
        let access = match direction {
            Direction::Input => OFlags::RDONLY,
            Direction::Output => OFlags::WRONLY,
        };
        let path = format!("/proc/self/fd/{}", inherited.as_raw_fd());
        let flags = access | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        match rustix::fs::open(path, flags, Mode::empty()) {
            Ok(fd) => Ok(HostStream::Ready(fd)),
            Err(_) => Ok(HostStream::Blocking(inherited.try_clone_to_owned()?)),
        }
    }

    /// The descriptor for the device, and the thread that stands behind it where one is needed. The
    /// thread ends when its source ends; for an output, join it to know that every byte has arrived.
    ///
    /// # Errors
    /// When no pipe or thread can be made.
    pub fn into_device_end(self, direction: Direction) -> io::Result<(OwnedFd, Option<JoinHandle<()>>)> {
        let outside = match self {
            HostStream::Ready(fd) => return Ok((fd, None)),
            HostStream::Blocking(fd) => fd,
        };
        let (read_end, write_end) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
        let (from, to, device_end) = match direction {
            Direction::Input => (outside, write_end.try_clone()?, read_end),
            Direction::Output => (read_end.try_clone()?, outside, write_end),
        };
        let flags = rustix::fs::fcntl_getfl(&device_end)?;
        rustix::fs::fcntl_setfl(&device_end, flags | OFlags::NONBLOCK)?;
        let thread = std::thread::Builder::new()
            .name("stream relay".to_owned())
            .stack_size(RELAY_STACK)
            .spawn(move || copy(File::from(from), File::from(to)))?;
        Ok((device_end, Some(thread)))
    }
}

/// Stack of a relay thread: its buffer and the frames of a loop around two system calls.
const RELAY_STACK: usize = 128 << 10;
const RELAY_BUFFER: usize = 32 << 10;

fn copy(mut from: File, mut to: File) {
    let mut buffer = [0; RELAY_BUFFER];
    loop {
        match from.read(&mut buffer) {
            // Nobody is left to tell: either end is gone, and dropping ours tells the other.
            Ok(0) => return,
            Ok(length) => {
                if to.write_all(&buffer[..length]).is_err() {
                    return;
                }
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => return,
        }
    }
}

/// Where the workload's streams go on the host.
#[derive(Debug)]
pub enum HostStreams {
    /// Three streams.
    Three {
        /// Standard input.
        stdin: HostStream,
        /// Standard output.
        stdout: HostStream,
        /// Standard error.
        stderr: HostStream,
    },
    /// A raw terminal: the line discipline that matters is the guest's. Its slave is the VMM's, its master
    /// goes to whoever asked for the terminal.
    Terminal {
        /// Until it is handed over.
        master: Option<OwnedFd>,
        /// Never blocks.
        slave: OwnedFd,
    },
}

impl HostStreams {
    /// Takes the caller's own standard streams. Needs `/proc`.
    ///
    /// # Errors
    /// When one of them is not open.
    pub fn take() -> io::Result<HostStreams> {
        Ok(HostStreams::Three {
            stdin: HostStream::take(io::stdin().as_fd(), Direction::Input)?,
            stdout: HostStream::take(io::stdout().as_fd(), Direction::Output)?,
            stderr: HostStream::take(io::stderr().as_fd(), Direction::Output)?,
        })
    }

    /// Opens a new terminal of the host.
    ///
    /// # Errors
    /// When there is no pty to be had.
    pub fn terminal() -> io::Result<HostStreams> {
        use rustix::pty::{OpenptFlags, grantpt, ioctl_tiocgptpeer, openpt, unlockpt};
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let master = openpt(flags)?;
        grantpt(&master)?;
        unlockpt(&master)?;
        let slave = ioctl_tiocgptpeer(&master, flags)?;
        let mut raw = rustix::termios::tcgetattr(&slave)?;
        raw.make_raw();
        rustix::termios::tcsetattr(&slave, rustix::termios::OptionalActions::Now, &raw)?;
        let status = rustix::fs::fcntl_getfl(&slave)?;
        rustix::fs::fcntl_setfl(&slave, status | OFlags::NONBLOCK)?;
        Ok(HostStreams::Terminal {
            master: Some(master),
            slave,
        })
    }

    /// Makes the terminal, if there is one, the controlling terminal of this process, which leads a session:
    /// changes of its size arrive as SIGWINCH. Returns the master, which is to be handed over.
    ///
    /// # Errors
    /// When the process has a controlling terminal already, or leads no session.
    pub fn adopt_terminal(&mut self) -> io::Result<Option<OwnedFd>> {
        match self {
            HostStreams::Three { .. } => Ok(None),
            HostStreams::Terminal { master, slave } => {
                moat_workload::sys::set_controlling_terminal(slave.as_fd())?;
                Ok(master.take())
            }
        }
    }
}

/// Puts `null` in the place of this process's standard streams, so that the ends of the workload's streams
/// are seen by whoever holds the other sides.
///
/// # Errors
/// As `dup2(2)`.
pub fn detach(null: BorrowedFd<'_>) -> io::Result<()> {
    rustix::stdio::dup2_stdin(null)?;
    rustix::stdio::dup2_stdout(null)?;
    rustix::stdio::dup2_stderr(null)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn a_pipe_is_opened_again_and_its_own_description_keeps_blocking() {
        let (reader, _writer) = rustix::pipe::pipe().unwrap();
        let HostStream::Ready(own) = HostStream::take(reader.as_fd(), Direction::Input).unwrap() else {
            panic!("a pipe can be opened again")
        };
        assert!(rustix::fs::fcntl_getfl(&own).unwrap().contains(OFlags::NONBLOCK));
        assert!(
            !rustix::fs::fcntl_getfl(&reader)
                .unwrap()
                .contains(OFlags::NONBLOCK)
        );
    }

    #[test]
    fn a_regular_file_keeps_its_offset() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"before").unwrap();
        let HostStream::Ready(own) = HostStream::take(file.as_fd(), Direction::Output).unwrap() else {
            panic!("a file never blocks")
        };
        File::from(own).write_all(b" after").unwrap();
        assert_eq!(file.metadata().unwrap().len(), 12);
    }

    #[test]
    fn a_socket_is_relayed_to_its_last_byte() {
        let (inside, mut outside) = UnixStream::pair().unwrap();
        let stream = HostStream::take(inside.as_fd(), Direction::Output).unwrap();
        drop(inside);
        let (device_end, thread) = stream.into_device_end(Direction::Output).unwrap();
        let sent: Vec<u8> = (0u8..=255).cycle().take(10_000).collect();
        File::from(device_end).write_all(&sent).unwrap();
        let mut received = Vec::new();
        outside.read_to_end(&mut received).unwrap();
        thread.unwrap().join().unwrap();
        assert_eq!(received, sent);
    }
}
