//! What the workload is: arguments, environment, folder, user.

use std::fs;

use moat_tests::runner::Scenario;
use moat_tests::scenario;
use moat_tests::trial::Trial;
use serde_json::json;

pub const SCENARIOS: &[Scenario] = &[
    scenario!(arguments_arrive_as_they_are),
    scenario!(environment_is_the_configured_one),
    scenario!(program_is_found_by_path),
    scenario!(working_folder),
    scenario!(working_folder_that_is_not_there_is_made),
    scenario!(user_and_groups),
    scenario!(umask),
    scenario!(hostname),
    scenario!(is_the_first_process_and_sees_its_own_only),
    scenario!(has_only_the_standard_descriptors),
    scenario!(clock_agrees_with_the_host),
];

fn arguments_arrive_as_they_are(t: &Trial) {
    let words = ["", "a b", "quote\"'", "$HOME", "new\nline", "ümlaut", "-n"];
    let bundle = t.bundle().args(
        &[
            &["sh", "-c", "for a in \"$@\"; do echo \"[$a]\"; done", "name"],
            &words[..],
        ]
        .concat(),
    );
    let expected: Vec<String> = words.iter().map(|word| format!("[{word}]")).collect();
    assert_eq!(t.run(&bundle).ok().text(), expected.join("\n"));
}

fn environment_is_the_configured_one(t: &Trial) {
    let bundle = t.bundle().args(&["env"]).edit(|c| {
        c["process"]["env"] = json!(["PATH=/bin", "HOME=/work", "EMPTY=", "SPACE=a b=c"]);
    });
    let text = t.run(&bundle).ok().text();
    let mut lines: Vec<&str> = text.lines().collect();
    lines.sort_unstable();
    assert_eq!(lines, ["EMPTY=", "HOME=/work", "PATH=/bin", "SPACE=a b=c"]);
}

fn program_is_found_by_path(t: &Trial) {
    let bundle = t
        .bundle()
        .args(&["greet"])
        .edit(|c| c["process"]["env"] = json!(["PATH=/none:/work/bin:/bin"]));
    fs::create_dir(bundle.rootfs("/work/bin")).expect("a folder");
    fs::hard_link(bundle.rootfs("/bin/busybox"), bundle.rootfs("/work/bin/greet")).expect("a link");
    let outcome = t.run(&bundle);
    assert!(
        outcome.errors().contains("greet: applet not found"),
        "busybox was run by that name\n{outcome}"
    );
}

fn working_folder(t: &Trial) {
    let bundle = t
        .bundle()
        .args(&["pwd"])
        .edit(|c| c["process"]["cwd"] = json!("/work"));
    assert_eq!(t.run(&bundle).ok().text(), "/work");
}

fn working_folder_that_is_not_there_is_made(t: &Trial) {
    let bundle = t
        .bundle()
        .args(&["pwd"])
        .edit(|c| c["process"]["cwd"] = json!("/made/for/this"));
    assert_eq!(t.run(&bundle).ok().text(), "/made/for/this");
}

fn user_and_groups(t: &Trial) {
    let bundle = t.bundle().probe(&["identity"]).edit(|c| {
        c["process"]["user"] = json!({"uid": 1234, "gid": 2345, "additionalGids": [10, 4000]});
    });
    let outcome = t.run(&bundle).ok();
    assert_eq!(outcome.value("Uid"), "1234 1234 1234 1234");
    assert_eq!(outcome.value("Gid"), "2345 2345 2345 2345");
    assert_eq!(outcome.value("Groups"), "10 4000");
}

fn umask(t: &Trial) {
    let bundle = t
        .bundle()
        .probe(&["identity"])
        .edit(|c| c["process"]["user"]["umask"] = json!(0o27));
    assert_eq!(t.run(&bundle).ok().value("Umask"), "0027");
}

fn hostname(t: &Trial) {
    let bundle = t
        .bundle()
        .args(&["hostname"])
        .edit(|c| c["hostname"] = json!("a-name-of-its-own"));
    assert_eq!(t.run(&bundle).ok().text(), "a-name-of-its-own");
}

fn is_the_first_process_and_sees_its_own_only(t: &Trial) {
    let outcome = t.run(&t.bundle().sh("echo $$; ls /proc | grep -c '^[0-9]'")).ok();
    let text = outcome.text();
    let (pid, seen) = text.split_once('\n').expect("two lines");
    assert_eq!(pid, "1");
    assert!(
        seen.parse::<u32>().expect("a number") <= 3,
        "the shell, ls and grep\n{outcome}"
    );
}

fn has_only_the_standard_descriptors(t: &Trial) {
    assert_eq!(
        t.run(&t.bundle().probe(&["identity"])).ok().value("descriptors"),
        "0 1 2"
    );
}

fn clock_agrees_with_the_host(t: &Trial) {
    let now = || {
        std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .expect("after 1970")
            .as_secs()
    };
    let before = now();
    let bundle = t
        .bundle()
        .sh("touch /tmp/now; stat -c %Y /tmp/now; read t rest < /proc/uptime; echo $t");
    let text = t.run(&bundle).ok().text();
    let seen: u64 = text
        .lines()
        .next()
        .and_then(|line| line.parse().ok())
        .expect("seconds");
    assert!(
        seen + 2 >= before && seen <= now() + 2,
        "{seen} in the container, {before} to {} outside",
        now()
    );
}
