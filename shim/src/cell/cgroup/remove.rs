//! The end of a cgroup: who is in it, signals to all of them, and its removal.

use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::Pid;

use super::{Cgroup, CgroupError, Version, read, write};
use crate::signal;

/// How long a dead process may take to leave its cgroup. Teardown of a large address space takes
/// hundreds of milliseconds; seconds mean that somebody is stuck in the kernel.
const PATIENCE: Duration = Duration::from_secs(5);
/// First pause; doubled up to [`LONGEST_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_micros(100);
const LONGEST_PAUSE: Duration = Duration::from_millis(20);
/// Rounds of killing, where the kernel can't kill a cgroup at once: each catches what was forked
/// meanwhile.
const KILL_ROUNDS: u32 = 100;

/// Pids in the directory and those below it, as seen by the caller.
pub(super) fn processes(directory: &Path) -> Result<Vec<Pid>, CgroupError> {
    let mut pids = Vec::new();
    for path in tree(directory) {
        match read(&path.join("cgroup.procs")) {
            Ok(text) => pids.extend(text.lines().filter_map(|line| Pid::from_raw(line.parse().ok()?))),
            Err(CgroupError::Read { source, .. }) if is_gone(&source) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(pids)
}

/// A cgroup that was removed between two steps (`ENODEV` when its directory was already open).
fn is_gone(error: &io::Error) -> bool {
    error.kind() == ErrorKind::NotFound || error.raw_os_error() == Some(nix::libc::ENODEV)
}

/// The directory and all below it, innermost first.
fn tree(directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    if let Ok(entries) = fs::read_dir(directory) {
        for entry in entries.flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                found.extend(tree(&entry.path()));
            }
        }
    }
    found.push(directory.to_owned());
    found
}

impl Cgroup {
    /// Sends a signal to every process of the container.
    ///
    /// # Errors
    /// When the processes can't be listed or signalled.
    pub fn signal_all(&self, number: u8) -> Result<(), CgroupError> {
        let Some(directory) = self.listing() else {
            return Ok(());
        };
        if !directory.exists() {
            return Ok(());
        }
        if number == signal::KILL {
            if self.version == Version::V2 && write(&directory.join("cgroup.kill"), "1").is_ok() {
                return Ok(());
            }
            return self.kill_in_rounds(directory);
        }
        for pid in processes(directory)? {
            signal::send_to_pid(pid, number).map_err(|source| CgroupError::Signal {
                path: directory.to_owned(),
                number,
                source,
            })?;
        }
        Ok(())
    }

    /// Whether the processes are frozen.
    pub fn is_frozen(&self) -> bool {
        let freezer = |d: &&super::Directory| d.controllers.iter().any(|c| c == "freezer");
        let (directory, file, frozen) = match self.version {
            Version::None => return false,
            Version::V1 => (self.directories.iter().find(freezer), "freezer.state", "FROZEN"),
            Version::V2 => (self.directories.first(), "cgroup.freeze", "1"),
        };
        directory.is_some_and(|d| read(&d.path.join(file)).is_ok_and(|text| text.trim() == frozen))
    }

    /// The directory whose list of processes is asked: on v1 that of the freezer or of pids, which
    /// nobody moves processes in and out of.
    fn listing(&self) -> Option<&Path> {
        let of = |wanted: &str| {
            self.directories
                .iter()
                .find(|d| d.controllers.iter().any(|c| c == wanted))
        };
        let found = of("freezer")
            .or_else(|| of("pids"))
            .or_else(|| self.directories.first());
        found.map(|directory| directory.path.as_path())
    }

    fn kill_in_rounds(&self, directory: &Path) -> Result<(), CgroupError> {
        let freezer = self
            .directories
            .iter()
            .find(|d| d.controllers.iter().any(|c| c == "freezer"));
        let freeze = |state: &str| {
            if let Some(freezer) = freezer {
                let _absent_or_set = write(&freezer.path.join("freezer.state"), state);
            }
        };
        for round in 0..KILL_ROUNDS {
            let pids = processes(directory)?;
            if pids.is_empty() {
                return Ok(());
            }
            // Frozen processes can't fork while they are killed; they die when thawed.
            freeze("FROZEN");
            for pid in pids {
                let _gone_or_killed = signal::send_to_pid(pid, signal::KILL);
            }
            freeze("THAWED");
            thread::sleep(FIRST_PAUSE * (round + 1));
        }
        Ok(())
    }

    /// Removes the directories that nobody uses, or ceases to use within `patience`: after a creation
    /// that was broken off, where those in use may be somebody else's.
    pub fn remove_unused(&self, patience: Duration) {
        let deadline = Instant::now() + patience;
        for directory in self
            .directories
            .iter()
            .filter(|directory| directory.path != directory.mount)
        {
            // Not what is below it: of a container's own there is nothing yet.
            while fs::remove_dir(&directory.path)
                .is_err_and(|error| error.kind() == ErrorKind::ResourceBusy && Instant::now() < deadline)
            {
                thread::sleep(LONGEST_PAUSE / 10);
            }
        }
    }

    /// Removes the directories, when the last process has left. Done twice it is done.
    ///
    /// # Errors
    /// The first directory that stays.
    pub fn remove(&self) -> Result<(), CgroupError> {
        let mut first = Ok(());
        for directory in &self.directories {
            // Nothing that can be a container's is the root of a hierarchy.
            if directory.path == directory.mount {
                continue;
            }
            let removed = remove_tree(&directory.path);
            if first.is_ok() {
                first = removed;
            }
        }
        first
    }
}

fn remove_tree(path: &Path) -> Result<(), CgroupError> {
    let deadline = Instant::now() + PATIENCE;
    let mut pause = FIRST_PAUSE;
    loop {
        let error = match fs::remove_dir(path) {
            Ok(()) => return Ok(()),
            Err(error) if is_gone(&error) => return Ok(()),
            Err(error) => error,
        };
        if error.kind() != ErrorKind::ResourceBusy && error.raw_os_error() != Some(nix::libc::ENOTEMPTY)
            || Instant::now() >= deadline
        {
            return Err(CgroupError::Remove {
                path: path.to_owned(),
                source: error,
            });
        }
        let mut below = tree(path);
        below.pop();
        for child in below {
            let _retried = fs::remove_dir(child);
        }
        thread::sleep(pause);
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}
