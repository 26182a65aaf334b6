//! What is kept from the workload: capabilities, limits, paths.

use std::fs;

use moat_tests::runner::Scenario;
use moat_tests::scenario;
use moat_tests::trial::Trial;
use serde_json::json;

pub const SCENARIOS: &[Scenario] = &[
    scenario!(capabilities_are_exactly_the_configured_ones),
    scenario!(no_capabilities_at_all),
    scenario!(no_new_privileges),
    scenario!(rlimits),
    scenario!(masked_paths_show_nothing),
    scenario!(readonly_paths_refuse_writes),
    scenario!(default_devices_work),
    scenario!(other_devices_are_not_there),
];

const NET_BIND_SERVICE: u64 = 1 << 10;
const CHOWN: u64 = 1;

fn capabilities_are_exactly_the_configured_ones(t: &Trial) {
    let bundle = t
        .bundle()
        .probe(&["identity"])
        .capabilities(&["CAP_CHOWN", "CAP_NET_BIND_SERVICE"])
        .edit(|c| {
            c["process"]["capabilities"]["ambient"] = json!(["CAP_CHOWN"]);
        });
    let outcome = t.run(&bundle).ok();
    for set in ["CapPrm", "CapEff", "CapBnd", "CapInh"] {
        assert_eq!(
            outcome.value(set),
            format!("{:016x}", CHOWN | NET_BIND_SERVICE),
            "{set}"
        );
    }
    assert_eq!(outcome.value("CapAmb"), format!("{CHOWN:016x}"));
}

fn no_capabilities_at_all(t: &Trial) {
    let outcome = t.run(&t.bundle().probe(&["identity"]).capabilities(&[])).ok();
    for set in ["CapPrm", "CapEff", "CapBnd", "CapInh", "CapAmb"] {
        assert_eq!(outcome.value(set), format!("{:016x}", 0), "{set}");
    }
}

fn no_new_privileges(t: &Trial) {
    for (asked, seen) in [(true, "1"), (false, "0")] {
        let bundle = t
            .bundle()
            .probe(&["identity"])
            .edit(|c| c["process"]["noNewPrivileges"] = json!(asked));
        assert_eq!(t.run(&bundle).ok().value("NoNewPrivs"), seen);
    }
}

fn rlimits(t: &Trial) {
    let bundle = t.bundle().args(&["cat", "/proc/self/limits"]).edit(|c| {
        c["process"]["rlimits"] = json!([
            {"type": "RLIMIT_NOFILE", "soft": 511, "hard": 1023},
            {"type": "RLIMIT_CORE", "soft": 0, "hard": 4096},
            {"type": "RLIMIT_STACK", "soft": 4_194_304, "hard": 4_194_304}
        ]);
    });
    let text = t.run(&bundle).ok().text();
    let limit = |name: &str| {
        let line = text
            .lines()
            .find(|line| line.starts_with(name))
            .unwrap_or_default();
        line[name.len()..]
            .split_whitespace()
            .take(2)
            .collect::<Vec<_>>()
            .join(" ")
    };
    assert_eq!(limit("Max open files"), "511 1023");
    assert_eq!(limit("Max core file size"), "0 4096");
    assert_eq!(limit("Max stack size"), "4194304 4194304");
}

fn masked_paths_show_nothing(t: &Trial) {
    let script = "cat /etc/secret; ls /etc/secrets; cat /proc/kcore 2>/dev/null | head -c 1; echo end";
    let bundle = t.bundle().sh(script).edit(|c| {
        let masked = c["linux"]["maskedPaths"].as_array_mut().expect("a list");
        masked.extend([
            json!("/etc/secret"),
            json!("/etc/secrets"),
            json!("/etc/not-there"),
        ]);
    });
    fs::write(bundle.rootfs("/etc/secret"), "hidden").expect("a file");
    fs::create_dir(bundle.rootfs("/etc/secrets")).expect("a folder");
    fs::write(bundle.rootfs("/etc/secrets/one"), "hidden").expect("a file");
    assert_eq!(t.run(&bundle).ok().text(), "end");
}

fn readonly_paths_refuse_writes(t: &Trial) {
    let script =
        "cat /work/f; echo x > /work/f; echo x > /work/new; echo x > /proc/sys/kernel/hostname; hostname";
    let bundle = t.bundle().sh(script).engine_capabilities().edit(|c| {
        c["linux"]["readonlyPaths"]
            .as_array_mut()
            .expect("a list")
            .push(json!("/work"));
    });
    fs::write(bundle.rootfs("/work/f"), "kept\n").expect("a file");
    let outcome = t.run(&bundle).ok();
    assert_eq!(outcome.text(), "kept\nmoat-test");
    assert_eq!(
        outcome.errors().matches("Read-only file system").count(),
        3,
        "{outcome}"
    );
    assert_eq!(
        fs::read_to_string(bundle.rootfs("/work/f")).expect("a file"),
        "kept\n"
    );
}

fn default_devices_work(t: &Trial) {
    let script = "echo x > /dev/null; head -c 3 /dev/zero | wc -c; head -c 5 /dev/urandom | wc -c; head -c 4 /dev/random | wc -c; \
        echo full > /dev/full; test -c /dev/tty; echo $?; for f in fd stdin stdout stderr; do readlink /dev/$f; done; \
        readlink /dev/ptmx; test -d /dev/pts && test -d /dev/shm && echo > /dev/shm/f; echo to-stderr > /dev/stderr";
    let outcome = t.run(&t.bundle().sh(script)).ok();
    let expected = "3\n5\n4\n0\n/proc/self/fd\n/proc/self/fd/0\n/proc/self/fd/1\n/proc/self/fd/2\npts/ptmx";
    assert_eq!(outcome.text(), expected, "{outcome}");
    assert!(
        outcome.errors().contains("No space left on device"),
        "/dev/full is full\n{outcome}"
    );
    assert!(outcome.errors().ends_with("to-stderr"), "{outcome}");
}

fn other_devices_are_not_there(t: &Trial) {
    let outcome = t.run(&t.bundle().sh("ls /dev | sort | tr '\\n' ' '")).ok();
    let allowed = [
        "console", "core", "fd", "full", "mqueue", "null", "ptmx", "pts", "random", "shm", "stderr", "stdin",
        "stdout", "tty", "urandom", "zero",
    ];
    for name in outcome.text().split_whitespace() {
        assert!(allowed.contains(&name), "/dev/{name}\n{outcome}");
    }
}
