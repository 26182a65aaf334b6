//! From the container as the host sees it to the container as the guest will see it: every path of
//! the host becomes an export of the file server, and what a guest cannot have is refused by name.

use std::os::unix::fs::FileTypeExt;
use std::path::PathBuf;
use std::{fs, io};

use moat_protocol::ports::GUEST_CELL;
use moat_protocol::workload_spec::{
    CgroupMount, DeviceKind, DeviceSpec, MountSource, MountSpec, WorkloadSpec,
};

/// `MS_RDONLY` of `mount(2)`.
const MS_RDONLY: u64 = 1;

/// One directory or file of the host that the guest sees, below the file server's root.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Export {
    /// Where it is on the host.
    pub source: PathBuf,
    /// Path below the file server's root, such as `volumes/0`.
    pub name: String,
    /// Whether it is a directory.
    pub directory: bool,
    /// With the mounts below it.
    pub recursive: bool,
    /// Read-only on the host's side already, so that no guest kernel can write it.
    pub readonly: bool,
}

/// What a microVM cannot have.
#[derive(Debug, thiserror::Error)]
pub enum TranslateError {
    /// A bind source is missing or can't be looked at.
    #[error("cannot look at the source {} of the mount on {destination}", path.display())]
    Source {
        /// The source.
        path: PathBuf,
        /// The mount.
        destination: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A bind source is a socket, a FIFO or a device.
    #[error(
        "the mount on {destination} shows the {kind} {}: its other end is on the host's kernel, which a \
         guest cannot reach",
        path.display()
    )]
    Special {
        /// What it is.
        kind: &'static str,
        /// The source.
        path: PathBuf,
        /// The mount.
        destination: String,
    },
    /// A file system type that would read the host's files or devices.
    #[error("the mount on {destination} has type {fstype}, which a guest cannot mount")]
    Filesystem {
        /// Type.
        fstype: String,
        /// The mount.
        destination: String,
    },
    /// A device of the host.
    #[error("device {path}: devices of the host are not given to a guest")]
    Device {
        /// Path in the container.
        path: String,
    },
    /// A label of a security module which the guest's kernel does not have.
    #[error("process.{field} is set: the guest's kernel has no such security module")]
    Label {
        /// Field of config.json.
        field: &'static str,
    },
}

/// File systems that a guest mounts by itself, from its own kernel.
const GUEST_FILESYSTEMS: [&str; 8] = [
    "proc", "sysfs", "tmpfs", "ramfs", "devpts", "mqueue", "cgroup", "cgroup2",
];

/// Devices that every guest kernel has and that reach nothing of the host: `/dev/null` and its like
/// (major 1), `/dev/tty` and `/dev/ptmx` (major 5), `/dev/fuse` (10:229).
fn is_guests_own(device: &DeviceSpec) -> bool {
    match device.kind {
        DeviceKind::Character { major: 1, minor } => matches!(minor, 3 | 5 | 7 | 8 | 9),
        DeviceKind::Character { major: 5, minor } => minor <= 2,
        DeviceKind::Character { major: 10, minor } => minor == 229,
        DeviceKind::Character { .. } | DeviceKind::Block { .. } => false,
        DeviceKind::Fifo => true,
    }
}

/// Translates. The first export is the root file system.
///
/// # Errors
/// The first thing that the container asks for and a guest cannot have.
pub fn translate(spec: &WorkloadSpec) -> Result<(WorkloadSpec, Vec<Export>), TranslateError> {
    if let Some(device) = spec.devices.iter().find(|device| !is_guests_own(device)) {
        return Err(TranslateError::Device {
            path: device.path.clone(),
        });
    }
    let labels = [
        (spec.process.apparmor_profile.is_some(), "apparmorProfile"),
        (spec.process.selinux_label.is_some(), "selinuxLabel"),
    ];
    if let Some((_, field)) = labels.into_iter().find(|(set, _)| *set) {
        return Err(TranslateError::Label { field });
    }
    let mut guest = spec.clone();
    guest.root.path = format!("{GUEST_CELL}/rootfs");
    let mut exports = vec![Export {
        source: PathBuf::from(&spec.root.path),
        name: "rootfs".to_owned(),
        directory: true,
        recursive: true,
        readonly: spec.root.readonly,
    }];
    for mount in &mut guest.mounts {
        translate_mount(mount, &mut exports)?;
    }
    Ok((guest, exports))
}

fn translate_mount(mount: &mut MountSpec, exports: &mut Vec<Export>) -> Result<(), TranslateError> {
    match &mut mount.source {
        MountSource::Filesystem { fstype, .. } => {
            if !GUEST_FILESYSTEMS.contains(&fstype.as_str()) {
                let (fstype, destination) = (fstype.clone(), mount.destination.clone());
                return Err(TranslateError::Filesystem { fstype, destination });
            }
        }
        MountSource::Cgroup(cgroup) => *cgroup = CgroupMount::V2,
        MountSource::Bind { path, recursive } => {
            let source = PathBuf::from(path.as_str());
            let directory = is_directory(&source, &mount.destination)?;
            let name = format!("volumes/{}", exports.len() - 1);
            *path = format!("{GUEST_CELL}/{name}");
            let readonly = mount.flags & MS_RDONLY != 0;
            exports.push(Export {
                source,
                name,
                directory,
                recursive: *recursive,
                readonly,
            });
        }
    }
    Ok(())
}

fn is_directory(path: &PathBuf, destination: &str) -> Result<bool, TranslateError> {
    let kind = fs::metadata(path)
        .map_err(|source| TranslateError::Source {
            path: path.clone(),
            destination: destination.to_owned(),
            source,
        })?
        .file_type();
    let special = [
        (kind.is_socket(), "socket"),
        (kind.is_fifo(), "FIFO"),
        (kind.is_block_device(), "block device"),
        (kind.is_char_device(), "character device"),
    ];
    match special.into_iter().find(|(is, _)| *is) {
        Some((_, kind)) => Err(TranslateError::Special {
            kind,
            path: path.clone(),
            destination: destination.to_owned(),
        }),
        None => Ok(kind.is_dir()),
    }
}

#[cfg(test)]
mod tests {
    use moat_protocol::workload_spec::{ProcessSpec, RootSpec, UserSpec};

    use super::*;

    fn spec(mounts: Vec<MountSpec>) -> WorkloadSpec {
        WorkloadSpec {
            root: RootSpec {
                path: "/bundle/rootfs".into(),
                readonly: true,
                propagation: 0,
                no_pivot: false,
            },
            mounts,
            devices: vec![],
            hostname: None,
            domainname: None,
            sysctls: vec![],
            masked_paths: vec![],
            readonly_paths: vec![],
            process: ProcessSpec {
                args: vec!["true".into()],
                env: vec![],
                cwd: "/".into(),
                user: UserSpec::default(),
                capabilities: None,
                rlimits: vec![],
                no_new_privileges: false,
                oom_score_adj: None,
                terminal: None,
                apparmor_profile: None,
                selinux_label: None,
                seccomp: None,
                session_keyring: None,
            },
        }
    }

    fn bind(source: &str, flags: u64) -> MountSpec {
        MountSpec {
            destination: "/data".into(),
            source: MountSource::Bind {
                path: source.into(),
                recursive: true,
            },
            flags,
            propagation: vec![],
            recursive_set: 0,
            recursive_clear: 0,
            data: String::new(),
            copy_up: false,
        }
    }

    #[test]
    fn root_and_binds_become_exports_in_order() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        fs::write(&file, "x").unwrap();
        let folder = folder.path().to_str().unwrap();
        let mounts = vec![bind(folder, 0), bind(file.to_str().unwrap(), MS_RDONLY)];
        let (guest, exports) = translate(&spec(mounts)).unwrap();
        let seen: Vec<_> = exports
            .iter()
            .map(|e| (e.name.as_str(), e.directory, e.readonly))
            .collect();
        assert_eq!(
            seen,
            [
                ("rootfs", true, true),
                ("volumes/0", true, false),
                ("volumes/1", false, true)
            ]
        );
        assert_eq!(guest.root.path, format!("{GUEST_CELL}/rootfs"));
        let MountSource::Bind { path, .. } = &guest.mounts[1].source else {
            panic!()
        };
        assert_eq!(path, &format!("{GUEST_CELL}/volumes/1"));
    }

    #[test]
    fn a_device_as_bind_source_is_refused_by_name() {
        let error = translate(&spec(vec![bind("/dev/null", 0)])).unwrap_err();
        assert!(
            error.to_string().contains("character device /dev/null"),
            "{error}"
        );
    }

    #[test]
    fn a_missing_source_names_source_and_destination() {
        let error = translate(&spec(vec![bind("/no/such/folder", 0)])).unwrap_err();
        assert!(error.to_string().contains("/no/such/folder") && error.to_string().contains("/data"));
    }

    #[test]
    fn host_devices_and_foreign_file_systems_are_refused() {
        let mut with_device = spec(vec![]);
        with_device.devices.push(DeviceSpec {
            path: "/dev/kvm".into(),
            kind: DeviceKind::Character {
                major: 10,
                minor: 232,
            },
            mode: 0o600,
            uid: 0,
            gid: 0,
        });
        assert!(matches!(
            translate(&with_device),
            Err(TranslateError::Device { .. })
        ));
        let mut mount = bind("/", 0);
        mount.source = MountSource::Filesystem {
            fstype: "ext4".into(),
            source: "/dev/sda1".into(),
        };
        assert!(matches!(
            translate(&spec(vec![mount])),
            Err(TranslateError::Filesystem { .. })
        ));
    }
}
