//! What is true of a container, whatever is remembered of it.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;

use rustix::process::{Pid, PidfdFlags};

use super::record::ProcessId;
use super::status::Status;
use super::store::{ContainerDirectory, Memory};
use crate::control::{self, ControlError};
use crate::isolation::Isolation;

/// Opens the process if it is still the one that is meant and has not ended.
pub fn open(process: ProcessId) -> Option<OwnedFd> {
    let pidfd = rustix::process::pidfd_open(pid(process)?, PidfdFlags::empty()).ok()?;
    // Looked at after it was opened: the descriptor is of the process that was looked at.
    matches!(start_time(process.pid), Ok(Some(start)) if start == process.start).then_some(pidfd)
}

/// The pid, in the type of the system calls.
pub fn pid(process: ProcessId) -> Option<Pid> {
    Pid::from_raw(process.pid)
}

/// When a process was started, in clock ticks since boot; `None` for one that has ended and not been
/// waited for.
///
/// # Errors
/// When there is no such process.
pub fn start_time(pid: i32) -> io::Result<Option<u64>> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    parse_stat(&text).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// proc(5), stat: field 2 is the program's name in brackets and may hold anything, brackets too.
fn parse_stat(text: &str) -> Option<Option<u64>> {
    let (_, rest) = text.rsplit_once(')')?;
    let mut fields = rest.split_whitespace();
    let state = fields.next()?;
    let start = fields.nth(18)?.parse().ok()?;
    Some((!matches!(state, "Z" | "X" | "x")).then_some(start))
}

/// Where a container is in its life.
pub fn status(directory: &ContainerDirectory, memory: &Memory) -> Status {
    let (Some(record), Some(init)) = (&memory.record, memory.init) else {
        // Who creates holds the lock; without one, creation was broken off.
        return if directory.is_locked() {
            Status::Creating
        } else {
            Status::Stopped
        };
    };
    if !matches!(start_time(init.pid), Ok(Some(start)) if start == init.start) {
        return Status::Stopped;
    }
    match (memory.created, memory.started) {
        (_, true) if record.cgroup.is_frozen() => Status::Paused,
        (_, true) => Status::Running,
        (false, false) => Status::Creating,
        // `start` may have been broken off between the workload's start and its note of it. The
        // workload does not listen any more.
        (true, false) if record.isolation == Isolation::Process => match control::connect(directory) {
            Err(ControlError::Connect(error)) if error.kind() == io::ErrorKind::ConnectionRefused => {
                Status::Running
            }
            Ok(_) | Err(_) => Status::Created,
        },
        (true, false) => Status::Created,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_brackets_and_spaces_does_not_shift_the_fields() {
        let rest = (4..=40).map(|n| n.to_string()).collect::<Vec<_>>().join(" ");
        let line = |state: &str| format!("17 (a) b (c) {state} {rest}");
        assert_eq!(parse_stat(&line("S")), Some(Some(22)));
        assert_eq!(parse_stat(&line("Z")), Some(None));
        assert_eq!(parse_stat("17 (short) S 1 2"), None);
    }

    #[test]
    fn this_process_is_itself_and_no_other() {
        let pid = i32::try_from(std::process::id()).unwrap();
        let start = start_time(pid).unwrap().unwrap();
        assert!(open(ProcessId { pid, start }).is_some());
        assert!(
            open(ProcessId {
                pid,
                start: start + 1
            })
            .is_none()
        );
    }
}
