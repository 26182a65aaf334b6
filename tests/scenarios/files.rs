//! Files of the root filesystem and of volumes: what the workload writes is on the host, as it wrote it.

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::Path;

use moat_tests::bundle::Bundle;
use moat_tests::outcome::Input;
use moat_tests::runner::Scenario;
use moat_tests::scenario;
use moat_tests::tree;
use moat_tests::trial::Trial;

pub const SCENARIOS: &[Scenario] = &[
    scenario!(ten_thousand_files_are_on_the_host_as_written),
    scenario!(files_of_the_host_are_seen_as_they_are),
    scenario!(readonly_rootfs_refuses_writes),
    scenario!(posix_semantics_on_the_rootfs),
    scenario!(posix_semantics_on_a_volume),
    scenario!(large_file_round_trips),
    scenario!(symbolic_links_do_not_lead_out),
];

fn ten_thousand_files_are_on_the_host_as_written(t: &Trial) {
    const COUNT: u32 = 10_000;
    let bundle = t
        .bundle()
        .probe(&["tree", "/work", &COUNT.to_string()])
        .engine_capabilities();
    let _ = t.run_slowly(&bundle, Input::Null).ok();
    let differences = tree::differences(&bundle.rootfs("/work"), COUNT);
    assert!(differences.is_empty(), "{}", differences.join("\n"));
}

fn files_of_the_host_are_seen_as_they_are(t: &Trial) {
    let bundle = t
        .bundle()
        .sh("stat -c '%n %a %u %g %s %F' /work/*; readlink /work/link; cat /work/file")
        .engine_capabilities();
    fs::write(bundle.rootfs("/work/file"), "written outside\n").expect("a file");
    chown(bundle.rootfs("/work/file"), Some(1000), Some(2000)).expect("an owner");
    fs::set_permissions(bundle.rootfs("/work/file"), Permissions::from_mode(0o4751)).expect("a mode");
    fs::create_dir(bundle.rootfs("/work/folder")).expect("a folder");
    fs::set_permissions(bundle.rootfs("/work/folder"), Permissions::from_mode(0o1777)).expect("a mode");
    std::os::unix::fs::symlink("some/where", bundle.rootfs("/work/link")).expect("a link");
    let text = t.run(&bundle).ok().text();
    assert!(
        text.contains("/work/file 4751 1000 2000 16 regular file"),
        "{text}"
    );
    assert!(text.contains("/work/folder 1777 0 0 "), "{text}");
    assert!(text.contains("/work/link 777 0 0 10 symbolic link"), "{text}");
    assert!(text.ends_with("some/where\nwritten outside"), "{text}");
}

fn readonly_rootfs_refuses_writes(t: &Trial) {
    let script = "echo x > /work/new; rm /etc/passwd; mkdir /made; echo y > /dev/shm/ok && cat /dev/shm/ok";
    let bundle = t
        .bundle()
        .sh(script)
        .engine_capabilities()
        .edit(|c| c["root"]["readonly"] = true.into());
    let outcome = t.run(&bundle).ok();
    assert_eq!(outcome.text(), "y", "tmpfs mounts stay writable");
    assert_eq!(
        outcome.errors().matches("Read-only file system").count(),
        3,
        "{outcome}"
    );
    assert!(!bundle.rootfs("/work/new").exists() && !bundle.rootfs("/made").exists());
}

fn posix(t: &Trial, bundle: &Bundle) {
    let outcome = t.run(bundle);
    assert!(
        outcome.status == 0 && outcome.text().lines().count() >= 20,
        "{outcome}"
    );
}

fn posix_semantics_on_the_rootfs(t: &Trial) {
    posix(t, &t.bundle().probe(&["posix", "/work"]).engine_capabilities());
}

fn posix_semantics_on_a_volume(t: &Trial) {
    let bundle = t.bundle().probe(&["posix", "/volume"]).engine_capabilities();
    let volume = bundle.volume("volume");
    posix(t, &bundle.bind(&volume, "/volume", &["rbind", "rw"]));
}

fn large_file_round_trips(t: &Trial) {
    // 33 MiB and 7 bytes: more than any one request carries, and no multiple of a page.
    const SIZE: usize = (33 << 20) + 7;
    let bundle = t
        .bundle()
        .sh("cat /work/in > /work/out; sha256sum < /work/in; sha256sum < /work/out");
    // 251 is prime: no page holds the same bytes as its neighbours.
    let cycle: Vec<u8> = (0..251).collect();
    let mut content = cycle.repeat(SIZE / cycle.len() + 1);
    content.truncate(SIZE);
    fs::write(bundle.rootfs("/work/in"), &content).expect("a file");
    let text = t.run(&bundle).ok().text();
    let (read, written) = text.split_once('\n').expect("two sums");
    assert_eq!(read, written);
    assert!(
        fs::read(bundle.rootfs("/work/out")).expect("a file") == content,
        "the host sees the same bytes"
    );
}

fn symbolic_links_do_not_lead_out(t: &Trial) {
    let bundle = t.bundle().sh("cat /work/out /work/up; echo; ls /work/home");
    let secret = t.home().join("secret");
    fs::write(&secret, "of the host").expect("a file");
    let link = |to: &Path, name: &str| std::os::unix::fs::symlink(to, bundle.rootfs(name)).expect("a link");
    link(&secret, "/work/out");
    link(Path::new("../../../../../../../../etc/shadow"), "/work/up");
    link(t.home(), "/work/home");
    let outcome = t.run(&bundle);
    assert_eq!(outcome.text(), "", "{outcome}");
    assert_eq!(
        outcome.errors().matches("No such file or directory").count(),
        3,
        "{outcome}"
    );
    assert_eq!(fs::metadata(&secret).expect("the file").size(), 11);
}
