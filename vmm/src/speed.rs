//! How fast this KVM runs a guest's *kernel* mode, found out by doing it.
//!
//! A KVM on VMX or SVM runs kernel mode on the processor. Some hosts have a KVM that looks the same and
//! emulates it instruction by instruction (nested without hardware help, PVM): a thousand times slower,
//! and no kernel ever comes up on it. So a guest of thirty bytes counts in a loop at CPL 0 for about
//! [`DURATION`], and one looks how far it came.

use std::fs::File;
use std::time::{Duration, Instant};

use kvm_bindings::{KVM_MAX_CPUID_ENTRIES, kvm_regs};
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd, VmFd};
use vm_memory::{Bytes, GuestAddress, GuestMemoryError};
use vmm_sys_util::errno;

use crate::boot::tables;
use crate::config::MEMORY_UNIT_MIB;
use crate::devices::virtio::GuestMemory;
use crate::memory::{self, MemoryError};
use crate::vcpu::regs;
use crate::{kvm, layout};

/// How long the guest counts.
pub const DURATION: Duration = Duration::from_millis(20);

/// Loops between two exits: long against the cost of an exit on hardware (a few microseconds), short
/// against [`DURATION`] when 1 M instructions take a second.
const LOOPS: u64 = 10_000;

/// Instructions of a loop: `dec rcx; jnz`.
const INSTRUCTIONS_PER_LOOP: u64 = 2;

/// Where the guest's code lies.
const CODE: GuestAddress = GuestAddress(layout::HIGH_MEMORY_START);

/// Port that tells that a round is over; nothing is there.
const PORT: u8 = 0x80;

/// Below this many instructions per second, kernel mode is emulated: hardware makes billions, an
/// emulating KVM about a million, and a KVM nested in a software emulator (the lab) tens of millions.
pub const EMULATED_BELOW: u64 = 10_000_000;

/// Why the speed cannot be measured.
#[derive(Debug, thiserror::Error)]
pub enum SpeedError {
    /// An ioctl failed.
    #[error("cannot set up the measuring VM: {ioctl}")]
    Kvm {
        /// Its name.
        ioctl: &'static str,
        /// KVM's answer.
        #[source]
        source: errno::Error,
    },
    /// No memory for it.
    #[error("cannot make the measuring VM's memory")]
    Memory(#[source] MemoryError),
    /// Its memory cannot be written; a bug.
    #[error("cannot write the measuring VM's code")]
    Write(#[source] GuestMemoryError),
    /// The guest does something else than count: this KVM cannot run even this.
    #[error("this KVM cannot run a loop in the guest's kernel mode: {0}")]
    Stuck(String),
}

/// What virtualises: by the processor's own flags and the host's modules.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KvmKind {
    /// Intel's VMX.
    Vmx,
    /// AMD's SVM.
    Svm,
    /// A KVM without either: in software.
    Software,
}

/// What was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Speed {
    /// What virtualises.
    pub kind: KvmKind,
    /// Guest kernel instructions per second, of a loop of two.
    pub instructions_per_second: u64,
}

impl Speed {
    /// Whether a guest kernel has a chance on this KVM.
    pub fn is_usable(&self) -> bool {
        self.instructions_per_second >= EMULATED_BELOW
    }
}

fn failed(ioctl: &'static str) -> impl Fn(errno::Error) -> SpeedError {
    move |source| SpeedError::Kvm { ioctl, source }
}

/// Measures. Takes [`DURATION`] and the time to make a small VM.
///
/// # Errors
/// See [`SpeedError`].
pub fn measure(kvm: File) -> Result<Speed, SpeedError> {
    let kvm = kvm::from_file(kvm);
    let (memory, vm) = make_vm(&kvm)?;
    let mut vcpu = make_vcpu(&kvm, &vm)?;
    let mut rounds = 0;
    // The first round pays for the guest's first pages.
    round(&mut vcpu)?;
    let start = Instant::now();
    while start.elapsed() < DURATION {
        round(&mut vcpu)?;
        rounds += 1;
    }
    let nanos = u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX);
    let instructions = u128::from(rounds * LOOPS * INSTRUCTIONS_PER_LOOP) * 1_000_000_000;
    let per_second = u64::try_from(instructions / u128::from(nanos)).unwrap_or(u64::MAX);
    // The VM's descriptors go before the memory that it knows by address.
    drop((vcpu, vm));
    drop(memory);
    Ok(Speed {
        kind: kind(),
        instructions_per_second: per_second,
    })
}

/// What virtualises on this host.
pub fn kind() -> KvmKind {
    // Flags of the first processor; they do not differ.
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let flags = text
        .lines()
        .find(|line| line.starts_with("flags"))
        .unwrap_or_default();
    let has = |flag| flags.split_whitespace().any(|word| word == flag);
    if has("vmx") {
        KvmKind::Vmx
    } else if has("svm") {
        KvmKind::Svm
    } else {
        KvmKind::Software
    }
}

/// `start: mov rcx, LOOPS; again: dec rcx; jnz again; out PORT, al; jmp start`.
fn code() -> Vec<u8> {
    let mut code = vec![0x48, 0xb9];
    code.extend_from_slice(&LOOPS.to_le_bytes());
    code.extend_from_slice(&[0x48, 0xff, 0xc9, 0x75, 0xfb, 0xe6, PORT, 0xeb, 0xed]);
    code
}

fn make_vm(kvm: &Kvm) -> Result<(GuestMemory, VmFd), SpeedError> {
    let vm = kvm.create_vm().map_err(failed("KVM_CREATE_VM"))?;
    let memory = memory::map(MEMORY_UNIT_MIB).map_err(SpeedError::Memory)?;
    kvm::add_ram(&vm, &memory).map_err(failed("KVM_SET_USER_MEMORY_REGION"))?;
    let tss = usize::try_from(layout::KVM_TSS).expect("usize has 64 bits here");
    vm.set_tss_address(tss).map_err(failed("KVM_SET_TSS_ADDR"))?;
    tables::write(&memory).map_err(SpeedError::Write)?;
    memory.write_slice(&code(), CODE).map_err(SpeedError::Write)?;
    Ok((memory, vm))
}

fn make_vcpu(kvm: &Kvm, vm: &VmFd) -> Result<VcpuFd, SpeedError> {
    let vcpu = vm.create_vcpu(0).map_err(failed("KVM_CREATE_VCPU"))?;
    // Without it the vCPU has no long mode, and some KVMs refuse the registers that ask for it.
    let supported = kvm
        .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
        .map_err(failed("KVM_GET_SUPPORTED_CPUID"))?;
    vcpu.set_cpuid2(&supported).map_err(failed("KVM_SET_CPUID2"))?;
    let sregs = vcpu.get_sregs().map_err(failed("KVM_GET_SREGS"))?;
    vcpu.set_sregs(&regs::long_mode(sregs))
        .map_err(failed("KVM_SET_SREGS"))?;
    let entry = kvm_regs {
        rip: CODE.0,
        rflags: 2,
        ..Default::default()
    };
    vcpu.set_regs(&entry).map_err(failed("KVM_SET_REGS"))?;
    Ok(vcpu)
}

/// Runs until the guest says that it has counted once.
fn round(vcpu: &mut VcpuFd) -> Result<(), SpeedError> {
    loop {
        match vcpu.run() {
            Ok(VcpuExit::IoOut(port, _)) if port == u16::from(PORT) => return Ok(()),
            Ok(VcpuExit::Intr) => {}
            Ok(other) => return Err(SpeedError::Stuck(format!("{other:?}"))),
            Err(error) if error.errno() == libc::EINTR => {}
            Err(source) => {
                return Err(SpeedError::Kvm {
                    ioctl: "KVM_RUN",
                    source,
                });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn code_jumps_to_its_own_labels() {
        let code = code();
        let target = |at: usize| {
            let offset = i8::from_le_bytes([code[at + 1]]);
            usize::try_from(isize::try_from(at + 2).unwrap() + isize::from(offset)).unwrap()
        };
        assert_eq!((code[13], target(13)), (0x75, 10), "jnz goes to dec");
        assert_eq!((code[17], target(17)), (0xeb, 0), "jmp goes to the start");
    }

    #[test]
    fn speed_is_measured_where_there_is_kvm() {
        let Ok(kvm) = File::options().read(true).write(true).open("/dev/kvm") else {
            println!("skipped: no /dev/kvm");
            return;
        };
        let speed = measure(kvm).unwrap();
        assert!(speed.instructions_per_second > 1000, "{speed:?}");
        println!("{speed:?}");
    }

    #[test]
    fn file_that_is_not_kvm_is_an_error() {
        let file = File::open("/dev/null").unwrap();
        assert!(matches!(
            measure(file),
            Err(SpeedError::Kvm {
                ioctl: "KVM_CREATE_VM",
                ..
            })
        ));
    }
}
