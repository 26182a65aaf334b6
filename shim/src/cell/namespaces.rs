//! Namespaces of the cell (config-linux.md "Namespaces"). New ones come with the clone; those that are
//! joined by path are entered by the command line just before the clone and left right after it, so
//! that one clone makes a process that is in all of them (a pid namespace can't be entered otherwise).
//!
//! Two kinds are made by the child itself. The cgroup namespace, because its root is the cgroup of the
//! process that makes it, and `CLONE_INTO_CGROUP` takes effect after namespaces are copied. A time
//! namespace with offsets is made before the clone, since offsets can be set only while nobody is in it.

use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use moat_workload::sys::{self, CloneRequest, Cloned};
use nix::sched::CloneFlags;

use crate::bundle::plan::{NamespaceKind, Namespaces, Plan};

/// Why the container's first process could not be made.
#[derive(Debug, thiserror::Error)]
pub enum NamespaceError {
    /// The file of a namespace can't be opened.
    #[error("cannot open the {} namespace {}", kind.name(), path.display())]
    Open {
        /// Which.
        kind: NamespaceKind,
        /// Its file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A namespace can't be joined.
    #[error("cannot join the {} namespace {}", kind.name(), path.display())]
    Join {
        /// Which.
        kind: NamespaceKind,
        /// Its file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The way back from a joined namespace failed.
    #[error("cannot leave the joined {} namespace", kind.name())]
    Leave {
        /// Which.
        kind: NamespaceKind,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A time namespace can't be made.
    #[error("cannot set the offsets of a new time namespace")]
    Time(#[source] io::Error),
    /// The clone failed.
    #[error("cannot clone the container's init process")]
    Clone(#[source] io::Error),
}

/// Clones the container's first process into its namespaces, and its cgroup where `cgroup` is given.
///
/// # Errors
/// When a namespace can't be joined or made. In the child nothing fails.
pub fn clone_init(plan: &Plan, cgroup: Option<&OwnedFd>) -> Result<Cloned, NamespaceError> {
    use std::os::fd::AsFd;
    let time_with_offsets = plan.namespaces.is_new(NamespaceKind::Time) && !plan.time_offsets.is_empty();
    let mut visit = Visit::default();
    let cloned = visit
        .enter(&plan.namespaces)
        .and_then(|()| {
            if time_with_offsets {
                visit.new_time_namespace(plan)
            } else {
                Ok(())
            }
        })
        .and_then(|()| {
            let mut namespaces = plan.namespaces.new_flags() & !NamespaceKind::Cgroup.flag();
            if time_with_offsets {
                namespaces &= !NamespaceKind::Time.flag();
            }
            let request = CloneRequest {
                namespaces,
                cgroup: cgroup.map(AsFd::as_fd),
            };
            sys::clone_process(&request).map_err(NamespaceError::Clone)
        });
    if matches!(cloned, Ok(Cloned::Child)) {
        return cloned;
    }
    visit.leave()?;
    cloned
}

/// In the child: makes the cgroup namespace, its own cgroup being in place.
///
/// # Errors
/// As `unshare(2)`.
pub fn new_cgroup_namespace() -> io::Result<()> {
    sys::unshare_namespaces(NamespaceKind::Cgroup.flag())
}

/// Namespaces of others that the command line is in, and its own ones to return to.
#[derive(Default)]
struct Visit {
    own: Vec<(NamespaceKind, File)>,
}

impl Visit {
    fn enter(&mut self, namespaces: &Namespaces) -> Result<(), NamespaceError> {
        // All files are opened before the first is entered: from another mount namespace the paths
        // would mean something else.
        let mut targets = Vec::with_capacity(namespaces.joined.len());
        for (kind, path) in &namespaces.joined {
            let file = File::open(path).map_err(|source| NamespaceError::Open {
                kind: *kind,
                path: path.clone(),
                source,
            })?;
            targets.push((*kind, path, file, self.open_own(*kind)?));
        }
        for (kind, path, target, own) in targets {
            join(kind, &target).map_err(|source| NamespaceError::Join {
                kind,
                path: path.clone(),
                source,
            })?;
            self.own.push((kind, own));
        }
        Ok(())
    }

    fn open_own(&self, kind: NamespaceKind) -> Result<File, NamespaceError> {
        let path = PathBuf::from("/proc/self/ns").join(kind.proc_name());
        File::open(&path).map_err(|source| NamespaceError::Open { kind, path, source })
    }

    fn new_time_namespace(&mut self, plan: &Plan) -> Result<(), NamespaceError> {
        let own = self.open_own(NamespaceKind::Time)?;
        sys::unshare_namespaces(NamespaceKind::Time.flag()).map_err(NamespaceError::Time)?;
        self.own.push((NamespaceKind::Time, own));
        let lines: String = plan
            .time_offsets
            .iter()
            .map(|(clock, offset)| format!("{clock} {} {}\n", offset.secs, offset.nanosecs))
            .collect();
        fs::write("/proc/self/timens_offsets", lines).map_err(NamespaceError::Time)
    }

    /// Back home, last entered first.
    fn leave(&mut self) -> Result<(), NamespaceError> {
        while let Some((kind, own)) = self.own.pop() {
            join(kind, &own).map_err(|source| NamespaceError::Leave { kind, source })?;
        }
        Ok(())
    }
}

fn join(kind: NamespaceKind, file: &File) -> io::Result<()> {
    let flag = i32::try_from(kind.flag()).map_err(|_| io::ErrorKind::InvalidInput)?;
    nix::sched::setns(file, CloneFlags::from_bits_retain(flag)).map_err(io::Error::from)
}
