//! `start`: releases the barrier that the workload waits at.

use super::Error;
use super::hooks;
use super::observe;
use super::record::Record;
use super::state::HookState;
use super::status::{Status, Verb};
use super::store::{Locked, Memory, Store};
use crate::control::{self, ControlRequest};

/// Starts a created container.
///
/// # Errors
/// When it is in another state, or its program or a hook fails.
pub fn start(store: &Store, id: &str) -> Result<(), Error> {
    start_locked(&store.open(id)?.lock()?)
}

/// Starts a created container that this command line has locked.
///
/// # Errors
/// As [`start`].
pub fn start_locked(container: &Locked) -> Result<(), Error> {
    let memory = container.read()?;
    observe::status(container, &memory).after(Verb::Start)?;
    let connection = control::connect(&**container).map_err(Error::Start)?;
    control::request(&connection, &ControlRequest::Start).map_err(Error::Start)?;
    container.mark_started()?;
    match &memory {
        Memory {
            record: Some(record),
            init: Some(init),
            ..
        } => {
            let result = poststart(record, init.pid);
            if result.is_err() {
                // runtime.md "Lifecycle", step 9 ff.: the container is stopped.
                super::kill::force(*init);
            }
            result
        }
        Memory { .. } => Ok(()),
    }
}

fn poststart(record: &Record, init: i32) -> Result<(), Error> {
    let state = hook_state(record, Status::Running, init);
    hooks::run_all("poststart", &record.poststart, &state).map_err(Error::Hook)
}

/// The state of a recorded container, for its hooks.
pub fn hook_state(record: &Record, status: Status, pid: i32) -> HookState<'_> {
    HookState {
        oci_version: &record.oci_version,
        id: &record.id,
        status,
        pid,
        bundle: &record.bundle,
        annotations: &record.annotations,
    }
}
