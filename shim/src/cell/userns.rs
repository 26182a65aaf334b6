//! Maps of a new user namespace (user_namespaces(7)), written by the command line while the container's
//! init waits for them.
//!
//! With `CAP_SETUID` and `CAP_SETGID` the maps are written directly; without, a map of one line onto the
//! caller's own id is, and any other goes through the set-uid programs newuidmap and newgidmap.

use std::io;
use std::process::{Command, Stdio};

use rustix::process::Pid;

use crate::bundle::config::IdMapping;
use crate::bundle::plan::IdMaps;

/// Why the maps could not be set.
#[derive(Debug, thiserror::Error)]
pub enum UsernsError {
    /// A file of the new process was not accepted.
    #[error("cannot write {text:?} to /proc/{pid}/{file}")]
    Write {
        /// The process.
        pid: i32,
        /// The file.
        file: &'static str,
        /// What was written.
        text: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The program for unprivileged users could not be started.
    #[error("cannot run {program}")]
    Run {
        /// newuidmap or newgidmap.
        program: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It refused.
    #[error("{program} refused: {message}")]
    Refused {
        /// newuidmap or newgidmap.
        program: &'static str,
        /// What it said.
        message: String,
    },
}

/// Writes both maps of a process that has just been cloned.
///
/// # Errors
/// When the kernel, or the set-uid program, refuses them.
pub fn write_maps(pid: Pid, maps: &IdMaps) -> Result<(), UsernsError> {
    let pid = pid.as_raw_nonzero().get();
    let root = rustix::process::geteuid().is_root();
    let own_uid = rustix::process::geteuid().as_raw();
    let own_gid = rustix::process::getegid().as_raw();
    if root || is_own(&maps.gids, own_gid) {
        if !root {
            // user_namespaces(7): without CAP_SETGID a map of groups needs setgroups(2) switched off.
            write(pid, "setgroups", "deny".to_owned())?;
        }
        write(pid, "gid_map", lines(&maps.gids))?;
    } else {
        run("newgidmap", pid, &maps.gids)?;
    }
    if root || is_own(&maps.uids, own_uid) {
        write(pid, "uid_map", lines(&maps.uids))
    } else {
        run("newuidmap", pid, &maps.uids)
    }
}

fn is_own(map: &[IdMapping], own: u32) -> bool {
    matches!(map, [only] if only.size == 1 && only.host_id == own)
}

fn lines(map: &[IdMapping]) -> String {
    map.iter()
        .map(|line| format!("{} {} {}\n", line.container_id, line.host_id, line.size))
        .collect()
}

fn write(pid: i32, file: &'static str, text: String) -> Result<(), UsernsError> {
    std::fs::write(format!("/proc/{pid}/{file}"), &text).map_err(|source| UsernsError::Write {
        pid,
        file,
        text,
        source,
    })
}

fn run(program: &'static str, pid: i32, map: &[IdMapping]) -> Result<(), UsernsError> {
    let numbers = map
        .iter()
        .flat_map(|line| [line.container_id, line.host_id, line.size]);
    let output = Command::new(program)
        .arg(pid.to_string())
        .args(numbers.map(|number| number.to_string()))
        .stdin(Stdio::null())
        .output()
        .map_err(|source| UsernsError::Run { program, source })?;
    if output.status.success() {
        return Ok(());
    }
    let message = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(UsernsError::Refused { program, message })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn maps_are_written_a_line_each() {
        let map = [
            IdMapping {
                container_id: 0,
                host_id: 1000,
                size: 1,
            },
            IdMapping {
                container_id: 1,
                host_id: 100_000,
                size: 65_536,
            },
        ];
        assert_eq!(lines(&map), "0 1000 1\n1 100000 65536\n");
        assert!(!is_own(&map, 1000));
        assert!(is_own(&map[..1], 1000));
    }
}
