//! The list of mounts: binds of folders and files, tmpfs, sub-mounts, order.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use moat_tests::runner::Scenario;
use moat_tests::scenario;
use moat_tests::trial::Trial;
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use serde_json::json;

pub const SCENARIOS: &[Scenario] = &[
    scenario!(writable_bind_shows_writes_on_both_sides),
    scenario!(readonly_bind_refuses_writes),
    scenario!(file_is_bound_over_a_file),
    scenario!(readonly_file_bind_refuses_writes),
    scenario!(tmpfs_has_its_size_and_mode_and_is_not_on_the_host),
    scenario!(mounts_are_made_in_their_order),
    scenario!(recursive_bind_shows_sub_mounts),
    scenario!(mount_points_that_are_not_there_are_made),
    scenario!(noexec_bind_refuses_programs),
    scenario!(bind_source_that_is_not_there_is_refused),
];

fn writable_bind_shows_writes_on_both_sides(t: &Trial) {
    let bundle = t
        .bundle()
        .sh("cat /volume/in; echo inside > /volume/out; chmod 640 /volume/out; mkdir /volume/d");
    let volume = bundle.volume("volume");
    fs::write(volume.join("in"), "outside\n").expect("a file");
    assert_eq!(
        t.run(&bundle.bind(&volume, "/volume", &["rw"])).ok().text(),
        "outside"
    );
    assert_eq!(
        fs::read_to_string(volume.join("out")).expect("the workload's file"),
        "inside\n"
    );
    let meta = fs::metadata(volume.join("out")).expect("the workload's file");
    assert_eq!((meta.mode() & 0o777, meta.uid(), meta.gid()), (0o640, 0, 0));
    assert!(volume.join("d").is_dir());
}

fn readonly_bind_refuses_writes(t: &Trial) {
    let bundle = t
        .bundle()
        .sh("cat /volume/in; echo x > /volume/in; echo x > /volume/new; rm /volume/in");
    let volume = bundle.volume("volume");
    fs::write(volume.join("in"), "outside\n").expect("a file");
    let outcome = t.run(&bundle.bind(&volume, "/volume", &["ro"]).engine_capabilities());
    assert_eq!(outcome.text(), "outside");
    assert_eq!(
        outcome.errors().matches("Read-only file system").count(),
        3,
        "{outcome}"
    );
    assert_eq!(
        fs::read_to_string(volume.join("in")).expect("the file"),
        "outside\n"
    );
}

fn file_is_bound_over_a_file(t: &Trial) {
    let bundle = t.bundle().sh(
        "cat /etc/injected /etc/passwd; echo more >> /etc/injected; grep -c injected /proc/self/mountinfo",
    );
    let file = bundle.path().join("injected");
    fs::write(&file, "from the host\n").expect("a file");
    let bundle = bundle
        .bind(&file, "/etc/injected", &["rw"])
        .bind(&file, "/etc/passwd", &["ro"]);
    let text = t.run(&bundle).ok().text();
    assert!(text.starts_with("from the host\nfrom the host\n"), "{text}");
    assert_eq!(
        fs::read_to_string(&file).expect("the file"),
        "from the host\nmore\n"
    );
    let beneath = fs::read_to_string(bundle.rootfs("/etc/passwd")).expect("the file");
    assert!(beneath.starts_with("root:"), "what was there is untouched");
}

fn readonly_file_bind_refuses_writes(t: &Trial) {
    let bundle = t
        .bundle()
        .sh("echo x > /etc/injected; cat /etc/injected")
        .engine_capabilities();
    let file = bundle.path().join("injected");
    fs::write(&file, "from the host\n").expect("a file");
    let outcome = t.run(&bundle.bind(&file, "/etc/injected", &["ro"])).ok();
    assert_eq!(outcome.text(), "from the host");
    assert!(outcome.errors().contains("Read-only file system"), "{outcome}");
}

fn tmpfs_has_its_size_and_mode_and_is_not_on_the_host(t: &Trial) {
    let script = "stat -c %a /scratch; dd if=/dev/zero of=/scratch/f bs=1024 count=2048 2>&1 | grep -c 'No space'; ls /scratch";
    let bundle = t.bundle().sh(script).mount(json!({
        "destination": "/scratch", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=1770", "size=1024k"]
    }));
    assert_eq!(t.run(&bundle).ok().text(), "1770\n1\nf");
    assert_eq!(
        fs::read_dir(bundle.rootfs("/scratch")).map_or(0, Iterator::count),
        0
    );
}

/// A bind below a tmpfs has to be made after it; one above hides what came before.
fn mounts_are_made_in_their_order(t: &Trial) {
    let bundle = t.bundle().sh("ls /a; cat /a/b/f; ls /c");
    let (volume, other) = (bundle.volume("volume"), bundle.volume("other"));
    fs::write(volume.join("f"), "deep\n").expect("a file");
    fs::write(other.join("top"), "").expect("a file");
    let tmpfs = |at: &str| json!({"destination": at, "type": "tmpfs", "source": "tmpfs"});
    let bundle = bundle
        .mount(tmpfs("/a"))
        .bind(&volume, "/a/b", &["rw"])
        .mount(tmpfs("/c"))
        .bind(&other, "/c", &["ro"]);
    assert_eq!(t.run(&bundle).ok().text(), "b\ndeep\ntop");
}

/// A mount of the host that goes when the scenario ends, however it ends.
struct Mounted<'p>(&'p Path);

impl Drop for Mounted<'_> {
    fn drop(&mut self) {
        let _ = unmount(self.0, UnmountFlags::DETACH);
    }
}

fn recursive_bind_shows_sub_mounts(t: &Trial) {
    let script = "ls /deep/sub /flat/sub; echo new > /deep/sub/made; test $(stat -c %d /deep) != $(stat -c %d /deep/sub); echo $?";
    let bundle = t.bundle().sh(script);
    let volume = bundle.volume("volume");
    let sub = volume.join("sub");
    fs::create_dir(&sub).expect("a folder");
    fs::write(sub.join("beneath"), "").expect("a file");
    mount("tmpfs", &sub, "tmpfs", MountFlags::empty(), None).expect("root may mount");
    let mounted = Mounted(&sub);
    fs::write(sub.join("on-top"), "").expect("a file");
    let bundle = bundle
        .bind(&volume, "/deep", &["rbind", "rw"])
        .bind(&volume, "/flat", &["rw"]);
    let outcome = t.run(&bundle).ok();
    assert_eq!(
        outcome.text(),
        "/deep/sub:\non-top\n\n/flat/sub:\nbeneath\n0",
        "{outcome}"
    );
    assert!(sub.join("made").exists(), "written through to the sub-mount");
    drop(mounted);
}

fn mount_points_that_are_not_there_are_made(t: &Trial) {
    let bundle = t.bundle().sh("ls /new/deep/folder; cat /other/new/file");
    let volume = bundle.volume("volume");
    fs::write(volume.join("f"), "file\n").expect("a file");
    let bundle =
        bundle
            .bind(&volume, "/new/deep/folder", &["ro"])
            .bind(&volume.join("f"), "/other/new/file", &["ro"]);
    assert_eq!(t.run(&bundle).ok().text(), "f\nfile");
}

fn noexec_bind_refuses_programs(t: &Trial) {
    let bundle = t.bundle().sh("/volume/true; echo $?");
    let volume = bundle.volume("volume");
    fs::copy(bundle.rootfs("/bin/busybox"), volume.join("true")).expect("a copy");
    let outcome = t
        .run(&bundle.bind(&volume, "/volume", &["noexec", "nosuid", "nodev"]))
        .ok();
    assert_eq!(outcome.text(), "126", "{outcome}");
}

fn bind_source_that_is_not_there_is_refused(t: &Trial) {
    let bundle = t.bundle();
    let missing = bundle.path().join("no-such-source");
    let outcome = t.run(&bundle.bind(&missing, "/volume", &["rw"]));
    outcome.refused();
    assert!(
        outcome.errors().contains("no-such-source"),
        "the error names it\n{outcome}"
    );
}
