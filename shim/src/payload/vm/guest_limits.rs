//! Limits of a container in a microVM: which shape the VM, which hold in the guest's cgroup, and what
//! the host's cgroup must grant so that the guest can use what it was promised.

use moat_protocol::message::GuestCgroup;

use super::shape::{Limits, Shape};
use crate::bundle::resources::Resources;
use crate::cell::cgroup::{self, CgroupError};

/// Files of the container's cgroup that are written in the guest too. CPU time, I/O and the rest are
/// limited on the host, where the whole VM is charged.
const HELD_IN_THE_GUEST: [&str; 4] = ["memory.max", "memory.low", "memory.swap.max", "pids.max"];

/// The limits that shape a VM.
pub fn shaping(resources: &Resources) -> Limits {
    let positive = |limit: Option<i64>| {
        limit
            .and_then(|limit| u64::try_from(limit).ok())
            .filter(|limit| *limit > 0)
    };
    let period = resources
        .cpu
        .period
        .filter(|period| *period > 0)
        .unwrap_or(cgroup::DEFAULT_CPU_PERIOD);
    let host_cpus = std::thread::available_parallelism()
        .map_or(1, |count| u32::try_from(count.get()).unwrap_or(u32::MAX));
    Limits {
        memory: positive(resources.memory.limit),
        cpu: positive(resources.cpu.quota).map(|quota| (quota, period)),
        cpu_set: cpus_named(&resources.cpu.cpus),
        host_cpus,
    }
}

/// How many processors a list such as `0-3,7` names; `None` without a list. What is no list is refused
/// where the cgroup is written.
fn cpus_named(list: &str) -> Option<u32> {
    let ranges = list.split(',').map(str::trim).filter(|range| !range.is_empty());
    let mut counts = ranges.map(|range| {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (first, last): (u32, u32) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
        last.checked_sub(first)?.checked_add(1)
    });
    let first = counts.next()??;
    counts.try_fold(first, |sum, count| sum.checked_add(count?))
}

/// What is written to the container's cgroup in the guest.
///
/// # Errors
/// When a limit has no meaning on cgroup v2, which the guest has.
pub fn writes(resources: &Resources) -> Result<GuestCgroup, CgroupError> {
    let only_v2_fields = Resources {
        memory: crate::bundle::resources::Memory {
            // v1's alone; the guest has neither swap nor a choice of OOM killers.
            swappiness: None,
            disable_oom_killer: None,
            swap: None,
            ..resources.memory.clone()
        },
        pids: resources.pids.clone(),
        ..Resources::default()
    };
    let writes = cgroup::v2_writes(&only_v2_fields)?
        .into_iter()
        .filter(|(file, _)| HELD_IN_THE_GUEST.contains(&file.as_str()))
        .collect();
    Ok(GuestCgroup { writes })
}

/// The limits of the host's cgroup: the guest's RAM and the VMM's own needs instead of the workload's.
pub fn of_the_host(resources: &Resources, shape: &Shape) -> Resources {
    let mut host = resources.clone();
    let signed = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
    if let Some(limit) = host.memory.limit.filter(|limit| *limit > 0) {
        let granted = signed(shape.host_memory_bytes());
        host.memory.limit = Some(granted);
        // Memory and swap together: the swap that was granted stays the same.
        host.memory.swap = host.memory.swap.map(|both| {
            if both > 0 {
                granted.saturating_add(both.saturating_sub(limit).max(0))
            } else {
                both
            }
        });
    }
    if let Some(limit) = host.pids.limit.filter(|limit| *limit > 0) {
        host.pids.limit = Some(limit.max(signed(shape.host_tasks())));
    }
    host
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bundle::resources::{Cpu, Memory, Pids};

    const MIB: i64 = 1 << 20;

    fn limited() -> Resources {
        Resources {
            memory: Memory {
                limit: Some(64 * MIB),
                swap: Some(96 * MIB),
                ..Memory::default()
            },
            cpu: Cpu {
                quota: Some(150_000),
                period: Some(100_000),
                ..Cpu::default()
            },
            pids: Pids { limit: Some(5) },
            ..Resources::default()
        }
    }

    #[test]
    fn the_exact_limits_hold_in_the_guest() {
        let writes = writes(&limited()).unwrap().writes;
        assert!(
            writes.contains(&("memory.max".into(), (64 * MIB).to_string())),
            "{writes:?}"
        );
        assert!(writes.contains(&("pids.max".into(), "5".into())), "{writes:?}");
    }

    #[test]
    fn the_host_grants_the_ram_and_the_vmms_own_needs() {
        let shape = Shape::for_limits(&shaping(&limited()));
        let host = of_the_host(&limited(), &shape);
        assert_eq!(host.memory.limit, Some(128 * MIB + 64 * MIB));
        assert_eq!(host.memory.swap, Some(128 * MIB + 64 * MIB + 32 * MIB));
        assert_eq!(host.pids.limit, Some(2 + 8));
        assert_eq!(host.cpu, limited().cpu);
    }

    #[test]
    fn processors_of_a_list_are_counted() {
        let cases = [
            ("", None),
            ("0", Some(1)),
            ("0-3,7", Some(5)),
            ("1, 2", Some(2)),
            ("3-1", None),
        ];
        for (list, count) in cases {
            assert_eq!(cpus_named(list), count, "{list:?}");
        }
    }

    #[test]
    fn no_limits_stay_no_limits() {
        let none = Resources::default();
        assert_eq!(of_the_host(&none, &Shape::for_limits(&shaping(&none))), none);
        assert_eq!(writes(&none).unwrap(), GuestCgroup::default());
    }
}
