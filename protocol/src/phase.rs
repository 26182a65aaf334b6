//! Boot phases. guest-init writes one byte for each to an I/O port of the VMM's boot clock (through
//! `/dev/port`), which stamps it with the host's monotonic clock.

/// I/O port of the boot clock. Unused on PCs, and it takes single-byte writes.
pub const BOOT_CLOCK_PORT: u16 = 0x03e0;

/// How far a guest has come. The numbers are what is written to the port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Phase {
    /// guest-init's first instructions.
    InitStarted = 0x10,
    /// guest-init listens on the control and stream ports: the host may connect.
    InitListening = 0x11,
    /// The container's root filesystem and mounts are in place, the workload waits for `Start`.
    WorkloadPrepared = 0x12,
    /// The workload was executed.
    WorkloadStarted = 0x13,
    /// The workload has ended, its file systems are flushed; nothing of value is left in the guest.
    WorkloadEnded = 0x14,
}

impl Phase {
    /// Every phase, in order.
    pub const ALL: [Phase; 5] = [
        Phase::InitStarted,
        Phase::InitListening,
        Phase::WorkloadPrepared,
        Phase::WorkloadStarted,
        Phase::WorkloadEnded,
    ];

    /// The phase that a byte written to the boot clock stands for.
    pub fn from_mark(mark: u8) -> Option<Phase> {
        Phase::ALL.into_iter().find(|phase| phase.mark() == mark)
    }

    /// The byte to write to [`BOOT_CLOCK_PORT`].
    pub fn mark(self) -> u8 {
        self as u8
    }

    /// For people: what was reached.
    pub fn describe(self) -> &'static str {
        match self {
            Phase::InitStarted => "guest-init started",
            Phase::InitListening => "guest-init ready",
            Phase::WorkloadPrepared => "container prepared",
            Phase::WorkloadStarted => "workload started",
            Phase::WorkloadEnded => "workload ended",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_mark_leads_back_to_its_phase() {
        for phase in Phase::ALL {
            assert_eq!(Phase::from_mark(phase.mark()), Some(phase));
        }
        assert_eq!(Phase::from_mark(0), None);
    }
}
