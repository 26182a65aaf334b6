//! A VM that runs: how it ends, what it says, and how to end it.

use std::fmt;
use std::fs::File;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use kvm_ioctls::VmFd;
use vmm_sys_util::signal::Killable;

use crate::bus::Bus;
use crate::devices::boot_clock::Mark;
use crate::devices::virtio::GuestMemory;
use crate::event::Event;
use crate::memory;
use crate::vcpu::control::Control;
use crate::vcpu::kick::{self, Kick};
use crate::vcpu::stats::{Counters, ExitCounts, statistic};

/// How long a kicked vCPU may take to end before it is kicked again. One kick is enough, but the end of a
/// thread has no descriptor to wait for.
const KICK_AGAIN: Duration = Duration::from_micros(100);

/// How a VM ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ExitReason {
    /// [`RunningVm::stop`] was called.
    Stopped,
    /// The guest has reset the machine: how a guest without ACPI ends on purpose.
    GuestReset,
    /// The guest has reset the machine after a kernel panic, which is on the console.
    GuestPanic,
    /// A fault within a double fault's handling: the guest's kernel is broken, or not a kernel.
    TripleFault {
        /// Which vCPU.
        vcpu: u8,
    },
    /// KVM cannot go on with the guest (`KVM_EXIT_INTERNAL_ERROR`); with suberror 1, it cannot emulate
    /// an instruction.
    InternalError {
        /// Which vCPU.
        vcpu: u8,
        /// KVM API 5, "KVM_EXIT_INTERNAL_ERROR".
        suberror: u32,
        /// Instruction pointer.
        rip: u64,
        /// Bytes there, as far as they can be read.
        code: Vec<u8>,
    },
    /// The processor refuses the guest's state (`KVM_EXIT_FAIL_ENTRY`).
    EntryRefused {
        /// Which vCPU.
        vcpu: u8,
        /// The processor's reason.
        reason: u64,
    },
    /// KVM has returned for a reason that this VMM does not know.
    UnknownExit {
        /// Which vCPU.
        vcpu: u8,
        /// What KVM said.
        exit: String,
    },
    /// The host has failed the VMM.
    HostError {
        /// The call.
        during: &'static str,
        /// The host's answer.
        errno: i32,
    },
}

impl fmt::Display for ExitReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ExitReason::Stopped => write!(f, "stopped by the host"),
            ExitReason::GuestReset => write!(f, "reset by the guest"),
            ExitReason::GuestPanic => write!(f, "the guest's kernel has panicked"),
            ExitReason::TripleFault { vcpu } => write!(f, "triple fault on vCPU {vcpu}"),
            ExitReason::InternalError {
                vcpu,
                suberror,
                rip,
                code,
            } => {
                write!(
                    f,
                    "KVM cannot go on with vCPU {vcpu} (suberror {suberror}) at {rip:#x}, code"
                )?;
                code.iter().try_for_each(|byte| write!(f, " {byte:02x}"))
            }
            ExitReason::EntryRefused { vcpu, reason } => {
                write!(
                    f,
                    "the processor refuses the state of vCPU {vcpu} (reason {reason:#x})"
                )
            }
            ExitReason::UnknownExit { vcpu, exit } => {
                write!(f, "KVM returned from vCPU {vcpu} for an unknown reason ({exit})")
            }
            ExitReason::HostError { during, errno } => {
                write!(
                    f,
                    "{during} failed: {}",
                    std::io::Error::from_raw_os_error(*errno)
                )
            }
        }
    }
}

/// Counts of a VM.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct VmStats {
    /// Exits that reached the VMM, all vCPUs together.
    pub vmm_exits: ExitCounts,
    /// All exits as KVM counts them, those that it served itself included; when asked for
    /// ([`crate::config::VmConfig::with_kvm_stats`]) and known.
    pub kvm_exits: Option<u64>,
}

/// A vCPU's thread and what others have of it.
pub(crate) struct VcpuHandle {
    pub(crate) thread: Option<JoinHandle<()>>,
    pub(crate) kick: Kick,
    pub(crate) counters: Arc<Counters>,
    pub(crate) kvm_stats: Option<File>,
}

/// A device thread and what ends it.
pub(crate) struct DeviceThread {
    pub(crate) thread: Option<JoinHandle<()>>,
    pub(crate) stop: Event,
}

/// A VM whose threads run. Dropping it stops it.
pub struct RunningVm {
    pub(crate) control: Arc<Control>,
    pub(crate) bus: Arc<Bus>,
    pub(crate) vcpus: Vec<VcpuHandle>,
    pub(crate) devices: Vec<DeviceThread>,
    // The VM's descriptor before the memory that KVM knows by address: fields drop in this order.
    pub(crate) _vm: VmFd,
    pub(crate) memory: GuestMemory,
}

impl RunningVm {
    /// Readable once the VM has ended; it stays so.
    pub fn ended(&self) -> BorrowedFd<'_> {
        self.control.ended().as_fd()
    }

    /// How the VM ended, or `None` while it runs.
    pub fn exit_reason(&self) -> Option<ExitReason> {
        self.control.reason()
    }

    /// Readable when the guest has set a mark since [`RunningVm::marks`] was last called.
    pub fn mark_event(&self) -> BorrowedFd<'_> {
        self.bus.boot_clock.event().as_fd()
    }

    /// The boot clock's marks so far, the kernel's entry first.
    pub fn marks(&self) -> Vec<Mark> {
        self.bus.boot_clock.marks()
    }

    /// The end of what the guest has printed to its console, up to 64 KiB.
    pub fn console(&self) -> String {
        self.bus.console.text()
    }

    /// The last `count` lines of the console.
    pub fn console_tail(&self, count: usize) -> Vec<String> {
        self.bus.console.last_lines(count)
    }

    /// Exits so far.
    pub fn stats(&self) -> VmStats {
        let vmm_exits = self
            .vcpus
            .iter()
            .fold(ExitCounts::default(), |sum, vcpu| sum + vcpu.counters.read());
        VmStats {
            vmm_exits,
            kvm_exits: self.kvm_statistic("exits"),
        }
    }

    /// One of KVM's own statistics by its name, all vCPUs together; when asked for and known.
    pub fn kvm_statistic(&self, name: &str) -> Option<u64> {
        let each = self
            .vcpus
            .iter()
            .map(|vcpu| statistic(vcpu.kvm_stats.as_ref()?, name).ok().flatten());
        each.sum()
    }

    /// Host address ranges of the guest's RAM, to tell it from the VMM's own memory in `smaps`.
    pub fn ram(&self) -> Vec<Range<usize>> {
        memory::host_ranges(&self.memory)
    }

    /// Takes all vCPUs out of the guest and keeps them out; device threads go on. Returns when the last
    /// one is out, `false` when the VM has ended. A paused VM pauses again at once.
    pub fn pause(&self) -> bool {
        if !self.control.pause() {
            return false;
        }
        self.kick_all();
        self.control.wait_parked(self.vcpus.len())
    }

    /// Lets the vCPUs of a paused VM go on. `false` when the VM has ended.
    pub fn resume(&self) -> bool {
        self.control.resume()
    }

    /// Ends the VM, if it has not ended by itself, waits for its threads and tells how it ended.
    pub fn stop(&mut self) -> ExitReason {
        self.control.end(ExitReason::Stopped);
        for vcpu in &mut self.vcpus {
            let Some(thread) = vcpu.thread.take() else {
                continue;
            };
            while !thread.is_finished() {
                vcpu.kick.request();
                // Fails when the thread has just ended, which is what is wanted.
                let _ = thread.kill(kick::signal());
                std::thread::sleep(KICK_AGAIN);
            }
            // A panic of the thread is no more news: the process is ending, and so is the VM.
            let _ = thread.join();
        }
        for device in &mut self.devices {
            device.stop.signal();
            if let Some(thread) = device.thread.take() {
                let _ = thread.join();
            }
        }
        self.control.reason().unwrap_or(ExitReason::Stopped)
    }

    fn kick_all(&self) {
        for vcpu in &self.vcpus {
            vcpu.kick.request();
            if let Some(thread) = &vcpu.thread {
                let _ = thread.kill(kick::signal());
            }
        }
    }
}

impl Drop for RunningVm {
    fn drop(&mut self) {
        self.stop();
    }
}

impl fmt::Debug for RunningVm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RunningVm")
            .field("vcpus", &self.vcpus.len())
            .field("exit_reason", &self.exit_reason())
            .finish_non_exhaustive()
    }
}
