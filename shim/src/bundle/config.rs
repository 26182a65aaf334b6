//! config.json as it is written, of which only the fields that matter on Linux.
//!
//! These are types of our own instead of those of the crate oci-spec, because that one links a regular
//! expression engine for one field, drops the order of maps, and refuses a whole configuration for one
//! unknown capability, where the specification wants a warning. Unknown properties are skipped, as
//! config.md "Extensibility" demands. Go programs write `null` for empty lists and maps, so `null`
//! means the default everywhere.

use std::collections::BTreeMap;

use serde::de::IgnoredAny;
use serde::{Deserialize, Deserializer};

use super::resources::Resources;

/// `null` as the type's default.
pub(super) fn nullable<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Option::<T>::deserialize(deserializer).map(Option::unwrap_or_default)
}

/// The whole file.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Config {
    /// Version of the specification that it follows.
    pub oci_version: String,
    /// Root file system.
    pub root: Option<Root>,
    /// Mounts.
    #[serde(default, deserialize_with = "nullable")]
    pub mounts: Vec<Mount>,
    /// The process.
    pub process: Option<Process>,
    /// UTS host name.
    #[serde(default, deserialize_with = "nullable")]
    pub hostname: String,
    /// UTS domain name.
    #[serde(default, deserialize_with = "nullable")]
    pub domainname: String,
    /// Hooks.
    #[serde(default, deserialize_with = "nullable")]
    pub hooks: Hooks,
    /// Annotations.
    #[serde(default, deserialize_with = "nullable")]
    pub annotations: BTreeMap<String, String>,
    /// Linux' own part.
    #[serde(default, deserialize_with = "nullable")]
    pub linux: Linux,
    /// Settings of a virtual machine; refused, since who writes an image must not choose the kernel.
    pub vm: Option<IgnoredAny>,
}

/// config.md "Root".
#[derive(Debug, Clone, Deserialize)]
pub struct Root {
    /// Absolute, or relative to the bundle.
    pub path: String,
    /// Whether the root is read-only.
    #[serde(default, deserialize_with = "nullable")]
    pub readonly: bool,
}

/// config.md "Mounts".
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Mount {
    /// Where.
    pub destination: String,
    /// Type of file system.
    #[serde(rename = "type", default, deserialize_with = "nullable")]
    pub kind: String,
    /// What.
    #[serde(default, deserialize_with = "nullable")]
    pub source: String,
    /// How.
    #[serde(default, deserialize_with = "nullable")]
    pub options: Vec<String>,
    /// Maps of an id-mapped mount.
    #[serde(default, deserialize_with = "nullable")]
    pub uid_mappings: Vec<IdMapping>,
    /// Likewise for groups.
    #[serde(default, deserialize_with = "nullable")]
    pub gid_mappings: Vec<IdMapping>,
}

/// config.md "Process".
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Process {
    /// Whether it has a terminal.
    #[serde(default, deserialize_with = "nullable")]
    pub terminal: bool,
    /// The terminal's size.
    #[serde(default, deserialize_with = "nullable")]
    pub console_size: ConsoleSize,
    /// Ids.
    #[serde(default, deserialize_with = "nullable")]
    pub user: User,
    /// Program and arguments.
    #[serde(default, deserialize_with = "nullable")]
    pub args: Vec<String>,
    /// Environment.
    #[serde(default, deserialize_with = "nullable")]
    pub env: Vec<String>,
    /// Working directory.
    pub cwd: String,
    /// Capability sets.
    pub capabilities: Option<Capabilities>,
    /// Limits.
    #[serde(default, deserialize_with = "nullable")]
    pub rlimits: Vec<Rlimit>,
    /// `no_new_privs`.
    #[serde(default, deserialize_with = "nullable")]
    pub no_new_privileges: bool,
    /// AppArmor profile.
    #[serde(default, deserialize_with = "nullable")]
    pub apparmor_profile: String,
    /// OOM score adjustment.
    pub oom_score_adj: Option<i32>,
    /// SELinux label.
    #[serde(default, deserialize_with = "nullable")]
    pub selinux_label: String,
    /// I/O priority.
    pub io_priority: Option<IgnoredAny>,
    /// Scheduler.
    pub scheduler: Option<IgnoredAny>,
}

/// A terminal's size.
#[derive(Debug, Clone, Copy, Default, Deserialize)]
pub struct ConsoleSize {
    /// Rows.
    pub height: u16,
    /// Columns.
    pub width: u16,
}

/// config.md "User", POSIX platforms.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct User {
    /// User id.
    #[serde(default)]
    pub uid: u32,
    /// Group id.
    #[serde(default)]
    pub gid: u32,
    /// File mode mask.
    pub umask: Option<u32>,
    /// Further groups.
    #[serde(default, deserialize_with = "nullable")]
    pub additional_gids: Vec<u32>,
}

/// Names of capabilities, `CAP_…`.
#[derive(Debug, Clone, Default, Deserialize)]
pub struct Capabilities {
    /// Bounding set.
    #[serde(default, deserialize_with = "nullable")]
    pub bounding: Vec<String>,
    /// Effective set.
    #[serde(default, deserialize_with = "nullable")]
    pub effective: Vec<String>,
    /// Inheritable set.
    #[serde(default, deserialize_with = "nullable")]
    pub inheritable: Vec<String>,
    /// Permitted set.
    #[serde(default, deserialize_with = "nullable")]
    pub permitted: Vec<String>,
    /// Ambient set.
    #[serde(default, deserialize_with = "nullable")]
    pub ambient: Vec<String>,
}

/// One limit.
#[derive(Debug, Clone, Deserialize)]
pub struct Rlimit {
    /// `RLIMIT_…`.
    #[serde(rename = "type")]
    pub kind: String,
    /// Hard.
    pub hard: u64,
    /// Soft.
    pub soft: u64,
}

/// config.md "POSIX-platform Hooks".
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Hooks {
    /// Deprecated, as `createRuntime`, before it.
    #[serde(default, deserialize_with = "nullable")]
    pub prestart: Vec<Hook>,
    /// In the runtime's namespaces, before `pivot_root`.
    #[serde(default, deserialize_with = "nullable")]
    pub create_runtime: Vec<Hook>,
    /// In the container's namespaces, before `pivot_root`.
    #[serde(default, deserialize_with = "nullable")]
    pub create_container: Vec<Hook>,
    /// In the container, before the workload.
    #[serde(default, deserialize_with = "nullable")]
    pub start_container: Vec<Hook>,
    /// After the workload started.
    #[serde(default, deserialize_with = "nullable")]
    pub poststart: Vec<Hook>,
    /// After the container was deleted.
    #[serde(default, deserialize_with = "nullable")]
    pub poststop: Vec<Hook>,
}

/// One hook.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, serde::Serialize)]
pub struct Hook {
    /// Absolute path of the program.
    pub path: String,
    /// Its arguments, the first of which is its name.
    #[serde(default, deserialize_with = "nullable")]
    pub args: Vec<String>,
    /// Its whole environment.
    #[serde(default, deserialize_with = "nullable")]
    pub env: Vec<String>,
    /// Seconds until it is killed.
    pub timeout: Option<i64>,
}

/// config-linux.md.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Linux {
    /// Namespaces.
    #[serde(default, deserialize_with = "nullable")]
    pub namespaces: Vec<Namespace>,
    /// User ids of a new user namespace.
    #[serde(default, deserialize_with = "nullable")]
    pub uid_mappings: Vec<IdMapping>,
    /// Group ids, likewise.
    #[serde(default, deserialize_with = "nullable")]
    pub gid_mappings: Vec<IdMapping>,
    /// Offsets of a new time namespace.
    #[serde(default, deserialize_with = "nullable")]
    pub time_offsets: BTreeMap<String, TimeOffset>,
    /// Devices.
    #[serde(default, deserialize_with = "nullable")]
    pub devices: Vec<Device>,
    /// Moves of network devices.
    #[serde(default, deserialize_with = "nullable")]
    pub net_devices: BTreeMap<String, IgnoredAny>,
    /// Path of the cgroup.
    #[serde(default, deserialize_with = "nullable")]
    pub cgroups_path: String,
    /// Limits.
    #[serde(default, deserialize_with = "nullable")]
    pub resources: Resources,
    /// Resource Director Technology.
    pub intel_rdt: Option<IgnoredAny>,
    /// NUMA policy.
    pub memory_policy: Option<IgnoredAny>,
    /// Kernel parameters.
    #[serde(default, deserialize_with = "nullable")]
    pub sysctl: BTreeMap<String, String>,
    /// System call filter.
    pub seccomp: Option<Seccomp>,
    /// Propagation of the root mount.
    #[serde(default, deserialize_with = "nullable")]
    pub rootfs_propagation: String,
    /// Hidden paths.
    #[serde(default, deserialize_with = "nullable")]
    pub masked_paths: Vec<String>,
    /// Read-only paths.
    #[serde(default, deserialize_with = "nullable")]
    pub readonly_paths: Vec<String>,
    /// SELinux context of mounts.
    #[serde(default, deserialize_with = "nullable")]
    pub mount_label: String,
    /// Execution domain.
    pub personality: Option<Personality>,
}

/// One namespace.
#[derive(Debug, Clone, Deserialize)]
pub struct Namespace {
    /// `pid`, `network`, `mount`, `ipc`, `uts`, `user`, `cgroup` or `time`.
    #[serde(rename = "type")]
    pub kind: String,
    /// Joined there, instead of made anew.
    #[serde(default, deserialize_with = "nullable")]
    pub path: String,
}

/// One line of a map.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub struct IdMapping {
    /// First id in the container.
    #[serde(rename = "containerID")]
    pub container_id: u32,
    /// First id on the host.
    #[serde(rename = "hostID")]
    pub host_id: u32,
    /// How many.
    pub size: u32,
}

/// Offset of a clock.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
pub struct TimeOffset {
    /// Seconds.
    #[serde(default)]
    pub secs: i64,
    /// Nanoseconds.
    #[serde(default)]
    pub nanosecs: u32,
}

/// One device.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Device {
    /// Path in the container.
    pub path: String,
    /// `c`, `b`, `u` or `p`.
    #[serde(rename = "type")]
    pub kind: String,
    /// Major number.
    pub major: Option<i64>,
    /// Minor number.
    pub minor: Option<i64>,
    /// Permission bits.
    pub file_mode: Option<u32>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
}

/// config-linux.md "Personality".
#[derive(Debug, Clone, Deserialize)]
pub struct Personality {
    /// `LINUX` or `LINUX32`.
    pub domain: String,
    /// Flags, none of which is defined.
    #[serde(default, deserialize_with = "nullable")]
    pub flags: Vec<String>,
}

/// config-linux.md "Seccomp".
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Seccomp {
    /// What happens to calls without a rule.
    pub default_action: String,
    /// Error number of the default action.
    pub default_errno_ret: Option<u32>,
    /// Architectures, `SCMP_ARCH_…`.
    #[serde(default, deserialize_with = "nullable")]
    pub architectures: Vec<String>,
    /// `SECCOMP_FILTER_FLAG_…`.
    #[serde(default, deserialize_with = "nullable")]
    pub flags: Vec<String>,
    /// Socket that is given the listener.
    #[serde(default, deserialize_with = "nullable")]
    pub listener_path: String,
    /// Rules.
    #[serde(default, deserialize_with = "nullable")]
    pub syscalls: Vec<SyscallRule>,
}

/// One rule for some system calls.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SyscallRule {
    /// Names.
    pub names: Vec<String>,
    /// What happens.
    pub action: String,
    /// Error number.
    pub errno_ret: Option<u32>,
    /// Conditions, all of which must hold.
    #[serde(default, deserialize_with = "nullable")]
    pub args: Vec<SyscallArgument>,
}

/// A condition on one argument.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SyscallArgument {
    /// Which, 0 to 5.
    pub index: u32,
    /// Compared with, or the mask.
    pub value: u64,
    /// Compared with, after the mask.
    #[serde(default, deserialize_with = "nullable")]
    pub value_two: u64,
    /// `SCMP_CMP_…`.
    pub op: String,
}
