//! The plan: everything that a container's bundle asks for, checked and in the terms of the kernel.
//! Cell, payload and lifecycle work from it alone.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use moat_protocol::workload_spec::{
    CgroupMount, DeviceKind, DeviceSpec, MountSource, MountSpec, RootSpec, WorkloadSpec,
};
use nix::libc;
use rustix::fs::{Mode, OFlags};

use super::config::{Config, Device, Hooks, IdMapping, Linux, Mount, TimeOffset};
use super::resources::Resources;
use super::validate::{self, ValidateError, bad_value};
use super::{mount_options, process, seccomp};

/// Why a bundle makes no plan.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    /// A rule does not hold.
    #[error("{}", path.display())]
    Rule {
        /// config.json.
        path: PathBuf,
        /// The rule.
        #[source]
        source: ValidateError,
    },
    /// The root file system is not there.
    #[error("cannot use the root file system {}", path.display())]
    Root {
        /// The directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A path is not UTF-8, which messages to a guest and the state can't hold.
    #[error("the path {} is not UTF-8", path.display())]
    NotUtf8 {
        /// The path.
        path: PathBuf,
    },
}

/// Kinds of namespaces.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NamespaceKind {
    /// Mounts.
    Mount,
    /// Cgroups.
    Cgroup,
    /// Host and domain name.
    Uts,
    /// System V IPC and message queues.
    Ipc,
    /// Ids.
    User,
    /// Process ids.
    Pid,
    /// Network.
    Network,
    /// Boot and monotonic clocks.
    Time,
}

impl NamespaceKind {
    /// All, in the order in which they are joined: the user namespace first, since it owns the others.
    pub const ALL: [NamespaceKind; 8] = [
        NamespaceKind::User,
        NamespaceKind::Ipc,
        NamespaceKind::Uts,
        NamespaceKind::Network,
        NamespaceKind::Pid,
        NamespaceKind::Cgroup,
        NamespaceKind::Time,
        NamespaceKind::Mount,
    ];

    /// Its name in config.json (config-linux.md "Namespaces").
    pub fn name(self) -> &'static str {
        match self {
            NamespaceKind::Mount => "mount",
            NamespaceKind::Cgroup => "cgroup",
            NamespaceKind::Uts => "uts",
            NamespaceKind::Ipc => "ipc",
            NamespaceKind::User => "user",
            NamespaceKind::Pid => "pid",
            NamespaceKind::Network => "network",
            NamespaceKind::Time => "time",
        }
    }

    /// `CLONE_NEW*`.
    pub fn flag(self) -> u64 {
        match self {
            NamespaceKind::Mount => 0x0002_0000,
            NamespaceKind::Cgroup => 0x0200_0000,
            NamespaceKind::Uts => 0x0400_0000,
            NamespaceKind::Ipc => 0x0800_0000,
            NamespaceKind::User => 0x1000_0000,
            NamespaceKind::Pid => 0x2000_0000,
            NamespaceKind::Network => 0x4000_0000,
            NamespaceKind::Time => 0x0000_0080,
        }
    }

    /// Its file in `/proc/PID/ns`.
    pub fn proc_name(self) -> &'static str {
        match self {
            NamespaceKind::Mount => "mnt",
            NamespaceKind::Network => "net",
            NamespaceKind::Cgroup
            | NamespaceKind::Uts
            | NamespaceKind::Ipc
            | NamespaceKind::User
            | NamespaceKind::Pid
            | NamespaceKind::Time => self.name(),
        }
    }
}

/// Which namespaces the container does not share with the host.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Namespaces {
    /// Made anew: `CLONE_NEW*` bits.
    new: u64,
    /// Joined, in the order of [`NamespaceKind::ALL`].
    pub joined: Vec<(NamespaceKind, PathBuf)>,
}

impl Namespaces {
    /// Whether one is made anew.
    pub fn is_new(&self, kind: NamespaceKind) -> bool {
        self.new & kind.flag() != 0
    }

    /// Whether one is joined.
    pub fn is_joined(&self, kind: NamespaceKind) -> bool {
        self.joined.iter().any(|(joined, _)| *joined == kind)
    }

    /// Whether the container has one that is not the host's.
    pub fn has(&self, kind: NamespaceKind) -> bool {
        self.is_new(kind) || self.is_joined(kind)
    }

    /// `CLONE_NEW*` of all that are made anew.
    pub fn new_flags(&self) -> u64 {
        self.new
    }
}

/// Maps of a new user namespace.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct IdMaps {
    /// User ids.
    pub uids: Vec<IdMapping>,
    /// Group ids.
    pub gids: Vec<IdMapping>,
}

/// A container to be.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The container's id.
    pub id: String,
    /// `ociVersion` of the configuration.
    pub oci_version: String,
    /// The bundle, absolute.
    pub bundle: PathBuf,
    /// The root file system, absolute and without symbolic links.
    pub rootfs: PathBuf,
    /// Annotations.
    pub annotations: BTreeMap<String, String>,
    /// Namespaces.
    pub namespaces: Namespaces,
    /// Maps, when a new user namespace is made.
    pub id_maps: Option<IdMaps>,
    /// Offsets of a new time namespace: clock name, offset.
    pub time_offsets: BTreeMap<String, TimeOffset>,
    /// `linux.cgroupsPath`, when given.
    pub cgroups_path: Option<String>,
    /// Limits.
    pub resources: Resources,
    /// Hooks.
    pub hooks: Hooks,
    /// What is built and run inside.
    pub workload: WorkloadSpec,
    /// Oddities that the user is told of and that stop nothing.
    pub warnings: Vec<String>,
}

/// What the command line adds to a bundle.
#[derive(Debug, Clone, Copy, Default)]
pub struct PlanOptions {
    /// `--no-pivot`.
    pub no_pivot: bool,
    /// `--no-new-keyring`.
    pub no_new_keyring: bool,
    /// Sockets of the caller's socket activation, which the workload gets (sd_listen_fds(3)).
    pub activation_sockets: Option<u32>,
}

/// Makes the plan of container `id` from the configuration of `bundle` (absolute).
///
/// # Errors
/// When a rule of the configuration does not hold or the root file system is missing.
pub fn plan(id: &str, bundle: &Path, mut config: Config, options: PlanOptions) -> Result<Plan, PlanError> {
    let rule = |source| PlanError::Rule {
        path: bundle.join("config.json"),
        source,
    };
    validate::validate(&config).map_err(rule)?;
    let mut warnings = Vec::new();
    let namespaces = namespaces(&config.linux).map_err(rule)?;
    let (Some(root), Some(raw_process)) = (config.root.take(), config.process.take()) else {
        return Err(rule(ValidateError::Missing { field: "root" }));
    };
    let rootfs = resolve_directory(&bundle.join(&root.path))?;
    let session_keyring = (!options.no_new_keyring).then(|| format!("_ses.{id}"));
    let mut process = process::process(raw_process, session_keyring, &mut warnings).map_err(rule)?;
    if let Some(sockets) = options.activation_sockets {
        // The workload is pid 1 of its namespace, which is what it compares LISTEN_PID with.
        process
            .env
            .extend([format!("LISTEN_FDS={sockets}"), "LISTEN_PID=1".to_owned()]);
    }
    if let Some(profile) = &config.linux.seccomp {
        process.seccomp = Some(seccomp::compile(profile, &mut warnings).map_err(rule)?);
    }
    let workload = WorkloadSpec {
        root: RootSpec {
            path: utf8(&rootfs)?,
            readonly: root.readonly,
            propagation: propagation(&config.linux.rootfs_propagation).map_err(rule)?,
            no_pivot: options.no_pivot,
        },
        mounts: mounts(&config.mounts, bundle, &mut warnings).map_err(rule)?,
        devices: devices(&config).map_err(rule)?,
        hostname: uts_name("hostname", &config.hostname, &namespaces).map_err(rule)?,
        domainname: uts_name("domainname", &config.domainname, &namespaces).map_err(rule)?,
        sysctls: std::mem::take(&mut config.linux.sysctl).into_iter().collect(),
        masked_paths: std::mem::take(&mut config.linux.masked_paths),
        readonly_paths: std::mem::take(&mut config.linux.readonly_paths),
        process,
    };
    Ok(Plan {
        id: id.to_owned(),
        oci_version: config.oci_version,
        bundle: bundle.to_owned(),
        rootfs,
        annotations: config.annotations,
        id_maps: id_maps(&config.linux, &namespaces).map_err(rule)?,
        time_offsets: time_offsets(&config.linux, &namespaces).map_err(rule)?,
        namespaces,
        cgroups_path: cgroups_path(&config.linux.cgroups_path).map_err(rule)?,
        resources: config.linux.resources,
        hooks: config.hooks,
        workload,
        warnings,
    })
}

/// The directory's path without symbolic links.
fn resolve_directory(path: &Path) -> Result<PathBuf, PlanError> {
    let failed = |error: rustix::io::Errno| PlanError::Root {
        path: path.to_owned(),
        source: error.into(),
    };
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let directory = rustix::fs::open(path, flags, Mode::empty()).map_err(failed)?;
    let link = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&directory));
    std::fs::read_link(link).map_err(|source| PlanError::Root {
        path: path.to_owned(),
        source,
    })
}

fn utf8(path: &Path) -> Result<String, PlanError> {
    path.to_str()
        .map(str::to_owned)
        .ok_or_else(|| PlanError::NotUtf8 {
            path: path.to_owned(),
        })
}

fn namespaces(linux: &Linux) -> Result<Namespaces, ValidateError> {
    const FIELD: &str = "linux.namespaces[]";
    let mut namespaces = Namespaces::default();
    for namespace in &linux.namespaces {
        let kind = NamespaceKind::ALL
            .into_iter()
            .find(|kind| kind.name() == namespace.kind)
            .ok_or_else(|| bad_value(format!("{FIELD}.type"), &namespace.kind, "no such namespace"))?;
        if namespaces.has(kind) {
            return Err(bad_value(
                format!("{FIELD}.type"),
                &namespace.kind,
                "it appears twice",
            ));
        }
        if namespace.path.is_empty() {
            namespaces.new |= kind.flag();
        } else if Path::new(&namespace.path).is_absolute() {
            namespaces.joined.push((kind, PathBuf::from(&namespace.path)));
        } else {
            return Err(bad_value(
                format!("{FIELD}.path"),
                &namespace.path,
                "an absolute path is needed",
            ));
        }
    }
    namespaces
        .joined
        .sort_by_key(|(kind, _)| NamespaceKind::ALL.iter().position(|known| known == kind));
    if namespaces.is_joined(NamespaceKind::User) {
        // The others would have to be made from within it, by a process in between.
        let field = "linux.namespaces[].path of the user namespace".to_owned();
        return Err(ValidateError::Unsupported {
            field,
            reason: " yet",
        });
    }
    if !namespaces.has(NamespaceKind::Mount) {
        let needed = "a mount namespace: without one the container's mounts would be the host's";
        return Err(ValidateError::Needs {
            field: "linux.namespaces".to_owned(),
            needed,
        });
    }
    Ok(namespaces)
}

fn id_maps(linux: &Linux, namespaces: &Namespaces) -> Result<Option<IdMaps>, ValidateError> {
    let maps = IdMaps {
        uids: linux.uid_mappings.clone(),
        gids: linux.gid_mappings.clone(),
    };
    for (field, map) in [
        ("linux.uidMappings", &maps.uids),
        ("linux.gidMappings", &maps.gids),
    ] {
        if namespaces.is_new(NamespaceKind::User) && map.is_empty() {
            let field = "linux.namespaces (user)".to_owned();
            return Err(ValidateError::Needs {
                field,
                needed: "linux.uidMappings and linux.gidMappings",
            });
        }
        if !namespaces.has(NamespaceKind::User) && !map.is_empty() {
            return Err(ValidateError::Needs {
                field: field.to_owned(),
                needed: "a user namespace",
            });
        }
        if map.iter().any(|line| line.size == 0) {
            return Err(bad_value(
                format!("{field}[].size"),
                "0",
                "a map covers at least one id",
            ));
        }
    }
    Ok(namespaces.is_new(NamespaceKind::User).then_some(maps))
}

fn time_offsets(
    linux: &Linux,
    namespaces: &Namespaces,
) -> Result<BTreeMap<String, TimeOffset>, ValidateError> {
    if let Some(clock) = linux
        .time_offsets
        .keys()
        .find(|clock| !matches!(clock.as_str(), "monotonic" | "boottime"))
    {
        return Err(bad_value(
            "linux.timeOffsets",
            clock,
            "only monotonic and boottime have offsets",
        ));
    }
    if !linux.time_offsets.is_empty() && !namespaces.is_new(NamespaceKind::Time) {
        let field = "linux.timeOffsets".to_owned();
        return Err(ValidateError::Needs {
            field,
            needed: "a new time namespace",
        });
    }
    Ok(linux.time_offsets.clone())
}

/// A name makes sense only in a UTS namespace of the container's own; elsewhere it would rename the host.
fn uts_name(
    field: &'static str,
    name: &str,
    namespaces: &Namespaces,
) -> Result<Option<String>, ValidateError> {
    if name.is_empty() {
        return Ok(None);
    }
    if !namespaces.has(NamespaceKind::Uts) {
        return Err(ValidateError::Needs {
            field: field.to_owned(),
            needed: "a uts namespace",
        });
    }
    // uts_namespaces(7): __NEW_UTS_LEN.
    if name.len() > 64 {
        return Err(bad_value(field, name, "it is longer than 64 bytes"));
    }
    Ok(Some(name.to_owned()))
}

/// Propagation of the root mount. Slave when not given, as runc does: mounts that the host makes below a
/// bind mount with `rslave` then still arrive.
fn propagation(name: &str) -> Result<u64, ValidateError> {
    Ok(match name {
        "" | "rslave" => libc::MS_SLAVE | libc::MS_REC,
        "slave" => libc::MS_SLAVE,
        "private" => libc::MS_PRIVATE,
        "rprivate" => libc::MS_PRIVATE | libc::MS_REC,
        "shared" => libc::MS_SHARED,
        "rshared" => libc::MS_SHARED | libc::MS_REC,
        "unbindable" => libc::MS_UNBINDABLE,
        "runbindable" => libc::MS_UNBINDABLE | libc::MS_REC,
        _ => return Err(bad_value("linux.rootfsPropagation", name, "no such propagation")),
    })
}

/// The control group may be named by a path or, for the systemd driver, by `slice:prefix:name`.
fn cgroups_path(path: &str) -> Result<Option<String>, ValidateError> {
    if path.split('/').any(|part| part == "..") {
        return Err(bad_value(
            "linux.cgroupsPath",
            path,
            "`..` leads out of the hierarchy",
        ));
    }
    if path.contains('\0') {
        return Err(bad_value(
            "linux.cgroupsPath",
            path,
            "a NUL byte ends every string of the kernel",
        ));
    }
    Ok(Some(path.to_owned()).filter(|path| !path.is_empty()))
}

fn mounts(
    mounts: &[Mount],
    bundle: &Path,
    warnings: &mut Vec<String>,
) -> Result<Vec<MountSpec>, ValidateError> {
    mounts
        .iter()
        .map(|entry| mount(entry, bundle, warnings))
        .collect()
}

fn mount(mount: &Mount, bundle: &Path, warnings: &mut Vec<String>) -> Result<MountSpec, ValidateError> {
    let mut options = mount_options::parse(&mount.options);
    let mut destination = mount.destination.clone();
    if destination.is_empty() {
        return Err(ValidateError::Missing {
            field: "mounts[].destination",
        });
    }
    if !Path::new(&destination).is_absolute() {
        // config.md wants an absolute path; images of old build tools have others, and runc takes them.
        warnings.push(format!(
            "the mount destination {destination:?} is taken as below /"
        ));
        destination.insert(0, '/');
    }
    if mount.kind == "bind" && options.bind.is_none() {
        options.bind = Some(false);
    }
    let source = match (options.bind, mount.kind.as_str()) {
        (Some(recursive), _) => {
            if mount.source.is_empty() {
                return Err(ValidateError::Missing {
                    field: "mounts[].source",
                });
            }
            if !options.data.is_empty() {
                let data = options.data.join(",");
                warnings.push(format!(
                    "options {data:?} have no effect on the bind mount on {destination}"
                ));
                options.data.clear();
            }
            let path = bundle.join(&mount.source);
            let path = path.to_str().ok_or_else(|| {
                bad_value("mounts[].source", &mount.source, "the bundle's path is not UTF-8")
            })?;
            MountSource::Bind {
                path: path.to_owned(),
                recursive,
            }
        }
        (None, "") => {
            return Err(ValidateError::Missing {
                field: "mounts[].type",
            });
        }
        // How it is provided depends on the kernel that provides it: the payload decides.
        (None, "cgroup" | "cgroup2") => MountSource::Cgroup(CgroupMount::V2),
        (None, fstype) => {
            let source = if mount.source.is_empty() {
                fstype
            } else {
                &mount.source
            };
            MountSource::Filesystem {
                fstype: fstype.to_owned(),
                source: source.to_owned(),
            }
        }
    };
    if options.copy_up && !matches!(&source, MountSource::Filesystem { fstype, .. } if fstype == "tmpfs") {
        return Err(ValidateError::Needs {
            field: "mounts[].options (tmpcopyup)".to_owned(),
            needed: "a tmpfs",
        });
    }
    Ok(options.into_spec(destination, source))
}

/// config-linux.md "Default Devices"; `/dev/console` and `/dev/ptmx` are no nodes.
const DEFAULT_DEVICES: [(&str, u32, u32); 6] = [
    ("/dev/null", 1, 3),
    ("/dev/zero", 1, 5),
    ("/dev/full", 1, 7),
    ("/dev/random", 1, 8),
    ("/dev/urandom", 1, 9),
    ("/dev/tty", 5, 0),
];

fn devices(config: &Config) -> Result<Vec<DeviceSpec>, ValidateError> {
    // A bind mount on /dev brings its own nodes, and they are the host's: nothing is made there.
    let is_bind = |mount: &Mount| {
        mount.kind == "bind"
            || mount
                .options
                .iter()
                .any(|option| option == "bind" || option == "rbind")
    };
    if config
        .mounts
        .iter()
        .any(|mount| mount.destination.trim_end_matches('/') == "/dev" && is_bind(mount))
    {
        return Ok(Vec::new());
    }
    let mut specs: Vec<DeviceSpec> = DEFAULT_DEVICES
        .iter()
        .map(|(path, major, minor)| DeviceSpec {
            path: (*path).to_owned(),
            kind: DeviceKind::Character {
                major: *major,
                minor: *minor,
            },
            mode: 0o666,
            uid: 0,
            gid: 0,
        })
        .collect();
    for entry in &config.linux.devices {
        let spec = device(entry)?;
        specs.retain(|known| known.path != spec.path);
        specs.push(spec);
    }
    Ok(specs)
}

fn device(device: &Device) -> Result<DeviceSpec, ValidateError> {
    if !Path::new(&device.path).is_absolute() {
        return Err(bad_value(
            "linux.devices[].path",
            &device.path,
            "an absolute path is needed",
        ));
    }
    let number = |number: Option<i64>, field: &'static str| -> Result<u32, ValidateError> {
        let number = number.ok_or(ValidateError::Missing { field })?;
        u32::try_from(number).map_err(|_| bad_value(field, number.to_string(), "no such device number"))
    };
    let major = || number(device.major, "linux.devices[].major");
    let minor = || number(device.minor, "linux.devices[].minor");
    let kind = match device.kind.as_str() {
        "c" | "u" => DeviceKind::Character {
            major: major()?,
            minor: minor()?,
        },
        "b" => DeviceKind::Block {
            major: major()?,
            minor: minor()?,
        },
        "p" => DeviceKind::Fifo,
        other => return Err(bad_value("linux.devices[].type", other, "c, u, b or p is needed")),
    };
    Ok(DeviceSpec {
        path: device.path.clone(),
        kind,
        mode: device.file_mode.unwrap_or(0o666) & 0o7777,
        uid: device.uid.unwrap_or(0),
        gid: device.gid.unwrap_or(0),
    })
}

#[cfg(test)]
pub(crate) mod tests {
    use serde_json::{Value, json};

    use super::*;

    /// The plan of the smallest configuration with `change` applied; its root is `/`.
    pub(crate) fn planned(change: impl FnOnce(&mut Value)) -> Result<Plan, PlanError> {
        let mut value = json!({
            "ociVersion": "1.2.0",
            "root": {"path": "/"},
            "process": {"cwd": "/", "args": ["sh"]},
            "linux": {"namespaces": [{"type": "mount"}, {"type": "pid"}, {"type": "uts"}]},
        });
        change(&mut value);
        plan(
            "c1",
            Path::new("/bundle"),
            serde_json::from_value(value).unwrap(),
            PlanOptions::default(),
        )
    }

    fn refused(change: impl FnOnce(&mut Value)) -> String {
        match planned(change).unwrap_err() {
            PlanError::Rule { source, .. } => source.to_string(),
            other => panic!("{other}"),
        }
    }

    #[test]
    fn namespaces_are_new_or_joined_and_never_twice() {
        let plan = planned(|c| {
            c["linux"]["namespaces"] = json!([
                {"type": "network", "path": "/proc/1/ns/net"}, {"type": "mount"}, {"type": "ipc", "path": "/x"}]);
        })
        .unwrap();
        assert_eq!(plan.namespaces.new_flags(), NamespaceKind::Mount.flag());
        let joined: Vec<_> = plan.namespaces.joined.iter().map(|(kind, _)| *kind).collect();
        assert_eq!(joined, [NamespaceKind::Ipc, NamespaceKind::Network]);
        assert!(
            refused(|c| c["linux"]["namespaces"] = json!([{"type": "pid"}, {"type": "pid"}]))
                .contains("twice")
        );
        assert!(
            refused(|c| c["linux"]["namespaces"] = json!([{"type": "net"}])).contains("no such namespace")
        );
        assert!(
            refused(|c| c["linux"]["namespaces"] = json!([{"type": "pid", "path": "x"}]))
                .contains("absolute")
        );
    }

    #[test]
    fn a_joined_user_namespace_is_refused() {
        let user = json!([{"type": "mount"}, {"type": "user", "path": "/proc/1/ns/user"}]);
        assert!(refused(|c| c["linux"]["namespaces"] = user).contains("user namespace"));
    }

    #[test]
    fn a_container_without_a_mount_namespace_is_refused() {
        assert!(refused(|c| c["linux"]["namespaces"] = json!([{"type": "pid"}])).contains("mount namespace"));
    }

    #[test]
    fn a_host_name_needs_a_uts_namespace() {
        assert_eq!(
            planned(|c| c["hostname"] = json!("h"))
                .unwrap()
                .workload
                .hostname
                .as_deref(),
            Some("h")
        );
        assert!(
            refused(|c| {
                c["hostname"] = json!("h");
                c["linux"]["namespaces"] = json!([{"type": "mount"}]);
            })
            .contains("uts namespace")
        );
        assert!(refused(|c| c["hostname"] = json!("h".repeat(65))).contains("64 bytes"));
    }

    #[test]
    fn a_user_namespace_and_its_maps_need_each_other() {
        let map = json!([{"containerID": 0, "hostID": 1000, "size": 1}]);
        let user = json!([{"type": "mount"}, {"type": "user"}]);
        let plan = planned(|c| {
            c["linux"] = json!({"namespaces": user, "uidMappings": map, "gidMappings": map});
        })
        .unwrap();
        assert_eq!(plan.id_maps.unwrap().uids[0].host_id, 1000);
        assert!(refused(|c| c["linux"] = json!({"namespaces": user})).contains("Mappings"));
        assert!(refused(|c| c["linux"]["uidMappings"] = map).contains("a user namespace"));
    }

    #[test]
    fn mounts_are_sorted_into_binds_cgroups_and_file_systems() {
        let plan = planned(|c| {
            c["mounts"] = json!([
                {"destination": "/data", "source": "data", "options": ["rbind", "ro"]},
                {"destination": "/proc", "type": "proc"},
                {"destination": "/sys/fs/cgroup", "type": "cgroup", "options": ["ro"]},
                {"destination": "/b", "type": "bind", "source": "/s"}]);
        })
        .unwrap();
        let sources: Vec<_> = plan
            .workload
            .mounts
            .iter()
            .map(|mount| mount.source.clone())
            .collect();
        assert_eq!(
            sources,
            [
                MountSource::Bind {
                    path: "/bundle/data".into(),
                    recursive: true
                },
                MountSource::Filesystem {
                    fstype: "proc".into(),
                    source: "proc".into()
                },
                MountSource::Cgroup(CgroupMount::V2),
                MountSource::Bind {
                    path: "/s".into(),
                    recursive: false
                },
            ]
        );
        assert_eq!(plan.workload.mounts[0].flags, libc::MS_RDONLY);
    }

    #[test]
    fn a_mount_without_type_source_or_destination_is_refused() {
        assert!(
            refused(|c| c["mounts"] = json!([{"destination": "/a", "source": "x"}]))
                .contains("mounts[].type")
        );
        let bind = json!([{"destination": "/a", "options": ["bind"]}]);
        assert!(refused(|c| c["mounts"] = bind).contains("mounts[].source"));
        assert!(
            refused(|c| c["mounts"] = json!([{"destination": "", "type": "proc"}])).contains("destination")
        );
        let copy_up = json!([{"destination": "/a", "type": "proc", "options": ["tmpcopyup"]}]);
        assert!(refused(|c| c["mounts"] = copy_up).contains("a tmpfs"));
    }

    #[test]
    fn a_relative_destination_and_data_of_a_bind_are_warned_of() {
        let plan = planned(|c| {
            c["mounts"] = json!([{"destination": "a", "source": "/s", "options": ["bind", "size=1"]}]);
        })
        .unwrap();
        assert_eq!(plan.workload.mounts[0].destination, "/a");
        assert_eq!(plan.workload.mounts[0].data, "");
        assert_eq!(plan.warnings.len(), 2, "{:?}", plan.warnings);
    }

    #[test]
    fn default_devices_are_there_and_may_be_replaced() {
        let plan = planned(|c| {
            c["linux"]["devices"] =
                json!([{"path": "/dev/null", "type": "c", "major": 1, "minor": 3, "fileMode": 384}]);
        })
        .unwrap();
        let null: Vec<_> = plan
            .workload
            .devices
            .iter()
            .filter(|d| d.path == "/dev/null")
            .collect();
        assert_eq!(null.len(), 1);
        assert_eq!(null[0].mode, 0o600);
        assert_eq!(plan.workload.devices.len(), DEFAULT_DEVICES.len());
    }

    #[test]
    fn no_device_is_made_in_a_dev_of_the_host() {
        let plan = planned(|c| {
            c["mounts"] = json!([{"destination": "/dev", "source": "/dev", "options": ["rbind"]}]);
        })
        .unwrap();
        assert!(plan.workload.devices.is_empty());
    }

    #[test]
    fn devices_need_numbers_and_a_known_type() {
        let device = |device: Value| refused(|c| c["linux"]["devices"] = json!([device]));
        assert!(device(json!({"path": "/dev/x", "type": "c"})).contains("major"));
        assert!(device(json!({"path": "/dev/x", "type": "c", "major": 1})).contains("minor"));
        assert!(
            device(json!({"path": "/dev/x", "type": "c", "major": -1, "minor": 1})).contains("device number")
        );
        assert!(device(json!({"path": "/dev/x", "type": "z"})).contains("type"));
        assert!(device(json!({"path": "dev/x", "type": "p"})).contains("absolute"));
    }

    #[test]
    fn a_cgroup_path_cannot_climb() {
        assert!(refused(|c| c["linux"]["cgroupsPath"] = json!("/a/../../b")).contains("cgroupsPath"));
        assert_eq!(
            planned(|c| c["linux"]["cgroupsPath"] = json!("/a/b"))
                .unwrap()
                .cgroups_path
                .as_deref(),
            Some("/a/b")
        );
    }

    #[test]
    fn a_missing_root_file_system_is_named() {
        let error = planned(|c| c["root"]["path"] = json!("/no/such/root")).unwrap_err();
        assert_eq!(error.to_string(), "cannot use the root file system /no/such/root");
    }

    #[test]
    fn time_offsets_need_a_time_namespace_and_a_known_clock() {
        assert!(
            refused(|c| c["linux"]["timeOffsets"] = json!({"boottime": {"secs": 1}}))
                .contains("time namespace")
        );
        assert!(
            refused(|c| c["linux"]["timeOffsets"] = json!({"realtime": {"secs": 1}})).contains("monotonic")
        );
    }
}
