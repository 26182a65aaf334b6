//! The VMM's main thread: brings the guest up to the barrier, releases it, carries signals in and the
//! exit status out. It polls a handful of descriptors and never blocks on one of them.

use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use moat_protocol::PROTOCOL_VERSION;
use moat_protocol::frame;
use moat_protocol::message::{ExitStatus, GuestCgroup, GuestMessage, HostMessage, ProcessId};
use moat_protocol::phase::Phase;
use moat_protocol::ports::{CONTROL_PORT, STREAM_PORT, Stream, StreamHeader};
use moat_protocol::workload_spec::WorkloadSpec;
use moat_vmm::devices::virtio::vsock::{Endpoint, StreamId, VsockHandle};
use moat_vmm::vm::{ExitReason, RunningVm};
use nix::sys::signal::Signal;
use rustix::event::{PollFd, PollFlags, poll};

use super::failure::{Cause, VmFailure};
use super::guest_channel::GuestChannel;
use super::signals::Signals;
use super::stdio::{Direction, HostStream, HostStreams};

/// How long a reader on the host may take for the output of a guest that has died.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// What the guest is to build and run, and where its streams go.
#[derive(Debug)]
pub struct Assignment {
    /// The container, in the guest's paths.
    pub spec: WorkloadSpec,
    /// Limits that hold in the guest.
    pub cgroup: GuestCgroup,
    /// The container's standard streams.
    pub streams: HostStreams,
    /// Bytes for the guest kernel's random pool.
    pub entropy: Vec<u8>,
}

/// How far the guest is, as the supervisor sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
enum State {
    /// The kernel boots; guest-init does not listen yet.
    Booting,
    /// guest-init builds the container.
    Preparing,
    /// The workload waits at the barrier.
    Created,
    /// The barrier was released, the workload not yet executed.
    Starting,
    /// The workload runs.
    Running,
    /// The workload could not be executed.
    NotStarted(String),
    /// The workload has ended.
    Ended(ExitStatus),
}

/// The supervisor of one VM.
pub struct Supervisor {
    vm: RunningVm,
    vsock: VsockHandle,
    signals: Signals,
    channel: GuestChannel,
    channel_end: Option<OwnedFd>,
    assignment: Option<Assignment>,
    state: State,
    outputs: Vec<StreamId>,
    relays: Vec<JoinHandle<()>>,
    terminal: Option<OwnedFd>,
    vm_ended: bool,
}

impl Supervisor {
    /// A supervisor for a VM whose vCPUs have just started.
    ///
    /// # Errors
    /// When no socket pair can be made.
    pub fn new(
        vm: RunningVm,
        vsock: VsockHandle,
        signals: Signals,
        assignment: Assignment,
    ) -> io::Result<Supervisor> {
        let (channel, channel_end) = GuestChannel::new()?;
        Ok(Supervisor {
            vm,
            vsock,
            signals,
            channel,
            channel_end: Some(channel_end),
            assignment: Some(assignment),
            state: State::Booting,
            outputs: Vec::new(),
            relays: Vec::new(),
            terminal: None,
            vm_ended: false,
        })
    }

    /// Brings the guest up until its workload waits at the barrier.
    ///
    /// # Errors
    /// When the guest refuses, dies, or is silent for longer than `limit`.
    pub fn boot(&mut self, limit: Duration) -> Result<(), VmFailure> {
        let deadline = Instant::now() + limit;
        while self.state != State::Created {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(self.failure(Cause::Silent(limit)));
            }
            self.step(None, Some(left))?;
        }
        Ok(())
    }

    /// Releases the barrier and waits for the workload's `execve`.
    ///
    /// # Errors
    /// [`Cause::Refused`] when the workload can't be executed; others when the VM dies meanwhile.
    pub fn start(&mut self) -> Result<(), VmFailure> {
        self.send(&HostMessage::Start)?;
        self.state = State::Starting;
        while self.state == State::Starting {
            self.step(None, None)?;
        }
        match &self.state {
            State::NotStarted(message) => Err(self.failure(Cause::Refused(message.clone()))),
            _ => Ok(()),
        }
    }

    /// Host address ranges of the guest's RAM.
    pub fn ram(&self) -> Vec<Range<usize>> {
        self.vm.ram()
    }

    /// Whether the barrier can still be released.
    pub fn is_created(&self) -> bool {
        self.state == State::Created
    }

    /// How the workload ended, once it has and its output has been delivered.
    pub fn outcome(&self) -> Option<ExitStatus> {
        match self.state {
            State::Ended(status) if self.outputs.is_empty() => Some(status),
            _ => None,
        }
    }

    /// Waits until the guest has said something or `caller` is readable; whether the latter is so.
    ///
    /// # Errors
    /// When the VM ended before its workload did.
    pub fn wait(&mut self, caller: BorrowedFd<'_>) -> Result<bool, VmFailure> {
        self.step(Some(caller), None)
    }

    /// Lets what the guest has written leave this process, and stops the VM; returns it for its
    /// statistics.
    pub fn finish(mut self) -> RunningVm {
        self.vsock.guest_gone();
        let deadline = Instant::now() + LAST_WORDS;
        while !self.outputs.is_empty() {
            let left = deadline.saturating_duration_since(Instant::now());
            let mut news = [PollFd::from_borrowed_fd(self.vsock.events_fd(), PollFlags::IN)];
            let timeout = left.try_into().ok();
            if left.is_zero() || poll(&mut news, timeout.as_ref()).is_err() {
                break;
            }
            self.on_streams();
        }
        let Supervisor {
            mut vm,
            vsock,
            relays,
            ..
        } = self;
        vm.stop();
        drop(vsock);
        for relay in relays {
            // A relay that panicked has nothing to deliver any more.
            let _ = relay.join();
        }
        vm
    }

    /// The explanation of a failure, with what the VM can tell now.
    pub fn failure(&self, cause: Cause) -> VmFailure {
        let marks = self
            .vm
            .marks()
            .iter()
            .map(|mark| (mark.number, mark.at))
            .collect();
        VmFailure {
            cause,
            marks,
            console: self.vm.console(),
        }
    }

    fn host_failure(&self, error: &(dyn std::error::Error + 'static)) -> VmFailure {
        self.failure(Cause::Host(crate::report::error::chain(error)))
    }

    fn step(&mut self, caller: Option<BorrowedFd<'_>>, timeout: Option<Duration>) -> Result<bool, VmFailure> {
        const OWN: usize = 5;
        let channel_events = match (self.vm_ended, self.channel.wants_to_write()) {
            (true, _) => PollFlags::empty(),
            (false, false) => PollFlags::IN,
            (false, true) => PollFlags::IN | PollFlags::OUT,
        };
        let exit_events = if self.vm_ended {
            PollFlags::empty()
        } else {
            PollFlags::IN
        };
        let ready: Vec<bool> = {
            let mut fds = vec![
                PollFd::from_borrowed_fd(self.channel.as_fd(), channel_events),
                PollFd::from_borrowed_fd(self.vm.mark_event(), PollFlags::IN),
                PollFd::from_borrowed_fd(self.vsock.events_fd(), PollFlags::IN),
                PollFd::from_borrowed_fd(self.signals.as_fd(), PollFlags::IN),
                PollFd::from_borrowed_fd(self.vm.ended(), exit_events),
            ];
            fds.extend(caller.map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)));
            let timeout = timeout.and_then(|timeout| timeout.try_into().ok());
            match poll(&mut fds, timeout.as_ref()) {
                Ok(_) => fds.iter().map(|fd| !fd.revents().is_empty()).collect(),
                Err(rustix::io::Errno::INTR) => vec![false; fds.len()],
                Err(error) => return Err(self.host_failure(&io::Error::from(error))),
            }
        };
        if ready[1] {
            self.on_marks()?;
        }
        if ready[0] && !self.vm_ended {
            self.on_channel()?;
        }
        if ready[2] {
            self.on_streams();
        }
        if ready[3] {
            self.on_signals()?;
        }
        if ready[4] && !self.vm_ended {
            self.on_vm_end()?;
        }
        Ok(ready.get(OWN).copied().unwrap_or(false))
    }

    fn on_marks(&mut self) -> Result<(), VmFailure> {
        let listening = self
            .vm
            .marks()
            .iter()
            .any(|mark| mark.number == Phase::InitListening.mark());
        if !listening || self.state != State::Booting {
            return Ok(());
        }
        self.state = State::Preparing;
        match self.greet() {
            Ok(()) => Ok(()),
            Err(error) => Err(self.failure(Cause::Host(error))),
        }
    }

    /// Opens every stream and sends all that the guest needs, without waiting for an answer between:
    /// each turn between host and guest costs a VM exit and a wake-up.
    fn greet(&mut self) -> Result<(), String> {
        let text = |error: &(dyn std::error::Error + 'static)| crate::report::error::chain(error);
        let end = self.channel_end.take().ok_or("greeted twice")?;
        let both = Endpoint {
            input: Some(end.try_clone().map_err(|error| text(&error))?),
            output: Some(end),
        };
        self.vsock
            .connect(CONTROL_PORT, Vec::new(), both)
            .map_err(|error| text(&error))?;
        let Assignment {
            spec,
            cgroup,
            streams,
            entropy,
        } = self.assignment.take().ok_or("assigned twice")?;
        let realtime = rustix::time::clock_gettime(rustix::time::ClockId::Realtime);
        let seconds = u64::try_from(realtime.tv_sec).unwrap_or_default();
        let nanoseconds = u64::try_from(realtime.tv_nsec).unwrap_or_default();
        let realtime_ns = seconds.saturating_mul(1_000_000_000).saturating_add(nanoseconds);
        let hello = HostMessage::Hello {
            version: PROTOCOL_VERSION,
            realtime_ns,
            entropy,
        };
        self.channel.send(&hello).map_err(|error| text(&error))?;
        let prepare = HostMessage::Prepare {
            spec: Box::new(spec),
            cgroup,
        };
        self.channel.send(&prepare).map_err(|error| text(&error))?;
        self.open_streams(streams).map_err(|error| text(&error))
    }

    fn open_streams(&mut self, streams: HostStreams) -> io::Result<()> {
        match streams {
            HostStreams::Three {
                stdin,
                stdout,
                stderr,
            } => {
                self.open_stream(Stream::Stdin, stdin)?;
                self.open_stream(Stream::Stdout, stdout)?;
                self.open_stream(Stream::Stderr, stderr)
            }
            HostStreams::Terminal { slave, .. } => {
                self.terminal = Some(slave.try_clone()?);
                let endpoint = Endpoint {
                    input: Some(slave.try_clone()?),
                    output: Some(slave),
                };
                let id = self.connect(Stream::Terminal, endpoint)?;
                self.outputs.push(id);
                Ok(())
            }
        }
    }

    fn open_stream(&mut self, stream: Stream, host: HostStream) -> io::Result<()> {
        let direction = if stream == Stream::Stdin {
            Direction::Input
        } else {
            Direction::Output
        };
        let (end, relay) = host.into_device_end(direction)?;
        let endpoint = match direction {
            Direction::Input => Endpoint {
                input: Some(end),
                output: None,
            },
            Direction::Output => Endpoint {
                input: None,
                output: Some(end),
            },
        };
        let id = self.connect(stream, endpoint)?;
        if direction == Direction::Output {
            self.outputs.push(id);
            self.relays.extend(relay);
        }
        Ok(())
    }

    fn connect(&self, stream: Stream, endpoint: Endpoint) -> io::Result<StreamId> {
        let header = StreamHeader {
            process: ProcessId::INIT,
            stream,
        };
        let preamble = frame::encode(&header).map_err(io::Error::other)?;
        self.vsock
            .connect(STREAM_PORT, preamble, endpoint)
            .map_err(io::Error::other)
    }

    fn on_channel(&mut self) -> Result<(), VmFailure> {
        let messages = match self.channel.flush().and_then(|()| self.channel.receive()) {
            Ok(messages) => messages,
            // After the end the guest may go at any moment; before it, the VM's own end says more.
            Err(_) if matches!(self.state, State::Ended(_)) => return Ok(()),
            Err(error) => return Err(self.end_of_vm_or(&error)),
        };
        for message in messages {
            self.on_message(message)?;
        }
        Ok(())
    }

    fn on_message(&mut self, message: GuestMessage) -> Result<(), VmFailure> {
        match message {
            GuestMessage::Ready {
                version: PROTOCOL_VERSION,
            } => {}
            GuestMessage::Ready { version } => {
                let text = format!(
                    "guest-init speaks version {version} of the protocol and moat {PROTOCOL_VERSION}: \
                     install both from one build"
                );
                return Err(self.failure(Cause::Refused(text)));
            }
            GuestMessage::Prepared => self.state = State::Created,
            GuestMessage::Started {
                process: ProcessId::INIT,
            } => self.state = State::Running,
            GuestMessage::Failed {
                process: ProcessId::INIT,
                message,
            } => {
                if self.state == State::Starting {
                    self.state = State::NotStarted(message);
                } else {
                    return Err(self.failure(Cause::Refused(message)));
                }
            }
            GuestMessage::Exited {
                process: ProcessId::INIT,
                status,
            } => {
                self.state = State::Ended(status);
            }
            // Answers about processes that this host never asked for.
            GuestMessage::Started { .. } | GuestMessage::Failed { .. } | GuestMessage::Exited { .. } => {}
        }
        Ok(())
    }

    fn on_streams(&mut self) {
        for (id, event) in self.vsock.take_events() {
            if event.is_final() {
                self.outputs.retain(|output| *output != id);
            }
        }
    }

    fn on_signals(&mut self) -> Result<(), VmFailure> {
        for signal in self.signals.take() {
            let process = ProcessId::INIT;
            let message = match (&self.terminal, signal == Signal::SIGWINCH as i32) {
                (Some(terminal), true) => match rustix::termios::tcgetwinsize(terminal) {
                    Ok(size) => HostMessage::Resize {
                        process,
                        rows: size.ws_row,
                        columns: size.ws_col,
                    },
                    Err(_) => continue,
                },
                _ => HostMessage::Signal {
                    process,
                    signal,
                    all: false,
                },
            };
            self.send(&message)?;
        }
        Ok(())
    }

    fn on_vm_end(&mut self) -> Result<(), VmFailure> {
        self.vm_ended = true;
        self.vsock.guest_gone();
        match self.state {
            // The guest powered off after its last word; its streams end once they are written out.
            State::Ended(_) => Ok(()),
            _ => Err(self.end_of_vm()),
        }
    }

    /// The reason that the VM ended for, or `error` if it has not.
    fn end_of_vm_or(&self, error: &(dyn std::error::Error + 'static)) -> VmFailure {
        // The guest resets its side of the stream an instant before the vCPU reports the reset.
        let mut fds = [PollFd::from_borrowed_fd(self.vm.ended(), PollFlags::IN)];
        let grace = rustix::time::Timespec {
            tv_sec: 1,
            tv_nsec: 0,
        };
        match poll(&mut fds, Some(&grace)) {
            Ok(1..) => self.end_of_vm(),
            _ => self.host_failure(error),
        }
    }

    fn end_of_vm(&self) -> VmFailure {
        let cause = match self.vm.exit_reason() {
            Some(ExitReason::GuestPanic) => Cause::Panic,
            Some(ExitReason::GuestReset) => Cause::Reset,
            Some(ExitReason::TripleFault { .. }) => Cause::TripleFault,
            Some(ExitReason::Stopped) | None => Cause::Host("the VM was stopped".to_owned()),
            Some(other) => Cause::Host(other.to_string()),
        };
        self.failure(cause)
    }

    fn send(&mut self, message: &HostMessage) -> Result<(), VmFailure> {
        match self.channel.send(message) {
            Ok(()) => Ok(()),
            Err(error) => Err(self.end_of_vm_or(&error)),
        }
    }
}
