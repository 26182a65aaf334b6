//! A container and its process, ready to be built: the validated and narrowed form of an OCI
//! `config.json`. The shim writes it once; the `workload` crate carries it out, on the host for
//! isolation `process` and in the guest for isolation `vm`.
//!
//! Numbers are those of the Linux x86-64 and generic ABIs (`MS_*` flags, capability bits, `RLIMIT_*`),
//! so that carrying out needs no tables.

use serde::{Deserialize, Serialize};

/// A container: its tree of mounts, its kernel settings and its process.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct WorkloadSpec {
    /// The root file system.
    pub root: RootSpec,
    /// Mounts in the order of the configuration (OCI config.md "Mounts").
    pub mounts: Vec<MountSpec>,
    /// Device nodes to provide below `/dev`, default devices included (config-linux.md "Devices",
    /// "Default Devices").
    pub devices: Vec<DeviceSpec>,
    /// UTS host name, when the container has a UTS namespace of its own.
    pub hostname: Option<String>,
    /// UTS domain name, likewise.
    pub domainname: Option<String>,
    /// Kernel parameters: name with dots, value (config-linux.md "Sysctl").
    pub sysctls: Vec<(String, String)>,
    /// Paths that are hidden (config-linux.md "Masked Paths").
    pub masked_paths: Vec<String>,
    /// Paths that are made read-only (config-linux.md "Readonly Paths").
    pub readonly_paths: Vec<String>,
    /// The process.
    pub process: ProcessSpec,
}

/// The root file system (config.md "Root").
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RootSpec {
    /// Where the tree is, as seen by whoever carries the spec out.
    pub path: String,
    /// Whether the root is read-only for the container.
    pub readonly: bool,
    /// `MS_*` propagation of the container's root mount (config-linux.md "Rootfs Mount
    /// Propagation"); private with `MS_REC` when not given.
    pub propagation: u64,
    /// Whether `pivot_root` can't be used (the root is on a ramfs): `MS_MOVE` and `chroot` instead.
    pub no_pivot: bool,
}

/// One mount.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MountSpec {
    /// Absolute path in the container; resolved below the root without leaving it.
    pub destination: String,
    /// What is mounted.
    pub source: MountSource,
    /// `MS_*` flags of the mount, without propagation and without `MS_BIND` and `MS_REC`.
    pub flags: u64,
    /// `MS_*` propagation changes, applied in order after the mount.
    pub propagation: Vec<u64>,
    /// `MOUNT_ATTR_*` to set on the mount and all below it (options `rro`, `rnosuid` …).
    pub recursive_set: u64,
    /// `MOUNT_ATTR_*` to clear, likewise.
    pub recursive_clear: u64,
    /// File system's own options, comma separated.
    pub data: String,
    /// Copy what the image holds at the destination into the new tmpfs (option `tmpcopyup`).
    pub copy_up: bool,
}

/// What a mount shows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum MountSource {
    /// A file system of its own, such as `proc` or `tmpfs`.
    Filesystem {
        /// Type.
        fstype: String,
        /// Source; for most a mere name.
        source: String,
    },
    /// A file or directory.
    Bind {
        /// Where it is, as seen by whoever carries the spec out.
        path: String,
        /// With the mounts below it (`rbind`).
        recursive: bool,
    },
    /// The container's own cgroup or cgroups.
    Cgroup(CgroupMount),
}

/// How `/sys/fs/cgroup` is provided.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum CgroupMount {
    /// A fresh cgroup2 mount, for a container with a cgroup namespace.
    V2,
    /// A bind mount of the container's directory in the cgroup2 tree.
    V2Bind {
        /// The directory, as seen before the root is entered.
        path: String,
    },
    /// A tmpfs with one bind mount per hierarchy, and symbolic links for joined controllers.
    V1 {
        /// Directory name below the mount point, directory to bind.
        hierarchies: Vec<(String, String)>,
        /// Link name, directory name it points to.
        links: Vec<(String, String)>,
    },
}

/// A device node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceSpec {
    /// Absolute path in the container.
    pub path: String,
    /// Kind and number.
    pub kind: DeviceKind,
    /// Permission bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
}

/// Kinds of device nodes (`mknod`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum DeviceKind {
    /// Character device.
    Character {
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
    /// Block device.
    Block {
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
    /// Named pipe.
    Fifo,
}

/// A process in a container (config.md "Process").
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ProcessSpec {
    /// Program and arguments, at least one.
    pub args: Vec<String>,
    /// Environment as `NAME=value`.
    pub env: Vec<String>,
    /// Absolute working directory in the container; made when missing, as runc does.
    pub cwd: String,
    /// Ids.
    pub user: UserSpec,
    /// Capability sets; `None` leaves them as they are.
    pub capabilities: Option<CapabilitySets>,
    /// Resource limits.
    pub rlimits: Vec<RlimitSpec>,
    /// `PR_SET_NO_NEW_PRIVS`.
    pub no_new_privileges: bool,
    /// `/proc/self/oom_score_adj`, -1000 to 1000.
    pub oom_score_adj: Option<i32>,
    /// Terminal instead of three streams.
    pub terminal: Option<TerminalSpec>,
    /// AppArmor profile for exec.
    pub apparmor_profile: Option<String>,
    /// SELinux label for exec.
    pub selinux_label: Option<String>,
    /// Compiled seccomp filter.
    pub seccomp: Option<SeccompSpec>,
    /// Make a session keyring of its own, named so; `None` keeps the caller's.
    pub session_keyring: Option<String>,
}

/// User and groups.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct UserSpec {
    /// User id in the container.
    pub uid: u32,
    /// Group id in the container.
    pub gid: u32,
    /// File mode mask; 0o022 when not given.
    pub umask: Option<u32>,
    /// Supplementary groups.
    pub additional_gids: Vec<u32>,
}

/// Capability sets as bit masks (bit `n` is capability `n` of `linux/capability.h`).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CapabilitySets {
    /// Bounding set.
    pub bounding: u64,
    /// Effective set.
    pub effective: u64,
    /// Permitted set.
    pub permitted: u64,
    /// Inheritable set.
    pub inheritable: u64,
    /// Ambient set.
    pub ambient: u64,
}

/// One resource limit (`prlimit`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct RlimitSpec {
    /// `RLIMIT_*` number.
    pub resource: u32,
    /// Soft limit, `u64::MAX` for none.
    pub soft: u64,
    /// Hard limit, `u64::MAX` for none.
    pub hard: u64,
}

/// A terminal's size at the start, in characters; zero leaves the kernel's default.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TerminalSpec {
    /// Rows.
    pub rows: u16,
    /// Columns.
    pub columns: u16,
}

/// A seccomp filter ready for `seccomp(SECCOMP_SET_MODE_FILTER)`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SeccompSpec {
    /// Classic BPF, eight bytes an instruction as in `struct sock_filter`, host's byte order.
    pub program: Vec<u8>,
    /// `SECCOMP_FILTER_FLAG_*`.
    pub flags: u32,
}
