//! What a vCPU says of itself: what KVM supports on this host, with the leaves that depend on the number
//! of vCPUs and on which of them one is (Intel SDM volume 2A "CPUID", AMD APM volume 3 appendix E).
//!
//! The guest sees one socket with one thread per core; caches are its own but the last level.

use kvm_bindings::{CpuId, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, kvm_cpuid_entry2};
use vmm_sys_util::fam;

/// Leaf 1 ECX: TSC-deadline timer. KVM has it whenever it says `KVM_CAP_TSC_DEADLINE_TIMER`, older ones
/// without listing it.
const TSC_DEADLINE: u32 = 1 << 24;
/// Leaf 1 ECX: running under a hypervisor; without it the guest does not look for KVM's leaves.
const HYPERVISOR: u32 = 1 << 31;
/// Leaf 1 ECX: x2APIC.
const X2APIC: u32 = 1 << 21;
/// Leaf 1 EDX: more than one logical processor id per package.
const HTT: u32 = 1 << 28;

/// Leaf 0xb, 0x1f: level types.
const LEVEL_SMT: u32 = 1;
const LEVEL_CORE: u32 = 2;

/// What [`for_vcpu`] depends on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Topology {
    /// vCPUs of the VM.
    pub vcpus: u8,
    /// KVM emulates the TSC-deadline timer.
    pub tsc_deadline: bool,
}

/// The CPUID of vCPU `index`, made from what KVM supports.
///
/// # Errors
/// When there are more leaves than the ioctl takes.
pub fn for_vcpu(supported: &CpuId, index: u8, topology: Topology) -> Result<CpuId, fam::Error> {
    let mut entries: Vec<kvm_cpuid_entry2> = supported.as_slice().to_vec();
    // Leaves 0xb and 0x1f are made anew: KVM hands out the host's, by subleaf.
    let has_extended_topology = entries.iter().any(|entry| entry.function == 0xb);
    entries.retain(|entry| !matches!(entry.function, 0xb | 0x1f));
    if has_extended_topology {
        entries.extend(extended_topology(index, topology.vcpus));
    }
    for entry in &mut entries {
        adjust(entry, index, topology);
    }
    CpuId::from_entries(&entries)
}

fn adjust(entry: &mut kvm_cpuid_entry2, index: u8, topology: Topology) {
    let (id, vcpus) = (u32::from(index), u32::from(topology.vcpus));
    match entry.function {
        0x1 => {
            // EBX: initial APIC id, logical processors, CLFLUSH line as the host's.
            let ids = if vcpus > 1 { vcpus.next_power_of_two() } else { 1 };
            entry.ebx = (entry.ebx & 0xffff) | (ids << 16) | (id << 24);
            entry.ecx |= HYPERVISOR;
            entry.ecx = set(entry.ecx, TSC_DEADLINE, topology.tsc_deadline);
            entry.edx = set(entry.edx, HTT, vcpus > 1);
        }
        // Deterministic cache parameters, Intel and AMD alike. EAX: type in bits 0 to 4, level in 5 to 7,
        // logical processors that share the cache, less one, in 14 to 25; cores less one in 26 to 31.
        0x4 | 0x8000_001d if entry.eax & 0x1f != 0 => {
            let level = (entry.eax >> 5) & 7;
            let shared = if level >= 3 {
                id_space(topology.vcpus) - 1
            } else {
                0
            };
            entry.eax = (entry.eax & 0x3fff) | (shared << 14);
            if entry.function == 0x4 {
                entry.eax |= (id_space(topology.vcpus) - 1) << 26;
            }
        }
        // AMD. ECX: cores less one, bits of the APIC id that tell cores apart.
        0x8000_0008 => entry.ecx = (vcpus - 1) | (id_bits(topology.vcpus) << 12),
        // AMD. Extended APIC id; core id with one thread per core; node 0 of 1.
        0x8000_001e => (entry.eax, entry.ebx, entry.ecx) = (id, id, 0),
        _ => {}
    }
}

fn extended_topology(index: u8, vcpus: u8) -> impl Iterator<Item = kvm_cpuid_entry2> {
    let levels = [
        (0, 0, 1, LEVEL_SMT),
        (1, id_bits(vcpus), u32::from(vcpus), LEVEL_CORE),
        (2, 0, 0, 0),
    ];
    levels
        .into_iter()
        .map(move |(subleaf, shift, count, kind)| kvm_cpuid_entry2 {
            function: 0xb,
            index: subleaf,
            flags: KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
            eax: shift,
            ebx: count,
            ecx: subleaf | (kind << 8),
            edx: u32::from(index),
            ..Default::default()
        })
}

/// Bits that tell `vcpus` APIC ids apart.
fn id_bits(vcpus: u8) -> u32 {
    id_space(vcpus).trailing_zeros()
}

fn id_space(vcpus: u8) -> u32 {
    u32::from(vcpus).next_power_of_two()
}

fn set(register: u32, bit: u32, on: bool) -> u32 {
    if on { register | bit } else { register & !bit }
}

/// Whether KVM supports the x2APIC, for hosts' descriptions.
pub fn has_x2apic(supported: &CpuId) -> bool {
    supported
        .as_slice()
        .iter()
        .any(|entry| entry.function == 1 && entry.ecx & X2APIC != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host() -> CpuId {
        let entry = |function, index, eax| kvm_cpuid_entry2 {
            function,
            index,
            eax,
            ..Default::default()
        };
        CpuId::from_entries(&[
            kvm_cpuid_entry2 {
                ebx: 0x5510_0800,
                ..entry(1, 0, 0x800f12)
            },
            entry(4, 0, 0x1c00_4121), // level 1 data
            entry(4, 1, 0x1c03_c163), // level 3 unified
            entry(4, 2, 0),
            kvm_cpuid_entry2 {
                edx: 0x55,
                ..entry(0xb, 0, 1)
            },
            kvm_cpuid_entry2 {
                edx: 0x55,
                ..entry(0xb, 1, 6)
            },
            kvm_cpuid_entry2 {
                ecx: 0x703f,
                ..entry(0x8000_0008, 0, 0x3030)
            },
            entry(0x8000_001e, 0, 0x55),
        ])
        .unwrap()
    }

    fn leaf(cpuid: &CpuId, function: u32, index: u32) -> kvm_cpuid_entry2 {
        let found = cpuid
            .as_slice()
            .iter()
            .find(|entry| (entry.function, entry.index) == (function, index));
        *found.unwrap()
    }

    #[test]
    fn each_vcpu_has_its_own_id_everywhere() {
        for index in [0u8, 1, 3] {
            let cpuid = for_vcpu(
                &host(),
                index,
                Topology {
                    vcpus: 4,
                    tsc_deadline: true,
                },
            )
            .unwrap();
            let id = u32::from(index);
            assert_eq!(leaf(&cpuid, 1, 0).ebx, 0x0004_0800 | (id << 24));
            assert_eq!(leaf(&cpuid, 0xb, 1).edx, id);
            assert_eq!(leaf(&cpuid, 0x8000_001e, 0).eax, id);
        }
    }

    #[test]
    fn topology_is_cores_of_one_thread() {
        let cpuid = for_vcpu(
            &host(),
            0,
            Topology {
                vcpus: 3,
                tsc_deadline: true,
            },
        )
        .unwrap();
        let (smt, core) = (leaf(&cpuid, 0xb, 0), leaf(&cpuid, 0xb, 1));
        assert_eq!((smt.eax, smt.ebx, smt.ecx), (0, 1, 0x100));
        assert_eq!((core.eax, core.ebx, core.ecx), (2, 3, 0x201));
        assert_eq!(leaf(&cpuid, 0xb, 2).ebx, 0);
        assert_eq!(leaf(&cpuid, 0x8000_0008, 0).ecx, 2 | (2 << 12));
        assert_eq!(
            leaf(&cpuid, 4, 0).eax >> 14,
            (3 << 12),
            "level 1 is shared by nobody"
        );
        assert_eq!(leaf(&cpuid, 4, 1).eax >> 14, (3 << 12) | 3, "level 3 by all");
        assert_eq!(leaf(&cpuid, 4, 2).eax, 0, "the end of the list stays one");
    }

    #[test]
    fn single_vcpu_is_no_multiprocessor() {
        let cpuid = for_vcpu(
            &host(),
            0,
            Topology {
                vcpus: 1,
                tsc_deadline: false,
            },
        )
        .unwrap();
        let one = leaf(&cpuid, 1, 0);
        assert_eq!((one.ebx >> 16, one.edx & HTT), (1, 0));
        assert_eq!(one.ecx & (TSC_DEADLINE | HYPERVISOR), HYPERVISOR);
        assert_eq!(leaf(&cpuid, 0xb, 1).eax, 0);
    }
}
