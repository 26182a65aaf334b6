//! `kill`: a signal for the container's init, or for all of its processes.

use std::os::fd::AsFd;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;

use super::Error;
use super::observe;
use super::record::ProcessId;
use super::status::{Refusal, Verb};
use super::store::{Memory, Store};
use crate::signal;

/// Sends a signal. `all` reaches every process of the container's cgroup, and those that have outlived
/// its init too.
///
/// # Errors
/// When the container is not running.
pub fn kill(store: &Store, id: &str, number: u8, all: bool) -> Result<(), Error> {
    let directory = store.open(id)?;
    let memory = directory.read()?;
    let allowed = observe::status(&directory, &memory).after(Verb::Kill);
    let Memory {
        record: Some(record),
        init: Some(init),
        ..
    } = memory
    else {
        allowed?;
        return Err(Refusal::NotRunning.into());
    };
    if all {
        return match allowed {
            Ok(_) | Err(Refusal::NotRunning) => Ok(record.cgroup.signal_all(number)?),
            Err(refusal) => Err(refusal.into()),
        };
    }
    allowed?;
    let process = observe::open(init).ok_or(Refusal::NotRunning)?;
    signal::send(&process, number).map_err(|source| Error::Signal {
        number,
        pid: init.pid,
        source,
    })
}

/// How long a killed init may take to end. A microVM's memory is torn down meanwhile.
const PATIENCE: Duration = Duration::from_secs(10);

/// Kills init, if it is still there, and waits for its end. Gives back whether it has ended.
pub fn force(init: ProcessId) -> bool {
    let Some(process) = observe::open(init) else {
        return true;
    };
    if signal::send(&process, signal::KILL).is_err() {
        return observe::open(init).is_none();
    }
    let limit = Timespec {
        tv_sec: PATIENCE.as_secs().cast_signed(),
        tv_nsec: 0,
    };
    let mut polled = [PollFd::from_borrowed_fd(process.as_fd(), PollFlags::IN)];
    loop {
        match rustix::event::poll(&mut polled, Some(&limit)) {
            Err(Errno::INTR) => {}
            Ok(0) | Err(_) => return false,
            Ok(_) => return true,
        }
    }
}
