//! Memory and CPUs.

use moat_tests::outcome::Outcome;
use moat_tests::requirement::cgroup2;
use moat_tests::runner::Scenario;
use moat_tests::scenario;
use moat_tests::trial::{Isolation, Trial};
use serde_json::json;

pub const SCENARIOS: &[Scenario] = &[
    scenario!(memory_limit_is_the_one_that_the_workload_sees),
    scenario!(workload_may_use_what_the_limit_allows),
    scenario!(workload_beyond_its_memory_limit_is_killed),
    scenario!(cpu_set_is_the_one_that_the_workload_sees),
    scenario!(guest_has_the_asked_for_cpus, needs: Vm),
    scenario!(pids_limit_holds),
];

const MIB: u64 = 1 << 20;

fn limited(t: &Trial, mib: u64, script: &str) -> Outcome {
    let bundle = t.bundle().sh(script).edit(|c| {
        c["linux"]["resources"]["memory"] = json!({"limit": mib * MIB});
    });
    t.run(&bundle)
}

fn memory_limit_is_the_one_that_the_workload_sees(t: &Trial) {
    // A guest always has cgroup v2; a process has what the host has.
    let file = if cgroup2() || t.isolation() == Isolation::Vm {
        "/sys/fs/cgroup/memory.max"
    } else {
        "/sys/fs/cgroup/memory/memory.limit_in_bytes"
    };
    for mib in [64, 100, 256, 1024, 4096] {
        let outcome = limited(t, mib, &format!("cat {file}; grep MemTotal /proc/meminfo")).ok();
        let text = outcome.text();
        let mut lines = text.lines();
        assert_eq!(lines.next(), Some((mib * MIB).to_string().as_str()), "{outcome}");
        let total = lines
            .next()
            .and_then(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok());
        let total = total.expect("MemTotal in KiB") / 1024;
        if t.isolation() == Isolation::Vm {
            // At least the limit, and a stated share for the guest's kernel: never a multiple of what was asked.
            assert!(
                total >= mib && total <= mib * 3 / 2 + 256,
                "the guest has {total} MiB for a limit of {mib}"
            );
        }
    }
}

fn workload_may_use_what_the_limit_allows(t: &Trial) {
    for (mib, used) in [(64, 40), (256, 200)] {
        let outcome = limited(t, mib, &format!("exec moat-test-probe allocate {used}")).ok();
        assert_eq!(outcome.value("touched"), used.to_string(), "limit {mib} MiB");
    }
}

fn workload_beyond_its_memory_limit_is_killed(t: &Trial) {
    let outcome = limited(t, 64, "exec moat-test-probe allocate 300");
    assert_eq!(outcome.status, 128 + 9, "{outcome}");
}

fn cpu_set_is_the_one_that_the_workload_sees(t: &Trial) {
    let bundle = t
        .bundle()
        .args(&["nproc"])
        .edit(|c| c["linux"]["resources"]["cpu"] = json!({"cpus": "0"}));
    assert_eq!(t.run(&bundle).ok().text(), "1");
}

fn guest_has_the_asked_for_cpus(t: &Trial) {
    for cpus in [1_u64, 2, 4] {
        const PERIOD: u64 = 100_000; // microseconds
        let bundle = t
            .bundle()
            .sh("nproc; grep -c ^processor /proc/cpuinfo")
            .edit(|c| {
                c["linux"]["resources"]["cpu"] = json!({"quota": cpus * PERIOD, "period": PERIOD});
            });
        assert_eq!(t.run(&bundle).ok().text(), format!("{cpus}\n{cpus}"));
    }
}

fn pids_limit_holds(t: &Trial) {
    let script = "n=0; while [ $n -lt 60 ]; do sleep 5 & n=$((n+1)); done; echo all";
    let bundle = t
        .bundle()
        .sh(script)
        .edit(|c| c["linux"]["resources"]["pids"] = json!({"limit": 20}));
    let outcome = t.run(&bundle);
    assert!(!outcome.text().contains("all"), "{outcome}");
    assert!(outcome.errors().contains("fork"), "{outcome}");
}
