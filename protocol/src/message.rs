//! Messages of the control stream.

use serde::{Deserialize, Serialize};

use crate::workload_spec::{ProcessSpec, WorkloadSpec};

/// Names a process that the host asked for, chosen by the host and unique in the life of a VM.
/// The container's own process is [`ProcessId::INIT`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ProcessId(pub u32);

impl ProcessId {
    /// The container's own process.
    pub const INIT: ProcessId = ProcessId(0);
}

/// From the host to guest-init.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum HostMessage {
    /// First message: what the guest cannot know by itself.
    Hello {
        /// [`crate::PROTOCOL_VERSION`] of the host.
        version: u32,
        /// Wall clock, nanoseconds since the epoch, at the time of sending.
        realtime_ns: u64,
        /// Random bytes for the guest kernel's pool.
        entropy: Vec<u8>,
    },
    /// Build the container and prepare its process up to the barrier before `execve`.
    /// Answered by [`GuestMessage::Prepared`] or [`GuestMessage::Failed`].
    Prepare {
        /// What to build and run.
        spec: Box<WorkloadSpec>,
        /// Limits that hold in the guest.
        cgroup: GuestCgroup,
    },
    /// Let a prepared container go through the barrier.
    /// Answered by [`GuestMessage::Started`] or [`GuestMessage::Failed`].
    Start,
    /// Run a further process in the container.
    /// Answered by [`GuestMessage::Started`] or [`GuestMessage::Failed`].
    Exec {
        /// Its name from now on.
        process: ProcessId,
        /// What to run.
        spec: Box<ProcessSpec>,
    },
    /// Send a signal.
    Signal {
        /// To which process.
        process: ProcessId,
        /// Signal number, 1 to 64.
        signal: i32,
        /// To every process of the container instead of one.
        all: bool,
    },
    /// The terminal of a process has a new size.
    Resize {
        /// Whose terminal.
        process: ProcessId,
        /// Rows, in characters.
        rows: u16,
        /// Columns, in characters.
        columns: u16,
    },
}

/// From guest-init to the host.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum GuestMessage {
    /// Answer to [`HostMessage::Hello`].
    Ready {
        /// [`crate::PROTOCOL_VERSION`] of the guest.
        version: u32,
    },
    /// The container stands and its process waits at the barrier.
    Prepared,
    /// A process was executed.
    Started {
        /// Which.
        process: ProcessId,
    },
    /// A request failed.
    Failed {
        /// Which process it was about.
        process: ProcessId,
        /// The chain of errors, outermost first, joined by `": "`.
        message: String,
    },
    /// A process has ended, and what it wrote is on its way in its streams. For [`ProcessId::INIT`]
    /// this is sent after the guest's file systems were flushed.
    Exited {
        /// Which.
        process: ProcessId,
        /// How.
        status: ExitStatus,
    },
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ExitStatus {
    /// It called `exit` with this status.
    Code(u8),
    /// This signal ended it.
    Signal {
        /// Signal number.
        signal: u8,
        /// The guest's kernel killed it for want of memory.
        out_of_memory: bool,
    },
}

impl ExitStatus {
    /// What a shell, and so every engine, shows: the status, or 128 + the signal's number.
    pub fn shell_code(self) -> u8 {
        match self {
            ExitStatus::Code(code) => code,
            ExitStatus::Signal { signal, .. } => 128u8.saturating_add(signal),
        }
    }
}

/// Limits of the container's cgroup (v2) in the guest, as files and what to write to them, such as
/// `("memory.max", "67108864")`, in the order of writing.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestCgroup {
    /// File names below the container's cgroup, without any `/`.
    pub writes: Vec<(String, String)>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signal_is_shown_as_128_plus_its_number() {
        let killed = ExitStatus::Signal {
            signal: 9,
            out_of_memory: false,
        };
        assert_eq!(killed.shell_code(), 137);
        assert_eq!(ExitStatus::Code(255).shell_code(), 255);
    }
}
