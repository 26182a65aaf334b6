//! Many runs, one after another and side by side, after which the machine is as it was.
//!
//! `MOAT_SOAK_RUNS` (20) and `MOAT_SOAK_SIDE_BY_SIDE` (4) say how many; `make soak` asks for 200 and 16.

use std::env;
use std::process::ExitCode;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;

use moat_tests::leaks;
use moat_tests::outcome::{self, Input};
use moat_tests::runner::{self, Scenario};
use moat_tests::scenario;
use moat_tests::trial::Trial;

const SCENARIOS: &[Scenario] = &[
    scenario!(many_runs_leave_nothing),
    scenario!(runs_side_by_side_leave_nothing),
];

fn main() -> ExitCode {
    runner::main_one_by_one(&[SCENARIOS])
}

fn number(name: &str, default: u32) -> u32 {
    env::var(name)
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(default)
}

/// Runs `work` and compares the census before and after. On a machine that others use too the census means
/// nothing: there the trial's own search for traces is the check.
fn leaving_nothing(work: impl Fn()) {
    let alone = env::var_os("MOAT_IN_LAB").is_some();
    work(); // once before the count: what is made on first use and kept is no leak
    let before = leaks::census();
    work();
    let left = leaks::after_a_moment(|| leaks::census().difference(&before).cloned().collect());
    assert!(!alone || left.is_empty(), "left behind:\n{}", left.join("\n"));
}

fn many_runs_leave_nothing(t: &Trial) {
    let bundle = t.bundle().sh("echo $$");
    leaving_nothing(|| {
        for n in 0..number("MOAT_SOAK_RUNS", 20) / 2 {
            let outcome = t.run(&bundle);
            assert!(outcome.status == 0 && outcome.text() == "1", "run {n}: {outcome}");
        }
    });
}

fn runs_side_by_side_leave_nothing(t: &Trial) {
    let count = number("MOAT_SOAK_SIDE_BY_SIDE", 4);
    leaving_nothing(|| {
        let commands: Vec<_> = (0..count)
            .map(|n| {
                let bundle = t.bundle().sh(&format!("cat; exit {n}"));
                (n, t.launch("run", &bundle, &t.id()))
            })
            .collect();
        let wrong = AtomicU32::new(0);
        thread::scope(|scope| {
            for (n, mut command) in commands {
                let wrong = &wrong;
                scope.spawn(move || {
                    let text = format!("input of {n}");
                    let outcome = outcome::run(
                        &mut command,
                        Input::Bytes(text.clone().into()),
                        Trial::limit() * 4,
                    );
                    if i64::from(outcome.status) != i64::from(n) || outcome.text() != text {
                        wrong.fetch_add(1, Ordering::Relaxed);
                    }
                });
            }
        });
        assert_eq!(wrong.into_inner(), 0, "of {count} runs");
    });
}
