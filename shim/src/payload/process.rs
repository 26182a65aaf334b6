//! The payload of isolation `process`: the workload itself. All of it is the `workload` crate's work; here
//! is when each part of it is done.

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};

use moat_workload::exec::{self, Launch};
use moat_workload::rootfs::{self, PreparedRoot};
use moat_workload::terminal::{self, Console};

use super::{Payload, PayloadError};
use crate::bundle::plan::{NamespaceKind, Plan};
use crate::cell::sync;
use crate::control::{self, ControlReply, ControlRequest};
use crate::lifecycle::hooks;
use crate::report::error::chain;

/// What isolation `process` can't give.
#[derive(Debug, thiserror::Error)]
pub enum ProcessError {
    /// A kernel parameter that would be the host's.
    #[error("`linux.sysctl` {name:?} is not one of a namespace that the container has for itself")]
    HostSysctl {
        /// The parameter.
        name: String,
    },
    /// The terminal's master could not be handed over.
    #[error("cannot hand the terminal over to the console socket")]
    Console(#[source] std::io::Error),
    /// `prepare` was called without `build_root`, or `serve` without `prepare`.
    #[error("the container's steps were called out of order")]
    OutOfOrder,
}

/// The workload, on its way to its program.
pub struct ProcessPayload {
    console: Option<OwnedFd>,
    preserve_fds: u32,
    root: Option<PreparedRoot>,
    launch: Option<Launch>,
}

impl ProcessPayload {
    /// For a container whose terminal's master, if it has a terminal, goes to `console`.
    ///
    /// # Errors
    /// When the configuration asks for something that only a kernel of its own could give.
    pub fn new(
        plan: &Plan,
        console: Option<OwnedFd>,
        preserve_fds: u32,
    ) -> Result<ProcessPayload, ProcessError> {
        match plan
            .workload
            .sysctls
            .iter()
            .find(|(name, _)| !is_namespaced(name, plan))
        {
            Some((name, _)) => Err(ProcessError::HostSysctl { name: name.clone() }),
            None => Ok(ProcessPayload {
                console,
                preserve_fds,
                root: None,
                launch: None,
            }),
        }
    }
}

/// Kernel parameters that belong to a namespace (namespaces(7), ipc_namespaces(7), uts_namespaces(7)) and
/// may be set when the container has one of its own; all others are the host's.
fn is_namespaced(name: &str, plan: &Plan) -> bool {
    let name = name.replace('/', ".");
    let is_ipc = name.starts_with("fs.mqueue.")
        || matches!(
            name.as_str(),
            "kernel.msgmax"
                | "kernel.msgmnb"
                | "kernel.msgmni"
                | "kernel.sem"
                | "kernel.shmall"
                | "kernel.shmmax"
                | "kernel.shmmni"
                | "kernel.shm_rmid_forced"
        );
    let own = |kind| plan.namespaces.has(kind);
    is_ipc && own(NamespaceKind::Ipc)
        || name.starts_with("net.") && own(NamespaceKind::Network)
        || matches!(name.as_str(), "kernel.domainname" | "kernel.hostname") && own(NamespaceKind::Uts)
}

impl Payload for ProcessPayload {
    fn build_root(&mut self, plan: &Plan) -> Result<(), PayloadError> {
        self.root = Some(rootfs::build(&plan.workload)?);
        Ok(())
    }

    fn prepare(&mut self, plan: &Plan) -> Result<(), PayloadError> {
        let root = self.root.take().ok_or(ProcessError::OutOfOrder)?;
        root.enter(&plan.workload)?;
        let process = &plan.workload.process;
        if process.terminal.is_some() {
            let master = terminal::open_terminal(process, Console::Mount)?;
            if let Some(console) = self.console.take() {
                sync::send_descriptor(console.as_fd(), "/dev/ptmx", master.as_fd())
                    .map_err(ProcessError::Console)?;
            }
        }
        self.launch = Some(exec::prepare(process, self.preserve_fds)?);
        Ok(())
    }

    fn serve(mut self: Box<Self>, plan: &Plan, control: UnixListener) -> ! {
        let connection = wait_for_start(&control);
        let failure = match (hooks::start_container(plan), self.launch.take()) {
            (Err(error), _) => chain(&error),
            (Ok(()), None) => chain(&ProcessError::OutOfOrder),
            (Ok(()), Some(launch)) => chain(&launch.exec()),
        };
        // Whoever asked may be gone; this process ends either way.
        let _told = control::send(&connection, &ControlReply::Failed(failure));
        std::process::exit(1)
    }
}

/// Connections that end before they have asked for anything are forgotten.
fn wait_for_start(control: &UnixListener) -> UnixStream {
    loop {
        let Ok((connection, _)) = control.accept() else {
            continue;
        };
        match control::receive(&connection) {
            Ok(Some(ControlRequest::Start)) => return connection,
            Ok(None) | Err(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::bundle::plan::tests::planned;

    fn accepted(name: &str) -> bool {
        let plan = planned(|c| {
            c["linux"]["namespaces"] = json!([{"type": "mount"}, {"type": "network"}, {"type": "ipc"}]);
            c["linux"]["sysctl"] = json!({name: "1"});
        })
        .unwrap();
        ProcessPayload::new(&plan, None, 0).is_ok()
    }

    #[test]
    fn parameters_of_own_namespaces_are_accepted_and_those_of_the_host_refused() {
        for name in [
            "net.ipv4.ip_forward",
            "net/ipv4/ip_forward",
            "kernel.shmmax",
            "fs.mqueue.msg_max",
        ] {
            assert!(accepted(name), "{name}");
        }
        // no uts namespace in this plan, and the others never have one
        for name in [
            "kernel.hostname",
            "vm.swappiness",
            "kernel.core_pattern",
            "fs.file-max",
        ] {
            assert!(!accepted(name), "{name}");
        }
    }
}
