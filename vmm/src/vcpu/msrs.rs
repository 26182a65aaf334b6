//! Model-specific registers that a boot CPU needs other than KVM resets them to.

use kvm_bindings::{Msrs, kvm_msr_entry};
use vmm_sys_util::fam;

const IA32_MISC_ENABLE: u32 = 0x1a0;
const MTRR_DEF_TYPE: u32 = 0x2ff;

/// `rep movs` and `rep stos` are fast; Intel kernels switch to slower copies when this bit is off.
const FAST_STRINGS: u64 = 1 << 0;
/// MTRRs on, default type write-back: RAM is cached although no firmware has set up ranges.
const MTRR_ENABLED_WRITE_BACK: u64 = (1 << 11) | 6;

/// Registers and values for each vCPU.
///
/// # Errors
/// Never, in fact: the list is short.
pub fn boot() -> Result<Msrs, fam::Error> {
    let entry = |index, data| kvm_msr_entry {
        index,
        data,
        ..Default::default()
    };
    Msrs::from_entries(&[
        entry(IA32_MISC_ENABLE, FAST_STRINGS),
        entry(MTRR_DEF_TYPE, MTRR_ENABLED_WRITE_BACK),
    ])
}
