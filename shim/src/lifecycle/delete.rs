//! `delete`: removes what a container has left, its id included.
//!
//! Teardown goes in the reverse order of creation, can be repeated, and does all it can before it tells
//! the first thing that failed.

use std::thread;
use std::time::{Duration, Instant};

use super::Error;
use super::hooks;
use super::kill;
use super::observe;
use super::record::Record;
use super::start::hook_state;
use super::status::{Status, Verb};
use super::store::{ContainerDirectory, Locked, Memory, Store, StoreError};
use crate::report::log;
use crate::signal;

/// Deletes a container. With `force` one that runs is killed first, and one that does not exist is no
/// error.
///
/// # Errors
/// When the container runs and `force` is not given, or something of it can't be removed.
pub fn delete(store: &Store, id: &str, force: bool) -> Result<(), Error> {
    let deleted = store.open(id).map_err(Error::from).and_then(|directory| {
        let verb = if force { Verb::ForceDelete } else { Verb::Delete };
        let container = if force {
            seize(directory)?
        } else {
            directory.lock()?
        };
        let memory = match container.read() {
            // Nothing of an unreadable record can be carried out; its directory can go.
            Err(error @ StoreError::Parse { .. }) if force => {
                log::warn(&format!("{id}: {}", crate::report::error::chain(&error)));
                Memory {
                    record: None,
                    init: None,
                    created: false,
                    started: false,
                }
            }
            memory => memory?,
        };
        observe::status(&container, &memory).after(verb)?;
        tear_down(container, memory)
    });
    match deleted {
        Err(Error::Store(StoreError::NotFound { .. })) if force => Ok(()),
        deleted => deleted,
    }
}

/// Longest wait for another verb on the same container.
const PATIENCE: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(5);

/// How long an init that nobody knows of may take to see that its command line has ended.
const UNRECORDED_INIT: Duration = Duration::from_secs(1);

/// The lock, even from a `create` or `start` that hangs: what it waits for is killed.
fn seize(mut directory: ContainerDirectory) -> Result<Locked, Error> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        directory = match directory.try_lock()? {
            Ok(locked) => return Ok(locked),
            Err(directory) => directory,
        };
        if Instant::now() >= deadline {
            return Err(Error::Busy {
                id: directory.id().to_owned(),
            });
        }
        if let Ok(Memory { init: Some(init), .. }) = directory.read() {
            kill::force(init);
        }
        thread::sleep(PAUSE);
    }
}

/// Removes everything of a container: its processes, its cgroup, what is remembered of it.
///
/// # Errors
/// The first step that failed; the record stays then, so that it can be tried again.
pub fn tear_down(container: Locked, memory: Memory) -> Result<(), Error> {
    if let Some(init) = memory.init
        && !kill::force(init)
    {
        return Err(Error::StillRunning { pid: init.pid });
    }
    match (&memory.record, memory.init) {
        (Some(record), Some(_)) => {
            // With a pid namespace of its own the end of init was the end of all.
            if !record.own_pid_namespace {
                record.cgroup.signal_all(signal::KILL)?;
            }
            record.cgroup.remove()?;
        }
        // Broken off before init was recorded. An init that was cloned ends by itself; whoever stays in
        // this cgroup is somebody else.
        (Some(record), None) => record.cgroup.remove_unused(UNRECORDED_INIT),
        (None, _) => {}
    }
    container.remove()?;
    if let Some(record) = &memory.record {
        poststop(record);
    }
    Ok(())
}

/// runtime.md "Lifecycle": a poststop hook that fails is warned of, and the others still run.
fn poststop(record: &Record) {
    let state = hook_state(record, Status::Stopped, 0);
    for hook in &record.poststop {
        if let Err(error) = hooks::run_all("poststop", std::slice::from_ref(hook), &state) {
            log::warn(&crate::report::error::chain(&error));
        }
    }
}
