//! One virtual processor: made on the builder's thread, run on a thread of its own.

pub mod control;
pub mod cpuid;
pub mod kick;
pub mod msrs;
pub mod regs;
pub mod stats;

use std::fs::File;
use std::sync::Arc;

use kvm_bindings::CpuId;
use kvm_ioctls::{VcpuExit, VcpuFd, VmFd};
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::{errno, fam};

use self::control::Control;
use self::cpuid::Topology;
use self::kick::Kick;
use self::stats::{Counters, ExitKind};
use crate::bus::{Bus, Effect};
use crate::devices::virtio::GuestMemory;
use crate::kvm;
use crate::vm::ExitReason;

/// Longest x86 instruction.
const MAX_INSTRUCTION: usize = 15;

/// Why a vCPU cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum VcpuError {
    /// An ioctl failed.
    #[error("cannot set up vCPU {vcpu}: {ioctl}")]
    Ioctl {
        /// Its number.
        vcpu: u8,
        /// The ioctl's name.
        ioctl: &'static str,
        /// KVM's answer.
        #[source]
        source: errno::Error,
    },
    /// KVM's list of features is longer than one can hand back.
    #[error("cannot set up vCPU {vcpu}: too many CPUID leaves or MSRs")]
    List {
        /// Its number.
        vcpu: u8,
        /// Which limit.
        #[source]
        source: fam::Error,
    },
}

/// What all vCPUs of a VM share when they are made.
pub struct Parts<'a> {
    /// The VM.
    pub vm: &'a VmFd,
    /// Its memory, for the instruction bytes of an error.
    pub memory: &'a GuestMemory,
    /// What KVM supports.
    pub supported: &'a CpuId,
    /// Number of vCPUs and timer.
    pub topology: Topology,
    /// Where vCPU 0 starts.
    pub entry: GuestAddress,
    /// Ask KVM for its own count of exits.
    pub kvm_stats: bool,
}

/// A vCPU that does not run yet.
#[derive(Debug)]
pub struct Vcpu {
    index: u8,
    fd: VcpuFd,
    memory: GuestMemory,
    kick: Kick,
    counters: Arc<Counters>,
    kvm_stats: Option<File>,
}

/// What came of one `KVM_RUN`.
enum Step {
    Again,
    Kicked,
    End(ExitReason),
}

impl Vcpu {
    /// Makes vCPU `index`: CPUID and MSRs for all, registers for the first, which alone starts by itself.
    ///
    /// # Errors
    /// The ioctl that failed.
    pub fn new(index: u8, parts: &Parts<'_>) -> Result<Vcpu, VcpuError> {
        let failed = |ioctl| {
            move |source| VcpuError::Ioctl {
                vcpu: index,
                ioctl,
                source,
            }
        };
        let list = |source| VcpuError::List { vcpu: index, source };

        let mut fd = parts
            .vm
            .create_vcpu(u64::from(index))
            .map_err(failed("KVM_CREATE_VCPU"))?;
        let cpuid = cpuid::for_vcpu(parts.supported, index, parts.topology).map_err(list)?;
        fd.set_cpuid2(&cpuid).map_err(failed("KVM_SET_CPUID2"))?;
        // KVM stops at the first register that it does not know; such a host does without the rest.
        fd.set_msrs(&msrs::boot().map_err(list)?)
            .map_err(failed("KVM_SET_MSRS"))?;
        if index == 0 {
            let sregs = fd.get_sregs().map_err(failed("KVM_GET_SREGS"))?;
            fd.set_sregs(&regs::long_mode(sregs))
                .map_err(failed("KVM_SET_SREGS"))?;
            fd.set_regs(&regs::at_entry(parts.entry))
                .map_err(failed("KVM_SET_REGS"))?;
        }
        let kick = Kick::new(&mut fd);
        let kvm_stats = if parts.kvm_stats {
            kvm::stats_fd(&fd).ok()
        } else {
            None
        };
        let (memory, counters) = (parts.memory.clone(), Arc::default());
        Ok(Vcpu {
            index,
            fd,
            memory,
            kick,
            counters,
            kvm_stats,
        })
    }

    /// The handle by which others get it out of the guest.
    pub fn kick(&self) -> Kick {
        self.kick.clone()
    }

    /// Its counts.
    pub fn counters(&self) -> Arc<Counters> {
        Arc::clone(&self.counters)
    }

    /// KVM's own statistics, when asked for and to be had.
    pub fn take_kvm_stats(&mut self) -> Option<File> {
        self.kvm_stats.take()
    }

    /// Runs until the VM is over; the thread of this vCPU calls it.
    pub fn run(mut self, control: &Control, bus: &Bus) {
        loop {
            // Clear first, look after: a kick that comes between is then either seen or still set.
            self.kick.clear();
            if !control.admit(|| self.about_to_park()) {
                return;
            }
            let end = loop {
                match self.step(bus) {
                    Step::Again => {}
                    Step::Kicked => break None,
                    Step::End(reason) => break Some(reason),
                }
            };
            if let Some(reason) = end {
                control.end(reason);
                return;
            }
        }
    }

    fn step(&mut self, bus: &Bus) -> Step {
        let (kind, step) = match self.fd.run() {
            Ok(VcpuExit::IoOut(port, data)) => match bus.port_write(port, data) {
                Effect::None => (ExitKind::IoOut, Step::Again),
                Effect::Reset => (ExitKind::IoOut, Step::End(bus.reset_reason())),
            },
            Ok(VcpuExit::IoIn(port, data)) => {
                bus.port_read(port, data);
                (ExitKind::IoIn, Step::Again)
            }
            Ok(VcpuExit::MmioRead(address, data)) => {
                bus.mmio_read(address, data);
                (ExitKind::MmioRead, Step::Again)
            }
            Ok(VcpuExit::MmioWrite(address, data)) => {
                bus.mmio_write(address, data);
                (ExitKind::MmioWrite, Step::Again)
            }
            Ok(VcpuExit::Intr) => (ExitKind::Interrupted, Step::Kicked),
            Ok(VcpuExit::Shutdown) => (
                ExitKind::Other,
                Step::End(ExitReason::TripleFault { vcpu: self.index }),
            ),
            Ok(VcpuExit::InternalError) => (ExitKind::Other, Step::End(self.internal_error())),
            Ok(VcpuExit::FailEntry(reason, _)) => (
                ExitKind::Other,
                Step::End(ExitReason::EntryRefused {
                    vcpu: self.index,
                    reason,
                }),
            ),
            Ok(other) => {
                let reason = ExitReason::UnknownExit {
                    vcpu: self.index,
                    exit: format!("{other:?}"),
                };
                (ExitKind::Other, Step::End(reason))
            }
            Err(error) => match error.errno() {
                libc::EINTR => (ExitKind::Interrupted, Step::Kicked),
                libc::EAGAIN => (ExitKind::Other, Step::Again),
                errno => {
                    let reason = ExitReason::HostError {
                        during: "KVM_RUN",
                        errno,
                    };
                    (ExitKind::Other, Step::End(reason))
                }
            },
        };
        self.counters.count(kind);
        step
    }

    /// Tells the guest that it was stopped, so that its watchdogs do not cry (`KVM_KVMCLOCK_CTRL`). Fails
    /// when the guest has no kvm-clock yet: then it has no watchdog either.
    fn about_to_park(&self) {
        let _ = self.fd.kvmclock_ctrl();
    }

    fn internal_error(&mut self) -> ExitReason {
        let suberror = kvm::internal_suberror(self.fd.get_kvm_run());
        let rip = self.fd.get_regs().map(|regs| regs.rip).unwrap_or_default();
        ExitReason::InternalError {
            vcpu: self.index,
            suberror,
            rip,
            code: self.code_at(rip),
        }
    }

    /// The instruction at `rip`, as far as it can be read.
    fn code_at(&self, rip: u64) -> Vec<u8> {
        let mut code = vec![0; MAX_INSTRUCTION];
        let read = self
            .fd
            .translate_gva(rip)
            .ok()
            .filter(|at| at.valid != 0)
            .and_then(|at| {
                self.memory
                    .read(&mut code, GuestAddress(at.physical_address))
                    .ok()
            });
        code.truncate(read.unwrap_or(0));
        code
    }
}

impl Drop for Vcpu {
    fn drop(&mut self) {
        self.kick.revoke();
    }
}
