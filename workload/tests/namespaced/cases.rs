//! The cases.

use std::{
    fs,
    os::unix::fs::{PermissionsExt, symlink},
};

use moat_protocol::workload_spec::{
    CapabilitySets, DeviceKind, DeviceSpec, RlimitSpec, SeccompSpec, TerminalSpec,
};

use crate::container::{Bundle, CLONE_NEWUSER, MS_NODEV, MS_NOEXEC, MS_NOSUID, MS_RDONLY, bind, filesystem};

type Case = (&'static str, fn());

macro_rules! cases {
    ($($name:ident)*) => { &[$((stringify!($name), $name as fn())),*] };
}

/// Every case.
pub const ALL: &[Case] = cases! {
    exit_status_and_signal_arrive
    the_container_has_its_own_namespaces
    standard_devices_and_links_are_there
    masked_paths_are_empty_and_readonly_paths_refuse_writes
    the_old_root_is_gone
    a_readonly_root_refuses_writes
    bind_mounts_are_writable_or_not_as_asked
    files_are_bound_on_new_files
    a_tmpfs_begins_with_what_the_image_has
    a_readonly_tmpfs_holds_later_mounts_and_devices
    mounts_are_in_the_order_of_the_configuration
    links_in_the_image_do_not_lead_out_of_it
    proc_behind_a_link_is_refused
    a_masked_path_behind_a_link_hides_what_it_leads_to
    ids_capabilities_and_limits_hold
    an_unprivileged_user_keeps_ambient_capabilities
    an_unprivileged_user_can_reopen_its_streams
    capabilities_that_the_kernel_lacks_are_no_error
    home_comes_from_the_containers_passwd
    the_working_directory_is_made
    a_working_directory_through_a_leaked_descriptor_is_refused
    no_descriptor_leaks
    a_missing_program_is_named_as_runc_does
    a_missing_interpreter_is_told_apart
    a_missing_bind_source_is_named
    something_else_at_a_device_path_is_refused
    kernel_parameters_are_set
    a_kernel_parameter_is_not_written_through_a_cover
    a_seccomp_filter_holds
    a_seccomp_filter_without_no_new_privs_holds
    a_terminal_is_the_console
    a_terminal_without_devpts_is_refused
    in_a_user_namespace_devices_are_the_hosts
    without_pivot_the_root_is_entered_as_well
    the_host_sees_no_mount
    sigpipe_has_its_default_action
};

/// Runs a script that must end well, and gives what it wrote.
fn output(bundle: &Bundle) -> String {
    let outcome = bundle.run();
    assert_eq!(outcome.status, 0, "{outcome:?}");
    outcome.out
}

/// A script of lines `claim && echo yes || echo NO: claim`.
fn holds(bundle: &mut Bundle, claims: &[&str]) {
    let lines: Vec<String> = claims
        .iter()
        .map(|claim| format!("if {claim}; then :; else echo 'not true: {claim}'; fi"))
        .collect();
    bundle.spec.process.args = vec!["sh".into(), "-c".into(), lines.join("\n")];
    let outcome = bundle.run();
    assert_eq!((outcome.status, outcome.out.as_str()), (0, ""), "{outcome:?}");
}

/// The chain of errors of a container that can't be set up.
fn refusal(bundle: &Bundle) -> String {
    let outcome = bundle.run();
    assert_eq!(outcome.status, 200, "{outcome:?}");
    outcome.err
}

fn exit_status_and_signal_arrive() {
    assert_eq!(Bundle::new("exit 3").run().status, 3);
    // pid 1 of a pid namespace cannot kill itself, but its child can be killed
    assert_eq!(Bundle::new("sh -c 'kill -9 $$'; exit $?").run().status, 137);
}

fn the_container_has_its_own_namespaces() {
    let seen = output(&Bundle::new(
        "echo $$; hostname; ls -d /proc/[0-9]* | wc -l; cat /proc/self/cgroup | tail -1",
    ));
    assert_eq!(seen, "1\nmoat-test\n3\n0::/\n");
}

fn standard_devices_and_links_are_there() {
    let mut bundle = Bundle::new("");
    bundle.spec.devices.push(DeviceSpec {
        path: "/dev/own/pipe".into(),
        kind: DeviceKind::Fifo,
        mode: 0o640,
        uid: 5,
        gid: 6,
    });
    holds(
        &mut bundle,
        &[
            "test -c /dev/null && echo x > /dev/null",
            "test $(stat -c %t:%T:%a /dev/urandom) = 1:9:666",
            "test $(head -c 4 /dev/zero | wc -c) = 4",
            "test $(readlink /dev/fd) = /proc/self/fd",
            "test $(readlink /dev/ptmx) = pts/ptmx && test -c /dev/ptmx",
            "test $(echo deep | cat /dev/stdin) = deep",
            "test -p /dev/own/pipe && test $(stat -c %u:%g:%a /dev/own/pipe) = 5:6:640",
            "touch /dev/shm/x && test $(stat -c %a /dev/shm) = 1777",
        ],
    );
}

fn masked_paths_are_empty_and_readonly_paths_refuse_writes() {
    let mut bundle = Bundle::new("");
    fs::create_dir(bundle.root("secret")).unwrap();
    fs::write(bundle.root("secret/key"), "k").unwrap();
    fs::create_dir(bundle.root("more")).unwrap();
    fs::write(bundle.root("more/key"), "k").unwrap();
    bundle
        .spec
        .masked_paths
        .extend(["/secret".into(), "/more".into()]);
    holds(
        &mut bundle,
        &[
            "test $(stat -c %t:%T /proc/keys) = 1:3 && test -z \"$(cat /proc/keys)\"",
            "test $(stat -c %t:%T /proc/interrupts) = 1:3",
            "test -d /secret && test -z \"$(ls -A /secret)\" && test -z \"$(ls -A /more)\"",
            "! touch /secret/x 2>/dev/null",
            "! echo 1 2>/dev/null > /proc/sys/kernel/panic",
            "grep -q ' /proc/sys ro,' /proc/self/mountinfo",
        ],
    );
}

fn the_old_root_is_gone() {
    let mounts = output(&Bundle::new("cat /proc/self/mountinfo"));
    // root, five file systems below it, sysfs with cgroup, and the hidden and protected paths
    assert!(mounts.lines().count() < 25, "{mounts}");
    assert!(
        mounts
            .lines()
            .filter(|line| line.split(' ').nth(4) == Some("/"))
            .count()
            == 1,
        "{mounts}"
    );
    assert!(!mounts.contains("shared:"), "{mounts}");
}

fn a_readonly_root_refuses_writes() {
    let mut bundle = Bundle::new("");
    bundle.spec.root.readonly = true;
    holds(
        &mut bundle,
        &["! touch /x 2>/dev/null", "touch /dev/x", "touch /dev/shm/x"],
    );
}

fn bind_mounts_are_writable_or_not_as_asked() {
    let mut bundle = Bundle::new("");
    let volume = bundle.beside("volume");
    fs::create_dir(&volume).unwrap();
    bundle.spec.mounts.push(bind(&volume, "/rw", 0));
    bundle.spec.mounts.push(bind(
        &volume,
        "/deep/ro",
        MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC,
    ));
    holds(
        &mut bundle,
        &[
            "echo written > /rw/file",
            "test $(cat /deep/ro/file) = written",
            "! touch /deep/ro/x 2>/dev/null",
            "grep -q ' /deep/ro ro,nosuid,nodev,noexec,' /proc/self/mountinfo",
        ],
    );
    assert_eq!(fs::read_to_string(volume.join("file")).unwrap(), "written\n");
}

fn files_are_bound_on_new_files() {
    let mut bundle = Bundle::new("cat /etc/new/resolv.conf");
    fs::write(bundle.beside("resolv"), "nameserver ::1\n").unwrap();
    bundle
        .spec
        .mounts
        .push(bind(&bundle.beside("resolv"), "/etc/new/resolv.conf", MS_RDONLY));
    assert_eq!(output(&bundle), "nameserver ::1\n");
}

fn a_tmpfs_begins_with_what_the_image_has() {
    let mut bundle = Bundle::new("");
    fs::create_dir_all(bundle.root("data/sub")).unwrap();
    fs::write(bundle.root("data/sub/file"), "image\n").unwrap();
    let mut copied = filesystem("tmpfs", "/data", 0, "");
    copied.copy_up = true;
    bundle.spec.mounts.push(copied);
    holds(
        &mut bundle,
        &[
            "test $(cat /data/sub/file) = image",
            "echo changed > /data/sub/file",
        ],
    );
    assert_eq!(
        fs::read_to_string(bundle.root("data/sub/file")).unwrap(),
        "image\n"
    );
}

fn a_readonly_tmpfs_holds_later_mounts_and_devices() {
    let mut bundle = Bundle::new("");
    bundle.spec.mounts[1] = filesystem("tmpfs", "/dev", MS_NOSUID | MS_RDONLY, "mode=755");
    holds(
        &mut bundle,
        &[
            "! touch /dev/x 2>/dev/null",
            "test -c /dev/null",
            "touch /dev/shm/x",
        ],
    );
}

fn mounts_are_in_the_order_of_the_configuration() {
    let mut bundle = Bundle::new("ls /run /run/volume");
    fs::create_dir(bundle.beside("volume")).unwrap();
    fs::write(bundle.beside("volume/inside"), "").unwrap();
    bundle.spec.mounts.push(filesystem("tmpfs", "/run", 0, ""));
    bundle
        .spec
        .mounts
        .push(bind(&bundle.beside("volume"), "/run/volume", 0));
    assert_eq!(output(&bundle), "/run:\nvolume\n\n/run/volume:\ninside\n");
}

/// An image may hold any link at a mount's destination.
fn links_in_the_image_do_not_lead_out_of_it() {
    let bundle = Bundle::new("ls /outside");
    let outside = bundle.beside("outside");
    fs::create_dir(&outside).unwrap();
    for (link, target) in [
        ("abs", outside.to_str().unwrap()),
        ("rel", "../../../../../../../../.."),
        ("dangling", "/a/b"),
    ] {
        symlink(target, bundle.root(link)).unwrap();
    }
    let mut bundle = bundle;
    bundle.spec.mounts.push(filesystem("tmpfs", "/abs/x", 0, ""));
    bundle.spec.mounts.push(filesystem("tmpfs", "/rel/y", 0, ""));
    bundle.spec.mounts.push(filesystem("tmpfs", "/dangling", 0, ""));
    let in_root = outside.to_str().unwrap().to_owned();
    holds(
        &mut bundle,
        &[
            &format!("grep -q ' {in_root}/x rw' /proc/self/mountinfo"),
            "grep -q ' /y rw' /proc/self/mountinfo",
            "grep -q ' /a/b rw' /proc/self/mountinfo",
        ],
    );
    assert_eq!(
        fs::read_dir(outside).unwrap().count(),
        0,
        "nothing was made outside"
    );
}

/// CVE-2019-19921, CVE-2023-27561: with procfs elsewhere, `/proc` is what the image says it is.
fn proc_behind_a_link_is_refused() {
    let bundle = Bundle::new("");
    fs::remove_dir(bundle.root("proc")).unwrap();
    fs::create_dir(bundle.root("evil")).unwrap();
    symlink("evil", bundle.root("proc")).unwrap();
    let refusal = refusal(&bundle);
    assert!(refusal.contains(r#"cannot mount proc at "/proc""#), "{refusal}");
}

/// CVE-2025-31133: neither `/dev/null` of the image nor a link may stand in for the mask.
fn a_masked_path_behind_a_link_hides_what_it_leads_to() {
    let mut bundle = Bundle::new("");
    fs::write(bundle.root("etc/key"), "secret").unwrap();
    symlink("/etc/key", bundle.root("key")).unwrap();
    bundle.spec.masked_paths.push("/key".into());
    bundle.spec.mounts.remove(1); // /dev is the image's
    bundle
        .spec
        .mounts
        .retain(|mount| !mount.destination.starts_with("/dev"));
    bundle.spec.devices.clear();
    symlink("/proc/sys/kernel/core_pattern", bundle.root("dev/null")).unwrap();
    holds(
        &mut bundle,
        &[
            "test $(stat -c %t:%T /etc/key) = 1:3",
            "test $(stat -c %t:%T /proc/keys) = 1:3",
        ],
    );
}

fn ids_capabilities_and_limits_hold() {
    let mut bundle = Bundle::new("");
    let process = &mut bundle.spec.process;
    process.user.uid = 1000;
    process.user.gid = 1001;
    process.user.additional_gids = vec![5, 6];
    process.user.umask = Some(0o027);
    process.rlimits = vec![RlimitSpec {
        resource: 7,
        soft: 100,
        hard: 200,
    }];
    process.oom_score_adj = Some(500);
    holds(
        &mut bundle,
        &[
            "test \"$(grep Uid /proc/self/status)\" = \"$(printf 'Uid:\\t1000\\t1000\\t1000\\t1000')\"",
            "test \"$(grep Gid /proc/self/status)\" = \"$(printf 'Gid:\\t1001\\t1001\\t1001\\t1001')\"",
            "test \"$(grep Groups /proc/self/status)\" = \"$(printf 'Groups:\\t5 6 ')\"",
            "grep -q 'CapEff:.0000000000000000' /proc/self/status",
            "grep -q 'CapBnd:.00000000a80425fb' /proc/self/status",
            "grep -q 'NoNewPrivs:.1' /proc/self/status",
            "test $(umask) = 0027",
            "test $(ulimit -Sn):$(ulimit -Hn) = 100:200",
            "test $(cat /proc/self/oom_score_adj) = 500",
        ],
    );
}

fn an_unprivileged_user_keeps_ambient_capabilities() {
    let mut bundle = Bundle::new("grep -E 'Cap(Inh|Prm|Eff|Bnd|Amb)' /proc/self/status | cut -f2 | uniq");
    let net_bind = 1 << 10;
    bundle.spec.process.user.uid = 1000;
    bundle.spec.process.capabilities = Some(CapabilitySets {
        bounding: net_bind,
        effective: net_bind,
        permitted: net_bind,
        inheritable: net_bind,
        ambient: net_bind,
    });
    assert_eq!(output(&bundle), "0000000000000400\n");
}

fn an_unprivileged_user_can_reopen_its_streams() {
    let mut bundle = Bundle::new("echo out > /dev/stdout; echo err > /dev/stderr");
    bundle.spec.process.user.uid = 1000;
    let outcome = bundle.run();
    assert_eq!((outcome.out.as_str(), outcome.err.as_str()), ("out\n", "err\n"));
}

/// config.md: "runtimes SHOULD NOT fail if the container configuration requests capabilities that cannot
/// be granted".
fn capabilities_that_the_kernel_lacks_are_no_error() {
    let mut bundle = Bundle::new("grep CapEff /proc/self/status");
    let all = u64::MAX;
    bundle.spec.process.capabilities = Some(CapabilitySets {
        bounding: all,
        effective: all,
        permitted: all,
        inheritable: 0,
        ambient: 0,
    });
    let own = fs::read_to_string("/proc/self/status").unwrap();
    let own = own
        .lines()
        .find(|line| line.starts_with("CapPrm"))
        .unwrap()
        .replace("Prm", "Eff");
    assert_eq!(output(&bundle).trim_end(), own);
}

fn home_comes_from_the_containers_passwd() {
    for (uid, home) in [(0, "/root\n"), (1000, "/srv/web\n"), (77, "/\n")] {
        let mut bundle = Bundle::new("echo $HOME");
        bundle.spec.process.user.uid = uid;
        assert_eq!(output(&bundle), home);
    }
    let mut bundle = Bundle::new("echo $HOME");
    bundle.spec.process.env.push("HOME=/given".into());
    assert_eq!(output(&bundle), "/given\n");
}

fn the_working_directory_is_made() {
    let mut bundle = Bundle::new("pwd");
    bundle.spec.process.cwd = "/new/work/dir".into();
    assert_eq!(output(&bundle), "/new/work/dir\n");
}

/// CVE-2024-21626: a descriptor of a host directory, open in the runtime, is no way out.
fn a_working_directory_through_a_leaked_descriptor_is_refused() {
    let leak = fs::File::open("/").unwrap();
    let number = std::os::fd::AsRawFd::as_raw_fd(&leak);
    let mut bundle = Bundle::new("cat etc/hostname");
    bundle.spec.process.cwd = format!("/proc/self/fd/{number}");
    let refusal = refusal(&bundle);
    assert!(refusal.contains("outside of the container's root"), "{refusal}");
}

/// CVE-2024-21626 again: the program inherits its streams and nothing else.
fn no_descriptor_leaks() {
    let leak = fs::File::open("/").unwrap();
    rustix::io::fcntl_setfd(&leak, rustix::io::FdFlags::empty()).unwrap();
    // the fourth is the directory that ls reads
    assert_eq!(output(&Bundle::new("exec ls /proc/self/fd")), "0\n1\n2\n3\n");
}

fn a_missing_program_is_named_as_runc_does() {
    let mut bundle = Bundle::new("");
    bundle.spec.process.args = vec!["nonesuch".into()];
    assert_eq!(
        refusal(&bundle),
        r#"exec: "nonesuch": executable file not found in $PATH"#
    );
    bundle.spec.process.args = vec!["/bin/nonesuch".into()];
    assert!(refusal(&bundle).contains("no such file or directory"));
    bundle.spec.process.args = vec!["/etc/passwd".into()];
    assert!(refusal(&bundle).contains("permission denied"));
}

fn a_missing_interpreter_is_told_apart() {
    let bundle = Bundle::new("");
    let script = bundle.root("bin/script");
    fs::write(&script, "#!/no/such/interpreter\n").unwrap();
    fs::set_permissions(&script, PermissionsExt::from_mode(0o755)).unwrap();
    let mut bundle = bundle;
    bundle.spec.process.args = vec!["script".into()];
    let refusal = refusal(&bundle);
    assert!(
        refusal.contains("interpreter or dynamic loader is missing"),
        "{refusal}"
    );
}

fn a_missing_bind_source_is_named() {
    let mut bundle = Bundle::new("");
    bundle
        .spec
        .mounts
        .push(bind(&bundle.beside("none"), "/data", MS_RDONLY));
    let refusal = refusal(&bundle);
    assert!(refusal.contains("cannot mount recursive bind of"), "{refusal}");
    assert!(
        refusal.contains(r#"none" at "/data" (flags 0x1): open the source: No such file"#),
        "{refusal}"
    );
}

fn something_else_at_a_device_path_is_refused() {
    let mut bundle = Bundle::new("");
    fs::create_dir(bundle.root("nodes")).unwrap();
    symlink("/etc/passwd", bundle.root("nodes/null")).unwrap();
    let mut device = bundle.spec.devices[0].clone();
    device.path = "/nodes/null".into();
    bundle.spec.devices.push(device);
    let refusal = refusal(&bundle);
    assert_eq!(
        refusal,
        r#""/nodes/null" is already there and is not device character 1:3"#
    );
}

fn kernel_parameters_are_set() {
    let mut bundle = Bundle::new("cat /proc/sys/kernel/msgmax /proc/sys/net/ipv4/ip_forward");
    bundle.spec.sysctls = vec![
        ("kernel.msgmax".into(), "1234".into()),
        ("net.ipv4.ip_forward".into(), "1".into()),
    ];
    assert_eq!(output(&bundle), "1234\n1\n");
    bundle.spec.sysctls = vec![("kernel.nonesuch".into(), "1".into())];
    assert!(refusal(&bundle).contains(r#"cannot set kernel parameter kernel.nonesuch to "1""#));
}

/// CVE-2025-52881: a mount over a file of procfs would receive what is written.
fn a_kernel_parameter_is_not_written_through_a_cover() {
    let mut bundle = Bundle::new("");
    fs::write(bundle.beside("cover"), "").unwrap();
    bundle
        .spec
        .mounts
        .push(bind(&bundle.beside("cover"), "/proc/sys/kernel/msgmax", 0));
    bundle.spec.sysctls = vec![("kernel.msgmax".into(), "1234".into())];
    let refusal = refusal(&bundle);
    assert!(
        refusal.contains("something is mounted over /proc/sys/kernel/msgmax"),
        "{refusal}"
    );
    assert_eq!(fs::read_to_string(bundle.beside("cover")).unwrap(), "");
}

/// `mkdir` (83) fails with ENOTUNIQ (76); all else is allowed.
fn filter() -> SeccompSpec {
    let instructions: [(u16, u8, u8, u32); 4] = [
        (0x20, 0, 0, 0),           // load seccomp_data.nr
        (0x15, 0, 1, 83),          // mkdir?
        (0x06, 0, 0, 0x0005_004c), // SECCOMP_RET_ERRNO | ENOTUNIQ
        (0x06, 0, 0, 0x7fff_0000), // SECCOMP_RET_ALLOW
    ];
    let mut program = Vec::new();
    for (code, jt, jf, k) in instructions {
        program.extend(code.to_ne_bytes());
        program.extend([jt, jf]);
        program.extend(k.to_ne_bytes());
    }
    SeccompSpec { program, flags: 0 }
}

fn a_seccomp_filter_holds() {
    let mut bundle = Bundle::new("mkdir /made 2>&1; grep -E '^Seccomp:' /proc/self/status");
    bundle.spec.process.seccomp = Some(filter());
    let refused = "mkdir: can't create directory '/made': Name not unique on network\n";
    assert_eq!(output(&bundle), format!("{refused}Seccomp:\t2\n"));
}

fn a_seccomp_filter_without_no_new_privs_holds() {
    let mut bundle =
        Bundle::new("grep -E '^(CapEff|CapPrm|NoNewPrivs|Seccomp):' /proc/self/status | cut -f2");
    bundle.spec.process.seccomp = Some(filter());
    bundle.spec.process.no_new_privileges = false;
    assert_eq!(
        output(&bundle),
        "00000000a80425fb\n00000000a80425fb\n0\n2\n",
        "CAP_SYS_ADMIN is gone again"
    );
    bundle.spec.process.user.uid = 1000;
    assert_eq!(output(&bundle), "0000000000000000\n0000000000000000\n0\n2\n");
}

fn a_terminal_is_the_console() {
    let mut bundle =
        Bundle::new("tty; stty size; stat -c %t:%T:%u /dev/console /dev/pts/0; echo x > /dev/tty");
    bundle.spec.process.terminal = Some(TerminalSpec {
        rows: 33,
        columns: 101,
    });
    bundle.spec.process.user.uid = 1000;
    let seen = output(&bundle).replace('\r', "");
    assert_eq!(seen, "/dev/pts/0\n33 101\n88:0:1000\n88:0:1000\nx\n");
}

fn a_terminal_without_devpts_is_refused() {
    let mut bundle = Bundle::new("");
    bundle.spec.process.terminal = Some(TerminalSpec::default());
    bundle.spec.mounts.retain(|mount| mount.destination != "/dev/pts");
    let refusal = refusal(&bundle);
    assert!(
        refusal.contains("cannot open a terminal in the container: open /dev/pts/ptmx"),
        "{refusal}"
    );
}

fn in_a_user_namespace_devices_are_the_hosts() {
    let mut bundle = Bundle::new("");
    bundle.namespaces |= CLONE_NEWUSER;
    bundle.first_id = 100_000;
    let status = std::process::Command::new("chown")
        .args(["-R", "100000:100000"])
        .arg(bundle.root(""))
        .status();
    assert!(status.unwrap().success());
    holds(
        &mut bundle,
        &[
            "test $(stat -c %t:%T /dev/null) = 1:3 && echo x > /dev/null",
            "test $(id -u) = 0",
            "touch /made && test $(stat -c %u /made) = 0",
            "grep -q ' 100000 ' /proc/self/uid_map",
            "test $(stat -c %t:%T /proc/interrupts) = 1:3",
        ],
    );
}

fn without_pivot_the_root_is_entered_as_well() {
    let mut bundle = Bundle::new("");
    bundle.spec.root.no_pivot = true;
    holds(
        &mut bundle,
        &[
            "test $$ = 1",
            "test -d /proc/1",
            "test ! -e /usr/bin/busybox",
            "test $(stat -c %t:%T /proc/keys) = 1:3",
        ],
    );
}

fn the_host_sees_no_mount() {
    let before = fs::read_to_string("/proc/self/mountinfo").unwrap();
    output(&Bundle::new("mount -t tmpfs none /tmp 2>/dev/null; true"));
    assert_eq!(fs::read_to_string("/proc/self/mountinfo").unwrap(), before);
}

/// Rust programs ignore it, and what is ignored stays so across `execve`.
fn sigpipe_has_its_default_action() {
    let mask = output(&Bundle::new("grep -E 'SigIgn' /proc/self/status | cut -f2"));
    let sigpipe = 1 << 12;
    assert_eq!(
        u64::from_str_radix(mask.trim(), 16).unwrap() & sigpipe,
        0,
        "{mask}"
    );
}
