//! The plan: everything that a container's bundle asks for, checked and in the terms of the kernel.
//! Cell, payload and lifecycle work from it alone.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use moat_protocol::workload_spec::{RootSpec, WorkloadSpec};
use rustix::fs::{Mode, OFlags};

use super::config::{Config, Hooks, TimeOffset};
pub use super::namespaces::{IdMaps, NamespaceKind, Namespaces};
use super::resources::Resources;
use super::validate::{self, ValidateError, bad_value};
use super::{devices, mounts, namespaces, process, seccomp};

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
    let namespaces = namespaces::namespaces(&config.linux).map_err(rule)?;
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
            propagation: mounts::propagation(&config.linux.rootfs_propagation).map_err(rule)?,
            no_pivot: options.no_pivot,
        },
        mounts: mounts::mounts(&config.mounts, bundle, &mut warnings).map_err(rule)?,
        devices: devices::devices(&config).map_err(rule)?,
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
        id_maps: namespaces::id_maps(&config.linux, &namespaces).map_err(rule)?,
        time_offsets: namespaces::time_offsets(&config.linux, &namespaces).map_err(rule)?,
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

#[cfg(test)]
pub(crate) mod tests {
    use moat_protocol::workload_spec::{CgroupMount, MountSource};
    use nix::libc;
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
        assert_eq!(plan.workload.devices.len(), 6, "config-linux.md names six nodes");
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
