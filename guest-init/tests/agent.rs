//! The agent as the host meets it: over Unix sockets in place of vsock, on this machine's kernel, with
//! real containers on a busybox root. Needs root and a static `busybox`; without them every case is
//! skipped, and says so. Relays are tested with neither.
//!
//! The process has one thread, since cloning demands it: hence no test harness. An argument selects the
//! cases whose name holds it.
#![expect(
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a test program without harness"
)]

#[path = "agent/cases.rs"]
mod cases;
#[path = "agent/host.rs"]
mod host;

use std::{panic, process::ExitCode};

fn main() -> ExitCode {
    let filter = std::env::args()
        .skip(1)
        .find(|argument| !argument.starts_with('-'))
        .unwrap_or_default();
    let selected: Vec<_> = cases::ALL
        .iter()
        .filter(|(name, _)| name.contains(&filter))
        .collect();
    if let Some(reason) = host::missing() {
        println!("skipped: {reason} ({} cases)", selected.len());
        // `REQUIRE=root` turns the skip into a failure
        let required = std::env::var("REQUIRE").is_ok_and(|list| list.split(',').any(|need| need == "root"));
        return if required {
            ExitCode::FAILURE
        } else {
            ExitCode::SUCCESS
        };
    }
    let mut failed = 0;
    for (name, case) in &selected {
        let passed = panic::catch_unwind(case).is_ok();
        println!("case {name} ... {}", if passed { "ok" } else { "FAILED" });
        failed += usize::from(!passed);
    }
    println!("{} passed, {failed} failed, 0 skipped", selected.len() - failed);
    if failed == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
