//! What cannot be done is refused: exit status 1, a clear error, and nothing left behind (the trial looks).

use std::fs;

use moat_tests::runner::Scenario;
use moat_tests::scenario;
use moat_tests::trial::Trial;
use serde_json::json;

pub const SCENARIOS: &[Scenario] = &[
    scenario!(configuration_that_is_no_json),
    scenario!(configuration_that_is_missing),
    scenario!(configuration_without_a_process),
    scenario!(bundle_that_is_missing),
    scenario!(rootfs_that_is_missing),
    scenario!(id_that_is_taken),
    scenario!(id_that_is_unknown),
    scenario!(ids_that_are_no_names),
    scenario!(isolation_that_is_unknown, needs: Moat),
    scenario!(annotation_of_an_isolation_that_is_unknown, needs: Moat),
    scenario!(error_in_the_log_is_what_engines_read),
];

/// Both verbs that take a bundle refuse it, and their errors hold `word`.
fn both_refuse(t: &Trial, prepare: impl Fn() -> std::process::Command, word: &str) {
    let outcome = moat_tests::outcome::run(&mut prepare(), moat_tests::outcome::Input::Null, Trial::limit());
    outcome.refused();
    assert!(
        !t.is_moat() || outcome.errors().contains(word), // how others word it is not ours to say
        "the error speaks of {word}\n{outcome}"
    );
    assert_eq!(
        fs::read_dir(t.root()).map_or(0, Iterator::count),
        0,
        "no state is left\n{outcome}"
    );
}

fn configuration_that_is_no_json(t: &Trial) {
    for verb in ["run", "create"] {
        let bundle = t.bundle();
        let mut command = Some(t.launch(verb, &bundle, &t.id()));
        fs::write(bundle.path().join("config.json"), "{ \"ociVersion\": ").expect("a file");
        let outcome = moat_tests::outcome::run(
            command.as_mut().expect("a command"),
            moat_tests::outcome::Input::Null,
            Trial::limit(),
        );
        outcome.refused();
    }
}

fn configuration_that_is_missing(t: &Trial) {
    let bundle = t.bundle();
    both_refuse(
        t,
        || {
            let command = t.launch("run", &bundle, &t.id());
            fs::remove_file(bundle.path().join("config.json")).expect("it was written");
            command
        },
        "config.json",
    );
}

fn configuration_without_a_process(t: &Trial) {
    for verb in ["run", "create"] {
        let bundle = t.bundle().edit(|c| c["process"]["args"] = json!([]));
        both_refuse(t, || t.launch(verb, &bundle, &t.id()), "args");
    }
}

fn bundle_that_is_missing(t: &Trial) {
    let missing = t.home().join("no-such-bundle");
    let missing = missing.to_string_lossy();
    both_refuse(
        t,
        || t.command(&["run", "--bundle", &missing, &t.id()]),
        "no-such-bundle",
    );
}

fn rootfs_that_is_missing(t: &Trial) {
    for verb in ["run", "create"] {
        let bundle = t.bundle().edit(|c| c["root"]["path"] = json!("no-such-rootfs"));
        both_refuse(t, || t.launch(verb, &bundle, &t.id()), "no-such-rootfs");
    }
}

fn id_that_is_taken(t: &Trial) {
    let bundle = t.bundle().sh("echo up; read line; echo end");
    let mut container = t.create(&bundle);
    for verb in ["run", "create"] {
        let mut again = t.launch(verb, &bundle, &container.id);
        let outcome = moat_tests::outcome::run(&mut again, moat_tests::outcome::Input::Null, Trial::limit());
        outcome.refused();
    }
    assert_eq!(container.status(), "created", "the first is as it was");
    container.start();
    container.says("up");
    drop(container.stdin.take());
    container.says("end");
    container.becomes("stopped");
    container.delete();
}

fn id_that_is_unknown(t: &Trial) {
    for verb in [&["state"][..], &["start"], &["delete"]] {
        t.verb(&[verb, &["no-such-container"]].concat()).refused();
    }
    t.verb(&["kill", "no-such-container", "KILL"]).refused();
}

fn ids_that_are_no_names(t: &Trial) {
    let bundle = t.bundle();
    for id in ["../outside", "a/b", "..", ""] {
        let outcome = moat_tests::outcome::run(
            &mut t.launch("run", &bundle, id),
            moat_tests::outcome::Input::Null,
            Trial::limit(),
        );
        assert_ne!(outcome.status, 0, "id {id:?}\n{outcome}");
    }
    assert!(!t.home().join("outside").exists());
}

fn isolation_that_is_unknown(t: &Trial) {
    let bundle = t.bundle();
    bundle.write();
    let path = bundle.path().to_string_lossy().into_owned();
    let outcome = t.verb(&["run", "--bundle", &path, "--isolation", "enclave", &t.id()]);
    assert_ne!(outcome.status, 0, "{outcome}");
    assert!(outcome.errors().contains("enclave"), "{outcome}");
}

fn annotation_of_an_isolation_that_is_unknown(t: &Trial) {
    let bundle = t
        .bundle()
        .edit(|c| c["annotations"] = json!({"io.moat.isolation": "enclave"}));
    both_refuse(t, || t.launch("run", &bundle, &t.id()), "enclave");
}

/// containerd and conmon read the last line of the log as JSON with `level` and `msg`.
fn error_in_the_log_is_what_engines_read(t: &Trial) {
    let log = t.home().join("log.json");
    let path = log.to_string_lossy().into_owned();
    let outcome = t.verb(&[
        "--log",
        &path,
        "--log-format",
        "json",
        "state",
        "no-such-container",
    ]);
    assert_eq!(outcome.status, 1, "{outcome}");
    let text = fs::read_to_string(&log).unwrap_or_else(|e| panic!("no log: {e}\n{outcome}"));
    let last = text.lines().last().unwrap_or_default();
    let record: serde_json::Value = serde_json::from_str(last).unwrap_or_else(|e| panic!("{last:?}: {e}"));
    assert_eq!(record["level"], "error", "{record}");
    assert!(
        record["msg"].as_str().is_some_and(|text| !text.is_empty()),
        "{record}"
    );
}
