//! The command line itself: `spec`, `features`, `doctor`, and verbs that are cut short.

use std::fs;
use std::process::Stdio;
use std::thread;
use std::time::Duration;

use moat_tests::outcome::{self, Input};
use moat_tests::runner::Scenario;
use moat_tests::scenario;
use moat_tests::trial::{Isolation, Trial};
use serde_json::Value;

pub const SCENARIOS: &[Scenario] = &[
    scenario!(configuration_that_spec_writes_runs),
    scenario!(features_are_those_of_the_specification, needs: Moat),
    scenario!(doctor_speaks_of_both_isolations, needs: Moat),
    scenario!(verb_that_is_unknown_is_refused),
    scenario!(options_come_before_or_after_the_id, needs: Moat),
    scenario!(create_that_is_killed_is_cleaned_up_by_force, needs: Moat),
    scenario!(run_that_is_killed_is_cleaned_up_by_force, needs: Moat),
];

fn configuration_that_spec_writes_runs(t: &Trial) {
    let bundle = t.bundle();
    let mut command = t.command(&["spec"]);
    let _ = outcome::run(command.current_dir(bundle.path()), Input::Null, Trial::limit()).ok();
    let file = bundle.path().join("config.json");
    let text = fs::read_to_string(&file).expect("spec wrote config.json");
    let mut config: Value = serde_json::from_str(&text).expect("spec writes JSON");
    assert_eq!(config["process"]["args"], serde_json::json!(["sh"]));
    config["process"]["terminal"] = false.into();
    let bundle = bundle.edit(|c| *c = config);
    // It asks for a read-only root filesystem, as everybody's does.
    let outcome = t.run_with(
        &bundle,
        Input::Bytes(b"echo x > /work/f; id -u; exit 6\n".to_vec()),
    );
    assert_eq!((outcome.status, outcome.text()), (6, "0".to_owned()), "{outcome}");
    assert!(outcome.errors().contains("Read-only file system"), "{outcome}");
}

fn features_are_those_of_the_specification(t: &Trial) {
    let outcome = t.verb(&["features"]).ok();
    let features: Value = serde_json::from_slice(&outcome.stdout).expect("features prints JSON");
    for field in ["ociVersionMin", "ociVersionMax"] {
        assert!(
            features[field]
                .as_str()
                .is_some_and(|version| version.starts_with("1.")),
            "{field}\n{outcome}"
        );
    }
    assert!(
        features["mountOptions"]
            .as_array()
            .is_some_and(|all| all.iter().any(|o| o == "rbind")),
        "{outcome}"
    );
}

fn doctor_speaks_of_both_isolations(t: &Trial) {
    let outcome = t.verb(&["doctor"]);
    for word in ["process", "vm", "KVM", "cgroup"] {
        assert!(outcome.text().contains(word), "{word}\n{outcome}");
    }
    if t.isolation() == Isolation::Vm {
        assert_eq!(
            outcome.status, 0,
            "VMs run here, and the doctor says so\n{outcome}"
        );
    }
}

fn verb_that_is_unknown_is_refused(t: &Trial) {
    let outcome = t.verb(&["no-such-verb"]);
    assert_ne!(outcome.status, 0, "{outcome}");
}

fn options_come_before_or_after_the_id(t: &Trial) {
    let bundle = t.bundle().sh("exit 8");
    bundle.write();
    let (path, isolation) = (
        bundle.path().to_string_lossy().into_owned(),
        t.isolation().to_string(),
    );
    let (before, after) = (t.id(), t.id());
    let before = t.verb(&["run", "--bundle", &path, "--isolation", &isolation, &before]);
    let after = t.verb(&["run", &after, "--bundle", &path, "--isolation", &isolation]);
    assert_eq!((before.status, after.status), (8, 8), "{before}\n{after}");
}

/// Kills the command line after each of a row of pauses, from at once to after the container is up.
fn cut_short(t: &Trial, verb: &str) {
    let longest = match t.isolation() {
        Isolation::Process => Duration::from_millis(150),
        Isolation::Vm => Duration::from_millis(1500),
    };
    const CUTS: u32 = 12;
    for cut in 0..CUTS {
        let id = t.id();
        let mut command = t.launch(verb, &t.bundle().sh("sleep 1000"), &id);
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let mut child = command.spawn().expect("the runtime can be spawned");
        thread::sleep(longest * cut / CUTS);
        child.kill().expect("it runs, or has just ended");
        child.wait().expect("it can be waited for");
        // Where it got nowhere the id is unknown, which with --force is no error in runc either.
        let outcome = t.verb(&["delete", "--force", &id]);
        assert!(!outcome.timed_out && outcome.status <= 1, "cut {cut}: {outcome}");
        let left = t.left_behind();
        assert!(
            left.is_empty(),
            "cut {cut} left behind:\n{}\n{outcome}",
            left.join("\n")
        );
    }
}

fn create_that_is_killed_is_cleaned_up_by_force(t: &Trial) {
    cut_short(t, "create");
}

fn run_that_is_killed_is_cleaned_up_by_force(t: &Trial) {
    cut_short(t, "run");
}
