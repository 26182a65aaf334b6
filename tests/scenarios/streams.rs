//! Standard input, output and error: three streams, binary safe, each with its own end.

use std::time::Duration;

use moat_tests::outcome::Input;
use moat_tests::runner::Scenario;
use moat_tests::scenario;
use moat_tests::trial::Trial;

pub const SCENARIOS: &[Scenario] = &[
    scenario!(a_hundred_mebibytes_pass_unchanged),
    scenario!(every_byte_value_passes),
    scenario!(stderr_is_apart_from_stdout),
    scenario!(closed_stdin_is_seen_as_its_end),
    scenario!(stdin_streams_while_the_workload_runs),
    scenario!(unread_stdin_does_not_hold_up_the_end),
    scenario!(closed_stdout_is_seen_by_the_workload),
    scenario!(output_before_the_end_is_not_lost),
];

/// Bytes without a pattern that a buffer's size would repeat: a MiB of noise (xorshift64), over and over, each
/// time rotated by another amount. Copied, not computed: an emulated machine has to make it too.
fn noise(size: usize) -> Vec<u8> {
    const BLOCK: usize = 1 << 20;
    const STRIDE: usize = 8191; // a prime near a page's size
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut block = Vec::with_capacity(BLOCK);
    while block.len() < BLOCK {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        block.extend_from_slice(&state.to_le_bytes());
    }
    let mut bytes = Vec::with_capacity(size + BLOCK);
    for turn in 0..size.div_ceil(BLOCK) {
        let (head, tail) = block.split_at(turn * STRIDE % BLOCK);
        bytes.extend_from_slice(tail);
        bytes.extend_from_slice(head);
    }
    bytes.truncate(size);
    bytes
}

/// Compared byte by byte, which says more than equal sums.
fn a_hundred_mebibytes_pass_unchanged(t: &Trial) {
    let sent = noise(100 << 20);
    let outcome = t.run_slowly(&t.bundle().args(&["cat"]), Input::Bytes(sent.clone()));
    assert_eq!(outcome.stdout.len(), sent.len(), "{outcome}");
    assert!(outcome.stdout == sent, "every byte is the one that was sent");
}

fn every_byte_value_passes(t: &Trial) {
    let sent: Vec<u8> = (0..=255).collect();
    let outcome = t
        .run_with(&t.bundle().args(&["cat"]), Input::Bytes(sent.clone()))
        .ok();
    assert_eq!(outcome.stdout, sent);
}

fn stderr_is_apart_from_stdout(t: &Trial) {
    let outcome = t
        .run(&t.bundle().sh("echo out; echo err >&2; echo out again"))
        .ok();
    assert_eq!(outcome.text(), "out\nout again");
    assert_eq!(outcome.errors(), "err", "nothing but the workload speaks there");
}

fn closed_stdin_is_seen_as_its_end(t: &Trial) {
    let bundle = t.bundle().sh("wc -c; echo done");
    assert_eq!(
        t.run_with(&bundle, Input::Bytes(Vec::new())).ok().text(),
        "0\ndone"
    );
    assert_eq!(t.run_with(&bundle, Input::Null).ok().text(), "0\ndone");
    assert_eq!(
        t.run_with(&bundle, Input::Bytes(b"abc".to_vec())).ok().text(),
        "3\ndone"
    );
}

fn stdin_streams_while_the_workload_runs(t: &Trial) {
    use std::io::Write;
    let mut container = t.spawn(
        &t.bundle()
            .sh("while read line; do echo got $line; done; echo end"),
    );
    for word in ["one", "two"] {
        writeln!(container.stdin.as_mut().expect("stdin is open"), "{word}").expect("the workload reads");
        container.says(&format!("got {word}"));
    }
    assert!(
        container.silent_for(Duration::from_millis(200)),
        "no end before stdin's"
    );
    drop(container.stdin.take());
    container.says("end");
    assert_eq!(container.wait(), 0);
}

fn unread_stdin_does_not_hold_up_the_end(t: &Trial) {
    let outcome = t.run_with(&t.bundle().sh("exit 5"), Input::Bytes(noise(8 << 20)));
    assert_eq!(outcome.status, 5, "{outcome}");
}

fn closed_stdout_is_seen_by_the_workload(t: &Trial) {
    let mut command = t.launch(
        "run",
        &t.bundle().sh("trap '' PIPE; while echo y; do :; done; exit 9"),
        &t.id(),
    );
    command
        .stdin(std::process::Stdio::null())
        .stdout(std::process::Stdio::piped());
    let mut child = command
        .stderr(std::process::Stdio::null())
        .spawn()
        .expect("the runtime can be spawned");
    drop(child.stdout.take());
    let (status, timed_out) = moat_tests::outcome::wait_within(&mut child, Trial::limit());
    assert!(
        !timed_out,
        "it writes for ever, as nobody tells it that nobody reads"
    );
    assert_eq!(moat_tests::outcome::code(status), 9);
}

fn output_before_the_end_is_not_lost(t: &Trial) {
    let script = "dd if=/dev/zero bs=1024 count=3000 2>/dev/null; echo last >&2; exit 4";
    let outcome = t.run(&t.bundle().sh(script));
    assert_eq!(
        (outcome.status, outcome.stdout.len()),
        (4, 3000 * 1024),
        "{outcome}"
    );
    assert_eq!(outcome.errors(), "last");
}
