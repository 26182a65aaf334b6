//! How a workload ends is how `run` ends.

use moat_tests::runner::Scenario;
use moat_tests::scenario;
use moat_tests::trial::Trial;

pub const SCENARIOS: &[Scenario] = &[
    scenario!(exit_status_is_the_workloads),
    scenario!(death_by_sigkill_is_137),
    scenario!(death_by_sigsegv_is_139),
    scenario!(death_of_a_child_is_not_the_workloads),
    scenario!(orphans_are_reaped_and_end_with_the_workload),
    scenario!(program_that_is_not_there_is_refused),
];

fn exit_status_is_the_workloads(t: &Trial) {
    for status in [0, 1, 42, 255] {
        let outcome = t.run(&t.bundle().sh(&format!("exit {status}")));
        assert_eq!(outcome.status, status, "{outcome}");
    }
}

fn death_by_sigkill_is_137(t: &Trial) {
    let mut container = t.spawn(&t.bundle().sh("echo up; exec sleep 1000"));
    container.says("up");
    container.kill("KILL");
    assert_eq!(container.wait(), 128 + 9);
}

fn death_by_sigsegv_is_139(t: &Trial) {
    let outcome = t.run(&t.bundle().probe(&["fault"]));
    assert_eq!(outcome.status, 128 + 11, "{outcome}");
}

fn death_of_a_child_is_not_the_workloads(t: &Trial) {
    let outcome = t.run(&t.bundle().sh("sh -c 'kill -KILL $$'; echo $?; exit 3"));
    assert_eq!((outcome.status, outcome.text()), (3, "137".into()), "{outcome}");
}

fn orphans_are_reaped_and_end_with_the_workload(t: &Trial) {
    let outcome = t.run(&t.bundle().sh("(sleep 1000 &) ; (true &) ; exit 7"));
    assert_eq!(outcome.status, 7, "{outcome}");
}

fn program_that_is_not_there_is_refused(t: &Trial) {
    let outcome = t.run(&t.bundle().args(&["/bin/not-there"]));
    assert_ne!(outcome.status, 0, "{outcome}");
    assert!(
        outcome.errors().contains("not-there"),
        "the error names the program\n{outcome}"
    );
}
