//! The states of a container and what each verb does to them (OCI runtime.md "State", "Lifecycle").

use std::fmt;

use serde::Serialize;

/// Where a container is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// `create` has not finished, or was broken off.
    Creating,
    /// It waits for `start`.
    Created,
    /// Its workload runs.
    Running,
    /// Its workload is frozen.
    Paused,
    /// Its init has ended.
    Stopped,
}

/// What can be done to a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verb {
    /// `start`.
    Start,
    /// `kill`.
    Kill,
    /// `delete`.
    Delete,
    /// `delete --force`.
    ForceDelete,
}

/// A verb that is not possible now.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// `start` of what runs.
    #[error("cannot start an already running container")]
    AlreadyRunning,
    /// `start` of what has ended.
    #[error("cannot start a container that has stopped")]
    AlreadyStopped,
    /// Something of a container that is not complete.
    #[error("the container is still being created")]
    Unfinished,
    /// `kill` of what has ended.
    #[error("container not running")]
    NotRunning,
    /// `delete` of what has not ended.
    #[error("cannot delete a container that is not stopped: it is {status}")]
    NotStopped {
        /// What it is.
        status: Status,
    },
}

impl Status {
    /// What a container is after the verb; `None` when it is no more. The whole table.
    ///
    /// # Errors
    /// When the verb is not possible in this state.
    pub fn after(self, verb: Verb) -> Result<Option<Status>, Refusal> {
        match (self, verb) {
            (Status::Created, Verb::Start) => Ok(Some(Status::Running)),
            (Status::Creating, Verb::Start | Verb::Kill) => Err(Refusal::Unfinished),
            (Status::Running | Status::Paused, Verb::Start) => Err(Refusal::AlreadyRunning),
            (Status::Stopped, Verb::Start) => Err(Refusal::AlreadyStopped),
            // What a signal does is the workload's business.
            (Status::Created | Status::Running | Status::Paused, Verb::Kill) => Ok(Some(self)),
            (Status::Stopped, Verb::Kill) => Err(Refusal::NotRunning),
            (Status::Creating | Status::Running | Status::Paused, Verb::Delete) => {
                Err(Refusal::NotStopped { status: self })
            }
            // A created container has run nothing of its own yet: runc deletes it as well.
            (Status::Created | Status::Stopped, Verb::Delete) => Ok(None),
            (
                Status::Creating | Status::Created | Status::Running | Status::Paused | Status::Stopped,
                Verb::ForceDelete,
            ) => Ok(None),
        }
    }
}

impl fmt::Display for Status {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Status::Creating => "creating",
            Status::Created => "created",
            Status::Running => "running",
            Status::Paused => "paused",
            Status::Stopped => "stopped",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_verb_in_every_state_is_what_the_specification_says() {
        use Status::{Created, Creating, Paused, Running, Stopped};
        let not_stopped = |status| Err(Refusal::NotStopped { status });
        let table = [
            (Creating, Verb::Start, Err(Refusal::Unfinished)),
            (Creating, Verb::Kill, Err(Refusal::Unfinished)),
            (Creating, Verb::Delete, not_stopped(Creating)),
            (Creating, Verb::ForceDelete, Ok(None)),
            (Created, Verb::Start, Ok(Some(Running))),
            (Created, Verb::Kill, Ok(Some(Created))),
            (Created, Verb::Delete, Ok(None)),
            (Created, Verb::ForceDelete, Ok(None)),
            (Running, Verb::Start, Err(Refusal::AlreadyRunning)),
            (Running, Verb::Kill, Ok(Some(Running))),
            (Running, Verb::Delete, not_stopped(Running)),
            (Running, Verb::ForceDelete, Ok(None)),
            (Paused, Verb::Start, Err(Refusal::AlreadyRunning)),
            (Paused, Verb::Kill, Ok(Some(Paused))),
            (Paused, Verb::Delete, not_stopped(Paused)),
            (Paused, Verb::ForceDelete, Ok(None)),
            (Stopped, Verb::Start, Err(Refusal::AlreadyStopped)),
            (Stopped, Verb::Kill, Err(Refusal::NotRunning)),
            (Stopped, Verb::Delete, Ok(None)),
            (Stopped, Verb::ForceDelete, Ok(None)),
        ];
        for (status, verb, expected) in table {
            assert_eq!(status.after(verb), expected, "{verb:?} when {status}");
        }
    }
}
