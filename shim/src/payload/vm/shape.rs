//! The shape of a microVM (vCPUs and RAM) for a container's limits. Pure: limits in, shape out.
//!
//! Shapes come from a short list, so that many containers share one (and, later, one template). The
//! exact limits hold inside the guest, in the container's cgroup there; the shape is only as large as
//! they need, plus what the guest's kernel uses itself.

/// RAM when no memory limit is given, in MiB. Lazily mapped: an idle guest touches a small part.
pub const DEFAULT_RAM_MIB: u64 = 1024;

/// vCPUs when no CPU limit is given.
pub const DEFAULT_VCPUS: u32 = 2;

/// Most vCPUs of a guest: the guest kernel's `CONFIG_NR_CPUS`.
pub const MAX_VCPUS: u32 = 32;

/// What the guest's kernel takes of the RAM whatever its size: its image (about 14 MiB), slabs,
/// guest-init, per-CPU data, and some free pages above its low watermark, in MiB.
const KERNEL_SHARE_FIXED_MIB: u64 = 40;

/// And in proportion: `struct page` takes 64 of each 4,096 bytes, that is one part in 64; as much
/// again for page tables and the watermarks that grow with the RAM.
const KERNEL_SHARE_DIVISOR: u64 = 32;

/// RAM sizes, in MiB, multiples of the kernel's 128 MiB memory sections. Beyond the last, sizes are
/// rounded up to whole multiples of it.
const RAM_SHAPES_MIB: [u64; 16] = [
    128, 256, 384, 512, 768, 1024, 1280, 1536, 2304, 3328, 4608, 6400, 8704, 12800, 17408, 33792,
];

/// Bytes that the host's cgroup grants beyond the guest's RAM: the VMM's own memory, and page cache
/// and kernel memory (page tables of the guest's mapping, KVM's shadow structures) charged to it.
pub const VMM_ALLOWANCE_BYTES: u64 = 64 << 20;

/// Host tasks that the VMM needs beside one thread for each vCPU: supervisor, device loop, file
/// server, and as many again for relays of streams.
pub const VMM_TASKS: u64 = 8;

const MIB: u64 = 1 << 20;

/// Limits that shape a VM.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Limits {
    /// Memory limit in bytes.
    pub memory: Option<u64>,
    /// CPU quota and period in microseconds.
    pub cpu: Option<(u64, u64)>,
    /// How many CPUs the container's cpuset names.
    pub cpu_set: Option<u32>,
    /// CPUs online on the host: without a quota no guest has more.
    pub host_cpus: u32,
}

/// vCPUs and RAM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// Number of vCPUs, 1 to [`MAX_VCPUS`].
    pub vcpus: u32,
    /// RAM in MiB.
    pub ram_mib: u64,
}

impl Shape {
    /// The smallest shape in which `limits` hold.
    pub fn for_limits(limits: &Limits) -> Shape {
        let ram_mib = match limits.memory {
            None => DEFAULT_RAM_MIB,
            Some(bytes) => ram_for(bytes.div_ceil(MIB)),
        };
        let host_cpus = limits.host_cpus.max(1);
        let wanted = match limits.cpu {
            Some((quota, period)) if period > 0 => {
                u32::try_from(quota.div_ceil(period)).unwrap_or(MAX_VCPUS).max(1)
            }
            _ => DEFAULT_VCPUS.min(host_cpus),
        };
        Shape {
            vcpus: wanted
                .min(limits.cpu_set.unwrap_or(MAX_VCPUS).max(1))
                .min(MAX_VCPUS),
            ram_mib,
        }
    }

    /// What the host's cgroup must grant for this shape, in bytes.
    pub fn host_memory_bytes(&self) -> u64 {
        self.ram_mib * MIB + VMM_ALLOWANCE_BYTES
    }

    /// How many tasks the host's cgroup must grant for this shape.
    pub fn host_tasks(&self) -> u64 {
        u64::from(self.vcpus) + VMM_TASKS
    }
}

fn ram_for(limit_mib: u64) -> u64 {
    let needed = limit_mib
        .saturating_add(KERNEL_SHARE_FIXED_MIB)
        .saturating_add(limit_mib / KERNEL_SHARE_DIVISOR);
    let largest = RAM_SHAPES_MIB[RAM_SHAPES_MIB.len() - 1];
    RAM_SHAPES_MIB
        .into_iter()
        .find(|shape| *shape >= needed)
        .unwrap_or_else(|| needed.div_ceil(largest).saturating_mul(largest))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape(memory_mib: Option<u64>, cpu: Option<(u64, u64)>) -> Shape {
        let memory = memory_mib.map(|mib| mib * MIB);
        Shape::for_limits(&Limits {
            memory,
            cpu,
            cpu_set: None,
            host_cpus: 4,
        })
    }

    #[test]
    fn no_limits_give_two_vcpus_and_one_gibibyte() {
        assert_eq!(
            shape(None, None),
            Shape {
                vcpus: 2,
                ram_mib: 1024
            }
        );
    }

    #[test]
    fn ram_is_the_limit_and_the_kernels_share_rounded_up() {
        // 64 + 40 + 2 = 106, and so on.
        let expected = [
            (64, 128),
            (128, 256),
            (256, 384),
            (512, 768),
            (1024, 1280),
            (4096, 4608),
        ];
        for (limit, ram) in expected {
            assert_eq!(shape(Some(limit), None).ram_mib, ram, "limit {limit} MiB");
        }
    }

    #[test]
    fn every_shape_is_a_whole_number_of_memory_sections() {
        for limit in (1..70_000).step_by(13) {
            let ram = shape(Some(limit), None).ram_mib;
            assert_eq!(ram % 128, 0, "limit {limit}");
            assert!(ram > limit, "limit {limit}");
        }
    }

    #[test]
    fn a_quota_is_rounded_up_to_whole_vcpus() {
        assert_eq!(shape(None, Some((50_000, 100_000))).vcpus, 1);
        assert_eq!(shape(None, Some((100_001, 100_000))).vcpus, 2);
        assert_eq!(shape(None, Some((400_000, 100_000))).vcpus, 4);
        assert_eq!(shape(None, Some((u64::MAX, 1))).vcpus, MAX_VCPUS);
    }

    #[test]
    fn a_cpuset_bounds_the_vcpus() {
        let limits = Limits {
            cpu_set: Some(1),
            host_cpus: 4,
            ..Limits::default()
        };
        assert_eq!(Shape::for_limits(&limits).vcpus, 1);
    }

    #[test]
    fn absurd_limits_do_not_overflow() {
        let huge = Limits {
            memory: Some(u64::MAX),
            cpu: None,
            cpu_set: None,
            host_cpus: 1,
        };
        assert!(Shape::for_limits(&huge).ram_mib > 1 << 40);
    }
}
