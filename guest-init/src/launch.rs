//! The way of a new process to its workload: what runs after the clone, in the child. It only ever ends
//! by becoming the program or by reporting why not.

use std::{convert::Infallible, error::Error, os::fd::BorrowedFd};

use moat_protocol::workload_spec::{ProcessSpec, WorkloadSpec};
use moat_workload::{
    error_chain, exec, rootfs, sys,
    terminal::{Console, open_terminal},
};

use crate::{stdio::ProcessStdio, sync::ProcessEnd};

/// Namespaces that the container's first process is cloned into. The network is the guest's own, and the
/// cgroup namespace follows once the process is in its cgroup, since that becomes the namespace's root.
pub(crate) const CLONED: u64 = NEWNS | NEWPID | NEWIPC | NEWUTS;
/// The pid namespace, which is that of children and so joined before the clone.
pub(crate) const NEWPID: u64 = 0x2000_0000;

// linux/sched.h
const NEWNS: u64 = 0x0002_0000;
const NEWCGROUP: u64 = 0x0200_0000;
const NEWUTS: u64 = 0x0400_0000;
const NEWIPC: u64 = 0x0800_0000;

/// Exit status of a process that has reported why it has no program; nobody looks at it.
const FAILED: i32 = 125;

/// Becomes the container's first process.
pub(crate) fn container(spec: &WorkloadSpec, stdio: ProcessStdio, sync: ProcessEnd) -> ! {
    let build = || -> Result<(), Box<dyn Error>> {
        sys::unshare_namespaces(NEWCGROUP)?;
        rootfs::build(spec)?.enter(spec)?;
        Ok(())
    };
    finish(
        &sync,
        become_workload(&spec.process, stdio, &sync, Barrier::Start, Console::Mount, build),
    )
}

/// Becomes a further process of the container whose first process `init` is.
pub(crate) fn further(spec: &ProcessSpec, stdio: ProcessStdio, init: BorrowedFd<'_>, sync: ProcessEnd) -> ! {
    let join = || -> Result<(), Box<dyn Error>> {
        sys::join_namespaces(init, NEWNS | NEWIPC | NEWUTS | NEWCGROUP)?;
        Ok(())
    };
    finish(
        &sync,
        become_workload(spec, stdio, &sync, Barrier::None, Console::Leave, join),
    )
}

/// Whether the process waits before it executes its program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Barrier {
    Start,
    None,
}

fn become_workload(
    spec: &ProcessSpec,
    stdio: ProcessStdio,
    sync: &ProcessEnd,
    barrier: Barrier,
    console: Console,
    enter: impl FnOnce() -> Result<(), Box<dyn Error>>,
) -> Result<Infallible, Box<dyn Error>> {
    // guest-init's ends the machine
    drop(std::panic::take_hook());
    rustix::process::setsid()?;
    stdio.install()?;
    enter()?;
    if spec.terminal.is_some() {
        let master = open_terminal(spec, console)?;
        sync.send_terminal(&master)?;
    }
    let launch = exec::prepare(spec, 0)?;
    if barrier == Barrier::Start {
        sync.wait_for_start()?;
    }
    sync.executing()?;
    Err(Box::new(launch.exec()))
}

fn finish(sync: &ProcessEnd, result: Result<Infallible, Box<dyn Error>>) -> ! {
    match result {
        Ok(never) => match never {},
        Err(error) => sync.failed(&error_chain(&*error)),
    }
    std::process::exit(FAILED)
}
