//! The namespaces of a container, and what goes with a new one: maps of ids, offsets of clocks
//! (config-linux.md "Namespaces", "User namespace mappings", "Offset for Time Namespace").

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::config::{IdMapping, Linux, TimeOffset};
use super::validate::{ValidateError, bad_value};

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

pub(super) fn namespaces(linux: &Linux) -> Result<Namespaces, ValidateError> {
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

pub(super) fn id_maps(linux: &Linux, namespaces: &Namespaces) -> Result<Option<IdMaps>, ValidateError> {
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

pub(super) fn time_offsets(
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
