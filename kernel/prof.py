#!/usr/bin/env python3
"""prof.py PROF SYSTEM.MAP [--json] [--top N] [--functions]: what prof.c counted, by boot phase or by function.

A phase is an initcall, or one of the steps of start_kernel in PHASES, and reaches until the next one starts.
"""
import argparse
import bisect
import json
import re
from collections import Counter

PHASES = """start_kernel setup_arch early_cpu_init e820__memory_setup parse_early_param init_hypervisor_platform
tsc_early_init early_alloc_pgt_buf e820__memblock_setup init_mem_mapping setup_log_buf initmem_init topology_apply_cmdline_limits_early
paging_init sparse_init free_area_init init_apic_mappings topology_init_possible_cpus e820__reserve_resources
static_call_init setup_per_cpu_areas smp_prepare_boot_cpu boot_cpu_hotplug_init parse_args random_init_early vfs_caches_init_early
sort_main_extable trap_init mm_core_init build_all_zonelists mem_init memblock_free_all kmem_cache_init
vmalloc_init pti_init execmem_init poking_init sched_init radix_tree_init maple_tree_init workqueue_init_early rcu_init
early_irq_init init_IRQ tick_init init_timers srcu_init hrtimers_init softirq_init timekeeping_init time_init
random_init perf_event_init console_init setup_per_cpu_pageset sched_clock_init x86_late_time_init tsc_init
calibrate_delay arch_cpu_finalize_init cpu_select_mitigations fpu__init_system alternative_instructions apply_retpolines
apply_returns apply_alternatives pid_idr_init anon_vma_init cred_init fork_init proc_caches_init uts_ns_init
key_init net_ns_init vfs_caches_init pagecache_init signals_init seq_file_init proc_root_init nsfs_init pidfs_init
cpuset_init cgroup_init taskstats_init_early rest_init kernel_init kernel_init_freeable
print_cpu_info workqueue_init init_mm_internals rcu_init_tasks_generic smp_init sched_init_smp
workqueue_init_topology async_init page_alloc_init_late driver_init wait_for_initramfs do_populate_rootfs
console_on_rootfs prepare_namespace free_initmem mark_rodata_ro pti_finalize rcu_end_inkernel_boot do_sysctl_args
kernel_execve""".split()


def symbols(path):
    """(addresses, names) of the functions, sorted; {name: level} of the initcalls."""
    functions, initcalls = [], {}
    for line in open(path):
        address, kind, name = line.split()[:3]
        if kind in "tTwW":
            functions.append((int(address, 16), name))
        match = re.match(r"__initcall__kmod_.*?__\d+_\d+_(.*?)(early|console|rootfs|[0-7]s?)$", name)
        if match:
            initcalls[match[1]] = match[2]
    functions.sort()
    return [a for a, _ in functions], [n for _, n in functions], initcalls


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("prof")
    parser.add_argument("map")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--functions", action="store_true")
    parser.add_argument("--top", type=int, default=10)
    parser.add_argument("--name", default="guest_instructions_to_init")
    args = parser.parse_args()

    addresses, names, initcalls = symbols(args.map)
    at = dict(zip(names, addresses))
    by_function, repeats_of, first = Counter(), Counter(), {}
    with open(args.prof) as lines:
        head = next(lines).split()
        total, waits, repeats = int(head[1]), int(head[3]), int(head[5])
        for line in lines:
            count, address, repeated, start = line.split()
            address = int(address, 16)
            index = bisect.bisect_right(addresses, address) - 1
            name = names[index] if index >= 0 and address >= 0xFFFFFFFF80000000 else "[entry]"
            by_function[name] += int(count)
            repeats_of[name] += int(repeated)
            if at.get(name) == address:
                first[name] = int(start)

    known = set(PHASES) | set(initcalls)
    starts = sorted((start, name) for name, start in first.items() if name in known)
    starts = [(0, "entry")] + starts + [(total + repeats, "")]
    phases = sorted(((after - start, name) for (start, name), (after, _) in zip(starts, starts[1:])), reverse=True)
    # Phases are told by instructions and repeats together: clearing memory is work too.
    phases = [{"phase": name, "initcall": initcalls.get(name), "instructions_and_repeats": n} for n, name in phases]
    functions = [{"function": n, "instructions": c, "repeats": repeats_of[n]}
                 for n, c in sorted(by_function.items(), key=lambda x: -x[1] - repeats_of[x[0]])]

    if args.json:
        print(json.dumps({"name": args.name, "instructions": total, "rep_iterations": repeats,
                          "waits": waits, "phases": phases[:args.top],
                          "functions": functions[:args.top]}, indent=1))
        return
    if args.functions:
        for f in functions[:args.top]:
            print(f"{f['instructions']:>10} +{f['repeats']:>8}  {f['function']}")
    else:
        for p in phases[:args.top]:
            kind = f"initcall {p['initcall']}" if p["initcall"] else "step"
            print(f"{p['instructions_and_repeats']:>10}  {kind:<16} {p['phase']}")
    print(f"{args.name} {total} instructions 1 tcg")
    print(f"{args.name}.rep_iterations {repeats} iterations 1 tcg")
    print(f"{args.name}.waits {waits} instructions 1 tcg")


main()
