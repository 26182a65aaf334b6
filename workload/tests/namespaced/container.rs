//! A busybox container in namespaces of its own, built and run by the crate under test.

use std::{
    fs,
    io::{self, IoSlice, IoSliceMut, Read, Write},
    mem::MaybeUninit,
    os::fd::{AsFd, OwnedFd},
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::{Command, exit},
};

use moat_protocol::workload_spec::{
    CapabilitySets, CgroupMount, DeviceKind, DeviceSpec, MountSource, MountSpec, ProcessSpec, RootSpec,
    UserSpec, WorkloadSpec,
};
use moat_workload::{
    error_chain, exec, rootfs,
    sys::{CloneRequest, Cloned, clone_process},
    terminal::{Console, open_terminal},
};
use rustix::{
    net::{
        AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
        SendAncillaryMessage, SendFlags, SocketFlags, SocketType,
    },
    process::{Gid, WaitOptions, WaitStatus},
};

pub const NAMESPACES: u64 = CLONE_NEWNS | 0x0200_0000 | 0x0400_0000 | 0x0800_0000 | 0x2000_0000 | 0x4000_0000;
const CLONE_NEWNS: u64 = 0x0002_0000;
pub const CLONE_NEWUSER: u64 = 0x1000_0000;

const BUSYBOX: &str = "/usr/bin/busybox";

/// Why the cases can't run here, if they can't.
pub fn missing() -> Option<String> {
    if !rustix::process::geteuid().is_root() {
        return Some("not root".into());
    }
    if !Path::new(BUSYBOX).exists() {
        return Some(format!("no {BUSYBOX}"));
    }
    None
}

/// What came of a container.
#[derive(Debug)]
pub struct Outcome {
    /// Exit status, or 128 + signal; 200 when the container could not be set up.
    pub status: i32,
    /// What it wrote.
    pub out: String,
    /// What it wrote there, or the chain of errors.
    pub err: String,
}

/// A bundle in a temporary directory.
pub struct Bundle {
    dir: tempfile::TempDir,
    pub spec: WorkloadSpec,
    pub namespaces: u64,
    /// Ids 0 to 65535 of the user namespace are these and the following of ours.
    pub first_id: u32,
}

impl Bundle {
    /// A root with busybox, and what `runc spec` asks for, running `script` in a shell.
    pub fn new(script: &str) -> Bundle {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("rootfs");
        for sub in ["bin", "proc", "sys", "dev", "tmp", "etc"] {
            fs::create_dir_all(root.join(sub)).unwrap();
        }
        fs::copy(BUSYBOX, root.join("bin/busybox")).unwrap();
        let applets = Command::new(BUSYBOX).arg("--list").output().unwrap().stdout;
        for applet in String::from_utf8(applets).unwrap().lines() {
            let _ = symlink("busybox", root.join("bin").join(applet));
        }
        fs::write(
            root.join("etc/passwd"),
            "root:x:0:0::/root:/bin/sh\nweb:x:1000:1000::/srv/web:/bin/sh\n",
        )
        .unwrap();
        let mut permissions = fs::metadata(dir.path()).unwrap().permissions();
        std::os::unix::fs::PermissionsExt::set_mode(&mut permissions, 0o755);
        fs::set_permissions(dir.path(), permissions).unwrap();
        let spec = default_spec(root.to_str().unwrap(), script);
        Bundle {
            dir,
            spec,
            namespaces: NAMESPACES,
            first_id: 0,
        }
    }

    /// A path in the container's root, as the host sees it.
    pub fn root(&self, path: &str) -> PathBuf {
        self.dir.path().join("rootfs").join(path)
    }

    /// A path beside the root.
    pub fn beside(&self, path: &str) -> PathBuf {
        self.dir.path().join(path)
    }

    /// Runs the container to its end.
    pub fn run(&self) -> Outcome {
        let (mut out, out_writer) = io::pipe().unwrap();
        let (mut err, err_writer) = io::pipe().unwrap();
        let (go_reader, mut go) = io::pipe().unwrap();
        let kind = SocketType::STREAM;
        let (ours, theirs) =
            rustix::net::socketpair(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None).unwrap();
        let cloned = clone_process(&CloneRequest {
            namespaces: self.namespaces,
            cgroup: None,
        })
        .unwrap();
        let Cloned::Parent { pid, pidfd: _pidfd } = cloned else {
            drop(go);
            self.child(go_reader.into(), out_writer.into(), err_writer.into(), theirs);
        };
        drop((out_writer, err_writer, go_reader, theirs));
        if self.namespaces & CLONE_NEWUSER != 0 {
            for map in ["uid_map", "gid_map"] {
                let text = format!("0 {} 65536", self.first_id);
                fs::write(format!("/proc/{}/{map}", pid.as_raw_nonzero()), text).unwrap();
            }
        }
        go.write_all(b"g").unwrap();
        drop(go);
        let (mut out_text, mut err_text) = (shown(&ours), Vec::new());
        out.read_to_end(&mut out_text).unwrap();
        err.read_to_end(&mut err_text).unwrap();
        let (_, status) = rustix::process::waitpid(Some(pid), WaitOptions::empty())
            .unwrap()
            .unwrap();
        Outcome {
            status: code(status),
            out: String::from_utf8_lossy(&out_text).into_owned(),
            err: String::from_utf8_lossy(&err_text).into_owned(),
        }
    }

    fn child(&self, go: OwnedFd, out: OwnedFd, err: OwnedFd, channel: OwnedFd) -> ! {
        let mut byte = [0];
        fs::File::from(go).read_exact(&mut byte).unwrap();
        rustix::process::setsid().unwrap();
        if self.namespaces & CLONE_NEWUSER != 0 {
            let root = rustix::process::Uid::ROOT;
            rustix::thread::set_thread_res_gid(Gid::ROOT, Gid::ROOT, Gid::ROOT).unwrap();
            rustix::thread::set_thread_res_uid(root, root, root).unwrap();
        }
        let null = fs::File::open("/dev/null").unwrap();
        rustix::stdio::dup2_stdin(&null).unwrap();
        rustix::stdio::dup2_stdout(&out).unwrap();
        rustix::stdio::dup2_stderr(&err).unwrap();
        let error = become_workload(&self.spec, &channel);
        let _ = io::stderr().write_all(error_chain(&*error).as_bytes());
        exit(200)
    }
}

fn become_workload(spec: &WorkloadSpec, channel: &OwnedFd) -> Box<dyn std::error::Error> {
    let result = (|| -> Result<exec::Launch, Box<dyn std::error::Error>> {
        rootfs::build(spec)?.enter(spec)?;
        if spec.process.terminal.is_some() {
            let master = open_terminal(&spec.process, Console::Mount)?;
            send(channel, &master);
        }
        Ok(exec::prepare(&spec.process, 0)?)
    })();
    match result {
        Ok(launch) => Box::new(launch.exec()),
        Err(error) => error,
    }
}

/// Hands the terminal's master to the parent: a process of the container could not outlive its first.
fn send(channel: &OwnedFd, master: &OwnedFd) {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let descriptors = [master.as_fd()];
    control.push(SendAncillaryMessage::ScmRights(&descriptors));
    rustix::net::sendmsg(channel, &[IoSlice::new(b"m")], &mut control, SendFlags::empty()).unwrap();
}

/// All that is shown on the terminal, until nobody holds it any more. Nothing without a terminal.
fn shown(channel: &OwnedFd) -> Vec<u8> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0];
    let mut parts = [IoSliceMut::new(&mut byte)];
    rustix::net::recvmsg(channel, &mut parts, &mut control, RecvFlags::CMSG_CLOEXEC).unwrap();
    let master = control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
        _ => None,
    });
    let mut shown = Vec::new();
    if let Some(master) = master {
        // ends with EIO
        let _ = fs::File::from(master).read_to_end(&mut shown);
    }
    shown
}

fn code(status: WaitStatus) -> i32 {
    status
        .exit_status()
        .unwrap_or_else(|| 128 + status.terminating_signal().unwrap_or(0))
}

/// A mount of a file system, with `data`.
pub fn filesystem(fstype: &str, destination: &str, flags: u64, data: &str) -> MountSpec {
    MountSpec {
        destination: destination.into(),
        source: MountSource::Filesystem {
            fstype: fstype.into(),
            source: fstype.into(),
        },
        flags,
        propagation: Vec::new(),
        recursive_set: 0,
        recursive_clear: 0,
        data: data.into(),
        copy_up: false,
    }
}

/// A bind mount.
pub fn bind(path: &Path, destination: &str, flags: u64) -> MountSpec {
    MountSpec {
        source: MountSource::Bind {
            path: path.to_str().unwrap().into(),
            recursive: true,
        },
        propagation: vec![MS_PRIVATE | MS_REC],
        ..filesystem("", destination, flags, "")
    }
}

pub const MS_RDONLY: u64 = 1;
pub const MS_NOSUID: u64 = 2;
pub const MS_NODEV: u64 = 4;
pub const MS_NOEXEC: u64 = 8;
const MS_REC: u64 = 0x4000;
const MS_PRIVATE: u64 = 1 << 18;

fn default_spec(root: &str, script: &str) -> WorkloadSpec {
    let strict = MS_NOSUID | MS_NODEV | MS_NOEXEC;
    let mounts = vec![
        filesystem("proc", "/proc", 0, ""),
        filesystem("tmpfs", "/dev", MS_NOSUID, "mode=755,size=65536k"),
        filesystem(
            "devpts",
            "/dev/pts",
            MS_NOSUID | MS_NOEXEC,
            "newinstance,ptmxmode=0666,mode=0620",
        ),
        filesystem("tmpfs", "/dev/shm", strict, "mode=1777,size=65536k"),
        filesystem("mqueue", "/dev/mqueue", strict, ""),
        filesystem("sysfs", "/sys", strict | MS_RDONLY, ""),
        MountSpec {
            source: MountSource::Cgroup(CgroupMount::V2),
            ..filesystem("", "/sys/fs/cgroup", strict | MS_RDONLY, "")
        },
    ];
    let device = |(name, major, minor): (&str, u32, u32)| DeviceSpec {
        path: format!("/dev/{name}"),
        kind: DeviceKind::Character { major, minor },
        mode: 0o666,
        uid: 0,
        gid: 0,
    };
    let numbers = [
        ("null", 1, 3),
        ("zero", 1, 5),
        ("full", 1, 7),
        ("random", 1, 8),
        ("urandom", 1, 9),
        ("tty", 5, 0),
    ];
    let devices = numbers.map(device);
    let list = |paths: &[&str]| paths.iter().map(|path| (*path).to_owned()).collect();
    WorkloadSpec {
        root: RootSpec {
            path: root.into(),
            readonly: false,
            propagation: 0,
            no_pivot: false,
        },
        mounts,
        devices: devices.into(),
        hostname: Some("moat-test".into()),
        domainname: None,
        sysctls: Vec::new(),
        masked_paths: list(&[
            "/proc/acpi",
            "/proc/interrupts",
            "/proc/keys",
            "/proc/scsi",
            "/proc/none",
            "/sys/firmware",
        ]),
        readonly_paths: list(&[
            "/proc/bus",
            "/proc/fs",
            "/proc/irq",
            "/proc/sys",
            "/proc/sysrq-trigger",
        ]),
        process: ProcessSpec {
            args: list(&["sh", "-c", script]),
            env: list(&["PATH=/bin"]),
            cwd: "/".into(),
            user: UserSpec::default(),
            capabilities: Some(CapabilitySets {
                bounding: 0xa804_25fb & !(1 << 24),
                effective: 0xa804_25fb & !(1 << 24),
                permitted: 0xa804_25fb & !(1 << 24),
                inheritable: 0,
                ambient: 0,
            }),
            rlimits: Vec::new(),
            no_new_privileges: true,
            oom_score_adj: None,
            terminal: None,
            apparmor_profile: None,
            selinux_label: None,
            seccomp: None,
            session_keyring: None,
        },
    }
}
