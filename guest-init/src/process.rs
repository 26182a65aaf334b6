//! A process that the host asked for, from its clone to the report of its end.

use std::{io, os::fd::OwnedFd};

use moat_protocol::message::ExitStatus;
use rustix::process::{Pid, WaitStatus};

use crate::{
    stdio::Streams,
    sync::{AgentEnd, Received, Report},
};

/// How far it has come. What ends it is told apart from this, by [`Process::status`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stage {
    /// It builds its container.
    Preparing,
    /// It waits for `Start`.
    Prepared,
    /// It was let go, or never waits, and has not executed its program yet.
    Starting,
    /// `execve` is next.
    Executing,
    /// The program runs, or ran.
    Running,
}

/// News of a process.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum News {
    Prepared,
    Started,
    /// It will not run, for this reason.
    Failed(String),
}

#[derive(Debug)]
pub(crate) struct Process {
    pub(crate) pid: Pid,
    pub(crate) pidfd: OwnedFd,
    pub(crate) streams: Streams,
    pub(crate) stage: Stage,
    /// How it ended, once it has.
    pub(crate) status: Option<WaitStatus>,
    /// Its end was told to the host.
    pub(crate) reported: bool,
    sync: Option<AgentEnd>,
    failure: Option<String>,
}

impl Process {
    pub(crate) fn new(pid: Pid, pidfd: OwnedFd, streams: Streams, sync: AgentEnd, stage: Stage) -> Process {
        Process {
            pid,
            pidfd,
            streams,
            stage,
            status: None,
            reported: false,
            sync: Some(sync),
            failure: None,
        }
    }

    /// What it reports through, until it is settled.
    pub(crate) fn sync(&self) -> Option<&AgentEnd> {
        self.sync.as_ref()
    }

    /// Its way to its program is over, one way or the other.
    pub(crate) fn is_settled(&self) -> bool {
        self.sync.is_none()
    }

    /// Lets a prepared process go.
    pub(crate) fn start(&mut self) -> io::Result<()> {
        let sync = self.sync.as_ref().ok_or(io::ErrorKind::NotConnected)?;
        sync.start()?;
        self.stage = Stage::Starting;
        Ok(())
    }

    /// The next news, if there is any; `watch` is told of the terminal's master.
    pub(crate) fn next_news(&mut self, mut watch: impl FnMut(&OwnedFd) -> io::Result<()>) -> Option<News> {
        loop {
            let received = match self.sync.as_ref()?.receive() {
                Ok(Received::Report(Report::Terminal(master))) => {
                    let watched = self
                        .streams
                        .set_terminal(master)
                        .and_then(|master| watch(&master));
                    if let Err(error) = watched {
                        self.failure = Some(format!("cannot use the terminal: {error}"));
                    }
                    continue;
                }
                Ok(Received::Report(report)) => report,
                Ok(Received::Nothing) => return None,
                Ok(Received::Closed) => return Some(self.closed()),
                Err(error) => Report::Failed(format!("cannot hear from the process: {error}")),
            };
            match received {
                Report::Prepared => {
                    self.stage = Stage::Prepared;
                    return Some(News::Prepared);
                }
                Report::Executing => self.stage = Stage::Executing,
                Report::Failed(text) => self.failure = Some(text),
                Report::Terminal(_) => {}
            }
        }
    }

    fn closed(&mut self) -> News {
        self.sync = None;
        match (self.failure.take(), self.stage) {
            (Some(text), _) => News::Failed(text),
            (None, Stage::Executing) => {
                self.stage = Stage::Running;
                News::Started
            }
            (None, Stage::Preparing | Stage::Prepared | Stage::Starting | Stage::Running) => {
                News::Failed("the process was killed while it was set up".into())
            }
        }
    }
}

/// The status as the protocol has it.
pub(crate) fn exit_status(status: WaitStatus, out_of_memory: bool) -> ExitStatus {
    let byte = |number: Option<i32>| number.and_then(|number| u8::try_from(number).ok());
    match (byte(status.terminating_signal()), byte(status.exit_status())) {
        (Some(signal), _) => ExitStatus::Signal {
            signal,
            out_of_memory,
        },
        (None, code) => ExitStatus::Code(code.unwrap_or(u8::MAX)),
    }
}
