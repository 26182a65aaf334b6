//! What guest-init and a process on its way to being a workload say to each other, over a socket pair
//! that keeps message boundaries. The process's end is close-on-exec: that it closes after
//! [`Report::Executing`] and without [`Report::Failed`] is the news that `execve` succeeded.

use std::{
    io::{self, IoSlice, IoSliceMut},
    mem::MaybeUninit,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use rustix::{
    io::Errno,
    net::{
        AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
        SendAncillaryMessage, SendFlags, SocketFlags, SocketType,
    },
};

/// Longest text of an error that is passed on; a chain of paths is far shorter.
const MAX_TEXT: usize = 16 << 10;

const PREPARED: u8 = b'P';
const EXECUTING: u8 = b'E';
const FAILED: u8 = b'F';
const TERMINAL: u8 = b'T';
const START: u8 = b'S';

/// From the process.
#[derive(Debug)]
pub(crate) enum Report {
    /// It waits for [`AgentEnd::start`].
    Prepared,
    /// `execve` is next.
    Executing,
    /// It gives up, for this chain of reasons.
    Failed(String),
    /// The master of its terminal.
    Terminal(OwnedFd),
}

/// What [`AgentEnd::receive`] found.
#[derive(Debug)]
pub(crate) enum Received {
    Report(Report),
    /// Nothing yet.
    Nothing,
    /// The process has executed its program, or is dead.
    Closed,
}

/// guest-init's end, non-blocking.
#[derive(Debug)]
pub(crate) struct AgentEnd(OwnedFd);

/// The process's end.
#[derive(Debug)]
pub(crate) struct ProcessEnd(OwnedFd);

/// Both ends.
pub(crate) fn pair() -> io::Result<(AgentEnd, ProcessEnd)> {
    let (agent, process) = rustix::net::socketpair(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )?;
    rustix::io::ioctl_fionbio(&agent, true)?;
    Ok((AgentEnd(agent), ProcessEnd(process)))
}

impl AgentEnd {
    /// Lets the process go on.
    pub(crate) fn start(&self) -> io::Result<()> {
        rustix::io::write(&self.0, &[START])?;
        Ok(())
    }

    /// The next report.
    pub(crate) fn receive(&self) -> io::Result<Received> {
        let mut bytes = vec![0; 1 + MAX_TEXT];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut parts = [IoSliceMut::new(&mut bytes)];
        let length = match rustix::net::recvmsg(&self.0, &mut parts, &mut control, RecvFlags::CMSG_CLOEXEC) {
            Ok(message) => message.bytes,
            Err(Errno::AGAIN) => return Ok(Received::Nothing),
            Err(Errno::CONNRESET) => 0,
            Err(errno) => return Err(errno.into()),
        };
        let descriptor = control.drain().find_map(|message| match message {
            RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
            _ => None,
        });
        let text = bytes.get(1..length).unwrap_or_default();
        Ok(match (bytes.first().filter(|_| length > 0), descriptor) {
            (None, _) => Received::Closed,
            (Some(&PREPARED), _) => Received::Report(Report::Prepared),
            (Some(&EXECUTING), _) => Received::Report(Report::Executing),
            (Some(&TERMINAL), Some(master)) => Received::Report(Report::Terminal(master)),
            (Some(_), _) => Received::Report(Report::Failed(String::from_utf8_lossy(text).into_owned())),
        })
    }
}

impl AsFd for AgentEnd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl ProcessEnd {
    /// Ready; returns when the agent says so.
    ///
    /// # Errors
    /// When the agent has gone away instead.
    pub(crate) fn wait_for_start(&self) -> io::Result<()> {
        rustix::io::write(&self.0, &[PREPARED])?;
        let mut byte = [0];
        loop {
            match rustix::io::read(&self.0, &mut byte) {
                Ok(1) if byte[0] == START => return Ok(()),
                Ok(_) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }

    /// `execve` is next.
    pub(crate) fn executing(&self) -> io::Result<()> {
        rustix::io::write(&self.0, &[EXECUTING])?;
        Ok(())
    }

    /// Why there will be no workload. By `write`, which seccomp filters allow.
    pub(crate) fn failed(&self, text: &str) {
        let mut message = vec![FAILED];
        message.extend(text.bytes().take(MAX_TEXT));
        // an agent that is gone needs no reason
        let _ = rustix::io::write(&self.0, &message);
    }

    /// Hands over the terminal's master.
    pub(crate) fn send_terminal(&self, master: &OwnedFd) -> io::Result<()> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let descriptors = [master.as_fd()];
        control.push(SendAncillaryMessage::ScmRights(&descriptors));
        rustix::net::sendmsg(
            &self.0,
            &[IoSlice::new(&[TERMINAL])],
            &mut control,
            SendFlags::empty(),
        )?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reports_arrive_in_order_and_then_the_end() {
        let (agent, process) = pair().unwrap();
        assert!(matches!(agent.receive().unwrap(), Received::Nothing));
        agent.start().unwrap();
        process.wait_for_start().unwrap();
        let (master, _slave) = rustix::pipe::pipe().unwrap();
        process.send_terminal(&master).unwrap();
        process.executing().unwrap();
        process.failed("no such file");
        drop(process);
        assert!(matches!(
            agent.receive().unwrap(),
            Received::Report(Report::Prepared)
        ));
        assert!(matches!(
            agent.receive().unwrap(),
            Received::Report(Report::Terminal(_))
        ));
        assert!(matches!(
            agent.receive().unwrap(),
            Received::Report(Report::Executing)
        ));
        assert!(matches!(
            agent.receive().unwrap(),
            Received::Report(Report::Failed(text)) if text == "no such file"
        ));
        assert!(matches!(agent.receive().unwrap(), Received::Closed));
    }

    #[test]
    fn a_process_whose_agent_is_gone_does_not_start() {
        let (agent, process) = pair().unwrap();
        drop(agent);
        assert!(process.wait_for_start().is_err());
    }
}
