//! A VM that cannot be, or does not come up, says why: the phase it reached and the console's last lines.

use std::fs;
use std::process::Command;

use moat_tests::broken_guest::{End, kernel};
use moat_tests::outcome::{self, Input, Outcome};
use moat_tests::runner::Scenario;
use moat_tests::scenario;
use moat_tests::trial::Trial;
use serde_json::json;

pub const SCENARIOS: &[Scenario] = &[
    scenario!(guest_has_a_kernel_of_its_own, needs: Vm),
    scenario!(annotation_asks_for_a_vm, needs: Moat, Vm),
    scenario!(name_moat_vm_asks_for_a_vm, needs: Moat, Vm),
    scenario!(kernel_that_is_missing_is_refused, needs: Vm),
    scenario!(kernel_that_cannot_be_read_is_refused, needs: Vm),
    scenario!(kernel_that_is_none_is_refused, needs: Vm),
    scenario!(init_that_is_missing_is_refused, needs: Vm),
    scenario!(machine_without_kvm_is_refused, needs: Vm),
    scenario!(guest_that_panics_is_explained, needs: Vm),
    scenario!(guest_that_hangs_is_explained, needs: Vm),
    scenario!(guest_that_falls_over_is_explained, needs: Vm),
];

fn own_release() -> String {
    fs::read_to_string("/proc/sys/kernel/osrelease")
        .expect("procfs")
        .trim()
        .to_owned()
}

fn guest_has_a_kernel_of_its_own(t: &Trial) {
    let release = t.run(&t.bundle().args(&["uname", "-r"])).ok().text();
    assert_ne!(release, own_release());
    assert!(release.starts_with("6."), "{release}");
}

fn release_by(command: &mut Command) -> String {
    outcome::run(command, Input::Null, Trial::limit()).ok().text()
}

fn annotation_asks_for_a_vm(t: &Trial) {
    let bundle = t
        .bundle()
        .args(&["uname", "-r"])
        .edit(|c| c["annotations"] = json!({"io.moat.isolation": "vm"}));
    bundle.write();
    let path = bundle.path().to_string_lossy().into_owned();
    assert_ne!(
        release_by(&mut t.command(&["run", "--bundle", &path, &t.id()])),
        own_release()
    );
    // The strongest that was asked for wins: an option cannot lower what the annotation asks.
    let lower = &["run", "--bundle", &path, "--isolation", "process", &t.id()];
    assert_ne!(release_by(&mut t.command(lower)), own_release());
}

fn name_moat_vm_asks_for_a_vm(t: &Trial) {
    let bundle = t.bundle().args(&["uname", "-r"]);
    bundle.write();
    let name = t.home().join("moat-vm");
    let plain = t.command(&["run", "--bundle", &bundle.path().to_string_lossy(), &t.id()]);
    std::os::unix::fs::symlink(plain.get_program(), &name).expect("a link");
    assert_ne!(
        release_by(Command::new(&name).args(plain.get_args())),
        own_release()
    );
}

/// Refused, and the error holds each of these words.
fn refusal(outcome: &Outcome, words: &[&str]) {
    outcome.refused();
    let text = outcome.errors().to_lowercase();
    for word in words {
        assert!(
            text.contains(&word.to_lowercase()),
            "the error speaks of {word:?}\n{outcome}"
        );
    }
}

fn kernel_that_is_missing_is_refused(t: &Trial) {
    t.env("MOAT_GUEST_KERNEL", "/no/such/kernel");
    refusal(&t.run(&t.bundle()), &["/no/such/kernel"]);
}

/// A folder: root could read a file of any mode.
fn kernel_that_cannot_be_read_is_refused(t: &Trial) {
    t.env("MOAT_GUEST_KERNEL", t.home().to_string_lossy());
    refusal(&t.run(&t.bundle()), &[&t.home().to_string_lossy()]);
}

fn kernel_that_is_none_is_refused(t: &Trial) {
    let file = t.home().join("garbage");
    fs::write(&file, "this is not an ELF image".repeat(1000)).expect("a file");
    t.env("MOAT_GUEST_KERNEL", file.to_string_lossy());
    refusal(&t.run(&t.bundle()), &["kernel"]);
}

fn init_that_is_missing_is_refused(t: &Trial) {
    t.env("MOAT_GUEST_INIT", "/no/such/init");
    refusal(&t.run(&t.bundle()), &["/no/such/init"]);
}

/// In a mount namespace of its own, where /dev/kvm is an ordinary file.
fn machine_without_kvm_is_refused(t: &Trial) {
    let bundle = t.bundle();
    let file = t.home().join("not-kvm");
    fs::write(&file, "").expect("a file");
    let plain = t.launch("run", &bundle, &t.id());
    let mut command = Command::new("unshare");
    command.args([
        "--mount",
        "--propagation",
        "private",
        "sh",
        "-c",
        "mount --bind \"$0\" /dev/kvm && exec \"$@\"",
    ]);
    command.arg(&file).arg(plain.get_program()).args(plain.get_args());
    refusal(
        &outcome::run(&mut command, Input::Null, Trial::limit()),
        &["/dev/kvm"],
    );
}

/// An init that is no program: the kernel comes up, finds nothing to run, and panics.
fn guest_that_panics_is_explained(t: &Trial) {
    let file = t.home().join("not-init");
    fs::write(&file, "neither a script nor ELF\n").expect("a file");
    t.env("MOAT_GUEST_INIT", file.to_string_lossy());
    refusal(&t.run(&t.bundle()), &["panic", "kernel"]);
}

fn broken(t: &Trial, end: End) -> Outcome {
    let file = t.home().join("broken-kernel");
    fs::write(&file, kernel("these are my last words\n", end)).expect("a file");
    t.env("MOAT_GUEST_KERNEL", file.to_string_lossy());
    t.run(&t.bundle())
}

fn guest_that_hangs_is_explained(t: &Trial) {
    t.env("MOAT_BOOT_TIMEOUT", "15"); // seconds
    let outcome = broken(t, End::Hang);
    assert!(!outcome.timed_out, "moat gives up by itself\n{outcome}");
    refusal(&outcome, &["these are my last words"]);
}

fn guest_that_falls_over_is_explained(t: &Trial) {
    refusal(&broken(t, End::TripleFault), &["these are my last words"]);
}
