//! What the host asks for.

use moat_protocol::{
    PROTOCOL_VERSION,
    message::{GuestCgroup, GuestMessage, HostMessage, ProcessId},
    workload_spec::{ProcessSpec, WorkloadSpec},
};
use moat_workload::{
    error_chain,
    sys::{self, CloneRequest, Cloned, clone_process},
};
use rustix::process::Signal;
use std::{io, os::fd::AsFd};

use super::Agent;
use crate::{
    cgroup::Cgroup,
    launch,
    machine::Machine,
    poller::Token,
    process::{Process, Stage},
    stdio::{ProcessStdio, Streams},
    sync,
};

impl<M: Machine> Agent<M> {
    pub(super) fn on_message(&mut self, message: HostMessage) {
        match message {
            HostMessage::Hello {
                version: _,
                realtime_ns,
                entropy,
            } => self.on_hello(realtime_ns, &entropy),
            HostMessage::Prepare { spec, cgroup } => {
                if let Err(error) = self.prepare(&spec, &cgroup) {
                    self.fail(ProcessId::INIT, error);
                }
            }
            HostMessage::Start => {
                if let Err(error) = self.start() {
                    self.fail(ProcessId::INIT, error);
                }
            }
            HostMessage::Exec { process, spec } => {
                if let Err(error) = self.exec(process, &spec) {
                    self.fail(process, error);
                }
            }
            HostMessage::Signal { process, signal, all } => {
                if let Err(error) = self.signal(process, signal, all) {
                    self.fail(process, error);
                }
            }
            HostMessage::Resize {
                process,
                rows,
                columns,
            } => {
                let resized = self
                    .processes
                    .get(&process)
                    .map(|known| known.streams.resize(rows, columns));
                // a size that comes too early or too late does no harm
                if let Some(Err(error)) = resized {
                    self.machine.say(&format!(
                        "cannot resize the terminal of process {}: {error}",
                        process.0
                    ));
                }
            }
        }
    }

    fn on_hello(&mut self, realtime_ns: u64, entropy: &[u8]) {
        if let Err(error) = self.machine.set_clock(realtime_ns) {
            self.machine.say(&format!("cannot set the clock: {error}"));
        }
        if let Err(error) = self.machine.add_entropy(entropy) {
            self.machine
                .say(&format!("cannot use the host's entropy: {error}"));
        }
        // the host refuses another version than its own
        self.send(&GuestMessage::Ready {
            version: PROTOCOL_VERSION,
        });
    }

    fn prepare(&mut self, spec: &WorkloadSpec, limits: &GuestCgroup) -> Result<(), String> {
        self.cell.clone()?;
        if self.processes.contains_key(&ProcessId::INIT) {
            return Err("there is a container already".into());
        }
        let cgroup = Cgroup::create(&self.cgroup_root, limits).map_err(|error| error_chain(&error))?;
        let cgroup = self.cgroup.insert(cgroup);
        let (streams, stdio) = streams_for(&spec.process)?;
        let (agent_end, process_end) = sync::pair().map_err(|error| cannot_clone(&error))?;
        let request = CloneRequest {
            namespaces: launch::CLONED,
            cgroup: Some(cgroup.as_fd()),
        };
        match clone_process(&request).map_err(|error| cannot_clone(&error))? {
            Cloned::Child => launch::container(spec, stdio, process_end),
            Cloned::Parent { pid, pidfd } => {
                let process = Process::new(pid, pidfd, streams, agent_end, Stage::Preparing);
                self.adopt(ProcessId::INIT, process)
            }
        }
    }

    fn start(&mut self) -> Result<(), String> {
        let process = self
            .processes
            .get_mut(&ProcessId::INIT)
            .ok_or("there is no container to start")?;
        if process.stage != Stage::Prepared {
            return Err("the container is not waiting to be started".into());
        }
        process
            .start()
            .map_err(|error| format!("cannot start the container: {error}"))
    }

    fn exec(&mut self, id: ProcessId, spec: &ProcessSpec) -> Result<(), String> {
        if self.processes.contains_key(&id) {
            return Err(format!("there is a process {} already", id.0));
        }
        let init = self
            .processes
            .get(&ProcessId::INIT)
            .filter(|init| init.status.is_none());
        let init = init
            .filter(|init| init.stage == Stage::Running)
            .ok_or("the container is not running")?;
        let (streams, stdio) = streams_for(spec)?;
        let (agent_end, process_end) = sync::pair().map_err(|error| cannot_clone(&error))?;
        let request = CloneRequest {
            namespaces: 0,
            cgroup: self.cgroup.as_ref().map(AsFd::as_fd),
        };
        sys::join_namespaces(init.pidfd.as_fd(), launch::NEWPID)
            .map_err(|error| format!("cannot enter the container: {error}"))?;
        let cloned = clone_process(&request);
        if let Ok(Cloned::Child) = cloned {
            launch::further(spec, stdio, init.pidfd.as_fd(), process_end);
        }
        // our own namespace is a parent of the container's, so there is a way back; were there none, the
        // next container's processes would be in the wrong one
        if let Err(error) = sys::join_namespaces(self.own.as_fd(), launch::NEWPID) {
            self.machine
                .say(&format!("cannot leave the container's pid namespace: {error}"));
            self.over = true;
        }
        match cloned.map_err(|error| cannot_clone(&error))? {
            Cloned::Parent { pid, pidfd } => {
                let process = Process::new(pid, pidfd, streams, agent_end, Stage::Starting);
                self.adopt(id, process)
            }
            Cloned::Child => Err("a child outlived its launch".into()),
        }
    }

    /// Watches a new process and ties the connections to it that came before.
    fn adopt(&mut self, id: ProcessId, mut process: Process) -> Result<(), String> {
        if let Err(error) = self.watch(id, &process) {
            // it can't be served, so it must not run
            let _ = sys::send_signal(&process.pidfd, Signal::KILL.as_raw());
            return Err(format!("cannot watch the process: {error}"));
        }
        for (header, connection) in self.early.extract_if(.., |(header, _)| header.process == id) {
            process.streams.connect(header.stream, &connection);
        }
        self.processes.insert(id, process);
        self.busy.insert(id);
        Ok(())
    }

    fn watch(&self, id: ProcessId, process: &Process) -> io::Result<()> {
        if let Some(sync) = process.sync() {
            self.poller.add(sync, Token::Process(id))?;
        }
        for ours in process.streams.ours() {
            self.poller.add(&ours, Token::Process(id))?;
        }
        Ok(())
    }

    fn signal(&mut self, id: ProcessId, signal: i32, all: bool) -> Result<(), String> {
        let process = self
            .processes
            .get(&id)
            .ok_or_else(|| format!("there is no process {}", id.0))?;
        if let (true, Some(cgroup)) = (all, &self.cgroup) {
            cgroup.signal_all(signal);
            return Ok(());
        }
        match sys::send_signal(&process.pidfd, signal) {
            // it has ended, and its end is on its way to the host
            Err(error) if error.raw_os_error() == Some(rustix::io::Errno::SRCH.raw_os_error()) => Ok(()),
            result => result.map_err(|error| format!("cannot send signal {signal}: {error}")),
        }
    }
}

fn streams_for(spec: &ProcessSpec) -> Result<(Streams, ProcessStdio), String> {
    if spec.terminal.is_some() {
        return Ok(Streams::terminal());
    }
    Streams::pipes().map_err(|error| format!("cannot make pipes for the process: {error}"))
}

fn cannot_clone(error: &io::Error) -> String {
    format!("cannot make the process: {error}")
}
