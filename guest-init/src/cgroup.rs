//! The container's cgroup in the guest (kernel `Documentation/admin-guide/cgroup-v2.rst`): its limits
//! hold here, where its processes are.

use std::{
    fs, io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
};

use moat_protocol::message::GuestCgroup;
use moat_workload::sys;
use rustix::{
    fs::{Mode, OFlags},
    process::{Pid, PidfdFlags},
};

/// Name of the container's cgroup below the root.
const NAME: &str = "container";

/// Why a container has no cgroup.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    /// Its directory.
    #[error("cannot make the container's cgroup {path:?}")]
    Create {
        /// The directory.
        path: PathBuf,
        /// Cause.
        #[source]
        source: io::Error,
    },
    /// A file name that is none.
    #[error("{file:?} is not the name of a cgroup file")]
    Name {
        /// What was given.
        file: String,
    },
    /// A limit.
    #[error("cannot write {value:?} to {file} of the container's cgroup")]
    Write {
        /// File.
        file: String,
        /// Value.
        value: String,
        /// Cause.
        #[source]
        source: io::Error,
    },
}

/// A cgroup with the container's limits.
#[derive(Debug)]
pub struct Cgroup {
    path: PathBuf,
    directory: OwnedFd,
}

impl Cgroup {
    /// Makes the container's cgroup below `root` and sets its limits.
    ///
    /// # Errors
    /// When a limit is refused; nothing is left then.
    pub fn create(root: &Path, limits: &GuestCgroup) -> Result<Cgroup, CgroupError> {
        let path = root.join(NAME);
        let failed = |source: io::Error| CgroupError::Create {
            path: path.clone(),
            source,
        };
        match fs::create_dir(&path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(failed(error)),
            _ => {}
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory =
            rustix::fs::open(&path, flags, Mode::empty()).map_err(|errno| failed(errno.into()))?;
        let cgroup = Cgroup { path, directory };
        for (file, value) in &limits.writes {
            if let Err(error) = cgroup.write(file, value) {
                cgroup.remove();
                return Err(error);
            }
        }
        Ok(cgroup)
    }

    fn write(&self, file: &str, value: &str) -> Result<(), CgroupError> {
        if file.is_empty() || file.contains('/') || file.starts_with('.') {
            return Err(CgroupError::Name {
                file: file.to_owned(),
            });
        }
        fs::write(self.path.join(file), value).map_err(|source| CgroupError::Write {
            file: file.to_owned(),
            value: value.to_owned(),
            source,
        })
    }

    /// Sends a signal to every process in it and in cgroups that the container made below.
    pub fn signal_all(&self, signal: i32) {
        if signal == libc_sigkill() && fs::write(self.path.join("cgroup.kill"), "1").is_ok() {
            return;
        }
        let mut pids = Vec::new();
        collect(&self.path, &mut pids, 0);
        for pid in pids {
            // by descriptor, so that the number can't change hands between the open and the signal
            if let Ok(process) = rustix::process::pidfd_open(pid, PidfdFlags::empty()) {
                // ended in between
                let _ = sys::send_signal(process, signal);
            }
        }
    }

    /// Whether the kernel killed a process of it for want of memory.
    pub fn was_out_of_memory(&self) -> bool {
        fs::read_to_string(self.path.join("memory.events")).is_ok_and(|events| oom_kills(&events) > 0)
    }

    /// Removes it, once it is empty.
    pub fn remove(self) {
        remove_tree(&self.path, 0);
    }
}

impl AsFd for Cgroup {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.directory.as_fd()
    }
}

/// Cgroups below one another that are looked at; the kernel's default limit is none, ours is a bound.
const MAX_DEPTH: usize = 64;

fn collect(path: &Path, pids: &mut Vec<Pid>, depth: usize) {
    if let Ok(text) = fs::read_to_string(path.join("cgroup.procs")) {
        pids.extend(
            text.lines()
                .filter_map(|line| line.parse().ok().and_then(Pid::from_raw)),
        );
    }
    for below in directories(path, depth) {
        collect(&below, pids, depth + 1);
    }
}

fn remove_tree(path: &Path, depth: usize) {
    for below in directories(path, depth) {
        remove_tree(&below, depth + 1);
    }
    // a process that is still there keeps it; the machine ends soon anyway
    let _ = fs::remove_dir(path);
}

fn directories(path: &Path, depth: usize) -> Vec<PathBuf> {
    if depth >= MAX_DEPTH {
        return Vec::new();
    }
    let Ok(entries) = fs::read_dir(path) else {
        return Vec::new();
    };
    let directories = entries
        .flatten()
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    directories.map(|entry| entry.path()).collect()
}

fn libc_sigkill() -> i32 {
    rustix::process::Signal::KILL.as_raw()
}

/// The count of `oom_kill` in `memory.events`.
fn oom_kills(events: &str) -> u64 {
    let count = events.lines().find_map(|line| line.strip_prefix("oom_kill "));
    count.and_then(|count| count.trim().parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn out_of_memory_kills_are_counted() {
        assert_eq!(
            oom_kills("low 0\nhigh 0\nmax 3\noom 1\noom_kill 2\noom_group_kill 0\n"),
            2
        );
        assert_eq!(oom_kills("low 0\n"), 0);
    }

    #[test]
    fn limits_are_written_in_order_and_names_are_checked() {
        // any directory takes files
        let root = tempfile::tempdir().unwrap();
        let limits = GuestCgroup {
            writes: vec![("pids.max".into(), "10".into()), ("pids.max".into(), "20".into())],
        };
        Cgroup::create(root.path(), &limits).unwrap();
        assert_eq!(
            fs::read_to_string(root.path().join("container/pids.max")).unwrap(),
            "20"
        );
        for name in ["", "../x", "/etc/x", ".."] {
            let limits = GuestCgroup {
                writes: vec![(name.into(), "1".into())],
            };
            let error = Cgroup::create(root.path(), &limits).unwrap_err();
            assert!(matches!(error, CgroupError::Name { .. }), "{name:?}: {error}");
        }
    }
}
