//! The agent: serves the host's messages and moves the streams, in one epoll loop.
//!
//! ```text
//! host    Hello ─► Prepare ─────────► Start ─────────────────────► (closes)
//! guest        ◄─ Ready  ◄─ Prepared      ◄─ Started   ◄─ Exited            ─► power off
//! streams              one connection each ◄═══════════► until the last writer is gone
//! ```
//!
//! What goes wrong with a request is answered with `Failed`; what goes wrong with the control stream
//! itself ends the guest, since nobody can be told any more.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    os::fd::OwnedFd,
    path::PathBuf,
    rc::Rc,
    time::{Duration, Instant},
};

use moat_protocol::{
    frame::Decoder,
    message::{GuestMessage, ProcessId},
    phase::Phase,
    ports::StreamHeader,
};
use moat_workload::{error_chain, sys};
use rustix::{
    io::Errno,
    process::{PidfdFlags, Signal},
};

use crate::{
    boot::BootError,
    cgroup::Cgroup,
    control::{Control, ControlError},
    listener::Listeners,
    machine::Machine,
    poller::{Poller, Token},
    process::{News, Process, exit_status},
    reaper::Children,
};

mod requests;

/// How long output of an ended container waits for the host to connect its stream, and the guest for the
/// host to close the control stream after the last message. Both happen at once unless the host is gone.
const GRACE: Duration = Duration::from_secs(5);

/// Longest header that is accepted on a stream, with its frame: it is a few bytes.
const MAX_HEADER: usize = 64;

/// Connections that may wait for a process that was not asked for yet.
const MAX_EARLY: usize = 64;

/// Why the agent can't go on.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// The event loop.
    #[error("cannot watch descriptors")]
    Poll(#[source] io::Error),
    /// A listener.
    #[error("cannot accept connections")]
    Accept(#[source] io::Error),
    /// guest-init itself, by descriptor.
    #[error("cannot open a descriptor of guest-init itself")]
    Own(#[source] io::Error),
}

/// A stream connection whose header is being read.
#[derive(Debug)]
struct Arriving {
    connection: OwnedFd,
    header: Decoder,
}

/// See the module.
#[derive(Debug)]
pub struct Agent<M> {
    machine: M,
    poller: Poller,
    listeners: Listeners,
    children: Children,
    cgroup_root: PathBuf,
    /// Whether the host's export is mounted, or why not.
    cell: Result<(), String>,
    /// guest-init's own pidfd: the way back into its pid namespace.
    own: OwnedFd,
    control: Option<Control>,
    arriving: BTreeMap<u32, Arriving>,
    next_arriving: u32,
    /// Connections that came before their process.
    early: Vec<(StreamHeader, Rc<OwnedFd>)>,
    processes: BTreeMap<ProcessId, Process>,
    cgroup: Option<Cgroup>,
    /// Processes with more bytes to move at once.
    busy: BTreeSet<ProcessId>,
    /// When the container's first process ended.
    ended: Option<Instant>,
    /// When its end was told.
    delivered: Option<Instant>,
    /// The control stream is closed or damaged.
    over: bool,
}

impl<M: Machine> Agent<M> {
    /// An agent that serves `listeners`; `cgroup_root` is a directory of the cgroup2 tree that containers
    /// are made below.
    ///
    /// # Errors
    /// When descriptors can't be watched.
    pub fn new(
        machine: M,
        listeners: Listeners,
        children: Children,
        cgroup_root: PathBuf,
    ) -> Result<Agent<M>, AgentError> {
        let poller = Poller::new().map_err(AgentError::Poll)?;
        poller
            .add(&listeners.control, Token::ControlListener)
            .map_err(AgentError::Poll)?;
        poller
            .add(&listeners.streams, Token::StreamListener)
            .map_err(AgentError::Poll)?;
        poller.add(&children, Token::Children).map_err(AgentError::Poll)?;
        let own = rustix::process::pidfd_open(rustix::process::getpid(), PidfdFlags::empty())
            .map_err(|errno| AgentError::Own(errno.into()))?;
        Ok(Agent {
            machine,
            poller,
            listeners,
            children,
            cgroup_root,
            cell: Ok(()),
            own,
            control: None,
            arriving: BTreeMap::new(),
            next_arriving: 0,
            early: Vec::new(),
            processes: BTreeMap::new(),
            cgroup: None,
            busy: BTreeSet::new(),
            ended: None,
            delivered: None,
            over: false,
        })
    }

    /// Marks that the host may connect.
    pub fn announce(&mut self) {
        self.machine.mark(Phase::InitListening);
    }

    /// How mounting the host's export went; a failure is told when a container is asked for.
    pub fn set_cell(&mut self, mounted: Result<(), BootError>) {
        self.cell = mounted.map_err(|error| error_chain(&error));
    }

    /// Serves the host until there is nothing left to do.
    ///
    /// # Errors
    /// When the event loop itself fails.
    pub fn run(mut self) -> Result<(), AgentError> {
        while !self.over && self.delivered.is_none_or(|at| at.elapsed() < GRACE) {
            let tokens = self.poller.wait(self.timeout()).map_err(AgentError::Poll)?;
            for token in tokens {
                self.on_event(token)?;
            }
            for id in std::mem::take(&mut self.busy) {
                self.pump(id);
            }
            self.report_ends();
        }
        Ok(())
    }

    fn timeout(&self) -> Option<Duration> {
        if !self.busy.is_empty() {
            return Some(Duration::ZERO);
        }
        let since = self.delivered.or(self.ended)?;
        Some(GRACE.saturating_sub(since.elapsed()))
    }

    fn on_event(&mut self, token: Token) -> Result<(), AgentError> {
        match token {
            Token::ControlListener => self.accept_control(),
            Token::StreamListener => self.accept_streams(),
            Token::Control => {
                self.on_control();
                Ok(())
            }
            Token::Arriving(number) => {
                self.on_arriving(number);
                Ok(())
            }
            Token::Process(id) => {
                self.on_process(id);
                Ok(())
            }
            Token::Children => {
                self.on_children();
                Ok(())
            }
        }
    }

    /// The first connection is the control stream; later ones are closed.
    fn accept_control(&mut self) -> Result<(), AgentError> {
        while let Some(connection) = self.listeners.control.accept().map_err(AgentError::Accept)? {
            if self.control.is_none() {
                self.poller
                    .add(&connection, Token::Control)
                    .map_err(AgentError::Poll)?;
                self.control = Some(Control::new(connection));
            }
        }
        Ok(())
    }

    fn accept_streams(&mut self) -> Result<(), AgentError> {
        while let Some(connection) = self.listeners.streams.accept().map_err(AgentError::Accept)? {
            let number = self.next_arriving;
            self.next_arriving = self.next_arriving.wrapping_add(1);
            self.poller
                .add(&connection, Token::Arriving(number))
                .map_err(AgentError::Poll)?;
            self.arriving.insert(
                number,
                Arriving {
                    connection,
                    header: Decoder::new(),
                },
            );
        }
        Ok(())
    }

    fn on_control(&mut self) {
        let Some(control) = &mut self.control else { return };
        let received = control.flush().and_then(|()| control.receive());
        match received {
            Ok(received) => {
                for message in received.messages {
                    self.on_message(message);
                }
                self.over |= received.closed;
            }
            Err(error) => self.lose_control(&error),
        }
    }

    fn lose_control(&mut self, error: &ControlError) {
        self.machine.say(&error_chain(error));
        self.over = true;
    }

    fn send(&mut self, message: &GuestMessage) {
        let Some(control) = &mut self.control else { return };
        if let Err(error) = control.send(message) {
            self.lose_control(&error);
        }
    }

    fn fail(&mut self, process: ProcessId, message: String) {
        self.send(&GuestMessage::Failed { process, message });
    }

    /// Reads a stream's header, and not one byte more: what follows is for the process.
    fn on_arriving(&mut self, number: u32) {
        let Some(mut arriving) = self.arriving.remove(&number) else {
            return;
        };
        loop {
            match arriving.header.next_message::<StreamHeader>() {
                Ok(Some(header)) => return self.connect(header, arriving.connection),
                Ok(None) => {}
                // dropped, and so closed
                Err(_) => return,
            }
            let mut bytes = [0; MAX_HEADER];
            let missing = arriving.header.missing();
            let Some(part) = bytes.get_mut(..missing) else {
                return;
            };
            match rustix::io::read(&arriving.connection, part) {
                Ok(0) => return,
                Ok(read) => arriving.header.push(&bytes[..read]),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => {
                    self.arriving.insert(number, arriving);
                    return;
                }
                Err(_) => return,
            }
        }
    }

    fn connect(&mut self, header: StreamHeader, connection: OwnedFd) {
        let connection = Rc::new(connection);
        if self
            .poller
            .hand_over(&connection, Token::Process(header.process))
            .is_err()
        {
            return;
        }
        match self.processes.get_mut(&header.process) {
            Some(process) => {
                process.streams.connect(header.stream, &connection);
                self.busy.insert(header.process);
            }
            None if self.early.len() < MAX_EARLY => self.early.push((header, connection)),
            None => {}
        }
    }

    fn on_process(&mut self, id: ProcessId) {
        while let Some(news) = self.next_news(id) {
            match news {
                News::Prepared => {
                    self.machine.mark(Phase::WorkloadPrepared);
                    self.send(&GuestMessage::Prepared);
                }
                News::Started => {
                    if id == ProcessId::INIT {
                        self.machine.mark(Phase::WorkloadStarted);
                    }
                    self.send(&GuestMessage::Started { process: id });
                }
                News::Failed(text) => {
                    if let Some(process) = self.processes.remove(&id) {
                        // most often it has ended already
                        let _ = sys::send_signal(&process.pidfd, Signal::KILL.as_raw());
                    }
                    self.fail(id, text);
                }
            }
        }
        self.pump(id);
    }

    fn next_news(&mut self, id: ProcessId) -> Option<News> {
        let poller = &self.poller;
        self.processes
            .get_mut(&id)?
            .next_news(|master| poller.add(master, Token::Process(id)))
    }

    fn pump(&mut self, id: ProcessId) {
        if self
            .processes
            .get_mut(&id)
            .is_some_and(|process| process.streams.pump())
        {
            self.busy.insert(id);
        }
    }

    fn on_children(&mut self) {
        for (pid, status) in self.children.reap() {
            let known = self.processes.iter().find(|(_, process)| process.pid == pid);
            let Some(id) = known.map(|(&id, _)| id) else {
                continue;
            };
            // what it said before it ended comes first
            self.on_process(id);
            if let Some(process) = self.processes.get_mut(&id) {
                process.status = Some(status);
            }
            if id == ProcessId::INIT {
                self.ended = Some(Instant::now());
            }
            self.busy.insert(id);
        }
    }

    /// Tells the host of ends whose output is on its way.
    fn report_ends(&mut self) {
        let further: Vec<ProcessId> = self
            .processes
            .keys()
            .copied()
            .filter(|&id| id != ProcessId::INIT)
            .collect();
        for id in further {
            self.report_further(id);
        }
        self.report_init();
    }

    /// A further process may leave others behind that hold its pipes: those are not waited for, but what
    /// they write is still delivered.
    fn report_further(&mut self, id: ProcessId) {
        let Some(process) = self.processes.get_mut(&id) else {
            return;
        };
        let Some(status) = process.status.filter(|_| process.is_settled()) else {
            return;
        };
        process.streams.end_input();
        if process.reported {
            if process.streams.outputs_done() {
                self.processes.remove(&id);
            }
            return;
        }
        if self.busy.contains(&id) || !process.streams.outputs_idle() {
            return;
        }
        process.reported = true;
        self.send(&GuestMessage::Exited {
            process: id,
            status: exit_status(status, false),
        });
    }

    /// With the first process its pid namespace has ended, and so every writer. All that is left to wait
    /// for is the host taking the rest of the output.
    fn report_init(&mut self) {
        let Some(process) = self.processes.get_mut(&ProcessId::INIT) else {
            return;
        };
        let Some(status) = process
            .status
            .filter(|_| process.is_settled() && !process.reported)
        else {
            return;
        };
        process.streams.end_input();
        if process.streams.lacks_connection() && self.ended.is_some_and(|at| at.elapsed() >= GRACE) {
            process.streams.drop_unconnected();
        }
        if !process.streams.outputs_done() {
            return;
        }
        process.reported = true;
        let cgroup = self.cgroup.take();
        let killed = Signal::KILL.as_raw();
        let out_of_memory = status.terminating_signal() == Some(killed)
            && cgroup.as_ref().is_some_and(Cgroup::was_out_of_memory);
        if let Some(cgroup) = cgroup {
            cgroup.signal_all(killed);
            cgroup.remove();
        }
        self.machine.flush();
        self.machine.mark(Phase::WorkloadEnded);
        let status = exit_status(status, out_of_memory);
        self.send(&GuestMessage::Exited {
            process: ProcessId::INIT,
            status,
        });
        self.delivered = Some(Instant::now());
    }
}
