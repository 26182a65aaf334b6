//! create, start, state, kill, delete: the OCI life cycle, as engines drive it.

use std::fs;
use std::path::Path;
use std::time::Duration;

use moat_tests::runner::Scenario;
use moat_tests::scenario;
use moat_tests::trial::Trial;
use serde_json::json;

pub const SCENARIOS: &[Scenario] = &[
    scenario!(created_then_running_then_stopped),
    scenario!(state_has_the_fields_of_the_specification),
    scenario!(workload_waits_for_start),
    scenario!(process_of_the_pid_file_ends_as_the_workload),
    scenario!(list_shows_the_container),
    scenario!(every_signal_reaches_the_workload),
    scenario!(signals_are_taken_by_number_and_by_either_name),
    scenario!(signal_that_is_unknown_is_refused, needs: Moat), // crun 1.8 takes it for signal 0
    scenario!(created_container_can_be_killed_and_deleted),
    scenario!(start_of_a_running_container_is_refused),
    scenario!(start_of_a_stopped_container_is_refused),
    scenario!(kill_of_a_stopped_container_is_refused),
    scenario!(delete_of_a_running_container_is_refused),
    scenario!(delete_with_force_ends_a_running_container),
    scenario!(run_leaves_no_state),
    scenario!(two_containers_do_not_see_each_other),
    scenario!(sigkill_of_the_containers_process_ends_it),
];

fn created_then_running_then_stopped(t: &Trial) {
    let mut container = t.create(&t.bundle().sh("echo up; read line; exit 3"));
    assert_eq!(container.status(), "created");
    container.start();
    container.says("up");
    assert_eq!(container.status(), "running");
    drop(container.stdin.take());
    container.becomes("stopped");
    assert_eq!(container.wait(), 3);
    container.delete();
    container.verb(&["state"], &[]).refused();
}

fn state_has_the_fields_of_the_specification(t: &Trial) {
    let bundle = t
        .bundle()
        .sh("read line")
        .edit(|c| c["annotations"] = json!({"org.example.key": "value"}));
    let mut container = t.create(&bundle);
    let state = container.state();
    assert_eq!(state["id"], container.id);
    assert_eq!(state["status"], "created");
    assert_eq!(state["pid"], container.pid());
    assert_eq!(state["bundle"].as_str().map(Path::new), Some(bundle.path()));
    assert_eq!(state["annotations"]["org.example.key"], "value");
    assert!(
        state["ociVersion"]
            .as_str()
            .is_some_and(|version| version.starts_with("1.")),
        "{state}"
    );
    container.start();
    drop(container.stdin.take());
    container.becomes("stopped");
    assert!(
        matches!(container.state()["pid"].as_i64(), None | Some(0)),
        "no pid once stopped"
    );
    container.delete();
}

fn workload_waits_for_start(t: &Trial) {
    let bundle = t.bundle().sh("echo x > /work/ran; echo up");
    let container = t.create(&bundle);
    assert!(
        container.silent_for(Duration::from_millis(500)),
        "nothing runs before start"
    );
    assert!(!bundle.rootfs("/work/ran").exists());
    container.start();
    container.says("up");
    container.becomes("stopped");
    container.delete();
}

fn process_of_the_pid_file_ends_as_the_workload(t: &Trial) {
    let mut container = t.create(&t.bundle().sh("exit 77"));
    assert!(Path::new(&format!("/proc/{}", container.pid())).exists());
    container.start();
    assert_eq!(container.wait(), 77);
    container.delete();
}

fn list_shows_the_container(t: &Trial) {
    let container = t.create(&t.bundle().sh("read line"));
    let listed = t.verb(&["list", "--format", "json"]).ok();
    let listed: serde_json::Value = serde_json::from_slice(&listed.stdout).expect("list prints JSON");
    let entry = listed
        .as_array()
        .and_then(|all| all.iter().find(|c| c["id"] == container.id.as_str()));
    let entry = entry.expect("the container is listed");
    assert_eq!(entry["status"], "created");
    assert_eq!(entry["pid"], container.pid());
    assert!(t.verb(&["list"]).ok().text().contains(&container.id));
    let _ = container.verb(&["delete", "--force"], &[]).ok();
    assert!(!t.verb(&["list"]).ok().text().contains(&container.id));
}

fn every_signal_reaches_the_workload(t: &Trial) {
    let mut container = t.create(&t.bundle().probe(&["signals"]));
    container.start();
    container.says("ready");
    for signal in ["HUP", "INT", "TERM", "USR1"] {
        container.kill(signal);
        container.says(&format!("SIG{signal}"));
    }
    container.kill("KILL");
    assert_eq!(container.wait(), 128 + 9);
    container.becomes("stopped");
    container.delete();
}

fn signals_are_taken_by_number_and_by_either_name(t: &Trial) {
    let mut container = t.spawn(&t.bundle().probe(&["signals"]));
    container.says("ready");
    for (word, name) in [("10", "SIGUSR1"), ("SIGHUP", "SIGHUP"), ("USR2", "SIGUSR2")] {
        container.kill(word);
        container.says(name);
    }
    let _ = container.verb(&["kill"], &["9"]).ok();
    assert_eq!(container.wait(), 128 + 9);
}

fn signal_that_is_unknown_is_refused(t: &Trial) {
    let container = t.create(&t.bundle().probe(&["signals"]));
    container.verb(&["kill"], &["NOSUCHSIGNAL"]).refused();
    assert_eq!(container.status(), "created", "and does nothing");
    let _ = container.verb(&["delete", "--force"], &[]).ok();
}

fn created_container_can_be_killed_and_deleted(t: &Trial) {
    let container = t.create(&t.bundle().sh("echo never"));
    container.kill("KILL");
    container.becomes("stopped");
    container.delete();
}

fn start_of_a_running_container_is_refused(t: &Trial) {
    let mut container = t.create(&t.bundle().sh("echo up; read line; echo end"));
    container.start();
    container.says("up");
    container.verb(&["start"], &[]).refused();
    drop(container.stdin.take());
    container.says("end");
    container.becomes("stopped");
    container.delete();
}

fn start_of_a_stopped_container_is_refused(t: &Trial) {
    let container = t.create(&t.bundle().sh("exit 0"));
    container.start();
    container.becomes("stopped");
    container.verb(&["start"], &[]).refused();
    container.delete();
}

fn kill_of_a_stopped_container_is_refused(t: &Trial) {
    let container = t.create(&t.bundle().sh("exit 0"));
    container.start();
    container.becomes("stopped");
    container.verb(&["kill"], &["TERM"]).refused();
    container.delete();
}

fn delete_of_a_running_container_is_refused(t: &Trial) {
    let mut container = t.create(&t.bundle().sh("echo up; read line; echo end"));
    container.start();
    container.says("up");
    container.verb(&["delete"], &[]).refused();
    assert_eq!(container.status(), "running");
    drop(container.stdin.take());
    container.says("end");
    container.becomes("stopped");
    container.delete();
}

fn delete_with_force_ends_a_running_container(t: &Trial) {
    let mut container = t.create(&t.bundle().sh("echo up; sleep 1000"));
    container.start();
    container.says("up");
    let _ = container.verb(&["delete", "--force"], &[]).ok();
    assert_eq!(container.wait(), 128 + 9);
    container.verb(&["state"], &[]).refused();
}

fn run_leaves_no_state(t: &Trial) {
    let _ = t.run(&t.bundle().args(&["true"])).ok();
    let left = fs::read_dir(t.root()).map_or(0, Iterator::count);
    assert_eq!(left, 0, "run deletes what it made");
}

fn two_containers_do_not_see_each_other(t: &Trial) {
    let script = "echo up; read line; echo /proc/[0-9]*; ls /work";
    let mut one = t.spawn(&t.bundle().sh(script));
    one.says("up");
    let other = t
        .run(&t.bundle().sh("touch /work/of-the-other; echo /proc/[0-9]*"))
        .ok();
    assert_eq!(other.text(), "/proc/1");
    drop(one.stdin.take());
    one.says("/proc/1");
    assert_eq!(one.wait(), 0);
}

/// A process supervisor that knows only the pid can still end the container.
fn sigkill_of_the_containers_process_ends_it(t: &Trial) {
    let mut container = t.create(&t.bundle().sh("echo up; sleep 1000"));
    container.start();
    container.says("up");
    let pid = rustix::process::Pid::from_raw(container.pid()).expect("a pid");
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).expect("root may kill");
    assert_eq!(container.wait(), 128 + 9);
    container.becomes("stopped");
    container.delete();
}
